"""The demo: learn a bundled concept on the embedded tiny model, and show that it was learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..data.sheets import contact_sheet
from ..model.embedding import Embedding
from ..model.generation import generate
from ..model.quantized import QuantizedModel
from ..model.tokens import initial_vectors
from ..tiny import concepts
from ..tiny.scores import score
from ..train.config import TrainConfig
from ..train.heldout import heldout_losses
from ..train.loop import TrainResult
from ..train.presets import preset_for

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


def show(concept: concepts.Concept, model: QuantizedModel, trained: TrainResult, output: Path) -> DemoResult:
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
    return DemoResult(concept, before, after, scores, sheet, output / "loss.png", trained.path)


def _draw(
    concept: concepts.Concept,
    model: QuantizedModel,
    name: str,
    embedding: Embedding | None,
) -> list[Image.Image]:
    """The same prompts and seeds for word and token; the first ones are shown, all are scored."""
    prompts = [concept.prompt(_PLACES[i % len(_PLACES)]).format(name) for i in range(_SCORED)]
    return generate(model, prompts, list(range(_SCORED)), embedding=embedding)
