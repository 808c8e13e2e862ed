"""How much memory a run takes: weights, activations, search, process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


@dataclass(frozen=True)
class MemoryReport:
    """Bytes in use by a training run.

    Args:
        weights: stored weights by component.
        search: the search's own tensors, at their largest.
        training: activation peak of one training step's forward, all candidates at once.
        inference: activation peak of the same forward outside of training.
        process: peak of the whole process so far, or None where the system does not tell.
    """

    weights: dict[str, int]
    search: int
    training: int
    inference: int
    process: int | None

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_mb(size)}" for name, size in self.weights.items())
        lines = (
            f"weights {_mb(sum(self.weights.values()))} ({parts}), search {_mb(self.search)}, activations at peak "
            f"{_mb(self.training)} (inference of that batch: {_mb(self.inference)})"
        )
        return lines + (f", process {_mb(self.process)}" if self.process else "")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def activation_peak(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that ``work`` held at once, above what was held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Meter() as meter:
        work()
    return meter.peak


_PLAIN = (torch.Tensor, torch.nn.Parameter)


class _Meter(TorchDispatchMode):
    """Adds up the storages that operations make, as long as each lives."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind not in _PLAIN for kind in types):
            return NotImplemented  # a quantised tensor: let it unfold, and see the operations inside
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:  # else a view, or changed in place
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_flatten(tree)[0] if type(leaf) in _PLAIN]


def process_peak() -> int | None:
    """Peak resident bytes of this process, or None on systems that do not say."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
