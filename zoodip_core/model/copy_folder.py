"""The folder of quantised copies: where it is by default, and how large it may become."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from pathlib import Path
from typing import BinaryIO

from .blueprint import COPY_FORMAT

AUTO = "auto"
"""In place of a folder: the user's own for such files."""
MOST_BYTES = 20_000_000_000
"""Of copies in a folder: a dozen of SD1.5, or five of SDXL. Beyond, those that were not used for longest go."""
COPIES = f"*-quanto*-v{COPY_FORMAT}.safetensors"
_COPY = re.compile(r"[0-9a-f_]{20}-[\w-]+-quanto[\w.+]+-v\d+\.safetensors")
_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_DAY = 86_400


def own_folder() -> Path | None:
    """This user's folder for quantised copies, ``ZOODIP_CACHE`` where that is set; None where nobody has a home."""
    named = os.environ.get("ZOODIP_CACHE")
    if named:
        return Path(named).absolute()
    try:
        home = Path.home()
    except RuntimeError:
        return None
    above = {"win32": os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local", "darwin": home / "Library/Caches"}
    usual = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return Path(above.get(sys.platform, usual)).absolute() / "zoodip"


def hold(copy: Path) -> BinaryIO:
    """Note that a copy is in use now, and keep :func:`tidy` from it as long as what comes back is not dropped.

    Raises:
        OSError: it is gone, or cannot be read.
    """
    file = copy.open("rb")
    with contextlib.suppress(ImportError, OSError):  # Windows deletes no file that is open; some drives know no locks
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    with contextlib.suppress(PermissionError):  # somebody else's, for many to read
        os.utime(copy, ns=(time.time_ns(), copy.stat().st_mtime_ns))
    return file


def tidy(folder: Path, most: int = MOST_BYTES) -> None:
    """Delete copies until no more than ``most`` bytes of them are left: first what was not used for longest.

    One that any process holds stays, and what cannot be deleted. What a killed process left half written goes too.
    """
    found = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            about = path.stat()
            if _COPY.fullmatch(path.name):
                found.append((about.st_atime_ns, about.st_size, path))
            elif _PART.fullmatch(path.name) and about.st_mtime < time.time() - _DAY:
                path.unlink()
    left = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if left <= most:
            return
        with contextlib.suppress(OSError):
            _delete(path)
            left -= size


def _delete(copy: Path) -> None:
    """Delete a copy.

    Raises:
        OSError: it is in use, or cannot be deleted.
    """
    if sys.platform == "win32":
        copy.unlink()
        return
    import fcntl

    with copy.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        copy.unlink()
