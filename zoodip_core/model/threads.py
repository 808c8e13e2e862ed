"""How many threads an operation takes on the CPU."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_MOST = 4
_lock = threading.Lock()
_before: list[int] = []
"""What was set before, for each who is in :func:`one_thread_an_operation` now."""


@contextlib.contextmanager
def one_thread_an_operation() -> Iterator[int]:
    """Have each of PyTorch's operations in one thread, and yield in how many work can be shared out.

    Threads of one operation wait for the slowest of them: where other work has a core, that takes most of the time.
    """
    with _lock:
        threads = _before[0] if _before else torch.get_num_threads()
        _before.append(threads)
        torch.set_num_threads(1)
    try:
        yield min(threads, _MOST)
    finally:
        with _lock:
            _before.pop()
            if not _before:
                torch.set_num_threads(threads)
