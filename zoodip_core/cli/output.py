"""What commands print: no terminal, encoding or closed pipe ends their work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class _Unbreakable:
    """A text stream that goes on where nobody reads any more, and writes what its encoding lacks as escapes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        with contextlib.suppress(AttributeError, ValueError, OSError):  # another's stand-in, or closed already
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with self._until_broken():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._until_broken():
            self._stream.flush()

    @contextlib.contextmanager
    def _until_broken(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # as in "| head -1", or of a terminal that is gone
            with (
                contextlib.suppress(OSError, ValueError),  # else Python complains when it flushes it at the end
                Path(os.devnull).open("wb") as nowhere,
            ):
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def unbreakable() -> Iterator[None]:
    """Within this context a print does not fail."""
    with (
        contextlib.redirect_stdout(sys.stdout and _Unbreakable(sys.stdout)),  # a program without a terminal has none
        contextlib.redirect_stderr(sys.stderr and _Unbreakable(sys.stderr)),
    ):
        yield
