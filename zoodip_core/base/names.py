"""What may be a name: of a file or folder, on any system, and of a placeholder token, which names both.

What one system refuses another takes, and folders are carried from one to the other.
"""

from __future__ import annotations

import re
import unicodedata

from .errors import TokenError

MAX_PART = 255
"""Bytes of one name, which is what file systems take."""
_DEVICES = {
    *("con", "prn", "aux", "nul", "conin$", "conout$", "clock$"),
    *(f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³"),
}


def fault(name: str) -> str | None:
    """What is wrong with the name of a file or folder, on any system; None if nothing is. It has no folders."""
    if not name.strip():
        return "is empty"
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):  # a NUL ends a path, half a pair is not text
        return "holds control characters"
    if re.search(r"[/\\:]", name) or name in (".", ".."):  # a colon is a drive, or another stream of a file
        return "holds parts of a path"
    if re.search(r'[<>"|?*]', name):
        return 'holds one of < > " | ? *, which Windows does not allow'
    if name[-1] in ". ":
        return "ends in a dot or a space, which Windows leaves out"
    if len(name.encode()) > MAX_PART:
        return f"has more than {MAX_PART} bytes"
    if name.split(".")[0].rstrip().lower() in _DEVICES:  # whatever its ending
        return "is a name that Windows reserves for a device"
    return None


def plain(text: str, most: int) -> str:
    """A name of letters, digits, - and _ that is like a text, of at most so many bytes; empty if nothing is left."""
    name = re.sub(r"[^\w-]+", "-", unicodedata.normalize("NFC", text)).strip("-_")
    return name.encode("utf-8")[:most].decode("utf-8", "ignore").rstrip("-_")


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
    if re.search(r"\s", token) or any(unicodedata.category(char) in ("Cc", "Cs") for char in token):
        raise refuse("holds white space or control characters")
    unseen = sorted({f"U+{ord(char):04X}" for char in token if unicodedata.category(char) in ("Cf", "Co", "Cn")})
    if unseen:
        raise refuse(f"holds {', '.join(unseen)}, which is not seen, and which nobody would write in a prompt")
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


def listed_in(text: str) -> tuple[str, ...]:
    """What a text lists with commas between, such as the names of several tokens; none of it is checked."""
    return tuple(filter(None, map(str.strip, text.split(","))))


def check_names(token: str) -> tuple[str, ...]:
    """The names of one or several placeholder tokens, with commas between; refused as by :func:`check_name`.

    Raises:
        TokenError: one cannot be a name, or two would have the same file.
    """
    parts = token.split(",")
    names = (token,) if len(parts) == 1 else tuple(map(str.strip, parts))
    for name in names:
        check_name(name)
    stems = [file_stem(name).casefold() for name in names]  # which some systems take for the same
    for number, name in enumerate(names):
        if stems[number] in stems[:number]:
            other = names[stems.index(stems[number])]
            raise TokenError(f"token {token!r}: {other} and {name} would have the same file; give each its own name")
    return names


def run_name(token: str) -> str:
    """What a run of one or several tokens is called: like its token, or like all of them with - between.

    Raises:
        TokenError: as :func:`check_names`.
    """
    first, *others = map(file_stem, check_names(token))
    return plain("-".join([first, *others]), 120) or first if others else first


def file_stem(token: str) -> str:
    """The placeholder without its angle brackets, as in the name of its file."""
    return unicodedata.normalize("NFC", token).strip("<>")
