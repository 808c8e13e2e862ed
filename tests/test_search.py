"""The search against an independent NumPy float64 reference, and its own promises."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests import reference
from tests.reference import Array
from zoodip_core import RGE, SPSA, ZOSGD, LeaveOneOut, OnePoint, SubspaceGradient, ZerothOrderSearch, ZOAdam
from zoodip_core.base.errors import ConfigError, NonFiniteLossError
from zoodip_core.search.guard import Guard
from zoodip_core.search.optimizers import OPTIMIZERS, Optimizer

VECTORS, DIM, STEPS, TAU = 2, 24, 100, 16
MU = 1e-2


@functools.cache
def bowl(dim: int) -> tuple[Array, Array]:
    """Its curvature and centre."""
    rng = np.random.default_rng(1000)
    half = rng.normal(size=(dim, dim)) / math.sqrt(dim)
    scales = np.logspace(0, -2, dim)
    return half * scales @ half.T, rng.normal(size=dim)


def noisy_quadratic(step: int, dim: int = VECTORS * DIM) -> Callable[[Array], float]:
    """A bowl whose centre moves a little each step, as a draw's noise moves the denoising loss."""
    curvature, centre = bowl(dim)
    shift = 0.3 * np.random.default_rng(step).normal(size=dim)

    def loss(theta: Array) -> float:
        rounded = theta.astype(np.float32).astype(np.float64)  # a model sees float32 tokens
        away = rounded - centre - shift
        return float(away @ curvature @ away)

    return loss


def live_path(search: ZerothOrderSearch, steps: int = STEPS) -> list[Array]:
    path = []
    for step in range(steps):
        loss = noisy_quadratic(step)
        candidates = search.ask()
        assert candidates.dtype == torch.float32
        losses = [loss(c.double().numpy().ravel()) for c in candidates]
        search.tell(torch.tensor(losses, dtype=torch.float64))
        path.append(search.state_dict()["theta"].numpy().ravel().copy())
    return path


@pytest.mark.parametrize(
    ("estimator", "estimate"),
    [
        (RGE(2, MU), reference.rge),
        (SPSA(2, MU), reference.spsa),
        (OnePoint(3, MU), reference.one_point),
        (LeaveOneOut(3, MU), reference.leave_one_out),
    ],
    ids=["rge", "spsa", "one-point", "leave-one-out"],
)
@pytest.mark.parametrize(
    ("optimizer", "update"),
    [
        (lambda: ZOAdam(lr=5e-3), lambda: reference.Adam(5e-3)),
        (lambda: ZOAdam(lr=5e-3, eps=0.1), lambda: reference.Adam(5e-3, eps=0.1)),
        (lambda: ZOSGD(lr=1e-3), lambda: reference.SGD(1e-3)),
    ],
    ids=["zoadam", "zoadam-eps", "zosgd"],
)
@pytest.mark.parametrize("tau", [TAU, 0], ids=["sg", "plain"])
def test_agrees_with_the_equations(estimator: Any, estimate: Any, optimizer: Any, update: Any, tau: int) -> None:
    start = torch.randn(VECTORS, DIM, generator=torch.Generator().manual_seed(3))
    subspace = SubspaceGradient(tau=tau, nu=1e-3) if tau else None
    search = ZerothOrderSearch(start, estimator, subspace, optimizer(), seed=11)
    path = live_path(search)
    expected = reference.run(
        start.double().numpy().ravel(),
        noisy_quadratic,
        lambda step: estimator.directions(11, step, start.shape).numpy().reshape(-1, VECTORS * DIM),
        estimate,
        update(),
        mu=MU,
        tau=tau,
        nu=1e-3,
        steps=STEPS,
    )
    worst = max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(path, expected, strict=True))
    assert worst < 1e-5
    if subspace:
        assert subspace.turns == STEPS // TAU >= 3
        assert subspace.kept is not None
        assert 1 <= subspace.kept < TAU


def test_curvature_is_no_slope_to_directions_that_are_judged_by_each_other() -> None:
    """At the bottom of a bowl every direction leads up alike. What RGE sees there is a slope of its own making."""
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(4000, 4, 1, 200, generator=generator, dtype=torch.float64)
    theta = torch.zeros(1, 200, dtype=torch.float64)

    def size(estimator: RGE | LeaveOneOut) -> float:
        found = [estimator.gradient(estimator.candidates(theta, each).square().sum(dim=(1, 2)), each) for each in e]
        return float(torch.stack(found).square().mean().sqrt())

    # Of RGE: mu |e|^2 = 200 mu in every direction. Of the other: what |e|^2, whose variance is 400, differs by.
    assert size(RGE(4, 0.5)) == pytest.approx(0.5 * 200 / 2, rel=0.05)
    assert size(LeaveOneOut(4, 0.5)) == pytest.approx(0.5 * math.sqrt(400 / 4 * 4 / 3), rel=0.05)


def test_what_is_added_to_all_losses_leaves_the_gradient_as_it_is() -> None:
    estimator, e = LeaveOneOut(5, 0.1), torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    losses = torch.tensor([1.0, 3.0, 2.0, 0.5, 4.0], dtype=torch.float64)
    torch.testing.assert_close(estimator.gradient(losses + 64, e), estimator.gradient(losses, e), rtol=0, atol=1e-12)
    assert estimator.num_candidates == 5
    with pytest.raises(ConfigError, match="set n to 2 or more"):
        LeaveOneOut(1)


def test_the_loss_falls() -> None:
    start = torch.zeros(VECTORS, DIM)
    search = ZerothOrderSearch(start, RGE(2, MU), SubspaceGradient(TAU, 1e-3), ZOAdam(lr=2e-2), seed=1)
    path = live_path(search, 300)
    centred = noisy_quadratic(0)
    assert centred(path[-1]) < 0.5 * centred(start.double().numpy().ravel())


def test_kept_directions_and_projection_match_algorithm_2() -> None:
    rng = np.random.default_rng(5)
    walk = np.cumsum(rng.normal(size=(32, 40)) * np.logspace(0, -2, 40), axis=0)
    subspace = SubspaceGradient(tau=32, nu=1e-2)
    for row in walk:
        subspace.record(torch.from_numpy(row)[None])
    i_star, p = reference.removed_directions(list(walk), 1e-2)
    gradient = rng.normal(size=40)
    ours = subspace.project(torch.from_numpy(gradient)[None]).numpy().ravel()
    assert subspace.kept == i_star
    np.testing.assert_allclose(ours, gradient @ (np.eye(40) - p.T @ p), rtol=1e-9)
    assert np.abs(p @ ours).max() < 1e-12  # nothing of the dropped directions is left
    assert np.linalg.norm(ours) < np.linalg.norm(gradient)


def test_projection_holds_for_the_next_tau_steps_only() -> None:
    subspace = SubspaceGradient(tau=4, nu=0.3)
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    first = [torch.randn(1, 6, generator=generator, dtype=torch.float64) for _ in range(4)]
    for theta in first[:3]:
        subspace.record(theta)
        assert torch.equal(subspace.project(gradient), gradient)  # before the first turn: as estimated
    subspace.record(first[3])
    projected = subspace.project(gradient)
    assert not torch.allclose(projected, gradient)
    for _ in range(3):  # a filling buffer changes nothing yet
        subspace.record(torch.randn(1, 6, generator=generator, dtype=torch.float64))
        assert torch.equal(subspace.project(gradient), projected)
    subspace.record(torch.randn(1, 6, generator=generator, dtype=torch.float64))
    assert not torch.allclose(subspace.project(gradient), projected)


def test_a_token_that_never_moves_is_no_trouble() -> None:
    subspace = SubspaceGradient(tau=3, nu=0.1)
    for _ in range(3):
        subspace.record(torch.ones(1, 5, dtype=torch.float64))
    gradient = torch.randn(1, 5, dtype=torch.float64)
    assert torch.equal(subspace.project(gradient), gradient)


def test_candidates_stand_where_the_interface_says() -> None:
    theta = torch.randn(3, 8)
    search = ZerothOrderSearch(theta, RGE(n=4, mu=1e-3), seed=5)
    candidates = search.ask()
    e = RGE(n=4, mu=1e-3).directions(5, 0, theta.shape)
    assert candidates.shape == (5, 3, 8)
    assert torch.equal(candidates[0], theta)
    for i in range(4):
        torch.testing.assert_close(candidates[i + 1], (theta.double() + 1e-3 * e[i]).float())
    assert torch.equal(search.ask(), candidates)  # asking twice is asking once
    plus, minus = ZerothOrderSearch(theta, SPSA(n=2, mu=1e-2), seed=5).ask().split(2)
    torch.testing.assert_close((plus + minus) / 2, theta.expand(2, -1, -1))


@pytest.mark.parametrize("estimator", [RGE(64, 1e-4), SPSA(64, 1e-4)], ids=["rge", "spsa"])
def test_estimates_point_along_the_true_gradient(estimator: Any) -> None:
    centre = torch.randn(1, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    mean = torch.zeros(1, 30, dtype=torch.float64)
    for step in range(200):
        e = estimator.directions(0, step, mean.shape)
        losses = (estimator.candidates(mean * 0, e) - centre).square().sum((1, 2))
        mean += estimator.gradient(losses, e) / 200
    assert torch.cosine_similarity(mean, -2 * centre).item() > 0.99
    assert abs(mean.norm() / (2 * centre).norm() - 1) < 0.05  # unbiased in size as well


def test_every_vector_is_trained() -> None:
    search = ZerothOrderSearch(torch.zeros(4, 16), RGE(2, MU), None, ZOAdam(lr=1e-2), seed=0)
    for _ in range(20):
        search.tell(search.ask().sub(1.0).square().sum((1, 2)))
    assert (search.theta.norm(dim=1) > 0.05).all()


def test_directions_depend_on_seed_and_step_alone_and_leave_global_state() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    a = RGE(2).directions(1, 7, torch.Size((2, 5)))
    assert torch.equal(a, RGE(2).directions(1, 7, torch.Size((2, 5))))
    assert not torch.equal(a, RGE(2).directions(1, 8, torch.Size((2, 5))))
    assert not torch.equal(a, RGE(2).directions(2, 7, torch.Size((2, 5))))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stop", [0, 1, 15, 16, 17, 40])
def test_saved_state_continues_bit_for_bit(stop: int) -> None:
    def fresh() -> ZerothOrderSearch:
        return ZerothOrderSearch(torch.ones(1, 20), RGE(2, MU), SubspaceGradient(16, 1e-3), ZOAdam(1e-2), seed=2)

    def go(search: ZerothOrderSearch, until: int) -> None:
        while search.step < until:
            search.tell(search.ask().square().sum((1, 2)) * (1 + search.step % 3))

    whole = fresh()
    go(whole, 60)
    first, second = fresh(), fresh()
    go(first, stop)
    state = {key: value.clone() for key, value in first.state_dict().items()}
    go(first, stop + 5)  # a saved state does not move with the search it came from
    second.load_state_dict(state)
    go(second, 60)
    for key, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_bad_losses_move_nothing() -> None:
    search = ZerothOrderSearch(torch.ones(1, 4), RGE(2), SubspaceGradient(4), ZOAdam())
    before = search.state_dict()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteLossError, match="step 1"):
            search.tell(torch.tensor([1.0, bad, 1.0]))
    with pytest.raises(ValueError, match="expected 3 losses"):
        search.tell(torch.tensor([1.0, 2.0]))
    after = search.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


class Wild(ZOAdam):
    """An optimizer whose step leads nowhere once."""

    wild = False

    def step(self, theta: torch.Tensor, gradient: torch.Tensor, lr_scale: float = 1.0) -> torch.Tensor:
        point = super().step(theta, gradient, lr_scale)
        return point * float("inf") if Wild.wild else point


def test_a_step_that_fails_half_way_leaves_all_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the optimizer has moved, and while Subspace Gradient takes its turn: the next step is as if never tried."""

    def fresh() -> ZerothOrderSearch:
        return ZerothOrderSearch(
            torch.ones(1, 6), RGE(2, MU), SubspaceGradient(4), Wild(1e-2), guard=Guard(3), averaging=0.5
        )

    def failing(*_given: object, **_named: object) -> None:
        raise RuntimeError("no convergence")

    def step(search: ZerothOrderSearch) -> None:
        check_loss = float(search.theta.square().sum()) if search.step % 3 == 0 else None
        search.tell(search.ask().square().sum((1, 2)), check_loss=check_loss)

    plain, tried = fresh(), fresh()
    for _ in range(11):
        step(plain)
        before = tried.state_dict()
        with monkeypatch.context() as patch:
            patch.setattr(Wild, "wild", True)
            with pytest.raises(NonFiniteLossError, match="run away"):
                step(tried)
        if tried.step % 4 == 3:
            with monkeypatch.context() as patch:
                patch.setattr(torch.linalg, "svd", failing)
                with pytest.raises(RuntimeError, match="no convergence"):
                    step(tried)
        after = tried.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        step(tried)
        assert all(torch.equal(value, tried.state_dict()[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_that_was_reset_is_a_new_one(kind: Callable[[], Optimizer]) -> None:
    used, new = kind(), kind()
    gradients = torch.randn(4, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    theta = torch.ones(1, 5, dtype=torch.float64)
    for gradient in gradients[:3]:
        used.step(theta, gradient)
    used.reset()
    assert used.state_dict().keys() == new.state_dict().keys()
    assert torch.equal(used.step(theta, gradients[3]), new.step(theta, gradients[3]))


WRONG = {
    "optimizer.mean": torch.zeros(1, 5).double(),
    "optimizer.square": torch.full((1, 4), float("nan")).double(),
    "optimizer.steps": torch.tensor(-1),
    "subspace.buffer": torch.zeros(4, 4).double(),
    "subspace.projection": torch.zeros(2, 5).double(),
    "subspace.turns": torch.tensor(1.5),
    "guard.losses": torch.zeros(3).double(),
    "guard.idle": torch.tensor([1]),
    "guard.point": torch.zeros(1, 4),
    "theta": torch.zeros(1, 4),
    "step": torch.tensor(2.0),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_part_refuses_a_state_that_is_not_its_own(name: str) -> None:
    def fresh() -> ZerothOrderSearch:
        return ZerothOrderSearch(torch.ones(1, 4), RGE(2), SubspaceGradient(4), ZOAdam(), guard=Guard(2))

    search = fresh()
    for step in range(6):
        search.tell(search.ask().square().sum((1, 2)), check_loss=1.0 - step / 10)
    other = fresh()
    before = other.state_dict()
    with pytest.raises(ConfigError, match="damaged"):
        other.load_state_dict({**search.state_dict(), name: WRONG[name]})
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in before.items())
    other.load_state_dict(search.state_dict())


@pytest.mark.parametrize("theta", [torch.ones(4), torch.ones(1, 4, dtype=torch.int64), torch.full((1, 4), torch.nan)])
def test_bad_start_is_refused(theta: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="theta0"):
        ZerothOrderSearch(theta)


def test_a_state_of_another_search_is_refused() -> None:
    state = ZerothOrderSearch(torch.ones(1, 4), subspace=SubspaceGradient(4)).state_dict()
    for other in (
        ZerothOrderSearch(torch.ones(2, 4), subspace=SubspaceGradient(4)),
        ZerothOrderSearch(torch.ones(1, 4), subspace=SubspaceGradient(4), seed=1),
        ZerothOrderSearch(torch.ones(1, 4)),
    ):
        with pytest.raises(ConfigError, match="saved search"):
            other.load_state_dict(state)
