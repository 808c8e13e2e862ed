"""Small random models of ComfyUI's own classes, in this process: for tests of what a MODEL, CLIP and VAE are asked.

ComfyUI's loaders know models by their full sizes, so no file of a few megabytes would be taken for one. Here its
classes are told smaller ones. Widths of text encoders are real, as embedding files have them; their layers are few.

Call :func:`start` before anything of ComfyUI's is imported.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.e2e.launch_comfyui import declare_torchvision

WEIGHTS, GAINS = 0.03, 0.1
"""Spread of weights, and of what scales or shifts."""
_kept: list[Any] = []


def start() -> None:
    """Make the ComfyUI of COMFYUI_DIR importable, on the CPU."""
    sys.path.insert(0, os.environ["COMFYUI_DIR"])
    sys.argv = [sys.argv[0], "--cpu"]
    _kept.append(declare_torchvision())
    _comfy("options").enable_args_parsing()
    torch.set_num_threads(2)


def _comfy(name: str) -> Any:
    return importlib.import_module(f"comfy.{name}")


@dataclass(frozen=True)
class Parts:
    """What the loaders' nodes give."""

    model: Any
    clip: Any
    vae: Any


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Args:
        name: of ComfyUI's class in ``supported_models``.
        network: its configuration.
        texts: configurations of text encoders.
        prediction: where a checkpoint's own tensors would say it.
        encoders: the keys of embedding files.
        reads: whether ComfyUI's own loader reads embedding files with this CLIP.
    """

    name: str
    network: dict[str, Any]
    texts: dict[str, dict[str, Any]]
    encoders: tuple[str, ...]
    prediction: str = ""
    reads: bool = True
    target: Callable[[], Any] | None = None
    half: bool = field(default=False)
    """Whether the text encoders' tables are so large that they are kept in float16; it computes in float32."""


def _layers(count: int, **more: Any) -> dict[str, Any]:
    return {"num_hidden_layers": count, "intermediate_size": 64, **more}


_UNET = {
    "image_size": 32,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "num_heads": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_temporal_attention": False,
    "in_channels": 4,
    "out_channels": 4,
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1] * 4,
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": True,
    "adm_in_channels": None,
}
_SD15 = {**_UNET, "context_dim": 768, "use_linear_in_transformer": False}
_SD2 = {**_UNET, "context_dim": 1024, "model_channels": 64}
_SDXL = {**_UNET, "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential"} | {
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
}
_FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "patch_size": 2,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 128,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [16, 24, 24],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_CHROMA = {
    **{name: value for name, value in _FLUX.items() if name != "guidance_embed"},
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 128,
    "hidden_dim": 64,
    "n_layers": 1,
}
_SD3 = {
    "in_channels": 16,
    "input_size": None,
    "patch_size": 2,
    "depth": 2,
    "num_patches": 64 * 64,
    "pos_embed_scaling_factor": None,
    "pos_embed_max_size": 64,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 128},
    },
}
_ZIMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 256,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 4,
    "axes_dims": [16, 24, 24],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "ffn_dim_multiplier": 2.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "joint_attention_dim": 3584,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (16, 24, 24),
    "patch_size": 2,
}
_L, _G, _H = ({f"clip_{each}_model_config": _layers(3)} for each in "lgh")
_T5 = {"t5xxl_model_config": {"num_layers": 1, "d_ff": 64, "num_heads": 2}}
_SMALL = {"num_attention_heads": 2, "num_key_value_heads": 2}


def _sd3_texts() -> Any:
    module = _comfy("text_encoders.sd3_clip")
    made = module.sd3_clip(clip_l=True, clip_g=True, t5=True, dtype_t5=torch.float32)
    return types.SimpleNamespace(clip=made, tokenizer=module.SD3Tokenizer)


KINDS = {
    "sd15": Kind("SD15", _SD15, _L, ("clip_l",)),
    "sd2v": Kind("SD20", _SD2, _H, ("clip_h",), "V_PREDICTION"),
    "sdxl": Kind("SDXL", _SDXL, {**_L, **_G}, ("clip_l", "clip_g"), "EPS"),
    "sdxlv": Kind("SDXL", _SDXL, {**_L, **_G}, ("clip_l", "clip_g"), "V_PREDICTION"),
    "sd3": Kind("SD3", _SD3, {**_L, **_G, **_T5}, ("clip_l", "clip_g", "t5xxl"), target=_sd3_texts),
    "flux": Kind("Flux", _FLUX, {**_L, **_T5}, ("clip_l", "t5xxl")),
    "chroma": Kind("Chroma", _CHROMA, _T5, ("t5xxl",)),
    "zimage": Kind("ZImage", _ZIMAGE, {"qwen3_4b_model_config": _layers(3, **_SMALL)}, ("qwen3_4b",), half=True),
    "qwen": Kind(
        "QwenImage", _QWEN, {"qwen25_7b_model_config": _layers(2, **_SMALL)}, ("qwen25_7b",), reads=False, half=True
    ),
}


def build(name: str, embeddings: Path, network: dict[str, Any] | None = None) -> Parts:
    """A model of a kind.

    Args:
        name: of :data:`KINDS`.
        embeddings: the folder that its tokenizers read.
        network: more of the network's configuration.
    """
    kind = KINDS[name]
    config = getattr(_comfy("supported_models"), kind.name)
    config = config({**_known(kind.network), **(network or {}), "dtype": torch.float32})
    if kind.prediction:
        prediction = _comfy("model_base").ModelType[kind.prediction]
        config.model_type = lambda *_args, **_named: prediction
    config.set_inference_dtype(torch.float32, None)
    return Parts(_model(config), _clip(kind, config, embeddings), vae_of(config.latent_format))


def _known(network: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration what this version's class takes: Flux's and Chroma's refuse what others have."""
    classes = {"flux": "FluxParams", "chroma": "ChromaParams"}
    image_model = network.get("image_model", "")
    if image_model not in classes:
        return network
    taken = getattr(_comfy(f"ldm.{image_model}.model"), classes[image_model]).__dataclass_fields__
    return {name: value for name, value in network.items() if name in {*taken, "image_model"}}


def exists(name: str) -> bool:
    """Whether this ComfyUI knows a kind."""
    return hasattr(_comfy("supported_models"), KINDS[name].name)


def _model(config: Any) -> Any:
    management, patching = _comfy("model_management"), _comfy("model_patcher")
    model = config.get_model({}, "", device="cpu")
    fill(model, WEIGHTS)
    patcher = getattr(patching, "CoreModelPatcher", patching.ModelPatcher)
    return patcher(model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device())


def _clip(kind: Kind, config: Any, embeddings: Path) -> Any:
    target = kind.target() if kind.target else config.clip_target({})
    target = types.SimpleNamespace(params=getattr(target, "params", {}), clip=target.clip, tokenizer=target.tokenizer)
    options = {**kind.texts, "dtype": torch.float16 if kind.half else torch.float32}
    clip = _comfy("sd").CLIP(target, embedding_directory=[str(embeddings)], model_options=options)
    fill(clip.cond_stage_model, WEIGHTS)
    return clip


def vae_of(latents: Any, channels: int = 0) -> Any:
    """A VAE of a latent format, or of so many channels."""
    sd = _comfy("sd")
    if latents.latent_dimensions == 3:
        module = _comfy("ldm.wan.vae")
        old = "image_channels" not in inspect.signature(module.WanVAE).parameters  # knows one size
        shape = {"dim": 96 if old else 16, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
        video = module.WanVAE(**shape, attn_scales=[], temperal_downsample=[False, True, True], dropout=0.0)
        fill(video, WEIGHTS)
        return sd.VAE(sd=video.state_dict())
    channels = channels or latents.latent_channels
    config = {
        "double_z": True,
        "z_channels": channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    plain = _comfy("ldm.models.autoencoder").AutoencoderKL(ddconfig=config, embed_dim=channels)
    fill(plain, WEIGHTS)
    made = sd.VAE(sd=plain.state_dict(), config={"params": {"ddconfig": config, "embed_dim": channels}})
    made.latent_channels = channels  # which ComfyUI takes from a checkpoint's first layers
    return made


@torch.no_grad()
def fill(module: torch.nn.Module, scale: float) -> None:
    """Random weights, the same each time; ComfyUI leaves them as the memory was."""
    noise = torch.Generator().manual_seed(0)
    positions = {name: each for name, each in module.named_buffers() if name.endswith("pos_embed")}  # of SD3
    for name, tensor in sorted({**dict(module.named_parameters()), **positions}.items()):
        if tensor.ndim > 1:
            tensor.normal_(0, scale, generator=noise)
        else:
            tensor.normal_(1 if name.endswith(("weight", "scale", "gamma")) else 0, GAINS, generator=noise)
