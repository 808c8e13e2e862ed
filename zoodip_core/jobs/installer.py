"""Starts the installation of the trainer's own environment, in a process of its own, and keeps what it tells.

What installs is ``install.py`` in the repository; nothing here or elsewhere in the package runs pip.
"""

from __future__ import annotations

import collections
import contextlib
import os
import subprocess
import threading

from ..base.errors import ConfigError
from .environment import ROOT, clean_env, this_python

SCRIPT = ROOT / "install.py"
WINDOWS = os.name == "nt"
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)
_KEPT = 200


class Installer:
    """At most one installation at a time, which goes on when the page is reloaded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT)

    @property
    def running(self) -> bool:
        """Whether it is at work."""
        with self._lock:
            return self._process is not None and self._process.poll() is None

    @property
    def failed(self) -> bool:
        """Whether the last one ended without success."""
        with self._lock:
            return self._process is not None and self._process.poll() not in (None, 0)

    def lines(self, count: int = 12) -> list[str]:
        """The last lines it told."""
        with self._lock:
            return list(self._lines)[-count:]

    def start(self) -> None:
        """Start, unless it is at work already.

        Raises:
            ConfigError: the script is not there, or cannot be started.
        """
        python = this_python()
        if python is None or not SCRIPT.is_file():
            missing = "a Python" if python is None else SCRIPT
            raise ConfigError(f"{missing} is missing; install the packages of requirements.txt by hand")
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return
            self._lines.clear()
            try:
                self._process = subprocess.Popen(
                    [str(python), str(SCRIPT), "--trainer", "--yes"],
                    cwd=ROOT,
                    env=clean_env(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    creationflags=_NO_WINDOW,
                )
            except OSError as error:
                raise ConfigError(f"{python} cannot be started: {error.strerror}") from error
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in pipe:
                with self._lock:
                    self._lines.append(line.rstrip())
        process.wait()

    def stop(self) -> None:
        """Stop it, and pip with it; the next start resumes with what is there."""
        with self._lock, contextlib.suppress(OSError):
            if self._process is None or self._process.poll() is not None:
                return
            if WINDOWS:  # which ends a process without a word to it: pip would go on
                tree = ["taskkill", "/PID", str(self._process.pid), "/T", "/F"]
                subprocess.run(tree, capture_output=True, check=False, creationflags=_NO_WINDOW)
            self._process.terminate()
