"""A safetensors file written tensor by tensor: only its header is known before, so no more than one is held."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import BinaryIO

import torch

from ..base.errors import ModelError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Of types, in a header."""


class Layout:
    """Where each tensor lies in a file: the widest types first, so that each number is aligned.

    Args:
        tensors: by their names, of which shape and type count; so they may be on the meta device.
        metadata: texts by their names.

    Raises:
        ModelError: a tensor is of a type that models do not have.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        self._entries: dict[str, dict[str, object]] = {}
        self._starts: dict[str, int] = {}
        end = 0
        for name, tensor in sorted(tensors.items(), key=lambda each: (-each[1].element_size(), each[0])):
            if tensor.dtype not in _NAMES:
                raise ModelError(f"model: {name} is of type {tensor.dtype}, which is not supported; get another file")
            start, end = end, end + tensor.numel() * tensor.element_size()
            about: dict[str, object] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
            self._entries[name], self._starts[name] = about, start
        self._lock = threading.Lock()
        self._first = len(self._header(metadata))
        self.size = self._first + end
        """Bytes of the whole file."""

    def write(self, file: BinaryIO, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write some of the tensors, on the CPU, to their places; several threads may.

        Raises:
            ValueError: one is of another type or shape than in the layout.
        """
        for name, tensor in tensors.items():
            about = self._entries[name]
            if [about["dtype"], about["shape"]] != [_NAMES.get(tensor.dtype), list(tensor.shape)]:
                raise ValueError(f"{name} is another tensor than the layout was made for")
            content = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
            with self._lock:
                file.seek(self._first + self._starts[name])
                file.write(content)

    def write_header(self, file: BinaryIO, metadata: Mapping[str, str]) -> None:
        """Write what makes the tensors a file.

        Raises:
            ValueError: the metadata is not as long as what the layout was made with.
        """
        header = self._header(metadata)
        if len(header) != self._first:
            raise ValueError("the header has another length")
        file.seek(0)
        file.write(header)

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        text = json.dumps({"__metadata__": dict(metadata), **self._entries}, separators=(",", ":"))
        content = text.encode()
        content += b" " * (-len(content) % 8)
        return len(content).to_bytes(8, "little") + content
