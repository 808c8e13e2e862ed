"""The tensors that a quantised weight is kept in, by their names and shapes."""

from __future__ import annotations

from collections.abc import Collection

import torch

PARTS = ("data", "scale", "shift")
"""The tensors of a quantised weight; ``shift`` only of int4."""
Parts = dict[str, torch.Tensor]


def group_size(shape: torch.Size | tuple[int, ...]) -> int | None:
    """How many int4 weights share a scale: 128, or fewer where the inputs do not divide, or all of an output's."""
    inputs = shape[1:].numel() if isinstance(shape, torch.Size) else int(torch.Size(shape[1:]).numel())
    return next((size for size in (128, 96, 64, 32) if inputs > 128 and inputs % size == 0), None)


def part_shapes(shape: torch.Size, parts: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of a quantised weight's parts; with ``shift`` among them it is int4, in groups."""
    group = group_size(shape) if "shift" in parts else None
    rows, row = (shape[0], shape[1:]) if group is None else (shape.numel() // group, (group,))
    scales = (rows, *(1,) * len(row))
    if "shift" not in parts:
        return {"data": tuple(shape), "scale": scales}
    return {"data": ((rows + 1) // 2, *row), "scale": scales, "shift": scales}


def empty_parts(shape: torch.Size, weights: str) -> Parts:
    """The parts of a weight quantised as ``weights``, on the meta device: shapes and types without content."""
    kind = {"int8": torch.int8, "int4": torch.uint8, "float8": torch.float8_e4m3fn}[weights]
    shapes = part_shapes(shape, PARTS if weights == "int4" else PARTS[:2])
    return {
        name: torch.empty(size, dtype=kind if name == "data" else torch.float32, device="meta")
        for name, size in shapes.items()
    }
