"""The hostile files of the attacks, made by code."""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

SPARSE = 1_000_000_000
"""Bytes of a file that takes no room on the disk."""
LARGE = 1_500_000_000
"""Bytes that a computer has, and that nobody should take unasked."""
_MAGIC = 0x1950A86A20F9469CFC6C


def sparse(path: Path, size: int = SPARSE) -> Path:
    """A file of nothing but zeros."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


# ---------------------------------------------------------------- pickles


class Runs:
    """Unpickling this calls a function."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self._call = function, given

    def __reduce__(self) -> Any:
        return self._call


def _calls(outside: Path) -> dict[str, Any]:
    """Objects that do something when they are unpickled."""
    evil = outside / "evil"
    return {
        "system": Runs(os.system, f'mkdir "{evil}"'),
        "mkdir": Runs(os.mkdir, str(evil)),
        "eval": Runs(eval, f"__import__('os').mkdir({str(evil)!r})"),
        "exec": Runs(exec, f"import os; os.mkdir({str(evil)!r})"),
        "open": Runs(open, str(evil), "w"),
        "read": Runs(io.open, str(outside / "secret")),
        "load": Runs(torch.load, str(outside / "secret.pt")),
        "import": Runs(__import__, "antigravity"),
        "getattr": Runs(getattr, Runs(__import__, "os"), "system"),
        "memory": Runs(bytearray, LARGE),
    }


def _opcodes(outside: Path) -> dict[str, bytes]:
    """Pickles that no pickler would write."""
    command = f'mkdir "{outside / "evil"}"'.encode()
    return {
        "inst": b"(S'" + command + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + command + b"'\no.",
        "reduce-0": b"cos\nsystem\n(S'" + command + b"'\ntR.",
        "stack-global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85R.",
        "extension": b"\x80\x02\x82\x01.",
        "build": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(X\x08\x00\x00\x00__code__K\x01ub.",
        "memory": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + struct.pack("<q", LARGE)[:5] + b"\x85R.",
        "text": b"\x80\x02X\xff\xff\xff\x7fx.",
        "memo": b"\x80\x02]r\xff\xff\xff\xff.",
        "deep": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "tuples": b"\x80\x02(" + b"\x85" * 200_000 + b".",
        "empty": b"",
        "stop": b".",
    }


def _zipped(body: bytes, **more: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data.pkl": body, "version": b"3\n", "byteorder": b"little", **more}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def _legacy(body: bytes) -> bytes:
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    return b"".join(pickle.dumps(each, 2) for each in (_MAGIC, 1001, about)) + body + pickle.dumps([], 2)


def pickles(folder: Path, outside: Path) -> Iterator[Path]:
    """Embeddings and checkpoints that would run code, or fill memory."""
    bodies = _opcodes(outside)
    for name, call in _calls(outside).items():
        nested = {"string_to_param": {"*": [(call,)]}, "name": "x"}
        bodies |= {f"{name}-bare": pickle.dumps(call, 2), f"{name}-nested": pickle.dumps(nested, 2)}
        bodies |= {f"{name}-4": pickle.dumps(call, 4)}
    suffixes = itertools.cycle((".pt", ".ckpt", ".bin", ".ckpt"))
    for name, body in bodies.items():
        for how, content in (("pickle", body), ("legacy", _legacy(body)), ("zip", _zipped(body))):
            path = folder / f"{name}-{how}{next(suffixes)}"
            path.write_bytes(content)
            yield path
    yield from _bombs(folder)


def _bombs(folder: Path) -> Iterator[Path]:
    """Small files that are large in memory."""
    with zipfile.ZipFile(folder / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        with packed.open("archive/data.pkl", "w") as file:
            file.write(pickle.dumps({}, 2))
            for _ in range(600):  # what comes behind a pickle's end is read as well
                file.write(bytes(1_000_000))
        packed.writestr("archive/version", b"3\n")
    yield folder / "packed.pt"
    view = torch.zeros(1).expand(2**20, 2**20)
    torch.save({"string_to_param": {"*": view}, "name": "x"}, folder / "view.pt")
    yield folder / "view.pt"
    torch.save({"*": view}, folder / "view-legacy.bin", _use_new_zipfile_serialization=False)
    yield folder / "view-legacy.bin"
    content = bytearray(_zipped(pickle.dumps({}, 2), data=b"x" * 100))
    place = content.find(b"PK\1\2")  # the list of what is there, which says how large it is
    content[place + 20 : place + 28] = struct.pack("<II", 0x7FFFFFFF, 0x7FFFFFFF)
    (folder / "lying.pt").write_bytes(content)
    yield folder / "lying.pt"
    (folder / "many.pt").write_bytes(_zipped(pickle.dumps({}, 2), **{f"x{i}": b"" for i in range(5000)}))
    yield folder / "many.pt"


# ---------------------------------------------------------------- safetensors


def safetensors(folder: Path) -> Iterator[Path]:
    """Headers that lie."""

    def header(about: Any, data: bytes = b"", length: int | None = None) -> bytes:
        text = about if isinstance(about, bytes) else json.dumps(about).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def tensor(shape: list[int], offsets: list[int], kind: str = "F32") -> dict[str, Any]:
        return {"dtype": kind, "shape": shape, "data_offsets": offsets}

    good = tensor([1, 768], [0, 3072])
    files = {
        "length-huge": header(b"{}", length=2**63),
        "length-large": header(b"{}", length=100_000_001),
        "length-beyond": header(b"{}", length=50),
        "length-zero": header(b"", length=0),
        "overlap": header({"a": good, "b": good}, bytes(3072)),
        "gap": header({"a": tensor([1, 768], [100, 3172])}, bytes(3172)),
        "backwards": header({"a": tensor([1, 768], [3072, 0])}, bytes(3072)),
        "negative": header({"a": tensor([1, -768], [0, 3072])}, bytes(3072)),
        "negative-offset": header({"a": tensor([1, 768], [-3072, 0])}, bytes(3072)),
        "beyond": header({"a": tensor([1, 2**40], [0, 2**42])}, bytes(3072)),
        "overflow": header({"a": tensor([2**33, 2**33], [0, 3072])}, bytes(3072)),
        "wrong-size": header({"a": tensor([2, 768], [0, 3072])}, bytes(3072)),
        "no-size": header({"a": tensor([0, 768], [0, 0])}),
        "unknown-kind": header({"a": tensor([1, 768], [0, 3072], "F1000")}, bytes(3072)),
        "no-tensor": header({"__metadata__": {"token": "x"}}),
        "many": header({f"t{i}": tensor([0], [0, 0]) for i in range(50_000)}),
        "deep": header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "nan": header(b'{"a":{"dtype":"F32","shape":[NaN,768],"data_offsets":[0,Infinity]}}', bytes(3072)),
        "endless-number": header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,1]}}'),
        "twice": header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32"}}', bytes(4)),
        "not-text": header(b'{"\xff\xfe":{}}'),
        "list": header([1, 2]),
        "metadata": header({"__metadata__": {"token": {"a": 1}}, "a": good}, bytes(3072)),
        "pickle": pickle.dumps(Runs(os.getcwd), 2),
        "empty": b"",
    }
    for name, content in files.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes(content)
        yield path
    yield sparse(folder / "sparse.safetensors")


# ---------------------------------------------------------------- pictures


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@functools.cache
def _bomb() -> bytes:
    """Two hundred megabytes, packed."""
    return zlib.compress(bytes(200_000_000))


def _png(width: int, height: int, *chunks: bytes, packed: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = bytes((width * 3 + 1) * height if width * height < 10**6 else 9)
    body = _chunk(b"IDAT", packed or zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + _chunk(b"IEND", b"")


def _saved(picture: Image.Image, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **more)
    return buffer.getvalue()


def _scanned(size: tuple[int, int], times: int) -> bytes:
    """A JPEG that goes over its pixels ever again."""
    content = _saved(Image.new("L", size), "JPEG", progressive=True)
    last = content.rfind(b"\xff\xda")
    return content[:last] + content[last:-2] * times + b"\xff\xd9"


_SIDE = 64


def tiff(entries: list[tuple[int, int, int, int]], after: bytes = b"", following: int = 0) -> bytes:
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + struct.pack("<I", following) + after


GREY = [(256, 4, 1, _SIDE), (257, 4, 1, _SIDE), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
"""Tags of a grey TIFF, whose strip begins at 1000."""
STRIP = [(273, 4, 1, 1000), (278, 4, 1, _SIDE), (279, 4, 1, _SIDE * _SIDE)]
ROOM = bytes(1000 + _SIDE * _SIDE)


def bmp(width: int, height: int, packing: int, data: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, packing, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + header + bytes(1024) + data


NEWER: dict[str, tuple[Callable[[], bytes], str]] = {
    "strips": (lambda: tiff([*GREY, (273, 4, 2_000_000, 300)], bytes(8_000_000)), "made to take hours"),
    "tags that share": (
        lambda: tiff([*GREY, *((tag, 7, 7_000_000, 300) for tag in (320, 347))], bytes(8_000_000)),
        "hours",
    ),
    "tiles": (lambda: tiff([*GREY[:4], (322, 4, 1, 40_000), (323, 4, 1, 40_000)], ROOM), "made to take hours"),
    "side": (lambda: tiff([(256, 4, 1, 2**20), (257, 4, 1, 2**20), *GREY[2:], *STRIP], ROOM), "too many pixels"),
    "samples": (lambda: tiff([*GREY[:5], (277, 4, 1, 2**31), *STRIP], ROOM), "damaged|cannot be read"),
    "no directory": (lambda: b"II*\0\xff\xff\xff\x7f" + bytes(99), "damaged"),
    "run lengths": (lambda: bmp(60_000_000, 1, 1, b"\0\2\xff\xff" * 9), "made to take hours"),
    "screen": (lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;", "too many pixels"),
    "blocks": (lambda: b"GIF89a\x40\0\x40\0\0\0\0!\xfe" + b"\1x" * 3_000_000 + b"\0;", "made to take hours"),
}
"""What is refused, by a name for it: how it is made, and the words."""


def pictures(folder: Path) -> Iterator[Path]:
    """Pictures that are none, or far larger than they look; all have the names of pictures."""
    small, frames = Image.new("RGB", (64, 64)), [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(60)]
    bomb = _bomb()
    files = {
        "ihdr.png": _png(100_000, 100_000),
        "ihdr-most.png": _png(2**31 - 1, 2**31 - 1),
        "ihdr-zero.png": _png(0, 0),
        "wide.png": _png(63_000_000, 1),
        "ztxt.png": _png(64, 64, _chunk(b"zTXt", b"Comment\0\0" + bomb)),
        "itxt.png": _png(64, 64, _chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb)),
        "iccp.png": _png(64, 64, _chunk(b"iCCP", b"icc\0\0" + bomb)),
        "texts.png": _png(64, 64, *[_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 200),
        "idat.png": _png(64, 64, packed=bomb),
        "chunk.png": _png(64, 64, struct.pack(">I", 2**31 - 1) + b"tEXt"),
        "cut.png": _png(2000, 2000)[:300],
        "scans.jpg": _scanned((4000, 4000), 20_000),
        "exif.jpg": _exif(),
        "large.jpg": _saved(Image.new("L", (65_000, 1_100)), "JPEG"),
        "frames.png": _saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "frames.webp": _saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "large.webp": b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f" + struct.pack("<I", 0x3FFF | 0x3FFF << 14) + bytes(13),
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(%pipe%id) (r) file\n%%EOF\n",
        "pdf.png": b"%PDF-1.7\n%%EOF\n",
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "psd.png": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(99),
        "html.jpg": b"<html><script>alert(1)</script></html>",
        "text.jpg": b"a photograph",
        "empty.png": b"",
        "script.png": b"#!/bin/sh\ntouch evil\n",
        **{f"{kind.lower()}.png": _saved(small, kind) for kind in ("GIF", "TIFF", "BMP", "ICO", "PCX", "TGA", "PPM")},
        **{f"{name}.jpg": make() for name, (make, _) in NEWER.items()},
        "fits.png": b"SIMPLE  =                    T" + bytes(2850),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
        yield folder / name
    yield sparse(folder / "sparse.png")
    (folder / "folder.png").mkdir()
    yield folder / "folder.png"
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        yield folder / "pipe.png"
        (folder / "device.png").symlink_to("/dev/zero")
        yield folder / "device.png"


def _exif() -> bytes:
    """A JPEG with as much EXIF data as its kind allows, each part of it pointing to another."""
    content = _saved(Image.new("RGB", (64, 64)), "JPEG")
    entries = b"".join(struct.pack("<HHII", 0x8769, 4, 1, 8) for _ in range(5000))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5000) + entries
    return content[:2] + (b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif) * 200 + content[2:]


# ---------------------------------------------------------------- texts


def texts() -> dict[str, bytes]:
    """JSON that is none, or more than it looks."""
    return {
        "deep": b"[" * 100_000,
        "deep-object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "endless-number": b'{"steps": ' + b"9" * 1_000_000 + b"}",
        "nan": b'{"config_version": 1, "lr": NaN, "mu": Infinity, "steps": 1e999}',
        "not-text": b'{"token": "\xff\xfe"}',
        "half": b'{"config_version": 1, "token": "\\ud800", "images": ["x"], "initializer": "dog"}',
        "list": b"[1]",
        "empty": b"",
        "null": b"null",
        "string": b'"text"',
        "twice": b'{"config_version": 1, "config_version": 2}',
        "kinds": b'{"config_version": 1, "token": {"a": 1}, "images": 3, "initializer": [], "steps": "many"}',
    }
