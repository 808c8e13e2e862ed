"""Safetensors files, opened with a look at their size first: a header is read whole, and may be endless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

MOST_TENSORS = 50_000
_LONGEST_HEADER = 16_000_000


def open_safetensors(path: Path) -> Any:
    """The file for reading tensors by their names, on the CPU.

    Raises:
        ValueError: its header is larger than that of any model.
        SafetensorError: it is not a safetensors file, or damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if _LONGEST_HEADER < length < path.stat().st_size:
        raise ValueError(f"its header has {length / 1e6:.0f} MB")
    opened: Any = safe_open(path, framework="pt")
    count = len(opened.keys())
    if count > MOST_TENSORS:
        raise ValueError(f"it has {count} tensors")
    return opened
