"""A checkpoint that ComfyUI's own loaders take, of random weights, and its parts in files of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import random_models
from safetensors.torch import load_file, save_file

from tests.e2e.launch_comfyui import declare_torchvision

PARTS = {
    "diffusion_models/bare.safetensors": "model.diffusion_model.",
    "text_encoders/clip_l.safetensors": "cond_stage_model.transformer.",
    "vae/vae-ft.safetensors": "first_stage_model.",
}
"""Files in the models folder, and what their tensors' names begin with in a checkpoint."""


def write_sd15(file: Path) -> None:
    """An SD1.5 checkpoint.

    Its UNet has 320 channels at each level, so that it draws in a second what would take a quarter of a minute;
    ComfyUI refuses one with fewer. The text encoder and the VAE are of full size.
    """
    declared = declare_torchvision()  # noqa: F841 - kept while diffusers is imported

    def slim(family: str, size: str, vocab: int = random_models.VOCAB) -> dict[str, dict[str, Any]]:
        parts = published(family, size, vocab)
        parts["unet"]["block_out_channels"] = (320,) * 4
        return parts

    published = random_models.configs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_models, "configs", slim)
        random_models.write_random(file, "sd15", "full")


_AS_GGUF = """
import sys, gguf
from safetensors.torch import load_file
writer = gguf.GGUFWriter(sys.argv[2], arch="sd1")
eight = gguf.GGMLQuantizationType.Q8_0
for name, tensor in load_file(sys.argv[1]).items():
    array = tensor.float().numpy()
    if array.ndim == 2 and array.shape[1] % 32 == 0:
        writer.add_tensor(name, gguf.quants.quantize(array, eight), raw_dtype=eight)
    else:
        writer.add_tensor(name, array)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""


def write_gguf(unet: Path, file: Path) -> None:
    """A UNet's file as GGUF with Q8_0 weights, by the library that ComfyUI's Python has for city96's loader."""
    file.parent.mkdir(exist_ok=True)
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    subprocess.run([python, "-c", _AS_GGUF, str(unet), str(file)], check=True)


def write_parts(checkpoint: Path) -> None:
    """A checkpoint's parts as :data:`PARTS`, in the folders beside its own."""
    tensors = load_file(checkpoint)
    for name, prefix in PARTS.items():
        file = checkpoint.parents[1] / name
        file.parent.mkdir(exist_ok=True)
        save_file({key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)}, file)
