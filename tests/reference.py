"""The paper's algorithm 1 and 2 in NumPy float64, written from the equations, sharing no code with the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Loss = Callable[[Array], float]


def rge(loss: Loss, theta: Array, e: Array, mu: float) -> Array:
    """Eq. 3."""
    base = loss(theta)
    return sum((loss(theta + mu * e_i) - base) / mu * e_i for e_i in e) / len(e)


def spsa(loss: Loss, theta: Array, e: Array, mu: float) -> Array:
    """Supplement, S2."""
    return sum((loss(theta + mu * e_i) - loss(theta - mu * e_i)) / (2 * mu) * e_i for e_i in e) / len(e)


def one_point(loss: Loss, theta: Array, e: Array, mu: float) -> Array:
    """Supplement, S3, with e_{i+1} at its end, where print has e_i; ``e`` holds n + 1 directions."""
    n = len(e) - 1
    return sum((loss(theta + mu * e[i + 1]) - loss(theta + mu * e[i])) / mu * e[i + 1] for i in range(n)) / n


def leave_one_out(loss: Loss, theta: Array, e: Array, mu: float) -> Array:
    """Each direction's loss against the mean of the others'."""
    losses = [loss(theta + mu * x) for x in e]
    others = [np.mean([other for j, other in enumerate(losses) if j != i]) for i in range(len(e))]
    return sum((own - rest) / mu * x for own, rest, x in zip(losses, others, e, strict=True)) / len(e)


def removed_directions(buffer: Sequence[Array], nu: float) -> tuple[int, Array]:
    """Algorithm 2 with eq. 4-7: i* (counted from 1) and the rows of P."""
    b = np.stack(buffer)
    standard = (b - b.mean(axis=0)) / b.std(axis=0, ddof=1)
    _, sigma, vt = np.linalg.svd(standard, full_matrices=False)
    variance = sigma**2
    ratio = np.cumsum(variance) / np.sum(variance)
    i_star = next(i for i, share in enumerate(ratio, start=1) if share > 1 - nu)
    of_the_path = sigma > 1e-10 * sigma[0]  # centring takes one direction: the last vector is arbitrary
    return i_star, vt[of_the_path][i_star:]


class Adam:
    """Kingma and Ba, algorithm 1."""

    def __init__(self, lr: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> None:
        self.lr, self.b1, self.b2, self.eps = lr, b1, b2, eps
        self.m: Array | float = 0.0
        self.v: Array | float = 0.0
        self.t = 0

    def __call__(self, theta: Array, g: Array) -> Array:
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        m_hat = self.m / (1 - self.b1**self.t)
        v_hat = self.v / (1 - self.b2**self.t)
        return np.asarray(theta - self.lr * m_hat / (np.sqrt(v_hat) + self.eps))


class SGD:
    def __init__(self, lr: float) -> None:
        self.lr = lr

    def __call__(self, theta: Array, g: Array) -> Array:
        return theta - self.lr * g


def run(
    theta: Array,
    loss_at: Callable[[int], Loss],
    directions_at: Callable[[int], Array],
    estimate: Callable[[Loss, Array, Array, float], Array],
    update: Callable[[Array, Array], Array],
    *,
    mu: float,
    tau: int,
    nu: float,
    steps: int,
) -> list[Array]:
    """Algorithm 1 on flat tokens: theta after each step. ``tau`` 0 leaves Subspace Gradient out."""
    path: list[Array] = []
    buffer: list[Array] = []
    p: Array | None = None
    for step in range(steps):
        g = estimate(loss_at(step), theta, directions_at(step), mu)
        if p is not None:
            g = g @ (np.eye(len(g)) - p.T @ p)  # eq. 8
        theta = update(theta, g)
        path.append(theta)
        if tau:
            buffer.append(theta)
            if len(buffer) == tau:
                _, p = removed_directions(buffer, nu)
                buffer.clear()
    return path
