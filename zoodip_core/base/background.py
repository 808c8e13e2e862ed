"""Work beside other work, in a thread that holds up nobody's end."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
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


def share_out(items: Iterable[T], work: Callable[[T], object], threads: int) -> None:
    """Do ``work`` on each item, on several at once, in threads in which a stop shows as it does here.

    What it raises is raised here, once all that had begun is done; what had not is left.
    """
    with ThreadPoolExecutor(threads, "zoodip-share") as pool:
        for _ in pool.map(lambda item: item[0].run(work, item[1]), [(contextvars.copy_context(), i) for i in items]):
            pass
