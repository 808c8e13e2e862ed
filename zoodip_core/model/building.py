"""Networks built empty and filled from a checkpoint layer by layer, quantised on the way.

So loading never holds more than the quantised network and one layer in full precision.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..base.errors import ModelError
from ..base.stopping import check_stop
from .allocator import give_back_freed
from .blueprint import Blueprint, config_useless
from .libraries import importing
from .quantize import QuantizedLayer, quantize_weight
from .quantized_parts import Parts
from .token_table import TokenTable

_GIVE_BACK = 8_000_000
"""Parameters after which freed memory goes back to the system."""


class ParameterSource(Protocol):
    """Where a network's parameters come from."""

    def parameter(self, name: str, shape: Sequence[int], /) -> torch.Tensor: ...

    def quantized(self, name: str, shape: torch.Size, /) -> Parts | None: ...

    def not_finite(self, name: str, /) -> ModelError: ...

    def close(self) -> None: ...


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


def check_finite(reader: ParameterSource, name: str, numbers: torch.Tensor) -> None:
    """Refuse a parameter, or what its quantisation made of it, before anything is computed with it.

    Raises:
        ModelError: it holds NaN or infinity.
    """
    if numbers.is_floating_point() and not numbers.is_meta and not torch.isfinite(numbers.float()).all():
        raise reader.not_finite(name)


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(network.get_submodule(above), last, layer)


def _token_table(
    layer: nn.Embedding, name: str, reader: ParameterSource, dtype: torch.dtype, device: torch.device
) -> TokenTable:
    shape = (layer.num_embeddings, layer.embedding_dim)

    def rows(ids: list[int]) -> torch.Tensor:
        found = reader.parameter(name, shape)[ids].clone()
        check_finite(reader, name, found)
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
        full = reader.parameter(f"{name}.weight", layer.weight.shape)
        parts = quantize_weight(full.to(device) if device.type == "cuda" else full, weights)
    else:  # they may be mapped; copied in the order in which the layer keeps them, they are passed over once
        parts = {part: tensor.to(device, copy=True, memory_format=_order(tensor)) for part, tensor in parts.items()}
    check_finite(reader, f"{name}.weight", parts["scale"])  # that of a row with NaN or infinity is not finite either
    bias = None
    if layer.bias is not None:
        bias = reader.parameter(f"{name}.bias", layer.bias.shape)
        check_finite(reader, f"{name}.bias", bias)
    return QuantizedLayer(layer, parts, bias, dtype, device)


def _order(part: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if part.ndim == 4 and part[0, 0].numel() > 1 else torch.preserve_format


def _fill(layer: nn.Module, name: str, reader: ParameterSource, dtype: torch.dtype, device: torch.device) -> None:
    for own, empty in list(layer.named_parameters(recurse=False)):
        full = reader.parameter(f"{name}.{own}".lstrip("."), empty.shape)
        check_finite(reader, f"{name}.{own}".lstrip("."), full)
        setattr(layer, own, nn.Parameter(full.to(device, dtype, copy=True), requires_grad=False))
    for own, buffer in list(layer.named_buffers(recurse=False)):
        if own != "position_ids":
            raise ModelError(f"model: {name}.{own} is not known to this version; update ZOODiP")
        layer.register_buffer(own, torch.arange(buffer.shape[-1], device=device)[None], persistent=False)


# ---------------------------------------------------------------- empty networks


class _WithoutValues(TorchFunctionMode):
    """Nothing is drawn for parameters that have no content: that takes longer than making them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__ and kwargs and "tensor" in kwargs:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def empty_network(blueprint: Blueprint, part: str) -> Any:
    """A component of the right shape on the meta device, without content."""
    with importing():
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = {key: value for key, value in blueprint.configs[part].items() if not key.startswith("_")}
    if config.get("latents_mean") is not None:
        raise ModelError(f"model: {blueprint.info.path} has a VAE with normalised latents, which is not supported")
    try:
        with torch.device("meta"), _WithoutValues():
            if part == "unet":
                return UNet2DConditionModel.from_config(config)
            if part == "vae":
                return AutoencoderKL.from_config(config)
            kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            return kind(CLIPTextConfig(**{key: config[key] for key in _OF_TEXT if key in config}))
    except Exception as error:  # the libraries raise a dozen kinds on configs that make no sense
        raise config_useless(blueprint.info.path, part, error) from error


def check_whole(blueprint: Blueprint) -> None:
    """Refuse a model of which a part lacks a parameter, or has one of another shape. Only headers are read.

    Raises:
        ModelError: says which.
    """
    for part, reader in blueprint.readers.items():
        drawn = _Drawn(part, json.dumps(blueprint.configs[part]), replace(blueprint, readers={}, held=None))
        for name, shape in _parameters_of(drawn):
            check_stop()
            reader.check(name, shape)


@dataclass(frozen=True)
class _Drawn:
    """A component of a blueprint; two with the same config have the same parameters."""

    part: str
    config: str
    blueprint: Blueprint = field(compare=False)


@functools.lru_cache(maxsize=16)
def _parameters_of(drawn: _Drawn) -> list[tuple[str, torch.Size]]:
    network = empty_network(drawn.blueprint, drawn.part)
    return [(name, parameter.shape) for name, parameter in network.named_parameters()]


_OF_TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id"),
)
"""What counts of a text encoder's config. The rest may name code for the library to fetch."""
