"""The ask/tell search: candidates out, losses in (paper, algorithm 1).

The search never sees a model. It runs in float64 on the CPU: a token is a few thousand numbers, so
this costs nothing, and its path is the same whatever device evaluates the candidates.
"""

from __future__ import annotations

import copy
import math
import zlib

import torch

from ..base.errors import ConfigError, NonFiniteLossError
from .estimators import DIRECTIONS, RGE, Estimator
from .guard import Guard
from .optimizers import Optimizer, ZOAdam
from .preconditioner import Spread
from .state import State, count_in, numbers_in, part_of
from .subspace import SubspaceGradient
from .threads import one_thread


class ZerothOrderSearch:
    """Estimator, Subspace Gradient and optimizer around one token.

    Args:
        theta0: float tensor ``[num_vectors, dim]``, the starting token.
        estimator: how losses become a gradient; ``RGE()`` by default.
        subspace: Subspace Gradient, or None to use gradients as estimated.
        optimizer: how a gradient becomes a step; ``ZOAdam()`` by default.
        seed: every direction is a function of (seed, step).
        spread: the shape of the random directions, of theta0's width; without one they are alike in all numbers.
        guard: looks after the search by the losses that :meth:`tell` is given as ``check_loss``.
        averaging: theta is the mean of the tokens that the search went through, of which about the last ones count:
            this share of all steps so far. 0: the last one alone; 1: all alike.
        radius: how far from theta0 tokens lie at most, in the words' root mean square distance from their mean
            (:meth:`Spread.stretch`). Where the search goes on further out it turns the token, ever more finely, as it
            would in a text encoder that normalises what it reads. 0: anywhere; of a search with a spread alone.
        purpose: of its random draws: two searches of the same seed that differ in it have nothing in common.

    Raises:
        ConfigError: theta0 is not a finite float matrix, the spread not of its width, averaging not from 0 to 1, or a
            radius below 0 or without a spread.
    """

    def __init__(
        self,
        theta0: torch.Tensor,
        estimator: Estimator | None = None,
        subspace: SubspaceGradient | None = None,
        optimizer: Optimizer | None = None,
        seed: int = 0,
        spread: Spread | None = None,
        guard: Guard | None = None,
        averaging: float = 0.0,
        radius: float = 0.0,
        purpose: str = DIRECTIONS,
    ) -> None:
        if theta0.ndim != 2 or 0 in theta0.shape or not theta0.is_floating_point():
            raise ConfigError(
                f"theta0 must be a float tensor [num_vectors, dim], not {theta0.dtype} {list(theta0.shape)}"
            )
        if not torch.isfinite(theta0).all():
            raise ConfigError("theta0 holds NaN or infinity; start from a finite token")
        if spread and sum(spread.widths) != theta0.shape[1]:
            raise ConfigError(
                f"the shape of the directions is for tokens of {sum(spread.widths)} numbers, theta0 has "
                f"{theta0.shape[1]}; it belongs to another model"
            )
        if not 0 <= averaging <= 1:
            raise ConfigError(f"averaging = {averaging}: the share of the steps must be from 0 to 1")
        if not 0 <= radius < math.inf or (radius and spread is None):
            raise ConfigError(f"radius = {radius}: must be 0 or more, and is of directions that have a shape")
        self.estimator = estimator or RGE()
        self.subspace = subspace
        self.optimizer = optimizer or ZOAdam()
        self.seed = seed
        self.spread = spread
        self.guard = guard or Guard()
        self.averaging = averaging
        self.radius = radius
        self.purpose = purpose
        self.step = 0
        """Number of completed steps."""
        self.loss: float | None = None
        """The last step's loss at the token it was taken from."""
        self._theta0 = theta0.detach().to("cpu", torch.float64, copy=True)
        self._searched = self._theta0  # the token that candidates are made around
        # What the optimizer moves: that token itself, or w of theta0 + A w. The mean is of the same kind.
        self._point = self._mean = torch.zeros_like(self._theta0) if spread else self._theta0

    @property
    def theta(self) -> torch.Tensor:
        """What is learned so far, float32 ``[num_vectors, dim]``, a copy."""
        if not self.averaging:
            return self._searched.float()
        with one_thread():
            return self._token(self._mean).float()

    began = 0
    """Completed steps before what is searched now, which schedules count from; see :class:`.staged.StagedSearch`."""

    @property
    def candidate(self) -> torch.Tensor:
        """What is learned so far as :meth:`ask` gives candidates, ``[1, num_vectors, dim]``."""
        return self.theta[None]

    @property
    def around(self) -> torch.Tensor:
        """What :meth:`ask` takes candidates around, as one of them, ``[1, num_vectors, dim]``."""
        return self._searched.float()[None]

    @property
    def checksum(self) -> str:
        """Of the token that is searched from and the mean, in full precision: what a replay must come to as well."""
        check = zlib.crc32(self._searched.numpy().tobytes())
        return f"{zlib.crc32(self._mean.numpy().tobytes(), check) if self.averaging else check:08x}"

    def ask(self, mu_scale: float = 1.0) -> torch.Tensor:
        """The candidates to evaluate on one draw, float32 ``[K, num_vectors, dim]``.

        Asking again before :meth:`tell` gives the same candidates.

        Args:
            mu_scale: multiplies the perturbation size (a schedule's value).
        """
        directions = mu_scale * self._directions()
        if self.radius:
            return self._token(self.estimator.candidates(self._point, directions)).float()
        if self.spread:
            directions = self.spread.stretch(directions)
        return self.estimator.candidates(self._searched, directions).float()

    @property
    def converged(self) -> bool:
        """Whether the guard has seen no progress for long, and taken theta to where it was best."""
        return self.guard.converged

    def tell(
        self, losses: torch.Tensor, lr_scale: float = 1.0, *, check_loss: float | None = None, mu_scale: float = 1.0
    ) -> None:
        """Take a step by the candidates' losses ``[K]``, in the order of :meth:`ask`.

        Args:
            losses: of this step's draw.
            lr_scale: multiplies the learning rate (a schedule's value).
            check_loss: theta's loss, before this step, on draws that are the same each time; not known if None.
                Where the guard sees by it that the search diverged or has converged, theta goes back to its best.
            mu_scale: that of :meth:`ask`.

        Raises:
            ValueError: not one loss a candidate.
            NonFiniteLossError: a loss is NaN or infinite, or so large that the token would be. All is as it was.
        """
        losses = torch.as_tensor(losses).detach().to("cpu", torch.float64)
        if losses.shape != (self.estimator.num_candidates,):
            raise ValueError(
                f"expected {self.estimator.num_candidates} losses, one a candidate, got shape {list(losses.shape)}"
            )
        if not torch.isfinite(losses).all():
            raise NonFiniteLossError(f"step {self.step + 1}: losses {losses.tolist()} are not all finite")
        if check_loss is not None and not math.isfinite(check_loss):
            raise NonFiniteLossError(f"step {self.step + 1}: the loss on fixed draws is {check_loss}")
        # On copies, so that all is as it was where the step fails. Their tensors are exchanged, never written into.
        guard, optimizer = copy.copy(self.guard), copy.copy(self.optimizer)
        fine = check_loss is None or guard.check(check_loss, self._mean)
        loss = self.estimator.loss(losses)
        with one_thread():
            if fine and not guard.converged:
                self._move(optimizer, losses, lr_scale * guard.scale, mu_scale)
            else:
                self._go_back(guard, optimizer)
        self.guard, self.optimizer, self.loss = guard, optimizer, loss
        self.step += 1

    def _go_back(self, guard: Guard, optimizer: Optimizer) -> None:
        assert guard.point is not None
        point = guard.point.clone()
        self._searched = self._token(point)
        self._point = self._mean = point
        optimizer.reset()  # its running means led astray
        if self.subspace:
            self.subspace.reset()  # and so did the path

    def _move(self, optimizer: Optimizer, losses: torch.Tensor, lr_scale: float, mu_scale: float) -> None:
        gradient = self.estimator.gradient(losses, self._directions()) / mu_scale
        if self.subspace:
            gradient = self.subspace.project(gradient)
        if not _moderate(gradient):
            raise NonFiniteLossError(f"step {self.step + 1}: losses {losses.tolist()} are too far apart for mu")
        point = optimizer.step(self._point, gradient, lr_scale)
        searched = self._token(point)
        if not _moderate(searched):
            raise NonFiniteLossError(f"step {self.step + 1}: the token has run away")
        # A share of the steps so far, not of the run: early on the mean must not lag, later it can be over many.
        weight = 1 / (1 + self.averaging * self.step)
        mean = point if weight == 1 else self._mean + weight * (point - self._mean)
        if self.subspace:
            self.subspace.record(point)
        self._point, self._searched, self._mean = point, searched, mean

    def _token(self, point: torch.Tensor) -> torch.Tensor:
        return self._theta0 + self.spread.stretch(point, self.radius) if self.spread else point

    def _directions(self) -> torch.Tensor:
        return self.estimator.directions(self.seed, self.step, self._theta0.shape, self.purpose)

    def state_dict(self) -> State:
        """Tensors that, given to a search of the same settings, continue it bit for bit."""
        state = {"theta": self._searched.clone(), "step": torch.tensor(self.step), "seed": torch.tensor(self.seed)}
        if self.spread:
            state["point"] = self._point.clone()
        if self.averaging:
            state["mean"] = self._mean.clone()
        if self.guard.point is not None:
            state |= {f"guard.{key}": value for key, value in self.guard.state_dict().items()}
        state |= {f"optimizer.{key}": value for key, value in self.optimizer.state_dict().items()}
        if self.subspace:
            state |= {f"subspace.{key}": value for key, value in self.subspace.state_dict().items()}
        return state

    def load_state_dict(self, state: State) -> None:
        """Resume from :meth:`state_dict`.

        Raises:
            ConfigError: the state belongs to a search of another shape, seed, directions, averaging or Subspace
                Gradient, or is damaged.
        """
        try:
            self._load(state)
        except (LookupError, RuntimeError, ValueError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the saved search is damaged ({error!r})") from error

    def _load(self, state: State) -> None:
        if state["theta"].shape != self._theta0.shape or int(state["seed"]) != self.seed:
            raise ConfigError(
                f"the saved search has a token {list(state['theta'].shape)} and seed {int(state['seed'])}, "
                f"this one {list(self._theta0.shape)} and seed {self.seed}; use the saved run's settings"
            )
        if ("subspace.turns" in state) != (self.subspace is not None):
            raise ConfigError(
                "the saved search and this one differ in the use of Subspace Gradient; use the saved run's settings"
            )
        if ("point" in state) != (self.spread is not None):
            raise ConfigError("the saved search and this one differ in their directions; use the saved run's settings")
        if ("mean" in state) != (self.averaging > 0):
            raise ConfigError("the saved search and this one differ in their averaging; use the saved run's settings")
        shape = self._theta0.shape
        step, searched = count_in(state, "step"), numbers_in(state, "theta", shape)
        point = numbers_in(state, "point", shape) if self.spread else searched
        mean = numbers_in(state, "mean", shape) if self.averaging else point.clone()
        guard, optimizer, subspace = Guard(self.guard.patience), *copy.deepcopy((self.optimizer, self.subspace))
        optimizer.load_state_dict(part_of(state, "optimizer."), shape)
        if "guard.point" in state:
            guard.load_state_dict(part_of(state, "guard."), shape)
        if subspace:
            subspace.load_state_dict(part_of(state, "subspace."), shape.numel())
        self.step, self.loss = step, None
        self._searched, self._point, self._mean = searched, point, mean
        self.guard, self.optimizer, self.subspace = guard, optimizer, subspace


def _moderate(tensor: torch.Tensor) -> bool:
    """Whether all is finite, its squares too."""
    return bool(torch.isfinite(tensor.square().sum()))
