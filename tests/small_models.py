"""Small checkpoints of a family, changed as programs change them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import random_models
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Tensors]


class SmallModels:
    """Models of random weights, each family made once.

    Args:
        folder: where files are written; each takes the place of the last one of its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[tuple[str, int], tuple[dict[str, Any], Tensors]] = {}

    def modules(self, family: str, vocab: int = 100) -> dict[str, Any]:
        """The modules that a file of the family is written from."""
        return self._of(family, vocab)[0]

    def tensors(self, family: str, vocab: int = 100) -> Tensors:
        """A single file's tensors."""
        return dict(self._of(family, vocab)[1])

    def write(self, family: str, change: Change = dict, name: str = "", vocab: int = 100, **metadata: str) -> Path:
        """A single file, changed."""
        return self.save(change(self.tensors(family, vocab)), name or family, **metadata)

    def save(self, tensors: Tensors, name: str, **metadata: str) -> Path:
        """A safetensors file."""
        path = self.folder / f"{name}.safetensors"
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, path, metadata={"format": "pt", **metadata})
        return path

    def _of(self, family: str, vocab: int) -> tuple[dict[str, Any], Tensors]:
        if (family, vocab) not in self._known:
            modules = random_models.build(family, "small", 4, vocab=vocab)
            path = random_models.write_ldm(self.folder / "plain.safetensors", modules, family)
            self._known[family, vocab] = modules, load_file(path)
        return self._known[family, vocab]


def cut(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Those under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors under a prefix."""
    return {prefix + name: tensor for name, tensor in tensors.items()}
