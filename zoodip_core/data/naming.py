"""Which of several tokens a text names, and which picture shows which of them."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import CaptionError
from .prompts import SLOT, captions_for, check_template, of_template, read_listed, says, token_pattern, written_for


@dataclass(frozen=True)
class Naming:
    """A text, and the tokens it names.

    Args:
        text: with ``{}`` in the place of each.
        tokens: which of the tokens stands in each place, by their numbers.
    """

    text: str
    tokens: tuple[int, ...]

    def with_names(self, names: Sequence[str]) -> str:
        """The text with names, or words, in the places of the tokens.

        Args:
            names: of all tokens.
        """
        first, *rest = self.text.split(SLOT)
        return first + "".join(names[token] + text for token, text in zip(self.tokens, rest, strict=True))


def naming(text: str, tokens: Sequence[str], own: int | None = None) -> Naming:
    """What a text names. Of names that begin at the same place the longest is meant.

    Args:
        text: with names of tokens, or ``{}`` for its own.
        tokens: all of them.
        own: the number of the token that ``{}`` stands for; None where that is not known, and no place is left then.
    """
    longest_first = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
    patterns = [f"({token_pattern(tokens[i])})" for i in longest_first]
    found: list[int] = []

    def placed(match: re.Match[str]) -> str:
        number = longest_first[match.lastindex - 1] if match.lastindex else own
        if number is None:
            return match[0]
        found.append(number)
        return SLOT

    return Naming(
        re.sub("|".join([*patterns, re.escape(SLOT)]), placed, unicodedata.normalize("NFC", text)),
        tuple(found),
    )


def owner_of(picture: Path, sources: Sequence[str | Path], tokens: int) -> int | None:
    """The number of the token that a picture is of by where it lies; None where sources are not one for each token."""
    if len(sources) != tokens:
        return None
    places = list(map(Path, sources))
    return next((i for i, place in enumerate(places) if place in (picture, picture.parent)), None)


def in_turn(captions: Sequence[Sequence[Naming]]) -> list[int]:
    """The pictures' numbers such that, by what their first captions name first, those of each token come in turn."""
    of_token: dict[int, list[int]] = {}
    for picture, each in enumerate(captions):
        of_token.setdefault(each[0].tokens[0], []).append(picture)
    rounds = itertools.zip_longest(*(of_token[token] for token in sorted(of_token)))
    return [picture for each in rounds for picture in each if picture is not None]


def captions_of(
    paths: Sequence[Path],
    sources: Sequence[str | Path],
    *,
    tokens: Sequence[str],
    class_words: Sequence[str],
    template: str = "object",
    captions_file: Path | None = None,
) -> list[tuple[Naming, ...]]:
    """The captions each image may be trained with, and the tokens that each of them names.

    Where they come from, see :func:`.prompts.captions_for`. With several tokens a caption names those it shows;
    ``{}``, and a template's, is the token of the picture's own source, where there is a source for each token.

    Args:
        paths: the pictures.
        sources: the folders and files that they were looked for in.
        tokens: the names, one or several.
        class_words: what kind of thing each is, which captions that name it have to say; none where it does not matter.
        template: for pictures without captions.
        captions_file: a JSON file of captions.

    Raises:
        CaptionError: captions that name no token, or not its class word, or leave open which token they show; tokens
            that none shows; or an unreadable file.
        ConfigError: an unknown ``template``.
    """
    if len(tokens) == 1:
        word = class_words[0] if class_words else None
        own_texts = captions_for(
            paths, template=template, captions_file=captions_file, token=tokens[0], class_word=word
        )
        return [tuple(Naming(text, (0,) * text.count(SLOT)) for text in each) for each in own_texts]
    check_template(template)
    _check_same_names(paths, captions_file)
    found: list[tuple[Naming, ...]] = []
    for path, (where, written) in zip(paths, written_for(paths, captions_file, tokens), strict=True):
        own = owner_of(path, sources, len(tokens))
        if not where and own is None:
            raise CaptionError(f"{path}: it has no caption, so that nobody knows whose it is; {_whose(tokens)}")
        word = class_words[own] if class_words and own is not None else None
        texts = written or ([""] if where else of_template(template, word))
        found.append(tuple(_checked(text, where or str(path), tokens, class_words, own) for text in texts))
    shown = {number for each in found for caption in each for number in caption.tokens}
    missing = [token for number, token in enumerate(tokens) if number not in shown]
    if missing:
        raise CaptionError(
            f"no picture shows {' or '.join(missing)}: name it in the captions of its pictures, or leave it out of "
            "token"
        )
    return found


def _check_same_names(paths: Sequence[Path], captions_file: Path | None) -> None:
    """Refuse a caption that would be that of two pictures, which may show different subjects.

    Raises:
        CaptionError: pictures of two folders have the same name, and a file of captions names it.
    """
    counts = Counter(path.name for path in dict.fromkeys(paths))
    listed = read_listed(captions_file, list(counts)) if captions_file else {}
    twice = [name for name in listed if counts[name] > 1]
    if twice:
        raise CaptionError(
            f"{captions_file}, {twice[0]}: pictures of several folders have this name, and one caption cannot say "
            "whose each is; write a .txt file beside each picture, or give the pictures other names"
        )


def _checked(text: str, where: str, tokens: Sequence[str], class_words: Sequence[str], own: int | None) -> Naming:
    """A caption as what it names.

    Raises:
        CaptionError: it names nothing, or leaves something open.
    """
    caption = naming(text, tokens, own)
    if own is None and SLOT in text:
        raise CaptionError(
            f"{where}: in the caption {text!r} {SLOT} may be any of {len(tokens)} tokens; {_whose(tokens)}"
        )
    if not caption.tokens:
        raise CaptionError(
            f"{where}: the caption {text!r} names none of the tokens; write {' or '.join(tokens)} where the learned "
            "tokens should stand"
        )
    for number in sorted(set(caption.tokens)) if class_words else ():
        if not says(text, class_words[number]):
            raise CaptionError(
                f"{where}: the caption {text!r} does not say {class_words[number]}, the class word of "
                f"{tokens[number]}: write {tokens[number]} {class_words[number]} where the subject stands, or leave "
                "class_word out"
            )
    return caption


def _whose(tokens: Sequence[str]) -> str:
    return (
        f"write {' or '.join(tokens)} in its caption, or give images as {len(tokens)} folders or files, one for each "
        "token in the order of token"
    )
