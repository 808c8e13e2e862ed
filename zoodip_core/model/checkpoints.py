"""Model files read a tensor at a time, never running code in them.

A checkpoint is larger than the quantised model it becomes. So nothing here loads a file whole: the
tensors are mapped, and the map is let go again after every :data:`_WINDOW` bytes that were read.
"""

from __future__ import annotations

import copy
import hashlib
import re
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..base.errors import ModelError
from ..base.pickles import load_plain, tensors_in
from ..base.safetensors_files import MOST_TENSORS, open_safetensors
from ..base.stopping import check_stop
from ..base.texts import how_many, parse_json
from .quantized_parts import PARTS, Parts, part_shapes
from .source import Source

_WINDOW = 32 << 20
_LONGEST_NAME = 200
_LONGEST_NOTE = 10_000
_LONGEST_JSON = 8_000_000
_EMBEDDING = "string_to_"
"""Begins the names of mappings in a webui's embedding, which is no network."""
SCALES = ("scale_weight", "weight_scale")
"""Of a layer whose weight is stored as float8 or int8 with a factor, by its name in ComfyUI's older and newer files."""
_QUANTIZATIONS = {"float8_e4m3fn", "float8_e5m2", "int8_tensorwise"}
_QUANTIZED_AS = {"format", "full_precision_matrix_mult"}
_NOT_READ = "use the 16-bit file of the same model"
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft")
Shape = tuple[int, ...]


class Checkpoint:
    """The tensors of one or several files, by name.

    Args:
        files: safetensors files, or pickled ones of which only plain tensors are read.

    Raises:
        ModelError: a file is missing, damaged, of another kind, or holds code.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.shapes: dict[str, Shape] = {}
        self.metadata: dict[str, str] = {}
        self._readers = [_SafetensorsReader(f) if _is_safetensors(f) else _PickleReader(f) for f in files]
        self._places: dict[str, tuple[_Reader, str]] = {}
        for reader in self._readers:
            self.shapes |= reader.shapes
            self.metadata |= reader.metadata
            self._places |= {name: (reader, name) for name in reader.shapes}

    def known_as(self, names: Mapping[str, str]) -> Checkpoint:
        """The same files with other names for their tensors.

        Args:
            names: from each new name to the file's own.
        """
        renamed = copy.copy(self)
        renamed.shapes = {name: self.shapes[own] for name, own in names.items()}
        renamed._places = {name: self._places[own] for name, own in names.items()}
        return renamed

    def own_name(self, name: str) -> str:
        """A tensor's name in its file, for errors; the same where there is no such tensor."""
        return self._places[name][1] if name in self._places else name

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor on the CPU as the file has it, perhaps mapped: copy what is kept. A scaled weight is float32.

        Raises:
            ModelError: it cannot be read, or its scale is of another shape.
        """
        reader, own = self._places[name]
        scale = self._scale_of(name)
        if scale is None:
            return reader.tensor(own)
        weight, factor = reader.tensor(own).float(), self.tensor(scale).float().flatten()
        if len(factor) not in (1, len(weight)):
            raise ModelError(f"model: {reader.path}: {self.own_name(scale)} is not a scale of {own}; {_NOT_READ}")
        return weight * factor.view(-1, *(1,) * (weight.ndim - 1))

    def _scale_of(self, name: str) -> str | None:
        if not name.endswith(".weight"):
            return None
        layer = name.removesuffix("weight")
        return next((layer + scale for scale in SCALES if layer + scale in self.shapes), None)

    def _bytes(self, name: str) -> bytes:
        """A text that is kept as a tensor of its bytes.

        Raises:
            ValueError, TypeError: it is none.
        """
        shape = self.shapes[name]
        if len(shape) != 1 or shape[0] > _LONGEST_NOTE:
            raise ValueError(f"{name} has shape {shape}")
        return bytes(self.tensor(name).tolist())

    def check_quantization(self) -> None:
        """Refuse weights that another program quantised in a way that is not read here.

        Raises:
            ModelError: they are.
        """
        noted = [name for name in self.shapes if name.endswith(".comfy_quant")]
        try:
            notes = [self._bytes(name) for name in noted]
            listed = parse_json(self.metadata.get("_quantization_metadata", "{}")).get("layers", {})
            layers = [*map(parse_json, dict.fromkeys(notes)), *listed.values()]
            kinds = {str(layer["format"]) if set(layer) <= _QUANTIZED_AS else str(layer) for layer in layers}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"model: {self.files[0]}: its notes on quantised weights are damaged; {_NOT_READ}"
            ) from error
        others = sorted(kinds - _QUANTIZATIONS)
        if others:
            raise ModelError(f"model: {self.files[0]} holds weights quantised as {others[0][:80]}; {_NOT_READ}")

    def close(self) -> None:
        """Let go of the files' maps. Reading on opens them again."""
        for reader in self._readers:
            reader.close()

    def sha256(self) -> str:
        """SHA-256 of the files' bytes, in their order; of a single file the hash that webuis show."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    check_stop()
                    digest.update(chunk)
        return digest.hexdigest()


_STEMS = "(?:diffusion_pytorch_model|model|pytorch_model)"
_VARIANTS = ("", ".fp32", ".fp16", ".bf16")


def component_files(folder: Path) -> list[Path]:
    """The weight files of a diffusers component folder: full precision before variants, averages before what is not.

    Raises:
        ModelError: it has none, or shards are missing.
    """
    found = []
    for place, suffix in enumerate(("safetensors", "bin")):
        pattern = re.compile(rf"{_STEMS}(\.\w+)?\.{suffix}|{_STEMS}\.{suffix}\.index(\.\w+)?\.json")
        for path in folder.iterdir():
            match = pattern.fullmatch(path.name)
            if match and path.is_file() and not re.search(r"-\d+-of-\d+", path.name):
                variant = match[1] or match[2] or ""
                worth = _VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS)
                found.append((place, worth, path.suffix == ".json", path.name))
    for *_, is_index, name in sorted(found):
        return _shards(folder, folder / name) if is_index else [folder / name]
    raise ModelError(f"model: {folder} has no weights (.safetensors or .bin); the folder is incomplete, copy it again")


def _shards(folder: Path, index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    values = listed.values() if isinstance(listed, dict) else ()
    names = sorted({name[:_LONGEST_NAME] if isinstance(name, str) else "no name" for name in values})
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        raise ModelError(
            f"model: {folder} lacks shards of its weights ({', '.join(missing[:3]) or f'none in {index.name}'}); "
            "the folder is incomplete, copy it again"
        )
    return [folder / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder.

    Raises:
        ModelError: it cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_JSON + 1)
        if len(text) > _LONGEST_JSON:
            raise ValueError(f"it has more than {_LONGEST_JSON // 10**6} MB")
        data = parse_json(text)
    except (OSError, ValueError) as error:
        raise ModelError(f"model: {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"model: {path} is not a JSON object; the folder is damaged, copy it again")
    return data


# ---------------------------------------------------------------- one file


class _Reader(ABC):
    """Opens a file for a while, and again when its window is used up. Several threads may read it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, Shape] = {}
        self.metadata: dict[str, str] = {}
        self._get: Callable[[str], torch.Tensor] | None = None
        self._left = 0
        self._mapped = True
        self._lock = threading.Lock()

    @abstractmethod
    def _open(self) -> Callable[[str], torch.Tensor]:
        """Open the file; what comes back reads a tensor by its name."""

    def tensor(self, name: str) -> torch.Tensor:
        with self._lock:
            return self._tensor(name)

    def _tensor(self, name: str) -> torch.Tensor:
        if self._get is None or (self._mapped and self._left < 0):
            self.close()
            self._get, self._left = self._open(), _WINDOW
        try:
            tensor = self._get(name)
        except Exception as error:  # of a type, or with more dimensions than PyTorch has
            raise ModelError(
                f"model: {self.path}: {name} cannot be read ({str(error)[:200]}); copy or download the model again"
            ) from error
        self._left -= tensor.numel() * tensor.element_size()
        return tensor

    def close(self) -> None:
        self._get = None


def _is_safetensors(path: Path) -> bool:
    """By content where it tells: people rename files. Nothing in a pickled one is run either way."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        start = b""
    return start[8:] == b"{" or path.suffix.lower() in (".safetensors", ".sft")


class _SafetensorsReader(_Reader):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        file = self._file()
        self.metadata = dict(file.metadata() or {})
        self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def _open(self) -> Callable[[str], torch.Tensor]:
        get: Callable[[str], torch.Tensor] = self._file().get_tensor
        return get

    def _file(self) -> Any:
        try:
            return open_safetensors(self.path)
        except (SafetensorError, OSError, ValueError) as error:
            if zipfile.is_zipfile(self.path):
                raise ModelError(
                    f"model: {self.path} is not a safetensors file but a .ckpt by its content; give it that ending"
                ) from error
            raise ModelError(
                f"model: {self.path} is not a safetensors file, or was cut short ({error}); copy or download it again"
            ) from error


class _PickleReader(_Reader):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}

    def _open(self) -> Callable[[str], torch.Tensor]:
        return self._tensors().__getitem__

    def _tensors(self) -> dict[str, torch.Tensor]:
        try:
            data, self._mapped = _load_pickle(self.path)
            data = data.get("state_dict", data) if isinstance(data, Mapping) else data
            tensors = tensors_in(dict(_flat(data)), self.path)
        except Exception as error:  # the unpickler raises whatever a damaged or hostile file makes it
            raise ModelError(
                f"model: {self.path} cannot be read as plain tensors: it is damaged, or holds code, which is never "
                "run; get its .safetensors version"
            ) from error
        if not isinstance(data, Mapping) or len(tensors) > MOST_TENSORS:
            what = how_many(len(tensors), "tensor") if tensors else f"a {type(data).__name__}"
            raise ModelError(f"model: {self.path} holds {what}, not a checkpoint")
        return tensors


def _flat(content: Any) -> Iterator[tuple[str, Any]]:
    """What lies in nested mappings, under names with dots: trainers keep networks within their own state.

    Each mapping is looked into once: one of a few bytes may hold itself many times over.
    """
    seen, left = set(), [("", content)]
    while left:
        above, mapping = left.pop()
        if not isinstance(mapping, Mapping) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for name, value in mapping.items():
            if not isinstance(name, str) or len(above) > _LONGEST_NAME:
                continue
            if not isinstance(value, Mapping):
                yield above + name, value
            elif not name.startswith(_EMBEDDING):
                left.append((f"{above}{name}.", value))


def _load_pickle(path: Path) -> tuple[Any, bool]:
    """The content of a pickled checkpoint, and whether it is mapped, as its format mostly allows."""
    try:
        return load_plain(path, mmap=True), True
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    return load_plain(path), False  # torch before 1.6 wrote no zip file


# ---------------------------------------------------------------- one component of a model


@dataclass(frozen=True)
class ComponentReader:
    """A component's parameters in a checkpoint.

    Args:
        checkpoint: the file or files.
        locate: from a parameter's name to its place.
    """

    checkpoint: Checkpoint
    locate: Callable[[str], Source]

    def parameter(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The parameter as the file has it, on the CPU, perhaps mapped.

        Raises:
            ModelError: it is not there, or of another size.
        """
        source = self._source(name, shape)
        return source.take(self.checkpoint.tensor(source.name), tuple(shape))

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Refuse a parameter that :meth:`parameter` could not give, by what the file's header says.

        Raises:
            ModelError: as there.
        """
        quantized = name.endswith(".weight") and self.locate(f"{name.removesuffix('weight')}data").name
        if not quantized or quantized not in self.checkpoint.shapes:
            self._source(name, shape)

    def _source(self, name: str, shape: Sequence[int]) -> Source:
        source = self.locate(name)
        where = self.checkpoint.files[0]
        have, own = self.checkpoint.shapes.get(source.name), self.checkpoint.own_name(source.name)
        if have is None:
            raise ModelError(
                f"model: {where} has no {source.name}; it is cut down, damaged, or of a variant that is not supported"
            )
        if not source.holds(have, tuple(shape)):
            raise ModelError(
                f"model: {where}: {own} has shape {list(have)}, expected one for {list(shape)}; "
                "it is damaged, or of a variant that is not supported"
            )
        return source

    def not_finite(self, name: str) -> ModelError:
        """What to tell of a parameter with numbers that are not finite."""
        own = self.checkpoint.own_name(self.locate(name).name)
        return ModelError(
            f"model: {self.checkpoint.files[0]}: {own} holds NaN or infinity, so that nothing can be drawn or "
            "learned with it; the file is damaged, or was merged or trained wrongly: get another"
        )

    def quantized(self, name: str, shape: torch.Size) -> Parts | None:
        """The parts of a weight of ``shape`` that is stored quantised already, perhaps mapped; or None.

        Raises:
            ModelError: they are not of that shape.
        """
        names = {part: self.locate(f"{name}.{part}").name for part in PARTS}
        if names["data"] not in self.checkpoint.shapes:
            return None
        stored = {part: stored_as for part, stored_as in names.items() if stored_as in self.checkpoint.shapes}
        sizes = {part: self.checkpoint.shapes[stored_as] for part, stored_as in stored.items()}
        if sizes != part_shapes(shape, stored):
            raise ModelError(f"model: {self.checkpoint.files[0]}: {name} has wrong shapes; delete this copy")
        return {part: self.checkpoint.tensor(stored_as) for part, stored_as in stored.items()}

    def close(self) -> None:
        """Let go of the file until the next read."""
        self.checkpoint.close()


@dataclass(frozen=True)
class Part:
    """A component of a model: its config, and where its tensors are."""

    config: dict[str, Any]
    reader: ComponentReader
