"""CLIP-T, CLIP-I, DINO and DINO_inter: cosine similarities of features (paper, supplement S1.2 and S3.3).

All are computed in float64, from features ``[N, dim]`` that need not be normalised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scores:
    """The four figures of some images; None where a model was left out or there are too few images.

    Args:
        clip_t: text alignment, higher is better.
        clip_i: image alignment by CLIP, higher is better.
        dino: image alignment by DINOv2, higher is better.
        dino_inter: how alike images of one prompt are, lower is more diverse.
    """

    clip_t: float | None = None
    clip_i: float | None = None
    dino: float | None = None
    dino_inter: float | None = None


def text_alignment(texts: torch.Tensor, images: torch.Tensor) -> float:
    """CLIP-T: the mean cosine similarity of each image ``[N, dim]`` and its own text ``[N, dim]``."""
    return float((_unit(texts) * _unit(images)).sum(dim=1).mean())


def image_alignment(references: torch.Tensor, images: torch.Tensor) -> float:
    """CLIP-I and DINO: the mean cosine similarity over all pairs of a reference ``[R, dim]`` and an image.

    The images are ``[N, dim]``.
    """
    return float((_unit(references) @ _unit(images).T).mean())


def mutual_similarity(images: torch.Tensor) -> float | None:
    """DINO_inter of images ``[N, dim]`` of one prompt: the mean cosine similarity over all pairs of different ones.

    None for less than two images.
    """
    count = len(images)
    if count < 2:
        return None
    alike = _unit(images) @ _unit(images).T
    return float((alike.sum() - alike.diagonal().sum()) / (count * (count - 1)))


def _unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.double(), dim=1)
