"""Hypothesis strategies that change sound files of known formats, mostly in their fields.

Bytes changed at random seldom get past a checksum or a length. So each format here is taken apart, its parts are
changed, and it is put together again with right ones; every strategy also damages the bytes themselves now and then.
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
ODD_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    255,
    256,
    5000,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


def _below(draw: Draw, count: int) -> int:
    return draw(st.integers(0, max(0, count - 1)))


def _one_of(draw: Draw, choices: Sequence[Any]) -> Any:
    return choices[_below(draw, len(choices))]


# ---------------------------------------------------------------- bytes


def _flip(draw: Draw, data: bytes) -> bytes:
    if not data:
        return b"\xff"
    at = _below(draw, len(data))
    return data[:at] + bytes([data[at] ^ 1 << _below(draw, 8)]) + data[at + 1 :]


def _cut(draw: Draw, data: bytes) -> bytes:
    return data[: _below(draw, len(data) + 1)]


def _insert(draw: Draw, data: bytes) -> bytes:
    at = _below(draw, len(data) + 1)
    return data[:at] + draw(st.binary(min_size=1, max_size=8)) * _one_of(draw, (1, 1, 100)) + data[at:]


def _piece(draw: Draw, data: bytes) -> tuple[int, int]:
    start = _below(draw, len(data) + 1)
    return start, min(len(data), start + _one_of(draw, (1, 2, 4, 8, 30, 200)))


def _drop(draw: Draw, data: bytes) -> bytes:
    start, end = _piece(draw, data)
    return data[:start] + data[end:]


def _double(draw: Draw, data: bytes) -> bytes:
    start, end = _piece(draw, data)
    return data[:end] + data[start:end] * _one_of(draw, (1, 1, 50)) + data[end:]


def _swap(draw: Draw, data: bytes) -> bytes:
    start, end = _piece(draw, data)
    other = min(len(data), end + (end - start))
    return data[:start] + data[end:other] + data[start:end] + data[other:]


def _number(draw: Draw, data: bytes) -> bytes:
    """An odd number over some bytes, as lengths and offsets stand in files."""
    size = _one_of(draw, (1, 2, 4, 8))
    number = (_one_of(draw, ODD_NUMBERS) % 256**size).to_bytes(size, _one_of(draw, ("little", "big")))
    at = _below(draw, len(data))
    return data[:at] + number + data[at + size :]


_EDITS = (_flip, _flip, _cut, _insert, _drop, _double, _swap, _number, _number)


def _damage(draw: Draw, data: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        data = _one_of(draw, _EDITS)(draw, data)
    return data


@st.composite
def damaged(draw: Draw, samples: Sequence[bytes]) -> bytes:
    """A sample whose bytes are changed, or joined from two samples."""
    data = _one_of(draw, samples)
    if _below(draw, 10) == 9:
        other = _one_of(draw, samples)
        return data[: _below(draw, len(data) + 1)] + other[_below(draw, len(other) + 1) :]
    return _damage(draw, data)


# ---------------------------------------------------------------- JSON

_DEEP = 100_000
ODD_VALUES = (
    *("null", "true", "false", "0", "-1", "1", "2", "3.5", "-0.0", "1e-320", "1e308", "1e999", "-1e999"),
    *("NaN", "Infinity", "-Infinity", "2147483648", "9223372036854775808", "1" + "0" * 400, "1" + "0" * 5000),
    *(
        '""',
        '"x"',
        '"1"',
        '"nan"',
        '"{}"',
        '"a {} b"',
        '"<x>"',
        '"../../x"',
        '"/"',
        '"\\u0000"',
        '"\\ud800"',
        '"\\udfff x"',
    ),
    *('"' + "long " * 20_000 + '"', '"' + "n" * 300 + '"', '"\\u200f\\ufeff\\u0301"', '"C:\\\\x"', '"<script>"'),
    *("[]", "{}", "[[]]", "[null]", '[""]', "[1, [2]]", '{"": 0}', '["x", "y"]', "[0, 1, 2]", "[" + "9," * 2000 + "9]"),
    *("[" * 200 + "]" * 200, "[" * 900 + "]" * 900, "[" * _DEEP + "]" * _DEEP, '{"a":' * _DEEP + "1" + "}" * _DEEP),
)
"""JSON texts that seldom stand where they are put: other types, no numbers, huge ones, lone surrogates, depth."""


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container in a JSON value with each of its keys or indices."""
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _edit_json(draw: Draw, value: Any, words: Sequence[str]) -> str:
    """The text of a JSON value with some of its parts changed. Odd texts stand in for marks that are put in first."""
    tree = [copy.deepcopy(value)]
    odd: dict[str, str] = {}

    def mark(text: str) -> str:
        odd[f'"@@{len(odd)}@@"'] = text
        return f"@@{len(odd) - 1}@@"

    def odd_value() -> str:
        if words and _below(draw, 3) == 0:
            return mark(json.dumps(_one_of(draw, words)))
        if _below(draw, 20) == 0:  # about as deep as Python's stack allows
            depth = draw(st.integers(100, 1100))
            return mark("[" * depth + "]" * depth)
        return mark(_one_of(draw, ODD_VALUES))

    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            break
        parent, key = places[_below(draw, len(places))]
        kind = _below(draw, 8)
        if kind == 0 and len(places) > 1:
            parent.pop(key)
        elif kind == 1 and isinstance(parent, dict):
            parent[_one_of(draw, (*words, "", "x", key + "x", "@" * 1000))] = parent.pop(key)
        elif kind == 2 and isinstance(parent, dict):
            parent[mark(json.dumps(key))] = odd_value()  # the same key twice
        elif kind == 3:
            other, at = places[_below(draw, len(places))]
            parent[key] = copy.deepcopy(other[at])
        else:
            parent[key] = odd_value()
    text = json.dumps(tree[0] if tree else None, indent=_one_of(draw, (None, 1)))
    for name, instead in odd.items():
        text = text.replace(name, instead)
    return text


@st.composite
def json_like(draw: Draw, samples: Sequence[Any], words: Sequence[str] = ()) -> bytes:
    """A JSON sample with values, keys and depth changed; ``words`` make sense somewhere in it."""
    data = _edit_json(draw, _one_of(draw, samples), words).encode()
    coding = _below(draw, 16)
    if coding == 0:
        return _damage(draw, data)
    if coding == 1:
        return b"\xef\xbb\xbf" + data
    return data.decode().encode("utf-16") if coding == 2 else data


@st.composite
def json_lines(draw: Draw, samples: Sequence[Any], words: Sequence[str] = ()) -> bytes:
    """Lines of JSON, each sound or changed."""
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        sample = _one_of(draw, samples)
        whole = _below(draw, 3) == 0
        lines.append(json.dumps(sample).encode() if whole else draw(json_like([sample], words)).replace(b"\n", b" "))
    return b"\n".join(lines) + _one_of(draw, (b"\n", b""))


# ---------------------------------------------------------------- safetensors

_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_SHAPES = (
    (),
    (0,),
    (1,),
    (4,),
    (0, 768),
    (1, 0),
    (1, 1, 1),
    (2, 3, 4, 5),
    (2**31,),
    (2**32, 2**32),
    (1,) * 70,
    (1,) * 2000,
)
_MOST_DATA = 1_000_000


@dataclass
class Safetensors:
    """A safetensors file to be: its tensors' types and shapes by their names, and its metadata."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    metadata: dict[str, str] = field(default_factory=dict)

    def write(self, fill: int = 0, edit: Callable[[dict[str, Any]], str] = json.dumps) -> bytes:
        """A file whose header is sound, where ``edit`` leaves it so; all bytes of its tensors are ``fill``."""
        header: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        end = 0
        for name, (dtype, shape) in self.tensors.items():
            start, end = end, end + min(_MOST_DATA, prod(shape) * _BITS[dtype] // 8)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = edit(header).encode()
        return len(text).to_bytes(8, "little") + text + bytes([fill]) * end


@st.composite
def safetensors(draw: Draw, samples: Sequence[Safetensors], words: Sequence[str] = ()) -> bytes:
    """A safetensors file: of other tensors, with a changed header of the right length, or damaged."""
    file = copy.deepcopy(_one_of(draw, samples))
    kind = _below(draw, 8)
    for _ in range(draw(st.integers(1, 3)) if kind < 5 else 0):
        name = _one_of(draw, list(file.tensors) or [""])
        dtype, shape = file.tensors.get(name, ("F32", (1,)))
        change = _below(draw, 7)
        if change == 0:
            file.tensors.pop(name, None)
        elif change == 1:
            file.tensors[_one_of(draw, (*words, "", "x" * 1000, "\ud800", "__metadata__", name + "x"))] = (dtype, shape)
        elif change == 2:
            file.tensors[name] = (_one_of(draw, list(_BITS)), shape)
        elif change == 3:
            file.tensors[name] = (dtype, _one_of(draw, _SHAPES))
        elif change == 4:
            file.tensors[name] = (dtype, tuple(_one_of(draw, (0, 1, 2, 3, 4, 8, 768)) for _ in shape))
        elif change == 5 and file.metadata:
            key = _one_of(draw, list(file.metadata))
            file.metadata[key] = _one_of(draw, ODD_VALUES)
        elif change == 6 and file.metadata:
            key = _one_of(draw, list(file.metadata))
            try:
                file.metadata[key] = _edit_json(draw, json.loads(file.metadata[key]), words)
            except (ValueError, RecursionError):  # it is not JSON
                file.metadata[key] = ""
    fill = _one_of(draw, (0, 0, 0x3C, 0x3C, 1, 0x7F, 0xFF))
    if kind in (5, 6):
        return file.write(fill, lambda header: _edit_json(draw, header, words))
    return _damage(draw, file.write(fill)) if kind == 7 else file.write(fill)


# ---------------------------------------------------------------- pickles

_GLOBALS = (
    *("builtins bytearray", "builtins set", "builtins complex", "builtins eval", "os system", "_codecs encode"),
    *("collections OrderedDict", "collections Counter", "numpy dtype", "numpy.core.multiarray scalar"),
    *(
        "torch FloatStorage",
        "torch HalfStorage",
        "torch LongStorage",
        "torch ComplexFloatStorage",
        "torch QInt8Storage",
    ),
    *(
        "torch Tensor",
        "torch FloatTensor",
        "torch Size",
        "torch device",
        "torch float16",
        "torch.storage UntypedStorage",
    ),
    *("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"),
    *("torch._utils _rebuild_parameter", "torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor"),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_nested_tensor"),
    *("torch._utils _rebuild_wrapper_subclass", "torch._tensor _rebuild_from_type_v2", "torch.nn.parameter Parameter"),
    *("torch.nn.modules.container ParameterDict", "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint"),
)
_HUGE = b"\x8a\x08" + (10**10).to_bytes(8, "little")
_OPCODES = (
    *(b"c" + name.replace(" ", "\n").encode() + b"\n" for name in _GLOBALS),
    *(
        b"N",
        b")",
        b"]",
        b"}",
        b"(",
        b"t",
        b"R",
        b"b",
        b"0",
        b"2",
        b"1",
        b"e",
        b"u",
        b"s",
        b"a",
        b"Q",
        b".",
        b"\x85",
        b"\x87",
    ),
    *(b"K\x00", b"K\x01", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", _HUGE, b"\x8b\x00\x20\x00\x00" + b"\x7f" * 8192),
    *(b"q\x00", b"q\x05", b"h\x00", b"h\x01", b"h\x05", b"G\x7f\xf0" + b"\0" * 6, b"\x88", b"X\x01\x00\x00\x00*"),
    *(
        b"X\xff\xff\xff\x7f",
        b"X\x03\x00\x00\x00\xed\xa0\x80",
        b"\x80\x04",
        b"\x93",
        b"\x94",
        b"F1e999\n",
        b"I99999999999\n",
    ),
)


def _operations(data: bytes, count: int) -> tuple[list[bytes], bytes]:
    """The operations of the pickles at the start of some bytes, and what comes behind them."""
    stream, found = io.BytesIO(data), []
    for _ in range(count):
        starts = [position or 0 for _, _, position in pickletools.genops(stream)]
        found += [data[a:b] for a, b in zip(starts, [*starts[1:], stream.tell()], strict=True)]
    return found, data[stream.tell() :]


def _edit_pickle(draw: Draw, data: bytes, count: int = 1) -> bytes:
    operations, rest = _operations(data, count)
    for _ in range(draw(st.integers(1, 3))):
        at = _below(draw, len(operations))
        here, kind = operations[at], _below(draw, 8)
        if kind == 0:
            operations[at] = b""
        elif kind == 1:
            operations[at] = here * 2
        elif kind == 2:
            other = _below(draw, len(operations))
            operations[at], operations[other] = operations[other], here
        elif kind == 3 or not here:
            operations[at] = here + _one_of(draw, _OPCODES)
        elif here[:1] == b"c":
            operations[at] = _one_of(draw, _OPCODES[: len(_GLOBALS)])
        elif here[:1] in b"KMJ\x8a":
            operations[at] = _one_of(draw, (b"K\x00", b"K\x01", b"K\x02", b"M\x00\x03", b"J\xff\xff\xff\xff", _HUGE))
        elif kind == 4:
            operations[at] = _one_of(draw, _OPCODES)
        else:
            operations[at] = _flip(draw, here)
    return b"".join(operations) + rest


def _zip(entries: Sequence[tuple[str, bytes]], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names that are there twice
        for name, content in entries:
            file.writestr(name, content)
    return buffer.getvalue()


def _edit_directory(draw: Draw, data: bytes) -> bytes:
    """A field of one of the directory's records changed."""
    marks = [i for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6") for i in range(len(data)) if data.startswith(mark, i)]
    at = _one_of(draw, marks) + _one_of(draw, range(4, 46, 2))
    size = _one_of(draw, (2, 4))
    return data[:at] + (_one_of(draw, ODD_NUMBERS) % 256**size).to_bytes(size, "little") + data[at + size :]


@st.composite
def pickles(draw: Draw, samples: Sequence[bytes]) -> bytes:
    """A file of ``torch.save`` with operations, entries or the directory changed, or damaged."""
    data, kind = _one_of(draw, samples), _below(draw, 10)
    if kind == 9:
        return _damage(draw, data)
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return _edit_pickle(draw, data, 5)
    if kind == 8:
        return _edit_directory(draw, data)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        entries = [(name, file.read(name)) for name in file.namelist()]
    at = (
        _below(draw, len(entries))
        if kind > 5
        else next(i for i, (n, _) in enumerate(entries) if n.endswith("data.pkl"))
    )
    name, content = entries[at]
    if kind < 6:
        entries[at] = (name, _edit_pickle(draw, content))
    elif kind == 6:
        entries[at] = (_one_of(draw, ("x", name + "x", "archive/data/9", "../x")), content)
    else:
        entries[at : at + 1] = [(name, _damage(draw, content))] * _one_of(draw, (0, 1, 2))
    return _zip(entries, _one_of(draw, (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


# ---------------------------------------------------------------- pictures

_SIDES = (0, 1, 7, 8, 9, 40, 300, 5000, 7999, 8000, 16383, 16384, 65535, 2**24 - 1, 2**31 - 1, 2**32 - 1)


def _edit_chunks(draw: Draw, chunks: list[tuple[Any, bytes]], kinds: Sequence[Any]) -> None:
    """Chunks dropped, repeated, swapped, renamed, or changed inside."""
    for _ in range(draw(st.integers(0, 2))):
        if not chunks:
            return
        at, kind = _below(draw, len(chunks)), _below(draw, 6)
        name, content = chunks[at]
        if kind == 0:
            del chunks[at]
        elif kind == 1:
            chunks[at : at + 1] = [chunks[at]] * _one_of(draw, (2, 2, 300))
        elif kind == 2:
            other = _below(draw, len(chunks))
            chunks[at], chunks[other] = chunks[other], chunks[at]
        elif kind == 3:
            chunks[at] = (_one_of(draw, kinds), content)
        else:
            chunks[at] = (name, _damage(draw, content))


_PNG_KINDS = (
    b"IHDR",
    b"PLTE",
    b"IDAT",
    b"tRNS",
    b"eXIf",
    b"iCCP",
    b"zTXt",
    b"iTXt",
    b"gAMA",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"IEND",
)


@st.composite
def png(draw: Draw, samples: Sequence[bytes]) -> bytes:
    """A PNG with its size, mode or chunks changed and their checksums right, or damaged."""
    data = _one_of(draw, samples)
    if _below(draw, 8) == 7:
        return _damage(draw, data)
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    header = list(struct.unpack(">IIBBBBB", chunks[0][1]))
    if _below(draw, 2):
        at = _one_of(draw, (0, 1, 2, 3, 3, 6))
        header[at] = _one_of(draw, {0: _SIDES, 1: _SIDES, 2: (1, 2, 4, 8, 16)}.get(at, range(7)))
    chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *header))
    _edit_chunks(draw, chunks, _PNG_KINDS)
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return data[:8] + b"".join(parts)


@st.composite
def jpeg(draw: Draw, samples: Sequence[bytes]) -> bytes:
    """A JPEG with its size, sampling or segments changed, or damaged."""
    data = _one_of(draw, samples)
    if _below(draw, 8) == 7:
        return _damage(draw, data)
    segments, at = [], 2
    while at < len(data) - 2:
        kind, size = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        end = at + 2 + size
        while kind == 0xDA and not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
            end += 1  # a scan's length is that of its header alone
        content = bytearray(data[at + 4 : end])
        if 0xC0 <= kind <= 0xC2 and _below(draw, 2):
            field = _one_of(draw, (0, 1, 1, 3, 3, 5, 7))
            number = _one_of(draw, _SIDES) % 65536 if field in (1, 3) else draw(st.integers(0, 65535))
            content[field : field + 2] = struct.pack(">H", number)
        segments.append((kind, bytes(content)))
        at = end
    _edit_chunks(draw, segments, (0xC0, 0xC1, 0xC2, 0xC4, 0xC9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE))
    parts = [
        bytes([0xFF, kind]) + struct.pack(">H", min(65535, (_scan_header(c) if kind == 0xDA else len(c)) + 2)) + c
        for kind, c in segments
    ]
    return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


def _scan_header(content: bytes) -> int:
    return 1 + 2 * content[0] + 3 if content else 0


@st.composite
def webp(draw: Draw, samples: Sequence[bytes]) -> bytes:
    """A WebP with its canvas, sizes or chunks changed and their lengths right, or damaged."""
    data = _one_of(draw, samples)
    if _below(draw, 8) == 7:
        return _damage(draw, data)
    chunks, at = [], 12
    while at + 8 <= len(data):
        size = struct.unpack_from("<I", data, at + 4)[0]
        chunks.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    for i, (kind, content) in enumerate(chunks):
        offset = {b"VP8X": 4, b"VP8 ": 6, b"VP8L": 1, b"ANMF": 6}.get(kind)
        if offset is not None and _below(draw, 3) == 0:
            at = offset + _one_of(draw, (0, 2, 3))
            chunks[i] = (kind, content[:at] + struct.pack("<I", _one_of(draw, _SIDES))[:3] + content[at + 3 :])
    _edit_chunks(draw, chunks, (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"ICCP", b"XXXX"))
    body = b"WEBP" + b"".join(n + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for n, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


_TIFF_NUMBERS = (0, 1, 2, 3, 8, 16, 32, 255, 300, 40_000, 100_001, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


@st.composite
def tiff(draw: Draw, samples: Sequence[bytes]) -> bytes:
    """A TIFF of little-endian bytes with tags of its first page changed, dropped or repeated, or damaged."""
    data = bytearray(_one_of(draw, samples))
    if _below(draw, 8) == 7 or data[:4] != b"II*\0":
        return _damage(draw, bytes(data))
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    for _ in range(draw(st.integers(1, 3))):
        entry = at + 2 + 12 * _below(draw, count)
        kind = _below(draw, 6)
        if kind < 2:
            struct.pack_into("<I", data, entry + 8, _one_of(draw, _TIFF_NUMBERS))
        elif kind == 2:
            struct.pack_into("<I", data, entry + 4, _one_of(draw, _TIFF_NUMBERS))
        elif kind == 3:
            struct.pack_into("<H", data, entry + 2, draw(st.integers(0, 19)))
        elif kind == 4:
            struct.pack_into("<H", data, entry, _one_of(draw, (254, 262, 322, 323, 324, 325, 330, 339, 34665, 34675)))
        else:
            struct.pack_into("<I", data, at + 2 + 12 * count, _one_of(draw, (0, 8, at, len(data), 2**32 - 1)))
    return bytes(data)


_CONTAINERS = (b"meta", b"iprp", b"ipco", b"iref", b"moov", b"trak", b"mdia", b"minf", b"stbl")


@st.composite
def boxes(draw: Draw, samples: Sequence[bytes]) -> bytes:
    """A HEIC or AVIF with a box's size, kind or content changed where it stands, or damaged."""
    data = bytearray(_one_of(draw, samples))
    if _below(draw, 8) == 7:
        return _damage(draw, bytes(data))
    places = list(_boxes(data, 0, len(data)))
    for _ in range(draw(st.integers(1, 3))):
        start, end = _one_of(draw, places)
        kind = _below(draw, 5)
        if kind == 0:
            struct.pack_into(">I", data, start, _one_of(draw, (0, 1, 7, 8, 9, len(data), 2**31, 2**32 - 1)))
        elif kind == 1:
            data[start + 4 : start + 8] = _one_of(draw, (b"free", b"iref", b"ispe", b"grid", b"meta", b"irot", b"Exif"))
        elif end - start > 12:
            field = start + 8 + _below(draw, min(end - start - 11, 64))
            value = _one_of(draw, _SIDES) if kind < 4 else draw(st.integers(0, 2**32 - 1))
            struct.pack_into(">I", data, field, value)
    return bytes(data)


def _boxes(data: bytes | bytearray, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Where boxes begin and end, those within others too."""
    while at + 8 <= end:
        (size,) = struct.unpack_from(">I", data, at)
        if size < 8 or at + size > end:
            return
        yield at, at + size
        kind = bytes(data[at + 4 : at + 8])
        if kind in _CONTAINERS:
            yield from _boxes(data, at + (12 if kind in (b"meta", b"iref") else 8), at + size)
        at += size
