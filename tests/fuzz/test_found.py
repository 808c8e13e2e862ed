"""What fuzzing found, and pictures and pickles that are hostile by design: each a small file made by code."""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("memory cannot be judged here", allow_module_level=True)

from tests.fuzz import samples as of
from tests.fuzz.judge import Files, Tally, judged, limited
from tests.fuzz.mutations import Safetensors
from tests.fuzz.readers import FOLDER, READERS, warm_up
from zoodip_core.base.errors import CaptionError
from zoodip_core.model.ldm import CLIP_PREFIXES
from zoodip_core.model.renaming import UNET
from zoodip_core.model.tokens import check_initializer


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_up()


MOST_CALLS = 10_000_000


def read(reader: str, files: Files) -> bool:
    """Whether the files are accepted. However that is, they do no harm, and the reader calls few functions for them."""
    tally, calls = Tally(), 0

    def on_event(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event.endswith("call")

    def counted(folder: Path) -> None:
        sys.setprofile(on_event)
        try:
            READERS[reader].read(folder)
        finally:
            sys.setprofile(None)

    with limited() as place:
        judged(counted, files, place, tally, READERS[reader].also)
    assert calls < MOST_CALLS
    return tally.accepted == 1


def saved(content: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def pickled(operations: bytes) -> bytes:
    """A file of PyTorch with a pickle of these operations."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + operations + b".")
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/data/0", b"\0" * 64)
    return buffer.getvalue()


def a1111(**changes: Any) -> bytes:
    return saved({"string_to_param": {"*": torch.ones(1, 8)}, "name": "pip", "step": 5, **changes})


def packed() -> bytes:
    """A sound file with 150 MB more, packed into a thousandth of that."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.ones(1, 8)}))) as sound, zipfile.ZipFile(buffer, "w") as file:
        for name in sound.namelist():
            with file.open(zipfile.ZipInfo(name), "w") as entry:
                entry.write(sound.read(name))
        whole = zipfile.ZipInfo("archive/data/1")
        whole.compress_type = zipfile.ZIP_DEFLATED
        with file.open(whole, "w") as entry:
            for _ in range(150):
                entry.write(bytes(1_000_000))
    return buffer.getvalue()


def crowded() -> bytes:
    """A sound file whose directory names an entry a hundred and fifty thousand times."""
    data = saved({"a": torch.ones(1, 8)})
    start = data.index(b"PK\1\2")
    entry = data[start : data.index(b"PK", start + 4)]
    directory = entry * 150_000
    return data[:start] + directory + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, len(directory), start, 0)


def many(count: int) -> Safetensors:
    """A checkpoint with that many blocks more."""
    blocks = {f"{UNET}input_blocks.{i}.0.out_layers.3.weight": ("I8", (0,)) for i in range(4, count)}
    return Safetensors({**of.CHECKPOINTS[0].tensors, **blocks})


DEEP = "[" * 100_000 + "]" * 100_000


def json_with(value: Any, old: str, new: str) -> bytes:
    """A value's JSON with a part of its text replaced."""
    text = json.dumps(value)
    assert old in text
    return text.replace(old, new).encode()


def checkpoint(**changes: Any) -> Callable[[], Files]:
    """SD1's tensors, some of them of another type and shape."""
    tensors = {**of.CHECKPOINTS[0].tensors, **changes}
    return lambda: {"m.safetensors": Safetensors(tensors).write()}


def folder(**files: bytes) -> Callable[[], Files]:
    """A diffusers folder with some files changed."""
    named = {name.replace("__", "/") + ".json": content for name, content in files.items()}
    return lambda: {**FOLDER, **named}


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def copy(**changes: str) -> Callable[[], Files]:
    return lambda: {"c.safetensors": Safetensors(of.COPY.tensors, {**of.COPY.metadata, **changes}).write()}


HEX = b"c_codecs\nencode\nq\x00X\x01\x00\x00\x00aX\x05\x00\x00\x00ascii\x86R"
HEX += b"q\x01h\x00h\x01X\x03\x00\x00\x00hex\x86R" * 33
"""A letter, encoded so that it becomes twice as long, thirty-three times."""

_EIGHT, _BILLION = b"K\x01K\x08\x86", b"K\x01J\x00\xca\x9a\x3b\x86"
"""A shape in a pickle, ``(1, 8)`` and of a billion."""

REFUSED: dict[str, tuple[str, Callable[[], Files]]] = {
    "an embedding of seventy dimensions": (
        "embedding .safetensors",
        lambda: {"a.safetensors": Safetensors({"a": ("F32", (0,) * 63 + (768,) * 7)}).write()},
    ),
    "an embedding of four bits": (
        "embedding .safetensors",
        lambda: {"a.safetensors": Safetensors({"a": ("F4", (1, 8))}).write()},
    ),
    "one number spread over eight gigabytes": (
        "embedding .pt",
        lambda: {"a.pt": a1111(string_to_param={"*": torch.ones(1, 1).expand(1, 2_000_000_000)})},
    ),
    "eight numbers that say they are a billion": (
        "embedding .bin",
        lambda: {"a.bin": saved({"a": torch.ones(1, 8)}, zipped=False).replace(_EIGHT, _BILLION)},
    ),
    "ten gigabytes of zeros by a hundred bytes": (
        "embedding .pt",
        lambda: {"a.pt": pickled(b"cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R")},
    ),
    "bytes doubled again and again": ("embedding .pt", lambda: {"a.pt": pickled(HEX)}),
    "a packed file": ("embedding .bin", lambda: {"a.bin": packed()}),
    "a tensor without content": (
        "embedding .pt",
        lambda: {"a.pt": a1111(string_to_param={"*": torch.empty(1, 8, device="meta")})},
    ),
    "a sparse tensor": ("embedding .pt", lambda: {"a.pt": a1111(string_to_param={"*": torch.ones(1, 8).to_sparse()})}),
    "a file of a crowded directory": ("embedding .bin", lambda: {"a.bin": crowded()}),
    "a pickle of a million operations": ("checkpoint .ckpt", lambda: {"m.ckpt": pickled(b"N0" * 600_000)}),
    "a thousand tokens of one number": (
        "embedding .bin",
        lambda: {"a.bin": saved({str(i): torch.ones(30_000)[:1].expand(70, 100) for i in range(1000)})},
    ),
    "an embedding of sixty thousand tensors": (
        "embedding .safetensors",
        lambda: {"a.safetensors": Safetensors({str(i): ("U8", (0,)) for i in range(60_000)}).write()},
    ),
    "a header of twenty megabytes": (
        "checkpoint .safetensors",
        lambda: {"m.safetensors": of.CHECKPOINTS[0].write(edit=lambda header: json.dumps(header) + " " * 20_000_000)},
    ),
    "a checkpoint of sixty thousand tensors": (
        "checkpoint .safetensors",
        lambda: {"m.safetensors": many(60_000).write()},
    ),
    "a checkpoint of twenty thousand blocks": (
        "checkpoint .safetensors",
        lambda: {"m.safetensors": many(20_000).write()},
    ),
    "a checkpoint's first tensor without dimensions": (
        "checkpoint .safetensors",
        checkpoint(**{UNET + "input_blocks.0.0.weight": ("F16", ())}),
    ),
    "a checkpoint of a billion layers": (
        "checkpoint .safetensors",
        checkpoint(**{CLIP_PREFIXES["sd1"][0] + "text_model.encoder.layers.999999999.x": ("F16", (1,))}),
    ),
    "a copy whose configs are no object": ("quantised copy", copy(configs="[]")),
    "a copy of a text for its resolution": (
        "quantised copy",
        copy(info=json.dumps({**of.MODEL_INFO, "resolution": "5"})),
    ),
    "a copy whose header is nested deep": ("quantised copy", copy(info=DEEP)),
    "an index of a model nested deep": ("diffusers folder", folder(model_index=b'{"a": ' + DEEP.encode() + b"}")),
    "a shard whose name is too long": (
        "diffusers folder",
        folder(
            **{
                "unet__diffusion_pytorch_model.safetensors.index": json.dumps(
                    {"weight_map": {"a": "x" * 5000}}
                ).encode()
            }
        ),
    ),
    "a VAE whose levels are a number": (
        "diffusers configs",
        folder(vae__config=json.dumps({**of.VAE_CONFIG, "block_out_channels": 8}).encode()),
    ),
    "a UNet of ten million layers": (
        "diffusers configs",
        folder(unet__config=json.dumps({**of.UNET_CONFIG, "layers_per_block": 10_000_000}).encode()),
    ),
    "a UNet of many layers of many parts": (
        "diffusers configs",
        folder(unet__config=_dumped({**of.UNET_CONFIG, "layers_per_block": 9, "transformer_layers_per_block": [9, 9]})),
    ),
    "a text encoder of ten million layers": (
        "diffusers configs",
        folder(text_encoder__config=json.dumps({**of.TEXT_CONFIG, "num_hidden_layers": 10_000_000}).encode()),
    ),
    "a schedule of a trillion timesteps": (
        "diffusers configs",
        folder(scheduler__scheduler_config=json.dumps({**of.SCHEDULER_CONFIG, "num_train_timesteps": 10**12}).encode()),
    ),
    "a schedule of texts": (
        "diffusers configs",
        folder(scheduler__scheduler_config=json.dumps({**of.SCHEDULER_CONFIG, "beta_start": "x"}).encode()),
    ),
    "a prompt of a trillion words": (
        "tokenizer",
        folder(
            text_encoder__config=json.dumps({**of.TEXT_CONFIG, "max_position_embeddings": 10**12}).encode(),
            tokenizer__tokenizer_config=json.dumps({**of.TOKENIZER, "model_max_length": 10**12}).encode(),
        ),
    ),
    "a tokenizer whose length is a text": (
        "tokenizer",
        folder(tokenizer__tokenizer_config=json.dumps({**of.TOKENIZER, "model_max_length": "x"}).encode()),
    ),
    "a tokenizer without its last word": (
        "tokenizer",
        folder(tokenizer__vocab=b'{"<|startoftext|>": 4, "a": 0, "c": 1, "a</w>": 2, "ca</w>": 3}'),
    ),
    "captions of a number of thousands of digits": (
        "captions .json",
        lambda: {"captions.json": json_with(of.CAPTIONS[0], '"a photo of a {} on grass"', "1" * 5000)},
    ),
    "captions nested deep": ("captions .json", lambda: {"captions.json": b'{"a": ' + DEEP.encode() + b"}"}),
    "captions of half a character": (
        "captions .json",
        lambda: {"captions.json": json_with(of.CAPTIONS[0], "on grass", "on \\ud800")},
    ),
    "settings nested deep": ("config", lambda: {"config.json": b'{"a": ' + DEEP.encode() + b"}"}),
    "a learning rate of four hundred digits": (
        "config",
        lambda: {"config.json": json_with(of.CONFIG, '"lr": 0.005', '"lr": 1' + "0" * 400)},
    ),
    "pictures that are no paths": (
        "config",
        lambda: {"config.json": json_with(of.CONFIG, '"images": ["images"]', '"images": [5, [6]]')},
    ),
    "a token of a million characters": (
        "config",
        lambda: {"config.json": json_with(of.CONFIG, '"token": "<pip>"', f'"token": "{"x." * 500_000}"')},
    ),
    "a job on a model that is a number": (
        "job file",
        lambda: {"task.json": json_with(of.TASK, '"model": "tiny"', '"model": 5')},
    ),
}
ACCEPTED: dict[str, tuple[str, Callable[[], Files]]] = {
    "settings in an embedding nested deep": (
        "embedding .safetensors",
        lambda: {"a.safetensors": Safetensors({"a": ("F32", (1, 8))}, {"config": DEEP}).write()},
    ),
    "notes that are endless as text": ("embedding .pt", lambda: {"a.pt": a1111(step=of.laughs())}),
    "a name of half a character": ("embedding .pt", lambda: {"a.pt": a1111(name="\ud800")}),
    "an index of copies nested deep": (
        "stamp of the trainer",
        lambda: {"installed.json": b'{"a": ' + DEEP.encode() + b"}"},
    ),
    "a run's token of half a character": (
        "runs of a page",
        lambda: {"pip/task.json": json_with(of.TASK, '"<pip>"', '"\\ud800"')},
    ),
    "a caption of half a character": (
        "draft",
        lambda: {"images/0001-a.png": of.pngs()[0], "captions.json": b'{"0001-a.png": ["a {} \\ud800"]}'},
    ),
    "an event of a step of four hundred digits": (
        "events of a worker",
        lambda: {"lines": json_with(of.EVENTS[1], '"step": 1', '"step": 1' + "0" * 400)},
    ),
    "an event that scripts could not be told": (
        "events of a worker",
        lambda: {
            "lines": b'{"event": "checked", "memory": 1e999}\n{"event": "message", "warning": 1, "text": "\\ud800"}\n'
        },
    ),
}


LONG = "a pickle of a million operations"


@pytest.mark.parametrize(
    "what", [*(what for what in REFUSED if what != LONG), pytest.param(LONG, marks=pytest.mark.slow)]
)
def test_refused(what: str) -> None:
    reader, files = REFUSED[what]
    assert not read(reader, files())


@pytest.mark.parametrize("what", ACCEPTED)
def test_taken_as_far_as_it_makes_sense(what: str) -> None:
    reader, files = ACCEPTED[what]
    assert read(reader, files())


# ---------------------------------------------------------------- pictures as large as they may be

SIDE = 8000
WEBP_SIDE = 6320


def png(mode: int, depth: int = 8, more: bytes = b"") -> bytes:
    """A PNG of 64 million pixels, all of them 0."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[mode]
    packer = zlib.compressobj(1)
    row = bytes(1 + SIDE * channels * depth // 8)
    content = b"".join(packer.compress(row) for _ in range(SIDE)) + packer.flush()
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, mode, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def jpeg(side: int = SIDE, scans: int = 0) -> bytes:
    """A progressive JPEG, of 64 million pixels, with its last scan said again and again."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan[: 2 + struct.unpack(">H", scan[2:4])[0] + 4] * scans + data[-2:]


def webp() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (WEBP_SIDE, WEBP_SIDE), (1, 2, 3, 100)).save(buffer, "WEBP", lossless=True, method=0)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.png", lambda: png(2)),
        ("a.png", lambda: png(6)),
        ("a.png", lambda: png(6, 16)),
        ("a.png", lambda: png(0, 16)),
        ("a.png", lambda: png(4)),
        ("a.jpg", jpeg),
        ("a.webp", webp),
    ],
)
def test_the_largest_pictures(name: str, make: Callable[[], bytes]) -> None:
    data = make()
    folder = {name: data}
    tally = Tally()
    with limited() as place:
        judged(lambda where: _opened(where / name), folder, place, tally)
    assert tally.accepted


def _opened(path: Path) -> None:
    from zoodip_core.data.images import load_images

    load_images([path], 512)


def test_a_jpeg_of_hundreds_of_passes() -> None:
    assert read("picture .jpg", {"a.jpg": jpeg(64, 20)})
    assert not read("picture .jpg", {"a.jpg": jpeg(64, 200)})


def test_a_text_of_a_million_words() -> None:
    with pytest.raises(CaptionError, match="a text of 2000000 characters is too long"):
        check_initializer(None, "x " * 1_000_000, 1, "single")
