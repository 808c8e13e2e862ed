"""What a captioning model says of a picture, made a caption: cleaned, short, and with the token's place."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..base.texts import whole_text
from .prompts import SLOT, says, with_slots

MOST_WORDS = 40
"""Of a caption; a text encoder reads 75 tokens, of which a word takes one or a few."""
_LEAST_SHARE = 0.3
"""Of the words that there is room for: a caption that would be cut to less ends within a clause instead."""
_QUOTES = "'\"`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
_MARKS = f" .,;:-*#\N{EN DASH}\N{EM DASH}{_QUOTES}"
_LEAD_IN = re.compile(
    r"(?:this|it) is an? (?:image|picture|photo(?:graph)?) of "
    r"|(?:in )?th(?:is|e) (?:image|picture|photo(?:graph)?)"
    r"(?: (?:is of|shows?|depicts?|features?|captures?|displays?)(?: us)?"
    r"|,? (?:we|you) (?:can )?see|,? there (?:is|are)) ",
    re.IGNORECASE,
)
_PICTURE_OF = re.compile(
    r"an? (?:[\w-]+ ){0,3}?(?:photo(?:graph)?|picture|image|painting|drawing|close-?up(?: (?:photo|shot|view))?) of ",
    re.IGNORECASE,
)
"""How captions begin that name the kind of picture first."""
_DANGLING = {
    *("a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "to", "by", "for", "from", "with", "without"),
    *(
        "near",
        "next",
        "beside",
        "behind",
        "under",
        "over",
        "into",
        "onto",
        "its",
        "his",
        "her",
        "their",
        "this",
        "that",
    ),
    *("these", "those", "is", "are", "was", "has", "have", "while", "as", "which", "who"),
}
"""Words that a caption does not end with where it is cut."""


@dataclass(frozen=True)
class Subject:
    """What captions are to name.

    Args:
        word: what kind of thing it is, such as dog.
        keep_word: whether it stays in the caption, behind the token, which is an adjective of it then.
        style: whether the token is a style, which the caption names at its end.
        token: stands for the token; the name itself where ``{}`` could be any of several.
        names: the token's own name, which marks its place as well.
    """

    word: str
    keep_word: bool = False
    style: bool = False
    token: str = SLOT
    names: tuple[str, ...] = ()


def caption_of(
    text: str, subject: Subject, fits: Callable[[str], bool] = lambda text: True, most: int = MOST_WORDS
) -> str:
    """A caption made of a model's text; empty if it says nothing.

    Args:
        text: as the model gave it.
        subject: what the caption is to name.
        fits: whether a text is short enough for the text encoders that will read it.
        most: words, but for those that name the subject.
    """
    said = shortened(cleaned(text), lambda part: fits(slotted(part, subject)), most)
    return slotted(said, subject) if re.search(r"\w", said) else ""


# ---------------------------------------------------------------- cleaning


def cleaned(text: str) -> str:
    """One line without control characters, lone braces, a lead-in, or an end that repeats itself; empty without a word.

    ``{}`` stays where it is.
    """
    text = unicodedata.normalize("NFC", whole_text(text))
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Co", "Cn") else char for char in text)
    text = " ".join(re.sub(r"\{\s*\}", "\0", text).replace("{", " ").replace("}", " ").replace("\0", SLOT).split())
    lead_in = _LEAD_IN.match(text)
    text = text[lead_in.end() :] if lead_in else text
    text = " ".join(_without_repeats(text.split()))
    return _end(text) if re.search(r"\w", text) else ""


def _end(text: str) -> str:
    """Without the marks that a caption neither begins nor ends with."""
    return text.strip(_MARKS)


def _without_repeats(words: list[str]) -> list[str]:
    """Words whose end does not say the same twice, as models do that find no end; the last time may be cut off."""
    plain = [word.strip(".,;:!").lower() for word in words]
    while (shorter := _once_less(plain)) < len(plain):
        del plain[shorter:]
    return words[: len(plain)]


def _once_less(words: Sequence[str]) -> int:
    """How many words are left where the end, said at least twice in a row, is said once; all if it is not."""
    for size in range(1, len(words) // 2 + 1):
        begins = len(words) - size
        while begins > 0 and words[begins - 1] == words[begins - 1 + size]:
            begins -= 1
        if len(words) - begins >= 2 * size:
            return begins + size
    return len(words)


# ---------------------------------------------------------------- cutting


def shortened(text: str, fits: Callable[[str], bool] = lambda text: True, most: int = MOST_WORDS) -> str:
    """The text, or its beginning: to the end of a sentence, else of a clause, else of the last word that fits."""
    words = text.split()
    room = next((count for count in range(min(len(words), most), 0, -1) if fits(" ".join(words[:count]))), 0)
    if room == len(words):
        return text
    least = max(1, round(_LEAST_SHARE * room))
    for marks in (".!?", ".!?,;:\N{EN DASH}\N{EM DASH}"):
        ends = [count for count in range(least, room + 1) if words[count - 1][-1] in marks]
        if ends:
            return _end(" ".join(words[: ends[-1]]))
    kept = words[:room]
    while len(kept) > 1 and kept[-1].strip(",;").lower() in _DANGLING:
        kept.pop()
    return _end(" ".join(kept))


# ---------------------------------------------------------------- the token's place


def slotted(text: str, subject: Subject) -> str:
    """The text with the token's place: that of the class word, with its article, else at the text's beginning.

    A place that is there already stays the only one. Plurals and synonyms of the class word are not guessed.
    """
    for name in subject.names:
        text = text if SLOT in text else with_slots(text, name)
    if SLOT in text:
        placed = _with_word(text, subject)
    elif subject.style:
        comma = "," if re.search(r"[.!?] ", text) else ""
        placed = _with_word(f"{text}{comma} in the style of {SLOT}", subject)
    else:
        placed = _in_place(text, subject) or _in_front(text, subject)
    return placed.replace(SLOT, subject.token)


def _with_word(text: str, subject: Subject) -> str:
    """A text with a place, that says the class word as well where it has to."""
    if not subject.keep_word or says(text, subject.word):
        return text
    return text.replace(SLOT, f"{SLOT} {subject.word}", 1)


def _in_place(text: str, subject: Subject) -> str:
    """The text with the place where it says the class word first; empty if it does not."""
    word = r"\s+".join(map(re.escape, subject.word.split()))
    found = re.search(rf"(?<![\w-]){word}(?![\w-])", text, re.IGNORECASE)
    if not found:
        return ""
    # "an" belongs to the word: the token's sound is not known, and all templates say "a".
    before = re.sub(r"(?<!\w)([Aa])n(\s+)$", r"\1\2", text[: found.start()])
    kept = f" {found[0]}" if subject.keep_word else ""
    return before + SLOT + kept + text[found.end() :]


def _in_front(text: str, subject: Subject) -> str:
    named = f"{SLOT} {subject.word}" if subject.keep_word else SLOT
    kind = _PICTURE_OF.match(text)
    beginning, rest = (kind[0], text[kind.end() :]) if kind else ("a photo of ", text)
    rest = rest[:1].lower() + rest[1:] if re.match(r"(?:An?|The|Two|There) ", rest) else rest
    return f"{beginning}a {named}, {rest}"
