"""Kinds of models: families by their text encoders, what they predict, types of numbers, and where ours lie."""

from __future__ import annotations

from collections.abc import Iterable
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
MOST_STEPS, MOST_GUIDANCE = 999, 100
"""Of denoising, which begins at step 1 of 1000."""
ENCODERS = {
    "clip_l": 768,
    "clip_g": 1280,
    "clip_h": 1024,
    "t5xxl": 4096,
    "llama": 4096,
    "qwen3_4b": 2560,
    "qwen3_8b": 4096,
    "mistral3_24b": 5120,
    "qwen3vl_4b": 2560,
    "qwen3vl_8b": 4096,
    "qwen3_06b": 1024,
    "qwen25_7b": 3584,
    "qwen25_3b": 2048,
    "qwen3_2b": 2048,
    "umt5xxl": 4096,
    "gemma2_2b": 2304,
    "gemma3_4b": 2560,
    "jina_clip_2": 1024,
    "gemma3_12b": 3840,
    "pile_t5xl": 2048,
    "chinese_roberta": 1024,
    "mt5xl": 2048,
    "gpt_oss": 2880,
    "hidream_o1": 4096,
    "qwen3vl_32b": 5120,
    "t5base": 768,
}
"""Text encoders by the names that ComfyUI gives them in embedding files, with the widths of their token embeddings.

Their order is that of an embedding's tensors, and of vectors that stand side by side.
"""
NARROW_ENCODERS = {"t5xxl": 1024, "mistral3_24b": 3072}
"""The widths of smaller text encoders that ComfyUI gives the name of a larger one."""
STABLE_DIFFUSION = {(768,): ("clip_l",), (1024,): ("clip_h",), (768, 1280): ("clip_l", "clip_g"), (128,): ("clip_l",)}
"""The text encoders of Stable Diffusion 1.x, 2.x and XL, and of the embedded model, by their widths, which are told
without names."""


_MODELS: dict[tuple[str, ...], str] = {
    ("clip_g",): "Stable Cascade, or Stable Diffusion XL with its clip_g alone, without clip_l",
    ("clip_l", "clip_g", "t5xxl"): "Stable Diffusion 3 and 3.5",
    ("clip_l", "t5xxl"): "Flux.1",
    ("t5xxl",): "Chroma, PixArt, LTX-Video, Mochi and CogVideoX",
    ("clip_l", "clip_g", "t5xxl", "llama"): "HiDream-I1",
    ("clip_l", "llama"): "HunyuanVideo",
    ("qwen3_4b",): "Z-Image and Flux.2 Klein 4B",
    ("qwen3_8b",): "Flux.2 Klein 9B",
    ("mistral3_24b",): "Flux.2 dev",
    ("qwen3vl_4b",): "Krea 2 and Mage-Flow",
    ("qwen3vl_8b",): "Ideogram 4, Boogu and JoyImage",
    ("qwen3_06b",): "Anima",
    ("qwen25_7b",): "Qwen-Image, HunyuanImage 2.1 and HunyuanVideo 1.5",
    ("clip_l", "qwen25_7b"): "Kandinsky 5",
    ("qwen25_3b",): "OmniGen2",
    ("qwen3_2b",): "Ovis-Image",
    ("umt5xxl",): "Wan",
    ("gemma2_2b",): "Lumina 2 and PixelDiT",
    ("gemma3_4b",): "NetaYume Lumina",
    ("gemma3_4b", "jina_clip_2"): "NewBie",
    ("gemma3_12b",): "LTX-2",
    ("pile_t5xl",): "AuraFlow",
    ("chinese_roberta", "mt5xl"): "HunyuanDiT",
    ("gpt_oss",): "Lens",
    ("hidream_o1",): "HiDream-O1",
    ("qwen3vl_32b",): "MiniMax H3",
    ("t5base",): "Stable Audio",
}
"""Models by the text encoders that read their tokens, whose widths are those of :data:`ENCODERS`."""
_NARROW_MODELS: dict[tuple[str, ...], str] = {("t5xxl",): "Cosmos", ("mistral3_24b",): "Ernie-Image"}


def in_order(encoders: Iterable[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Text encoders as (name, width), each once, in the order of :data:`ENCODERS`; unknown ones follow by name."""
    places = {name: place for place, name in enumerate(ENCODERS)}
    return tuple(sorted(set(encoders), key=lambda each: (places.get(each[0], len(places)), each)))


def names_of(encoders: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """The names of text encoders in their order, as an embedding keeps them: none for Stable Diffusion."""
    ordered = in_order(encoders)
    names = tuple(name for name, _ in ordered)
    return () if STABLE_DIFFUSION.get(tuple(width for _, width in ordered)) == names else names


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
    2048: "T5 XL, as in AuraFlow and HunyuanDiT, or Qwen, as in OmniGen2 and Ovis-Image",
    2304: "Gemma 2, as in Lumina 2",
    2560: "Qwen3, as in Z-Image and Flux.2 Klein 4B, or Krea 2's",
    3584: "Qwen2.5-VL, as in Qwen-Image",
    4096: "T5 XXL, as in Stable Diffusion 3 and Flux, UMT5 XXL, as in Wan, or Qwen3 8B, as in Flux.2 Klein 9B",
    5120: "Mistral, as in Flux.2",
}
"""Text encoders of other models, by their widths, where no name tells."""


def model_of_widths(dims: tuple[int, ...], encoders: tuple[str, ...] = ()) -> str:
    """Which models have text encoders of these widths, in words; by the encoders' names too where they are known."""
    if encoders:
        return _model_of_names(dims, encoders)
    family = family_of_widths(dims)
    if family in FAMILIES:
        return FAMILIES[family]
    if dims == (1280,):
        return "Stable Diffusion XL, but its clip_g alone, without clip_l"
    other = f" ({_OTHER_WIDTHS[dims[0]]})" if len(dims) == 1 and dims[0] in _OTHER_WIDTHS else ""
    return f"another kind of model, of width {'+'.join(map(str, dims))}{other}"


def _model_of_names(dims: tuple[int, ...], encoders: tuple[str, ...]) -> str:
    if dims == tuple(map(ENCODERS.get, encoders)) and encoders in _MODELS:
        return _MODELS[encoders]
    if dims == tuple(map(NARROW_ENCODERS.get, encoders)) and encoders in _NARROW_MODELS:
        return _NARROW_MODELS[encoders]
    return f"another kind of model, with {' and '.join(encoders)} of width {'+'.join(map(str, dims))}"
