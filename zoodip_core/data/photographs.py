"""Telling photographs from small drawings, for a model that can draw those alone."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

from ..base.errors import ImagesError
from .images import open_picture

_LARGER = 2
"""A picture with at most so many times a model's pixels a side is at its resolution, whatever is on it."""
_SIDE = 64
"""Of the grid of pixels that are looked at."""
_COLOURS, _GREYS = 400, 128
"""Of 4,096 pixels at least. Photographs have 1,800 to 3,800 colours, on a plain ground 570 and more, and grey ones some
200 levels; a picture of the embedded model, enlarged pixel by pixel, at most 182 colours, a flat drawing 60, as JPEG
260."""


def is_photograph(path: Path, resolution: int) -> bool:
    """Whether a file's picture is much larger than a model's ``resolution`` and has the many colours of a photograph.

    What cannot be opened is none.
    """
    try:
        return _is_photograph(path, path.stat().st_mtime_ns, resolution)
    except (OSError, ImagesError):  # it is told where it is loaded
        return False


@functools.lru_cache(maxsize=200)
def _is_photograph(path: Path, _changed: int, resolution: int) -> bool:
    picture = open_picture(path)
    if min(picture.size) <= _LARGER * resolution:
        return False
    sampled = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)).reshape(-1, 3)  # no colour is mixed
    is_grey = bool((sampled == sampled[:, :1]).all())
    return len(np.unique(sampled, axis=0)) >= (_GREYS if is_grey else _COLOURS)
