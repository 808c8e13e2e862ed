"""How a picture is cut to what a model is shown: worked out from its size alone, the same for all that lies over it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from fractions import Fraction

from PIL import Image

from ..base.errors import ConfigError

CROPS = ("bucket", "center", "resize")
_UNIT, _LEAST_UNIT, _UNITS_A_SIDE = 64, 8, 8
"""Sides of buckets are multiples of 64 pixels; at resolutions below 512 of an eighth of it, where that can be drawn."""
_MOST_OBLONG = 4
"""How many times as long as the other one a side of a bucket may be: SDXL was shown no more, others hardly that."""
ENLARGED = 1.25
"""How much larger than a random cut the picture is that it is taken from."""


@dataclass(frozen=True)
class Cut:
    """What of a picture is used, and at what size. All sizes and boxes are in pixels, width before height.

    Args:
        original: size of the picture.
        box: left, top, right and bottom of what is used of it.
        size: of what comes out.
    """

    original: tuple[int, int]
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    def apply(self, picture: Image.Image, resampling: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
        """The cut of the picture, or of anything of its size, such as what lies over it."""
        return picture.resize(self.size, resampling, box=self.box)

    def enlarged(self) -> Cut:
        """The same of the picture, :data:`ENLARGED` times as large: what random cuts are taken from."""
        width, height = self.size
        return replace(self, size=(math.ceil(width * ENLARGED), math.ceil(height * ENLARGED)))

    def within(self, side: int) -> Cut:
        """The same at another size: ``side`` pixels at the longer side."""
        longer = max(self.size)
        width, height = (max(1, round(each * side / longer)) for each in self.size)
        return replace(self, size=(width, height))

    @property
    def scale(self) -> float:
        """How many times as large the picture becomes, by the side that grows more."""
        return max(self.size[0] / self.original[0], self.size[1] / self.original[1])

    @property
    def crop_top_left(self) -> tuple[int, int]:
        """(top, left) of the cut in the scaled picture, as SDXL is told it; (0, 0) where nothing is cut off."""
        (width, height), (left, top, right, bottom) = self.original, self.box
        if (left, top, right, bottom) == (0, 0, width, height):
            return 0, 0
        return (
            round((height * self.scale - self.size[1]) / 2),
            round((width * self.scale - self.size[0]) / 2),
        )


def cut_of(size: tuple[int, int], resolution: int, crop: str) -> Cut:
    """How a picture is cut.

    Args:
        size: its width and height.
        resolution: pixels a side.
        crop: one of :data:`CROPS`: what is largest in its middle of the shape of a bucket, or of a square; or all of
            it, squeezed into a square.

    Raises:
        ConfigError: an unknown ``crop``.
    """
    check_crop(crop)
    target = bucket_of(size, resolution) if crop == "bucket" else (resolution, resolution)
    box = (0.0, 0.0, float(size[0]), float(size[1])) if crop == "resize" else _middle(size, target)
    return Cut(size, box, target)


def bucket_of(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """The bucket whose shape is nearest to a picture's: the ratios of their sides differ by the least factor.

    Ratios are compared exactly, so that every computer chooses the same. Of two as near it is the one more square.
    """
    ratio = Fraction(*size)

    def off(bucket: tuple[int, int]) -> Fraction:
        own = Fraction(*bucket)
        return max(own / ratio, ratio / own)

    return min(buckets(resolution), key=off)


@functools.lru_cache
def buckets(resolution: int) -> tuple[tuple[int, int], ...]:
    """The sizes, width before height, that pictures of any shape are scaled to; the square comes first.

    None has more pixels than it: for each longer side the other one is as long as it can be. So NovelAI had them, and
    at 1024 pixels all of them are among those that SDXL was trained on.
    """
    unit = _unit(resolution)
    found = [(resolution, resolution)]
    for long in range(resolution + unit, 2 * resolution + 1, unit):
        short = resolution**2 // long // unit * unit
        if short and long <= _MOST_OBLONG * short:
            found += [(long, short), (short, long)]
    return tuple(found)


def _unit(resolution: int) -> int:
    """What sides of buckets are multiples of: the largest power of two that the square's are multiples of as well."""
    most = max(_LEAST_UNIT, min(_UNIT, resolution // _UNITS_A_SIDE))
    return max((unit for unit in (64, 32, 16, 8) if unit <= most and resolution % unit == 0), default=resolution)


def check_crop(crop: str) -> None:
    """Refuse what is none of :data:`CROPS`.

    Raises:
        ConfigError: it is not.
    """
    if crop not in CROPS:
        raise ConfigError(f"crop = {crop!r}: choose one of {', '.join(CROPS)}")


def _middle(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest box of the target's shape in the middle of a picture, as Pillow's ``ImageOps.fit`` has it."""
    (width, height), ratio = size, target[0] / target[1]
    across, down = float(width), float(height)
    if width / height > ratio:
        across = ratio * height
    elif width / height < ratio:
        down = width / ratio
    left, top = (width - across) * 0.5, (height - down) * 0.5
    return left, top, min(left + across, width), min(top + down, height)  # Pillow refuses a rounded edge outside
