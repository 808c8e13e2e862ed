"""Weights out of their quantised parts in one kernel each, for NVIDIA and AMD cards where Triton is installed.

The numbers are those of the plain way, bit for bit: products and differences are worked out in float32, which holds
them exactly, or so nearly that rounding to 16 bits comes out the same, and are rounded where the plain way rounds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _int4(  # type: ignore[no-untyped-def]
    packed, scale, shift, out, count, rows, group, inputs, spatial, block: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)  # in the output, whose channels come last
    there = place < count
    output, within = place // (inputs * spatial), place % (inputs * spatial)
    number = output * (inputs * spatial) + (within % inputs) * spatial + within // inputs  # of the weight
    row, column, half = number // group, number % group, (rows + 1) // 2
    byte = tl.load(packed + (row % half) * group + column, mask=there, other=0).to(tl.int32)
    value = tl.where(row < half, byte & 15, byte >> 4).to(tl.float32)
    product = value * tl.load(scale + row, mask=there, other=0).to(tl.float32)
    product = product.to(out.dtype.element_ty).to(tl.float32)
    weight = product - tl.load(shift + row, mask=there, other=0).to(tl.float32)
    tl.store(out + place, weight.to(out.dtype.element_ty), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _float8(bits, scale, out, count, row_size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = place < count
    byte = tl.load(bits + place, mask=there, other=0).to(tl.int16)
    # e4m3's exponent is less by 8 than float16's of the same bits, moved to its place.
    moved = ((byte & 0x80) << 8) | ((byte & 0x7F) << 7)
    value = moved.to(tl.float16, bitcast=True).to(tl.float32) * 256
    weight = value * tl.load(scale + place // row_size, mask=there, other=0).to(tl.float32)
    tl.store(out + place, weight.to(out.dtype.element_ty), mask=there)


def int4(data: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """An int4 weight of ``shape`` in the scales' type; a convolution's in the ``channels_last`` format.

    Args:
        data: uint8, two rows of a group each in a byte, as :func:`quantize.pack` has them.
        scale: ``[rows, 1, ...]``, of each group of numbers.
        shift: of the same shape.
        shape: of the weight.
    """
    memory = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    out = torch.empty(shape, dtype=scale.dtype, device=data.device, memory_format=memory)
    rows, count, spatial = len(scale), out.numel(), out[0, 0].numel()
    grid = (triton.cdiv(count, _BLOCK),)
    with torch.cuda.device_of(data):
        _int4[grid](data, scale, shift, out, count, rows, count // rows, shape[1], spatial, block=_BLOCK)
    return out


def float8(data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A float8 weight (e4m3) in the scales' type, in its own memory format."""
    out = torch.empty_like(data, dtype=scale.dtype)
    count = out.numel()
    grid = (triton.cdiv(count, _BLOCK),)
    with torch.cuda.device_of(data):
        _float8[grid](data.view(torch.uint8), scale, out, count, count // len(scale), block=_BLOCK)
    return out
