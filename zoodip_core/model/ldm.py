"""What a single file is: which Stable Diffusion, or what else, by its tensors' names and shapes; and its parts.

The names are LDM's, as :mod:`renaming` gives them.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from ..base.errors import ModelError
from ..base.texts import how_many
from . import layouts
from .checkpoints import Checkpoint, ComponentReader, Part
from .layouts import Layout, PrunedError, Shapes
from .renaming import UNET, VAE

CLIP_PREFIXES = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}
_CONTEXT = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
WIDTHS = {"sd1": (768,), "sd2": (1024,), "sdxl": (768, 1280)}
"""Of each family's text encoders."""
_VAE_SCALE = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}


# ---------------------------------------------------------------- what is it?


def family_of(shapes: Shapes, where: str) -> str:
    """``sd1``, ``sd2`` or ``sdxl``, by the UNet.

    Raises:
        ModelError: there is no UNet of these families; says what it is instead.
    """
    first = shapes.get(UNET + "input_blocks.0.0.weight", shapes.get(UNET + "conv_in.weight"))
    if first is None:
        raise ModelError(f"model: {where} {_what_else(shapes)}")
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
    told_sizes = any(UNET + label in shapes for label in ("label_emb.0.0.weight", "add_embedding.linear_1.weight"))
    if told_sizes != (family == "sdxl"):
        kind = "a variant of SDXL without its sizes" if family == "sdxl" else "a model that is shown pictures (unCLIP)"
        raise ModelError(f"model: {where} is {kind}, which is not supported; {_SUPPORTED}")
    return family


def parts_of(checkpoint: Checkpoint, family: str, where: str, given: Collection[str] = ()) -> dict[str, Part]:
    """The parts of a model that are in a file: ``unet``, ``vae``, ``text_encoder`` and SDXL's ``text_encoder_2``.

    Args:
        checkpoint: with LDM's names.
        family: of :func:`family_of`.
        where: the file, for errors.
        given: parts that lie elsewhere; the file's own are not looked at.

    Raises:
        ModelError: a part that is not given is not there, or lacks tensors.
    """
    shapes = checkpoint.shapes
    texts = dict(zip(("text_encoder", "text_encoder_2"), CLIP_PREFIXES[family], strict=False))
    places = {"unet": (UNET, UNET), "vae": (VAE, VAE + "encoder."), **{part: (p, p) for part, p in texts.items()}}
    wanted = {part: place for part, place in places.items() if part not in given}
    for part, (_, tell) in wanted.items():
        if not any(name.startswith(tell) for name in shapes):
            kind, option = ("VAE", "--vae") if part == "vae" else ("text encoder", "--clip")
            raise ModelError(
                f"model: {where} has no {kind} ({tell}...); use a full checkpoint, not one without it, or give the "
                f"{kind}'s own file ({option}; in the node {option.strip('-')})"
            )
    layouts_of = {part: _layout(shapes, part, prefix, family, where) for part, (prefix, _) in wanted.items()}
    return {
        part: Part(layout.config, ComponentReader(checkpoint, layout.locate)) for part, layout in layouts_of.items()
    }


def _layout(shapes: Shapes, part: str, prefix: str, family: str, where: str) -> Layout:
    try:
        if part == "unet":
            return layouts.unet(shapes, prefix)
        if part == "vae":
            return layouts.vae(shapes, prefix, vae_scaling(family))
        return layouts.clip(shapes, prefix, read_before_last=family == "sd2")
    except PrunedError as error:
        raise ModelError(f"model: {where} is {error}, which is not supported; {_SUPPORTED}") from None
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(
            f"model: {where} lacks parts of a {family} checkpoint ({error}); it may be cut down or damaged"
        ) from error


def vae_scaling(family: str) -> layouts.Config:
    """What the shapes of a family's VAE do not tell."""
    return {"scaling_factor": _VAE_SCALE[family], "force_upcast": family == "sdxl"}


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
            f"model: {where} has {how_many(len(unread), 'tensor')} of no Stable Diffusion ({names}); it is a variant "
            f"that is not supported; {_SUPPORTED}"
        )


_LAYER = (
    r"((in|out|emb)_layers\.\d|skip_connection|op|conv|norm|proj_in|proj_out"
    r"|transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2)|norm[123]))"
)
_DIFFUSERS_LAYER = (
    r"(resnets\.\d+\.(norm[12]|conv[12]|time_emb_proj|conv_shortcut)|(down|up)samplers\.0\.conv"
    r"|attentions\.\d+\.(norm|proj_in|proj_out"
    r"|transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2)|norm[123])))"
)
_READ = re.compile(
    r"model\.diffusion_model\.((time_embed|label_emb\.0|out)\.[02]|input_blocks\.0\.0"
    rf"|((in|out)put_blocks\.\d+|middle_block)\.\d\.{_LAYER}"
    r"|conv_(in|out|norm_out)|(time|add)_embedding\.linear_[12]"
    rf"|((down|up)_blocks\.\d+|mid_block)\.{_DIFFUSERS_LAYER})"
    r"\.(weight|bias|scale_weight|weight_scale|scale_input|input_scale|comfy_quant)$"
    r"|first_stage_model\.((en|de)coder|(post_)?quant_conv)\."
    r"|cond_stage_model\.(transformer|model)\.|conditioner\.embedders\.(0\.transformer|1\.model)\."
)
"""What is read of a checkpoint, and what stands in the same places of the same layers."""
_HARMLESS = re.compile(
    r"(model_ema|first_stage_model\.(loss|model_ema)|embedding_manager|denoiser|optimizer\w*|lr_schedulers|ema_model)\."
    r"|(.*\.)?scaled_fp8$"
    r"|((sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|betas|posterior_\w+|lvlb_weights|logvar"
    r"|v_pred|ztsnr|scale_factor|global_step|epoch|num_updates|decay)$"
    r"|(cond_stage_model|conditioner\.embedders\.[01])\.(clip_[lgh]\.)?(logit_scale|text_projection(\.weight)?)$"
)
"""What programs leave in a file: schedules, averages, losses, counters; CLIP's scale and projection, which ComfyUI
saves beside its text encoders; and marks that are read."""
_OTHER_OBJECTIVES = {
    r"^edm_|\.edm_": "an EDM model",
    r"time_embed(ding)?\.cond_proj": "a latent consistency model (LCM)",
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
        return f"holds {how_many(len(shapes), 'tensor')}, an embedding perhaps, not a model; {_SUPPORTED}"
    return f"is not a Stable Diffusion checkpoint (no {UNET} in it); {_SUPPORTED}"
