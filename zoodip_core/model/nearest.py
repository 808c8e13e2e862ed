"""Where a learned vector lies among a model's words: how far out, and which are near."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import normalize

from .embedding import Embedding
from .token_table import table_of
from .words import Vocabulary, in_pieces, word_ids

FAR = 20.0
"""Times the words' own distance from their mean. A token keeps all it has learned up to 10, and at 30 has lost some of
it (``benchmarks/RESULTS.md``, What a token's length does)."""


class Near(NamedTuple):
    """A word near a vector.

    Args:
        word: as people write it.
        cosine: between its direction and the vector's, both from the words' mean.
        distance: of the two, in the root mean square of the words' distances from their mean.
    """

    word: str
    cosine: float
    distance: float


@dataclass(frozen=True)
class Place:
    """Of one vector in one text encoder's vocabulary.

    Args:
        distance: from the words' mean, in the root mean square of the words' own distances.
        words: those whose directions from that mean are nearest to the vector's, nearest first.
        length: of the vector, in the root mean square of the words' lengths.
    """

    distance: float
    words: tuple[Near, ...]
    length: float


def places_of(embedding: Embedding, vocabularies: Sequence[Vocabulary], count: int = 5) -> list[list[Place]]:
    """For each text encoder the :func:`places` of an embedding's vectors, which fit the vocabularies.

    Raises:
        Stopped: a stop was asked for.
    """
    pairs = zip(embedding.tensors, vocabularies, strict=True)
    return [places(rows, vocabulary, count) for rows, vocabulary in pairs]


def places(vectors: torch.Tensor, vocabulary: Vocabulary, count: int = 5) -> list[Place]:
    """For each vector ``[num_vectors, dim]`` its place.

    Args:
        count: how many words.

    Raises:
        Stopped: a stop was asked for.
    """
    ids = list(vocabulary.names)
    mean, variances = _moments(vocabulary.rows(some) for some in in_pieces(ids))
    size, usual = float(variances.sum()) ** 0.5, float((variances + mean.square()).sum()) ** 0.5
    apart = vectors.double() - mean
    own, cosines = normalize(apart, dim=1), []
    for some in in_pieces(ids):
        cosines.append(own @ normalize(vocabulary.rows(some).double() - mean, dim=1).T)
    near = torch.cat(cosines, dim=1).topk(min(count, len(ids)), dim=1)
    return [
        Place(
            float(vector.sub(mean).norm()) / size,
            tuple(_near(vector, [ids[i] for i in at], values, vocabulary, size)),
            float(vector.norm()) / usual,
        )
        for vector, at, values in zip(vectors.double(), near.indices.tolist(), near.values.tolist(), strict=True)
    ]


def told(found: Sequence[Sequence[Place]], vocabularies: Sequence[Vocabulary]) -> list[str]:
    """The :func:`places_of` an embedding as lines for people."""
    lines = []
    for number, own in enumerate(zip(*found, strict=True), start=1):
        for place, vocabulary in zip(own, vocabularies, strict=True):
            encoder = f", {vocabulary.encoder}" if len(vocabularies) > 1 else ""
            lines.append(
                f"vector {number}{encoder}: {place.length:.2f} times as long as words, {place.distance:.2f} times as "
                "far from their mean"
            )
            width = max((len(near.word) for near in place.words), default=0)
            lines += [
                f"  {near.word:<{width}}  cosine {near.cosine:.3f}  distance {near.distance:.2f}"
                for near in place.words
            ]
    return lines


def _near(
    vector: torch.Tensor, ids: Sequence[int], cosines: Sequence[float], vocabulary: Vocabulary, size: float
) -> list[Near]:
    far = (vocabulary.rows(ids).double() - vector).norm(dim=1) / size
    return [Near(vocabulary.names[i], *each) for i, *each in zip(ids, cosines, far.tolist(), strict=True)]


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
