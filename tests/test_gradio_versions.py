"""The page on the gradios of A1111 and Forge, in a real browser: the same page, each in an environment of its own.

Their environments have no diffusers and no transformers, which the page must not need. Torch, which they have, is lent
to them by the environment that runs the tests, last on the path.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import open_browser
from tests.page_server import PHOTOGRAPHS, ROOT, PageServer, visit
from zoodip_core import load_embedding

pytestmark = pytest.mark.slow

BOTH = ("httpx==0.24.1", "httpcore==0.15", "pillow==9.5.0", "numpy==1.26.2", "safetensors==0.4.2")
PINS = {  # of their requirements_versions.txt, and what their transformers holds back
    "A1111": ("gradio==3.41.2", "fastapi==0.94.0", "huggingface_hub<1", *BOTH),
    "Forge": ("gradio==4.40.0", "fastapi==0.104.1", "pydantic==2.8.2", "huggingface_hub==0.26.2", *BOTH),
}
LENT = ("torch", "torchgen", "functorch", "sympy", "mpmath", "networkx", "nvidia", "triton")
CDN = "cdnjs.cloudflare.com"
"""Both pages ask it for a script that their templates name, and do without."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module", params=PINS)
def server(
    request: pytest.FixtureRequest, browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PageServer]:
    """The page, served by such an environment."""
    root = tmp_path_factory.mktemp(request.param)
    python = make_environment(root / "venv", PINS[request.param])
    command = [str(python), str(ROOT / "tests" / "serve_page.py"), "{port}", str(root / "runs"), sys.executable]
    running = PageServer(root, command)
    running.start()
    yield running
    running.stop()


def make_environment(folder: Path, pins: tuple[str, ...]) -> Path:
    """A virtual environment with a gradio; returns its Python."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *pins], check=True)
    ours, lent = Path(sysconfig.get_path("platlib")), folder / "lent"
    lent.mkdir()
    for name in LENT:
        if (ours / name).exists():
            (lent / name).symlink_to(ours / name)
    where = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    (Path(where.stdout.strip()) / "lent.pth").write_text(f"{lent}\n")
    return python


def test_a_subject_is_learned_on_the_page(server: PageServer, browser: Any, tmp_path: Path) -> None:
    with visit(browser, server.url) as visitor:
        assert visitor.state == "idle"
        visitor.choose("bundled", "boo")
        visitor.until_python(lambda: visitor.value("token") == "<boo>")
        visitor.until_python(lambda: visitor.captions[:1] == ["a {} in the beach"])
        visitor.pictures.nth(1).click()
        visitor.page.wait_for_selector("#zoodip_caption textarea")
        visitor.write("caption", "a {} far away")
        visitor.until_python(lambda: visitor.captions[1] == "a {} far away")
        visitor.open_settings()
        visitor.write("sample_every", "40")

        visitor.press("check")
        assert "6 pictures, 6 captions; 900 steps of 5 forward passes" in visitor.notice("good")
        visitor.start("<boo>")
        step, line, first = visitor.step, visitor.line, visitor.sample()
        visitor.until_step(step + 10)
        assert visitor.line != line
        visitor.until("first => document.querySelector('#zoodip_sample img').src !== first", first)

        visitor.look()
        assert visitor.value("token") == "<boo>"
        assert visitor.captions[1] == "a {} far away"
        visitor.press("stop")
        visitor.until_state("stopped")

        visitor.tab("Runs")
        visitor.choose_run("boo")
        visitor.press("show")
        visitor.until("() => document.querySelector('#zoodip_show').innerText === 'Draw it again'")
        visitor.page.locator("#zoodip_before_after img").wait_for()
        with visitor.page.expect_download() as download:
            visitor.page.locator("#zoodip_file a").first.click()
        download.value.save_as(tmp_path / "boo.safetensors")
        assert load_embedding(tmp_path / "boo.safetensors").token == "<boo>"
        visitor.press("delete")
        visitor.press("yes")
        assert visitor.notice("good", "runs_notice") == "boo is deleted"
        visitor.until("() => !document.querySelector('#zoodip_run_list label')")

        assert visitor.errors == []
        assert visitor.foreign <= {CDN}
    assert "Traceback" not in server.log
    assert "Warning" not in server.log


def test_a_mask_is_painted(server: PageServer, browser: Any) -> None:
    with visit(browser, server.url) as visitor:
        visitor.drop(PHOTOGRAPHS[:2])
        visitor.paint(1)
        (kept,) = (server.runs / ".draft" / "images").glob("*.mask.png")
        with Image.open(kept) as mask, Image.open(PHOTOGRAPHS[1]) as picture:
            assert mask.size == picture.size
            left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
            assert mask.getpixel(((left + right) // 2, (top + bottom) // 2)) == 255
            assert mask.getpixel((1, 1)) == 0
        visitor.press("clear")
        visitor.until_python(lambda: not kept.exists())
        assert visitor.errors == []


@pytest.mark.parametrize("width", [480, 900])
def test_nothing_is_beside_a_narrow_page(server: PageServer, browser: Any, width: int) -> None:
    with visit(browser, server.url, size=(width, 800)) as narrow:
        assert narrow.page.evaluate("document.documentElement.scrollWidth") <= width
        for name in ("start", "stop", "check", "drop", "token"):
            box = narrow.page.locator(f"#zoodip_{name}").first.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
