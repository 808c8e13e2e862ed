"""A learned token in any standard CLIP of ComfyUI, by the host's own way of reading embedding files."""

from __future__ import annotations

import copy
import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..zoodip_core.model.embedding import Embedding


def text_encoders_of(clip: Any) -> tuple[tuple[str, int], ...]:
    """A CLIP's text encoders that read embeddings as (name, width), in the order of an embedding's tensors.

    ``(("clip_l", 768), ("t5xxl", 4096))`` for Flux. Names are those under which ComfyUI looks into embedding files.
    Left out are those that the CLIP lacks, as when one of Stable Diffusion 3's three was not loaded, and those of
    which only a tokenizer is there: Anima's model reads T5's ids, where there is no place for a vector.
    """
    from ..zoodip_core.model.kinds import in_order

    inner = _inner(clip.tokenizer)
    kept = [each for name, each in inner.items() if name in _read_by(clip, inner)]
    return in_order((_key(each), each.embedding_size) for each in kept)


def encoder_names(clip: Any) -> tuple[str, ...]:
    """The names of :func:`text_encoders_of`, as an embedding keeps them: none for Stable Diffusion 1.x, 2.x and XL."""
    from ..zoodip_core.model.kinds import names_of

    return names_of(text_encoders_of(clip))


def text_widths(clip: Any) -> tuple[int, ...]:
    """The widths of a CLIP's text encoders, ``(768,)`` for SD1, ``(768, 1280)`` for SDXL."""
    return tuple(width for _, width in text_encoders_of(clip))


def missing_encoders(clip: Any) -> tuple[str, ...]:
    """The names of the text encoders that a CLIP has a place and a tokenizer for, but that were not loaded."""
    model, inner = getattr(clip, "cond_stage_model", None), _inner(clip.tokenizer)
    return tuple(_key(each) for name, each in inner.items() if _part(model, name, each) is None)


_ABSENT = object()


def _part(model: Any, name: str, inner: Any) -> Any:
    """The text encoder of a tokenizer: None if it was not loaded, ``_ABSENT`` if the model has no place for it."""
    return getattr(model, name, getattr(model, _key(inner), _ABSENT))


def _read_by(clip: Any, inner: Mapping[str, Any]) -> set[str]:
    """Of the tokenizers those whose text encoders are in the CLIP."""
    model = getattr(clip, "cond_stage_model", None)
    parts = {name: _part(model, name, each) for name, each in inner.items()}
    loaded = {name for name, part in parts.items() if part is not None and part is not _ABSENT}
    refiner = set(parts) == {"clip_l", "clip_g"}  # SDXL's refiner has SDXL's tokenizers, and reads the half it has
    if not loaded or refiner:
        return {name for name, part in parts.items() if part is not None}
    return loaded


def _key(inner: Any) -> str:
    """Under which name a tokenizer looks into embedding files."""
    return str(getattr(inner, "embedding_key", "") or _KEYS.get(inner.embedding_size, "clip_l"))


_KEYS = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}
"""For tokenizers of other packs that do not say it."""


def with_token(clip: Any, embedding: Embedding, strength: float, folder: Path) -> tuple[Any, str]:
    """A copy of a CLIP that knows the token, and the text that stands for it in prompts.

    The copy shares the weights. It reads the embedding from a file in ``folder`` whose name is that of its
    content, so nothing that ComfyUI remembers of another token can be taken for it. In a prompt the token's own
    name works as well.
    """
    from ..zoodip_core.model.embedding import serialize

    content = serialize(embedding)
    name = f"zoodip_{hashlib.sha256(content).hexdigest()[:16]}"
    text = f"embedding:{name}" if strength == 1 else f"(embedding:{name}:{strength:g})"
    applied = clip.clone()
    known = Known(text, folder / f"{name}.safetensors", content)
    applied.tokenizer = _with_token(clip.tokenizer, unicodedata.normalize("NFC", embedding.token), known)
    return applied, text


@dataclass(frozen=True)
class Known:
    """A token that a tokenizer knows: what stands for it in prompts, and its file with the file's content."""

    text: str
    file: Path
    content: bytes


def _with_token(tokenizer: Any, token: str, known: Known) -> Any:
    """A copy of a tokenizer that knows this token besides those that it knows already."""
    from ..zoodip_core.base.files import write_atomically

    all_known: dict[str, Known] = {**getattr(tokenizer, "zoodip_known", {}), token: known}
    plain: Any = vars(type(tokenizer)).get("zoodip_plain", type(tokenizer))  # another's class on top of ours stays

    class WithTokens(plain):  # type: ignore[misc]
        zoodip_known, zoodip_plain = all_known, plain

        def tokenize_with_weights(self, prompt: str, *args: Any, **options: Any) -> Any:
            for each in all_known.values():
                if not each.file.is_file():  # the folder is temporary
                    write_atomically(each.file, each.content)
            return super().tokenize_with_weights(in_prompt(prompt, all_known), *args, **options)

    WithTokens.__name__ = plain.__name__
    copied = copy.copy(tokenizer)
    copied.__class__ = WithTokens
    for name, inner in _inner(tokenizer).items():
        inner = copy.copy(inner)
        folders = _listed(inner.embedding_directory)
        place = str(known.file.parent)
        inner.embedding_directory = folders if place in folders else [place, *folders]
        setattr(copied, name, inner)
    write_atomically(known.file, known.content)
    return copied


def in_prompt(prompt: str, known: Mapping[str, Known]) -> str:
    """The prompt with the tokens' names replaced, all at once: ``dog`` is not looked for in ``dog-2``."""
    from ..zoodip_core.data.prompts import token_pattern

    longest_first = sorted(known, key=len, reverse=True)
    return replaced(prompt, "|".join(map(token_pattern, longest_first)), lambda token: known[token].text)


def replaced(prompt: str, pattern: str, text_for: Callable[[str], str]) -> str:
    """The prompt with an embedding's text in place of what matches.

    ComfyUI reads an embedding's name up to the next space, and only where a space, a line or a bracket begins it.
    """

    def placed(match: re.Match[str]) -> str:
        before, after = prompt[: match.start()], prompt[match.end() :]
        if re.search(r"(?:^|[\s(])embedding:\S*$", before):  # the name of a file of the user's
            return match[0]
        left = "" if not before or re.search(r"(?:[ \n]|(?<!\\)\()$", before) else " "
        right = "" if not after or re.match(r"[\s)]|:[\d.]+\)", after) else " "
        return left + text_for(match[0]) + right

    return re.sub(pattern, placed, prompt)


def _inner(tokenizer: Any) -> dict[str, Any]:
    """The tokenizers, one for each text encoder, that read embeddings."""
    return {name: inner for name, inner in vars(tokenizer).items() if hasattr(inner, "embedding_directory")}


def _listed(directories: Any) -> list[str]:
    if directories is None:
        return []
    return [directories] if isinstance(directories, str) else list(directories)
