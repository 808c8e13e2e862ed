"""A job in a process of its own: its events, its commands, and every way in which it may end."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.fake_page_host import LIMIT, until
from tests.small_models import SmallModels
from zoodip_core import Commands, TrainConfig, resume_training, train_token
from zoodip_core.base.errors import ImagesError
from zoodip_core.base.events import Progress
from zoodip_core.base.stopping import Stopped, check_stop
from zoodip_core.data.sheets import loss_curve
from zoodip_core.jobs import tasks, worker
from zoodip_core.jobs.environment import ROOT
from zoodip_core.jobs.job_folder import Task, write_task
from zoodip_core.jobs.pipes import Outbox, obey
from zoodip_core.jobs.tasks import check, telling, work
from zoodip_core.model.building import build
from zoodip_core.model.load import load_quantized
from zoodip_core.model.lora import load_lora
from zoodip_core.model.memory import CUDA_CONTEXT
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.train import loop
from zoodip_core.train.comparison import Comparison, write_comparison
from zoodip_core.train.run_folder import RunFolder

PIP = concepts.load("pip")
ENDLESS = 1_000_000
STEPS = 3

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")


def settings_of(**settings: Any) -> dict[str, Any]:
    """A job's settings: short steps, in which Subspace Gradient turns, and a step rate that knows no end."""
    return {
        "images": [str(PIP.images)],
        "captions": str(PIP.captions),
        "token": "<pip>",
        "initializer": "monster",
        "steps": STEPS,
        "n": 2,
        "batch": 1,
        "tau": 3,
        "lr_schedule": "constant",
        "sample_every": 0,
        "sample_steps": 2,
        **settings,
    }


def job_in(folder: Path, kind: str = "train", changes: dict[str, Any] | None = None, **settings: Any) -> Path:
    """The file of a job on a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_task(folder, kind, folder, settings=settings_of(**settings), preset="paper", changes=changes or {})


def uninterrupted(folder: Path, model: StableDiffusion, **settings: Any) -> bytes:
    """The token of a run in this process."""
    return train_token(
        TrainConfig.from_preset("tiny", **settings_of(**settings)), folder, model=model
    ).path.read_bytes()


def assert_goes_on(run: Path, folder: Path, model: StableDiffusion) -> None:
    """Check that a run which was cut off ends in the same bytes as one that was not: three steps further on."""
    assert not list(run.rglob("*.part"))
    steps = RunFolder.open(run).step() + 3
    resumed = resume_training(run, {"steps": steps}, model=model)
    assert resumed.finished
    assert resumed.path.read_bytes() == uninterrupted(folder, model, steps=steps)


def steps_in(run: Path) -> int:
    log = run / "steps.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


class Process:
    """A real worker.

    Args:
        file: its job file.
        code: Python to run in its place, which calls ``main``.
    """

    def __init__(self, file: Path, code: str = "") -> None:
        self.file, self.errors = file, file.parent / "errors.txt"
        self.events: list[dict[str, Any]] = []
        self.strange: list[bytes] = []
        """Lines that are no events."""
        program = ["-c", code] if code else ["-m", "zoodip_core.jobs.worker"]
        with self.errors.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, *program, str(file)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout
        for line in self.popen.stdout:
            try:
                event = json.loads(line)
                assert isinstance(event["event"], str)
                self.events.append(event)
            except (ValueError, TypeError, KeyError, AssertionError):
                self.strange.append(line)

    @property
    def run(self) -> Path:
        return self.file.parent / "run"

    def names(self) -> list[str]:
        """The kinds of its events in order, without messages."""
        return [event["event"] for event in self.events if event["event"] != "message"]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == name]

    def until(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for the event of this kind, or for so many of them; returns the last."""
        until(lambda: len(self.of(name)) >= count or self.popen.poll() is not None)
        assert len(self.of(name)) >= count, (self.names(), self.errors.read_text())
        return self.of(name)[count - 1]

    def write(self, data: bytes) -> None:
        assert self.popen.stdin
        self.popen.stdin.write(data)
        self.popen.stdin.flush()

    def command(self, name: str) -> None:
        self.write(json.dumps({"command": name}).encode() + b"\n")

    def end(self) -> int:
        """Wait for its end, and return the exit code."""
        code = self.popen.wait(LIMIT)
        self._reader.join(LIMIT)
        for pipe in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        return code


@contextlib.contextmanager
def started(*jobs: Path | tuple[Path, str]) -> Iterator[list[Process]]:
    """Real workers, all at once; none of them is left behind."""
    processes: list[Process] = []
    try:
        for job in jobs:
            processes.append(Process(job) if isinstance(job, Path) else Process(*job))
        yield processes
    finally:
        for process in processes:
            process.popen.kill()
            process.end()


# ---------------------------------------------------------------- a training in its own process

PRINTING = """
import os, subprocess, sys
from zoodip_core.jobs import worker
from zoodip_core.model import stable_diffusion

encode = stable_diffusion.encode_images

def printing(*arguments):
    print("a library prints")
    sys.stdout.write("half a line")
    sys.stdout.flush()
    os.write(1, b"what its C code prints\\n")
    subprocess.run([sys.executable, "-S", "-c", "print('what its child prints')"])
    return encode(*arguments)

stable_diffusion.encode_images = printing
sys.exit(worker.main())
"""
GARBAGE = [
    b"\x00\xff\xfe no text\n",
    b"no JSON\n",
    b"3\n",
    b"null\n",
    b'["stop"]\n',
    b'{"command": ["stop"]}\n',
    b'{"command": "stop it"}\n',
    b'{"stop": "command"}\n',
    b"[" * 4000 + b"\n",
    b"x" * 10_000 + b"\n",
    b"\n",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Process:
    """A worker that trained to the end, whose libraries printed all the time, and who was told nonsense."""
    with started((job_in(tmp_path_factory.mktemp("trained") / "pip"), PRINTING)) as (process,):
        process.write(b"".join(GARBAGE))
        process.end()
    return process


def test_a_training_tells_its_events_in_order(trained: Process) -> None:
    assert trained.popen.returncode == 0, trained.errors.read_text()
    order = ["checked", "started", *["progress"] * STEPS, "saved", "shown", "ended"]
    assert trained.names() == order
    (begun,), (ended,) = trained.of("started"), trained.of("ended")
    assert (begun["step"], begun["steps"], begun["losses"]) == (0, STEPS, [])
    assert [event["step"] for event in trained.of("progress")] == [1, 2, 3]
    assert (ended["state"], ended["step"]) == ("finished", STEPS)
    assert Path(ended["embedding"]) == trained.run / "pip.safetensors"
    assert Path(trained.of("saved")[0]["path"]).is_file()
    with Image.open(trained.of("shown")[0]["path"]) as picture:
        assert picture.height > 3 * 144  # references, word, token


def test_a_training_in_a_worker_ends_in_the_same_bytes(
    trained: Process, tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "loss_curve", loss_curve)  # drawn there, and so here
    assert (trained.run / "pip.safetensors").read_bytes() == uninterrupted(tmp_path / "here", tiny_model)
    for name in ("steps.jsonl", "state.safetensors", "loss.png"):
        assert (trained.run / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


def test_what_libraries_print_goes_to_the_log(trained: Process) -> None:
    log = trained.errors.read_text(errors="replace")
    assert not trained.strange
    for text in ("a library prints", "half a line", "what its C code prints", "what its child prints"):
        assert text in log


def test_nonsense_from_the_page_is_noted_and_ignored(trained: Process) -> None:
    log = trained.errors.read_text(errors="replace")
    assert trained.popen.returncode == 0
    assert log.count("not a command") >= len(GARBAGE)


def test_a_training_is_checked_first(trained: Process) -> None:
    (checked,) = trained.of("checked")
    assert (checked["family"], checked["images"], checked["captions"], checked["forwards"]) == ("tiny", 6, 6, 3)
    assert checked["settings"] == RunFolder.open(trained.run).config.to_dict()


# ---------------------------------------------------------------- ways to end it


def by_command(process: Process) -> None:
    process.command("stop")


def by_signal(process: Process) -> None:
    process.popen.send_signal(signal.SIGTERM)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(by_command, marks=pytest.mark.slow),
        pytest.param(by_signal, marks=[pytest.mark.slow, on_posix]),
    ],
)
def stopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Process:
    """An endless training that was asked for a save and samples, and then ended.

    By silence as well, which is how a page ends that was killed, below. The page's own test in a browser ends one by
    command, and goes on with it.
    """
    with started(job_in(tmp_path_factory.mktemp("stopped") / "pip", steps=ENDLESS)) as (process,):
        process.until("progress", 2)
        process.command("save")
        process.until("saved")
        process.command("sample")
        process.until("sampled")
        request.param(process)
        process.popen.wait(LIMIT)
    return process


def test_however_it_is_ended_the_state_is_saved(stopped: Process) -> None:
    ended, step = stopped.events[-1], int(load_file(stopped.run / "state.safetensors")["step"])
    assert stopped.popen.returncode == 1
    assert stopped.names()[-2:] == ["saved", "ended"]
    assert (ended["state"], ended["step"]) == ("stopped", step)
    assert stopped.of("saved")[-1]["step"] == step == steps_in(stopped.run)
    assert Path(ended["embedding"]).is_file()
    assert not (stopped.run / "pip.safetensors").exists()
    assert not (stopped.file.parent / "before_after.png").exists()


def test_a_save_and_samples_are_made_when_asked(stopped: Process) -> None:
    saved, sampled = stopped.of("saved")[0], stopped.of("sampled")[0]
    assert saved["step"] < stopped.of("saved")[-1]["step"]
    assert Path(saved["path"]).is_file()
    with Image.open(sampled["path"]) as picture:
        assert picture.width > 4 * 144
    assert (len(stopped.of("saved")), len(stopped.of("sampled"))) == (2, 1)


def test_a_worker_that_was_ended_goes_on_to_the_same_bytes(
    stopped: Process, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    assert_goes_on(stopped.run, tmp_path / "whole", tiny_model)


PARENT = """
import json, sys, threading
from pathlib import Path
from tests.fake_page_host import FakePageHost
from zoodip_core.jobs.environment import Trainer
from zoodip_core.jobs.queue import Jobs

jobs = Jobs(FakePageHost(Path(sys.argv[1])), lambda: Trainer(Path(sys.executable), False, ""), lambda job: "")
jobs.submit("train", Path(sys.argv[1]), "<pip>", settings=json.loads(sys.argv[2]), preset="paper")
threading.Event().wait()
"""


@pytest.mark.slow
@on_posix
def test_a_worker_whose_parent_was_killed_saves_and_is_gone(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """The real thing: the page's process is killed, and can tell the worker nothing any more."""
    settings = json.dumps(settings_of(steps=ENDLESS))
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), settings], cwd=ROOT)
    workers: list[psutil.Process] = []
    try:
        until(lambda: steps_in(tmp_path / "run") >= 2 or parent.poll() is not None)
        workers = psutil.Process(parent.pid).children()
        assert len(workers) == 1
        parent.kill()
        parent.wait(LIMIT)
        taken = steps_in(tmp_path / "run")
        until(lambda: is_gone(workers[0]))
    finally:
        for process in [*workers, parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        parent.wait(LIMIT)
    step = RunFolder.open(tmp_path / "run").step()
    assert step == steps_in(tmp_path / "run")
    assert step - taken <= 10  # 30 forwards: some tenths of a second, where others keep the computer busy
    assert_goes_on(tmp_path / "run", tmp_path / "whole", tiny_model)


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# ---------------------------------------------------------------- what goes wrong

QUICK = """
import sys
from zoodip_core.cli import main as cli
from zoodip_core.data.sheets import loss_curve
from zoodip_core.jobs import tasks, worker

cli.quiet_libraries = lambda: None  # which loads them, for nothing here
"""
FAULTY = f"""
{QUICK}
def faulty(*arguments):
    raise ZeroDivisionError("a fault of the program")

tasks.check = faulty
sys.exit(worker.main())
"""
WRONG = f"{QUICK}\nsys.exit(worker.main())"
NOISY = """
import runpy, sys

class Noisy:
    def find_spec(self, name, *more):
        if name in ("torch", "diffusers"):
            sys.stdout.write("half a line of " + name)
            sys.stdout.flush()

sys.meta_path.insert(0, Noisy())
runpy.run_module("zoodip_core.jobs.worker", run_name="__main__")
"""
"""Libraries print while they are imported, before anything is trained."""
FULL = f"""
import resource

resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
{NOISY}
"""
"""No file can grow beyond 9 kB, which the journal does after some dozens of them."""


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Process]:
    """Workers that failed, each in its way."""
    home = tmp_path_factory.mktemp("failed")
    jobs: dict[str, Path | tuple[Path, str]] = {
        "user": (job_in(home / "user", model="/no/such/model"), WRONG),
        "fault": (job_in(home / "fault"), FAULTY),
    }
    if os.name == "posix":
        jobs["full"] = (job_in(home / "full", steps=ENDLESS, save_every=2), FULL)
    else:
        jobs["full"] = (job_in(home / "full"), NOISY)
    with started(*jobs.values()) as processes:
        for process in processes:
            process.popen.wait(LIMIT)
    return dict(zip(jobs, processes, strict=True))


@pytest.mark.slow
def test_an_error_of_the_user_is_told_and_writes_nothing(failed: dict[str, Process]) -> None:
    process = failed["user"]
    assert process.popen.returncode == 2
    assert process.names() == ["failed"]
    assert process.events[-1]["fault"] is False
    assert "/no/such/model" in process.events[-1]["error"]
    assert "Traceback" not in process.errors.read_text(errors="replace")
    assert sorted(path.name for path in process.file.parent.iterdir()) == ["errors.txt", "task.json"]


@pytest.mark.slow
def test_what_is_printed_while_libraries_are_imported_stands_before_no_event(failed: dict[str, Process]) -> None:
    process = failed["full"]
    assert (process.strange, process.names()[0]) == ([], "checked")
    assert "half a line of torch" in process.errors.read_text()


@pytest.mark.slow
def test_a_fault_of_the_program_leaves_its_traceback_in_the_log(failed: dict[str, Process]) -> None:
    process = failed["fault"]
    assert process.popen.returncode == 70
    told = {"event": "failed", "error": "ZeroDivisionError: a fault of the program", "fault": True}
    assert process.events == [told]
    log = process.errors.read_text()
    assert "Traceback" in log
    assert "in faulty" in log


@pytest.mark.slow
@on_posix
def test_a_full_disk_is_told_and_the_last_saved_state_stands(
    failed: dict[str, Process], tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    process = failed["full"]
    assert process.popen.returncode == 2, process.errors.read_text()
    told = process.events[-1]
    assert (told["event"], told["fault"]) == ("failed", False)
    assert told["error"].startswith(f"could not write {process.run / 'steps.jsonl'}: the file would be larger than ")
    assert process.of("saved")[-1]["step"] == RunFolder.open(process.run).step()
    assert_goes_on(process.run, tmp_path / "whole", tiny_model)


def test_without_a_job_it_says_what_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["worker"])
    assert worker.main() == 2
    assert "python -m zoodip_core.jobs.worker JOB.json" in capsys.readouterr().err


# ---------------------------------------------------------------- the same, in this process


def done(
    file: Path, monkeypatch: pytest.MonkeyPatch, model: StableDiffusion | None = None, commands: Commands | None = None
) -> tuple[int, list[dict[str, Any]]]:
    """Do a job here, on a model that is there; returns the exit code and the events."""
    if model:
        monkeypatch.setattr(tasks, "load_model", lambda config, on_event=None: model)
    pipe = io.BytesIO()
    code = work(file, Outbox(pipe), commands or Commands())
    return code, [json.loads(line) for line in pipe.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a job file"),
        ("{", "is not a job file"),
        ("[" * 100_000, "is not a job file"),
        ("\x00", "is not a job file"),
        ("[]", "is not a job file"),
        ("{}", "is not a job file"),
        ('{"version": 1, "kind": "train"}', "is not a job file"),
        ('{"version": 1, "kind": "train", "folder": 3}', "is not a job file"),
        ('{"version": 1, "kind": "train", "folder": "x", "settings": 3}', "is not a job file"),
        ('{"version": 1, "kind": ["train"], "folder": "x"}', "is not a job file"),
        ('{"version": 2, "kind": "train", "folder": "x"}', "newer ZOODiP; update"),
        ('{"version": 1, "kind": "dance", "folder": "x"}', "of another version"),
    ],
)
def test_a_job_file_that_can_not_be_read(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "task.json").write_text(text)
    code, (event,) = done(tmp_path / "task.json", monkeypatch)
    assert code == 2
    assert (event["event"], event["fault"]) == ("failed", False)
    assert str(tmp_path / "task.json") in event["error"]
    assert words in event["error"]
    assert "start the job again" in event["error"]


def test_a_job_file_that_is_not_text_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "task.json").write_bytes(b"\xff\xfe\xff")
    for file in (tmp_path / "task.json", tmp_path / "missing.json"):
        code, (event,) = done(file, monkeypatch)
        assert (code, event["event"], event["fault"]) == (2, "failed", False)
        assert str(file) in event["error"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"initializer": "no word at all"}, "is 9 tokens"),
        ({"token": "monster"}, "is already a word"),
        ({"images": ["/no/such/folder"]}, "does not exist"),
        ({"model": "/no/such/model"}, "/no/such/model"),
        ({"steps": 0}, "steps = 0"),
        ({"steps": "many"}, "steps = 'many'"),
        ({"stepz": 3}, "did you mean steps?"),
        ({"weights": "int3"}, "int3"),
    ],
)
def test_wrong_settings_are_told_and_nothing_is_written(
    settings: dict[str, Any], words: str, tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, events = done(job_in(tmp_path, **settings), monkeypatch, tiny_model)
    assert code == 2
    assert (events[-1]["event"], events[-1]["fault"]) == ("failed", False)
    assert words in events[-1]["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["task.json"]


def test_a_check_loads_no_network_and_tells_what_a_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*arguments: Any, device: torch.device, **settings: Any) -> Any:
        assert device.type == "meta", "a network was loaded"
        return build(*arguments, device=device, **settings)

    monkeypatch.setattr("zoodip_core.model.quantized.build", empty)
    with pytest.raises(AssertionError, match="a network was loaded"):
        _ = load_quantized("tiny").text_encoders
    code, (checked, ended) = done(job_in(tmp_path, "check", batch=0), monkeypatch)
    assert (code, ended) == (0, {"event": "ended", "state": "finished"})
    assert (checked["model"], checked["family"], checked["device"] in ("cpu", "cuda")) == ("tiny", "tiny", True)
    assert (checked["images"], checked["captions"], checked["forwards"], checked["warnings"]) == (6, 6, 3, [])
    assert 1e6 < checked["memory_in_turn"] < checked["memory"] < 1e10
    assert [path.name for path in tmp_path.iterdir()] == ["task.json"]


def test_a_check_counts_captions_and_warns(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (90, 99 * number, 9)).save(images / f"{number}.png")
    (images / "broken.png").write_bytes(b"no picture")
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"0.png": ["a {}", "a {} again"], "1.png": "a {}"}))
    settings = settings_of(images=(str(images),), captions=str(captions), dtype="bfloat16", mu=1e-3, flip=True)
    found = check(TrainConfig.from_preset("tiny", **settings))
    assert found["images"] == 4
    assert found["captions"] == 6
    assert ["broken.png" in line or "mu" in line for line in found["warnings"]] == [True, True]


def test_a_check_of_all_that_there_may_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide pictures and masks: a field that the protocol does not know would end the worker."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (96, 48), (90, 99, 9)).save(images / "wide.png")
    mask = Image.new("L", (96, 48), 0)
    mask.paste(255, (24, 0, 72, 48))
    mask.save(images / "wide.mask.png")
    code, (checked, _) = done(job_in(tmp_path, "check", images=(str(images),), captions=None), monkeypatch)
    assert code == 0
    assert checked["sizes"].startswith("1 picture: 1 at ")
    assert checked["masks"] == ["masks for 1 of 1 picture"]


def test_a_check_on_a_card_touches_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # anything more that is asked of it fails here
    found = check(TrainConfig.from_preset("tiny", **settings_of()))
    assert found["device"] == "cuda"
    assert found["memory_in_turn"] > CUDA_CONTEXT


def test_a_check_refuses_what_a_training_would(tmp_path: Path) -> None:
    with pytest.raises(ImagesError):
        check(TrainConfig.from_preset("tiny", **settings_of(images=(str(tmp_path),))))


def test_the_preset_is_the_models_and_the_tasks(tmp_path: Path) -> None:
    file = tmp_path / "task.json"

    def config(**more: Any) -> TrainConfig:
        settings = {"images": ["x"], "token": "<a>", "initializer": "dog", **more.pop("settings", {})}
        file.write_text(
            json.dumps({"version": 1, "kind": "train", "folder": str(tmp_path), "settings": settings, **more})
        )
        return tasks.settings_of(Task.read(file))

    assert (config().steps, config().directions, config().averaging) == (900, "adaptive", 0.1)
    assert config(preset="fast").steps == 300
    assert config(preset="careful").steps == 2700
    assert (config(preset="paper").steps, config(preset="paper").directions) == (4500, "normal")
    assert config(preset="fast", settings={"steps": 7, "n": 3}).steps == 7
    assert config(preset="paper", settings={"weights": "int4"}).mu == 1e-2
    assert (config().sample_every, config(settings={"steps": 7}).sample_every) == (90, 1)
    assert config(settings={"sample_every": 0}).sample_every == 0


def test_weights_are_learned_as_the_preset_that_does_so_says(tmp_path: Path) -> None:
    """Whatever preset the token is learned with, and by the model's family."""
    xl = SmallModels(tmp_path).write("sdxl")

    def config(preset: str, weights: bool, **settings: Any) -> TrainConfig:
        given = {"images": ["x"], "token": "<a>", "initializer": "dog", **settings}
        file = write_task(tmp_path, "train", tmp_path, settings=given, preset=preset, learn_weights=weights)
        return tasks.settings_of(Task.read(file))

    assert [config(preset, False).lora_rank for preset in ("default", "two-stage")] == [0, 4]
    assert [(each.lora_rank, each.steps) for each in (config(preset, True) for preset in ("fast", "two-stage"))] == [
        (4, 300),
        (4, 900),
    ]
    assert config("default", True, model=str(xl)).lora_rank == config("two-stage", False, model=str(xl)).lora_rank == 2
    assert config("default", True, lora_rank=8, lora_mu=0.2).lora_rank == 8
    assert config("paper", True, lora_mu=0.2).lora_mu == 0.2


@pytest.mark.parametrize("kind", ["check", "train"])
def test_a_stop_before_the_first_step_leaves_nothing(
    kind: str, tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands()
    commands.stop()
    code, events = done(job_in(tmp_path, kind), monkeypatch, tiny_model, commands)
    assert code == 1
    assert events[-1] == {"event": "ended", "state": "stopped"}
    assert [path.name for path in tmp_path.iterdir()] == ["task.json"]


def stopped_after(step: int, folder: Path, model: StableDiffusion) -> None:
    """Leave a run in ``folder``, stopped at a step."""
    commands = Commands()

    def on_event(event: Any) -> None:
        if isinstance(event, Progress) and event.step == step:
            commands.stop()

    config = TrainConfig.from_preset("tiny", **settings_of(steps=5, save_every=1))
    train_token(config, folder, model=model, on_event=on_event, commands=commands)


@pytest.mark.parametrize("place", ["run", "."])
def test_a_run_goes_on_in_its_folder_or_is_it(
    place: str, tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page's run lies in its job's folder, one of the command line is that folder."""
    stopped_after(2, tmp_path / place, tiny_model)
    monkeypatch.setattr(tasks, "before_after", lambda *arguments: None)
    code, events = done(job_in(tmp_path, "resume", {"steps": 6}), monkeypatch, tiny_model)
    assert code == 0
    (begun,) = (event for event in events if event["event"] == "started")
    assert (begun["step"], begun["steps"], len(begun["losses"])) == (2, 6, 2)
    assert [event["step"] for event in events if event["event"] == "progress"] == [3, 4, 5, 6]
    token = (tmp_path / place / "pip.safetensors").read_bytes()
    assert token == uninterrupted(tmp_path / "whole", tiny_model, steps=6)
    assert (tmp_path / "run").exists() == (place == "run")


def test_there_is_nothing_to_resume_with(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("resume", "show"):
        code, (event,) = done(job_in(tmp_path, kind), monkeypatch, tiny_model)
        assert (code, event["fault"]) == (2, False)
        assert "is not a run folder" in event["error"]


# ---------------------------------------------------------------- the pictures before and after


def test_the_newest_token_of_an_unfinished_run_is_drawn(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(2, tmp_path / "run", tiny_model)
    drawn: list[Any] = []
    monkeypatch.setattr(tasks, "before_after", lambda *arguments: drawn.append(arguments))
    code, events = done(job_in(tmp_path, "show"), monkeypatch, tiny_model)
    ((model, config, (embedding,), path, lora),) = drawn
    assert (code, model, config.steps, path, lora) == (0, tiny_model, 5, tmp_path / "before_after.png", None)
    assert embedding.metadata["steps"] == "2"
    assert events[-2:] == [{"event": "shown", "path": str(path)}, {"event": "ended", "state": "finished"}]


def test_a_training_of_weights_tells_their_files_and_draws_with_them(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(tasks, "before_after", lambda *arguments: drawn.append(arguments))
    monkeypatch.setattr(tasks, "load_model", lambda config, *_: tiny_model)
    code, events = done(job_in(tmp_path, lora_rank=1, lora_share=0.5, steps=4, save_every=1), monkeypatch)
    run = tmp_path / "run"
    assert code == 0, events[-1]
    assert [event.get("lora") for event in events if event["event"] == "saved"] == [
        None,
        *(str(run / "loras" / f"step-0000000{step}.safetensors") for step in (2, 3, 4, 4)),
    ]
    ended = events[-1]
    assert (ended["embedding"], ended["lora"]) == tuple(str(run / f"pip{of}.safetensors") for of in ("", "-lora"))

    def is_drawn_with(file: Path) -> bool:
        layers = drawn[-1][-1].layers
        return all(torch.equal(up, layers[name][0]) for name, (up, _) in load_lora(file).layers.items())

    assert is_drawn_with(Path(ended["lora"]))
    for name in ("pip", "snapshots/step-00000004"):  # as of a run that was cut off before its last step
        (run / f"{name}.safetensors").unlink()
    assert done(job_in(tmp_path, "show"), monkeypatch)[0] == 0
    assert is_drawn_with(run / "loras" / "step-00000003.safetensors")
    assert not is_drawn_with(Path(ended["lora"]))


def test_a_run_without_a_token_can_not_be_drawn(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder.create(tmp_path / "run", TrainConfig.from_preset("tiny", **settings_of()))
    code, events = done(job_in(tmp_path, "show"), monkeypatch, tiny_model)
    assert code == 2
    assert "no token to draw yet" in events[-1]["error"]


@pytest.mark.parametrize(
    ("error", "code", "event"),
    [
        (MemoryError(), 2, {"event": "failed", "fault": False}),
        (ZeroDivisionError("fault"), 70, {"event": "failed", "error": "ZeroDivisionError: fault", "fault": True}),
        (Stopped(), 1, {"event": "ended", "state": "stopped"}),
    ],
)
def test_pictures_that_can_not_be_drawn(
    error: BaseException,
    code: int,
    event: dict[str, Any],
    tiny_model: StableDiffusion,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If they are what was asked for, that is a failure; a token that was learned is there without them."""

    def fails(*_arguments: Any) -> None:
        raise error

    monkeypatch.setattr(tasks, "before_after", fails)
    trained, events = done(job_in(tmp_path, "train"), monkeypatch, tiny_model)
    assert (trained, events[-1]["state"], events[-1]["step"]) == (0, "finished", STEPS)
    assert (tmp_path / "run" / "pip.safetensors").is_file()
    warnings = [event["text"] for event in events if event["event"] == "message" and event["warning"]]
    assert len(warnings) == (0 if isinstance(error, Stopped) else 1)
    assert all(text.startswith("no pictures before and after: ") for text in warnings)

    shown, events = done(job_in(tmp_path, "show"), monkeypatch, tiny_model)
    assert shown == code
    assert events[-1].items() >= event.items()


def test_drawing_is_stopped_as_well(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(2, tmp_path / "run", tiny_model)
    commands = Commands()

    def drawing(*_arguments: Any) -> None:
        check_stop()
        commands.stop()
        check_stop()
        raise AssertionError("drawn to the end")

    monkeypatch.setattr(tasks, "before_after", drawing)
    code, events = done(job_in(tmp_path, "show"), monkeypatch, tiny_model, commands)
    assert (code, events[-1]) == (1, {"event": "ended", "state": "stopped"})


# ---------------------------------------------------------------- runs side by side


def comparison_of(folder: Path, *runs: Path, **more: Any) -> Path:
    """The file of a job that compares runs."""
    place = folder / ".comparison"
    place.mkdir(exist_ok=True)
    return write_task(place, "compare", place, runs=[str(run) for run in runs], **more)


def aligned_runs(folder: Path, model: StableDiffusion, *strengths: float, **more: Any) -> list[Path]:
    """Finished runs of one token, of which the second is a page's."""
    runs = []
    for number, strength in enumerate(strengths):
        run = folder / f"pip-{number}"
        settings = settings_of(steps=1, target_prompt="a {} in the snow", alignment=strength, **more)
        train_token(TrainConfig.from_preset("tiny", **settings), run / "run" if number == 1 else run, model=model)
        runs.append(run)
    return runs


def test_runs_are_drawn_side_by_side(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The less aligned first, below the word that they began as; under the names of the runs."""
    runs = aligned_runs(tmp_path, tiny_model, 1.0, 0.0)
    stopped_after(2, tmp_path / "newest", tiny_model)
    before = {run: sorted(run.rglob("*")) for run in runs}
    asked: list[Comparison] = []

    def drawn(model: Any, comparison: Comparison, path: Path) -> None:
        asked.append(comparison)
        write_comparison(model, dataclasses.replace(comparison, num_inference_steps=1), path)

    monkeypatch.setattr(tasks, "write_comparison", drawn)
    code, events = done(comparison_of(tmp_path, *runs, tmp_path / "newest"), monkeypatch, tiny_model)
    sheet = tmp_path / ".comparison" / "comparison.png"
    assert (code, events[-2:]) == (
        0,
        [{"event": "shown", "path": str(sheet)}, {"event": "ended", "state": "finished"}],
    )
    (comparison,) = asked
    assert comparison.labels == ["<pip>\nalignment 0\npip-1", "<pip>\nalignment 0\nnewest", "<pip>\nalignment 1\npip-0"]
    assert comparison.compared[1].embedding.metadata["steps"] == "2"
    assert (comparison.text, comparison.word, list(comparison.seeds)) == ("a {} in the snow", "monster", [0, 1, 2, 3])
    with Image.open(sheet) as picture:
        assert picture.height > 4 * 240
    assert {run: sorted(run.rglob("*")) for run in runs} == before


def test_runs_are_compared_with_their_weights_and_another_prompt(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = aligned_runs(tmp_path, tiny_model, 0.0, lora_rank=1)
    runs += aligned_runs(tmp_path / "other", tiny_model, 0.0, initializer="star")
    asked: list[Comparison] = []
    monkeypatch.setattr(tasks, "write_comparison", lambda _model, comparison, _path: asked.append(comparison))
    assert done(comparison_of(tmp_path, *runs, prompt="a {} at night", until=[1, 0.7]), monkeypatch, tiny_model)[0] == 0
    assert asked[0].text == "a {} at night"
    assert [(each.lora is not None, each.until) for each in asked[0].compared] == [
        *((True, until) for until in (1.0, 0.7)),
        *((False, until) for until in (1.0, 0.7)),
    ]
    assert asked[0].word == ""  # they began as different words


def test_a_comparison_that_can_not_be_drawn_keeps_the_one_before(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = aligned_runs(tmp_path, tiny_model, 0.0)
    job = comparison_of(tmp_path, *runs, prompt="no place")
    (tmp_path / ".comparison" / "comparison.png").write_bytes(b"before")
    code, events = done(job, monkeypatch, tiny_model)
    assert code == 2
    assert "has no place for the tokens" in events[-1]["error"]
    commands = Commands()
    commands.stop()
    code, events = done(comparison_of(tmp_path, *runs), monkeypatch, tiny_model, commands)
    assert (code, events[-1]) == (1, {"event": "ended", "state": "stopped"})
    code, events = done(comparison_of(tmp_path, tmp_path / "nothing"), monkeypatch, tiny_model)
    assert (code, events[-1]["fault"]) == (2, False)
    assert (tmp_path / ".comparison" / "comparison.png").read_bytes() == b"before"


# ---------------------------------------------------------------- the two pipes


class ClosedPipe(io.RawIOBase):
    """Its other end is gone."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise BrokenPipeError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise OSError(5, "Input/output error")


def test_events_that_nobody_takes_end_no_training(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    out = Outbox(ClosedPipe())  # type: ignore[arg-type]
    config = TrainConfig.from_preset("tiny", **settings_of())
    assert train_token(config, tmp_path / "run", model=tiny_model, on_event=telling(out)).finished
    closed = io.BytesIO()
    closed.close()
    Outbox(closed).send("message", text="", warning=False)


def test_an_event_is_a_line_of_ascii_whatever_is_in_it() -> None:
    pipe = io.BytesIO()
    text = "two\nlines, \u0000, \u2028, \ud800, 你好"
    Outbox(pipe).send("message", text=text, warning=False)
    assert len(pipe.getvalue().splitlines()) == 1
    assert pipe.getvalue().isascii()
    assert json.loads(pipe.getvalue())["text"] == text


def test_events_of_several_threads_do_not_mix() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            for part in (data[:9], data[9:]):
                super().write(part)
                time.sleep(0.0001)  # another thread's turn
            return len(data)

    pipe = Slow()
    out = Outbox(pipe)

    def send() -> None:
        for _ in range(50):
            out.send("message", text="x" * 99, warning=False)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [json.loads(line)["text"] for line in pipe.getvalue().splitlines()] == ["x" * 99] * 200


def test_commands_are_obeyed_in_the_middle_of_nonsense() -> None:
    for name in ("save", "sample", "stop"):
        commands = Commands()
        lines = b"".join(GARBAGE) + json.dumps({"command": name}).encode() + b"\n" + b"".join(GARBAGE)
        taken: list[bool] = []

        class Watched(io.BytesIO):
            def readline(self, size: int | None = -1, /) -> bytes:
                line = super().readline(size)
                if not line:
                    taken.append(commands.stopping)  # noqa: B023 - called within this turn
                return line

        obey(Watched(lines), commands)
        assert (commands.take_save(), commands.take_sample(), taken) == (
            name == "save",
            name == "sample",
            [name == "stop"],
        )
        assert commands.stopping  # the pipe has ended


def test_a_pipe_that_breaks_is_a_stop_too() -> None:
    commands = Commands()
    with contextlib.suppress(OSError):
        obey(ClosedPipe(), commands)  # type: ignore[arg-type]
    assert commands.stopping


def test_nobody_else_reads_what_the_worker_is_told() -> None:
    """On Windows a library that is loaded while a thread waits for standard input may wait for that as well."""
    code = (
        "import sys; from zoodip_core.jobs.pipes import own_stdin; own = own_stdin(); "
        "print(repr(sys.stdin.read()), own.readline())"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, input=b"save\n", stdout=subprocess.PIPE, check=True)
    assert ran.stdout.split() == [b"''", b"b'save\\n'"]
