"""Files that a node saves in a folder of the user's: their names, those that are free, and those that are gone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ENDING = ".safetensors"


class Written:
    """What each node of a kind has written, by the nodes' ids.

    ComfyUI does not run a node again whose inputs are the same, even if its file is gone.
    """

    def __init__(self) -> None:
        self._files: dict[str, dict[Path, bytes]] = {}
        self._lost: dict[str, int] = {}

    def add(self, node: object, files: Mapping[Path, bytes]) -> None:
        """Keep what a node has written now, in place of what it has written before."""
        self._files[str(node)] = dict(files)

    def state(self, node: object) -> str:
        """How often a file of the node's was found gone: another text than before makes ComfyUI run the node."""
        node = str(node)
        if not all(holds(path, content) for path, content in self._files.get(node, {}).items()):
            del self._files[node]
            self._lost[node] = self._lost.get(node, 0) + 1
        return str(self._lost.get(node, 0))


class SavesFile(ABC):
    """What nodes share that save under the name which their input ``filename`` gives."""

    WRITTEN: Written
    """What each node of the class has written."""

    @classmethod
    @abstractmethod
    def target(cls, filename: str, token: str) -> Path:
        """The file that a name stands for; see :func:`target`.

        Args:
            token: what it is called by where no name is given.
        """

    @classmethod
    def VALIDATE_INPUTS(cls, filename: str | None) -> bool | str:  # noqa: N802 - ComfyUI's name
        try:
            if filename is not None:  # None: it comes from another node
                cls.target(filename, "<token>")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, unique_id: str = "", **_inputs: Any) -> str:  # noqa: N802
        return cls.WRITTEN.state(unique_id)


def target(filename: str, otherwise: str, folder: Path, called: str, ending: str = _ENDING) -> Path:
    """The file in a folder of ComfyUI's that the input ``filename`` stands for.

    Args:
        otherwise: the name where none is given.
        called: the folder, for people.

    Raises:
        PathError: it would lie elsewhere.
        TokenError: it is not a name of a file.
    """
    from ..zoodip_core.base.errors import PathError, TokenError
    from ..zoodip_core.base.names import check_name, file_stem
    from ..zoodip_core.base.paths import inside

    given = filename.strip().removesuffix(ending).replace("\\", "/") or otherwise
    parts = [file_stem(part) for part in given.split("/")]
    try:
        path = inside(folder, "/".join(parts) + ending, called)
        for part in parts:
            check_name(part)
    except PathError as error:
        raise PathError(f"filename: {error}") from None
    except TokenError as error:
        raise TokenError(f"filename: {str(error).removeprefix('token ')}") from None
    return path


def free(path: Path, content: bytes) -> Path:
    """The path, or one with the next number at which nothing else stands."""
    found, count = path, 1
    while found.exists() and not holds(found, content):
        count += 1
        found = path.with_name(f"{path.stem}-{count}{_ENDING}")
    return found


def holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def name_in(folder: Path, path: Path) -> str:
    """A file's name as ComfyUI lists it, without its ending."""
    return path.relative_to(Path(folder).resolve()).with_suffix("").as_posix()
