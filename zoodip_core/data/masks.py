"""Masks of pictures: which file is whose, and what it says in the picture's own pixels. White is the subject."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from ..base.errors import ImagesError
from ..base.texts import how_many
from .images import (
    MASKS,
    is_mask,
    is_masks_folder,
    is_picture,
    read_alpha,
    read_picture,
    turned,
)

TRANSPARENCIES = BACKGROUND, MASK = ("background", "mask")
"""What transparency is: what a colour is laid behind, or a picture's mask too."""
BLACK = (0, 0, 0)


class Masks:
    """Finds the masks of pictures, and keeps what is to be told of them.

    A picture's mask is ``NAME.mask.png`` beside it, OneTrainer's ``NAME-masklabel.png``, or a picture of its name in a
    folder ``masks`` beside it; or its own transparency, where that is asked for. What cannot be used is told, and its
    picture is learned whole.

    Args:
        transparency: one of :data:`TRANSPARENCIES`.
    """

    def __init__(self, transparency: str = BACKGROUND) -> None:
        self._transparency = transparency
        self._folders: dict[Path, dict[str, list[Path]]] = {}
        self._lines: dict[str, None] = {}
        self.known: set[Path] = set()
        """Files that belong to pictures which were asked for."""

    @property
    def lines(self) -> list[str]:
        """What is to be told, once each."""
        return list(self._lines)

    def of(self, picture: Path, size: tuple[int, int]) -> Image.Image | None:
        """A picture's mask, "L" and of its size; None where it has none, or one that says nothing.

        Args:
            picture: its file.
            size: its width and height as it is seen, upright.
        """
        files = self.files_of(picture)
        self.known.update(files)
        try:
            alpha = read_alpha(picture) if self._transparency == MASK else None
        except ImagesError:  # the picture itself is told
            return None
        names = [file.name for file in files] + (["its transparency"] if alpha else [])
        if len(names) > 1:
            self._tell(f"{picture.name} has {len(names)} masks: {names[0]} is used, {', '.join(names[1:])} left out")
        try:
            if files:
                return read_mask(files[0], picture, size)
            return alpha and of_use(alpha, f"the transparency of {picture.name}")
        except ImagesError as error:
            self._tell(f"{error}; {picture.name} is learned whole")
            return None

    def _tell(self, line: str) -> None:
        self._lines[line] = None

    def files_of(self, picture: Path) -> list[Path]:
        """The files of a picture's masks, of which the first is used."""
        folder = picture.parent
        if folder not in self._folders:
            found: dict[str, list[Path]] = {}
            for file in _masks_in(folder):
                found.setdefault(mask_key(file), []).append(file)
            self._folders[folder] = found
        files = [file for key in picture_keys(picture) for file in self._folders[folder].get(key, [])]
        return [file for file in files if file != picture]


def read_mask(file: Path, picture: Path, size: tuple[int, int], shown: str = "") -> Image.Image:
    """A file's mask as it lies over a picture, "L" and of its size.

    Args:
        file: of the mask.
        picture: the picture's file.
        size: its width and height as it is seen, upright.
        shown: the mask's name, where its file has another one.

    Raises:
        ImagesError: it cannot be read, is of another shape, or says nothing.
    """
    name = shown or file.name
    try:
        mask = read_picture(file, BLACK)[0].convert("L")
    except ImagesError as error:
        raise ImagesError(str(error).replace(str(file), name)) from error
    return over(mask, picture, size, f"the mask {name}")


def over(mask: Image.Image, picture: Path, size: tuple[int, int], what: str) -> Image.Image:
    """A mask, "L", as it lies over a picture; arguments and errors are as of :func:`read_mask`.

    Args:
        what: the mask's name, for errors.
    """
    upright = _laid_over(mask, picture, size)
    if upright is None:
        shapes = f"{mask.width} x {mask.height} for a picture of {size[0]} x {size[1]}"
        raise ImagesError(f"{what} is of another shape, {shapes}; it has to lie over the whole picture")
    return of_use(upright, what)


def of_use(mask: Image.Image, what: str) -> Image.Image:
    """A mask that says where the subject is.

    Raises:
        ImagesError: it is black or white all over.
    """
    darkest, brightest = mask.getextrema()
    if brightest == 0:
        raise ImagesError(f"{what} is black all over and shows no subject, which is to be white")
    if darkest == brightest:
        raise ImagesError(f"{what} is the same all over")
    return mask


def mask_key(file: Path) -> str:
    """What the name of a mask and that of its picture have in common: see :func:`picture_keys`."""
    stem = _plain(file.stem)
    return next((stem.removesuffix(end) for end in MASKS if stem.endswith(end)), stem)


def picture_keys(file: Path) -> list[str]:
    """What a mask of a picture may be called by: ``a.mask.png`` is that of ``a.jpg``, and so is ``a.jpg.mask.png``."""
    return list(dict.fromkeys((_plain(file.stem), _plain(file.name))))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _masks_in(folder: Path) -> Iterator[Path]:
    """All masks of a folder's pictures, those that are used first of several in front."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:  # the pictures there are told
        return
    for end in MASKS:
        yield from (path for path in entries if is_mask(path) and _plain(path.stem).endswith(end) and path.is_file())
    for path in entries:
        if is_masks_folder(path):
            yield from masks_within(path)


def masks_within(folder: Path) -> list[Path]:
    """The pictures in a folder of masks, however they are called."""
    try:
        return [path for path in sorted(folder.iterdir()) if is_mask(path) or is_picture(path)]
    except OSError:
        return []


def without_masks(sources: Sequence[str | Path]) -> list[str | Path]:
    """What was given, without the masks that a shell's glob brings along with pictures."""
    paths = [Path(source) for source in sources]
    others = [path for path in paths if not is_mask(path) and not is_masks_folder(path)]
    beside = {*others, *(path.parent for path in others)}

    def is_mask_beside(path: Path) -> bool:
        return bool(others) and (is_mask(path) or (is_masks_folder(path) and path.parent in beside))

    return [source for source, path in zip(sources, paths, strict=True) if not is_mask_beside(path)]


def _laid_over(mask: Image.Image, picture: Path, size: tuple[int, int]) -> Image.Image | None:
    """A mask as it lies over the upright picture, in its size; None if it is of another shape.

    Programs draw masks on the picture as it is seen, or as its file has it, which a camera's may have lying.
    """
    if not alike(mask.size, size):
        if not alike(mask.size, size[::-1]):
            return None
        mask = turned(mask, picture)
        if not alike(mask.size, size):
            return None
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other, scaled and rounded to whole pixels."""
    return abs(one[0] / other[0] - one[1] / other[1]) < 1 / other[0] + 1 / other[1]


def masked_of(pictures: Mapping[Path, bool]) -> list[str]:
    """A line on how many of the pictures have a mask, where any has."""
    own = sum(pictures.values())
    if not own:
        return []
    rest = "" if own == len(pictures) else "; the rest is learned whole"
    return [f"masks for {own} of {how_many(len(pictures), 'picture')}{rest}"]
