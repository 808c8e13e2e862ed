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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..base.background import share_out
from ..base.errors import ModelError, StorageError
from ..base.files import finish, make_folder, read_object, storage_errors, unfinished_in, write_atomically
from ..base.stopping import check_stop
from .allocator import give_back_freed
from .blueprint import COPY_FORMAT, COPY_MARK, Blueprint, stored_name
from .building import check_finite, empty_network, layers_to_quantize
from .checkpoints import ComponentReader
from .copy_folder import COPIES, hold, tidy
from .kinds import CLIP_PATH
from .quantize import quantize_weight, weights_of
from .quantized_parts import empty_parts
from .recognise import open_copy, open_model, within_cache
from .tensor_file import Layout
from .threads import one_thread_an_operation

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
    model = within_cache(model)  # where its tokenizers are, which the copy has not
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

    def name() -> str:
        return _name(_identity(blueprint), weights)

    if none_yet or not (folder / name()).is_file():
        copy = write_copy(blueprint, weights, folder, name, device)
        give_back_freed()
        made(copy)
    index[key] = {"stamp": stamp, "key": _identity(blueprint)}
    write_atomically(folder / INDEX, json.dumps(index, indent=1))
    found = _in_use(folder / name(), prediction_type, model, notes=blueprint.notes, **apart)
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
    blueprint: Blueprint, weights: str, folder: Path, name: Callable[[], str], device: torch.device = _CPU
) -> Path:
    """Quantise a model into one file, atomically: some layers at once, of which one is written at a time.

    Args:
        blueprint: the model.
        weights: as for :func:`cached_model`.
        folder: where the file goes.
        name: what tells its name; asked at the end, when the model's hash is known.
        device: where weights are quantised.

    Raises:
        ModelError: a tensor is missing, or not finite.
        StorageError: no room, or no permission; nothing is left of it.
        Stopped: a stop was asked for; likewise.
    """
    info = {**asdict(blueprint.info), "path": str(blueprint.info.path)}
    del info["encoders"]  # of other models than those that are quantised; earlier versions know no such field
    metadata = {
        COPY_MARK: str(COPY_FORMAT),
        "weights": weights,
        "sha256": "0" * 64,  # until it is known
        "info": json.dumps(info),
        "configs": json.dumps(blueprint.configs),
        "tokenizers": json.dumps([["" if p == CLIP_PATH else p.name, pad] for p, pad in blueprint.tokenizers]),
    }
    pieces = list(_pieces(blueprint, weights, device))
    layout = Layout({stored: empty for piece in pieces for stored, empty in piece.empty.items()}, metadata)
    with storage_errors(folder), unfinished_in(folder) as part:
        _check_room(folder, layout.size)
        with part.open("xb") as file:

            def write(piece: _Piece) -> None:
                check_stop()
                layout.write(file, piece.make())

            with one_thread_an_operation() as cores:
                share_out(pieces, write, cores)
            for reader in blueprint.readers.values():
                reader.close()
            layout.write_header(file, {**metadata, "sha256": blueprint.fingerprint})
        path = folder / name()
        finish(part, path)
    return path


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        took, left = f"{size / 1e9:.1f} GB", f"{free / 1e9:.1f} GB"
        raise StorageError(28, f"could not write into {folder}: it takes {took}, {left} is free; free some space")


@dataclass(frozen=True)
class _Piece:
    """What a copy has of one parameter: tensors by their names, on the meta device, and what makes them."""

    empty: dict[str, torch.Tensor]
    make: Callable[[], dict[str, torch.Tensor]]


def _pieces(blueprint: Blueprint, weights: str, device: torch.device) -> Iterator[_Piece]:
    for part, reader in blueprint.readers.items():
        network = empty_network(blueprint, part)
        quantized = {f"{name}.weight" for name in layers_to_quantize(network)} if part != "vae" else set()
        for name, parameter in network.named_parameters():
            kind = weights_of(part, weights) if name in quantized else None
            yield _piece(f"{part}.{stored_name(name)}", name, parameter.shape, reader, kind, device)


def _piece(
    stored: str, name: str, shape: torch.Size, reader: ComponentReader, weights: str | None, device: torch.device
) -> _Piece:
    """A parameter that is kept as the file has it, or, with ``weights``, quantised."""
    if weights is None:

        def kept() -> dict[str, torch.Tensor]:
            full = reader.parameter(name, shape)
            if not name.endswith("token_embedding.weight"):  # of which the rows that are used are looked at
                check_finite(reader, name, full)
            return {stored: full}

        return _Piece({stored: reader.parameter(name, shape).to("meta")}, kept)
    above = stored.removesuffix("weight")

    def quantised() -> dict[str, torch.Tensor]:
        full = reader.parameter(name, shape)
        parts = quantize_weight(full.to(device) if device.type == "cuda" else full, weights)
        check_finite(reader, name, parts["scale"])
        return {f"{above}{kind}": tensor.cpu() for kind, tensor in parts.items()}

    return _Piece({f"{above}{kind}": empty for kind, empty in empty_parts(shape, weights).items()}, quantised)
