"""What lies in the folder of a page's run beside the run itself: what was asked, how it ended, its log."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..base.files import is_newer, read_object, storage_errors, write_atomically
from ..base.texts import parse_json
from .protocol import ASIDE, FAILED, FINISHED, KINDS, STOPPED

VERSION = 1
TASK = "task.json"
"""What a page asked of a run's worker last, but for what leaves what is known of the run as it is."""
DRAWING = "drawing.json"
OUTCOME, LOG, RUN, BEFORE_AFTER = "outcome.json", "log.txt", "run", "before_after.png"
COMPARISON = "comparison.png"
"""In a folder of its own beside the runs."""
WITH_WEIGHTS = "two-stage"
"""The preset that says what it means to learn weights as well, whatever preset the token is learned with."""
_MOST_LOG = 64_000


@dataclass(frozen=True)
class Task:
    """What a job file asks for.

    Args:
        kind: check, train, resume, show, compare, caption, follow.
        folder: where it all goes; a run is made or is to be found in its ``run``, or is the folder itself.
        settings: of a new run, by the names of :class:`TrainConfig`; the rest is the preset's for the model. To follow,
            all of them.
        preset: one of :data:`~..train.presets.PRESETS`.
        changes: settings that differ when a run is resumed.
        file: the job file.
        resumed: whether the run that is followed has begun before.
        learn_weights: whether weights are learned after the token, as :data:`WITH_WEIGHTS` does where the settings
            do not say how.
        runs: the folders of the runs that are compared, as :attr:`run` is found in ``folder``.
        prompt: that they are compared with; empty for their own.
        until: shares of the steps in which their tokens stand in it, a row for each.
        caption_with: the model that writes captions: an absolute path, or a name in Hugging Face's cache.
    """

    kind: str
    folder: Path
    settings: dict[str, Any]
    preset: str
    changes: dict[str, Any]
    file: Path = Path()
    resumed: bool = False
    learn_weights: bool = False
    runs: tuple[Path, ...] = ()
    prompt: str = ""
    caption_with: str = ""
    until: tuple[float, ...] = (1.0,)

    @classmethod
    def read(cls, file: Path) -> Task:
        """Read a job file.

        Raises:
            ConfigError: it is not one, or of another version.
        """
        with storage_errors(file):
            content = file.read_bytes()
        try:
            data = parse_json(content)
            if is_newer(data["version"], VERSION):
                raise ConfigError(f"{file} is a job of a newer ZOODiP; update ZOODiP, or start the job again")
            if data["version"] != VERSION or data["kind"] not in KINDS:
                raise ConfigError(f"{file} is a job of another version of ZOODiP; start the job again")
            settings, changes = dict(data.get("settings", {})), dict(data.get("changes", {}))
            where, resumed, weights = Path(data["folder"]), bool(data.get("resumed")), bool(data.get("learn_weights"))
            runs, prompt = tuple(map(Path, data.get("runs", ()))), str(data.get("prompt", ""))
            preset, captioner = preset_in(data), str(data.get("caption_with", ""))
            until = tuple(map(float, data.get("until", (1.0,))))
            more = (file, resumed, weights, runs, prompt, captioner, until)
            return cls(data["kind"], where, settings, preset, changes, *more)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{file} is not a job file ({error}); start the job again") from error

    @property
    def run(self) -> Path:
        """The run's folder."""
        return run_in(self.folder)


def run_in(folder: Path) -> Path:
    """The run's own folder in that of a page's run, which it is itself if the command line made it."""
    return folder if (folder / "config.json").is_file() else folder / RUN


def preset_in(task: dict[str, Any]) -> str:
    """The preset that a job file names; it was called pace once."""
    return str(task.get("preset", task.get("pace", "default")))


def write_task(folder: Path, kind: str, work_on: Path, **more: Any) -> Path:
    """Write a job file into ``folder``, for a worker; ``more`` are settings, preset, learn_weights, changes,
    runs, prompt, until, caption_with.

    Raises:
        StorageError: it cannot be written.
    """
    task = {"version": VERSION, "id": secrets.token_hex(8), "kind": kind, "folder": str(work_on), **more}
    file = folder / (DRAWING if kind in ASIDE else TASK)
    write_atomically(file, json.dumps(task, indent=2))
    return file


def task_of(folder: Path) -> dict[str, Any]:
    """What a page asked of a run's worker last; empty if nothing, or it cannot be read."""
    task = read_object(folder / TASK)
    return task if task.get("version") == VERSION and isinstance(task.get("kind"), str) else {}


def write_outcome(folder: Path, state: str, message: str) -> None:
    """Write how a run ended that did what its job file asks.

    Args:
        state: finished, stopped or failed.
        message: why it failed.

    Raises:
        StorageError: it cannot be written.
    """
    if state not in (FINISHED, STOPPED, FAILED):
        raise ValueError(f"state = {state!r}: a run that has ended is finished, stopped or failed")
    ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
    outcome = {"version": VERSION, "task": task_of(folder).get("id"), "state": state, "message": message}
    write_atomically(folder / OUTCOME, json.dumps({**outcome, "ended": ended}, indent=2))


def log_tail(folder: Path, lines: int = 20) -> str:
    """The last lines of a run's log, empty if there is none. However long it is, little is read."""
    try:
        if not (folder / LOG).is_file():  # a pipe would be waited for
            return ""
        with (folder / LOG).open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _MOST_LOG)
            file.seek(start)
            text = file.read(_MOST_LOG).decode("utf-8", "replace")
    except OSError:
        return ""
    found = text.splitlines()
    if start and len(found) > 1:
        del found[0]  # begun before the part that was read
    return "\n".join(found[-lines:]) if lines > 0 else ""
