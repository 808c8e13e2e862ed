"""Captions of the reference images: files beside them, a JSON, or templates.

Every caption holds ``{}`` where the placeholder token goes.
"""

from __future__ import annotations

import glob
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ..base.errors import CaptionError, ConfigError
from ..base.files import read_object, write_atomically
from ..base.texts import how_many, parse_json

LISTING = "captions.json"
"""Where captions are written, by their pictures' names: beside the pictures, or in the folder of their run."""
SLOT = "{}"
ADJECTIVE = "adjective"
"""The template whose token is an adjective of a class word, which it stands before."""
STYLE = "style"
"""The template whose token is a style."""
_CLASS = "CLASS"
MAX_TEXT = 8_000_000
"""Bytes of a file of captions."""

# The neutral context texts of textual inversion (arXiv 2208.01618, supplement) for objects and styles.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": ("a photo of a {}",),
    STYLE: (
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
    ADJECTIVE: (f"a photo of a {{}} {_CLASS}",),
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
    class_word: str | None = None,
) -> list[tuple[str, ...]]:
    """The captions each image may be trained with, each with ``{}`` for the token.

    An image takes its entry in ``captions_file`` (file name to a caption or a list of them, or
    those under one more level, as in the paper's comprehensive captions), else the ``.txt`` or
    ``.caption`` beside it, else its entry in a ``metadata.jsonl`` beside it, as Hugging Face's
    datasets have it, else the ``template`` set. In a caption, ``{}`` or the token itself marks the
    place. A file whose lines all have it holds a caption a line, any other is one caption.

    Args:
        class_word: what kind of thing it is, which every caption has to say; None where it does not matter.

    Raises:
        CaptionError: captions without the placeholder or the class word, all of which it names, or an unreadable file.
        ConfigError: an unknown ``template``.
    """
    check_template(template)
    result, without, classless = [], [], []
    for where, texts in written_for(paths, captions_file, [token]):
        texts = texts or ([""] if where else of_template(template, class_word))
        slotted = tuple(text if SLOT in text else with_slots(text, token) for text in texts)
        without += [(where, text) for text in slotted if SLOT not in text]
        result.append(slotted)
        if class_word:
            classless += [(where, text) for text in slotted if not says(text, class_word)]
    if without:
        raise _no_place(without, token)
    if classless:
        (where, text), more = classless[0], len(classless) - 1
        others = f"; nor {'does' if more == 1 else 'do'} {more} more" if more else ""
        raise CaptionError(
            f"{where}: the caption {text!r} does not say {class_word}, the class word{others}: write {SLOT} "
            f"{class_word} where the subject stands, or leave class_word out"
        )
    return result


def written_for(
    paths: Sequence[Path], captions_file: Path | None, tokens: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """For each picture where its captions stand, empty where nothing is written for it, and what they are.

    Raises:
        CaptionError: they cannot be read.
    """
    listed = read_listed(captions_file, [path.name for path in paths]) if captions_file else {}
    noted = {folder: noted_captions(folder) for folder in {path.parent for path in paths}}
    for path in paths:
        where, texts = f"{captions_file}, {path.name}", listed.get(path.name, [])
        if not texts:
            texts, where = own_captions(path, noted[path.parent], tokens)
        yield where, texts


def check_template(template: str) -> None:
    """Refuse a name that is none of :data:`TEMPLATES`.

    Raises:
        ConfigError: it is none.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"template = {template!r}: choose one of {', '.join(TEMPLATES)}")


def of_template(template: str, class_word: str | None = None) -> list[str]:
    """The captions of one of :data:`TEMPLATES`."""
    return [text.replace(_CLASS, class_word or "") for text in TEMPLATES[template]]


def says(text: str, word: str) -> bool:
    """Whether a text has a word, or several that follow each other, as its own."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def _no_place(without: Sequence[tuple[str, str]], token: str) -> CaptionError:
    (where, text), more = without[0], len(without) - 1
    others = ", ".join(dict.fromkeys(where for where, _ in without[1:]))
    too = f" So has {others}." if more == 1 else f" So have {more} more: {others[:1000]}." if more else ""
    return CaptionError(
        f"{where}: the caption {text!r} has no placeholder; write {{}} or {token} where the learned token should "
        f"stand.{too}"
    )


CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = "metadata.jsonl"


def own_captions(picture: Path, noted: Mapping[str, str], tokens: Sequence[str] = ()) -> tuple[list[str], str]:
    """The captions that lie beside a picture: its caption file's, else its entry in the notes of its folder.

    Args:
        picture: its file.
        noted: the folder's :func:`noted_captions`.
        tokens: as in :func:`caption_lines`.

    Returns:
        The captions, none if the file is empty, and where they stand, empty if nowhere.

    Raises:
        CaptionError: they cannot be read.
    """
    beside = caption_file(picture)
    if beside:
        return caption_lines(read_text(beside), tokens), str(beside)
    if picture.name in noted:
        return [_one_line(noted[picture.name])], f"{picture.parent / METADATA}, {picture.name}"
    return [], ""


def caption_lines(text: str, tokens: Sequence[str] = ()) -> list[str]:
    """A caption file's text as captions: a line each if all lines have the token's place, else it is one.

    Args:
        text: with any spaces and breaks of lines.
        tokens: mark the place as well as ``{}`` does; where none is known, any ``<word>`` does.
    """
    lines = list(filter(None, map(_one_line, text.splitlines())))
    place = re.compile("|".join(map(token_pattern, tokens)) or r"<[^<>\s]+>")
    each_has = all(SLOT in line or place.search(unicodedata.normalize("NFC", line)) for line in lines)
    return lines if each_has or not lines else [" ".join(lines)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def caption_file(picture: Path) -> Path | None:
    """The file of captions beside a picture, whatever the case of its ending."""
    found = {path.name: path for path in picture.parent.glob(f"{glob.escape(picture.stem)}.*")}
    names = {name[len(picture.stem) :].lower(): path for name, path in sorted(found.items()) if path.is_file()}
    return next((names[suffix] for suffix in CAPTION_SUFFIXES if suffix in names), None)


def noted_captions(folder: Path) -> dict[str, str]:
    """The texts of a folder's ``metadata.jsonl`` by the names of its pictures; none if there is no such file.

    Raises:
        CaptionError: it cannot be read.
    """
    file = folder / METADATA
    return read_noted(file) if file.is_file() else {}


def read_noted(file: Path) -> dict[str, str]:
    """The texts of a file such as ``metadata.jsonl`` by the names of their pictures; of other notes none.

    Raises:
        CaptionError: it cannot be read.
    """
    noted = {}
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


def unused_captions(captions_file: Path | None, paths: Sequence[Path], sources: Sequence[str | Path] = ()) -> list[str]:
    """A line on the captions that belong to no picture, as where a name is misspelt.

    Args:
        captions_file: a JSON file of captions.
        paths: the pictures.
        sources: where they were looked for; of the folders among them, the captions in files are looked at too.

    Raises:
        CaptionError: as :func:`read_listed` and :func:`noted_captions`.
    """
    names, lines = {path.name for path in paths}, []
    for file, listed in _listings(captions_file, paths, sources).items():
        shown = str(file) if file == captions_file else file.name
        lines += of_no_picture(shown, sorted(set(listed) - names), len(listed))
    for folder in filter(Path.is_dir, map(Path, sources)):
        files = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
        texts = [path for path in files if path.suffix.lower() in CAPTION_SUFFIXES and path.is_file()]
        stems = {path.stem for path in (*files, *paths) if path.suffix.lower() not in CAPTION_SUFFIXES}
        alone = [path.name for path in texts if path.stem not in stems]
        if alone:
            lines.append(f"left out, {how_many(len(alone), 'caption')} of no picture: {_few(alone)}")
    return lines


def listing_left_out(captions_file: Path | None, paths: Sequence[Path]) -> list[str]:
    """A line on captions in a file ``captions.json`` beside pictures, where nobody says that they are to be used.

    Args:
        captions_file: the file that is used, if any.
        paths: the pictures.
    """
    if captions_file:
        return []
    files = [folder / LISTING for folder in dict.fromkeys(path.parent for path in paths)]
    there = [file for file in files if {path.name for path in paths} & read_object(file).keys()]
    return [f"captions: {file} lies beside the pictures and is not used; give it with --captions" for file in there]


def _listings(
    captions_file: Path | None, paths: Sequence[Path], sources: Sequence[str | Path]
) -> dict[Path, Collection[str]]:
    """The names in all files that have captions of several pictures."""
    found: dict[Path, Collection[str]] = {}
    if captions_file is not None:
        found[captions_file] = read_listed(captions_file, [path.name for path in paths])
    for folder in filter(Path.is_dir, map(Path, sources)):
        found[folder / METADATA] = noted_captions(folder)
    return found


def of_no_picture(file: str, names: Sequence[str], count: int) -> list[str]:
    """A line on the names in a file of captions, of ``count`` in all, that are of no picture."""
    if not names:
        return []
    are = "is" if len(names) == 1 else "are"
    return [f"{file}: {len(names)} of its {how_many(count, 'name')} {are} of no picture here: {_few(names)}"]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


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


def write_listed(path: Path, captions: Mapping[str, str | Sequence[str]]) -> None:
    """Write captions by the names of their pictures, as :func:`read_listed` reads them and people edit them.

    Raises:
        StorageError: the file cannot be written.
    """
    write_atomically(path, json.dumps(captions, indent=2, ensure_ascii=False) + "\n")


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
