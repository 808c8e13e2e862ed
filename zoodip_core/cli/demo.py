"""The demo: learn a bundled concept on the embedded tiny model, and show that it was learned."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..data.sheets import contact_sheet
from ..model.embedding import Embedding
from ..model.generation import generate
from ..model.kinds import TINY
from ..model.load import load_quantized
from ..model.stable_diffusion import StableDiffusion
from ..model.tokens import initial_vectors
from ..tiny import concepts
from ..tiny.scores import score
from ..train.config import TrainConfig
from ..train.heldout import heldout_losses
from ..train.loop import TrainResult, train_token
from ..train.presets import preset_for
from ..train.run_folder import LOSSES, free_folder
from .arguments import command
from .screen import closing, session

_PLACES = ("snow", "meadow", "night", "beach", "candy", "ocean")
_SCORED = 24


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured and wrote. Losses are held-out denoising losses."""

    concept: concepts.Concept
    loss_before: float
    loss_after: float
    scores: dict[str, dict[str, float]]
    before_after: Path
    loss_curve: Path
    embedding: Path


def demo_config(concept: concepts.Concept, *, seed: int = 0, **settings: object) -> TrainConfig:
    """The demo's settings for one concept."""
    given = {
        "images": (str(concept.images),),
        "captions": str(concept.captions),
        "token": concept.token,
        "initializer": concept.initializer,
        "seed": seed,
    }
    return TrainConfig.from_dict({**preset_for("tiny"), **given, **settings})


def show(concept: concepts.Concept, model: StableDiffusion, trained: TrainResult, output: Path) -> DemoResult:
    """Draw and score word and token with the same seeds, and write the pictures into ``output``."""
    learned = trained.embedding
    word = initial_vectors(model.tokenizers, model.text_encoders, concept.initializer, learned.num_vectors)
    before, after = heldout_losses(
        model, torch.stack([word, learned.vectors]), concept.heldout, concept.heldout_captions
    ).tolist()
    pictures = {
        "word": _draw(concept, model, concept.initializer, None),
        "token": _draw(concept, model, concept.token, learned),
    }
    references = concept.pictures()
    columns = [concept.prompt(place).format("...") for place in _PLACES]
    sheet = output / "before_after.png"
    contact_sheet(
        [
            ("the subject:\nreference images", references[: len(_PLACES)]),
            (f'before: the word\n"{concept.initializer}"', pictures["word"][: len(_PLACES)]),
            (f"after: the token\n{concept.token}", pictures["token"][: len(_PLACES)]),
        ],
        sheet,
        columns,
    )
    scores = {name: score(concept, made) for name, made in (*pictures.items(), ("subject", references))}
    return DemoResult(concept, before, after, scores, sheet, output / LOSSES, trained.path)


def _draw(
    concept: concepts.Concept,
    model: StableDiffusion,
    name: str,
    embedding: Embedding | None,
) -> list[Image.Image]:
    """The same prompts and seeds for word and token; the first ones are shown, all are scored."""
    prompts = [concept.prompt(_PLACES[i % len(_PLACES)]).format(name) for i in range(_SCORED)]
    return generate(model, prompts, list(range(_SCORED)), embedding=embedding)


# ---------------------------------------------------------------- the command


def add(commands: Any) -> None:
    parser = command(
        commands, "demo", _demo, "learn a bundled concept on the embedded tiny model", "demo --concept otto"
    )
    parser.add_argument("--concept", choices=(*concepts.names(), "all"), default="boo", help="which one (default: boo)")
    parser.add_argument("--steps", type=int, metavar="N", help="optimisation steps (default: the preset's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every random draw (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), metavar="DIR", help="folder for the results (default: demo)"
    )


def _demo(args: argparse.Namespace) -> int:
    settings = {"steps": args.steps} if args.steps is not None else {}
    model = load_quantized(TINY)
    results = []
    for name in concepts.names() if args.concept == "all" else [args.concept]:
        concept, began = concepts.load(name), time.monotonic()
        print(f"\n{concept.token}: {concept.about}", flush=True)
        folder = free_folder(args.output, name)
        with session() as (screen, commands):
            config = demo_config(concept, seed=args.seed, **settings)
            trained = train_token(config, folder, model=model, on_event=screen, commands=commands)
        if not trained.finished:
            return closing(trained.finished, trained.step, {concept.token: trained.path}, folder)
        results.append(show(concept, model, trained, folder))
        _print_demo(results[-1], time.monotonic() - began)
    if len(results) > 1:
        won = sum(result.loss_after < result.loss_before for result in results)
        print(f"\nheld-out loss: the token beats its word for {won} of {len(results)} concepts")
    return 0


def _print_demo(result: Any, seconds: float) -> None:
    concept = result.concept
    print(
        f"held-out denoising loss: {concept.initializer!r} {result.loss_before:.4f} -> {concept.token} "
        f"{result.loss_after:.4f} ({(result.loss_after / result.loss_before - 1) * 100:+.1f}%)"
    )
    print(f"{'generated images':18}{'word':>9}{'token':>9}{'subject':>9}")
    for name in result.scores["word"]:
        values = "".join(f"{result.scores[who][name]:>9.2f}" for who in ("word", "token", "subject"))
        print(f"  {name:16}{values}")
    print(f"in {seconds:.0f} s, wrote\n  {result.before_after}\n  {result.loss_curve}\n  {result.embedding}")
