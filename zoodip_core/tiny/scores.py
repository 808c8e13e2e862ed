"""How well pictures match a bundled concept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .concepts import Concept
from .judge import Judge, to_tensor

JUDGE = Path(__file__).parent / "judge.safetensors"


def score(concept: Concept, pictures: Sequence[Image.Image]) -> dict[str, float]:
    """Figures a table can show, by name.

    ``colour error`` is the distance of the body's colour in RGB (0-441, lower is better);
    ``shape``, ``texture`` (its pattern), ``eyes`` and ``head`` are the judge's mean probability of the true class
    (0-1, higher is better); a style has ``tone error``, the mean distance of its pixels from the
    style's line of tones in RGB.
    """
    if concept.tone:
        return {"tone error": tone_error(concept.tone, pictures)}
    judge = Judge.load(JUDGE)
    read = judge.read(list(pictures))
    truth = concept.attributes
    colour = (read["colour"] - torch.tensor(truth["colour"], dtype=torch.float32)).norm(dim=1).mean()
    scores = {"colour error": float(colour)}
    for name, label in (("shape", "shape"), ("pattern", "texture"), ("eyes", "eyes"), ("head", "head")):
        scores[label] = float(read[name][:, judge.classes[name].index(truth[name])].mean())
    return scores


def tone_error(tone: Sequence[Sequence[int]], pictures: Sequence[Image.Image]) -> float:
    """Mean distance of all pixels from the segment between the two tones, in RGB (0-441)."""
    dark, light = (np.asarray(colour, dtype=np.float64) for colour in tone)
    pixels = (to_tensor(list(pictures)).permute(0, 2, 3, 1).reshape(-1, 3).double().numpy() + 1) * 127.5
    along = np.clip((pixels - dark) @ (light - dark) / ((light - dark) @ (light - dark)), 0, 1)
    nearest = dark + along[:, None] * (light - dark)
    return float(np.linalg.norm(pixels - nearest, axis=1).mean())
