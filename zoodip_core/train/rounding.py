"""How far candidates must lie from the token, so that their losses differ by more than rounding.

The estimate of rounding is that of Moré and Wild ("Estimating computational noise", 2011): of losses at equal
distances on a short line, differences of high order leave nothing but noise, for there a loss is smooth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from ..base import rng
from ..base.errors import NonFiniteLossError
from ..base.events import Message
from ..search.estimators import MOST_MU
from ..search.preconditioner import Spread
from .config import TrainConfig
from .draws import Objective

SIGNAL = 3.0
"""A candidate's loss should differ from the token's by as many times the noise."""
DISTANCE = 0.02
"""Between neighbours on the line, as a share of the token's size: less, and bfloat16 would take some for the same."""
LARGEST = 10.0
"""A mu beyond this is not tried."""
_POINTS, _ORDER = 7, 4
_LINES, _DRAWS = 4, 2
WEIGHTS_FORWARDS = _DRAWS * (_LINES + 1)
"""Further ones of a run that learns weights."""
LEAST_FORWARDS = _DRAWS * (_LINES * _POINTS + 2 * (_LINES + 1))
"""Forward passes of one candidate that :func:`adapted` takes; more if mu has to be raised."""


def line(theta: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Points ``[lines * points, num_vectors, dim]`` at equal distances on short lines through theta.

    Args:
        theta: ``[num_vectors, dim]``.
        directions: ``[lines, num_vectors, dim]``, of any length.
    """
    size = theta.double().square().mean().sqrt()
    units = directions / directions.square().mean(dim=(1, 2), keepdim=True).sqrt()
    distances = DISTANCE * size * torch.arange(_POINTS, dtype=torch.float64)
    return (theta.double() + distances[:, None, None] * units[:, None]).flatten(0, 1).float()


def noise_of(losses: torch.Tensor) -> float:
    """The standard deviation of a loss's rounding, from the losses of :func:`line`'s points."""
    differences = losses.double().view(-1, _POINTS).diff(n=_ORDER, dim=1)
    # Of independent noise of variance 1, the k-th difference has the variance (2k)! / (k!)^2: 70 for the fourth.
    return float((differences.square().mean() / 70).sqrt())


def least_mu(mu: float, noise: float, signal: Callable[[float], float]) -> tuple[float, float]:
    """The first of mu, 2 mu, 4 mu, ... whose signal stands out of the noise, else the last, and its signal.

    Args:
        mu: the perturbation size to begin with.
        noise: from :func:`noise_of`.
        signal: by how much losses at a perturbation size differ from that at theta, on the root mean square.
    """
    found = signal(mu)
    while not found > SIGNAL * noise and 2 * mu <= LARGEST:
        mu *= 2
        found = signal(mu)
    return mu, found


def _differing(losses: torch.Tensor, mu: float) -> float:
    """By how much losses ``[draws, 1 + N]`` differ from the first of each draw, on the root mean square.

    Raises:
        NonFiniteLossError: they are not all finite.
    """
    size = float((losses[:, 1:] - losses[:, :1]).square().mean().sqrt())
    if not math.isfinite(size):
        raise NonFiniteLossError(
            f"the losses of candidates at mu = {mu:g} are not all finite: set dtype to float32, or a smaller mu"
        )
    return size


def _with_weights(theta0: torch.Tensor, mu: float, seed: int, numbers: int) -> torch.Tensor:
    """Flat candidates of one token, the first with weights as they are, the others with them perturbed."""
    directions = rng.normal(seed, 0, "noise of cores", (_LINES, numbers))
    cores = mu * torch.cat([torch.zeros(1, numbers), directions])
    return torch.cat([theta0.flatten().expand(len(cores), -1), cores], dim=1)


def adapted(
    config: TrainConfig,
    objective: Objective,
    images: int,
    theta0: torch.Tensor,
    spread: Spread | None,
    numbers: int = 0,
) -> tuple[TrainConfig, Message]:
    """Settings whose mu stands out of the rounding from a run's start to its end, whatever the model's types are.

    Args:
        config: the settings as given.
        objective: of the reference images.
        images: their number.
        theta0: the starting token ``[num_vectors, dim]``.
        spread: the shape of the random directions, if they have one.
        numbers: of weights that are learned after it, whose mu has to stand out of the rounding as well.

    Returns:
        The settings, with nothing left to adapt, and what the user should know.

    Raises:
        NonFiniteLossError: the model gives no finite losses.
    """
    draws = config.check_draws(images, _DRAWS)
    directions = rng.normal(config.seed, 0, "noise", (_LINES, *theta0.shape)).double()
    if spread:
        directions = spread.stretch(directions)

    def losses(candidates: torch.Tensor) -> torch.Tensor:
        return torch.stack([objective.losses(candidates, draw) for draw in draws])

    def signal(mu: float) -> float:
        return _differing(losses(torch.cat([theta0[None], (theta0 + mu * directions).float()])), mu)

    def signal_of_weights(mu: float) -> float:
        return _differing(losses(_with_weights(theta0, mu, config.seed, numbers)), mu)

    noise = noise_of(losses(line(theta0, directions)))
    if not math.isfinite(noise):
        raise NonFiniteLossError(
            "the losses at the starting token are not all finite: set dtype to float32, or use another model"
        )
    signal(config.mu)  # the run begins with it
    least, found = least_mu(config.mu * config.mu_end, noise, signal)
    mu = max(config.mu, least)
    enough = found > SIGNAL * noise
    said = f"at mu = {least:g} losses differ by {found:.1e}, by rounding {noise:.1e}"
    if not enough:
        said += "; what is learned from them will be noise. Use dtype float32, or other weights"
    if numbers:
        of_weights, found = least_mu(config.lora_mu * least / mu, noise, signal_of_weights)
        lora_mu = max(config.lora_mu, of_weights * mu / least)
        if enough and (found <= SIGNAL * noise or lora_mu > MOST_MU):
            enough = False
            said += f"; of the weights by {found:.1e}: what is learned of them will be noise"
        config = dataclasses.replace(config, lora_mu=min(lora_mu, MOST_MU))
    return dataclasses.replace(config, mu=mu, mu_end=least / mu, adapt_mu=False), Message(said, warning=not enough)
