"""What is read of files, counted: whether a reader is quick does not depend on what else the computer does."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest


class Reads:
    """What was read of files opened for reading alone."""

    def __init__(self) -> None:
        self.bytes = 0
        self.opened: Counter[str] = Counter()
        """How often each file was."""


class _File(io.FileIO):
    """A file whose bytes are counted as the system gives them."""

    def __init__(self, path: Any, reads: Reads) -> None:
        super().__init__(path, "rb")
        self._reads = reads

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self._reads.bytes += count
        return count

    def readall(self) -> bytes:
        data = super().readall() or b""
        self._reads.bytes += len(data)
        return data


@contextlib.contextmanager
def counted_reads() -> Iterator[Reads]:
    """Counts in this process what Python's own ``open`` and ``Path`` read."""
    reads, real = Reads(), io.open

    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if set(mode) - set("rbt") or not isinstance(file, str | bytes | os.PathLike) or opener:
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        reads.opened[os.fsdecode(file)] += 1
        raw = _File(file, reads)
        if buffering == 0:
            return raw
        buffered = io.BufferedReader(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    with pytest.MonkeyPatch.context() as patch:
        for module in (io, builtins):
            patch.setattr(module, "open", opened)
        yield reads
