"""Directions in the shape of the vocabulary: where words differ most, a new word is looked for first.

Most of the directions in which a token could move mean little to a model: its words use few of them. Random
directions of the words' own shape spend their forward passes where something can be found. What the words' table
lacks can still be reached, in smaller steps: a hard cut would cap what can be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..model.words import word_ids as word_ids
from ..model.words import word_rows
from ..search.preconditioner import Spread, spread_of


def vocabulary_spread(tokenizers: Sequence[Any], text_encoders: Sequence[nn.Module]) -> Spread:
    """The spread of a Stable Diffusion's words, over all its text encoders together. The table is read in pieces.

    Random directions stretched by it are, on the root mean square, as long as words are far from their mean; so a
    perturbation size mu = 1 and a learning rate mean the same for every model.

    Raises:
        Stopped: a stop was asked for.
    """
    return spread_of(word_rows(tokenizers, text_encoders))
