"""Processes that are killed, interrupted twice, orphaned, or two at one run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.run import PICTURE, assert_same, config_of, train
from zoodip_core.base.errors import RunFolderError
from zoodip_core.base.events import Event, Started
from zoodip_core.base.locks import locked
from zoodip_core.cli.main import main
from zoodip_core.jobs.history import delete_run
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.train import journal
from zoodip_core.train.loop import resume_training, train_token
from zoodip_core.train.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
LIMIT = 600
on_posix = pytest.mark.skipif(os.name == "nt", reason="kills and forks as POSIX knows them")


def run_faults(*arguments: str) -> str:
    """What ``python -m tests.faults`` prints; it must find nothing wrong."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout


@pytest.mark.slow
@on_posix
@pytest.mark.parametrize(
    "more", [("--count", "3", "--steps", "10"), ("--count", "200"), ("--count", "50", "--two-stage")]
)
def test_kills_at_random_moments_cost_one_step_each_at_most(more: tuple[str, ...]) -> None:
    told = run_faults("kills", *more)
    assert "all went on and ended in the same bytes" in told


@on_posix
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--steps", "60"),
        ("--steps", "60", "--interpreters"),
    ],
)
def test_a_run_goes_on_after_every_step_in_another_process(arguments: tuple[str, ...]) -> None:
    assert "all the same bytes" in run_faults("resumes", *arguments)


# ---------------------------------------------------------------- the command line

SETTINGS = [
    "--token",
    "<pip>",
    "--init",
    "monster",
    "--resolution",
    "32",
    "--n",
    "2",
    "--preset",
    "paper",
    "--tau",
    "4",
]


@contextlib.contextmanager
def command_line(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A real process of the command line, gone at the end."""
    command = [sys.executable, "-m", "zoodip_core", "train", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def last(run: Path) -> int:
    return journal.last_step(run / "steps.jsonl")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("twice", id="ctrl-c-twice", marks=pytest.mark.slow),
        pytest.param("SIGTERM", marks=pytest.mark.slow),
        pytest.param("SIGKILL", marks=pytest.mark.slow),
    ],
)
@on_posix
def test_however_a_command_is_ended_its_run_goes_on(name: str, model: StableDiffusion, tmp_path: Path) -> None:
    """However slow this computer is just then, the run has not ended before; then it goes on to three steps more."""
    run, endless = tmp_path / "run", ["--steps", "100000", "--lr-schedule", "constant", "--save-every", "7"]
    with command_line("--images", PICTURE, *SETTINGS, *endless, "--output", run) as process:
        until(lambda: last(run) >= 9 or process.poll() is not None)
        if name == "twice":
            process.send_signal(signal.SIGINT)
            assert process.stderr
            assert any("Ctrl-C again" in line for line in process.stderr)  # two at once would be one
            process.send_signal(signal.SIGINT)
            error = process.stderr.read()
            process.wait(LIMIT)
        else:
            process.send_signal(getattr(signal, name))
            error = process.communicate(timeout=LIMIT)[1]
    codes = (1, 130) if name == "twice" else (-getattr(signal, name),)  # 1 where the first had its way already
    assert process.returncode in codes, error
    assert "Traceback" not in error
    taken = last(run)
    begun: list[int] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Started):
            begun.append(event.step)

    resume_training(run, {"steps": taken + 3}, model=model, on_event=on_event)
    assert begun == [taken]
    train(tmp_path / "whole", model, steps=taken + 3, lr_schedule="constant", save_every=7)
    for name in ("pip.safetensors", "steps.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# ---------------------------------------------------------------- two at one run


def test_a_second_one_is_refused_and_the_first_is_not_disturbed(
    model: StableDiffusion, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(run, model, stop_after=3, save_every=1)
    with locked(run):
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert main(["train", "--resume", str(run)]) == 2
        error = capfd.readouterr().err
        assert f"zoodip: error: {run}: another process is at work on this run; wait until it has ended, or" in error
        with pytest.raises(RunFolderError, match="another process is at work"):
            resume_training(run, model=model)
        with pytest.raises(RunFolderError, match="another process is at work"):
            delete_run(tmp_path, "run")
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    resume_training(run, model=model)
    assert_same(run, whole)


def test_two_that_start_at_once_in_one_folder_are_told_apart(model: StableDiffusion, tmp_path: Path) -> None:
    """Both found it free; the second meets the first's lock."""
    others: list[Exception] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Started):
            shutil.rmtree(tmp_path / "run" / "snapshots")
            (tmp_path / "run" / "config.json").unlink()  # as if the first had not come so far
            for path in ("state.safetensors", "steps.jsonl"):
                (tmp_path / "run" / path).unlink(missing_ok=True)
            with pytest.raises(RunFolderError, match="another process is at work") as caught:
                train_token(config_of(), tmp_path / "run", model=model)
            others.append(caught.value)

    train_token(config_of(), tmp_path / "run", model=model, on_event=on_event)
    assert len(others) == 1


@on_posix
def test_the_lock_of_a_killed_process_is_free(model: StableDiffusion, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    code = "import sys, time; from pathlib import Path; from zoodip_core.base.locks import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(run)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunFolderError, match="another process is at work"):
            resume_training(run, model=model)
        process.kill()
    resume_training(run, model=model)
    assert_same(run, whole)


def test_a_drive_that_knows_no_locks_is_used_without(
    model: StableDiffusion, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    def acquire(self: object, **_: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    train(tmp_path / "run", model, stop_after=3, save_every=1)
    resume_training(tmp_path / "run", model=model)
    assert_same(tmp_path / "run", whole)


def test_a_run_can_be_rewound_while_it_is_at_work(model: StableDiffusion, whole: Path, tmp_path: Path) -> None:
    from zoodip_core.train.replay import rewind

    run = Path(shutil.copytree(whole, tmp_path / "run"))
    with locked(run):
        assert rewind(run, 4).path.read_bytes() == (whole / "snapshots" / "step-00000004.safetensors").read_bytes()


def test_steps_are_told_while_the_run_is_at_work(model: StableDiffusion, tmp_path: Path) -> None:
    seen = []

    def on_event(event: Event) -> None:
        seen.append(RunFolder.open(tmp_path / "run").step() if (tmp_path / "run" / "config.json").exists() else -1)

    train_token(config_of(), tmp_path / "run", model=model, on_event=on_event)
    assert sorted(set(seen)) == list(range(-1, 13))
