"""Take the documentation's pictures of the page while it really learns: ``python -m tests.page_pictures``."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import open_browser
from tests.page_server import PageServer, visit

DOCS = Path(__file__).resolve().parent.parent / "docs"
SUBJECT, SHOWN = "boo", 400
"""What is learned, and the step at which it is shown: a run may converge soon after."""
LIMIT = 1_800_000.0
"""Milliseconds that the training may take."""


def save(shot: bytes, path: Path) -> None:
    """Save a screenshot in 256 colours, which its flat areas hardly show."""
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as place, open_browser() as browser:
        server = PageServer(Path(place))
        server.start()
        try:
            with visit(browser, server.url) as visitor:
                visitor.page.set_default_timeout(LIMIT)
                visitor.choose("bundled", SUBJECT)
                visitor.pictures.first.wait_for()
                visitor.start(f"<{SUBJECT}>")
                visitor.until_step(SHOWN)
                visitor.page.evaluate("document.activeElement.blur(), window.scrollTo(0, 0)")
                save(visitor.page.screenshot(), DOCS / "page.png")
                visitor.until_state("finished")
                visitor.tab("Runs")
                visitor.choose_run(SUBJECT)
                visitor.page.locator("#zoodip_before_after img").first.wait_for()
                visitor.page.wait_for_timeout(1000)
                save(visitor.page.screenshot(), DOCS / "page_runs.png")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
