"""A disk that goes wrong: it runs full or turns read-only at any operation, or loses what was not synced.

It stands between Python and the real disk: opening, writing, cutting, syncing, renaming and making folders below a
folder are counted, and each may be the one that fails.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Image = dict[Path, bytes]
"""What a disk holds: the content of each file, by its path from the folder on."""


class Disk:
    """Watches a folder from its construction on.

    Args:
        folder: what happens elsewhere is not looked at.
        monkeypatch: undone by whoever gives it.
        good: operations that succeed; all after them fail.
        error: how they fail: ``errno.ENOSPC`` (after half of what is written), ``EROFS``, ``EIO``...
    """

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, good: int | None = None, error: int = errno.ENOSPC
    ) -> None:
        self.folder = folder
        self.good = good
        self.error = error
        self.operations: list[str] = []
        self.on_operation: Callable[[], None] = lambda: None
        self._contents: dict[int, bytes] = {}  # of each synced file, by its inode
        self._names: dict[Path, dict[str, int]] = {folder: {}}  # of each synced folder, from names to inodes
        self._real_open = io.open
        self._sync, self._replace, self._mkdir = os.fsync, os.replace, os.mkdir
        monkeypatch.setattr(io, "open", self._open)
        monkeypatch.setattr(os, "fsync", self._fsync)
        monkeypatch.setattr(os, "replace", self._replaced)
        monkeypatch.setattr(os, "mkdir", self._made)

    # ------------------------------------------------------------ what is called in place of the system

    def _open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not isinstance(file, str | os.PathLike) or not self._watched(file) or not set(mode) & set("wax+"):
            return self._real_open(file, mode, *args, **kwargs)
        self._operate(f"open {Path(file).name}")
        return File(self._real_open(file, mode, *args, **kwargs), self, Path(file).name)

    def _fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not self._watched(path):
            self._sync(descriptor)
            return
        self._operate(f"sync {path.name}")
        inode = os.fstat(descriptor)
        if stat.S_ISDIR(inode.st_mode):
            self._names[path] = {entry.name: entry.stat().st_ino for entry in os.scandir(path)}
        else:
            with self._real_open(path, "rb") as file:
                self._contents[inode.st_ino] = file.read()

    def _replaced(self, source: Any, target: Any, **kwargs: Any) -> None:
        if self._watched(target):
            self._operate(f"rename to {Path(target).name}")
        self._replace(source, target, **kwargs)

    def _made(self, path: Any, *args: Any, **kwargs: Any) -> None:
        if self._watched(path):
            self._operate(f"make {Path(path).name}")
        self._mkdir(path, *args, **kwargs)

    def _watched(self, path: Any) -> bool:
        return Path(os.path.abspath(path)).is_relative_to(self.folder)  # noqa: PTH100 - no links are followed

    def _operate(self, what: str) -> None:
        self.on_operation()
        self.operations.append(what)
        if self.good is not None and len(self.operations) > self.good:
            raise OSError(self.error, os.strerror(self.error))

    # ------------------------------------------------------------ the power cut

    def durable(self) -> Image:
        """What the disk would hold if the power were cut now: what was synced, under the names that were."""
        image: Image = {}

        def walk(folder: Path) -> None:
            for name, inode in self._names.get(folder, {}).items():
                if folder / name in self._names or (folder / name).is_dir():
                    walk(folder / name)
                else:
                    image[(folder / name).relative_to(self.folder)] = self._contents.get(inode, b"")

        walk(self.folder)
        return image


class File:
    """A file of a :class:`Disk`."""

    def __init__(self, file: Any, disk: Disk, name: str) -> None:
        self._file = file
        self._disk = disk
        self._name = name

    def write(self, data: Any) -> Any:
        try:
            self._disk._operate(f"write {self._name}")
        except OSError as error:
            if error.errno == errno.ENOSPC:  # a part still finds room
                self._file.write(data[: len(data) // 2])
            raise
        return self._file.write(data)

    def truncate(self, size: int) -> None:
        self._disk._operate(f"cut {self._name}")
        self._file.truncate(size)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def lay_out(image: Image, folder: Path) -> None:
    """Write what a disk holds."""
    for path, content in image.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
