"""How much noise a timestep of Stable Diffusion's means, for models that have others or none."""

from __future__ import annotations

import torch

NUM_TIMESTEPS = 1000
"""Timesteps are Stable Diffusion's, from 0 for hardly any noise to 999; see :class:`.token_model.View`."""


def alphas_cumprod() -> torch.Tensor:
    """Of Stable Diffusion's schedule, float64 ``[NUM_TIMESTEPS]``: how much of the squared
    signal is left at a timestep."""
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, NUM_TIMESTEPS, dtype=torch.float64) ** 2).cumprod(0)


def share_of_noise(timestep: int) -> float:
    """sigma / (1 + sigma) at a timestep, sigma being the noise's size beside the signal's: 0.62 at 500, 0.89 at 900.

    It is what flow models call sigma.
    """
    left = float(alphas_cumprod()[timestep])
    sigma = ((1 - left) / left) ** 0.5
    return sigma / (1 + sigma)
