"""What timesteps and losses mean to a model of ComfyUI's, whatever it predicts.

Everything is asked of its ``model_sampling``: how it mixes noise and latents, and what it makes of its output. So
epsilon, v-prediction, flow, x0 and what node packs put in their place are all the same here.
"""

from __future__ import annotations

from typing import Any

import torch

from ...zoodip_core.model.noise import NUM_TIMESTEPS, share_of_noise

_HALF = 0.5


def sigma_at(sampling: Any, timestep: int) -> float:
    """The model's sigma at a timestep of Stable Diffusion's: its own there, else that of the same share of noise."""
    own = getattr(sampling, "sigmas", None)
    if own is not None and len(own) == NUM_TIMESTEPS and getattr(sampling, "num_timesteps", 0) == NUM_TIMESTEPS:
        return float(own[timestep])
    share = share_of_noise(timestep)
    signal, noise = _mixture(sampling, _HALF)
    per_sigma = noise / _HALF
    if signal == 1:  # the noise is added to the whole signal
        return share / (1 - share) / per_sigma
    return share / (per_sigma - share * (per_sigma - 1))


def loss_weight(sampling: Any, sigma: float) -> float:
    """What makes of a predicted picture's squared error that of the model's own output.

    The picture is linear in the output, by a factor that depends on sigma: 1 / sigma^2 for epsilon and flows,
    (sigma^2 + 1) / sigma^2 for v-prediction, 1 where the output is the picture.
    """
    at = torch.tensor([sigma], dtype=torch.float64)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    factor = sampling.calculate_denoised(at, zero + 1, zero) - sampling.calculate_denoised(at, zero, zero)
    return 1 / float(factor) ** 2


def _mixture(sampling: Any, sigma: float) -> tuple[float, float]:
    """How much of the signal and of the noise is in a noisy picture."""
    at, one = torch.tensor([sigma], dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return (
        float(sampling.noise_scaling(at, torch.zeros_like(one), one.clone(), False)),
        float(sampling.noise_scaling(at, one.clone(), torch.zeros_like(one), False)),
    )
