"""One way in against all hostile names."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

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
        failures: what must not be, in words.
    """

    attempts: int = 0
    refused: int = 0
    longest: float = 0.0
    failures: list[str] = field(default_factory=list)


def attack(entry: Entry, canary: Canary) -> Result:
    """Try all names on a way in."""
    result, allowed = Result(), (entry.folder, *entry.allowed)
    before = canary.listing(entry.folder.parent, *allowed)
    for name in names(entry.folder, canary.outside):
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
