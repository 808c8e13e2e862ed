"""The command nearest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..base.texts import printable
from ..model.embedding import check_fits, load_embedding
from ..model.kinds import TINY
from ..model.load import load_quantized
from ..model.nearest import places_of, told
from .arguments import Once, command, parts_options, which_option

MOST = 1000


def add(commands: Any) -> None:
    parser = command(
        commands,
        "nearest",
        _nearest,
        "show which words of a model each vector of an embedding is near, and how long it is",
        "nearest rex.safetensors --model models/v1-5.safetensors",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="an embedding (.safetensors, .pt, .bin)")
    parser.add_argument("--model", action=Once, required=True, metavar="PATH", help=f"that it is for, or {TINY}")
    parser.add_argument("--words", type=int, default=10, metavar="N", help="words a vector (default: 10)")
    which_option(parser, "the only one")
    parts_options(parser)


def _nearest(args: argparse.Namespace) -> int:
    if not 1 <= args.words <= MOST:
        raise ConfigError(f"--words {args.words}: must be from 1 to {MOST}")
    embedding = load_embedding(args.file, args.which)
    model = load_quantized(args.model, device="cpu", keep=False, clip=args.text_encoders, vae=args.vae)
    check_fits(embedding, model.info.dims, f"--model {args.model}")
    vocabularies = model.vocabularies()
    print(f"{args.file}: {printable(embedding.token)} among the words of {model.info.name}")
    for line in told(places_of(embedding, vocabularies, args.words), vocabularies):
        print(f"  {printable(line)}")
    return 0
