"""How well tokens are learned: our search, the paper's, and others' at equal forward passes, on the embedded model.

Every method learns every bundled concept with every seed, from the same images, captions and noise. It is measured by
the held-out loss at high t (``zoodip_core.heldout``) at marks counted in forward passes of one candidate, and by what
the final token draws (12 images of 20 DDIM steps). **Gain** is the share of gradient textual inversion's held-out
gain, in percent: 0 is the initializer's word, 100 the gradient's final token.

    gradient    textual inversion with gradients: Adam, 8 draws a step, cosine; backward passes are not counted
    naive       random gradient estimation n = 2, uniform timesteps, ZOAdam with a constant learning rate
    naive+PUTS  with the paper's timesteps (eq. 9)
    naive+SG    with Subspace Gradient (eq. 4-8)
    paper       both: ZOODiP as published
    spsa, one-point   the paper with the estimators of S2 and S3
    snr         the paper with SNR-based timesteps (table 5)
    gf-ti       Gradient-Free Textual Inversion: CMA-ES in a random subspace
    ours        what the product does; ours@N is a run of N forwards

The paper's settings for 768 dimensions are scaled to this model's 128: tau, and the learning rate to its larger
embeddings; one rate serves all methods of the paper's kind, and ``--tune`` shows what other rates give, on seeds that
the table does not use.

    pip install -e .[bench]
    python benchmarks/fidelity.py --json FILE --figure FILE
    python benchmarks/fidelity.py --quick

The JSON file is written after every method; the same command goes on with what is missing, and runs a method again
whose settings have changed. Adding ``--ablation`` or ``--tune`` prints those tables in place of the first.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.stacked import BACKWARD, Lane, Stack, Subject, descend, heldout, run
from zoodip_core import SubspaceGradient, TrainConfig, ZerothOrderSearch, ZOAdam, generate, rng
from zoodip_core.config import ESTIMATORS, HELD_DRAWS
from zoodip_core.demo import demo_config
from zoodip_core.embedding import Embedding
from zoodip_core.files import read_object, write_atomically
from zoodip_core.models import QuantizedModel, load_quantized
from zoodip_core.noise import adapted
from zoodip_core.objective import Draw
from zoodip_core.presets import PRESETS, preset_for
from zoodip_core.timesteps import PUTS, SNRTimesteps, TimestepSampler, UniformTimesteps
from zoodip_core.tiny import concepts
from zoodip_core.tiny.judge import Judge, to_tensor
from zoodip_core.tiny.scores import JUDGE, score
from zoodip_core.tokens import table_of
from zoodip_core.vocabulary import vocabulary_spread

BUDGET = 6_000
MARKS = (300, 600, 1200, 2000, 3000, 4500, 6000)
FINE_STEP, FINE_END = 150, 3_000
"""Ours is measured on this grid as well, for the forwards it needs to come to a loss."""
LR = 2e-2
"""Of all searches of the paper's kind: its 5e-3, scaled to this model's larger embeddings."""
GRADIENT = {"lr": 3e-2, "batch": 8, "forwards": 2_400}
GF_TI = {"dims": 64, "sigma": 1.0}
"""GF-TI's 256 dimensions of 768 would be more than this model has; 64 of 128. Its sigma and alpha are 1."""
IMAGES, DDIM_STEPS = 12, 20
PLACES = ("snow", "meadow", "night", "beach", "candy", "ocean")
FAR = 100.0
"""The error of a colour or tone, in RGB, that counts as not learned at all."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "normal directions": {"directions": "normal", "mu": 0.18, "lr": 0.068},
    "ZOAdam": {"optimizer": "zoadam"},
    "mu stays": {"mu_end": 1.0},
    "a tenth of mu": {"mu": 0.26},
    "constant learning rate": {"lr_schedule": "constant"},
    "n = 2": {"n": 2},
    "n = 8": {"n": 8},
    "uniform timesteps": {"timesteps": "uniform"},
    "with Subspace Gradient": {"subspace_gradient": True, "tau": 21},
    "without checks": {"checks": 0, "patience": 0},
}
"""What ``--ablation`` takes from ours: settings of ``TrainConfig``, one row each. Normal directions know no vocabulary:
their mu and learning rate are ours times 0.068, the standard deviation of the embedded model's words in one number."""

TUNE_LR = (5e-3, 1e-2, 2e-2, 4e-2)
TUNE_SIGMA = (0.3, 1.0, 3.0)
TUNED = ("naive", "paper", "spsa", "one-point")
TUNE_CONCEPTS, TUNE_SEEDS, TUNE_FIRST_SEED = ("boo", "pip", "zig"), 2, 100
QUICK = ("gradient", "naive", "paper", "ours")
QUICK_CONCEPTS, QUICK_SEEDS, QUICK_BUDGET = ("boo", "pip"), 2, 600
ORDER = ("gradient", "paper", "naive", "gf-ti")
"""The order that the paper's table 1 would have, by gain."""


@dataclass(frozen=True)
class Plan:
    """What is run: it has to be the same for a run to be gone on with."""

    concepts: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: int
    weights: str = "int8"
    dtype: str = "float32"

    @property
    def coarse(self) -> dict[str, Any]:
        """What the presets change for int4 weights or bfloat16 activations (supplement S3.2)."""
        preset = preset_for("tiny", self.weights, self.dtype, "paper")
        return {key: value for key, value in preset.items() if PRESETS["tiny"].get(key) != value}


# ---------------------------------------------------------------- the methods


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        settings: all that its figures depend on; a result of other settings is not kept.
        budget: forward passes of one candidate.
        lane: a training of a subject with a seed; None for gradients, which :func:`descend` trains.
        fine: whether it is measured on the fine grid.
    """

    settings: dict[str, Any]
    budget: int
    lane: Callable[[Subject, int], Lane] | None
    fine: bool = False

    @property
    def marks(self) -> list[int]:
        fine = range(FINE_STEP, FINE_END + 1, FINE_STEP) if self.fine else ()
        return sorted({mark for mark in (*MARKS, *fine) if mark < self.budget} | {self.budget})


@dataclass(frozen=True)
class Recipe:
    """A search of the paper's kind, spelled out, so that no new default of the product changes it.

    ``tau`` 0 is no Subspace Gradient; 21 of 128 dimensions is the paper's 128 of 768.
    """

    estimator: str = "rge"
    n: int = 2
    mu: float = 1e-3
    tau: int = 21
    nu: float = 1e-3
    timesteps: str = "puts"
    t_lower: int = 500
    t_upper: int = 900
    lr: float = LR

    def lane(self, subject: Subject, seed: int) -> Lane:
        """A training with it."""
        estimator = ESTIMATORS[self.estimator](n=self.n, mu=self.mu)
        subspace = SubspaceGradient(self.tau, self.nu) if self.tau else None
        search = ZerothOrderSearch(subject.theta0, estimator, subspace, ZOAdam(self.lr), seed)
        return Lane(subject, subject.training(self._timesteps(subject.model)), search, seed)

    def _timesteps(self, model: QuantizedModel) -> TimestepSampler:
        if self.timesteps == "puts":
            return PUTS(self.t_lower, self.t_upper)
        return UniformTimesteps() if self.timesteps == "uniform" else SNRTimesteps(model.scheduler.alphas_cumprod)

    def method(self, budget: int) -> Method:
        return Method(asdict(self), budget, self.lane)


class GradientFree:
    """Gradient-Free Textual Inversion (Fei et al. 2023): CMA-ES on z of theta = theta0 + z A, A random and fixed.

    A's entries are such that z ~ N(0, 1) moves each number of the token by about the vocabulary's spread.

    Args:
        theta0: ``[num_vectors, dim]``.
        spread: standard deviation of the numbers in the vocabulary's embeddings.
        seed: of A and of all that CMA-ES draws; numpy's global generator is not touched.
        dims: of z.
        sigma: CMA-ES's first step size.
    """

    def __init__(self, theta0: torch.Tensor, spread: float, seed: int, dims: int = 64, sigma: float = 1.0) -> None:
        import cma

        self._theta0 = theta0.double()
        width = min(dims, theta0.numel())
        self._matrix = rng.normal(seed, 0, "subspace", (width, theta0.numel())).double() * spread / math.sqrt(width)
        draws = np.random.default_rng(seed)
        options = {"seed": np.nan, "randn": lambda *shape: draws.standard_normal(shape), "verbose": -9}
        self._cma = cma.CMAEvolutionStrategy(np.zeros(width), sigma, options)
        self._asked: list[np.ndarray] = []

    def _token(self, z: np.ndarray) -> torch.Tensor:
        return (self._theta0 + (torch.from_numpy(z).double() @ self._matrix).view_as(self._theta0)).float()

    @property
    def theta(self) -> torch.Tensor:
        """The distribution's mean: under noise better than the best candidate seen."""
        return self._token(np.asarray(self._cma.mean))

    def ask(self, mu_scale: float = 1.0) -> torch.Tensor:
        if not self._asked:
            self._asked = self._cma.ask()
        return torch.stack([self._token(z) for z in self._asked])

    def tell(
        self, losses: torch.Tensor, lr_scale: float = 1.0, *, held: float | None = None, mu_scale: float = 1.0
    ) -> None:
        self._cma.tell(self._asked, losses.tolist())
        self._asked = []


def gradient_free(budget: int, **settings: Any) -> Method:
    """GF-TI with its settings changed; one draw a generation, PUTS's timesteps, CMA-ES's own population."""
    chosen = {**GF_TI, **settings}

    def lane(subject: Subject, seed: int) -> Lane:
        (encoder,) = subject.model.text_encoders
        table = table_of(encoder)
        spread = float(table.rows(range(len(subject.model.tokenizers[0]))).std())
        return Lane(subject, subject.training(PUTS()), GradientFree(subject.theta0, spread, seed, **chosen), seed)

    return Method(chosen, budget, lane)


def ours(concept: concepts.Concept, plan: Plan, budget: int, seed: int, **changes: Any) -> TrainConfig:
    """The product's own settings for a run of so many forwards; ``changes`` are an ablation's."""
    config = demo_config(concept, seed=seed, weights=plan.weights, dtype=plan.dtype, **changes)
    steps = budget // config.make_estimator().num_candidates
    while steps > 1 and forwards_of(replace(config, steps=steps)) > budget:
        steps -= 1
    return replace(config, steps=steps)


def forwards_of(config: TrainConfig) -> int:
    """All forward passes of one candidate that a run takes."""
    looks = sum(map(config.checked, range(config.steps)))
    return config.steps * config.make_estimator().num_candidates + looks * HELD_DRAWS


def our_lane(config: TrainConfig, subject: Subject) -> Lane:
    """A training as the product would run it."""
    model = subject.model
    objective = subject.training(config.make_timesteps(model.scheduler.alphas_cumprod))
    spread = vocabulary_spread(model.tokenizers, model.text_encoders) if config.directions == "vocabulary" else None
    if config.adapt_mu:  # its forwards, 60 or so, are not counted
        config, _ = adapted(config, objective, subject.theta0, spread)

    def held(step: int) -> list[Draw]:
        return config.fixed_draws(len(objective.posteriors)) if config.checked(step) else []

    search = config.make_search(subject.theta0, spread)
    return Lane(subject, objective, search, config.seed, config.lr_scale, config.mu_scale, held)


def our_method(plan: Plan, budget: int, fine: bool = False, **changes: Any) -> Method:
    """Ours, or an ablation of it."""
    shown = ours(concepts.load(plan.concepts[0]), plan, budget, 0, **changes).to_dict()
    for own in ("images", "captions", "token", "initializer", "seed"):
        del shown[own]
    return Method(
        shown,
        budget,
        lambda subject, seed: our_lane(ours(subject.concept, plan, budget, seed, **changes), subject),
        fine,
    )


def methods(plan: Plan) -> dict[str, Method]:
    """All methods of the table, by name."""
    paper = Recipe(mu=plan.coarse.get("mu", Recipe.mu))
    recipes = {
        "naive": replace(paper, tau=0, timesteps="uniform"),
        "naive+PUTS": replace(paper, tau=0),
        "naive+SG": replace(paper, timesteps="uniform"),
        "paper": paper,
        "spsa": replace(paper, estimator="spsa"),
        "one-point": replace(paper, estimator="one-point"),
        "snr": replace(paper, timesteps="snr"),
    }
    return {
        "gradient": Method(GRADIENT, int(GRADIENT["forwards"]), None),
        **{name: recipe.method(plan.budget) for name, recipe in recipes.items()},
        "gf-ti": gradient_free(plan.budget),
        "ours": our_method(plan, plan.budget, fine=True),
    }


def ablations(plan: Plan) -> dict[str, Method]:
    """The gradient for a ceiling, ours, and ours without one part each."""
    whole = methods(plan)
    rows = {label: our_method(plan, plan.budget, **changes) for label, changes in ABLATIONS.items()}
    return {"gradient": whole["gradient"], "ours": whole["ours"], **rows}


def tunings(plan: Plan) -> dict[str, Method]:
    """The gradient for a ceiling, and the baselines at several learning rates or step sizes."""
    whole = methods(plan)
    rows = {"gradient": whole["gradient"]}
    for name, lr in itertools.product(TUNED, TUNE_LR):
        rows[f"{name}, lr {lr:g}"] = replace(Recipe(**whole[name].settings), lr=lr).method(plan.budget)
    for sigma in TUNE_SIGMA:
        rows[f"gf-ti, sigma {sigma:g}"] = gradient_free(plan.budget, sigma=sigma)
    return rows


# ---------------------------------------------------------------- what a token draws


def prompts_of(subject: Subject, judge: Judge, count: int = IMAGES) -> tuple[list[str], str, list[str]]:
    """Texts with ``{}`` for the token, and what else they ask for: the judge's attribute, and its value in each.

    A subject is asked for in a place; a style has none and is asked for with a shape.
    """
    if subject.concept.tone:
        shapes = [judge.classes["shape"][i % len(judge.classes["shape"])] for i in range(count)]
        return [f"a {shape} monster in {{}} style" for shape in shapes], "shape", shapes
    places = [PLACES[i % len(PLACES)] for i in range(count)]
    return [subject.concept.prompt(place) for place in places], "place", places


def features(judge: Judge, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """The judge's features, mean and maximum over the picture, ``[N, 96]`` of length 1."""
    with torch.no_grad():
        maps = judge.features(to_tensor(list(pictures)))
    return torch.nn.functional.normalize(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1), dim=1)


def alignment(subject: Subject, judge: Judge, pictures: Sequence[Image.Image]) -> dict[str, float]:
    """Image alignment: is the subject in the pictures?

    ``attributes``, 0 to 1, is the mean of the figures of ``tiny.scores``, an error of FAR or more counting 0;
    ``features`` the mean cosine between the pictures' and the references' features, as CLIP-I is.
    """
    figures = score(subject.concept, pictures)
    shares = [max(0.0, 1 - value / FAR) if "error" in name else value for name, value in figures.items()]
    cosines = features(judge, pictures) @ features(judge, subject.concept.pictures()).T
    return {"attributes": statistics.fmean(shares), "features": float(cosines.mean()), **figures}


def draw(subject: Subject, judge: Judge, theta: torch.Tensor, count: int = IMAGES) -> dict[str, float]:
    """Scores of a token ``[1, dim]``: :func:`alignment`, and text alignment as ``text``.

    Text alignment is the judge's mean probability of the place (of a style: the shape) that the prompt names.
    """
    texts, name, wanted = prompts_of(subject, judge, count)
    token = subject.concept.token
    made = generate(
        subject.model,
        [text.format(token) for text in texts],
        list(range(count)),
        embedding=Embedding(token, (theta,)),
        num_inference_steps=DDIM_STEPS,
    )
    read = judge.read(made)[name]
    text = [float(row[judge.classes[name].index(value)]) for row, value in zip(read, wanted, strict=True)]
    return {"text": statistics.fmean(text), **alignment(subject, judge, made)}


# ---------------------------------------------------------------- running


class Clock:
    """Says now and then how far the work is, by its cost in forwards."""

    def __init__(self, planned: float, every: float = 60.0) -> None:
        self.planned, self.every, self.done = planned, every, 0.0
        self.label = ""
        self._began = self._said = time.monotonic()

    def add(self, cost: float) -> None:
        """Note finished work."""
        self.done += cost
        now = time.monotonic()
        if now - self._said >= self.every:
            self._said = now
            each = (now - self._began) / self.done
            left = max(0.0, self.planned - self.done) * each / 60
            share = min(1.0, self.done / self.planned)
            print(f"  {self.label}: {share:.0%} done, {each * 1e3:.2f} ms a forward, {left:.0f} min left", flush=True)


class Bench:
    """The model, its subjects and the judge; runs one method after another."""

    def __init__(self, plan: Plan, clock: Clock, images: int = IMAGES) -> None:
        self.plan, self.clock, self.images = plan, clock, images
        self.model = load_quantized("tiny", weights=plan.weights, dtype=plan.dtype)
        self.stack = Stack(self.model, on_cost=clock.add)
        self.judge = Judge.load(JUDGE)
        self.subjects = [Subject(self.model, concepts.load(name)) for name in plan.concepts]
        self.keys = [(subject, seed) for subject in self.subjects for seed in plan.seeds]

    def start(self) -> dict[str, Any]:
        """For each concept what the initializer's word has, and the reference pictures themselves."""
        losses = heldout(self.stack.losses, [(subject, subject.theta0) for subject in self.subjects])
        return {
            subject.concept.name: {
                "loss": loss,
                **({"word": self._draw(subject, subject.theta0)} if self.images else {}),
                "pictures": alignment(subject, self.judge, subject.concept.pictures()),
            }
            for subject, loss in zip(self.subjects, losses, strict=True)
        }

    def method(self, name: str, method: Method) -> dict[str, Any]:
        """Train every concept with every seed, and measure."""
        self.clock.label, began, before = name, time.monotonic(), self.stack.forwards
        tokens: dict[tuple[int, int], torch.Tensor] = {}

        def on_mark(place: int, mark: int, theta: torch.Tensor) -> None:
            tokens[place, mark] = theta

        if method.lane is None:
            trainings = [(subject, subject.training(PUTS()), seed) for subject, seed in self.keys]
            lr, batch = float(GRADIENT["lr"]), int(GRADIENT["batch"])
            descend(self.stack, trainings, method.budget, method.marks, on_mark, lr, batch)
        else:
            lanes = [method.lane(subject, seed) for subject, seed in self.keys]
            run(self.stack.losses, lanes, method.budget, method.marks, on_mark)
        forwards = self.stack.forwards - before
        losses = heldout(self.stack.losses, [(self.keys[place][0], theta) for (place, _), theta in tokens.items()])
        curves: dict[int, dict[str, float]] = {place: {} for place in range(len(self.keys))}
        for (place, mark), loss in zip(tokens, losses, strict=True):
            curves[place][str(mark)] = loss
        runs = [
            {
                "concept": subject.concept.name,
                "seed": seed,
                "losses": curves[place],
                "scores": self._draw(subject, tokens[place, method.budget]) if self.images else {},
            }
            for place, (subject, seed) in enumerate(self.keys)
        ]
        seconds = time.monotonic() - began
        return {"settings": method.settings, "forwards": forwards, "seconds": round(seconds, 1), "runs": runs}

    def _draw(self, subject: Subject, theta: torch.Tensor) -> dict[str, float]:
        figures = draw(subject, self.judge, theta, self.images)
        self.clock.add(2 * self.images * DDIM_STEPS)  # with and without the text, for guidance
        return figures


def cost(plan: Plan, chosen: dict[str, Method], images: int = IMAGES) -> tuple[int, float]:
    """Planned forward passes of all trainings, and the cost of everything in forwards of one candidate."""
    measured = 8 * 10  # held-out pictures times draws of each
    forwards, total = 0, 0.0
    for method in chosen.values():
        trained = len(plan.concepts) * len(plan.seeds) * method.budget
        forwards += trained
        total += trained * (1 if method.lane else 1 + BACKWARD)
        total += len(plan.concepts) * len(plan.seeds) * (len(method.marks) * measured + 2 * images * DDIM_STEPS)
    return forwards, total


# ---------------------------------------------------------------- what follows from the figures


def gain(start: float, loss: float, ceiling: float) -> float:
    """Share of the ceiling's improvement over the start, in percent."""
    return 100 * (start - loss) / (start - ceiling)


def forwards_to_reach(curve: dict[int, float], start: float, target: float) -> float | None:
    """Forward passes at which a curve of losses, straight between its marks, first comes to the target.

    Args:
        curve: loss at each mark.
        start: loss at 0 forwards.

    Returns:
        None where it never does.
    """
    before, above = 0, start
    if start <= target:
        return 0.0
    for mark, loss in sorted(curve.items()):
        if loss <= target:
            return before + (mark - before) * (above - target) / (above - loss)
        before, above = mark, loss
    return None


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds, 0 of one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


class Figures:
    """Results by name, with the questions that the tables ask. ``data`` is the file's content."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.results: dict[str, Any] = data["methods"]
        self.start = {name: float(each["loss"]) for name, each in data["start"].items()}
        self.names = list(self.start)

    def marks(self, name: str) -> list[int]:
        return sorted(int(mark) for mark in self.results[name]["runs"][0]["losses"])

    def losses(self, name: str, concept: str, mark: int) -> list[float]:
        """One a seed."""
        return [run["losses"][str(mark)] for run in self.results[name]["runs"] if run["concept"] == concept]

    def loss(self, name: str, concept: str, mark: int = 0) -> float:
        """Mean over seeds, at the end if no mark is given."""
        return statistics.fmean(self.losses(name, concept, mark or self.marks(name)[-1]))

    def gains(self, name: str, concept: str, mark: int = 0) -> list[float]:
        """One a seed; the ceiling is the gradient's mean over seeds."""
        ceiling = self.loss("gradient", concept)
        losses = self.losses(name, concept, mark or self.marks(name)[-1])
        return [gain(self.start[concept], loss, ceiling) for loss in losses]

    def mean_gains(self, name: str, mark: int = 0) -> list[float]:
        """One a seed, the mean over concepts."""
        each = zip(*(self.gains(name, concept, mark) for concept in self.names), strict=True)
        return [statistics.fmean(gains) for gains in each]

    def scores(self, name: str, figure: str) -> list[float]:
        """One a seed, the mean over concepts."""
        found: dict[int, list[float]] = {}
        for each in self.results[name]["runs"]:
            if figure in each["scores"]:
                found.setdefault(each["seed"], []).append(each["scores"][figure])
        return [statistics.fmean(values) for values in found.values()]

    def reach(self, name: str, rival: str) -> dict[str, dict[str, float | None]]:
        """For each concept the forwards that ``name`` needs to come to the rival's final loss, and their ratio."""
        found: dict[str, dict[str, float | None]] = {}
        total = self.marks(rival)[-1]
        for concept in self.names:
            curve = {mark: self.loss(name, concept, mark) for mark in self.marks(name)}
            needed = forwards_to_reach(curve, self.start[concept], self.loss(rival, concept))
            found[concept] = {"forwards": needed, "ratio": total / needed if needed else None}
        return found

    def worst(self, name: str, rival: str) -> dict[str, Any]:
        """The concept in which ``name`` is least ahead of the rival at the same forwards, and by how much."""
        mark = min(self.marks(name)[-1], self.marks(rival)[-1])
        leads = {
            concept: statistics.fmean(self.gains(name, concept, mark))
            - statistics.fmean(self.gains(rival, concept, mark))
            for concept in self.names
        }
        concept = min(leads, key=lambda each: leads[each])
        return {"concept": concept, "lead": leads[concept], "forwards": mark}

    def order(self) -> list[dict[str, Any]]:
        """For neighbours in ORDER: whether the first is ahead, in how many concepts, and whether seeds overlap."""
        known = [name for name in ORDER if name in self.results]
        found = []
        for better, worse in itertools.pairwise(known):
            high, low = self.mean_gains(better), self.mean_gains(worse)
            ahead = [
                statistics.fmean(self.gains(better, each)) > statistics.fmean(self.gains(worse, each))
                for each in self.names
            ]
            found.append(
                {
                    "better": better,
                    "worse": worse,
                    "lead": statistics.fmean(high) - statistics.fmean(low),
                    "concepts": sum(ahead),
                    "overlap": min(high) <= max(low),
                }
            )
        return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def with_spread(values: Sequence[float], digits: int = 0) -> str:
    if not values:
        return ""
    mean = round(statistics.fmean(values), digits) + 0.0  # no -0
    return f"{mean:.{digits}f} ± {spread(values):.{digits}f}"


def tables(figures: Figures) -> str:
    """All tables as Markdown; those that need a method which is not there are left out."""
    names = list(figures.results)
    if "gradient" not in figures.results:
        return "No gains without the method gradient.\n"
    common = [mark for mark in MARKS if any(mark in figures.marks(name) for name in names)]
    rows = [
        [
            name,
            *(with_spread(figures.mean_gains(name, mark)) if mark in figures.marks(name) else "" for mark in common),
            f"{with_spread(figures.mean_gains(name))} ({figures.marks(name)[-1]:,})",
        ]
        for name in names
    ]
    parts = [
        "Gain, percent, mean over concepts ± standard deviation over seeds, at so many forward passes:\n",
        table(["method", *(f"{mark:,}" for mark in common), "at its end"], rows),
        "Final gain by concept ± standard deviation over seeds, and held-out losses x 1,000:\n",
        table(
            ["method", *figures.names],
            [
                ["loss of the word", *(f"{1e3 * figures.start[concept]:.1f}" for concept in figures.names)],
                [
                    "loss of the gradient",
                    *(f"{1e3 * figures.loss('gradient', concept):.1f}" for concept in figures.names),
                ],
                *([name, *(with_spread(figures.gains(name, concept)) for concept in figures.names)] for name in names),
            ],
        ),
    ]
    if any(figures.scores(name, "text") for name in names):
        parts += _score_table(figures)
    if {"ours", "paper"} <= figures.results.keys():
        parts += _reach_table(figures)
    if order := figures.order():
        parts.append("Order by gain, and whether the methods' seeds overlap (mean over concepts, min to max):\n")
        total = len(figures.names)
        parts += [
            f"- {each['better']} over {each['worse']}: {each['lead']:+.0f} points, ahead in {each['concepts']} of "
            f"{total} concepts; seeds {'overlap' if each['overlap'] else 'do not overlap'}"
            for each in order
        ]
    return "\n".join(parts) + "\n"


def _score_table(figures: Figures) -> list[str]:
    kinds = ("attributes", "features", "text")
    started = figures.data["start"].values()
    rows = []
    for label in ("word", "pictures"):
        known = [[each[label][kind] for each in started if kind in each[label]] for kind in kinds]
        rows.append(
            [f"the {label}", *(f"{statistics.fmean(values):.3f}" if values else "" for values in known)],
        )
    rows += [[name, *(with_spread(figures.scores(name, kind), 3) for kind in kinds)] for name in figures.results]
    head = ["", "image alignment: attributes", "image alignment: features", "text alignment"]
    return ["What the final tokens draw (1 is best):\n", table(head, rows)]


def _reach_table(figures: Figures) -> list[str]:
    reach, total = figures.reach("ours", "paper"), figures.marks("paper")[-1]
    ratios = [each["ratio"] for each in reach.values() if each["ratio"]]
    rows = [
        [
            concept,
            f"{each['forwards']:,.0f}" if each["forwards"] is not None else "not reached",
            f"{each['ratio']:.1f}" if each["ratio"] else "",
        ]
        for concept, each in reach.items()
    ]
    overall = f"{geometric_mean(ratios):.2f}" if ratios else ""
    rows.append([f"geometric mean of {len(ratios)}", "", overall])
    worst = figures.worst("ours", "paper")
    return [
        f"Forward passes that ours needs to come to the paper's loss at {total:,}:\n",
        table(["concept", "forwards", "times fewer"], rows),
        f"Least ahead at {worst['forwards']:,} forwards: {worst['concept']}, by {worst['lead']:+.0f} points of gain.\n",
    ]


STYLES: dict[str, tuple[str, float, str]] = {
    "gradient": ("#000000", 1.6, "--"),
    "ours": ("#d62728", 2.6, "-"),
    "paper": ("#1f5fb4", 2.2, "-"),
    "naive": ("#6b6b6b", 2.0, "-"),
    "naive+PUTS": ("#7a9bd1", 1.2, "-"),
    "naive+SG": ("#a7a7a7", 1.2, "-"),
    "spsa": ("#2a9d8f", 1.2, "-"),
    "one-point": ("#8c6d31", 1.2, "-"),
    "snr": ("#9467bd", 1.2, "-"),
    "gf-ti": ("#e08a00", 1.8, "-"),
}
"""Colour, width and dashes; what has no style here gets one of matplotlib's."""


def draw_figure(figures: Figures, path: Path) -> None:
    """Mean gain over forwards, with a band of one standard deviation over seeds around the main methods."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(8.4, 4.4), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots()
    ends: list[tuple[float, str, Any]] = []
    lowest = 0.0
    for i, name in enumerate(figures.results):
        colour, width, dashes = STYLES.get(name, (f"C{i % 10}", 1.4, "-"))
        if name.startswith("ours@"):
            colour, width, dashes = STYLES["ours"][0], 1.4, ":"
        marks = [mark for mark in figures.marks(name) if mark >= MARKS[0]]
        each = [figures.mean_gains(name, mark) for mark in marks]
        means = [statistics.fmean(values) for values in each]
        axes.plot(marks, means, color=colour, linewidth=width, linestyle=dashes, label=name, zorder=width)
        if width > 1.5 or name not in STYLES:
            low = [mean - spread(values) for mean, values in zip(means, each, strict=True)]
            high = [mean + spread(values) for mean, values in zip(means, each, strict=True)]
            axes.fill_between(marks, low, high, color=colour, alpha=0.15, linewidth=0, zorder=1)
        ends.append((means[-1], name, colour))
        lowest = min(lowest, *means)
    ticks = sorted({mark for name in figures.results for mark in figures.marks(name) if mark in MARKS})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:,}" for tick in ticks])
    axes.set_ylim(max(lowest - 5, -40), 108)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("forward passes of one candidate")
    axes.set_ylabel("gain, % of gradient textual inversion's")
    seeds = len(figures.mean_gains(next(iter(figures.results))))
    axes.set_title(f"Held-out gain, mean over {len(figures.names)} concepts, {seeds} seeds", fontsize=11)
    order = [name for _, name, _ in sorted(ends, reverse=True)]  # the legend stands as the lines end
    lines = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    axes.legend([lines[name] for name in order], order, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


# ---------------------------------------------------------------- the command line


def derived(figures: Figures) -> dict[str, Any]:
    """What the tables say of gains, for the file."""
    if "gradient" not in figures.results:
        return {}
    found: dict[str, Any] = {
        "gain": {
            name: {str(mark): figures.mean_gains(name, mark) for mark in figures.marks(name)}
            for name in figures.results
        },
        "gain_by_concept": {
            name: {concept: figures.gains(name, concept) for concept in figures.names} for name in figures.results
        },
        "order": figures.order(),
    }
    if {"ours", "paper"} <= figures.results.keys():
        found |= {"reach": figures.reach("ours", "paper"), "worst": figures.worst("ours", "paper")}
    return found


def known_results(path: Path | None, plan: Plan, chosen: dict[str, Method], images: int) -> dict[str, Any]:
    """What an earlier run of the same plan left in its file: start and those methods whose settings are the same.

    Raises:
        ValueError: the file is of another plan.
    """
    if not path or not path.is_file():
        return {"start": None, "methods": {}}
    found = read_object(path, 100_000_000)
    if found.get("plan") != _as_json({**asdict(plan), "images": images}):
        raise ValueError(f"{path} is of a run with other settings; give another --json FILE")
    kept = {
        name: result
        for name, result in found.get("methods", {}).items()
        if name not in chosen or result["settings"] == _as_json(chosen[name].settings)
    }
    return {"start": found.get("start"), "methods": kept}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def measure(plan: Plan, chosen: dict[str, Method], path: Path | None, images: int = IMAGES) -> Figures:
    """Run what is missing, saving after every method; the figures of all that is in the file."""
    known = known_results(path, plan, chosen, images)
    missing = {name: method for name, method in chosen.items() if name not in known["methods"]}
    forwards, total = cost(plan, missing, images)
    trainings = len(plan.concepts) * len(plan.seeds)
    print(f"{trainings} trainings for each of {len(missing)} methods, {plan.weights} weights, {plan.dtype} activations")
    print(
        f"{forwards:,} forward passes of training, {total:,.0f} with gradients' backward passes, held-out losses "
        f"and images; {total * 2.2e-3 / 60:.0f} min at 2.2 ms each\n",
        flush=True,
    )
    data: dict[str, Any] = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "torch": torch.__version__,
        "plan": {**asdict(plan), "images": images},
        **known,
    }
    if missing or data["start"] is None:
        bench = Bench(plan, Clock(total), images)
        data["start"] = data["start"] or bench.start()
        for name, method in missing.items():
            data["methods"][name] = result = bench.method(name, method)
            each = result["seconds"] / max(1, result["forwards"]) * 1e3
            print(f"{name}: {result['forwards']:,} forwards, {result['seconds']:.0f} s, {each:.2f} ms each", flush=True)
            if path:
                write_atomically(path, json.dumps({**data, "derived": derived(Figures(data))}, indent=1) + "\n")
    order = [*chosen, *data["methods"]]
    data["methods"] = dict(sorted(data["methods"].items(), key=lambda item: order.index(item[0])))
    return Figures(data)


def chosen_methods(parser: argparse.ArgumentParser, args: argparse.Namespace, plan: Plan) -> dict[str, Method]:
    """The methods that the arguments ask for; the gradient is always there, for the gains."""
    if args.ablation or args.tune:
        if args.methods:
            parser.error("--methods chooses rows of the table, not of --ablation or --tune")
        return ablations(plan) if args.ablation else tunings(plan)
    known = methods(plan)
    chosen = {"gradient": known["gradient"]}
    for name in args.methods.split(",") if args.methods else QUICK if args.quick else known:
        short, _, forwards = name.partition("@")
        if name in known:
            chosen[name] = known[name]
        elif short == "ours" and forwards.isdigit() and int(forwards) >= MARKS[0]:
            chosen[name] = our_method(plan, int(forwards))
        else:
            parser.error(f"--methods: {name!r} unknown; choose from {', '.join(known)}, ours@FORWARDS")
    return chosen


def plan_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Plan:
    """What the arguments ask for, with the defaults of the mode."""
    names, seeds, budget, first = tuple(concepts.names()), 5, BUDGET, 0
    if args.tune:
        names, seeds, first = TUNE_CONCEPTS, TUNE_SEEDS, TUNE_FIRST_SEED
    if args.quick:
        names, seeds, budget = QUICK_CONCEPTS, QUICK_SEEDS, QUICK_BUDGET
    if args.concepts:
        names = tuple(args.concepts.split(","))
    if unknown := set(names) - set(concepts.names()):
        parser.error(f"--concepts: {', '.join(unknown)} unknown; choose from {', '.join(concepts.names())}")
    seeds, budget = args.seeds or seeds, args.budget or budget
    if seeds < 1 or budget < MARKS[0]:
        parser.error(f"at least one seed and {MARKS[0]} forwards are needed")
    return Plan(names, tuple(range(first, first + seeds)), budget, args.weights, args.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", metavar="A,B", help="rows of the table (default all); gradient is always run")
    parser.add_argument("--concepts", metavar="A,B", help="bundled concepts (default all)")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1 (default 5)")
    parser.add_argument("--budget", type=int, metavar="N", help=f"forward passes of a training (default {BUDGET:,})")
    parser.add_argument("--weights", default="int8", choices=("int8", "int4", "float8", "none"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, and go on from it")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves as a PNG")
    parser.add_argument("--quick", action="store_true", help="2 concepts, 2 seeds, 4 methods, 600 forwards: minutes")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--ablation", action="store_true", help="ours without one part each")
    mode.add_argument("--tune", action="store_true", help="the baselines' learning rates, on seeds of their own")
    args = parser.parse_args()
    plan = plan_of(parser, args)
    chosen = chosen_methods(parser, args, plan)
    if any(name.startswith("gf-ti") for name in chosen) and importlib.util.find_spec("cma") is None:
        parser.error("gf-ti needs the package cma: pip install -e .[bench], or choose --methods without it")
    try:
        figures = measure(plan, chosen, args.json, 0 if args.tune else IMAGES)
    except ValueError as error:
        parser.error(str(error))
    print("\n" + tables(figures), end="")
    if args.figure:
        draw_figure(figures, args.figure)


if __name__ == "__main__":
    main()
