"""What is known of a job, by what its worker told, and of a run, by what lies in its folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.texts import whole_text
from .protocol import OPEN, RUNNING, WAITING

MOST_WARNINGS = 100
"""The last ones that are kept of a job: a run may warn at each of its samples."""
_MOST = 10**15


@dataclass
class Job:
    """A job and how far it is.

    Args:
        id: of this process's jobs.
        kind: train, resume, show, compare, caption; see :mod:`tasks`.
        folder: what it makes or changes.
        token: the placeholder it is about, or what else it makes.
        file: its job file.
        state: waiting, running, stopping, finished, stopped or failed.
        message: what it does, waits for, or why it ended.
        warnings: what needs the user's eye, the last of them.
        losses: of every step so far.
        rate: steps a second.
        eta: seconds left.
        memory: peak bytes so far, if that is known.
        sample: the newest sample sheet.
        grid: what listed sample prompts drew over time; the file is the same at each sampling.
        shown: the pictures before and after, or the tokens side by side.
        embedding: the newest file of the token.
        lora: that of the weights that were learned with it, if some were.
        checked: what :func:`tasks.check` found.
        log: the end of its log, if it failed.
        captions: that were written so far, by the names of their pictures.
        behind: the token of the job that was before it in the queue; empty if there was none.
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
    grid: Path | None = None
    shown: Path | None = None
    embedding: Path | None = None
    lora: Path | None = None
    checked: dict[str, Any] | None = None
    log: str = ""
    warnings: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list, repr=False)
    captions: dict[str, str] = field(default_factory=dict, repr=False)
    behind: str = ""

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
            text = whole_text(str(event["text"]))
            self.warnings = [*(each for each in self.warnings if each != text), text][-MOST_WARNINGS:]
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
        learns = whole_text(str(event.get("learns", "")))
        self.step, self.steps, self.memory = step, steps, peak
        self.loss, self.smoothed, self.rate, self.eta = loss, smoothed, rate, eta
        self.losses.append(loss)
        if self.state == RUNNING:
            self.message = f"learning {learns}".rstrip()

    def _on_sampled(self, event: Mapping[str, Any]) -> None:
        sample, step, grid = Path(event["path"]), _count(event["step"]), event.get("grid")
        self.sample, self.sampled_step, self.grid = sample, step, Path(grid) if grid else None

    def _on_saved(self, event: Mapping[str, Any]) -> None:
        self._has_learned(event["path"], event.get("lora"))

    def _on_shown(self, event: Mapping[str, Any]) -> None:
        self.shown = Path(event["path"])

    def _on_captioned(self, event: Mapping[str, Any]) -> None:
        name, caption = whole_text(str(event["name"])), whole_text(str(event["caption"]))
        step, steps = _count(event["done"]), _count(event["total"])
        self.step, self.steps, self.captions[name] = step, steps, caption
        if self.state == RUNNING:
            self.message = caption

    def _on_ended(self, event: Mapping[str, Any]) -> None:
        if event.get("embedding"):
            self._has_learned(event["embedding"], event.get("lora"))

    def _has_learned(self, embedding: str, lora: str | None) -> None:
        files = Path(embedding), Path(lora) if lora else None
        self.embedding, self.lora = files


def _count(value: Any) -> int:
    """A number of steps or bytes.

    Raises:
        ValueError: it is more than any.
    """
    number = int(value)
    if abs(number) > _MOST:
        raise ValueError(f"{value} is not a count")
    return number


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    Args:
        name: of its folder in the home.
        folder: that folder.
        run: its :class:`RunFolder`, which may not exist yet.
        token: the placeholder.
        model: the base model, for people.
        step: completed steps, as saved.
        steps: those it was made for.
        state: finished, stopped, failed, or unfinished if its process was cut off (or is at work).
        message: why it failed, or what is damaged; else empty.
        when: its last change, in seconds since the epoch.
        embedding: the finished token, else its newest snapshot.
        before_after: the picture of the word and the token.
        loss_curve: the picture of its losses.
        sample: its newest sample sheet.
        settings: by the names of :class:`TrainConfig`.
        can_resume: whether something is left to do for ``resume_training`` without more steps.
        lora: the weights that were learned with that token, None if none were by then.
        others: of several tokens, those behind the first one and their files, from the same step.
        grid: what listed sample prompts drew over time.
    """

    name: str
    folder: Path
    run: Path
    token: str
    state: str
    message: str
    when: float
    model: str = ""
    step: int = 0
    steps: int = 0
    embedding: Path | None = None
    before_after: Path | None = None
    loss_curve: Path | None = None
    sample: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    can_resume: bool = False
    lora: Path | None = None
    others: tuple[tuple[str, Path], ...] = ()
    grid: Path | None = None

    @property
    def learned(self) -> dict[str, Path]:
        """The files of its tokens by their names, mostly one; empty if there is none yet."""
        if self.embedding is None:
            return {}
        first = self.token.split(",")[0].strip() if self.others else self.token
        return {first: self.embedding, **dict(self.others)}

    @property
    def embeddings(self) -> list[Path]:
        """The files of all its tokens."""
        return list(self.learned.values())
