"""The command caption."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..base.stopping import Stopped, stopped_by
from ..base.texts import how_many
from ..captioning.captioner import Captioner
from ..captioning.files import find_captioner
from ..data.images import find_images, left_out
from ..data.masks import Masks, without_masks
from ..data.prompts import ADJECTIVE, LISTING, STYLE, read_listed
from ..data.slots import Subject
from .arguments import Once, command
from .captions import caption_with_option, check_names, without_captions, write_into
from .screen import session


def add(commands: Any) -> None:
    parser = command(
        commands,
        "caption",
        _caption,
        "write captions of pictures with a model that sees them, for editing and for train --captions",
        "caption --images photos/rex --init dog --caption-with models/blip",
    )
    parser.add_argument(
        "--images", nargs="+", required=True, metavar="PATH", help="folder of pictures, or picture files"
    )
    caption_with_option(parser, required=True)
    parser.add_argument(
        "--init",
        "--class-word",
        dest="word",
        action=Once,
        required=True,
        metavar="WORD",
        help="what the subject is, like dog: {} takes its place in the captions",
    )
    parser.add_argument(
        "--template",
        choices=("object", STYLE, ADJECTIVE),
        default="object",
        help="what the token is: the object itself, a style, or an adjective, which leaves the word behind {} "
        "(default: object)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        action=Once,
        metavar="JSON",
        help=f"file of captions; those that it has stay (default: {LISTING} in the pictures' folder)",
    )
    parser.add_argument("--overwrite", action="store_true", help="write captions for pictures that have some, too")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ... (default: auto)")


def _caption(args: argparse.Namespace) -> int:
    if not args.word.strip():
        raise ConfigError("--init is empty; give what the subject is, like dog")
    sources, masks = without_masks(args.images), Masks()
    paths = list(dict.fromkeys(find_images(sources)))
    theirs = {file for path in paths for file in masks.files_of(path)}
    for line in left_out(args.images, theirs.union(map(Path, sources))):
        print(f"warning: {line}", file=sys.stderr)
    check_names(paths)
    file = args.output or _listing_of(paths)
    there: dict[str, list[str]] = read_listed(file) if file.exists() else {}
    known = any(path.name in there for path in paths)
    wanted = paths if args.overwrite else without_captions(paths, file if known else None)
    if not wanted:
        print("all pictures have captions; --overwrite writes them anew")
        return 0
    word = " ".join(args.word.split())
    subject = Subject(word, keep_word=args.template == ADJECTIVE, style=args.template == STYLE)
    captioner = Captioner(find_captioner(args.caption_with), args.device)
    found: dict[str, str] = {}
    stopped = False
    with session() as (screen, commands), stopped_by(lambda: commands.stopping):
        try:
            write_into(file, there, captioner, wanted, [subject] * len(wanted), screen, found)
        except Stopped:
            stopped = True
    if stopped:
        print(
            f"stopped; {file} has {len(found)} of {how_many(len(wanted), 'caption')}" if found else "stopped",
            file=sys.stderr,
        )
        return 1
    print(
        f'{how_many(len(found), "caption")} in {file}; correct there what is wrong, then train with --captions "{file}"'
    )
    return 0


def _listing_of(paths: Sequence[Path]) -> Path:
    """The file of captions in the pictures' folder.

    Raises:
        ConfigError: they are in several.
    """
    folders = {path.parent for path in paths}
    if len(folders) > 1:
        raise ConfigError("--output is missing: the pictures are in several folders; give the file for their captions")
    return folders.pop() / LISTING
