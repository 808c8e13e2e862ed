"""The command inspect."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError, ModelError
from ..base.texts import printable
from ..model.checkpoints import SUFFIXES as MODEL_SUFFIXES
from ..model.embedding import SUFFIXES as EMBEDDING_SUFFIXES
from ..model.embedding import describe, load_embedding, load_embeddings
from ..model.embedding_tensors import MAX_BYTES, OtherTensorsError
from ..model.kinds import TINY
from .arguments import command, parts_options, which_option

_FEW = 4
"""Tensors; with more of them, what is neither an embedding nor a model was rather meant to be a model."""


def add(commands: Any) -> None:
    parser = command(
        commands,
        "inspect",
        _inspect,
        "show what is in an embedding file, or what a model is and how much memory training on it takes",
        "inspect rex.safetensors",
    )
    parser.add_argument("file", metavar="FILE", help="an embedding (.safetensors, .pt, .bin), a model, or tiny")
    which_option(parser, "all")
    parts_options(parser)


def _inspect(args: argparse.Namespace) -> int:
    lines = _describe(args.file, args.which, {"clip": args.text_encoders, "vae": args.vae})
    width = max(len(label) for label, _ in lines)
    print(f"{args.file}\n" + "\n".join(f"  {label:<{width}}  {printable(text)}" for label, text in lines))
    return 0


def _describe(file: str, which: str | None, parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a file or folder is, as (label, text) lines. ``parts`` are files of a model's."""
    path = Path(file)
    if file != TINY and not path.exists():
        raise ConfigError(f"{file} does not exist; give an embedding (.safetensors, .pt, .bin), a model, or {TINY}")
    ending = path.suffix.lower()
    sure = file == TINY or path.is_dir() or path.stat().st_size > MAX_BYTES
    if sure or any(parts.values()) or (ending in MODEL_SUFFIXES and ending not in EMBEDDING_SUFFIXES):
        if which:
            raise ConfigError(f"--which {which}: {file} is not an embedding; leave it out")
        return _describe_model(file, parts)
    try:
        found = [load_embedding(path, which)] if which else load_embeddings(path)
    except OtherTensorsError as error:
        try:
            return _describe_model(file, parts)
        except ModelError as other:
            raise (other if error.count > _FEW else error) from None
    return [line for embedding in found for line in describe(embedding)]


def _describe_model(model: str, parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a model is and what training on a GPU takes, candidates in turn, as (label, text) lines."""
    import torch

    from ..model.memory import predict_memory
    from ..model.recognise import open_model

    blueprint = open_model(model, **parts)
    info = blueprint.info
    lines = [
        ("model", info.name),
        ("family", info.family),
        ("predicts", info.prediction_type),
        ("trained on", f"{info.resolution} px"),
        ("token width", "+".join(map(str, info.dims))),
        *(("note", note) for note in blueprint.notes),
    ]
    for weights in ("int8", "int4"):
        use = predict_memory(blueprint, weights, torch.float16, torch.device("cuda"), info.resolution, 1)
        lines.append((f"GPU, {weights}", str(use)))
    return lines
