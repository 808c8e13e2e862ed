"""Compute or learn with the embedded model in ComfyUI's own classes, in ComfyUI's Python with COMFYUI_DIR set.

``python -m tests.e2e.run_tiny_in_comfyui compute IN OUT`` writes into the file OUT what is made of the tensors in the
file IN, ``... learn SETTINGS FOLDER`` learns a token with the settings in the file SETTINGS, in the folder's ``run``.
See ``tiny_in_comfyui.py``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.e2e.launch_comfyui import declare_torchvision

ROOT = Path(__file__).resolve().parents[2]
CAPTION = "a {} in the snow"
CLEAN = "a monster in neon style"
"""In which candidates are computed."""


def tiny_in_comfyui() -> Any:
    """The module, once ComfyUI can be imported, on the CPU."""
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path[:0] = [os.environ["COMFYUI_DIR"], str(ROOT / "tools")]
    importlib.import_module("comfy.options").enable_args_parsing()
    return importlib.import_module("tests.e2e.tiny_in_comfyui")


if __name__ == "__main__":
    command, source, target = sys.argv[1:]
    declared = declare_torchvision()  # kept while it is used
    tiny = tiny_in_comfyui()
    if command == "compute":
        made = tiny.compute(CAPTION, CLEAN, load_file(source), Path(target).parent)
        save_file({name: each.contiguous() for name, each in made.items()}, target)
    else:
        tiny.learn(json.loads(Path(source).read_text(encoding="utf-8")), Path(target))
