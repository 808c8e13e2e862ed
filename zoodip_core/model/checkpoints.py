"""Model files read a tensor at a time, never running code in them.

A checkpoint is larger than the quantised model it becomes. So nothing here loads a file whole: the
tensors are mapped, and the map is let go again after every :data:`_WINDOW` bytes that were read.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..base.errors import ModelError
from ..base.pickles import load_plain, tensors_in
from ..base.safetensors_files import MOST_TENSORS, open_safetensors
from ..base.stopping import check_stop
from ..base.texts import parse_json
from .quantize import PARTS, Parts, part_shapes

_WINDOW = 32 << 20
_LONGEST_NAME = 200
_LONGEST_JSON = 8_000_000
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
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
        self._readers = [
            _SafetensorsReader(f) if f.suffix.lower() == ".safetensors" else _PickleReader(f) for f in files
        ]
        self._reader_of: dict[str, _Reader] = {}
        for reader in self._readers:
            self.shapes |= reader.shapes
            self.metadata |= reader.metadata
            self._reader_of |= dict.fromkeys(reader.shapes, reader)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor on the CPU as the file has it, perhaps mapped: copy what is kept."""
        return self._reader_of[name].tensor(name)

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
    """Opens a file for a while, and again when its window is used up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, Shape] = {}
        self.metadata: dict[str, str] = {}
        self._get: Callable[[str], torch.Tensor] | None = None
        self._left = 0
        self._mapped = True

    @abstractmethod
    def _open(self) -> Callable[[str], torch.Tensor]:
        """Open the file; what comes back reads a tensor by its name."""

    def tensor(self, name: str) -> torch.Tensor:
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
            data = data.get("state_dict", data) if isinstance(data, dict) else data
            tensors = tensors_in(data, self.path)
        except Exception as error:  # the unpickler raises whatever a damaged or hostile file makes it
            raise ModelError(
                f"model: {self.path} cannot be read as plain tensors: it is damaged, or holds code, which is never "
                "run; get its .safetensors version"
            ) from error
        if not isinstance(data, dict) or len(tensors) > MOST_TENSORS:
            what = f"{len(tensors)} tensors" if tensors else f"a {type(data).__name__}"
            raise ModelError(f"model: {self.path} holds {what}, not a checkpoint")
        return tensors


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
class Source:
    """Where a parameter lies in a checkpoint: a tensor, or the third of one, perhaps transposed."""

    name: str
    third: int | None = None
    transposed: bool = False

    def holds(self, have: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether a file's tensor of the shape ``have`` is one for a parameter of ``shape``."""
        if self.third is not None:
            if not have or have[0] % 3:
                return False
            have = (have[0] // 3, *have[1:])
        have = have[::-1] if self.transposed else have
        return [n for n in have if n != 1] == [n for n in shape if n != 1]

    def take(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The parameter of ``shape`` out of the file's tensor (1x1 convolutions are linear layers, too)."""
        if self.third is not None:
            tensor = tensor.chunk(3)[self.third]
        return (tensor.T if self.transposed else tensor).reshape(shape)


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
        have = self.checkpoint.shapes.get(source.name)
        if have is None:
            raise ModelError(
                f"model: {where} has no {source.name}; it is cut down, damaged, or of a variant that is not supported"
            )
        if not source.holds(have, tuple(shape)):
            raise ModelError(
                f"model: {where}: {source.name} has shape {list(have)}, expected one for {list(shape)}; "
                "it is damaged, or of a variant that is not supported"
            )
        return source

    def not_finite(self, name: str) -> ModelError:
        """What to tell of a parameter with numbers that are not finite."""
        return ModelError(
            f"model: {self.checkpoint.files[0]}: {self.locate(name).name} holds NaN or infinity, so that nothing can "
            "be drawn or learned with it; the file is damaged, or was merged or trained wrongly: get another"
        )

    def quantized(self, name: str, shape: torch.Size) -> Parts | None:
        """The parts of a weight of ``shape`` that is stored quantised already, or None.

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
        return {part: self.checkpoint.tensor(stored_as).clone() for part, stored_as in stored.items()}

    def close(self) -> None:
        """Let go of the file until the next read."""
        self.checkpoint.close()
