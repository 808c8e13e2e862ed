"""Pickled files as plain tensors: PyTorch's unpickler for weights alone, which runs no code in them."""

from __future__ import annotations

import _codecs
import contextlib
import mmap
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import serialization

_OF_ANY_SIZE = b"bytearray"
"""What PyTorch's unpickler would make in any size of a number alone. No weights are kept in one."""


def load_plain(path: Path, *, mmap: bool = False) -> Any:
    """A pickled file's content; the notes that training programs left beside the weights become empty.

    Raises:
        Exception: of a dozen kinds, whatever a damaged or hostile file makes of the unpickler.
    """
    _check_size(path)
    with _also_allowed([*_NOTES, *_HARMLESS]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _check_size(path: Path) -> None:
    """Refuse what is small as a file and large in memory. PyTorch packs its files without compressing them."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":  # as PyTorch tells the two kinds apart
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                harmless = content.find(_OF_ANY_SIZE) < 0
        else:
            with zipfile.ZipFile(file) as archive:
                listed = archive.infolist()
                packed = any(each.compress_type != zipfile.ZIP_STORED for each in listed)
                if packed or sum(each.file_size for each in listed) > path.stat().st_size:
                    raise ValueError("it is packed otherwise than PyTorch packs its files")
                pickles = [each for each in listed if each.filename.endswith("data.pkl")]
                harmless = not any(_OF_ANY_SIZE in archive.read(each) for each in pickles)
    if not harmless:
        raise ValueError("it asks for memory that it does not fill")


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
