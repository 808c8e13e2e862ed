"""What a user is told of a token when its run is over: why it may be of less use than it could be."""

from __future__ import annotations

import torch

from ..base.texts import how_many
from ..model.nearest import FAR, distances
from ..model.token_model import TokenModel
from .config import TrainConfig


def far_out(config: TrainConfig, model: TokenModel, theta: torch.Tensor, radius: float) -> str | None:
    """That a token lies far from the words, where directions that know of them did not keep it near.

    Args:
        config: of the run.
        model: whose words they are.
        theta: float ``[num_vectors, dim]``, of several tokens one below the other.
        radius: within which the search kept it, 0 for none.

    Raises:
        Stopped: a stop was asked for.
    """
    if 0 < radius <= FAR:
        return None
    each = distances(theta, model.word_rows(), model.info.dims).amax(dim=1)
    farthest, row = float(each.max()), int(each.argmax())
    if farthest <= FAR:
        return None
    token = config.tokens[row // config.num_vectors]
    return (
        f"{token} lies {farthest:.0f} times as far from the words' mean as words do; past {FAR:.0f} a token may show "
        "less of what it has learned. The preset default keeps it within 6 times (radius)"
    )


def pulled_away(config: TrainConfig, before: float, now: float, steps: int) -> str | None:
    """That a target prompt pulled harder than the pictures, until nothing of them was left.

    Args:
        config: of the run.
        before: the mean loss on the pictures of what it began as.
        now: that of what it learned.
        steps: that it took.
    """
    if now < before:
        return None
    tokens, words = ", ".join(config.tokens), ", ".join(dict.fromkeys(config.initializers))
    return (
        f"{tokens} explains its pictures no better than {words}, where it began (loss {now:.4g}, {before:.4g} then): "
        f"alignment {config.alignment:g} is too strong for {how_many(steps, 'step')}. Set it lower, or take more steps"
    )
