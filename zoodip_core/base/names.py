"""Names of placeholder tokens, which name files and folders as well."""

from __future__ import annotations

import re

from .errors import TokenError
from .paths import fault

MAX_NAME = 200


def check_name(token: str) -> None:
    """Refuse a placeholder that could not be a file name on every system, or not stand in a prompt.

    Raises:
        TokenError: empty, over 200 characters, white space, control characters, path parts,
            characters that prompts give a meaning, or a name that Windows reserves.
    """

    def refuse(why: str) -> TokenError:
        shown = token if len(token) <= 40 else token[:37] + "..."
        return TokenError(f"token {shown!r} {why}; choose a name of letters, digits, - and _, like <my-cat>")

    if not token.strip():
        raise refuse("is empty")
    if len(token.encode(errors="replace")) > MAX_NAME:  # file systems count bytes
        raise refuse(f"has more than {MAX_NAME} characters (those beyond ASCII count up to four times)")
    if re.search(r"\s", token):
        raise refuse("holds white space or control characters")
    if re.search(r"[(){}\[\],]", token):
        raise refuse("holds brackets or commas, which mean something in prompts")
    if re.search(r"[<>]", token[1:-1]) or token.startswith(">") or token.endswith("<"):
        raise refuse("holds < or > in its middle")
    name = file_stem(token)
    if not name:
        raise refuse("has no name between its brackets")
    if name.startswith((".", "~")):
        raise refuse("holds parts of a path")
    why = fault(name)
    if why:
        raise refuse(why)


def file_stem(token: str) -> str:
    """The placeholder without its angle brackets, as in the name of its file."""
    return token.strip("<>")
