"""The names and paths of the attacks, by kind. The hostile files are made in :mod:`tests.attacks.files`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LINK = "linked"
"""A link of this name, and one with the ending of the files in question, lies in each folder and leads out of it."""
UP = "../../outside"
"""From each folder to the place that nobody may get to."""

REFUSED: Mapping[str, Sequence[str]] = {
    "up and out": (
        *("..", "../", "../..", ".", "a/..", "a/.", "./x", "a/./x", "<..>", f"<{UP}/secret>"),
        *(f"{UP}/secret", f"{UP}", f"a/../{UP}/secret", f"./{UP}/secret", f".//{UP}/secret", f"a/b/../../{UP}/secret"),
        *("..\\..\\outside\\secret", "../..\\outside/secret", "a\\..\\..\\..\\outside\\secret"),
        *("....//....//outside/secret", "..././..././outside/secret", "../{folder}-2/secret", f"{UP}/evil"),
    ),
    "absolute, POSIX": (
        # Where a hole would do harm, the place stands in for the system's own files.
        *("{outside}/secret", "/{outside}/secret", "{outside}/evil", "{outside}", "//{outside}", "///{outside}/secret"),
        *("{outside}/", "{outside}/../outside/secret", "/proc/self/environ", "/dev/fd/0", "//server/share/secret"),
    ),
    "drives": ("C:\\Windows\\secret", "C:/Windows/secret", "C:secret", "c:", "Z:\\..\\secret"),
    "shares and namespaces of Windows": (
        *("\\\\server\\share\\secret", "\\\\localhost\\c$\\secret", "\\\\?\\C:\\secret", "\\\\.\\C:\\secret"),
        *("\\\\?\\UNC\\server\\share\\secret", "\\\\.\\pipe\\secret", "//?/C:/secret", "\\??\\C:\\secret", "\\secret"),
    ),
    "control characters": (
        *("\0", "secret\0", "secret\0.png", f"{UP}/secret\0x", "a\nb", "a\r\nb", "a\tb", "\x1b[2Jsecret", "\x01"),
        *("a\x7fb", "a\x85b", "\x1b]0;evil\x07"),
    ),
    "half pairs": ("\ud800", "secret\udcff", "\udce2\udc80", "\ud83d/secret"),
    "devices of Windows": (
        *("CON", "con", "PRN", "AUX", "NUL", "nul.txt", "NUL.tar.gz", "COM1", "com9.png", "COM0", "LPT1", "COM¹"),
        *("LPT³.png", "CONIN$", "CONOUT$", "CLOCK$", "nul ", "NUL .txt", "a/NUL", "con/secret", "<con>"),
    ),
    "streams": ("secret:hidden", "secret::$DATA", "secret.png:evil", ":hidden", "a:b/secret"),
    "dots and spaces at the end": (
        *("secret. ", "secret..", "... ", ".. ", ". ", " ", "", "a./secret", "a /secret", ".. /.. /outside/secret"),
    ),
    "characters that Windows forbids": ("a<b", "a>b", 'a"b', "a|b", "a?b", "a*b", "*", "?"),
    "too long": ("x" * 256, "é" * 128, "🐶" * 64, "x" * 5000, "a/" * 600 + "secret"),
    "behind links": (f"{LINK}/secret", f"{LINK}/evil", f"{LINK}\\secret", f"a/../{LINK}/secret"),
}
"""Names that a checked path must refuse."""

TAKEN: Mapping[str, Sequence[str]] = {
    "links": (LINK, f"{LINK}.png", f"{LINK}.safetensors"),
    "home folders": ("~", "~/secret", "~root/secret", "$HOME/secret", "${HOME}", "%USERPROFILE%\\secret"),
    "addresses": ("file:{outside}/secret", "http://127.0.0.1:1/secret", "data:,secret", "smb://server/secret"),
    "in other writing": (
        *("%2e%2e%2f%2e%2e%2foutside%2fsecret", "..%2f..%2foutside%2fsecret", "..%252f..%252foutside", "%00"),
        *("..%c0%af..%c0%afoutside", "&#46;&#46;/secret", "..;/..;/outside/secret", "..%5c..%5coutside"),
    ),
    "look-alikes": (
        *("\uff0e\uff0e\uff0f\uff0e\uff0e\uff0foutside\uff0fsecret", "\u2025/\u2025/outside/secret"),
        *("..\u2215..\u2215outside\u2215secret", "\u202egnp.terces"),
        *("..\u200b/..\u200b/outside", "\ufeff../\ufeff../outside", "a\u2028b"),
    ),
    "for a shell or a template": (
        *("$(touch {outside}/evil)", "`touch {outside}/evil`", "; touch {outside}/evil", "| touch {outside}/evil"),
        *("--output={outside}", "-rf", "a' OR '1'='1", "{{7*7}}", "${jndi:ldap://x}", "%s%n", "__import__('os')"),
    ),
}
"""Names that may be taken for what they are, as long as they stay where they belong."""


@dataclass(frozen=True)
class Name:
    """A hostile name.

    Args:
        kind: what is special about it.
        text: the name.
        refused: whether a checked path must refuse it.
    """

    kind: str
    text: str
    refused: bool


def names(folder: Path, outside: Path) -> list[Name]:
    """All of them.

    Args:
        folder: what they are to lead out of.
        outside: where to.
    """

    def filled(text: str) -> str:
        return text.replace("{outside}", str(outside)).replace("{folder}", folder.name)

    return [
        Name(kind, filled(text), refused)
        for table, refused in ((REFUSED, True), (TAKEN, False))
        for kind, texts in table.items()
        for text in texts
    ]
