"""Latents of the reference images, encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .images import ReferenceImage, to_tensor
from .models import QuantizedModel


@dataclass(frozen=True)
class CachedPosteriors:
    """The VAE's posterior of each image, so that a step samples from it without the VAE.

    ``mean`` and ``std`` are float32 ``[N, channels, height, width]`` on the CPU, unscaled.
    """

    mean: torch.Tensor
    std: torch.Tensor
    scaling_factor: float

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, index: int, noise: torch.Tensor) -> torch.Tensor:
        """Latents ``[channels, height, width]`` of one image, drawn exactly from its posterior."""
        return (self.mean[index] + self.std[index] * noise) * self.scaling_factor


@torch.no_grad()
def encode_images(model: QuantizedModel, images: Sequence[ReferenceImage]) -> CachedPosteriors:
    """Encode each image once; the VAE is loaded for this alone and then leaves memory."""
    means, stds = [], []
    with model.vae() as vae:
        for image in images:  # one at a time: encoding is the largest peak of a run
            pixels = to_tensor([image.picture]).to(model.device, model.dtype)
            posterior = vae.encode(pixels).latent_dist
            means.append(posterior.mean.float().cpu())
            stds.append(posterior.std.float().cpu())
        return CachedPosteriors(torch.cat(means), torch.cat(stds), float(vae.config.scaling_factor))
