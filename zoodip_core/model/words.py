"""The words of a model's vocabulary, and their embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..base.stopping import check_stop
from .token_table import table_of

_ROWS = 16_384
"""Read at a time: of some files each reading is one of the whole table."""
_FEWEST = 32
_MARKS = ("\u2581", "\u0120")
"""Before a word's first piece: of SentencePiece, of byte-level BPE."""


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
    end = "</w>"
    words = [i for text, i in vocabulary.items() if text.endswith(end) and len(text) > len(end) + 1]
    if len(words) < _FEWEST:
        words = [
            i for text, i in vocabulary.items() if text.startswith(_MARKS) and text[1:].isalpha() and len(text) > 2
        ]
    return sorted(words if len(words) >= _FEWEST else vocabulary.values())
