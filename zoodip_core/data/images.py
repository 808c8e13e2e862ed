"""Reference images: files to RGB pictures of the training resolution."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError, features

from ..base.errors import ConfigError, ImagesError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp")
_BESIDE = (".txt", ".caption", ".json", ".jsonl", ".npz", ".safetensors", ".yaml", ".toml", ".csv", ".md")
"""Of what lies beside pictures and is none: captions, other programs' notes."""
_MASKS = ("-masklabel", ".mask")
FORMATS = ("JPEG", "PNG", "WEBP")
"""Whatever a file's name says, nothing else is tried: Pillow knows some fifty kinds, one of which runs a program."""
MIN_SIDE = 8
MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 100_000_000
MAX_SCANS = 64
"""Of a JPEG, each of which goes over all pixels, and may be a few bytes only. Programs write about ten."""
MAX_PICTURES = 100
"""That a page, a script or a node takes; a person at the command line may name more."""
MAX_WEBP_PIXELS = 40_000_000
"""The decoder of WebP holds a picture four times."""
_STRIP = 1 << 20
CROPS = ("center", "resize")
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True)
class ReferenceImage:
    """One usable reference image.

    Args:
        path: where it came from.
        picture: RGB, resolution x resolution.
        original_size: (height, width) of the file's picture; SDXL is told it.
        crop_top_left: (top, left) of the cut in the scaled picture; SDXL is told it.
    """

    path: Path
    picture: Image.Image
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]


def find_images(sources: Sequence[str | Path]) -> list[Path]:
    """The image files in the given folders (not their subfolders) and files, in a stable order.

    Raises:
        ImagesError: a source does not exist, or there is no image at all.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found += sorted(p for p in source.iterdir() if _is_picture(p) and p.is_file())
        elif source.is_file():
            if len(sources) > 1 and source.suffix.lower() in _BESIDE:
                continue  # a shell's glob brings captions along
            if source.suffix.lower() not in SUFFIXES:
                raise ImagesError(f"{source} is not a JPEG, PNG or WebP file; convert it first")
            found.append(source)
        else:
            raise ImagesError(f"images: {source} does not exist; give a folder of images or image files")
    if not found:
        where = ", ".join(map(str, sources)) or "(nothing given)"
        raise ImagesError(f"no JPEG, PNG or WebP image in {where}; put 3 to 10 pictures of the subject there")
    return list(dict.fromkeys(found))


def _is_picture(path: Path) -> bool:
    """By its name: a mask, as trainers keep it beside a picture, is none."""
    return path.suffix.lower() in SUFFIXES and not path.stem.lower().endswith(_MASKS) and not path.name.startswith("._")


def left_out(sources: Sequence[str | Path]) -> list[str]:
    """A line on each kind of thing in the given folders that nothing is learned from: nothing is left out unsaid."""
    files: list[str] = []
    masks: list[str] = []
    folders: list[str] = []
    for source in map(Path, sources):
        for path in sorted(source.iterdir()) if source.is_dir() else ():
            if path.name.startswith((".", "__")) or path.suffix.lower() in _BESIDE:
                continue
            if path.is_dir():
                with contextlib.suppress(OSError):  # it is not ours to look into
                    within = sum(map(_is_picture, path.iterdir()))
                    folders += [f"{path.name} ({within})"] if within else []
            elif path.suffix.lower() in SUFFIXES:
                masks += [] if _is_picture(path) else [path.name]
            else:
                files.append(path.name)
    lines = [(files, "no JPEG, PNG or WebP; save them as one of these"), (masks, "masks, which are not used")]
    lines.append((folders, "folders with pictures in them; give them with --images too, or move the pictures"))
    return [f"left out, {len(names)} {why}: {_few(names)}" for names, why in lines if names]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


_MOST_BLOWN_UP = 2.0
"""A picture scaled up by more has nothing of what is drawn finely."""


def blown_up(images: Sequence[ReferenceImage], resolution: int) -> list[str]:
    """A line on the pictures that are much smaller than what is trained."""
    factors = {image.path.name: resolution / min(image.original_size) for image in images}
    small = [f"{name} ({factor:.1f} times)" for name, factor in factors.items() if factor > _MOST_BLOWN_UP]
    if not small:
        return []
    return [f"{len(small)} pictures are blown up to {resolution} pixels, and look soft: {_few(small)}; use larger ones"]


def load_images(
    sources: Sequence[str | Path],
    resolution: int,
    *,
    crop: str = "center",
    background: str = "white",
) -> tuple[list[ReferenceImage], list[str]]:
    """Load all usable reference images.

    EXIF rotation is applied, transparency is laid on ``background`` and the picture is scaled to
    ``resolution`` x ``resolution``, after cutting out the centre square (``crop="center"``) or
    with both sides forced (``crop="resize"``).

    Returns:
        The images, and one line for each file that had to be skipped.

    Raises:
        ImagesError: nothing usable is left.
        ConfigError: an unknown ``crop`` or ``background``.
    """
    _check_crop(crop)
    try:
        colour = ImageColor.getrgb(background)[:3]
    except ValueError:
        raise ConfigError(
            f"background = {background!r} is not a colour; use a name like white or a value like #ffffff"
        ) from None
    images, skipped = [], []
    for path in find_images(sources):
        try:
            images.append(_fit(path, open_picture(path, colour), resolution, crop))
        except ImagesError as error:
            skipped.append(str(error))
    if not images:
        raise ImagesError(f"none of the {len(skipped)} images can be used: " + "; ".join(skipped))
    return images, skipped


def open_picture(path: Path, background: tuple[int, ...] = (255, 255, 255)) -> Image.Image:
    """A file's picture in RGB, turned as its EXIF data says, transparency laid on ``background``.

    Raises:
        ImagesError: it is no JPEG, PNG or WebP, cannot be read, or is too small or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            _check_file(path)
            with Image.open(without_notes(path), formats=FORMATS) as file:
                width, height = file.size
                most = MAX_WEBP_PIXELS if file.format == "WEBP" else MAX_PIXELS
                if width * height > most:
                    raise ImagesError(
                        f"{path} has {width} x {height} pixels, more than {most // 10**6} million; scale it down first"
                    )
                if min(width, height) < MIN_SIDE:
                    raise ImagesError(f"{path} has only {width} x {height} pixels; use a larger picture")
                if file.format in ("JPEG", "MPO") and _scans(path) > MAX_SCANS:
                    raise ImagesError(f"{path} is made to take hours to open; save it anew as JPEG, PNG or WebP")
                file.load()
                turned = file.getexif().get(ExifTags.Base.Orientation, 1) != 1  # else it would be a whole copy
                to_srgb = _to_srgb(file)
                return _on_background(ImageOps.exif_transpose(file) if turned else file, background, to_srgb)
    except ImagesError:
        raise
    except UnidentifiedImageError:
        raise ImagesError(
            f"{path} is damaged, or no JPEG, PNG or WebP whatever its name says; save it anew as one of these"
        ) from None
    except Image.DecompressionBombError:
        raise ImagesError(f"{path} has too many pixels; scale it down first") from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        reason = str(error) or type(error).__name__
        raise ImagesError(f"{path} cannot be read ({reason}); the file may be damaged or cut off") from error


def _check_file(path: Path) -> None:
    """Refuse what is not a file, such as a pipe, which would be waited for, and a file that is too large."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ImagesError(f"{path} is not a file; put a picture in its place")
    if about.st_size > MAX_FILE_BYTES:
        megabytes = f"{about.st_size / 1e6:.0f} MB, more than {MAX_FILE_BYTES // 10**6}"
        raise ImagesError(f"{path} has {megabytes}; scale it down first")


_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"eXIf", b"acTL", b"fcTL"}
_LARGEST_PROFILE = 4_000_000
_MOST_CHUNKS = 100_000


def without_notes(path: Path) -> Path | io.BytesIO:
    """A PNG without its notes, of which Pillow refuses more than a megabyte, and programs write any number.

    A profile stays if it is of a size that colours need.
    """
    with path.open("rb") as file:
        if file.read(8) != _PNG:
            return path
        kept, dropped = io.BytesIO(), False
        kept.write(_PNG)
        for _ in range(_MOST_CHUNKS):
            if len(head := file.read(8)) < 8:
                break
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind in _PNG_NEEDED or (kind == b"iCCP" and size <= _LARGEST_PROFILE and _is_profile(file, size)):
                kept.write(head + file.read(size + 4))
            else:
                file.seek(size + 4, os.SEEK_CUR)
                dropped = True
            if kind == b"IEND":
                break
        else:
            return path  # it is no picture that anybody made
    kept.seek(0)
    return kept if dropped else path


def _is_profile(file: IO[bytes], size: int) -> bool:
    """Whether a PNG's profile, which begins here, unpacks to something of its size's order; the place is kept."""
    at = file.tell()
    data = file.read(size)
    file.seek(at)
    packed = data.partition(b"\0")[2][1:]
    try:
        return len(zlib.decompressobj().decompress(packed, 1_000_000)) < 1_000_000  # what Pillow takes at most
    except zlib.error:
        return False


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


def _on_background(
    picture: Image.Image, colour: tuple[int, ...], to_srgb: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """In sRGB, strip by strip: whole copies of a large picture would fill the memory."""
    strips = list(_strips(picture))
    gray = picture.mode.startswith("I") or picture.mode == "F"  # of 16 bits, however dark, as PNG has them
    transparent = _is_transparent(picture)
    flat = Image.new("RGB", picture.size)
    for strip in strips:
        part = picture.crop(strip)
        if gray:
            values = np.asarray(part, dtype=np.float64)
            part = Image.fromarray(np.clip(values / 65535 * 255, 0, 255).astype(np.uint8))
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


def fit(picture: Image.Image, side: int, crop: str = "center") -> Image.Image:
    """A picture as training sees it, ``side`` x ``side``: the centre square, or with ``crop="resize"`` all, forced.

    Raises:
        ConfigError: an unknown ``crop``.
    """
    _check_crop(crop)
    if crop == "resize":
        return picture.resize((side, side), Image.Resampling.LANCZOS)
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)


def _check_crop(crop: str) -> None:
    if crop not in CROPS:
        raise ConfigError(f"crop = {crop!r}: choose one of {', '.join(CROPS)}")


def _fit(path: Path, picture: Image.Image, resolution: int, crop: str) -> ReferenceImage:
    width, height = picture.size
    corner = (0, 0)
    if crop == "center":
        scale = resolution / min(width, height)
        corner = (round((height * scale - resolution) / 2), round((width * scale - resolution) / 2))
    return ReferenceImage(path, fit(picture, resolution, crop), (height, width), corner)


def to_tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size as float32 ``[N, 3, height, width]`` in [-1, 1]."""
    arrays = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1


def with_flips(images: list[ReferenceImage]) -> list[ReferenceImage]:
    """The images followed by their mirror images, under the same paths."""
    return images + [replace(image, picture=ImageOps.mirror(image.picture)) for image in images]


def check_resolution(resolution: int) -> None:
    """Refuse what no model can draw or be shown.

    Raises:
        ConfigError: it is neither a multiple of 8 from 32 on, nor 0.
    """
    if resolution and (resolution < 32 or resolution % 8):
        raise ConfigError(f"resolution = {resolution}: must be a multiple of 8, at least 32, or 0 for the model's own")
