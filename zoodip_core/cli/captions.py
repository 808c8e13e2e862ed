"""Captions by a model of the user's, for the command that writes a file of them and for a training that needs some."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base.errors import CaptionError
from ..base.events import Event, Message
from ..base.texts import how_many
from ..captioning.captioner import Captioner
from ..captioning.captions import write_captions
from ..captioning.files import BLIP_ID, find_captioner
from ..data.naming import owner_of
from ..data.prompts import LISTING, listing_left_out, read_listed, write_listed, written_for
from ..data.slots import Subject
from ..model.recognise import identify
from ..train.config import TrainConfig
from ..train.hints import hints
from ..train.inputs import captions_in, load_references
from ..train.run_folder import check_free
from .arguments import Once


def caption_with_option(parser: Any, *, required: bool, more: str = "") -> None:
    """Which model writes captions."""
    help = (
        "model that writes captions (BLIP, BLIP-2, GIT, Florence-2, Qwen-VL): its folder, or its name in Hugging "
        f"Face's cache, such as {BLIP_ID}{more}"
    )
    parser.add_argument("--caption-with", action=Once, required=required, metavar="PATH", help=help)


def write_into(
    file: Path,
    kept: Mapping[str, Sequence[str]],
    captioner: Captioner,
    paths: Sequence[Path],
    subjects: Sequence[Subject],
    tell: Callable[[Event], None],
    found: dict[str, str],
    *,
    vectors: int = 1,
) -> None:
    """Write captions of pictures into a file, beside those that are kept in it; the model leaves memory.

    The file is written after each picture, so that whatever ends the work leaves what was done.

    Args:
        file: JSON.
        kept: captions by the pictures' names.
        captioner: the model.
        paths: the pictures.
        subjects: what each caption is to name.
        tell: told each caption.
        found: gets them, by the pictures' names.
        vectors: places in a text that the token takes.

    Raises:
        ZoodipError: of the kind that tells what is wrong.
        Stopped: a stop was asked for.
    """

    def on_caption(number: int, caption: str) -> None:
        name = paths[number].name
        if caption:
            found[name] = caption
            write_listed(file, {**kept, **found})
            tell(Message(f"{name}: {caption}"))
        else:
            tell(Message(f"{name}: the model says nothing of it; write its caption yourself", warning=True))

    pictures = how_many(len(paths), "picture")
    tell(Message(f"writing captions of {pictures} with {captioner.files.name}, on {captioner.device.type}"))
    try:
        write_captions(captioner, paths, subjects, on_caption, vectors=vectors)
    finally:
        captioner.unload()


def without_captions(paths: Sequence[Path], captions_file: Path | None, tokens: Sequence[str] = ()) -> list[Path]:
    """The pictures for which nothing is written."""
    written = written_for(paths, captions_file, tokens)
    return [path for path, (where, _) in zip(paths, written, strict=True) if not where]


def check_names(paths: Sequence[Path]) -> None:
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
    file = run.absolute() / LISTING
    kept = read_listed(file) if file.is_file() else {}  # of a run that did not begin
    config = dataclasses.replace(config, captions=str(file)) if kept and not config.captions else config
    info = identify(config.model, config.prediction_type, clip=config.clip, vae=config.vae)
    images, _ = load_references(dataclasses.replace(config, flip=False, random_crops=0), info)
    for line in hints(config, info, [image.path for image in images]):  # who reads them may stop before the long part
        tell(Message(line, warning=True))
    captions_in(config, images)  # those that are there are sound, and whose each of the others is, is known
    paths = list(dict.fromkeys(image.path for image in images))
    listing = Path(config.captions) if config.captions else None
    if left := listing_left_out(listing, paths):  # what somebody wrote or corrected is not written anew
        raise CaptionError(left[0])
    wanted = without_captions(paths, listing, config.tokens)
    if not wanted:
        tell(Message("all pictures have captions: no model has to write any"))
        return config
    check_names(paths)
    owners = [owner_of(path, config.images, len(config.tokens)) or 0 for path in wanted]
    captioner = Captioner(find_captioner(where), config.device)
    kept |= read_listed(listing) if listing else {}
    found: dict[str, str] = {}
    try:
        subjects = [config.subject(owner) for owner in owners]
        write_into(file, kept, captioner, wanted, subjects, tell, found, vectors=config.num_vectors)
    finally:
        if found:
            tell(Message(f"captions are kept in {file}, which --captions takes"))
    return dataclasses.replace(config, captions=str(file))
