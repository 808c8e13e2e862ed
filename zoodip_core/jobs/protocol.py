"""What a page's process and its worker say to each other.

The page writes a job file (:mod:`.job_folder`) and starts ``python -m zoodip_core.jobs.worker JOB.json``. Events come
out as JSON lines on the worker's standard output, commands go in as JSON lines on its standard input, and the exit code
says how it ended. The end of its input is a stop: whoever started the job is gone.
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Any

CHECK, TRAIN, RESUME, SHOW, COMPARE, CAPTION = "check", "train", "resume", "show", "compare", "caption"
ASIDE = (SHOW, COMPARE, CAPTION)
"""Jobs that leave runs as they are."""
FOLLOW = "follow"
"""Of a job that another process leads, see :mod:`.cards`."""
KINDS = frozenset((CHECK, TRAIN, RESUME, SHOW, COMPARE, CAPTION, FOLLOW))
"""Of jobs."""

WAITING, RUNNING, STOPPING = "waiting", "running", "stopping"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
UNFINISHED = "unfinished"
"""Of a run whose process was cut off."""
OPEN = (WAITING, RUNNING, STOPPING)
"""States of a job that has not ended yet."""

COMMANDS = ("stop", "save", "sample")
LONGEST_COMMAND = 4096
"""Bytes of a command's line."""


class Exit(IntEnum):
    """A worker's exit code."""

    FINISHED = 0
    STOPPED = 1
    FAILED = 2
    """By what the user can mend: the event ``failed`` says how."""
    FAULT = 70
    """Of the program: its log has the traceback."""


EVENTS = {
    "checked": (
        *("settings", "model", "family", "device", "images", "captions"),
        *("forwards", "memory", "memory_in_turn", "warnings"),
    ),
    "message": ("text", "warning"),
    "started": ("step", "steps", "losses"),
    "progress": ("step", "steps", "loss", "smoothed", "rate", "eta", "memory"),
    "sampled": ("step", "path"),
    "saved": ("step", "path"),
    "shown": ("path",),
    "captioned": ("name", "caption", "done", "total"),
    "ended": ("state",),
    "failed": ("error", "fault"),
}
"""Events by name, with the fields that each of them has."""
_SOMETIMES = {
    "checked": {"masks", "sizes"},
    "progress": {"learns"},
    "sampled": {"grid"},
    "saved": {"lora"},
    "ended": {"step", "embedding", "lora"},
}
"""Fields that an event has where there is something to say."""


def event_line(event: str, **data: Any) -> bytes:
    """An event as a line.

    Raises:
        ValueError: there is no such event, or its fields are others.
    """
    if event not in EVENTS or not set(EVENTS[event]) <= data.keys() <= {*EVENTS[event], *_SOMETIMES.get(event, ())}:
        raise ValueError(f"{event} with {', '.join(data)} is not an event of a worker")
    return json.dumps({"event": event, **data}).encode() + b"\n"


def event_of(line: bytes) -> dict[str, Any] | None:
    """The event in a line, with its name under ``event``; None if the line is not a JSON object."""
    return _object_in(line)


def command_line(command: str) -> bytes:
    """A command of :data:`COMMANDS` as a line."""
    return json.dumps({"command": command}).encode() + b"\n"


def command_of(line: bytes) -> str | None:
    """The command in a line, None if it is not one."""
    command = (_object_in(line) or {}).get("command")
    return command if command in COMMANDS else None


def _object_in(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # not UTF-8, or not JSON
        return None
    return found if isinstance(found, dict) else None
