"""Names that come from outside - a browser, a workflow, a script, a file's content - as paths that stay in a folder.

:func:`inside` is the way from such a name to a path. What may be a name is the same on every system: what one refuses
another takes, and folders are carried from one to the other.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from pathlib import Path

from .errors import PathError
from .names import fault

MAX_NAME = 1000
"""Bytes of a name with its folders."""


def inside(folder: Path, name: str, called: str) -> Path:
    """The path, links followed, of a file or folder of this name in a folder, or in a folder beneath it.

    Nothing needs to be there. Folders in the name are divided by / or by \\.

    Args:
        called: what the folder is to people, such as "the embeddings folder".

    Raises:
        PathError: the name is not possible on every system, or leads out of the folder.
    """
    parts = re.split(r"[/\\]", name)
    why = next(filter(None, map(fault, parts)), None)
    if len(name.encode("utf-8", "replace")) > MAX_NAME:
        why = f"has more than {MAX_NAME} bytes"
    elif not all(parts) and len(parts) > 1:
        why = "begins or ends with a slash, or holds two"
    elif not why and not contains(folder, folder.joinpath(*parts)):
        why = "is a link, or behind one, that leads out of it"
    if why:
        raise PathError(f"{_shown(name)} {why}; give the plain name of what lies in {called}")
    return Path(os.path.realpath(folder.joinpath(*parts)))


def contains(folder: Path, path: Path) -> bool:
    """Whether a path lies in a folder once all links are followed."""
    root = os.path.realpath(folder)
    try:
        return os.path.commonpath([root, os.path.realpath(path)]) == root
    except ValueError:  # another drive, or a NUL
        return False


def link_out(folder: Path) -> Path | None:
    """A link in a folder, or beneath it, that leads out of it; None if there is none."""
    to_do = [folder]
    while to_do:
        with contextlib.suppress(OSError), os.scandir(to_do.pop()) as entries:  # one that nobody may look into
            for entry in entries:
                path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
                # Windows has links that it does not call so; those are folders.
                if (is_folder or entry.is_symlink()) and not contains(folder, path):
                    return path
                if is_folder:
                    to_do.append(path)
    return None


def typed(text: str) -> Path:
    """A whole path as this computer's user typed it into a form: it may lead anywhere, and ~ is their home.

    Raises:
        PathError: it cannot be a path.
    """
    given = text.strip()
    if not given or any(unicodedata.category(char) in ("Cc", "Cs") for char in given):
        raise PathError(f"{_shown(given)} is empty or holds control characters; give the path of a file or folder")
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError as error:  # of ~nobody
        raise PathError(f"{_shown(given)}: {error}; give the whole path") from None


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:50]}...{name[-27:]}")
