"""Pictures for people: contact sheets and loss curves."""

from __future__ import annotations

import bisect
import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ..base.files import write_atomically
from .curves import smooth

MOST_ROWS, MOST_COLUMNS = 32, 16
"""Of a sheet that people ask for."""
_TILE = 144
_LABEL = 150
_GAP = 6
_LINE = 18
_MOST_HEAD = 4
"""Lines above a column."""
_NOTE = "zoodip"
"""The keyword of a picture's note, which says what it shows; a PNG's text."""
_LONGEST = 400
"""Characters of a text, beyond which none fits beside or above pictures."""


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    path: Path,
    columns: Sequence[str] = (),
    note: str = "",
) -> None:
    """Write :func:`sheet_of` rows of images as one PNG, with a note, if any, of what it shows."""
    save_png(sheet_of(rows, columns), path, note)


def sheet_of(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    columns: Sequence[str] = (),
    title: str = "",
    tile: int = _TILE,
) -> Image.Image:
    """Rows of images as one, with the rows' labels on the left, the columns' on top, and a title above.

    Args:
        rows: labels and images. A label that is too wide is wrapped, one that is too high is cut.
        columns: labels, each of which has to fit.
        title: wrapped, and cut after two lines.
        tile: pixels of each image's longer side on the sheet.
    """
    font = _font()
    width = _LABEL + max(len(images) for _, images in rows) * (tile + _GAP) + _GAP
    above = wrapped(title, width - 2 * (_GAP + 4), 2) if title else []
    head = _LINE * len(above) + _GAP if above else 0
    top = head + (26 if columns else 0)
    sheet = Image.new("RGB", (width, top + len(rows) * (tile + _GAP) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(above):
        pen.text((_GAP + 4, _GAP + _LINE * number + _LINE // 2), line, "black", font, anchor="lm")
    for column, label in enumerate(columns):
        middle = _LABEL + column * (tile + _GAP) + tile // 2
        pen.text((middle, head + 15), label, "black", font, anchor="mm")
    for row, (label, images) in enumerate(rows):
        y = top + _GAP + row * (tile + _GAP)
        lines = "\n".join(wrapped(label, _LABEL - 2 * _GAP - 4, tile // _LINE))
        pen.multiline_text((_GAP + 4, y + tile // 2), lines, "black", font, anchor="lm", spacing=5)
        for column, image in enumerate(images):
            shown = _within(image, tile)
            x = _LABEL + column * (tile + _GAP)
            sheet.paste(shown, (x + (tile - shown.width) // 2, y + (tile - shown.height) // 2))
    return sheet


def _within(image: Image.Image, tile: int) -> Image.Image:
    """A picture in its shape, as large as fits into a tile."""
    longer = max(image.size)
    width, height = (max(1, round(side * tile / longer)) for side in image.size)
    small = longer < _TILE  # the embedded model's pictures: show their pixels
    return image.resize((width, height), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def wrapped(text: str, width: int, most: int) -> list[str]:
    """The lines of a text on a sheet, each at most ``width`` pixels wide; more than ``most`` are cut."""
    lines: list[str] = []
    for line in text[:_LONGEST].splitlines():
        rest = line
        while rest and len(lines) <= most:
            fits = max(1, _fitting(rest, width))
            end = len(rest) if fits == len(rest) else rest.rfind(" ", 1, fits + 1)
            end = end if end > 0 else fits  # a word that is too long alone
            lines.append(rest[:end])
            rest = rest[end:].lstrip()
    if len(lines) > most:
        mark = " ..."
        last = lines[most - 1]
        while last and _font().getlength(last + mark) > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last + mark]
    return lines


def _fitting(text: str, width: int) -> int:
    """How many of a text's first characters are at most so wide."""
    counts = range(1, len(text) + 1)
    return bisect.bisect_right(counts, width, key=lambda count: math.ceil(_font().getlength(text[:count])))


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)


def save_png(image: Image.Image, path: Path, note: str = "") -> None:
    """Write a picture atomically, with a note, if any, of what it shows."""
    buffer, about = io.BytesIO(), None
    if note:
        about = PngInfo()
        about.add_itxt(_NOTE, note)
    image.save(buffer, format="PNG", pnginfo=about)
    write_atomically(path, buffer.getvalue())


# ---------------------------------------------------------------- rows of sheets that were kept


def rows_in(path: Path, columns: int, note: str) -> list[Image.Image]:
    """The rows of a kept :func:`contact_sheet`, labels included, to be :func:`stacked`.

    Args:
        path: the file, which may be missing, damaged, or anything.
        columns: that it has.
        note: that it was written with.

    Returns:
        None of them where it is not such a sheet.
    """
    width, height = _LABEL + columns * (_TILE + _GAP) + _GAP, _TILE + _GAP
    if not path.is_file():
        return []
    try:
        with Image.open(path, formats=("PNG",)) as sheet:
            rows = (sheet.height - _GAP) // height
            if sheet.size != (width, rows * height + _GAP) or rows > MOST_ROWS or sheet.info.get(_NOTE) != note:
                return []
            whole = sheet.convert("RGB")
    except Exception:  # Pillow's decoders raise a dozen kinds on damaged files
        return []
    return [whole.crop((0, _GAP + row * height, width, _GAP + (row + 1) * height)) for row in range(rows)]


def has_note(path: Path, note: str) -> bool:
    """Whether a file is a picture that was written with such a note; its pixels are not looked at."""
    if not note or not path.is_file():  # a pipe would be waited for
        return False
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            return bool(picture.info.get(_NOTE) == note)
    except Exception:  # as above
        return False


def stacked(rows: Sequence[Image.Image], columns: Sequence[str]) -> Image.Image:
    """Rows of :func:`rows_in` as one sheet, with labels below the first of them.

    Args:
        columns: labels of what the other rows show, which are wrapped, and cut after some lines.
    """
    labels = [wrapped(label, _TILE, _MOST_HEAD) for label in columns]
    heads = _LINE * max(map(len, labels), default=0) + _GAP
    sheet = Image.new("RGB", (rows[0].width, _GAP + heads + sum(row.height for row in rows)), "white")
    pen, font = ImageDraw.Draw(sheet), _font()
    y = _GAP
    for number, row in enumerate(rows):
        sheet.paste(row, (0, y))
        y += row.height + (0 if number else heads)
    for column, lines in enumerate(labels):
        middle = _LABEL + column * (_TILE + _GAP) + _TILE // 2
        for line, text in enumerate(lines):
            pen.text((middle, _GAP + rows[0].height + _LINE * line + _LINE // 2), text, "black", font, anchor="mm")
    return sheet


def evenly(count: int, most: int) -> list[int]:
    """The numbers below ``count``; of too many ``most``: the first, the last, and evenly between."""
    return list(range(count)) if count <= most else [i * (count - 1) // (most - 1) for i in range(most)]


def loss_curve(losses: Sequence[float], path: Path, title: str = "denoising loss") -> None:
    """Write the losses, one a step, raw and smoothed, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), dpi=110)
    axes = figure.subplots(gridspec_kw={"left": 0.12, "right": 0.98, "bottom": 0.14, "top": 0.91})
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="#9ec5e8", linewidth=0.6, label="each step (its own image, timestep and noise)")
    smoothed = smooth(losses)
    line = [point.step for point in smoothed], [point.mean for point in smoothed]
    axes.plot(*line, color="#c0392b", linewidth=1.8, label="running mean")
    axes.set(title=title, xlabel="step", ylabel="loss")
    low, high = min(losses), sorted(losses)[int(0.99 * (len(losses) - 1))]
    axes.set_ylim(0 if low < high / 2 else low * 0.95, high * 1.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
