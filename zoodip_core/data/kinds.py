"""What kind of picture a file is, by its content, and how each kind is opened: one decoder alone is ever tried.

Pillow knows some fifty kinds, one of which runs a program, and reads more of a file than its picture. So whatever has
no part in the first picture (notes, further pages and frames) is taken out before Pillow sees it, where there may be
any amount of it.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image, features

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
"""In Pillow's words. Nothing else is tried, whatever a file's name says."""
_SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
SUFFIXES = tuple(suffix for suffixes in _SUFFIXES_OF.values() for suffix in suffixes)
"""Of a file that says it is a picture. If it is none, that is told."""
_VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".wmv", ".mpg", ".mpeg", ".3gp", ".ogv", ".flv")
_VIDEO, _RAW = "video", "raw"
DAMAGED = "is damaged, or no JPEG, PNG or WebP whatever its name says; save it anew as one of these"
HOURS = "is made to take hours to open; save it anew as JPEG, PNG or WebP"
_MEMORY = "is made to fill the memory; save it anew as JPEG, PNG or WebP"


class NoPicture(ValueError):  # noqa: N818 - not an error, but what is wrong with a file
    """Why a file cannot be opened, in words that go after its name."""


@dataclass(frozen=True)
class Why:
    """Why a file is left out: after its name, and of several after their number."""

    one: str
    many: str


_OTHER = Why(
    "is not a JPEG, PNG or WebP file; convert it first",
    "of another kind than JPEG, PNG or WebP; save them as one of these",
)
_WHY = {
    _VIDEO: Why("is a video; save some frames of it as pictures", "videos; save some frames of them as pictures"),
    _RAW: Why("is a camera's raw file; save it as JPEG", "raw files of cameras; save them as JPEG"),
    "HEIF": Why("is HEIC: install pillow-heif, or save as JPEG", "HEIC: install pillow-heif, or save as JPEG"),
    "AVIF": Why("is AVIF: install Pillow 11.3 or newer, or save as JPEG", "AVIF: install Pillow 11.3, or save as JPEG"),
}


def why_not(path: Path, name: str = "") -> Why | None:
    """Why a file is not tried as a picture; None if it is.

    Args:
        path: the file.
        name: its owner's for it, if it lies under another one.
    """
    kind, suffix = kind_of(path), Path(name or path.name).suffix.lower()
    if kind in FORMATS:
        return None if _can_read(kind) else _WHY[kind]
    if kind in _WHY:
        return _WHY[kind]
    if suffix in SUFFIXES:
        return None  # it is damaged, which is told when it is opened
    return _WHY[_VIDEO] if suffix in _VIDEOS else _OTHER


def usual_suffix(path: Path) -> str:
    """What a file of its kind is mostly called; nothing of what is no picture."""
    return _SUFFIXES_OF.get(kind_of(path), ("",))[0]


# ---------------------------------------------------------------- kinds

_HEAD = 64
_AVIF = {b"avif", b"avis"}
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"
_BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"),
    (_PNG, "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"IIRO", _RAW),
    (b"IIU\0", _RAW),
    (b"\x1aE\xdf\xa3", _VIDEO),  # Matroska, WebM
    (b"FLV\1", _VIDEO),
    (b"\0\0\1\xba", _VIDEO),
    (b"\0\0\1\xb3", _VIDEO),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _VIDEO),  # Windows Media
)
_QUICKTIME = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def kind_of(path: Path) -> str:
    """A file's kind by its first bytes: one of :data:`FORMATS`, another that is told by its name, or nothing.

    Of no kind is what is not a file, such as a pipe, which would be waited for, and what cannot be read.
    """
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            head = file.read(_HEAD)
            kind = _kind(head)
            return _RAW if kind == "TIFF" and _is_raw(file, head) else kind
    except (OSError, ValueError):
        return ""


def _kind(head: bytes) -> str:
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": "WEBP", b"AVI ": _VIDEO}.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if head[:4] in _TIFF:
        return "TIFF"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return _VIDEO if head[4:8] in _QUICKTIME else ""


def _of_brands(head: bytes) -> str:
    """What an ISO media file says it is, which may be a picture or a video."""
    size = int.from_bytes(head[:4], "big")
    first = head[8:12]
    brands = {first, *(head[at : at + 4] for at in range(16, min(size, len(head)), 4))}
    if first == b"crx ":
        return _RAW
    if first in _AVIF or (first in (b"mif1", b"msf1") and brands & _AVIF):
        return "AVIF"
    return "HEIF" if first in _HEIF else _VIDEO


def _can_read(kind: str) -> bool:
    if kind == "HEIF":
        return _heif() is not None
    if kind == "AVIF":  # an old Pillow does not know the name
        return "avif" in features.modules and bool(features.check("avif"))
    return True


def _heif() -> Any:
    """The package that reads HEIC, if it is installed. It is not registered: Pillow belongs to the host."""
    try:
        import pillow_heif
    except (ImportError, OSError):
        return None
    return pillow_heif


# ---------------------------------------------------------------- opening


@dataclass(frozen=True)
class Opened:
    """A picture's file, opened, not yet decoded.

    Args:
        file: Pillow's, to be closed.
        orientation: as EXIF counts; 1 if it lies as it should.
        has_more: whether there are further frames or pages.
    """

    file: Image.Image
    orientation: int
    has_more: bool


def opened(path: Path) -> Opened:
    """Open a picture, a regular file of bounded size, by the decoder of its kind alone.

    Raises:
        NoPicture: it is of no kind that is read, or made to do harm.
        Exception: whatever Pillow raises on a damaged one.
    """
    kind = kind_of(path)
    if kind not in FORMATS or not _can_read(kind):
        if kind in _WHY:
            raise NoPicture(_WHY[kind].one)
        raise NoPicture(DAMAGED)
    if kind == "HEIF":  # it turns the picture itself; further ones are of a burst
        _check_heif(path)
        return Opened(_heif().HeifImageFile(str(path)), 1, False)
    slim = _SLIM.get(kind)
    source, orientation, more = slim(path) if slim else (path, 0, False)
    file = Image.open(source, formats=(kind,))
    # An MPO, a JPEG of many phones with a second picture behind the first, counts as animated.
    more = more or (file.format != "MPO" and kind != "TIFF" and bool(getattr(file, "is_animated", False)))
    return Opened(file, orientation, more)


_Slim = tuple[Path | io.BytesIO, int, bool]
"""Where to read a picture from, its orientation if that is known (0 if not), whether there is more behind it."""


_PNG_NEEDED = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"eXIf", b"acTL", b"fcTL"}
_LARGEST_PROFILE = 4_000_000
_LARGEST_PART = 100_000_000
_MOST_CHUNKS = 100_000


def _slim_png(path: Path) -> _Slim:
    """A PNG without its notes, of which Pillow refuses more than a megabyte, and programs write any number.

    A profile stays if it is of a size that colours need.
    """
    with path.open("rb") as file:
        kept, dropped = io.BytesIO(), False
        kept.write(file.read(8))
        for _ in range(_MOST_CHUNKS):
            if len(head := file.read(8)) < 8:
                break
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind in _PNG_NEEDED or (kind == b"iCCP" and size <= _LARGEST_PROFILE and _is_profile(file, size)):
                if size > _LARGEST_PART:  # room for it would be made before it is read, here and by Pillow
                    raise NoPicture(DAMAGED)
                kept.write(head + file.read(size + 4))
            else:
                file.seek(size + 4, os.SEEK_CUR)
                dropped = True
            if kind == b"IEND":
                break
        else:
            return path, 0, False  # it is no picture that anybody made
    kept.seek(0)
    return (kept if dropped else path), 0, False


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


_MOST_BLOCKS = 2_000_000


def _slim_gif(path: Path) -> _Slim:
    """A GIF's first frame alone: Pillow takes hours to put a long comment together."""
    data = path.read_bytes()
    blocks = 0

    def palette(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 128 else 0

    def after_blocks(at: int) -> int:
        nonlocal blocks
        while at < len(data) and data[at]:
            at, blocks = at + data[at] + 1, blocks + 1
            if blocks > _MOST_BLOCKS:
                raise NoPicture(HOURS)
        return at + 1

    at = 13 + palette(data[10] if len(data) > 10 else 0)
    kept, frames, control = [data[:at]], 0, b""
    while at + 10 < len(data) and frames < 2:
        if data[at] == 0x21:
            if data[at + 1] == 0xF9:  # it says which colour is transparent
                control = data[at : at + 3 + data[at + 2]] + b"\0"
            at = after_blocks(at + 2)
            blocks += 1
        elif data[at] == 0x2C:
            end = after_blocks(at + 10 + palette(data[at + 9]) + 1)
            kept += [control, data[at:end]] if not frames else []
            at, frames = end, frames + 1
        else:
            break
    return io.BytesIO(b"".join((*kept, b";"))), 1, frames > 1


_RUN_LENGTH = (1, 2)
_RUN_LENGTH_SIDE, _RUN_LENGTH_PIXELS = 8192, 16_000_000


def _slim_bmp(path: Path) -> _Slim:
    """A BMP as it is, unless it is one of run lengths so large that Pillow, in Python, takes very long for it."""
    with path.open("rb") as file:
        head = file.read(34)
    if int.from_bytes(head[14:18], "little") > 12 and int.from_bytes(head[30:34], "little") in _RUN_LENGTH:
        width, height = (abs(int.from_bytes(head[at : at + 4], "little", signed=True)) for at in (18, 22))
        if width > _RUN_LENGTH_SIDE or width * height > _RUN_LENGTH_PIXELS:
            raise NoPicture(HOURS)
    return path, 1, False


# ---------------------------------------------------------------- HEIC

_MOST_LOADED = 500_000_000
_MOST_META = 20_000_000


def _check_heif(path: Path) -> None:
    """Refuse a HEIC of many pictures that share a profile or notes: its reader loads those anew for each of them."""
    size, loads = path.stat().st_size, 0
    with path.open("rb") as file:
        for kind, start, stop in _boxes(lambda at, count: _read_at(file, at, count), 0, size):
            if kind == b"meta":
                if stop - start > _MOST_META:
                    raise NoPicture(HOURS)
                loads += _loads(_read_at(file, start + 4, stop - start - 4))
    if loads * size > _MOST_LOADED:
        raise NoPicture(_MEMORY)


def _read_at(file: IO[bytes], at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _boxes(read_at: Callable[[int, int], bytes], at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of an ISO media file from one place to another: their kinds, and where their contents lie."""
    while at + 8 <= end:
        head = read_at(at, 16)
        size, start = int.from_bytes(head[:4], "big"), at + 8
        if size == 1:
            size, start = int.from_bytes(head[8:16], "big"), at + 16
        stop = min(at + size, end) if size else end
        if stop < start:
            return
        yield head[4:8], start, stop
        at = stop


def _loads(meta: bytes) -> int:
    """How often notes and profiles are loaded: once for each picture but the tiles of others, and as they are named."""

    def number(at: int, count: int) -> int:
        return int.from_bytes(meta[at : at + count], "big")

    def read_at(at: int, count: int) -> bytes:
        return meta[at : at + count]

    items, tiles, named = set(), set(), 0
    for kind, start, stop in _boxes(read_at, 0, len(meta)):
        if kind == b"iinf":
            for _, at, _ in _boxes(read_at, start + (8 if meta[start : start + 1] != b"\0" else 6), stop):
                items.add(number(at + 4, 4 if number(at, 1) > 2 else 2))
        elif kind == b"iref":
            width = 4 if number(start, 1) else 2
            for reference, at, end in _boxes(read_at, start + 4, stop):
                ids = range(at + width + 2, end - width + 1, width)
                if reference == b"dimg":
                    tiles |= {number(each, width) for each in ids}
                elif reference == b"cdsc":
                    named += len(ids)
    return len(items - tiles) + named


# ---------------------------------------------------------------- TIFF

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value, by its type's number."""
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _PROFILE, _ORIENTATION = 256, 257, 322, 323, 34675, 274
_SUBFILE, _PHOTOMETRIC, _SENSOR, _DNG = 254, 262, 32803, 50706
_TIFF_NEEDED = {
    *(_WIDTH, _HEIGHT, 258, 259, _PHOTOMETRIC, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320),
    *(_TILE_WIDTH, _TILE_HEIGHT, 324, 325, 338, 339, 347, 512, 513, 514, 519, 520, 521, 529, 530, 531, 532),
    _PROFILE,
}
"""The tags that tell how the picture is kept. All others are notes."""
_MOST_VALUES = 100_000
"""Of a tag: as many strips as a picture may have rows."""
_LARGEST_TILE = 4096 * 4096
_MOST_TAGS = 4096


@dataclass(frozen=True)
class _Tags:
    """The first directory of a TIFF.

    Args:
        order: of its bytes, as :mod:`struct` has it.
        at: where it begins in the file.
        entries: their bytes by their tags.
        following: where the next directory begins, 0 if there is none.
        counter: how :mod:`struct` calls the number of entries, and that of values and places.
    """

    order: str
    at: int
    entries: dict[int, bytes]
    following: int
    counter: tuple[str, str]

    def values(self, tag: int) -> tuple[int, int]:
        """How many a tag has, and their bytes together."""
        kind, count = struct.unpack_from(f"{self.order}2xH{self.counter[1]}", self.entries[tag])
        return count, count * _SIZES.get(kind, 1)

    def number(self, tag: int) -> int:
        """A tag's only number; 0 if it has none."""
        entry = self.entries.get(tag, b"")
        kind = struct.unpack_from(f"{self.order}2xH", entry)[0] if entry else 0
        form, at = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind, ""), 4 + struct.calcsize("=" + self.counter[1])
        fits = form and at + struct.calcsize("=" + form) <= len(entry)
        return int(struct.unpack_from(self.order + form, entry, at)[0]) if fits else 0


def _tags(read_at: Callable[[int, int], bytes], head: bytes) -> _Tags | None:
    """The first directory of a TIFF; None if it is none."""
    order = "<" if head[:2] == b"II" else ">"
    is_big = 43 in head[2:4]
    counter = ("Q", "Q") if is_big else ("H", "I")
    number, place = (struct.calcsize("=" + each) for each in counter)
    try:
        (at,) = struct.unpack_from(order + counter[1], head, 8 if is_big else 4)
        (count,) = struct.unpack(order + counter[0], read_at(at, number))
        length = 4 + 2 * place
        if count > _MOST_TAGS:
            return None
        data = read_at(at + number, count * length + place)
        is_whole = len(data) == count * length + place
        following = struct.unpack_from(order + counter[1], data, count * length)[0] if is_whole else 0
    except (struct.error, OverflowError):
        return None
    entries: dict[int, bytes] = {}
    for i in range(count):
        entry = data[i * length : (i + 1) * length]
        if len(entry) == length:
            entries.setdefault(struct.unpack_from(order + "H", entry)[0], entry)
    return _Tags(order, at, entries, following, counter)


def _is_raw(file: IO[bytes], head: bytes) -> bool:
    """Whether a TIFF is a camera's raw file, in which the first picture is a small preview."""

    if head[8:10] == b"CR":
        return True
    tags = _tags(lambda at, count: _read_at(file, at, count), head)
    if tags is None:
        return False
    is_preview = bool(tags.number(_SUBFILE) & 1)
    return is_preview or _DNG in tags.entries or tags.number(_PHOTOMETRIC) == _SENSOR


def _slim_tiff(path: Path) -> _Slim:
    """A TIFF's first page without its notes.

    Tags may say that they have any number of values, and several may have the same ones, which Pillow all loads.
    """
    data = bytearray(path.read_bytes())
    tags = _tags(lambda at, count: bytes(data[at : at + count]), bytes(data[:16]))
    if tags is None:
        raise NoPicture(DAMAGED)
    kept, total = [], 0
    for tag in sorted(_TIFF_NEEDED & set(tags.entries)):
        count, size = tags.values(tag)
        if tag == _PROFILE and size > _LARGEST_PROFILE:
            continue
        total += size
        if total > len(data) or (count > _MOST_VALUES and tag != _PROFILE):
            raise NoPicture(HOURS)
        kept.append(tags.entries[tag])
    tile = tags.number(_TILE_WIDTH), tags.number(_TILE_HEIGHT)
    is_wider = tile[0] > tags.number(_WIDTH) + 15 or tile[1] > tags.number(_HEIGHT) + 15
    if tile[0] * tile[1] > _LARGEST_TILE and is_wider:
        raise NoPicture(HOURS)
    number, place = (tags.order + each for each in tags.counter)
    directory = struct.pack(number, len(kept)) + b"".join(kept) + struct.pack(place, 0)
    data[tags.at : tags.at + len(directory)] = directory  # it was longer, or as long
    return io.BytesIO(data), tags.number(_ORIENTATION) or 1, tags.following != 0


_SLIM: dict[str, Callable[[Path], _Slim]] = {
    "PNG": _slim_png,
    "GIF": _slim_gif,
    "BMP": _slim_bmp,
    "TIFF": _slim_tiff,
}
