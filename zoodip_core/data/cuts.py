"""How a picture is cut to what a model is shown: worked out from its size alone, the same for all that lies over it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from PIL import Image

from ..base.errors import ConfigError

CROPS = ("center", "resize")
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
        crop: one of :data:`CROPS`: the square in its middle, or all of it, squeezed into a square.

    Raises:
        ConfigError: an unknown ``crop``.
    """
    check_crop(crop)
    square = (resolution, resolution)
    box = _middle(size, square) if crop == "center" else (0.0, 0.0, float(size[0]), float(size[1]))
    return Cut(size, box, square)


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
