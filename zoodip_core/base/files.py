"""Files: written so that a reader sees the old content or the new, never a part; read without trust in them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import StorageError

_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()
"""Seconds between attempts to replace a file that somebody reads."""


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write ``path`` into a :class:`StorageError` that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full; free some space",
            errno.EDQUOT: "your disk quota is used up; free some space",
            errno.EROFS: "the file system is read-only; choose another folder",
            errno.EACCES: "permission denied; choose a folder you may write to",
            errno.EPERM: "permission denied; choose a folder you may write to",
            errno.EEXIST: "a file stands where a folder should be; choose another folder",
            errno.ENOTDIR: "a part of the path is a file, not a folder; choose another folder",
            errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
            errno.EFBIG: "the file would be larger than its disk's format or your account allows (FAT32 ends at 4 GB, "
            "ulimit -f shows a limit); choose another disk, or raise the limit",
            errno.ENOENT: "it or its folder is gone; if the disk was unplugged, connect it again, else choose another "
            "folder",
            errno.ESTALE: "its network folder is gone; connect it again, or choose another folder",
            errno.EIO: "the disk reports an error; see that it is connected and sound, or choose another one",
        }.get(error.errno or 0, error.strerror or str(error))
        raise StorageError(error.errno or 0, f"could not write {path}: {advice}") from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents, with our errors; a power cut does not undo it."""
    with storage_errors(path):
        _make_folder(path)


def _make_folder(path: Path) -> None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Have a folder's list of names on the disk, as the content of its files is by their own sync."""
    if os.name == "nt":  # where it cannot be asked for
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems know no such thing
            os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write; its file is synced and moved into place at the end.

    On any failure it is removed and an existing ``path`` stays as it was.
    """
    with storage_errors(path), unfinished_in(path.parent) as part:
        yield part
        finish(part, path)


@contextlib.contextmanager
def unfinished_in(folder: Path) -> Iterator[Path]:
    """Yield a path in a folder, which is made, to write and :func:`finish`; a file that was not finished is removed."""
    part = folder / f".{secrets.token_hex(8)}.part"
    _make_folder(folder)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def finish(part: Path, path: Path) -> None:
    """Sync the file of :func:`unfinished_in` and move it to its place in the same folder."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    _replace(part, path)
    sync_folder(path.parent)


def _replace(part: Path, path: Path) -> None:
    """Move a file to a place where another may be; Windows refuses while somebody reads that, a virus scanner say."""
    for seconds in _WAITS:
        try:
            part.replace(path)
            return
        except PermissionError:
            time.sleep(seconds)
    part.replace(path)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file atomically; see :func:`written_atomically`. Text is UTF-8."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with written_atomically(path) as part, part.open("xb") as file:
        file.write(data)


def is_newer(version: Any, known: int) -> bool:
    """Whether a file's version, a number or its text, is beyond the one that this program knows."""
    return re.fullmatch(r"[0-9]{1,9}", str(version)) is not None and int(version) > known


def sha256_of(path: Path) -> str:
    """The hash of a file's content, of which little is held at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def read_object(path: Path, most: int = 4_000_000) -> dict[str, Any]:
    """The JSON object in a file; empty if it is missing, damaged, something else, or larger than ``most`` bytes."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return {}
        with path.open("rb") as file:
            data = file.read(most + 1)
        found = json.loads(data) if len(data) <= most else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
