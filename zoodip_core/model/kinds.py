"""Kinds of models: families by their text encoders, what they predict, types of numbers, and where ours lie."""

from __future__ import annotations

from pathlib import Path

import torch

TINY = "tiny"
"""The name of the embedded tiny model wherever a model's path is asked for."""
COMFYUI = "ComfyUI: "
"""Before the name of a model that ran in ComfyUI, where a run's settings name its model."""
TINY_PATH = Path(__file__).parent.parent / "tiny" / "model"
CLIP_PATH = Path(__file__).parent.parent / "clip"
"""The tokenizer of every Stable Diffusion, for checkpoints, which hold none."""
CLIP_WORDS = 49_408
"""That it knows."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PREDICTION_TYPES = ("auto", "epsilon", "v_prediction")
_FAMILIES = {(768,): "sd1", (1024,): "sd2", (128,): "tiny", (768, 1280): "sdxl"}


def family_of_widths(dims: tuple[int, ...]) -> str:
    """The model family whose text encoders have these widths: sd1, sd2, sdxl, tiny, or sd-WIDTH."""
    return _FAMILIES.get(dims, "sd-" + "+".join(map(str, dims)))


FAMILIES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "tiny": "the embedded tiny model",
}
"""What families are called."""
_OTHER_WIDTHS = {
    2048: "T5 XL, as in AuraFlow and HunyuanDiT",
    2304: "Gemma 2, as in Lumina 2",
    2560: "Qwen3, as in Z-Image",
    3584: "Qwen2.5-VL, as in Qwen-Image",
    4096: "T5 XXL, as in Stable Diffusion 3 and Flux",
    5120: "Mistral, as in Flux.2",
}
"""Text encoders of other models, by their widths."""


def model_of_widths(dims: tuple[int, ...]) -> str:
    """Which models have text encoders of these widths, in words."""
    family = family_of_widths(dims)
    if family in FAMILIES:
        return FAMILIES[family]
    if dims == (1280,):
        return "Stable Diffusion XL, but its clip_g alone, without clip_l"
    other = f" ({_OTHER_WIDTHS[dims[0]]})" if len(dims) == 1 and dims[0] in _OTHER_WIDTHS else ""
    return f"another kind of model, of width {'+'.join(map(str, dims))}{other}"
