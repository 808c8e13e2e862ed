"""Which text encoders of a CLIP of ComfyUI read embeddings, as its tokenizers and its model tell."""

from __future__ import annotations

import copy
from typing import Any


def text_encoders_of(clip: Any) -> tuple[tuple[str, int], ...]:
    """A CLIP's text encoders that read embeddings as (name, width), in the order of an embedding's tensors.

    ``(("clip_l", 768), ("t5xxl", 4096))`` for Flux. Names are those under which ComfyUI looks into embedding files.
    Left out are those that the CLIP lacks, as when one of Stable Diffusion 3's three was not loaded; those of which
    only a tokenizer is there, as Anima's T5, of which the model reads the words' numbers; and those that are not given
    the whole prompt, as HunyuanImage's ByT5, which reads what stands in quotation marks.
    """
    from ..zoodip_core.model.kinds import in_order

    parts, inner = _parts(clip), inner_of(clip.tokenizer)
    return in_order((key, _width(parts[name], inner[name])) for key, name in attributes_of(clip).items())


def attributes_of(clip: Any) -> dict[str, str]:
    """The attributes of a CLIP's tokenizer, by the names of the text encoders in :func:`text_encoders_of`."""
    inner = inner_of(clip.tokenizer)
    asked, apart = _asked(clip.tokenizer), words_alone(clip)
    kept = [name for name, part in _parts(clip).items() if part is not None and name in asked and name not in apart]
    return {_key(inner[name]): name for name in kept}


def encoder_names(clip: Any) -> tuple[str, ...]:
    """The names of :func:`text_encoders_of`, as an embedding keeps them: none for Stable Diffusion 1.x, 2.x and XL."""
    from ..zoodip_core.model.kinds import names_of

    return names_of(text_encoders_of(clip))


def text_widths(clip: Any) -> tuple[int, ...]:
    """The widths of a CLIP's text encoders, ``(768,)`` for SD1, ``(768, 1280)`` for SDXL."""
    return tuple(width for _, width in text_encoders_of(clip))


def missing_encoders(clip: Any) -> set[str]:
    """The names of the text encoders that a CLIP has a place and a tokenizer for, but that were not loaded."""
    inner = inner_of(clip.tokenizer)
    return {_key(inner[name]) for name, part in _parts(clip).items() if part is None}


def words_alone(clip: Any) -> set[str]:
    """The tokenizers by their attributes of which the model reads words alone, for it has no text encoder for them."""
    parts = _parts(clip)
    if set(parts) == {"clip_l", "clip_g"}:
        return set()  # SDXL's refiner has SDXL's tokenizers, and reads the half it has
    absent = {name for name, part in parts.items() if part is _ABSENT}
    return absent if len(absent) < len(parts) else set()


def inner_of(tokenizer: Any) -> dict[str, Any]:
    """The tokenizers within a CLIP's, one for each text encoder, by their attributes."""
    return {name: inner for name, inner in vars(tokenizer).items() if hasattr(inner, "embedding_directory")}


_ABSENT = object()


def _parts(clip: Any) -> dict[str, Any]:
    """For each tokenizer its text encoder: None if it was not loaded, ``_ABSENT`` if the model has no place for it."""
    model = getattr(clip, "cond_stage_model", None)
    return {
        name: getattr(model, name, getattr(model, _key(inner), _ABSENT))
        for name, inner in inner_of(clip.tokenizer).items()
    }


def _asked(tokenizer: Any) -> set[str]:
    """The tokenizers that are given a prompt's words; all of them, if none is."""
    word, asked = "zoodip", set()
    copied = copy.copy(tokenizer)
    for name, inner in inner_of(tokenizer).items():

        class Noting(type(inner)):  # type: ignore[misc]
            zoodip_attribute = name

            def tokenize_with_weights(self, text: str, *args: Any, **options: Any) -> Any:
                if word in text:
                    asked.add(self.zoodip_attribute)
                return super().tokenize_with_weights(text, *args, **options)

        noting = copy.copy(inner)
        noting.__class__ = Noting
        setattr(copied, name, noting)
    copied.tokenize_with_weights(word)
    return asked or set(inner_of(tokenizer))


def _key(inner: Any) -> str:
    """Under which name a tokenizer looks into embedding files."""
    return str(getattr(inner, "embedding_key", "") or _KEYS.get(inner.embedding_size, "clip_l"))


_KEYS = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
"""For tokenizers of other packs that do not say it."""


def _width(part: Any, inner: Any) -> int:
    """A text encoder's width; some of ComfyUI's tokenizers, as Ernie-Image's, state another model's."""
    table = getattr(getattr(part, "transformer", None), "get_input_embeddings", lambda: None)()
    width = getattr(table, "embedding_dim", None)
    return width if isinstance(width, int) else int(inner.embedding_size)
