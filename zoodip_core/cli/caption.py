"""The command caption, and train --caption-with: captions of pictures by a model of the user's."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import CaptionError, ConfigError
from ..base.events import Event, Message
from ..base.stopping import Stopped, stopped_by
from ..captioning.captioner import Captioner
from ..captioning.captions import save_listing, write_captions
from ..captioning.files import BLIP_ID, find_captioner
from ..data.images import find_images, left_out
from ..data.naming import owner_of
from ..data.prompts import ADJECTIVE, STYLE, read_listed, written_for
from ..data.slots import Subject
from ..model.recognise import identify
from ..train.config import TrainConfig
from ..train.prepared import captions_in, load_references
from ..train.run_folder import CAPTIONS, check_free
from .arguments import Once, command
from .screen import session


def caption_with_option(parser: Any, *, required: bool, more: str = "") -> None:
    """Which model writes captions."""
    help = (
        f"model that writes captions (BLIP, BLIP-2, Florence-2, Qwen-VL): its folder, or its name in Hugging Face's "
        f"cache, such as {BLIP_ID}{more}"
    )
    parser.add_argument("--caption-with", action=Once, required=required, metavar="PATH", help=help)


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
        help=f"file of captions; those that it has stay (default: {CAPTIONS} in the pictures' folder)",
    )
    parser.add_argument("--overwrite", action="store_true", help="write captions for pictures that have some, too")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ... (default: auto)")


def _caption(args: argparse.Namespace) -> int:
    if not args.word.strip():
        raise ConfigError("--init is empty; give what the subject is, like dog")
    paths = list(dict.fromkeys(find_images(args.images)))
    for line in left_out(args.images):
        print(f"warning: {line}", file=sys.stderr)
    _check_names(paths)
    file = args.output or _listing_of(paths)
    there: dict[str, list[str]] = read_listed(file) if file.exists() else {}
    wanted = (
        paths if args.overwrite else _without_captions(paths, file if set(there) & {p.name for p in paths} else None)
    )
    if not wanted:
        print(f"all {len(paths)} pictures have captions; --overwrite writes them anew")
        return 0
    word = " ".join(args.word.split())
    subject = Subject(word, keep_word=args.template == ADJECTIVE, style=args.template == STYLE)
    captioner = Captioner(find_captioner(args.caption_with), args.device)
    found: dict[str, str] = {}
    stopped = False
    with session() as (screen, commands), stopped_by(lambda: commands.stopping):
        try:
            _write(captioner, wanted, [subject] * len(wanted), found, screen)
        except Stopped:
            stopped = True
        finally:  # whatever ended it, what was written is kept
            if found:
                save_listing(file, {**there, **found})
    if stopped:
        print(f"stopped; {len(found)} of {len(wanted)} captions are in {file}" if found else "stopped", file=sys.stderr)
        return 1
    print(f'{len(found)} captions in {file}; correct them there, then train with --captions "{file}"')
    return 0


def _write(
    captioner: Captioner,
    paths: Sequence[Path],
    subjects: Sequence[Subject],
    found: dict[str, str],
    tell: Callable[[Event], None],
    vectors: int = 1,
) -> None:
    """Write captions into ``found``, by the pictures' names, and tell each of them; the model leaves memory."""

    def on_caption(number: int, caption: str) -> None:
        name = paths[number].name
        if caption:
            found[name] = caption
            tell(Message(f"{name}: {caption}"))
        else:
            tell(Message(f"{name}: the model says nothing of it; write its caption yourself", warning=True))

    tell(Message(f"writing captions of {len(paths)} pictures with {captioner.files.name}, on {captioner.device.type}"))
    try:
        write_captions(captioner, paths, subjects, on_caption, vectors=vectors)
    finally:
        captioner.unload()


def _without_captions(paths: Sequence[Path], captions_file: Path | None, tokens: Sequence[str] = ()) -> list[Path]:
    """The pictures for which nothing is written."""
    written = written_for(paths, captions_file, tokens)
    return [path for path, (where, _) in zip(paths, written, strict=True) if not where]


def _check_names(paths: Sequence[Path]) -> None:
    """Refuse pictures that one file of captions cannot tell apart.

    Raises:
        CaptionError: two have the same name.
    """
    twice = [name for name, count in Counter(path.name for path in paths).items() if count > 1]
    if twice:
        raise CaptionError(
            f"{twice[0]}: pictures of several folders have this name, which a file of captions goes by; give them "
            "other names, or write captions for one folder at a time"
        )


def _listing_of(paths: Sequence[Path]) -> Path:
    """The file of captions in the pictures' folder.

    Raises:
        ConfigError: they are in several.
    """
    folders = {path.parent for path in paths}
    if len(folders) > 1:
        raise ConfigError("--output is missing: the pictures are in several folders; give the file for their captions")
    return folders.pop() / CAPTIONS


# ---------------------------------------------------------------- before a training


def with_captions(config: TrainConfig, where: str, run: Path, tell: Callable[[Event], None]) -> TrainConfig:
    """The settings of a new run with captions for its pictures that have none, which are kept in its folder.

    All that can be checked without a model is, before anything is written. Where all pictures have captions, the model
    that would write them is not needed.

    Args:
        config: the settings.
        where: the model, see :func:`.files.find_captioner`.
        run: the run's folder, to be made.
        tell: told each caption.

    Raises:
        ZoodipError: of the kind that tells what is wrong.
        Stopped: a stop was asked for; what was written by then is kept.
    """
    check_free(run)
    file = run.absolute() / CAPTIONS
    kept = read_listed(file) if file.is_file() else {}  # of a run that did not begin
    config = dataclasses.replace(config, captions=str(file)) if kept and not config.captions else config
    info = identify(config.model, config.prediction_type, clip=config.clip, vae=config.vae)
    images, _ = load_references(dataclasses.replace(config, flip=False, random_crops=0), info)
    captions_in(config, images)  # those that are there are sound, and whose each of the others is, is known
    paths = list(dict.fromkeys(image.path for image in images))
    listing = Path(config.captions) if config.captions else None
    wanted = _without_captions(paths, listing, config.tokens)
    if not wanted:
        tell(Message("all pictures have captions: no model has to write any"))
        return config
    _check_names(paths)
    owners = [owner_of(path, config.images, len(config.tokens)) or 0 for path in wanted]
    captioner = Captioner(find_captioner(where), config.device)
    kept |= read_listed(listing) if listing else {}
    found: dict[str, str] = {}
    try:
        _write(captioner, wanted, [config.subject(owner) for owner in owners], found, tell, config.num_vectors)
    finally:
        if found:
            save_listing(file, {**kept, **found})
            tell(Message(f"captions are kept in {file}, which --captions takes"))
    return dataclasses.replace(config, captions=str(file))
