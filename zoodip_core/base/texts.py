"""Texts that may be a stranger's: parsed, and made such that they can be shown and written."""

from __future__ import annotations

import json
from typing import Any


def whole_text(text: str) -> str:
    """A text without what UTF-8 cannot hold, halves of characters, which JSON and pickles may have: ? instead."""
    return text.encode("utf-8", "replace").decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is not JSON, nested too deep, or holds halves of characters, which nothing can show or write.
    """
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return found


def how_many(count: int, one: str, many: str = "", form: str = "") -> str:
    """A number with its noun, as in "1 mask" and "2 masks".

    Args:
        count: how many there are.
        one: the noun.
        many: its plural, where that is not the noun and an s.
        form: of the number, such as "," for thousands.
    """
    return f"{count:{form}} {one if count == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """A text that may be a stranger's, for a screen: without what would command a terminal, or is not text."""
    return "".join(char if char.isprintable() else "?" for char in text)
