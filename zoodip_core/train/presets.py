"""Settings of the search by name: ours, and the paper's. Each is complete, so that it can be laid over any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..base.errors import ConfigError
from ..model.blueprint import TINY
from ..model.recognise import identify

PAPER: dict[str, Any] = {
    "steps": 30_000,
    "estimator": "rge",
    "n": 2,
    "mu": 1e-3,
    "mu_end": 1.0,
    "directions": "normal",
    "adapt_mu": False,
    "subspace_gradient": True,
    "tau": 128,
    "nu": 1e-3,
    "timesteps": "puts",
    "t_lower": 500,
    "t_upper": 900,
    "optimizer": "zoadam",
    "lr": 5e-3,
    "lr_schedule": "constant",
    "averaging": 0.0,
    "checks": 0,
    "patience": 0,
}
"""The paper's for SD1.5, section 4."""
_COARSE_MU = 1e-2
"""Supplement S3.2, for int4; and what bfloat16 needs as well."""
PRESETS: dict[str, dict[str, Any]] = {
    "sd15": PAPER,
    # Supplement S3.4.
    "sd21": {**PAPER, "mu": 1e-2, "lr": 1e-2},
    "sdxl": {**PAPER, "mu": 1e-2, "t_lower": 700, "steps": 20_000},
    "int4": {**PAPER, "weights": "int4", "dtype": "bfloat16", "mu": _COARSE_MU},
    # For the embedded model: 128 numbers in place of 768, and five times as large.
    "tiny": {**PAPER, "steps": 4500, "tau": 21, "lr": 2e-2},
}
"""The paper's settings, by the kind of model."""
RECIPE: dict[str, Any] = {
    **PAPER,
    "steps": 6000,
    "n": 4,
    "mu": 2.6,
    "mu_end": 0.1,
    "directions": "vocabulary",
    "adapt_mu": True,
    "subspace_gradient": False,
    "optimizer": "normalized-sgd",
    "lr": 1.0,
    "averaging": 0.1,
    "checks": 20,
    "patience": 6,
}
"""Ours, of a third of the paper's forward passes. ``benchmarks/fidelity.py --ablation`` takes its parts away."""
_STEPS = {"sdxl": 4000, "tiny": 900}
PACES = ("fast", "default", "careful", "paper")
"""Presets that fit any model: see :func:`preset_for`."""
_KIND_OF_FAMILY = {"sd1": "sd15", "sd2": "sd21", "sdxl": "sdxl", "tiny": "tiny"}


def preset_for(family: str, weights: str = "int8", dtype: str = "auto", pace: str = "default") -> dict[str, Any]:
    """The settings for a model family, its weights' storage and its activations.

    Args:
        pace: ``default`` for :data:`RECIPE`, ``fast`` for a third of its steps, ``careful`` for three times as many;
            ``paper`` for the paper's settings.

    Raises:
        ConfigError: an unknown pace.
    """
    if pace not in PACES:
        raise ConfigError(f"pace = {pace!r}: choose one of {', '.join(PACES)}")
    paper = PRESETS[_KIND_OF_FAMILY.get(family, "sd15")]
    if pace == "paper":
        return {**paper, "mu": _COARSE_MU} if weights == "int4" or dtype == "bfloat16" else dict(paper)
    steps: int = _STEPS.get(family, RECIPE["steps"])
    taken = {"fast": steps // 3, "default": steps, "careful": steps * 3}[pace]
    return {**RECIPE, "t_lower": paper["t_lower"], "t_upper": paper["t_upper"], "steps": taken}


def preset_of(settings: Mapping[str, Any], name: str = "default") -> dict[str, Any]:
    """What a preset's name stands for, with the model that some settings name. Its tensors' names are looked at.

    Args:
        settings: of which model, prediction_type, weights and dtype count, where they are given.
        name: of :data:`PACES` or :data:`PRESETS`.

    Raises:
        ConfigError: an unknown name, or a setting that is no text.
        ModelError: the model is missing, damaged, or of a family that is not supported.
    """
    if name in PRESETS:
        return dict(PRESETS[name])
    known = {"model": TINY, "prediction_type": "auto", "weights": "int8", "dtype": "auto"}
    given = {key: settings.get(key, value) for key, value in known.items()}
    for key, value in given.items():
        if not isinstance(value, str):
            raise ConfigError(f"{key} = {value!r}: expected a text")
    family = identify(given["model"], given["prediction_type"]).family
    return preset_for(family, given["weights"], given["dtype"], name)


def check_given(settings: Mapping[str, Any], preset: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse what was given but would do nothing, or something else than it seems to.

    Args:
        settings: what the run would have: the preset with what was given on top.
        preset: the preset.
        given: what was given.

    Raises:
        ConfigError: naming the setting, and what to do.
    """
    puts, checks = settings["timesteps"] == "puts", settings["checks"] or not settings["patience"]
    parts = (
        (("tau", "nu"), settings["subspace_gradient"], "Subspace Gradient, which is not in use: turn it on"),
        (("t_lower", "t_upper"), puts, "PUTS, which is not in use: set timesteps to puts"),
        (("patience",), checks, "the checks, of which there are none: set checks"),
    )
    for names, in_use, whose in parts:
        for name in names:
            if name in given and not in_use:
                raise ConfigError(f"{name} = {given[name]!r} is a setting of {whose}, or leave {name} out")
    if settings["directions"] != preset["directions"] and not {"mu", "lr"} <= given.keys():
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
