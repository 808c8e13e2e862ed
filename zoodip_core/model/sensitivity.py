"""How much of a token the denoiser gets to see: what its cross-attention reads of the text, and how that changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..base.stopping import check_stop
from .frames import read_text
from .quantized import Prompt, QuantizedModel
from .tokens import EncodedPrompt

_TAIL = 17
"""Of the padding, which is most of a text: as much as the bench over real words has behind its captions."""
_AT_ONCE = 16
"""Texts encoded together, whatever a card has room for in its UNet, which takes far more for a candidate."""


def readings(unet: nn.Module, widths: Sequence[int]) -> list[torch.Tensor]:
    """R, float32 ``[width, width]``, for which ``|h R|`` is how large a text state ``h`` is to the cross-attention.

    ``R^2`` is the mean of ``W^T W / |W|^2`` over all projections W to keys and values, of which each text encoder's
    states meet some columns.

    Args:
        widths: of each encoder's states.
    """
    layers = read_text(unet)
    totals = [torch.zeros(()) for _ in widths]
    for name in sorted(layers):
        check_stop()
        weight = layers[name].weight.detach().float().cpu()
        square = weight.double().square().sum()
        totals = [
            total + (part.T @ part).double() / square
            for total, part in zip(totals, weight.split(list(widths), dim=1), strict=True)
        ]
    return [_root(total / len(layers)) for total in totals]


def _root(square: torch.Tensor) -> torch.Tensor:
    values, axes = torch.linalg.eigh(square)
    return (axes * values.clamp(min=0).sqrt() @ axes.T).float()


@torch.no_grad()
def sensitivities(
    model: QuantizedModel, prompt: Prompt, theta0: torch.Tensor, steps: Sequence[float]
) -> list[torch.Tensor]:
    """``J^T J``, float64 ``[dim, dim]`` on the CPU, of each text encoder.

    J is the Jacobian, by the encoder's numbers of a token, of what the cross-attention reads of its states: by forward
    differences, one encoding for each number. All vectors of the token are moved alike. Of the padding only its
    beginning is encoded: what comes after a token does not change what is before. SDXL's pooled text is not looked at.

    Args:
        prompt: with the token.
        theta0: float32 ``[num_vectors, sum of dims]`` on the CPU, where it is looked at.
        steps: by how much a number is moved, for each encoder.

    Raises:
        Stopped: a stop was asked for.
    """
    widths = model.info.dims
    roots, starts = readings(model.unet, widths), theta0.split(list(widths), dim=-1)
    found = []
    for which, (root, start, step) in enumerate(zip(roots, starts, steps, strict=True)):
        read = _reader(model, which, prompt[which], root.to(model.device))
        found.append(_sensitivity(read, start, step))
    return found


def _reader(
    model: QuantizedModel, which: int, encoded: EncodedPrompt, root: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What is read of a text with each of some candidates in it, ``[K, numbers]`` on the CPU."""
    short = _without_padding(encoded, model.tokenizers[which].eos_token_id)

    def read(candidates: torch.Tensor) -> torch.Tensor:
        check_stop()
        return (model.encode_part(which, short, candidates).float() @ root).flatten(1).cpu()

    return read


def _sensitivity(read: Callable[[torch.Tensor], torch.Tensor], theta0: torch.Tensor, step: float) -> torch.Tensor:
    dim = theta0.shape[1]
    start = read(theta0[None])
    changes = torch.empty(dim, start.shape[1])
    moves = (step * torch.eye(dim))[:, None]
    for into, some in zip(changes.split(_AT_ONCE), moves.split(_AT_ONCE), strict=True):
        into.copy_((read(theta0 + some) - start) / step)
    # What rounding does to the start is in all of them: hundreds of times what it does to one. Their mean is known
    # without it, by moving all numbers at once.
    together = (read(theta0[None] + step / math.sqrt(dim)) - start) / step
    changes += together / math.sqrt(dim) - changes.mean(dim=0)
    return (changes @ changes.T).double()


def _without_padding(encoded: EncodedPrompt, end_of_text: int) -> EncodedPrompt:
    """The same text, with no more than ``_TAIL`` of the padding."""
    end = encoded.ids[0].tolist().index(end_of_text) + 1
    return dataclasses.replace(encoded, ids=encoded.ids[:, : end + _TAIL])
