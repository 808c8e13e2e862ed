"""The command inspect."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..base.errors import ConfigError, ModelError
from ..base.texts import printable
from ..model.checkpoints import SUFFIXES as MODEL_SUFFIXES
from ..model.embedding import SUFFIXES as EMBEDDING_SUFFIXES
from ..model.embedding import Embedding, check_fits, describe, load_embedding, load_embeddings
from ..model.embedding_tensors import MAX_BYTES, OtherTensorsError
from ..model.kinds import TINY
from ..model.load import load_quantized
from ..model.memory import predict_memory
from ..model.nearest import FAR, places_of
from ..model.recognise import open_model
from .arguments import Once, command, parts_options, which_option

_DISTANCE = "from the words' mean; that of words is 1"
_TOO_FAR = "so far out a token may show less of what it has learned; training with a radius keeps it nearer"
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
    parser.add_argument(
        "--model",
        action=Once,
        metavar="PATH",
        help="of an embedding: the model it is for, to say how far from that model's words it lies and which are near",
    )
    parts_options(parser)


def _inspect(args: argparse.Namespace) -> int:
    lines = _describe(args.file, args.which, args.model, {"clip": args.text_encoders, "vae": args.vae})
    width = max(len(label) for label, _ in lines)
    print(f"{args.file}\n" + "\n".join(f"  {label:<{width}}  {printable(text)}" for label, text in lines))
    return 0


def _describe(file: str, which: str | None, words_of: str | None, parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a file or folder is, as (label, text) lines. ``parts`` are files of a model's."""
    path = Path(file)
    if file != TINY and not path.exists():
        raise ConfigError(f"{file} does not exist; give an embedding (.safetensors, .pt, .bin), a model, or {TINY}")
    ending = path.suffix.lower()
    sure = file == TINY or path.is_dir() or path.stat().st_size > MAX_BYTES
    sure = sure or (ending in MODEL_SUFFIXES and ending not in EMBEDDING_SUFFIXES)
    if sure or (any(parts.values()) and not words_of):
        for option, value in (("--which", which), ("--model", words_of)):
            if value:
                raise ConfigError(f"{option} {value}: {file} is not an embedding; leave it out")
        return _describe_model(file, parts)
    try:
        found = [load_embedding(path, which)] if which else load_embeddings(path)
    except OtherTensorsError as error:
        if words_of:
            raise
        try:
            return _describe_model(file, parts)
        except ModelError as other:
            raise (other if error.count > _FEW else error) from None
    among = _among_words(found, words_of, parts) if words_of else [[] for _ in found]
    return [line for embedding, lines in zip(found, among, strict=True) for line in (*describe(embedding), *lines)]


def _among_words(found: Sequence[Embedding], path: str, parts: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    """Where each embedding's vectors lie among a model's words, as (label, text) lines."""
    model = load_quantized(path, device="cpu", keep=False, clip=parts["clip"], vae=parts["vae"])
    lines = []
    for embedding in found:
        check_fits(embedding, model.info.dims, f"--model {path}")
        own = [place for places in places_of(embedding, model.vocabularies()) for place in places]
        far = any(place.distance > FAR for place in own)
        lines.append(
            [
                ("distance", ", ".join(f"{place.distance:.1f}" for place in own) + f" ({_DISTANCE})"),
                *([("note", _TOO_FAR)] if far else []),
                *(
                    ("nearest words", ", ".join(f"{near.word} {near.cosine:.2f}" for near in place.words))
                    for place in own
                ),
            ]
        )
    return lines


def _describe_model(model: str, parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a model is and what training on a GPU takes, candidates in turn, as (label, text) lines."""

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
