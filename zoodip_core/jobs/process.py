"""A worker process: started with a job file, heard and commanded through its pipes."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..base.errors import ConfigError
from ..base.files import storage_errors
from .environment import ROOT, Trainer, clean_env
from .job_folder import LOG, log_tail, write_task
from .protocol import command_line, event_of

_LONGEST_LINE = 64_000_000
_LAST_SECONDS = 60.0
"""That a worker has to end once it has closed its pipe."""
_LONGEST_QUESTION = 600.0
"""Seconds for an answer: a busy computer that reads torch from a network's disk takes minutes, a hung one for ever."""
LOG_LINES = 20


class Worker:
    """A running worker process.

    Args:
        python: the Python to run it with.
        file: the job file.
        log: what it prints, its errors too, is added here.

    Raises:
        ConfigError: it cannot be started.
        StorageError: its log cannot be written.
    """

    def __init__(self, python: Path, file: Path, log: Path) -> None:
        with storage_errors(log), log.open("ab") as out:
            try:
                self._process = subprocess.Popen(
                    [str(python), "-m", "zoodip_core.jobs.worker", str(file)],
                    cwd=ROOT,
                    env=clean_env(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=out,
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
            except OSError as error:
                raise ConfigError(f"the trainer's Python, {python}, cannot be started: {error.strerror}") from error
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout, log), daemon=True).start()

    def _read(self, pipe: IO[bytes], log: Path) -> None:
        """Queue events until the pipe ends; what is not an event goes to the log."""
        with pipe:
            while line := pipe.readline(_LONGEST_LINE):
                event = event_of(line)
                if event is not None:
                    self._events.put(event)
                else:
                    with contextlib.suppress(OSError), log.open("ab") as out:
                        out.write(b"not an event: " + line[:200] + b"\n")
        self._events.put(None)

    def events(self, every: float, idle: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """Events until the worker has closed its pipe; ``idle`` is called about each ``every`` seconds."""
        last = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=every)
                if event is None:
                    return
                yield event
            if time.monotonic() - last >= every:
                last = time.monotonic()
                idle()

    def command(self, name: str) -> None:
        """Send stop, save or sample; nothing happens if the worker is gone."""
        pipe = self._process.stdin
        with contextlib.suppress(OSError, ValueError):
            if pipe:
                pipe.write(command_line(name))
                pipe.flush()

    def kill(self) -> None:
        """End it at once; the last saved state stays."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def close(self) -> int:
        """Wait for its end and return the exit code. One that is at work still is stopped."""
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()  # the end of its input is a stop
        try:
            return self._process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()


def ask(python: Path, kind: str, **more: Any) -> dict[str, Any]:
    """Run a worker that answers with one event, as check does, and return that event.

    Raises:
        ConfigError: what the worker found wrong, or that it does not answer.
        StorageError: no room for its files.
    """
    answer: dict[str, Any] = {}
    failed: dict[str, Any] | None = None
    begun = time.monotonic()
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="zoodip-") as place:
        folder = Path(place)
        worker = Worker(python, write_task(folder, kind, folder, **more), folder / LOG)

        def look_at_the_clock() -> None:
            if time.monotonic() - begun > _LONGEST_QUESTION:
                worker.kill()
                raise ConfigError(
                    f"the {kind} did not end within {_LONGEST_QUESTION / 60:.0f} minutes and was given up; see that "
                    "the computer is not busy and that the disks of the model and the pictures answer, then try again"
                )

        try:
            for event in worker.events(1.0, look_at_the_clock):
                if event.get("event") == "failed":
                    failed = event
                elif event.get("event") != "ended":
                    answer = event
        finally:
            code = worker.close()
        if failed and not failed.get("fault"):
            raise ConfigError(str(failed.get("error")))
        if failed or not answer or code:
            why = str(failed.get("error")) if failed else death(code)
            raise ConfigError(f"{why}\n{log_tail(folder, LOG_LINES)}")
    return answer


def death(code: int) -> str:
    """Why a worker may have died without a word."""
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    why = "; often the computer ran out of memory" if code in (-9, 137, 0xC0000017) else ""
    return f"the training process ended unexpectedly ({how}{why})"


def python_of(trainer: Trainer) -> Path:
    """The Python that runs jobs.

    Raises:
        ConfigError: there is none, and why.
    """
    if trainer.python is None:
        raise ConfigError(trainer.why)
    return trainer.python
