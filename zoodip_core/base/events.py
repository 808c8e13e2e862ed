"""What a training tells whoever started it, and what it can be asked for meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

# ---------------------------------------------------------------- outward


@dataclass(frozen=True)
class Message:
    """A line for the user; ``warning`` if something needs their eye."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Started:
    """All is checked and loaded. ``losses`` are those of the ``step`` steps taken before, of a run that is resumed."""

    folder: Path
    step: int
    steps: int
    losses: Sequence[float] = field(repr=False)


@dataclass(frozen=True)
class Progress:
    """A completed step. ``smoothed`` is the loss's running mean; times are in seconds.

    ``memory`` is the peak of the run so far in bytes, None where that is not known. ``learns`` is what is learned by
    now in a run of two stages; empty in others.
    """

    step: int
    steps: int
    loss: float
    smoothed: float
    steps_per_second: float
    eta: float
    memory: int | None
    learns: str = ""


@dataclass(frozen=True)
class Sampled:
    """Sample images were made and saved as one sheet; ``grid`` is what listed prompts drew over time."""

    step: int
    images: list[Image.Image]
    path: Path
    grid: Path | None = None


@dataclass(frozen=True)
class Saved:
    """The state is on disk; ``embedding`` is the token as of ``step``."""

    step: int
    embedding: Path


Event = Message | Started | Progress | Sampled | Saved


# ---------------------------------------------------------------- inward


class Commands:
    """What a front may ask of a running training, from any thread.

    A stop is obeyed before the next forward pass, the others after the step under way.

    Args:
        asked_elsewhere: true once a stop was asked for by other means, as a host's own button.
    """

    def __init__(self, asked_elsewhere: Callable[[], bool] = lambda: False) -> None:
        self._asked_elsewhere = asked_elsewhere
        self._stop, self._save, self._sample = threading.Event(), threading.Event(), threading.Event()

    def stop(self) -> None:
        """Leave the step under way, save, and return; that step is taken again when the run is resumed."""
        self._stop.set()

    def save(self) -> None:
        """Save the state and a snapshot now."""
        self._save.set()

    def sample(self) -> None:
        """Make sample images now."""
        self._sample.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() or self._asked_elsewhere()

    def take_save(self) -> bool:
        return _take(self._save)

    def take_sample(self) -> bool:
        return _take(self._sample)


def _take(event: threading.Event) -> bool:
    was = event.is_set()
    event.clear()
    return was
