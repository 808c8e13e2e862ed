"""A few numbers in a model's weights: small cores between the largest singular vectors of what reads the text.

Each key and value projection W of a UNet's cross attention becomes ``W + A R B``, A = U sqrt(S) and B = sqrt(S) V^T of
W's largest singular triples. A and B, the frames, stay as they are; the cores R ``[rank, rank]`` are learned. They are
added to the layer's output, whatever its weight is stored as, and each candidate of a step has its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..base import rng
from ..base.errors import ConfigError
from ..base.stopping import check_stop

Layers = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""By a layer's name in the UNet: ``[out, rank]`` and ``[rank, in]``, whose product is added to its weight."""
_PROJECTIONS = ("to_k", "to_v")
_BESIDE, _TURNS = 8, 12
"""How many singular vectors beside those wanted are looked for, and how often."""


def read_text(unet: nn.Module) -> dict[str, Any]:
    """The layers that make keys and values of the text, by their names."""
    blocks = ((name, module.attn2) for name, module in unet.named_modules() if hasattr(module, "attn2"))
    return {f"{name}.attn2.{each}": getattr(attention, each) for name, attention in blocks for each in _PROJECTIONS}


@dataclass(frozen=True, eq=False)
class Frames:
    """What cores stand between.

    Args:
        layers: A ``[out, rank]`` and B ``[rank, in]`` of each, float32.
    """

    layers: Layers

    @property
    def rank(self) -> int:
        return len(next(iter(self.layers.values()))[1])

    @property
    def numbers(self) -> int:
        """How many a candidate has: all cores, row by row, one after the other."""
        return len(self.layers) * self.rank**2

    def cores(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The cores ``[..., rank, rank]`` of each layer, of numbers ``[..., numbers]``."""
        shape = (*values.shape[:-1], len(self.layers), self.rank, self.rank)
        return dict(zip(self.layers, values.view(shape).unbind(-3), strict=True))

    def on(self, device: torch.device, dtype: torch.dtype) -> Frames:
        """A copy there."""
        return Frames({name: (a.to(device, dtype), b.to(device, dtype)) for name, (a, b) in self.layers.items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it, as a file can hold it."""
        return {
            f"{name}.{part}": each for name, pair in self.layers.items() for part, each in zip("ab", pair, strict=True)
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Frames:
        """From :meth:`tensors`, in the order of their names as a UNet has them.

        Raises:
            KeyError, ValueError: they are of another kind, or hold NaN or infinity.
        """
        names = [name.removesuffix(".a") for name in tensors if name.endswith(".a")]
        layers = {name: (tensors[f"{name}.a"], tensors[f"{name}.b"]) for name in sorted(names)}
        ranks = {(a.shape[1:], b.shape[:1]) for a, b in layers.values()}
        each = [tensor for pair in layers.values() for tensor in pair]
        if len(ranks) != 1 or len(set(*ranks)) != 1 or any(t.ndim != 2 or t.dtype != torch.float32 for t in each):
            raise ValueError("its tensors are of another kind")
        if not all(torch.isfinite(tensor).all() for tensor in each):
            raise ValueError("it holds NaN or infinity")
        return cls(layers)


def frames_of(unet: nn.Module, rank: int) -> Frames:
    """The frames of a UNet's weights as they are stored.

    Raises:
        ConfigError: the rank is above a weight's width.
        Stopped: a stop was asked for.
    """
    layers, found = read_text(unet), {}
    for name in sorted(layers):
        check_stop()
        weight = layers[name].weight.detach().float()
        if rank > min(weight.shape):
            raise ConfigError(f"lora_rank = {rank}: this model's weights have ranks of up to {min(weight.shape)}")
        left, sizes, right = _largest(weight, rank)
        roots = sizes.sqrt()
        found[name] = ((left * roots).float().cpu().contiguous(), (roots[:, None] * right).float().cpu().contiguous())
    return Frames(found)


def _largest(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest singular triples of a matrix, float64: by subspace iteration, since few of many are wanted."""
    matrix = weight.double() if weight.device.type in ("cpu", "cuda") else weight.cpu().double()
    width = min(rank + _BESIDE, *matrix.shape)
    basis = rng.normal(0, 0, "frames", (matrix.shape[1], width)).to(matrix)
    for _ in range(_TURNS):
        basis = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ basis).Q).Q
    left, sizes, right = torch.linalg.svd(matrix @ basis, full_matrices=False)
    # A triple's sign is anyone's guess: the largest number on the right is positive.
    right = right[:rank] @ basis.T
    signs = right.gather(1, right.abs().argmax(dim=1, keepdim=True)).sign()
    return left[:, :rank] * signs.T, sizes[:rank], right * signs


@contextlib.contextmanager
def with_cores(unet: nn.Module, frames: Frames, values: torch.Tensor) -> Iterator[None]:
    """Within this context row k of a forward has candidate k's cores in its weights.

    Args:
        frames: where the UNet computes, in its dtype.
        values: ``[K, numbers]`` likewise.
    """
    pairs = zip(frames.layers.items(), frames.cores(values).values(), strict=True)
    with _adding(unet, {name: _through(a, core, b) for (name, (a, b)), core in pairs}):
        yield


def _through(a: torch.Tensor, core: torch.Tensor, b: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    # One row a candidate, or all rows of the first one.
    return lambda text: (text @ b.T) @ core.mT @ a.T


@contextlib.contextmanager
def with_layers(unet: nn.Module, layers: Layers) -> Iterator[None]:
    """Within this context products of low rank are added to the UNet's weights.

    Args:
        layers: where the UNet computes, in its dtype.

    Raises:
        KeyError: it has no such layer.
    """
    with _adding(unet, {name: _product(up, down) for name, (up, down) in layers.items()}):
        yield


def _product(up: torch.Tensor, down: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x @ down.T @ up.T


@contextlib.contextmanager
def _adding(unet: nn.Module, more: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    """Within this context some layers' outputs have something added that follows from their inputs."""

    def hook_of(added: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda _layer, inputs, output: output + added(inputs[0])

    known = dict(unet.named_modules())
    hooks = [known[name].register_forward_hook(hook_of(added)) for name, added in more.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
