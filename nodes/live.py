"""What a training tells the page while it runs: the chart on the node, and the live preview."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .host import Bar, Host

if TYPE_CHECKING:
    from PIL import Image

    from ..zoodip_core.base.events import Event

EVENT = "zoodip.step"
POINTS = 240
"""The most points that a chart is sent; the wire carries the whole curve each time, so that a page that
was loaded anew shows it with the next step."""
WARNINGS = 100
"""The most warnings that are sent, the last of them: a run may warn at each of its samples."""
_BETWEEN = 0.25
"""Seconds between two messages: the page cannot show more, and a step of the embedded model takes a tenth."""


class Curve:
    """A loss curve of any length in fewer than :data:`POINTS` points.

    Each point is the mean of ``stride`` steps; when there are too many, neighbours merge.
    """

    def __init__(self) -> None:
        self.stride = 1
        self._raw: list[float] = []
        self._open: list[float] = []

    def add(self, loss: float) -> None:
        self._open.append(loss)
        if len(self._open) < self.stride:
            return
        self._raw.append(sum(self._open) / self.stride)
        self._open = []
        if len(self._raw) == POINTS:
            self._raw = [(a + b) / 2 for a, b in zip(self._raw[::2], self._raw[1::2], strict=True)]
            self.stride *= 2

    def data(self) -> dict[str, Any]:
        """``stride`` and, for each of its multiples, the ``raw`` and ``smoothed`` loss."""
        from ..zoodip_core.data.curves import smooth

        return {
            "stride": self.stride,
            "raw": [round(loss, 6) for loss in self._raw],
            "smoothed": [round(point.mean, 6) for point in smooth(self._raw)],
        }


class Live:
    """Hands a training's events to the page; as a context it tells how the training was left.

    Args:
        place: where to show them.
        node: the id of the node that trains.
        workflow: the id of its workflow: another one that is open may have such a node as well.
    """

    def __init__(self, place: Host, node: str, workflow: str | None = None) -> None:
        self._place = place
        self._bar: Bar = place.bar()
        self._sent = 0.0
        self._curve = Curve()
        self._data: dict[str, Any] = {
            "node": node,
            "workflow": workflow,
            "state": "preparing",
            "text": "checking",
            "warnings": [],
        }
        self._tell()

    def __call__(self, event: Event) -> None:
        from ..zoodip_core.base.events import Message, Progress, Sampled, Started

        if isinstance(event, Message):
            if event.warning:
                self._data["warnings"] = [*self._data["warnings"], event.text][-WARNINGS:]
            self._data["text"] = event.text
            self._tell()
        elif isinstance(event, Started):
            for loss in event.losses:
                self._curve.add(loss)
            self._data |= {"state": "training", "step": event.step, "steps": event.steps}
            self._tell()
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Sampled):
            self._bar.update(event.step, self._data["steps"], side_by_side(event.images))

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        from ..zoodip_core.base.stopping import Stopped
        from ..zoodip_core.base.texts import how_many

        if isinstance(error, Stopped):
            step = self._data.get("step")
            kept = f"stopped; {how_many(step, 'step')} kept" if step else ""
            self.end(
                "stopped",
                str(error) or kept or "stopped before the first step of this run; steps saved earlier are kept",
            )
        elif error is not None:
            self.end("failed", str(error) or type(error).__name__)

    def end(self, state: str, text: str) -> dict[str, Any]:
        """Show how it ended (``finished``, ``stopped`` or ``failed``); returns the chart's last data."""
        self._data |= {"state": state, "text": text, "eta": 0}
        self._tell()
        return self._data

    def _progress(self, event: Any) -> None:
        self._curve.add(event.loss)
        self._data |= {
            "step": event.step,
            "steps": event.steps,
            "loss": event.loss,
            "smoothed": event.smoothed,
            "rate": event.steps_per_second,
            "eta": event.eta,
            "memory": event.memory,
            "text": f"learning {event.learns}" if event.learns else "",
        }
        if time.monotonic() - self._sent < _BETWEEN and event.step < event.steps:
            return
        self._tell()
        self._bar.update(event.step, event.steps)

    def _tell(self) -> None:
        self._sent = time.monotonic()
        self._data |= {"curve": self._curve.data()}
        self._place.send(EVENT, dict(self._data))


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """A few pictures of one size as a square of them."""
    from PIL import Image

    columns = max(1, round(len(pictures) ** 0.5))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    scale = max(1, 256 // max(width * columns, height * rows))  # the embedded model's pictures: show their pixels
    sheet = Image.new("RGB", (width * columns * scale, height * rows * scale))
    for i, picture in enumerate(pictures):
        tile = picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (i % columns * width * scale, i // columns * height * scale))
    return sheet
