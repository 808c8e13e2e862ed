"""How much memory a run takes: predicted before anything is loaded, measured once it runs."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..base.errors import NoRoomError
from .blueprint import Blueprint
from .building import check_whole
from .dry_run import Sides, encoding_needs, peak_of, step_needs
from .graphs import MOST_SHAPES
from .memory_use import MemoryPlan, MemoryUse, megabytes

CUDA_CONTEXT = 450_000_000
"""What CUDA itself takes on the card: its context and the libraries' workspaces."""
GRAPHS = 100_000_000
"""What a captured step takes besides its activations: 70 to 96 MB on an H100, SD1.5 in int8 with n = 2.

Counted for each shape of pictures, though part of it is the libraries' and there once for all.
"""
_LARGEST_CONTEXT = 1_000_000_000
"""If more is taken on a card besides our tensors, other programs are at work on it."""
_KEPT_FREE = 0.095
_KEPT_FREE_AT_LEAST = 11_000_000
_SPARE = 1.05


# ---------------------------------------------------------------- predicted


def predict_memory(
    blueprint: Blueprint,
    weights: str,
    dtype: torch.dtype,
    device: torch.device,
    resolution: Sides,
    batch: int,
    *,
    text_apart: bool = False,
) -> MemoryUse:
    """What a run will take, from a dry run without content; takes about a second the first time, and no memory.

    Args:
        blueprint: the model.
        weights: their storage.
        dtype: of activations.
        device: where it runs; need not be there.
        resolution: pixels a side, or height and width, of the largest picture.
        batch: candidates in one forward.
        text_apart: text encoders compute on the CPU, the rest on another device.

    Raises:
        ModelError: the model lacks something, or cannot be built.
    """
    check_whole(blueprint)  # here, since whoever looks at a model or begins a training comes by before the long part
    step = step_needs(blueprint, weights, dtype, resolution, batch)
    stored = {"unet": step.weights["unet"]} if text_apart else dict(step.weights)
    encoding = encoding_needs(blueprint, dtype, resolution)
    if device.type == "cuda":
        fixed = cuda_context(device) + _kept_free(max(encoding, sum(stored.values()) + step.activations))
    else:  # on a CPU oneDNN copies a layer's weight into its own order, and its input and output as well
        fixed = 2 * step.largest * dtype.itemsize if device.type == "cpu" else 0
    return MemoryUse(stored, step.activations, encoding, fixed)


def _kept_free(allocated: int) -> int:
    """Bytes that CUDA's allocator reserves beyond those of tensors.

    It asks for memory in pieces, of which some is left over. Seen at the peak on an H100, in MB: SD1.5 at 512 px in
    int8 with n = 2 1,166 allocated and 1,229 reserved, its candidates in turn 1,035 and 1,141, in int4 717 and 795;
    SDXL at 1024 px 3,873 and 4,251, in turn 3,527 and 3,752. This comes out at 1,288, 1,144, 796, 4,252 and 3,873:
    never below, and with the context of 520 MB at most 3.4 % above.
    """
    return int(_KEPT_FREE * allocated) + _KEPT_FREE_AT_LEAST


def cuda_context(device: torch.device) -> int:
    """What CUDA itself takes on this card: seen where the card is in use by this process alone, else what is usual.

    A card that this process has not touched is not touched to find out.
    """
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return CUDA_CONTEXT
    free, whole = torch.cuda.mem_get_info(device)
    taken = whole - free - torch.cuda.memory_reserved(device)
    return taken if taken <= _LARGEST_CONTEXT else CUDA_CONTEXT


def plan(
    blueprint: Blueprint,
    weights: str,
    dtype: torch.dtype,
    device: torch.device,
    resolution: int,
    candidates: int,
    batch: int = 0,
    free: int | None = None,
    graphs: int = 0,
    largest: tuple[int, int] | None = None,
) -> MemoryPlan:
    """The fastest layout that fits into the device's free memory.

    Args:
        candidates: of a step.
        batch: candidates in one forward, if it is fixed; 0 to choose.
        free: bytes to do with; what the device has if None.
        graphs: for how many shapes of pictures a step is to be captured, where the device can and there is room.
        largest: height and width of the largest picture; the square's if None.

    Raises:
        NoRoomError: nothing fits; says what would.
    """
    free = free_memory(device) if free is None else free

    sides: Sides = largest or resolution

    def use(weights: str, resolution: Sides, batch: int, text_apart: bool) -> MemoryUse:
        return predict_memory(blueprint, weights, dtype, device, resolution, batch, text_apart=text_apart)

    sizes = [min(batch, candidates)] if batch else sorted({candidates, (candidates + 1) // 2, 1}, reverse=True)
    layouts = [(size, False) for size in sizes] + ([(sizes[-1], True)] if device.type != "cpu" else [])
    for size, text_apart in layouts:
        found = MemoryPlan(size, text_apart, use(weights, sides, size, text_apart))
        if found.use.total * _SPARE > free:
            continue
        for shapes in range(min(graphs, MOST_SHAPES) if device.type == "cuda" else 0, 0, -1):
            captured = replace(found.use, graphs=shapes * GRAPHS)
            if captured.total * _SPARE <= free:
                return replace(found, use=captured, captured=shapes)
        return found
    in_turn = [("candidates in turn (batch 1)", use(weights, sides, 1, False).total)] if batch > 1 else []
    smaller = in_turn + [
        (f"weights {other} at {side} px", use(other, side, 1, layouts[-1][1]).total)
        for other in dict.fromkeys((weights, "int4"))
        for side in dict.fromkeys((resolution, resolution * 3 // 4 // 64 * 64, resolution // 2 // 64 * 64))
        if side >= 64 and (other, side) != (weights, resolution)
    ]
    fits = [f"{how} takes {megabytes(size)}" for how, size in smaller if size * _SPARE <= free]
    advice = f"What would fit: {'; '.join(fits)}" if fits else "Free some memory, or use a smaller model"
    raise NoRoomError(
        f"{blueprint.info.name} with {weights} weights at {resolution} px takes {megabytes(found.use.total)}, and "
        f"{megabytes(free)} is free on {device}. {advice}"
    )


def free_memory(device: torch.device) -> int:
    """Bytes that the device has left."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0]) + cuda_context(device)
    import psutil

    return int(psutil.virtual_memory().available)


# ---------------------------------------------------------------- measured


class Watch:
    """How much memory a run really takes, from its making on.

    Args:
        device: where the run computes.
    """

    def __init__(self, device: torch.device) -> None:
        import psutil

        _restart_process_peak()
        self._device = device
        self._before = psutil.Process().memory_info().rss
        self._peak_before = process_peak()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def grown(self) -> int | None:
        """Peak bytes so far: of CUDA's allocator and context, or by which the process grew.

        None where that is not known, as on systems that cannot start the peak again when it was higher before.
        """
        if self._device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._device) + cuda_context(self._device)
        peak = process_peak()
        if peak is None or self._peak_before is None or peak <= self._peak_before:
            return None
        return peak - self._before


def activation_peak(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that ``work`` held at once, above what was held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return peak_of(work)


def process_peak() -> int | None:
    """Peak resident bytes of this process, or None on systems that do not say."""
    import psutil

    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    try:  # Linux; its ru_maxrss begins with the parent's
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else None
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _restart_process_peak() -> None:
    with contextlib.suppress(OSError):  # Linux alone can
        Path("/proc/self/clear_refs").write_text("5")
