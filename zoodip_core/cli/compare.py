"""The command compare."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..data.sheets import MOST_COLUMNS
from ..model.embedding import load_embeddings
from ..model.lora import load_lora
from ..train.comparison import Compared, Comparison, until_each, write_comparison
from ..train.run_folder import lora_beside
from .arguments import command, drawing_options, load, loading_options, model_option


def add(commands: Any) -> None:
    parser = command(
        commands,
        "compare",
        _compare,
        "draw several tokens side by side, with the same prompt and seeds",
        "compare runs/rex/rex.safetensors runs/rex-2/rex.safetensors --model models/sd15 --output rex.png",
    )
    parser.add_argument("embeddings", type=Path, nargs="+", metavar="FILE", help="learned tokens, a row for each")
    model_option(parser)
    parser.add_argument(
        "--prompt",
        default="",
        metavar="TEXT",
        help="what to draw, with {} for each row's token (default: the target prompt that the tokens were trained for, "
        "else a photo of a {})",
    )
    parser.add_argument(
        "--word", default="", metavar="WORD", help="a first row with this word, like dog (default: none)"
    )
    parser.add_argument(
        "--with-loras",
        action="store_true",
        help="draw each token with the weights that were learned with it, NAME-lora.safetensors beside its file",
    )
    parser.add_argument(
        "--until",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="SHARE",
        help="share of the steps in which tokens stand in the prompt, as in generate; several: a row for each "
        "(default: 1)",
    )
    drawing_options(parser, 4, seed="of the first column", count="images of each token")
    loading_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("comparison.png"),
        metavar="FILE",
        help="the picture, which is replaced if it is there (default: comparison.png)",
    )


def _compare(args: argparse.Namespace) -> int:
    if not 1 <= args.count <= MOST_COLUMNS:
        raise ConfigError(f"--count {args.count}: must be from 1 to {MOST_COLUMNS}")
    if args.output.suffix.lower() != ".png":
        raise ConfigError(f"--output {args.output}: the sheet is a PNG; choose a name that ends in .png")
    loras = [lora_beside(file) if args.with_loras else None for file in args.embeddings]
    if args.with_loras and not any(file and file.is_file() for file in loras):
        raise ConfigError(f"--with-loras: there is no {loras[0]}, nor one beside another of the files; leave it out")
    compared = [
        Compared(embedding, name, load_lora(lora) if lora and lora.is_file() else None)
        for file, name, lora in zip(args.embeddings, _names(args.embeddings), loras, strict=True)
        for embedding in load_embeddings(file)
    ]
    seeds = range(args.seed, args.seed + args.count)
    comparison = Comparison(until_each(compared, args.until), seeds, args.prompt, args.word, args.steps, args.guidance)
    print(f"prompt: {comparison.text}", file=sys.stderr)
    model = load(args)
    for line in dict.fromkeys(line for each in compared if each.lora for line in each.lora.notes_on(model)):
        print(line, file=sys.stderr)
    write_comparison(model, comparison, args.output)
    print(args.output)
    return 0


def _names(files: Sequence[Path]) -> list[str]:
    """What tells the files apart: their names, with their folders' where those are equal."""
    count = Counter(file.stem for file in files)
    return [file.stem if count[file.stem] == 1 else f"{file.absolute().parent.name}/{file.stem}" for file in files]
