"""The folders where a webui finds embeddings and LoRAs by their names; putting ours there does no harm to others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import EmbeddingFileError, LoraFileError, TokenError
from ..base.files import write_atomically
from ..base.names import check_name, file_stem
from ..train.run_folder import lora_beside

PICTURES = (".png", ".webp", ".jxl", ".avif")
"""Webuis take them for embeddings where one is hidden in them, and for thumbnails of the file beside them."""
SUFFIXES = (".safetensors", ".pt", ".bin", *PICTURES)
"""Of the files that a webui takes for embeddings; what a prompt calls them is the name before it, in any case."""
LORA_SUFFIXES = (".safetensors", ".pt", ".ckpt")
"""Of those that it takes for LoRAs."""


@dataclass(frozen=True)
class Shelf:
    """A folder of embeddings or of LoRAs, which may not exist yet.

    Args:
        folder: where it is.
        of_loras: whether what was learned with a token goes there, under a name that is made from the token's.
    """

    folder: Path
    of_loras: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return "Lora" if self.of_loras else "embeddings"

    def target(self, token: str) -> Path:
        """Where a token's file goes.

        Raises:
            TokenError: it cannot name a file; it may be what a file says.
        """
        check_name(token)
        return self._path(file_stem(token))

    def _path(self, stem: str) -> Path:
        path = self.folder / f"{stem}.safetensors"
        if not self.of_loras:
            return path
        beside = lora_beside(path)
        return beside.with_name(beside.name.replace("=", "-"))  # <lora:a=b:1> in a prompt names no file, but a setting

    def taken(self, token: str) -> Path | None:
        """A file that prompts find under the token's name: one that cannot be replaced before one that can."""
        target = self.target(token)
        found = [path for path in self._named(target.stem.lower()) if not _is_thumbnail(path, target)]
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
            name = f"the LoRA's name {self.target(token).stem}" if self.of_loras else "this name"
            raise TokenError(
                f"token {token!r}: prompts would find {there} under {name} as well; choose another name, "
                "or move that file away"
            )
        raise TokenError(
            f"token {token!r}: {there.name} is in the {self.name} folder already. Tick 'Replace the file of this "
            "name' to have it replaced when the training ends, or choose another name"
        )

    def put(self, token: str, content: bytes, *, replace: bool = False, another_name: bool = False) -> Path:
        """Write a token's file, see :func:`put_together`."""
        return put_together([(self, content)], token, replace=replace, another_name=another_name)[0]

    def _refuse(self, token: str, content: bytes, replace: bool) -> EmbeddingFileError | LoraFileError | None:
        """Why something may not be put there, if it may not."""
        there = self.taken(token)
        if there is None or (self.replaceable(token) and (replace or there.read_bytes() == content)):
            return None
        allow = "allow to replace it first" if self.replaceable(token) else "move it away first"
        kind = LoraFileError if self.of_loras else EmbeddingFileError
        return kind(f"{there.name} is in the {self.name} folder already; {allow}")

    def _named(self, stem: str) -> Iterator[Path]:
        """The files of this name, in folders beneath and behind links as well."""
        walked, suffixes = set(), LORA_SUFFIXES if self.of_loras else SUFFIXES
        for here, below, names in os.walk(self.folder, followlinks=True):
            real = os.path.realpath(here)
            if real in walked:  # a link led back
                below.clear()
                continue
            walked.add(real)
            below.sort()
            for path in (Path(here) / name for name in sorted(names)):
                if path.stem.lower() == stem and path.suffix.lower() in suffixes:
                    yield path


def put_together(
    contents: Sequence[tuple[Shelf, bytes]], token: str, *, replace: bool = False, another_name: bool = False
) -> list[Path]:
    """Write what was learned under a token's name, each file atomically onto its shelf, in their order.

    Args:
        replace: whether files of the name may be replaced; those of the same content may.
        another_name: take the next name that is free on all shelves where one may not.

    Raises:
        TokenError: it cannot name a file.
        EmbeddingFileError: the name is taken among embeddings; nothing is written.
        LoraFileError: it is among LoRAs; nothing is written.
        StorageError: a file cannot be written.
    """
    targets = [shelf.target(token) for shelf, _ in contents]
    refused = _refused(contents, token, replace)
    if refused and not another_name:
        raise refused
    if refused:
        targets = _next_free([shelf for shelf, _ in contents], file_stem(token))
    for target, (_, content) in zip(targets, contents, strict=True):
        write_atomically(target, content)
    return targets


def check_room(contents: Sequence[tuple[Shelf, bytes]], token: str, replace: bool) -> None:
    """Refuse what :func:`put_together` would refuse.

    Raises:
        TokenError, EmbeddingFileError, LoraFileError: as there.
    """
    refused = _refused(contents, token, replace)
    if refused:
        raise refused


def _refused(
    contents: Sequence[tuple[Shelf, bytes]], token: str, replace: bool
) -> EmbeddingFileError | LoraFileError | None:
    for shelf, content in contents:
        if refused := shelf._refuse(token, content, replace):
            return refused
    return None


def _next_free(shelves: Sequence[Shelf], stem: str) -> list[Path]:
    count = 2
    while True:
        targets = [shelf._path(f"{stem}-{count}") for shelf in shelves]
        if not any(any(shelf._named(path.stem.lower())) for shelf, path in zip(shelves, targets, strict=True)):
            return targets
        count += 1


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
