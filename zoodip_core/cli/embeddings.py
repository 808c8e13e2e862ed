"""The commands convert and merge: embeddings in other formats, and of several one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..base.names import check_name, file_stem
from ..base.texts import printable
from ..model.conversion import FORMATS, Conversion, converted, joined, save_together
from ..model.embedding import Embedding, check_fits, describe, load_embedding, serialize
from ..model.kinds import TINY
from ..model.load import load_quantized
from ..model.merging import concatenation, notes_on, of_word, weighted_mean
from .arguments import Once, command, parts_options, which_option


def add_convert(commands: Any) -> None:
    parser = command(
        commands,
        "convert",
        _convert,
        "write an embedding in the format of another program",
        "convert rex.safetensors --to a1111-pt",
    )
    parser.add_argument(
        "file",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="an embedding (.safetensors, .pt, .bin); both files of a token that diffusers keeps in two, as for SDXL",
    )
    about = "".join(f"\n  {name:<21}  {each.about}" for name, each in FORMATS.items())
    parser.epilog = f"formats:{about}\n\n{parser.epilog}"
    parser.add_argument(
        "--to", action=Once, required=True, choices=tuple(FORMATS), metavar="FORMAT", help="one of the formats below"
    )
    which_option(parser, "the only one")
    parser.add_argument("--as", dest="token", action=Once, metavar="NEW", help="another name for the token")
    _output_options(
        parser, "beside FILE, under its name or that of the token if one is given here, with the format's ending"
    )


def add_merge(commands: Any) -> None:
    parser = command(
        commands,
        "merge",
        _merge,
        "make one embedding of several, or of one and a word: a weighted mean, or their vectors one after the other",
        'merge rex.safetensors pip.safetensors --weights 0.7 0.3 --as "<both>"',
        'merge rex.safetensors --word dog --model models/v1-5.safetensors --weights 0.5 0.5 --as "<softer>"',
    )
    parser.add_argument("file", nargs="+", type=Path, metavar="FILE", help="embeddings of one model family")
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--weights",
        nargs="+",
        type=float,
        metavar="W",
        help="of each file in the mean, and of the word last, in any scale (default: equal)",
    )
    way.add_argument("--concatenate", action="store_true", help="put all vectors one after the other, which keeps each")
    parser.add_argument("--as", dest="token", action=Once, required=True, metavar="NEW", help="name of the new token")
    parser.add_argument(
        "--word", action=Once, help="a word of the model's beside the files: half of it leaves a prompt more to itself"
    )
    parser.add_argument("--model", action=Once, metavar="PATH", help=f"whose word it is, or {TINY}")
    parts_options(parser)
    _output_options(parser, "beside the first FILE, named after the token")


def _output_options(parser: argparse.ArgumentParser, otherwise: str) -> None:
    parser.add_argument("--output", type=Path, action=Once, metavar="FILE", help=f"(default: {otherwise})")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def _convert(args: argparse.Namespace) -> int:
    embedding = joined([load_embedding(file, args.which) for file in args.file])
    if args.token is not None:
        check_name(args.token)
        embedding = replace(embedding, token=args.token)
    ending = FORMATS[args.to].ending
    output = args.output or _beside(args, embedding, ending)
    _check_ending(output, ending, args.to)
    made = converted(embedding, args.to, output.stem)
    _save({output.with_name(name): content for name, content in made.files.items()}, args.overwrite)
    _show(embedding, made)
    return 0


def _beside(args: argparse.Namespace, embedding: Embedding, ending: str) -> Path:
    """Where a converted file goes: beside the one it is made from, whose name it has unless a token was named.

    Raises:
        TokenError: the token cannot name a file.
    """
    stem = args.file[0].stem
    if args.which or args.token is not None:
        check_name(embedding.token)
        stem = file_stem(embedding.token)
    path: Path = args.file[0].with_name(f"{stem}{ending}")
    return path.with_stem(f"{stem}-{args.to}") if path in args.file else path


def _merge(args: argparse.Namespace) -> int:
    check_name(args.token)
    embeddings = [load_embedding(file) for file in args.file]
    if args.word is not None:
        embeddings.append(_word_of(args, embeddings[0]))
    elif args.model is not None:
        raise ConfigError("--model names whose --word is merged, and there is none; add --word, or leave --model out")
    if args.concatenate:
        made = concatenation(embeddings, args.token)
    else:
        made = weighted_mean(embeddings, args.token, args.weights or ())
    output = args.output or args.file[0].with_name(f"{file_stem(args.token)}.safetensors")
    _check_ending(output, ".safetensors", "merge")
    _save({output: serialize(made)}, args.overwrite)
    for note in notes_on(embeddings):
        print(f"  note: {printable(note)}")
    _show(made)
    return 0


def _word_of(args: argparse.Namespace, like: Embedding) -> Embedding:
    """The word, in as many vectors as another embedding has.

    Raises:
        ConfigError: no model is named.
        EmbeddingFileError: the model is of another family.
        TokenError: the model does not know the word.
    """
    if args.model is None:
        raise ConfigError("--word needs --model PATH, the model whose word it is")
    model = load_quantized(args.model, device="cpu", keep=False, clip=args.text_encoders, vae=args.vae)
    check_fits(like, model.info.dims, f"--model {args.model}")
    return of_word(model, args.word, like.num_vectors)


def _check_ending(output: Path, ending: str, what: str) -> None:
    if output.suffix != ending:
        raise ConfigError(f"--output {output}: {what} writes a {ending} file; choose that ending")


def _save(files: Mapping[Path, bytes], overwrite: bool) -> None:
    """Write files, and say which.

    Raises:
        ConfigError: one is there already, and may not be replaced.
        StorageError: one cannot be written.
    """
    there = [path for path in files if path.exists()]
    if there and not overwrite:
        raise ConfigError(f"{there[0]} is there already; choose another --output FILE, or replace it with --overwrite")
    save_together(files)
    for path in files:
        print(path)


def _show(embedding: Embedding, made: Conversion | None = None) -> None:
    """What was written, and what of it was left out."""
    shown = ("token", "for", "vectors", "made of", "note")
    for label, text in describe(embedding):
        if label in shown:
            print(f"  {label}: {printable(text)}")
    if made and made.lost:
        print(f"  not kept, for the format has no place for it: {printable(', '.join(made.lost))}")
