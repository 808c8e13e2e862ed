"""Embeddings made of others, and of a model's words: their weighted mean, or their vectors one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..base.errors import ConfigError, EmbeddingFileError
from ..base.names import file_stem
from ..base.texts import how_many
from ..base.version import __version__
from .embedding import Embedding
from .embedding_tensors import MOST_VECTORS
from .kinds import STABLE_DIFFUSION, model_of_widths
from .token_model import TokenModel

_KEPT = ("base_model", "base_model_hash", "family", "initializer")
"""What is kept of the metadata where it is the same in all."""


def of_word(model: TokenModel, word: str, num_vectors: int = 1) -> Embedding:
    """A model's own word as an embedding: each vector what the model has for it, the mean of its tokens if several.

    Raises:
        TokenError: the model's tokenizer does not know it.
    """
    vectors = model.initial_vectors(word, num_vectors, "mean")
    parts = tuple(part.contiguous() for part in vectors.split(model.info.dims, dim=1))
    about = {"base_model": model.info.name, "family": model.info.family, "initializer": word}
    return Embedding(word, parts, about, encoders=model.info.encoders)


def weighted_mean(embeddings: Sequence[Embedding], token: str, weights: Sequence[float] = ()) -> Embedding:
    """The mean of embeddings, computed in float64.

    Args:
        token: of the new one.
        weights: of each, of which only their ratios count; none for equal ones.

    Raises:
        ConfigError: weights that make no mean.
        EmbeddingFileError: embeddings of different models, or of different numbers of vectors.
    """
    weights = list(weights) or [1.0] * len(embeddings)
    if len(weights) != len(embeddings):
        raise ConfigError(f"weights: {len(weights)} for {how_many(len(embeddings), 'embedding')}; give one for each")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not 0 < sum(weights) < math.inf:
        raise ConfigError(f"weights {' '.join(map(str, weights))}: give numbers from 0 on that are not all 0")
    _check_together(embeddings)
    if len({each.num_vectors for each in embeddings}) > 1:
        found = ", ".join(f"{_called(each)} has {each.num_vectors}" for each in embeddings)
        raise EmbeddingFileError(
            f"a mean needs the same number of vectors in all: {found}; one after the other they may be put "
            "(--concatenate, the node's method)"
        )
    shares = [weight / sum(weights) for weight in weights]
    tensors = tuple(
        torch.stack([share * rows.double() for share, rows in zip(shares, parts, strict=True)]).sum(dim=0).float()
        for parts in zip(*(each.tensors for each in embeddings), strict=True)
    )
    parts = ", ".join(f"{weight:g} {_called(each)}" for weight, each in zip(weights, embeddings, strict=True))
    return _made(embeddings, token, tensors, f"mean of {parts}")


def concatenation(embeddings: Sequence[Embedding], token: str) -> Embedding:
    """The vectors of embeddings, one after the other.

    Args:
        token: of the new one.

    Raises:
        EmbeddingFileError: embeddings of different models, or more vectors than a prompt holds.
    """
    _check_together(embeddings)
    count = sum(each.num_vectors for each in embeddings)
    if count > MOST_VECTORS:
        raise EmbeddingFileError(f"{count} vectors are more than the {MOST_VECTORS} that a prompt holds; merge fewer")
    tensors = tuple(torch.cat(parts) for parts in zip(*(each.tensors for each in embeddings), strict=True))
    return _made(embeddings, token, tensors, f"vectors of {', '.join(map(_called, embeddings))}")


def notes_on(embeddings: Sequence[Embedding]) -> list[str]:
    """What a user should know who merges these, in lines."""
    models = sorted({name[:80] for each in embeddings if (name := each.metadata.get("base_model"))})
    if len(models) < 2:
        return []
    return [f"they were learned on different models of one family ({', '.join(models)}), which may know other words"]


def _made(embeddings: Sequence[Embedding], token: str, tensors: tuple[torch.Tensor, ...], of: str) -> Embedding:
    first = embeddings[0].metadata
    same = {
        key: first[key] for key in _KEPT if len({each.metadata.get(key) for each in embeddings}) == 1 if key in first
    }
    encoders = next((each.encoders for each in embeddings if each.encoders), ())
    return Embedding(token, tensors, {**same, "made_of": of, "zoodip_version": __version__}, encoders=encoders)


def _check_together(embeddings: Sequence[Embedding]) -> None:
    """Refuse fewer than two embeddings, and those of different text encoders.

    Raises:
        EmbeddingFileError: they are.
    """
    if len(embeddings) < 2:
        raise EmbeddingFileError("merging needs two embeddings or more")
    if len({each.dims for each in embeddings}) > 1 or len(set(filter(None, map(_encoders, embeddings)))) > 1:
        found = ", ".join(f"{_called(each)} is for {model_of_widths(each.dims, each.encoders)}" for each in embeddings)
        raise EmbeddingFileError(f"only tokens of one model family can be merged: {found}")


def _encoders(embedding: Embedding) -> tuple[str, ...]:
    """The names of its text encoders; empty where they are not known."""
    return embedding.encoders or STABLE_DIFFUSION.get(embedding.dims, ())


def _called(embedding: Embedding) -> str:
    """Its token, and its file where that is called otherwise."""
    token, alias = embedding.token[:80], embedding.alias[:80]
    return f"{token} of {alias}" if alias and alias != file_stem(embedding.token) else token
