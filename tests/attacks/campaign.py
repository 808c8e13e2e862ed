"""One way in against all hostile names, and one reader against hostile files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.attacks.canary import MARK, Canary
from tests.attacks.entries import ALL, BAD, Entry, RefusedError
from tests.attacks.hostile import Name, names


@dataclass
class Result:
    """What came of it.

    Args:
        attempts: how many names were tried.
        refused: of these.
        longest: seconds that one took.
        memory: bytes that one took; of files alone.
        failures: what must not be, in words.
    """

    attempts: int = 0
    refused: int = 0
    longest: float = 0.0
    memory: int = 0
    failures: list[str] = field(default_factory=list)


def attack(entry: Entry, canary: Canary, which: slice = slice(None)) -> Result:
    """Try all names on a way in, or some of them."""
    result, allowed = Result(), (entry.folder, *entry.allowed)
    before = canary.listing(entry.folder.parent, *allowed)
    for name in names(entry.folder, canary.outside)[which]:
        why, refused, seconds = _attempt(entry, name, canary)
        after = canary.listing(entry.folder.parent, *allowed)
        changed = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
        why += [f"changed {path}" for path in changed]
        before = after
        result.attempts += 1
        result.refused += refused
        result.longest = max(result.longest, seconds)
        result.failures += [f"{name.kind}, {name.text[:60]!r}: {each}" for each in why]
    return result


def _attempt(entry: Entry, name: Name, canary: Canary) -> tuple[list[str], bool, float]:
    """Try a name; returns what is wrong, whether it was refused, and the seconds that it took."""
    began, answer, refused, why = time.perf_counter(), "", False, []
    canary.seen.clear()
    with canary.watched(entry.folder, *entry.allowed):
        try:
            answer = entry.attempt(name.text)
        except RefusedError as error:
            answer, refused = str(error), True
        except Exception as error:
            why.append(f"a fault, {type(error).__name__}: {error}")
    seconds = time.perf_counter() - began
    why += canary.seen
    if MARK in answer:
        why.append(f"read what it may not: {answer[:200]}")
    blank = entry.blank and not name.text.strip()
    if not refused and not why and not blank and (entry.refuses == ALL or (entry.refuses == BAD and name.refused)):
        why.append(f"taken, and not refused: {answer[:200]}")
    return why, refused, seconds


# ---------------------------------------------------------------- files


@dataclass
class Peak:
    """The most memory that a piece of work took, in bytes, and its seconds."""

    memory: int = 0
    seconds: float = 0.0


class measured:  # noqa: N801 - used as a function
    """A context in which memory is looked at a hundred times a second."""

    def __enter__(self) -> Peak:
        self._peak, self._over = Peak(), threading.Event()
        self._before, self._began = psutil.Process().memory_info().rss, time.perf_counter()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self._peak

    def _look(self) -> None:
        process = psutil.Process()
        while not self._over.wait(0.01):
            self._peak.memory = max(self._peak.memory, process.memory_info().rss - self._before)

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()
        self._peak.seconds = time.perf_counter() - self._began


def read(paths: Iterable[Path], reader: Callable[[Path], Any], refusal: type[Exception], canary: Canary) -> Result:
    """Have files read, which are refused with an error of one kind or found to be sound."""
    result = Result()
    before = canary.listing(canary.outside)
    for path in paths:
        canary.seen.clear()
        why: list[str] = []
        with canary.watched(), measured() as peak:
            try:
                reader(path)
            except refusal:
                result.refused += 1
            except Exception as error:
                why.append(f"a fault, {type(error).__name__}: {error}")
        why += canary.seen
        if canary.listing(canary.outside) != before:
            why.append("it changed what it must not")
        result.attempts += 1
        result.longest, result.memory = max(result.longest, peak.seconds), max(result.memory, peak.memory)
        result.failures += [f"{path.name}: {each}" for each in why]
    return result
