"""Placeholder tokens: names, starting vectors, and candidates placed into a text encoder.

The tokenizer is never changed. A prompt is tokenised around the placeholder, whose places are
filled by a hook on the embedding layer, a different token for each row of the batch; so a
quantised, shared or read-only model can be trained.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..base.errors import CaptionError, ModelError, TokenError
from ..data.prompts import SLOT
from .places import Rows, rows_of
from .token_table import table_of

LONGEST_TEXT = 100_000


def already_a_word(token: str) -> TokenError:
    """That a placeholder is a word already."""
    like = f"<my-{token.strip('<>')}>"
    return TokenError(f"token {token!r} is already a word of the model's vocabulary; choose a new one, like {like}")


def not_a_word(initializer: str) -> TokenError:
    """That an initializer is not a word."""
    return TokenError(
        f"initializer {initializer!r} is unknown to the model's tokenizer; choose a plain word for the subject's kind, "
        'like "dog"'
    )


def check_new(tokenizer: Any, token: str) -> None:
    """Refuse a placeholder that the model already knows as a word."""
    words = tokenizer.get_vocab()
    if token in words or token.lower() + "</w>" in words:
        raise already_a_word(token)


def initial_vectors(
    tokenizers: Sequence[Any],
    text_encoders: Sequence[nn.Module],
    initializer: str,
    num_vectors: int,
    mode: str = "single",
) -> torch.Tensor:
    """The starting token, float32 ``[num_vectors, sum of dims]`` on the CPU, from a word's embedding.

    A one-token initializer starts every vector; ``mode="mean"`` starts them with the mean of
    several tokens, ``mode="first"`` gives one token to each vector, as many as there are.
    For a model of several text encoders, each gives its part of the vectors.

    Raises:
        TokenError: an initializer that is unknown, or of several tokens with ``mode="single"``.
    """
    ids = _initializer_ids(tokenizers[0], initializer, num_vectors, mode)
    rows = torch.cat([table_of(encoder).rows(ids) for encoder in text_encoders], dim=1)
    if mode == "mean":
        rows = rows.mean(dim=0, keepdim=True)
    missing = max(0, num_vectors - len(rows))
    return torch.cat([rows[:num_vectors], rows[-1:].expand(missing, -1)])


def check_initializer(tokenizer: Any, initializer: str, num_vectors: int, mode: str) -> None:
    """Refuse an initializer that :func:`initial_vectors` could not start from. Needs no text encoder.

    Raises:
        TokenError: as there.
    """
    _initializer_ids(tokenizer, initializer, num_vectors, mode)


def _initializer_ids(tokenizer: Any, initializer: str, num_vectors: int, mode: str) -> list[int]:
    ids = _plain_ids(tokenizer, initializer)
    if not ids or tokenizer.eos_token_id in ids:
        raise not_a_word(initializer)
    if mode == "single" and len(ids) > 1 and len(ids) != num_vectors:
        pieces = ", ".join(piece.replace("</w>", "") for piece in tokenizer.convert_ids_to_tokens(ids))
        first = f"first {num_vectors}" if num_vectors > 1 else "first"
        raise TokenError(
            f"initializer {initializer!r} is {len(ids)} tokens ({pieces}); choose a one-token word, or set "
            f"initializer_mode to mean for their mean or to first for the {first}, or num_vectors to {len(ids)} "
            f"(on the command line --init-mode mean, --init-mode first, --vectors {len(ids)})"
        )
    return ids


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    if len(text) > LONGEST_TEXT:
        raise CaptionError(f"a text of {len(text)} characters is too long, models read some 300; shorten {text[:40]!r}")
    try:
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    except Exception as error:  # the library raises whatever damaged files make it
        raise ModelError(
            f"model: its tokenizer cannot read {text[:80]!r} ({error}); its files may be damaged, copy them again"
        ) from error


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids ``[1, length]``, the positions at which vectors stand, and which rows stand in each place."""

    ids: torch.Tensor
    positions: tuple[int, ...]
    places: tuple[range, ...]

    @property
    def rows(self) -> tuple[int, ...]:
        """Whose row stands at each of the positions."""
        return tuple(row for place in self.places for row in place)


def encode_prompt(tokenizer: Any, text: str, rows: Rows, where: str = "the prompt") -> EncodedPrompt:
    """Tokenise a prompt in which each ``{}`` stands for vectors; padded, never cut.

    The places are held by the end-of-text-free id of an ordinary letter, so that a text encoder
    finds its end of text where it should.

    Args:
        tokenizer: of a text encoder.
        text: the prompt.
        rows: what each ``{}`` stands for: one number of vectors where all are the token that is trained, which may as
            well have fewer; else for each its rows, or how many of those that come next.
        where: names the text in errors.

    Raises:
        CaptionError: the prompt is longer than the model reads.
    """
    length = tokenizer.model_max_length
    holder = _plain_ids(tokenizer, "a")[0]
    ids = [tokenizer.bos_token_id]
    positions: list[int] = []
    first, *parts = text.split(SLOT)
    places = rows_of(rows, len(parts))
    if first.strip():
        ids += _plain_ids(tokenizer, first)
    for place, part in zip(places, parts, strict=True):
        positions += range(len(ids), len(ids) + len(place))
        ids += [holder] * len(place)
        if part.strip():
            ids += _plain_ids(tokenizer, part)
    ids.append(tokenizer.eos_token_id)
    if len(ids) > length:
        raise _too_long(text, len(ids), length, rows, where)
    ids += [tokenizer.pad_token_id] * (length - len(ids))
    return EncodedPrompt(torch.tensor([ids]), tuple(positions), places)


def _too_long(text: str, has: int, reads: int, rows: Rows, where: str) -> CaptionError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    one = isinstance(rows, int)
    sizes = [len(place) for place in rows_of(rows, 1)]
    trained = one or all(isinstance(each, range) for each in rows)  # type: ignore[union-attr]
    counted = f", with {sum(sizes)} for {'the placeholder' if one else 'its tokens'}" if sum(sizes) else ""
    fewer = " or use fewer vectors" if trained and max(sizes, default=0) > 1 else ""
    return CaptionError(f"{where} {shown!r} is {has} tokens long{counted}; the model reads {reads}: shorten it{fewer}")


@contextlib.contextmanager
def placed(text_encoder: nn.Module, prompt: EncodedPrompt, candidates: torch.Tensor) -> Iterator[torch.Tensor]:
    """Within this context a forward of the yielded ids sees row k's token in row k's places.

    Args:
        candidates: float tensor ``[K, num_vectors, dim]``.

    Yields:
        The ids to encode, ``[K, length]``, on the text encoder's device.
    """
    table = table_of(text_encoder)
    table.keep(prompt.ids[0].tolist())
    device = table.weight.device
    places, rows = (torch.tensor(each, dtype=torch.long, device=device) for each in (prompt.positions, prompt.rows))
    with filled(text_encoder, places, rows, candidates):
        yield prompt.ids.to(device).expand(len(candidates), -1)


@contextlib.contextmanager
def filled(
    text_encoder: nn.Module, places: torch.Tensor, rows: torch.Tensor, candidates: torch.Tensor
) -> Iterator[None]:
    """Within this context row k of a forward has candidate k's vectors in the places.

    Args:
        text_encoder: whose table was told to keep the ids.
        places: int64 ``[P]``, on the text encoder's device.
        rows: likewise, which of a candidate's vectors stands in each place.
        candidates: float tensor ``[K, num_vectors, dim]``, there as well or not.
    """

    def fill(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        vectors = candidates.to(output.device, output.dtype).index_select(1, rows)
        return output.index_copy(1, places, vectors)

    hook = table_of(text_encoder).register_forward_hook(fill)
    try:
        yield
    finally:
        hook.remove()
