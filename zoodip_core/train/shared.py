"""An objective whose candidates are shared out to the ranks of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from .draws import Draw, Objective
from .ranks import Ranks


class Batched(Objective, Protocol):
    """An objective that looks at ``batch`` candidates in a forward pass, fewer once its device's memory runs out."""

    batch: int
    on_smaller_batch: Callable[[int], None]

    def judge(self, draw: Draw, at: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
        """What gives candidates' losses on one draw."""
        ...


class SharedObjective:
    """The losses of candidates of which each rank looks at a part.

    A forward pass has the candidates that it would have in one process with the same ``batch``, so that losses come
    out the same, bit for bit. Only they travel.

    Args:
        objective: this rank's, with a batch above 0 that is the same on all of them.
        ranks: the ranks.
    """

    def __init__(self, objective: Batched, ranks: Ranks) -> None:
        self._objective, self._ranks = objective, ranks

    def draw(self, seed: int, step: int) -> Draw:
        return self._objective.draw(seed, step)

    def losses(self, candidates: torch.Tensor, draw: Draw, at: torch.Tensor | None = None) -> torch.Tensor:
        own, before = self._objective, self._objective.batch
        found = self._ranks.part(candidates.split(before), own.judge(draw, at))
        told = self._ranks.exchange([own.batch, *torch.cat([torch.zeros(0).double(), *found]).tolist()])
        batch = min(each[0] for each in told)
        if batch < own.batch:  # another rank's memory ran out
            own.batch = batch
            own.on_smaller_batch(batch)
        return torch.tensor([loss for each in told for loss in each[1:]], dtype=torch.float64)
