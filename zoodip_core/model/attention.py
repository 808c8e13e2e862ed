"""Attention for bfloat16 on a CPU, in pieces whose scores stay in the processor's cache.

torch's fused kernel takes 2.2 to 2.7 times as long there for Stable Diffusion's shapes (4096 keys of
40 numbers: 421 ms against 191 ms for three images of eight heads on two cores with AVX512-BF16). In
float32 the fused kernel is the faster one. Scores in bfloat16 add no noise to a loss difference that its
other roundings do not hide: see benchmarks/RESULTS.md.
"""

from __future__ import annotations

from typing import Any

import torch

_SCORES = 2 << 20
"""Numbers in a piece's score matrix: four megabytes."""


class PiecewiseAttention:
    """A processor for diffusers' ``Attention`` modules, as a UNet has them: no mask, no added keys."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        **_ignored: Any,
    ) -> torch.Tensor:
        """Attend from ``[N, length, channels]`` to itself or to text ``[N, words, width]``."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2).contiguous()
            for layer, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)
        for layer in attn.to_out:
            mixed = layer(mixed)
        return mixed


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``softmax(query key^T / sqrt(dim)) value`` for ``[N, heads, length, dim]``."""
    mixed = torch.empty_like(query)
    turned = (key * query.shape[-1] ** -0.5).transpose(-1, -2)
    rows = max(1, _SCORES // key.shape[-2])
    for n, head in torch.cartesian_prod(torch.arange(query.shape[0]), torch.arange(query.shape[1])).tolist():
        for first in range(0, query.shape[2], rows):
            piece = slice(first, first + rows)
            scores = (query[n, head, piece] @ turned[n, head]).softmax(dim=-1)
            mixed[n, head, piece] = scores @ value[n, head]
    return mixed
