"""What a command shows while it works: progress bars and lines. Ctrl-C stops the work, a second one leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from ..base.events import Commands, Event, Message, Progress, Sampled, Saved
from ..base.stopping import stopped_by
from ..base.texts import how_many
from ..train.ranks import Ranks, joined, place_in
from .arguments import PROGRAM


class Screen:
    """Events as a progress bar and lines. A warning is shown once, whoever tells it again."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._warned: set[str] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Message):
            if event.warning and event.text in self._warned:
                return
            if event.warning:
                self._warned.add(event.text)
            self._line(("warning: " if event.warning else "") + event.text)
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Sampled):
            self._line(f"samples at step {event.step}: {event.path}")
        elif isinstance(event, Saved) and self._bar is None:
            self._line(f"saved at step {event.step}: {event.embedding}")

    def _progress(self, event: Progress) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(
                total=event.steps,
                initial=event.step - 1,
                unit="step",
                dynamic_ncols=True,
                mininterval=0.25,
                bar_format="{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}, {rate_fmt}, ETA {remaining}",
            )
        learns = f"learning {event.learns}, " if event.learns else ""
        self._bar.set_postfix_str(f"{learns}loss {event.smoothed:.4f}", refresh=False)
        self._bar.update(event.step - self._bar.n)

    def _line(self, text: str) -> None:
        if self._bar is None:
            print(text, file=sys.stderr)
        else:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def shared_session() -> Iterator[tuple[Callable[[Event], None], Commands, Ranks]]:
    """As :func:`session`, among the ranks that torchrun has started, of which the first one alone has a screen.

    One process alone has the session of all commands. torchrun hands Ctrl-C on, and ends ranks by SIGTERM where one is
    gone; both stop the run. It kills those that take long, so that no second signal has to.
    """
    place = place_in(os.environ)
    if place is None:
        with session() as (screen, commands):
            yield screen, commands, Ranks()
        return
    commands = Commands()
    stops = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: commands.stop()) for number in stops]
    screen = Screen()
    try:
        with stopped_by(lambda: commands.stopping), joined(place) as ranks:
            yield screen if ranks.leads else lambda event: None, commands, ranks
    finally:
        screen.close()
        signal.signal(signal.SIGINT, before[0])
        # What is left is to say how it ended, which torchrun does not wait for where another rank was faster.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextlib.contextmanager
def session() -> Iterator[tuple[Screen, Commands]]:
    """A screen, and commands that Ctrl-C stops; a second Ctrl-C ends at once."""
    screen, commands = Screen(), Commands()

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        if commands.stopping:
            raise KeyboardInterrupt
        commands.stop()
        print("\nstopping; Ctrl-C again to leave at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield screen, commands
    finally:
        signal.signal(signal.SIGINT, before)
        screen.close()


class Stages:
    """A progress bar for each thing that is done, one after another."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self.close()
            layout = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, ETA {remaining}"
            # What an earlier call has drawn is not a measure of how long the rest takes.
            self._bar = tqdm(
                total=total, initial=done, desc=stage, dynamic_ncols=True, mininterval=0.25, bar_format=layout
            )
            self._stage = stage
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def closing(
    finished: bool,
    step: int,
    learned: Mapping[str, Path],
    run: Path,
    lora: Path | None = None,
    grid: Path | None = None,
) -> int:
    """Say how a training ended; returns the command's exit code.

    Args:
        learned: the files of the tokens, by their names.
        grid: what listed sample prompts drew over time, if there is such a picture.
    """
    if grid:
        print(f"samples over time: {grid}")
    one = len(learned) == 1
    if finished:
        weights = f", and the weights learned with {'it' if one else 'them'} as a LoRA in {lora}" if lora else ""
        said = ", ".join(f"{token} in {path}" for token, path in learned.items())
        print(f"done: {how_many(step, 'step')}, {'token' if one else 'tokens'} {said}{weights}")
        return 0
    so_far = f"the token so far is {next(iter(learned.values()))}" if one else "the tokens so far are "
    files = "" if one else ", ".join(map(str, learned.values()))
    print(f'stopped at step {step}; {so_far}{files}\nresume with:\n  {PROGRAM} train --resume "{run}"')
    return 1
