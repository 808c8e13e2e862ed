"""How much of a token the denoiser gets to see: what its cross-attention reads of the text, and how that changes."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from ..base.stopping import check_stop
from .frames import read_text
from .quantized import Prompt, QuantizedModel

_TAIL = 17
"""Of the padding, which is most of a text: as much as the bench over real words has behind its captions."""


def reading(unet: nn.Module) -> torch.Tensor:
    """R, float32 ``[width, width]``, for which ``|h R|`` is how large a text state ``h`` is to the cross-attention.

    ``R^2`` is the mean of ``W^T W / |W|^2`` over all projections W to keys and values.
    """
    total = torch.zeros(())
    layers = read_text(unet)
    for name in sorted(layers):
        check_stop()
        weight = layers[name].weight.detach().float().cpu()
        total = total + (weight.T @ weight).double() / weight.double().square().sum()
    values, axes = torch.linalg.eigh(total / len(layers))
    return (axes * values.clamp(min=0).sqrt() @ axes.T).float()


@torch.no_grad()
def sensitivity(model: QuantizedModel, prompt: Prompt, theta0: torch.Tensor, step: float, batch: int) -> torch.Tensor:
    """``J^T J``, float64 ``[dim, dim]`` on the CPU: J is the Jacobian, by a token's numbers, of what is read of a text.

    By forward differences of the text encoder, one encoding for each number. All vectors of the token are moved alike.
    Of the padding only its beginning is encoded: what comes after a token does not change what is before.

    Args:
        model: of one text encoder.
        prompt: with the token.
        theta0: float32 ``[num_vectors, dim]`` on the CPU, where it is looked at.
        step: by how much a number is moved.
        batch: how many texts are encoded at once.

    Raises:
        Stopped: a stop was asked for.
    """
    root, short = reading(model.unet).to(model.device), _without_padding(model, prompt)

    def read(candidates: torch.Tensor) -> torch.Tensor:
        check_stop()
        return (model.encode(short, candidates).hidden.float() @ root).flatten(1).cpu()

    dim = theta0.shape[1]
    start = read(theta0[None])
    moves = (step * torch.eye(dim))[:, None]
    changes = torch.cat([(read(theta0 + some) - start) / step for some in moves.split(batch)])
    # What rounding does to the start is in all of them: hundreds of times what it does to one. Their mean is known
    # without it, by moving all numbers at once.
    together = (read(theta0[None] + step / math.sqrt(dim)) - start) / step
    changes += together / math.sqrt(dim) - changes.mean(dim=0)
    return (changes @ changes.T).double()


def _without_padding(model: QuantizedModel, prompt: Prompt) -> Prompt:
    """The same text, with no more than ``_TAIL`` of the padding."""
    (encoded,), (tokenizer,) = prompt, model.tokenizers
    end = encoded.ids[0].tolist().index(tokenizer.eos_token_id) + 1
    return (dataclasses.replace(encoded, ids=encoded.ids[:, : end + _TAIL]),)
