"""Models in the cache of Hugging Face's programs. It is looked into as a folder; the network is not asked."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path


def is_repository(name: str) -> bool:
    """Whether a name could be that of a model there: its owner's and its own."""
    return re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", name) is not None


def cache_folder(name: str) -> Path | None:
    """Where the cache keeps a model, None of what is not a name there."""
    from huggingface_hub import constants

    if not is_repository(name):
        return None
    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def cached(name: str) -> list[Path]:
    """The folders of a model in the cache, its main revision first; empty if it is not there.

    A file may be in another revision alone: where main has no safetensors, programs fetch those of a pull request.
    """
    folder = cache_folder(name)
    if folder is None:
        return []
    snapshots, main = [], ""
    with contextlib.suppress(OSError):
        snapshots = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
        main = (folder / "refs" / "main").read_text(encoding="utf-8", errors="replace").strip()
    return sorted(snapshots, key=lambda path: path.name != main)
