"""Gradients from forward passes alone (paper, eq. 3 and supplement S1-S3, numbered S10-S12 in the article; and ours).

An estimator turns the current token theta and its random directions into K candidates, and their K
losses into a gradient. Directions are standard normal and depend only on (seed, step), so nothing
but the losses has to be kept to replay a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ..base import rng
from ..base.errors import ConfigError

MOST_DIRECTIONS, MOST_MU = 1024, 10
DIRECTIONS = "directions"
"""What random draws are for; where several searches share a run, each has a purpose of its own."""


class Estimator(Protocol):
    """Candidates out, gradient in. All tensors are on the CPU."""

    @property
    def num_candidates(self) -> int:
        """K, the forward passes of one step."""
        ...

    def directions(self, seed: int, step: int, shape: torch.Size, purpose: str = DIRECTIONS) -> torch.Tensor:
        """The random directions e of a step, float64 ``[directions, *shape]``; others for another purpose."""
        ...

    def candidates(self, theta: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """The points to evaluate, float64 ``[K, *theta.shape]``."""
        ...

    def gradient(self, losses: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """The estimated gradient, float64, of theta's shape, from the ``[K]`` losses."""
        ...

    def loss(self, losses: torch.Tensor) -> float:
        """The best figure for the loss at theta itself that the step offers."""
        ...


def _weighted(weights: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Mean over i of weights[i] * directions[i]."""
    return torch.tensordot(weights, directions, dims=1) / len(weights)


@dataclass(frozen=True)
class _Estimator:
    n: int = 2
    mu: float = 1e-3

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or not 1 <= self.n <= MOST_DIRECTIONS:
            raise ConfigError(f"n = {self.n}: must be a whole number of directions from 1 to {MOST_DIRECTIONS}")
        if not 0 < self.mu <= MOST_MU:
            raise ConfigError(f"mu = {self.mu}: must be above 0 and at most {MOST_MU}")

    def directions(self, seed: int, step: int, shape: torch.Size, purpose: str = DIRECTIONS) -> torch.Tensor:
        return rng.normal(seed, step, purpose, (self._num_directions(), *shape)).double()

    def _num_directions(self) -> int:
        return self.n


@dataclass(frozen=True)
class RGE(_Estimator):
    """Random gradient estimation, eq. 3: g = 1/n sum_i (L(theta + mu e_i) - L(theta)) / mu e_i.

    Row 0 of the candidates is theta, row i is theta + mu e_i: n + 1 forward passes.

    Args:
        n: number of random directions.
        mu: perturbation size, in units of the token embedding.
    """

    @property
    def num_candidates(self) -> int:
        return self.n + 1

    def candidates(self, theta: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return torch.cat([theta[None], theta + self.mu * directions])

    def gradient(self, losses: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return _weighted((losses[1:] - losses[0]) / self.mu, directions)

    def loss(self, losses: torch.Tensor) -> float:
        return float(losses[0])


@dataclass(frozen=True)
class SPSA(_Estimator):
    """Simultaneous perturbation, S2 (S11): g = 1/n sum_i (L(theta + mu e_i) - L(theta - mu e_i)) / (2 mu) e_i.

    Rows 0..n-1 of the candidates are theta + mu e_i, rows n..2n-1 theta - mu e_i: 2 n forward passes.
    """

    @property
    def num_candidates(self) -> int:
        return 2 * self.n

    def candidates(self, theta: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return torch.cat([theta + self.mu * directions, theta - self.mu * directions])

    def gradient(self, losses: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return _weighted((losses[: self.n] - losses[self.n :]) / (2 * self.mu), directions)

    def loss(self, losses: torch.Tensor) -> float:
        return float(losses.mean())


@dataclass(frozen=True)
class OnePoint(_Estimator):
    """One-point estimation, S3 (S12): g = 1/n sum_i (L(theta + mu e_{i+1}) - L(theta + mu e_i)) / mu e_{i+1}.

    S3 is printed with e_i at the end, which points up the hill: of the two losses it is the second, L(theta + mu
    e_{i+1}), that counts positively, so the difference belongs to that one's direction. With e_{i+1} its mean is the
    gradient, with e_i the gradient's negative.

    Row i of the candidates is theta + mu e_{i+1}, i = 0..n: n + 1 directions and forward passes.
    """

    @property
    def num_candidates(self) -> int:
        return self.n + 1

    def _num_directions(self) -> int:
        return self.n + 1

    def candidates(self, theta: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return theta + self.mu * directions

    def gradient(self, losses: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return _weighted(losses.diff() / self.mu, directions[1:])

    def loss(self, losses: torch.Tensor) -> float:
        return float(losses.mean())


@dataclass(frozen=True)
class LeaveOneOut(_Estimator):
    """Directions judged by each other: g = 1/n sum_i (L(theta + mu e_i) - mean_{j != i} L(theta + mu e_j)) / mu e_i.

    Its mean is the gradient of the loss around theta, as RGE's is. But a perturbation that is not small loses something
    in any direction, by the loss's curvature; RGE, which measures from theta, takes that for a slope, and this one does
    not. Nor does it spend a forward pass on theta. The baseline is that of REINFORCE leave-one-out (Kool et al. 2019).

    Row i of the candidates is theta + mu e_i: n forward passes.

    Args:
        n: number of random directions, 2 or more.
        mu: perturbation size, in units of the token embedding.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 2:
            raise ConfigError(
                f"n = {self.n}: leave-one-out compares directions with each other: set n to 2 or more, "
                "or estimator to rge"
            )

    @property
    def num_candidates(self) -> int:
        return self.n

    def candidates(self, theta: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return theta + self.mu * directions

    def gradient(self, losses: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        others = (losses.sum() - losses) / (self.n - 1)
        return _weighted((losses - others) / self.mu, directions)

    def loss(self, losses: torch.Tensor) -> float:
        return float(losses.mean())


ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "rge": RGE,
    "spsa": SPSA,
    "one-point": OnePoint,
    "leave-one-out": LeaveOneOut,
}
"""By name."""
