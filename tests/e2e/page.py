"""ComfyUI's page in a real browser: what its tests and the pictures of the README do with it.

Besides ``COMFYUI_DIR`` (see :mod:`tests.e2e.comfyui`) it needs Playwright for Python and a Chromium, named by CHROMIUM
or on the PATH. COMFYUI_FRONTEND, the ``static`` folder of a frontend's wheel, puts that frontend before the server.
With ZOODIP_E2E_VUE=1 the page draws nodes the newer way, called Nodes 2.0, and else on the canvas.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.e2e.comfyui import ComfyUI

Page = Any
"""Playwright's; its types are not there where it is not installed."""
Workflow = dict[str, Any]

VUE = os.environ.get("ZOODIP_E2E_VUE") == "1"
"""Whether the nodes are elements of the page, and not painted on its canvas."""
LIMIT, LEARNING_LIMIT = 60_000.0, 480_000.0
"""Milliseconds for anything that a page waits for, and for the end of a training."""
APP = "window.comfyAPI?.app?.app"
TRAINER = f"{APP}.graph.nodes.find(node => node.comfyClass === 'ZoodipTrainToken')"
LOADER = f"{APP}.graph.nodes.find(node => node.comfyClass === 'ZoodipLoadReferenceImages')"
STEP = "Number(/step (\\d+)/.exec(document.querySelector('.zoodip-numbers')?.textContent)?.[1] ?? 0)"
STATE = "document.querySelector('.zoodip-state')?.textContent ?? ''"
LINE = """(() => {
  const canvas = document.querySelector('.zoodip-canvas')
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  let count = 0
  for (let i = 0; i < data.length; i += 4) count += data[i + 3] > 128 && data[i + 2] > data[i] + 60
  return count
})()"""
"""How many pixels of the chart have the blue of its line."""


@contextlib.contextmanager
def open_server() -> Iterator[ComfyUI]:
    """A ComfyUI whose page shows nothing in the way."""
    frontend = os.environ.get("COMFYUI_FRONTEND")
    with ComfyUI(*(("--front-end-root", frontend) if frontend else ())) as comfyui:
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.VueNodes.Enabled": VUE}
        comfyui.post("/settings", settings)
        yield comfyui


@contextlib.contextmanager
def open_page(server: ComfyUI, browser: Any) -> Iterator[Page]:
    """ComfyUI's page, in a browser that has never seen it; nothing runs or waits on the server afterwards."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(LIMIT)
    try:
        opened = context.new_page()
        opened.goto(server.url)
        wait_until_ready(opened)
        yield opened
    finally:
        server.post("/queue", {"clear": True})
        server.interrupt()
        wait_until(lambda: not server.get("/queue")["queue_running"])
        context.close()


def wait_until_ready(page: Page) -> None:
    page.wait_for_function(f"!!({APP}?.graph && {APP}.canvas && LiteGraph.registered_node_types.ZoodipTrainToken)")
    page.wait_for_timeout(1000)  # the page restores its tabs after that


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LIMIT / 1000
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"it was not so within {LIMIT / 1000:g} s")
        time.sleep(0.1)


def reload(page: Page) -> None:
    page.reload()
    wait_until_ready(page)


def wait_until_stored(page: Page, words: str) -> None:
    """Wait until the browser keeps the workflow with these words for the next load; newer pages take a while."""
    stores = "[...Object.values(localStorage), ...Object.values(sessionStorage)]"
    page.wait_for_function(f"{stores}.some(each => each.includes({json.dumps(words)}))")


def load(page: Page, workflow: Workflow) -> None:
    """Open a workflow's file, as the page's menu does."""
    file = {"name": "learn.json", "mimeType": "application/json", "buffer": json.dumps(workflow).encode()}
    page.locator("#comfy-file-input").set_input_files(file)
    page.wait_for_function(f"{TRAINER}?.graph && document.querySelector('.zoodip-canvas')?.clientWidth > 0")


def run(page: Page) -> None:
    page.get_by_role("button", name="Run", exact=True).first.click()  # the second of newer pages opens a menu


def learn(page: Page, workflow: Workflow) -> None:
    """Load it, queue it, and wait until the first of its losses is drawn."""
    load(page, workflow)
    run(page)
    page.wait_for_function(f"{STEP} > 2 && {LINE} > 0")


def look_at(page: Page, node: str, scale: float) -> None:
    """Zoom, and bring the middle of a node's lower edge to that of the graph."""
    page.evaluate(f"""(() => {{
      const {{ canvas, ds }} = {APP}.canvas, [x, y, width, height] = {node}.boundingRect
      const box = canvas.getBoundingClientRect()
      ds.scale = {scale}
      ds.offset[0] = box.width / 2 / ds.scale - x - width / 2
      ds.offset[1] = (box.height - 80) / ds.scale - y - height
      {APP}.canvas.setDirty(true, true)
    }})()""")


def press(page: Page, node: str, widget: str) -> None:
    """Click on a widget that is a button."""
    if VUE:
        element(page, node).get_by_role("button", name=widget).click()
    else:
        click_on_canvas(page, node, f"[node.size[0] / 2, node.widgets.find(each => each.name === '{widget}').y + 10]")


def click_title(page: Page, node: str, button: str = "left") -> None:
    click_on_canvas(page, node, "[80, -15]", button)


def click_on_canvas(page: Page, node: str, place: str, button: str = "left") -> None:
    """Click on a place of a node: its distance from the node's left and upper edge, in JavaScript."""
    x, y = page.evaluate(f"""(() => {{
      const {{ canvas, ds }} = {APP}.canvas, node = {node}, [right, down] = {place}
      const box = canvas.getBoundingClientRect()
      return [box.x + (node.pos[0] + right + ds.offset[0]) * ds.scale,
              box.y + (node.pos[1] + down + ds.offset[1]) * ds.scale]
    }})()""")
    page.mouse.click(x, y, button=button)


def element(page: Page, node: str) -> Any:
    """A node on the page, where it is an element."""
    number = page.evaluate(f"{node}.id")
    return page.locator(f"[data-node-id='{number}']")


def inputs_in_sight(page: Page, node: str) -> list[str]:
    """The names of the inputs with a widget that can be seen."""
    if VUE:
        return [str(name) for name in element(page, node).get_by_test_id("widget-layout-field-label").all_inner_texts()]
    visible = f"{node}.widgets.filter(each => {node}.isWidgetVisible(each) && {node}.getSlotFromWidget(each))"
    return [str(name) for name in page.evaluate(f"{visible}.map(each => each.name)")]


def images_of(node: str) -> str:
    """The addresses of the images that a node shows, in JavaScript."""
    shown = f"[...document.querySelectorAll(`[data-node-id='${{{node}.id}}'] img`)]" if VUE else f"({node}.imgs ?? [])"
    return f"{shown}.map(image => image.src)"


def toggle_advanced(page: Page, node: str) -> None:
    """Show or hide a node's advanced inputs, by the page's own way."""
    if VUE:
        element(page, node).get_by_test_id("advanced-inputs-button").click()
    else:
        click_title(page, node, "right")
        page.get_by_text(re.compile("^(Show|Hide) Advanced$")).first.click()


def wait_for_words(page: Page, words: str) -> None:
    """Wait until ComfyUI itself, not our chart, shows them; newer pages do when asked, and asked again."""
    shown = page.get_by_text(words).and_(page.locator("body *:not(.zoodip-chart *)")).first
    for name in ("View details", "Info for ZO Train Token"):
        more = page.get_by_role("button", name=name).first
        shown.or_(more).first.wait_for()
        if shown.is_visible():
            return
        more.click()
    shown.wait_for()
