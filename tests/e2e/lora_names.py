"""Which weights of ComfyUI's models of full size LoRA files' names stand for, in ComfyUI's Python with COMFYUI_DIR set.

``python -m tests.e2e.lora_names IN OUT``: the JSON file IN holds a UNet's shapes by diffusers' names for each family,
OUT the weights and their shapes by the names in LoRA files. No weight takes memory.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.e2e import small_comfyui


def named(shapes: dict[str, list[int]], host: Any) -> dict[str, tuple[str, list[int]]]:
    """What a LoRA for the UNet of these shapes is laid on."""
    detection = importlib.import_module("comfy.model_detection")
    there = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = detection.model_config_from_diffusers_unet(there)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("meta"))
    weights = dict(model.named_parameters())
    found = host.weights_by_lora(SimpleNamespace(model=model))
    return {name: (weight, list(weights[weight].shape)) for name, weight in found.items() if weight in weights}


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    small_comfyui.start()
    importlib.import_module("node_pack").import_pack()
    comfyui = importlib.import_module("zoodip_pack.nodes.host").ComfyUI()
    families = json.loads(source.read_text(encoding="utf-8"))
    made = {family: named(shapes, comfyui) for family, shapes in families.items()}
    target.write_text(json.dumps(made), encoding="utf-8")
