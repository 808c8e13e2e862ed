"""Quantised layers: the numbers are optimum-quanto's to the bit, how they are come by and the forward pass are ours.

Weights rest as int8, int4 or float8 and become the activations' type layer by layer, for the time
of one multiplication. Everything in a layer is a plain tensor, so a quantised module moves, copies,
saves and runs under ``inference_mode`` like any other.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .quantized_parts import PARTS, Parts, group_size, part_shapes

WEIGHTS = ("int8", "int4", "float8", "none")
_AT_ONCE = 1 << 20
"""Numbers that are worked on together: 4 MB of float32, which a processor's cache mostly holds."""
_LARGEST_FLOAT8 = torch.finfo(torch.float8_e4m3fn).max


def weights_of(part: str, weights: str) -> str:
    """The storage of a component's weights: the paper has the U-Net alone in int4 (table S8), so text stays int8."""
    return "int8" if weights == "int4" and part != "unet" else weights


def quantize_weight(weight: torch.Tensor, weights: str) -> Parts:
    """Quantise one weight ``[out, ...]``, symmetric per output for 8 bits, by groups with a shift for int4.

    Worked on the weight's own device, in float32, some rows at a time and in place: a whole weight's temporaries would
    be the peak of loading, and asking the system for them anew takes most of the time.

    Args:
        weight: any float type.
        weights: ``int8``, ``int4`` or ``float8``.

    Returns:
        ``data`` (int8, float8, or uint8 with two int4 in a byte), ``scale`` and for int4 ``shift``, float32.
    """
    group = group_size(weight.shape) if weights == "int4" else None
    rows = weight.reshape(-1, group or weight.shape[1:].numel())
    names, at_once = PARTS if weights == "int4" else PARTS[:2], max(1, _AT_ONCE // rows.shape[1])
    parts = {name: torch.empty(len(rows), 1, device=rows.device) for name in names[1:]}
    data = torch.empty_like(rows, dtype=torch.float8_e4m3fn if weights == "float8" else torch.int8)
    scratch = torch.empty_like(rows[:at_once], dtype=torch.float32)
    for first in range(0, len(rows), at_once):
        piece = slice(first, first + at_once)
        values = scratch[: len(data[piece])].copy_(rows[piece])
        if weights == "int4":
            _scale_by_groups(values, parts["scale"][piece], parts["shift"][piece])
        else:
            _scale_by_rows(values, weights, parts["scale"][piece])
        data[piece] = values
    if weights == "int4":
        data = pack((data if group else data.view(weight.shape)).view(torch.uint8))
    shapes = part_shapes(weight.shape, names)
    return {name: part.view(shapes[name]) for name, part in {"data": data, **parts}.items()}


def _scale_by_rows(values: torch.Tensor, weights: str, scale: torch.Tensor) -> None:
    """Quanto's ``AbsmaxOptimizer`` and ``quantize_symmetric`` for each row of ``values``, all in place."""
    torch.maximum(values.amax(1, keepdim=True), values.amin(1, keepdim=True).neg_(), out=scale)
    largest = 127 if weights == "int8" else _LARGEST_FLOAT8
    scale.div_(_exactly(largest, scale)).clamp_(min=torch.finfo(torch.float32).tiny)
    values.div_(scale)
    if weights == "int8":
        values.round_()  # at most 127 by now
    else:
        values.clamp_(-largest, largest)


def _scale_by_groups(values: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> None:
    """Quanto's ``MaxOptimizer`` and ``quantize_affine`` for each row of ``values``, all in place."""
    torch.neg(values.amin(1, keepdim=True), out=shift)
    torch.add(values.amax(1, keepdim=True), shift, out=scale).div_(_exactly(15, scale))
    values.add_(shift).div_(scale).round_().clamp_(0, 15)
    values.nan_to_num_(0)  # of a group whose weights are all alike, which its shift says by itself


def _exactly(number: float, like: torch.Tensor) -> torch.Tensor:
    """A divisor for which a graphics card divides as the CPU does: by a number it multiplies with the inverse."""
    return torch.full((), number, dtype=like.dtype, device=like.device)


def pack(values: torch.Tensor) -> torch.Tensor:
    """Two rows of values from 0 to 15 in one of bytes, as quanto does: the first half of rows in the low bits."""
    half = (len(values) + 1) // 2
    packed = values[:half].clone()
    packed[: len(values) - half] |= values[half:] << 4
    return packed


def unpack(packed: torch.Tensor, rows: int) -> torch.Tensor:
    """The ``rows`` rows of uint8 values that :func:`pack` packed."""
    return torch.cat((packed & 15, packed >> 4))[:rows]


class _Kernels:
    """Triton's kernels, where they can be had: not on Windows, nor without a C compiler."""

    def __init__(self) -> None:
        self._usable = True

    def weight(self, layer: QuantizedLayer) -> torch.Tensor | None:
        """A layer's weight in one kernel, None where that cannot be."""
        if not self._usable:
            return None
        try:
            from . import triton_kernels

            if layer.shift is None:
                return triton_kernels.float8(layer.data, layer.scale)
            return triton_kernels.int4(layer.data, layer.scale, layer.shift, layer.shape)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # Triton's compilers have some twenty kinds, and the plain way is always there
            self._usable = False
            return None


_kernels = _Kernels()


def _on_a_card(layer: QuantizedLayer) -> torch.Tensor | None:
    """A layer's weight in one kernel in place of several, with the same bits; None where there is no such kernel."""
    if layer.data.dtype == torch.int8:
        return layer.data * layer.scale
    return _kernels.weight(layer)


class QuantizedLayer(nn.Module):
    """A Linear or Conv2d whose weight rests quantised; replaces one of the same shape.

    Args:
        layer: what it stands for; only its shape and settings are used, so it may be on the meta device.
        parts: the quantised weight.
        bias: or None.
        dtype: of the scales and bias: the activations' type.
        device: where it lives.
    """

    data: torch.Tensor
    scale: torch.Tensor
    shift: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        parts: Parts,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.shape = layer.weight.shape
        self.out_features, self.in_features = self.shape[:2]  # diffusers' pipelines ask the layers for them
        self.conv: dict[str, Any] | None = None
        data = parts["data"].to(device)
        if isinstance(layer, nn.Conv2d):
            self.conv = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
            if data.shape == self.shape:  # convolutions are faster so, and a copy of the weight keeps its order
                data = data.contiguous(memory_format=torch.channels_last)
        self.register_buffer("data", data)
        self.register_buffer("scale", parts["scale"].to(device, dtype))
        self.register_buffer("shift", parts["shift"].to(device, dtype) if "shift" in parts else None)
        self.register_buffer("bias", None if bias is None else bias.to(device, dtype))

    @property
    def weight(self) -> torch.Tensor:
        """The weight in the activations' type, made anew each time."""
        if self.data.device.type == "cuda":
            weight = _on_a_card(self)
            if weight is not None:
                return weight
        if self.shift is None:
            return self.data.to(self.scale.dtype).mul_(self.scale)
        values = unpack(self.data, len(self.scale)).to(self.scale.dtype)
        weight = values.mul_(self.scale).sub_(self.shift).view(self.shape)
        return weight.contiguous(memory_format=torch.channels_last) if self.conv else weight

    def forward(self, x: torch.Tensor, *_ignored: Any) -> torch.Tensor:
        """Activations of ``dtype`` in and out, as the layer it replaces; some callers hand a LoRA scale as well."""
        if self.conv is None:
            return F.linear(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias, **self.conv)

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, {self.data.dtype}"


def stored_bytes(module: nn.Module) -> int:
    """Bytes that the module's parameters and buffers occupy, each storage once."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
