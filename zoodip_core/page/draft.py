"""What a person has put into a page's form so far, kept on disk so that a reload or a restart loses nothing.

``draft.json`` holds the form's values, ``images/`` the pictures as they were given, byte for byte, with masks beside
them, and ``captions.json`` their captions, as :func:`prompts.read_listed` reads them.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..base.errors import CaptionError, ImagesError
from ..base.files import is_newer, read_object, storage_errors, write_atomically, written_atomically
from ..base.names import listed_in, plain
from ..base.texts import how_many, whole_text
from ..data.images import MAX_PICTURES, find_images, only_first, open_picture
from ..data.kinds import SUFFIXES
from ..data.masks import Masks, over, read_mask
from ..data.prompts import LISTING, noted_captions, of_no_picture, own_captions, unused_captions, write_listed
from ..data.sheets import save_png
from ..tiny import concepts
from .given import (
    Dropped,
    Given,
    checked_caption,
    listed_captions,
    looked_at,
    pictures_in,
    shown_name,
    size_of,
    split_name,
    with_suffix,
    without_mask_end,
    without_twins,
)

VERSION = 1
MAX_TOTAL_BYTES = 1_000_000_000
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


class Draft:
    """A form's values, pictures and captions in a folder, which is made when something is first put in.

    It may be used from any thread, and by several objects of one folder in a process.
    """

    def __init__(self, folder: Path) -> None:
        self._values = folder / "draft.json"
        self._listing = folder / LISTING
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
        images, listing = folder / "images", folder / LISTING
        with _lock, _undone_on_failure() as made:
            pictures = self._some_pictures()
            for picture in pictures:
                _copy(picture.path, images / picture.name, made)
                if picture.mask:
                    _copy(picture.mask, images / picture.mask.name, made)
            captions = {picture.name: picture.caption for picture in pictures if picture.caption}
            if captions:
                write_listed(listing, _in_lines(captions))
        return {"images": (str(images),), "captions": str(listing) if captions else None}

    def holds(self, folder: Path) -> bool:
        """Whether all that :meth:`write_references` wrote into a folder is here still."""
        with _lock:
            try:
                files = list((folder / "images").iterdir())
                same = all(filecmp.cmp(file, self._images / file.name, shallow=False) for file in files)
            except OSError:
                return False
            return same and read_object(folder / LISTING).items() <= read_object(self._listing).items()

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
            raise ImagesError(f"picture {shown_name(name)!r} is not there any more; reload the page")
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
        dropped = Dropped(files, self._tokens())
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
        paths, lines = pictures_in(folder, masks)
        listing = folder / LISTING
        listed, told = listed_captions(listing, [path.name for path in paths])
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
                    caption = checked_caption("\n".join(own_captions(path, noted, self._tokens())[0]), path.name)
            except CaptionError as error:
                lines.append(str(error).replace(f"{folder}{os.sep}", ""))
            own = next(iter(masks.files_of(path)), None)
            given.append(Given(path, path.name, caption, (own, own.name) if own else None))
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
        listed, _ = listed_captions(concept.captions, [path.name for path in paths])
        with _lock:
            return self._take([Given(path, path.name, listed.get(path.name, "")) for path in paths])

    def _take(self, given: Sequence[Given]) -> list[str]:
        """Copy the usable pictures, all of them or none; returns a line for each of the others."""
        there = self._files()
        fresh, twins, captions, lines = without_twins(given, there)
        if len(there) + len(fresh) > MAX_PICTURES:
            before = f" beside the {len(there)} that are there" if there else ""
            are, none = ("is", "it was not") if len(given) == 1 else ("are", "none of them was")
            raise ImagesError(
                f"{how_many(len(given), 'picture')} {are} too many{before}, and {none} taken: three to ten good ones "
                f"are enough, and at most {MAX_PICTURES} are taken"
            )
        total = sum(size_of(path) for path in (*there, *(each.path for each in fresh)))
        if total > MAX_TOTAL_BYTES:
            raise ImagesError(
                f"the pictures would have {total / 1e9:.1f} GB together, more than {MAX_TOTAL_BYTES / 1e9:g}, and none "
                "of them was taken; scale them down first"
            )
        usable, moving = [], []
        for each in fresh:
            why, has_more = looked_at(each)
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
            save_png(read_mask(file, picture, open_picture(picture).size, shown_name(name)), _mask_of(picture))
        except ImagesError as error:
            return [f"{error}; it was skipped"]
        return []

    def _mask_by_name(self, masks: Sequence[tuple[Path, str]]) -> list[str]:
        """Give masks that came without a picture to those of their names that are there already."""
        lines = []
        for file, name in masks:
            stems = [without_mask_end(name), split_name(without_mask_end(name))[0]]
            found = [path for path in self._files() if any(_is_named(path.name, stem) for stem in stems)]
            for path in found:
                lines += self._take_mask(path, file, name)
            if not found:
                lines.append(_without_picture(name))
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

    def _place(self, given: Sequence[Given], captions: dict[str, str]) -> list[str]:
        """Copy pictures with their masks, all of them or none; returns a line for each mask that cannot be used."""
        number, lines = max((_order(path.name)[0] for path in self._files()), default=0), []
        with _undone_on_failure() as made:
            for each in given:
                number += 1
                target = self._images / _name(number, with_suffix(each))
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
            self._save({**self._captions(), path.name: checked_caption(text, path.name)})

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
                path.name: checked_caption(captions[path.name], path.name)
                for path in self._files()
                if path.name in captions and not there.get(path.name)
            }
            self._save({**there, **new})
            return len(new)

    def _caption_by_name(self, texts: Sequence[tuple[str, str]]) -> list[str]:
        """Give captions whose files came without a picture to those of their names that are there already."""
        stems = {split_name(name)[0]: text for name, text in texts}
        names = {split_name(name)[0]: name for name, _ in texts}
        return [_without_picture(names[stem]) for stem in self._caption_all(stems)]

    def _caption_all(self, texts: Mapping[str, str]) -> list[str]:
        """Give captions to the pictures of these names that are there already; returns the names of no picture."""
        captions, without = self._captions(), []
        for name, text in texts.items():
            found = [path.name for path in self._files() if _is_named(path.name, split_name(name)[0])]
            captions.update(dict.fromkeys(found, text))
            without += [] if found else [shown_name(name)]
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
            write_listed(self._listing, _in_lines(kept))


# ---------------------------------------------------------------- names


def _without_picture(name: str) -> str:
    return f"{shown_name(name)} was skipped: there is no picture of this name; add the picture as well"


def _mask_of(picture: Path) -> Path:
    """Where the mask of a picture of the draft is kept. No picture's own name has a dot, see :func:`_name`."""
    return picture.with_name(picture.stem + _MASK)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() and not path.is_symlink() else None


def _name(number: int, original: str) -> str:
    """A file name that every system takes: the number keeps the order, and off the names that Windows reserves."""
    stem, suffix = split_name(original)
    before = f"{number:04}-"
    text = plain(stem, _MAX_NAME_BYTES)[: _MAX_NAME - len(before) - len(suffix)]
    return before + (text.rstrip("-_") or "picture") + suffix


def _order(name: str) -> tuple[int, str]:
    return int(name.partition("-")[0]), name


def _is_named(name: str, stem: str) -> bool:
    """Whether a file of the draft was of this stem when it came."""
    return name.casefold() == _name(_order(name)[0], stem + split_name(name)[1]).casefold()


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


def _in_lines(captions: Mapping[str, str]) -> dict[str, list[str]]:
    return {name: text.split("\n") for name, text in captions.items()}


# ---------------------------------------------------------------- what can be used


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
