"""A small classifier that reads the attributes of a monster picture.

It is trained by ``tools/train_tiny.py`` on the same drawn pictures as the embedded model, never used
in training a token, and scores what a token generates: shape, pattern, eyes, head, place by class
and the body's colour as RGB.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

SIDE = 48


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures as float32 ``[N, 3, 48, 48]`` in [-1, 1]; other sizes are reduced to 48 x 48."""
    arrays = []
    for picture in pictures:
        rgb = picture.convert("RGB")
        if rgb.size != (SIDE, SIDE):
            rgb = rgb.resize((SIDE, SIDE), Image.Resampling.BOX)
        arrays.append(np.asarray(rgb, dtype=np.float32))
    stacked = torch.from_numpy(np.stack(arrays))
    return stacked.permute(0, 3, 1, 2) / 127.5 - 1


class Judge(nn.Module):
    """Class logits per attribute, and the body's colour, of ``[N, 3, 48, 48]`` pictures in [-1, 1]."""

    def __init__(self, classes: dict[str, list[str]]) -> None:
        super().__init__()
        self.classes = classes

        def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU()]

        self.features = nn.Sequential(*block(3, 24, 2), *block(24, 40, 1), *block(40, 48, 2), *block(48, 48, 2))
        self.neck = nn.Sequential(nn.Linear(48 * 2, 64), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(64, len(options)) for name, options in classes.items()})
        self.colour = nn.Linear(64, 3)

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.features(pictures)
        pooled = self.neck(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1))
        out = {name: head(pooled) for name, head in self.heads.items()}
        out["colour"] = self.colour(pooled)
        return out

    @classmethod
    def load(cls, path: Path) -> Judge:
        """The judge saved by the training script, in float32, ready to score."""
        with safe_open(path, framework="pt") as file:
            judge = cls(json.loads(file.metadata()["classes"]))
            judge.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()})  # noqa: SIM118
        return judge.eval().requires_grad_(False)

    @torch.no_grad()
    def read(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        """Class probabilities ``[N, classes]`` per attribute; ``colour`` as RGB ``[N, 3]`` in 0-255."""
        out = self(to_tensor(pictures))
        colour = (out.pop("colour") + 1) * 127.5
        return {**{name: logits.softmax(-1) for name, logits in out.items()}, "colour": colour}
