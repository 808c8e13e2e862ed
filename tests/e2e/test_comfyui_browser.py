"""ComfyUI's page with our nodes in a real browser; see :mod:`tests.e2e.page` for what this needs.

It draws nodes in one of two ways, of which older versions know one. With a ComfyUI of each kind at hand all are::

    COMFYUI_DIR=older COMFYUI_PYTHON=... python -m pytest -m e2e tests/e2e/test_comfyui_browser.py
    COMFYUI_DIR=newer COMFYUI_PYTHON=... python -m pytest -m e2e tests/e2e/test_comfyui_browser.py
    COMFYUI_DIR=newer COMFYUI_PYTHON=... ZOODIP_E2E_VUE=1 python -m pytest -m e2e tests/e2e/test_comfyui_browser.py

ZOODIP_SCREENSHOTS is a folder to leave screenshots in.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import open_browser
from tests.e2e.comfyui import ROOT, ComfyUI
from tests.e2e.page import (
    APP,
    LEARNING_LIMIT,
    LIMIT,
    LINE,
    LOADER,
    STATE,
    STEP,
    TRAINER,
    VUE,
    Page,
    Workflow,
    click_title,
    images_of,
    inputs_in_sight,
    learn,
    load,
    look_at,
    open_page,
    open_server,
    press,
    reload,
    run,
    toggle_advanced,
    wait_for_words,
    wait_until_ready,
    wait_until_stored,
)

pytestmark = pytest.mark.e2e

STEPS = 300
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
IN_SIGHT = ["token", "initializer", "preset", "steps", "seed", "preview_prompt", "preview_every"]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def server() -> Iterator[ComfyUI]:
    with open_server() as comfyui:
        yield comfyui


@pytest.fixture(scope="module")
def browser(server: ComfyUI) -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(server: ComfyUI, browser: Any) -> Iterator[Page]:
    """ComfyUI's page. Our scripts must have raised nothing at the end."""
    errors: list[str] = []
    with open_page(server, browser) as opened:
        opened.on("pageerror", lambda error: errors.append(f"{error.message}\n{error.stack}"))
        opened.reload()
        wait_until_ready(opened)
        yield opened
    assert not [error for error in errors if "zoodip" in error.lower()]


@pytest.fixture
def screenshot(page: Page, tmp_path: Path) -> Callable[[str], None]:
    folder = Path(os.environ.get("ZOODIP_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        page.wait_for_timeout(500)  # the page draws when it likes
        page.screenshot(path=folder / f"{name}.png")

    return take


# ---------------------------------------------------------------- the workflow


def node(
    server: ComfyUI, number: int, kind: str, at: tuple[int, int], links: dict[str, int], **values: Any
) -> Workflow:
    """A node as a workflow's file has it; ``links`` are those into it, the other inputs are widgets."""
    info = server.get(f"/object_info/{kind}")[kind]
    sockets, widgets = [], []
    for name, (accepts, *options) in (info["input"].get("required", {}) | info["input"].get("optional", {})).items():
        if name in links or (isinstance(accepts, str) and accepts not in WIDGETS):
            sockets.append({"name": name, "type": accepts, "link": links.get(name)})
        elif not options[0].get("forceInput"):
            first = accepts[0] if isinstance(accepts, list) else None
            widgets.append(values.get(name, options[0].get("default", first)))
    outputs = [
        {"name": name, "type": kind, "links": []}
        for name, kind in zip(info["output_name"], info["output"], strict=True)
    ]
    return {
        "id": number,
        "type": kind,
        "pos": list(at),
        "size": [320, 100],
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": sockets,
        "outputs": outputs,
        "properties": {},
        "widgets_values": widgets,
    }


def workflow(server: ComfyUI, token: str, **settings: Any) -> Workflow:
    """Learning a bundled subject on the embedded model; ``settings`` are the trainer's."""
    settings = {"initializer": "monster", "steps": STEPS, "preview_every": 40, "token": token} | settings
    links: list[list[Any]] = [
        [1, 1, 0, 5, 0, "ZOODIP_MODEL"],
        [2, 2, 0, 5, 1, "IMAGE"],
        [3, 3, 0, 5, 2, "SUBSPACE_GRADIENT"],
        [4, 4, 0, 5, 3, "TIMESTEP_SAMPLER"],
    ]
    names = ("model", "images", "subspace_gradient", "timestep_sampler")
    nodes = [
        node(server, 1, "ZoodipLoadQuantizedSD", (0, 0), {}),
        node(server, 2, "ZoodipLoadReferenceImages", (0, 240), {}, folder="bundled: boo"),
        node(server, 3, "ZoodipSubspaceGradient", (0, 640), {}, tau=21),
        node(server, 4, "ZoodipPUTSSampler", (0, 800), {}),
        node(server, 5, "ZoodipTrainToken", (400, 0), dict(zip(names, range(1, 5), strict=True)), **settings),
    ]
    for link, source, slot, *_ in links:
        nodes[source - 1]["outputs"][slot]["links"].append(link)
    return {"last_node_id": 5, "last_link_id": 4, "nodes": nodes, "links": links, "groups": [], "version": 0.4}


# ---------------------------------------------------------------- tests


def test_chart_and_preview_move_while_the_token_learns(
    server: ComfyUI, page: Page, screenshot: Callable[[str], None]
) -> None:
    load(page, workflow(server, "<boo>"))
    assert page.evaluate(LINE) == 0
    run(page)
    page.wait_for_function(f"{STEP} > 2 && {LINE} > 0")
    before, step = page.evaluate("document.querySelector('.zoodip-canvas').toDataURL()"), page.evaluate(STEP)
    page.wait_for_function(f"{STEP} > {step + 80} && {images_of(TRAINER)}.length > 0")
    assert page.evaluate("document.querySelector('.zoodip-canvas').toDataURL()") != before
    assert page.evaluate("document.querySelector('.zoodip-numbers').textContent").startswith("step ")

    for size in ({"width": 1440, "height": 900}, {"width": 900, "height": 700}):
        page.set_viewport_size(size)
        for scale in (0.7, 1):
            look_at(page, TRAINER, scale)
            screenshot(f"training_{size['width']}x{size['height']}_{scale}")


def test_a_page_loaded_anew_shows_the_chart_during_training_and_after(server: ComfyUI, page: Page) -> None:
    learn(page, workflow(server, "<anew>"))
    reload(page)
    page.wait_for_function(f"{STEP} > 0 && {LINE} > 0")
    assert page.evaluate(STEP) < STEPS
    finished = f"({STATE}).startsWith('finished: <anew> learned in {STEPS} steps')"
    page.wait_for_function(finished, timeout=LEARNING_LIMIT)
    wait_until_stored(page, "<anew> learned")

    reload(page)
    page.wait_for_function(f"{finished} && {LINE} > 0")
    assert page.evaluate(STEP) == STEPS


def test_a_finished_run_queued_again_shows_its_chart(server: ComfyUI, page: Page) -> None:
    again = workflow(server, "<again>", steps=20)
    learn(page, again)
    page.wait_for_function(f"({STATE}).startsWith('finished')")
    load(page, again)
    page.wait_for_function(f"{LINE} === 0")
    run(page)
    page.wait_for_function(f"({STATE}).startsWith('finished') && {LINE} > 0")


def test_the_finished_token_s_images_take_the_place_of_the_live_preview(
    server: ComfyUI, page: Page, screenshot: Callable[[str], None]
) -> None:
    images = images_of(TRAINER)
    learn(page, workflow(server, "<shown>", steps=60, preview_every=20))
    page.wait_for_function(f"{images}.length > 0 && {images}[0].startsWith('blob:')")
    page.wait_for_function(f"({STATE}).startsWith('finished')")
    page.wait_for_function(f"{images}.length === 4 && {images}.every(address => address.includes('/view?'))")
    for size in ({"width": 1440, "height": 900}, {"width": 900, "height": 700}):
        page.set_viewport_size(size)
        look_at(page, TRAINER, 0.8)
        page.wait_for_timeout(1000)
        screenshot(f"finished_{size['width']}x{size['height']}")


def test_a_trainer_in_a_subgraph_has_its_chart(server: ComfyUI, page: Page) -> None:
    load(page, workflow(server, "<inner>", steps=20))
    page.evaluate(f"void {APP}.graph.convertToSubgraph(new Set([{TRAINER}]))")
    run(page)
    inner = f"{APP}.graph.nodes.find(node => node.subgraph).subgraph.nodes[0]"
    page.wait_for_function(f"{inner}.properties.zoodip_chart?.state === 'finished'")


def test_a_note_stands_on_the_preview_that_it_is_about(server: ComfyUI, page: Page) -> None:
    """Of weights that were learned on others than the model has that draws with them."""
    about = workflow(server, "<note>", steps=2, preview_every=0, preset="paper", lora_rank=1)
    about["nodes"] += [
        node(server, 6, "ZoodipLoadQuantizedSD", (800, 0), {}, weights="int4"),
        node(server, 7, "ZoodipGeneratePreview", (800, 300), {"model": 5, "lora": 6}, prompts="a monster", steps=1),
    ]
    about["links"] += [[5, 6, 0, 7, 0, "ZOODIP_MODEL"], [6, 5, 3, 7, 2, "ZOODIP_LORA"]]
    about["nodes"][5]["outputs"][0]["links"] = [5]
    about["nodes"][4]["outputs"][3]["links"] = [6]
    load(page, about | {"last_node_id": 7, "last_link_id": 6})
    run(page)
    told = "document.querySelector('.zoodip-notes')?.textContent ?? ''"
    page.wait_for_function(f"{told}.includes('learned on int8 weights, this model has int4')", timeout=LEARNING_LIMIT)


def test_captions_stand_on_the_node_that_gives_them(
    server: ComfyUI, page: Page, screenshot: Callable[[str], None]
) -> None:
    """A line for each picture, which is no warning."""
    about = workflow(server, "<told>", steps=2, preview_every=0)
    links = {"images": 5, "captions": 6}
    about["nodes"].append(node(server, 6, "ZoodipCaptionImages", (800, 0), links, class_word="monster"))
    about["links"] += [[5, 2, 0, 6, 0, "IMAGE"], [6, 2, 1, 6, 1, "STRING"]]
    about["nodes"][1]["outputs"][0]["links"] = [2, 5]
    about["nodes"][1]["outputs"][1]["links"] = [6]
    load(page, about | {"last_node_id": 6, "last_link_id": 6})
    run(page)
    told = "document.querySelector('.zoodip-notes')?.textContent ?? ''"
    page.wait_for_function(f"/^1\\. .*\\{{\\}}.*2\\. /.test({told})", timeout=LEARNING_LIMIT)
    assert page.locator(".zoodip-notes .zoodip-warning").count() == 0
    screenshot("captions")


def test_cancel_stops_and_the_next_run_resumes(server: ComfyUI, page: Page) -> None:
    learn(page, workflow(server, "<stopped>"))
    page.get_by_role("button", name="Cancel current run").click()
    page.wait_for_function(f"/^stopped at step \\d+; queue again to resume$/.test({STATE})")
    stopped = page.evaluate(STEP)
    run(page)
    page.wait_for_function(f"{STEP} > {stopped} && ({STATE}).startsWith('learning')")


def wait_for_inputs(page: Page, names: list[str]) -> None:
    """Wait until these of the trainer's inputs are in sight."""
    until = time.monotonic() + LIMIT / 1000
    while (seen := inputs_in_sight(page, TRAINER)) != names and time.monotonic() < until:
        page.wait_for_timeout(100)
    assert seen == names


def test_advanced_inputs_are_shown_when_asked_for(
    server: ComfyUI, page: Page, screenshot: Callable[[str], None]
) -> None:
    asked = server.get("/object_info/ZoodipTrainToken")["ZoodipTrainToken"]["input"]["optional"]
    advanced = [name for name, (_, *options) in asked.items() if options[0].get("advanced")]
    assert len(advanced) > 10
    load(page, workflow(server, "<few>"))
    look_at(page, TRAINER, 0.8)
    wait_for_inputs(page, IN_SIGHT)
    height = page.evaluate(f"{TRAINER}.size[1]")
    room = f"(() => {{ const all = {TRAINER}.widgets; return all.at(-1).y - all[{len(IN_SIGHT) - 1}].y }})()"
    assert VUE or page.evaluate(room) < 40, "there is a gap where the others would stand"
    screenshot("advanced_hidden")

    toggle_advanced(page, TRAINER)
    page.wait_for_function(f"{TRAINER}.showAdvanced && {TRAINER}.size[1] > {height} + 15 * {len(advanced)}")
    wait_for_inputs(page, IN_SIGHT + advanced)
    look_at(page, TRAINER, 0.8)
    screenshot("advanced_shown")
    wait_until_stored(page, "showAdvanced")
    reload(page)
    page.wait_for_function(f"!!{TRAINER}")
    wait_for_inputs(page, IN_SIGHT + advanced)

    look_at(page, TRAINER, 0.5)
    toggle_advanced(page, TRAINER)
    page.wait_for_function(f"!{TRAINER}.showAdvanced")
    wait_for_inputs(page, IN_SIGHT)


def test_an_advanced_input_that_is_linked_stays_in_sight(server: ComfyUI, page: Page) -> None:
    load(page, workflow(server, "<linked>"))
    page.evaluate(f"""(() => {{
      const number = LiteGraph.createNode('PrimitiveInt')
      {APP}.graph.add(number)
      number.connect(0, {TRAINER}, {TRAINER}.inputs.findIndex(each => each.name === 'n'))
    }})()""")
    look_at(page, TRAINER, 0.8)
    page.wait_for_function(f"{TRAINER}.inputs.some(each => each.name === 'n' && each.link != null)")
    wait_for_inputs(page, [*IN_SIGHT, "n"])


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in EXAMPLES])
def test_an_example_s_note_can_be_read(page: Page, screenshot: Callable[[str], None], path: Path) -> None:
    """Also its angle brackets, which are no markup, and nothing is code, which the page paints in blue on blue."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    (text,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    load(page, workflow)
    box = page.locator(".widget-markdown" if VUE else ".comfy-markdown .tiptap")
    look_at(page, f"{APP}.graph.nodes.find(node => node.type === 'MarkdownNote')", 1.2)
    box.wait_for()
    screenshot(f"note_{path.stem}")
    written = re.sub(r"^(#+|\d+\.) |\*|\\", "", text, flags=re.MULTILINE)
    assert box.inner_text().split() == written.split()
    assert box.locator("code").count() == 0


def test_the_help_page_keeps_its_angle_brackets(server: ComfyUI, page: Page, screenshot: Callable[[str], None]) -> None:
    load(page, workflow(server, "<help>"))
    look_at(page, TRAINER, 0.8)
    click_title(page, TRAINER)
    page.get_by_test_id("info-button").click()
    box = page.locator(".node-help-content")
    box.get_by_text("Learns a new word for your subject").wait_for()
    screenshot("help")
    written = (ROOT / "web" / "docs" / "ZoodipTrainToken.md").read_text(encoding="utf-8")
    shown = box.inner_text()
    in_brackets = re.findall("<[^>]+>", written)
    assert in_brackets
    assert all(each in shown for each in in_brackets)


def test_a_token_that_can_not_be_is_refused_with_our_words(server: ComfyUI, page: Page) -> None:
    load(page, workflow(server, "a/b"))
    run(page)
    wait_for_words(page, "token 'a/b' holds parts of a path; choose a name")


def test_an_error_while_running_shows_our_words(server: ComfyUI, page: Page) -> None:
    load(page, workflow(server, "<rex>", initializer="stegosaurus rex"))
    run(page)
    wait_for_words(page, "initializer 'stegosaurus rex' is 11 tokens")
    page.wait_for_function(f"({STATE}).startsWith('failed: ') && ({STATE}).includes('stegosaurus rex')")


def test_the_button_uploads_pictures_into_a_new_folder_and_chooses_it(
    server: ComfyUI, page: Page, tmp_path: Path
) -> None:
    load(page, workflow(server, "<mine>"))
    with page.expect_file_chooser() as chooser:
        press(page, LOADER, "upload pictures")
    chooser.value.set_files(files_to_upload(tmp_path))
    folder = chosen_folder(page)
    assert folder.startswith("zoodip/my-cat-")
    assert sorted(p.name for p in (server.base / "input" / folder).iterdir()) == ["my cat.png", "my cat.txt", "two.png"]
    assert folder in page.evaluate(f"{LOADER}.widgets.find(each => each.name === 'folder').options.values")


def test_pictures_dropped_on_the_node_are_uploaded(server: ComfyUI, page: Page, tmp_path: Path) -> None:
    load(page, workflow(server, "<dropped>"))
    files = [[path.name, path.read_bytes().hex()] for path in files_to_upload(tmp_path)]
    page.evaluate(
        f"""files => {{
          const dataTransfer = new DataTransfer()
          for (const [name, hex] of files)
            dataTransfer.items.add(new File([Uint8Array.from(hex.match(/../g), each => parseInt(each, 16))], name))
          const node = {LOADER}
          if (!node.onDragOver({{ dataTransfer }})) throw new Error('not taken')
          node.onDragDrop({{ dataTransfer }})
        }}""",
        files,
    )
    assert len(list((server.base / "input" / chosen_folder(page)).iterdir())) == 3


def test_the_template_is_found_in_the_browser_of_templates(page: Page) -> None:
    page.get_by_role("button", name="Templates").click()
    page.get_by_text("ComfyUI-ZOODiP").first.click()
    page.get_by_text("learn_on_the_embedded_model").first.click()
    page.wait_for_function(f"{TRAINER}?.graph && !!document.querySelector('.zoodip-canvas')")


def files_to_upload(folder: Path) -> list[Path]:
    files = [folder / "my cat.png", folder / "my cat.txt", folder / "two.png"]
    for i, file in enumerate(files):
        if file.suffix == ".png":
            Image.new("RGB", (64, 64), (200, 100, 80 * i)).save(file)
        else:
            file.write_text("a photo of {} asleep", encoding="utf-8")
    return files


def chosen_folder(page: Page) -> str:
    value = f"{LOADER}.widgets.find(each => each.name === 'folder').value"
    page.wait_for_function(f"{value}.startsWith('zoodip/')")
    return str(page.evaluate(value))
