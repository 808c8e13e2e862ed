"""What tells one model of ComfyUI's from another, without reading its gigabytes: a few numbers of each tensor."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch

_COMPUTED = (torch.float32, torch.float16, torch.bfloat16)
_SAMPLED = 16
"""Numbers at the start, in the middle and at the end of each tensor."""


def fingerprint(*patchers: Any, hooks: Any = None) -> str:
    """SHA-256 of the names, shapes, types and some numbers of all weights, and of the patches on them.

    It is the same whether patches are applied at the moment or not, on whichever device the weights are. Of patches
    that are functions, as of nodes that change attention, it knows the names alone.

    Args:
        patchers: of ComfyUI's models.
        hooks: the group of hooks that a CLIP gives its prompts, such as LoRAs that the model has with them alone; None
            if it gives none.
    """
    digest = hashlib.sha256()
    for patcher in patchers:
        parts = _weights, _patches, _injected
        for piece in (*itertools.chain(*(part(patcher) for part in parts)), *_named(patcher.model_options)):
            digest.update(piece)
    for hook in hooks.hooks if hooks else ():
        for piece in _hooked(hook):
            digest.update(piece)
    return digest.hexdigest()


def _weights(patcher: Any) -> Iterator[bytes]:
    buffers = {**dict(patcher.model.named_buffers()), **getattr(patcher, "backup_buffers", {})}  # as the file has them
    state = {**dict(patcher.model.named_parameters()), **buffers}
    for name in sorted(state):
        if name.startswith("model_sampling."):  # of whichever MODEL is loaded: its schedule is told by itself
            continue
        before = patcher.backup.get(name)  # of weights on which a patch is applied
        hooked, _ = patcher.hook_backup.get(name, (state[name], None))  # a hook's comes on top of that
        yield name.encode()
        yield from _tensor(before.weight if before is not None else hooked)


def _patches(patcher: Any) -> Iterator[bytes]:
    for name in sorted(patcher.patches, key=str):
        for strength, patch, strength_model, offset, _function in patcher.patches[name]:
            yield f"{name} {strength} {strength_model} {offset}".encode()
            yield from _within(patch)


def _injected(patcher: Any) -> Iterator[bytes]:
    """What is laid on a model's layers while it computes: by names, and of LoRAs the weights that they bring.

    ComfyUI's node of LoRAs that leave a model's weights alone keeps them behind the function that lays them on. When
    they are laid on for the first time, their weights are given their layer's dtype, for good.
    """
    layers = {id(layer): name for name, layer in patcher.model.named_modules()} if patcher.injections else {}
    for name in sorted(patcher.injections):
        for injection in patcher.injections[name]:
            yield name.encode()
            yield from _named(injection.inject)
            for hook in _hooks_behind(injection.inject):
                dtype = getattr(getattr(hook.module, "weight", None), "dtype", None)
                yield f"{layers.get(id(hook.module))} {hook.multiplier}".encode()
                yield from _within(hook.adapter, dtype if dtype in _COMPUTED else None)


def _hooks_behind(function: Any) -> list[Any]:
    """Those of LoRAs that a function has at hand."""
    found: list[Any] = []
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # nothing is in it
            hooks = getattr(cell.cell_contents, "hooks", None)
            found += hooks if isinstance(hooks, list) else []
    return [hook for hook in found if all(hasattr(hook, name) for name in ("module", "adapter", "multiplier"))]


def _hooked(hook: Any) -> Iterator[bytes]:
    """What a hook does: the kind of it, its strengths over the steps, and the weights that it brings."""
    yield type(hook).__name__.encode()
    frames = [(frame.strength, frame.start_percent) for frame in hook.hook_keyframe.keyframes]
    yield f"{getattr(hook, '_strength_model', 1)} {getattr(hook, '_strength_clip', 1)} {frames}".encode()
    for weights in (getattr(hook, "weights", None), getattr(hook, "weights_clip", None)):
        for name, patch in sorted((weights or {}).items(), key=lambda pair: str(pair[0])):
            yield str(name).encode()
            yield from _within(patch)


def _named(value: Any) -> Iterator[bytes]:
    """The names of functions, and the numbers and texts, in a MODEL's options."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from _named(value[key])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _named(each)
    elif isinstance(value, str | int | float):
        yield str(value).encode()
    elif not torch.is_tensor(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        yield f"{named.__module__}.{named.__qualname__}".encode()


def _within(patch: Any, dtype: torch.dtype | None = None) -> Iterator[bytes]:
    """The tensors of a patch: a tuple, or an adapter with weights; in another dtype, if one is given."""
    if torch.is_tensor(patch):
        yield from _tensor(patch if dtype is None else patch.to(dtype))
    elif isinstance(patch, list | tuple):
        for each in patch:
            yield from _within(each, dtype)
    elif hasattr(patch, "weights"):
        yield type(patch).__name__.encode()
        yield from _within(patch.weights, dtype)
    elif isinstance(patch, str | int | float):
        yield str(patch).encode()


def _tensor(tensor: torch.Tensor) -> Iterator[bytes]:
    tensor = tensor.detach()
    yield f"{tuple(tensor.shape)} {tensor.dtype}".encode()
    if tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return
    flat = tensor.as_subclass(torch.Tensor).reshape(-1)
    middle = len(flat) // 2
    for some in (flat[:_SAMPLED], flat[middle : middle + _SAMPLED], flat[-_SAMPLED:]):
        yield some.cpu().contiguous().view(torch.uint8).numpy().tobytes()
