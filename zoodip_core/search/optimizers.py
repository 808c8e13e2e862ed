"""First-order update rules fed with zeroth-order gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from ..base.errors import ConfigError
from .state import State, count_in, numbers_in

MOST_LR = 100


class Optimizer(Protocol):
    """Moves theta by an estimated gradient."""

    def step(self, theta: torch.Tensor, gradient: torch.Tensor, lr_scale: float = 1.0) -> torch.Tensor:
        """The new theta; ``lr_scale`` multiplies the learning rate (a schedule's value)."""
        ...

    def reset(self) -> None:
        """Forget all earlier gradients."""
        ...

    def state_dict(self) -> State:
        """Tensors that, given to an optimizer of the same settings, continue it bit for bit."""
        ...

    def load_state_dict(self, state: State, shape: torch.Size) -> None:
        """Continue from :meth:`state_dict`, with a theta of this shape.

        Raises:
            KeyError, ValueError: the state is not one of this optimizer and shape; it is left as it was.
        """
        ...


class _Rate:
    """A learning rate, and how it shrinks what is learned: by ``lr * weight_decay`` a step, as AdamW's does.

    Args:
        lr: learning rate.
        weight_decay: 0 for none.

    Raises:
        ConfigError: one is out of range, or a step would take all that is learned away.
    """

    def __init__(self, lr: float, weight_decay: float) -> None:
        if not 0 < lr <= MOST_LR:
            raise ConfigError(f"lr = {lr}: must be above 0 and at most {MOST_LR}")
        if not 0 <= lr * weight_decay < 1:
            raise ConfigError(f"weight_decay = {weight_decay}: times lr = {lr:g} it must be from 0 to below 1")
        self.lr, self.weight_decay = lr, weight_decay

    def _kept(self, theta: torch.Tensor, lr_scale: float) -> torch.Tensor:
        """What a step leaves of theta before it moves on."""
        return theta if not self.weight_decay else (1 - self.lr * lr_scale * self.weight_decay) * theta


class ZOSGD(_Rate):
    """Plain descent: theta - lr * g.

    Args:
        lr: learning rate.
        weight_decay: see :class:`_Rate`.
    """

    def __init__(self, lr: float = 5e-3, weight_decay: float = 0.0) -> None:
        super().__init__(lr, weight_decay)

    def step(self, theta: torch.Tensor, gradient: torch.Tensor, lr_scale: float = 1.0) -> torch.Tensor:
        return self._kept(theta, lr_scale) - self.lr * lr_scale * gradient

    def reset(self) -> None:
        """Nothing to forget: plain descent has no memory."""

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State, shape: torch.Size) -> None:
        """Nothing to restore."""


class ZOAdam(_Rate):
    """Adam with bias correction (MeZO's ZOAdam), on an estimated gradient.

    Args:
        lr: learning rate, in units of the token embedding.
        betas: decay of the running mean of g and of g^2, each in [0, 1).
        eps: added to the root of the running mean of g^2.
        weight_decay: see :class:`_Rate`.
    """

    def __init__(
        self,
        lr: float = 5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(lr, weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"betas = {betas}: both must be at least 0 and below 1")
        if not eps > 0:
            raise ConfigError(f"eps = {eps}: must be above 0")
        self.betas = betas
        self.eps = eps
        self.reset()

    def reset(self) -> None:
        self._steps = 0
        self._mean: torch.Tensor | None = None
        self._square: torch.Tensor | None = None

    def step(self, theta: torch.Tensor, gradient: torch.Tensor, lr_scale: float = 1.0) -> torch.Tensor:
        first, second = self.betas
        mean = torch.zeros_like(theta) if self._mean is None else self._mean
        square = torch.zeros_like(theta) if self._square is None else self._square
        self._steps += 1
        self._mean = first * mean + (1 - first) * gradient
        self._square = second * square + (1 - second) * gradient.square()
        corrected = self._mean / (1 - first**self._steps)
        scale = (self._square / (1 - second**self._steps)).sqrt() + self.eps
        return self._kept(theta, lr_scale) - self.lr * lr_scale * corrected / scale

    def state_dict(self) -> State:
        state = {"steps": torch.tensor(self._steps)}
        if self._mean is not None and self._square is not None:
            state |= {"mean": self._mean.clone(), "square": self._square.clone()}
        return state

    def load_state_dict(self, state: State, shape: torch.Size) -> None:
        steps, known = count_in(state, "steps"), "mean" in state or "square" in state
        mean, square = (numbers_in(state, name, shape) if known else None for name in ("mean", "square"))
        self._steps, self._mean, self._square = steps, mean, square


class NormalizedSGD(_Rate):
    """Descent along the running mean of gradients that are first scaled to a root mean square of 1.

    The size of one step's gradient tells of its timestep, noise and image; only its direction tells of the token.
    Adam, which divides by the size that gradients have on average, lets the few large ones decide.

    Args:
        lr: learning rate.
        momentum: decay of the running mean, in [0, 1); its bias towards 0 is corrected.
        weight_decay: see :class:`_Rate`.
    """

    def __init__(self, lr: float = 0.5, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(lr, weight_decay)
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum = {momentum}: must be at least 0 and below 1")
        self.momentum = momentum
        self.reset()

    def reset(self) -> None:
        self._steps = 0
        self._mean: torch.Tensor | None = None

    def step(self, theta: torch.Tensor, gradient: torch.Tensor, lr_scale: float = 1.0) -> torch.Tensor:
        size = gradient.square().mean().sqrt()
        unit = gradient / size if size > 0 else gradient
        mean = torch.zeros_like(theta) if self._mean is None else self._mean
        self._steps += 1
        self._mean = self.momentum * mean + (1 - self.momentum) * unit
        return self._kept(theta, lr_scale) - self.lr * lr_scale * self._mean / (1 - self.momentum**self._steps)

    def state_dict(self) -> State:
        state = {"steps": torch.tensor(self._steps)}
        return state if self._mean is None else {**state, "mean": self._mean.clone()}

    def load_state_dict(self, state: State, shape: torch.Size) -> None:
        steps = count_in(state, "steps")
        self._mean = numbers_in(state, "mean", shape) if "mean" in state else None
        self._steps = steps


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"zoadam": ZOAdam, "zosgd": ZOSGD, "normalized-sgd": NormalizedSGD}
"""By name."""
