"""Captions on the page: what the studio asks for, what the worker writes, and whose pictures get them."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fake_page_host import FakePageHost, fake_worker, until
from tests.small_captioners import SmallCaptioners, pictures
from zoodip_core.base.errors import CaptionError, ConfigError, ImagesError, PathError, TokenError, ZoodipError
from zoodip_core.base.events import Commands
from zoodip_core.jobs.job import Job
from zoodip_core.jobs.job_folder import Task
from zoodip_core.jobs.pipes import Outbox
from zoodip_core.jobs.protocol import FAILED, FINISHED, STOPPED, event_of
from zoodip_core.jobs.tasks import work
from zoodip_core.page import views
from zoodip_core.page.draft import Draft
from zoodip_core.page.studio import Studio

FORM: dict[str, Any] = {"token": "<rex>", "initializer": "dog", "model": "not looked at", "steps": 5}
SAYS = """
for number, image in enumerate(job["settings"]["images"], 1):
    name = os.path.basename(image)
    send("captioned", name=name, caption=f"a {{}} number {number}", done=number, total=len(job["settings"]["images"]))
    if command() == "stop":
        send("ended", state="stopped")
        sys.exit(1)
send("ended", state="finished")
"""
"""A worker that waits for a word after each caption."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallCaptioners:
    return SmallCaptioners(tmp_path_factory.mktemp("captioners"))


class Desk:
    """A studio in a fake program, with a red and a blue picture in its draft."""

    def __init__(self, root: Path, python: Path | str) -> None:
        self.host = FakePageHost(root, python)
        self.studio = Studio(self.host)
        for picture, name in zip(pictures(), ("red.png", "blue.png"), strict=True):
            picture.save(root / name)
            self.studio.draft.add([(root / name, name)])

    @property
    def captions(self) -> list[str]:
        return [picture.caption for picture in self.studio.draft.pictures()]

    def wait(self, job: Job) -> Job:
        until(lambda: not self.studio.jobs.get(job.id).open)
        return self.studio.jobs.get(job.id)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path, fake_worker(tmp_path, SAYS))
    yield made
    for job in made.studio.jobs.all():
        made.studio.jobs.stop(job.id)


# ---------------------------------------------------------------- the studio


@pytest.mark.slow  # as in the browser
def test_a_worker_s_captions_go_into_the_draft(small: SmallCaptioners, tmp_path: Path) -> None:
    """With a real worker and a real model."""
    desk = Desk(tmp_path, sys.executable)
    told = desk.wait(desk.studio.write_captions(FORM, str(small.of("blip"))))
    assert (told.state, told.step, told.steps) == (FINISHED, 2, 2), told.log
    assert told.message == "finished. 2 captions written; click a picture to correct its own"
    assert desk.captions == ["a {} sitting on grass", "a photo of a {}, a cat in the room"]
    assert desk.host.calls == ["taken", "given back"]
    assert desk.studio.runs() == []


def test_the_job_file_says_what_is_asked(desk: Desk) -> None:
    job = desk.studio.write_captions({**FORM, "class_word": "", "device": "all", "template": "style"}, " me/blip ")
    task = Task.read(job.file)
    assert (task.kind, task.caption_with) == ("caption", "me/blip")
    images = [str(picture.path) for picture in desk.studio.draft.pictures()]
    assert task.settings == {
        "token": "<rex>",
        "initializer": "dog",
        "template": "style",
        "images": images,
        "device": "auto",
    }


def test_a_picture_with_a_caption_keeps_it(desk: Desk) -> None:
    """That there was, that was written meanwhile, and whatever was removed meanwhile."""
    first, second = desk.studio.draft.pictures()
    desk.studio.draft.caption(second.name, "mine {}")
    job = desk.studio.write_captions(FORM, "me/blip")
    assert Task.read(job.file).settings["images"] == [str(first.path)]
    until(lambda: desk.studio.jobs.get(job.id).captions)
    desk.studio.draft.caption(first.name, "mine too {}")
    desk.studio.jobs.ask(job.id, "save")
    assert desk.wait(job).message == "finished"
    assert desk.captions == ["mine too {}", "mine {}"]
    with pytest.raises(CaptionError, match="all pictures have captions"):
        desk.studio.write_captions(FORM, "me/blip")


def test_a_stop_keeps_what_was_written(desk: Desk) -> None:
    job = desk.studio.write_captions(FORM, "me/blip")
    until(lambda: desk.studio.jobs.get(job.id).captions)
    running = desk.studio.jobs.get(job.id)
    assert (running.message, running.step, running.steps) == ("a {} number 1", 1, 2)
    assert "picture<b>1 of 2</b>" in views.status(running)
    desk.studio.jobs.stop(job.id)
    told = desk.wait(job)
    assert (told.state, told.message) == (STOPPED, "stopped. 1 caption written; click a picture to correct its own")
    assert desk.captions == ["a {} number 1", ""]


def test_what_cannot_be_captioned_is_refused(desk: Desk) -> None:
    refusals: list[tuple[dict[str, Any], str, type[ZoodipError], str]] = [
        (FORM, " ", ConfigError, "name a model that writes captions"),
        ({**FORM, "initializer": " "}, "me/blip", TokenError, "initializer is empty"),
        ({**FORM, "token": ""}, "me/blip", TokenError, "token"),
        ({**FORM, "token": "<a>, <b>", "initializer": "dog, cat"}, "me/blip", CaptionError, "with <a> or <b> in each"),
        ({**FORM, "template": "adjective"}, "me/blip", ConfigError, "give class_word"),
    ]
    for form, where, error, told in refusals:
        with pytest.raises(error, match=told):
            desk.studio.write_captions(form, where)
    desk.studio.draft.clear()
    with pytest.raises(ImagesError, match="there are no pictures yet"):
        desk.studio.write_captions(FORM, "me/blip")
    assert desk.studio.jobs.all() == []


def test_a_path_is_taken_from_this_computer_s_user_alone(desk: Desk, tmp_path: Path) -> None:
    desk.host.alone = False
    for path in (str(tmp_path), "/etc", "../x", "a/b/c", "~/blip"):
        with pytest.raises(PathError, match="not a name in Hugging Face's cache"):
            desk.studio.write_captions(FORM, path)
    assert Task.read(desk.studio.write_captions(FORM, "me/blip").file).caption_with == "me/blip"


def test_a_folder_becomes_a_whole_path(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker runs in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "blip").mkdir(parents=True)
    assert Task.read(desk.studio.write_captions(FORM, "models/blip").file).caption_with == str(tmp_path / "models/blip")


# ---------------------------------------------------------------- the worker


def told(folder: Path, **task: Any) -> tuple[int, list[dict[str, Any]]]:
    """What a worker tells of a job, and its exit code."""
    file = folder / "job.json"
    file.write_text(json.dumps({"version": 1, "kind": "caption", "folder": str(folder), **task}))
    pipe = io.BytesIO()
    code = work(file, Outbox(pipe), Commands())
    return code, [event for line in pipe.getvalue().splitlines() if (event := event_of(line))]


def test_a_worker_tells_each_caption(small: SmallCaptioners, tmp_path: Path) -> None:
    """A picture that was taken away meanwhile is left out; of one the model says nothing."""
    for picture, name in zip(pictures(), ("red.png", "blue.png"), strict=True):
        picture.save(tmp_path / name)
    images = [str(tmp_path / name) for name in ("red.png", "gone.png", "blue.png")]
    settings = {"token": "<rex>", "initializer": "dog", "images": images, "device": "cpu"}
    model = small.of("blip", red=". .")
    code, events = told(tmp_path, settings=settings, caption_with=str(model))
    assert code == 0
    assert [event for event in events if event["event"] != "message"] == [
        {
            "event": "captioned",
            "name": "blue.png",
            "caption": "a photo of a {}, a cat in the room",
            "done": 2,
            "total": 2,
        },
        {"event": "ended", "state": "finished"},
    ]
    assert [event["text"] for event in events if event.get("warning")] == [
        "red.png: the model says nothing of it; write its caption yourself"
    ]


@pytest.mark.parametrize(
    ("where", "says"), [("me/none", "hf download"), ("tests", "not a name|nor a name"), ("", "no model")]
)
def test_a_worker_says_what_is_missing(where: str, says: str, tmp_path: Path) -> None:
    """A name is one of the cache's, never a folder beneath the one that workers run in."""
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    settings = {"token": "<rex>", "initializer": "dog", "images": [str(tmp_path / "a.png")]}
    code, events = told(tmp_path, settings=settings, caption_with=where)
    assert (code, events[-1]["event"], events[-1]["fault"]) == (2, "failed", False)
    assert re.search(says, events[-1]["error"])


def test_a_failed_worker_is_told(tmp_path: Path) -> None:
    desk = Desk(tmp_path, fake_worker(tmp_path, 'send("failed", error="no such model", fault=False)\nsys.exit(2)'))
    job = desk.wait(desk.studio.write_captions(FORM, "me/blip"))
    assert (job.state, job.message) == (FAILED, "no such model")


# ---------------------------------------------------------------- the draft


def test_a_draft_is_filled_where_nothing_stands(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "draft")
    for picture, name in zip([*pictures(), Image.new("RGB", (9, 9))], ("red.png", "blue.png", "c.png"), strict=True):
        picture.save(tmp_path / name)
        draft.add([(tmp_path / name, name)])
    one, two, three = (picture.name for picture in draft.pictures())
    draft.caption(one, "mine")
    assert draft.fill({one: "a {}", two: "b {}", "0009-gone.png": "c {}"}) == 1
    assert [picture.caption for picture in draft.pictures()] == ["mine", "b {}", ""]
    assert draft.fill({}) == 0
    with pytest.raises(CaptionError, match="shorten it"):
        draft.fill({three: "x" * 20_000})
