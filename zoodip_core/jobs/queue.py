"""Jobs of a web page: one after another, each in a worker process, while the host's own models are out of the way.

This side loads no model. What a job told so far is kept in its :class:`Job`, for any number of pages to look at.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import queue
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from ..base.errors import ConfigError, RunFolderError, for_user
from ..base.files import storage_errors, whole_text, write_atomically
from ..base.stopping import Stopped
from .environment import ROOT, Trainer, clean_env
from .history import DRAWING, LOG, TASK, log_tail

WAITING, RUNNING, STOPPING = "waiting", "running", "stopping"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
OPEN = (WAITING, RUNNING, STOPPING)
TASK_VERSION = 1
MOST_WARNINGS = 100
"""The last ones that are kept of a job: a run may warn at each of its samples."""
_LONGEST_LINE = 64_000_000
_MOST = 10**15
_LAST_SECONDS = 60.0
"""That a worker has to end once it has closed its pipe."""
_LONGEST_QUESTION = 600.0
"""Seconds for an answer: a busy computer that reads torch from a network's disk takes minutes, a hung one for ever."""
_PATIENCE = 0.2
"""Seconds between two looks at the host's stop button."""
_LOG_LINES = 20


class Host(Protocol):
    """What jobs ask of the program that the page runs in."""

    def device(self, waiting: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
        """The graphics card to ourselves: waits for the host's own work, frees its memory, gives it back.

        Args:
            waiting: called with what is waited for, where it is not to be had at once; and called again when the wait
                is over, before anything is taken. It raises ``Stopped`` where nobody wants the card any more.
        """
        ...

    def interrupted(self) -> bool:
        """Whether the user pressed the host's own stop button since the card became ours."""
        ...

    def show(self, job: Job) -> None:
        """Show a running job on the host's own progress bar."""
        ...


@dataclass
class Job:
    """A job and how far it is.

    Args:
        id: of this process's jobs.
        kind: train, resume, show; see :mod:`tasks`.
        folder: what it makes or changes.
        token: the placeholder it is about.
        file: its job file.
        state: waiting, running, stopping, finished, stopped or failed.
        message: what it does, waits for, or why it ended.
        warnings: what needs the user's eye, the last of them.
        losses: of every step so far.
        rate: steps a second.
        eta: seconds left.
        memory: peak bytes so far, if that is known.
        sample: the newest sample sheet.
        shown: the pictures before and after.
        embedding: the newest file of the token.
        checked: what :func:`tasks.check` found.
        log: the end of its log, if it failed.
    """

    id: int
    kind: str
    folder: Path
    token: str
    file: Path
    state: str = WAITING
    message: str = "waiting"
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    smoothed: float = 0.0
    rate: float = 0.0
    eta: float = 0.0
    memory: int | None = None
    sample: Path | None = None
    sampled_step: int = 0
    shown: Path | None = None
    embedding: Path | None = None
    checked: dict[str, Any] | None = None
    log: str = ""
    warnings: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list, repr=False)

    @property
    def open(self) -> bool:
        """Whether it has not ended yet."""
        return self.state in OPEN

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take in an event of its worker; one that makes no sense is left out."""
        handler = getattr(self, f"_on_{event.get('event')}", None)
        if handler is not None:
            with contextlib.suppress(LookupError, TypeError, ValueError, ArithmeticError, RecursionError):
                handler(event)

    def _on_message(self, event: Mapping[str, Any]) -> None:
        if event["warning"]:
            self.warnings = [*self.warnings, whole_text(str(event["text"]))][-MOST_WARNINGS:]
        elif self.state == RUNNING:
            self.message = whole_text(str(event["text"]))

    def _on_checked(self, event: Mapping[str, Any]) -> None:
        checked = {key: value for key, value in event.items() if key != "event"}
        json.dumps(checked, allow_nan=False)  # as scripts are told it
        self.checked = checked

    def _on_started(self, event: Mapping[str, Any]) -> None:
        step, steps, losses = _count(event["step"]), _count(event["steps"]), [float(loss) for loss in event["losses"]]
        self.step, self.steps, self.losses[:] = step, steps, losses

    def _on_progress(self, event: Mapping[str, Any]) -> None:
        step, steps, memory = _count(event["step"]), _count(event["steps"]), event["memory"]
        peak = None if memory is None else _count(memory)
        loss, smoothed, rate, eta = (float(event[name]) for name in ("loss", "smoothed", "rate", "eta"))
        self.step, self.steps, self.memory = step, steps, peak
        self.loss, self.smoothed, self.rate, self.eta = loss, smoothed, rate, eta
        self.losses.append(loss)
        if self.state == RUNNING:
            self.message = "learning"

    def _on_sampled(self, event: Mapping[str, Any]) -> None:
        self.sample, self.sampled_step = Path(event["path"]), _count(event["step"])

    def _on_saved(self, event: Mapping[str, Any]) -> None:
        self.embedding = Path(event["path"])

    def _on_shown(self, event: Mapping[str, Any]) -> None:
        self.shown = Path(event["path"])

    def _on_ended(self, event: Mapping[str, Any]) -> None:
        if event.get("embedding"):
            self.embedding = Path(event["embedding"])


def _count(value: Any) -> int:
    """A number of steps or bytes.

    Raises:
        ValueError: it is more than any.
    """
    number = int(value)
    if abs(number) > _MOST:
        raise ValueError(f"{value} is no count")
    return number


# ---------------------------------------------------------------- one worker process


class Worker:
    """A running worker process.

    Args:
        python: the Python to run it with.
        file: the job file.
        log: what it prints, its errors too, is added here.

    Raises:
        ConfigError: it can not be started.
        StorageError: its log can not be written.
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
                raise ConfigError(f"the trainer's Python, {python}, can not be started: {error.strerror}") from error
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout, log), daemon=True).start()

    def _read(self, pipe: IO[bytes], log: Path) -> None:
        """Queue events until the pipe ends; what is no event goes to the log."""
        with pipe:
            while line := pipe.readline(_LONGEST_LINE):
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):  # not UTF-8, or not JSON
                    event = None
                if isinstance(event, dict):
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
                pipe.write(json.dumps({"command": name}).encode() + b"\n")
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


def write_task(folder: Path, kind: str, work_on: Path, **more: Any) -> Path:
    """Write a job file into ``folder``, for a worker; ``more`` are settings, pace, changes.

    Raises:
        StorageError: it can not be written.
    """
    task = {"version": TASK_VERSION, "id": secrets.token_hex(8), "kind": kind, "folder": str(work_on), **more}
    file = folder / (DRAWING if kind == "show" else TASK)
    write_atomically(file, json.dumps(task, indent=2))
    return file


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
            why = str(failed.get("error")) if failed else _death(code)
            raise ConfigError(f"{why}\n{log_tail(folder, _LOG_LINES)}")
    return answer


# ---------------------------------------------------------------- one after another


class Jobs:
    """The page's jobs: they run one after another, and further ones wait.

    Args:
        host: the program that the page runs in.
        trainer: finds the Python that runs them.
        done: called with each job that has ended, its state and message set; returns what the user should know
            besides, or nothing.
    """

    def __init__(self, host: Host, trainer: Callable[[], Trainer], done: Callable[[Job], str]) -> None:
        self._host, self._trainer, self._done = host, trainer, done
        self._lock = threading.RLock()
        self._jobs: dict[int, Job] = {}
        self._ids = itertools.count(1)
        self._queue: queue.Queue[Job] = queue.Queue()
        self._workers: dict[int, Worker] = {}
        self._thread: threading.Thread | None = None

    def submit(self, kind: str, folder: Path, token: str, **more: Any) -> Job:
        """Queue a job, and return a copy of it.

        Args:
            kind: train, resume or show.
            folder: its folder, which exists.
            token: the placeholder.
            more: settings, pace and changes, as in the job file.

        Raises:
            RunFolderError: the folder is in another job's hands.
            StorageError: the job file can not be written.
            ConfigError: nothing here can run it.
        """
        python_of(self._trainer())  # refuse now, not when its turn comes
        with self._lock:
            if any(job.open and job.folder == folder for job in self._jobs.values()):
                raise RunFolderError(f"{folder.name} is being worked on already; wait for it, or stop it first")
            file = write_task(folder, kind, folder, **more)
            ahead = [job for job in self._jobs.values() if job.open]
            job = Job(next(self._ids), kind, folder, token, file)
            if ahead:
                job.message = f"waiting for {ahead[-1].token} to end"
            self._jobs[job.id] = job
            self._queue.put(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="zoodip-jobs", daemon=True)
                self._thread.start()
            return self._copy(job)

    def all(self) -> list[Job]:
        """Copies of all jobs of this process, oldest first."""
        with self._lock:
            return [self._copy(job) for job in self._jobs.values()]

    def get(self, number: int) -> Job:
        """A copy of a job.

        Raises:
            ConfigError: there is none of that number.
        """
        with self._lock:
            return self._copy(self._find(number))

    def newest(self) -> Job | None:
        """A copy of the job at work, else of the next one that waits, else of the last one."""
        with self._lock:
            jobs = list(self._jobs.values())
            chosen = [job for job in jobs if job.state in (RUNNING, STOPPING)] or [j for j in jobs if j.open] or jobs
            return self._copy(chosen[0] if chosen and chosen[0].open else chosen[-1]) if chosen else None

    def _find(self, number: int) -> Job:
        if number not in self._jobs:
            raise ConfigError(f"there is no job {number}; jobs are forgotten when the program is started again")
        return self._jobs[number]

    @staticmethod
    def _copy(job: Job) -> Job:
        twin = copy.copy(job)
        twin.warnings, twin.losses = list(job.warnings), list(job.losses)
        return twin

    def stop(self, number: int) -> None:
        """Stop a job: what it has learned is saved. Asked a second time, it is ended at once.

        Raises:
            ConfigError: there is none of that number.
        """
        with self._lock:
            job, worker = self._find(number), self._workers.get(number)
            if job.state == WAITING:
                job.state, job.message = STOPPED, "stopped before it began"
            elif job.state == RUNNING:
                job.state, job.message = STOPPING, "stopping; press stop again to end it at once"
                if worker:
                    worker.command("stop")
            elif job.state == STOPPING and worker:
                worker.kill()

    def ask(self, number: int, command: str) -> None:
        """Have a running job save, or make samples."""
        with self._lock:
            worker = self._workers.get(number)
            if worker:
                worker.command(command)

    def busy(self, folder: Path) -> bool:
        """Whether a job works on a folder, or is about to."""
        with self._lock:
            return any(job.open and job.folder == folder for job in self._jobs.values())

    # ------------------------------------------------------------ the jobs' own thread

    def _serve(self) -> None:
        while True:
            job = self._queue.get()
            try:
                state, message = self._take(job)
            except BaseException as error:  # whatever the host does, the next job shall have its turn
                state, message = FAILED, _told(error)
            ended = self._copy(job)
            ended.state, ended.message = state, message
            try:
                message = ". ".join(filter(None, (message, self._done(ended))))
            except BaseException as error:
                message += f". What comes after it failed: {_told(error)}"
            with self._lock:
                job.state, job.message = state, message

    def _take(self, job: Job) -> tuple[str, str]:
        """Wait for the device, then work; returns the state in which the job ended, and what to tell."""

        def waiting(text: str) -> None:
            with self._lock:
                if not job.open:
                    raise Stopped
                job.message = text

        if not job.open:
            return job.state, job.message
        ended: tuple[str, str] | None = None
        try:
            with self._host.device(waiting):
                with self._lock:
                    if job.open:  # not stopped while it waited
                        job.state, job.message = RUNNING, "starting"
                ended = self._work(job) if job.open else (job.state, job.message)
        except Stopped:  # while it waited
            return job.state, job.message
        except BaseException as error:
            if ended is None:
                raise
            ended = ended[0], f"{ended[1]}. The device could not be given back: {_told(error)}"
        return ended

    def _work(self, job: Job) -> tuple[str, str]:
        """Run a job's worker to its end; returns the state and what to tell."""
        worker = Worker(python_of(self._trainer()), job.file, job.folder / LOG)
        with self._lock:
            self._workers[job.id] = worker
            if job.state == STOPPING:  # asked between the two
                worker.command("stop")

        def look_around() -> None:
            self._host.show(self.get(job.id))
            if self._host.interrupted() and job.state == RUNNING:
                self.stop(job.id)

        last: dict[str, Any] = {}
        try:
            for event in worker.events(_PATIENCE, look_around):
                if event.get("event") in ("ended", "failed"):
                    last = event
                with self._lock:
                    job.hear(event)
        finally:
            code = worker.close()
            with self._lock:
                del self._workers[job.id]
        return self._outcome(job, last, code)

    def _outcome(self, job: Job, last: Mapping[str, Any], code: int) -> tuple[str, str]:
        if last.get("event") == "ended":
            if job.kind == "show":
                return (FINISHED, "finished") if last.get("state") == FINISHED else (STOPPED, "stopped")
            if last.get("state") == FINISHED:
                return FINISHED, f"finished after {job.step} steps"
            return STOPPED, f"stopped at step {job.step}" if job.step else "stopped before the first step"
        if last.get("event") == "failed" and not last.get("fault"):
            return FAILED, str(last.get("error"))
        with self._lock:
            killed, job.log = job.state == STOPPING, log_tail(job.folder, _LOG_LINES)
        if killed and not last:
            return STOPPED, "ended at once; the state that was saved last is kept"
        if last:
            return FAILED, str(last.get("error"))
        begun = job.steps and job.kind != "show"
        return FAILED, _death(code) + (". Continue goes on from the state saved last" if begun else "")


def _told(error: BaseException) -> str:
    """What to tell the user of whatever the host raised."""
    text = for_user(error) if isinstance(error, Exception) else None
    return text or f"{type(error).__name__}: {error}"


def _death(code: int) -> str:
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
