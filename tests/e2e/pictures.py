"""The pictures of the nodes: the README's and the example workflows' thumbnails.

    COMFYUI_DIR=... COMFYUI_PYTHON=... python -m tests.e2e.pictures [EXAMPLE ...]

Runs the examples that need nothing but the embedded model, and takes pictures of all in ComfyUI's page.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from PIL import Image

from tests.browser import open_browser
from tests.e2e.comfyui import ROOT, ComfyUI
from tests.e2e.page import (
    APP,
    LEARNING_LIMIT,
    STEP,
    TRAINER,
    Page,
    images_of,
    load,
    look_at,
    open_page,
    open_server,
    run,
)

EXAMPLES = ROOT / "example_workflows"
README = ROOT / "docs" / "comfyui.png"
NARROW = ROOT / "docs" / "comfyui_trainer.png"
STORY = "learn_on_the_embedded_model"
_THUMBNAIL = (800, 640)
ALL = f"{APP}.graph.nodes"
LEARNING = f"{APP}.graph.nodes.filter(node => node.pos[0] < {TRAINER}.pos[0] + 50)"
"""The trainer and what stands before it: with the rest of a large graph no word would be readable."""


def fit(page: Page, nodes: str) -> tuple[float, float, float, float]:
    """Zoom so that some nodes fill the graph; returns their box on the page: left, top, right, bottom."""
    box = page.evaluate(f"""(() => {{
      const view = {APP}.canvas, {{ canvas, ds }} = view, boxes = {nodes}.map(node => node.boundingRect)
      const left = Math.min(...boxes.map(b => b[0])), right = Math.max(...boxes.map(b => b[0] + b[2]))
      const top = Math.min(...boxes.map(b => b[1])), bottom = Math.max(...boxes.map(b => b[1] + b[3]))
      const page = canvas.getBoundingClientRect()
      const free = {{ x: 60, y: 100, width: page.width - 80, height: page.height - 170 }}
      ds.scale = Math.min(free.width / (right - left), free.height / (bottom - top), 1)
      ds.offset[0] = free.x / ds.scale - left + (free.width / ds.scale - right + left) / 2
      ds.offset[1] = free.y / ds.scale - top
      view.low_quality_zoom_threshold = view.min_font_size_for_lod = 0 // words, however small
      view.setDirty(true, true)
      const shown = (x, axis) => (x + ds.offset[axis]) * ds.scale
      return [page.x + shown(left, 0), page.y + shown(top, 1), page.x + shown(right, 0), page.y + shown(bottom, 1)]
    }})()""")
    page.wait_for_timeout(1500)
    left, top, right, bottom = box
    return left, top, right, bottom


def picture(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def take(server: ComfyUI, page: Page, example: Path) -> None:
    """Open an example, run it if it needs no checkpoint, and take its pictures."""
    workflow = json.loads(example.read_text(encoding="utf-8"))
    load(page, workflow)
    page.wait_for_timeout(1500)
    kinds = {node["type"] for node in workflow["nodes"]}
    story = not kinds & {"CheckpointLoaderSimple", "UNETLoader"}
    if story and "ZoodipEvaluateEmbedding" not in kinds:  # which needs CLIP and DINOv2
        run(page)
        if example.stem == STORY:
            page.wait_for_function(f"{STEP} > 400 && {images_of(TRAINER)}.length > 0", timeout=LEARNING_LIMIT)
            fit(page, ALL)
            picture(page).save(README, optimize=True)
            page.set_viewport_size({"width": 900, "height": 700})
            look_at(page, TRAINER, 0.9)
            page.wait_for_timeout(1500)
            picture(page).save(NARROW, optimize=True)
            page.set_viewport_size({"width": 1440, "height": 900})
        page.wait_for_timeout(3000)
        while server.get("/queue")["queue_running"]:
            page.wait_for_timeout(1000)
    left, top, right, bottom = fit(page, ALL if story else LEARNING)
    shot = picture(page).crop((round(left) - 12, round(top) - 22, round(right) + 12, round(bottom) + 12))
    shot.thumbnail(_THUMBNAIL, Image.Resampling.LANCZOS)
    shot.save(example.with_suffix(".jpg"), quality=88)


def main() -> None:
    wanted = sys.argv[1:]
    with open_server() as server, open_browser() as browser:
        # The story first: ComfyUI shows no thumbnails of pictures that another workflow has loaded.
        for example in sorted(EXAMPLES.glob("*.json"), key=lambda path: (path.stem != STORY, path.stem)):
            if not wanted or example.stem in wanted:
                with open_page(server, browser) as page:
                    take(server, page, example)
                print(example.stem)


if __name__ == "__main__":
    main()
