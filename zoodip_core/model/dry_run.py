"""A forward pass without content: what it would hold at once. Networks on the meta device have shapes alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .blueprint import Blueprint
from .quantize import QuantizedLayer, stored_bytes, weights_of
from .quantized import QuantizedModel
from .quantized_parts import Parts, empty_parts
from .token_table import table_of

_META = torch.device("meta")
Sides = int | tuple[int, int]
"""Pixels a side of a square, or height and width."""
_REMEMBERED = 64
"""Results that are kept; each is a few numbers, and the configs that it belongs to."""


@dataclass(frozen=True)
class StepNeeds:
    """What a training step takes, in bytes.

    Args:
        weights: of the UNet and each text encoder, by component.
        activations: peak above them.
        largest: numbers in the UNet's largest Linear or Conv2d weight.
    """

    weights: Mapping[str, int]
    activations: int
    largest: int


def step_needs(blueprint: Blueprint, weights: str, dtype: torch.dtype, resolution: Sides, batch: int) -> StepNeeds:
    """A step on ``batch`` candidates at once. The same question is answered from memory.

    Raises:
        ModelError: the model cannot be built.
    """
    return _step_needs(_plan_of(blueprint), weights, dtype, sides_of(resolution), batch)


def encoding_needs(blueprint: Blueprint, dtype: torch.dtype, resolution: Sides) -> int:
    """Peak bytes of encoding a picture, the VAE's encoder included. The same question is answered from memory.

    Raises:
        ModelError: the model cannot be built.
    """
    return _encoding_needs(_plan_of(blueprint), dtype, sides_of(resolution))


def sides_of(resolution: Sides) -> tuple[int, int]:
    """Height and width."""
    return (resolution, resolution) if isinstance(resolution, int) else resolution


@dataclass(frozen=True)
class _Plan:
    """A model as far as its memory goes, without its files; two with the same ``key`` take the same."""

    key: str
    blueprint: Blueprint = field(compare=False)

    def model(self, weights: str, dtype: torch.dtype) -> QuantizedModel:
        readers: dict[str, Any] = {part: _EmptyReader(weights_of(part, weights)) for part in self.blueprint.readers}
        return QuantizedModel(replace(self.blueprint, readers=readers), weights, dtype, _META, _META)


def _plan_of(blueprint: Blueprint) -> _Plan:
    words = [(str(folder), pad, _stamps(folder)) for folder, pad in blueprint.tokenizers]
    none: dict[str, Any] = dict.fromkeys(blueprint.readers)
    key = json.dumps([blueprint.configs, blueprint.info.dims, words], sort_keys=True, default=repr)
    return _Plan(key, replace(blueprint, readers=none, held=None))


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


@functools.lru_cache(_REMEMBERED)
@torch.no_grad()
def _step_needs(plan: _Plan, weights: str, dtype: torch.dtype, sides: tuple[int, int], batch: int) -> StepNeeds:
    model = plan.model(weights, dtype)
    dims, factor = sum(model.info.dims), 2 ** (len(model.blueprint.configs["vae"]["block_out_channels"]) - 1)
    noisy = torch.empty(1, 4, *(side // factor for side in sides), device=_META, dtype=dtype)
    prompt = model.prompt("a {}", 1)

    def forward() -> None:
        condition = model.encode(prompt, torch.empty(batch, 1, dims, device=_META))
        model.predict(noisy, 500, condition, torch.empty(6, device=_META))

    for encoder, encoded in zip(model.text_encoders, prompt, strict=True):
        table_of(encoder).keep(encoded.ids[0].tolist())
    kinds = (QuantizedLayer, nn.Linear, nn.Conv2d)
    layers = [layer for layer in model.unet.modules() if isinstance(layer, kinds)]
    shapes = [layer.shape if isinstance(layer, QuantizedLayer) else layer.weight.shape for layer in layers]
    with _NoAttentionMatrix():
        return StepNeeds(model.stored_bytes(), peak_of(forward), max(shape.numel() for shape in shapes))


@functools.lru_cache(_REMEMBERED)
@torch.no_grad()
def _encoding_needs(plan: _Plan, dtype: torch.dtype, sides: tuple[int, int]) -> int:
    with plan.model("none", dtype).vae("encoder") as vae, _NoAttentionMatrix():
        picture = torch.empty(1, 3, *sides, device=_META, dtype=vae.dtype)
        return stored_bytes(vae) + peak_of(lambda: vae.encode(picture))


@dataclass(frozen=True)
class _EmptyReader:
    """Parameters that have a shape and no content."""

    weights: str

    def parameter(self, _name: str, shape: Sequence[int]) -> torch.Tensor:
        return torch.empty(tuple(shape), device=_META)

    def quantized(self, _name: str, shape: torch.Size) -> Parts | None:
        return empty_parts(shape, self.weights)

    def close(self) -> None:
        pass


class _NoAttentionMatrix(TorchFunctionMode):
    """Attention that makes its output alone, as the fused kernels do that run in earnest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(kwargs["query"] if kwargs and "query" in kwargs else args[0])
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------- what lives at once


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes of tensors that ``work`` held at once, above what was held before; not for CUDA's."""
    with _Meter() as meter:
        work()
    return meter.peak


class _Meter(TorchDispatchMode):
    """Adds up the storages that operations make, as long as each lives.

    What an operation makes of tensors without content follows from their shapes; PyTorch works it out in Python, which
    is most of a dry run's time. So it is asked once for the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._made: dict[Any, list[tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key = _shapes_in(func, args, kwargs)
        if key in self._made:
            made = [torch.empty_strided(*shape, dtype=dtype, device=_META) for shape, dtype in self._made[key]]
            self._count(made, set())
            return made[0] if len(made) == 1 else tuple(made)
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        if key is not None:
            self._remember(key, result, given)
        self._count(result, given)
        return result

    def _remember(self, key: Any, result: Any, given: set[int]) -> None:
        """What was made, if it can be made again from shapes alone."""
        made = [result] if isinstance(result, torch.Tensor) else list(result) if isinstance(result, tuple) else []
        if made and all(isinstance(each, torch.Tensor) and _is_plain(each, given) for each in made):
            self._made[key] = [((each.shape, each.stride()), each.dtype) for each in made]

    def _count(self, result: Any, given: set[int]) -> None:
        for storage in _storages(result):
            if storage._cdata not in given:  # else a view, or changed in place
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))


def _is_plain(tensor: torch.Tensor, given: set[int]) -> bool:
    """Whether it is new, without content, and as large as its shape says."""
    storage = tensor.untyped_storage()
    alike = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)
    return tensor.is_meta and storage._cdata not in given and storage.nbytes() == alike.untyped_storage().nbytes()


def _shapes_in(func: Any, args: Any, kwargs: Any) -> Any:
    """All that an operation on tensors without content depends on; None of one that changes or looks into them."""
    schema = func._schema
    if schema.is_mutable or any(each.alias_info for each in schema.returns):
        return None
    leaves, form = tree_flatten((args, kwargs))
    found: list[Any] = [func, form]
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            if not leaf.is_meta:
                return None
            found.append((leaf.shape, leaf.stride(), leaf.dtype))
        else:
            found.append((type(leaf), leaf))  # 1, 1.0 and True are equal, and make other types
    return tuple(found)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]
