"""The text encoders of a CLIP: their tokenizers and networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..tokenizer import attributes_of, text_encoders_of


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
    attributes = attributes_of(clip)
    parts = []
    for key, width in text_encoders_of(clip):
        name = attributes[key]
        model = clip.cond_stage_model
        own = getattr(model, name, None) or getattr(model, key)  # Chroma's T5 has another name in the tokenizer
        parts.append(EncoderPart(key, width, name, getattr(clip.tokenizer, name).tokenizer, own.transformer))
    return tuple(parts)
