"""What a user is told of a token when its run is over: why it may be of less use than it could be."""

from __future__ import annotations

from collections.abc import Iterator

from ..model.nearest import FAR, distances
from .prepared import Training


def remarks(training: Training) -> Iterator[str]:
    """Lines on the token of a run that is over, mostly none. Some take forward passes.

    Raises:
        Stopped: a stop was asked for.
    """
    for line in (_far_out(training), _pulled_away(training)):
        if line:
            yield line


def _far_out(training: Training) -> str | None:
    """That a token lies far from the words, where directions that know of them did not keep it near."""
    search, model, config = training.search, training.model, training.config
    if 0 < search.radius <= FAR:
        return None
    each = distances(search.theta, model.word_rows(), model.info.dims).amax(dim=1)
    farthest, row = float(each.max()), int(each.argmax())
    if farthest <= FAR:
        return None
    return (
        f"{config.tokens[row // config.num_vectors]} lies {farthest:.0f} times as far from the words' "
        f"mean as words do; past {FAR:.0f} a token may show less of what it has learned. Directions vocabulary "
        "with radius 6 keep it nearer"
    )


def _pulled_away(training: Training) -> str | None:
    """That a target prompt pulled harder than the pictures, until nothing of them was left."""
    config = training.config
    if not config.aligned:
        return None
    before, now = training.plain_losses()
    if now < before:
        return None
    tokens, words = ", ".join(config.tokens), ", ".join(dict.fromkeys(config.initializers))
    return (
        f"{tokens} explains its pictures no better than {words}, where it began (loss {now:.4g}, {before:.4g} then): "
        f"alignment {config.alignment:g} is too strong for {training.search.step} steps. Set it lower, or take more "
        "steps"
    )
