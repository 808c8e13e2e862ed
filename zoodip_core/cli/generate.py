"""The command generate."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..base.names import plain
from ..data.sheets import save_png
from ..model.calls import calls_in
from ..model.embedding import Embedding, load_embedding, load_embeddings
from ..model.generation import generate, with_lora
from .arguments import (
    command,
    drawing_options,
    load,
    loading_options,
    lora_in,
    lora_options,
    model_option,
    until_option,
    which_option,
)


def add(commands: Any) -> None:
    parser = command(
        commands,
        "generate",
        _generate,
        "make images, with or without a learned token",
        'generate --model models/sd15 --embedding runs/rex/rex.safetensors --prompt "a <rex> on the beach"',
    )
    model_option(parser)
    parser.add_argument("--prompt", required=True, action="append", help="what to draw; may be given several times")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what to stay away from")
    parser.add_argument(
        "--embedding",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a learned token, used by its name, or its file's, in the prompts; may be given several times",
    )
    which_option(parser, "all may be used")
    lora_options(parser)
    until_option(parser)
    drawing_options(parser, 1, seed="of the first image", count="images a prompt")
    loading_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("generated"),
        metavar="DIR",
        help="folder for the images (default: generated)",
    )


def _free(path: Path) -> Path:
    """The path, or the first one with a number behind its name that is free: no picture takes another's place."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(each for each in numbered if not each.exists())


def _check_used(file: Path, tokens: Sequence[Embedding], used: Sequence[Embedding]) -> None:
    """Refuse an embedding that would do nothing.

    Raises:
        ConfigError: no prompt calls a token of the file.
    """
    if any(each is other for each in tokens for other in used):
        return
    names = ", ".join(each.token[:80] for each in tokens[:10]) + (" ..." if len(tokens) > 10 else "")
    which = f"the token {names}" if len(tokens) == 1 else f"a token of {file} ({names})"
    raise ConfigError(f"no prompt holds {which}; write it where the subject should stand")


def _generate(args: argparse.Namespace) -> int:
    if not 1 <= args.count <= 256:
        raise ConfigError(f"--count {args.count}: must be from 1 to 256")
    if args.which and len(args.embedding) != 1:
        raise ConfigError(f"--which {args.which}: give one --embedding with it; of several all tokens may be used")
    held = [[load_embedding(file, args.which)] if args.which else load_embeddings(file) for file in args.embedding]
    embeddings = [embedding for each in held for embedding in each]
    used = [each for call in calls_in((*args.prompt, args.negative_prompt), embeddings) for each in call.embeddings]
    for file, tokens in zip(args.embedding, held, strict=True):
        _check_used(file, tokens, used)
    lora = lora_in(args)
    model = load(args)
    for line in lora.notes_on(model) if lora else ():
        print(line, file=sys.stderr)
    prompts = [prompt for prompt in args.prompt for _ in range(args.count)]
    seeds = [args.seed + i for _ in args.prompt for i in range(args.count)]
    with with_lora(model, lora):
        images = generate(
            model,
            prompts,
            seeds,
            embedding=embeddings,
            negative_prompt=args.negative_prompt,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            until=args.until,
        )
    # A token's name comes from inside a file, perhaps a stranger's: never a path.
    stem = plain("-".join(dict.fromkeys(plain(each.token, 120) for each in used)), 120) or "image"
    for i, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        path = _free(args.output / f"{stem}-{i // args.count + 1}-seed{seed}.png")
        save_png(image, path)
        print(path)
    return 0
