"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from .errors import RunFolderError
from .files import make_folder, storage_errors

LOCK = ".lock"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only one at work on a run's folder, which is made if it is missing. The end of the process frees it.

    Raises:
        RunFolderError: another process is at work on it.
        StorageError: it cannot be written.
    """
    make_folder(path)
    lock = filelock.FileLock(path / LOCK)
    with storage_errors(path), contextlib.suppress(NotImplementedError):  # some network drives know no locks
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunFolderError(
                f"{path}: another process is at work on this run; wait until it has ended, or stop it there"
            ) from None
    try:
        yield
    finally:
        lock.release()
