"""One job in a process of its own: ``python -m zoodip_core.jobs.worker JOB.json``.

A web page's process starts it and stays free of models. Events go out as JSON lines on the standard output,
commands come in as JSON lines on the standard input, everything else that is printed goes to the standard error.
Where the input ends, whoever started the job is gone: the run is saved, and the process ends.

This module imports nothing that could print: the output has to be taken over first. The work is in :mod:`tasks`.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from .pipes import Outbox, obey, own_stdin
from .protocol import Exit


def main() -> int:
    """The process's whole life."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return Exit.FAILED
    out = Outbox.on_stdout()
    from ..base.events import Commands
    from ..model.libraries import quiet_libraries  # only now: what these import may print
    from .tasks import work

    commands = Commands()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None if commands.stopping else commands.stop())
    threading.Thread(target=obey, args=(own_stdin(), commands), daemon=True).start()
    quiet_libraries()
    return work(Path(sys.argv[1]), out, commands)


if __name__ == "__main__":
    sys.exit(main())
