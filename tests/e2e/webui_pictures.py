"""Pictures of the page in A1111 and Forge for the documents: ``python -m tests.e2e.webui_pictures [A1111] [Forge]``.

They are taken in a real webui while it learns; :mod:`tests.e2e.webui_page` says what that needs.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import open_browser
from tests.e2e.comfyui import ROOT
from tests.e2e.page import LEARNING_LIMIT
from tests.e2e.webui import KINDS, Kind, Webui, data_folder
from tests.e2e.webui_page import choose_subject, open_page, open_tab, wait_for_step

MOST = 300_000
"""Bytes of a picture."""
STEP = 400
"""There is a chart and a sample by then, and the run has not converged yet."""


def save(shot: bytes, path: Path) -> None:
    """Save a screenshot with as many colours as there is room for."""
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    for colours in (0, 256, 128, 64):
        made = picture.quantize(colours, dither=Image.Dither.NONE) if colours else picture
        made.save(path, optimize=True)
        if path.stat().st_size <= MOST:
            return


def take(kind: Kind, browser: Any, path: Path) -> None:
    """Learn a bundled subject in a webui, and take a picture of its page on the way."""
    with data_folder(kind) as data, Webui(kind, data, "--api") as webui:
        with open_page(webui, browser) as page:
            page.set_default_timeout(LEARNING_LIMIT)
            open_tab(webui, page)
            choose_subject(page, "boo")
            page.locator("#zoodip_start").click()
            wait_for_step(page, "<boo>", STEP)
            page.locator("#zoodip_sample img").first.wait_for()
            page.mouse.move(0, 0)
            page.add_style_tag(
                content="button.tool { color: transparent !important }"
            )  # their signs are in no font here
            page.evaluate("document.activeElement.blur(), window.scrollTo(0, 0)")
            page.wait_for_timeout(1500)
            save(page.screenshot(), path)
        webui.stop_all()


def main() -> None:
    wanted = sys.argv[1:]
    sys.path.insert(0, str(ROOT / "tools"))  # as pytest has it; the checkpoint's maker is there
    with open_browser() as browser:
        for kind in KINDS:
            if not wanted or kind.name in wanted:
                path = ROOT / "docs" / f"{kind.name.lower()}.png"
                take(kind, browser, path)
                print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
