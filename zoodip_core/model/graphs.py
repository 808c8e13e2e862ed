"""CUDA graphs: a forward's kernels launched as one."""

from __future__ import annotations

from collections.abc import Callable

import torch

Work = Callable[[], torch.Tensor]
Capture = Callable[[Work], Work]
"""Turns work into what does the same again, from and into the same memory."""
MOST_SHAPES = 4
"""Of a run's pictures for which its work is captured at most: each takes memory, that of others is launched plainly."""


def capture_on(device: torch.device) -> Capture | None:
    """What captures work on a device; None where nothing can."""
    return _Graphs(device).capture if device.type == "cuda" else None


class _Graphs:
    """Graphs whose temporaries share memory: one runs after the other, and what it leaves there is read at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Work) -> Work:
        """Work that was done before, as a graph. What it read and wrote then is where it will read and write.

        Raises:
            RuntimeError: it cannot be captured, or there is no room.
        """
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # the temporaries of the work as it was done before
        # thread_local: other threads of a host may use the card meanwhile.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            result = work()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay
