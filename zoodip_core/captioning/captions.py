"""Captions of pictures: what a model says of each, with the token's place, and short enough for a text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..base.errors import CaptionError
from ..base.stopping import check_stop
from ..data.images import open_picture
from ..data.slots import Subject, caption_of
from ..model.kinds import CLIP_PATH
from .captioner import Captioner

_MOST_TOKENS = 75
"""That a text encoder of Stable Diffusion reads, but for those at the ends."""


def write_captions(
    captioner: Captioner,
    pictures: Sequence[Path | Image.Image],
    subjects: Sequence[Subject],
    on_caption: Callable[[int, str], None] = lambda number, caption: None,
    *,
    vectors: int = 1,
) -> list[str]:
    """A caption for each picture; empty where the model says nothing of it.

    Args:
        captioner: the model, which is left loaded.
        pictures: their files, or themselves.
        subjects: what each caption is to name.
        on_caption: told each caption, with its picture's place in the list, as soon as there is one.
        vectors: places in a text that the token takes.

    Raises:
        CaptionError: the model says nothing of any picture.
        ImagesError: a picture cannot be read.
        ModelError: the model cannot be loaded, or fails.
        Stopped: a stop was asked for.
    """
    tokens, captions = _counter(), []
    for number, (picture, subject) in enumerate(zip(pictures, subjects, strict=True)):
        check_stop()
        said = captioner.describe(open_picture(picture) if isinstance(picture, Path) else picture)
        captions.append(caption_of(said, subject, partial(_fits, tokens, subject, vectors)))
        on_caption(number, captions[-1])
    if pictures and not any(captions):
        raise CaptionError(
            f"{captioner.files.name} says nothing of any picture; give another model, or write the captions yourself"
        )
    return captions


def _fits(tokens: Callable[[str], int], subject: Subject, vectors: int, text: str) -> bool:
    return tokens(text.replace(subject.token, " ")) + vectors * text.count(subject.token) <= _MOST_TOKENS


def _counter() -> Callable[[str], int]:
    """Counts a text's tokens as the text encoders of Stable Diffusion read it."""
    from transformers import CLIPTokenizerFast

    tokenizer: Any = CLIPTokenizerFast.from_pretrained(CLIP_PATH, local_files_only=True)
    return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)
