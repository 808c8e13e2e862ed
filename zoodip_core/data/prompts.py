"""Captions of the reference images: files beside them, a JSON, or templates.

Every caption holds ``{}`` where the placeholder token goes.
"""

from __future__ import annotations

import glob
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
    those under one more level, as in the paper's comprehensive captions), else the ``.txt`` or
    ``.caption`` beside it, else its entry in a ``metadata.jsonl`` beside it, as Hugging Face's
    datasets have it, else the ``template`` set. In a caption, ``{}`` or the token itself marks the
    place. A file whose lines all have it holds a caption a line, any other is one caption.

    Raises:
        CaptionError: captions without the placeholder, all of which it names, or an unreadable file.
        ConfigError: an unknown ``template``.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"template = {template!r}: choose one of {', '.join(TEMPLATES)}")
    listed = read_listed(captions_file, [path.name for path in paths]) if captions_file else {}
    noted = {folder: _noted(folder) for folder in {path.parent for path in paths}}
    result, without = [], []
    for path in paths:
        beside = caption_file(path)
        if path.name in listed:
            texts, where = tuple(listed[path.name]), f"{captions_file}, {path.name}"
        elif beside:
            text, where = read_text(beside).strip(), str(beside)
            lines = tuple(line.strip() for line in text.splitlines() if line.strip())
            each_has = len(lines) > 1 and all(SLOT in line or with_slots(line, token) != line for line in lines)
            texts = lines if each_has else (text,)
        elif path.name in noted[path.parent]:
            texts, where = (noted[path.parent][path.name],), f"{path.parent / _METADATA}, {path.name}"
        else:
            texts, where = TEMPLATES[template], ""
        slotted = tuple(text if SLOT in text else with_slots(text, token) for text in texts)
        without += [(where, text) for text in slotted if SLOT not in text]
        result.append(slotted)
    if without:
        raise _no_place(without, token)
    return result


def _no_place(without: Sequence[tuple[str, str]], token: str) -> CaptionError:
    (where, text), more = without[0], len(without) - 1
    others = ", ".join(dict.fromkeys(where for where, _ in without[1:]))
    too = f" So has {others}." if more == 1 else f" So have {more} more: {others[:1000]}." if more else ""
    return CaptionError(
        f"{where}: the caption {text!r} has no placeholder; write {{}} or {token} where the learned token should "
        f"stand.{too}"
    )


_CAPTION_SUFFIXES = (".txt", ".caption")
_METADATA = "metadata.jsonl"


def caption_file(picture: Path) -> Path | None:
    """The file of captions beside a picture, whatever the case of its ending."""
    found = {path.name: path for path in picture.parent.glob(f"{glob.escape(picture.stem)}.*")}
    names = {name[len(picture.stem) :].lower(): path for name, path in sorted(found.items()) if path.is_file()}
    return next((names[suffix] for suffix in _CAPTION_SUFFIXES if suffix in names), None)


def _noted(folder: Path) -> dict[str, str]:
    """The texts of a folder's ``metadata.jsonl`` by the names of its pictures; of other notes none.

    Raises:
        CaptionError: it cannot be read.
    """
    file, noted = folder / _METADATA, {}
    if not file.is_file():
        return {}
    for line in read_text(file).splitlines():
        try:
            entry = parse_json(line) if line.strip() else {}
        except ValueError as error:
            raise CaptionError(f"{file} is not valid JSON lines: {error}") from None
        name = entry.get("file_name") if isinstance(entry, dict) else None
        texts = [entry[key] for key in ("text", "caption", "prompt") if isinstance(entry.get(key), str)] if name else []
        if isinstance(name, str) and texts:
            noted[name] = texts[0]
    return noted


def unused_captions(captions_file: Path | None, paths: Sequence[Path]) -> list[str]:
    """A line on the captions of a JSON file that belong to no picture, as where a name is misspelt.

    Raises:
        CaptionError: as :func:`read_listed`.
    """
    if captions_file is None:
        return []
    listed = read_listed(captions_file, [path.name for path in paths])
    unused = sorted(set(listed) - {path.name for path in paths})
    if not unused:
        return []
    shown = ", ".join(unused[:5]) + (" ..." if len(unused) > 5 else "")
    return [f"{captions_file}: {len(unused)} of its {len(listed)} names are of no picture here: {shown}"]


def token_pattern(token: str) -> str:
    """A regular expression for the token as a word of its own, in a text in NFC: ``cat`` is not in ``catalogue``."""
    token = unicodedata.normalize("NFC", token)
    before = "" if token.startswith("<") else r"(?<!\w)"
    after = "" if token.endswith(">") else r"(?!\w)"
    return before + re.escape(token) + after


def with_slots(text: str, token: str) -> str:
    """The text with ``{}`` where the token stands, in NFC: the same letters can be written in several ways."""
    return re.sub(token_pattern(token), SLOT, unicodedata.normalize("NFC", text))


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
