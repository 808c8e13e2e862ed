"""The folder in which a webui finds embeddings by their names, and putting a token there without harm to others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import EmbeddingFileError, TokenError
from ..base.files import write_atomically
from ..base.names import check_name, file_stem

PICTURES = (".png", ".webp", ".jxl", ".avif")
"""Webuis take them for embeddings where one is hidden in them, and for thumbnails of the file beside them."""
SUFFIXES = (".safetensors", ".pt", ".bin", *PICTURES)
"""Of the files that a webui takes for embeddings; what a prompt calls them is the name before it, in any case."""


@dataclass(frozen=True)
class Shelf:
    """A folder of embeddings, which may not exist yet."""

    folder: Path

    def target(self, token: str) -> Path:
        """Where a token's file goes.

        Raises:
            TokenError: it cannot name a file; it may be what a file says.
        """
        check_name(token)
        return self.folder / f"{file_stem(token)}.safetensors"

    def taken(self, token: str) -> Path | None:
        """A file that prompts find under the token's name: one that cannot be replaced before one that can."""
        target = self.target(token)
        found = [path for path in self._named(file_stem(token).lower()) if not _is_thumbnail(path, target)]
        return next((path for path in found if not _is_same(path, target)), found[0] if found else None)

    def replaceable(self, token: str) -> bool:
        """Whether nothing but the token's own target is in its way."""
        there = self.taken(token)
        return there is not None and _is_same(there, self.target(token))

    def check_free(self, token: str, replace: bool) -> None:
        """Refuse a token whose name is taken.

        Raises:
            TokenError: it is, and its file may not be replaced, or is not the only one; or it cannot name a file.
        """
        there = self.taken(token)
        if there is None or (replace and self.replaceable(token)):
            return
        if not self.replaceable(token):
            raise TokenError(
                f"token {token!r}: prompts would find {there} under this name as well; choose another name, "
                "or move that file away"
            )
        raise TokenError(
            f"token {token!r}: {there.name} is in the embeddings folder already. Tick 'Replace the file of this "
            "name' to have it replaced when the training ends, or choose another name"
        )

    def put(self, token: str, content: bytes, *, replace: bool = False, another_name: bool = False) -> Path:
        """Write a token's file atomically.

        Args:
            replace: whether a file of its name may be replaced; one of the same content may.
            another_name: take the next free name where it may not.

        Raises:
            TokenError: it cannot name a file.
            EmbeddingFileError: the name is taken.
            StorageError: it cannot be written.
        """
        there, target = self.taken(token), self.target(token)
        if there is not None and not (self.replaceable(token) and (replace or there.read_bytes() == content)):
            if not another_name:
                allow = "allow to replace it first" if self.replaceable(token) else "move it away first"
                raise EmbeddingFileError(f"{there.name} is in the embeddings folder already; {allow}")
            target = self._next_free(token)
        write_atomically(target, content)
        return target

    def _next_free(self, token: str) -> Path:
        stem, count = file_stem(token), 2
        while any(self._named(f"{stem}-{count}".lower())):
            count += 1
        return self.folder / f"{stem}-{count}.safetensors"

    def _named(self, stem: str) -> Iterator[Path]:
        """The embeddings of this name, in folders beneath and behind links as well."""
        walked = set()
        for here, below, names in os.walk(self.folder, followlinks=True):
            real = os.path.realpath(here)
            if real in walked:  # a link led back
                below.clear()
                continue
            walked.add(real)
            below.sort()
            for path in (Path(here) / name for name in sorted(names)):
                if path.stem.lower() == stem and path.suffix.lower() in SUFFIXES:
                    yield path


def _is_thumbnail(path: Path, target: Path) -> bool:
    """Whether a picture belongs to the token's own file, which is there. Alone it may well be an embedding."""
    beside = path.with_suffix(target.suffix)
    return path.suffix.lower() in PICTURES and beside.is_file() and _is_same(beside, target)


def _is_same(path: Path, target: Path) -> bool:
    """Whether these are one file: where names of any case are, two that differ in it may be."""
    try:
        return path == target or path.samefile(target)
    except OSError:
        return False
