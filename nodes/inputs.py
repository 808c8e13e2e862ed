"""Inputs of nodes, made from the core's table of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..zoodip_core.train.setting import Setting

_LARGEST = 2**53 - 1
"""The page rounds whole numbers beyond."""


def input_of(setting: Setting, *, default: Any = None, advanced: bool = True) -> tuple[Any, dict[str, Any]]:
    """A setting as an input: its kind or choices, and what the page shows of it.

    Args:
        setting: of the table, or made like one.
        default: in place of the setting's own; with one it is not left to the preset.
        advanced: whether the page keeps it out of sight until it is asked for.
    """
    from ..zoodip_core.train.setting import CHOICE, NUMBER, SWITCH, TEXT, WHOLE

    left = setting.by_preset and default is None
    about = {
        "default": (setting.shown if left else setting.default) if default is None else default,
        "tooltip": setting.explained if left else setting.help,
    }
    if advanced:
        about["advanced"] = True
    choices = setting.offered if left else setting.choices
    if choices:
        return list(choices), about
    if setting.kind in (WHOLE, NUMBER):
        return _number(setting, about, left)
    if setting.kind == TEXT:
        about["default"] = about["default"] or ""
    return {CHOICE: "COMBO", SWITCH: "BOOLEAN", TEXT: "STRING"}[setting.kind], about


def _number(setting: Setting, about: dict[str, Any], left: bool) -> tuple[Any, dict[str, Any]]:
    from ..zoodip_core.train.setting import WHOLE

    assert setting.range, setting.name
    low, high = setting.range
    low = min(low, setting.left) if left else low
    if setting.kind == WHOLE:
        about |= {"default": int(about["default"]), "min": int(low), "max": int(min(high, _LARGEST))}
        if setting.multiple > 1:
            about["step"] = setting.multiple
        if setting.name == "seed":  # ComfyUI would draw another after each run, and so train again
            about["control_after_generate"] = False
        return "INT", about
    low, high = low + (1e-6 if setting.above and not left else 0), high - (1e-3 if setting.below else 0)
    limits = {"default": float(about["default"]), "min": float(low), "max": float(high)}
    return "FLOAT", {**about, **limits, "step": 1e-4, "round": 1e-7}


def one(value: Any) -> Any:
    """A single input's value, which arrives in a list, or in a tuple when a linked one is validated."""
    return value[0] if isinstance(value, list | tuple) and value else value


def inputs_of(
    *parts: str,
    without: tuple[str, ...] = (),
    in_sight: tuple[str, ...] = (),
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The inputs for the settings of some parts, by the inputs' names.

    Args:
        parts: of the table.
        without: settings that the node has from elsewhere.
        in_sight: settings that most people set.
        defaults: in place of the settings' own.
    """
    from ..zoodip_core.train.settings import of_part

    found = {}
    for each in of_part(*parts, without=without):
        default = (defaults or {}).get(each.name)
        found[each.node_input] = input_of(each, default=default, advanced=each.name not in in_sight)
    return found


def settings_in(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs by their settings' names."""
    from ..zoodip_core.train.settings import SETTINGS

    names = {each.node_input: each.name for each in SETTINGS.values()}
    return {names.get(name, name): value for name, value in inputs.items()}
