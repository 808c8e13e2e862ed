"""The worker's ends of its pipes: events out, commands in. It imports nothing that could print."""

from __future__ import annotations

import os
import sys
import threading
from typing import IO, TYPE_CHECKING, Any

from .protocol import LONGEST_COMMAND, command_of, event_line

if TYPE_CHECKING:
    from ..base.events import Commands


class Outbox:
    """Events as JSON lines, on what was the standard output; prints of libraries cannot come between them."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    @classmethod
    def on_stdout(cls) -> Outbox:
        """Take over the process's standard output; what is printed from now on goes to its standard error."""
        pipe = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        return cls(pipe)

    def send(self, event: str, **data: Any) -> None:
        """Send an event; silent where nobody listens any more, for then the end of the input stops the run."""
        line = event_line(event, **data)
        try:
            with self._lock:
                self._pipe.write(line)
                self._pipe.flush()
        except (OSError, ValueError):
            pass


def own_stdin() -> IO[bytes]:
    """Take over the process's standard input; for all others it is at its end from now on.

    On Windows a library that is loaded while a thread waits for standard input may wait for that as well.
    """
    own, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # Unbuffered: at the end Python cannot close a buffer that a thread still waits on.
    return open(own, "rb", buffering=0, closefd=False)  # open for as long as the process lives


def obey(pipe: IO[bytes], commands: Commands) -> None:
    """Hand commands on until the pipe ends, which is a stop."""
    known = {"stop": commands.stop, "save": commands.save, "sample": commands.sample}
    try:
        while line := pipe.readline(LONGEST_COMMAND):
            command = command_of(line)
            if command is None:
                print(f"not a command: {line[:80]!r}", file=sys.stderr)
            else:
                known[command]()
    finally:  # whatever happens to the pipe, or to the log on a full disk
        commands.stop()
