"""Before and after: what the model draws for the word that a token started from, and for the token; or for several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from ..data.images import load_images
from ..data.masks import without_masks
from ..data.naming import in_turn
from ..data.sheets import contact_sheet
from ..model.embedding import Embedding
from ..model.generation import with_lora
from ..model.lora import Lora
from ..model.token_model import TokenModel
from .config import TrainConfig
from .inputs import captions_in
from .samples import Sampling


def before_after(
    model: TokenModel, config: TrainConfig, embeddings: Sequence[Embedding], path: Path, lora: Lora | None = None
) -> None:
    """Write reference images above the samples' prompts drawn with the words and with the tokens, from the same seeds.

    Args:
        embeddings: the tokens of the run, mostly one.
        lora: the weights that were learned with them.

    Raises:
        Stopped: a stop was asked for; nothing is written.
    """
    side = config.resolution or model.info.resolution
    sources = without_masks(config.images) if config.masked else config.images
    images, _ = load_images(sources, side, crop=config.crop, background=config.background)
    if len(config.tokens) > 1:
        images = [images[i] for i in in_turn(captions_in(config, images))]
    sampling = Sampling.of(config)
    columns = len(sampling.prompts)

    def drawn(names: Sequence[str], learned: Sequence[Embedding] | None) -> list[Image]:
        return sampling.with_names(config.tokens, names).draw(model, learned)

    many = "s" if len(config.tokens) > 1 else ""
    rows = [
        ("reference\nimages", [image.picture for image in images[:columns]]),
        (f'before: the word{many}\n"{config.initializer}"', drawn(config.initializers, None)),
    ]
    with with_lora(model, lora):  # there is room for a picture's name, no more
        what = f"the token{many}\nand weights" if lora else f"the token{many}"
        rows.append((f"after: {what}\n{config.token}", drawn(config.tokens, embeddings)))
    contact_sheet(rows, path)
