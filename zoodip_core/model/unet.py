"""The UNet's forward pass for many texts over one noisy image.

All candidates of a step look at the same latents and timestep; only their texts differ. So what
comes before the first cross-attention is computed once and not once a candidate. The layers are
diffusers' own; the result is that of ``UNet2DConditionModel.forward`` on the repeated latents.
"""

from __future__ import annotations

from typing import Any

import torch

from .allocator import give_back_freed

_LARGE = 100_000
"""Numbers in a block's output from which on its temporaries are worth returning: tens of megabytes."""


def predict(
    unet: Any,
    noisy: torch.Tensor,
    timestep: int | torch.Tensor,
    hidden: torch.Tensor,
    added: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The UNet's output ``[K, channels, height, width]`` for K texts.

    Args:
        unet: a ``UNet2DConditionModel`` of Stable Diffusion 1, 2 or XL.
        noisy: latents ``[1, channels, height, width]``, shared by all, in the UNet's dtype.
        timestep: of the latents; a tensor ``[1]`` on their device where it is to be read there.
        hidden: text encoder output ``[K, length, width]``.
        added: for SDXL ``text_embeds`` ``[K, dim]`` and ``time_ids`` ``[K, 6]``.
    """
    # A token changes SDXL's pooled text, which reaches every layer from the first on: nothing to share there.
    rows = 1 if added is None else len(hidden)
    x = noisy.expand(rows, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    embedded = _time(unet, timestep, x, added)
    x = unet.conv_in(x)
    skips = [x]
    for block in unet.down_blocks:
        for i, resnet in enumerate(block.resnets):
            x = _attend(block, i, resnet(x, embedded), hidden)
            skips.append(x)
        for downsampler in block.downsamplers or ():
            x = downsampler(x)
            skips.append(x)
        _tidy(x)
    x = unet.mid_block.resnets[0](x, embedded)
    for i, resnet in enumerate(unet.mid_block.resnets[1:]):
        x = resnet(_attend(unet.mid_block, i, x, hidden), embedded)
    for block in unet.up_blocks:
        for i, resnet in enumerate(block.resnets):
            skip = skips.pop()
            x = torch.cat([x, skip.expand(len(x), -1, -1, -1)], dim=1)
            x = _attend(block, i, resnet(x, embedded), hidden)
        for upsampler in block.upsamplers or ():
            x = upsampler(x, skips[-1].shape[2:])
        _tidy(x)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def _tidy(x: torch.Tensor) -> None:
    """On a CPU, return what a block's forward freed: in the holes it leaves the next block does not fit."""
    if x.device.type == "cpu" and x.numel() > _LARGE:
        give_back_freed()


def _time(
    unet: Any, timestep: int | torch.Tensor, x: torch.Tensor, added: dict[str, torch.Tensor] | None
) -> torch.Tensor:
    t = timestep if isinstance(timestep, torch.Tensor) else torch.full((1,), timestep, device=x.device)
    embedded = unet.time_embedding(unet.time_proj(t).to(x.dtype))
    if added is None:
        return embedded
    times = unet.add_time_proj(added["time_ids"].flatten()).reshape(len(x), -1)
    return embedded + unet.add_embedding(torch.cat([added["text_embeds"], times.to(x.dtype)], dim=-1))


def _attend(block: Any, index: int, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    attentions = getattr(block, "attentions", None)
    if attentions is None:
        return x
    if len(x) == len(hidden):
        return attentions[index](x, encoder_hidden_states=hidden, return_dict=False)[0]
    return _first_attention(attentions[index], x, hidden)


def _first_attention(attention: Any, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """A ``Transformer2DModel`` that one row enters and K rows leave."""
    _, channels, height, width = x.shape
    y = attention.norm(x)
    if not attention.use_linear_projection:
        y = attention.proj_in(y)
    y = y.permute(0, 2, 3, 1).reshape(1, height * width, channels)
    if attention.use_linear_projection:
        y = attention.proj_in(y)

    first, *others = attention.transformer_blocks
    y = first.attn1(first.norm1(y)) + y
    y = first.attn2(first.norm2(y).expand(len(hidden), -1, -1), encoder_hidden_states=hidden) + y
    y = first.ff(first.norm3(y)) + y
    for block in others:
        y = block(y, encoder_hidden_states=hidden)

    if attention.use_linear_projection:
        y = attention.proj_out(y)
    y = y.reshape(len(hidden), height, width, channels).permute(0, 3, 1, 2)
    if not attention.use_linear_projection:
        y = attention.proj_out(y)
    return y + x
