"""Freed memory goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def give_back_freed() -> None:
    """Return freed memory to the system, where glibc would keep it.

    Small quantised weights that stay lie between large full-precision ones that went; without this a
    process keeps more than twice of what it uses.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
