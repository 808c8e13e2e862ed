"""Disks that run full or turn read-only at any operation, and power cuts at any."""

from __future__ import annotations

import errno
import itertools
import time
from pathlib import Path

import pytest

from tests.faults.disk import Disk, Image, lay_out
from tests.faults.run import assert_same, config_of, train
from zoodip_core.base.errors import StorageError
from zoodip_core.base.events import Event, Progress
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.train import journal
from zoodip_core.train.loop import resume_training, train_token
from zoodip_core.train.run_folder import RunFolder

SHORT = {"steps": 5, "tau": 2, "save_every": 3}


@pytest.fixture(scope="module")
def short(model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("short") / "run", model, **SHORT).path.parent


def finish(run: Path, model: StableDiffusion) -> None:
    """Resume a run, or start it if it never began."""
    if (run / "config.json").exists():
        resume_training(run, model=model)
    else:
        train_token(config_of(**SHORT), run, model=model)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        pytest.param(errno.EROFS, "the file system is read-only; choose another folder", marks=pytest.mark.slow),
        pytest.param(errno.EACCES, "permission denied", marks=pytest.mark.slow),
        pytest.param(errno.EIO, "", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_fails_at_any_operation_costs_one_step(
    error: int, advice: str, stride: int, short: Path, model: StableDiffusion, tmp_path: Path
) -> None:
    tried, told, kept = 0, 0, 0
    for good in itertools.count(step=stride):
        run = tmp_path / f"{good}" / "run"
        run.parent.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal, "time", Clock())  # stands still: on a slow machine a step would be synced on its own
            disk = Disk(run.parent, patch, good, error)
            refusal, taken = refused(run, model)
        assert not list(run.parent.rglob("*.part"))
        if refusal is not None:
            told += 1
            assert str(run) in str(refusal)
            assert advice in str(refusal)
        if (run / "config.json").exists():
            kept += 1
            assert RunFolder.open(run).step() == taken
        finish(run, model)
        assert_same(run, short)
        if len(disk.operations) <= good:  # it had room for all
            break
        tried += 1
    print(f"\nfailed at {tried} of {good} operations; {told} were told of, {kept} left a run to go on with")
    assert good > 60
    assert told >= tried - 1  # that the last one did not reach the disk harms nothing


def refused(run: Path, model: StableDiffusion) -> tuple[StorageError | None, int]:
    """Train; returns what was refused, if anything, and the steps taken."""
    steps = [0]

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            steps.append(event.step)

    try:
        train_token(config_of(**SHORT), run, model=model, on_event=on_event)
    except StorageError as error:
        return error, steps[-1]
    return None, steps[-1]


class Clock:
    """In place of the time module, for a journal."""

    def __init__(self) -> None:
        self.now = 1e6

    def monotonic(self) -> float:
        return self.now


@pytest.mark.slow
@pytest.mark.parametrize(
    "seconds",
    [(0.9, 0.2), *(pytest.param(each, marks=pytest.mark.slow) for each in ((0.03,), (0.4,), (3.0,)))],
)
def test_a_power_cut_at_any_operation_takes_a_second_or_a_step(
    seconds: tuple[float, ...], whole: Path, model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was not synced is dropped, content and names."""
    clock, ended = Clock(), [0.0]
    monkeypatch.setattr(journal, "time", clock)
    durations = itertools.cycle(seconds)
    images: list[tuple[Image, int, float]] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            clock.now += next(durations)
            ended.append(clock.now)
        look()

    def look() -> None:
        images.append((disk.durable(), len(ended) - 1, clock.now))

    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(tmp_path, patch)
        disk.on_operation = look
        train_token(config_of(save_every=100), tmp_path / "run", model=model, on_event=on_event)
    distinct: dict[tuple[tuple[Path, bytes], ...], tuple[Image, int]] = {}
    for image, taken, now in images:
        known = sum(len(content.splitlines()) for path, content in image.items() if path.name == "steps.jsonl")
        lost = [step for step in range(known + 1, taken + 1) if now - ended[step] > max(1.0, *seconds)]
        assert not lost, f"at {now}: steps {lost} of {taken}"
        distinct.setdefault(tuple(sorted(image.items())), (image, known))
    print(f"\n{len(images)} moments, {len(distinct)} different disks")
    assert len(distinct) > 6
    for i, (image, known) in enumerate(distinct.values()):
        lay = tmp_path / "cuts" / str(i)
        lay_out(image, lay)
        run = lay / "run"
        if not (run / "config.json").exists():  # it had not begun
            assert known == 0
            train_token(config_of(save_every=100), run, model=model)
        else:
            assert RunFolder.open(run).step() >= known
            resume_training(run, model=model)
        for name in ("pip.safetensors", "steps.jsonl"):
            assert (run / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_clock_that_jumps_changes_nothing(
    short: Path, model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = itertools.cycle([0.0, 4e9, -1e9, 86_400.0])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    train(tmp_path / "run", model, stop_after=2, **SHORT)
    resume_training(tmp_path / "run", model=model)
    assert_same(tmp_path / "run", short)
