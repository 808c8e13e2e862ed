"""The runs of a home: really trained ones, interrupted ones, damaged ones, and what is none at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.reads import counted_reads
from zoodip_core import Commands, TrainConfig, TrainResult, resume_training, train_token
from zoodip_core.base.errors import RunFolderError, StorageError, TokenError, ZoodipError
from zoodip_core.base.events import Event, Progress
from zoodip_core.jobs.history import delete_run, find_run, list_runs, losses_of, new_folder
from zoodip_core.jobs.job import Run
from zoodip_core.jobs.job_folder import log_tail, task_of, write_outcome, write_task
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts

PIP = concepts.load("pip")
STEPS = 3


def config_of(**settings: Any) -> TrainConfig:
    given = {"images": (str(PIP.images),), "token": "<pip>", "initializer": "monster", "steps": STEPS, "n": 2}
    saved = {"save_every": 1, "sample_every": 2, "sample_steps": 1}
    return TrainConfig.from_preset("tiny", **{**given, **saved, **settings})


def train(path: Path, model: StableDiffusion, stop_after: int = 0, **settings: Any) -> TrainResult:
    commands = Commands()

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.step == stop_after:
            commands.stop()

    return train_token(config_of(**settings), path, model=model, on_event=on_event, commands=commands)


@pytest.fixture(scope="module")
def trained(tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders to copy: whole, and stopped after its second step."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder / "whole", tiny_model)
    train(folder / "stopped", tiny_model, stop_after=2, token="<stopped>")
    train(folder / "weights", tiny_model, lora_rank=1, lora_share=0.34)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def page_run(home: Path, trained: Path) -> Callable[..., Path]:
    """Makes a run as a page leaves it."""

    def make(name: str, of: str | None = "whole", outcome: str | None = "finished", message: str = "") -> Path:
        folder = home / name
        folder.mkdir(parents=True)
        write_task(
            folder,
            "train",
            folder,
            settings={"token": "<asked>", "model": "tiny", "steps": 7, "images": ["x"]},
            preset="paper",
        )
        if of:
            shutil.copytree(trained / of, folder / "run")
        if outcome:
            write_outcome(folder, outcome, message)
        return folder

    return make


def names(home: Path) -> list[str]:
    return [run.name for run in list_runs(home)]


def only(home: Path) -> Run:
    """The one run of a home, which is to be found by its name as well."""
    (run,) = list_runs(home)
    assert find_run(home, run.name) == run
    return run


# ---------------------------------------------------------------- what is listed


def test_a_finished_run_of_a_page(home: Path, page_run: Callable[..., Path]) -> None:
    folder = page_run("pip")
    (folder / "before_after.png").write_bytes(b"a picture")
    run = only(home)
    assert (run.name, run.folder, run.run) == ("pip", folder, folder / "run")
    assert (run.token, run.model, run.step, run.steps) == ("<pip>", "embedded tiny model", STEPS, STEPS)
    assert (run.state, run.message, run.can_resume) == ("finished", "", False)
    assert run.embedding == folder / "run" / "pip.safetensors"
    assert run.before_after == folder / "before_after.png"
    assert run.loss_curve == folder / "run" / "loss.png"
    assert run.sample == folder / "run" / "samples" / "step-00000002.png"
    assert all(path.is_file() for path in (run.embedding, run.loss_curve, run.sample))
    assert run.settings == config_of().to_dict()
    assert run.when == max(path.stat().st_mtime for path in (*folder.glob("*.json"), *run.run.glob("*")))


def test_the_weights_that_were_learned_with_a_token(home: Path, page_run: Callable[..., Path]) -> None:
    """Of a snapshot those of its own step: there are none in the first stage."""
    page_run("without")
    assert find_run(home, "without").lora is None
    folder = page_run("with", "weights") / "run"
    assert find_run(home, "with").lora == folder / "pip-lora.safetensors"
    (folder / "pip.safetensors").unlink()
    newest = find_run(home, "with")
    assert newest.embedding == folder / "snapshots" / "step-00000003.safetensors"
    assert newest.lora == folder / "loras" / "step-00000003.safetensors"
    assert newest.lora.is_file()
    for step in (3, 2):
        (folder / "snapshots" / f"step-0000000{step}.safetensors").unlink()
    assert find_run(home, "with").embedding == folder / "snapshots" / "step-00000001.safetensors"
    assert find_run(home, "with").lora is None


def test_a_run_of_the_command_line(home: Path, trained: Path) -> None:
    shutil.copytree(trained / "whole", home / "pip")
    run = only(home)
    assert run.run == run.folder == home / "pip"
    assert (run.state, run.step, run.can_resume) == ("finished", STEPS, False)
    assert run.embedding == home / "pip" / "pip.safetensors"
    assert run.before_after is None


def test_a_stopped_run_goes_on_and_ends(home: Path, page_run: Callable[..., Path], tiny_model: StableDiffusion) -> None:
    folder = page_run("stopped", "stopped", "stopped")
    run = only(home)
    assert (run.state, run.step, run.steps, run.can_resume) == ("stopped", 2, STEPS, True)
    assert run.embedding == folder / "run" / "snapshots" / "step-00000002.safetensors"
    resume_training(run.run, model=tiny_model)
    run = only(home)
    assert (run.state, run.step, run.can_resume) == ("finished", STEPS, False)
    assert run.embedding == folder / "run" / "stopped.safetensors"


def test_a_run_that_was_cut_off(home: Path, page_run: Callable[..., Path]) -> None:
    samples = page_run("cut", "stopped", None) / "run" / "samples"
    samples.mkdir()
    (samples / "step-00000004.png").write_bytes(b"older")
    (samples / "step-00000009.png").write_bytes(b"after the saved state")
    (samples / "step-100000000.txt").write_bytes(b"no picture")
    run = only(home)
    assert run.sample == samples / "step-00000009.png"
    assert (run.state, run.message, run.can_resume) == ("unfinished", "", True)


def test_a_run_that_was_asked_to_resume_and_cut_off_then(home: Path, page_run: Callable[..., Path]) -> None:
    folder = page_run("rex", "stopped", "failed", "no room")
    assert (only(home).state, only(home).message) == ("failed", "no room")
    # Only drawing pictures is not resuming.
    for kind, state in (("show", "failed"), ("resume", "unfinished"), ("show", "unfinished")):
        write_task(folder, kind, folder)
        assert only(home).state == state


@pytest.mark.parametrize("jump", [-7200, 7200])
def test_a_clock_that_jumps_changes_no_state(jump: int, home: Path, page_run: Callable[..., Path]) -> None:
    """Daylight saving on a FAT disk, a computer whose battery is empty, a network's folder."""
    folder = page_run("rex", "stopped", "failed", "no room")
    when = (folder / "task.json").stat().st_mtime + jump
    os.utime(folder / "outcome.json", (when, when))
    assert (only(home).state, only(home).message) == ("failed", "no room")
    write_task(folder, "resume", folder)
    os.utime(folder / "task.json", (when, when))
    assert (only(home).state, only(home).message) == ("unfinished", "")


def test_a_run_that_failed_before_it_began(home: Path, page_run: Callable[..., Path]) -> None:
    page_run("early", None, "failed", "model: x.ckpt is damaged")
    run = only(home)
    assert (run.state, run.message, run.can_resume) == ("failed", "model: x.ckpt is damaged", True)
    assert (run.token, run.step, run.steps) == ("<asked>", 0, 7)
    assert (run.embedding, run.before_after, run.loss_curve, run.sample) == (None, None, None, None)
    assert run.settings["images"] == ["x"]


def test_a_run_that_only_a_worker_knows_of(home: Path) -> None:
    (home / "rex").mkdir(parents=True)
    task = {"version": 1, "kind": "train", "folder": "x", "settings": {"token": "<rex>", "steps": 9}}
    (home / "rex" / "task.json").write_text(json.dumps(task))
    run = only(home)
    assert (run.token, run.steps, run.state, run.can_resume) == ("<rex>", 9, "unfinished", True)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("tiny", "embedded tiny model"),
        ("/models/v1-5.pruned.safetensors", "v1-5.pruned"),
        ("C:\\models\\sd xl.ckpt", "sd xl"),
        ("models/v1.5/", "v1.5"),
        ("", ""),
        (None, ""),
        (7, "7"),
    ],
)
def test_the_model_is_named_for_people(home: Path, model: Any, name: str) -> None:
    folder = home / "rex"
    folder.mkdir(parents=True)
    write_task(folder, "train", folder, settings={"model": model}, preset="fast")
    assert only(home).model == name


def test_the_newest_comes_first(home: Path, page_run: Callable[..., Path]) -> None:
    for age, name in ((300, "middle"), (900, "old"), (60, "new")):
        for path in page_run(name).rglob("*"):
            os.utime(path, (time.time() - age, time.time() - age))
    assert names(home) == ["new", "middle", "old"]
    os.utime(home / "old" / "run" / "steps.jsonl")  # a step was taken
    os.utime(home / "new" / "run" / "pip.safetensors", (0, 0))
    assert names(home)[0] == "old"


def test_what_is_no_run_is_left_out(home: Path, page_run: Callable[..., Path], tmp_path: Path) -> None:
    assert list_runs(home) == []
    page_run("pip")
    page_run(".draft")
    page_run("cache")
    for name in ("empty", "photos", "model", "other"):
        (home / name).mkdir()
    (home / "photos" / "cat.png").write_bytes(b"x")
    (home / "model" / "config.json").write_text('{"model_type": "clip_text_model"}')  # as of every model
    (home / "other" / "task.json").write_text('{"jobs": []}')
    (home / "file").write_text("x")
    outside = tmp_path / "outside"
    shutil.copytree(home / "pip", outside)
    (home / "link").symlink_to(outside)
    (home / "nowhere").symlink_to(tmp_path / "missing")
    assert names(home) == ["pip"]
    assert names(home / "file") == []
    for name in ("link", "cache", ".draft", "model", "photos", "empty", "file", "nowhere"):
        with pytest.raises(RunFolderError):
            find_run(home, name)


# ---------------------------------------------------------------- damage


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_another_version(path: Path) -> None:
    path.write_text(path.read_text().replace('"config_version": 1', '"config_version": 2'))


def with_a_bad_setting(path: Path) -> None:
    path.write_text(path.read_text().replace('"steps": 3', '"steps": "three"'))


def with_odd_tensors(path: Path) -> None:
    save_file({"step": torch.zeros(4)}, path)


def without_tensors(path: Path) -> None:
    save_file({"other": torch.zeros(4)}, path)


def infinite(path: Path) -> None:
    save_file({"step": torch.tensor(float("inf"))}, path)


def deep(path: Path) -> None:
    path.write_bytes(b"[" * 200_000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", cut_in_half),
        ("config.json", of_another_version),
        ("config.json", with_a_bad_setting),
        ("config.json", deep),
        ("config.json", emptied),
    ],
)
@pytest.mark.parametrize("by_page", [True, False])
def test_a_damaged_run_says_so_and_can_be_deleted(
    home: Path, page_run: Callable[..., Path], trained: Path, name: str, damage: Callable[[Path], None], by_page: bool
) -> None:
    page_run("good")
    if by_page:
        page_run("bad")
    else:
        shutil.copytree(trained / "whole", home / "bad")
    run = find_run(home, "bad").run
    damage(run / name)
    assert sorted(names(home)) == ["bad", "good"]
    bad = find_run(home, "bad")
    assert (bad.state, bad.can_resume, bad.step) == ("failed", False, 0)
    assert bad.message
    assert len(bad.message) <= 2000
    assert bad.embedding is not None  # what was learned is still there
    assert losses_of(bad.run) == ([] if name == "config.json" else losses_of(find_run(home, "good").run))
    delete_run(home, "bad")
    assert names(home) == ["good"]


@pytest.mark.parametrize("damage", [cut_in_half, with_odd_tensors, without_tensors, infinite, emptied])
def test_a_damaged_state_hides_nothing_that_the_journal_tells(
    page_run: Callable[..., Path], home: Path, damage: Callable[[Path], None]
) -> None:
    page_run("pip")
    damage(only(home).run / "state.safetensors")
    assert (only(home).state, only(home).step, only(home).message) == ("finished", STEPS, "")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"version": 1}', "[" * 100_000, '"x"'])
def test_damaged_notes_of_a_page_do_not_hide_the_run(home: Path, page_run: Callable[..., Path], content: str) -> None:
    folder = page_run("pip")
    for name in ("task.json", "outcome.json"):
        (folder / name).write_text(content)
    run = only(home)
    assert (run.token, run.state, run.step) == ("<pip>", "finished", STEPS)


@pytest.mark.parametrize(
    "settings", [{"token": ["<a>"], "model": {"a": 1}, "steps": "many"}, [1], "x", None, {"token": "../../x\x00"}]
)
def test_settings_of_any_kind(home: Path, settings: Any) -> None:
    (home / "rex").mkdir(parents=True)
    job = {"version": 1, "kind": "train", "settings": settings, "preset": 3}
    (home / "rex" / "task.json").write_text(json.dumps(job))
    assert only(home).steps == 0
    assert only(home).embedding is None


def test_folders_stand_where_files_should(home: Path, page_run: Callable[..., Path]) -> None:
    folder = page_run("pip")
    for name in ("task.json", "outcome.json", "run/steps.jsonl", "run/loss.png", "run/pip.safetensors"):
        (folder / name).unlink()
        (folder / name).mkdir()
    shutil.rmtree(folder / "run" / "samples")
    (folder / "run" / "samples").write_text("x")
    run = only(home)
    assert (run.state, run.loss_curve, run.sample) == ("unfinished", None, None)
    assert run.embedding == folder / "run" / "snapshots" / f"step-{STEPS:08d}.safetensors"
    assert losses_of(run.run) == []


def test_a_snapshot_that_is_missing(home: Path, page_run: Callable[..., Path]) -> None:
    folder = page_run("stopped", "stopped", None)
    snapshots = folder / "run" / "snapshots"
    (snapshots / "step-00000002.safetensors").unlink()
    (snapshots / "step-99999999.part").write_text("x")
    (snapshots / "notes.safetensors").write_text("x")
    assert only(home).embedding == snapshots / "step-00000001.safetensors"
    shutil.rmtree(snapshots)
    assert only(home).embedding is None


def test_little_is_read_of_each_of_many_runs(home: Path, page_run: Callable[..., Path]) -> None:
    first = page_run("run-0")
    (first / "run" / "steps.jsonl").write_bytes(b"x" * 10_000_000)  # not read to its beginning
    with counted_reads() as alone:
        assert len(list_runs(home)) == 1
    for i in range(1, 40):
        shutil.copytree(first, home / f"run-{i}", copy_function=os.link)
    with counted_reads() as together:
        assert len(list_runs(home)) == 40
    assert 0 < alone.bytes < 2_100_000
    assert together.bytes <= 40 * alone.bytes
    assert together.opened.total() <= 40 * alone.opened.total() <= 40 * 12


# ---------------------------------------------------------------- finding and deleting


HOSTILE = [
    "",
    ".",
    "..",
    "../outside",
    "/etc",
    "pip/run",
    "pip/",
    "./pip",
    "pip\\run",
    "a\x00b",
    "\ud800",
    "x" * 5000,
    "*",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_are_no_run(home: Path, page_run: Callable[..., Path], tmp_path: Path, name: str) -> None:
    shutil.copytree(page_run("pip"), tmp_path / "outside")
    for act in (find_run, delete_run):
        with pytest.raises(RunFolderError, match="look for it in the list of runs") as caught:
            act(home, name)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1000
    assert names(home) == ["pip"]
    assert find_run(tmp_path, "outside").state == "finished"


def test_deleting_takes_one_run_alone(home: Path, page_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = page_run("pip")
    page_run("pip-2")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("kept")
    (folder / "link").symlink_to(tmp_path / "kept")
    delete_run(home, "pip")
    assert [path.name for path in home.iterdir()] == ["pip-2"]
    assert (tmp_path / "kept" / "thesis.txt").read_text() == "kept"
    with pytest.raises(RunFolderError, match="there is no run 'pip'"):
        delete_run(home, "pip")


def test_a_link_to_a_run_is_not_followed(home: Path, page_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = page_run("pip")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunFolderError):
        delete_run(home, "pip")
    assert (tmp_path / "elsewhere" / "run" / "pip.safetensors").is_file()


def test_a_run_that_can_not_be_moved_away_stays_whole(
    home: Path, page_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    page_run("pip")

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match=r"could not delete .*pip: Permission denied; close what uses"):
        delete_run(home, "pip")
    assert only(home).state == "finished"


def test_a_half_deleted_run_is_not_listed_and_goes_with_the_next(
    home: Path, page_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    page_run("pip")
    page_run("rex")
    remove = os.unlink

    def refuse(path: Any, *args: Any, **kwargs: Any) -> None:
        if str(path).endswith("config.json"):
            raise PermissionError(errno.EACCES, "Permission denied")
        remove(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(StorageError, match=r"pip is not a run any more, but not all.*\.deleted-\w+ yourself"):
            delete_run(home, "pip")
    assert names(home) == ["rex"]
    delete_run(home, "rex")
    assert list(home.iterdir()) == []


# ---------------------------------------------------------------- new folders


def test_new_folders_are_named_after_the_token(home: Path, page_run: Callable[..., Path], tmp_path: Path) -> None:
    home.mkdir()
    (home / "link").symlink_to(tmp_path / "missing")
    made = [new_folder(home, token) for token in ("<rex>", "<rex>", "cache", "<Cache>", "狗", "<link>")]
    assert [path.name for path in made[:5]] == ["rex", "rex-2", "cache-run", "Cache-run", "狗"]
    assert made[5].name.startswith("link-")
    assert all(path.is_dir() and path.parent == home and not list(path.iterdir()) for path in made)
    assert list_runs(home) == []


@pytest.mark.parametrize("token", ["", "..", "../x", "a/b", "<>", "con", "x" * 500, ".hidden", "a\x00"])
def test_tokens_that_can_not_name_a_folder(home: Path, token: str) -> None:
    with pytest.raises(TokenError):
        new_folder(home, token)
    assert not home.exists()


def test_a_home_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="choose another folder"):
        new_folder(tmp_path / "file" / "home", "<rex>")

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="is read-only"):
        new_folder(tmp_path, "<rex>")


# ---------------------------------------------------------------- notes


def test_jobs_and_outcomes_are_what_was_written(tmp_path: Path) -> None:
    settings = {"token": "<狗>", "images": ("a", "b\udcff"), "lr": 0.5, "captions": None}
    write_task(tmp_path, "train", tmp_path, settings=settings, preset="fast")
    expected = {**settings, "images": ["a", "b\udcff"]}
    task = {"version": 1, "kind": "train", "folder": str(tmp_path), "settings": expected, "preset": "fast"}
    found = task_of(tmp_path)
    task["id"] = found["id"]
    assert found == task
    write_outcome(tmp_path, "failed", "why: \ud800 愛")
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (outcome["version"], outcome["state"], outcome["message"]) == (1, "failed", "why: \ud800 愛")
    assert outcome["task"] == found["id"] != ""
    with pytest.raises(ValueError, match="state = 'running'"):
        write_outcome(tmp_path, "running", "")


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", '{"version": 2, "kind": "train", "settings": {}}', "[" * 99999]
)
def test_a_task_that_can_not_be_read(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "task.json").write_text(content)
    assert task_of(tmp_path) == {}


def test_notes_on_a_full_disk(home: Path, page_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = page_run("pip", outcome="stopped")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    monkeypatch.setattr(os, "fsync", full)
    for act in (
        lambda: write_task(folder, "train", folder, settings={}, preset="paper"),
        lambda: write_outcome(folder, "failed", ""),
    ):
        with pytest.raises(StorageError, match="the disk is full"):
            act()
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


# ---------------------------------------------------------------- losses and logs


def test_losses_at_the_token_itself(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "whole" / "steps.jsonl").read_text().splitlines()]
    assert losses_of(trained / "whole") == [record["losses"][0] for record in records]


@pytest.mark.parametrize("estimator", ["spsa", "one-point"])
def test_losses_are_those_of_the_training(tmp_path: Path, tiny_model: StableDiffusion, estimator: str) -> None:
    result = train(tmp_path / "run", tiny_model, estimator=estimator, sample_every=0)
    assert losses_of(tmp_path / "run") == result.losses
    assert len(result.losses) == STEPS


@pytest.mark.parametrize(
    "line", ["", '{"step": 4, "lo', "5", "{}", '{"losses": []}', '{"losses": "x"}', '{"losses": [null]}']
)
def test_losses_up_to_a_damaged_line(home: Path, page_run: Callable[..., Path], line: str) -> None:
    run = page_run("pip") / "run"
    whole = losses_of(run)
    assert len(whole) == STEPS
    with (run / "steps.jsonl").open("a") as log:
        log.write(line + "\n")
    assert losses_of(run) == whole


def test_losses_of_what_has_not_begun(tmp_path: Path) -> None:
    assert losses_of(tmp_path) == []
    assert losses_of(tmp_path / "missing") == []


def test_the_end_of_a_log(tmp_path: Path) -> None:
    assert log_tail(tmp_path) == log_tail(tmp_path / "missing") == ""
    log = tmp_path / "log.txt"
    log.write_bytes(b"")
    assert log_tail(tmp_path) == ""
    log.write_text("one\ntwo\nthree\n")
    assert log_tail(tmp_path) == "one\ntwo\nthree"
    assert log_tail(tmp_path, 2) == "two\nthree"
    assert log_tail(tmp_path, 0) == ""
    log.write_bytes("10%\r50%\rfertig: 愛\r\n".encode() + b"\xff\n")
    assert log_tail(tmp_path, 2) == "fertig: 愛\n\ufffd"


def test_the_end_of_an_endless_log(tmp_path: Path) -> None:
    with (tmp_path / "log.txt").open("wb") as log:
        for i in range(20_000):
            log.write(f"line {i} {'愛' * 10}\n".encode())
        log.seek(3_000_000_000, os.SEEK_CUR)  # a hole: takes no room
        log.write(b"\nlast but one\nlast\n")
    with counted_reads() as reads:
        assert log_tail(tmp_path, 2) == "last but one\nlast"
    assert 0 < reads.bytes < 100_000
    (tmp_path / "log.txt").write_bytes(b"x" * 1_000_000)  # one line
    assert 1000 < len(log_tail(tmp_path)) < 100_000


def test_a_damaged_run_does_not_raise_other_errors(home: Path, page_run: Callable[..., Path]) -> None:
    """Bytes flipped anywhere in the small files: listing never fails, and finding says what it found."""
    folder = page_run("pip")
    files = [folder / name for name in ("task.json", "outcome.json", "run/config.json", "run/state.safetensors")]
    for file in files:
        whole = file.read_bytes()
        for place in range(0, min(len(whole), 600), 7):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
            runs = list_runs(home)
            assert len(runs) <= 1
            try:
                find_run(home, "pip")
            except ZoodipError:
                assert runs == []
        file.write_bytes(whole)
    assert only(home).state == "finished"
