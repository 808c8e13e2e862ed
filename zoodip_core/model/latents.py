"""Latents of the reference images, encoded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..base.errors import ModelError
from ..base.stopping import check_stop
from ..data.images import ReferenceImage, to_tensor
from .allocator import give_back_freed
from .posteriors import CachedPosteriors
from .quantized import QuantizedModel


def advice(dtype: torch.dtype) -> str:
    """What to do where a model's numbers are finite, and those that it computes with them in ``dtype`` are not."""
    return "use another model" if dtype == torch.float32 else "set dtype to float32, or use another model"


@torch.no_grad()
def encode_images(model: QuantizedModel, images: Sequence[ReferenceImage]) -> CachedPosteriors:
    """Encode each image once; the VAE is loaded for this alone and then leaves memory.

    Raises:
        ModelError: what comes out is not finite.
    """
    means, stds = [], []
    with model.vae("encoder") as vae:
        for image in images:  # one at a time: encoding is the largest peak of a run
            check_stop()
            pixels = to_tensor([image.picture]).to(model.device, vae.dtype)
            posterior = vae.encode(pixels).latent_dist
            if not (torch.isfinite(posterior.mean).all() and torch.isfinite(posterior.std).all()):
                raise ModelError(
                    f"model: the VAE of {model.info.path} turns {image.path.name} into NaN or infinity, computing in "
                    f"{str(vae.dtype).removeprefix('torch.')}; " + advice(vae.dtype)
                )
            means.append(posterior.mean[0].float().cpu())
            stds.append(posterior.std[0].float().cpu())
        factor = float(vae.config.scaling_factor)
    give_back_freed()
    sizes = [image.time_ids for image in images]
    return CachedPosteriors(means, stds, factor, torch.tensor(sizes, dtype=torch.float32))
