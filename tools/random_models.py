"""Write Stable Diffusion checkpoints of random weights, in the single-file layout that ComfyUI and A1111 users have.

    python tools/random_models.py --family sd15 --size small small.safetensors

They test what reads such files: ``build`` makes the diffusers modules, ``write_ldm`` and ``write_diffusers`` write
the same weights as one file and as a diffusers folder. ``small`` has each family's layout and text width, but narrow
and few layers; ``full`` is SD1.5, SD2.1 (768-v) or SDXL base 1.0 as published.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
import transformers
from torch import Tensor

CLIP_FOLDER = Path(__file__).resolve().parent.parent / "zoodip_core" / "clip"
DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}
PREDICTION = {"sd15": "epsilon", "sd21": "v_prediction", "sdxl": "epsilon"}
FAMILIES, SIZES = tuple(PREDICTION), ("small", "full")
VOCAB, LENGTH = 49408, 77

_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}
_PIPELINES = {"sd15": "StableDiffusionPipeline", "sd21": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
_SCHEDULERS = {"sd15": "PNDMScheduler", "sd21": "DDIMScheduler", "sdxl": "EulerDiscreteScheduler"}
_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32"}
_BLOCK = 262_147  # a prime: where a block of noise repeats, no two rows of a matrix are the same

# ComfyUI takes an SD2 for a v-prediction model when the std of this bias is above 0.09.
_V_MARK = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"


# --- building ---------------------------------------------------------------------------------------------------------


def configs(family: str, size: str, vocab: int = VOCAB) -> dict[str, dict[str, Any]]:
    """Each component's config, by component."""
    full = {"small": False, "full": True}[size]
    widths = {"block_out_channels": (128, 256, 512, 512) if full else (32, 64, 128, 128)}
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        **widths,
    }
    if family == "sd15":
        return {
            "unet": {
                "sample_size": 64,
                "block_out_channels": (320, 640, 1280, 1280) if full else (32, 64, 128, 128),
                "attention_head_dim": 8,
                "cross_attention_dim": 768,
            },
            "vae": {**vae, "sample_size": 512},
            "text_encoder": _text_config(768, 12, 12 if full else 2, full, vocab, "quick_gelu", 768),
        }
    if family == "sd21":
        return {
            "unet": {
                "sample_size": 96,
                "block_out_channels": (320, 640, 1280, 1280) if full else (64, 128, 128, 128),
                "attention_head_dim": (5, 10, 20, 20) if full else (1, 2, 2, 2),
                "cross_attention_dim": 1024,
                "use_linear_projection": True,
                "upcast_attention": True,
            },
            "vae": {**vae, "sample_size": 768},
            "text_encoder": _text_config(1024, 16, 23 if full else 2, full, vocab, "gelu", 512),
        }
    if family == "sdxl":
        return {
            "unet": {
                "sample_size": 128,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "block_out_channels": (320, 640, 1280) if full else (64, 128, 128),
                "attention_head_dim": (5, 10, 20) if full else (1, 2, 2),
                "transformer_layers_per_block": (1, 2, 10) if full else (1, 1, 2),
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            "vae": {**vae, "sample_size": 1024, "scaling_factor": 0.13025},
            "text_encoder": _text_config(768, 12, 12 if full else 2, full, vocab, "quick_gelu", 768),
            "text_encoder_2": _text_config(1280, 20, 32 if full else 2, full, vocab, "gelu", 1280),
        }
    raise ValueError(f"family {family!r}: one of {', '.join(FAMILIES)}")


def _text_config(
    width: int, heads: int, layers: int, full: bool, vocab: int, activation: str, projection: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": 4 * width if full else width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
        "projection_dim": projection,
        "max_position_embeddings": LENGTH,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published: pooling then looks for the largest id
        "pad_token_id": 1,
    }


def build(family: str, size: str = "small", seed: int = 0, *, vocab: int = VOCAB) -> dict[str, Any]:
    """Float32 modules by component: ``unet``, ``vae``, ``text_encoder`` and, for SDXL, ``text_encoder_2``.

    The weights are a function of seed and name, and float16 numbers: a float16 file holds them exactly.
    """
    return {part: _filled(part, module, seed) for part, module in _skeletons(family, size, vocab, torch.float32)}


def _skeletons(family: str, size: str, vocab: int, dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    """The modules by component, on the meta device: shapes without weights."""
    for part, config in configs(family, size, vocab).items():
        with torch.device("meta"):
            if part.startswith("text"):
                module = getattr(transformers, _CLASSES[part][1])(transformers.CLIPTextConfig(**config))
            else:
                module = getattr(diffusers, _CLASSES[part][1])(**config)
        torch.nn.Module.to(module, dtype)  # diffusers' own .to warns about nothing here
        yield part, module.eval().requires_grad_(False)


def _filled(part: str, module: Any, seed: int) -> Any:
    """The module of the meta device in memory, with random weights and its buffers."""
    module = module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        random_fill(parameter, f"{part}.{_plain(name)}", seed)
    for _, buffer in module.named_buffers():  # position_ids are the only ones
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    if part == "unet" and module.config.upcast_attention:  # SD2.1
        module.get_parameter(_V_MARK).mul_(8)
    return module


def _plain(name: str) -> str:
    """A text encoder's weight without the prefix that versions of transformers differ in."""
    return name.removeprefix("text_model.")


def random_fill(tensor: Tensor, name: str, seed: int) -> Tensor:
    """Fill a weight by what its name and shape say it is: bias, norm, or a matrix of std 1 / sqrt(fan in)."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))  # torch uses 32 bits of a seed
    noise = torch.randn(min(tensor.numel(), _BLOCK), generator=generator)
    if name.endswith("bias"):
        noise = 0.02 * noise
    elif tensor.ndim == 1:
        noise = 1 + 0.05 * noise
    else:
        noise = noise / math.sqrt(math.prod(tensor.shape[1:]))
    noise = noise.half()
    for chunk in tensor.view(-1).split(_BLOCK):
        chunk.copy_(noise[: len(chunk)])
    return tensor


# --- diffusers' names to LDM's ----------------------------------------------------------------------------------------

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE = {
    r"down_blocks\.(\d)\.resnets": r"down.\1.block",
    r"down_blocks\.(\d)\.downsamplers\.0": r"down.\1.downsample",
    r"up_blocks\.(\d)\.resnets": r"up.\1.block",
    r"up_blocks\.(\d)\.upsamplers\.0": r"up.\1.upsample",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    "group_norm": "norm",
    r"to_([qkv])\.": r"\1.",
    r"to_out\.0": "proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}
_OPEN_CLIP = {
    r"encoder\.layers": "transformer.resblocks",
    r"self_attn\.out_proj": "attn.out_proj",
    r"layer_norm(\d)": r"ln_\1",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
    "final_layer_norm": "ln_final",
    r"embeddings\.token_embedding": "token_embedding",
    r"embeddings\.position_embedding\.weight": "positional_embedding",
    r"text_projection\.weight": "text_projection",
}


def unet_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's weights by LDM's names, which number its layers from end to end."""
    per_level = 1 + max(int(match[1]) for name in state if (match := re.match(r"down_blocks\.0\.resnets\.(\d)", name)))
    return {_unet_name(name, per_level, state): tensor for name, tensor in state.items()}


def _unet_name(name: str, layers: int, state: Mapping[str, Tensor]) -> str:
    block = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name)
    if block is None:
        prefix = next(prefix for prefix in _UNET if name.startswith(f"{prefix}."))
        rest = name.removeprefix(f"{prefix}.")
        return f"{_UNET[prefix]}.{_resnet_name(rest) if 'resnets' in prefix else rest}"
    side, level, kind, number, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
    first = level * (layers + 1)  # down: after conv_in, layers and a downsampler; up: a layer more, no place for more
    if kind == "downsamplers":
        return f"input_blocks.{first + 1 + layers}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        attended = f"up_blocks.{level}.attentions.0.norm.weight" in state
        return f"output_blocks.{first + layers}.{2 if attended else 1}.{rest}"
    place = f"input_blocks.{first + 1 + number}" if side == "down" else f"output_blocks.{first + number}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_resnet_name(rest)}"


def _resnet_name(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{_RESNET[layer]}.{kind}"


def vae_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VAE's weights by LDM's names: up levels from the bottom, attention as 1x1 convolutions ``[C, C, 1, 1]``."""
    top = max(int(match[1]) for name in state if (match := re.match(r"decoder\.up_blocks\.(\d)", name)))
    ldm = {}
    for name, tensor in state.items():
        key = re.sub(r"(?<=up_blocks\.)\d", lambda match: str(top - int(match[0])), name)
        conv = "attentions" in name and tensor.ndim == 2
        ldm[_substituted(key, _VAE)] = tensor[:, :, None, None] if conv else tensor
    return ldm


def open_clip_to_ldm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights by OpenCLIP's names: query, key and value in one, the projection transposed."""
    state = {_plain(name): tensor for name, tensor in state.items()}
    ldm = {}
    for name, tensor in state.items():
        key = _substituted(name, _OPEN_CLIP)
        if ".q_proj." in key:
            qkv = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            ldm[key.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(qkv)
        elif key == "text_projection":
            ldm[key] = tensor.T.contiguous()
        elif not re.search(r"\.[kv]_proj\.", key):
            ldm[key] = tensor
    return ldm


def _substituted(name: str, table: Mapping[str, str]) -> str:
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    return name


def to_ldm(part: str, state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """One component's weights as they stand in a single file of the family."""
    if part == "unet":
        return _under("model.diffusion_model.", unet_to_ldm(state))
    if part == "vae":
        return _under("first_stage_model.", vae_to_ldm(state))
    if part == "text_encoder_2":  # of SDXL
        return _under("conditioner.embedders.1.model.", open_clip_to_ldm(state))
    if family == "sd21":
        return _under("cond_stage_model.model.", _with_last_block(open_clip_to_ldm(state)))
    stage = "conditioner.embedders.0" if family == "sdxl" else "cond_stage_model"
    return _under(f"{stage}.transformer.text_model.", {_plain(name): tensor for name, tensor in state.items()})


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _with_last_block(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With what SD2 files hold and never use: OpenCLIP's last block, and its projection."""
    blocks = "transformer.resblocks."
    last = 1 + max(int(name.split(".")[2]) for name in state if name.startswith(blocks))
    unused = {
        name.replace(f"{blocks}0.", f"{blocks}{last}."): torch.empty_like(tensor)
        for name, tensor in state.items()
        if name.startswith(f"{blocks}0.")
    }
    scale = state["ln_final.weight"]
    unused["text_projection"] = scale.new_empty(len(scale), len(scale))
    return state | {name: random_fill(tensor, f"unused.{name}", 0) for name, tensor in unused.items()}


def odds_and_ends(family: str) -> dict[str, Tensor]:
    """What else files of the family hold: the noise schedule, position ids, traces of training."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    ids = torch.arange(LENGTH)[None]
    scale = torch.tensor(math.log(100))
    if family == "sdxl":
        return {
            "denoiser.sigmas": ((1 - kept) / kept).sqrt().float(),
            "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": ids,
            "conditioner.embedders.1.model.logit_scale": scale,
        }
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    variance = betas * (1 - before) / (1 - kept)
    schedule = {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": kept.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - kept).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - kept).log(),
        "sqrt_recip_alphas_cumprod": (1 / kept).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / kept - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - kept),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - kept),
    }
    extras = {name: values.float() for name, values in schedule.items()}
    extras |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(1, dtype=torch.int32)}
    if family == "sd21":
        return extras | {"cond_stage_model.model.logit_scale": scale}
    return extras | {"cond_stage_model.transformer.text_model.embeddings.position_ids": ids}


# --- writing ----------------------------------------------------------------------------------------------------------


def write_ldm(
    path: str | Path,
    modules: Mapping[str, Any],
    family: str,
    dtype: torch.dtype = torch.float16,
    *,
    metadata: Mapping[str, str] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the modules as one file, ``.safetensors`` or ``.ckpt``; ``extra`` tensors are added as they are."""
    path = Path(path)
    tensors = odds_and_ends(family)
    for part, module in modules.items():
        tensors |= to_ldm(part, module.state_dict(), family)
    tensors = {name: _cast(tensor, dtype) for name, tensor in tensors.items()} | dict(extra or {})
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 1, "pytorch-lightning_version": "1.4.2"}, path)
    else:
        safetensors.torch.save_file(tensors, path, dict(metadata or {"format": "pt"}))
    return path


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor


def write_random(
    path: str | Path, family: str, size: str = "small", seed: int = 0, dtype: torch.dtype = torch.float16
) -> Path:
    """Build and write a file; a ``.safetensors`` goes component by component, with only one in memory."""
    path = Path(path)
    if path.suffix == ".ckpt":
        modules = {part: _filled(part, module, seed) for part, module in _skeletons(family, size, VOCAB, dtype)}
        return write_ldm(path, modules, family, dtype)
    others = {name: _cast(tensor, dtype) for name, tensor in odds_and_ends(family).items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    shapes = [to_ldm(part, module.state_dict(), family) for part, module in _skeletons(family, size, VOCAB, dtype)]
    for name, tensor in (item for tensors in (others, *shapes) for item in tensors.items()):
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        _append(file, others)
        for part, module in _skeletons(family, size, VOCAB, dtype):
            _append(file, to_ldm(part, _filled(part, module, seed).state_dict(), family))
    return path


def _append(file: Any, tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def write_diffusers(
    folder: str | Path, modules: Mapping[str, Any], family: str, prediction_type: str | None = None
) -> Path:
    """Write the modules as a diffusers folder; the prediction type is the family's unless given."""
    folder = Path(folder)
    index: dict[str, Any] = {"_class_name": _PIPELINES[family], "_diffusers_version": diffusers.__version__}
    for part, module in modules.items():
        module.save_pretrained(folder / part)
        index[part] = list(_CLASSES[part])
    for part in (part for part in modules if part.startswith("text_encoder")):
        tokenizer = part.replace("text_encoder", "tokenizer")
        open_clip = part == "text_encoder_2" or family == "sd21"
        _write_tokenizer(folder / tokenizer, "!" if open_clip else "<|endoftext|>")
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
    index["scheduler"] = ["diffusers", _SCHEDULERS[family]]
    if family == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    _write_json(folder / "scheduler" / "scheduler_config.json", _schedule(family, prediction_type))
    _write_json(folder / "model_index.json", index)
    return folder


def _schedule(family: str, prediction_type: str | None) -> dict[str, Any]:
    return {
        "_class_name": _SCHEDULERS[family],
        "_diffusers_version": diffusers.__version__,
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "prediction_type": prediction_type or PREDICTION[family],
        "timestep_spacing": "leading",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
    }


def _write_tokenizer(folder: Path, pad_token: str) -> None:
    shutil.copytree(CLIP_FOLDER, folder, dirs_exist_ok=True)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = json.loads((folder / name).read_text(encoding="utf-8"))
        _write_json(folder / name, config | {"pad_token": pad_token})


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a Stable Diffusion checkpoint of random weights.")
    parser.add_argument("output", type=Path, help="NAME.safetensors or NAME.ckpt")
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16")
    options = parser.parse_args(arguments)
    if options.output.suffix not in (".safetensors", ".ckpt"):
        parser.error(f"{options.output}: the name must end in .safetensors or .ckpt")
    write_random(options.output, options.family, options.size, options.seed, DTYPES[options.dtype])


if __name__ == "__main__":
    main()
