"""How well tokens are learned: our search, the paper's, and others' at equal forward passes.

``--bench tiny`` is the embedded model, ``--bench words`` the one over a real vocabulary (``worlds.py``). Every method
learns every bundled concept with every seed, from the same images, captions and noise. It is measured by the held-out
loss at high t (``train/heldout.py``) at marks counted in forward passes of one candidate, by how far from the words'
mean the final token lies, and by what it draws (18 images of 20 DDIM steps). **Gain** is the share of gradient textual
inversion's held-out gain, in percent: 0 is the initializer's word, 100 the gradient's final token.

    gradient    textual inversion with gradients: Adam, 8 draws a step, cosine; backward passes are not counted
    naive       random gradient estimation n = 2, uniform timesteps, ZOAdam with a constant learning rate
    naive+PUTS  with the paper's timesteps (eq. 9)
    naive+SG    with Subspace Gradient (eq. 4-8)
    paper       both: ZOODiP as published
    spsa, one-point   the paper with the estimators of S2 and S3
    snr         the paper with SNR-based timesteps (table 5)
    naive, tuned and paper, tuned   with the learning rate that is best for them (``--tune``)
    gf-ti       Gradient-Free Textual Inversion: CMA-ES in a random subspace
    ours        what the product does
    two-stage   what it does where weights are learned after the token (``--preset two-stage``), at as many forwards
    gradient, weights too   the gradient on the token and those weights together
    two-stage, KIND and gradient, KIND too   the same with other numbers in the weights (``kinds.py``)

NAME@N is the same in runs of N forward passes, for instance ``--methods "ours@15000,paper, tuned@15000"``.

The paper's settings for 768 dimensions are scaled to the model's: tau by their number, and the learning rate to the
size of its words; one rate serves all methods of the paper's kind but the tuned ones. ``--tune`` shows what other rates
give, on seeds that the table does not use, from which the tuned rows have theirs. The six subjects are the default: of
a style, tokens draw other scores, which have no mean with theirs (``--concepts blueprint``).

    pip install -e .[bench]
    python benchmarks/fidelity.py --json FILE --figure FILE
    python benchmarks/fidelity.py --quick

The JSON file is written after every method; the same command resumes it with what is missing, one with more seeds adds
them, and a method whose settings have changed is run again. ``--ablation`` and ``--tune`` make tables of their own,
which want a FILE of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gains import MARKS, Figures, curves_in, curves_of, derived, draw_figure, tables
from benchmarks.kinds import CORES, HEADS, OF_RANK, OUTPUTS, kind_of
from benchmarks.stacked import BACKWARD, Lane, Stack, Subject, descend, heldout, run
from benchmarks.worlds import WORLDS, World
from zoodip_core import SubspaceGradient, TrainConfig, ZerothOrderSearch, ZOAdam, generate
from zoodip_core.base import rng
from zoodip_core.base.files import read_object, write_atomically
from zoodip_core.cli.demo import demo_config
from zoodip_core.model.embedding import Embedding
from zoodip_core.model.generation import with_lora
from zoodip_core.model.lora import Lora
from zoodip_core.model.nearest import words_middle
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_table import table_of
from zoodip_core.search import guard, preconditioner
from zoodip_core.search.estimators import ESTIMATORS
from zoodip_core.search.preconditioner import Spread
from zoodip_core.tiny import concepts
from zoodip_core.tiny.judge import Judge, to_tensor
from zoodip_core.tiny.scores import JUDGE, score
from zoodip_core.train import rounding
from zoodip_core.train.config import CHECK_DRAWS
from zoodip_core.train.directions import shaped
from zoodip_core.train.draws import Draw
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.presets import PAPER_PRESETS, TWO_STAGE, preset_for
from zoodip_core.train.rounding import LEAST_FORWARDS, WEIGHTS_FORWARDS, adapted
from zoodip_core.train.settings import NORMAL
from zoodip_core.train.timesteps import PUTS, SNRTimesteps, TimestepSampler, UniformTimesteps

BUDGET = 4_500
FINE_STEP, FINE_END = 150, 3_000
"""Ours is measured on this grid as well, for the forwards it needs to come to a loss."""
GRADIENT = {"batch": 8, "forwards": 2_400}
GRADIENT_WEIGHTS_LR = 1e-2
OTHER_KINDS: dict[str, dict[str, Any]] = {f"{OF_RANK}2": {"lora_rank": 2}, HEADS: {}, OUTPUTS: {}}
"""Of numbers in the weights, and the settings that go with them."""
GF_TI_SIGMA = 1.0
"""Its sigma and alpha are 1."""
IMAGES, DDIM_STEPS = 12, 20
ALSO_EYES, ALSO_HEADS = {1: "with one eye", 2: "with two eyes", 3: "with three eyes"}, ("horns", "antennae")
"""What half as many prompts ask for besides the place: what a token leaves to the other words."""
PLACES = ("snow", "meadow", "night", "beach", "candy", "ocean")
FAR = 100.0
"""The error of a colour or tone, in RGB, that counts as not learned at all."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "random gradient estimation": {"estimator": "rge", "n": 4},
    "the same, twice mu, no radius": {"estimator": "rge", "n": 4, "mu": 2.6, "radius": 0.0},
    "no radius": {"radius": 0.0},
    "radius 12": {"radius": 12.0},
    "vocabulary directions": {"directions": "vocabulary"},
    "encoder directions": {"directions": "encoder"},
    "normal directions": {"directions": "normal", "mu": 1.3, "lr": 1.0},
    "ZOAdam": {"optimizer": "zoadam"},
    "mu stays": {"mu_end": 1.0},
    "a tenth of mu": {"mu": 0.13},
    "twice mu": {"mu": 2.6},
    "learning rate falls": {"lr_schedule": "cosine"},
    "without averaging": {"averaging": 0.0},
    "learning rate falls, without averaging": {"lr_schedule": "cosine", "averaging": 0.0},
    "n = 3": {"n": 3},
    "n = 8": {"n": 8},
    "uniform timesteps": {"timesteps": "uniform"},
    "with Subspace Gradient": {"subspace_gradient": True, "tau": 21},
    "without checks": {"checks": 0},
    "patience 6": {"patience": 6},
}
"""What ``--ablation`` takes from ours: settings of ``TrainConfig``, one row each. Normal directions know no vocabulary:
their mu and learning rate are multiplied by the standard deviation of the model's words in one number."""
ABLATION_SEEDS, ABLATION_BUDGET = 3, 2_000

TUNE_SIGMA = (0.3, 1.0, 3.0)
TUNED = ("naive", "paper")
TUNE_CONCEPTS, TUNE_SEEDS, TUNE_FIRST_SEED = ("boo", "pip", "zig"), 2, 100
SUBJECTS: tuple[str, ...] = ("boo", "kiwi", "otto", "pip", "valentine", "zig")
QUICK = ("gradient", "naive", "paper", "ours")
QUICK_CONCEPTS, QUICK_SEEDS, QUICK_BUDGET = ("boo", "pip"), 2, 600
PARTS = 2
"""Processes that trainings are dealt to. Which share a batch decides the last bits: it is the same on any machine."""
CONSTANTS = {
    **{f"preconditioner.{name}": getattr(preconditioner, name) for name in ("RANK", "FLOOR")},
    **{f"guard.{name}": getattr(guard, name) for name in ("LOST", "PROGRESS", "NOTICEABLE")},
    **{f"rounding.{name}": getattr(rounding, name) for name in ("SIGNAL", "DISTANCE")},
}
"""What ours depends on besides its settings."""


@dataclass(frozen=True)
class Plan:
    """What is run: it has to be the same for a run to be resumed."""

    concepts: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: int
    weights: str = "int8"
    dtype: str = "float32"
    num_vectors: int = 1
    bench: str = "tiny"

    @property
    def world(self) -> World:
        return WORLDS[self.bench]

    @property
    def settings(self) -> dict[str, Any]:
        """Those of a run of the product."""
        return {"weights": self.weights, "dtype": self.dtype, "num_vectors": self.num_vectors}

    @property
    def coarse(self) -> dict[str, Any]:
        """What the presets change for int4 weights or bfloat16 activations (supplement S3.2)."""
        preset = preset_for("tiny", self.weights, self.dtype, "paper")
        return {key: value for key, value in preset.items() if PAPER_PRESETS["tiny"].get(key) != value}


# ---------------------------------------------------------------- the methods


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        settings: all that its figures depend on; a result of other settings is not kept.
        budget: forward passes of one candidate.
        lane: a training of a subject with a seed; None for gradients, which :func:`descend` trains.
        fine: whether it is measured on the fine grid.
        kind: of the numbers in weights, where some are learned.
    """

    settings: dict[str, Any]
    budget: int
    lane: Callable[[Subject, int], Lane] | None
    fine: bool = False
    kind: str = CORES

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
    tau: int = WORLDS["tiny"].tau
    nu: float = 1e-3
    timesteps: str = "puts"
    t_lower: int = 500
    t_upper: int = 900
    lr: float = WORLDS["tiny"].lr

    def lane(self, subject: Subject, seed: int) -> Lane:
        """A training with it."""
        estimator = ESTIMATORS[self.estimator](n=self.n, mu=self.mu)
        subspace = SubspaceGradient(self.tau, self.nu) if self.tau else None
        search = ZerothOrderSearch(subject.theta0, estimator, subspace, ZOAdam(self.lr), seed)
        return Lane(subject, subject.training(self._timesteps(subject.model)), search, seed)

    def _timesteps(self, model: StableDiffusion) -> TimestepSampler:
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
    def candidate(self) -> torch.Tensor:
        """The distribution's mean: under noise better than the best candidate seen."""
        return self._token(np.asarray(self._cma.mean))[None]

    def ask(self, mu_scale: float = 1.0) -> torch.Tensor:
        if not self._asked:
            self._asked = self._cma.ask()
        return torch.stack([self._token(z) for z in self._asked])

    def tell(
        self, losses: torch.Tensor, lr_scale: float = 1.0, *, check_loss: float | None = None, mu_scale: float = 1.0
    ) -> None:
        self._cma.tell(self._asked, losses.tolist())
        self._asked = []


def gradient_free(world: World, budget: int, sigma: float = GF_TI_SIGMA) -> Method:
    """GF-TI: one draw a generation, PUTS's timesteps, CMA-ES's own population."""
    chosen: dict[str, Any] = {"dims": world.gf_dims, "sigma": sigma}

    def lane(subject: Subject, seed: int) -> Lane:
        (encoder,) = subject.model.text_encoders
        table = table_of(encoder)
        spread = float(table.rows(range(len(subject.model.tokenizers[0]))).std())
        return Lane(subject, subject.training(PUTS()), GradientFree(subject.theta0, spread, seed, **chosen), seed)

    return Method(chosen, budget, lane)


def ours(concept: concepts.Concept, plan: Plan, budget: int, seed: int, **changes: Any) -> TrainConfig:
    """The product's own settings for a run of so many forwards; ``changes`` are an ablation's."""
    if changes.get("directions") == NORMAL:
        changes = {**changes, "mu": changes["mu"] * plan.world.word_size, "lr": changes["lr"] * plan.world.word_size}
    config = demo_config(concept, seed=seed, **plan.settings, **changes)
    steps = budget // config.make_estimator().num_candidates
    while steps > 1 and forwards_of(replace(config, steps=steps)) > budget:
        steps -= 1
    return replace(config, steps=steps)


def forwards_of(config: TrainConfig) -> int:
    """All forward passes of one candidate that a run takes; those that adapt mu may be more."""
    looks = sum(map(config.checked, range(config.steps)))
    adapting = LEAST_FORWARDS + WEIGHTS_FORWARDS * bool(config.lora_rank) if config.adapt_mu else 0
    return config.steps * config.make_estimator().num_candidates + looks * CHECK_DRAWS + adapting


def our_lane(config: TrainConfig, subject: Subject, kind: str = CORES) -> Lane:
    """A training as the product would run it, but for the kind of its numbers in weights.

    What mu's rounding is measured for here is the token's alone.
    """
    model = subject.model
    objective = subject.training(config.make_timesteps(model.scheduler.alphas_cumprod))
    config, spread = _shaped(config, subject)
    spent = 0
    if config.adapt_mu:
        counted = Counted(objective)
        config, _ = adapted(config, counted, len(objective.posteriors), subject.theta0, spread)
        spent = counted.forwards + WEIGHTS_FORWARDS * bool(config.lora_rank)

    def held(step: int) -> list[Draw]:
        return config.check_draws(len(objective.posteriors)) if config.checked(step, search.began) else []

    numbers = kind_of(kind, model.unet).numbers if config.lora_rank else 0
    search = config.make_search(subject.theta0, spread, numbers)
    return Lane(
        subject,
        objective,
        search,
        config.seed,
        lambda step: config.lr_scale(step, search.began),
        lambda step: config.mu_scale(step, search.began),
        held,
        spent=spent,
    )


_shapes: dict[tuple[Subject, str], tuple[str, Spread]] = {}
"""Of a subject's directions, which no seed changes."""


def _shaped(config: TrainConfig, subject: Subject) -> tuple[TrainConfig, Spread | None]:
    """The settings and the shape of the directions, as a run of the product has them."""
    if config.directions == NORMAL:
        return config, None
    known = subject, config.directions
    if known not in _shapes:
        prompt = subject.training(PUTS()).captions[0][0]
        chosen, spread, _ = shaped(config, subject.model, prompt, subject.theta0)
        _shapes[known] = chosen.directions, spread
    directions, spread = _shapes[known]
    return replace(config, directions=directions), spread


class Counted:
    """An objective whose forward passes of one candidate are counted."""

    def __init__(self, objective: DiffusionObjective) -> None:
        self.objective, self.forwards = objective, 0

    def draw(self, seed: int, step: int) -> Draw:
        return self.objective.draw(seed, step)

    def losses(self, candidates: torch.Tensor, draw: Draw, at: torch.Tensor | None = None) -> torch.Tensor:
        self.forwards += len(candidates)
        return self.objective.losses(candidates, draw, at)


def our_method(plan: Plan, budget: int, fine: bool = False, kind: str = CORES, **changes: Any) -> Method:
    """Ours, or an ablation of it."""
    shown = ours(concepts.load(plan.concepts[0]), plan, budget, 0, **changes).to_dict()
    for own in ("images", "captions", "token", "initializer", "seed"):
        del shown[own]
    return Method(
        {**shown, **CONSTANTS, **_kind_in(kind)},
        budget,
        lambda subject, seed: our_lane(ours(subject.concept, plan, budget, seed, **changes), subject, kind),
        fine,
        kind,
    )


def _kind_in(kind: str) -> dict[str, str]:
    """Of a method's settings."""
    return {} if kind == CORES else {"kind": kind}


def methods(plan: Plan) -> dict[str, Method]:
    """All methods of the table, by name."""
    world = plan.world
    paper = Recipe(mu=plan.coarse.get("mu", Recipe.mu), lr=world.lr, tau=world.tau)
    first, *others = world.tuned_lrs
    recipes = {
        "naive": replace(paper, tau=0, timesteps="uniform"),
        "naive+PUTS": replace(paper, tau=0),
        "naive+SG": replace(paper, timesteps="uniform"),
        "paper": paper,
        "spsa": replace(paper, estimator="spsa"),
        "one-point": replace(paper, estimator="one-point"),
        "snr": replace(paper, timesteps="snr"),
        "naive, tuned": replace(paper, tau=0, timesteps="uniform", lr=first),
        "paper, tuned": replace(paper, lr=first),
        **{f"paper, lr {lr:g}": replace(paper, lr=lr) for lr in others},
    }
    return {
        "gradient": gradient(world),
        **{name: recipe.method(plan.budget) for name, recipe in recipes.items()},
        "gf-ti": gradient_free(world, plan.budget),
        "ours": our_method(plan, plan.budget, fine=True),
        f"ours@{plan.budget // 3}": our_method(plan, plan.budget // 3),
        "two-stage": our_method(plan, plan.budget, **TWO_STAGE),
        "gradient, weights too": gradient(world, weights_lr=GRADIENT_WEIGHTS_LR),
        **{
            f"two-stage, {kind}": our_method(plan, plan.budget, kind=kind, **{**TWO_STAGE, **more})
            for kind, more in OTHER_KINDS.items()
        },
        **{f"gradient, {kind} too": gradient(world, weights_lr=GRADIENT_WEIGHTS_LR, kind=kind) for kind in OTHER_KINDS},
    }


def gradient(
    world: World, lr: float = 0.0, timesteps: str = "puts", weights_lr: float = 0.0, kind: str = CORES
) -> Method:
    """Textual inversion with gradients; with numbers of a kind in the weights as well, if they have a rate."""
    settings = {"lr": lr or world.gradient_lr, "timesteps": timesteps, **GRADIENT}
    settings |= {"weights_lr": weights_lr, **_kind_in(kind)} if weights_lr else {}
    return Method(settings, int(GRADIENT["forwards"]), None, kind=kind)


def ablations(plan: Plan) -> dict[str, Method]:
    """The gradient for a ceiling, ours, and ours without one part each."""
    rows = {label: our_method(plan, plan.budget, **changes) for label, changes in ABLATIONS.items()}
    return {"gradient": methods(plan)["gradient"], "ours": our_method(plan, plan.budget), **rows}


def tunings(plan: Plan) -> dict[str, Method]:
    """The gradient for a ceiling, and the baselines at several learning rates or step sizes."""
    whole = methods(plan)
    rows = {"gradient": whole["gradient"]}
    for lr in (plan.world.gradient_lr / 2, plan.world.gradient_lr * 2):
        rows[f"gradient, lr {lr:g}"] = gradient(plan.world, lr)
    for name, lr in itertools.product(TUNED, plan.world.tune_lrs):
        rows[f"{name}, lr {lr:g}"] = replace(Recipe(**whole[name].settings), lr=lr).method(plan.budget)
    for sigma in TUNE_SIGMA:
        rows[f"gf-ti, sigma {sigma:g}"] = gradient_free(plan.world, plan.budget, sigma)
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


def draw(
    subject: Subject, judge: Judge, theta: torch.Tensor, count: int = IMAGES, lora: Lora | None = None
) -> dict[str, float]:
    """Scores of a token ``[1, dim]``: :func:`alignment`, and what it leaves to the prompt's other words.

    ``text``, text alignment, is the judge's mean probability of the place (of a style: the shape) that the prompt
    names; ``also`` that of eyes or a head of other kind than the subject's, where the prompt asks for those as well.
    """
    texts, name, wanted = prompts_of(subject, judge, count)
    other = [] if subject.concept.tone else also_of(subject, count // 2)
    token = subject.concept.token
    prompts = [*texts, *(text for text, *_ in other)]
    with with_lora(subject.model, lora):
        made = generate(
            subject.model,
            [text.format(token) for text in prompts],
            list(range(len(prompts))),
            embedding=Embedding(token, (theta,)),
            num_inference_steps=DDIM_STEPS,
        )
    read = judge.read(made)
    seen = [float(read[name][i, judge.classes[name].index(value)]) for i, value in enumerate(wanted)]
    scores = alignment(subject, judge, made[: len(texts)])
    if other:
        asked = []
        for i, (_, place, kind, value) in enumerate(other, len(texts)):
            seen.append(float(read["place"][i, judge.classes["place"].index(place)]))
            asked.append(float(read[kind][i, judge.classes[kind].index(value)]))
        scores["also"] = statistics.fmean(asked)
    return {"text": statistics.fmean(seen), **scores}


def also_of(subject: Subject, count: int) -> list[tuple[str, str, str, str]]:
    """Texts that ask for a place and one thing more that the subject does not have: text, place, attribute, value."""
    own = subject.concept.attributes
    eyes = [("eyes", str(number), words) for number, words in ALSO_EYES.items()]
    kinds = [*eyes, *(("head", head, f"with {head}") for head in ALSO_HEADS)]
    usable = [(kind, value, words) for kind, value, words in kinds if str(own[kind]) != value]
    found = []
    for i in range(count):
        place, (kind, value, words) = PLACES[i % len(PLACES)], usable[i % len(usable)]
        found.append((f"a {{}} {words} in the {place}", place, kind, value))
    return found


def pictures_of(images: int) -> int:
    """How many pictures a token draws, where so many ask for a place alone."""
    return images + images // 2


class Words:
    """Where the vocabulary's words lie, to say how far out a token is."""

    def __init__(self, model: StableDiffusion) -> None:
        (encoder,), (tokenizer,) = model.text_encoders, model.tokenizers
        self.mean, self.rms = words_middle(tokenizer, encoder)

    def distance(self, theta: torch.Tensor) -> float:
        """Of a token ``[num_vectors, dim]`` from the words' mean, in the words' own root mean square distance."""
        return float((theta.double() - self.mean).norm(dim=1).mean()) / self.rms


# ---------------------------------------------------------------- running


class Clock:
    """Says now and then how far the work of all processes is, by its cost in forwards."""

    def __init__(self, planned: float, every: float = 60.0) -> None:
        self.planned, self.every, self.label = planned, every, ""
        self._began = time.monotonic()
        self._done, self._said = multiprocessing.Value("d", 0.0), multiprocessing.Value("d", self._began)

    def add(self, cost: float) -> None:
        """Note finished work."""
        now = time.monotonic()
        with self._done.get_lock():
            self._done.value += cost
            done = self._done.value
            silent = now - self._said.value < self.every
            if not silent:
                self._said.value = now
        if silent:
            return
        each = (now - self._began) / done
        left, share = max(0.0, self.planned - done) * each / 60, min(1.0, done / self.planned)
        print(f"  {self.label}: {share:.0%} done, {each * 1e3:.2f} ms a forward, {left:.0f} min left", flush=True)


class Bench:
    """The model, its subjects and the judge; runs one method after another.

    Its trainings are dealt to processes of one thread each, which get more done than one process of many threads. They
    are forked, which Windows cannot.
    """

    def __init__(self, plan: Plan, clock: Clock, images: int = IMAGES, parts: int = PARTS) -> None:
        self.plan, self.clock, self.images, self.parts = plan, clock, images, parts
        self.model = plan.world.load(plan.weights, plan.dtype)
        self.words = Words(self.model)
        self.stack = Stack(self.model, on_cost=clock.add)
        self.judge = Judge.load(JUDGE)
        self.subjects = [Subject(self.model, concepts.load(name), plan.num_vectors) for name in plan.concepts]
        self.keys = [(subject, seed) for subject in self.subjects for seed in plan.seeds]

    def start(self) -> dict[str, Any]:
        """For each concept what the initializer's word has, and the reference pictures themselves."""
        losses = heldout(self.stack.losses, [(subject, subject.theta0) for subject in self.subjects])
        return {
            subject.concept.name: {
                "loss": loss,
                **({"word": self._measured(subject, subject.theta0)} if self.images else {}),
                "pictures": alignment(subject, self.judge, subject.concept.pictures()),
            }
            for subject, loss in zip(self.subjects, losses, strict=True)
        }

    def method(self, name: str, method: Method, seeds: Sequence[int] = ()) -> dict[str, Any]:
        """Train every concept with every seed, or with some of them, and measure."""
        self.clock.label, began = name, time.monotonic()
        places = [place for place, (_, seed) in enumerate(self.keys) if seed in (seeds or self.plan.seeds)]
        parts = [list(places[i :: self.parts]) for i in range(min(self.parts, len(places)))]
        with ProcessPoolExecutor(len(parts), multiprocessing.get_context("fork"), _take, (self, method)) as pool:
            found = list(pool.map(_runs, parts))
        runs = dict(pair for part, (some, _) in zip(parts, found, strict=True) for pair in zip(part, some, strict=True))
        return {
            "settings": method.settings,
            "forwards": sum(forwards for _, forwards in found),
            "seconds": round(time.monotonic() - began, 1),
            "runs": [runs[place] for place in places],
        }

    def runs(self, method: Method, places: Sequence[int]) -> tuple[list[dict[str, Any]], int]:
        """The figures of some of the trainings, by their places in ``keys``, and the forward passes they took."""
        self.stack.kind = kind_of(method.kind, self.model.unet)
        keys, before = [self.keys[place] for place in places], self.stack.forwards
        tokens: dict[tuple[int, int], torch.Tensor] = {}

        def on_mark(i: int, mark: int, theta: torch.Tensor) -> None:
            tokens[i, mark] = theta

        if method.lane is None:
            timesteps = PUTS() if method.settings["timesteps"] == "puts" else UniformTimesteps()
            trainings = [(subject, subject.training(timesteps), seed) for subject, seed in keys]
            lr, batch = float(method.settings["lr"]), int(method.settings["batch"])
            more = float(method.settings.get("weights_lr", 0))
            descend(self.stack, trainings, method.budget, method.marks, on_mark, lr, batch, more)
        else:
            lanes = [method.lane(subject, seed) for subject, seed in keys]
            run(self.stack.losses, lanes, method.budget, method.marks, on_mark)
        forwards = self.stack.forwards - before
        losses = heldout(self.stack.losses, [(keys[i][0], theta) for (i, _), theta in tokens.items()])
        curves: list[dict[str, float]] = [{} for _ in keys]
        for (i, mark), loss in zip(tokens, losses, strict=True):
            curves[i][str(mark)] = loss
        return [
            {
                "concept": subject.concept.name,
                "seed": seed,
                "losses": curves[i],
                "scores": self._measured(subject, tokens[i, method.budget]),
                "token": tokens[i, method.budget].flatten().tolist(),
            }
            for i, (subject, seed) in enumerate(keys)
        ], forwards

    def _measured(self, subject: Subject, learned: torch.Tensor) -> dict[str, float]:
        theta, lora = self._parted(learned)
        figures = {"distance": self.words.distance(theta)}
        if lora:
            figures["class word"] = class_word_change(self.stack, self.subjects, subject, learned[-self._numbers :])
        if self.images:
            figures |= draw(subject, self.judge, theta, self.images, lora)
            self.clock.add(2 * pictures_of(self.images) * DDIM_STEPS)  # with and without the text, for guidance
        return figures

    @property
    def _numbers(self) -> int:
        return self.stack.kind.numbers if self.stack.kind else 0

    def _parted(self, learned: torch.Tensor) -> tuple[torch.Tensor, Lora | None]:
        """A token ``[num_vectors, dim]``, and the weights that were learned with it."""
        if learned.ndim == 2 or self.stack.kind is None:
            return learned, None
        theta = learned[: -self._numbers].view(-1, *self.model.info.dims)
        return theta, self.stack.kind.lora(learned[-self._numbers :])


def class_word_change(stack: Stack, subjects: Sequence[Subject], subject: Subject, weights: torch.Tensor) -> float:
    """By which share numbers of the stack's kind raise the loss of a subject's word on the others' pictures."""
    others = [each for each in subjects if each.concept.initializer == subject.concept.initializer]
    others = [each for each in others if each is not subject]
    plain = heldout(stack.losses, [(each, each.theta0) for each in others])
    flat = [(each, torch.cat([each.theta0.flatten(), weights])) for each in others]
    changes = [after / before - 1 for before, after in zip(plain, heldout(stack.losses, flat), strict=True)]
    return statistics.fmean(changes) if changes else 0.0


_work: tuple[Bench, Method]
"""What a process was forked for."""


def _take(bench: Bench, method: Method) -> None:
    global _work
    torch.set_num_threads(1)
    _work = bench, method


def _runs(places: Sequence[int]) -> tuple[list[dict[str, Any]], int]:
    bench, method = _work
    return bench.runs(method, places)


def cost(plan: Plan, chosen: dict[str, Method], images: int = IMAGES) -> tuple[int, float]:
    """Planned forward passes of all trainings, and the cost of everything in forwards of one candidate."""
    measured = 8 * 10  # held-out pictures times draws of each
    forwards, total = 0, 0.0
    for method in chosen.values():
        trained = len(plan.concepts) * len(plan.seeds) * method.budget
        forwards += trained
        total += trained * (1 if method.lane else 1 + BACKWARD)
        drawn = 2 * pictures_of(images) * DDIM_STEPS
        total += len(plan.concepts) * len(plan.seeds) * (len(method.marks) * measured + drawn)
    return forwards, total


# ---------------------------------------------------------------- the command line


def known_results(path: Path | None, plan: Plan, chosen: dict[str, Method], images: int) -> dict[str, Any]:
    """What earlier runs of the same plan left in the file: start and those methods whose settings are the same.

    Their seeds may be others: those that are missing are added to them.

    Raises:
        ValueError: the file is of another plan.
    """
    if not path or not path.is_file():
        return {"start": None, "methods": {}, "seeds": []}
    found = read_object(path, 100_000_000)
    known, wanted = dict(found.get("plan", {})), _as_json({**asdict(plan), "images": images})
    seeds = known.pop("seeds", [])
    del wanted["seeds"]
    if known != wanted:
        raise ValueError(f"{path} is of a run with other settings; give another --json FILE")
    current = {**methods(plan), **chosen}
    kept = {
        name: result
        for name, result in found.get("methods", {}).items()
        if name not in current or result["settings"] == _as_json(current[name].settings)
    }
    return {"start": found.get("start"), "methods": kept, "seeds": seeds}


def with_more(known: dict[str, Any] | None, more: dict[str, Any], concepts: Sequence[str]) -> dict[str, Any]:
    """A method's results with those of more seeds."""
    if known is None:
        return more
    runs = sorted((*known["runs"], *more["runs"]), key=lambda run: (concepts.index(run["concept"]), run["seed"]))
    totals = {key: known[key] + more[key] for key in ("forwards", "seconds")}
    return {**more, **totals, "runs": runs}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def measure(plan: Plan, chosen: dict[str, Method], path: Path | None, images: int = IMAGES) -> Figures:
    """Run what is missing, saving after every method; the figures of all that is in the file."""
    known = known_results(path, plan, chosen, images)
    done = {name: {run["seed"] for run in result["runs"]} for name, result in known["methods"].items()}
    missing = {name: tuple(seed for seed in plan.seeds if seed not in done.get(name, ())) for name in chosen}
    missing = {name: seeds for name, seeds in missing.items() if seeds}
    costs = [cost(replace(plan, seeds=seeds), {name: chosen[name]}, images) for name, seeds in missing.items()]
    forwards, total = sum(each for each, _ in costs), sum(each for _, each in costs)
    trainings = len(plan.concepts) * sum(map(len, missing.values()))
    print(f"{trainings} trainings by {len(missing)} methods, {plan.weights} weights, {plan.dtype} activations")
    print(
        f"{forwards:,} forward passes of training, {total:,.0f} with gradients' backward passes, held-out losses "
        f"and images; {total * plan.world.seconds / 60:.0f} min at {1e3 * plan.world.seconds:g} ms each\n",
        flush=True,
    )
    data: dict[str, Any] = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "torch": torch.__version__,
        "model": plan.world.digest,
        "plan": {**asdict(plan), "seeds": sorted({*known["seeds"], *plan.seeds}), "images": images},
        "start": known["start"],
        "methods": known["methods"],
    }
    if missing or data["start"] is None:
        bench = Bench(plan, Clock(total), images)
        data["start"] = data["start"] or bench.start()
        for name, seeds in missing.items():
            result = bench.method(name, chosen[name], seeds)
            data["methods"][name] = with_more(data["methods"].get(name), result, plan.concepts)
            each = result["seconds"] / max(1, result["forwards"]) * 1e3
            print(f"{name}: {result['forwards']:,} forwards, {result['seconds']:.0f} s, {each:.2f} ms each", flush=True)
            if path:
                write_atomically(path, json.dumps({**data, "derived": derived(Figures(data))}, indent=1) + "\n")
    order = [*chosen, *data["methods"]]
    data["methods"] = dict(sorted(data["methods"].items(), key=lambda item: order.index(item[0])))
    return Figures(data)


def chosen_methods(parser: argparse.ArgumentParser, args: argparse.Namespace, plan: Plan) -> dict[str, Method]:
    """The methods that the arguments ask for; the gradient is always there, for the gains."""
    known = ablations(plan) if args.ablation else tunings(plan) if args.tune else methods(plan)
    if not args.methods:
        return {name: known[name] for name in QUICK} if args.quick else known
    chosen = {"gradient": known["gradient"]}
    for name in names_in(args.methods, known):
        short, _, forwards = name.partition("@")
        if name in known:
            chosen[name] = known[name]
        elif short in methods(plan) and forwards.isdigit() and int(forwards) >= MARKS[0]:
            chosen[name] = methods(replace(plan, budget=int(forwards)))[short]
        else:
            parser.error(f"--methods: {name!r} unknown; choose from {'; '.join(known)}; or NAME@FORWARDS")
    return chosen


def names_in(text: str, known: Container[str]) -> list[str]:
    """The names that commas stand between, of which some have a comma themselves."""
    found: list[str] = []
    for part in text.split(","):
        if found and f"{found[-1]},{part}" in known:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def plan_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Plan:
    """What the arguments ask for, with the defaults of the mode."""
    names, seeds, budget, first = SUBJECTS, 5, BUDGET, 0
    if args.ablation:
        seeds, budget = ABLATION_SEEDS, ABLATION_BUDGET
    if args.tune:
        names, seeds, first = TUNE_CONCEPTS, TUNE_SEEDS, TUNE_FIRST_SEED
    if args.quick:
        names, seeds, budget = QUICK_CONCEPTS, QUICK_SEEDS, QUICK_BUDGET
    if args.concepts:
        names = tuple(args.concepts.split(","))
    if unknown := set(names) - set(concepts.names()):
        parser.error(f"--concepts: {', '.join(unknown)} unknown; choose from {', '.join(concepts.names())}")
    seeds, budget = args.seeds or seeds, args.budget or budget
    if min(seeds, args.num_vectors) < 1 or budget < MARKS[0]:
        parser.error(f"at least one seed, one vector and {MARKS[0]} forwards are needed")
    chosen = args.weights, args.dtype, args.num_vectors, args.bench
    return Plan(names, tuple(range(first, first + seeds)), budget, *chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="tiny", choices=tuple(WORLDS), help="the model (default tiny)")
    parser.add_argument("--methods", metavar="A,B", help="rows (default all); gradient is always run")
    parser.add_argument("--concepts", metavar="A,B", help="bundled concepts (default the six subjects)")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1 (default 5)")
    parser.add_argument("--budget", type=int, metavar="N", help=f"forward passes of a training (default {BUDGET:,})")
    parser.add_argument("--weights", default="int8", choices=("int8", "int4", "float8", "none"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--num-vectors", type=int, default=1, metavar="N", help="vectors of the token (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, and resume from it")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves as a PNG")
    parser.add_argument("--quick", action="store_true", help="2 concepts, 2 seeds, 4 methods, 600 forwards: minutes")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--ablation", action="store_true", help="ours without one part each")
    mode.add_argument("--tune", action="store_true", help="the baselines' learning rates, on seeds of their own")
    mode.add_argument("--redraw", type=Path, metavar="RESULTS", help="draw --figure from a file's tables, and end")
    args = parser.parse_args()
    if args.redraw:
        if not args.figure:
            parser.error("--redraw needs --figure")
        draw_figure(curves_in(args.redraw.read_text()), args.figure)
        return
    plan = plan_of(parser, args)
    chosen = chosen_methods(parser, args, plan)
    if any(name.startswith("gf-ti") for name in chosen) and importlib.util.find_spec("cma") is None:
        parser.error("gf-ti needs the package cma: pip install -e .[bench], or choose --methods without it")
    try:
        figures = measure(plan, chosen, args.json, 0 if args.tune or args.ablation else IMAGES)
    except ValueError as error:
        parser.error(str(error))
    print("\n" + tables(figures), end="")
    if args.figure:
        seeds = len(figures.mean_gains(next(iter(figures.results))))
        title = f"Held-out gain, mean over {len(figures.names)} concepts, {seeds} seeds"
        draw_figure({title: curves_of(figures)}, args.figure)


if __name__ == "__main__":
    main()
