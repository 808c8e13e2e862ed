"""The nodes' texts on ComfyUI's page: translations and help pages follow the nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_locales
import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCALES = ROOT / "locales"
DOCS = ROOT / "web" / "docs"
CHINESE = re.compile("[\u4e00-\u9fff]")
Texts = dict[str, Any]


@pytest.fixture(scope="module")
def texts() -> Texts:
    return make_locales.node_texts()


@pytest.fixture(scope="module")
def chinese() -> Texts:
    return dict(json.loads((LOCALES / "zh" / "nodeDefs.json").read_text(encoding="utf-8")))


def flat(tree: Texts, above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def help_page(node: str, language: str) -> str:
    """As ComfyUI's page looks for it: in the user's language, else the one for all."""
    own = DOCS / node / f"{language}.md"
    return (own if own.is_file() else DOCS / f"{node}.md").read_text(encoding="utf-8")


def test_the_english_file_is_what_the_tool_writes() -> None:
    assert (LOCALES / "en" / "nodeDefs.json").read_bytes() == make_locales.text().encode()


def test_the_english_file_lacks_only_what_it_can_not_hold(texts: Texts) -> None:
    written = dict(flat(json.loads(make_locales.text())))
    assert written == {key: text for key, text in flat(texts) if not make_locales.SYNTAX.search(text)}


def test_every_text_is_translated(texts: Texts, chinese: Texts) -> None:
    english, translated = dict(flat(texts)), dict(flat(chinese))
    assert translated.keys() == english.keys()
    assert all(text.strip() for text in translated.values())
    left = {key for key, text in english.items() if len(text.split()) > 3 and not CHINESE.search(translated[key])}
    assert not left


@pytest.mark.parametrize("file", sorted(LOCALES.glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_translation_holds_the_page_s_syntax(file: Path) -> None:
    """One such character in a node's description, and ComfyUI's page does not start."""
    found = dict(flat(json.loads(file.read_text(encoding="utf-8"))))
    assert not [key for key, text in found.items() if make_locales.SYNTAX.search(text)]


def test_there_are_help_pages_for_the_nodes_and_no_others(texts: Texts) -> None:
    assert {path.stem for path in DOCS.glob("*.md")} == texts.keys()
    assert {path.parent.name for path in DOCS.glob("*/zh.md")} == texts.keys()


@pytest.mark.parametrize("page", [path.relative_to(DOCS) for path in DOCS.rglob("*.md")], ids=str)
def test_a_help_page_holds_no_markup(page: Path) -> None:
    """ComfyUI's page takes brackets outside of code for it, and drops what is in them."""
    written = re.sub("`[^`\n]*`", "", (DOCS / page).read_text(encoding="utf-8"))
    assert re.findall(r"<[^<>\n]*>", written) == []


@pytest.mark.parametrize("language", ["en", "fr", "zh"])
def test_a_help_page_names_every_input_and_output(language: str, texts: Texts, chinese: Texts) -> None:
    for node, each in texts.items():
        page = help_page(node, language)
        for kind in ("inputs", "outputs"):
            for key, slot in each[kind].items():
                assert f"\n| `{slot['name']}`" in page, f"{node}, {language}: {slot['name']}"
                shown = chinese[node][kind][key]["name"]
                assert language != "zh" or f"| `{slot['name']}` {shown} |" in page, f"{node}: {shown}"


def test_help_pages_name_the_nodes_as_they_are_called(texts: Texts, chinese: Texts) -> None:
    for language, names in (("en", texts), ("zh", chinese)):
        called = {each["display_name"] for each in names.values()}
        for node in texts:
            assert set(re.findall(r"\*\*(.+?)\*\*", help_page(node, language))) <= called
