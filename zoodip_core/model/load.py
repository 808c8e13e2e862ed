"""Loading a Stable Diffusion, offline, with quantised weights: single files, diffusers folders, our copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..base.errors import ConfigError, ModelError
from ..base.events import Event, Message
from .copies import cached_model
from .copy_folder import AUTO, own_folder
from .devices import device_of
from .kinds import DTYPES, TINY
from .quantize import WEIGHTS
from .recognise import open_model
from .stable_diffusion import StableDiffusion


def load_quantized(
    model: str | Path = TINY,
    *,
    weights: str = "int8",
    dtype: str = "auto",
    device: str = "auto",
    prediction_type: str = "auto",
    clip: Sequence[str | Path] = (),
    vae: str | Path | None = None,
    cache: str | Path | None = None,
    keep: bool = True,
    on_event: Callable[[Event], None] = lambda event: None,
) -> StableDiffusion:
    """A checkpoint, diffusers folder or the embedded tiny model, never asking the network.

    What the model is gets checked at once; its parts are loaded when they are first used.

    Args:
        model: a ``.safetensors`` or ``.ckpt`` file, a diffusers folder, or ``"tiny"``; a UNet's file with the others.
        weights: ``int8``, ``int4``, ``float8`` or ``none``: storage of Linear and Conv2d weights.
        dtype: activations: ``float32``, ``float16``, ``bfloat16``; ``auto`` is float16 on CUDA, else float32.
        device: a torch device; ``auto`` is CUDA where there is one, else the CPU.
        prediction_type: ``epsilon`` or ``v_prediction`` where ``auto`` gets it wrong.
        clip: files of text encoders, in place of the model's own.
        vae: file of a VAE, in place of the model's own.
        cache: a folder for quantised copies, made at the first load and read in place of the model afterwards; or
            ``"auto"`` for the user's own, without which the model is loaded too; None for no copy.
        keep: whether a copy is made where there is none yet; else one that is there is read.
        on_event: called with what the user should know: that a copy was made, or could not be.

    Raises:
        ModelError: the model is missing, damaged or unsupported.
        StorageError: the copy cannot be written into the folder that was given.
        ConfigError: an unknown ``weights``, ``dtype``, ``device`` or ``prediction_type``.
    """
    check_weights(weights)
    where = device_of(device)
    kind = _dtype(dtype, where)
    folder = own_folder() if cache == AUTO else cache
    blueprint = None
    if folder is not None and weights != "none" and str(model) != TINY:

        def made(copy: Path) -> None:
            advice = "; --no-cache keeps none" if cache == AUTO else ""
            size = f"{copy.stat().st_size / 1e9:.1f} GB"
            on_event(Message(f"kept a quantised copy of {Path(model).stem} ({size}) in {copy.parent}{advice}"))

        try:
            blueprint = cached_model(
                Path(model),
                weights,
                Path(folder),
                prediction_type,
                clip=clip,
                vae=vae,
                device=where,
                keep=keep,
                made=made,
            )
        except OSError as error:
            if cache != AUTO:
                raise
            on_event(Message(f"no quantised copy is kept: {error.strerror or error}"))
    blueprint = blueprint or open_model(model, prediction_type, clip=clip, vae=vae)
    if blueprint.weights not in (None, weights):
        raise ModelError(f"model: {model} is a quantised copy with {blueprint.weights} weights, not {weights}")
    return StableDiffusion(blueprint, weights, kind, where, where)


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: choose auto, {', '.join(DTYPES)}")
    if dtype == "float16" and device.type == "cpu":
        raise ConfigError("dtype = 'float16' does not run on a CPU; use float32 or bfloat16")
    return DTYPES[dtype]


def check_weights(weights: str) -> None:
    """Refuse an unknown kind of storage.

    Raises:
        ConfigError: not one of ``WEIGHTS``.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"weights = {weights!r}: choose one of {', '.join(WEIGHTS)}")
