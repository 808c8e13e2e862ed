"""What a target prompt does (``zoodip_core/train/alignment.py``): the prompt obeyed, and what it costs of the subject.

python benchmarks/aligned.py --bench tiny|words [--rows 0,0.3,1,3] [--asked sepia,horns] [--json FILE]

Each subject is learned for "a SUBJECT in STYLE style", or "a SUBJECT with horns", from its pictures and the template's
captions, which say nothing of what else is in them: the case in which a token takes over what the prompt asks for. All
runs take as many forward passes. Then ten pictures of that prompt are drawn. Their **error** is, of a style, how far
their colours lie from it, in RGB, and of an attribute, what the judge's probability of it lacks, in percent;
**identity** is the judge's mean probability of the subject's shape, pattern, eyes and head, but for what is asked.

Rows are values of ``alignment`` (lambda), or one with an ablation of the paper's behind it: ``1 off-path`` takes the
difference at the noisy pictures themselves, ``1 unscaled`` weighs timesteps as eq. 6 does before it is rescaled, ``1
prompted`` takes the token's prediction for the target prompt in place of the caption, and ``1 alpha A beta B`` has
guidance scales. The token that ``1`` learned is drawn otherwise by ``1 strength S``, moved towards the word it began as
or past itself, and by ``1 until S``, in this share of the steps alone and the word in the rest: with ``0`` these are
what can be had without a target prompt. The word's own pictures, before any training, are the first row.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from monsters import STYLES

from benchmarks.worlds import WORLDS, World
from zoodip_core import generate
from zoodip_core.base.files import read_object, write_atomically
from zoodip_core.model.embedding import Embedding
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_model import Denoiser, Prompt, Row, View
from zoodip_core.tiny import concepts
from zoodip_core.tiny.judge import Judge
from zoodip_core.tiny.scores import JUDGE, tone_error
from zoodip_core.train.alignment import Alignment
from zoodip_core.train.config import CHECK_DRAWS, TrainConfig
from zoodip_core.train.draws import Draw
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.prepared import Training
from zoodip_core.train.presets import preset_for

SUBJECTS = ("boo", "kiwi", "pip", "zig")
IDENTITY = ("shape", "pattern", "eyes", "head")


@dataclass(frozen=True)
class Asked:
    """What a prompt asks for beside its subject: a style, or a value of an attribute of the judge's.

    Args:
        prompt: with ``{}`` for the subject.
        attribute: empty for a style.
    """

    prompt: str
    attribute: str = ""
    value: str = ""


ASKED = {
    **{style: Asked(f"a {{}} in {style} style") for style in STYLES},
    **{head: Asked(f"a {{}} with {head}", "head", head) for head in ("horns", "antennae")},
    "one-eye": Asked("a {} with one eye", "eyes", "1"),
    "three-eyes": Asked("a {} with three eyes", "eyes", "3"),
}
"""By the names that ``--asked`` takes; an attribute that a subject has already is not asked of it."""
PICTURES, DDIM_STEPS = 10, 15
WORD = "the word"
PARTS = 2
"""Processes of one thread each."""

Figures = dict[str, float]
Cell = tuple[str, str, str, int]
"""Row, subject, what is asked for, and seed."""


@dataclass(frozen=True)
class _Variant(Alignment):
    """With the model at hand."""

    model: StableDiffusion | None = None
    prompted: Sequence[Prompt] = ()

    @classmethod
    def of(cls, alignment: Alignment, **more: Any) -> Alignment:
        return cls(**{each.name: getattr(alignment, each.name) for each in fields(Alignment)}, **more)


class OffPath(_Variant):
    """D where the picture itself is noisy."""

    def _on_path(self, denoiser: Denoiser, view: View, at: torch.Tensor) -> View:
        return view


class Unscaled(_Variant):
    """Eq. 6 as derived, before it is rescaled by sqrt(abar / (1 - abar))."""

    def shifted(self, denoiser: Denoiser, view: View, draw: Draw, at: torch.Tensor, together: bool = True) -> View:
        assert self.model is not None
        alpha = float(self.model.alphas_cumprod[view.timestep])
        found = super().shifted(denoiser, view, draw, at, together)
        assert found.shift is not None
        return replace(found, shift=math.sqrt((1 - alpha) / alpha) * found.shift)


class Prompted(_Variant):
    """The token's prediction for the target prompt."""

    def _terms(self, caption: Prompt, clean: Prompt, at: torch.Tensor | None) -> list[tuple[Row, float]]:
        return super()._terms(self.prompted[0], clean, at)


ABLATIONS: dict[str, type[_Variant]] = {"off-path": OffPath, "unscaled": Unscaled, "prompted": Prompted}


# ---------------------------------------------------------------- learning and looking


def settings_of(row: str) -> dict[str, Any]:
    """The settings that a row's name stands for."""
    strength, *words = row.split()
    found: dict[str, Any] = {"alignment": float(strength)}
    for name, value in itertools.pairwise(words):
        if name in ("alpha", "beta"):
            found[f"alignment_{name}"] = float(value)
    return found


@dataclass(frozen=True)
class Drawn:
    """How a token is drawn.

    Args:
        trained: the row by which it is learned.
        strength: where it stands between the word it began as, 0, and itself, 1.
        until: the share of the steps in which it stands in the prompt.
    """

    trained: str
    strength: float
    until: float

    @classmethod
    def by(cls, row: str) -> Drawn:
        """As a row's name says."""
        trained, _, until = row.partition(" until ")
        trained, _, strength = trained.partition(" strength ")
        return cls(trained, float(strength or 1), float(until or 1))


def config_of(concept: concepts.Concept, asked: str, row: str, seed: int, world: World, budget: int) -> TrainConfig:
    """The product's settings for a run of so many forward passes."""
    base = {**preset_for("tiny"), "model": world.model, "token": concept.token, "initializer": concept.initializer}
    given = {"images": (str(concept.images),), "seed": seed, "cache": None, **settings_of(row)}
    config = TrainConfig.from_dict({**base, **given, "target_prompt": ASKED[asked].prompt})
    more, candidates = config.forwards_for_target, config.make_estimator().num_candidates
    steps = budget // (candidates + more)
    while (
        steps * (candidates + more)
        + sum(map(replace(config, steps=steps).checked, range(steps))) * CHECK_DRAWS * (1 + more)
        > budget
    ):
        steps -= 1
    return replace(config, steps=steps)


def learn(config: TrainConfig, model: StableDiffusion, row: str) -> torch.Tensor:
    """The token ``[1, dim]`` that the product learns."""
    training = Training(config, model)
    objective = training.objective
    assert isinstance(objective, DiffusionObjective)
    kinds = [ABLATIONS[word] for word in row.split() if word in ABLATIONS]
    if kinds and objective.alignment:
        prompted = [model.prompt(each.text, 1) for each in config.targets]
        objective.alignment = kinds[0].of(objective.alignment, model=model, prompted=prompted)
    while not training.done:
        training.step()
    return training.search.theta


def look(
    model: StableDiffusion,
    judge: Judge,
    concept: concepts.Concept,
    name: str,
    theta: torch.Tensor | None,
    until: float = 1.0,
) -> Figures:
    """How far pictures are from what is asked for, and how like the subject; of its word where there is no token."""
    asked = ASKED[name]
    text = asked.prompt.format(concept.initializer if theta is None else concept.token)
    about = {"initializer": concept.initializer}
    embedding = None if theta is None else Embedding(concept.token, (theta,), about)
    seeds = list(range(PICTURES))
    how: dict[str, Any] = {"num_inference_steps": DDIM_STEPS, "until": until}
    made = generate(model, [text] * PICTURES, seeds, embedding=embedding, **how)
    read = judge.read(made)

    def share(attribute: str, value: Any) -> float:
        return float(read[attribute][:, judge.classes[attribute].index(value)].mean())

    own = [share(each, concept.attributes[each]) for each in IDENTITY if each != asked.attribute]
    error = 100 * (1 - share(asked.attribute, asked.value)) if asked.attribute else tone_error(STYLES[name], made)
    return {"error": error, "identity": statistics.fmean(own)}


# ---------------------------------------------------------------- the table


def table(found: dict[str, dict[str, Figures]], subjects: Sequence[str], asked: Sequence[str]) -> str:
    """Error and identity by row: the means, those by what is asked and by subject, and the share of the row 0's."""
    head = ["drawn", "error", *asked, "identity", *subjects, "error, of 0's", "identity, of 0's"]
    lines, base = [head, ["---"] * len(head)], found.get("0", {})
    for row, cells in found.items():
        by_asked = [_mean("error", cells, each) for each in asked]
        by_subject = [_mean("identity", cells, subject) for subject in subjects]
        pairs = {key: base[key] for key in cells if key in base} if row not in ("0", WORD) else {}
        own = {key: cells[key] for key in pairs}
        shares = [f"{_mean(name, own) / _mean(name, pairs):.0%}" if pairs else "" for name in ("error", "identity")]
        errors = [_cell(value, 1) for value in (_mean("error", cells), *by_asked)]
        likeness = [_cell(_mean("identity", cells), 3), *(_cell(value, 2) for value in by_subject)]
        lines.append([row, *errors, *likeness, *shares])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _mean(name: str, cells: dict[str, Figures], part: str = "") -> float:
    """Of a figure over the cells, or over those that have this subject, or ask for this."""
    values = [each[name] for key, each in cells.items() if not part or part in key.split()[:2]]
    return statistics.fmean(values) if values else math.nan


@dataclass(frozen=True)
class Wanted:
    """A token to learn: by which row, of which subject, for what that is asked for, with which seed."""

    row: str
    subject: str
    asked: str
    seed: int

    @classmethod
    def for_cell(cls, row: str, subject: str, asked: str, seed: int) -> Wanted:
        """What a cell is drawn with. Without a target prompt a token is the same for all."""
        trained = Drawn.by(row).trained
        return cls(trained, subject, asked if settings_of(trained)["alignment"] else "", seed)

    def __str__(self) -> str:
        return f"{self.row}, {self.subject}, {self.asked or 'anything'}, {self.seed}"


class Bench:
    """The model and the judge, and processes that trainings and drawings are dealt to.

    Args:
        bench: the model's name.
        budget: forward passes of a training.
    """

    def __init__(self, bench: str, budget: int) -> None:
        self.world, self.budget = WORLDS[bench], budget
        self.model, self.judge = self.world.load(), Judge.load(JUDGE)

    def learned(self, wanted: Sequence[Wanted]) -> Iterator[torch.Tensor]:
        """The tokens ``[1, dim]``."""
        with self._processes() as pool:
            yield from pool.map(_learned, wanted)

    def learned_here(self, wanted: Wanted) -> torch.Tensor:
        concept, asked = concepts.load(wanted.subject), wanted.asked or next(iter(STYLES))
        config = config_of(concept, asked, wanted.row, wanted.seed, self.world, self.budget)
        return learn(config, self.model, wanted.row)

    def drawn(self, cells: Sequence[Cell], tokens: Sequence[list[float] | None]) -> Iterator[Figures]:
        """What each cell's token draws; the word, where there is none."""
        with self._processes() as pool:
            yield from pool.map(_drawn, cells, tokens)

    def drawn_here(self, cell: Cell, numbers: list[float] | None) -> Figures:
        row, subject, asked, _ = cell
        concept, drawn = concepts.load(subject), Drawn.by(row)
        if numbers is None:
            return look(self.model, self.judge, concept, asked, None)
        word = self.model.initial_vectors(concept.initializer, 1, TrainConfig.initializer_mode)
        token = torch.tensor(numbers).view_as(word)
        return look(self.model, self.judge, concept, asked, word + drawn.strength * (token - word), drawn.until)

    def _processes(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(PARTS, multiprocessing.get_context("fork"), _take, (self,))


_bench: Bench
"""What a process was forked for."""


def _take(bench: Bench) -> None:
    global _bench
    torch.set_num_threads(1)
    _bench = bench


def _learned(wanted: Wanted) -> torch.Tensor:
    return _bench.learned_here(wanted)


def _drawn(cell: Cell, numbers: list[float] | None) -> Figures:
    return _bench.drawn_here(cell, numbers)


def measure(args: argparse.Namespace, save: Callable[[dict[str, Any]], None], known: dict[str, Any]) -> dict[str, Any]:
    """Learn and draw what is not known: figures by row and cell, and numbers of tokens by their names.

    Raises:
        ValueError: what is known is of another bench, or of another budget.
    """
    plan = {"bench": args.bench, "budget": args.budget}
    if known.setdefault("plan", plan) != plan:
        raise ValueError(f"{args.json} is of a run with {known['plan']}; give another --json FILE")
    rows, tokens = known.setdefault("rows", {}), known.setdefault("tokens", {})
    cells = [(row, *each) for row in args.rows for each in itertools.product(args.concepts, args.asked, args.seeds)]
    cells = [cell for cell in cells if not _has(cell[1], ASKED[cell[2]])]
    cells = [cell for cell in cells if _key(cell) not in rows.setdefault(cell[0], {})]
    every = dict.fromkeys(Wanted.for_cell(*cell) for cell in cells if cell[0] != WORD)
    bench = Bench(args.bench, args.budget)
    missing = [each for each in every if str(each) not in tokens]
    for each, token in zip(missing, tqdm(bench.learned(missing), "learning", len(missing)), strict=True):
        tokens[str(each)] = token.flatten().tolist()
        save(known)
    own = [None if cell[0] == WORD else tokens[str(Wanted.for_cell(*cell))] for cell in cells]
    for cell, figures in zip(cells, tqdm(bench.drawn(cells, own), "drawing", len(cells)), strict=True):
        rows[cell[0]][_key(cell)] = figures
        save(known)
    return known


def _has(subject: str, asked: Asked) -> bool:
    """Whether a subject has the attribute already."""
    return bool(asked.attribute) and str(concepts.load(subject).attributes[asked.attribute]) == asked.value


def _key(cell: Cell) -> str:
    return " ".join(map(str, cell[1:]))


def main(argv: Sequence[str] | None = None) -> None:
    listed = lambda text: [each.strip() for each in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", choices=tuple(WORLDS), default="tiny", help="the model (default tiny)")
    parser.add_argument("--rows", type=listed, default=[WORD, "0", "0.3", "1", "3"], metavar="A,B")
    parser.add_argument("--concepts", type=listed, default=list(SUBJECTS), metavar="A,B")
    parser.add_argument(
        "--asked", type=listed, default=list(STYLES), metavar="A,B", help=f"of {', '.join(ASKED)} (default: the styles)"
    )
    parser.add_argument("--seeds", type=lambda text: list(range(int(text))), default=[0, 1, 2], metavar="N")
    parser.add_argument("--budget", type=int, default=3200, metavar="N", help="forward passes (default 3200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep figures and tokens here, and resume from it")
    args = parser.parse_args(argv)
    if unknown := set(args.asked) - set(ASKED):
        parser.error(f"--asked: {', '.join(unknown)} unknown; choose from {', '.join(ASKED)}")
    known = read_object(args.json, 100_000_000) if args.json and args.json.exists() else {}

    def save(found: dict[str, Any]) -> None:
        if args.json:
            write_atomically(args.json, json.dumps(found).encode())

    try:
        found = measure(args, save, known)
    except ValueError as error:
        parser.error(str(error))
    print(table(found["rows"], args.concepts, args.asked))


if __name__ == "__main__":
    main()
