"""Directions in the shape of the vocabulary: where words differ most, a new word is looked for first.

Most of the directions in which a token could move mean little to a model: its words use few of them. Random
directions of the words' own shape spend their forward passes where something can be found. What the words' table
lacks can still be reached, in smaller steps: a hard cut would cap what can be learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..base.stopping import check_stop
from ..model.token_table import table_of
from ..search.preconditioner import Spread, spread_of

_ROWS = 16_384
"""Read at a time: of some files each reading is one of the whole table."""
_FEWEST = 32


def vocabulary_spread(tokenizers: Sequence[Any], text_encoders: Sequence[nn.Module]) -> Spread:
    """The spread of a model's words, over all its text encoders together. The table is read in pieces.

    Random directions stretched by it are, on the root mean square, as long as words are far from their mean; so a
    perturbation size mu = 1 and a learning rate mean the same for every model.

    Raises:
        Stopped: a stop was asked for.
    """
    ids = word_ids(tokenizers[0])
    tables = [table_of(encoder) for encoder in text_encoders]

    def rows() -> Iterator[torch.Tensor]:
        for first in range(0, len(ids), _ROWS):
            check_stop()
            yield torch.cat([table.rows(ids[first : first + _ROWS]) for table in tables], dim=1)

    return spread_of(rows())


def word_ids(tokenizer: Any) -> list[int]:
    """The vocabulary's whole words; all of it where it has hardly any."""
    vocabulary = tokenizer.get_vocab()
    end = "</w>"
    words = [i for text, i in vocabulary.items() if text.endswith(end) and len(text) > len(end) + 1]
    return sorted(words if len(words) >= _FEWEST else vocabulary.values())
