"""Settings of the search by name: ours, and the paper's.

Each holds what differs from the defaults, which are the paper's for SD1.5. What :func:`preset_for` gives is complete,
so that it can be laid over any other settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ..base.errors import ConfigError
from ..data.masks import MASK
from .setting import CHOICE, Setting
from .settings import ADAPTIVE, NORMAL, SEARCH, SETTINGS

_ALIGNED = ("alignment", "alignment_alpha", "alignment_beta")
_LORA = ("lora_share", "lora_mu", "lora_lr", "lora_weight_decay", "lora_with_token")
_COARSE_MU = 1e-2
"""Supplement S3.2, for int4; and what bfloat16 needs as well."""
_PAPER: dict[str, dict[str, Any]] = {
    "sd15": {},
    # Supplement S3.4.
    "sd21": {"mu": 1e-2, "lr": 1e-2},
    "sdxl": {"mu": 1e-2, "t_lower": 700, "steps": 20_000},
    "int4": {"weights": "int4", "dtype": "bfloat16", "mu": _COARSE_MU},
    # For the embedded model: 128 numbers in place of 768, and five times as large.
    "tiny": {"steps": 4500, "tau": 21, "lr": 2e-2},
}
_WIDTHS = {"sd15": 768, "sd21": 1024, "sdxl": 2048, "tiny": 128}
"""How many numbers a token has."""
RECIPE: dict[str, Any] = {
    "steps": 6000,
    "estimator": "leave-one-out",
    "n": 5,
    "mu": 1.3,
    "mu_end": 0.1,
    "directions": ADAPTIVE,
    "radius": 6.0,
    "adapt_mu": True,
    "subspace_gradient": False,
    "optimizer": "normalized-sgd",
    "lr": 1.0,
    "averaging": 0.1,
    "checks": 20,
}
"""Ours, of a third of the paper's forward passes. ``benchmarks/fidelity.py --ablation`` takes its parts away."""
_STEPS = {"sd1": RECIPE["steps"], "sd2": RECIPE["steps"], "sdxl": 4000, "tiny": 900}
"""By the family. Those that run in ComfyUI alone, and read prompts as well as SDXL or better, take its number."""
TWO_STAGE: dict[str, Any] = {"lora_rank": 4}
"""Beside the recipe: the token, and then weights."""
_NARROW_RANK = 2
"""SDXL's, of 140 matrices: as many numbers as a rank of 4 has of the 32 of others."""
ALIGNED: dict[str, Any] = {"random_crops": 8}
"""Beside the recipe, for one picture and a target prompt."""
BESIDE: dict[str, Any] = {"mask_background": 0.1, "lora_weight_decay": 0.1}
"""Beside all of them, the paper's too: for pictures that have masks, and where weights are learned."""
_SHARES = {"fast": Fraction(1, 3), "careful": Fraction(3), "coarse": Fraction(1, 6), "aligned": Fraction(5, 8)}
"""Of the recipe's steps. Those of ``aligned`` have eight forward passes in place of five."""
PRESETS = ("fast", "default", "careful", "two-stage", "aligned", "coarse", "paper", "paper-released")
"""Presets that fit any model: see :func:`preset_for`."""
PRESET = Setting(
    "preset",
    CHOICE,
    SEARCH,
    "Preset",
    f"Decides every setting that is left to it. default takes {RECIPE['steps']} steps (SDXL, Flux and the like "
    f"{_STEPS['sdxl']}, the embedded model {_STEPS['tiny']}), fast a third of them, careful three times as many; "
    "two-stage learns weights after the token, kept as a LoRA; aligned is for a single picture and a target prompt, in "
    "as many forward passes; coarse takes a sixth of the steps, for a token alone "
    "that says roughly what it is. paper is the paper's own search, paper-released that of its authors' script.",
    "default",
    "--preset",
    choices=PRESETS,
)
"""As the fronts show it; a run keeps the settings that it stands for."""
_KIND_OF_FAMILY = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl", "tiny": "tiny"}
TRIED = frozenset(_KIND_OF_FAMILY)
"""Families that the paper has settings for, and the embedded model; for all others the presets are a guess."""


def complete(different: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that presets decide: the default where nothing else is said."""
    return {**{each.name: each.default for each in SETTINGS.values() if each.by_preset}, **different}


PAPER_PRESETS = {kind: complete({**BESIDE, **different}) for kind, different in _PAPER.items()}
"""The paper's settings, by the kind of model."""


def preset_for(family: str, weights: str = "int8", dtype: str = "auto", preset: str = "default") -> dict[str, Any]:
    """The settings for a model family, its weights' storage and its activations.

    Of families other than :data:`TRIED` timesteps are shares of noise on Stable Diffusion's scale (see
    :class:`~..model.token_model.View`), so that 500 and 900 mean the same to a flow model.

    Args:
        preset: ``default`` for :data:`RECIPE`, ``fast`` for a third of its steps, ``careful`` for three times as many;
            ``two-stage`` for weights after the token (the two stages of "An Improved Method for Personalizing Diffusion
            Models"), ``coarse`` for its first stage alone; ``aligned`` for one picture and a target prompt (PALP's
            single shot), in as many forward passes as ``default``; ``paper`` for the paper's settings;
            ``paper-released`` for those of the script that its authors released, whose Adam has twice the learning
            rate, and an eps of 1e-3 for gradients divided by sqrt((d + n - 1) / n), d being the token's numbers. (It
            also mirrors pictures at random and squeezes them into squares.)

    Raises:
        ConfigError: an unknown preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset = {preset!r}: choose one of {', '.join(PRESETS)}")
    kind = _KIND_OF_FAMILY.get(family, "sd15")
    paper = PAPER_PRESETS[kind]
    if preset in ("paper", "paper-released"):
        coarse = {"mu": _COARSE_MU} if weights == "int4" or dtype == "bfloat16" else {}
        return {**paper, **coarse, **(_released(paper, _WIDTHS[kind]) if preset == "paper-released" else {})}
    steps: int = _STEPS.get(family, _STEPS["sdxl"])
    taken = int(steps * _SHARES.get(preset, Fraction(1)))
    weights_too = {**TWO_STAGE, **({"lora_rank": _NARROW_RANK} if family == "sdxl" else {})}
    more = {**BESIDE, **{"two-stage": weights_too, "aligned": ALIGNED}.get(preset, {})}
    return complete({**RECIPE, "t_lower": paper["t_lower"], "t_upper": paper["t_upper"], "steps": taken, **more})


def _released(paper: Mapping[str, Any], width: int) -> dict[str, Any]:
    """What the authors' script has for a token of so many numbers, in place of the paper's."""
    n: int = paper["n"]
    return {"lr": 2 * paper["lr"], "eps": 1e-3 * math.sqrt((width + n - 1) / n)}


def untried(family: str) -> list[str]:
    """A line for the user where the presets for a family are a guess; none where they are not."""
    if family in TRIED:
        return []
    return [
        f"the presets for {family} are those for Stable Diffusion, untried on real weights of this kind: look at the "
        "previews, halve lr if they fall apart, double steps if the likeness still improves at the end"
    ]


def said() -> str:
    """The preset ``default`` in a line, for people."""
    words = {True: "on", False: "off"}
    return ", ".join(
        f"{name} {words.get(value, value) if isinstance(value, bool) else value}" for name, value in RECIPE.items()
    )


def check_given(settings: Mapping[str, Any], preset: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse what was given but would do nothing, or something else than it seems to.

    Args:
        settings: what the run would have: the preset with what was given on top.
        preset: the preset.
        given: what was given.

    Raises:
        ConfigError: naming the setting, and what to do.
    """
    if settings.get("transparency") == MASK and settings.get("mask_background") == 1:
        raise ConfigError(
            "transparency = mask, and mask_background = 1 uses no masks: set mask_background to 0.1, or "
            "transparency to background"
        )
    puts, checks = settings["timesteps"] == "puts", settings["checks"] or not settings["patience"]
    parts = (
        (("tau", "nu"), settings["subspace_gradient"], "Subspace Gradient, which is not in use: turn it on"),
        (("t_lower", "t_upper"), puts, "PUTS, which is not in use: set timesteps to puts"),
        (("eps",), settings["optimizer"] == "zoadam", "zoadam, which is not in use: set optimizer to zoadam"),
        (("patience",), checks, "the checks, of which there are none: set checks"),
        (_ALIGNED, settings.get("target_prompt"), "alignment, which has no target prompt: give target_prompt"),
        (_LORA, settings["lora_rank"], "weights, of which none are learned: set lora_rank to 4"),
        (("radius",), settings["directions"] != NORMAL, "directions that are not normal: set directions to adaptive"),
    )
    for names, in_use, whose in parts:
        for name in names:
            if name in given and not in_use:
                raise ConfigError(f"{name} = {given[name]!r} is a setting of {whose}, or leave {name} out")
    kinds = settings["directions"], preset["directions"]
    if kinds[0] != kinds[1] and NORMAL in kinds and not {"mu", "lr"} <= given.keys():
        raise ConfigError(
            f"directions = {settings['directions']}: mu and lr have other units than with {preset['directions']} ones; "
            "give both mu and lr as well, or choose another preset"
        )
    optimizers = settings["optimizer"], preset["optimizer"]
    if optimizers[0] != optimizers[1] and "zosgd" in optimizers and "lr" not in given:
        raise ConfigError(
            f"optimizer = {optimizers[0]}: lr has another unit than with {optimizers[1]}; give lr as well, or choose "
            "another preset"
        )
