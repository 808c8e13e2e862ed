"""A search in two stages: the token, and then numbers in a model's weights, beside the token or together with it.

Each stage is a search of its own, with its own perturbation size and learning rate: what is a small step for a token is
none for a weight. Perturbed together, each takes from the same losses its own gradient, as each number of one does.
"""

from __future__ import annotations

import zlib

import torch

from ..base.errors import ConfigError
from .estimators import Estimator
from .guard import Guard
from .preconditioner import Spread
from .state import State, count_in, part_of
from .zeroth_order import ZerothOrderSearch

PURPOSE = "cores"
"""Of the second search's draws."""


class StagedSearch:
    """A search for a token, and one for numbers in weights after it. It is asked and told as each of them is.

    The first stage ends after so many steps, or where its guard sees no more progress; the second where the run does.

    Args:
        token: the first stage's search.
        cores: the second's, from ``[1, numbers]`` zeros on. It has as many candidates a step, and another purpose.
        first: steps of the first stage; 0 for none.
        together: whether the token is searched in the second stage as well, unless it has converged.

    Raises:
        ConfigError: they differ in their candidates, or do not differ in their draws.
    """

    def __init__(self, token: ZerothOrderSearch, cores: ZerothOrderSearch, first: int, together: bool = False) -> None:
        if token.estimator.num_candidates != cores.estimator.num_candidates or token.purpose == cores.purpose:
            raise ConfigError("the two stages of a search need as many candidates, and draws of their own")
        self.token, self.cores = token, cores
        self.first, self.together = first, together
        self.step = 0
        """Number of completed steps."""
        self.began = 0
        """Completed steps before the stage."""
        self.loss: float | None = None
        self._second = first == 0

    @property
    def in_second(self) -> bool:
        """Whether weights are searched by now."""
        return self._second

    @property
    def _active(self) -> ZerothOrderSearch:
        return self.cores if self._second else self.token

    @property
    def estimator(self) -> Estimator:
        return self._active.estimator

    @property
    def guard(self) -> Guard:
        return self._active.guard

    @property
    def spread(self) -> Spread | None:
        return self.token.spread

    @property
    def radius(self) -> float:
        return self.token.radius

    @property
    def theta(self) -> torch.Tensor:
        """The token so far, float32 ``[num_vectors, dim]``."""
        return self.token.theta

    @property
    def candidate(self) -> torch.Tensor:
        """What is learned so far as :meth:`ask` gives candidates."""
        if not self._second:
            return self.token.candidate
        return _beside(self.token.candidate, self.cores.candidate)

    @property
    def around(self) -> torch.Tensor:
        """What :meth:`ask` takes candidates around, as one of them."""
        if not self._second:
            return self.token.around
        return _beside(self.token.around if self._moves_token else self.token.candidate, self.cores.around)

    @property
    def converged(self) -> bool:
        return self._second and self.cores.converged

    @property
    def checksum(self) -> str:
        if not self._second:
            return self.token.checksum
        return f"{zlib.crc32(self.cores.checksum.encode(), int(self.token.checksum, 16)):08x}"

    @property
    def _moves_token(self) -> bool:
        return self.together and not self.token.converged

    def ask(self, mu_scale: float = 1.0) -> torch.Tensor:
        """Candidates: tokens ``[K, num_vectors, dim]``; in the second stage flat, ``[K, num_vectors * dim + numbers]``.

        Args:
            mu_scale: multiplies each search's perturbation size.
        """
        if not self._second:
            return self.token.ask(mu_scale)
        tokens = self.token.ask(mu_scale) if self._moves_token else self.token.candidate
        return _beside(tokens, self.cores.ask(mu_scale))

    def tell(
        self, losses: torch.Tensor, lr_scale: float = 1.0, *, check_loss: float | None = None, mu_scale: float = 1.0
    ) -> None:
        """Take a step by the candidates' losses ``[K]``; see :meth:`ZerothOrderSearch.tell`.

        Raises:
            ValueError: not one loss a candidate.
            NonFiniteLossError: a loss is not finite, or would lead nowhere. All is as it was.
        """
        before = self.token.state_dict() if self._second and self._moves_token else None
        if before is not None:
            self.token.tell(losses, lr_scale, mu_scale=mu_scale)
        try:
            self._active.tell(losses, lr_scale, check_loss=check_loss, mu_scale=mu_scale)
        except BaseException:
            if before is not None:
                self.token.load_state_dict(before)
            raise
        self.loss = self._active.loss
        self.step += 1
        if not self._second and (self.token.step >= self.first or self.token.converged):
            self._second, self.began = True, self.step

    def state_dict(self) -> State:
        """Tensors that, given to a search of the same settings, continue it bit for bit."""
        own = {"step": torch.tensor(self.step), "began": torch.tensor(self.began), "second": torch.tensor(self._second)}
        parts = (("token", self.token), ("cores", self.cores))
        found = {f"{name}.{key}": value for name, part in parts for key, value in part.state_dict().items()}
        guard = {key: value for key, value in self.cores.state_dict().items() if key.startswith("guard.")}
        return {**own, **found, **guard}  # the guard by its plain name as well: it tells whether the run is over

    def load_state_dict(self, state: State) -> None:
        """Resume from :meth:`state_dict`.

        Raises:
            ConfigError: the state belongs to another search, or is damaged. All is as it was.
        """
        before = self.token.state_dict()
        try:
            step, began, second = count_in(state, "step"), count_in(state, "began"), state["second"]
            if second.dtype != torch.bool or second.ndim or not began <= step:
                raise ValueError("the stage is damaged")
        except (LookupError, ValueError) as error:
            raise ConfigError(f"the saved search is damaged, or has no second stage ({error!r})") from error
        self.token.load_state_dict(part_of(state, "token."))
        try:
            self.cores.load_state_dict(part_of(state, "cores."))
        except ConfigError:
            self.token.load_state_dict(before)
            raise
        self.step, self.began, self._second, self.loss = step, began, bool(second), None


def _beside(tokens: torch.Tensor, cores: torch.Tensor) -> torch.Tensor:
    """Flat candidates of tokens ``[K, num_vectors, dim]`` and cores ``[K, 1, numbers]``; one of them may be for all."""
    count = max(len(tokens), len(cores))
    return torch.cat([tokens.expand(count, -1, -1).flatten(1), cores.expand(count, -1, -1).flatten(1)], dim=1)
