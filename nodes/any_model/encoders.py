"""The text encoders of a CLIP: their tokenizers and networks, and a tokenizer that reads files of ours."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tokenizer import text_encoders_of

OURS = re.compile(r"embedding:zoodip_\w+")


@dataclass(frozen=True)
class EncoderPart:
    """A text encoder.

    Args:
        key: its name in embedding files.
        width: of its token embeddings.
        attribute: its name in CLIP's tokenizer.
        tokenizer: what makes ids of its texts, from transformers or alike.
        network: what has its table of token embeddings.
    """

    key: str
    width: int
    attribute: str
    tokenizer: Any
    network: Any


def encoder_parts(clip: Any) -> tuple[EncoderPart, ...]:
    """The text encoders that read embeddings, in the order of an embedding's tensors."""
    attributes = {each.embedding_key: name for name, each in _readers(clip.tokenizer).items()}
    parts = []
    for key, width in text_encoders_of(clip):
        name = attributes[key]
        model = clip.cond_stage_model
        own = getattr(model, name, None) or getattr(model, key)  # Chroma's T5 has another name in the tokenizer
        parts.append(EncoderPart(key, width, name, getattr(clip.tokenizer, name).tokenizer, own.transformer))
    return tuple(parts)


def reading_from(clip: Any, folder: Path) -> Any:
    """A copy of a CLIP's tokenizer that finds embeddings in a folder as well, for all its text encoders."""
    read = {part.attribute for part in encoder_parts(clip)}
    outer = copy.copy(clip.tokenizer)
    for name, inner in _readers(outer).items():
        own = copy.copy(inner)
        if name in read:
            before = own.embedding_directory or []
            own.embedding_directory = [str(folder), *([before] if isinstance(before, str) else before)]
        else:  # of ids alone: Anima's T5
            own.__class__ = _leaving_out(type(own))
        setattr(outer, name, own)
    return outer


def _readers(tokenizer: Any) -> dict[str, Any]:
    return {name: inner for name, inner in vars(tokenizer).items() if hasattr(inner, "embedding_directory")}


def _leaving_out(plain: Any) -> Any:
    class WithoutPlaces(plain):  # type: ignore[misc]
        def tokenize_with_weights(self, text: str, *args: Any, **options: Any) -> Any:
            return super().tokenize_with_weights(OURS.sub("", text), *args, **options)

    return WithoutPlaces
