"""Cases of a reader in rounds of hypothesis; the same seed gives the same ones."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Mapping
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as seeded

from .judge import Fault, Tally, judged
from .readers import READERS, Reader

_ROUND = 500
"""Cases under one seed: hypothesis remembers all of a round's."""
_SHOWN = 1500
_TOO_LONG = 120.0
"""Seconds without an end, in code that no alarm reaches, after which the process ends itself and says where."""


def fuzz(name: str, cases: int, seed: int, *, place: Path) -> Tally:
    """Judge a reader's cases; the same seed gives the same ones.

    Raises:
        Fault: with the smallest case that was found for it, as hypothesis tells it.
    """
    reader, tally, round_ = READERS[name], Tally(), 0
    while tally.cases < cases:
        _round(reader, min(_ROUND, cases - tally.cases), seed + round_, place, tally)
        round_ += 1
    return tally


def _round(reader: Reader, cases: int, seed: int, place: Path, tally: Tally) -> None:
    watched = -_TOO_LONG

    def watch() -> None:
        nonlocal watched
        if time.monotonic() - watched > _TOO_LONG / 4:  # it takes a thread, which is slow to begin
            faulthandler.dump_traceback_later(_TOO_LONG, exit=True)
            watched = time.monotonic()

    @seeded(seed)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    @given(reader.files)
    def case(files: Mapping[str, bytes]) -> None:
        watch()
        try:
            judged(reader.read, files, place, tally, reader.also)
        except Fault as fault:
            raise Fault(f"{fault}\n{_told(files)}") from fault

    try:
        case()
    finally:
        faulthandler.cancel_dump_traceback_later()


def _told(files: Mapping[str, bytes]) -> str:
    return "\n".join(f"{name} ({len(data)} bytes): {data[:_SHOWN]!r}" for name, data in files.items())


def shares(cases: int) -> dict[str, int]:
    """How many of the cases each reader gets, at least one."""
    whole = sum(reader.share for reader in READERS.values())
    return {name: max(1, round(cases * reader.share / whole)) for name, reader in READERS.items()}
