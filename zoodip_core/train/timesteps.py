"""Which diffusion timestep a training step looks at (paper, section 3.4 and table 5)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from ..base import rng
from ..base.errors import ConfigError
from ..model.noise import NUM_TIMESTEPS, alphas_cumprod

TIMESTEP_SAMPLERS = ("puts", "uniform", "snr")


class TimestepSampler(Protocol):
    """Draws the timestep of one training step as a function of (seed, step)."""

    def sample(self, seed: int, step: int) -> int:
        """A timestep in [0, NUM_TIMESTEPS)."""
        ...


@dataclass(frozen=True)
class PUTS:
    """Partial Uniform Timestep Sampling, eq. 9: t ~ U(T_L, T_U), with T_L included and T_U not.

    The paper finds the text to matter most in 500-900 (SD1.5, SD2.1) and 700-900 (SDXL).
    """

    t_lower: int = 500
    t_upper: int = 900

    def __post_init__(self) -> None:
        if not 0 <= self.t_lower < self.t_upper <= NUM_TIMESTEPS:
            raise ConfigError(
                f"PUTS range: T_L = {self.t_lower}, T_U = {self.t_upper} is not a range within "
                f"0-{NUM_TIMESTEPS}; choose 0 <= t_lower < t_upper <= {NUM_TIMESTEPS}"
            )

    def sample(self, seed: int, step: int) -> int:
        return rng.integer(seed, step, "timestep", self.t_lower, self.t_upper)


@dataclass(frozen=True)
class UniformTimesteps:
    """t ~ U(0, NUM_TIMESTEPS), as in textual inversion."""

    def sample(self, seed: int, step: int) -> int:
        return rng.integer(seed, step, "timestep", 0, NUM_TIMESTEPS)


@dataclass(frozen=True, eq=False)
class SNRTimesteps:
    """SNR-based sampling (TextBoost, arXiv 2409.08248): p(t) proportional to max log SNR - log SNR(t).

    Args:
        alphas_cumprod: float tensor ``[NUM_TIMESTEPS]``; Stable Diffusion's schedule if None.
    """

    alphas_cumprod: torch.Tensor | None = None

    @cached_property
    def _cumulative(self) -> torch.Tensor:
        alphas = alphas_cumprod() if self.alphas_cumprod is None else self.alphas_cumprod
        alphas = alphas.detach().to("cpu", torch.float64)
        alphas = alphas.clamp(min=alphas[alphas > 0].min())  # zero terminal SNR, whose weight would be all there is
        log_snr = (alphas / (1 - alphas)).log()
        weights = log_snr.max() - log_snr
        return weights.cumsum(0) / weights.sum()

    def sample(self, seed: int, step: int) -> int:
        at = torch.tensor(rng.uniform(seed, step, "timestep"), dtype=torch.float64)
        return min(int(torch.searchsorted(self._cumulative, at, right=True)), len(self._cumulative) - 1)
