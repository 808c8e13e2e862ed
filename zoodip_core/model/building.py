"""Networks built empty and filled from a checkpoint layer by layer, quantised on the way.

So loading never holds more than the quantised network and one layer in full precision.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..base.errors import ModelError
from ..base.stopping import check_stop
from .checkpoints import Checkpoint
from .ldm import Source
from .quantize import PARTS, Parts, QuantizedLayer, part_shapes, quantize_weight
from .tokens import TokenTable

_GIVE_BACK = 8_000_000
"""Parameters after which freed memory goes back to the system."""


class ParameterSource(Protocol):
    """Where a network's parameters come from."""

    def parameter(self, name: str, shape: Sequence[int], /) -> torch.Tensor: ...

    def quantized(self, name: str, shape: torch.Size, /) -> Parts | None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class ComponentReader:
    """A component's parameters in a checkpoint.

    Args:
        checkpoint: the file or files.
        locate: from a parameter's name to its place.
    """

    checkpoint: Checkpoint
    locate: Callable[[str], Source]

    def parameter(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The parameter as the file has it, on the CPU, perhaps mapped.

        Raises:
            ModelError: it is not there, or of another size.
        """
        source = self.locate(name)
        where = self.checkpoint.files[0]
        if source.name not in self.checkpoint.shapes:
            raise ModelError(
                f"model: {where} has no {source.name}; it is cut down, damaged, or of a variant that is not supported"
            )
        try:
            return source.take(self.checkpoint.tensor(source.name), tuple(shape))
        except ValueError as error:
            have = list(self.checkpoint.shapes[source.name])
            raise ModelError(
                f"model: {where}: {source.name} has shape {have}, expected one for {list(shape)}; "
                "it is damaged, or of a variant that is not supported"
            ) from error

    def quantized(self, name: str, shape: torch.Size) -> Parts | None:
        """The parts of a weight of ``shape`` that is stored quantised already, or None.

        Raises:
            ModelError: they are not of that shape.
        """
        names = {part: self.locate(f"{name}.{part}").name for part in PARTS}
        if names["data"] not in self.checkpoint.shapes:
            return None
        stored = {part: stored_as for part, stored_as in names.items() if stored_as in self.checkpoint.shapes}
        sizes = {part: self.checkpoint.shapes[stored_as] for part, stored_as in stored.items()}
        if sizes != part_shapes(shape, stored):
            raise ModelError(f"model: {self.checkpoint.files[0]}: {name} has wrong shapes; delete this copy")
        return {part: self.checkpoint.tensor(stored_as).clone() for part, stored_as in stored.items()}

    def close(self) -> None:
        """Let go of the file until the next read."""
        self.checkpoint.close()


def build(
    network: Any,
    reader: ParameterSource,
    *,
    weights: str,
    dtype: torch.dtype,
    device: torch.device,
    without: Sequence[str] = (),
) -> Any:
    """Fill an empty network and quantise its Linear and Conv2d weights; it comes back frozen, in ``eval`` mode.

    Args:
        network: on the meta device.
        reader: where they come from.
        weights: ``int8``, ``int4``, ``float8``, or ``none`` to keep them in ``dtype``.
        dtype: of activations and of what is not quantised: norms, biases.
        device: where the network goes.
        without: submodules that are not needed, left out.
    """
    for name in without:
        setattr(network, name, nn.Identity())
    quantized = {} if weights == "none" else layers_to_quantize(network)
    for name, layer in giving_back(dict(network.named_modules())):
        if isinstance(layer, nn.Embedding) and name.endswith("token_embedding"):
            _replace(network, name, _token_table(layer, f"{name}.weight", reader, dtype, device))
        elif name in quantized:
            _replace(network, name, _quantized(layer, name, reader, weights, dtype, device))
        else:
            _fill(layer, name, reader, dtype, device)
    reader.close()
    return network.eval().requires_grad_(False)


def layers_to_quantize(network: nn.Module) -> dict[str, Any]:
    """The Linear and Conv2d layers by name: what the paper quantises (supplement S1.3)."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}


def giving_back(layers: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The layers one by one; between them a stop is answered, and freed memory goes back to the system now and then.

    Raises:
        Stopped: a stop was asked for.
    """
    parameters = 0
    for name, layer in layers.items():
        check_stop()
        yield name, layer
        parameters += sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        if parameters > _GIVE_BACK:
            give_back_freed()
            parameters = 0
    give_back_freed()


def give_back_freed() -> None:
    """Return freed memory to the system, where glibc would keep it.

    Small quantised weights that stay lie between large full-precision ones that went; without this a
    process keeps more than twice of what it uses.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(network.get_submodule(above), last, layer)


def _token_table(
    layer: nn.Embedding, name: str, reader: ParameterSource, dtype: torch.dtype, device: torch.device
) -> TokenTable:
    shape = (layer.num_embeddings, layer.embedding_dim)

    def rows(ids: list[int]) -> torch.Tensor:
        found = reader.parameter(name, shape)[ids].clone()
        reader.close()
        return found

    return TokenTable(shape, rows, dtype, device)


def _quantized(
    layer: nn.Linear | nn.Conv2d,
    name: str,
    reader: ParameterSource,
    weights: str,
    dtype: torch.dtype,
    device: torch.device,
) -> QuantizedLayer:
    parts = reader.quantized(name, layer.weight.shape)
    if parts is None:
        parts = quantize_weight(reader.parameter(f"{name}.weight", layer.weight.shape), weights)
    bias = None if layer.bias is None else reader.parameter(f"{name}.bias", layer.bias.shape)
    return QuantizedLayer(layer, parts, bias, dtype, device)


def _fill(layer: nn.Module, name: str, reader: ParameterSource, dtype: torch.dtype, device: torch.device) -> None:
    for own, empty in list(layer.named_parameters(recurse=False)):
        full = reader.parameter(f"{name}.{own}".lstrip("."), empty.shape)
        setattr(layer, own, nn.Parameter(full.to(device, dtype, copy=True), requires_grad=False))
    for own, buffer in list(layer.named_buffers(recurse=False)):
        if own != "position_ids":
            raise ModelError(f"model: {name}.{own} is not known to this version; update ZOODiP")
        layer.register_buffer(own, torch.arange(buffer.shape[-1], device=device)[None], persistent=False)
