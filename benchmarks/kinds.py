"""Kinds of numbers in the weights that read the text: the product's cores, and the gains it does not have.

    cores             what the preset two-stage learns, of the preset's rank
    cores of rank R   the same, of another
    gains of heads    each head of each key and value projection times 1 + g: "one gain a head"
    gains of outputs  each of their outputs: PEQA's scales, of the layers that Custom Diffusion tunes

All are 0 where the weights are as they were. Of gains, ``lora`` gives the whole product, for drawing alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from zoodip_core.model.frames import Frames, frames_of, read_text, with_cores
from zoodip_core.model.lora import Lora, lora_of
from zoodip_core.train.presets import TWO_STAGE

CORES, OF_RANK, HEADS, OUTPUTS = "cores", "cores of rank ", "gains of heads", "gains of outputs"


class Kind(Protocol):
    """Numbers in a UNet's weights."""

    @property
    def numbers(self) -> int:
        """How many a candidate has."""
        ...

    def within(self, unet: nn.Module, values: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """A context in which row k of a forward has the numbers ``values[k]``, ``[K, numbers]``, in its weights."""
        ...

    def lora(self, values: torch.Tensor) -> Lora:
        """The change of the weights that numbers ``[numbers]`` make."""
        ...


@dataclass(frozen=True)
class Cores:
    """The product's."""

    frames: Frames

    @property
    def numbers(self) -> int:
        return self.frames.numbers

    def within(self, unet: nn.Module, values: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        return with_cores(unet, self.frames, values)

    def lora(self, values: torch.Tensor) -> Lora:
        return lora_of(self.frames, values, {})


@dataclass(frozen=True)
class Gains:
    """Outputs of layers, times 1 + g.

    Args:
        weights: ``[out, in]`` of each layer by its name, float32.
        groups: how many neighbouring outputs share a gain, of each.
    """

    weights: dict[str, torch.Tensor]
    groups: dict[str, int]

    @property
    def numbers(self) -> int:
        return sum(self._counts)

    @property
    def _counts(self) -> list[int]:
        return [len(weight) // self.groups[name] for name, weight in self.weights.items()]

    def _of_outputs(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """g of each layer's outputs, ``[..., out]``."""
        parts = zip(self.weights, values.split(self._counts, dim=-1), strict=True)
        return {name: part.repeat_interleave(self.groups[name], dim=-1) for name, part in parts}

    @contextlib.contextmanager
    def within(self, unet: nn.Module, values: torch.Tensor) -> Iterator[None]:
        layers, hooks = read_text(unet), []
        for name, gains in self._of_outputs(values).items():
            scale = (1 + gains)[:, None]  # the same at all places of the text
            hooks.append(layers[name].register_forward_hook(lambda _l, _i, output, scale=scale: output * scale))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def lora(self, values: torch.Tensor) -> Lora:
        gains = self._of_outputs(values)
        return Lora(
            {
                name.replace(".", "_"): (gains[name][:, None] * weight, torch.eye(weight.shape[1]))
                for name, weight in self.weights.items()
            }
        )


def kind_of(name: str, unet: nn.Module) -> Kind:
    """The kind of this name, for a UNet.

    Raises:
        ValueError: there is none.
    """
    if name == CORES or name.startswith(OF_RANK):
        return Cores(frames_of(unet, int(name.removeprefix(OF_RANK)) if name != CORES else TWO_STAGE["lora_rank"]))
    if name not in (HEADS, OUTPUTS):
        raise ValueError(f"no kind of numbers in weights is called {name!r}")
    weights = {each: layer.weight.detach().float() for each, layer in sorted(read_text(unet).items())}
    return Gains(weights, {each: _shared(unet, each, weights[each]) if name == HEADS else 1 for each in weights})


def _shared(unet: nn.Module, name: str, weight: torch.Tensor) -> int:
    """Outputs of a head of the attention that a layer belongs to."""
    attention: Any = unet.get_submodule(name.rpartition(".")[0])
    return len(weight) // int(attention.heads)
