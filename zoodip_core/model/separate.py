"""Text encoders and VAE that lie in files of their own, beside a UNet or in place of a checkpoint's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import ModelError
from . import layouts
from .checkpoints import SUFFIXES, Checkpoint, ComponentReader, Part
from .layouts import Config, Layout
from .renaming import without_wrappers

_CLIP_TELL = re.compile(r"(.*?)(text_model\.)?(embeddings\.)?token_embedding\.weight")
_VAE_TELL = re.compile(r"(.*?)encoder\.conv_in\.weight")
_LATENT_CHANNELS = 4
_OTHERS = {
    r"encoder\.block\.\d+\.layer": "T5, a text encoder of SD3 and Flux",
    r"model\.layers\.\d+\.self_attn": "a language model, the text encoder of newer models",
    r"lora_|\.lora\.": "a LoRA, or has one that is not merged",
}


@dataclass(frozen=True)
class Files:
    """Files of parts.

    Args:
        clip: of text encoders, in any order; one file may hold several.
        vae: of the VAE.
    """

    clip: tuple[Path, ...] = ()
    vae: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.clip or self.vae)


def parts(files: Files, widths: tuple[int, ...], scaling: Config) -> dict[str, Part]:
    """The parts that are given, by their names.

    Args:
        files: where they are.
        widths: of the model's text encoders, which says which is which.
        scaling: what the shapes of a VAE do not tell.

    Raises:
        ModelError: a file is missing, damaged, of another kind, or of another model's.
    """
    found = _text_encoders(files.clip, widths) if files.clip else {}
    return {**found, "vae": _vae(files.vae, scaling)} if files.vae else found


def _text_encoders(files: tuple[Path, ...], widths: tuple[int, ...]) -> dict[str, Part]:
    names = dict(zip(widths, ("text_encoder", "text_encoder_2"), strict=False))
    found: dict[str, Part] = {}
    for file in files:
        checkpoint = _opened(file, "clip")
        prefixes = {match[1] for name in checkpoint.shapes if (match := _CLIP_TELL.fullmatch(name))}
        encoders = {prefix: layouts.clip_width(checkpoint.shapes, prefix) for prefix in sorted(prefixes)}
        fitting = {prefix: width for prefix, width in encoders.items() if width in names}
        if not fitting:
            have = f"is of width {', '.join(map(str, encoders.values()))}" if encoders else "holds no CLIP"
            needed = " and ".join(map(str, widths))
            raise ModelError(
                f"clip: {file} {have}; this model reads text encoders of width {needed}: give another file"
            )
        for prefix, width in fitting.items():
            if names[width] in found:
                raise ModelError(f"clip: {file} holds a second text encoder of width {width}; give one of each")
            found[names[width]] = _part(
                checkpoint,
                "clip",
                lambda prefix=prefix, width=width, shapes=checkpoint.shapes: layouts.clip(  # type: ignore[misc]
                    shapes, prefix, read_before_last=width == _SD2_WIDTH
                ),
            )
    return found


_SD2_WIDTH = 1024


def _vae(file: Path, scaling: Config) -> Part:
    checkpoint = _opened(file, "vae")
    shapes = checkpoint.shapes
    prefixes = sorted({match[1] for name in shapes if (match := _VAE_TELL.fullmatch(name))}, key=len)
    if not prefixes:
        raise ModelError(f"vae: {file} holds no VAE; give that of a Stable Diffusion 1.x, 2.x or XL")
    last = math.prod(shapes.get(f"{prefixes[0]}encoder.conv_out.weight", ())[:1]) // 2
    if last != _LATENT_CHANNELS:
        raise ModelError(
            f"vae: {file} makes latents of {last} channels, the UNet reads {_LATENT_CHANNELS}; it is of another model: "
            "give that of a Stable Diffusion 1.x, 2.x or XL"
        )
    return _part(checkpoint, "vae", lambda: layouts.vae(shapes, prefixes[0], scaling))


def _opened(file: Path, setting: str) -> Checkpoint:
    if not file.is_file():
        raise ModelError(f"{setting}: {file} does not exist; give the file of a part")
    if file.suffix.lower() not in SUFFIXES:
        raise ModelError(f"{setting}: {file} is not a file of weights; their names end in {', '.join(SUFFIXES)}")
    checkpoint = Checkpoint([file])
    checkpoint = checkpoint.known_as(without_wrappers(checkpoint.shapes))
    checkpoint.check_quantization()
    for pattern, kind in _OTHERS.items():
        if any(re.search(pattern, name) for name in checkpoint.shapes):
            raise ModelError(f"{setting}: {file} is {kind}; give one of a Stable Diffusion 1.x, 2.x or XL")
    return checkpoint


def _part(checkpoint: Checkpoint, setting: str, lay_out: Callable[[], Layout]) -> Part:
    try:
        layout = lay_out()
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(
            f"{setting}: {checkpoint.files[0]} lacks tensors ({error}); it may be cut down or damaged"
        ) from error
    return Part(layout.config, ComponentReader(checkpoint, layout.locate))
