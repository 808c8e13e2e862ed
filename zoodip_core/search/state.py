"""Saved states of the search's parts, as tensors by name, and what each of them may hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch

State = dict[str, torch.Tensor]


def count_in(state: State, name: str) -> int:
    """A whole number from 0 on.

    Raises:
        KeyError: there is none of that name.
        ValueError: it is of another kind.
    """
    tensor = state[name]
    if tensor.ndim or tensor.dtype != torch.int64 or tensor < 0:
        raise ValueError(f"{name} is not a count")
    return int(tensor)


def numbers_in(state: State, name: str, shape: Sequence[int]) -> torch.Tensor:
    """A copy of a finite float64 tensor of this shape; -1 stands for any length.

    Raises:
        KeyError: there is none of that name.
        ValueError: it is of another kind or shape.
    """
    tensor = state[name]
    fits = len(tensor.shape) == len(shape) and all(
        want in (-1, have) for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype != torch.float64 or not torch.isfinite(tensor).all():
        raise ValueError(f"{name} is not a finite float64 tensor {list(shape)}")
    return tensor.clone()


def part_of(state: State, prefix: str) -> State:
    """The entries under a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
