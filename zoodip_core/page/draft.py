"""What a person has put into a page's form so far, kept on disk so that a reload or a restart loses nothing.

``draft.json`` holds the form's values, ``images/`` the pictures as they were given, byte for byte, with masks beside
them, and ``captions.json`` their captions, as :func:`prompts.read_listed` reads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..base.errors import CaptionError, ImagesError
from ..base.files import is_newer, read_object, sha256_of, storage_errors, write_atomically, written_atomically
from ..base.names import listed_in, plain
from ..base.texts import how_many, whole_text
from ..data.images import (
    MASKS,
    MAX_FILE_BYTES,
    MAX_PICTURES,
    counted,
    find_images,
    is_mask,
    left_out,
    only_first,
    open_picture,
    read_picture,
)
from ..data.kinds import SUFFIXES, Why, usual_suffix, why_not
from ..data.masks import Masks, mask_key, over, picture_keys, read_mask
from ..data.prompts import (
    CAPTION_SUFFIXES,
    caption_lines,
    noted_captions,
    of_no_picture,
    own_captions,
    read_listed,
    read_noted,
    read_text,
    unused_captions,
)
from ..data.sheets import save_png
from ..tiny import concepts

VERSION = 1
MAX_TOTAL_BYTES = 1_000_000_000
MAX_CAPTION = 10_000
_MAX_NAME = 80
_MAX_NAME_BYTES = 140  # what the strictest file systems take, with room for the name of a part
_MASK = ".mask.png"
_NUMBERED = re.compile(rf"(\d{{4,9}})-(.+)(?:{'|'.join(map(re.escape, SUFFIXES))})")

_lock = threading.RLock()
"""One for all drafts: a page may make several objects of one folder."""
_sound: dict[Path, tuple[int, int]] = {}
"""Size and time of the pictures that could be opened, so that each is decoded once only."""


@dataclass(frozen=True)
class Picture:
    """A picture of the draft.

    Args:
        name: of its file, numbered.
        path: its file.
        caption: a line for each of its captions; empty for the template's.
        mask: the file of its mask, white where the subject is; None if it has none.
    """

    name: str
    path: Path
    caption: str
    mask: Path | None = None


@dataclass(frozen=True)
class _Given:
    """A picture file to take in. ``name`` is its owner's for it, ``path`` where it lies; so of its mask."""

    path: Path
    name: str
    caption: str = ""
    mask: tuple[Path, str] | None = None

    @property
    def shown(self) -> str:
        return _shown(self.name)


class _Dropped:
    """Files that were dropped onto the page, by what they are.

    Args:
        files: where each lies now, and its own name.
        tokens: that captions may name.
    """

    def __init__(self, files: Sequence[tuple[Path, str]], tokens: Sequence[str]) -> None:
        self.masks: dict[str, tuple[Path, str]] = {}
        self.listed: dict[str, dict[str, str]] = {}
        """The captions in each file of several pictures', by the pictures' names."""
        self._pictures: list[_Given] = []
        self._texts: dict[str, tuple[str, str]] = {}
        self._others: list[tuple[str, Why]] = []
        self._lines: list[str] = []
        for path, original in sorted(files, key=lambda each: _split(each[1])[1] == CAPTION_SUFFIXES[1]):
            try:
                self._put(path, re.split(r"[/\\]", original)[-1], tokens)
            except CaptionError as error:
                self._lines.append(str(error))

    def _put(self, path: Path, name: str, tokens: Sequence[str]) -> None:
        suffix = _split(name)[1]
        if suffix in CAPTION_SUFFIXES:
            text = _caption_in(path, _shown(name), tokens)
            self._check_first(name, self._texts.setdefault(_key(name), (name, text))[0])
        elif suffix in (".json", ".jsonl"):
            self.listed[_shown(name)], told = _listed(path, None, _shown(name))
            self._lines += told
        elif why := why_not(path, name):
            self._others.append((_shown(name), why))
        elif is_mask(Path(name)):
            self._check_first(name, self.masks.setdefault(mask_key(Path(name)), (path, name))[1])
        else:
            self._pictures.append(_Given(path, name))

    def _check_first(self, name: str, first: str) -> None:
        """Tell of a second file for the same picture."""
        if name != first:
            self._lines.append(f"{_shown(name)} was skipped: {_shown(first)} is there as well")

    def lines(self) -> list[str]:
        """On what is not used, and why."""
        return self._lines + counted(self._others)

    def pictures(self) -> list[_Given]:
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


class Draft:
    """A form's values, pictures and captions in a folder, which is made when something is first put in.

    It may be used from any thread, and by several objects of one folder in a process.
    """

    def __init__(self, folder: Path) -> None:
        self._values = folder / "draft.json"
        self._listing = folder / "captions.json"
        self._images = folder / "images"

    # ------------------------------------------------------------ values

    def values(self) -> dict[str, Any]:
        """The form's values; none if there are none, or their file is damaged or of another version.

        A newer version's is not a reason to refuse the page: it begins empty, see :meth:`keep`.
        """
        with _lock:
            data = read_object(self._values)
        values = data.get("values")
        if data.get("version") != VERSION or not isinstance(values, dict):
            return {}
        return {"preset" if name == "pace" else name: value for name, value in values.items()}  # as it was called once

    def keep(self, values: Mapping[str, Any]) -> None:
        """Add or change some of the form's values, which JSON must be able to hold.

        The file of a newer ZOODiP is not written over but set aside, for when that is used again.

        Raises:
            StorageError: they cannot be written.
        """
        with _lock:
            before = self.values()
            after = {**before, **values}
            if after != before:
                self._set_aside()
                write_atomically(self._values, json.dumps({"version": VERSION, "values": after}, indent=1))

    def _set_aside(self) -> None:
        version = read_object(self._values).get("version")
        if is_newer(version, VERSION):
            with storage_errors(self._values):
                self._values.replace(self._values.with_name(f"draft-version-{version}.json"))

    # ------------------------------------------------------------ what is there

    def pictures(self) -> list[Picture]:
        """The pictures in the order in which they came; those that were damaged or taken away are left out."""
        with _lock:
            captions = self._captions()
            return [
                Picture(path.name, path, captions.get(path.name, ""), _existing(_mask_of(path)))
                for path in self._files()
                if _opens_still(path)
            ]

    def references(self) -> dict[str, Any]:
        """The settings ``images`` and ``captions`` of :class:`TrainConfig` that stand for the draft as it lies here.

        Raises:
            ImagesError: there are no pictures.
        """
        pictures = self._some_pictures()
        captions = str(self._listing) if any(picture.caption for picture in pictures) else None
        return {"images": tuple(str(picture.path) for picture in pictures), "captions": captions}

    def write_references(self, folder: Path) -> dict[str, Any]:
        """Copy the pictures and captions into a new run's folder, so that the run can be resumed by itself.

        Returns:
            The settings ``images`` and ``captions`` of :class:`TrainConfig` that stand for them.

        Raises:
            ImagesError: there are no pictures.
            StorageError: no room; what was copied is taken away again.
        """
        images, listing = folder / "images", folder / "captions.json"
        with _lock, _undone_on_failure() as made:
            pictures = self._some_pictures()
            for picture in pictures:
                _copy(picture.path, images / picture.name, made)
                if picture.mask:
                    _copy(picture.mask, images / picture.mask.name, made)
            captions = {picture.name: picture.caption for picture in pictures if picture.caption}
            if captions:
                _write_captions(listing, captions)
        return {"images": (str(images),), "captions": str(listing) if captions else None}

    def _some_pictures(self) -> list[Picture]:
        pictures = self.pictures()
        if not pictures:
            raise ImagesError("there are no pictures yet; add three to ten good ones of the subject")
        return pictures

    def _files(self) -> list[Path]:
        """The picture files, damaged ones too, by their numbers."""
        try:
            with os.scandir(self._images) as entries:
                names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except OSError:  # nothing was put in yet, or somebody took it away
            return []
        pictures = [name for name in names if _NUMBERED.fullmatch(name) and not name.endswith(_MASK)]
        return [self._images / name for name in sorted(pictures, key=_order)]

    def _captions(self) -> dict[str, str]:
        """The captions by the names of their pictures; none if their file is damaged."""
        return {
            name: whole_text("\n".join(lines))
            for name, lines in read_object(self._listing).items()
            if isinstance(lines, list) and lines and all(isinstance(line, str) for line in lines)
        }

    def _file(self, name: str) -> Path:
        found = next((path for path in self._files() if path.name == name), None)
        if found is None:
            raise ImagesError(f"picture {_shown(name)!r} is not there any more; reload the page")
        return found

    # ------------------------------------------------------------ putting in

    def add(self, files: Sequence[tuple[Path, str]]) -> list[str]:
        """Take in files that were dropped onto the page.

        A ``.txt`` or ``.caption`` has the captions of the picture of its name, a ``.json`` or ``.jsonl`` those of any.
        ``NAME.mask.png`` and ``NAME-masklabel.png`` are masks of the picture of that name.

        Args:
            files: where each lies now, and its own name.

        Returns:
            Lines on what is not used of them, and why.

        Raises:
            ImagesError: they are too many; none was taken.
            StorageError: no room; none was taken.
        """
        dropped = _Dropped(files, self._tokens())
        given = dropped.pictures()
        names, masks = {each.name for each in given}, [each.mask for each in given]
        with _lock:
            lines = dropped.lines() + self._take(given) + self._caption_by_name(dropped.lone_texts())
            lines += self._mask_by_name([mask for mask in dropped.masks.values() if mask not in masks])
            for name, each in dropped.listed.items():
                later = {picture: each[picture] for picture in sorted(set(each) - names)}
                lines += of_no_picture(name, self._caption_all(later), len(each))
            return lines

    def add_folder(self, folder: Path) -> list[str]:
        """Take in a folder's pictures with their captions: a ``captions.json``, and what else lies beside them.

        Returns:
            Lines on what is not used of it, and why.

        Raises:
            ImagesError: no such folder, no pictures in it, or too many; none was taken.
            StorageError: no room; none was taken.
        """
        masks = Masks()
        paths, lines = _in_folder(folder, masks)
        listing = folder / "captions.json"
        listed, told = _listed(listing, [path.name for path in paths])
        lines += told + (of_no_picture(listing.name, sorted(set(listed) - {path.name for path in paths}), len(listed)))
        try:
            noted = noted_captions(folder)
            lines += unused_captions(None, paths, [folder])
        except CaptionError as error:
            noted = {}
            lines.append(f"no captions were taken: {error}")
        given = []
        for path in paths:
            caption = listed.get(path.name, "")
            try:
                if not caption:
                    caption = _checked("\n".join(own_captions(path, noted, self._tokens())[0]), path.name)
            except CaptionError as error:
                lines.append(str(error).replace(f"{folder}{os.sep}", ""))
            own = next(iter(masks.files_of(path)), None)
            given.append(_Given(path, path.name, caption, (own, own.name) if own else None))
        with _lock:
            return lines + self._take(given) + masks.lines

    def _tokens(self) -> tuple[str, ...]:
        token = self.values().get("token")
        return listed_in(token) if isinstance(token, str) else ()

    def add_concept(self, name: str) -> list[str]:
        """Take in a bundled subject of the embedded model, with its captions.

        Returns:
            A line for each picture that was skipped, and why.

        Raises:
            ConfigError: there is no such subject.
            ImagesError: with those there they are too many; none was taken.
            StorageError: no room; none was taken.
        """
        concept = concepts.load(name)
        paths = find_images([concept.images])
        listed, _ = _listed(concept.captions, [path.name for path in paths])
        with _lock:
            return self._take([_Given(path, path.name, listed.get(path.name, "")) for path in paths])

    def _take(self, given: Sequence[_Given]) -> list[str]:
        """Copy the usable pictures, all of them or none; returns a line for each of the others."""
        there = self._files()
        fresh, twins, captions, lines = _without_twins(given, there)
        if len(there) + len(fresh) > MAX_PICTURES:
            before = f" beside the {len(there)} that are there" if there else ""
            are, none = ("is", "it was not") if len(given) == 1 else ("are", "none of them was")
            raise ImagesError(
                f"{how_many(len(given), 'picture')} {are} too many{before}, and {none} taken: three to ten good ones "
                f"are enough, and at most {MAX_PICTURES} are taken"
            )
        total = sum(_size(path) for path in (*there, *(each.path for each in fresh)))
        if total > MAX_TOTAL_BYTES:
            raise ImagesError(
                f"the pictures would have {total / 1e9:.1f} GB together, more than {MAX_TOTAL_BYTES / 1e9:g}, and none "
                "of them was taken; scale them down first"
            )
        usable, moving = [], []
        for each in fresh:
            why, has_more = _looked_at(each)
            lines += [why] if why else []
            usable += [] if why else [each]
            moving += [each.shown] if has_more else []
        lines += self._place(usable, {**self._captions(), **captions})
        for picture, mask in twins:
            lines += self._take_mask(picture, *mask)
        return lines + only_first(moving)

    def _take_mask(self, picture: Path, file: Path, name: str) -> list[str]:
        """Keep a file's mask as it lies over a picture; returns a line if it cannot be used."""
        try:
            save_png(read_mask(file, picture, open_picture(picture).size, _shown(name)), _mask_of(picture))
        except ImagesError as error:
            return [f"{error}; it was skipped"]
        return []

    def _mask_by_name(self, masks: Sequence[tuple[Path, str]]) -> list[str]:
        """Give masks that came without a picture to those of their names that are there already."""
        lines = []
        for file, name in masks:
            stems = [_without_end(name), _split(_without_end(name))[0]]
            found = [path for path in self._files() if any(_is_named(path.name, stem) for stem in stems)]
            for path in found:
                lines += self._take_mask(path, file, name)
            if not found:
                lines.append(f"{_shown(name)} was skipped: there is no picture of this name; add the picture as well")
        return lines

    def mask(self, name: str, mask: Image.Image | None) -> None:
        """Give a picture a mask, or none.

        Args:
            name: the picture's.
            mask: of the upright picture's shape, white where the subject is.

        Raises:
            ImagesError: there is no such picture, or the mask is of another shape or says nothing.
            StorageError: it cannot be written.
        """
        with _lock:
            path = self._file(name)
            target = _mask_of(path)
            if mask is None:
                with storage_errors(target):
                    target.unlink(missing_ok=True)
                return
            save_png(over(mask.convert("L"), path, open_picture(path).size, "the mask"), target)

    def _place(self, given: Sequence[_Given], captions: dict[str, str]) -> list[str]:
        """Copy pictures with their masks, all of them or none; returns a line for each mask that cannot be used."""
        number, lines = max((_order(path.name)[0] for path in self._files()), default=0), []
        with _undone_on_failure() as made:
            for each in given:
                number += 1
                target = self._images / _name(number, _with_suffix(each))
                _copy(each.path, target, made)
                _sound[target] = _mark(target)
                captions[target.name] = each.caption
                if each.mask:
                    made.append(_mask_of(target))
                    lines += self._take_mask(target, *each.mask)
            self._save(captions)
        return lines

    # ------------------------------------------------------------ changing

    def caption(self, name: str, text: str) -> None:
        """Give a picture a caption, or several, each on a line of its own; nothing for the template's.

        Raises:
            ImagesError: there is no such picture.
            CaptionError: it is far too long.
            StorageError: it cannot be written.
        """
        with _lock:
            path = self._file(name)
            self._save({**self._captions(), path.name: _checked(text, path.name)})

    def fill(self, captions: Mapping[str, str]) -> int:
        """Give captions to those of the pictures that are there and have none; returns how many.

        Args:
            captions: by the pictures' names here.

        Raises:
            CaptionError: one is far too long.
            StorageError: they cannot be written.
        """
        with _lock:
            there = self._captions()
            new = {
                path.name: _checked(captions[path.name], path.name)
                for path in self._files()
                if path.name in captions and not there.get(path.name)
            }
            self._save({**there, **new})
            return len(new)

    def _caption_by_name(self, texts: Sequence[tuple[str, str]]) -> list[str]:
        """Give captions whose files came without a picture to those of their names that are there already."""
        stems = {_split(name)[0]: text for name, text in texts}
        names = {_split(name)[0]: name for name, _ in texts}
        return [
            f"{_shown(names[stem])} was skipped: there is no picture of this name; add the picture as well"
            for stem in self._caption_all(stems)
        ]

    def _caption_all(self, texts: Mapping[str, str]) -> list[str]:
        """Give captions to the pictures of these names that are there already; returns the names of no picture."""
        captions, without = self._captions(), []
        for name, text in texts.items():
            found = [path.name for path in self._files() if _is_named(path.name, _split(name)[0])]
            captions.update(dict.fromkeys(found, text))
            without += [] if found else [_shown(name)]
        self._save(captions)
        return without

    def remove(self, name: str) -> None:
        """Take a picture out of the draft, with its captions.

        Raises:
            ImagesError: there is no such picture.
            StorageError: it cannot be deleted.
        """
        with _lock:
            path = self._file(name)
            with storage_errors(path):
                path.unlink(missing_ok=True)
                _mask_of(path).unlink(missing_ok=True)
            self._save(self._captions())

    def clear(self) -> None:
        """Take all pictures out, with their captions; the form's values stay.

        Raises:
            StorageError: they cannot be deleted.
        """
        with _lock:
            for path in self._files():
                with storage_errors(path):
                    path.unlink(missing_ok=True)
                    _mask_of(path).unlink(missing_ok=True)
            self._save({})

    def _save(self, captions: Mapping[str, str]) -> None:
        """Write the captions of the pictures that are there, if they changed."""
        names = [path.name for path in self._files()]
        kept = {name: captions[name] for name in names if captions.get(name)}
        if kept != self._captions():
            _write_captions(self._listing, kept)


# ---------------------------------------------------------------- names


def _shown(name: str) -> str:
    """A file's name as it may be shown: no control characters, not endless."""
    text = "".join(char if char.isprintable() else "?" for char in name).strip() or "(no name)"
    return text if len(text) <= _MAX_NAME else f"{text[:40]}...{text[-30:]}"


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix, the latter in small letters."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix.lower()}") if dot else (name, "")


def _mask_of(picture: Path) -> Path:
    """Where the mask of a picture of the draft is kept. No picture's own name has a dot, see :func:`_name`."""
    return picture.with_name(picture.stem + _MASK)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() and not path.is_symlink() else None


def _without_end(name: str) -> str:
    """The name of a mask's picture, without its suffix or with it."""
    stem = _split(name)[0]
    return next(stem[: -len(end)] for end in MASKS if stem.lower().endswith(end))


def _with_suffix(given: _Given) -> str:
    """A picture's name with the suffix of its kind, unless it has one of a picture already."""
    stem, suffix = _split(given.name)
    return given.name if suffix in SUFFIXES else f"{stem}{usual_suffix(given.path)}"


def _key(name: str) -> str:
    """What the name of a picture and that of its caption file have in common."""
    return unicodedata.normalize("NFC", _split(name)[0]).casefold()


def _name(number: int, original: str) -> str:
    """A file name that every system takes: the number keeps the order, and off the names that Windows reserves."""
    stem, suffix = _split(original)
    before = f"{number:04}-"
    text = plain(stem, _MAX_NAME_BYTES)[: _MAX_NAME - len(before) - len(suffix)]
    return before + (text.rstrip("-_") or "picture") + suffix


def _order(name: str) -> tuple[int, str]:
    return int(name.partition("-")[0]), name


def _is_named(name: str, stem: str) -> bool:
    """Whether a file of the draft was of this stem when it came."""
    return name.casefold() == _name(_order(name)[0], stem + _split(name)[1]).casefold()


# ---------------------------------------------------------------- files


def _copy(source: Path, target: Path, made: list[Path]) -> None:
    """Copy byte for byte, synced to the disk, and add the copy to ``made``."""
    with written_atomically(target) as part:
        shutil.copyfile(source, part)
    made.append(target)


@contextlib.contextmanager
def _undone_on_failure() -> Iterator[list[Path]]:
    """Yields a list; on any failure the files in it are deleted."""
    made: list[Path] = []
    try:
        yield made
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _write_captions(path: Path, captions: Mapping[str, str]) -> None:
    listed = {name: text.split("\n") for name, text in captions.items()}
    write_atomically(path, json.dumps(listed, indent=2, ensure_ascii=False))


def _without_twins(
    given: Sequence[_Given], there: Sequence[Path]
) -> tuple[list[_Given], list[tuple[Path, tuple[Path, str]]], dict[str, str], list[str]]:
    """Tell pictures apart by their bytes.

    Returns:
        Those that are new, masks and captions (by name) for those that are there, and a line for each twin.
    """
    known = _Known()
    for path in there:
        known.add(path, path.name)
    fresh: list[_Given] = []
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


# ---------------------------------------------------------------- what can be used


def _in_folder(folder: Path, masks: Masks) -> tuple[list[Path], list[str]]:
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


def _looked_at(given: _Given) -> tuple[str, bool]:
    """Why a picture cannot be used, nothing if it can; and whether it has more frames or pages than the first."""
    path, shown = given.path, given.shown
    try:
        path.stat()
        return "", read_picture(path)[1]
    except OSError as error:
        return f"{shown} cannot be read ({error.strerror or error}); add it again", False
    except ImagesError as error:
        return str(error).replace(str(path), shown), False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it vanished, which is told when it is opened
        return 0


def _mark(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _opens_still(path: Path) -> bool:
    """Whether a picture that was taken in once is what it was."""
    try:
        mark = _mark(path)
        if _sound.get(path) != mark:
            open_picture(path)
            _sound[path] = mark
    except (OSError, ImagesError):
        return False
    return True


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
    return _checked("\n".join(caption_lines(text, tokens)), shown)


def _checked(text: str, where: str) -> str:
    """Captions without blank lines, and without what UTF-8 cannot hold.

    Raises:
        CaptionError: they are far too long.
    """
    if len(text) > MAX_CAPTION:
        raise CaptionError(f"{where}: the caption has {len(text)} characters; models read some 300 of them, shorten it")
    lines = text.encode("utf-8", "replace").decode("utf-8").splitlines()
    return "\n".join(line.strip() for line in lines if line.strip())


def _listed(file: Path, names: Sequence[str] | None, shown: str = "") -> tuple[dict[str, str], list[str]]:
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
        return {
            name: _checked("\n".join(map(_one_line, texts)), f"{where}, {name}") for name, texts in listed.items()
        }, []
    except CaptionError as error:
        return {}, [f"no captions were taken: {str(error).replace(str(file), where)}"]
    except (OSError, RecursionError):
        return {}, [f"no captions were taken: {where} cannot be read"]


def _one_line(text: str) -> str:
    return " ".join(text.split())
