"""What no file may do to its reader: raise foreign exceptions, hang, fill the memory, leave things behind."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile

from zoodip_core.base.errors import ZoodipError, for_user

DEADLINE = 60.0
"""Seconds, of a reader that would never end; how long the others take depends on what else the computer does."""
MOST_MEMORY = 1_000_000_000
_HARD_LIMIT = 3_000_000_000
"""Above what is in use: beyond it an allocation fails, and the machine is spared."""
_IN_MEMORY = Path("/dev/shm")
_LONGEST_TEXT = 20_000

Files = Mapping[str, bytes]


class Fault(AssertionError):  # noqa: N818 - not an error, but what is wrong with one
    """A reader did what none may do."""


class _TooLong(BaseException):
    """Raised in a reader by the alarm; not an ``Exception``, for readers take those for damage."""


@dataclass
class Tally:
    """What came of a reader's cases.

    Args:
        ways: the places that files were refused at: how deep they got.
    """

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    longest: float = 0.0
    peak: int = 0
    ways: set[tuple[Any, ...]] = field(default_factory=set)


def judged(
    read: Callable[[Path], Any], files: Files, place: Path, tally: Tally, also: tuple[type[Exception], ...] = ()
) -> None:
    """Read the files of a case from a folder of their own.

    Args:
        place: a folder that the judge may do with as it likes.
        also: what the reader may raise besides our own errors.

    Raises:
        Fault: and what it is.
    """
    folder = _laid_out(files, place)
    before, base = _state(), _fresh_peak()
    ours: tuple[type[Exception], ...] = (ZoodipError, *also)
    began, failure = time.perf_counter(), None
    try:
        with _alarm():
            read(folder)
    except ours as error:
        failure = error
    except _TooLong:
        raise Fault(f"took more than {DEADLINE:g} s, at {_where()}") from None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Fault(f"a foreign exception: {type(error).__name__}: {str(error)[:300]}") from error
    seconds, peak = time.perf_counter() - began, _peak() - base
    tally.cases += 1
    tally.accepted += failure is None
    tally.refused += failure is not None
    tally.longest, tally.peak = max(tally.longest, seconds), max(tally.peak, peak)
    if failure is not None:
        tally.ways.add(_way(failure))
        if any(map(_wanted_memory, _causes(failure))):
            raise Fault(f"asked for more than {_HARD_LIMIT / 1e9:g} GB") from failure
        if isinstance(failure, ZoodipError):
            _check_text(failure)
    if peak > MOST_MEMORY:
        raise Fault(f"took {peak / 1e6:.0f} MB")
    after = _state()
    changed = [name for name, value in before.items() if after[name] != value]
    if changed:
        raise Fault(f"changed {', '.join(changed)}")
    left = [*(place / "tmp").iterdir(), *folder.rglob("*.part")]
    if left:
        raise Fault(f"left {left[0]} behind")


@contextlib.contextmanager
def limited() -> Iterator[Path]:
    """Within this context there is a hard limit to memory, and a place for files that is gone afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    in_use = _status("VmData")
    tempdir, handler = tempfile.tempdir, signal.signal(signal.SIGALRM, _on_alarm)
    place = Path(tempfile.mkdtemp(prefix="zoodip-fuzz-", dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
    files = _open_files()
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (in_use + _HARD_LIMIT, hard))
        tempfile.tempdir = str(place / "tmp")
        yield place
    finally:
        tempfile.tempdir = tempdir
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        shutil.rmtree(place, ignore_errors=True)
    if _open_files() > files:
        gc.collect()  # an error that was caught may hold some
    if _open_files() > files:
        raise Fault(f"{_open_files() - files} files were left open")


def _laid_out(files: Files, place: Path) -> Path:
    folder = place / "case"
    for emptied in (folder, place / "tmp"):
        shutil.rmtree(emptied, ignore_errors=True)
        emptied.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# ---------------------------------------------------------------- time


def _on_alarm(_number: int, _frame: Any) -> None:
    raise _TooLong


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, DEADLINE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _where() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "zoodip_core" in f.filename]
    return f"{ours[-1] if ours else '?'}, {Path(frames[-2].filename).name}:{frames[-2].lineno}"


# ---------------------------------------------------------------- memory


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def _fresh_peak() -> int:
    """Begin a new peak of this process's memory; returns the bytes in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    return _status("VmHWM")


# ---------------------------------------------------------------- what must stay


def _state() -> dict[str, Any]:
    """What the whole process shares."""
    return {
        "torch's default type": torch.get_default_dtype(),
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "torch's safe globals": set(torch.serialization.get_safe_globals()),
        "torch's grad mode": torch.is_grad_enabled(),
        "random's state": random.getstate(),
        "numpy's random state": np.random.get_state()[1].tobytes(),  # type: ignore[index]
        "the filters of warnings": list(warnings.filters),
        "the working folder": os.getcwd(),  # noqa: PTH109
        "Pillow's limits": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
    }


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


# ---------------------------------------------------------------- errors


def _check_text(error: Exception) -> None:
    """An error must be told by a page, in a line or two."""
    text = for_user(error)
    if not text:
        raise Fault(f"an error without a text for its user: {error!r}") from error
    if len(text) > _LONGEST_TEXT:
        raise Fault(f"an error's text of {len(text)} characters: {text[:200]}") from error
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Fault(f"an error's text that is not text: {text[:200]!a}") from error


def _way(error: BaseException) -> tuple[Any, ...]:
    """Where an error came from, its causes too."""
    places: list[Any] = []
    for cause in _causes(error):
        frame = traceback.extract_tb(cause.__traceback__)[-1]
        places += [type(cause).__name__, Path(frame.filename).name, frame.lineno]
    return tuple(places)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came of, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _wanted_memory(error: BaseException) -> bool:
    """Whether an error is of the hard limit: without it the memory would have been taken.

    What PyTorch cannot allocate for the numbers in a file would not: it is filled as far as the file goes.
    """
    reading = any(
        Path(frame.filename).name == "serialization.py" for frame in traceback.extract_tb(error.__traceback__)
    )
    return isinstance(error, MemoryError) or ("allocate memory" in str(error) and not reading)
