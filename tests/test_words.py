"""One word for a thing: no message, help page or document says it another way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BETTER = {
    "can not": "cannot",
    "is no setting": "is not a setting",
    "is no checkpoint": "is not a checkpoint",
    "is no colour": "is not a colour",
    "is no number": "is not a number",
    "is no file": "is not a file",
    "to be had": "available",
    "be had for": "be available for",
    "go on with": "resume",
    "goes on with": "resumes",
    "going on with": "resuming",
    "gone on with": "resumed",
    "gone on from": "resumed from",
    "went on with": "resumed",
    "to go on": "to resume",
    "/continue": "/resume",
    "continued": "resumed",
    "settled": "converged",
    "pace": "preset",
    "paces": "presets",
    "the tiny model": "the embedded model",
    "shall": "should, will, or the plain present",
}
"""Phrases by which nothing is called, and what to write in their place."""
STILL = {
    ("zoodip_core/jobs/job_folder.py", "pace"),
    ("zoodip_core/page/draft.py", "pace"),
}
"""Where a phrase is the name that files of an earlier version have."""
_DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "benchmarks/*.md",
    "web/docs/**/*.md",
    "web/*.js",
    "locales/**/*.json",
    "example_workflows/*.json",
)
_CODE = ("*.py", "nodes/**/*.py", "scripts/**/*.py", "zoodip_core/**/*.py", "zoodip_webui/**/*.py")


def pattern(phrase: str) -> re.Pattern[str]:
    """Finds a phrase in whole words, wherever its lines break. That there is none of a thing may be said."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    before = r"(?<!there )" if phrase.startswith("is no ") else ""
    start = r"(?<!\w)" if phrase[0].isalpha() else ""
    return re.compile(rf"{before}{start}{words}(?!\w)", re.IGNORECASE)


PATTERNS = {phrase: pattern(phrase) for phrase in BETTER}


def found_in(text: str, first: int = 1) -> Iterator[tuple[int, str]]:
    """The phrases in a text, each with its line, counted from ``first``."""
    for phrase, finder in PATTERNS.items():
        for match in finder.finditer(text):
            yield first + text.count("\n", 0, match.start()), phrase


def found_in_code(source: str) -> Iterator[tuple[int, str]]:
    """The phrases in a module's texts: messages, the constant parts of f-strings, docstrings; not in its comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from found_in(node.value, node.lineno)


def found_in_file(path: Path) -> list[str]:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        text = text.replace(r"\n", "  ")  # a note's own lines
    found = found_in_code(text) if path.suffix == ".py" else found_in(text)
    return [
        f'{name}:{line}: "{phrase}"; write: {BETTER[phrase]}'
        for line, phrase in sorted(set(found))
        if (name, phrase) not in STILL
    ]


def files_of(*patterns: str) -> list[Path]:
    return sorted({path for each in patterns for path in ROOT.glob(each)})


@pytest.mark.parametrize("patterns", [_DOCUMENTS, _CODE], ids=["documents", "code"])
def test_a_thing_is_called_by_its_one_word(patterns: tuple[str, ...]) -> None:
    files = files_of(*patterns)
    assert len(files) > 20
    found = [line for path in files for line in found_in_file(path)]
    assert not found, "\n" + "\n".join(found)


def test_phrases_are_found_across_lines_in_whole_words_and_in_any_case() -> None:
    text = "A run can\n  not be resumed.\nThe space is settled, shallow,\nand lr_2 Is no setting."
    assert sorted(found_in(text)) == [(1, "can not"), (3, "settled"), (4, "is no setting")]
    assert sorted(found_in("POST /runs/rex/continue")) == [(1, "/continue")]
    assert not list(found_in("There is no setting of this name; it cannot be.\nthere is no file"))


def test_phrases_are_found_in_all_texts_of_code_but_not_in_comments() -> None:
    source = (
        '"""Docs.\n\nA second line that shall be found."""\n'
        "# it shall be left alone\n"
        'raise ValueError(f"{name!r} is no " "setting; the run can" " not resume")\n'
    )
    assert sorted(found_in_code(source)) == [(3, "shall"), (5, "can not"), (5, "is no setting")]


def test_every_exception_is_needed() -> None:
    for name, phrase in STILL:
        found = found_in_code((ROOT / name).read_text(encoding="utf-8"))
        assert phrase in {each for _, each in found}, f"{name} does not say {phrase!r} any more: take it out of STILL"
