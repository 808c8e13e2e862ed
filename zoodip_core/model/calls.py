"""Which words of prompts call which embeddings.

An embedding answers to its token. Webuis and ComfyUI call it by the name of its file instead, and prompts are carried
from there: so it answers to ``embedding:NAME``, and to the bare name where no prompt holds the token itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..base.errors import ConfigError, EmbeddingFileError
from ..data.prompts import SLOT, token_pattern
from .embedding import Embedding


@dataclass(frozen=True)
class Call:
    """A prompt, and what it calls.

    Args:
        text: the prompt with ``{}`` in the place of each embedding.
        embeddings: those in the places, in their order.
    """

    text: str
    embeddings: tuple[Embedding, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many vectors stand in each place."""
        return tuple(each.num_vectors for each in self.embeddings)

    @property
    def vectors(self) -> torch.Tensor | None:
        """The vectors of all places one after the other, ``[1, sum of counts, sum of dims]``; None without places."""
        return torch.cat([each.vectors for each in self.embeddings])[None] if self.embeddings else None

    def in_words(self, until: float) -> Call:
        """The prompt with the words that the embeddings began as in their places.

        Args:
            until: the setting for which this is wanted, for messages.

        Raises:
            ConfigError: an embedding does not say what it began as.
        """
        text = self.text
        for each in self.embeddings:
            word = each.metadata.get("initializer", "").strip()
            if not word or SLOT in word:
                raise ConfigError(
                    f"until = {until:g}: {each.token[:80]} does not say which word it began as, to stand in its place "
                    "from then on; draw with until 1, all of the steps"
                )
            text = text.replace(SLOT, word, 1)
        return Call(text, ())


def calls_in(texts: Sequence[str], embeddings: Sequence[Embedding]) -> list[Call]:
    """What each text calls. The texts are those of one drawing, the negative prompt among them.

    Of names that begin at the same place the longest is meant: ``dog-2`` is not ``dog``. ``{}`` stands for the
    embedding if there is one alone.

    Raises:
        EmbeddingFileError: two embeddings have the same token.
        ConfigError: ``{}`` stands for one of several.
    """
    if not embeddings:
        return [Call(text, ()) for text in texts]
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    _check_names(texts, embeddings)
    forms = [form for each in embeddings for form in _own_forms(each, alone=len(embeddings) == 1)]
    used = {id(each) for text in texts for _, each in _found(text, forms)}
    known = Counter(_name(each.alias) for each in embeddings)
    for each in embeddings:
        if each.alias and known[_name(each.alias)] == 1:
            forms += _forms_of_file(each, bare=id(each) not in used)
    return [_call(text, forms) for text in texts]


Form = tuple[str, int, Embedding]
"""A regular expression, the length of the name it stands for, and the embedding that is called."""


def _name(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _check_names(texts: Sequence[str], embeddings: Sequence[Embedding]) -> None:
    tokens = Counter(unicodedata.normalize("NFC", each.token) for each in embeddings)
    token, count = tokens.most_common(1)[0]
    if count > 1:
        raise EmbeddingFileError(
            f"{count} embeddings have the same token {token}, which a prompt could not tell apart; give one of them"
        )
    if len(embeddings) > 1 and SLOT in "".join(texts):
        raise ConfigError(
            f"the prompt holds {SLOT}, which may be any of {len(embeddings)} tokens; write the token itself"
        )


def _own_forms(embedding: Embedding, alone: bool) -> Iterator[Form]:
    yield token_pattern(embedding.token), len(embedding.token), embedding
    if alone:
        yield re.escape(SLOT), len(SLOT), embedding


def _forms_of_file(embedding: Embedding, bare: bool) -> Iterator[Form]:
    name, length = re.escape(unicodedata.normalize("NFC", embedding.alias)), len(embedding.alias)
    ends = r"(?![-.]*\w)"  # rex-2 and rex.v2 are other files
    folder, suffix = r"(?:[^\s,:()]*[/\\])?", r"(?:\.(?:safetensors|pt|bin))?"
    yield rf"(?<!\w)(?i:embedding:{folder}{name}{suffix}){ends}", length, embedding
    if bare:
        yield rf"(?i:<{name}>|(?<![\w<:.-]){name}{ends}(?!>))", length, embedding


def _found(text: str, forms: Sequence[Form]) -> Iterator[tuple[re.Match[str], Embedding]]:
    longest_first = sorted(forms, key=lambda form: -form[1])
    for match in re.finditer("|".join(f"({pattern})" for pattern, _, _ in longest_first), text):
        yield match, longest_first[(match.lastindex or 1) - 1][2]


def _call(text: str, forms: Sequence[Form]) -> Call:
    pieces, called, end = [], [], 0
    for match, embedding in _found(text, forms):
        pieces += [text[end : match.start()], SLOT]
        called.append(embedding)
        end = match.end()
    return Call("".join([*pieces, text[end:]]), tuple(called))
