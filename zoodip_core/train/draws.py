"""What is random about a step, and what maps candidates to losses on it: all that the loop knows of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Draw:
    """Everything random about one step, shared by all its candidates. Noise follows from (seed, step).

    The timestep is Stable Diffusion's; see :class:`~..model.token_model.View`.
    """

    seed: int
    step: int
    image: int
    caption: int
    timestep: int


class Objective(Protocol):
    """Maps candidates to losses: all that the search needs to know of a model."""

    def draw(self, seed: int, step: int) -> Draw:
        """The draw of a training step."""
        ...

    def losses(self, candidates: torch.Tensor, draw: Draw, at: torch.Tensor | None = None) -> torch.Tensor:
        """Losses ``[K]``, float64 on the CPU, of candidates ``[K, num_vectors, dim]`` on one draw.

        Args:
            candidates: what to judge.
            draw: what all are judged on.
            at: what they are taken around, ``[1, num_vectors, dim]``, which a run with a target prompt needs; None to
                judge them by the pictures alone.
        """
        ...


_CHECK_APART = 2_000_000_000
"""No run takes as many steps: the noise of its steps is other than that of the draws that stay the same."""


def fixed_draws(seed: int, images: int, timesteps: Sequence[int], repeats: int = 1) -> list[Draw]:
    """Draws for measuring: every image at every timestep, ``repeats`` noises each; the first caption."""
    return [
        Draw(seed, 1_000_000 + (image * len(timesteps) + i) * repeats + repeat, image, 0, t)
        for image in range(images)
        for i, t in enumerate(timesteps)
        for repeat in range(repeats)
    ]


def spread_draws(seed: int, images: int, t_lower: int, t_upper: int, count: int) -> list[Draw]:
    """Draws that stay the same through a run: the images in turn, timesteps at equal distances, the first caption."""
    return [
        Draw(seed, _CHECK_APART + i, i % images, 0, t_lower + (2 * i + 1) * (t_upper - t_lower) // (2 * count))
        for i in range(count)
    ]


Share = Callable[[Sequence[Draw], Callable[[Draw], torch.Tensor]], Sequence[torch.Tensor]]
"""Has something done with each draw, by this process or several; returns the results in the draws' order."""


def _in_turn(draws: Sequence[Draw], work: Callable[[Draw], torch.Tensor]) -> Sequence[torch.Tensor]:
    return [work(draw) for draw in draws]


def mean_losses(
    objective: Objective, candidates: torch.Tensor, draws: Sequence[Draw], share: Share = _in_turn
) -> torch.Tensor:
    """Mean loss ``[K]`` of each candidate over the same draws (common random numbers)."""
    return mean_over(draws, lambda draw: objective.losses(candidates, draw), share)


def mean_over(draws: Sequence[Draw], losses: Callable[[Draw], torch.Tensor], share: Share = _in_turn) -> torch.Tensor:
    """The mean ``[K]`` of what some draws give."""
    return torch.stack(list(share(draws, losses))).mean(dim=0)
