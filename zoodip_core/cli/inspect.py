"""The command inspect."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..base.texts import printable
from ..model.embedding import MAX_BYTES, describe, load_embedding
from ..model.kinds import TINY
from .arguments import command


def add(commands: Any) -> None:
    parser = command(
        commands,
        "inspect",
        _inspect,
        "show what is in an embedding file, or what a model is and how much memory training on it takes",
        "inspect rex.safetensors",
    )
    parser.add_argument("file", metavar="FILE", help="an embedding (.safetensors, .pt, .bin), a model, or tiny")


def _inspect(args: argparse.Namespace) -> int:
    path = Path(args.file)
    if args.file == TINY or path.is_dir() or (path.is_file() and path.stat().st_size > MAX_BYTES):
        lines = _describe_model(args.file)
    else:
        lines = describe(load_embedding(path))
    width = max(len(label) for label, _ in lines)
    print(f"{args.file}\n" + "\n".join(f"  {label:<{width}}  {printable(text)}" for label, text in lines))
    return 0


def _describe_model(model: str) -> list[tuple[str, str]]:
    """What a model is and what training on a GPU takes, candidates in turn, as (label, text) lines."""
    import torch

    from ..model.memory import predict_memory
    from ..model.recognise import open_model

    blueprint = open_model(model)
    info = blueprint.info
    lines = [
        ("model", info.name),
        ("family", info.family),
        ("predicts", info.prediction_type),
        ("trained on", f"{info.resolution} px"),
        ("token width", "+".join(map(str, info.dims))),
    ]
    for weights in ("int8", "int4"):
        use = predict_memory(blueprint, weights, torch.float16, torch.device("cuda"), info.resolution, 1)
        lines.append((f"GPU, {weights}", str(use)))
    return lines
