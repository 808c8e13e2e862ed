"""The words of a model's vocabulary, and their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..base.stopping import check_stop
from .kinds import STABLE_DIFFUSION
from .token_table import table_of

_ROWS = 16_384
"""Read at a time: of some files each reading is one of the whole table."""
_FEWEST = 32
_END = "</w>"
"""Behind a word's last piece, of CLIP's BPE."""
_MARKS = ("\u2581", "\u0120")
"""Before a word's first piece: of SentencePiece, of byte-level BPE."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a text encoder.

    Args:
        encoder: the text encoder's name, as in embedding files.
        names: the words as people write them, by their ids.
        rows: the embeddings ``[N, dim]`` of some ids, float32 on the CPU.
    """

    encoder: str
    names: Mapping[int, str]
    rows: Callable[[Sequence[int]], torch.Tensor]


def names_of_words(tokenizer: Any) -> dict[int, str]:
    """A vocabulary's words as people write them, by their ids, which ascend."""
    texts = {i: text for text, i in tokenizer.get_vocab().items()}
    return {i: texts[i].removesuffix(_END).removeprefix(_MARKS[0]).removeprefix(_MARKS[1]) for i in word_ids(tokenizer)}


def vocabularies(tokenizers: Sequence[Any], text_encoders: Sequence[nn.Module]) -> list[Vocabulary]:
    """The words of a Stable Diffusion, for each of its text encoders."""
    tables = [table_of(encoder) for encoder in text_encoders]
    encoders = STABLE_DIFFUSION.get(tuple(table.embedding_dim for table in tables), ("",) * len(tables))
    return [
        Vocabulary(encoder, names_of_words(tokenizer), table.rows)
        for encoder, tokenizer, table in zip(encoders, tokenizers, tables, strict=True)
    ]


def word_rows(tokenizers: Sequence[Any], text_encoders: Sequence[nn.Module]) -> Iterator[torch.Tensor]:
    """The embeddings of a Stable Diffusion's words in pieces ``[N, sum of dims]``, of all text encoders side by side.

    Raises:
        Stopped: a stop was asked for.
    """
    ids = word_ids(tokenizers[0])
    tables = [table_of(encoder) for encoder in text_encoders]
    for some in in_pieces(ids):
        yield torch.cat([table.rows(some) for table in tables], dim=1)


def in_pieces(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Ids in pieces of which the embeddings are read at a time.

    Raises:
        Stopped: a stop was asked for.
    """
    for first in range(0, len(ids), _ROWS):
        check_stop()
        yield ids[first : first + _ROWS]


def word_ids(tokenizer: Any) -> list[int]:
    """The vocabulary's whole words, by how its tokenizer marks them; all of it where it has hardly any."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    words = [i for text, i in vocabulary.items() if text.endswith(_END) and len(text) > len(_END) + 1]
    if len(words) < _FEWEST:
        words = [
            i for text, i in vocabulary.items() if text.startswith(_MARKS) and text[1:].isalpha() and len(text) > 2
        ]
    return sorted(words if len(words) >= _FEWEST else vocabulary.values())
