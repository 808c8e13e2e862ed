"""The page without a browser: words and pictures as HTML, the form, the page alone, its command, its password."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from PIL import Image

from tests.fake_page_host import FakePageHost
from tests.page_server import PHOTOGRAPHS, ROOT, PageServer
from zoodip_core.base.errors import ConfigError, ImagesError
from zoodip_core.base.events import Commands
from zoodip_core.cli.main import main
from zoodip_core.jobs.job import Job, Run
from zoodip_core.jobs.job_folder import write_task
from zoodip_core.jobs.pipes import Outbox
from zoodip_core.jobs.protocol import FAILED, FINISHED, RUNNING, WAITING, Exit, event_of
from zoodip_core.jobs.tasks import work
from zoodip_core.page import form, standalone, views
from zoodip_core.page.draft import Draft
from zoodip_core.page.page import CHOOSE_ONE, FIND_ONE, Page, make_page
from zoodip_core.page.pictures_tab import Pictures
from zoodip_core.page.standalone import Alone, check_address, password_for
from zoodip_core.page.studio import TINY_LABEL, Published, Studio
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.setting import CHOICE, NUMBER, SWITCH, TEXT, WHOLE
from zoodip_core.train.settings import IMAGES, LORA, MODEL, of_part

HOSTILE = "<img src=x onerror=alert(1)>\n\"'&<script>alert(2)</script></div></p>"


class Tags(HTMLParser):
    """The tags in a text, and that each is closed; tags that nobody closes do not stay open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("br", "path", "polygon", "polyline", "circle", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def job(**more: Any) -> Job:
    losses = [0.03 + 0.01 * math.sin(i) for i in range(50)]
    given = {"state": RUNNING, "message": "learning", "step": 50, "steps": 200, "losses": losses, **more}
    return Job(1, "train", Path("/runs/rex"), given.pop("token", "<rex>"), Path("/runs/rex/task.json"), **given)


def run(**more: Any) -> Run:
    given = {
        "name": "rex",
        "folder": Path("/runs/rex"),
        "run": Path("/runs/rex/run"),
        "token": "<rex>",
        "model": "sd15",
        "step": 3,
        "steps": 9,
        "state": "stopped",
        "message": "",
        "when": time.time() - 2.5 * 86_400,  # of two days, however slow the test is
        "embedding": None,
        "before_after": None,
        "loss_curve": None,
        "sample": None,
        "settings": {},
        "can_resume": True,
        **more,
    }
    return Run(**given)


# ---------------------------------------------------------------- words as HTML


def hostile_views() -> dict[str, str]:
    found = {
        "settings": {"weights": HOSTILE, "steps": 5, "lr": 0.1, "mu": 0.1, "t_lower": 1, "t_upper": 2},
        "model": HOSTILE,
        "family": HOSTILE,
        "device": "cpu",
        "images": 1,
        "captions": 1,
        "masks": [HOSTILE],
        "forwards": 3,
        "memory": 2 * 10**9,
        "memory_in_turn": 10**9,
        "warnings": [HOSTILE],
        "sizes": HOSTILE,
    }
    texts: dict[str, Any] = {"token": HOSTILE, "message": HOSTILE, "log": HOSTILE, "warnings": [HOSTILE]}
    settings = {each.name: HOSTILE for each in form.fields()}
    stranger = run(name=HOSTILE, token=HOSTILE, model=HOSTILE, message=HOSTILE, settings=settings, folder=Path(HOSTILE))
    return {
        "notice": views.notice(HOSTILE, "error"),
        "hint": views.hint(HOSTILE),
        "heading": views.heading(1, HOSTILE),
        "idle": views.idle(stranger),
        "status": views.status(job(state=FAILED, **texts), [job(**texts)]),
        "checked": views.checked(found),
        "run_head": views.run_head(stranger),
        "run_details": views.run_details(stranger),
        "installation": views.installation(HOSTILE, [HOSTILE], False, False),
    }


@pytest.mark.parametrize("name", hostile_views())
def test_what_a_user_or_a_file_says_is_never_a_tag(name: str) -> None:
    found = Tags(hostile_views()[name])
    assert "<img src=x onerror=alert(1)>" in found.words
    assert not found.names & {"img", "script"}
    assert not [attribute for attribute in found.attributes if attribute.startswith("on")]
    assert found.open == []


def test_no_notice_of_nothing() -> None:
    assert views.notice("") == ""


def test_an_error_is_told_to_screen_readers_at_once() -> None:
    assert 'role="alert"' in views.notice("no", "error")
    assert 'role="status"' in views.notice("yes", "good")


def test_a_status_tells_how_far_a_job_is() -> None:
    words = Tags(views.status(job(rate=2.0, eta=75, smoothed=0.0321, memory=1_340_000_000))).words
    for told in ("learning", "50 of 200", "0.0321", "steps a second2.0", "1 min 15 s", "1.34 GB"):
        assert told in words


def test_a_slow_job_counts_seconds_a_step() -> None:
    assert "seconds a step4.0" in Tags(views.status(job(rate=0.25))).words


def test_a_job_that_has_ended_has_no_time_left() -> None:
    assert "time left" in views.status(job(rate=2.0))
    assert "time left" not in views.status(job(rate=2.0, state=FINISHED))


def test_a_status_says_why_a_job_failed_and_who_waits() -> None:
    failed = views.status(job(state=FAILED, message="the disk is full", log="line 1\nline 2"), [job(token="<kiwi>")])
    assert "failed: the disk is full" in Tags(failed).words
    assert "zoodip-error" in failed
    assert "line 1\nline 2" in Tags(failed).words
    assert "Next: <kiwi>" in Tags(failed).words


def test_a_job_that_waits_shows_no_chart_yet() -> None:
    waiting = views.status(job(state=WAITING, message="waiting for <a> to end", step=0, steps=0, losses=[]))
    assert "svg" not in waiting
    assert "waiting for <a> to end" in Tags(waiting).words


def test_a_run_is_told_in_a_line() -> None:
    assert views.run_label(run()) == "rex · stopped · 3 / 9 steps · 2 days ago"


def ask_here(_python: Path, kind: str, **more: Any) -> dict[str, Any]:
    """What a worker answers to a question, in this process."""
    pipe = io.BytesIO()
    with tempfile.TemporaryDirectory() as place:
        assert work(write_task(Path(place), kind, Path(place), **more), Outbox(pipe), Commands()) == Exit.FINISHED
    answer, _ = map(event_of, pipe.getvalue().splitlines())
    return answer or {}


def test_a_check_tells_sizes_that_differ(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker finds them; test_studio.py asks one in a process of its own."""
    monkeypatch.setattr("zoodip_core.page.studio.ask", ask_here)
    for number, size in enumerate([(96, 96), (90, 90), (60, 60), (140, 100)]):
        Image.new("RGB", size, (9, 60 * number, 9)).save(tmp_path / f"{number}.png")
    studio.draft.add([(each, each.name) for each in sorted(tmp_path.glob("*.png"))])
    found = studio.check({"token": "<rex>", "initializer": "monster", "model": "tiny"})
    assert found["sizes"] == "4 pictures: 3 at 48 x 48, 1 at 56 x 40"
    assert "4 pictures: 3 at 48 x 48, 1 at 56 x 40." in Tags(views.checked(found)).words


def test_learned_weights_are_told_of() -> None:
    for lora, told in ((None, False), (Path("/runs/rex/run/rex-lora.safetensors"), True)):
        assert ("draw with both" in Tags(views.run_head(run(lora=lora))).words) is told
    settings = {"weights": "int8", "steps": 5, "lr": 0.1, "mu": 0.1, "t_lower": 1, "t_upper": 2}
    found = {"model": "a", "family": "sd1", "device": "cpu", "images": 1, "captions": 1, "forwards": 3, "warnings": []}
    for rank, told in ((0, False), (4, True)):
        learned = {"settings": {**settings, "lora_rank": rank, "lora_share": 0.75}, "memory": 1, "memory_in_turn": 1}
        words = Tags(views.checked({**found, **learned})).words
        assert ("Of the steps, 75% learn weights: a LoRA of rank 4." in words) is told


def test_a_check_tells_of_masks() -> None:
    settings = {"weights": "int8", "steps": 5, "lr": 0.1, "mu": 0.1, "t_lower": 1, "t_upper": 2, "lora_rank": 0}
    found = {"model": "a", "family": "sd1", "device": "cpu", "images": 2, "captions": 1, "forwards": 3, "warnings": []}
    found |= {"settings": settings, "memory": 1, "memory_in_turn": 1}
    assert "asks" not in Tags(views.checked(found)).words
    told = {**found, "masks": ["masks for 1 of 2 pictures; the rest is learned whole"]}
    assert "Masks for 1 of 2 pictures; the rest is learned whole." in Tags(views.checked(told)).words


def test_a_run_s_settings_have_the_form_s_names() -> None:
    words = Tags(views.run_details(run(settings={"num_vectors": 2, "flip": True, "lr": 0.005, "cache": "x"}))).words
    for told in ("Vectors2", "Mirroryes", "Learning rate0.005", "Modelsd15", str(run().folder)):
        assert told in words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (93784, "26 h 03 min"),
        (-3, "0 s"),
        (math.inf, "not known"),
        (math.nan, "not known"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert views.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (90000, "1 day ago"), (-50, "just now")],
)
def test_how_long_ago(seconds: float, text: str) -> None:
    assert views.ago(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(11_000_000, "11 MB"), (100_000_000, "0.10 GB"), (1_470_000_000, "1.47 GB")]
)
def test_sizes(count: int, text: str) -> None:
    assert views.size(count) == text


# ---------------------------------------------------------------- the loss chart


def points(svg: str, shape: str) -> list[tuple[float, float]]:
    found = re.search(rf'<{shape} points="([^"]*)"', svg)
    assert found
    numbers = [tuple(map(float, pair.split(","))) for pair in found[1].split()]
    return [(x, y) for x, y in numbers]


@pytest.mark.parametrize("losses", [[], [math.nan], [math.inf, math.nan]])
def test_without_a_loss_there_is_no_chart(losses: list[float]) -> None:
    assert views.chart(losses) == ""


@pytest.mark.parametrize(
    "losses",
    [
        [0.03],
        [0.0],
        [0.0, 0.0],
        [math.nan, 0.03, math.inf, 0.04],
        [-1.0, 2.0],
        [1e-30] * 5,
        [1e30, 1.0],
        [5e-324],
        [1e200, 1.0],
    ],
)
def test_a_chart_of_odd_losses_stays_in_its_frame(losses: list[float]) -> None:
    svg = views.chart(losses)
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', svg)
    assert box
    for x, y in points(svg, "polyline") + points(svg, "polygon"):
        assert 0 <= x <= int(box[1])
        assert 0 <= y <= int(box[2])
    assert "nan" not in svg
    assert "inf" not in svg.replace("infinite", "")


def test_losses_that_are_no_numbers_leave_no_mark() -> None:
    assert len(points(views.chart([0.03, math.nan, 0.05]), "polyline")) == 2


def test_the_band_is_there_from_the_second_loss_on() -> None:
    band = points(views.chart([0.02, 0.06]), "polygon")
    heights = {x: [y for at, y in band if at == x] for x, _ in band}
    assert all(max(ys) - min(ys) > 20 for ys in heights.values())


def test_a_falling_loss_falls() -> None:
    line = points(views.chart([1 / (1 + i / 100) for i in range(1000)]), "polyline")
    ys = [y for _, y in line]
    assert ys == sorted(ys)
    assert ys[-1] - ys[0] > 80
    assert [x for x, _ in line] == sorted(x for x, _ in line)


class Used(float):
    """A loss that counts how often it, or a sum it is in, is calculated with."""

    times = 0

    def _used(self, value: float) -> Used:
        Used.times += 1
        return Used(value)

    def __add__(self, other: float) -> Used:
        return self._used(float(self) + float(other))

    def __mul__(self, other: float) -> Used:
        return self._used(float(self) * float(other))

    __radd__, __rmul__ = __add__, __mul__


def test_a_chart_of_a_long_run_is_small_and_quick() -> None:
    """Each loss is calculated with a few times, not once for each point that it is near to."""
    losses = [Used(0.03 + 0.01 * math.sin(i * i)) for i in range(30_000)]
    Used.times = 0
    svg = views.chart(losses)
    assert 0 < Used.times < 6 * len(losses)
    assert len(svg) < 20_000
    assert "30,000" in svg


def test_the_axes_have_round_numbers() -> None:
    words = re.findall(r"<text[^>]*>([^<]*)</text>", views.chart([0.03] * 240))
    assert {"0", "0.01", "0.02", "0.03", "50", "100", "150", "200"} <= set(words)


# ---------------------------------------------------------------- the form


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Has the computer so many graphics cards."""

    def count(cards: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        form.devices.cache_clear()

    yield count
    form.devices.cache_clear()


def test_every_setting_is_in_the_form_or_left_out_on_purpose() -> None:
    settings = {field.name for field in dataclasses.fields(TrainConfig)}
    names = form.names()
    assert settings - set(names) == set(form.NOT_ASKED)
    assert set(names) - settings == {"preset", "learn_weights", "keep_copy"}
    assert len(set(names)) == len(names)


def test_what_is_left_to_the_preset_says_so() -> None:
    left = [each for each in form.fields() if each.setting.by_preset]
    assert len(left) == 33
    for each in left:
        assert each.value == each.setting.left
        assert re.search(rf"(^| ){each.value}: ", each.setting.explained), each.name


@pytest.mark.parametrize("each", form.fields(), ids=lambda each: each.name)
def test_every_field_is_explained(each: form.Field) -> None:
    assert each.setting.label[0].isupper()
    assert len(each.setting.explained) > 10
    assert each.setting.explained.endswith(".")


def test_the_form_as_it_comes_needs_but_a_word(tmp_path: Path) -> None:
    values = form.read(form.filled({}))
    settings = Studio(FakePageHost(tmp_path)).settings({**values, "initializer": "dog"})
    ours = TrainConfig.from_dict({**settings, "images": ["x"]})
    theirs = TrainConfig(images=("x",), token="<rex>", initializer="dog", cache=settings.get("cache", "auto"))
    assert ours == theirs


def test_the_settings_of_weights_are_where_the_table_has_them() -> None:
    assert [each.name for each in form.in_sight()["preset"]] == ["preset", "learn_weights"]
    assert [each.name for each in form.groups()[LORA]] == [each.name for each in of_part(LORA)]
    (word,) = (each for each in form.groups()[IMAGES] if each.name == "class_word")
    assert (word.kind, word.value) == (TEXT, "")


@pytest.mark.parametrize(
    "junk", [None, [], {}, "", "nan", "\ud800", math.nan, math.inf, -math.inf, 10**400, True, "x" * 10**6, [[1]]]
)
def test_damaged_kept_values_give_a_form_that_can_be_shown(junk: Any) -> None:
    values = form.filled(dict.fromkeys(form.names(), junk))
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    for each, value in zip(form.fields(), values, strict=True):
        kinds: dict[str, type | tuple[type, ...]] = {WHOLE: int, NUMBER: (int, float), SWITCH: bool}
        assert isinstance(value, kinds.get(each.kind, str)), each.name
        if each.kind == CHOICE:
            assert value in each.choices
        if isinstance(value, str):
            assert len(value.encode()) < 10_000
        elif isinstance(value, int | float):
            assert abs(value) <= 2**53


def test_sound_values_are_kept() -> None:
    changed = {
        "token": "<ä>",
        "steps": 70,
        "lr": 0.25,
        "preset": "fast",
        "flip": True,
        "model": "/x y/z.ckpt",
        "seed": 3,
    }
    named = form.read_named(changed)
    assert {name: named[name] for name in changed} == changed
    assert form.read(form.filled(named)) == named
    assert {name: named[name] for name in named if name not in changed} == {
        each.name: each.value for each in form.fields() if each.name not in changed
    }


@pytest.mark.parametrize(("cards", "offered"), [(0, ["auto", "cpu"]), (1, ["auto", "cuda", "cpu"])])
def test_without_several_cards_the_device_is_one_setting_of_many(
    cards: int, offered: list[str], counted: Callable[[int], None]
) -> None:
    counted(cards)
    (device,) = (each for each in form.groups()[MODEL] if each.name == "device")
    assert list(device.offered) == offered


def test_several_cards_put_the_device_in_sight(counted: Callable[[int], None], studio: Studio) -> None:
    counted(2)
    (device,) = form.in_sight()["device"]
    assert device.offered == ("auto", "all", "cuda:0", "cuda:1", "cpu")
    assert "device" not in [each.name for each in form.groups()[MODEL]]
    assert form.read_named({"device": "all"})["device"] == "all"
    assert form.read_named({"device": "cuda:7"})["device"] == "cuda:7"  # typed
    made = Page(studio)
    with gr.Blocks():
        made.build()
    assert list(made._fields) == form.names()
    assert [choice for choice, _ in made._fields["device"].choices] == list(device.offered)


def test_an_emptied_number_counts_as_the_field_s_own() -> None:
    fields = form.fields()
    assert form.read([None] * len(fields)) == {each.name: each.value for each in fields}


# ---------------------------------------------------------------- parts of the page


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page, built but not served: once, since that takes a second."""
    made = Page(Studio(FakePageHost(tmp_path_factory.mktemp("built"))))
    with gr.Blocks():
        made.build()
    return made


@pytest.fixture
def studio(built: Page, tmp_path: Path) -> Studio:
    """What is behind the page, as new."""
    Studio.__init__(built.studio, FakePageHost(tmp_path))
    return built.studio


@pytest.fixture
def page(built: Page, studio: Studio) -> Page:
    assert built.studio is studio
    return built


def changes(told: list[Any]) -> list[Any]:
    """What a handler tells that is a change of a component."""
    return [each for each in told if each != gr.update()]


def test_a_preset_that_learns_weights_turns_their_switch_on(page: Page, studio: Studio) -> None:
    """For as long as it is chosen: what was chosen for the others is kept."""
    (preset,) = (each for each in form.fields() if each.name == "preset")
    place = form.names().index("learn_weights")

    def switch(chosen: str) -> tuple[bool, bool]:
        told = page._keeper(preset)(chosen)
        assert page._values()[place] == told
        page._given([*form.filled({**studio.draft.values(), "learn_weights": told["value"]}), False])  # as at a start
        return told["value"], told["interactive"]

    assert [switch(chosen) for chosen in ("two-stage", "fast")] == [(True, False), (False, True)]
    studio.draft.keep({"learn_weights": True})
    assert [switch(chosen) for chosen in ("two-stage", "fast")] == [(True, False), (True, True)]


def test_leave_to_replace_is_asked_for_what_would_be_made(page: Page, studio: Studio, tmp_path: Path) -> None:
    """A LoRA of the name is in the way of those alone who learn weights."""
    (tmp_path / "loras" / "rex-lora.safetensors").touch()
    for form_of, in_question in (({}, False), ({"learn_weights": True}, True), ({"preset": "two-stage"}, True)):
        values = [*form.filled({"token": "<rex>", **form_of}), False]
        assert page._asked_to_replace(values, done=False)["visible"] is in_question


def test_a_look_tells_only_what_has_changed(page: Page) -> None:
    seen: dict[str, Any] = {}
    first = page._look(seen, "")
    assert len(changes(first)) > 5
    assert changes(page._look(seen, ""))[1:] == []  # the first is what was seen


def test_nothing_is_used_that_gradio_gives_up(studio: Studio) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # of event loops that gradio leaves open
        make_page(studio)


@pytest.mark.slow
def test_a_page_that_was_built_twice_is_two(studio: Studio) -> None:
    for _ in range(2):  # as a webui does that builds its page anew
        with gr.Blocks():
            Page(studio).build()


def test_pictures_are_shown_as_they_are_cut(studio: Studio) -> None:
    """At a resolution of 512, 256 x 171 become 640 x 384, and at 1024 1216 x 832."""
    wide = PHOTOGRAPHS[1]
    studio.draft.add([(wide, wide.name)])
    pictures = Pictures(studio)
    [(shaped, name)] = pictures.tiles()
    assert (shaped.size, name) == ((256, 154), "0001-dog-01.jpg")
    for resolution, size in ((1024, (256, 175)), (513, (256, 154)), (10**9, (256, 154))):
        studio.draft.keep({"resolution": resolution})
        assert pictures.tiles()[0][0].size == size
    studio.draft.keep({"crop": "center"})
    [(cut, _)] = pictures.tiles()
    assert cut.size == (256, 256)
    studio.draft.keep({"crop": "resize"})
    [(squeezed, _)] = pictures.tiles()
    assert squeezed.tobytes() != cut.tobytes()
    studio.draft.caption(name, "on grass\nin the sun")
    assert pictures.tiles()[0][1] == "on grass"


def test_transparent_pictures_lie_on_the_background(studio: Studio, tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    studio.draft.add([(tmp_path / "clear.png", "clear.png")])
    for background, colour in (("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ("wh", (255, 255, 255))):
        studio.draft.keep({"background": background})
        [(tile, _)] = Pictures(studio).tiles()
        assert tile.getpixel((9, 9)) == colour


def own(studio: Studio) -> list[str]:
    return [each.name[5:] for each in studio.draft.pictures()]


def test_a_choice_that_is_told_of_twice_is_one(page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser does so, and does not wait for the first answer. What was done to the pictures since stays."""
    there, added, notices = threading.Event(), Draft.add_concept, []

    def slow(draft: Draft, name: str) -> list[str]:
        lines = added(draft, name)
        there.set()
        time.sleep(0.3)  # pictures without their subject
        return lines

    def choose() -> None:
        notices.append(str(page._pictures._after(lambda: page._pictures._add_concept("boo"))[0]))

    monkeypatch.setattr(Draft, "add_concept", slow)
    first = threading.Thread(target=choose)
    first.start()
    assert there.wait(600)
    choose()
    first.join()
    assert notices[0] == notices[1]
    assert "6 pictures" in notices[0]
    studio.draft.remove(studio.draft.pictures()[0].name)
    choose()
    assert len(own(studio)) == 5


def test_own_pictures_take_the_place_of_a_bundled_subject(page: Page, studio: Studio) -> None:
    page._pictures._add_concept("boo")
    assert len(own(studio)) == 6
    assert studio.draft.values()["token"] == "<boo>"
    page._pictures._dropped([str(path) for path in PHOTOGRAPHS])
    assert own(studio) == [path.name for path in PHOTOGRAPHS]
    page._pictures._dropped([str(PHOTOGRAPHS[0].with_name("LICENCE.md"))])
    assert own(studio) == [path.name for path in PHOTOGRAPHS]


def model_on(page: Page) -> Any:
    return page._values()[form.names().index("model")]["value"]


def test_own_pictures_are_not_learned_on_the_embedded_model_by_chance(
    page: Page, studio: Studio, tmp_path: Path
) -> None:
    """A model of the user's is the first choice; a bundled subject chooses its own, and takes it along when it goes."""
    assert model_on(page) == TINY_LABEL
    (tmp_path / "models" / "sd15.safetensors").touch()
    assert model_on(page) == "sd15.safetensors"
    assert page._given([*form.filled({}), False])["model"] == "sd15.safetensors"
    page._pictures._add_concept("boo")
    assert model_on(page) == TINY_LABEL
    page._pictures._dropped([str(path) for path in PHOTOGRAPHS])
    assert model_on(page) == "sd15.safetensors"
    studio.draft.keep({"model": TINY_LABEL})  # chosen on purpose
    page._pictures._dropped([str(PHOTOGRAPHS[0].with_name("LICENCE.md"))])
    assert model_on(page) == TINY_LABEL


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_dropped_is_kept_once_unless_others_may_have_it(
    page: Page, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Gradio gives the same file to all components onto which it was dropped."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(studio.host, "shares_page", shared)
    dropped = Path(shutil.copytree(PHOTOGRAPHS[0].parent, tmp_path / "gradio" / "abc")) / PHOTOGRAPHS[0].name
    page._pictures._dropped([str(dropped)])
    assert len(studio.draft.pictures()) == 1
    assert dropped.exists() == shared


def test_a_picture_that_is_chosen_stays_so_when_captions_come(page: Page, studio: Studio, tmp_path: Path) -> None:
    """Its own text is being written, or its mask painted; only where the text came for it, the box has that."""
    page._pictures._dropped([str(path) for path in PHOTOGRAPHS[:2]])
    first, second = (picture.name for picture in studio.draft.pictures())
    job = Job(1, "caption", tmp_path, "", tmp_path, state=FINISHED, captions={first: "a {} here"})
    studio.draft.fill(job.captions)
    alike = [*page._pictures.follow(job, second)[3:], *page._pictures.follow(job, "")[3:]]
    assert alike == [gr.update()] * len(alike)
    for name in (first, second, ""):
        assert [each["visible"] for each in page._pictures.follow(job, name)[1:3]] == [True, True]
    assert changes(page._pictures.follow(job, first)[3:]) == [gr.update(value="a {} here")]


def test_photographs_with_the_embedded_model_are_told_beside_start(page: Page, studio: Studio, tmp_path: Path) -> None:
    def told(seen: dict[str, Any]) -> str:
        return str(page._look(seen, "")[1].get("value", "as before"))

    seen: dict[str, Any] = {}
    assert told(seen) == ""
    page._pictures._dropped([str(path) for path in PHOTOGRAPHS])
    assert "look like photographs" in told(seen)
    assert told(seen) == "as before"
    assert FIND_ONE in told({})
    (tmp_path / "models" / "sd15.safetensors").touch()
    assert told({}) == ""
    studio.draft.keep({"model": TINY_LABEL})
    assert CHOOSE_ONE in told(seen)
    studio.draft.keep({"model": "sd15.safetensors"})
    assert told(seen) == ""
    page._pictures._cleared()
    page._pictures._add_concept("boo")
    assert told(seen) == ""


def test_samples_over_time_are_shown_beside_the_newest(page: Page, studio: Studio, tmp_path: Path) -> None:
    assert not page._sample.visible
    assert not page._grid.visible
    Image.new("RGB", (20, 10), "red").save(tmp_path / "grid.png")
    job = Job(1, "train", tmp_path, "<rex>", tmp_path / "task.json", state=RUNNING)
    studio.jobs._jobs[1] = job
    seen: dict[str, Any] = {}
    assert [each["visible"] for each in page._look(seen, "")[3:5]] == [False, False]
    job.hear({"event": "sampled", "step": 2, "path": str(tmp_path / "grid.png")})
    assert [each["visible"] for each in page._look(seen, "")[3:5] if "visible" in each] == [True, False]
    job.hear({"event": "sampled", "step": 4, "path": str(tmp_path / "2.png"), "grid": str(tmp_path / "grid.png")})
    assert page._look(seen, "")[4]["value"].size == (20, 10)
    Image.new("RGB", (20, 30), "red").save(tmp_path / "grid.png")
    job.hear({"event": "sampled", "step": 6, "path": str(tmp_path / "3.png"), "grid": str(tmp_path / "grid.png")})
    assert page._look(seen, "")[4]["value"].size == (20, 30)
    told = page._runs._describe("none")
    assert len(told) == len(page._runs._details)


def test_a_bundled_subject_takes_not_the_place_of_own_pictures(page: Page, studio: Studio) -> None:
    page._pictures._dropped([str(path) for path in PHOTOGRAPHS])
    with pytest.raises(ImagesError, match="your own pictures are here"):
        page._pictures._add_concept("boo")
    assert own(studio) == [path.name for path in PHOTOGRAPHS]
    page._pictures._cleared()
    page._pictures._add_concept("boo")
    page._pictures._add_concept("kiwi")  # one bundled subject after another
    assert studio.draft.values()["token"] == "<kiwi>"
    assert len(own(studio)) == 6


def test_what_is_no_picture_leaves_a_bundled_subject(page: Page, studio: Studio) -> None:
    page._pictures._add_concept("boo")
    page._pictures._dropped([str(PHOTOGRAPHS[0].with_name("LICENCE.md"))])
    assert len(own(studio)) == 6


def test_many_files_that_are_left_out_are_told_in_few_lines(page: Page) -> None:
    told, kind = page._pictures._added([f"{i}.mp4 is a video" for i in range(90)])
    assert kind == "warning"
    assert len(told.splitlines()) == 10
    assert told.endswith("and 82 more like these")


@pytest.mark.parametrize("token", ["../../evil", "/etc/evil", "", "a\0b", "<rex>"])
def test_a_token_s_file_is_offered_within_its_folder(page: Page, studio: Studio, tmp_path: Path, token: str) -> None:
    (tmp_path / "token.safetensors").write_bytes(b"learned")
    path = page._runs._download(run(token=token, embedding=tmp_path / "token.safetensors"))
    assert path is not None
    assert Path(path).parent == page._runs._downloads / "rex"
    assert Path(path).name == ("rex.safetensors" if token == "<rex>" else "token.safetensors")
    assert Path(path).read_bytes() == b"learned"


def test_a_token_s_file_that_is_gone_is_not_offered(page: Page, tmp_path: Path) -> None:
    assert page._runs._download(run(embedding=tmp_path / "gone.safetensors")) is None


def test_a_lora_s_file_is_offered_beside_its_token_s(page: Page, tmp_path: Path) -> None:
    token, lora = tmp_path / "step-00000009.safetensors", tmp_path / "loras" / "step-00000009.safetensors"
    token.write_bytes(b"token")
    lora.write_bytes(b"weights")
    learned = run(embedding=token, lora=lora)
    offered = [Path(page._runs._download(learned, lora=which) or "") for which in (False, True)]
    assert [path.name for path in offered] == ["rex.safetensors", "rex-lora.safetensors"]
    assert [path.read_bytes() for path in offered] == [b"token", b"weights"]
    assert page._runs._download(run(embedding=token), lora=True) is None


def test_runs_with_a_token_can_be_compared(page: Page, studio: Studio, tmp_path: Path) -> None:
    """What was chosen stays chosen, as long as it is there."""
    learned = [run(name=name, embedding=tmp_path / "token.safetensors") for name in ("rex", "rex-2")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studio, "runs", lambda: [*learned, run(name="begun")])
        told = page._comparison.look("rex-2\ngone\nbegun")
        assert [name for _, name in told["choices"]] == ["rex", "rex-2"]
        assert told["value"] == ["rex-2"]
        assert "value" not in page._comparison.look()  # left as it is on each page
    told = page._comparison._compared("", "", "")
    assert "at least two runs" in told["value"]
    assert "zoodip-error" in told["value"]


def test_the_newest_comparison_is_shown_and_why_there_is_none(page: Page, studio: Studio) -> None:
    notice, _, picture = page._comparison.follow()
    assert (notice, picture["visible"]) == (gr.update(), False)
    studio.comparison.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(studio.comparison)
    for kind, state, told in (("compare", FAILED, "why"), ("compare", FINISHED, ""), ("train", FAILED, None)):
        ended = dataclasses.replace(job(message="why"), kind=kind, state=state)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(studio.jobs, "newest", lambda ended=ended: ended)
            notice, _, picture = page._comparison.follow()
        assert picture["value"].size == (64, 64)
        assert (notice == gr.update()) if told is None else (told in notice["value"])


def test_what_was_learned_is_put_into_a_prompt_once(tmp_path: Path) -> None:
    token, lora = tmp_path / "rex.safetensors", tmp_path / "rex-lora.safetensors"
    assert Published(token, None, left=False).words_beside("a photo") == "rex"
    both = Published(token, lora, left=False)
    assert both.words_beside("a photo") == both.words_beside("<lora:t-rex-lora:1>") == "rex <lora:rex-lora:1>"
    assert both.words_beside("a photo, rex <lora:rex-lora:0.5>") == "rex"


# ---------------------------------------------------------------- the page alone


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(standalone.PASSWORD, raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_this_computer_needs_no_password(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert password_for(host) == ""
    monkeypatch.setenv(standalone.PASSWORD, "secret")
    assert password_for(host) == "secret"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "fe80::1", "a-name", "localhost.evil.example"])
def test_other_computers_need_a_password(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=standalone.PASSWORD):
        password_for(host)
    monkeypatch.setenv(standalone.PASSWORD, "secret")
    assert password_for(host) == "secret"


def test_a_password_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(standalone, "getpass", lambda asked: f"typed when asked for the {asked}")
    assert password_for("0.0.0.0").startswith("typed when asked for the password for the page on 0.0.0.0")


def test_models_are_found(tmp_path: Path) -> None:
    for name in ("a.safetensors", "sd/b.CKPT", "sd/notes.txt", "sd/xl/unet/c.safetensors", "sd/xl/model_index.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert Alone(tmp_path, (tmp_path,)).models() == {
        "a.safetensors": tmp_path / "a.safetensors",
        "sd/b.CKPT": tmp_path / "sd/b.CKPT",
        "sd/xl (diffusers)": tmp_path / "sd/xl",
    }
    assert Alone(tmp_path, (tmp_path / "sd/xl",)).models() == {"xl (diffusers)": tmp_path / "sd/xl"}


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("one/a.safetensors", "two/a.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    found = Alone(tmp_path, (tmp_path / "one", tmp_path / "two")).models()
    second = tmp_path / "two/a.safetensors"
    assert found == {"a.safetensors": tmp_path / "one/a.safetensors", str(second): second}


def test_links_to_models_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.safetensors").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "models")
    assert list(Alone(tmp_path, (tmp_path / "models",)).models()) == ["linked/a.safetensors"]


@pytest.mark.parametrize(
    ("host", "port", "told"),
    [
        ("127.0.0.1", 0, "from 1 to 65535"),
        ("127.0.0.1", 65536, "from 1 to 65535"),
        ("192.0.2.1", 7861, "--listen 192.0.2.1"),
        ("no.such.host.invalid", 7861, "--listen no.such"),
        ("a" * 300, 7861, "--listen aaa"),
    ],
)
def test_an_address_that_can_not_be_is_refused(host: str, port: int, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        check_address(host, port)


def test_a_free_port_is_left_free() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
    for _ in range(2):
        check_address("127.0.0.1", port)


# ---------------------------------------------------------------- the command


def command(tmp_path: Path, *options: str) -> int:
    return main(["ui", "--runs", str(tmp_path / "runs"), *options])


def test_a_taken_port_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert command(tmp_path, "--port", str(other.getsockname()[1])) == 2
    told = capsys.readouterr()
    assert "another program listens there; choose another one" in told.err
    assert "http://" not in told.out


def test_a_folder_of_models_that_is_not_there_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "--models", str(tmp_path / "nowhere")) == 2
    assert f"--models {tmp_path / 'nowhere'}: there is no such folder" in capsys.readouterr().err


def test_listening_to_all_without_a_password_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "--listen", "0.0.0.0") == 2
    assert f"set a password in the environment variable {standalone.PASSWORD}" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_runs_that_can_not_be_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").touch()
    assert command(tmp_path) == 2
    assert "a file stands where a folder should be" in capsys.readouterr().err


def test_without_gradio_the_command_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("zoodip_core.page.")]:  # as if none was imported yet
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr("zoodip_core.page", name.rpartition(".")[2], raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert command(tmp_path) == 2
    assert f'the page needs gradio: "{sys.executable}" -m pip install "gradio>=4.40"' in capsys.readouterr().err


# ---------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that wants a password, also of this computer."""
    server = PageServer(tmp_path_factory.mktemp("guarded"), env={standalone.PASSWORD: "geheim"})
    server.start()
    yield server
    server.stop()


class Client:
    """Somebody with cookies."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

    def ask(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(self._url + path, data, headers)
        try:
            with self._opener.open(request, timeout=600) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace")

    def log_in(self, password: str) -> int:
        return self.ask("/login", urllib.parse.urlencode({"username": "zoodip", "password": password}).encode())[0]


LOOK = json.dumps({"data": [None, ""], "fn_index": 0, "session_hash": "x"}).encode()


@pytest.mark.slow
def test_nothing_is_told_without_the_password(guarded: PageServer) -> None:
    (guarded.runs / "seen.txt").write_text("a secret")
    client = Client(guarded.url)
    assert client.log_in("wrong") == 400
    assert "zoodip_start" not in client.ask("/")[1]
    for path in ("/config", "/gradio_api/info", f"/gradio_api/file={guarded.runs / 'seen.txt'}"):
        assert client.ask(path)[0] == 401, path
    headers = {"Content-Type": "application/json"}
    for path in ("/gradio_api/run/predict", "/gradio_api/queue/join"):
        assert client.ask(path, LOOK, **headers)[0] == 401, path
    assert client.ask("/gradio_api/upload", PHOTOGRAPHS[0].read_bytes())[0] == 401


@pytest.mark.slow
def test_the_password_opens_the_page(guarded: PageServer) -> None:
    client = Client(guarded.url)
    assert client.log_in("geheim") == 200
    assert client.ask("/config")[0] == 200
    assert "zoodip_start" in client.ask("/")[1]


@pytest.mark.slow
def test_no_file_is_served_that_is_not_the_page_s(guarded: PageServer) -> None:
    client = Client(guarded.url)
    client.log_in("geheim")
    for path in (guarded.runs / ".draft" / "draft.json", ROOT / "README.md", Path("/etc/passwd")):
        assert client.ask(f"/gradio_api/file={path}")[0] in (403, 404), path
