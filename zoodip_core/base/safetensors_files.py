"""Safetensors files, opened with a look at their size first: a header is read whole, and may be endless.

Written, the same content gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def bytes_of(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file with these torch tensors and this header; a file of ours, with ``metadata`` in it.

    The library writes header metadata in a hash map's order, another in each process.
    """
    from safetensors.torch import save

    data = save(dict(tensors), metadata=dict(metadata))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
