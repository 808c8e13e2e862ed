"""How much memory a run takes: predicted before anything is loaded, measured once it runs."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ..base.errors import NoRoomError
from .blueprint import Blueprint
from .building import check_whole, empty_network, layers_to_quantize
from .quantize import stored_bytes, weights_of
from .quantized import QuantizedModel
from .quantized_parts import PARTS, Parts, part_shapes

CUDA_CONTEXT = 450_000_000
"""What CUDA itself takes on the card: its context and the libraries' workspaces."""
GRAPHS = 100_000_000
"""What a captured step takes besides its activations: 70 to 96 MB on an H100, SD1.5 in int8 with n = 2."""
_SPARE = 1.05
_META = torch.device("meta")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on the device that computes.

    Args:
        weights: of the UNet and the text encoders, quantised, by component.
        activations: peak of a training step above the weights.
        encoding: peak of encoding one image, the VAE's encoder included; it is gone before the UNet comes.
        fixed: what the device's runtime takes: CUDA's context, a CPU's reordered copies of a layer.
        graphs: what a step that is captured takes besides.
    """

    weights: Mapping[str, int]
    activations: int
    encoding: int
    fixed: int = 0
    graphs: int = 0

    @property
    def total(self) -> int:
        """Peak of the whole run."""
        return self.fixed + max(self.encoding, sum(self.weights.values()) + self.activations + self.graphs)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {megabytes(size)}" for name, size in self.weights.items())
        fixed = f", device's runtime {megabytes(self.fixed)}" if self.fixed else ""
        graphs = f", graphs {megabytes(self.graphs)}" if self.graphs else ""
        weights, activations = (megabytes(size) for size in (sum(self.weights.values()), self.activations))
        return (
            f"{megabytes(self.total)} in all: weights {weights} ({parts}), activations {activations}{graphs}{fixed}; "
            f"before that, encoding images {megabytes(self.encoding)}"
        )


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e9:.2f} GB"


# ---------------------------------------------------------------- predicted


@dataclass(frozen=True)
class _EmptyReader:
    """Parameters that have a shape and no content."""

    weights: str

    def parameter(self, _name: str, shape: Sequence[int]) -> torch.Tensor:
        return torch.empty(tuple(shape), device=_META)

    def quantized(self, _name: str, shape: torch.Size) -> Parts | None:
        shapes = part_shapes(shape, PARTS if self.weights == "int4" else PARTS[:2])
        parts = {name: self.parameter("", size) for name, size in shapes.items()}
        kind = {"int8": torch.int8, "int4": torch.uint8, "float8": torch.float8_e4m3fn}[self.weights]
        return {**parts, "data": parts["data"].to(kind)}

    def close(self) -> None:
        pass


class _NoAttentionMatrix(TorchFunctionMode):
    """Attention that makes its output alone, as the fused kernels do that run in earnest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(kwargs["query"] if kwargs and "query" in kwargs else args[0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def predict_memory(
    blueprint: Blueprint,
    weights: str,
    dtype: torch.dtype,
    device: torch.device,
    resolution: int,
    batch: int,
    *,
    text_apart: bool = False,
) -> MemoryUse:
    """What a run will take, from a dry run without content; costs about a second and no memory.

    Args:
        blueprint: the model.
        weights: their storage.
        dtype: of activations.
        device: where it runs; need not be there.
        resolution: pixels a side.
        batch: candidates in one forward.
        text_apart: text encoders compute on the CPU, the rest on another device.

    Raises:
        ModelError: the model lacks something, or cannot be built.
    """
    check_whole(blueprint)  # here, since whoever looks at a model or begins a training comes by before the long part
    readers: dict[str, Any] = {part: _EmptyReader(weights_of(part, weights)) for part in blueprint.readers}
    model = QuantizedModel(replace(blueprint, readers=readers), weights, dtype, _META, _META)
    dims, factor = sum(model.info.dims), 2 ** (len(blueprint.configs["vae"]["block_out_channels"]) - 1)
    noisy = torch.empty(1, 4, resolution // factor, resolution // factor, device=_META, dtype=dtype)
    prompt = model.prompt("a {}", 1)

    def forward() -> None:
        condition = model.encode(prompt, torch.empty(batch, 1, dims, device=_META))
        model.predict(noisy, 500, condition, torch.empty(6, device=_META))

    model.encode(prompt, torch.empty(1, 1, dims, device=_META))  # reads the rows of the token table that are kept
    stored = model.stored_bytes()
    if text_apart:
        stored = {"unet": stored["unet"]}
    with model.vae("encoder") as vae, _NoAttentionMatrix():
        picture = torch.empty(1, 3, resolution, resolution, device=_META, dtype=vae.dtype)
        encoding = stored_bytes(vae) + activation_peak(lambda: vae.encode(picture), _META)
        return MemoryUse(stored, activation_peak(forward, _META), encoding, _fixed(blueprint, dtype, device))


def _fixed(blueprint: Blueprint, dtype: torch.dtype, device: torch.device) -> int:
    if device.type == "cuda":
        return CUDA_CONTEXT
    # On a CPU oneDNN copies a layer's weight into its own order, and its input and output as well.
    layers = layers_to_quantize(empty_network(blueprint, "unet")).values()
    largest = max(layer.weight.numel() for layer in layers)
    return 2 * largest * dtype.itemsize if device.type == "cpu" else 0


@dataclass(frozen=True)
class MemoryPlan:
    """How a run is laid out.

    Args:
        batch: candidates in one forward.
        text_apart: whether the text encoders stay on the CPU.
        use: what it takes.
    """

    batch: int
    text_apart: bool
    use: MemoryUse

    @property
    def graphs(self) -> bool:
        """Whether a step is to be captured."""
        return self.use.graphs > 0


def plan(
    blueprint: Blueprint,
    weights: str,
    dtype: torch.dtype,
    device: torch.device,
    resolution: int,
    candidates: int,
    batch: int = 0,
    free: int | None = None,
    graphs: bool = False,
) -> MemoryPlan:
    """The fastest layout that fits into the device's free memory.

    Args:
        candidates: of a step.
        batch: candidates in one forward, if it is fixed; 0 to choose.
        free: bytes to do with; what the device has if None.
        graphs: whether a step is to be captured where the device can, and there is room.

    Raises:
        NoRoomError: nothing fits; says what would.
    """
    free = free_memory(device) if free is None else free

    def use(weights: str, resolution: int, batch: int, text_apart: bool) -> MemoryUse:
        return predict_memory(blueprint, weights, dtype, device, resolution, batch, text_apart=text_apart)

    sizes = [min(batch, candidates)] if batch else sorted({candidates, (candidates + 1) // 2, 1}, reverse=True)
    layouts = [(size, False) for size in sizes] + ([(sizes[-1], True)] if device.type != "cpu" else [])
    for size, text_apart in layouts:
        found = MemoryPlan(size, text_apart, use(weights, resolution, size, text_apart))
        if found.use.total * _SPARE > free:
            continue
        captured = replace(found.use, graphs=GRAPHS)
        if graphs and device.type == "cuda" and captured.total * _SPARE <= free:
            return replace(found, use=captured)
        return found
    in_turn = [("candidates in turn (batch 1)", use(weights, resolution, 1, False).total)] if batch > 1 else []
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
        return int(torch.cuda.mem_get_info(device)[0]) + CUDA_CONTEXT
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
            return torch.cuda.max_memory_allocated(self._device) + CUDA_CONTEXT
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
    with _Meter() as meter:
        work()
    return meter.peak


class _Meter(TorchDispatchMode):
    """Adds up the storages that operations make, as long as each lives."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given:  # else a view, or changed in place
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


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
