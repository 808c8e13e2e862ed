"""Errors in float64: their small differences steer the search, and not every device can hold them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, on a device that has it, which Apple's graphics cards have not."""
    return (tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()).double()


def mean_squares(
    predicted: Sequence[torch.Tensor], target: torch.Tensor, places: torch.Tensor | None = None
) -> torch.Tensor:
    """How far each prediction is off, float64 ``[K]`` on the CPU.

    Args:
        predicted: K tensors ``[1, channels, ...]`` on any device.
        target: float64 of the same shape.
        places: float64 ``[height, width]``: how much squared errors count at each place; None: 1.
    """
    found = []
    for each in map(exact, predicted):
        squares = (each - target.to(each.device)).square()
        found.append((squares if places is None else squares * places.to(each.device)).mean())
    return torch.stack(found).cpu()
