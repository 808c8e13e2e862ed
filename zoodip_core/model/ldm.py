"""The single-file layout of Stable Diffusion ("LDM"), as ComfyUI and A1111 keep it.

What a checkpoint is follows from its tensors' names and shapes; here they are turned into the
configs of diffusers' and transformers' classes, and each of their parameters into the place in the
file that holds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ..base.errors import ModelError
from .checkpoints import Source

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_PREFIXES = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}
_CONTEXT = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_MOST_PARTS = 100
"""Of a kind, such as layers. SDXL has 32 of the most."""
_OPEN_CLIP_H_READ = 23
VAE_SCALE = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}


# ---------------------------------------------------------------- what is it?


def family_of(shapes: Shapes, where: str) -> str:
    """``sd1``, ``sd2`` or ``sdxl``.

    Raises:
        ModelError: not a whole Stable Diffusion checkpoint of these families; says what it is instead.
    """
    first = shapes.get(UNET + "input_blocks.0.0.weight")
    if first is None:
        raise ModelError(f"model: {where} {_what_else(shapes)}")
    if any(name.endswith((".scale_weight", "scaled_fp8")) for name in shapes):
        raise ModelError(f"model: {where} holds scaled 8-bit weights; use the 16-bit file of the same model")
    channels = _inputs(first)
    if channels != 4:
        kind = {9: "an inpainting model", 8: "an image-editing model", 5: "a depth model"}.get(channels, "a variant")
        raise ModelError(
            f"model: {where} is {kind} (its UNet reads {channels} channels, not 4); tokens are trained on the plain "
            "model of the same family, and then work in this one as well"
        )
    width = next((_inputs(s) for name, s in shapes.items() if name.endswith("attn2.to_k.weight") and UNET in name), 0)
    family = _CONTEXT.get(width)
    if family is None:
        kind = "SDXL's refiner" if width == 1280 else f"of an unknown family (it attends to width {width})"
        raise ModelError(f"model: {where} is {kind}; supported are Stable Diffusion 1.x, 2.x and SDXL base")
    check_known(shapes, where)
    if (UNET + "label_emb.0.0.weight" in shapes) != (family == "sdxl"):
        kind = "a variant of SDXL without its sizes" if family == "sdxl" else "a model that is shown pictures (unCLIP)"
        raise ModelError(f"model: {where} is {kind}, which is not supported; {_SUPPORTED}")
    for part, prefix in (("VAE", VAE + "encoder."), *(("text encoder", p) for p in CLIP_PREFIXES[family])):
        if not any(name.startswith(prefix) for name in shapes):
            raise ModelError(f"model: {where} has no {part} ({prefix}...); use a full checkpoint, not one without it")
    return family


def check_known(shapes: Shapes, where: str) -> None:
    """Refuse a file with tensors that nothing here reads, and that are not known to be harmless.

    They are what makes a model of another kind out of the same layers: trained without them it would learn the
    wrong thing.

    Raises:
        ModelError: says what kind they are of, where that is known.
    """
    unread = [name for name in shapes if not _READ.match(name) and not _HARMLESS.match(name)]
    for pattern, kind in _OTHER_OBJECTIVES.items():
        if any(re.search(pattern, name) for name in unread):
            raise ModelError(f"model: {where} is {kind}, whose training is another, and not supported; {_SUPPORTED}")
    if unread:
        names = ", ".join(unread[:3]) + (" ..." if len(unread) > 3 else "")
        raise ModelError(
            f"model: {where} has {len(unread)} tensors that are of no Stable Diffusion ({names}); it is a variant "
            f"that is not supported; {_SUPPORTED}"
        )


_LAYER = (
    r"((in|out|emb)_layers\.\d|skip_connection|op|conv|norm|proj_in|proj_out"
    r"|transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2)|norm[123]))"
)
_READ = re.compile(
    r"model\.diffusion_model\.((time_embed|label_emb\.0|out)\.[02]|input_blocks\.0\.0"
    rf"|((in|out)put_blocks\.\d+|middle_block)\.\d\.{_LAYER})\.(weight|bias)$"
    r"|first_stage_model\.((en|de)coder|(post_)?quant_conv)\."
    r"|cond_stage_model\.(transformer|model)\.|conditioner\.embedders\.(0\.transformer|1\.model)\."
)
"""What is read of a checkpoint, and what stands in the same places of the same layers."""
_HARMLESS = re.compile(
    r"(model_ema|first_stage_model\.(loss|model_ema)|embedding_manager|denoiser|optimizer\w*|lr_schedulers|ema_model)\."
    r"|((sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|betas|posterior_\w+|lvlb_weights|logvar"
    r"|v_pred|ztsnr|scale_factor|global_step|epoch|num_updates|decay)$"
    r"|(cond_stage_model|conditioner\.embedders\.[01])\.(clip_[lgh]\.)?(logit_scale|text_projection(\.weight)?)$"
)
"""What programs leave in a file: schedules, averages, losses, counters; CLIP's scale and projection, which ComfyUI
saves beside its text encoders; and marks that are read."""
_OTHER_OBJECTIVES = {
    r"^edm_|\.edm_": "an EDM model",
    r"time_embed\.cond_proj": "a latent consistency model (LCM)",
    r"motion_module|temporal_transformer|time_stack|time_mixer": "a model of videos",
    r"^noise_augmentor|\bimage_proj|ip_adapter|_ip\b|to_[kv]_ip": "a model that is shown pictures (unCLIP, IP-Adapter)",
    r"position_net|fuser": "a GLIGEN model",
    r"^control_model": "a ControlNet with its model",
    r"^depth_model": "a depth model",
    r"lora_(up|down|A|B)|\.lora\.": "a model with a LoRA that is not merged",
}


def _inputs(shape: tuple[int, ...]) -> int:
    """Of a layer's weight, 0 if it is none."""
    return shape[1] if len(shape) > 1 else 0


_SUPPORTED = "use a Stable Diffusion 1.x, 2.x or SDXL checkpoint"
# Tensors that tell what a file is, in the order in which they are looked for.
_OTHER_KINDS = {
    r"lora_(up|down|A|B|unet|te)|hada_w|lokr_w|\.lora\.": (
        "is a LoRA, not a model; use the checkpoint that it was made for"
    ),
    r"joint_blocks\.": f"is Stable Diffusion 3, which is not supported; {_SUPPORTED}",
    r"double_blocks\.|single_transformer_blocks\.": f"is a Flux model, which is not supported; {_SUPPORTED}",
    r"^(control_model\.|input_hint_block\.|controlnet_)": f"is a ControlNet, not a model; {_SUPPORTED}",
    r"^down_blocks\.\d+\.(resnets|attentions)\.": (
        "is a UNet alone, in diffusers' layout; give the top of its diffusers folder, or a full checkpoint"
    ),
    r"^(first_stage_model\.)?(encoder|decoder)\.conv_in\.": f"is a VAE alone; {_SUPPORTED}",
    r"text_model\.encoder\.layers\.|transformer\.resblocks\.": f"is a text encoder alone; {_SUPPORTED}",
}


def _what_else(shapes: Shapes) -> str:
    """What a file without LDM's UNet is, as the rest of a sentence."""
    for pattern, what in _OTHER_KINDS.items():
        if any(re.search(pattern, name) for name in shapes):
            return what
    if len(shapes) <= 4:
        return f"holds {len(shapes)} tensors, an embedding perhaps, not a model; {_SUPPORTED}"
    return f"is not a Stable Diffusion checkpoint (no {UNET} in it); {_SUPPORTED}"


# ---------------------------------------------------------------- configs


def configs_of(shapes: Shapes, family: str, where: str) -> dict[str, Config]:
    """Configs of ``unet``, ``vae``, ``text_encoder`` (and ``text_encoder_2`` for SDXL) by the tensors' shapes.

    Raises:
        ModelError: tensors are missing.
    """
    try:
        configs = {"unet": _unet_config(shapes), "vae": _vae_config(shapes, family)}
        prefixes = CLIP_PREFIXES[family]
        if family == "sd2":
            configs["text_encoder"] = _open_clip_config(shapes, prefixes[0], _blocks_read(shapes, prefixes[0]))
        else:
            configs["text_encoder"] = _clip_config(shapes, _clip_prefix(shapes, prefixes[0]))
        if family == "sdxl":
            configs["text_encoder_2"] = _open_clip_config(shapes, prefixes[1], _blocks(shapes, prefixes[1]))
        return configs
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(
            f"model: {where} lacks parts of a {family} checkpoint ({error}); it may be cut down or damaged"
        ) from error


def _count(shapes: Shapes, prefix: str) -> int:
    """One more than the highest number that stands behind the prefix and before a dot.

    Raises:
        ValueError: it is higher than in any model.
    """
    behind = (name[len(prefix) :].partition(".") for name in shapes if name.startswith(prefix))
    count = max((int(number) + 1 for number, dot, _ in behind if dot and number.isdecimal()), default=0)
    if count > _MOST_PARTS:
        raise ValueError(f"the parts are numbered up to {count - 1}")
    return count


def _unet_config(shapes: Shapes) -> Config:
    levels: list[tuple[int, list[int]]] = []  # channels, transformer depth after each resnet
    channels = 0
    depths: list[int] = []
    for i in range(1, _count(shapes, UNET + "input_blocks.")):
        block = f"{UNET}input_blocks.{i}."
        if block + "0.op.weight" in shapes:
            levels.append((channels, depths))
            depths = []
            continue
        channels = shapes[block + "0.out_layers.3.weight"][0]
        depths.append(_count(shapes, block + "1.transformer_blocks."))
    levels.append((channels, depths))
    middle = _count(shapes, UNET + "middle_block.1.transformer_blocks.")
    block_channels = [c for c, _ in levels]
    depth = [max(d) for _, d in levels]
    linear = len(shapes[f"{UNET}middle_block.1.proj_in.weight"]) == 2
    config: Config = {
        "in_channels": 4,
        "out_channels": shapes[UNET + "out.2.weight"][0],
        "block_out_channels": block_channels,
        "layers_per_block": len(levels[0][1]),
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depth],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depth)],
        "transformer_layers_per_block": [*(max(d, 1) for d in depth[:-1]), middle],
        "cross_attention_dim": shapes[f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        # Stable Diffusion 1 has eight heads everywhere; its successors have heads of 64 channels.
        "attention_head_dim": [c // 64 for c in block_channels] if linear else 8,
        "use_linear_projection": linear,
    }
    label = shapes.get(UNET + "label_emb.0.0.weight")
    if label:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": label[1],
        }
    return config


def _vae_config(shapes: Shapes, family: str) -> Config:
    levels = _count(shapes, VAE + "encoder.down.")
    widths = [shapes[f"{VAE}encoder.down.{i}.block.0.conv2.weight"][0] for i in range(levels)]
    return {
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, VAE + "encoder.down.0.block."),
        "latent_channels": shapes[VAE + "quant_conv.weight"][0] // 2,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": VAE_SCALE[family],
        "force_upcast": family == "sdxl",
    }


def _clip_prefix(shapes: Shapes, prefix: str) -> str:
    """Some tools wrote SD1's text encoder without ``text_model``."""
    return prefix + "text_model." if any(name.startswith(prefix + "text_model.") for name in shapes) else prefix


def _clip_config(shapes: Shapes, prefix: str) -> Config:
    vocabulary, width = shapes[prefix + "embeddings.token_embedding.weight"]
    return _text_config(
        vocabulary,
        width,
        positions=shapes[prefix + "embeddings.position_embedding.weight"][0],
        layers=_count(shapes, prefix + "encoder.layers."),
        intermediate=shapes[prefix + "encoder.layers.0.mlp.fc1.weight"][0],
        activation="quick_gelu",
        projection=width,
    )


def _blocks(shapes: Shapes, prefix: str) -> int:
    return _count(shapes, prefix + "transformer.resblocks.")


def _blocks_read(shapes: Shapes, prefix: str) -> int:
    """How many of an SD2 text encoder's blocks are run: SD2 reads what OpenCLIP-H's 23rd of 24 gives.

    Some programs write 23 blocks, without the last, which is never run; a smaller encoder is whole, with its last
    block, where the projection that follows that one is there.
    """
    blocks = _blocks(shapes, prefix)
    unused = blocks < _OPEN_CLIP_H_READ and prefix + "text_projection" in shapes
    return min(blocks - unused, _OPEN_CLIP_H_READ)


def _open_clip_config(shapes: Shapes, prefix: str, layers: int) -> Config:
    vocabulary, width = shapes[prefix + "token_embedding.weight"]
    projection = shapes.get(prefix + "text_projection", (width, width))
    return _text_config(
        vocabulary,
        width,
        positions=shapes[prefix + "positional_embedding"][0],
        layers=layers,
        intermediate=shapes[prefix + "transformer.resblocks.0.mlp.c_fc.weight"][0],
        activation="gelu",
        projection=projection[1],
    )


def _text_config(
    vocabulary: int, width: int, *, positions: int, layers: int, intermediate: int, activation: str, projection: int
) -> Config:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": positions,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": max(1, width // 64),
        "hidden_act": activation,
        "projection_dim": projection,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


# ---------------------------------------------------------------- names


def naming(shapes: Shapes, family: str, configs: Mapping[str, Config]) -> dict[str, Callable[[str], Source]]:
    """For each component a function from a parameter's name to its :class:`Source`."""
    prefixes = CLIP_PREFIXES[family]
    unet, vae = configs["unet"], configs["vae"]
    named: dict[str, Callable[[str], Source]] = {
        "unet": lambda name: Source(UNET + _unet_name(name, unet)),
        "vae": lambda name: Source(_vae_place(shapes, name, len(vae["block_out_channels"]))),
    }
    if family == "sd2":
        named["text_encoder"] = lambda name: _open_clip_source(name, prefixes[0])
    else:
        prefix = _clip_prefix(shapes, prefixes[0])
        named["text_encoder"] = lambda name: Source(prefix + name.removeprefix("text_model."))
    if family == "sdxl":
        named["text_encoder_2"] = lambda name: _open_clip_source(name, prefixes[1])
    return named


_UNET_TOPS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _unet_name(name: str, config: Config) -> str:
    last = config["layers_per_block"]
    stride = last + 1

    def block(match: re.Match[str]) -> str:
        side, level, kind, index = match[1], int(match[2]), match[3], int(match[4])
        if side == "down":
            if kind == "downsamplers":
                return f"input_blocks.{1 + level * stride + last}.0.op"
            return f"input_blocks.{1 + level * stride + index}.{int(kind == 'attentions')}"
        if kind == "upsamplers":
            after_attention = config["up_block_types"][level] == "CrossAttnUpBlock2D"
            return f"output_blocks.{level * stride + last}.{1 + after_attention}.conv"
        return f"output_blocks.{level * stride + index}.{int(kind == 'attentions')}"

    in_resnet = ".resnets." in name
    name = re.sub(
        r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:\.conv(?=\.))?", block, name
    )
    for top, ldm in _UNET_TOPS.items():
        if name.startswith(top + "."):
            name = ldm + name[len(top) :]
            break
    return _renamed(name, _UNET_RESNET) if in_resnet else name


_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _vae_place(shapes: Shapes, name: str, levels: int) -> str:
    """Where a parameter of the VAE lies: its attention has LDM's names, or diffusers' newer or older ones."""
    own = VAE + _vae_name(name, levels)
    if own in shapes or ".attentions.0." not in name:
        return own
    layer = name.partition(".attentions.0.")[2]
    newer = f"{own.partition('.attn_1.')[0]}.attn_1.{layer}"
    older = re.sub(r"\.(to_[qkv]|to_out\.0)\.", lambda match: f".{OLD_ATTENTION[match[1]]}.", newer)
    return next((place for place in _with_either_norm(newer, older) if place in shapes), own)


def _with_either_norm(*names: str) -> list[str]:
    return [form for name in names for form in (name, name.replace(".group_norm.", ".norm."))]


OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of a VAE's attention layers before diffusers 0.15."""


def _vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out")
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        return _renamed(name.replace("mid_block.attentions.0", "mid.attn_1"), _VAE_ATTENTION)
    name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", name)
    name = (
        name.replace("resnets.", "block.").replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    )
    return _renamed(name, _VAE_RESNET)


_OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "encoder.layers": "transformer.resblocks",
    "final_layer_norm": "ln_final",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _open_clip_source(name: str, prefix: str) -> Source:
    name = name.removeprefix("text_model.")
    if name == "embeddings.position_embedding.weight":
        return Source(prefix + "positional_embedding")
    if name == "text_projection.weight":
        return Source(prefix + "text_projection", transposed=True)
    name = _renamed(name, _OPEN_CLIP)
    match = re.match(r"(.*)self_attn\.([qkv])_proj\.(weight|bias)$", name)
    if match:
        return Source(f"{prefix}{match[1]}attn.in_proj_{match[3]}", third="qkv".index(match[2]))
    return Source(prefix + name)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """The name with whole dotted parts replaced."""
    for old, new in table.items():
        name = re.sub(rf"(?<![^.]){re.escape(old)}(?![^.])", new, name)
    return name
