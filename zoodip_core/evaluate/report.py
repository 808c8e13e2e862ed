"""An evaluation for people: a table, a contact sheet, and the files that keep them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from ..base.files import write_atomically
from ..base.texts import how_many, printable
from ..data.cuts import cut_of
from ..data.images import open_picture
from ..data.prompts import SLOT
from ..data.sheets import contact_sheet
from .encoders import Picture
from .evaluation import AFTER, BEFORE, Evaluation, EvaluationPlan, as_json, image_path
from .metrics import Scores

MARKDOWN, JSON, SHEET = "evaluation.md", "evaluation.json", "evaluation.png"
_COLUMNS = 8
_TILE = 256
_HEAD = ("CLIP-T", "CLIP-I", "DINO", "DINO_inter")
_ABOUT = """\
- CLIP-T, higher is better: does an image show what its prompt says? (The class word stands in the token's place.)
- CLIP-I and DINO, higher is better: is it the subject of the reference images? The last row is what those reach among
  themselves.
- DINO_inter, lower is more diverse: how alike are the images of one prompt?
"""


def write_report(evaluation: Evaluation, references: Sequence[Picture], folder: Path) -> Path:
    """Write the table, the figures and the contact sheet into an evaluation's folder; returns the sheet's path.

    Raises:
        StorageError: they cannot be written.
    """
    write_atomically(folder / JSON, as_json(evaluation))
    write_atomically(folder / MARKDOWN, as_markdown(evaluation))
    return _write_sheet(evaluation, references, folder)


# ---------------------------------------------------------------- the table


def as_text(evaluation: Evaluation) -> str:
    """The table for a terminal or a node, and what was left out."""
    rows = [(printable(name), scores) for name, scores in _rows(evaluation)]
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"{head:>12}" for head in _HEAD)]
    lines += [f"{name:<{width}}" + "".join(f"{each:>12}" for each in _figures(scores)) for name, scores in rows]
    gone = {"clip": "CLIP-T and CLIP-I", "dino": "DINO and DINO_inter"}
    lines += [f"left out: {scores}" for judge, scores in gone.items() if judge not in evaluation.judges]
    return "\n".join(lines)


def as_markdown(evaluation: Evaluation) -> str:
    """The table, that of each prompt, and how it was made."""
    plan = evaluation.plan
    guidance = "the model's own" if plan.guidance_scale is None else f"{plan.guidance_scale:g}"
    share = f", the token in the first {plan.until:g} of the steps, its word in the rest" if plan.until < 1 else ""
    lines = [
        f"# {_code(evaluation.token[:60])}",
        "",
        *_table(("", *_HEAD), [(name, *_figures(scores)) for name, scores in _rows(evaluation, _code)]),
        "",
        _ABOUT,
        *_table(
            ("prompt", *(f"{head}, {when}" for head in _HEAD for when in (BEFORE, AFTER))),
            [
                (
                    _code(prompt),
                    *(each for pair in zip(_figures(before), _figures(after), strict=True) for each in pair),
                )
                for prompt, (before, after) in zip(plan.prompts, evaluation.by_prompt, strict=True)
            ],
        ),
        "",
        f"{how_many(evaluation.references, 'reference image')}; {how_many(len(plan.prompts), 'prompt')}, "
        f"{how_many(plan.seeds, 'image')} of each, seeds from {plan.first_seed}; "
        f"{how_many(plan.num_inference_steps, 'denoising step')}, guidance {guidance}{share}; model "
        f"{_code(evaluation.model)}.",
        "Scored by " + " and ".join(_code(name) for name in evaluation.judges.values()) + ".",
        *(f"\nLeft out: {why}" for why in evaluation.left_out),
    ]
    return "\n".join(lines) + "\n"


def _rows(evaluation: Evaluation, quoted: Callable[[str], str] = str) -> list[tuple[str, Scores]]:
    return [
        (f"before: the word {quoted(evaluation.plan.class_word)}", evaluation.before),
        (f"after: the token {quoted(evaluation.token[:60])}{_until(evaluation.plan)}", evaluation.after),
        ("the references themselves", evaluation.ceiling),
    ]


def _until(plan: EvaluationPlan) -> str:
    return f" until {plan.until:g}" if plan.until < 1 else ""


def _figures(scores: Scores) -> tuple[str, ...]:
    values = (scores.clip_t, scores.clip_i, scores.dino, scores.dino_inter)
    return tuple("-" if value is None else f"{value:.3f}" for value in values)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]


def _code(text: str) -> str:
    """A text that may be a stranger's, in Markdown: as code, without what would end it or the table's cell."""
    return "`" + printable(text).replace("`", "'").replace("|", "/") + "`"


# ---------------------------------------------------------------- the sheet


def _write_sheet(evaluation: Evaluation, references: Sequence[Picture], folder: Path) -> Path:
    """References, before and after, of the first seed and at most eight prompts from all over the set."""
    plan = evaluation.plan
    shown = _columns(evaluation)
    rows: list[tuple[str, list[Image.Image]]] = [
        ("the subject:\nreference images", [_tile(picture) for picture in references[:_COLUMNS]])
    ]
    for when, label in (
        (BEFORE, f'before: the word\n"{plan.class_word}"'),
        (AFTER, f"after: the token\n{evaluation.token}\n{_until(plan).strip()}"),
    ):
        rows.append((_label(label), [_tile(image_path(folder, when, prompt, seed)) for prompt, seed in shown]))
    columns = [
        textwrap.shorten(printable(plan.prompts[prompt]).replace(SLOT, "..."), 24, placeholder=" ...")
        for prompt, _ in shown
    ]
    contact_sheet(rows, folder / SHEET, columns)
    return folder / SHEET


def _columns(evaluation: Evaluation) -> list[tuple[int, int]]:
    """The (prompt, seed) of each column: of a single prompt several seeds."""
    plan = evaluation.plan
    every = [(i, plan.first_seed) for i in range(len(plan.prompts))] if len(plan.prompts) > 1 else plan.images()
    count = min(_COLUMNS, len(every))
    return [every[i * len(every) // count] for i in range(count)]


def _label(text: str) -> str:
    lines = [printable(line) for line in text.splitlines()[:3]]
    return "\n".join(line if len(line) <= 22 else f"{line[:19]}..." for line in lines)


def _tile(picture: Picture) -> Image.Image:
    """A picture's centre square, not larger than it is shown."""
    opened = picture.convert("RGB") if isinstance(picture, Image.Image) else open_picture(picture)
    return cut_of(opened.size, min(_TILE, *opened.size), "center").apply(opened)
