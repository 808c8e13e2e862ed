"""What the documents say exists: commands and options, files and headings that links lead to, messages, defaults."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_pack import import_pack, without_files

import zoodip_core
from zoodip_core.cli.main import _parser

ROOT = Path(__file__).resolve().parent.parent
HELP = ROOT / "web" / "docs"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "web/docs/**/*.md", "example_workflows/*.md")
    for path in ROOT.glob(pattern)
)
IDS = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
TABLES = ("If something goes wrong", "出错时")
"""Headings of the tables of messages."""
OF_OTHERS = {
    *("--api", "--api-auth", "--share", "--fp32-vae"),  # webuis' and ComfyUI's
    *("--revision", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"),  # hf's, torchrun's
}
"""Options of other programs."""
SIGHTS = {
    "the subject does not appear",
    "the previews do not resemble the subject",
    "images stay the same after a token was replaced",
    "embedding:rex has no effect, and ComfyUI's log warns of its width",
    'ComfyUI\'s log says "lora key not loaded"',
}
"""In tables of messages: what a user sees, and nothing says."""
JOINED = {
    "cards = all: this model is in ComfyUI alone": ("cards = all: ", "this model is in ComfyUI alone"),
    "is a setting of the checks, of which there are none": ("is a setting of ", "the checks, of which there are none"),
    "is a setting of weights, of which none are learned": ("is a setting of ", "weights, of which none are learned"),
    "lora: the LoRA for": ("lora: ", "the LoRA for "),
    "to embedding_2": ("embedding_",),
    "token 2: the LoRA for": ("token 2: ", "the LoRA for "),
}
"""Parts of messages that the code puts together from others."""


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def without_blocks(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)


# ---------------------------------------------------------------- commands


def commands_in(text: str) -> Iterator[list[str]]:
    """The arguments of each ``python -m zoodip_core``, of those in blocks and of those within lines."""
    blocks = re.findall(r"^( *)```(?:sh|bat)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for _, block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    for line in [*lines, *re.findall("`([^`]*)`", without_blocks(text))]:
        _, found, arguments = line.partition("-m zoodip_core ")
        if found:
            yield [each for each in shlex.split(arguments, comments=True) if each != "..."]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """All options of a command, and of the commands below it."""
    found: set[str] = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(options_of, action.choices.values()))
    return found


def fault_of(arguments: list[str]) -> str:
    """What the command line says to arguments, nothing where it takes them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            _parser().parse_args(arguments)
    except SystemExit as ended:
        return said.getvalue().splitlines()[-1] if ended.code else ""
    return ""


def test_every_command_is_one() -> None:
    commands = [(name, each) for name, path in zip(IDS, DOCUMENTS, strict=True) for each in commands_in(text_of(path))]
    assert len(commands) > 30
    known = options_of(_parser())
    wrong = [(name, shlex.join(each), fault_of(each)) for name, each in commands]
    assert not [each for each in wrong if each[2]]
    shortened = [(name, word) for name, each in commands for word in each if word[:2] == "--" and word not in known]
    assert not shortened, "argparse takes these for the options that begin so"


def test_every_option_is_one() -> None:
    """Also those that stand alone in a line; of our other programs wherever they are described."""
    known = options_of(_parser()) | OF_OTHERS
    for program in ("install.py", "tools/*.py", "benchmarks/*.py", "tests/fuzz/*.py", "tests/faults/*.py"):
        known.update(*(re.findall(r'"(--[a-z][\w-]*)"', text_of(path)) for path in ROOT.glob(program)))
    found = {
        (name, option)
        for name, path in zip(IDS, DOCUMENTS, strict=True)
        for code in re.findall("`([^`]*)`", without_blocks(text_of(path)))
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)
    }
    assert len(found) > 100
    assert not {each for each in found if each[1] not in known}


def test_a_wrong_command_and_a_wrong_option_are_found() -> None:
    block = "```sh\npython -m zoodip_core train --images a \\\n    --tokn b    # so\n```\n"
    text = block + "and `python -m zoodip_core ui --port x`\n"
    wrong, other = commands_in(text)
    assert wrong == ["train", "--images", "a", "--tokn", "b"]
    assert "--tokn" in fault_of(wrong)
    assert "--port" in fault_of(other)
    assert fault_of(["train", "--images", "a", "--token", "b"]) == ""


def test_every_script_is_python_with_names_of_ours() -> None:
    scripts = [
        ast.parse(block)
        for path in DOCUMENTS
        for block in re.findall(r"^```python\n(.*?)^```$", text_of(path), re.DOTALL | re.MULTILINE)
    ]
    imports = [node for script in scripts for node in ast.walk(script) if isinstance(node, ast.ImportFrom)]
    names = {each.name for node in imports if node.module == "zoodip_core" for each in node.names}
    assert len(names) > 3
    assert names <= set(zoodip_core.__all__)


# ---------------------------------------------------------------- links


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")


@functools.cache
def anchors_of(path: Path) -> set[str]:
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", without_blocks(text_of(path)), re.MULTILINE):
        name = anchor(heading)
        count = sum(each == name or each.rpartition("-")[0] == name for each in found)
        found.append(name if name not in found else f"{name}-{count}")
    return set(found)


def broken_links(path: Path) -> list[str]:
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text_of(path))):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.is_file() or (heading and heading not in anchors_of(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "# A `b` & c\n\n[good](#a-b--c) [no heading](#a) [no\nfile](b.md) [out](https://x.y)\n"
    )
    assert broken_links(tmp_path / "a.md") == ["#a", "b.md"]


# ---------------------------------------------------------------- messages

HOLE = "\0"
"""In a message of the code: what is filled in."""


def constant(node: ast.AST) -> str | None:
    """The text of an expression, with holes where it is filled in; None if it is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(constant(part) or HOLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        both = constant(node.left), constant(node.right)
        return None if both == (None, None) else "".join(each or HOLE for each in both)
    return None


@functools.cache
def messages_of_the_code() -> dict[str, set[str]]:
    """All texts of the code that may be messages, with their longer words."""
    texts: set[str | None] = set()
    for pattern in ("nodes/**/*.py", "zoodip_core/**/*.py"):
        for path in ROOT.glob(pattern):
            texts.update(map(constant, ast.walk(ast.parse(text_of(path)))))
    return {text: words_in(text) for text in texts if text and " " in text}


def is_said(piece: str, message: str) -> bool:
    """Whether a piece of text is a part of what a message may become, and more than half of it no filled hole."""
    reached: dict[int, int] = dict.fromkeys(range(len(message)), 0)  # places in the message, with what was fixed so far
    for letter in piece:
        after: dict[int, int] = {}
        for place, fixed in reached.items():
            if place == len(message):
                continue
            if message[place] == HOLE:
                after[place] = max(after.get(place, 0), fixed)
                after[place + 1] = max(after.get(place + 1, 0), fixed)
            elif message[place] == letter:
                after[place + 1] = max(after.get(place + 1, 0), fixed + 1)
        reached = after
    return max(reached.values(), default=0) * 2 > len(piece)


def pieces_of(message: str) -> Iterator[str]:
    """The parts of a message of a table, which has dots where something is filled in, and / for or."""
    for piece in re.split(r"\.\.\.| / ", message.replace("`", "")):
        piece = piece.strip(" ,;:.'()=")
        if " " in piece:
            yield piece


def words_in(text: str) -> set[str]:
    return set(re.findall(r"[\w-]{4,}", text))


def said_somewhere(piece: str) -> bool:
    """Whether some text of the code says it."""
    if any(piece in text for text in messages_of_the_code()):
        return True
    wanted = words_in(piece)
    return any(
        HOLE in text and 3 * len(wanted & words) >= len(wanted) and is_said(piece, text)
        for text, words in messages_of_the_code().items()
    )


def tables() -> Iterator[tuple[str, str]]:
    """Each message of the help pages' tables, with its page."""
    for path in sorted(HELP.rglob("*.md")):
        for part in re.split(r"^## ", text_of(path), flags=re.MULTILINE):
            if part.startswith(TABLES):
                for message in re.findall(r"^\| (.+?) \| .+ \|$", part, re.MULTILINE)[1:]:
                    yield path.relative_to(HELP).as_posix(), message


def test_every_message_of_the_help_pages_is_one_of_the_code() -> None:
    rows = list(tables())
    assert len(rows) > 150
    rows = [row for row in rows if row[1] not in SIGHTS and not re.search("[\u4e00-\u9fff]", row[1])]
    pages = {piece: page for page, message in rows for piece in pieces_of(message)}
    parts = {part: page for piece, page in pages.items() for part in JOINED.get(piece, (piece,))}
    assert pages.keys() >= JOINED.keys()
    missing = [f"{page}: {part}" for part, page in parts.items() if not said_somewhere(part)]
    assert not missing, "\n".join(missing)


def test_a_message_that_nobody_says_is_found() -> None:
    message = f"mu = {HOLE} is below the rounding noise of {HOLE}, where words lie {HOLE} apart"
    assert is_said("mu = 0.1 is below the rounding noise of bfloat16", message)
    assert is_said("noise of two kinds, where words lie", message)
    assert not is_said("mu = 0.1 is above the rounding noise of bfloat16", message)
    assert not is_said("and whatever a hole may hold", message)
    assert list(pieces_of("token ... holds white space / a comma, ... here and there")) == [
        *("holds white space", "a comma", "here and there")
    ]
    assert not said_somewhere("is below the rounding noise of the sea")


# ---------------------------------------------------------------- defaults

BY_FILES = {"the first choice", "the first file", "第一项", "第一个文件"}
"""Defaults that depend on what is in the user's folders."""
SHOWN = {"": ("empty", "空", ""), True: ("on", "开"), False: ("off", "关")}


def default_of(kind: Any, options: dict[str, Any]) -> Any:
    """What an input starts from; None where something has to be connected."""
    return options.get("default", next(iter(kind), None) if isinstance(kind, list) else None)


@pytest.mark.parametrize("page", sorted(HELP.rglob("*.md")), ids=lambda path: path.relative_to(HELP).as_posix())
def test_a_help_page_gives_the_defaults_that_the_node_has(page: Path) -> None:
    pack = import_pack()
    with without_files():
        inputs = pack.NODE_CLASS_MAPPINGS[page.parent.name if page.stem == "zh" else page.stem].INPUT_TYPES()
    for name, (kind, options) in {**inputs["required"], **inputs.get("optional", {})}.items():
        row = re.search(rf"^\| `{name}`[^|]*\|([^|]*)\|", text_of(page), re.MULTILINE)
        assert row is not None, name
        default, shown = default_of(kind, options), row[1].strip().strip("`")
        if isinstance(kind, list) and shown in BY_FILES:
            continue
        if default is None:
            assert shown in ("", "unconnected", "未连接"), name
        elif isinstance(default, bool | str):
            assert shown in SHOWN.get(default, (default,)), name
        else:
            assert float(shown) == default, name
