"""What a VAE makes of the reference images, kept through a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CachedPosteriors:
    """The VAE's posterior of each image, so that a step samples from it without the VAE.

    Args:
        mean: for each of N images float32 ``[channels, ..., height, width]`` on the CPU, unscaled.
        std: of the same shapes.
        scaling_factor: the VAE's.
        time_ids: float32 ``[N, 6]``: original size, crop and target size of each image, as SDXL is told them.
    """

    mean: Sequence[torch.Tensor]
    std: Sequence[torch.Tensor]
    scaling_factor: float
    time_ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, index: int, noise: torch.Tensor) -> torch.Tensor:
        """Latents ``[channels, ..., height, width]`` of one image, drawn exactly from its posterior."""
        return (self.mean[index] + self.std[index] * noise) * self.scaling_factor
