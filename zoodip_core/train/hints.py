"""What a run's settings and pictures will not come to, in lines for the user before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.naming import naming
from ..data.photographs import is_photograph
from ..model.blueprint import ModelInfo
from .config import TrainConfig

EMBEDDED_SIDE = 48
"""Pixels a side of what the embedded model draws."""
_CHOOSE = (
    "Choose a Stable Diffusion, a checkpoint file or a diffusers folder: --model at the command line, Model on the "
    "page, Load Quantized SD in ComfyUI"
)
_LOOKED_AT = 20
"""Pictures, at most: a person at the command line may give a thousand."""


def hints(config: TrainConfig, info: ModelInfo, paths: Sequence[Path]) -> list[str]:
    """All of them.

    Args:
        info: of the model.
        paths: of the pictures, each as often as it is used.
    """
    return (photographs(paths) if info.family == "tiny" else []) + _without_token(config)


def photographs(paths: Sequence[Path]) -> list[str]:
    """A line for the user who would train the embedded model on photographs; none where most are no photographs."""
    why = too_much_for_the_embedded_model(paths)
    return [f"model: {why}. {_CHOOSE}"] if why else []


def too_much_for_the_embedded_model(paths: Sequence[Path]) -> str:
    """Why it cannot learn these pictures; empty where most are no photographs."""
    some = list(dict.fromkeys(paths))[:_LOOKED_AT]
    found = [path.name for path in some if is_photograph(path, EMBEDDED_SIDE)]
    if 2 * len(found) < max(1, len(some)):
        return ""
    names = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    return (
        f"the embedded model draws nothing but little monsters of {EMBEDDED_SIDE} pixels, and these pictures look like "
        f"photographs ({names}): it cannot learn them"
    )


def _without_token(config: TrainConfig) -> list[str]:
    """A line on listed sample prompts that name no token, which never change while a token is learned."""
    if not config.lists_samples:
        return []
    texts = [text for text in config.sample_prompts if not naming(text, config.tokens, own=0).tokens]
    return [f"sample_prompt: {text!r} has no place for the token, and shows the model alone" for text in texts]
