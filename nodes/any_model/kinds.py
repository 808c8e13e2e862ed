"""Which models of ComfyUI's a token can be learned on, and what to say of the others."""

from __future__ import annotations

import re
from typing import Any

from ...zoodip_core.base.errors import ModelError
from ...zoodip_core.model.kinds import family_of_widths
from ...zoodip_core.train.presets import untried

_VIDEO = (
    *("WAN21", "WAN22", "HunyuanVideo", "HunyuanVideo15", "LTXV", "LTXAV", "GenmoMochi", "CosmosVideo"),
    *("SVD_img2vid", "CogVideoX", "Kandinsky5", "MiniMaxH3", "SeedVR2"),
)
_EDITS = (
    *("SD21UNCLIP", "Stable_Zero123", "SD_X4Upscaler", "IP2P", "Lotus", "HunyuanImage21Refiner", "PiD"),
    *("StableCascade_B", "DepthAnything3", "SAM3", "RT_DETR_v4"),
)
_OTHER_MEDIA = ("StableAudio1", "StableAudio3", "ACEStep", "ACEStep15", "MiniMaxMusic3", "Hunyuan3Dv2", "Trellis2")
_DISTILLED = re.compile(r"turbo|lightning|schnell|hyper(?!real)|lcm|dmd|distill", re.IGNORECASE)
_SMALL = {"sd1": 512, "sd2": 768, "tiny": 48}
RESOLUTION = 1024
"""Pixels a side of all other families."""


def family_of(model: Any, widths: tuple[int, ...], encoders: tuple[str, ...]) -> str:
    """The family of a MODEL: as of our own models for Stable Diffusion, else ComfyUI's name of it in small letters."""
    if not encoders:
        return family_of_widths(widths)
    return type(model.model.model_config).__name__.lower()


def resolution_of(family: str, prediction: str) -> int:
    """Pixels a side that models of a family were trained on: of SD2 those that predict the noise on as few as SD1."""
    return _SMALL["sd1" if (family, prediction) == ("sd2", "eps") else family] if family in _SMALL else RESOLUTION


def is_guided(model: Any) -> bool:
    """Whether a MODEL is told by a number how sharp to draw, as Flux. Chroma is told 0 whatever one draws."""
    return bool(model.model.model_config.unet_config.get("guidance_embed"))


def check_parts(model: Any, clip: Any, vae: Any) -> None:
    """Refuse what a token cannot be learned on, by the input that is wrong.

    Raises:
        ModelError: naming it, and what to do.
    """
    for name, part in (("model", model), ("clip", clip), ("vae", vae)):
        if part is None:
            raise ModelError(
                f"{name}: nothing comes in; the checkpoint has none in it: load it with a node of its own, and connect "
                f"its {name.upper()}"
            )
    _check_kind(model.model)
    _check_vae(model.model, vae)


def _check_kind(inner: Any) -> None:
    name, use = type(inner).__name__, "connect one that draws pictures from texts"
    families = {each.__name__ for each in type(inner).__mro__}
    if name == "SDXLRefiner":
        raise ModelError(f"model: it is SDXL's refiner, which reads half of a prompt; {use}, like SDXL's base model")
    for kinds, what in (
        (_VIDEO, "draws videos"),
        (_EDITS, "edits or describes pictures"),
        (_OTHER_MEDIA, "draws none"),
    ):
        if families.intersection(kinds):
            raise ModelError(f"model: {name} {what}; {use}")
    if inner.concat_keys or _takes_more(inner):
        raise ModelError(f"model: it is for inpainting or edits: it wants a picture beside the noise; {use}")


def _takes_more(inner: Any) -> bool:
    """Whether a model's first layer wants more channels than the latents have."""
    config = inner.model_config.unet_config
    counted = config.get("image_model") in (None, "flux")  # others count in patches
    return counted and config.get("in_channels", 0) > inner.latent_format.latent_channels


def _check_vae(inner: Any, vae: Any) -> None:
    wants = inner.latent_format
    has, dimensions = getattr(vae, "latent_channels", None), getattr(vae, "latent_dim", None)
    if has is not None and (has, dimensions) != (wants.latent_channels, wants.latent_dimensions):
        raise ModelError(
            f"vae: it makes latents of {has} channels, the model takes {wants.latent_channels}"
            + (" of another kind" if has == wants.latent_channels else "")
            + "; connect the model's own VAE"
        )


def notes_on(model: Any, name: str, family: str) -> list[str]:
    """What to expect of a model, where it is not what one would expect."""
    notes = untried(family)
    if is_distilled(model, name):
        notes.append(
            "the model is distilled, to draw in few steps: tokens learn worse on it. Learn on the model that it was "
            "made from; the token fits both"
        )
    return notes


def is_distilled(model: Any, name: str) -> bool:
    """Whether a MODEL was made to draw in few steps, by its name or by how it is sampled."""
    sampling = type(model.get_model_object("model_sampling"))
    of_sampling = any("lcm" in each.__name__.lower() for each in sampling.__mro__)
    return of_sampling or bool(_DISTILLED.search(f"{name} {type(model.model.model_config).__name__}"))


def name_of(model: Any) -> str:
    """What to call a MODEL: its file's name where ComfyUI keeps it, else its kind."""
    made = getattr(model, "cached_patcher_init", None)
    paths = made[1] if made else ()
    first = next((each for each in paths if isinstance(each, str)), "")
    return re.split(r"[\\/]", first)[-1].rpartition(".")[0] or type(model.model.model_config).__name__
