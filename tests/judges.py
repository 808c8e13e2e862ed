"""CLIP and DINOv2 of the libraries' own classes, tiny and random, as folders like those that users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 24,
}


def write_judges(folder: Path) -> Path:
    """A folder with ``clip`` and ``dino``."""
    write_clip(folder / "clip")
    write_dino(folder / "dino")
    return folder


@torch.random.fork_rng(devices=[])  # random weights leave the global generator alone
def write_clip(folder: Path) -> Path:
    """A CLIP with the vocabulary of the real one, which looks at 64 pixels a side."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(1)
    text = {**_SMALL, "vocab_size": 49408, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}  # as the real one's
    config = CLIPConfig(
        text_config=text, vision_config={**_SMALL, "image_size": 64, "patch_size": 16}, projection_dim=24
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@torch.random.fork_rng(devices=[])
def write_dino(folder: Path) -> Path:
    """A DINOv2 that was trained on 70 pixels a side and looks at 56."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(2)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(hidden_size=32, image_size=70, patch_size=14, **layers)).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 56, "width": 56},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder
