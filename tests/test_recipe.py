"""The default search's parts against NumPy float64 worked independently, and whole runs of it."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks import search_cost
from tests.reference import Array
from tests.test_training import resume, train
from zoodip_core import RGE, TrainConfig, ZerothOrderSearch, load_embedding, resume_training, rewind
from zoodip_core.base.errors import ConfigError, ModelError, NonFiniteLossError, RunFolderError
from zoodip_core.base.events import Message
from zoodip_core.cli import main as cli
from zoodip_core.cli import train as train_command
from zoodip_core.cli.demo import demo_config
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.words import word_ids
from zoodip_core.search import preconditioner
from zoodip_core.search.guard import Guard
from zoodip_core.search.optimizers import OPTIMIZERS, NormalizedSGD
from zoodip_core.search.preconditioner import FLOOR, Spread, spread_of
from zoodip_core.tiny import concepts
from zoodip_core.train import config as config_module
from zoodip_core.train.config import preset_of
from zoodip_core.train.loop import TrainResult, train_token
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.prepared import Training
from zoodip_core.train.presets import RECIPE, preset_for
from zoodip_core.train.rounding import adapted, least_mu, line, noise_of

DIM, VECTORS, STEPS, SEED = 12, 2, 40, 7


def words(count: int = 400, dim: int = DIM) -> Array:
    """Rows of very different variance along hidden axes."""
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return np.asarray(rng.normal(size=(count, dim)) * np.logspace(0, -2, dim) @ axes.T + rng.normal(size=dim))


def worked(rows: Array, rank: int, floor: float) -> Array:
    """The matrix A, from the definition: principal axes by SVD, the small ones alike."""
    centred = rows - rows.mean(axis=0)
    _, sigma, axes = np.linalg.svd(centred, full_matrices=False)
    variance = sigma**2 / len(rows)
    reach = np.sqrt(variance / variance.mean() + floor**2)
    reach *= math.sqrt(variance.sum()) / np.linalg.norm(reach)
    if rank < len(reach):
        reach[rank:] = math.sqrt(np.mean(reach[rank:] ** 2))
    return np.asarray(axes.T * reach @ axes)


# ---------------------------------------------------------------- the vocabulary's shape


@pytest.mark.parametrize(("rank", "floor"), [(DIM, 0.3), (5, 0.3), (5, 0.1), (64, 0.0)])
def test_the_shape_is_that_of_the_words(rank: int, floor: float) -> None:
    rows = words()
    pieces = torch.from_numpy(rows).split(97)
    spread = spread_of(pieces, rank=rank, floor=floor)
    a = worked(rows, rank, floor)
    vectors = np.random.default_rng(1).normal(size=(3, VECTORS, DIM))
    np.testing.assert_allclose(spread.stretch(torch.from_numpy(vectors)).numpy(), vectors @ a, rtol=1e-4, atol=1e-5)


def test_stretched_directions_are_as_long_as_words_are_far_from_their_mean() -> None:
    rows = words()
    spread = spread_of([torch.from_numpy(rows)], rank=5)
    directions = torch.randn(20_000, DIM, generator=torch.Generator().manual_seed(0))
    length = spread.stretch(directions).square().sum(dim=1).mean().sqrt()
    distance = np.sqrt(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean())
    assert float(length) == pytest.approx(distance, rel=0.03)


def test_parts_of_other_sizes_are_each_measured_by_their_own() -> None:
    """CLIP's words differ by hundredths, T5's by whole numbers; each part's directions have its own words' size."""
    widths, sizes = (5, DIM - 5), np.repeat([0.01, 3.0], [5, DIM - 5])
    plain = words()
    rows = plain * sizes
    spread = spread_of(torch.from_numpy(rows).split(97), widths, rank=5, floor=0.3)
    own = np.repeat([rows[:, :5].var(axis=0).mean() ** 0.5, rows[:, 5:].var(axis=0).mean() ** 0.5], [5, DIM - 5])
    vectors = np.random.default_rng(1).normal(size=(3, VECTORS, DIM))
    expected = vectors @ worked(rows / own, 5, 0.3) * own
    np.testing.assert_allclose(spread.stretch(torch.from_numpy(vectors)).numpy(), expected, rtol=1e-4, atol=1e-5)
    again = Spread.of_tensors(spread.tensors())
    assert torch.equal(again.stretch(torch.ones(1, DIM)), spread.stretch(torch.ones(1, DIM)))


def test_the_axes_of_wide_words_are_found_without_all_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's and Qwen's words have thousands of numbers; the same words with all axes worked out say what is right."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(600, 300, generator=generator) * torch.arange(1, 301).float() ** -0.5
    whole = spread_of([rows], rank=20)
    monkeypatch.setattr(preconditioner, "_WHOLE", 100)
    found = spread_of([rows], rank=20)
    torch.testing.assert_close(found.parts[0].reach, whole.parts[0].reach, rtol=1e-3, atol=0)
    assert found.parts[0].rest == pytest.approx(whole.parts[0].rest, rel=1e-4)
    vectors = torch.randn(50, 300, generator=generator)
    torch.testing.assert_close(found.stretch(vectors), whole.stretch(vectors), rtol=0.02, atol=0.02)


def test_parts_of_like_sizes_are_measured_together() -> None:
    rows = torch.from_numpy(words())
    together, parted = spread_of([rows]), spread_of([rows], (5, DIM - 5))
    assert parted.scale is None
    assert torch.equal(together.parts[0].basis, parted.parts[0].basis)
    assert torch.equal(together.parts[0].reach, parted.parts[0].reach)


def test_words_that_are_all_alike_have_no_shape() -> None:
    with pytest.raises(ModelError, match="choose directions normal"):
        spread_of([torch.ones(50, DIM)])


def test_whole_words_count() -> None:
    vocabulary = {"a</w>": 0, "do": 1, "dog</w>": 2, "<|endoftext|>": 3}
    few = SimpleNamespace(get_vocab=lambda: vocabulary)
    assert word_ids(few) == [0, 1, 2, 3]  # too few words to tell anything
    many = SimpleNamespace(get_vocab=lambda: vocabulary | {f"w{i}</w>": i for i in range(100, 200)})
    assert word_ids(many) == [2, *range(100, 200)]


def test_the_embedded_models_shape_points_where_its_words_differ(tiny_model: StableDiffusion) -> None:
    (axes,) = spread_of(tiny_model.word_rows()).parts
    assert axes.basis.shape == (64, 128)
    torch.testing.assert_close(axes.basis @ axes.basis.T, torch.eye(64), atol=1e-5, rtol=0)
    assert axes.reach.max() > 3 * axes.rest > 0


@pytest.mark.parametrize(
    ("directions", "dims"),
    [
        ("vocabulary", (768,)),
        ("encoder", (1024,)),
        *(pytest.param(directions, (768, 1280), marks=pytest.mark.slow) for directions in ("vocabulary", "encoder")),
    ],
)
def test_a_search_takes_little_memory(directions: str, dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that is kept of what was worked out by a first step."""
    monkeypatch.setattr(search_cost, "WORDS", 3000)
    found = search_cost.cost(dims, directions, steps=1)
    assert 4e-6 * 64 * sum(dims) < found["mb"] < 16


# ---------------------------------------------------------------- the whole search, worked again


def bowl(step: int) -> Callable[[Array], float]:
    centre = np.random.default_rng(99).normal(size=VECTORS * DIM)
    shift = 0.3 * np.random.default_rng(step).normal(size=VECTORS * DIM)

    def loss(theta: Array) -> float:
        away = theta.astype(np.float32).astype(np.float64) - centre - shift
        return float(away @ away)

    return loss


def held_at(theta: Array) -> float:
    return bowl(10**6)(theta)


@pytest.mark.parametrize("radius", [0.0, 1.5])
def test_the_search_agrees_with_its_description(radius: float) -> None:
    """theta = theta0 + A w; gradients in w scaled to a root mean square of 1, their running mean, falling mu and lr.

    With a radius R of the words' distance d, each vector v = A w becomes v / sqrt(1 + |v|^2 / (R d)^2).
    """
    rows, start = words(), torch.randn(VECTORS, DIM, generator=torch.Generator().manual_seed(3))
    estimator, lr, momentum = RGE(3, 0.7), 0.2, 0.9
    spread = spread_of([torch.from_numpy(rows)], rank=5)
    search = ZerothOrderSearch(start, estimator, None, NormalizedSGD(lr, momentum), SEED, spread, radius=radius)
    a = worked(rows, 5, FLOOR)
    theta0 = start.double().numpy()
    far = radius * np.sqrt(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean())

    def token(w: Array) -> Array:
        v = w @ a
        return theta0 + (v / np.sqrt(1 + (v**2).sum(axis=1, keepdims=True) / far**2) if radius else v)

    w, mean = np.zeros((VECTORS, DIM)), np.zeros((VECTORS, DIM))
    for step in range(STEPS):
        lr_scale, mu_scale = 0.5 * (1 + math.cos(math.pi * step / STEPS)), 1 - 0.9 * step / STEPS
        candidates = search.ask(mu_scale)
        losses = torch.tensor([bowl(step)(c.double().numpy().ravel()) for c in candidates], dtype=torch.float64)
        search.tell(losses, lr_scale, mu_scale=mu_scale)

        e = estimator.directions(SEED, step, start.shape).numpy()
        base = bowl(step)(token(w).ravel())
        slopes = [(bowl(step)(token(w + 0.7 * mu_scale * x).ravel()) - base) / (0.7 * mu_scale) for x in e]
        g = sum(s * x for s, x in zip(slopes, e, strict=True)) / len(e)
        mean = momentum * mean + (1 - momentum) * g / np.sqrt((g**2).mean())
        w = w - lr * lr_scale * mean / (1 - momentum ** (step + 1))
    np.testing.assert_allclose(search.theta.numpy(), token(w), rtol=1e-3, atol=1e-3)
    assert held_at(search.theta.double().numpy().ravel()) < held_at(theta0.ravel())


def test_no_token_lies_beyond_the_radius() -> None:
    """Neither what is learned nor a candidate, however far the search goes; each vector by itself."""
    rows, radius = words(), 2.0
    spread = spread_of([torch.from_numpy(rows)], rank=5)
    far = radius * np.sqrt(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean())
    start = torch.randn(VECTORS, DIM, generator=torch.Generator().manual_seed(3))
    search = ZerothOrderSearch(start, RGE(2, 0.5), None, NormalizedSGD(2.0), SEED, spread, averaging=0.1, radius=radius)
    lengths = []
    for step in range(STEPS):
        candidates = search.ask()
        lengths.append((candidates - start).norm(dim=2).max().item())
        search.tell(candidates.double().sum(dim=(1, 2)))  # downhill for ever
        assert (search.theta - start).norm(dim=1).max() <= far * (1 + 1e-6), step
    assert 0.97 * far < max(lengths) <= far * (1 + 1e-6)
    short = torch.full((1, DIM), 1e-4, dtype=torch.float64)
    torch.testing.assert_close(spread.stretch(short, radius), spread.stretch(short), rtol=1e-6, atol=0)
    long = 1e4 * torch.randn(3, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turned = torch.nn.functional.cosine_similarity(spread.stretch(long, radius), spread.stretch(long), dim=1)
    torch.testing.assert_close(turned, torch.ones(3, dtype=torch.float64))


def test_a_radius_that_can_not_be_is_refused() -> None:
    spread = spread_of([torch.from_numpy(words())])
    for radius in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="radius"):
            ZerothOrderSearch(torch.zeros(1, DIM), spread=spread, radius=radius)
    with pytest.raises(ConfigError, match="directions that have a shape"):
        ZerothOrderSearch(torch.zeros(1, DIM), radius=2.0)


@pytest.mark.parametrize(("averaging", "radius"), [(0.0, 0.0), (0.3, 0.0), (0.3, 1.0)])
def test_a_state_continues_bit_for_bit(averaging: float, radius: float) -> None:
    def steps(search: ZerothOrderSearch, first: int, last: int) -> None:
        for step in range(first, last):
            losses = [bowl(step)(c.double().numpy().ravel()) for c in search.ask(0.5)]
            check_loss = held_at(search.theta.double().numpy().ravel()) if step % 3 == 0 else None
            search.tell(torch.tensor(losses), check_loss=check_loss, mu_scale=0.5)

    def new() -> ZerothOrderSearch:
        spread = spread_of([torch.from_numpy(words())])
        optimizer = NormalizedSGD(0.1)
        return ZerothOrderSearch(
            torch.zeros(VECTORS, DIM), RGE(2, 0.5), None, optimizer, 1, spread, Guard(50), averaging, radius
        )

    whole, first, second = new(), new(), new()
    steps(whole, 0, 20)
    steps(first, 0, 11)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.theta, first.theta)
    steps(second, 11, 20)
    assert torch.equal(second.theta, whole.theta)
    assert second.checksum == whole.checksum
    again, state = whole.state_dict(), second.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in again)


def path_of(averaging: float, steps: int, lr: float = 0.1) -> tuple[list[Array], Array]:
    """The tokens that a search goes through, and what it has learned then."""
    spread = spread_of([torch.from_numpy(words())])
    search = ZerothOrderSearch(
        torch.ones(VECTORS, DIM), RGE(2, 0.5), None, NormalizedSGD(lr), 1, spread, averaging=averaging
    )
    path = []
    for step in range(steps):
        search.tell(torch.tensor([bowl(step)(c.double().numpy().ravel()) for c in search.ask()]))
        path.append(search.state_dict()["theta"].numpy())
    return path, search.theta.numpy()


@pytest.mark.parametrize("averaging", [0.0, 0.1, 0.5, 1.0])
def test_what_is_learned_is_a_mean_of_the_path(averaging: float) -> None:
    """Of the share a: the token of step i has the weight 1 / (1 + a i), of which each later one leaves its rest."""
    plain, last = path_of(0.0, STEPS)
    path, learned = path_of(averaging, STEPS)
    np.testing.assert_array_equal(path, plain)  # which way it goes is left alone
    np.testing.assert_array_equal(last, plain[-1].astype(np.float32))
    fresh = [1 / (1 + averaging * i) for i in range(STEPS)]
    weights = [fresh[i] * math.prod(1 - later for later in fresh[i + 1 :]) for i in range(STEPS)]
    assert sum(weights) == pytest.approx(1)
    np.testing.assert_allclose(learned, np.tensordot(weights, np.array(path), 1), rtol=1e-5)
    if averaging == 1:
        np.testing.assert_allclose(learned, np.mean(path, axis=0), rtol=1e-5)


@pytest.mark.slow
def test_averaging_is_near_the_least() -> None:
    """At a constant learning rate a search goes around the least; the mean of its tokens is nearer to it."""
    centre = np.random.default_rng(99).normal(size=(VECTORS, DIM))
    path, learned = path_of(0.1, 1500, lr=0.3)
    assert np.linalg.norm(learned - centre) < 0.7 * np.mean([np.linalg.norm(token - centre) for token in path[-150:]])


def test_a_mean_that_can_not_be_is_refused() -> None:
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="averaging"):
            ZerothOrderSearch(torch.zeros(1, DIM), averaging=share)
    plain, mean = (ZerothOrderSearch(torch.zeros(1, DIM), averaging=share) for share in (0.0, 0.1))
    for search, state in ((plain, mean.state_dict()), (mean, plain.state_dict())):
        with pytest.raises(ConfigError, match="differ in their averaging"):
            search.load_state_dict(state)
    for wrong in (torch.zeros(1, DIM + 1).double(), torch.full((1, DIM), math.nan).double(), torch.zeros(1, DIM)):
        with pytest.raises(ConfigError, match="damaged"):
            mean.load_state_dict({**mean.state_dict(), "mean": wrong})


def test_a_shape_of_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="another model"):
        ZerothOrderSearch(torch.zeros(1, DIM + 1), spread=spread_of([torch.from_numpy(words())]))


def test_a_state_without_a_shape_does_not_fit_one_with() -> None:
    plain = ZerothOrderSearch(torch.zeros(1, DIM))
    with pytest.raises(ConfigError, match="differ in their directions"):
        plain.load_state_dict(
            ZerothOrderSearch(torch.zeros(1, DIM), spread=spread_of([torch.from_numpy(words())])).state_dict()
        )


def test_equal_gradients_of_any_size_make_the_same_step() -> None:
    g = torch.randn(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moved = [NormalizedSGD(0.5).step(torch.zeros(1, 5, dtype=torch.float64), size * g) for size in (1e-9, 1.0, 1e9)]
    for each in moved:
        torch.testing.assert_close(each, -0.5 * g / g.square().mean().sqrt())
    none = torch.zeros(1, 5, dtype=torch.float64)
    assert torch.equal(NormalizedSGD(0.5).step(none, none), none)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_adamw_s(name: str, scale: float) -> None:
    """Against torch's own for Adam; for all, each step leaves 1 - lr * weight_decay of theta beside its own move."""
    lr, decay = 0.2, 0.4
    gradients = torch.randn(6, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    theirs = torch.nn.Parameter(torch.ones(1, 5, dtype=torch.float64))
    adamw = torch.optim.AdamW([theirs], lr * scale, weight_decay=decay)
    ours, plain = OPTIMIZERS[name](lr=lr, weight_decay=decay), OPTIMIZERS[name](lr=lr)
    theta = theirs.detach().clone()
    for gradient in gradients:
        theirs.grad = gradient
        adamw.step()
        expected = plain.step(theta, gradient, scale) - scale * lr * decay * theta
        theta = ours.step(theta, gradient, scale)
        torch.testing.assert_close(theta, expected, rtol=1e-12, atol=1e-12)
        if name == "zoadam":
            torch.testing.assert_close(theta, theirs.detach(), rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match=r"weight_decay = 5: times lr = 0\.2 it must be from 0 to below 1"):
        OPTIMIZERS[name](lr=lr, weight_decay=5)


# ---------------------------------------------------------------- the guard


def told(guard: Guard, *losses: float) -> list[bool]:
    return [guard.check(loss, torch.full((1, 2), float(i))) for i, loss in enumerate(losses)]


def test_a_guard_goes_back_when_what_was_gained_is_lost() -> None:
    guard = Guard()
    assert told(guard, 1.0, 0.6, 0.79, 0.81) == [True, True, True, False]
    assert guard.scale == 0.5
    assert guard.point is not None
    assert float(guard.point[0, 0]) == 1  # where it was 0.6
    assert told(guard, 3.0) == [False]
    assert guard.scale == 0.25


def test_a_little_worse_is_no_divergence_while_little_was_gained() -> None:
    assert told(Guard(), 1.0, 0.999, 1.005, 1.008) == [True] * 4
    assert told(Guard(), 1.0, 1.009, 1.011) == [True, True, False]


def test_a_guard_settles_after_checks_without_progress() -> None:
    guard = Guard(patience=3)
    told(guard, 1.0, 0.8, 0.6, 0.6, 0.5999)
    assert not guard.converged
    told(guard, 0.601)
    assert guard.converged
    patient = Guard()
    told(patient, 1.0, 0.5, *[0.5] * 100)
    assert not patient.converged


def test_a_search_that_has_gained_nothing_does_not_settle() -> None:
    guard = Guard(patience=2)
    told(guard, 1.0, 0.995, *[0.995] * 20)
    assert not guard.converged


@pytest.mark.parametrize("averaging", [0.0, 0.2])
def test_a_search_goes_back_to_its_best_and_steps_half_as_far(averaging: float) -> None:
    optimizer = NormalizedSGD(1.0)
    search = ZerothOrderSearch(torch.zeros(1, 3), RGE(1, 0.1), optimizer=optimizer, guard=Guard(), averaging=averaging)
    search.tell(torch.tensor([1.0, 2.0]), check_loss=1.0)
    best = search.theta
    search.tell(torch.tensor([1.0, 2.0]), check_loss=0.5)
    moved = search.theta
    assert not torch.equal(moved, best)
    search.tell(torch.tensor([1.0, 2.0]), check_loss=5.0)
    torch.testing.assert_close(search.theta, best)
    before = search.state_dict()["theta"]
    torch.testing.assert_close(before.float(), best)  # it is searched from there, too
    search.tell(torch.tensor([1.0, 2.0]))
    assert float((search.state_dict()["theta"] - before).square().mean().sqrt()) == pytest.approx(0.5, rel=1e-5)


# ---------------------------------------------------------------- noise


@pytest.mark.parametrize("noise", [1e-8, 1e-4])
def test_rounding_is_measured(noise: float) -> None:
    """On a smooth loss with noise of a known size, which does not depend on how steep or bent the loss is."""
    rng = np.random.default_rng(0)
    theta = torch.from_numpy(rng.normal(size=(1, 64)) * 0.1).float()
    points = line(theta, torch.from_numpy(rng.normal(size=(60, 1, 64))))
    assert points.shape == (60 * 7, 1, 64)
    exact = torch.sin(points.double().sum(dim=(1, 2))) + 3 * points.double().square().sum(dim=(1, 2))
    found = noise_of(exact + noise * torch.from_numpy(rng.normal(size=len(points))))
    wrong = 1.25 if noise > 1e-6 else 10
    assert noise / wrong < found < noise * wrong


def test_mu_is_doubled_until_losses_stand_out() -> None:
    np.testing.assert_allclose(least_mu(0.1, 1.0, lambda mu: 10 * mu), (0.4, 4.0))
    assert least_mu(0.1, 0.0, lambda mu: mu)[0] == 0.1
    mu, found = least_mu(1.0, 1.0, lambda mu: 0.0)
    assert (mu, found) == (8.0, 0.0)  # nothing stands out: the last one tried


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module", autouse=True)
def checks_at_any_cost() -> Iterator[None]:
    """Short runs are looked at as often as long ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_module, "CHECK_SHARE", 100)
        yield


def config_of(**settings: Any) -> TrainConfig:
    return demo_config(concepts.load("pip"), **{"steps": 12, "n": 3, "checks": 4, "save_every": 5, **settings})


@pytest.fixture(scope="module")
def whole(tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(config_of(), tmp_path_factory.mktemp("recipe") / "run", tiny_model)


def test_the_default_is_the_recipe() -> None:
    for name, value in RECIPE.items():
        if name not in ("steps", "t_lower"):
            assert preset_for("sd1")[name] == preset_for("sdxl")[name] == value
    assert (preset_for("sd1")["t_lower"], preset_for("sdxl")["t_lower"]) == (500, 700)
    assert RECIPE["optimizer"] in OPTIMIZERS


def test_a_run_keeps_what_it_measured(whole: TrainResult) -> None:
    folder = whole.path.parent
    config = json.loads((folder / "config.json").read_text())
    assert config["adapt_mu"] is False
    assert config["mu"] == RECIPE["mu"]  # float32 rounds far below
    assert (folder / "directions.safetensors").is_file()
    held = [json.loads(line).get("held") for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [step for step, value in enumerate(held) if value is not None] == [0, 3, 6, 9]


def test_another_averaging_is_noticed(whole: TrainResult, tmp_path: Path) -> None:
    """It leaves the path alone; the mean's checksum tells."""
    shutil.copytree(whole.path.parent, tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"averaging": 0.1', '"averaging": 0.3'))
    (tmp_path / "run" / "state.safetensors").unlink()
    assert rewind(tmp_path / "run", 7, tmp_path / "seven.safetensors").differs == 2  # the first is its own mean


@pytest.mark.slow
def test_stop_at_any_step_and_resume(whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """One run, stopped after steps before, at and after a check, each time gone on with."""
    for stop in (1, 3, 4, 10):
        go = train if stop == 1 else resume
        assert go(config_of(), tmp_path / "run", tiny_model, stop_after=stop).step == stop
    assert resume_training(tmp_path / "run", model=tiny_model).finished
    for name in ("pip.safetensors", "state.safetensors", "steps.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (whole.path.parent / name).read_bytes(), name


@pytest.fixture(scope="module")
def stopped(tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """To be copied."""
    return train(config_of(), tmp_path_factory.mktemp("stopped") / "run", tiny_model, stop_after=7)


@pytest.fixture
def run(stopped: TrainResult, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    folder = next(path for path in stopped.path.parents if path.name == "run")
    return Path(shutil.copytree(folder, tmp_path / "run"))


def test_the_journal_alone_leads_to_any_step(
    whole: TrainResult, stopped: TrainResult, run: Path, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    (tmp_path / "run" / "state.safetensors").unlink()
    rewound = rewind(tmp_path / "run", 7, tmp_path / "seven.safetensors")
    assert rewound.differs is None
    assert torch.equal(load_embedding(rewound.path).vectors, stopped.embedding.vectors)
    assert resume_training(tmp_path / "run", model=tiny_model).path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("damage", ["gone", "torn", "of another kind", "endless numbers"])
def test_lost_directions_are_made_anew(
    damage: str, whole: TrainResult, run: Path, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    file = tmp_path / "run" / "directions.safetensors"
    if damage == "gone":
        file.unlink()
    elif damage == "torn":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        tensors = load_file(file)
        tensors["reach"] = tensors["reach"].half() if damage == "of another kind" else tensors["reach"] * torch.inf
        save_file(tensors, file)
    with pytest.raises(RunFolderError, match=r"directions\.safetensors is missing or damaged"):
        rewind(tmp_path / "run", 3, tmp_path / "three.safetensors")
    messages: list[str] = []
    done = resume_training(
        tmp_path / "run",
        model=tiny_model,
        on_event=lambda event: messages.append(event.text) if isinstance(event, Message) else None,
    )
    assert any("made anew" in message for message in messages)
    assert done.path.read_bytes() == whole.path.read_bytes()  # worked out by the same machine


def test_a_converged_run_ends_early_with_its_best_token(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = iter([1.0, 0.9, 0.6, 0.61, 0.61])
    monkeypatch.setattr(Training, "_check_loss", lambda self: next(held))
    messages: list[str] = []
    config = config_of(patience=2, checks=12, steps=12, adapt_mu=False)
    done = train_token(
        config,
        tmp_path / "run",
        model=tiny_model,
        on_event=lambda event: messages.append(event.text) if isinstance(event, Message) else None,
    )
    assert done.finished
    assert done.step == 5
    best = load_embedding(rewind(tmp_path / "run", 2, tmp_path / "two.safetensors").path)
    assert torch.equal(done.embedding.vectors, best.vectors)  # before its third step, where the loss was 0.6
    assert any("no progress in the last 2 checks" in message for message in messages)
    assert done.path.name == "pip.safetensors"
    again = resume_training(tmp_path / "run", model=tiny_model)
    assert again.finished
    assert again.step == done.step


def test_divergence_is_undone(tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses on fixed draws are given: a token that knows nothing is hardly worse than the word it starts from."""
    held = iter([1.0, 0.7, 0.9, 0.7, 0.6])
    monkeypatch.setattr(Training, "_check_loss", lambda self: next(held))
    warnings: list[str] = []
    done = train_token(
        config_of(steps=10, checks=5, adapt_mu=False),
        tmp_path / "run",
        model=tiny_model,
        on_event=lambda event: warnings.append(event.text) if isinstance(event, Message) and event.warning else None,
    )
    assert done.finished
    assert warnings == ["step 5: the loss rose to 0.9; back to the best token, and smaller steps"]
    tokens = [
        load_embedding(rewind(tmp_path / "run", k, tmp_path / f"{k}.safetensors").path).vectors for k in (2, 4, 5)
    ]
    assert torch.equal(tokens[0], tokens[2])  # the one whose loss was 0.7
    assert not torch.equal(tokens[0], tokens[1])
    assert rewind(tmp_path / "run", 10, tmp_path / "x.safetensors").differs is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("int4", "float32"),
        pytest.param("int8", "bfloat16", marks=pytest.mark.slow),  # which most CPUs are slow at
        pytest.param("int4", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_mu_is_raised_above_the_rounding_of_any_type(weights: str, dtype: str, tmp_path: Path) -> None:
    """From the paper's mu, which drowns in bfloat16."""
    config = config_of(weights=weights, dtype=dtype, mu=1e-3, mu_end=1.0, steps=1)
    train_token(config, tmp_path / "run")
    mu = json.loads((tmp_path / "run" / "config.json").read_text())["mu"]
    assert (mu > 0.1) if dtype == "bfloat16" else (mu < 0.1)


def test_checks_take_a_twentieth_of_the_forwards_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module, "CHECK_SHARE", 0.05)
    for steps, n, checks in ((500, 8, 20), (3000, 8, 20), (100, 8, 20), (30, 8, 20), (500, 2, 20), (500, 8, 500)):
        config = config_of(steps=steps, n=n, checks=checks)
        at = [step for step in range(steps) if config.checked(step)]
        assert at[0] == 0
        assert 1 <= len(at) <= checks
        assert 8 * (len(at) - 1) <= 0.05 * steps * (n + 1)
    assert len([step for step in range(500) if config_of(steps=500, n=8, checks=20).checked(step)]) == 20


def test_settings_out_of_range_are_refused() -> None:
    wrongs: dict[str, tuple[Any, ...]] = {
        "mu_end": (0.0, 1.5),
        "averaging": (-0.1, 2),
        "checks": (-1,),
        "patience": (-1,),
        "directions": ("sideways",),
    }
    for name, values in wrongs.items():
        for value in values:
            with pytest.raises(ConfigError, match=name):
                dataclasses.replace(config_of(), **{name: value})


def test_a_shape_survives_its_file(tmp_path: Path, whole: TrainResult) -> None:
    from zoodip_core.train.run_folder import RunFolder

    folder = RunFolder.open(whole.path.parent)
    spread = folder.spread()
    assert isinstance(spread, Spread)
    again = RunFolder(tmp_path, folder.config)
    again.save_spread(spread)
    read = again.spread()
    assert read is not None
    assert read.tensors().keys() == spread.tensors().keys()
    assert all(torch.equal(each, spread.tensors()[name]) for name, each in read.tensors().items())


# ---------------------------------------------------------------- presets


def test_a_preset_lies_over_any_settings(tmp_path: Path) -> None:
    """Of a run of the default, the paper's preset leaves nothing of the search."""
    base = demo_config(concepts.load("pip")).to_dict()
    paper = TrainConfig.from_dict({**base, **preset_of(base, "paper")})
    assert paper == dataclasses.replace(
        paper,
        directions="normal",
        optimizer="zoadam",
        mu=1e-3,
        mu_end=1.0,
        averaging=0.0,
        adapt_mu=False,
        checks=0,
        patience=0,
    )
    assert paper.subspace_gradient
    back = TrainConfig.from_dict({**paper.to_dict(), **preset_of(base, "default")})
    assert back.to_dict() == base


@pytest.mark.parametrize(
    ("preset", "given", "says"),
    [
        ("default", {"tau": 64}, "tau = 64 is a setting of Subspace Gradient, which is not in use"),
        ("paper", {"subspace_gradient": False, "nu": 0.1}, "Subspace Gradient"),
        ("default", {"timesteps": "uniform", "t_lower": 400}, "set timesteps to puts"),
        ("paper", {"patience": 3}, "set checks"),
        ("default", {"eps": 1e-3}, "set optimizer to zoadam"),
        ("default", {"directions": "normal"}, "give both mu and lr"),
        ("default", {"directions": "normal", "mu": 0.1}, "give both mu and lr"),
        ("paper", {"directions": "vocabulary", "lr": 0.1}, "give both mu and lr"),
        ("default", {"weights": 4}, "weights = 4: expected a text"),
        ("swift", {}, "choose one of fast, default, careful, two-stage, aligned, coarse, paper, paper-released"),
    ],
)
def test_what_would_do_nothing_is_refused(preset: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainConfig.with_preset(preset, {"images": ["x"], "token": "<x>", "initializer": "monster", **given})


def test_what_would_do_nothing_to_a_settings_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(demo_config(concepts.load("pip")).to_json())
    begin = ["train", "--config", str(file)]
    for flags, says in ((["--tau", "64"], "tau = 64"), (["--optimizer", "zosgd"], "give lr as well")):
        with pytest.raises(ConfigError, match=says):
            train_command._config(cli._parser().parse_args([*begin, *flags]))
    flags = ["--optimizer", "zosgd", "--lr", "0.5", "--subspace-gradient", "--tau", "64"]
    config = train_command._config(cli._parser().parse_args([*begin, *flags]))
    assert (config.optimizer, config.lr, config.tau) == ("zosgd", 0.5, 64)


def test_what_fits_is_taken() -> None:
    given = {"images": ["x"], "token": "<x>", "initializer": "monster"}
    own = {"directions": "normal", "mu": 0.1, "lr": 0.01, "subspace_gradient": True, "tau": 9, "patience": 2}
    config = TrainConfig.with_preset("default", {**given, **own})
    assert (config.directions, config.mu, config.lr, config.tau, config.patience) == ("normal", 0.1, 0.01, 9, 2)


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    search = ZerothOrderSearch(torch.zeros(1, 3), RGE(1, 0.1), guard=Guard(3))
    search.tell(torch.tensor([1.0, 2.0]), check_loss=1.0)
    before = search.state_dict()
    for check_loss, losses in ((math.nan, [1.0, 2.0]), (math.inf, [1.0, 2.0]), (0.5, [1.0, 1e308])):
        with pytest.raises(NonFiniteLossError):
            search.tell(torch.tensor(losses, dtype=torch.float64), check_loss=check_loss)
        after = search.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_run_whose_loss_is_lost_goes_back(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss on the fixed draws that is not finite is the worst there can be; at the start there is no way back."""
    training = Training(config_of(adapt_mu=False), tiny_model)
    while not training.config.checked(training.search.step) or training.search.guard.point is None:
        training.step()
    best = training.search.guard.point.clone()
    monkeypatch.setattr("zoodip_core.train.prepared.mean_over", lambda *_given: torch.tensor(math.nan))
    record = training.step()
    assert record.check_loss == sys.float_info.max
    assert training.search.guard.scale == 0.5
    assert torch.equal(training.search.state_dict()["point"], best)
    with pytest.raises(NonFiniteLossError, match="starting token"):
        Training(config_of(adapt_mu=False), tiny_model).step()


def test_an_optimizer_of_other_units_wants_its_learning_rate() -> None:
    given = {"images": ("x",), "token": "<x>", "initializer": "dog", "optimizer": "zosgd"}
    with pytest.raises(ConfigError, match="another unit"):
        TrainConfig.with_preset("default", given)
    assert TrainConfig.with_preset("default", {**given, "lr": 0.1}).optimizer == "zosgd"


def test_candidates_whose_losses_are_lost_are_told_of() -> None:
    """At the mu that a run begins with, not only at that of its end."""
    theta = torch.zeros(1, 4)

    class Steep:
        posteriors = [None]

        def losses(self, candidates: torch.Tensor, _draw: object) -> torch.Tensor:
            far = candidates.double().flatten(1).norm(dim=1)
            return torch.where(far > 2, math.inf, far)

    with pytest.raises(NonFiniteLossError, match=r"at mu = 1\.3 are not all finite"):
        adapted(config_of(), cast(DiffusionObjective, Steep()), 1, theta, None)


def test_words_that_are_not_finite_are_told_of() -> None:
    rows = torch.ones(50, DIM)
    rows[3, 4] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinity"):
        spread_of([rows])


def test_a_run_with_checks_can_not_be_made_longer(whole: TrainResult) -> None:
    with pytest.raises(RunFolderError, match="follow its 12 steps"):
        resume_training(whole.path.parent, {"steps": 20})


@pytest.mark.parametrize(
    ("flags", "measured"), [((), False), (("--weights", "int8"), False), (("--weights", "int4"), True)]
)
def test_settings_of_a_run_are_measured_anew_on_another_model(
    flags: tuple[str, ...], measured: bool, whole: TrainResult
) -> None:
    """The mu in its file stands out of the rounding of the model it was measured on."""
    args = cli._parser().parse_args(["train", "--config", str(whole.path.parent / "config.json"), *flags])
    assert train_command._config(args).adapt_mu is measured


@pytest.mark.parametrize(
    ("kept", "anew"), [("encoder", "adaptive"), ("vocabulary", "vocabulary"), ("normal", "normal")]
)
def test_directions_of_another_models_encoder_are_not_kept(kept: str, anew: str, tmp_path: Path) -> None:
    """That model may have two encoders, or few words; one's own choice of another kind stays."""
    file = tmp_path / "config.json"
    radius = 0.0 if kept == "normal" else RECIPE["radius"]
    file.write_text(dataclasses.replace(config_of(), directions=kept, radius=radius).to_json())
    for flags, found in (((), kept), (("--weights", "int4"), anew)):
        args = cli._parser().parse_args(["train", "--config", str(file), *flags])
        assert train_command._config(args).directions == found
