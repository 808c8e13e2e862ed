"""Subspace Gradient: drop from the gradient what the token's own path calls noise (eq. 4-8, algorithm 2)."""

from __future__ import annotations

import torch

from ..base.errors import ConfigError
from .state import State, count_in, numbers_in

TAU_RANGE = (2, 65_536)
LEAST_NU = 1e-12
"""Shares of a variance below this are rounding: 1 - nu would be 1, which no sum exceeds."""


class SubspaceGradient:
    """Keeps the last ``tau`` tokens and removes low-variance directions of their path from gradients.

    Once the buffer is full it is standardised per feature (eq. 4) and decomposed (eq. 5); the
    directions after i*, the first at which the cumulative variance exceeds 1 - nu (eq. 6), become
    the projection P (eq. 7); the buffer is cleared, and for the next tau steps g (I - P^T P)
    replaces g (eq. 8). Tokens are taken as flat vectors of d = num_vectors * dim features.

    Args:
        tau: buffer size in steps.
        nu: share of the variance treated as noise, from :data:`LEAST_NU` to below 1.
    """

    def __init__(self, tau: int = 128, nu: float = 1e-3) -> None:
        if isinstance(tau, bool) or not isinstance(tau, int) or not TAU_RANGE[0] <= tau <= TAU_RANGE[1]:
            raise ConfigError(f"tau = {tau}: must be a whole number of steps from {TAU_RANGE[0]} to {TAU_RANGE[1]}")
        if not 0 < nu < 1:
            raise ConfigError(f"nu = {nu}: must be above 0 and below 1")
        if nu < LEAST_NU:
            raise ConfigError(f"nu = {nu}: a share below {LEAST_NU:g} is lost in rounding; use a larger one")
        self.tau = tau
        self.nu = nu
        self.turns = 0
        """How many times the buffer has been full."""
        self.kept: int | None = None
        """i*, the number of directions kept of the last buffer, or None before the first."""
        self._buffer: torch.Tensor | None = None  # [tau, d], rows above _filled are not yet written
        self._filled = 0
        self._projection: torch.Tensor | None = None  # P, [rank - i*, d], orthonormal rows

    def project(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient without its part in the dropped directions (eq. 8); same shape."""
        if self._projection is None:
            return gradient
        flat = gradient.reshape(-1)
        return (flat - self._projection.T @ (self._projection @ flat)).view_as(gradient)

    def record(self, theta: torch.Tensor) -> None:
        """Note an updated token; the ``tau``-th one turns the buffer into a new projection.

        Where that fails, all is as it was: the row counts only once it is followed through.
        """
        flat = theta.detach().reshape(-1)
        if self._buffer is None:
            self._buffer = flat.new_zeros(self.tau, flat.numel())
        self._buffer[self._filled] = flat
        if self._filled + 1 < self.tau:
            self._filled += 1
            return
        self.kept, self._projection = self._turned(self._buffer)
        self.turns += 1
        self._filled = 0

    def _turned(self, buffer: torch.Tensor) -> tuple[int | None, torch.Tensor | None]:
        """i* and P of a full buffer (algorithm 2); None of a token that did not move at all."""
        spread = buffer.std(dim=0)
        # A feature that never moved has no direction to vote for.
        standard = (buffer - buffer.mean(dim=0)) / torch.where(spread > 0, spread, torch.inf)
        _, singular, directions = torch.linalg.svd(standard, full_matrices=False)
        variance = singular.square()
        total = variance.sum()
        if not total > 0:
            return None, None
        enough = variance.cumsum(0) / total > 1 - self.nu
        kept = int(enough.to(torch.int8).argmax()) + 1 if enough.any() else len(enough)
        # Centring leaves the buffer at most tau - 1 directions; what the decomposition gives beyond
        # its rank is arbitrary, and no part of the token's path.
        rank = int((singular > singular[0] * 1e-10).sum())
        return kept, directions[kept:rank].contiguous()

    def reset(self) -> None:
        """Forget the path so far, and the projection that was made of it: the token goes on from elsewhere."""
        self.kept, self._projection = None, None
        self._buffer, self._filled = None, 0

    def state_dict(self) -> State:
        """Everything a bit-identical continuation needs."""
        state = {"turns": torch.tensor(self.turns), "kept": torch.tensor(self.kept or 0)}
        if self._buffer is not None:
            state["buffer"] = self._buffer[: self._filled].clone()
        if self._projection is not None:
            state["projection"] = self._projection.clone()
        return state

    def load_state_dict(self, state: State, features: int) -> None:
        """Continue from :meth:`state_dict`, with tokens of so many numbers.

        Raises:
            KeyError, ValueError: the state is not one of this buffer size and width; it is left as it was.
        """
        turns, kept = count_in(state, "turns"), count_in(state, "kept")
        written = numbers_in(state, "buffer", (-1, features)) if "buffer" in state else None
        projection = numbers_in(state, "projection", (-1, features)) if "projection" in state else None
        if written is not None and len(written) >= self.tau:
            raise ValueError(f"buffer has {len(written)} of less than {self.tau} rows")
        self.turns, self.kept, self._projection = turns, kept or None, projection
        self._buffer, self._filled = None, 0
        if written is not None:
            self._buffer = written.new_zeros(self.tau, features)
            self._buffer[: len(written)] = written
            self._filled = len(written)
