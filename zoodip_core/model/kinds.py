"""Kinds of models: families by their text encoders, what they predict, types of numbers, and where ours lie."""

from __future__ import annotations

from pathlib import Path

import torch

TINY = "tiny"
"""The name of the embedded tiny model wherever a model's path is asked for."""
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
