"""Work beside other work, in a thread that holds up nobody's end."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(work: Callable[[], T]) -> Future[T]:
    """Begin ``work`` in a thread, in which a stop shows as it does here. What it raises, ``result()`` raises.

    A process that ends does not wait for it, so it should only read.
    """
    made: Future[T] = Future()

    def run() -> None:
        try:
            made.set_result(work())
        except BaseException as error:  # a stop is none of Exception's concern
            made.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="zoodip-background", daemon=True).start()
    return made
