"""Pictures for people: contact sheets and loss curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..base.files import write_atomically
from .curves import smooth

_TILE = 144
_LABEL = 150
_GAP = 6


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    path: Path,
    columns: Sequence[str] = (),
) -> None:
    """Write rows of images as one PNG, with the rows' labels on the left and the columns' on top."""
    top = 26 if columns else 0
    width = _LABEL + max(len(images) for _, images in rows) * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, top + len(rows) * (_TILE + _GAP) + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, label in enumerate(columns):
        middle = _LABEL + column * (_TILE + _GAP) + _TILE // 2
        pen.text((middle, top // 2 + 2), label, "black", font, anchor="mm")
    for row, (label, images) in enumerate(rows):
        y = top + _GAP + row * (_TILE + _GAP)
        pen.multiline_text((_GAP + 4, y + _TILE // 2), label, "black", font, anchor="lm", spacing=5)
        for column, image in enumerate(images):
            small = image.width < _TILE  # the tiny model's pictures: show their pixels
            tile = image.resize((_TILE, _TILE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
            sheet.paste(tile, (_LABEL + column * (_TILE + _GAP), y))
    save_png(sheet, path)


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture atomically."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


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
