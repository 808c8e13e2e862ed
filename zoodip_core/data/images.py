"""Reference images: files to RGB pictures of the training resolution."""

from __future__ import annotations

import contextlib
import io
import math
import re
import stat
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError, features

from ..base import rng
from ..base.errors import ConfigError, ImagesError
from .cuts import ENLARGED, Cut, check_crop, cut_of
from .kinds import DAMAGED, HOURS, SUFFIXES, NoPicture, Opened, Why, opened, why_not

_BESIDE = (".txt", ".caption", ".json", ".jsonl", ".npz", ".safetensors", ".yaml", ".toml", ".csv", ".md")
"""Of what lies beside pictures and is none: captions, other programs' notes."""
MASKS = (".mask", "-masklabel")
"""What the name of a mask ends with before its suffix, ours and OneTrainer's."""
MIN_SIDE = 8
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 100_000_000
MAX_SCANS = 64
"""Of a JPEG, each of which goes over all pixels, and may be a few bytes only. Programs write about ten."""
MAX_PICTURES = 100
"""That a page, a script or a node takes; a person at the command line may name more."""
MAX_WEBP_PIXELS = 40_000_000
"""The decoders of WebP and AVIF hold a picture four times."""
_STRIP = 1 << 20
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True)
class ReferenceImage:
    """One usable reference image.

    Args:
        path: where it came from.
        picture: RGB, as large as it is trained on; see :func:`.cuts.cut_of`.
        original_size: (height, width) of the file's picture; SDXL is told it.
        crop_top_left: (top, left) of the cut in the scaled picture; SDXL is told it.
        has_more: whether there are frames or pages behind the picture, which nothing is learned from.
        mask: "L", of the picture's size, white where the subject is; None: all of it is learned.
    """

    path: Path
    picture: Image.Image
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]
    has_more: bool = False
    mask: Image.Image | None = None

    @property
    def time_ids(self) -> tuple[int, ...]:
        """What SDXL is told of it: the original's height and width, the cut's top and left, its height and width."""
        return (*self.original_size, *self.crop_top_left, *self.picture.size[::-1])


MaskOf = Callable[[Path, tuple[int, int]], Image.Image | None]
"""The mask of a picture's file, "L" and of its upright size, white where the subject is; None where it has none."""


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """The image files in the given folders (not their subfolders) and files, in a stable order.

    A file is one by its content; one that is called a picture and is none counts too, and is told when it is opened.

    Raises:
        ImagesError: a source does not exist, or there is no image at all.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found += sorted(path for path in source.iterdir() if is_picture(path))
        elif source.is_file():
            if len(sources) > 1 and source.suffix.lower() in _BESIDE:
                continue  # a shell's glob brings captions along
            why = why_not(source)
            if why and len(sources) == 1:
                raise ImagesError(f"{source} {why.one}")
            found += [] if why else [source]
        else:
            raise ImagesError(f"images: {source} does not exist; give a folder of images or image files")
    if not found:
        where = ", ".join(map(str, sources)) or "(nothing given)"
        lines = "".join(f"; {line}" for line in left_out(sources))
        raise ImagesError(f"no JPEG, PNG or WebP image in {where}; put 3 to 10 pictures of the subject there{lines}")
    return list(dict.fromkeys(found))


def is_picture(path: Path) -> bool:
    """Whether a folder's file is taken for a picture: none of a mask, as trainers keep it beside a picture."""
    return _says_it_is(path) and path.is_file() and not why_not(path)


def seems_picture(path: Path) -> bool:
    """As :func:`is_picture`, but a name that says so is believed: of a whole tree, few files need be opened."""
    return _says_it_is(path) and (path.suffix.lower() in SUFFIXES or is_picture(path))


def _says_it_is(path: Path) -> bool:
    """By its name alone, whether a file may be a picture."""
    if path.suffix.lower() in SUFFIXES:
        return not is_mask(path) and not path.name.startswith("._")
    return not _is_beside(path)


def is_mask(path: Path) -> bool:
    """Whether a file is, by its name, a mask of the picture beside it."""
    return path.suffix.lower() in SUFFIXES and path.stem.lower().endswith(MASKS)


def is_masks_folder(path: Path) -> bool:
    """Whether a folder has masks of the pictures beside it, under their names."""
    return path.name.lower() == "masks" and path.is_dir()


def _is_beside(path: Path) -> bool:
    """Whether it is nobody's picture, and need not be told: notes, captions, what systems and programs hide."""
    return path.name.startswith((".", "__")) or path.suffix.lower() in _BESIDE


_UNUSED_MASK = Why("is a mask, which is not used", "masks, which are not used")
_MASK_ALONE = Why("is a mask of no picture", "masks of no picture")
_FOLDER = Why(
    "is a folder with pictures in it; give it with --images too, or move the pictures",
    "folders with pictures in them; give them with --images too, or move the pictures",
)


def left_out(sources: Sequence[str | Path], used: Collection[Path] | None = None) -> list[str]:
    """A line on each kind of thing in the given folders that nothing is learned from: nothing is left out unsaid.

    Of given files, those are told that are passed over beside others.

    Args:
        sources: folders and files.
        used: masks that belong to a picture, and given files that are pictures; None where masks are not used.
    """
    files: list[tuple[str, Why]] = []
    masks: list[str] = []
    folders: list[str] = []
    for source in map(Path, sources):
        if source.is_dir():
            paths = sorted(path for path in source.iterdir() if not _is_beside(path))
        else:
            paths = [source] if len(sources) > 1 and not _is_beside(source) else []
        for path in paths:
            if path.is_dir():
                with contextlib.suppress(OSError):  # it is not ours to look into
                    within = sorted(filter(is_picture, path.iterdir()))
                    if is_masks_folder(path):
                        masks += [f"{path.name}/{each.name}" for each in within if each not in (used or ())]
                        continue
                    folders += [f"{path.name} ({len(within)})"] if within else []
            elif is_mask(path) and (path != source or used is not None):
                masks += [] if used is not None and path in used else [path.name]
            elif why := why_not(path):
                files.append((path.name, why))
    told = [(masks, _UNUSED_MASK if used is None else _MASK_ALONE), (folders, _FOLDER)]
    return counted(files) + [_counted(names, why) for names, why in told if names]


def counted(files: Sequence[tuple[str, Why]]) -> list[str]:
    """A line for each reason why files are left out, with their names; of one file it says more."""
    by_reason: dict[Why, list[str]] = {}
    for name, why in files:
        by_reason.setdefault(why, []).append(name)
    return [_counted(names, why) for why, names in by_reason.items()]


def _counted(names: Sequence[str], why: Why) -> str:
    if len(names) == 1:
        return f"{names[0]} {why.one}"
    return f"left out, {len(names)} {why.many}: {_few(names)}"


def only_first(names: Sequence[str]) -> list[str]:
    """A line on the pictures that have more behind the first."""
    if not names:
        return []
    rest = "of which the first picture alone is used"
    if len(names) == 1:
        return [f"{names[0]} is a moving picture or a file of several pages, {rest}"]
    return [f"{len(names)} moving pictures or files of several pages, {rest}: {_few(names)}"]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


_BLOWN_UP = 1.5
"""From so many times on, what is drawn finely in a picture of the model's is missing in one that is scaled up."""
_MUCH = 0.25
"""Of a picture: its bucket cuts off less, unless it is longer than all buckets, or the resolution very low."""


def blown_up(images: Sequence[ReferenceImage]) -> list[str]:
    """A line on the pictures that are much smaller than what is trained."""
    scales = {image.path.name: _scale(image) for image in images}
    small = [f"{name} ({scale:.1f} times)" for name, scale in scales.items() if scale >= _BLOWN_UP]
    return [f"pictures that are blown up, and so look soft: {_few(small)}; use larger ones"] if small else []


def cut_off(images: Sequence[ReferenceImage]) -> list[str]:
    """A line on the pictures that are so long that even their buckets leave out much of them."""
    left = {image.path.name: math.prod(image.picture.size) / _pixels_of(image) for image in images}
    much = [f"{name} ({1 - share:.0%})" for name, share in left.items() if 1 - share > _MUCH]
    return [f"pictures so long that much of them is cut off: {_few(much)}"] if much else []


def _scale(image: ReferenceImage) -> float:
    """How many times as large a picture became."""
    sides = zip(image.picture.size, reversed(image.original_size), strict=True)
    return max(used / given for used, given in sides)


def _pixels_of(image: ReferenceImage) -> float:
    """Of the whole picture where it is scaled, before it is cut."""
    return math.prod(image.original_size) * _scale(image) ** 2


def load_images(
    sources: Sequence[str | Path],
    resolution: int,
    *,
    crop: str = "center",
    background: str = "white",
    enlarged: bool = False,
    masks: MaskOf | None = None,
) -> tuple[list[ReferenceImage], list[str]]:
    """Load all usable reference images, with their masks, which are cut like them.

    EXIF rotation is applied, transparency is laid on ``background`` and the picture is cut and scaled as
    :func:`.cuts.cut_of` says; to more, for :func:`random_cuts`, if it is ``enlarged``.
    A picture that by its mask shows nothing of the subject once it is cut is skipped.

    Returns:
        The images, and one line for each file that had to be skipped.

    Raises:
        ImagesError: nothing usable is left.
        ConfigError: an unknown ``crop`` or ``background``.
    """
    check_crop(crop)
    try:
        colour = ImageColor.getrgb(background)[:3]
    except ValueError:
        raise ConfigError(
            f"background = {background!r} is not a colour; use a name like white or a value like #ffffff"
        ) from None
    images, skipped = [], []
    for path in find_images(sources):
        try:
            picture, has_more = read_picture(path, colour)
            cut = cut_of(picture.size, resolution, crop)
            mask = masks(path, picture.size) if masks else None
            fitted = _fit(path, picture, cut.enlarged() if enlarged else cut, mask)
            images.append(replace(fitted, has_more=has_more))
        except ImagesError as error:
            skipped.append(str(error))
    if not images:
        raise ImagesError("no image can be used: " + "; ".join(skipped))
    return images, skipped


def open_picture(path: Path, background: tuple[int, ...] = (255, 255, 255)) -> Image.Image:
    """A file's picture in RGB, turned as its EXIF data says, transparency laid on ``background``.

    Raises:
        ImagesError: as :func:`read_picture`.
    """
    return read_picture(path, background)[0]


def read_picture(path: Path, background: tuple[int, ...] = (255, 255, 255)) -> tuple[Image.Image, bool]:
    """As :func:`open_picture`, and whether there are more frames or pages behind the first.

    Raises:
        ImagesError: it is no picture of a kind that is read, cannot be read, or is too small or too large.
    """
    with _decoded(path) as (found, file):
        turn, to_srgb, to_eight_bits = _turn(found, file), _to_srgb(file), _to_eight_bits(file)
        upright = file.transpose(turn) if turn is not None else file  # a whole copy
        return _on_background(upright, background, to_srgb, to_eight_bits), found.has_more


def read_alpha(path: Path) -> Image.Image | None:
    """How opaque a picture is at each place, "L" and upright; None if it has no transparency.

    Raises:
        ImagesError: as :func:`read_picture`.
    """
    with _decoded(path) as (found, file):
        if not _is_transparent(file):
            return None
        turn, alpha = _turn(found, file), Image.new("L", file.size)
        for strip in _strips(file):
            alpha.paste(file.crop(strip).convert("RGBA").getchannel("A"), strip[:2])
        if alpha.getextrema()[0] == 255:
            return None
        return alpha.transpose(turn) if turn is not None else alpha


def turned(over: Image.Image, path: Path) -> Image.Image:
    """What lies over a picture as its file has it, turned upright with it.

    Raises:
        ImagesError: as :func:`read_picture`.
    """
    with _decoded(path) as (found, file):
        turn = _turn(found, file)
        return over.transpose(turn) if turn is not None else over


def _turn(found: Opened, file: Image.Image) -> Image.Transpose | None:
    """What puts an opened picture upright."""
    return _TURNS.get(found.orientation or file.getexif().get(ExifTags.Base.Orientation, 1))


@contextlib.contextmanager
def _decoded(path: Path) -> Iterator[tuple[Opened, Image.Image]]:
    """A file's first picture, in memory and as it is stored; whatever is wrong with it is an :class:`ImagesError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our limit of pixels is lower; of odd tags nobody need know
            _check_file(path)
            found = opened(path)
            with found.file as file:
                width, height = file.size
                most = MAX_WEBP_PIXELS if file.format in ("WEBP", "AVIF") else MAX_PIXELS
                if width * height > most:
                    raise ImagesError(
                        f"{path} has {width} x {height} pixels, more than {most // 10**6} million; scale it down first"
                    )
                if min(width, height) < MIN_SIDE:
                    raise ImagesError(f"{path} has only {width} x {height} pixels; use a larger picture")
                if file.format in ("JPEG", "MPO") and _scans(path) > MAX_SCANS:
                    raise NoPicture(HOURS)
                file.load()
                yield found, file
    except ImagesError:
        raise
    except NoPicture as error:
        raise ImagesError(f"{path} {error}") from None
    except UnidentifiedImageError:
        raise ImagesError(f"{path} {DAMAGED}") from None
    except Image.DecompressionBombError:
        raise ImagesError(f"{path} has too many pixels; scale it down first") from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        reason = str(error) or type(error).__name__
        raise ImagesError(f"{path} cannot be read ({reason}); the file may be damaged or cut off") from error


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts a picture upright, by EXIF's orientation."""


def _check_file(path: Path) -> None:
    """Refuse what is not a file, such as a pipe, which would be waited for, and a file that is too large."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ImagesError(f"{path} is not a file; put a picture in its place")
    if about.st_size > MAX_FILE_BYTES:
        megabytes = f"{about.st_size / 1e6:.0f} MB, more than {MAX_FILE_BYTES // 10**6}"
        raise ImagesError(f"{path} has {megabytes}; scale it down first")


def _to_srgb(picture: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """What turns the colours of a picture with a profile of its own, as every iPhone's, into sRGB's; None without."""
    data = picture.info.get("icc_profile")
    if not data or not features.check("littlecms2"):
        return None
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = own.profile.xcolor_space.strip()
        if "sRGB" in (own.profile.profile_description or "") or space not in ("RGB", "CMYK"):
            return None
        mode = "CMYK" if space == "CMYK" else "RGB"
        if (picture.mode == "CMYK") != (mode == "CMYK"):
            return None  # it is another picture's
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # a damaged profile is as good as none
        return None
    return lambda part: ImageCms.applyTransform(part, transform) or part


def _scans(path: Path) -> int:
    """How often a JPEG goes over its pixels, up to :data:`MAX_SCANS` and one."""
    data, place, scans = path.read_bytes(), 2, 0
    while scans <= MAX_SCANS and (found := _MARKER.search(data, place)) and found[0] != _JPEG_END:
        scans += found[0] == _JPEG_SCAN
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


_Values = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]
_BITS, _IS_BLACK, _SAMPLE = 258, 262, 339
"""TIFF's tags for the bits of a value, for which end is white, and for how values are written."""
_SIGNED = 2


def _to_eight_bits(picture: Image.Image) -> _Values | None:
    """What makes 8 bits of greys that have more, white being the largest that can be written; None for other pictures.

    However dark the picture, its values say nothing of white, but where they are fractions: those are mostly of 1, and
    of 255 or 65535 where programs left them as they were.
    """
    if not (picture.mode.startswith("I") or picture.mode == "F"):
        return None
    tags: Any = getattr(picture, "tag_v2", {})  # TIFF's
    (bits, *_), (sample, *_) = tags.get(_BITS, (16,)), tags.get(_SAMPLE, (1,))
    white, wraps = 2.0 ** (bits - (sample == _SIGNED)) - 1, 0.0
    if picture.mode == "F":
        white = _white(picture)
    elif bits == 32 and sample != _SIGNED:
        wraps = 2.0**32  # Pillow has them signed
    is_negative = tags.get(_IS_BLACK, 1) == 0

    def convert(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        values = np.nan_to_num(values.astype(np.float64))
        share = np.clip(np.where(values < 0, values + wraps, values) / white, 0, 1)
        return ((1 - share if is_negative else share) * 255).astype(np.uint8)

    return convert


def _white(picture: Image.Image) -> float:
    """The white of fractions: the least of 1, 255 and 65535 that all but the brightest hundredth of them keep below."""
    sides = (min(picture.width, 1000), min(picture.height, 1000))
    values = np.nan_to_num(np.asarray(picture.resize(sides, Image.Resampling.NEAREST)))
    most = float(np.percentile(values, 99))
    white = next((white for white in (1, 255, 65535) if most <= white), None)
    if white is None:
        raise ValueError(f"values up to {most:g}, of which nobody knows which is white; save it with 8 or 16 bits")
    return white


def _on_background(
    picture: Image.Image,
    colour: tuple[int, ...],
    to_srgb: Callable[[Image.Image], Image.Image] | None = None,
    to_eight_bits: _Values | None = None,
) -> Image.Image:
    """In sRGB, strip by strip: whole copies of a large picture would fill the memory."""
    strips = list(_strips(picture))
    transparent = _is_transparent(picture)
    flat = Image.new("RGB", picture.size)
    for strip in strips:
        part = picture.crop(strip)
        if to_eight_bits:
            part = Image.fromarray(to_eight_bits(np.asarray(part)))
        elif to_srgb and part.mode == "CMYK":
            part = to_srgb(part)
        elif transparent:
            layer = part.convert("RGBA")
            if to_srgb:
                layer = Image.merge("RGBA", (*to_srgb(layer.convert("RGB")).split(), layer.getchannel("A")))
            part = Image.alpha_composite(Image.new("RGBA", layer.size, (*colour, 255)), layer)
        elif to_srgb:
            part = to_srgb(part.convert("RGB"))
        flat.paste(part.convert("RGB"), strip[:2])
    return flat


def _strips(picture: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """The picture in boxes of some million pixels."""
    width, height = picture.size
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)


def _is_transparent(picture: Image.Image) -> bool:
    # Pillow's has_transparency_data is newer than 9.5, which A1111 comes with.
    palette = picture.palette if picture.mode == "P" else None
    return (
        picture.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        or "transparency" in picture.info
        or (palette is not None and palette.mode.endswith("A"))
    )


def _fit(path: Path, picture: Image.Image, cut: Cut, mask: Image.Image | None) -> ReferenceImage:
    width, height = cut.original
    over = cut.apply(mask, Image.Resampling.BILINEAR) if mask else None
    if over and not over.getbbox():
        raise ImagesError(
            f"{path} shows nothing of the subject once it is cut to {over.width} x {over.height}, by its mask; set "
            "crop to resize, or cut the picture around the subject"
        )
    return ReferenceImage(path, cut.apply(picture), (height, width), cut.crop_top_left, mask=over)


def to_tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as float32 ``[N, 3, height, width]`` in [-1, 1]."""
    arrays = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1


def with_flips(images: list[ReferenceImage]) -> list[ReferenceImage]:
    """The images followed by their mirror images, under the same paths."""
    return images + [
        replace(image, picture=ImageOps.mirror(image.picture), mask=image.mask and ImageOps.mirror(image.mask))
        for image in images
    ]


def random_cuts(images: Sequence[ReferenceImage], count: int, seed: int) -> list[ReferenceImage]:
    """Pieces at random places of larger pictures, ``count`` of each, under the same paths.

    Those that by the picture's mask show nothing of the subject are left out.

    Args:
        images: enlarged; a piece is as large as the picture was before it was enlarged.
        count: pieces of each picture.
        seed: of the places.
    """
    cuts = []
    for number, image in enumerate(image for image in images for _ in range(count)):
        width, height = (int(side / ENLARGED) for side in image.picture.size)
        room = {"top": image.picture.height - height, "left": image.picture.width - width}
        top, left = (rng.integer(seed, number, f"cut, {side}", 0, more + 1) for side, more in room.items())
        box = (left, top, left + width, top + height)
        mask = image.mask and image.mask.crop(box)
        if mask and not mask.getbbox():
            continue
        corner = (image.crop_top_left[0] + top, image.crop_top_left[1] + left)
        cuts.append(replace(image, picture=image.picture.crop(box), crop_top_left=corner, mask=mask))
    return cuts


def check_resolution(resolution: int) -> None:
    """Refuse what no model can draw or be shown.

    Raises:
        ConfigError: it is neither a multiple of 8 from 32 on, nor 0.
    """
    if resolution and (resolution < 32 or resolution % 8):
        raise ConfigError(f"resolution = {resolution}: must be a multiple of 8, at least 32, or 0 for the model's own")
