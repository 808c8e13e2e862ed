"""The one smoother of every loss chart: in a run's folder, on the page, on ComfyUI's node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

POINTS = 240
"""The most points of a chart."""
_ENDLESS = 1e100
"""From here on a loss is as good as infinite, and its square may be."""


@dataclass(frozen=True)
class Point:
    """A point of a smoothed curve.

    Args:
        step: its place, in steps from 1.
        mean: of the losses around it.
        spread: their standard deviation.
    """

    step: float
    mean: float
    spread: float


def smooth(losses: Sequence[float], most: int = POINTS) -> list[Point]:
    """The mean and the standard deviation of about a tenth of the losses around each of at most so many points.

    Losses that are not finite are left out.
    """
    each = max(1, math.ceil(len(losses) / most))
    groups = []
    for first in range(0, len(losses), each):
        group = losses[first : first + each]
        finite = [loss for loss in group if abs(loss) < _ENDLESS]
        if finite:
            sums = len(finite), sum(finite), sum(loss * loss for loss in finite)
            groups.append((first + (len(group) + 1) / 2, sums))
    half = max(1, len(groups) // 20)
    points = []
    for i, (place, _) in enumerate(groups):
        around = (sums for _, sums in groups[max(0, i - half) : i + half + 1])
        count, total, squares = map(sum, zip(*around, strict=True))
        mean = total / count
        points.append(Point(place, mean, math.sqrt(max(0.0, squares / count - mean**2))))
    return points
