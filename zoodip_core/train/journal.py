"""A run's journal: one line for each step, from which the search is rebuilt without a single forward pass.

A line is a JSON object that ends in a checksum of the text before it. What else decides a step follows from the
run's settings: its directions, timestep and noise are functions of (seed, step). Lines of the first version have no
checksum, and are read as they stand.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.files import storage_errors, sync_folder

SYNC_SECONDS = 1.0
"""A step is handed to the system at once, which a killed process does not undo, and forced onto the disk once this
much time has passed since the last time: what a power cut can take is a second's steps, or one."""
_LONGEST = 1_000_000
"""Bytes of a line; that of a step with a thousand candidates has a twentieth."""
_CHECKED = re.compile(rb'(\{.+),"crc":"([0-9a-f]{8})"\}\n', re.DOTALL)
_FIRST_VERSION = {"step", "image", "caption", "t", "losses"}


@dataclass(frozen=True)
class Record:
    """A completed step.

    Args:
        step: its number, from 1.
        image: index of the reference image.
        caption: index of that image's caption.
        timestep: the timestep.
        losses: of each candidate, in the search's order.
        batch: candidates in one forward pass.
        theta: checksum after the step, :attr:`ZerothOrderSearch.checksum`.
        check_loss: the token's loss before the step on draws that are the same each time, of steps that looked at it.
    """

    step: int
    image: int
    caption: int
    timestep: int
    losses: tuple[float, ...]
    batch: int | None = None
    theta: str | None = None
    check_loss: float | None = None

    def line(self) -> bytes:
        """As it stands in the file."""
        fields: dict[str, Any] = {
            "step": self.step,
            "image": self.image,
            "caption": self.caption,
            "t": self.timestep,
            "batch": self.batch,
            "losses": self.losses,
            "theta": self.theta,
        }
        if self.check_loss is not None:
            fields["held"] = self.check_loss
        body = json.dumps(fields, separators=(",", ":")).encode()[:-1]
        return b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body))

    @classmethod
    def of_line(cls, line: bytes) -> Record | None:
        """What a line tells, None if it is damaged or torn."""
        checked = _CHECKED.fullmatch(line)
        if checked and zlib.crc32(checked[1]) != int(checked[2], 16):
            return None
        try:
            fields = json.loads(checked[1] + b"}" if checked else line)
            if not checked and (fields.keys() != _FIRST_VERSION or not line.endswith(b"\n")):
                return None
            return cls(
                _whole(fields["step"]),
                _whole(fields["image"]),
                _whole(fields["caption"]),
                _whole(fields["t"]),
                tuple(map(_finite, fields["losses"])),
                None if fields.get("batch") is None else _whole(fields["batch"]),
                None if fields.get("theta") is None else str(fields["theta"]),
                None if fields.get("held") is None else _finite(fields["held"]),
            )
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError):
            return None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(value)
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Past:
    """What a journal tells.

    Args:
        records: by their steps; some are missing where the file is damaged.
        damaged: numbers of the lines, from 1, whose text does not match their checksum. A torn last line, as a power
            cut leaves it, does not count: it was dropped.
    """

    records: dict[int, Record]
    damaged: tuple[int, ...]

    @property
    def last(self) -> int:
        """The last step that is known of, 0 if none is."""
        return max(self.records, default=0)


def read(path: Path) -> Past:
    """All of a journal; of a missing one, nothing.

    Raises:
        StorageError: it cannot be read.
    """
    records: dict[int, Record] = {}
    damaged = []
    lines, torn = 0, False
    for lines, (line, record) in enumerate(_lines(path), 1):
        if record is None:
            damaged.append(lines)
        else:
            records[record.step] = record
        torn = record is None and not line.endswith(b"\n")
    if torn and damaged[-1] == lines:
        damaged.pop()
    return Past(records, tuple(damaged))


def last_step(path: Path) -> int:
    """The last step that a journal tells of, by a glance at its end; 0 if there is none, or it cannot be read."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return 0
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST))
            lines = file.read(_LONGEST).splitlines(keepends=True)
    except OSError:
        return 0
    return next((record.step for record in map(Record.of_line, reversed(lines)) if record), 0)


def cut(path: Path, step: int) -> None:
    """Cut everything after a step off, torn and damaged ends too: what comes after it is taken again.

    Raises:
        StorageError: it cannot be written.
    """
    kept = end = 0
    for line, record in _lines(path):
        end += len(line)
        if record and record.step <= step:
            kept = end
    if kept == end:
        return
    with storage_errors(path), path.open("rb+") as file:
        file.truncate(kept)
        os.fsync(file.fileno())


def _lines(path: Path) -> Iterator[tuple[bytes, Record | None]]:
    """Each line, in pieces if it is too long for one, and what it tells."""
    if not path.is_file():
        return
    with storage_errors(path), path.open("rb") as file:
        while line := file.readline(_LONGEST):
            yield line, Record.of_line(line)


# ---------------------------------------------------------------- writing


class Journal:
    """A journal that steps are added to, used as a context.

    Args:
        path: the file, which may not exist yet.
        step: the last step that stands in it.

    Raises:
        StorageError: it cannot be written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.step = step
        """The last step added."""
        self._path = path
        with storage_errors(path):
            if path.exists() and not path.is_file():  # a pipe, say, that would be waited on for ever
                raise OSError(errno.EINVAL, "it is not a plain file; move it away")
            self._file = path.open("ab", buffering=0)
            self._size = self._file.seek(0, os.SEEK_END)
            sync_folder(path.parent)
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, record: Record) -> None:
        """Add a step; what cannot be written whole is not written at all.

        Raises:
            StorageError: no room, or the disk is gone.
        """
        line = record.line()
        with storage_errors(self._path):
            try:
                written = 0
                while written < len(line):
                    written += self._file.write(line[written:]) or 0
            except OSError:
                self._take_back()
                raise
            self._size += len(line)
            self.step = record.step
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self.sync()

    def sync(self) -> None:
        """Have all that was added on the disk.

        Raises:
            StorageError: the disk is gone.
        """
        with storage_errors(self._path):
            os.fsync(self._file.fileno())
            self._path.stat()  # that of a deleted file goes nowhere, without a word
        self._synced = time.monotonic()

    def _take_back(self) -> None:
        with contextlib.suppress(OSError):  # then it is a torn last line, which readers drop
            self._file.truncate(self._size)
