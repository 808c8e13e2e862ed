"""Before and after: what the model draws for the word that a token started from, and for the token."""

from __future__ import annotations

from pathlib import Path

from PIL.Image import Image

from ..data.images import load_images
from ..data.prompts import SLOT, with_slots
from ..data.sheets import contact_sheet
from ..model.embedding import Embedding
from ..model.generation import with_lora
from ..model.lora import Lora
from ..model.token_model import TokenModel
from .config import TrainConfig

_COLUMNS = 4


def before_after(
    model: TokenModel, config: TrainConfig, embedding: Embedding, path: Path, lora: Lora | None = None
) -> None:
    """Write reference images above the samples' prompt drawn with the word and with the token, from the same seeds.

    Args:
        lora: the weights that were learned with the token.

    Raises:
        Stopped: a stop was asked for; nothing is written.
    """
    side = config.resolution or model.info.resolution
    images, _ = load_images(config.images, side, crop=config.crop, background=config.background)
    prompt, seeds = with_slots(config.sample_prompt, config.token), list(range(_COLUMNS))

    def drawn(name: str, learned: Embedding | None) -> list[Image]:
        texts = [prompt.replace(SLOT, name)] * _COLUMNS
        return model.generate(texts, seeds, embedding=learned, resolution=config.resolution)

    rows = [
        ("reference\nimages", [image.picture for image in images[:_COLUMNS]]),
        (f'before: the word\n"{config.initializer}"', drawn(config.initializer, None)),
    ]
    with with_lora(model, lora):
        what = "the token\nand weights" if lora else "the token"  # there is room for a picture's name, no more
        rows.append((f"after: {what}\n{config.token}", drawn(config.token, embedding)))
    contact_sheet(rows, path)
