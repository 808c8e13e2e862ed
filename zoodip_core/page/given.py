"""What a person puts onto the page, by what it is: pictures, masks and captions, and what cannot be used of it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..base.errors import CaptionError, ImagesError
from ..base.files import sha256_of
from ..data.images import (
    MASKS,
    MAX_FILE_BYTES,
    MAX_PICTURES,
    counted,
    find_images,
    is_mask,
    left_out,
    read_picture,
)
from ..data.kinds import SUFFIXES, Why, usual_suffix, why_not
from ..data.masks import Masks, mask_key, picture_keys
from ..data.prompts import CAPTION_SUFFIXES, caption_lines, read_listed, read_noted, read_text

MAX_CAPTION = 10_000
_LONGEST_SHOWN = 80


@dataclass(frozen=True)
class Given:
    """A picture file to take in. ``name`` is its owner's for it, ``path`` where it lies; so of its mask."""

    path: Path
    name: str
    caption: str = ""
    mask: tuple[Path, str] | None = None

    @property
    def shown(self) -> str:
        return shown_name(self.name)


class Dropped:
    """Files that were dropped onto the page, by what they are.

    Args:
        files: where each lies now, and its own name.
        tokens: that captions may name.
    """

    def __init__(self, files: Sequence[tuple[Path, str]], tokens: Sequence[str]) -> None:
        self.masks: dict[str, tuple[Path, str]] = {}
        self.listed: dict[str, dict[str, str]] = {}
        """The captions in each file of several pictures', by the pictures' names."""
        self._pictures: list[Given] = []
        self._texts: dict[str, tuple[str, str]] = {}
        self._others: list[tuple[str, Why]] = []
        self._lines: list[str] = []
        for path, original in sorted(files, key=lambda each: split_name(each[1])[1] == CAPTION_SUFFIXES[1]):
            try:
                self._put(path, re.split(r"[/\\]", original)[-1], tokens)
            except CaptionError as error:
                self._lines.append(str(error))

    def _put(self, path: Path, name: str, tokens: Sequence[str]) -> None:
        suffix = split_name(name)[1]
        if suffix in CAPTION_SUFFIXES:
            text = _caption_in(path, shown_name(name), tokens)
            self._check_first(name, self._texts.setdefault(_key(name), (name, text))[0])
        elif suffix in (".json", ".jsonl"):
            self.listed[shown_name(name)], told = listed_captions(path, None, shown_name(name))
            self._lines += told
        elif why := why_not(path, name):
            self._others.append((shown_name(name), why))
        elif is_mask(Path(name)):
            self._check_first(name, self.masks.setdefault(mask_key(Path(name)), (path, name))[1])
        else:
            self._pictures.append(Given(path, name))

    def _check_first(self, name: str, first: str) -> None:
        """Tell of a second file for the same picture."""
        if name != first:
            self._lines.append(f"{shown_name(name)} was skipped: {shown_name(first)} is there as well")

    def lines(self) -> list[str]:
        """On what is not used, and why."""
        return self._lines + counted(self._others)

    def pictures(self) -> list[Given]:
        """The pictures with their captions and masks."""
        by_name = {name: text for each in self.listed.values() for name, text in each.items()}
        return [
            replace(
                each,
                caption=by_name.get(each.name) or self._texts.get(_key(each.name), ("", ""))[1],
                mask=next((self.masks[key] for key in picture_keys(Path(each.name)) if key in self.masks), None),
            )
            for each in self._pictures
        ]

    def lone_texts(self) -> list[tuple[str, str]]:
        """The names and texts of caption files that came without their pictures."""
        keys = {_key(each.name) for each in self._pictures}
        return [text for key, text in self._texts.items() if key not in keys]


def pictures_in(folder: Path, masks: Masks) -> tuple[list[Path], list[str]]:
    """A folder's pictures, and lines on what else is in it but their masks.

    Raises:
        ImagesError: no such folder, or no pictures in it.
    """
    try:
        if not folder.is_dir():
            raise ImagesError(f"{folder} is not a folder; give the path of the folder that the pictures are in")
        paths = find_images([folder])
        known = {mask for path in paths for mask in masks.files_of(path)}
        return paths, left_out([folder], known)
    except ImagesError:
        raise
    except (OSError, ValueError) as error:  # a name too long, a NUL in it, no permission
        raise ImagesError(f"{folder} cannot be read ({error}); give the path of a folder of pictures") from error


def looked_at(given: Given) -> tuple[str, bool]:
    """Why a picture cannot be used, nothing if it can; and whether it has more frames or pages than the first."""
    path, shown = given.path, given.shown
    try:
        path.stat()
        return "", read_picture(path)[1]
    except OSError as error:
        return f"{shown} cannot be read ({error.strerror or error}); add it again", False
    except ImagesError as error:
        return str(error).replace(str(path), shown), False


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it vanished, which is told when it is opened
        return 0


# ---------------------------------------------------------------- names


def shown_name(name: str) -> str:
    """A file's name as it may be shown: no control characters, not endless."""
    text = "".join(char if char.isprintable() else "?" for char in name).strip() or "(no name)"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:40]}...{text[-30:]}"


def split_name(name: str) -> tuple[str, str]:
    """Stem and suffix, the latter in small letters."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix.lower()}") if dot else (name, "")


def without_mask_end(name: str) -> str:
    """The name of a mask's picture, without its suffix or with it."""
    stem = split_name(name)[0]
    return next(stem[: -len(end)] for end in MASKS if stem.lower().endswith(end))


def with_suffix(given: Given) -> str:
    """A picture's name with the suffix of its kind, unless it has one of a picture already."""
    stem, suffix = split_name(given.name)
    return given.name if suffix in SUFFIXES else f"{stem}{usual_suffix(given.path)}"


def _key(name: str) -> str:
    """What the name of a picture and that of its caption file have in common."""
    return unicodedata.normalize("NFC", split_name(name)[0]).casefold()


# ---------------------------------------------------------------- twins


def without_twins(
    given: Sequence[Given], there: Sequence[Path]
) -> tuple[list[Given], list[tuple[Path, tuple[Path, str]]], dict[str, str], list[str]]:
    """Tell pictures apart by their bytes.

    Returns:
        Those that are new, masks and captions (by name) for those that are there, and a line for each twin.
    """
    known = _Known()
    for path in there:
        known.add(path, path.name)
    fresh: list[Given] = []
    masks: list[tuple[Path, tuple[Path, str]]] = []
    captions: dict[str, str] = {}
    lines: list[str] = []
    for each in given:
        twin = known.add(each.path, each.shown)
        if twin and twin[0] in there and each.mask:
            masks.append((twin[0], each.mask))
        if twin is None:
            fresh.append(each)
        elif twin[0] in there and each.caption:
            captions[twin[1]] = each.caption
            lines.append(f"{each.shown} is the same picture as {twin[1]}, which is there already and got its caption")
        else:
            lines.append(f"{each.shown} is the same picture as {twin[1]}, and was skipped")
    return fresh, masks, captions, lines


class _Known:
    """Files by their bytes. Only those of the same size are read."""

    def __init__(self) -> None:
        self._by_size: dict[int, list[tuple[Path, str]]] = {}
        self._hashes: dict[Path, str] = {}

    def add(self, path: Path, name: str) -> tuple[Path, str] | None:
        """Add a file; or if one of the same bytes is known, return that. What cannot be read, or used, is none."""
        try:
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                return None
            alike = self._by_size.setdefault(size, [])
            twin = next((other for other in alike if self._hash(other[0]) == self._hash(path)), None)
        except OSError:
            return None
        if twin is None:
            alike.append((path, name))
        return twin

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256_of(path)
        return self._hashes[path]


# ---------------------------------------------------------------- captions


def _caption_in(path: Path, shown: str, tokens: Sequence[str]) -> str:
    """A caption file's captions, a line each.

    Raises:
        CaptionError: it cannot be read, is not UTF-8, or far too long.
    """
    try:
        if path.stat().st_size > 4 * MAX_CAPTION:
            raise CaptionError(f"{shown} is too large for a caption; write a sentence, or leave it out")
        text = read_text(path)
    except OSError as error:
        raise CaptionError(f"{shown} cannot be read ({error.strerror}); add it again") from error
    except CaptionError as error:
        raise CaptionError(str(error).replace(str(path), shown)) from None
    return checked_caption("\n".join(caption_lines(text, tokens)), shown)


def checked_caption(text: str, where: str) -> str:
    """Captions without blank lines, and without what UTF-8 cannot hold.

    Raises:
        CaptionError: they are far too long.
    """
    if len(text) > MAX_CAPTION:
        raise CaptionError(f"{where}: the caption has {len(text)} characters; models read some 300 of them, shorten it")
    lines = text.encode("utf-8", "replace").decode("utf-8").splitlines()
    return "\n".join(line.strip() for line in lines if line.strip())


def listed_captions(file: Path, names: Sequence[str] | None, shown: str = "") -> tuple[dict[str, str], list[str]]:
    """The captions in a file of several pictures' by their names, and a line if it cannot be used.

    Args:
        file: in JSON, or in lines of it.
        names: the pictures', of which at least one must be there; any will do if None.
        shown: its owner's name for it, if it lies under another one.
    """
    where = shown or str(file)
    try:
        if not shown and not file.is_file():
            return {}, []
        if file.stat().st_size > 4 * MAX_CAPTION * MAX_PICTURES:
            return {}, [f"{shown or file.name} is too large for captions and was left out"]
        if where.lower().endswith(".jsonl"):
            listed = {name: [text] for name, text in read_noted(file).items()}
        else:
            listed = read_listed(file, names)
        captions = {name: "\n".join(map(_one_line, texts)) for name, texts in listed.items()}
        return {name: checked_caption(text, f"{where}, {name}") for name, text in captions.items()}, []
    except CaptionError as error:
        return {}, [f"no captions were taken: {str(error).replace(str(file), where)}"]
    except (OSError, RecursionError):
        return {}, [f"no captions were taken: {where} cannot be read"]


def _one_line(text: str) -> str:
    return " ".join(text.split())
