"""Kills and resumes by the hundred; prints figures, exits with 1 at the first run that is not as if undisturbed.

    python -m tests.faults kills --count 200
    python -m tests.faults kills --count 50 --two-stage
    python -m tests.faults resumes --steps 60
    python -m tests.faults resumes --steps 60 --interpreters

The model is loaded once; each run is a process forked from that, or with --interpreters one started anew.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults.run import FILES, config_of, stopping
from tests.once import remembering
from zoodip_core.base.events import Commands
from zoodip_core.base.stopping import check_stop
from zoodip_core.model import memory
from zoodip_core.model.load import load_quantized
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.train import loop
from zoodip_core.train.draws import Draw
from zoodip_core.train.objective import DiffusionObjective

LOADING, STEPPING, SAVING = range(3)
PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT
PHASES = ("loading", "in a step", "in a save")
LORA_FILES = ("pip-lora.safetensors", "frames.safetensors")
TWO_STAGE: dict[str, Any] = {"lora_rank": 4, "lora_share": 0.5}
MORE: dict[str, Any] = {}
"""Settings of all runs."""


class DisturbedError(Exception):
    """A run did not end as it should."""


class Board:
    """What a process tells of itself, and its killer reads: phase, first and last step begun."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 24)

    def read(self) -> tuple[int, int, int]:
        phase, first, last = struct.unpack("qqq", self._memory[:])
        return phase, first, last

    def write(self, phase: int, first: int, last: int) -> None:
        self._memory[:] = struct.pack("qqq", phase, first, last)

    def watch(self) -> None:
        """Have this process's training tell."""
        draw, save = DiffusionObjective.draw, loop._save

        def drawn(objective: DiffusionObjective, seed: int, step: int) -> Draw:
            self.write(STEPPING, self.read()[1] or step + 1, step + 1)
            return draw(objective, seed, step)

        def saved(*arguments: object) -> tuple[Path, ...]:
            before = self.read()
            self.write(SAVING, *before[1:])
            paths = save(*arguments)  # type: ignore[arg-type]
            self.write(*before)
            return paths

        DiffusionObjective.draw = drawn  # type: ignore[method-assign, assignment]
        loop._save = saved  # type: ignore[assignment]


def forked(work: Callable[[], None]) -> int:
    """Do something in a process of its own; returns its number."""
    number = os.fork()
    if number:
        return number
    try:
        work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def watched(board: Board, run: Path, model: StableDiffusion, steps: int) -> None:
    board.watch()
    resume(run, model, steps)


def wait(number: int) -> None:
    _, status = os.waitpid(number, 0)
    if status:
        raise DisturbedError(f"a process ended with {os.waitstatus_to_exitcode(status)}")


def resume(run: Path, model: StableDiffusion, steps: int, stop_after: int | None = None) -> None:
    """Start a run, or resume with it, to the end or to a stop."""
    commands = Commands()
    on_event = stopping(commands, stop_after)
    if (run / "config.json").exists():
        loop.resume_training(run, model=model, on_event=on_event, commands=commands)
    else:
        config = config_of(steps=steps, save_every=2, **MORE)
        loop.train_token(config, run, model=model, on_event=on_event, commands=commands)


def check(run: Path, whole: Path) -> None:
    for name in (*FILES, *(LORA_FILES if MORE else ())):
        if (run / name).read_bytes() != (whole / name).read_bytes():
            raise DisturbedError(f"{run / name} is not that of a run that nothing disturbed")


# ---------------------------------------------------------------- kills


def kills(place: Path, model: StableDiffusion, count: int, steps: int, seed: int) -> None:
    """Kill runs at random moments, again and again until each has ended, until so many kills are done."""
    board, chance = Board(), random.Random(seed)
    whole = place / "whole"
    board.write(LOADING, 0, 0)
    number = forked(partial(watched, board, whole, model, steps))
    while board.read()[0] == LOADING:
        time.sleep(0.001)
    began = time.monotonic()
    wait(number)
    longest = time.monotonic() - began
    done, repeated, phases, finished = 0, 0, Counter[str](), 0
    while done < count:
        run, before = place / f"run-{finished}", 0
        while True:
            board.write(LOADING, 0, 0)
            number = forked(partial(watched, board, run, model, steps))
            early = chance.random() < 0.1  # while it loads
            while not early and board.read()[0] == LOADING and not os.waitid(os.P_PID, number, PEEK):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.5 * longest))
            ended, status = os.waitpid(number, os.WNOHANG)
            if not ended:
                os.kill(number, signal.SIGKILL)
                status = os.waitpid(number, 0)[1]
            phase, first, last = board.read()
            if first and first < before:
                raise DisturbedError(f"step {first} was begun again after step {before}")
            repeated += bool(first) and first == before
            before = max(before, last)
            if status == signal.SIGKILL:
                done += 1
                phases[PHASES[phase]] += 1
            elif status:
                raise DisturbedError(f"a process ended with {os.waitstatus_to_exitcode(status)}")
            else:
                break
        check(run, whole)
        finished += 1
    where = ", ".join(f"{number} {name}" for name, number in sorted(phases.items()))
    print(
        f"{done} kills ({where}) in {finished} runs of {steps} steps: all went on and ended in the same bytes; "
        f"{repeated} steps were taken twice, never more than one for a kill"
    )


# ---------------------------------------------------------------- resumes


def resumes(place: Path, model: StableDiffusion, steps: int, interpreters: bool) -> None:
    """Stop after every step, go on in another process."""
    whole = place / "whole"
    wait(forked(lambda: resume(whole, model, steps)))
    for step in range(1, steps):
        run = place / f"stop-{step}"
        wait(forked(partial(resume, run, model, steps, step)))
        if interpreters:
            command = [sys.executable, "-m", "zoodip_core", "train", "--resume", str(run)]
            subprocess.run(command, check=True, capture_output=True)
        else:
            wait(forked(partial(resume, run, model, steps)))
        check(run, whole)
    how = "an interpreter started anew" if interpreters else "another process"
    print(f"a run of {steps} steps, stopped after each of {steps - 1} and gone on with in {how}: all the same bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "resumes"))
    parser.add_argument("--count", type=int, default=200, help="kills (default: 200)")
    parser.add_argument("--steps", type=int, default=40, help="of a run (default: 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--interpreters", action="store_true", help="resume by the command line")
    parser.add_argument("--two-stage", action="store_true", help="learn weights after the token")
    args = parser.parse_args()
    MORE.update(TWO_STAGE if args.two_stage else {})
    torch.set_num_threads(1)  # before any work: threads do not survive a fork
    memory.predict_memory = remembering(memory.predict_memory, check_stop)
    model = load_quantized("tiny")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        resume(Path(place) / "warm", model, 2)  # what takes seconds the first time, each process inherits
        try:
            if args.what == "kills":
                kills(Path(place), model, args.count, args.steps, args.seed)
            else:
                resumes(Path(place), model, args.steps, args.interpreters)
        except DisturbedError as error:
            print(f"wrong: {error}")
            return 1
    print(f"in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
