"""The sizes of a run's pictures, which differ where they keep their shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from ..base.texts import how_many
from ..data.images import ReferenceImage

_TOLD = 6


def shapes_in(images: Sequence[ReferenceImage]) -> int:
    """How many sizes there are."""
    return len({image.picture.size for image in images})


def largest_of(images: Sequence[ReferenceImage]) -> tuple[int, int]:
    """Height and width of the picture that takes the most memory."""
    width, height = max((image.picture.size for image in images), key=math.prod)
    return height, width


def sizes_in(images: Sequence[ReferenceImage]) -> str:
    """A line on how many pictures there are of which size, without those made of another; empty of squares alone."""
    sizes = Counter({image.path: image.picture.size for image in images}.values())
    if all(width == height for width, height in sizes):
        return ""
    count = sum(sizes.values())
    each = [f"{some} at {width} x {height}" for (width, height), some in sizes.most_common()]
    more = f" and {how_many(len(each) - _TOLD, 'size')} more" if len(each) > _TOLD else ""
    return f"{how_many(count, 'picture')}: {', '.join(each[:_TOLD])}{more}"
