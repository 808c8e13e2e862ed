"""A program for the page to be part of, that needs no webui; and workers that misbehave on demand."""

from __future__ import annotations

import contextlib
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zoodip_core.jobs.job import Job

LIMIT = 600.0
"""Seconds that a busy computer may take for what an idle one does at once."""


class FakePageHost:
    """Implements ``zoodip_core.page.studio.PageHost`` on folders below ``root``.

    Args:
        root: gets ``home``, ``models``, ``embeddings`` and ``loras``.
        python: the user's choice of one for the trainer.
    """

    shares_page = False

    def __init__(self, root: Path, python: Path | str = "") -> None:
        self.root, self.chosen = root, str(python)
        self.calls: list[str] = []
        """``taken`` and ``given back`` for the device, ``embeddings changed`` and ``loras changed``, in order."""
        self.idle = threading.Event()
        """Whether the program does no work of its own on the device."""
        self.idle.set()
        self.alone = True
        """Whether nobody but its user can reach the page."""
        self.stop_pressed = False
        """The program's own stop button."""
        self.shown: list[Job] = []
        """What its progress bar showed."""
        self.fails: dict[str, BaseException] = {}
        """What is raised by ``taken``, ``given back``, ``show``, ``embeddings changed`` or ``loras changed``."""
        self.embeddings: Path | None = root / "embeddings"
        self.loras: Path | None = root / "loras"
        for name in ("home", "models", "embeddings", "loras"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def _call(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]
        self.calls.append(name)

    def home(self) -> Path:
        return self.root / "home"

    def models(self) -> dict[str, Path]:
        return {path.name: path for path in sorted((self.root / "models").iterdir())}

    def embeddings_folder(self) -> Path | None:
        return self.embeddings

    def embeddings_changed(self) -> None:
        self._call("embeddings changed")

    def loras_folder(self) -> Path | None:
        return self.loras

    def loras_changed(self) -> None:
        self._call("loras changed")

    def python(self) -> str:
        return self.chosen

    def defaults(self) -> dict[str, Any]:
        return {}

    def for_its_user(self) -> bool:
        return self.alone

    @contextlib.contextmanager
    def device(self, waiting: Callable[[str], None]) -> Iterator[None]:
        if not self.idle.is_set():
            waiting("waiting for a picture to be drawn")
            assert self.idle.wait(LIMIT)
            waiting("it is idle now")
        self._call("taken")
        try:
            yield
        finally:
            self._call("given back")

    def interrupted(self) -> bool:
        return self.stop_pressed

    def show(self, job: Job) -> None:
        if "show" in self.fails:
            raise self.fails["show"]
        self.shown.append(job)


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, and fail if nothing comes of it."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.02)


_SCRIPT = """
import json, os, select, signal, sys, time
from pathlib import Path

job = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8"))
folder = Path(job["folder"])

def raw(data):
    while data:
        data = data[os.write(1, data):]

def send(event, **more):
    raw(json.dumps({"event": event, **more}).encode() + b"\\n")

def progress(step, **more):
    figures = {"steps": 9, "loss": step / 8, "smoothed": 0.5, "rate": 2.0, "eta": 4.5, "memory": None}
    send("progress", step=step, **{**figures, **more})

def command():
    line = sys.stdin.readline()
    return json.loads(line)["command"] if line else "nobody is there"

"""


def fake_worker(folder: Path, does: str = 'exec(job["settings"]["does"])') -> Path:
    """A program to be started in place of the Python that trains, made in ``folder``.

    Args:
        folder: gets two files.
        does: in Python, with the above at hand; by default what the job's setting ``does`` says.
    """
    script, program = folder / "fake_worker.py", folder / "fake_python"
    script.write_text(_SCRIPT + does, encoding="utf-8")
    # -S: starts in no time
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {shlex.quote(str(script))} "$@"\n')
    program.chmod(0o755)
    return program


def log_of(folder: Path) -> str:
    """A job's log."""
    return (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
