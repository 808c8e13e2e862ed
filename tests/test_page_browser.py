"""The page alone in a real browser, from photographs to a token; see :mod:`tests.browser` for what this needs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import open_browser
from tests.page_server import PHOTOGRAPHS, PageServer, Visitor, visit
from tests.small_captioners import SmallCaptioners, pictures
from zoodip_core import TrainConfig, load_embedding, train_token
from zoodip_core.jobs.history import find_run
from zoodip_core.model.lora import load_lora
from zoodip_core.model.stable_diffusion import StableDiffusion

STEPS, EVERY = 60, 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """The page's server; not started where there is no browser."""
    running = PageServer(tmp_path_factory.mktemp("page"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def visitor(server: PageServer, browser: Any) -> Iterator[Visitor]:
    """A visitor of the page, on which nothing is kept from before but the runs. The browser has nothing to complain."""
    shutil.rmtree(server.runs / ".draft", ignore_errors=True)
    with visit(browser, server.url) as opened:
        yield opened
        assert opened.errors == []
        assert opened.foreign == set()


def fill_in(visitor: Visitor, token: str, **settings: int) -> None:
    """The photographs of a dog, for a short training on the embedded model."""
    visitor.drop(PHOTOGRAPHS)
    visitor.write("token", token)
    visitor.write("initializer", "monster")
    visitor.open_settings()
    for name, number in {"steps": STEPS, "n": 2, "sample_every": EVERY, "sample_steps": 10, **settings}.items():
        visitor.write(name, str(number))


# ---------------------------------------------------------------- masks


@pytest.mark.slow
@pytest.mark.parametrize("width", [1440, 480])
def test_a_mask_is_painted_or_dropped(server: PageServer, browser: Any, tmp_path: Path, width: int) -> None:
    """Paint is white in the mask; outside, the picture's tile is dark."""
    shutil.rmtree(server.runs / ".draft", ignore_errors=True)
    mask = Image.new("L", Image.open(PHOTOGRAPHS[0]).size)
    mask.paste(255, (mask.width // 3, mask.height // 3, mask.width // 2, mask.height // 2))
    mask.save(tmp_path / f"{PHOTOGRAPHS[0].stem}.mask.png")
    with visit(browser, server.url, size=(width, 900)) as visitor:
        visitor.drop([*PHOTOGRAPHS[:2], tmp_path / f"{PHOTOGRAPHS[0].stem}.mask.png"])
        assert not visitor.shown("unmask")
        visitor.paint(1)
        kept = sorted((server.runs / ".draft" / "images").glob("*.mask.png"))
        assert [path.name for path in kept] == ["0001-dog-00.mask.png", "0002-dog-01.mask.png"]
        with Image.open(kept[1]) as painted, Image.open(PHOTOGRAPHS[1]) as picture:
            assert painted.size == picture.size
            left, top, right, bottom = painted.getbbox() or (0, 0, 0, 0)
            assert abs((left + right) / 2 - picture.width / 2) < picture.width / 5
            assert abs((top + bottom) / 2 - picture.height / 2) < picture.height / 5
            assert painted.getpixel((2, 2)) == 0
            assert painted.getpixel(((left + right) // 2, (top + bottom) // 2)) == 255
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
        visitor.pictures.nth(1).click()
        visitor.page.locator("#zoodip_unmask").wait_for()
        visitor.press("unmask")
        visitor.until_python(lambda: not kept[1].exists())
        assert kept[0].exists()
        assert visitor.errors == []
        assert visitor.foreign == set()


# ---------------------------------------------------------------- folders


@pytest.mark.slow
def test_a_folder_that_is_dropped_is_its_pictures(visitor: Visitor, tmp_path: Path) -> None:
    folder = tmp_path / "rex"
    (folder / "within").mkdir(parents=True)
    for number, photograph in enumerate(PHOTOGRAPHS[:3]):
        shutil.copy(photograph, folder / f"{number}.jpg")
    shutil.copy(PHOTOGRAPHS[3], folder / "within")
    (folder / ".DS_Store").write_bytes(b"no picture")
    (folder / "1.txt").write_text("a photo of <rex> in a basket")
    visitor.drag(folder)
    visitor.pictures.nth(2).wait_for()
    assert visitor.pictures.count() == 3
    assert "in a basket" in visitor.captions[1]
    (tmp_path / "empty").mkdir()
    visitor.drag(tmp_path / "empty")
    visitor.page.locator("#zoodip_pictures_notice").filter(has_text="empty").first.wait_for()
    assert visitor.pictures.count() == 3


# ---------------------------------------------------------------- from photographs to a token


def test_a_subject_is_learned_on_the_page(server: PageServer, visitor: Visitor, tmp_path: Path) -> None:
    fill_in(visitor, "<rex>")
    look_at_the_switch_of_weights(visitor)
    assert len(visitor.captions) == len(PHOTOGRAPHS)
    assert visitor.captions[0] == "0001-dog-00.jpg"
    wide = visitor.page.locator("#zoodip_pictures img").nth(1)  # of a photograph that is not square
    assert wide.evaluate("img => [img.naturalWidth, img.naturalHeight]") == [256, 154]
    visitor.start("<rex>")
    look_while_it_trains(server, visitor)
    visitor.until_step(STEPS)
    visitor.until_state("finished")
    assert "write rex in a prompt; its LoRA" in visitor.status.inner_text()
    look_at_the_run(server, visitor, tmp_path)


def look_at_the_switch_of_weights(visitor: Visitor) -> None:
    """A preset that learns them has it on; whoever chooses another one has it as it was, and turns it on here."""
    switch = visitor.field("learn_weights")
    assert not switch.is_checked()
    visitor.choose("preset", "two-stage")
    visitor.until("() => document.querySelector('#zoodip_learn_weights input').disabled")
    assert switch.is_checked()
    visitor.choose("preset", "default")
    visitor.until("() => !document.querySelector('#zoodip_learn_weights input').disabled")
    assert not switch.is_checked()
    switch.check()


def look_while_it_trains(server: PageServer, visitor: Visitor) -> None:
    """Number, chart and samples move. The worker is held while the browser looks, however slow that is."""
    with held_after_samples(server, visitor, 1):
        visitor.until_step(EVERY)
        step, line, first = visitor.step, visitor.line, visitor.sample()
    with held_after_samples(server, visitor, 2):
        visitor.until_step(step + 5)
        assert visitor.line != line
        visitor.until("first => document.querySelector('#zoodip_sample img').src !== first", first)


@pytest.mark.slow
def test_a_checked_training_is_stopped_and_goes_on_after_a_reload(server: PageServer, visitor: Visitor) -> None:
    fill_in(visitor, "<dog>")
    visitor.pictures.nth(1).click()
    visitor.page.wait_for_selector("#zoodip_caption textarea")
    visitor.write("caption", "a photo of a {} in the sun")
    visitor.until_python(lambda: visitor.captions[1] == "a photo of a {} in the sun")
    visitor.press("check")
    told = visitor.notice("good")
    assert "MB of the computer's memory" in told
    assert f"4 pictures, 4 captions; {STEPS} steps of 2 forward passes" in told

    visitor.start("<dog>")
    with held_after_samples(server, visitor, 1, "dog"):
        visitor.press("stop")
        visitor.until_state("stopping")
    visitor.until_state("stopped")
    assert 0 < visitor.step < STEPS
    visitor.page.wait_for_selector("#zoodip_resume")
    assert visitor.page.locator("#zoodip_resume").first.inner_text() == "Resume dog"
    come_back(visitor)
    visitor.press("resume")
    visitor.until_step(STEPS)
    visitor.until_state("finished")


@contextlib.contextmanager
def held_after_samples(server: PageServer, visitor: Visitor, count: int, run: str = "rex") -> Iterator[None]:
    """The worker that trains does nothing from so many samples on until this context is left."""
    samples = server.runs / run / "run" / "samples"
    visitor.until_python(lambda: samples.is_dir() and len(list(samples.glob("*.png"))) >= count)
    (worker,) = server.workers()
    worker.suspend()
    try:
        yield
    finally:
        worker.resume()


def come_back(visitor: Visitor) -> None:
    """After a reload all is there still."""
    step = visitor.step
    visitor.look()
    assert visitor.state == "stopped"
    assert visitor.step == step
    assert visitor.line
    assert visitor.sample()
    assert visitor.value("token") == "<dog>"
    assert visitor.value("initializer") == "monster"
    assert visitor.captions[:2] == ["0001-dog-00.jpg", "a photo of a {} in the sun"]
    visitor.open_settings()
    assert visitor.value("steps") == str(STEPS)


def look_at_the_run(server: PageServer, visitor: Visitor, folder: Path) -> None:
    """Before and after, the files of the token and its weights, and the end of a run."""
    visitor.tab("Runs")
    visitor.choose_run("rex")
    drawn = visitor.page.locator("#zoodip_before_after img")
    drawn.wait_for()
    size = Image.open(find_run(server.runs, "rex").before_after or "").size
    assert tuple(drawn.evaluate("img => [img.naturalWidth, img.naturalHeight]")) == size
    for box, name in (("file", "rex.safetensors"), ("lora", "rex-lora.safetensors")):
        with visitor.page.expect_download() as download:
            visitor.page.locator(f"#zoodip_{box} a").first.click()
        assert download.value.suggested_filename == name
        download.value.save_as(folder / name)
    learned = load_embedding(folder / "rex.safetensors")
    assert learned.token == "<rex>"
    assert load_lora(folder / "rex-lora.safetensors").rank == 4
    assert (folder / "rex.safetensors").read_bytes() == (server.embeddings / "rex.safetensors").read_bytes()

    visitor.press("delete")
    visitor.page.wait_for_selector("#zoodip_yes")
    assert (server.runs / "rex").is_dir()
    visitor.press("yes")
    assert visitor.notice("good", "runs_notice") == "rex is deleted"
    assert not (server.runs / "rex").exists()
    assert (server.embeddings / "rex.safetensors").is_file()
    visitor.until("() => !document.querySelector('#zoodip_run_list label')")


@pytest.mark.slow
def test_a_second_training_waits_and_both_outlive_the_server(
    server: PageServer, visitor: Visitor, browser: Any
) -> None:
    fill_in(visitor, "<one>", steps=5000)
    visitor.start("<one>")
    visitor.write("token", "<two>")
    visitor.press("start")
    assert visitor.notice("good") == "<two>: waiting for <one> to end"
    visitor.until("() => document.querySelector('#zoodip_status').innerText.includes('Next: <two>')")

    visitor.page.goto("about:blank")
    server.stop()
    step = find_run(server.runs, "one").step
    server.start()
    with visit(browser, server.url) as again:
        assert again.state == "idle"
        assert f"one was not finished: Resume starts at step {step} of 5,000" in again.status.inner_text()
        assert again.page.locator("#zoodip_resume").first.inner_text() == "Resume one"
        assert again.value("token") == "<two>"
        assert len(again.captions) == len(PHOTOGRAPHS)
        again.press("resume")
        again.until_step(step + 1)
        again.press("stop")
        again.until_state("stopped")
        assert again.errors == []


# ---------------------------------------------------------------- what cannot be


@pytest.mark.slow
def test_a_video_is_not_taken_and_a_start_without_pictures_is_refused(
    server: PageServer, visitor: Visitor, tmp_path: Path
) -> None:
    (tmp_path / "rex.mp4").write_bytes(b"\0" * 1000)
    visitor.drop([tmp_path / "rex.mp4"])
    assert "rex.mp4 is a video" in visitor.notice("warning", "pictures_notice")
    assert visitor.pictures.count() == 0
    visitor.write("token", "<none>")
    visitor.write("initializer", "dog")
    visitor.press("start")
    assert "there are no pictures yet" in visitor.notice("error")
    assert not (server.runs / "none").exists()


@pytest.mark.slow
def test_a_token_that_can_not_be_is_refused(visitor: Visitor) -> None:
    fill_in(visitor, "a/b")
    for button in ("start", "check"):
        visitor.press(button)
        assert "token 'a/b' holds parts of a path; choose a name" in visitor.notice("error")


@pytest.mark.slow
def test_an_initializer_that_is_no_word_is_told_of(visitor: Visitor) -> None:
    fill_in(visitor, "<steg>")
    visitor.write("initializer", "stegosaurus rex")
    visitor.press("check")
    assert "initializer 'stegosaurus rex' is 11 tokens" in visitor.notice("error")


@pytest.mark.slow
def test_five_hundred_files_at_once_are_too_many(visitor: Visitor, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(500)]
    for i, file in enumerate(files):
        Image.new("RGB", (8, 8), (i // 256, i % 256, 0)).save(file)
    visitor.drop(files)
    told = visitor.notice("error", "pictures_notice")
    assert "500 pictures are too many, and none of them was taken" in told
    assert visitor.pictures.count() == 0


@pytest.mark.slow
def test_a_token_that_is_there_is_not_replaced_unasked(server: PageServer, visitor: Visitor) -> None:
    there = server.embeddings / "fido.safetensors"
    there.write_bytes(b"another one")
    fill_in(visitor, "<fido>")
    assert not visitor.shown("overwrite")
    visitor.press("start")
    assert "fido.safetensors is in the embeddings folder already" in visitor.notice("error")
    visitor.page.wait_for_selector("#zoodip_overwrite")
    assert not visitor.field("overwrite").is_checked()
    assert there.read_bytes() == b"another one"
    assert not (server.runs / "fido").exists()


@pytest.mark.slow
def test_runs_are_compared_on_the_page(server: PageServer, visitor: Visitor, tiny_model: StableDiffusion) -> None:
    for name, strength in (("side-a", 0.0), ("side-b", 0.5)):
        given: dict[str, Any] = {"images": tuple(map(str, PHOTOGRAPHS)), "token": "<rex>", "initializer": "monster"}
        given |= {"target_prompt": "a {} in the snow", "alignment": strength, "steps": 2, "n": 2}
        train_token(TrainConfig.from_preset("tiny", **given), server.runs / name, model=tiny_model)
    visitor.tab("Runs")
    visitor.page.locator("#zoodip_comparison .label-wrap").first.click()
    boxes = visitor.page.locator("#zoodip_compared label").filter(has_text="side-").locator("input")
    boxes.nth(1).wait_for()
    visitor.press("compare")
    assert "at least two runs" in visitor.notice("error", "compare_notice")
    for box in boxes.all():
        box.check()
    visitor.press("compare")
    sheet = visitor.page.locator("#zoodip_sheet img")
    sheet.wait_for()
    with Image.open(server.runs / ".comparison" / "comparison.png") as picture:
        assert tuple(sheet.evaluate("img => [img.naturalWidth, img.naturalHeight]")) == picture.size
    assert not visitor.shown("compare_notice")
    visitor.look()
    visitor.tab("Runs")
    visitor.page.locator("#zoodip_comparison .label-wrap").first.click()
    sheet.wait_for()  # it is kept
    for name in ("side-a", "side-b", ".comparison"):
        shutil.rmtree(server.runs / name)


@pytest.mark.slow
def test_captions_are_written_on_the_page(visitor: Visitor, tmp_path: Path) -> None:
    """Of the pictures that have none; what is wrong is told where they are."""
    for picture, name in zip(pictures(), ("red.png", "blue.png"), strict=True):
        picture.resize((200, 150)).save(tmp_path / name)
    (tmp_path / "blue.txt").write_text("a {} of my own")
    visitor.drop([tmp_path / name for name in ("red.png", "blue.png", "blue.txt")])
    visitor.write("initializer", "dog")
    visitor.press("write_captions")
    assert "name a model that writes captions" in visitor.notice("error", "pictures_notice")
    visitor.write("caption_with", str(tmp_path / "nowhere"))
    visitor.press("write_captions")
    visitor.until_state("failed")
    visitor.until("() => document.querySelector('#zoodip_pictures_notice')?.innerText.includes('hf download')")
    visitor.write("caption_with", str(SmallCaptioners(tmp_path).of("blip")))
    visitor.press("write_captions")
    visitor.until_state("finished")
    visitor.until_python(lambda: visitor.captions == ["a {} sitting on grass", "a {} of my own"])
    visitor.pictures.nth(0).click()
    visitor.until_python(lambda: visitor.value("caption") == "a {} sitting on grass")
    visitor.write("caption", "a {} on grass")
    visitor.until_python(lambda: visitor.captions[0] == "a {} on grass")
    visitor.look()
    assert visitor.value("caption_with").startswith(str(tmp_path))
    assert visitor.value("initializer") == "dog"
    visitor.press("write_captions")
    assert "all pictures have captions" in visitor.notice("error", "pictures_notice")


# ---------------------------------------------------------------- looks


@pytest.mark.slow
def test_a_narrow_page_has_all_its_buttons_and_nothing_beside_it(visitor: Visitor) -> None:
    visitor.drop(PHOTOGRAPHS)
    narrow = visitor
    for width in (480, 900):
        narrow.page.set_viewport_size({"width": width, "height": 800})
        for tab, names in (
            ("Train", ("start", "stop", "check", "drop", "clear", "token", "caption_with", "write_captions")),
            ("Runs", ("run_list", "comparison")),
        ):
            narrow.tab(tab)
            for name in names:
                narrow.page.wait_for_selector(f"#zoodip_{name}")
                box = narrow.page.locator(f"#zoodip_{name}").first.bounding_box()
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= width
            assert narrow.page.evaluate("document.documentElement.scrollWidth") <= width
            assert narrow.page.locator("#zoodip_pictures .grid-wrap").first.evaluate(
                "grid => grid.scrollWidth <= grid.clientWidth"
            )
