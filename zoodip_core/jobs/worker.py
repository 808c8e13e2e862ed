"""One job in a process of its own: ``python -m zoodip_core.jobs.worker JOB.json``.

A web page's process starts it and stays free of models. Events go out as JSON lines on the standard output,
commands come in as JSON lines on the standard input, everything else that is printed goes to the standard error.
Where the input ends, whoever started the job is gone: the run is saved, and the process ends.

This module imports nothing that could print: the output has to be taken over first. The work is in :mod:`tasks`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..base.events import Commands

FINISHED, STOPPED, FAILED, FAULT = 0, 1, 2, 70
"""Exit codes: a user's error is 2, a fault of the program 70."""
_LONGEST_COMMAND = 4096


class Outbox:
    """Events as JSON lines, on what was the standard output; prints of libraries can not come between them."""

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
        line = json.dumps({"event": event, **data}).encode() + b"\n"
        try:
            with self._lock:
                self._pipe.write(line)
                self._pipe.flush()
        except (OSError, ValueError):
            pass


def obey(pipe: IO[bytes], commands: Commands) -> None:
    """Hand commands on until the pipe ends, which is a stop."""
    known = {"stop": commands.stop, "save": commands.save, "sample": commands.sample}
    try:
        while line := pipe.readline(_LONGEST_COMMAND):
            try:
                known[json.loads(line)["command"]]()
            except (ValueError, KeyError, TypeError, RecursionError):
                print(f"not a command: {line[:80]!r}", file=sys.stderr)
    finally:  # whatever happens to the pipe, or to the log on a full disk
        commands.stop()


def main() -> int:
    """The process's whole life."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return FAILED
    out = Outbox.on_stdout()
    from ..base.events import Commands
    from ..cli.main import quiet_libraries  # only now: what these import may print
    from .tasks import work

    commands = Commands()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None if commands.stopping else commands.stop())
    # Unbuffered: at the end Python can not close a buffer that a thread still waits on.
    commanded = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - open for as long as the process lives
    threading.Thread(target=obey, args=(commanded, commands), daemon=True).start()
    quiet_libraries()
    return work(Path(sys.argv[1]), out, commands)


if __name__ == "__main__":
    sys.exit(main())
