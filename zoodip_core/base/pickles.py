"""Pickled files as plain tensors: PyTorch's unpickler for weights alone, which runs no code in them.

It still makes what a file asks for: ten gigabytes of zeros, tensors without content, an entry that unpacks to a
thousand times its size. So a file is looked through first, for what no file of weights needs.
"""

from __future__ import annotations

import _codecs
import codecs
import contextlib
import io
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import serialization


def load_plain(path: Path, *, mmap: bool = False) -> Any:
    """A pickled file's content; the notes that training programs left beside the weights become empty.

    Raises:
        Exception: of a dozen kinds, whatever a damaged or hostile file makes of the unpickler.
    """
    _look_through(path)
    with _also_allowed([*_NOTES, *_HARMLESS]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def tensors_in(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a mapping, which a file holds, by their names; none if it is something else.

    Raises:
        ValueError: a tensor is larger than the file: one number may be spread over any size.
    """
    most = path.stat().st_size
    items = content.items() if isinstance(content, dict | torch.nn.ParameterDict) else ()
    found = {name: value for name, value in items if isinstance(name, str) and isinstance(value, torch.Tensor)}
    for name, tensor in found.items():
        if (tensor.storage_offset() + tensor.numel()) * tensor.element_size() > most:
            raise ValueError(f"{name[:80]} is a tensor {list(tensor.shape)} of fewer numbers")
    return found


def bytes_of_plain(content: Any) -> bytes:
    """The bytes of a pickled file of tensors, texts and numbers; the same content gives the same bytes.

    It is as PyTorch wrote it before 2.1: A1111 refuses a file with the entries that later versions add.
    """
    written, kept = io.BytesIO(), io.BytesIO()
    torch.save(content, written)
    with zipfile.ZipFile(written) as whole, zipfile.ZipFile(kept, "w") as file:
        for entry in whole.infolist():
            if "/." not in entry.filename:
                file.writestr(zipfile.ZipInfo(entry.filename), whole.read(entry))  # of 1980, not of now
    return kept.getvalue()


# ---------------------------------------------------------------- before it is unpickled

_PICKLES = 5
"""In a file of PyTorch before 1.6, one after another; the last names the tensors, whose bytes follow."""
_START = 64_000_000
_KNOWN = re.compile(
    r"torch(\.storage|\.cuda)? \w+Storage|torch (Size|device|[a-z]\w+)"
    r"|torch\._utils _rebuild_(tensor(_v[23])?|parameter)"
    r"|torch\.nn\.(modules\.container ParameterDict|parameter Parameter)|pytorch_lightning\.\S+ ModelCheckpoint"
    r"|collections (OrderedDict|Counter)|(builtins|__builtin__) set|_codecs encode"
    r"|numpy dtype|numpy\.dtypes \w+|numpy\._?core\.multiarray scalar"
)
_MOST_OPERATIONS = 1_000_000
_LONGEST_DIRECTORY = 8_000_000
_END = 70_000
"""Bytes at the end of a zip file among which its last records are."""
_SLOW = ("punycode", "idna")


def _look_through(path: Path) -> None:
    """Refuse a file that asks for more than tensors and notes.

    Raises:
        Exception: of several kinds, by what is wrong with it.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            file.seek(0)
            start = io.BytesIO(file.read(_START))  # of which no more is read than is there
            for _ in range(_PICKLES):
                _look_through_pickle(start)
            return
        _look_through_directory(file)
        with zipfile.ZipFile(file) as zipped:
            entries = zipped.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("it is compressed, which PyTorch's files are not")
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    _look_through_pickle(io.BytesIO(zipped.read(entry)))


def _look_through_directory(file: IO[bytes]) -> None:
    """Refuse a zip file whose directory is longer than that of any model, by the records at its end."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _END))
    end = file.read(_END)
    sizes: list[int] = []
    for mark, field, kind in ((b"PK\5\6", 12, "<I"), (b"PK\6\6", 40, "<Q")):
        at = end.rfind(mark)
        if 0 <= at <= len(end) - field - 8:
            sizes += struct.unpack_from(kind, end, at + field)
    if any(_LONGEST_DIRECTORY < size != 2**32 - 1 for size in sizes):
        raise ValueError("it has too many entries")


def _look_through_pickle(file: IO[bytes]) -> None:
    names, texts = set(), set()
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if count > _MOST_OPERATIONS:
            raise ValueError("it is too long")
        if operation.name == "GLOBAL":
            names.add(str(argument))
        elif isinstance(argument, str):
            texts.add(argument)
    unknown = sorted(name for name in names if not _KNOWN.fullmatch(name))
    if unknown:
        raise ValueError(f"it asks for {unknown[0][:80]}")
    if "_codecs encode" in names and any(map(_is_odd_codec, texts)):
        raise ValueError("it encodes in an odd way")


def _is_odd_codec(text: str) -> bool:
    """Whether a text names, however it is spelt, a way of encoding that can be repeated, or is slow.

    Hex makes bytes twice as many, and forty times that fills any memory. What makes bytes of text, as numpy notes need
    it, ends there.
    """
    try:
        codec = codecs.lookup(text)
    except (LookupError, ValueError, ImportError):
        return False
    return codec.name in _SLOW or not getattr(codec, "_is_text_encoding", True)


# ---------------------------------------------------------------- what is allowed


@contextlib.contextmanager
def _also_allowed(names: Sequence[Any]) -> Iterator[None]:
    """As PyTorch's ``safe_globals``, which 2.4 lacks."""
    before = serialization.get_safe_globals()
    serialization.add_safe_globals(list(names))
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _stand_in(module: str, name: str) -> Any:
    """What a file finds under this name: a class that takes anything and does nothing.

    The unpickler goes by a class's own names; pairs of a class and another name are not known to PyTorch 2.5.
    """
    return type(name, (), {"__module__": module, "__init__": lambda self, *_: None})


_NOTES = (
    _stand_in("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),  # in the first Stable Diffusions
    _stand_in("numpy.core.multiarray", "scalar"),
    _stand_in("numpy._core.multiarray", "scalar"),
)
_HARMLESS = (
    torch.nn.ParameterDict,  # of the first textual-inversion files
    set,
    np.dtype,
    *{type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32)},
    _codecs.encode,
)
