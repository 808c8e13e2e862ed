"""What a VAE makes of the reference images, kept through a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from ..base.errors import ModelError
from ..data.images import ReferenceImage


@dataclass(frozen=True)
class CachedPosteriors:
    """The VAE's posterior of each image, so that a step samples from it without the VAE.

    Args:
        mean: for each of N images float32 ``[channels, ..., height, width]`` on the CPU, unscaled.
        std: of the same shapes.
        scaling_factor: the VAE's.
        time_ids: float32 ``[N, 6]``: original size, crop and target size of each image, as SDXL is told them.
        weights: of each image, how much squared errors count; see :attr:`~.token_model.View.weight`. Empty: no masks.
    """

    mean: Sequence[torch.Tensor]
    std: Sequence[torch.Tensor]
    scaling_factor: float
    time_ids: torch.Tensor
    weights: Sequence[torch.Tensor] = ()

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, index: int, noise: torch.Tensor) -> torch.Tensor:
        """Latents ``[channels, ..., height, width]`` of one image, drawn exactly from its posterior."""
        return (self.mean[index] + self.std[index] * noise) * self.scaling_factor

    def weight(self, index: int) -> torch.Tensor | None:
        """How much squared errors count at each place of one image."""
        return self.weights[index] if self.weights else None


def with_masks(posteriors: CachedPosteriors, images: Sequence[ReferenceImage], background: float) -> CachedPosteriors:
    """The posteriors with the weights that the images' masks make; as they are where no image has one.

    Args:
        posteriors: those of the images.
        images: with masks or without.
        background: what errors count outside of a mask, from 0 to 1.

    Raises:
        ModelError: the model's latents have no places of a picture.
    """
    shapes = [mean.shape for mean in posteriors.mean]
    found = [
        place_weights(image.mask, shape, background) if image.mask else None
        for image, shape in zip(images, shapes, strict=True)
    ]
    if all(each is None for each in found):
        return posteriors
    # Ones change no bit, and all views of a run have the same buffers.
    ones = (torch.ones(shape[-2:], dtype=torch.float64) for shape in shapes)
    weights = (one if own is None else own for own, one in zip(found, ones, strict=True))
    return replace(posteriors, weights=tuple(weights))


def place_weights(mask: Image.Image, shape: Sequence[int], background: float) -> torch.Tensor | None:
    """``background + (1 - background) m`` at each place of latents, over its mean; m is the mask's mean there.

    So losses of large and of small subjects are on one scale.

    Args:
        mask: "L", of the picture's size.
        shape: of the picture's latents, with height and width at the end.
        background: what errors count where the mask is black, from 0 to 1.

    Returns:
        float64 ``[height, width]``; None where all places are alike, which is as no mask.

    Raises:
        ModelError: height and width are not those of the picture, in small.
    """
    height, width = shape[-2:]
    scales = {(mask.width // width).bit_length(), (mask.height // height).bit_length()}  # edges may have been cut off
    if len(shape) < 3 or len(scales) > 1 or 0 in scales:
        raise ModelError(
            f"mask_background = {background}: the latents of this model, {list(shape)}, have no places of a picture of "
            f"{mask.width} x {mask.height} pixels, so that masks cannot be used; set mask_background to 1"
        )
    white = torch.from_numpy(np.asarray(mask, dtype=np.float64) / 255)
    share = torch.nn.functional.adaptive_avg_pool2d(white[None], (height, width))[0]
    weight = background + (1 - background) * share
    return None if weight.min() == weight.max() else weight / weight.mean()
