"""Small sound files of every kind that is read, made by code."""

from __future__ import annotations

import io
import json
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features

from tests.judges import write_judges
from zoodip_core.model.ldm import CLIP_PREFIXES
from zoodip_core.model.renaming import UNET, VAE
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.journal import Record

from .mutations import Safetensors

# ---------------------------------------------------------------- models that score


@cache
def judge_files() -> dict[str, bytes]:
    """A DINOv2 that works, and a CLIP without its weights, which are too many to write again and again."""
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng():
        write_judges(Path(place))
        files = {file.relative_to(place).as_posix(): file.read_bytes() for file in Path(place).rglob("*.*")}
    return {**files, "clip/model.safetensors": WEIGHTS.write()}


JUDGE_WORDS = (
    *("shortest_edge", "longest_edge", "height", "width", "crop_size", "image_mean", "rescale_factor", "resample"),
    *("do_pad", "dinov2", "clip", "text_config", "vision_config", "gelu", "quick_gelu", "auto_map", "giant"),
)


# ---------------------------------------------------------------- embeddings


EMBEDDINGS = (
    Safetensors(
        {"<pip>": ("F32", (2, 8))}, {"token": "<pip>", "format_version": "1", "config": '{"steps": 5, "lr": 0.1}'}
    ),
    Safetensors({"emb_params": ("BF16", (1, 768))}, {"sshs_model_hash": "x"}),
    Safetensors({"emp_params": ("F64", (2, 768))}),
    Safetensors({"clip_g": ("F16", (1, 1280)), "clip_l": ("F16", (1, 768))}, {"token": "<pip>", "steps": "30"}),
    Safetensors({"clip_l": ("F16", (1, 768)), "t5": ("F16", (1, 4096))}),
    Safetensors({"new": ("F32", (1, 8)), "newer": ("F32", (1, 9))}, {"token": "<pip>", "encoders": "new+newer"}),
    Safetensors({"<pip>": ("F32", (2, 8)), "<cat>": ("F16", (1, 8)), "dog": ("F32", (8,))}),
    Safetensors({f"bundle_emb.{name}": ("F32", (1, 8)) for name in ("a.clip_l", "a.clip_g", "b.clip_l", "b.clip_g")}),
)


_LAYER = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
"""Of the embedded model's UNet: 128 times 128."""
LORAS = (
    Safetensors(
        {
            f"lora_unet_{_LAYER}.lora_up.weight": ("F32", (128, 4)),
            f"lora_unet_{_LAYER}.lora_down.weight": ("F32", (4, 128)),
            f"lora_unet_{_LAYER}.alpha": ("F32", ()),
        },
        {"family": "tiny", "lora_format_version": "1", "config": '{"weights": "int4"}', "ss_network_dim": "4"},
    ),
    Safetensors({"lora_te_text_model.lora_up.weight": ("F16", (8, 4)), "lora_unet_x.lora_up.weight": ("F16", (8, 4))}),
)
FRAMES = (Safetensors({"x.attn2.to_k.a": ("F32", (8, 2)), "x.attn2.to_k.b": ("F32", (2, 6))}),)


def _saved(content: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _a1111(vectors: Any, **notes: Any) -> dict[str, Any]:
    about = {"name": "pip", "step": 1500, "sd_checkpoint": "cc6cb27103", "sd_checkpoint_name": "v1-5"}
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, **about, **notes}


def laughs(depth: int = 12) -> Any:
    """A value of a few bytes in a pickle, whose text would fill any memory."""
    value: Any = "ha"
    for _ in range(depth):
        value = [value] * 10
    return value


@cache
def embedding_pickles() -> tuple[bytes, ...]:
    """Files of A1111 (``.pt``), as they are and with odd tensors and notes."""
    sound = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    table = torch.nn.ParameterDict({"*": torch.nn.Parameter(sound)})
    odd = (
        sound.to_sparse(),
        torch.empty(2, 8, device="meta"),
        torch.ones(1, 1).expand(1, 2_000_000_000),
        torch.quantize_per_tensor(sound, 0.1, 0, torch.qint8),
        sound.to(torch.complex64),
        sound.to(torch.float8_e4m3fn),
        sound > 0,
        torch.tensor(1.0),
        sound.t(),
    )
    contents = [
        *(_a1111(sound), {"string_to_param": table, "string_to_token": {"*": torch.tensor(265)}}, _a1111(sound)),
        *(_a1111(tensor) for tensor in odd),
        *(_a1111(sound, step=10**5000), _a1111(sound, step=laughs()), _a1111(sound, sd_checkpoint=sound, name=5)),
        *(_a1111(sound, name="\ud800"), _a1111(sound, sd_checkpoint_name={"a": [1] * 1000}), {"string_to_param": None}),
        {**_a1111(sound), "string_to_param": {"*": sound, "<cat>": sound[:1], "dog": sound[0]}},
        {"string_to_param": {str(i): torch.ones(1, 1).expand(70, 100_000) for i in range(1000)}},
    ]
    return *(_saved(content) for content in contents), _saved(_a1111(sound), zipped=False)


@cache
def diffusers_pickles() -> tuple[bytes, ...]:
    """diffusers' ``.bin``, in the zip format and in the one before."""
    content = {"<cat>": torch.ones(1, 8, dtype=torch.float16)}
    several = {"<cat>": torch.ones(1, 8), "dog": torch.ones(8), "<\ud800>": torch.ones(2, 8)}
    files = (content, {"<cat>": torch.ones(8)}, several)
    return *(_saved(each) for each in files), *(_saved(each, zipped=False) for each in (content, several))


# ---------------------------------------------------------------- models


def _checkpoint(family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that tell what a checkpoint is."""
    width = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[family]
    shapes: dict[str, tuple[int, ...]] = {
        UNET + "input_blocks.0.0.weight": (4, 4, 1, 1),
        UNET + "out.2.weight": (4, 4, 1, 1),
        UNET + "middle_block.1.proj_in.weight": (4, 4) if family == "sdxl" else (4, 4, 1, 1),
        UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1, width),
        UNET + "input_blocks.1.0.out_layers.3.weight": (4, 4),
        UNET + "input_blocks.1.1.transformer_blocks.0.norm1.bias": (4,),
        UNET + "input_blocks.2.0.op.weight": (4, 4),
        UNET + "input_blocks.3.0.out_layers.3.weight": (8, 4),
        UNET + "input_blocks.3.1.transformer_blocks.1.norm1.bias": (8,),
        UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias": (8,),
        VAE + "encoder.down.0.block.0.conv2.weight": (4, 4),
        VAE + "encoder.down.1.block.0.conv2.weight": (8, 4),
        VAE + "quant_conv.weight": (8, 8),
    }
    for prefix in CLIP_PREFIXES[family]:
        if prefix.endswith("transformer."):
            shapes[prefix + "text_model.embeddings.token_embedding.weight"] = (3, 8)
            shapes[prefix + "text_model.embeddings.position_embedding.weight"] = (77, 8)
            shapes[prefix + "text_model.encoder.layers.0.mlp.fc1.weight"] = (8, 8)
        else:
            shapes[prefix + "token_embedding.weight"] = (3, 8)
            shapes[prefix + "positional_embedding"] = (77, 8)
            shapes[prefix + "transformer.resblocks.1.mlp.c_fc.weight"] = (8, 8)
            shapes[prefix + "transformer.resblocks.0.mlp.c_fc.weight"] = (8, 8)
    return shapes


def _averages(name: str) -> str:
    return f"model_ema.{name.removeprefix('model.').replace('.', '')}" if name.startswith(UNET) else name


_LAYER = UNET + "input_blocks.1.1.transformer_blocks.0.norm1."
_QUANTIZED = {"layers": {_LAYER.rstrip("."): {"format": "float8_e4m3fn"}}}
CHECKPOINTS = (
    *(
        Safetensors({name: ("F8_E4M3", shape) for name, shape in _checkpoint(family).items()}, about)
        for family, about in (("sd1", {}), ("sd2", {"modelspec.prediction_type": "v"}), ("sd2", {}), ("sdxl", {}))
    ),
    Safetensors({f"module.{name}": ("F16", shape) for name, shape in _checkpoint("sd1").items()}, {}),
    Safetensors({_averages(name): ("F16", shape) for name, shape in _checkpoint("sd1").items()}, {}),
    Safetensors(
        {
            **{name: ("F16", shape) for name, shape in _checkpoint("sd1").items()},
            _LAYER + "weight_scale": ("F32", ()),
            _LAYER + "comfy_quant": ("U8", (2,)),
            UNET + "scaled_fp8": ("F8_E4M3", (2,)),
        },
        {"_quantization_metadata": json.dumps(_QUANTIZED)},
    ),
)
_BARE = {name.removeprefix(UNET): shape for name, shape in _checkpoint("sd1").items() if name.startswith(UNET)}
PARTS = {
    "unet.safetensors": Safetensors({name: ("F16", shape) for name, shape in _BARE.items()}, {}),
    "clip.safetensors": Safetensors(
        {
            "text_model.embeddings.token_embedding.weight": ("F16", (3, 768)),
            "text_model.embeddings.position_embedding.weight": ("F16", (77, 768)),
            "text_model.encoder.layers.0.mlp.fc1.weight": ("F16", (8, 768)),
        },
        {},
    ),
    "vae.safetensors": Safetensors(
        {
            "encoder.conv_in.weight": ("F16", (4, 3, 1, 1)),
            "encoder.conv_out.weight": ("F16", (8, 4, 1, 1)),
            "encoder.down_blocks.0.resnets.0.conv1.weight": ("F16", (4, 4, 1, 1)),
            "encoder.down_blocks.0.resnets.0.conv2.weight": ("F16", (4, 4, 1, 1)),
            "quant_conv.weight": ("F16", (8, 8, 1, 1)),
        },
        {},
    ),
}
"""A model in files of its parts."""


@cache
def checkpoint_pickles() -> tuple[bytes, ...]:
    """Pickled checkpoints, in the zip format and in the one before, with the notes of a training."""
    found = []
    for family in ("sd1", "sd2", "sdxl"):
        state = {name: torch.zeros(shape, dtype=torch.uint8) for name, shape in _checkpoint(family).items()}
        found.append(_saved({"state_dict": state, "global_step": 5, "callbacks": {"x": None}}))
        found.append(_saved(state, zipped=False))
        found.append(_saved({"model": {"state_dict": {f"module.{name}": t for name, t in state.items()}}}))
    within: dict[str, Any] = {f"{i}.weight": torch.zeros(1) for i in range(5)}
    within |= {f"again{i}": within for i in range(50)}
    found.append(_saved(within))
    spread = torch.zeros(1).expand(3_000_000_000)
    tell = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    found.append(_saved({**{name: torch.zeros(shape) for name, shape in _checkpoint("sd2").items()}, tell: spread}))
    return tuple(found)


MODEL_INFO = {
    "path": "m.safetensors",
    "name": "m",
    "family": "sd1",
    "dims": [8],
    "resolution": 512,
    "prediction_type": "epsilon",
}
UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "block_out_channels": [8, 8],
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "sample_size": 16,
    "force_upcast": True,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
TEXT_CONFIG = {
    "vocab_size": 6,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 8,
    "model_type": "clip_text_model",
    "bos_token_id": 4,
    "eos_token_id": 5,
}
SCHEDULER_CONFIG = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "trained_betas": None,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "unet": ["diffusers", "UNet2DConditionModel"],
}
_COPY_CONFIGS = {"unet": UNET_CONFIG, "vae": VAE_CONFIG, "text_encoder": TEXT_CONFIG, "scheduler": SCHEDULER_CONFIG}
COPY = Safetensors(
    {"unet.conv_in.weight.data": ("I8", (2, 2)), "unet.conv_in.weight.scale": ("F32", (2,))},
    {
        "zoodip_quantized_copy": "1",
        "weights": "int8",
        "sha256": "ab" * 32,
        "tokenizers": '[["", null]]',
        "info": json.dumps(MODEL_INFO),
        "configs": json.dumps(_COPY_CONFIGS),
    },
)
WEIGHTS = Safetensors({f"{i}.weight": ("F16", (1,)) for i in range(30)})
SHARDS = {"metadata": {"total_size": 8}, "weight_map": {"0.weight": "one.safetensors"}}
_WORDS = {"<|startoftext|>": 4, "<|endoftext|>": 5, "a": 0, "c": 1, "a</w>": 2, "ca</w>": 3}
MERGES = b"#version: 0.2\nc a</w>\n"
TOKENIZER = {
    "add_prefix_space": False,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "errors": "replace",
    "do_lower_case": True,
    "model_max_length": 77,
    "tokenizer_class": "CLIPTokenizer",
    "clean_up_tokenization_spaces": False,
}
_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
_ADDED = {str(number): {"content": word, **_SPECIAL} for word, number in list(_WORDS.items())[:2]}
TOKENIZER_CONFIGS = (TOKENIZER, {**TOKENIZER, "added_tokens_decoder": _ADDED})
SPECIAL_TOKENS = {"bos_token": "<|startoftext|>", "eos_token": {"content": "<|endoftext|>", "lstrip": False}}
VOCABULARY = _WORDS
TOKENIZER_FILE = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "normalizer": {"type": "NFC"},
    "post_processor": None,
    "decoder": None,
    "added_tokens": [{"id": 5, "content": "<|endoftext|>", **_SPECIAL}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<|endoftext|>",
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "</w>",
        "fuse_unk": False,
        "vocab": _WORDS,
        "merges": ["c a</w>"],
    },
}
PADDED = {
    **TOKENIZER_FILE,
    "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_id": 5, "pad_type_id": 0, "pad_token": "a"},
}

# ---------------------------------------------------------------- settings, captions, pages

_SETTINGS = {"images": ["images"], "token": "<pip>", "initializer": "cat"}
CONFIG = json.loads(TrainConfig.from_dict({**_SETTINGS, "images": ["images"]}).to_json())
CONFIG_WORDS = (
    *("tiny", "int8", "none", "auto", "float32", "cpu", "cosine", "zosgd", "spsa", "snr", "uniform", "resize", "style"),
    *(*CONFIG, "config_version", "<x>"),
)
RUN_CONFIG = {
    **CONFIG,
    "estimator": "rge",
    "optimizer": "zoadam",
    "n": 2,
    "tau": 3,
    "nu": 0.1,
    "steps": 9,
    "num_vectors": 2,
}
RUN_CONFIG |= {"subspace_gradient": True, "averaging": 0.1, "seed": 0, "token": "<pip>"}
RECORDS = (
    {"step": 7, "image": 0, "caption": 0, "t": 600, "batch": 3, "losses": [0.1, 0.2, 1e-9], "theta": None},
    {"step": 1, "image": 0, "caption": 0, "t": 600, "losses": [0.1, 0.2, 0.3]},
    {"step": 1, "image": 3, "caption": 1, "t": 1, "batch": 1, "losses": [1e300, -1e300, 0], "theta": "00000000"},
)
STATE = Safetensors(
    {
        **dict.fromkeys(("theta", "mean", "optimizer.mean", "optimizer.square"), ("F64", (2, 8))),
        **dict.fromkeys(("step", "seed", "optimizer.steps", "subspace.turns", "subspace.kept"), ("I64", ())),
        **dict.fromkeys(("subspace.buffer", "subspace.projection"), ("F64", (1, 16))),
    },
    {"about": '{"inputs": "x", "parts": {"model": "y", "images": "z"}, "batch": 3}'},
)


@cache
def journal() -> bytes:
    """The journal of a run of nine steps, whose Subspace Gradient turned three times."""
    search = TrainConfig.from_dict({k: v for k, v in RUN_CONFIG.items() if k != "config_version"}).make_search(
        torch.zeros(2, 8)
    )
    lines = []
    for _ in range(9):
        losses = (search.ask().double() - 1).square().sum(dim=(1, 2))
        search.tell(losses)
        lines.append(Record(search.step, 0, 0, 600, tuple(losses.tolist()), 3, search.checksum).line())
    return b"".join(lines)


def run_files() -> dict[str, bytes]:
    """That run's folder, without a saved state."""
    return {
        "pip/config.json": json.dumps(RUN_CONFIG).encode(),
        "pip/steps.jsonl": journal(),
        "pip/snapshots/step-00000000.safetensors": EMBEDDINGS[0].write(),
    }


CAPTIONS = (
    {"01.png": "a photo of a {} on grass", "02.png": ["a {}", "the <pip> there"]},
    {"captions": {"01.png": ["a {}"], "02.png": "<pip>"}},
)
CAPTION_WORDS = ("01.png", "02.png", "{}", "<pip>", "a {} b")
TEXTS = (
    b"a photo of a {} on grass",
    "\ufeffa <pip> \u4f60\u597d\n\nb\r\n".encode(),
    "a {}".encode("utf-16"),
    b"\xe9 {}",
    b"a {} at noon\n\n the <pip>\tat night\r\n",
)
NOTED = (
    {"file_name": "01.png", "text": "a {} on grass"},
    {"file_name": "02.png", "caption": "the <pip> there", "tags": ["x"]},
    {"file_name": "other.png", "prompt": "a {}"},
)
DRAFT = {
    "version": 1,
    "values": {"token": "<pip>", "initializer": "cat", "model": "tiny", "steps": 5, "flip": True, "lr": 0.1},
}
DRAFT_CAPTIONS = {"0001-a.png": ["a {}", "b {}"], "0002-b.jpg": ["a {}"]}
TASK = {
    "version": 1,
    "kind": "train",
    "folder": "x",
    "preset": "fast",
    "changes": {"steps": 9},
    "settings": {**_SETTINGS, "model": "tiny", "weights": "int8", "steps": 5, "prediction_type": "auto"},
}
OUTCOME = {"version": 1, "state": "failed", "message": "no room", "ended": "2026-01-01T00:00:00+00:00"}
TASK_WORDS = (*CONFIG_WORDS, "check", "resume", "show", "settings", "finished", "stopped", "failed")
_PROGRESS = {"step": 1, "steps": 5, "loss": 0.1, "smoothed": 0.1, "rate": 2.0, "eta": 3.0, "memory": 1000}
EVENTS = (
    {"event": "started", "step": 0, "steps": 5, "losses": [0.1, 0.2]},
    {"event": "progress", **_PROGRESS},
    {"event": "message", "text": "loading", "warning": False},
    {"event": "sampled", "step": 1, "path": "/x.png"},
    {"event": "saved", "step": 1, "path": "/x.safetensors"},
    {"event": "shown", "path": "/x.png"},
    {"event": "checked", "settings": {"steps": 5}, "memory": 10**9, "warnings": []},
    {"event": "ended", "state": "finished", "step": 5, "embedding": "/x.safetensors"},
    {"event": "failed", "error": "no room", "fault": False},
)
EVENT_WORDS = tuple(str(event["event"]) for event in EVENTS)
COMMANDS = ({"command": "stop"}, {"command": "save"}, {"command": "sample"})
REQUEST = {
    "model": "tiny",
    "token": "<pip>",
    "initializer": "cat",
    "preset": "fast",
    "steps": 5,
    "overwrite": False,
    "pictures": [{"name": "a.png", "data": "@picture@", "caption": "a {}"}],
}
STAMP = {"requirements": ["torch==2.13.0"], "torch": "2.13.0"}

# ---------------------------------------------------------------- pictures


def _image(mode: str = "RGB", side: int = 16) -> Image.Image:
    ramp = np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)
    picture = Image.fromarray(ramp)
    if mode == "I;16":
        return Image.fromarray(np.arange(side * side, dtype=np.uint16).reshape(side, side) * 200)
    if mode == "P":
        return picture.quantize(8)
    return picture.convert(mode)


def _written(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a picture", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    return exif


@cache
def pngs() -> tuple[bytes, ...]:
    """PNGs of every mode, with transparency, EXIF, text."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("parameters", "a cat" * 50, zip=True)
    text.add_itxt("Raw profile type exif", "\nexif\n4\n4d4d002a\n")
    found = [_written(_image(mode), "PNG") for mode in ("RGB", "RGBA", "LA", "L", "1", "I;16", "P")]
    found.append(_written(_image("P"), "PNG", transparency=b"\0\x80\xff"))
    found.append(_written(_image("RGB"), "PNG", transparency=(1, 2, 3), exif=_exif(), pnginfo=text))
    found.append(_written(_image("RGB"), "PNG", save_all=True, append_images=[_image("RGB")]))
    return tuple(found)


@cache
def jpegs() -> tuple[bytes, ...]:
    """JPEGs of every mode, baseline and progressive, with EXIF."""
    found = [_written(_image(mode), "JPEG") for mode in ("RGB", "L", "CMYK")]
    found.append(_written(_image(), "JPEG", progressive=True, exif=_exif()))
    found.append(_written(_image(), "JPEG", exif=_exif(), comment=b"x" * 50, icc_profile=b"p" * 200, subsampling=0))
    return tuple(found)


@cache
def webps() -> tuple[bytes, ...]:
    """WebPs: lossy, lossless, transparent, animated, with EXIF."""
    found = [_written(_image(), "WEBP"), _written(_image("RGBA"), "WEBP", lossless=True)]
    found.append(_written(_image("RGBA"), "WEBP", exif=_exif(), icc_profile=b"p" * 50))
    found.append(_written(_image(), "WEBP", save_all=True, append_images=[_image("L")]))
    return tuple(found)


@cache
def gifs() -> tuple[bytes, ...]:
    """GIFs: grey and coloured, transparent, with a comment, moving."""
    found = [_written(_image(mode), "GIF") for mode in ("L", "P", "RGBA")]
    found.append(_written(_image("P"), "GIF", transparency=1, comment=b"x" * 300, interlace=0))
    found.append(_written(_image(), "GIF", save_all=True, append_images=[_image("L"), _image("P")], loop=0))
    return tuple(found)


@cache
def bmps() -> tuple[bytes, ...]:
    """BMPs of every mode, and one of run lengths."""
    header = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 8, 1, 0, 0, 0, 256, 0)
    runs = b"".join(b"\x08\x01\0\x04\1\2\3\4\4\5\0\0" for _ in range(16)) + b"\0\1"
    packed = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + header + bytes(range(256)) * 4 + runs
    return (*(_written(_image(mode), "BMP") for mode in ("RGB", "RGBA", "L", "1", "P")), packed)


@cache
def tiffs() -> tuple[bytes, ...]:
    """TIFFs of every mode and of the usual packings, in strips, with EXIF and a profile, of two pages."""
    modes = ("RGB", "RGBA", "L", "1", "P", "CMYK", "I;16", "LAB")
    found = [_written(_image(mode), "TIFF") for mode in modes]
    found.append(_written(Image.fromarray(np.linspace(0, 2, 256, dtype=np.float32).reshape(16, 16)), "TIFF"))
    packings = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
    found += [_written(_image("1" if name == "group4" else "RGB"), "TIFF", compression=name) for name in packings]
    found.append(_written(_image(), "TIFF", exif=_exif(), icc_profile=b"p" * 50, tiffinfo={278: 2}))
    found.append(_written(_image(), "TIFF", save_all=True, append_images=[_image("L")]))
    return tuple(found)


@cache
def avifs() -> tuple[bytes, ...]:
    """AVIFs: lossy, grey, transparent, moving, turned; none where Pillow has no AVIF."""
    if "avif" not in features.modules or not features.check("avif"):
        return (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",)
    found = [_written(_image(mode), "AVIF") for mode in ("RGB", "RGBA", "L")]
    found.append(_written(_image(), "AVIF", exif=_exif(), icc_profile=b"p" * 50))
    found.append(_written(_image(), "AVIF", save_all=True, append_images=[_image("L")]))
    return tuple(found)


@cache
def heics() -> tuple[bytes, ...]:
    """HEICs: lossy, grey, transparent, a burst, turned, in tiles; none where ``pillow_heif`` is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",)

    def file(*pictures: Image.Image, **options: Any) -> bytes:
        whole, buffer = pillow_heif.HeifFile(), io.BytesIO()
        for picture in pictures:
            whole.add_from_pillow(picture)
        whole.save(buffer, **options)
        return buffer.getvalue()

    found = [file(_image(mode)) for mode in ("RGB", "RGBA", "L")]
    found.append(file(_image(), exif=_exif().tobytes(), icc_profile=b"p" * 50, chroma=444))
    found.append(file(_image(), _image("L"), exif=_exif().tobytes()))
    return tuple(found)
