"""Quantised copies of models on disk: the second load takes seconds and leaves the original alone.

A copy is one safetensors file: quantised layers, the rest as the model's own file has it, and the configs
in its header. (A diffusers folder's tokenizers stay where they are.) Copies are named after the hash of
the model's weights and configs, so a model that was moved or renamed keeps its copy; a copy, or the
whole folder, may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..base.errors import ModelError, StorageError
from ..base.files import make_folder, read_object, storage_errors, write_atomically, written_atomically
from .allocator import give_back_freed
from .blueprint import COPY_FORMAT, COPY_MARK, Blueprint, stored_name
from .building import check_finite, empty_network, giving_back, layers_to_quantize
from .copy_folder import COPIES, hold, tidy
from .kinds import CLIP_PATH
from .quantize import quantize_weight, weights_of
from .recognise import open_copy, open_model

INDEX = "index.json"
_CPU = torch.device("cpu")


def cached_model(
    model: Path,
    weights: str,
    folder: Path,
    prediction_type: str = "auto",
    *,
    clip: Sequence[str | Path] = (),
    vae: str | Path | None = None,
    device: torch.device = _CPU,
    keep: bool = True,
    made: Callable[[Path], None] = lambda copy: None,
) -> Blueprint | None:
    """The blueprint of a model's quantised copy, which is made if there is none yet.

    Args:
        model: a checkpoint file or diffusers folder.
        weights: ``int8``, ``int4`` or ``float8``.
        folder: where copies are kept.
        prediction_type, clip, vae: as for :func:`recognise.open_model`.
        device: where weights are quantised.
        keep: whether one is made; else None comes back where none is known, and nothing is written.
        made: called with a copy that was made.

    Raises:
        ModelError: the model cannot be read.
        StorageError: the copy cannot be written; nothing is left of it.
    """
    index = read_object(folder / INDEX)  # it only saves hashing
    apart: dict[str, Any] = {"clip": tuple(map(Path, clip)), "vae": Path(vae) if vae else None}
    files = (model, *apart["clip"], *([apart["vae"]] if vae else []))
    key, stamp = "|".join(str(file.resolve()) for file in files), file_stamps(*files)
    known = index.get(key)
    if isinstance(known, dict) and known.get("stamp") == stamp:
        copy = folder / _name(str(known.get("key")), weights)
        if copy.is_file():
            with contextlib.suppress(ModelError, OSError):  # a damaged one is made again
                return _in_use(copy, prediction_type, model, **apart)
            if keep:
                copy.unlink(missing_ok=True)
    if not keep:
        return None
    blueprint = open_model(model, clip=clip, vae=vae)
    if blueprint.copy_of:
        return open_model(model, prediction_type)
    make_folder(folder)
    none_yet = not any(folder.glob(COPIES))  # else one may be that of this model before it was moved
    blueprint.hash_meanwhile()

    def place() -> Path:
        return folder / _name(_identity(blueprint), weights)

    if none_yet or not place().is_file():
        write_copy(blueprint, weights, place, device)
        give_back_freed()
        made(place())
    index[key] = {"stamp": stamp, "key": _identity(blueprint)}
    write_atomically(folder / INDEX, json.dumps(index, indent=1))
    found = _in_use(place(), prediction_type, model, notes=blueprint.notes, **apart)
    tidy(folder)
    return found


def _in_use(copy: Path, prediction_type: str, model: Path, **more: Any) -> Blueprint:
    held = hold(copy)
    return replace(open_copy(copy, prediction_type, model), held=held, **more)


def has_copies(folder: Path) -> bool:
    """Whether copies of models were kept in a folder before."""
    return (folder / INDEX).is_file() and any(folder.glob(COPIES))


def _identity(blueprint: Blueprint) -> str:
    """A hash of the model's weights and configs: either may change without the other."""
    configs = json.dumps(blueprint.configs, sort_keys=True)
    return hashlib.sha256(f"{blueprint.fingerprint} {configs}".encode()).hexdigest()[:20]


def _name(identity: str, weights: str) -> str:
    quanto = importlib.metadata.version("optimum-quanto")
    safe = re.sub(r"[^0-9a-f]", "_", identity[:20])  # it comes from the index, a file that anyone may have written
    kind = f"{weights}-text-{text}" if (text := weights_of("text_encoder", weights)) != weights else weights
    return f"{safe}-{kind}-quanto{quanto}-v{COPY_FORMAT}.safetensors"


def file_stamps(*models: Path) -> list[list[Any]]:
    """Name, size and time of each of a model's files: as long as they stand, so does its hash."""
    files: list[Path] = []
    for model in models:
        beside = (model, model.with_suffix(".yaml")) if model.is_file() else sorted(model.rglob("*"))
        files += [path for path in beside if path.is_file()]
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def write_copy(
    blueprint: Blueprint, weights: str, place: Path | Callable[[], Path], device: torch.device = _CPU
) -> None:
    """Quantise a model into one file, atomically.

    Args:
        blueprint: the model.
        weights: as for :func:`cached_model`.
        place: the file, or what tells it once the model was read.
        device: where weights are quantised.

    Raises:
        ModelError: a tensor is missing.
        StorageError: no room, or no permission.
    """
    tensors = dict(_copied(blueprint, weights, device))
    path = place if isinstance(place, Path) else place()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise StorageError(
            28, f"could not write {path}: it takes {size / 1e9:.1f} GB, {free / 1e9:.1f} GB is free; free some space"
        )
    info = {**asdict(blueprint.info), "path": str(blueprint.info.path)}
    metadata = {
        COPY_MARK: str(COPY_FORMAT),
        "weights": weights,
        "sha256": blueprint.fingerprint,
        "info": json.dumps(info),
        "configs": json.dumps(blueprint.configs),
        "tokenizers": json.dumps([["" if p == CLIP_PATH else p.name, pad] for p, pad in blueprint.tokenizers]),
    }
    with written_atomically(path) as part, storage_errors(path):
        try:
            save_file(tensors, part, metadata=metadata)
        except Exception as error:  # safetensors has its own class for the system's errors
            raise OSError(getattr(error, "errno", None) or 5, str(error)) from error
        part.chmod(0o644)  # the library makes it for its owner alone


def _copied(blueprint: Blueprint, weights: str, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    for part, reader in blueprint.readers.items():
        network = empty_network(blueprint, part)
        quantized = layers_to_quantize(network) if part != "vae" else {}
        for name, layer in giving_back(quantized):
            full = reader.parameter(f"{name}.weight", layer.weight.shape)
            full = full.to(device) if device.type == "cuda" else full
            parts = quantize_weight(full, weights_of(part, weights))
            check_finite(reader, f"{name}.weight", parts["scale"])
            for kind, tensor in parts.items():
                yield f"{part}.{stored_name(name)}.{kind}", tensor.cpu()
        kept = {f"{name}.weight" for name in quantized}
        for name, empty in network.named_parameters():
            if name in kept:
                continue
            full = reader.parameter(name, empty.shape)
            if not name.endswith("token_embedding.weight"):  # of which the rows that are used are looked at
                check_finite(reader, name, full)
            yield f"{part}.{stored_name(name)}", full.clone()
        reader.close()
