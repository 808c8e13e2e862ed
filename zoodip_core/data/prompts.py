"""Captions of the reference images: files beside them, a JSON, or templates.

Every caption holds ``{}`` where the placeholder token goes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ..base.errors import CaptionError, ConfigError
from ..base.texts import parse_json

SLOT = "{}"
MAX_TEXT = 8_000_000
"""Bytes of a file of captions."""

# The neutral context texts of textual inversion (arXiv 2208.01618, supplement) for objects and styles.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": ("a photo of a {}",),
    "style": (
        "a painting in the style of {}",
        "a rendering in the style of {}",
        "a cropped painting in the style of {}",
        "the painting in the style of {}",
        "a clean painting in the style of {}",
        "a dirty painting in the style of {}",
        "a dark painting in the style of {}",
        "a picture in the style of {}",
        "a cool painting in the style of {}",
        "a close-up painting in the style of {}",
        "a bright painting in the style of {}",
        "a good painting in the style of {}",
        "a rendition in the style of {}",
        "a nice painting in the style of {}",
        "a small painting in the style of {}",
        "a weird painting in the style of {}",
        "a large painting in the style of {}",
    ),
    "ti": (
        "a photo of a {}",
        "a rendering of a {}",
        "a cropped photo of the {}",
        "the photo of a {}",
        "a photo of a clean {}",
        "a photo of a dirty {}",
        "a dark photo of the {}",
        "a photo of my {}",
        "a photo of the cool {}",
        "a close-up photo of a {}",
        "a bright photo of the {}",
        "a cropped photo of a {}",
        "a photo of the {}",
        "a good photo of the {}",
        "a photo of one {}",
        "a close-up photo of the {}",
        "a rendition of the {}",
        "a photo of the clean {}",
        "a rendition of a {}",
        "a photo of a nice {}",
        "a good photo of a {}",
        "a photo of the nice {}",
        "a photo of the small {}",
        "a photo of the weird {}",
        "a photo of the large {}",
        "a photo of a cool {}",
        "a photo of a small {}",
    ),
}


def captions_for(
    paths: Sequence[Path],
    *,
    template: str = "object",
    captions_file: Path | None = None,
    token: str,
) -> list[tuple[str, ...]]:
    """The captions each image may be trained with, each with ``{}`` for the token.

    An image takes its entry in ``captions_file`` (file name to a caption or a list of them, or
    those under one more level, as in the paper's comprehensive captions), else the ``.txt`` beside
    it, else the ``template`` set. In a caption, ``{}`` or the token itself marks the place.

    Raises:
        CaptionError: a caption without the placeholder, or an unreadable file.
        ConfigError: an unknown ``template``.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"template = {template!r}: choose one of {', '.join(TEMPLATES)}")
    listed = read_listed(captions_file, [path.name for path in paths]) if captions_file else {}
    result = []
    for path in paths:
        beside = path.with_suffix(".txt")
        if path.name in listed:
            result.append(tuple(_slotted(text, token, f"{captions_file}, {path.name}") for text in listed[path.name]))
        elif beside.is_file():
            result.append((_slotted(read_text(beside).strip(), token, str(beside)),))
        else:
            result.append(TEMPLATES[template])
    return result


def token_pattern(token: str) -> str:
    """A regular expression for the token as a word of its own, in a text in NFC: ``cat`` is not in ``catalogue``."""
    token = unicodedata.normalize("NFC", token)
    before = "" if token.startswith("<") else r"(?<!\w)"
    after = "" if token.endswith(">") else r"(?!\w)"
    return before + re.escape(token) + after


def with_slots(text: str, token: str) -> str:
    """The text with ``{}`` where the token stands, in NFC: the same letters can be written in several ways."""
    return re.sub(token_pattern(token), SLOT, unicodedata.normalize("NFC", text))


def _slotted(text: str, token: str, where: str) -> str:
    if SLOT not in text:
        text = with_slots(text, token)
    if SLOT not in text:
        raise CaptionError(
            f"{where}: the caption {text!r} has no placeholder; write {{}} or {token} where the "
            "learned token should stand"
        )
    return text


def read_text(path: Path) -> str:
    """A caption file's text.

    Raises:
        CaptionError: it cannot be read, is far too long, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT + 1)
        if len(data) > MAX_TEXT:
            raise CaptionError(
                f"{path} has more than {MAX_TEXT // 10**6} MB, too much for captions; is it another file?"
            )
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise CaptionError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise CaptionError(f"{path} cannot be read: {error.strerror}") from error


def read_listed(path: Path, images: Sequence[str] | None = None) -> dict[str, list[str]]:
    """The captions in a JSON file, by the name of the image.

    Args:
        path: the file.
        images: names, of which at least one must be there; any will do if None.

    Raises:
        CaptionError: it cannot be read, holds something else, or captions of other images.
    """
    if not path.is_file():
        raise CaptionError(f"captions file {path} does not exist")
    try:
        data = parse_json(read_text(path))
    except CaptionError:
        raise
    except ValueError as error:
        raise CaptionError(f"{path} is not valid JSON: {error}") from None
    if isinstance(data, dict) and len(data) == 1:
        (only,) = data.values()
        data = only if isinstance(only, dict) else data
    listed = {}
    for name, texts in data.items() if isinstance(data, dict) else ():
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise CaptionError(f"{path}, {name}: expected a caption or a list of captions")
        listed[name] = texts
    if not listed:
        raise CaptionError(
            f'{path}: expected an object of file names and captions, like {{"01.jpg": "a photo of a {{}} on grass"}}'
        )
    if images is not None and not set(listed) & set(images):
        raise CaptionError(
            f"{path}: none of its names ({', '.join(sorted(listed)[:3])} ...) is among the images; "
            'name the image files, like "01.jpg"'
        )
    return listed
