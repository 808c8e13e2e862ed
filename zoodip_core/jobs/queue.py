"""Jobs of a web page: one after another, each in a worker process, while the host's own models are out of the way.

This side loads no model. What a job told so far is kept in its :class:`Job`, for any number of pages to look at.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..base.errors import ConfigError, RunFolderError, for_user
from ..base.stopping import Stopped
from ..base.texts import how_many
from .environment import Trainer
from .job import Job
from .job_folder import LOG, log_tail, write_task
from .process import LOG_LINES, Worker, death, python_of
from .protocol import ASIDE, FAILED, FINISHED, RUNNING, STOPPED, STOPPING, WAITING

_PATIENCE = 0.2
"""Seconds between two looks at the host's stop button."""


class JobHost(Protocol):
    """What jobs ask of the program that the page runs in."""

    def device(self, waiting: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
        """The graphics card to ourselves: waits for the host's own work, frees its memory, gives it back.

        Args:
            waiting: called with what is waited for, where it is not free at once; and called again when the wait
                is over, before anything is taken. It raises ``Stopped`` where nobody wants the card any more.
        """
        ...

    def interrupted(self) -> bool:
        """Whether the user pressed the host's own stop button since the card became ours."""
        ...

    def show(self, job: Job) -> None:
        """Show a running job on the host's own progress bar."""
        ...


# ---------------------------------------------------------------- one after another


class Jobs:
    """The page's jobs: they run one after another, and further ones wait.

    Args:
        host: the program that the page runs in.
        trainer: finds the Python that runs them.
        done: called with each job that has ended, its state and message set; returns what the user should know
            besides, or nothing.
    """

    def __init__(self, host: JobHost, trainer: Callable[[], Trainer], done: Callable[[Job], str]) -> None:
        self._host, self._trainer, self._done = host, trainer, done
        self._lock = threading.RLock()
        self._jobs: dict[int, Job] = {}
        self._ids = itertools.count(1)
        self._queue: queue.Queue[Job] = queue.Queue()
        self._workers: dict[int, Worker] = {}
        self._thread: threading.Thread | None = None
        self._last: Job | None = None
        """That ended after it was at work."""

    def submit(self, kind: str, folder: Path, token: str, *, warnings: Sequence[str] = (), **more: Any) -> Job:
        """Queue a job, and return a copy of it.

        Args:
            kind: train, resume, show, compare or caption.
            folder: its folder, which exists.
            token: the placeholder.
            warnings: what needs the user's eye already.
            more: settings, preset, learn_weights, changes, runs, prompt, until and caption_with, as in the job file.

        Raises:
            RunFolderError: the folder is in another job's hands.
            StorageError: the job file cannot be written.
            ConfigError: nothing here can run it.
        """
        python_of(self._trainer())  # refuse now, not when its turn comes
        with self._lock:
            if any(job.open and job.folder == folder for job in self._jobs.values()):
                raise RunFolderError(f"{folder.name} is being worked on already; wait for it, or stop it first")
            file = write_task(folder, kind, folder, **more)
            ahead = [job for job in self._jobs.values() if job.open]
            job = Job(next(self._ids), kind, folder, token, file, warnings=list(warnings))
            if ahead:
                job.behind = ahead[-1].token
                job.message = f"waiting for {job.behind} to end"
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
        """A copy of the job at work, else of the next one that waits, else of the last one that was at work."""
        with self._lock:
            jobs = list(self._jobs.values())
            at_work = [job for job in jobs if job.state in (RUNNING, STOPPING)] or [job for job in jobs if job.open]
            ended = [self._last] if self._last else jobs[-1:]
            return next(map(self._copy, at_work or ended), None)

    def _find(self, number: int) -> Job:
        if number not in self._jobs:
            raise ConfigError(f"there is no job {number}; jobs are forgotten when the program is started again")
        return self._jobs[number]

    @staticmethod
    def _copy(job: Job) -> Job:
        twin = copy.copy(job)
        twin.warnings, twin.losses, twin.captions = list(job.warnings), list(job.losses), dict(job.captions)
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
                if job.state != STOPPED:  # else it was stopped before it began
                    self._last = job
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
            if job.kind in ASIDE:
                return (FINISHED, "finished") if last.get("state") == FINISHED else (STOPPED, "stopped")
            if last.get("state") == FINISHED:
                return FINISHED, f"finished after {how_many(job.step, 'step')}"
            return STOPPED, f"stopped at step {job.step}" if job.step else "stopped before the first step"
        if last.get("event") == "failed" and not last.get("fault"):
            return FAILED, str(last.get("error"))
        with self._lock:
            killed, job.log = job.state == STOPPING, log_tail(job.folder, LOG_LINES)
        if killed and not last:
            return STOPPED, "ended at once; the state that was saved last is kept"
        if last:
            return FAILED, str(last.get("error"))
        begun = job.steps and job.kind not in ASIDE
        return FAILED, death(code) + (". Resume starts from the state saved last" if begun else "")


def _told(error: BaseException) -> str:
    """What to tell the user of whatever the host raised."""
    text = for_user(error) if isinstance(error, Exception) else None
    return text or f"{type(error).__name__}: {error}"
