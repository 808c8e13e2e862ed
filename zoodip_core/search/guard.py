"""Looks after a search by the loss on draws that stay the same: goes back when it diverges, and tells when to end."""

from __future__ import annotations

import torch

from .state import State, count_in, numbers_in

LOST = 0.5
"""Of what was gained, the share whose loss is divergence."""
PROGRESS = 0.01
"""Of what was gained in all: less is no progress."""
NOTICEABLE = 0.01
"""Of the starting loss: less is neither a gain after which a search could converge, nor a loss that is divergence."""


class Guard:
    """Told the loss on draws that stay the same now and then, together with the point it is of.

    Args:
        patience: checks without progress after which the search has converged; 0 for never.
    """

    def __init__(self, patience: int = 0) -> None:
        self.patience = patience
        self.scale = 1.0
        """The factor of the learning rate, halved each time that the search went back."""
        self.point: torch.Tensor | None = None
        """The best point so far."""
        self._first = self._best = self._mark = 0.0  # the losses at first, at best, and at the last progress
        self._idle = 0

    @property
    def converged(self) -> bool:
        """Whether the search should end, at the best point."""
        return 0 < self.patience <= self._idle

    def check(self, loss: float, point: torch.Tensor) -> bool:
        """Whether the search can keep a point; else the search should go back to the best one, with smaller steps."""
        if self.point is None:
            self._first = self._best = self._mark = loss
            self.point = point.clone()
            return True
        if loss < self._best:
            self._best, self.point = loss, point.clone()
        gained = self._first - self._best
        if self._mark - self._best > PROGRESS * gained:
            self._mark, self._idle = self._best, 0
        elif gained > NOTICEABLE * self._first:  # before that it may still be looking for the way
            self._idle += 1
        if loss > self._best + max(LOST * gained, NOTICEABLE * self._first):
            self.scale /= 2
            return False
        return True

    def state_dict(self) -> State:
        state = {
            "losses": torch.tensor([self._first, self._best, self._mark, self.scale], dtype=torch.float64),
            "idle": torch.tensor(self._idle),
        }
        return state if self.point is None else {**state, "point": self.point.clone()}

    def load_state_dict(self, state: State, shape: torch.Size) -> None:
        """Continue from :meth:`state_dict`, with points of this shape.

        Raises:
            KeyError, ValueError: the state is not a guard's of this shape; it is left as it was.
        """
        losses, idle = numbers_in(state, "losses", (4,)), count_in(state, "idle")
        self.point = numbers_in(state, "point", shape) if "point" in state else None
        self._first, self._best, self._mark, self.scale = losses.tolist()
        self._idle = idle
