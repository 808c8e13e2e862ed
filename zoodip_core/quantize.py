"""Weight quantisation behind one function, so that another library can follow optimum-quanto."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import torch
from torch import nn

from .errors import ConfigError

WEIGHTS = ("int8", "int4", "float8", "none")


def quantize_weights(module: nn.Module, weights: str) -> None:
    """Quantise the weights of all Linear and Conv2d layers in place; activations stay as they are.

    Move and cast the module first: a quantised module can no longer change its dtype. Embedding
    tables and norms are left alone (paper, supplement S1.3).

    Args:
        weights: one of ``WEIGHTS``.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"weights = {weights!r}: choose one of {', '.join(WEIGHTS)}")
    if weights == "none":
        return
    from optimum.quanto import freeze, qfloat8, qint4, qint8, quantize

    if weights == "int4":
        _unpack_without_compiler()
    quantize(module, weights={"int8": qint8, "int4": qint4, "float8": qfloat8}[weights])
    freeze(module)
    _contiguous_inputs(module)


def _unpack_without_compiler() -> None:
    """Let quanto unpack int4 on the CPU with torch operations.

    Its own way compiles C++ at first use, which needs a compiler on the user's machine and can
    hang on a lock that a killed build left behind.
    """
    extension = importlib.import_module("optimum.quanto.library.extensions.cpp").ext
    if extension._lib is None:
        extension._lib = SimpleNamespace(unpack=_unpack)


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The values of a uint8 tensor that holds ``8 // bits`` of them in each byte, lowest bits first."""
    return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])


def _contiguous_inputs(module: nn.Module) -> None:
    """Hand every quantised Linear a contiguous input, without which quanto's bfloat16 CPU kernel fails."""
    from optimum.quanto import QLinear

    for layer in module.modules():
        if isinstance(layer, QLinear):
            layer.register_forward_pre_hook(lambda _layer, args: (args[0].contiguous(), *args[1:]))


def stored_bytes(module: nn.Module) -> int:
    """Bytes that the module's parameters and buffers really occupy, quantised ones included."""

    def size(tensor: torch.Tensor) -> int:
        if type(tensor) in (torch.Tensor, nn.Parameter):
            return tensor.numel() * tensor.element_size()
        inner, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return sum(size(getattr(tensor, name)) for name in inner)

    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(size(tensor) for tensor in tensors.values())
