"""The page of settings in the webui, and what is read from it."""

from __future__ import annotations

import inspect
from typing import Any

from zoodip_core.jobs.environment import SETTING
from zoodip_core.model.quantize import WEIGHTS
from zoodip_core.train.presets import PRESET

_SECTION = ("zoodip", "ZOODiP")


def add() -> None:
    """Add the settings to the webui's."""
    import gradio as gr
    from modules import shared

    def option(name: str, default: Any, label: str, *widget: Any, **more: Any) -> None:
        shared.opts.add_option(f"zoodip_{name}", shared.OptionInfo(default, label, *widget, section=_SECTION, **more))

    # Paths, one of them of a program: not for scripts, and out of sight where the webui hides such.
    path: dict[str, Any] = {"component_args": getattr(shared, "hide_dirs", None)}
    if "restrict_api" in inspect.signature(shared.OptionInfo).parameters:
        path["restrict_api"] = True
    option("folder", "zoodip", "Folder of the runs; where it is not a full path, in the webui's data folder", **path)
    option("preset", PRESET.default, PRESET.label, gr.Radio, {"choices": list(PRESET.choices)})
    option("weights", "int8", "Weights", gr.Radio, {"choices": list(WEIGHTS)})
    option(
        "keep_copy", True, "Keep quantised copies of models, 1 to 4 GB each, so that the next training starts sooner"
    )
    option("python", "", f"{SETTING}; empty: the webui's own if it fits, else the trainer's", **path)


def value(name: str, default: Any) -> Any:
    """A setting's value; the default where the webui has not made it yet."""
    from modules import shared

    return getattr(shared.opts, f"zoodip_{name}", default)
