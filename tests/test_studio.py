"""What the page does without its looks: the form, the names of tokens, and a run from its start to its user.

Where no model matters, the workers are scripts which bring a run that was trained once. Three tests have real ones.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.fake_page_host import FakePageHost, fake_worker, until
from zoodip_core import Commands, TrainConfig, train_token
from zoodip_core.base.errors import (
    ConfigError,
    EmbeddingFileError,
    ImagesError,
    LoraFileError,
    RunFolderError,
    StorageError,
    TokenError,
    ZoodipError,
)
from zoodip_core.base.events import Event, Progress
from zoodip_core.jobs.job import Job
from zoodip_core.jobs.job_folder import task_of
from zoodip_core.jobs.protocol import FAILED, FINISHED, RUNNING, STOPPED, UNFINISHED, WAITING
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.page import form as page_form
from zoodip_core.page.shelf import Shelf
from zoodip_core.page.studio import TINY_LABEL, Studio
from zoodip_core.tiny import concepts

needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")

PIP = concepts.load("pip")
FORM: dict[str, Any] = {"model": TINY_LABEL, "token": "<pip>", "initializer": "monster", "preset": "paper"}
SHORT: dict[str, Any] = {"steps": 3, "n": 2, "batch": 1, "tau": 3, "lr_schedule": "constant"}

BRINGS = """
import shutil

finished = {weighted!r} if job.get("learn_weights") else {finished!r}

send("message", text="at work", warning=False)
told = command()
if job["kind"] in ("show", "compare"):
    send("ended", state="finished")
    sys.exit(0)
if told == "stop":
    shutil.copytree({stopped!r}, folder / "run")
    progress(2, steps=3)
    send("ended", state="stopped", step=2)
    sys.exit(1)
shutil.copytree(finished, folder / "run", dirs_exist_ok=True)
progress(3, steps=3)
send("ended", state="finished", step=3)
"""
"""A worker that waits for a word, and then has stopped or finished."""


class Made:
    """Runs as a worker leaves them, trained once."""

    def __init__(self, folder: Path, model: StableDiffusion) -> None:
        self.finished, self.stopped = folder / "finished", folder / "stopped"
        config = TrainConfig.from_preset(
            "tiny", images=(str(PIP.images),), captions=str(PIP.captions), token="<pip>", initializer="monster", **SHORT
        )
        train_token(config, self.finished, model=model)
        commands = Commands()

        def on_event(event: Event) -> None:
            if isinstance(event, Progress) and event.step == 2:
                commands.stop()

        train_token(config, self.stopped, model=model, on_event=on_event, commands=commands)
        self.weighted = folder / "weighted"
        train_token(dataclasses.replace(config, lora_rank=1), self.weighted, model=model)
        self.weights = (self.weighted / "pip-lora.safetensors").read_bytes()
        self.token = (self.finished / "pip.safetensors").read_bytes()


@pytest.fixture(scope="module")
def made(tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"), tiny_model)


class Desk:
    """A studio in a fake program, with pictures in its draft."""

    def __init__(self, root: Path, python: Path | str) -> None:
        self.host = FakePageHost(root, python)
        self.studio = Studio(self.host)
        self.home, self.embeddings, self.loras = root / "home", root / "embeddings", root / "loras"
        self.studio.draft.add_concept("pip")
        self._later: list[Desk] = []

    def restarted(self) -> Desk:
        """The same after a restart of the program."""
        self._later.append(Desk(self.host.root, self.host.chosen))
        return self._later[-1]

    def close(self) -> None:
        """End what is at work still."""
        for desk in (self, *self._later):
            for job in desk.studio.jobs.all():
                desk.studio.jobs.stop(job.id)
            desk.host.idle.set()

    def runs(self) -> list[str]:
        """What lies in the home beside the draft."""
        return sorted(path.name for path in self.home.iterdir() if path.name != ".draft")

    def published(self) -> list[str]:
        """What lies in the embeddings folder."""
        return sorted(path.name for path in self.embeddings.iterdir())

    def job(self, number: int) -> Job:
        return self.studio.jobs.get(number)

    def at_work(self, job: Job) -> Job:
        """Wait until the job's worker waits for a word."""
        until(lambda: self.job(job.id).message == "at work" or not self.job(job.id).open)
        assert self.job(job.id).state == RUNNING, self.job(job.id)
        return job

    def ended(self, job: Job) -> Job:
        until(lambda: not self.job(job.id).open)
        return self.job(job.id)

    def finish(self, job: Job) -> Job:
        """Let the job finish."""
        self.studio.jobs.ask(self.at_work(job).id, "save")
        return self.ended(job)

    def stop(self, job: Job) -> Job:
        self.studio.jobs.stop(self.at_work(job).id)
        return self.ended(job)

    def train(self, **form: Any) -> Job:
        """A training to its end."""
        return self.finish(self.studio.start({**FORM, **form}))


@pytest.fixture
def desk(made: Made, tmp_path: Path) -> Iterator[Desk]:
    """With workers that bring a run."""
    if sys.platform == "win32":
        pytest.skip("the workers are shell scripts")
    does = BRINGS.format(**{name: str(getattr(made, name)) for name in ("finished", "stopped", "weighted")})
    place = Desk(tmp_path, fake_worker(tmp_path, does))
    yield place
    place.close()


@pytest.fixture
def idle(tmp_path: Path) -> Desk:
    """With no worker: nothing must come so far."""
    (tmp_path / "no python").touch()
    return Desk(tmp_path, tmp_path / "no python")


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# ---------------------------------------------------------------- the form


def test_what_is_left_to_the_preset_is_left_out(idle: Desk) -> None:
    left = {each.name: each.value for each in page_form.fields() if each.setting.by_preset}
    form = {**FORM, **left, "seed": 0, "flip": False, "num_vectors": None, "overwrite": True}
    assert idle.studio.settings(form) == {
        "model": "tiny",
        "token": "<pip>",
        "initializer": "monster",
        "seed": 0,
        "flip": False,
    }
    given = {"steps": 7, "n": 3, "lr_schedule": "constant", "mu": 0.5, "sample_every": 2}
    settings = idle.studio.settings({**form, **given})
    assert {name: settings[name] for name in given} == given
    assert set(left) <= set(vars(TrainConfig(images=("x",), token="<a>", initializer="dog")))


def test_a_model_is_named_as_the_program_names_it_or_by_its_path(idle: Desk) -> None:
    file = idle.host.root / "models" / "sd15.safetensors"
    file.touch()
    assert idle.studio.models() == ["sd15.safetensors", TINY_LABEL]

    def model(name: Any) -> str:
        return str(idle.studio.settings({**FORM, "model": name})["model"])

    assert [model(name) for name in ("", None, TINY_LABEL, "tiny", f" {TINY_LABEL} ")] == ["tiny"] * 5
    assert model("sd15.safetensors") == str(file)
    assert model(" /models/other.ckpt ") == "/models/other.ckpt"
    assert model("models/x") == str(Path("models/x").absolute())  # the worker runs in another folder
    assert model("~/x") == str(Path("~/x").expanduser())


def test_a_quantised_copy_is_kept_unless_that_is_refused(idle: Desk) -> None:
    form = {**FORM, "model": "/models/sd15.safetensors"}
    for kept in ({**form, "keep_copy": True}, form):
        assert idle.studio.settings(kept)["cache"] == str(idle.home / "cache")
    assert idle.studio.settings({**form, "keep_copy": False})["cache"] is None
    assert "cache" not in idle.studio.settings({**FORM, "keep_copy": True})


@pytest.mark.parametrize(
    ("form", "learns"),
    [
        ({}, False),
        ({"lora_rank": -1}, False),
        ({"learn_weights": True}, True),
        ({"learn_weights": True, "lora_rank": -1}, True),
        ({"preset": "two-stage"}, True),
        ({"preset": "two-stage", "lora_rank": 0}, False),
        ({"lora_rank": 2}, True),
    ],
)
def test_a_form_that_learns_weights(form: dict[str, Any], learns: bool, idle: Desk) -> None:
    asked = {**FORM, **form}
    assert idle.studio.learns_weights(asked) is learns
    assert "learn_weights" not in idle.studio.settings(asked)
    file = idle.loras / "pip-lora.safetensors"  # is in nobody's way who learns none
    file.write_bytes(b"somebody's")
    assert idle.studio.replaceable("<pip>", idle.studio.learns_weights(asked)) is learns


def test_a_class_word_that_is_left_empty_is_none(idle: Desk) -> None:
    assert "class_word" not in idle.studio.settings({**FORM, "class_word": ""})
    named = idle.studio.settings({**FORM, "class_word": " dog ", "template": "adjective"})
    assert (named["class_word"], named["template"]) == ("dog", "adjective")


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"stepz": 3}, ConfigError, "did you mean steps?"),
        ({"steps": -3}, ConfigError, "steps = -3"),
        ({"steps": "many"}, ConfigError, "steps = 'many'"),
        ({"resolution": 77}, ConfigError, "resolution = 77"),
        ({"lr": float("nan")}, ConfigError, "lr"),
        ({"sample_prompt": "no place"}, ConfigError, "sample_prompt"),
        ({"template": "adjective", "class_word": " "}, ConfigError, "give class_word"),
        ({"learn_weights": True, "lora_rank": 0}, ConfigError, "learn_weights is on"),
        ({"initializer": "  "}, TokenError, "initializer is empty"),
        ({"initializer": None}, TokenError, "initializer is empty"),
        ({"token": None}, TokenError, "is empty"),
        ({"token": "<state>"}, TokenError, "names a file of every such run"),
    ],
)
def test_wrong_settings_are_refused_at_once(
    wrong: dict[str, Any], error: type[ZoodipError], words: str, idle: Desk
) -> None:
    before = contents(idle.host.root)
    for use in (idle.studio.settings, idle.studio.check, idle.studio.start):
        with pytest.raises(error, match=words.replace("?", r"\?")):
            use({**FORM, **wrong})
    assert contents(idle.host.root) == before
    assert idle.studio.jobs.all() == []


@pytest.mark.parametrize(
    "token",
    ["../up", "a/b", "a\\b", "/etc/x", "~x", ".hidden", "<..>", "C:x", "a b", "a\x00b", "con", "x" * 300, "<>", ""],
)
def test_a_token_that_could_lead_elsewhere_is_refused_with_nothing_written(token: str, idle: Desk) -> None:
    def there() -> tuple[Any, list[Path]]:
        return contents(idle.host.root), sorted(idle.host.root.parent.iterdir())

    before = there()
    for use in (idle.studio.check, idle.studio.start):
        with pytest.raises(TokenError):
            use({**FORM, "token": token})
    assert there() == before


def test_without_pictures_there_is_nothing_to_do(idle: Desk) -> None:
    idle.studio.draft.clear()
    for use in (idle.studio.check, idle.studio.start):
        with pytest.raises(ImagesError, match="no pictures yet"):
            use(FORM)
    assert idle.runs() == []


def test_without_a_trainer_nothing_is_begun(idle: Desk) -> None:
    idle.host.chosen = str(idle.home / "nowhere")
    for use in (idle.studio.check, idle.studio.start):
        with pytest.raises(ConfigError, match="does not exist"):
            use(FORM)
    assert idle.runs() == []


# ---------------------------------------------------------------- names that are taken

TAKEN = [
    "pip.safetensors",
    "PIP.safetensors",
    "Pip.pt",
    "pip.pt",
    "pip.PT",
    "pip.bin",
    "pip.png",
    "pip.webp",
    "sub/pip.safetensors",
    "sub/deeper/PIP.pt",
    "zz/pip.safetensors",
]


def taken(desk: Desk, token: str) -> Path | None:
    return desk.studio.shelf.taken(token) if desk.studio.shelf else None


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_in_the_embeddings_folder_is_asked_about(name: str, idle: Desk) -> None:
    file = idle.embeddings / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"somebody's")
    before = contents(idle.host.root)
    assert taken(idle, "<pip>") == taken(idle, "PiP") == file
    # Another would not be replaced by ours, but be found beside it; on some systems PIP is the same file.
    ours = (idle.embeddings / "pip.safetensors").exists()
    for use in (idle.studio.check, idle.studio.start):
        with pytest.raises(TokenError, match=f"{file.name} .*{'Tick' if ours else 'move that file away'}"):
            use(FORM)
        if not ours:
            with pytest.raises(TokenError, match=f"{file.name} .*move that file away"):
                use({**FORM, "overwrite": True})
    assert contents(idle.host.root) == before


@pytest.mark.parametrize("name", ["pip.png", "pip.PNG", "pip.webp"])
def test_a_thumbnail_of_our_own_file_is_in_nobodys_way(name: str, idle: Desk) -> None:
    """A1111 keeps the picture that it shows for an embedding beside it, by the same name."""
    ours, picture = idle.embeddings / "pip.safetensors", idle.embeddings / name
    ours.touch()
    picture.touch()
    shelf = idle.studio.shelf
    assert shelf is not None
    assert shelf.taken("<pip>") == ours
    assert shelf.replaceable("<pip>")
    assert shelf.put("<pip>", b"new", replace=True) == ours
    ours.unlink()
    assert shelf.taken("<pip>") == picture  # alone it may hold an embedding


def test_a_picture_in_another_folder_is_no_thumbnail_of_ours(idle: Desk) -> None:
    (idle.embeddings / "sub").mkdir()
    for name in ("pip.safetensors", "sub/pip.png"):
        (idle.embeddings / name).touch()
    assert taken(idle, "<pip>") == idle.embeddings / "sub" / "pip.png"


@pytest.mark.parametrize("name", ["pip2.pt", "pip.txt", "pip", "apip.pt", "pip.preview.png", "pip.safetensors.bak"])
def test_other_names_are_free(name: str, idle: Desk) -> None:
    (idle.embeddings / name).write_bytes(b"another")
    assert taken(idle, "<pip>") is None


def test_a_name_with_dots_is_compared_as_a_whole(idle: Desk) -> None:
    (idle.embeddings / "pip.v2.pt").touch()
    assert taken(idle, "<pip>") is None
    assert taken(idle, "<pip.v2>") == idle.embeddings / "pip.v2.pt"


@needs_links
def test_a_name_behind_a_link_is_found(idle: Desk) -> None:
    """The webui follows links to folders when it looks for embeddings."""
    elsewhere = idle.host.root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "pip.pt").touch()
    (idle.embeddings / "linked").symlink_to(elsewhere, target_is_directory=True)
    assert taken(idle, "<pip>") == idle.embeddings / "linked" / "pip.pt"


@needs_links
def test_a_link_that_leads_back_is_no_endless_way(idle: Desk) -> None:
    for name in ("up", "again"):
        (idle.embeddings / name).symlink_to(idle.embeddings, target_is_directory=True)
    assert taken(idle, "<pip>") is None
    (idle.embeddings / "pip.pt").touch()
    assert taken(idle, "<pip>") == idle.embeddings / "pip.pt"


def test_every_file_of_the_name_counts(idle: Desk) -> None:
    """Ours may be replaced, the one in the folder beneath is still found."""
    (idle.embeddings / "sub").mkdir()
    for name in ("pip.safetensors", "sub/pip.pt"):
        (idle.embeddings / name).touch()
    with pytest.raises(TokenError, match=r"sub.pip\.pt"):
        idle.studio.start({**FORM, "overwrite": True})


def test_without_an_embeddings_folder_every_name_is_free(idle: Desk) -> None:
    idle.host.embeddings = None
    assert taken(idle, "<pip>") is None
    idle.host.embeddings = idle.host.root / "not made yet"
    assert taken(idle, "<pip>") is None


# ---------------------------------------------------------------- a run, from its start to its user


def test_a_finished_token_comes_to_its_user(desk: Desk, made: Made) -> None:
    there: list[bool] = []
    desk.host.embeddings_changed = lambda: there.append((desk.embeddings / "pip.safetensors").is_file())  # type: ignore[method-assign]
    job = desk.train(seed=3)
    assert job.state == FINISHED
    path = desk.embeddings / "pip.safetensors"
    assert job.message == f"finished after 3 steps. saved as {path}: write pip in a prompt"
    assert path.read_bytes() == made.token
    assert there == [True]
    assert desk.published() == ["pip.safetensors"]
    (run,) = desk.studio.runs()
    assert (run.name, run.state, run.token, run.can_resume) == ("pip", FINISHED, "<pip>", False)
    task = task_of(desk.home / "pip")
    assert (task["kind"], task["preset"], task["settings"]["seed"]) == ("train", "paper", 3)
    images = desk.home / "pip" / "images"
    assert task["settings"]["images"] == [str(images)]
    assert len(list(images.iterdir())) == 6


def test_a_second_run_of_a_name_has_a_folder_of_its_own(desk: Desk) -> None:
    desk.train()
    assert desk.train(overwrite=True).state == FINISHED
    assert desk.runs() == ["pip", "pip-2"]


def test_starts_at_the_same_time_have_folders_of_their_own(desk: Desk) -> None:
    desk.host.idle.clear()
    begin, jobs = threading.Barrier(4, timeout=600), []

    def start(seed: int) -> None:
        begin.wait()
        jobs.append(desk.studio.start({**FORM, "seed": seed}))

    threads = [threading.Thread(target=start, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.folder for job in jobs}) == len(jobs) == 4
    assert all(len(list((job.folder / "images").iterdir())) == 6 for job in jobs)


def test_a_file_is_replaced_only_if_that_is_asked(desk: Desk, made: Made) -> None:
    path = desk.embeddings / "pip.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(TokenError, match="Tick 'Replace the file of this name'"):
        desk.studio.start(FORM)
    assert path.read_bytes() == b"old"
    job = desk.studio.start({**FORM, "overwrite": True})
    desk.at_work(job)
    assert path.read_bytes() == b"old"
    desk.finish(job)
    assert path.read_bytes() == made.token
    assert desk.published() == ["pip.safetensors"]


@pytest.mark.parametrize("name", ["pip.safetensors", "PIP.pt", "sub/pip.png"])
def test_a_name_that_was_taken_meanwhile_is_left_alone(name: str, desk: Desk, made: Made) -> None:
    job = desk.studio.start(FORM)
    desk.at_work(job)
    file = desk.embeddings / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"somebody's")
    (desk.embeddings / "Pip-2.bin").write_bytes(b"somebody's too")
    told = desk.finish(job)
    assert told.state == FINISHED
    path = desk.embeddings / "pip-3.safetensors"
    assert told.message.endswith(f"saved as {path}: write pip-3 in a prompt")
    assert path.read_bytes() == made.token
    assert file.read_bytes() == b"somebody's"
    assert desk.host.calls.count("embeddings changed") == 1


def test_a_token_that_finds_no_room_leaves_the_old_file_whole(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    path = desk.embeddings / "pip.safetensors"
    path.write_bytes(b"old")
    job = desk.studio.start({**FORM, "overwrite": True})
    desk.at_work(job)
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).parent == desk.embeddings:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    told = desk.finish(job)
    assert told.state == FINISHED
    assert f"could not write {path}: the disk is full" in told.message
    assert path.read_bytes() == b"old"
    assert desk.published() == ["pip.safetensors"]
    monkeypatch.undo()
    assert desk.studio.publish("pip", replace=True).token == path


def test_a_program_that_does_not_look_again_is_told_of(desk: Desk) -> None:
    desk.host.fails["embeddings changed"] = RuntimeError("no such attribute")
    job = desk.train()
    assert job.state == FINISHED
    assert "no such attribute" in job.message
    assert (desk.embeddings / "pip.safetensors").is_file()


def test_an_embeddings_folder_that_is_not_there_is_made(desk: Desk) -> None:
    desk.host.embeddings = desk.host.root / "new" / "folder"
    assert desk.train().state == FINISHED
    assert (desk.host.embeddings / "pip.safetensors").is_file()


def test_without_an_embeddings_folder_the_token_stays_in_its_run(desk: Desk, made: Made) -> None:
    desk.host.embeddings = None
    assert desk.train().message == "finished after 3 steps"
    run = desk.studio.run("pip")
    assert run.embedding is not None
    assert run.embedding.read_bytes() == made.token
    with pytest.raises(EmbeddingFileError, match="download the file instead"):
        desk.studio.publish("pip")


def test_a_start_that_fails_leaves_nothing_behind(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_more: Any) -> Job:
        raise StorageError(errno.ENOSPC, "could not write task.json: the disk is full")

    monkeypatch.setattr(desk.studio.jobs, "submit", full)
    with pytest.raises(StorageError):
        desk.studio.start(FORM)
    assert desk.runs() == []


def test_a_waiting_job_that_is_stopped_leaves_nothing_behind(desk: Desk) -> None:
    first = desk.studio.start(FORM)
    desk.at_work(first)
    second = desk.studio.start({**FORM, "seed": 1})
    assert desk.runs() == ["pip", "pip-2"]
    desk.studio.jobs.stop(second.id)
    desk.finish(first)
    until(lambda: desk.runs() == ["pip"])
    assert desk.job(second.id).state == STOPPED


def test_what_is_in_the_queue_is_not_queued_again(desk: Desk) -> None:
    """As by a double click. Other settings, pictures or captions are another training."""
    first = desk.studio.start(FORM)
    desk.at_work(first)
    with pytest.raises(ConfigError, match="<pip> is in the queue with these settings and pictures already"):
        desk.studio.start(FORM)
    others = [desk.studio.start({**FORM, "seed": 1})]
    picture = desk.studio.draft.pictures()[0]
    desk.studio.draft.caption(picture.name, "a {} on the moon")
    others.append(desk.studio.start(FORM))
    assert desk.runs() == ["pip", "pip-2", "pip-3"]
    for job in others:
        desk.studio.jobs.stop(job.id)
    desk.finish(first)
    assert desk.studio.start({**FORM, "overwrite": True}).behind == ""


@pytest.mark.parametrize("ending", ["stopped", "failed"])
def test_pictures_that_are_nowhere_else_are_not_thrown_away(desk: Desk, ending: str) -> None:
    """Where the form has gone on to another subject while a training waited that then did not begin."""
    first = desk.studio.start(FORM)
    desk.at_work(first)
    second = desk.studio.start({**FORM, "seed": 1})
    kept = contents(second.folder)
    desk.studio.draft.clear()
    if ending == "stopped":
        desk.studio.jobs.stop(second.id)
    else:
        desk.host.fails["taken"] = RuntimeError("the card is gone")
    desk.finish(first)
    state = STOPPED if ending == "stopped" else FAILED
    until(lambda: desk.studio.run("pip-2").state == state)
    assert desk.studio.run("pip-2").can_resume
    assert kept.items() <= contents(second.folder).items()
    desk.host.fails.clear()
    again = desk.studio.resume("pip-2")
    desk.at_work(again)
    desk.finish(again)
    assert desk.studio.run("pip-2").state == FINISHED


def test_how_the_last_training_ended_is_shown_though_others_were_dropped_since(desk: Desk) -> None:
    first = desk.studio.start(FORM)
    desk.at_work(first)
    second = desk.studio.start({**FORM, "seed": 1})
    desk.studio.jobs.stop(second.id)
    desk.finish(first)
    until(lambda: not desk.job(second.id).open)
    newest = desk.studio.jobs.newest()
    assert newest is not None
    assert (newest.id, newest.state) == (first.id, FINISHED)


def test_a_run_whose_home_has_moved_is_resumed_from_its_own_folder(desk: Desk) -> None:
    """Its settings name where pictures, captions and model lay; another drive letter, say."""
    model = desk.host.root / "models" / "mine.safetensors"
    model.write_bytes(b"")
    desk.stop(desk.studio.start(FORM))
    run = desk.studio.run("pip")
    config = json.loads((run.run / "config.json").read_text())
    gone = {"images": ["/gone/pip/images"], "captions": "/gone/pip/captions.json", "model": "D:\\sd\\mine.safetensors"}
    (run.run / "config.json").write_text(json.dumps({**config, **gone}))
    again = desk.studio.resume("pip")
    assert task_of(run.folder)["changes"] == {
        "images": [str(run.folder / "images")],
        "captions": str(run.folder / "captions.json"),
        "model": str(model),
    }
    desk.at_work(again)
    desk.finish(again)


# ---------------------------------------------------------------- the runs so far


def test_a_stopped_run_goes_on_and_its_token_comes_as_well(desk: Desk, made: Made) -> None:
    job = desk.stop(desk.studio.start(FORM))
    assert (job.state, job.message) == (STOPPED, "stopped at step 2")
    assert desk.published() == []
    run = desk.studio.run("pip")
    assert (run.state, run.step, run.steps, run.can_resume) == (STOPPED, 2, 3, True)
    again = desk.studio.resume("pip")
    assert (again.kind, again.folder, again.token) == ("resume", run.folder, "<pip>")
    assert task_of(run.folder)["changes"] == {}
    assert desk.finish(again).message.endswith("write pip in a prompt")
    assert (desk.embeddings / "pip.safetensors").read_bytes() == made.token
    with pytest.raises(RunFolderError, match="has taken all its 3 steps; ask for more"):
        desk.studio.resume("pip")
    assert desk.studio.resume("pip", steps=5).kind == "resume"
    assert task_of(run.folder)["changes"] == {"steps": 5}


@pytest.mark.parametrize("restart", [False, True])
def test_leave_to_replace_a_file_outlasts_a_stop(restart: bool, desk: Desk, made: Made) -> None:
    path = desk.embeddings / "pip.safetensors"
    path.write_bytes(b"old")
    desk.stop(desk.studio.start({**FORM, "overwrite": True}))
    now = desk.restarted() if restart else desk
    assert now.finish(now.studio.resume("pip")).state == FINISHED
    assert path.read_bytes() == made.token


def test_a_run_that_was_cut_off_is_listed_and_can_resume_after_a_restart(desk: Desk, made: Made) -> None:
    """With the program: nobody wrote how it ended."""
    job = desk.stop(desk.studio.start(FORM))
    (job.folder / "outcome.json").unlink()
    again = desk.restarted()
    (run,) = again.studio.runs()
    assert (run.name, run.state, run.step, run.can_resume) == ("pip", UNFINISHED, 2, True)
    assert again.studio.jobs.all() == []
    assert again.finish(again.studio.resume("pip")).state == FINISHED
    assert (desk.embeddings / "pip.safetensors").read_bytes() == made.token
    assert again.studio.run("pip").state == FINISHED


def test_a_job_that_never_had_its_turn_is_begun_after_a_restart(desk: Desk) -> None:
    desk.host.idle.clear()
    job = desk.studio.start({**FORM, "seed": 5, "preset": "fast"})
    assert desk.job(job.id).state == WAITING
    again = desk.restarted()
    (run,) = again.studio.runs()
    assert (run.name, run.state, run.step, run.can_resume) == ("pip", UNFINISHED, 0, True)
    begun = again.studio.resume("pip")
    task = task_of(begun.folder)
    assert (task["kind"], task["settings"]["seed"], task["preset"]) == ("train", 5, "fast")
    assert again.finish(begun).state == FINISHED


def test_a_run_that_was_cut_off_before_its_first_file_is_begun(desk: Desk) -> None:
    desk.host.idle.clear()
    job = desk.studio.start(FORM)
    (job.folder / "run").mkdir()
    again = desk.restarted()
    assert again.studio.run("pip").can_resume
    assert again.studio.resume("pip").kind == "train"


def test_a_job_that_never_had_its_turn_may_be_given_other_steps(desk: Desk) -> None:
    desk.host.idle.clear()
    desk.studio.start(FORM)
    again = desk.restarted()
    begun = again.studio.resume("pip", steps=7)
    assert task_of(begun.folder)["settings"]["steps"] == 7


def test_a_job_that_never_had_its_turn_can_not_be_drawn(desk: Desk) -> None:
    """Nor is what was asked of it lost by trying."""
    desk.host.idle.clear()
    desk.studio.start(FORM)
    again = desk.restarted()
    again.host.idle.clear()
    with pytest.raises(ZoodipError, match="no token"):
        again.studio.show("pip")
    assert again.studio.run("pip").can_resume


def test_a_run_at_work_is_not_deleted(desk: Desk) -> None:
    job = desk.studio.start(FORM)
    desk.at_work(job)
    before = contents(job.folder)
    with pytest.raises(RunFolderError, match="is being worked on; stop it first"):
        desk.studio.delete("pip")
    second = desk.studio.start({**FORM, "seed": 1})
    with pytest.raises(RunFolderError, match="is being worked on; stop it first"):
        desk.studio.delete(second.folder.name)
    assert contents(job.folder) == before
    desk.studio.jobs.stop(second.id)
    desk.finish(job)
    desk.studio.delete("pip")
    assert not (desk.home / "pip").exists()
    assert (desk.embeddings / "pip.safetensors").is_file()
    with pytest.raises(RunFolderError, match="there is no run 'pip'"):
        desk.studio.delete("pip")


@pytest.mark.parametrize("name", ["..", ".", "", "../home", "/", ".draft", "no such run", "pip/run", "x\x00y"])
def test_a_run_is_named_by_its_name_alone(name: str, desk: Desk) -> None:
    desk.train()
    before = contents(desk.host.root)
    uses: list[Callable[[str], object]] = [
        desk.studio.run,
        desk.studio.delete,
        desk.studio.show,
        desk.studio.resume,
        desk.studio.publish,
    ]
    for use in uses:
        with pytest.raises(RunFolderError, match="there is no run"):
            use(name)
    assert contents(desk.host.root) == before


def test_a_run_that_was_refused_a_resume_is_what_it_was(desk: Desk, made: Made) -> None:
    """A finished run does not count as failed because more steps were asked of it that it cannot take."""
    desk.train()
    with pytest.raises(RunFolderError, match="at step 3 already, beyond 2"):
        desk.studio.resume("pip", steps=2)
    assert desk.studio.run("pip").state == FINISHED


def test_drawing_a_run_changes_nothing_about_it(desk: Desk) -> None:
    desk.stop(desk.studio.start(FORM))
    before = desk.studio.run("pip")
    job = desk.studio.show("pip")
    assert job.kind == "show"
    told = desk.finish(job)
    assert (told.state, told.message) == (FINISHED, "finished")
    assert desk.studio.run("pip").state == before.state == STOPPED
    assert desk.published() == []


def test_runs_are_compared_in_a_folder_of_their_own(desk: Desk) -> None:
    """It changes nothing about them, is not a run, and the job file says what is asked."""
    desk.train()
    desk.stop(desk.studio.start({**FORM, "overwrite": True}))
    before = contents(desk.home / "pip")
    job = desk.studio.compare(["pip-2", "pip"], " a {} in the snow ", "1, 0.7")
    assert (job.kind, job.token, job.folder) == ("compare", "pip-2, pip", desk.home / ".comparison")
    task = json.loads(job.file.read_text())
    assert task["runs"] == [str(desk.home / "pip-2"), str(desk.home / "pip")]
    assert (task["prompt"], task["until"]) == ("a {} in the snow", [1.0, 0.7])
    with pytest.raises(RunFolderError, match="is being worked on already"):
        desk.studio.compare(["pip-2", "pip"])
    told = desk.finish(job)
    assert (told.state, told.message) == (FINISHED, "finished")
    assert contents(desk.home / "pip") == before
    assert [run.name for run in desk.studio.runs()] == ["pip-2", "pip"]
    assert desk.studio.run("pip").state == FINISHED
    assert desk.studio.comparison == desk.home / ".comparison" / "comparison.png"


def test_what_can_not_be_compared_is_refused(desk: Desk) -> None:
    desk.train()
    second = desk.train(overwrite=True)
    config = second.folder / "run" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model": "/models/sd15.safetensors"}))
    desk.host.idle.clear()
    third = desk.studio.start({**FORM, "overwrite": True}).folder.name
    refusals: list[tuple[list[str], str]] = [
        ([], "at least two runs"),
        (["pip"], "at least two runs"),
        (["pip", "pip-2"], "pip on embedded tiny model and pip-2 on sd15 were learned on different models"),
        (["pip", third], "has no token yet"),
        (["pip", ".."], "there is no run"),
    ]
    for names, told in refusals:
        with pytest.raises(ZoodipError, match=told):
            desk.studio.compare(names)
    for shares, told in (("much", "until = 'much': write shares"), ("1, 2", "until = 2: must be above 0")):
        with pytest.raises(ZoodipError, match=told):
            desk.studio.compare(["pip"], "", shares)
    assert not (desk.home / ".comparison").exists()


def test_a_token_is_published_by_hand(desk: Desk, made: Made) -> None:
    desk.stop(desk.studio.start(FORM))
    path = desk.embeddings / "pip.safetensors"
    assert desk.studio.publish("pip").token == path
    run = desk.studio.run("pip")
    assert run.embedding is not None
    assert path.read_bytes() == run.embedding.read_bytes() != made.token
    assert desk.studio.publish("pip").token == path  # the same again
    path.write_bytes(b"another")
    with pytest.raises(EmbeddingFileError, match=r"pip\.safetensors is in the embeddings folder already"):
        desk.studio.publish("pip")
    assert path.read_bytes() == b"another"
    assert desk.studio.publish("pip", another_name=True).token == desk.embeddings / "pip-2.safetensors"
    assert desk.studio.publish("pip", replace=True).token == path
    assert path.read_bytes() == run.embedding.read_bytes()


def test_a_file_that_is_not_ours_is_never_replaced(desk: Desk) -> None:
    desk.stop(desk.studio.start(FORM))
    file = desk.embeddings / "pip.pt"
    file.write_bytes(b"somebody's")
    with pytest.raises(EmbeddingFileError, match=r"pip\.pt is in the embeddings folder already"):
        desk.studio.publish("pip", replace=True)
    assert desk.published() == ["pip.pt"]
    assert file.read_bytes() == b"somebody's"


def test_a_run_without_a_token_is_not_published(desk: Desk) -> None:
    desk.stop(desk.studio.start(FORM))
    for file in (desk.home / "pip" / "run" / "snapshots").iterdir():
        file.unlink()
    with pytest.raises(EmbeddingFileError, match="no token yet"):
        desk.studio.publish("pip")


# ---------------------------------------------------------------- weights beside the token


def of_loras(desk: Desk) -> list[str]:
    """What lies in the folder of LoRAs."""
    return sorted(path.name for path in desk.loras.iterdir())


def test_learned_weights_come_with_their_token(desk: Desk, made: Made) -> None:
    job = desk.train(learn_weights=True)
    token, lora = desk.embeddings / "pip.safetensors", desk.loras / "pip-lora.safetensors"
    assert (
        job.message == f"finished after 3 steps. saved as {token} and {lora}: write pip <lora:pip-lora:1> in a prompt"
    )
    assert lora.read_bytes() == made.weights
    assert token.read_bytes() == (made.weighted / "pip.safetensors").read_bytes()
    assert desk.host.calls[-2:] == ["loras changed", "embeddings changed"]
    assert desk.studio.run("pip").lora == desk.home / "pip" / "run" / "pip-lora.safetensors"
    task = task_of(desk.home / "pip")
    assert (task["learn_weights"], "learn_weights" in task["settings"]) == (True, False)


def test_a_token_without_weights_says_nothing_of_them(desk: Desk) -> None:
    job = desk.train()
    assert job.message.endswith("pip.safetensors: write pip in a prompt")
    assert (of_loras(desk), task_of(desk.home / "pip")["learn_weights"]) == ([], False)
    assert "loras changed" not in desk.host.calls


def test_weights_for_which_there_is_no_folder_can_be_downloaded(desk: Desk) -> None:
    desk.host.loras = None
    told = desk.train(learn_weights=True).message
    assert told.endswith(
        "write pip in a prompt; its LoRA, to be drawn with beside it, can be downloaded on the tab Runs"
    )
    assert desk.published() == ["pip.safetensors"]
    assert of_loras(desk) == []


@pytest.mark.parametrize("name", ["pip-lora.safetensors", "PIP-lora.pt", "sub/pip-Lora.ckpt"])
def test_a_name_in_the_folder_of_loras_is_asked_about(name: str, idle: Desk) -> None:
    file = idle.loras / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"somebody's")
    before = contents(idle.host.root)
    ours = (idle.loras / "pip-lora.safetensors").exists()
    told = "is in the Lora folder already. Tick" if ours else "the LoRA's name pip-lora as well"
    for form in ({"learn_weights": True}, {"preset": "two-stage"}, {"lora_rank": 2, "overwrite": not ours}):
        for use in (idle.studio.check, idle.studio.start):
            with pytest.raises(TokenError, match=told):
                use({**FORM, **form})
    assert contents(idle.host.root) == before
    assert idle.studio.replaceable("<pip>", with_lora=True) is ours
    assert not idle.studio.replaceable("<pip>", with_lora=False)
    assert not idle.studio.replaceable("<../pip>", with_lora=True)


@pytest.mark.parametrize("name", ["embeddings/pip.pt", "loras/pip-lora.safetensors", "loras/x/PIP-LORA.ckpt"])
def test_weights_and_token_keep_to_one_name(name: str, desk: Desk, made: Made) -> None:
    """Where one of the two was taken meanwhile, both have another."""
    job = desk.studio.start({**FORM, "learn_weights": True})
    desk.at_work(job)
    for file in (desk.host.root / name, desk.loras / "pip-2-lora.pt"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"somebody's")
    assert desk.finish(job).message.endswith("write pip-3 <lora:pip-3-lora:1> in a prompt")
    assert (desk.loras / "pip-3-lora.safetensors").read_bytes() == made.weights
    assert (desk.embeddings / "pip-3.safetensors").is_file()
    assert (desk.host.root / name).read_bytes() == b"somebody's"


def test_weights_are_replaced_only_if_that_is_asked(desk: Desk, made: Made) -> None:
    lora, token = desk.loras / "pip-lora.safetensors", desk.embeddings / "pip.safetensors"
    lora.write_bytes(b"old")
    desk.train(learn_weights=True, overwrite=True)
    assert lora.read_bytes() == made.weights
    lora.write_bytes(b"another")
    token.unlink()
    with pytest.raises(LoraFileError, match=r"pip-lora\.safetensors is in the Lora folder already; allow"):
        desk.studio.publish("pip")
    assert (lora.read_bytes(), desk.published()) == (b"another", [])
    published = desk.studio.publish("pip", replace=True)
    assert (published.token, published.lora, lora.read_bytes()) == (token, lora, made.weights)


def test_a_training_of_weights_that_never_had_its_turn_is_begun_after_a_restart(desk: Desk, made: Made) -> None:
    desk.host.idle.clear()
    desk.studio.start({**FORM, "learn_weights": True})
    again = desk.restarted()
    assert again.finish(again.studio.resume("pip")).state == FINISHED
    assert (desk.loras / "pip-lora.safetensors").read_bytes() == made.weights


def test_a_lora_has_a_name_that_prompts_can_say(idle: Desk) -> None:
    shelves = [Shelf(idle.embeddings), Shelf(idle.loras, of_loras=True)]
    assert [shelf.target("<a=b.v2>").name for shelf in shelves] == ["a=b.v2.safetensors", "a-b.v2-lora.safetensors"]


# ---------------------------------------------------------------- with real workers


@pytest.mark.slow  # as in the browser
def test_a_form_is_checked_by_a_real_worker(tmp_path: Path) -> None:
    desk = Desk(tmp_path, sys.executable)
    before = contents(tmp_path)
    found = desk.studio.check({**FORM, "n": 4, "preset": "fast"})
    assert (found["model"], found["images"], found["captions"], found["forwards"]) == ("tiny", 6, 6, 5)
    assert (found["settings"]["steps"], found["settings"]["averaging"]) == (300, 0.1)
    assert 1e6 < found["memory_in_turn"] < found["memory"]
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_bad_initializer_fails_in_the_worker_and_leaves_no_folder(tmp_path: Path) -> None:
    desk = Desk(tmp_path, sys.executable)
    job = desk.ended(desk.studio.start({**FORM, "initializer": "no word at all"}))
    assert (job.state, job.log) == (FAILED, "")
    assert "'no word at all' is 9 tokens" in job.message
    assert desk.runs() == []
    assert desk.studio.runs() == []
    assert desk.published() == []


@pytest.mark.skipif(sys.platform == "win32", reason="a signal of POSIX")
@pytest.mark.slow
def test_a_worker_that_was_killed_can_be_resumed_from(tmp_path: Path, tiny_model: StableDiffusion) -> None:
    """As the kernel does where memory is short; and then the program is started again."""
    desk = Desk(tmp_path, sys.executable)
    endless = {**FORM, **SHORT, "steps": 1_000_000, "save_every": 2, "sample_every": 1_000_000}
    job = desk.studio.start(endless)
    until(lambda: desk.job(job.id).step >= 5 or not desk.job(job.id).open)
    (process,) = (each for each in psutil.Process().children() if str(job.file) in each.cmdline())
    process.kill()
    told = desk.ended(job)
    assert (told.state, "killed by signal 9" in told.message) == (FAILED, True)
    assert told.embedding is not None
    run = desk.studio.run("pip")
    assert (run.state, run.can_resume, run.step > 0) == (FAILED, True, True)

    again = desk.restarted()
    told = again.ended(again.studio.resume("pip", steps=run.step + 3))
    assert told.state == FINISHED, told
    config = TrainConfig.from_json((run.run / "config.json").read_text())
    whole = train_token(config, tmp_path / "whole", model=tiny_model).path.read_bytes()
    assert (again.embeddings / "pip.safetensors").read_bytes() == whole
    assert told.losses[-1] > 0
    assert len(told.losses) == run.step + 3
    assert told.shown is not None
    with Image.open(told.shown) as picture:
        assert picture.height > 3 * 144
    assert again.studio.run("pip").state == FINISHED
