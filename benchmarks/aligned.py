"""What a target prompt does (``zoodip_core/train/alignment.py``): the prompt obeyed, and what it costs of the subject.

python benchmarks/aligned.py --bench tiny|words [--rows 0,0.3,1,3] [--json FILE]

Each subject is learned for "a SUBJECT in STYLE style", from its pictures and the template's captions, which say nothing
of what else is in them: the case in which a token takes over what the prompt asks for. All runs take as many forward
passes. Then ten pictures of that prompt are drawn: **tone error** is how far their colours lie from the style's, in RGB
(lower is better), **identity** the judge's mean probability of the subject's shape, pattern, eyes and head.

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
import statistics
import sys
from collections.abc import Callable, Sequence
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
PICTURES, DDIM_STEPS = 10, 15
WORD = "the word"


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


def config_of(concept: concepts.Concept, style: str, row: str, seed: int, world: World, budget: int) -> TrainConfig:
    """The product's settings for a run of so many forward passes."""
    base = {**preset_for("tiny"), "model": world.model, "token": concept.token, "initializer": concept.initializer}
    given = {"images": (str(concept.images),), "seed": seed, "cache": None, **settings_of(row)}
    config = TrainConfig.from_dict({**base, **given, "target_prompt": f"a {{}} in {style} style"})
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
    style: str,
    theta: torch.Tensor | None,
    until: float = 1.0,
) -> dict[str, float]:
    """How near the style the pictures are, and how like the subject; of its word where there is no token."""
    text = f"a {concept.initializer if theta is None else concept.token} in {style} style"
    about = {"initializer": concept.initializer}
    embedding = None if theta is None else Embedding(concept.token, (theta,), about)
    seeds = list(range(PICTURES))
    how: dict[str, Any] = {"num_inference_steps": DDIM_STEPS, "until": until}
    made = generate(model, [text] * PICTURES, seeds, embedding=embedding, **how)
    read = judge.read(made)
    shares = [float(read[k][:, judge.classes[k].index(concept.attributes[k])].mean()) for k in IDENTITY]
    return {"tone error": tone_error(STYLES[style], made), "identity": statistics.fmean(shares)}


# ---------------------------------------------------------------- the table


def table(found: dict[str, dict[str, dict[str, float]]], styles: Sequence[str]) -> str:
    """Tone error and identity by row: the means, and the share of the first trained row's."""
    lines = [
        f"| alignment | tone error | {' | '.join(styles)} | identity | tone error, of 0's | identity, of 0's |",
        f"|---|---|{'---|' * len(styles)}---|---|---|",
    ]
    base = found.get("0")
    for row, cells in found.items():
        errors = {style: [v["tone error"] for k, v in cells.items() if k.split()[1] == style] for style in styles}
        identity = statistics.fmean(v["identity"] for v in cells.values())
        error = statistics.fmean(itertools.chain.from_iterable(errors.values()))
        shares = ["", ""]
        if base and row not in ("0", WORD):
            pairs = [(v, base[k]) for k, v in cells.items() if k in base]
            shares = [
                f"{statistics.fmean(v[name] for v, _ in pairs) / statistics.fmean(b[name] for _, b in pairs):.0%}"
                for name in ("tone error", "identity")
            ]
        each = " | ".join(f"{statistics.fmean(errors[style]):.1f}" for style in styles)
        lines.append(f"| {row} | {error:.1f} | {each} | {identity:.3f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def measure(args: argparse.Namespace, save: Callable[[dict[str, Any]], None], known: dict[str, Any]) -> dict[str, Any]:
    world = WORLDS[args.bench]
    model, judge = world.load(), Judge.load(JUDGE)
    jobs = [(row, *each) for row in args.rows for each in itertools.product(args.concepts, args.styles, args.seeds)]
    tokens: dict[tuple[str, str, str, int], torch.Tensor] = {}
    for row, name, style, seed in tqdm(jobs, desc="runs"):
        key = f"{name} {style} {seed}"
        if key in known.setdefault(row, {}):
            continue
        concept, drawn = concepts.load(name), Drawn.by(row)
        theta = None
        if row != WORD:
            config = config_of(concept, style, drawn.trained, seed, world, args.budget)
            which = (drawn.trained, name, style if config.aligned else "", seed)
            if which not in tokens:
                tokens[which] = learn(config, model, drawn.trained)
            word = model.initial_vectors(concept.initializer, 1, config.initializer_mode)
            theta = word + drawn.strength * (tokens[which] - word)
        known[row][key] = look(model, judge, concept, style, theta, drawn.until)
        save(known)
    return known


def main(argv: Sequence[str] | None = None) -> None:
    listed = lambda text: [each.strip() for each in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", choices=tuple(WORLDS), default="tiny", help="the model (default tiny)")
    parser.add_argument("--rows", type=listed, default=[WORD, "0", "0.3", "1", "3"], metavar="A,B")
    parser.add_argument("--concepts", type=listed, default=list(SUBJECTS), metavar="A,B")
    parser.add_argument("--styles", type=listed, default=list(STYLES), metavar="A,B")
    parser.add_argument("--seeds", type=lambda text: list(range(int(text))), default=[0, 1, 2], metavar="N")
    parser.add_argument("--budget", type=int, default=3200, metavar="N", help="forward passes (default 3200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here, and resume from it")
    args = parser.parse_args(argv)
    known = read_object(args.json, 100_000_000) if args.json and args.json.exists() else {}

    def save(found: dict[str, Any]) -> None:
        if args.json:
            write_atomically(args.json, json.dumps(found).encode())

    print(table(measure(args, save, known), args.styles))


if __name__ == "__main__":
    main()
