"""Where a learned vector lies among a model's words: how far out, and which are near."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from .token_table import table_of
from .words import in_pieces, word_ids

FAR = 20.0
"""Times the words' own distance from their mean. A token keeps all it has learned up to 10, and at 30 has lost some of
it (``benchmarks/RESULTS.md``, What a token's length does)."""


@dataclass(frozen=True)
class Place:
    """Of one vector in one text encoder's vocabulary.

    Args:
        distance: from the words' mean, in the root mean square of the words' own distances.
        words: the words whose directions from that mean are nearest to the vector's, and the cosines, nearest first.
    """

    distance: float
    words: tuple[tuple[str, float], ...]


def places(vectors: torch.Tensor, tokenizer: Any, text_encoder: nn.Module, count: int = 5) -> list[Place]:
    """For each vector ``[num_vectors, dim]`` its place.

    Args:
        count: how many words.

    Raises:
        Stopped: a stop was asked for.
    """
    table, ids = table_of(text_encoder), word_ids(tokenizer)
    mean, size = words_middle(tokenizer, text_encoder)
    apart = vectors.double() - mean
    own, cosines = normalize(apart, dim=1), []
    for some in in_pieces(ids):
        cosines.append(own @ normalize(table.rows(some).double() - mean, dim=1).T)
    near = torch.cat(cosines, dim=1).topk(min(count, len(ids)), dim=1)
    distances = apart.norm(dim=1).tolist()
    return [
        Place(distance / size, tuple(zip(_names(tokenizer, [ids[i] for i in at]), values, strict=True)))
        for distance, at, values in zip(distances, near.indices.tolist(), near.values.tolist(), strict=True)
    ]


def words_middle(tokenizer: Any, text_encoder: nn.Module) -> tuple[torch.Tensor, float]:
    """The words' mean, float64 ``[dim]``, and the root mean square of their distances from it.

    Raises:
        Stopped: a stop was asked for.
    """
    table, ids = table_of(text_encoder), word_ids(tokenizer)
    mean, variances = _moments(table.rows(some) for some in in_pieces(ids))
    return mean, float(variances.sum()) ** 0.5


def distances(vectors: torch.Tensor, pieces: Iterable[torch.Tensor], widths: Sequence[int]) -> torch.Tensor:
    """How far vectors lie from the words' mean, in the root mean square of the words' own: float64 ``[N, parts]``.

    Args:
        vectors: ``[N, sum of widths]``.
        pieces: all words' rows, ``[some, sum of widths]``.
        widths: of the parts that rows consist of, one for each text encoder.

    Raises:
        Stopped: a stop was asked for.
    """
    mean, variances = _moments(pieces)
    parts = zip((vectors.double() - mean).split(list(widths), dim=1), variances.split(list(widths)), strict=True)
    return torch.stack([part.norm(dim=1) / variance.sum().sqrt() for part, variance in parts], dim=1)


def _moments(pieces: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and variance of each number of all rows, float64."""
    count, total, square = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for piece in pieces:
        rows = piece.double()
        count, total, square = count + len(rows), total + rows.sum(dim=0), square + rows.square().sum(dim=0)
    mean = total / count
    return mean, (square / count - mean.square()).clamp(min=0)


def _names(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [str(name).removesuffix("</w>") for name in tokenizer.convert_ids_to_tokens(list(ids))]
