"""The shape of a run's random directions: where a new word is looked for first.

Most of the directions in which a token could move mean little to a model. Random directions of the right shape spend
their forward passes where something can be found; what they hardly reach can still be reached, in smaller steps. Two
things tell of it before the first step, without the denoiser: how the model's words differ, and how much the text
encoder's output changes.
"""

from __future__ import annotations

import dataclasses

import torch

from ..base.errors import ConfigError
from ..base.events import Message
from ..model.sensitivity import sensitivities
from ..model.stable_diffusion import StableDiffusion
from ..model.token_model import Prompt, TokenModel
from ..search.preconditioner import Spread, moments_of, sensitive_spread, spread_of_words
from .config import TrainConfig
from .settings import ADAPTIVE, ENCODER, VOCABULARY

_WIDEST = 1280
"""Numbers for a text encoder that are tried one by one, each in an encoding whose result is kept: up to 500 MB."""
_STEP = 0.3
"""By how much each is moved, in the distances of that encoder's words: well above what bfloat16 rounds away."""
_SHARE = 0.25
"""Words that differ in fewer than this share of all directions say more of where to look than the text encoder."""


def check_directions(config: TrainConfig, model: TokenModel) -> None:
    """Refuse directions whose shape a model cannot give.

    Raises:
        ConfigError: it is not one of our own, or its tokens are too wide.
    """
    if config.directions == ENCODER and not _can_be_read(model):
        raise ConfigError(
            f"directions = {ENCODER}: is for a Stable Diffusion that ZOODiP itself loads, of up to {_WIDEST} numbers "
            f"a text encoder; set directions to {VOCABULARY} for {model.info.name}"
        )


def shaped(
    config: TrainConfig, model: TokenModel, prompt: Prompt, theta0: torch.Tensor
) -> tuple[TrainConfig, Spread, Message]:
    """The shape of a run's directions, which are not normal.

    Args:
        config: the settings as given.
        model: to look at.
        prompt: a caption with the token.
        theta0: the starting token ``[num_vectors, sum of dims]``.

    Returns:
        The settings, with nothing left to choose, the shape, and what the user should know.

    Raises:
        ModelError: the model gives no shape, or holds NaN or infinity.
        Stopped: a stop was asked for.
    """
    words = moments_of(model.word_rows())
    spread, dim = spread_of_words(words, model.info.dims), len(words.mean)
    directions = config.directions
    if directions == ADAPTIVE:
        rich = words.participation >= _SHARE * dim
        directions = ENCODER if rich and _can_be_read(model) else VOCABULARY
    said = f"directions {directions}: the model's words differ in {words.participation:.0f} of {dim} directions"
    if directions == ENCODER:
        assert isinstance(model, StableDiffusion)
        steps = [_STEP * size for size in words.sizes(model.info.dims)]
        spread = sensitive_spread(sensitivities(model, prompt, theta0, steps), spread)
    return dataclasses.replace(config, directions=directions), spread, Message(said)


def _can_be_read(model: TokenModel) -> bool:
    return isinstance(model, StableDiffusion) and max(model.info.dims) <= _WIDEST
