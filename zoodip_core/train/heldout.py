"""The held-out denoising loss: does a token explain images it was not trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..data.images import load_images
from ..data.masks import Masks
from ..data.prompts import captions_for
from ..model.posteriors import with_masks
from ..model.token_model import TokenModel
from .draws import fixed_draws, mean_losses
from .objective import DiffusionObjective
from .timesteps import PUTS

TIMESTEPS = (500, 600, 700, 800, 899)


def heldout_losses(
    model: TokenModel,
    candidates: torch.Tensor,
    images: Path,
    captions: Path | None,
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    repeats: int = 2,
    seed: int = 2025,
    mask_background: float = 1.0,
) -> torch.Tensor:
    """Mean loss ``[K]`` of each token on fixed images, timesteps and noise, the same for all.

    Args:
        candidates: float tensor ``[K, num_vectors, dim]``.
        images: a folder of images that none of the tokens was trained on.
        captions: their captions, or None for the object template.
        repeats: noises for each image and timestep.
        mask_background: what errors count outside of the masks that images have, as in a training; 1: without masks.
    """
    masks = Masks() if mask_background < 1 else None
    pictures, _ = load_images([images], model.info.resolution, masks=masks.of if masks else None)
    texts = captions_for([p.path for p in pictures], captions_file=captions, token="{}")
    prompts = [[model.prompt(text, candidates.shape[1]) for text in each] for each in texts]
    posteriors = with_masks(model.encode_images(pictures), pictures, mask_background)
    objective = DiffusionObjective(model, posteriors, prompts, PUTS())
    return mean_losses(objective, candidates, fixed_draws(seed, len(pictures), timesteps, repeats))
