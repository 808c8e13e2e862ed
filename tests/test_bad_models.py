"""Models that cannot be used, and copies that cannot be written: the error says what, where and what to do."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import random_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoodip_core.base.errors import ModelError, StorageError, ZoodipError
from zoodip_core.base.stopping import Stopped, stopped_by
from zoodip_core.model.load import load_quantized
from zoodip_core.model.recognise import identify
from zoodip_core.model.tensor_file import Layout

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Emptied after each test: the models would be gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small SD1 checkpoint of few words, which is fast to write."""
    place = tmp_path_factory.mktemp("whole")
    modules = random_models.build("sd15", "small", 5, vocab=100)
    yield random_models.write_ldm(place / "whole.safetensors", modules, "sd15")
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def tensors(whole: Path) -> dict[str, Tensor]:
    return load_file(whole)


def refused(match: str, model: Path, **settings: Any) -> None:
    """Check that a model is refused at once with an error that names it."""
    with pytest.raises(ModelError, match=match) as caught:
        load_quantized(model, device="cpu", **settings)
    assert str(model) in str(caught.value)
    assert isinstance(caught.value, ZoodipError)


def fake(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


# ---------------------------------------------------------------- bytes


SHORT = r"is not a safetensors file, or was cut short \(.*\); copy or download it again"
CODE = "cannot be read as plain tensors: it is damaged, or holds code, .* get its .safetensors version"


def test_safetensors_cut_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(fake(**{UNET + "input_blocks.0.0.weight": (4, 4, 3, 3), VAE + "quant_conv.weight": (8, 8)}), file)
    content = file.read_bytes()
    for length in range(0, len(content), 5):
        file.write_bytes(content[:length])
        refused(SHORT, file)
    file.write_bytes(content + b"more")
    refused(SHORT, file)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.pth", "model.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_cut_anywhere(tmp_path: Path, name: str, zipped: bool) -> None:
    file = tmp_path / name
    state = {"state_dict": fake(**{UNET + "input_blocks.0.0.weight": (4, 4, 3, 3)}), "global_step": 1}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    for length in range(0, len(content), len(content) // 12):
        file.write_bytes(content[:length])
        refused(CODE, file)


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\xff" * 5000, b"\0" * 5000, b"<html>not found</html>" * 50, b"PK\3\4"]
)
def test_garbage(tmp_path: Path, content: bytes) -> None:
    for suffix, match in ((".safetensors", SHORT), (".ckpt", CODE)):
        file = tmp_path / f"model{suffix}"
        file.write_bytes(content)
        refused(match, file)


class RunsCode:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f'touch "{self.marker}"',)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, suffix: str, zipped: bool) -> None:
    marker, file = tmp_path / "marker", tmp_path / f"model{suffix}"
    hidden = {"state_dict": fake(**{UNET + "input_blocks.0.0.weight": (4, 4, 3, 3)}), "callbacks": RunsCode(marker)}
    torch.save(hidden, file, _use_new_zipfile_serialization=zipped)
    refused("holds code, which is never run", file)
    with pytest.raises(ModelError):
        load_quantized(file, cache=tmp_path / "cache")
    assert not marker.exists()


@pytest.mark.parametrize("content", [[torch.zeros(3)], torch.zeros(3), {"state_dict": [1]}, 7])
def test_pickles_of_something_else(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "model.ckpt"
    torch.save(content, file)
    refused("holds a (list|Tensor|int), not a checkpoint", file)


# ---------------------------------------------------------------- other kinds of files


CONV = (4, 4, 3, 3)
OTHERS: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "lora": (
        {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 8), "lora_te_x.lora_up.weight": (8, 4)},
        "is a LoRA, not a model; use the checkpoint that it was made for",
    ),
    "lora of diffusers": ({"unet.down_blocks.0.attentions.0.attn1.to_q.lora_A.weight": (4, 8)}, "is a LoRA"),
    "lycoris": ({"lycoris_unet_x.hada_w1_a": (4, 8)}, "is a LoRA"),
    "vae": (
        {"encoder.conv_in.weight": CONV, "decoder.conv_in.weight": CONV, "quant_conv.weight": (8, 8, 1, 1)},
        "is a VAE alone; use a Stable Diffusion 1.x, 2.x or SDXL checkpoint",
    ),
    "vae of a checkpoint": ({VAE + "encoder.conv_in.weight": CONV}, "is a VAE alone"),
    "text encoder": ({"text_model.encoder.layers.0.self_attn.q_proj.weight": (8, 8)}, "is a text encoder alone"),
    "open_clip": ({"transformer.resblocks.0.attn.in_proj_weight": (24, 8)}, "is a text encoder alone"),
    "embedding": ({"emb_params": (2, 768)}, "holds 1 tensor, an embedding perhaps, not a model"),
    "sdxl embedding": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "holds 2 tensors, an embedding perhaps"),
    "controlnet": (
        {"control_model.input_blocks.0.0.weight": CONV, "control_model.zero_convs.0.0.weight": CONV},
        "is a ControlNet, not a model",
    ),
    "controlnet of diffusers": (
        {"controlnet_cond_embedding.conv_in.weight": CONV, "down_blocks.0.resnets.0.conv1.weight": CONV},
        "is a ControlNet",
    ),
    "unet of diffusers": (
        {"conv_in.weight": CONV, "down_blocks.0.resnets.0.conv1.weight": CONV},
        "is a UNet alone, in diffusers' layout; give the top of its diffusers folder, or a full checkpoint",
    ),
    "unet of a checkpoint": (
        {
            UNET + "input_blocks.0.0.weight": CONV,
            UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
        },
        "has no VAE .*; use a full checkpoint, not one without it",
    ),
    "sd3": (
        {UNET + "joint_blocks.0.x_block.attn.qkv.weight": (24, 8), VAE + "encoder.conv_in.weight": CONV},
        "is Stable Diffusion 3, which is not supported; use a Stable Diffusion 1.x",
    ),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (24, 8)}, "is a Flux model, which is not supported"),
    "refiner": (
        {
            UNET + "input_blocks.0.0.weight": (384, 4, 3, 3),
            UNET + "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (768, 1280),
            "conditioner.embedders.0.model.ln_final.weight": (1280,),
        },
        "is SDXL's refiner; supported are Stable Diffusion 1.x, 2.x and SDXL base",
    ),
    "unknown width": (
        {
            UNET + "input_blocks.0.0.weight": CONV,
            UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 99),
        },
        r"is of an unknown family \(it attends to width 99\)",
    ),
    "inpainting": (
        {UNET + "input_blocks.0.0.weight": (4, 9, 3, 3)},
        r"is an inpainting model \(its UNet reads 9 channels, not 4\); tokens are trained on the plain model",
    ),
    "instruct-pix2pix": ({UNET + "input_blocks.0.0.weight": (4, 8, 3, 3)}, "is an image-editing model .* 8 channels"),
    "depth": ({UNET + "input_blocks.0.0.weight": (4, 5, 3, 3)}, "is a depth model .* 5 channels"),
    "something": ({f"layers.{i}.weight": (3,) for i in range(9)}, "is not a Stable Diffusion checkpoint"),
    "nothing": ({}, "holds 0 tensors"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_another_kind(tmp_path: Path, kind: str) -> None:
    shapes, match = OTHERS[kind]
    file = tmp_path / "model.safetensors"
    save_file(fake(**shapes), file)
    refused(match, file)
    pickled = tmp_path / "model.ckpt"
    torch.save({"state_dict": fake(**shapes)}, pickled)
    refused(match, pickled)


def test_an_embedding_of_a_webui(tmp_path: Path) -> None:
    file = tmp_path / "cat.pt"
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(1, 768)}, "name": "cat"}, file)
    refused("holds 0 tensors, an embedding perhaps, not a model", file)


def test_paths_that_lead_to_no_model(tmp_path: Path) -> None:
    refused("does not exist; give a checkpoint file, a diffusers folder, or 'tiny'", tmp_path / "none.safetensors")
    for name in ("model.gguf", "model.txt", "model"):
        (tmp_path / name).write_bytes(b"weights")
        refused(r"is not a checkpoint; their names end in \.safetensors, \.ckpt", tmp_path / name)
    (tmp_path / "empty").mkdir()
    refused("has no model_index.json; give the top of a diffusers folder", tmp_path / "empty")


# ---------------------------------------------------------------- checkpoints cut down


RESNET = UNET + "output_blocks.4.0.in_layers.2.weight"
NORM = UNET + "out.0.weight"


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(("prefix", "part"), [(VAE, "VAE"), ("cond_stage_model.", "text encoder")])
def test_checkpoint_without_a_part(tmp_path: Path, tensors: dict[str, Tensor], prefix: str, part: str) -> None:
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    refused(f"has no {part} .*; use a full checkpoint", written(tmp_path / "model.safetensors", rest))


@pytest.mark.parametrize(
    "name", [UNET + "out.2.weight", VAE + "quant_conv.weight", TEXT + "embeddings.token_embedding.weight"]
)
def test_tensor_missing_that_says_what_a_model_is(tmp_path: Path, tensors: dict[str, Tensor], name: str) -> None:
    rest = {other: tensor for other, tensor in tensors.items() if other != name}
    file = written(tmp_path / "model.safetensors", rest)
    refused(f"lacks parts of a sd1 checkpoint .*{re.escape(name)}.* may be cut down or damaged", file)


@pytest.mark.parametrize("weights", ["int8", "none"])
@pytest.mark.parametrize("name", [RESNET, NORM])
def test_tensor_missing(tmp_path: Path, tensors: dict[str, Tensor], name: str, weights: str) -> None:
    rest = {other: tensor for other, tensor in tensors.items() if other != name}
    model = load_quantized(written(tmp_path / "model.safetensors", rest), weights=weights, device="cpu")
    assert model.text_encoders
    match = rf"{re.escape(str(tmp_path))}.* has no {re.escape(name)}; it is cut down, damaged, or of a variant"
    for _ in range(2):
        with pytest.raises(ModelError, match=match):
            _ = model.unet


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (RESNET, lambda tensor: tensor[1:]),
        (NORM, lambda tensor: torch.cat([tensor, tensor])),
        (UNET + "middle_block.1.transformer_blocks.0.ff.net.2.weight", lambda tensor: tensor.T.contiguous()),
    ],
)
def test_tensor_of_another_shape(
    tmp_path: Path, tensors: dict[str, Tensor], name: str, change: Callable[[Tensor], Tensor]
) -> None:
    file = written(tmp_path / "model.safetensors", {**tensors, name: change(tensors[name])})
    match = rf"{re.escape(str(file))}: {re.escape(name)} has shape .*, expected one for .*; it is damaged"
    with pytest.raises(ModelError, match=match):
        _ = load_quantized(file, device="cpu").unet


def test_a_model_that_can_not_be_read_leaves_no_copy(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    cache = tmp_path / "cache"
    rest = {name: tensor for name, tensor in tensors.items() if name != NORM}
    file = written(tmp_path / "model.safetensors", rest)
    refused(f"has no {re.escape(NORM)}", file, cache=cache)
    assert not list(cache.iterdir())
    save_file(tensors, file)
    assert load_quantized(file, device="cpu", cache=cache).unet


# ---------------------------------------------------------------- diffusers folders


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("pristine")
    modules = random_models.build("sd15", "small", 5, vocab=100)
    yield random_models.write_diffusers(place / "folder", modules, "sd15")
    shutil.rmtree(place)


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A diffusers folder to be damaged; its large files are links."""
    return Path(shutil.copytree(pristine, tmp_path / "folder", copy_function=link_large))


def link_large(source: str, target: str) -> None:
    if Path(source).suffix == ".safetensors":
        Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def into_shards(folder: Path, keep: int) -> None:
    """Say that the UNet lies in two shards, of which ``keep`` are there."""
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"conv_in.weight": names[0], "conv_out.weight": names[1]}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    tensors = load_file(whole)
    whole.unlink()
    for i, name in enumerate(names[:keep]):
        save_file({n: t for j, (n, t) in enumerate(sorted(tensors.items())) if j % 2 == i}, folder / "unet" / name)


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "inpainting pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="StableDiffusionInpaintPipeline"),
        "is a StableDiffusionInpaintPipeline; supported are Stable Diffusion 1.x and 2.x",
    ),
    "flux": (lambda f: edit(f / "model_index.json", _class_name="FluxPipeline"), "is a FluxPipeline; supported"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json; give the top"),
    "index is a list": (lambda f: (f / "model_index.json").write_text("[]"), "is not a JSON object"),
    "index is cut": (lambda f: (f / "model_index.json").write_text('{"_cl'), "model_index.json cannot be read"),
    "no unet": (lambda f: shutil.rmtree(f / "unet"), "unet/config.json is missing; the folder is incomplete"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json cannot be read"),
    "odd prediction": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="sample"),
        "prediction type 'sample' is not supported",
    ),
    "no weights": (
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        "vae has no weights .*; the folder is incomplete, copy it again",
    ),
    "a shard missing": (lambda f: into_shards(f, 1), "unet lacks shards of its weights .*; the folder is incomplete"),
    "other text encoder": (
        lambda f: edit(f / "text_encoder" / "config.json", hidden_size=1024),
        "the text encoder's width is 1024, the UNet attends to 768; its parts are of different models",
    ),
    "nine channels": (lambda f: edit(f / "unet" / "config.json", in_channels=9), "reads 9 channels, not 4"),
}


@pytest.mark.parametrize("damage", FOLDERS)
def test_damaged_folder(folder: Path, damage: str) -> None:
    assert identify(folder).family == "sd1"
    change, match = FOLDERS[damage]
    change(folder)
    refused(match, folder)


def test_all_shards_are_read(folder: Path, pristine: Path) -> None:
    into_shards(folder, 2)
    one, other = (load_quantized(path, device="cpu").unet.state_dict() for path in (folder, pristine))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: (f / "merges.txt").unlink(), "merges.txt is missing; the folder is incomplete, copy it again"),
        (lambda f: (f / "vocab.json").unlink(), "vocab.json is missing; the folder is incomplete, copy it again"),
        (lambda f: (f / "vocab.json").write_text("{"), "cannot be loaded: .*; its files may be damaged"),
        (lambda _: None, "knows 49408 words, the text encoder 100; it is not this model's, copy the right one"),
    ],
)
def test_tokenizer_that_can_not_be_used(folder: Path, damage: Callable[[Path], Any], match: str) -> None:
    damage(folder / "tokenizer")
    with pytest.raises(ModelError, match=f"{re.escape(str(folder / 'tokenizer'))}.*{match}"):
        load_quantized(folder, device="cpu").prompt("a cat")


# ---------------------------------------------------------------- copies


def assert_nothing_left(cache: Path) -> None:
    """Check that a copy that failed left nothing behind."""
    assert not cache.is_dir() or not list(cache.iterdir())


def not_written(model: Path, cache: Path, match: str) -> None:
    with pytest.raises(StorageError, match=match) as caught:
        load_quantized(model, device="cpu", cache=cache)
    assert isinstance(caught.value, ZoodipError)
    assert str(cache) in str(caught.value)


@pytest.mark.parametrize(
    "below",
    [
        "",
        "below",
    ],
)
def test_cache_folder_that_is_a_file(tmp_path: Path, whole: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    match = "could not write .*a file.*choose another folder"
    not_written(whole, tmp_path / "file" / below, match)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no file system that takes no folders")
def test_cache_folder_that_can_not_be_made(whole: Path) -> None:
    not_written(whole, Path("/proc/zoodip"), "could not write /proc/zoodip")


def test_cache_folder_on_a_read_only_disk(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(path: Path, *_arguments: Any, **_named: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    not_written(whole, tmp_path / "cache", "could not write .*: the file system is read-only; choose another folder")


def test_disk_that_has_too_little_room(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr("zoodip_core.model.copies.shutil.disk_usage", lambda _: usage(1, 1, 0))
        not_written(whole, cache, r"could not write .*: it takes \d.*GB, 0.0 GB is free; free some space")
    assert_nothing_left(cache)
    assert load_quantized(whole, device="cpu", cache=cache).unet


@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.slow), 100_000])
def test_disk_that_fills_up(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    cache = tmp_path / "cache"

    def full(_layout: Layout, file: BinaryIO, _tensors: Any) -> None:
        file.write(b"\0" * after)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Layout, "write", full)
        not_written(whole, cache, "could not write .*: the disk is full; free some space")
    assert_nothing_left(cache)
    assert load_quantized(whole, device="cpu", cache=cache).unet


def test_an_interrupted_copy_is_made_anew(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"

    def interrupted(_layout: Layout, file: BinaryIO, _tensors: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Layout, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_quantized(whole, device="cpu", cache=cache)
    assert_nothing_left(cache)
    assert load_quantized(whole, device="cpu", cache=cache).unet


@pytest.mark.parametrize("layers", [0, 1, 40])
def test_a_stop_leaves_no_copy(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, layers: int) -> None:
    cache, written = tmp_path / "cache", []
    write = Layout.write

    def counted(layout: Layout, file: BinaryIO, tensors: Any) -> None:
        written.append(tensors)
        write(layout, file, tensors)

    monkeypatch.setattr(Layout, "write", counted)
    with pytest.raises(Stopped), stopped_by(lambda: len(written) > layers):
        load_quantized(whole, device="cpu", cache=cache)
    assert len(written) <= layers + 2  # the one that was being written, and the next
    assert_nothing_left(cache)


KILLED = """
import os, sys
from zoodip_core.model.load import load_quantized
from zoodip_core.model.tensor_file import Layout

write = Layout.write_header if sys.argv[3] == "before" else Layout.write
def killed(layout, file, *more):
    write(layout, file, *more)
    file.flush()
    if file.tell() > 100_000 or sys.argv[3] == "before":
        os._exit(9)
setattr(Layout, write.__name__, killed)
load_quantized(sys.argv[1], device="cpu", cache=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["amid", "before"])
def test_a_process_that_dies_leaves_nothing_that_is_taken_for_a_copy(tmp_path: Path, whole: Path, moment: str) -> None:
    """Amid the tensors, and before the whole file is moved into place."""
    cache = tmp_path / "cache"
    assert subprocess.run([sys.executable, "-c", KILLED, whole, cache, moment], check=False).returncode == 9
    (part,) = cache.iterdir()
    assert part.suffix == ".part"
    again = load_quantized(whole, device="cpu", cache=cache)
    assert again.unet
    assert again.blueprint.checkpoints[0].files[0].parent == cache


def test_a_damaged_copy(tmp_path: Path, whole: Path) -> None:
    cache = tmp_path / "cache"
    load_quantized(whole, device="cpu", cache=cache)
    (copy,) = cache.glob("*.safetensors")
    content = copy.read_bytes()
    copy.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=f"{copy.name} is not a safetensors file, or was cut short"):
        load_quantized(copy, device="cpu")
    assert load_quantized(whole, device="cpu", cache=cache).unet  # made again
    assert copy.stat().st_size == len(content)


def test_a_copy_of_another_version(tmp_path: Path, whole: Path) -> None:
    cache = tmp_path / "cache"
    load_quantized(whole, device="cpu", cache=cache)
    (copy,) = cache.glob("*.safetensors")
    save_file(load_file(copy), tmp_path / "old.safetensors", {"zoodip_quantized_copy": "0"})
    refused("is a quantised copy that is damaged or of another version; delete it", tmp_path / "old.safetensors")


def test_no_copy_and_no_folder_for_a_model_that_is_missing(tmp_path: Path) -> None:
    refused("does not exist", tmp_path / "none.safetensors", cache=tmp_path / "cache")
    assert_nothing_left(tmp_path / "cache")
