"""Stopping long work between two forward passes.

Whoever starts the work says how a stop shows; whatever takes long asks here before each forward. So
nothing between the two has to hand it on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar


class Stopped(Exception):  # noqa: N818 - not an error
    """The work was left because a stop was asked for; so no :class:`ZoodipError`."""


_asked: ContextVar[Callable[[], bool]] = ContextVar("asked", default=lambda: False)


@contextlib.contextmanager
def stopped_by(asked: Callable[[], bool]) -> Iterator[None]:
    """Within this context, in this thread, work is left once ``asked()`` is true, or what a context around it asks."""
    around = _asked.get()
    before = _asked.set(lambda: around() or asked())
    try:
        yield
    finally:
        _asked.reset(before)


def check_stop() -> None:
    """Called before each forward pass and between the layers that are loaded.

    Raises:
        Stopped: a stop was asked for.
    """
    if _asked.get()():
        raise Stopped
