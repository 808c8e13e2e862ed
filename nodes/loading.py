"""Files of the user's that a node reads, one of those that ComfyUI lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class LoadsFile(ABC):
    """What nodes share that read the file which their input ``file`` names."""

    CALLED: str
    """ComfyUI's files of this kind, for people."""

    @staticmethod
    @abstractmethod
    def listed() -> dict[str, Path]:
        """ComfyUI's files of this kind, by the names that the user sees."""

    @classmethod
    def path_of(cls, file: str) -> Path:
        """The listed file of a name.

        Raises:
            PathError: there is none.
        """
        from ..zoodip_core.base.errors import PathError

        known = cls.listed()
        if file not in known:
            raise PathError(
                f"file: {file} is not among ComfyUI's {cls.CALLED}; press R to read them anew, and choose another"
            )
        return known[file]

    @classmethod
    def VALIDATE_INPUTS(cls, file: str | None) -> bool | str:  # noqa: N802 - ComfyUI's name
        try:
            if file is not None:  # None: it comes from another node
                cls.path_of(file)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def IS_CHANGED(cls, file: str, **_inputs: Any) -> str:  # noqa: N802
        from ..zoodip_core.base.files import sha256_of

        return sha256_of(cls.path_of(file))
