"""Where a network's parameters lie in a file, and its config, by its tensors' names and shapes.

A UNet and a VAE have LDM's names, as ComfyUI and A1111 keep them, or diffusers'; a text encoder has transformers' or
OpenCLIP's. Each becomes the config of diffusers' or transformers' class, and a function from a parameter's name there
to its place in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .kinds import CLIP_WORDS
from .source import Source

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

_MOST_PARTS = 100
"""Of a kind, such as layers. SDXL has 32 of the most."""
_OPEN_CLIP_H_READ = 23
_CLIP_L_WIDTH = 768
"""Of the one text encoder with quick GELU; OpenCLIP's have GELU."""
_PRUNED: dict[tuple[int, ...], str] = {(0, 2, 4): "SSD-1B", (0, 1, 2): "Segmind Vega", (0, 2, 5): "KOALA"}
"""SDXL cut down, by the transformer blocks of its levels. All lack those in the middle."""


class PrunedError(ValueError):
    """A network from which layers were taken out; its text is the model's name."""


@dataclass(frozen=True)
class Layout:
    """A network in a file.

    Args:
        config: of diffusers' or transformers' class.
        locate: from a parameter's name there to its place in the file.
    """

    config: Config
    locate: Callable[[str], Source]


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


# ---------------------------------------------------------------- UNet


def unet(shapes: Shapes, prefix: str) -> Layout:
    """The UNet whose names begin with ``prefix``.

    Raises:
        PrunedError: layers were taken out of it.
        KeyError, IndexError, ValueError: tensors are missing.
    """
    if f"{prefix}down_blocks.0.resnets.0.conv1.weight" in shapes:
        return Layout(_diffusers_unet_config(shapes, prefix), lambda name: Source(prefix + name))
    config = _ldm_unet_config(shapes, prefix)
    return Layout(config, lambda name: Source(prefix + _unet_name(name, config)))


def _ldm_unet_config(shapes: Shapes, prefix: str) -> Config:
    levels: list[tuple[int, list[int]]] = []  # channels, transformer depth after each resnet
    channels = 0
    depths: list[int] = []
    for i in range(1, _count(shapes, prefix + "input_blocks.")):
        block = f"{prefix}input_blocks.{i}."
        if block + "0.op.weight" in shapes:
            levels.append((channels, depths))
            depths = []
            continue
        channels = shapes[block + "0.out_layers.3.weight"][0]
        depths.append(_count(shapes, block + "1.transformer_blocks."))
    levels.append((channels, depths))
    return _unet_config(
        shapes,
        levels,
        f"{prefix}middle_block.1.",
        shapes[prefix + "out.2.weight"][0],
        shapes.get(prefix + "label_emb.0.0.weight"),
    )


def _diffusers_unet_config(shapes: Shapes, prefix: str) -> Config:
    levels = []
    for level in range(_count(shapes, prefix + "down_blocks.")):
        block = f"{prefix}down_blocks.{level}."
        layers = range(_count(shapes, block + "resnets."))
        depths = [_count(shapes, f"{block}attentions.{i}.transformer_blocks.") for i in layers]
        levels.append((shapes[block + "resnets.0.conv1.weight"][0], depths))
    return _unet_config(
        shapes,
        levels,
        f"{prefix}mid_block.attentions.0.",
        shapes[prefix + "conv_out.weight"][0],
        shapes.get(prefix + "add_embedding.linear_1.weight"),
    )


def _unet_config(
    shapes: Shapes,
    levels: Sequence[tuple[int, list[int]]],
    middle: str,
    channels_out: int,
    label: tuple[int, ...] | None,
) -> Config:
    """The config by each level's channels and transformer blocks after each of its resnets.

    Args:
        levels: from the largest pictures to the smallest.
        middle: prefix of the transformer in the middle.
        channels_out: of the UNet's output.
        label: shape of the layer that reads SDXL's sizes.
    """
    block_channels, depth = [channels for channels, _ in levels], [max(depths) for _, depths in levels]
    _check_not_pruned(shapes, middle, depth)
    linear = len(shapes[f"{middle}proj_in.weight"]) == 2
    config: Config = {
        "in_channels": 4,
        "out_channels": channels_out,
        "block_out_channels": block_channels,
        "layers_per_block": len(levels[0][1]),
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depth],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depth)],
        "transformer_layers_per_block": [
            *(max(d, 1) for d in depth[:-1]),
            _count(shapes, middle + "transformer_blocks."),
        ],
        "cross_attention_dim": shapes[f"{middle}transformer_blocks.0.attn2.to_k.weight"][1],
        # Stable Diffusion 1 has eight heads everywhere; its successors have heads of 64 channels.
        "attention_head_dim": [c // 64 for c in block_channels] if linear else 8,
        "use_linear_projection": linear,
    }
    if label:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": label[1],
        }
    return config


def _check_not_pruned(shapes: Shapes, middle: str, depth: Sequence[int]) -> None:
    if not any(name.startswith(middle) for name in shapes) and any(depth):
        raise PrunedError(_PRUNED.get(tuple(depth), "a pruned Stable Diffusion, like BK-SDM"))


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


# ---------------------------------------------------------------- VAE


def vae(shapes: Shapes, prefix: str, scaling: Config) -> Layout:
    """The VAE whose names begin with ``prefix``.

    Args:
        scaling: what no shape tells: ``scaling_factor``, ``force_upcast``.

    Raises:
        KeyError, ValueError: tensors are missing.
    """
    diffusers = f"{prefix}encoder.down_blocks.0.resnets.0.conv1.weight" in shapes
    block, resnet = ("down_blocks", "resnets") if diffusers else ("down", "block")
    levels = _count(shapes, f"{prefix}encoder.{block}.")
    widths = [shapes[f"{prefix}encoder.{block}.{i}.{resnet}.0.conv2.weight"][0] for i in range(levels)]
    config = {
        "block_out_channels": widths,
        "layers_per_block": _count(shapes, f"{prefix}encoder.{block}.0.{resnet}."),
        "latent_channels": shapes[prefix + "quant_conv.weight"][0] // 2,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        **scaling,
    }
    return Layout(config, lambda name: Source(_vae_place(shapes, prefix, name, levels)))


_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names of a VAE's attention layers before diffusers 0.15."""


def with_old_attention(name: str) -> str:
    """A parameter's name as diffusers before 0.15 had it."""
    return re.sub(r"\.(to_[qkv]|to_out\.0)\.", lambda match: f".{OLD_ATTENTION[match[1]]}.", name)


def _vae_place(shapes: Shapes, prefix: str, name: str, levels: int) -> str:
    """Where a parameter of the VAE lies.

    Its names are LDM's or diffusers', which has two sets for attention; files have diffusers' for attention alone as
    well, with either name for its norm.
    """
    own = prefix + _vae_name(name, levels)
    mixed = [name, with_old_attention(name)]
    if ".attentions.0." in name:
        layer = name.partition(".attentions.0.")[2]
        mixed += [
            f"{own.removeprefix(prefix).partition('.attn_1.')[0]}.attn_1.{each}"
            for each in (layer, with_old_attention(f".{layer}")[1:])
        ]
        mixed += [form.replace(".group_norm.", ".norm.") for form in mixed]
    return next((place for place in (own, *(prefix + form for form in mixed)) if place in shapes), own)


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


# ---------------------------------------------------------------- text encoders


def clip_width(shapes: Shapes, prefix: str) -> int:
    """The width of the text encoder whose names begin with ``prefix``, 0 if there is none."""
    for place in ("text_model.embeddings.token_embedding", "embeddings.token_embedding", "token_embedding"):
        shape = shapes.get(f"{prefix}{place}.weight", ())
        if len(shape) == 2:
            return shape[1]
    return 0


def clip(shapes: Shapes, prefix: str, *, read_before_last: bool = False) -> Layout:
    """The text encoder whose names begin with ``prefix``.

    Args:
        read_before_last: it is SD2's, which reads what OpenCLIP-H's 23rd of 24 blocks gives.

    Raises:
        KeyError, ValueError: tensors are missing.
    """
    if prefix + "token_embedding.weight" in shapes:
        blocks = _count(shapes, prefix + "transformer.resblocks.")
        layers = _blocks_read(blocks, prefix + "text_projection" in shapes) if read_before_last else blocks
        return Layout(_open_clip_config(shapes, prefix, layers), lambda name: _open_clip_source(name, prefix))
    top = prefix
    if any(name.startswith(prefix + "text_model.") for name in shapes):  # some tools wrote SD1's without it
        top += "text_model."
    blocks = _count(shapes, top + "encoder.layers.")
    layers = _blocks_read(blocks, prefix + "text_projection.weight" in shapes) if read_before_last else blocks

    def locate(name: str) -> Source:
        own = name.removeprefix("text_model.")
        if own == "text_projection.weight":
            whole = own if prefix + own in shapes else "text_projection"  # OpenCLIP's lies the other way round
            return Source(prefix + whole, transposed=whole != own)
        return Source(top + own)

    return Layout(_clip_config(shapes, prefix, top, layers), locate)


def _blocks_read(blocks: int, has_projection: bool) -> int:
    """How many of an SD2 text encoder's blocks are run.

    Some programs write 23 blocks, without the last, which is never run; a smaller encoder is whole, with its last
    block, where the projection that follows that one is there.
    """
    return min(blocks - (blocks < _OPEN_CLIP_H_READ and has_projection), _OPEN_CLIP_H_READ)


def _clip_config(shapes: Shapes, prefix: str, top: str, layers: int) -> Config:
    vocabulary, width = shapes[top + "embeddings.token_embedding.weight"]
    projection = shapes.get(prefix + "text_projection.weight", (width,))[0]
    return _text_config(
        vocabulary,
        width,
        positions=shapes[top + "embeddings.position_embedding.weight"][0],
        layers=layers,
        intermediate=shapes[top + "encoder.layers.0.mlp.fc1.weight"][0],
        activation="quick_gelu" if width == _CLIP_L_WIDTH else "gelu",
        projection=projection,
    )


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
    words = min(vocabulary, CLIP_WORDS)  # rows beyond are of tokens that were trained into the model
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "max_position_embeddings": positions,
        "num_hidden_layers": layers,
        "intermediate_size": intermediate,
        "num_attention_heads": max(1, width // 64),
        "hidden_act": activation,
        "projection_dim": projection,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }


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
