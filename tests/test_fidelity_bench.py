"""The fidelity bench: stacked trainings are what single ones are, forwards are counted, the arithmetic is right."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from benchmarks import aligned, fidelity, learned, paper_figures, paper_tables, trained_memory
from benchmarks.fidelity import Method, Plan, Recipe
from benchmarks.gains import (
    ORDER,
    Figures,
    curves_in,
    curves_of,
    derived,
    draw_figure,
    forwards_to_reach,
    gain,
    geometric_mean,
    tables,
)
from benchmarks.kinds import CORES, HEADS, OUTPUTS, Cores, kind_of
from benchmarks.stacked import Lane, Request, Stack, Subject, descend, heldout, run
from benchmarks.worlds import WORLDS
from zoodip_core import PUTS
from zoodip_core.model.frames import frames_of, read_text
from zoodip_core.model.generation import with_lora
from zoodip_core.model.load import load_quantized
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.tiny.judge import Judge
from zoodip_core.tiny.scores import JUDGE
from zoodip_core.train.heldout import heldout_losses
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.prepared import Training
from zoodip_core.train.presets import PAPER_PRESETS
from zoodip_core.train.rounding import LEAST_FORWARDS, WEIGHTS_FORWARDS

pytestmark = pytest.mark.slow
"""The bench is run by hand, when the search changes."""

PLAN = Plan(("boo", "pip"), (0, 1), 600)


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return load_quantized("tiny", weights="int8", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def subjects(model: StableDiffusion) -> list[Subject]:
    return [Subject(model, concepts.load(name)) for name in ("boo", "blueprint")]


def around(subject: Subject, count: int, seed: int = 0) -> torch.Tensor:
    return subject.theta0 + 0.1 * torch.randn(count, 1, 128, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the stack


def test_stacked_losses_are_the_objectives(model: StableDiffusion, subjects: list[Subject]) -> None:
    """Row for row, for requests of several subjects, sizes, captions and timesteps, cut into several batches."""
    requests = []
    for i, count in enumerate((3, 1, 4, 2)):
        objective = subjects[i % 2].training(PUTS())
        requests.append(Request(objective, objective.draw(5, i), around(subjects[i % 2], count, i)))
    stack = Stack(model, rows=4)
    found = stack.losses(requests)
    assert stack.forwards == 10
    for (objective, draw, candidates), losses in zip(requests, found, strict=True):
        assert losses.dtype == torch.float64
        assert torch.allclose(losses, objective.losses(candidates, draw), rtol=0, atol=1e-6)


def test_stacked_losses_with_weights_are_the_objectives(model: StableDiffusion, subjects: list[Subject]) -> None:
    """Beside a request of tokens alone, whose losses they leave as they are."""
    stack, frames = Stack(model, rows=4), frames_of(model.unet, 4)
    stack.kind = Cores(frames)
    numbers = 0.3 * torch.randn(3, frames.numbers, generator=torch.Generator().manual_seed(0))
    flat = torch.cat([around(subjects[0], 3).flatten(1), numbers], dim=1)
    objective = subjects[0].training(PUTS())
    prompts = [prompt for each in objective.captions for prompt in each]
    denoiser = model.weights_denoiser(prompts, frames, None, pytest.fail)
    own = DiffusionObjective(model, objective.posteriors, objective.captions, PUTS(), denoiser=denoiser)
    draw, plain = objective.draw(0, 0), around(subjects[0], 2)
    found = stack.losses([Request(objective, draw, flat), Request(objective, draw, plain)])
    assert torch.allclose(found[0], own.losses(flat, draw), rtol=0, atol=1e-6)
    assert torch.allclose(found[1], own.losses(plain, draw), rtol=0, atol=1e-6)
    (held,) = heldout(stack.losses, [(subjects[0], flat[0])])
    (token,) = heldout(stack.losses, [(subjects[0], flat[0, :128].view(1, 128))])
    assert abs(held - token) > 1e-5
    (gradient,) = stack.gradients([Request(objective, draw, flat)])
    assert gradient.shape == flat.shape
    assert (gradient[:, 128:].norm(dim=1) > 0).all()


@pytest.mark.parametrize(("name", "count"), [(HEADS, 4 * 2 * 4), (OUTPUTS, 4 * 2 * 128)])
def test_gains_are_weights_times_as_much(
    model: StableDiffusion, subjects: list[Subject], name: str, count: int
) -> None:
    """In the layers' outputs as in the weights themselves, drawn by as a LoRA; a head's gain is that of its outputs."""
    kind = kind_of(name, model.unet)
    assert kind.numbers == count
    values = 0.3 * torch.randn(2, count, generator=torch.Generator().manual_seed(0))
    stack, objective = Stack(model), subjects[0].training(PUTS())
    stack.kind = kind
    draw, token = objective.draw(0, 0), subjects[0].theta0[None]
    flat = torch.cat([token.flatten(1).expand(2, -1), values], dim=1)
    (found,) = stack.losses([Request(objective, draw, flat)])
    (plain,) = stack.losses([Request(objective, draw, token)])
    for own, loss in zip(values, found, strict=True):
        with with_lora(model, kind.lora(own)):
            assert torch.allclose(objective.losses(token, draw), loss, rtol=0, atol=1e-6)
        assert abs(loss - plain) > 1e-5
    first = next(iter(kind.lora(values[0]).layers.values()))[0]  # g W of a layer of 4 heads
    weight = model.unet.get_submodule(sorted(read_text(model.unet))[0]).weight
    gains = (first / weight).nanmedian(dim=1).values.view(4, -1)
    assert ((gains - gains[:, :1]).abs().amax(dim=1) < 1e-5).all() == (name == HEADS)


def test_stacked_gradients_are_slopes(model: StableDiffusion, subjects: list[Subject]) -> None:
    objective = subjects[0].training(PUTS())
    draw, candidates = objective.draw(0, 0), around(subjects[0], 2)
    stack = Stack(model)
    (gradient,) = stack.gradients([Request(objective, draw, candidates)])
    direction = torch.nn.functional.normalize(gradient.flatten(1), dim=1).view_as(gradient)
    above, below = (stack.losses([Request(objective, draw, candidates + way * direction)])[0] for way in (0.02, -0.02))
    slopes = (above - below) / 0.04
    assert torch.allclose(slopes, gradient.flatten(1).norm(dim=1).double(), rtol=0.05)


def test_the_held_out_loss_is_the_cores(model: StableDiffusion, subjects: list[Subject]) -> None:
    """Whatever the order of the tokens and subjects in one call."""
    one, two = around(subjects[0], 2)
    other = around(subjects[1], 1)
    found = heldout(Stack(model).losses, [(subjects[0], two), (subjects[1], other[0]), (subjects[0], one)])
    for subject, tokens, losses in (
        (subjects[0], torch.stack([one, two]), [found[2], found[0]]),
        (subjects[1], other, [found[1]]),
    ):
        concept = subject.concept
        known = heldout_losses(model, tokens, concept.heldout, concept.heldout_captions)
        assert losses == pytest.approx(known.tolist(), abs=1e-6)


# ---------------------------------------------------------------- trainings side by side


class FakeObjective:
    def draw(self, seed: int, step: int) -> tuple[int, int]:
        return seed, step


class FakeSearch:
    """K candidates a step; its token counts the steps."""

    def __init__(self, count: int) -> None:
        self.count, self.candidate = count, torch.zeros(1, 1)

    def ask(self, mu_scale: float = 1.0) -> torch.Tensor:
        return torch.zeros(self.count, 1, 1)

    def tell(
        self, losses: torch.Tensor, lr_scale: float = 1.0, *, check_loss: float | None = None, mu_scale: float = 1.0
    ) -> None:
        assert losses.shape == (self.count,)
        self.candidate = self.candidate + 1


def test_the_budget_is_counted_in_candidates() -> None:
    rows = 0

    def evaluate(requests: Any) -> list[torch.Tensor]:
        nonlocal rows
        rows += sum(len(request.candidates) for request in requests)
        return [torch.zeros(len(request.candidates)) for request in requests]

    lanes = [
        Lane(cast(Subject, None), cast(Any, FakeObjective()), FakeSearch(count), seed=0) for count in (3, 4, 5, 20)
    ]
    told: dict[tuple[int, int], float] = {}
    steps: list[Lane] = []

    def on_mark(place: int, mark: int, theta: torch.Tensor) -> None:
        told[place, mark] = float(theta)

    run(evaluate, lanes, 13, [5, 12, 13, 14], on_mark, steps.append)
    assert [lane.spent for lane in lanes] == [12, 12, 10, 0]
    assert rows == 34
    assert len(steps) == 4 + 3 + 2
    # 5 forwards pay one step of 3, 4 or 5 candidates; a mark beyond the budget is never told.
    assert [told[place, 5] for place in range(4)] == [1, 1, 1, 0]
    assert [told[place, 12] for place in range(4)] == [4, 3, 2, 0]
    assert [told[place, 13] for place in range(4)] == [4, 3, 2, 0]
    assert len(told) == 12


def trained(model: StableDiffusion, lanes: list[Lane], budget: int = 15) -> list[torch.Tensor]:
    found: dict[int, torch.Tensor] = {}

    def on_mark(place: int, _mark: int, theta: torch.Tensor) -> None:
        found[place] = theta

    run(Stack(model, rows=7).losses, lanes, budget, [budget], on_mark)
    return [found[place] for place in range(len(lanes))]


def test_a_training_does_not_depend_on_its_neighbours(model: StableDiffusion, subjects: list[Subject]) -> None:
    recipe = Recipe(mu=1e-2, lr=1e-3, tau=2)
    together, again = (
        trained(model, [recipe.lane(subject, seed) for subject in subjects for seed in (0, 1)]) for _ in range(2)
    )
    alone = trained(model, [recipe.lane(subjects[1], 0)])
    assert all(torch.equal(one, other) for one, other in zip(together, again, strict=True))
    assert torch.allclose(alone[0], together[2], rtol=0, atol=1e-5)
    assert not torch.allclose(together[2], together[3], rtol=0, atol=1e-4)


def test_two_stages_are_what_the_product_does(model: StableDiffusion, subjects: list[Subject]) -> None:
    config = fidelity.ours(subjects[0].concept, PLAN, 600, 3, lora_rank=4, lora_share=0.98, checks=0, patience=0)
    assert config.token_steps == 2
    product = Training(config, model)
    for _ in range(4):
        product.step()
    lane, stack = fidelity.our_lane(config, subjects[0]), Stack(model)
    stack.kind = kind_of(CORES, model.unet)
    assert lane.spent == LEAST_FORWARDS + WEIGHTS_FORWARDS
    found: list[torch.Tensor] = []
    budget = lane.spent + 4 * config.n
    run(stack.losses, [lane], budget, [budget], lambda _lane, _mark, learned: found.append(learned))
    learned = product.search.candidate[0]
    assert found[0].shape == learned.shape
    assert (found[0][128:] - learned[128:]).norm() < 0.05 * learned[128:].norm()


def test_ours_is_what_the_product_does(model: StableDiffusion, subjects: list[Subject]) -> None:
    config = fidelity.ours(subjects[0].concept, PLAN, 600, 3)
    candidates = config.make_estimator().num_candidates
    looks = sum(config.checked(step) for step in range(config.steps))
    assert 600 - candidates - 8 < config.steps * candidates + looks * 8 + LEAST_FORWARDS <= 600
    product = Training(config, model)
    for _ in range(2):
        product.step()
    lane = fidelity.our_lane(config, subjects[0])
    assert lane.spent == LEAST_FORWARDS  # mu need not be raised in float32
    (token,) = trained(model, [lane], lane.spent + 2 * candidates + 8)
    learned = product.search.theta  # rounding, divided by mu, moves the token a little
    assert (token - learned).norm() < 0.05 * (learned - subjects[0].theta0).norm()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked here")
def test_processes_share_the_trainings() -> None:
    """Each is what it is in one process, up to rounding, and all are counted."""
    plan = Plan(("pip",), (0, 1, 2), 300)
    method = Recipe(mu=1e-2, lr=1e-3).method(9)
    one, two = (fidelity.Bench(plan, fidelity.Clock(1.0), 0, parts).method("paper", method) for parts in (1, 2))
    assert one["forwards"] == two["forwards"] == 27
    assert [run["seed"] for run in two["runs"]] == [0, 1, 2]
    for single, shared in zip(one["runs"], two["runs"], strict=True):
        assert shared["losses"] == pytest.approx(single["losses"], rel=1e-4)


def test_gradients_learn_and_only_forwards_count(model: StableDiffusion, subjects: list[Subject]) -> None:
    subject, stack = subjects[1], Stack(model)
    tokens: dict[int, torch.Tensor] = {}

    def on_mark(_place: int, mark: int, theta: torch.Tensor) -> None:
        tokens[mark] = theta

    descend(stack, [(subject, subject.training(PUTS()), 0)], 34, [3, 8, 34], on_mark, batch=4)
    assert stack.forwards == 32
    assert torch.equal(tokens[3], subject.theta0)
    before, after = heldout(stack.losses, [(subject, tokens[mark]) for mark in (3, 34)])
    assert after < before


def test_gradient_free_inversion_has_draws_of_its_own(subjects: list[Subject]) -> None:
    pytest.importorskip("cma", reason="the bench extra is not installed: pip install -e .[bench]")
    target = subjects[0].theta0 + 0.1

    def learned(seed: int) -> torch.Tensor:
        search = fidelity.GradientFree(subjects[0].theta0, 0.05, seed, dims=8)
        for _ in range(20):
            asked = search.ask()
            assert torch.equal(asked, search.ask())
            search.tell((asked - target).square().sum(dim=(1, 2)))
        return search.candidate[0]

    np.random.seed(1)
    before = str(np.random.get_state())
    first, second, other = learned(0), learned(0), learned(1)
    assert str(np.random.get_state()) == before
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert (first - target).norm() < (subjects[0].theta0 - target).norm()


# ---------------------------------------------------------------- arithmetic


def test_gain() -> None:
    assert gain(0.5, 0.5, 0.3) == 0
    assert gain(0.5, 0.3, 0.3) == pytest.approx(100)
    assert gain(0.5, 0.45, 0.3) == pytest.approx(25)
    assert gain(0.5, 0.6, 0.3) == pytest.approx(-50)


@pytest.mark.parametrize(
    ("target", "forwards"), [(10.0, 0), (9.0, 50), (8.0, 100), (7.0, 150), (5.0, 350), (4.0, 400), (3.9, None)]
)
def test_forwards_to_reach(target: float, forwards: float | None) -> None:
    """Straight between marks; a loss that rises meanwhile does not count."""
    curve = {100: 8.0, 200: 6.0, 300: 6.0, 400: 4.0}
    assert forwards_to_reach(curve, 10.0, target) == forwards


def figures(**curves: dict[str, list[dict[int, float]]]) -> Figures:
    """Of curves by method and concept, one a seed; every concept starts at a loss of 10."""
    return Figures(
        {
            "start": {name: {"loss": 10.0} for name in next(iter(curves.values()))},
            "methods": {
                method: {
                    "runs": [
                        {"concept": name, "seed": seed, "losses": {str(m): x for m, x in curve.items()}, "scores": {}}
                        for name, each in by_concept.items()
                        for seed, curve in enumerate(each)
                    ]
                }
                for method, by_concept in curves.items()
            },
        }
    )


def test_what_the_tables_say() -> None:
    """The ceiling is the gradient's mean over seeds, 5: a loss of 5 is a gain of 100."""
    found = figures(
        gradient={"a": [{600: 4.0}, {600: 6.0}], "b": [{600: 5.0}, {600: 5.0}]},
        ours={"a": [{300: 8.0, 600: 6.0}] * 2, "b": [{300: 6.0, 600: 6.0}] * 2},
        paper={"a": [{600: 8.0}, {600: 8.0}], "b": [{600: 7.0}, {600: 5.0}]},
        naive={"a": [{600: 9.0}, {600: 9.0}], "b": [{600: 9.0}, {600: 6.0}]},
    )
    assert found.gains("gradient", "a") == pytest.approx([120, 80])
    assert found.mean_gains("paper") == pytest.approx([50, 70])
    assert found.mean_gains("naive") == pytest.approx([20, 50])
    assert found.reach("ours", "paper") == {
        "a": {"forwards": 300, "ratio": 2},
        "b": {"forwards": 300, "ratio": 2},
    }
    assert found.worst("ours", "paper") == [{"concept": "b", "lead": pytest.approx(0), "forwards": 600}]
    first, second = found.order()
    assert (first["better"], first["worse"], first["overlap"], first["concepts"]) == ("gradient", "paper", False, 2)
    assert (second["better"], second["worse"], second["overlap"]) == ("paper", "naive", True)
    text = tables(found)
    assert "| paper |  | 60 ± 14 |" in text
    assert "| geometric mean |  | 2.00 |" in text
    assert derived(found)["to paper"]["worst"][0]["concept"] == "b"


def test_geometric_mean() -> None:
    assert geometric_mean([2, 8]) == pytest.approx(4)


def test_a_curve_that_never_gets_there_is_said_to() -> None:
    found = figures(gradient={"a": [{600: 5.0}]}, ours={"a": [{600: 9.0}]}, paper={"a": [{600: 8.0}]})
    assert found.reach("ours", "paper") == {"a": {"forwards": None, "ratio": None}}
    assert "not reached" in tables(found)
    assert "geometric mean" not in tables(found)


def test_the_curves_can_be_drawn(tmp_path: Path) -> None:
    found = figures(
        gradient={"a": [{300: 6.0, 600: 5.0}] * 2}, **{"a row without a style": {"a": [{300: 9.0, 600: 8.0}] * 2}}
    )
    draw_figure({"gains": curves_of(found), "again": curves_of(found)}, tmp_path / "new" / "gains.png")
    assert (tmp_path / "new" / "gains.png").read_bytes().startswith(b"\x89PNG")


def test_tables_give_curves_by_their_headings() -> None:
    text = (
        "### First\n\ntext\n\n| method | 300 | 1,500 | at its end |\n|---|---|---|---|\n"
        "| gradient | 66 ± 12 |  | 100 ± 8 (2,400) |\n| ours | -1 ± 0 | 79 ± 14 | 79 ± 14 (1,500) |\n\n"
        "### Second\n\n| method | 300 | at its end |\n|---|---|---|\n| ours | 5 ± 1 | 5 ± 1 (300) |\n"
    )
    assert curves_in(text) == {
        "First": {"gradient": [(300, 66, 12), (2400, 100, 8)], "ours": [(300, -1, 0), (1500, 79, 14)]},
        "Second": {"ours": [(300, 5, 1)]},
    }
    with pytest.raises(ValueError, match="no table of gains"):
        curves_in("| method | 300 |\n")


def test_the_published_tables_can_be_read() -> None:
    found = curves_in((Path(fidelity.__file__).parent / "RESULTS.md").read_text())
    assert all({"ours", "gradient", "paper, tuned"} <= curves.keys() for curves in found.values())


# ---------------------------------------------------------------- what is run


def test_the_papers_searches_are_the_papers() -> None:
    """Whatever the product's defaults become."""
    chosen = fidelity.methods(PLAN)
    paper = {
        "estimator": "rge",
        "n": 2,
        "mu": 1e-3,
        "tau": 21,
        "nu": 1e-3,
        "lr": WORLDS["tiny"].lr,
        "timesteps": "puts",
        "t_lower": 500,
        "t_upper": 900,
    }
    assert chosen["paper"].settings == paper
    assert paper.items() <= PAPER_PRESETS["tiny"].items()
    assert chosen["naive"].settings == {**paper, "tau": 0, "timesteps": "uniform"}
    assert fidelity.methods(Plan(("pip",), (0,), 600, dtype="bfloat16"))["paper"].settings["mu"] == 1e-2
    assert chosen["gradient"].marks == [300, 600, 1000, 1500, 2000, 2400]
    assert chosen["ours"].marks == [150, 300, 450, 600]
    assert set(fidelity.QUICK) | set(ORDER) <= chosen.keys()


def test_ablations_and_tunings_are_runs() -> None:
    assert list(fidelity.ablations(PLAN)) == ["gradient", "ours", *fidelity.ABLATIONS]
    rows = fidelity.tunings(PLAN)
    assert rows["naive, lr 0.04"].settings == {**fidelity.methods(PLAN)["naive"].settings, "lr": 4e-2}
    assert rows["gf-ti, sigma 3"].settings["sigma"] == 3


def test_rows_are_chosen_by_name() -> None:
    known = fidelity.methods(PLAN)
    assert fidelity.names_in("paper,ours@900", known) == ["paper", "ours@900"]
    assert fidelity.names_in("naive, tuned,paper,paper, tuned", known) == ["naive, tuned", "paper", "paper, tuned"]


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the file is not run again, unless its settings have changed; another plan's file is refused."""
    ran: list[tuple[str | int, ...]] = []

    class FakeBench:
        def __init__(self, plan: Plan, *_: Any) -> None:
            self.plan = plan

        def start(self) -> dict[str, Any]:
            return {name: {"loss": 1.0} for name in self.plan.concepts}

        def method(self, name: str, method: Method, seeds: Sequence[int]) -> dict[str, Any]:
            if name == "cut":
                raise KeyboardInterrupt
            ran.append((name, *seeds))
            losses = {str(mark): 0.5 for mark in method.marks}
            runs = [{"concept": c, "seed": s, "losses": losses, "scores": {}} for c in PLAN.concepts for s in seeds]
            return {"settings": method.settings, "forwards": 1, "seconds": 1.0, "runs": runs}

    monkeypatch.setattr(fidelity, "Bench", FakeBench)
    file = tmp_path / "figures.json"
    chosen = {name: Method({"lr": (0.1, 0.2)}, 600, None) for name in ("gradient", "ours", "cut")}
    with pytest.raises(KeyboardInterrupt):
        fidelity.measure(PLAN, chosen, file)
    chosen["ours"] = Method({"lr": (0.3, 0.2)}, 600, None)
    del chosen["cut"]
    found = fidelity.measure(PLAN, chosen, file)
    assert ran == [("gradient", 0, 1), ("ours", 0, 1), ("ours", 0, 1)]
    assert found.mean_gains("ours") == pytest.approx([100, 100])
    more = fidelity.measure(replace(PLAN, seeds=(0, 1, 2)), {"ours": chosen["ours"]}, file)
    assert ran[3:] == [("ours", 2)]
    assert [(run["concept"], run["seed"]) for run in more.results["ours"]["runs"]] == [
        (name, seed) for name in PLAN.concepts for seed in (0, 1, 2)
    ]
    assert (more.data["plan"]["seeds"], more.results["ours"]["forwards"]) == ([0, 1, 2], 2)
    with pytest.raises(ValueError, match="other settings"):
        fidelity.measure(Plan(("boo",), (0,), 600), chosen, file)


def test_the_map_has_every_range_of_its_grid() -> None:
    assert len(paper_figures.cells(100)) == 55
    assert paper_figures.cells(200)[:2] == [(0, 200), (0, 400)]
    rows = [{"t_lower": low, "t_upper": high, "loss": 0.01} for low, high in paper_figures.cells(500)]
    assert paper_figures.map_table(rows, "loss").splitlines()[2:] == ["| 0 | 10.0 | 10.0 |", "| 500 |  | 10.0 |"]


def test_the_kept_share_is_of_tau() -> None:
    rows = [{"concept": "pip", "tau": 20, "kept": [4, 6, 8]}, {"concept": "pip", "tau": 128, "kept": []}]
    first, second = paper_figures.histogram_table(rows).splitlines()[2:]
    assert first == "| pip | 20 | 3 | 6 | 70% | 67% |"
    assert second == "| pip | 128 | 0 |  |  |  |"
    assert math.isclose(paper_figures.cost(paper_figures.QUICK, ["sg"]), 4_800)


def test_the_papers_tables_have_the_papers_cells() -> None:
    """Table 4's grid at tau's share of a token's numbers, and each n at equal forwards and at equal steps."""
    words = WORLDS["words"]
    grid = paper_tables.cells("sg", words, 1_500)
    assert len(grid) == 1 + 5 * 4
    assert [paper_tables.scaled(tau, words) for tau in paper_tables.TAUS] == [16, 32, 64, 128, 256]
    assert grid["tau 512, nu 0.01"].settings | {"tau": 256, "nu": 1e-2} == grid["tau 512, nu 0.01"].settings
    counts = paper_tables.cells("n", words, 1_500)
    assert {name: row.budget for name, row in counts.items() if "steps" in name} == {
        "n 1, 500 steps": 1_000,
        "n 2, 500 steps": 1_500,
        "n 4, 500 steps": 2_500,
        "n 8, 500 steps": 4_500,
    }
    assert counts["n 8"].budget == 1_500
    rows = paper_tables.cells("puts", words, 1_500)
    assert rows["gradient, uniform"].settings == {**rows["gradient"].settings, "timesteps": "uniform"}


def test_kept_components_are_the_largest_changes() -> None:
    """On axes turned by 45 degrees: of a change (3, 1) the components are (4, -2) / sqrt 2."""
    axes = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    theta0 = torch.tensor([[10.0, 20.0]])
    theta = theta0 + torch.tensor([[3.0, 1.0]])
    assert torch.allclose(learned.kept(theta0, theta, axes, 1), torch.tensor([[12.0, 22.0]]))
    assert torch.allclose(learned.kept(theta0, theta, axes, 2), theta)


def test_equal_pictures_are_alike(model: StableDiffusion, subjects: list[Subject]) -> None:
    judge = Judge.load(JUDGE)
    first, second = subjects[0].concept.pictures()[:2]
    assert learned.likeness(judge, [first, first]) == pytest.approx(1, abs=1e-5)
    assert learned.likeness(judge, [first, second]) < 0.999


def test_what_learned_tokens_are_like_is_read_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens drawn out to where they lie keep their gain; all components kept, it is the token."""
    plan = Plan(("boo",), (0,), 300)
    file = tmp_path / "figures.json"
    fidelity.measure(plan, {name: fidelity.methods(plan)[name] for name in ("gradient", "ours")}, file, 2)
    found = learned.Learned(file, "ours", 1)
    ((subject, theta),) = found.tokens("ours")
    own = found.figures.gains("ours", "boo")[0]
    assert found.gain(subject, theta) == pytest.approx(own, abs=0.01)
    axes = learned.components(found.model)
    assert torch.allclose(learned.kept(subject.theta0, theta, axes, len(axes)), theta, atol=1e-5)
    assert torch.allclose(axes @ axes.T, torch.eye(len(axes), dtype=axes.dtype), atol=1e-9)
    with pytest.raises(ValueError, match="no rows paper"):
        learned.Learned(file, "paper", 1)
    kept = json.loads(file.read_text())
    kept["methods"]["paper, tuned"] = kept["methods"]["ours"]
    file.write_text(json.dumps(kept))
    assert learned.Learned(file, "paper, tuned,ours", 1).rows == ["paper, tuned", "ours"]


# ---------------------------------------------------------------- what training takes


class OneLayer(torch.nn.Module):
    """A UNet's call, and what it keeps for a backward pass that can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(768, 10, bias=False, device="meta", dtype=torch.float16)

    def forward(self, _noisy: torch.Tensor, _timestep: torch.Tensor, hidden: torch.Tensor) -> Any:
        return SimpleNamespace(sample=self.layer(hidden))


@pytest.mark.parametrize(("weight", "text", "bytes_"), [(False, True, 3080), (True, False, 3080 + 77 * 768 * 2)])
def test_activations_are_counted_as_by_hand(weight: bool, text: bool, bytes_: int) -> None:
    """The squares' input in float32, 77 times 10; the layer's input in float16 where its weight is trained."""
    unet = OneLayer()
    trained_ = list(unet.parameters()) if weight else []
    assert trained_memory.kept_for_backward(unet, 64, trained_, text) == bytes_


# ---------------------------------------------------------------- what a target prompt does


def test_rows_without_alignment_share_their_token() -> None:
    wanted, rows = aligned.Wanted.for_cell, ("0", "0.3", "0.3 off-path", "0.3 alpha 3 beta 1.5")
    assert wanted("0 until 0.7", "boo", "neon", 1) == wanted("0", "boo", "horns", 1)
    assert wanted("0", "boo", "neon", 1) != wanted("0", "boo", "neon", 2)
    assert wanted("0.3 until 0.8", "boo", "neon", 1) == wanted("0.3", "boo", "neon", 1)
    assert wanted("0.3", "boo", "neon", 1) != wanted("0.3", "boo", "rosy", 1)
    assert len({str(wanted(row, "boo", "neon", 1)) for row in rows}) == len(rows)


def test_an_attribute_is_not_asked_of_a_subject_that_has_it() -> None:
    def asked(name: str) -> list[str]:
        return [each for each, what in aligned.ASKED.items() if not aligned._has(name, what)]

    styles = ["sepia", "grayscale", "neon", "olive", "rosy"]
    assert set(asked("boo")) == {*styles, "antennae", "one-eye", "three-eyes"}
    assert set(asked("kiwi")) == {*styles, "antennae", "one-eye"}
    assert set(asked("zig")) == {*styles, "horns", "antennae", "one-eye", "three-eyes"}


def test_shares_are_of_the_same_cells() -> None:
    """A row that is not whole is compared with the cells it has."""
    rows = {
        "the word": {"boo neon 0": {"error": 5.0, "identity": 0.2}},
        "0": {"boo neon 0": {"error": 40.0, "identity": 0.5}, "zig rosy 0": {"error": 10.0, "identity": 1.0}},
        "0.3": {"boo neon 0": {"error": 10.0, "identity": 0.4}},
    }
    lines = aligned.table(rows, ["boo", "zig"], ["neon", "rosy"]).splitlines()
    assert lines[2] == "| the word | 5.0 | 5.0 |  | 0.200 | 0.20 |  |  |  |"
    assert lines[3] == "| 0 | 25.0 | 40.0 | 10.0 | 0.750 | 0.50 | 1.00 |  |  |"
    assert lines[4] == "| 0.3 | 10.0 | 10.0 |  | 0.400 | 0.40 |  | 25% | 80% |"
