"""Texts with places for a token, encoded by a CLIP of ComfyUI's, whichever text encoders it has.

The places are found as ComfyUI finds those of any embedding: a file of ours, whose numbers say which place is whose,
is named in the text, and in what the tokenizer gives the file's vectors stand where a candidate's belong.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ...zoodip_core.base.errors import CaptionError, ModelError, TokenError
from ...zoodip_core.base.files import write_atomically
from ...zoodip_core.data.prompts import SLOT
from ...zoodip_core.model.places import Rows, rows_of
from ...zoodip_core.model.tokens import LONGEST_TEXT, not_a_word
from ...zoodip_core.model.words import Vocabulary, in_pieces, names_of_words
from ..placing import Known, Way, plain_word, reading, replaced, spaced, way_of
from ..tokenizer import words_alone
from .encoders import encoder_parts

_MARKS = ("</w>", "\u2581", "\u0120")
"""What vocabularies put behind or before a word: CLIP's, SentencePiece's, byte-level BPE's."""
_FEWEST_COMMON = 256
"""Words that all text encoders know; with fewer, each encoder's own are taken side by side as they come."""

_MARKED = re.compile(r"embedding:zoodip_place_\w+")
"""A place in a text, as the tokenizer is shown it."""
Tokens = dict[str, list[list[tuple[Any, ...]]]]


@dataclass(frozen=True)
class Place:
    """Where a vector stands in what a tokenizer gave: section and index in a text encoder's list, and whose row."""

    key: str
    section: int
    index: int
    encoder: int
    row: int


@dataclass(frozen=True, eq=False)
class ComfyPrompt:
    """A tokenised text and its places."""

    tokens: Tokens
    places: tuple[Place, ...]

    def filled(self, parts: Sequence[torch.Tensor]) -> Tokens:
        """The tokens with vectors ``[rows, width]`` of each text encoder in the places."""
        filled = {key: [list(section) for section in sections] for key, sections in self.tokens.items()}
        for place in self.places:
            entry = self.tokens[place.key][place.section][place.index]
            vector = parts[place.encoder][place.row]
            filled[place.key][place.section][place.index] = (_in_place_of(entry[0], vector), *entry[1:])
        return filled

    def identity(self) -> bytes:
        """The ids and weights, with the places marked: what tells it from another text."""
        marked = self.filled([_Marks(encoder) for encoder in range(self._encoders)])  # type: ignore[misc]
        return json.dumps(marked, sort_keys=True, default=_told_apart).encode()

    @property
    def _encoders(self) -> int:
        return 1 + max((place.encoder for place in self.places), default=-1)


def _told_apart(entry: Any) -> str:
    """What tells an entry that is not a number from another: a vector of a file of the user's, by its content."""
    if torch.is_tensor(entry):
        return hashlib.sha256(entry.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
    return repr(entry)


class _Marks:
    """Rows of an encoder that only say which they are."""

    def __init__(self, encoder: int) -> None:
        self._encoder = encoder

    def __getitem__(self, row: int) -> str:
        return f"place of row {row} for encoder {self._encoder}"


def _in_place_of(entry: Any, vector: Any) -> Any:
    """A vector as a tokenizer would give it: bare, or in a dictionary where the text encoder wants one."""
    return {**entry, "data": vector} if isinstance(entry, Mapping) else vector


class Texts:
    """The texts of a CLIP.

    Args:
        clip: of ComfyUI.
        folder: for files of ours, which may vanish between two runs.
        words: what stands in places for tokenizers that read words alone, as Anima's T5: the tokens' initializers, by
            the rows with which they begin.
    """

    def __init__(self, clip: Any, folder: Path, words: Mapping[int, str] | None = None) -> None:
        self.clip = clip
        self.words = dict(words or {})
        self._folder = folder
        self._firsts: dict[str, int] = {}
        self._parts = encoder_parts(clip)
        self.encoders = tuple((part.key, part.width) for part in self._parts)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(width for _, width in self.encoders)

    @cached_property
    def _way(self) -> Way:
        name = self._marked(0, 1)
        file = self._folder / f"{name}.safetensors"
        return way_of(self.clip, words_alone(self.clip), Known(f"embedding:{name}", file, file.read_bytes(), ""))

    @cached_property
    def _tokenizer(self) -> Any:
        words = words_alone(self.clip)
        return reading(self.clip.tokenizer, [self._folder], words, self._in_words, self._way.wrapped)

    def _in_words(self, text: str) -> str:
        return _MARKED.sub(lambda place: self.words.get(self._firsts[place[0]], ""), text)

    def prompt(self, text: str, num_vectors: Rows, where: str) -> ComfyPrompt:
        """A text in which each ``{}`` stands for vectors; see ``TokenModel.prompt``.

        Raises:
            CaptionError: it is too long for any model.
            ModelError: a text encoder has no place for the token.
        """
        if len(text) > LONGEST_TEXT:
            raise CaptionError(f"{where} has {len(text)} characters, models read some 300; shorten {text[:40]!r}")
        places = rows_of(num_vectors, text.count(SLOT))
        names = iter([self._marked(place.start, len(place)) for place in places])
        named = replaced(text, r"\{\}", lambda _: f"embedding:{next(names)}", self._way.weighs)
        tokens = self._tokenize(spaced(named, _MARKED.pattern, self._way.spaces))
        found = tuple(self._places(tokens))
        self._check(found, places, text, where)
        return ComfyPrompt(tokens, found)

    def _tokenize(self, text: str) -> Tokens:
        clip = self.clip.clone()
        clip.tokenizer = self._tokenizer
        return clip.tokenize(text)

    def _marked(self, first: int, count: int) -> str:
        """The name of a file whose vectors say which row of which encoder they are."""
        rows = torch.arange(first, first + count, dtype=torch.float32)
        tensors = {}
        for encoder, (key, width) in enumerate(self.encoders):
            tensors[key] = torch.zeros(count, width)
            tensors[key][:, 0], tensors[key][:, 1] = rows + 1, encoder + 1
        content = save(tensors)
        name = f"zoodip_place_{hashlib.sha256(content).hexdigest()[:16]}"
        path = self._folder / f"{name}.safetensors"
        if not path.is_file():
            write_atomically(path, content)
        self._firsts[f"embedding:{name}"] = first
        return name

    def _places(self, tokens: Tokens) -> Iterator[Place]:
        for key, sections in tokens.items():
            for number, section in enumerate(sections):
                for index, (entry, *_) in enumerate(section):
                    vector = entry.get("data") if isinstance(entry, Mapping) else entry
                    if torch.is_tensor(vector) and (marks := self._marks_in(vector)):
                        yield Place(key, number, index, *marks)

    def _marks_in(self, vector: torch.Tensor) -> tuple[int, int] | None:
        """Whose place a vector marks, as encoder and row; None of one from a file of the user's."""
        row, encoder, *rest = vector.flatten().tolist()
        ours = row >= 1 and encoder in range(1, len(self.encoders) + 1) and not any(rest)
        return (int(encoder) - 1, int(row) - 1) if ours else None

    def _check(self, found: Sequence[Place], places: Sequence[range], text: str, where: str) -> None:
        wanted = sorted(row for place in places for row in place)
        for encoder, (key, _) in enumerate(self.encoders):
            if sorted(place.row for place in found if place.encoder == encoder) != wanted:
                raise ModelError(
                    f"clip: its text encoder {key} finds no place for the token in {where} {text[:80]!r}; write {{}} "
                    "as a word of its own"
                )

    # ------------------------------------------------------------ encoding

    def conditioning(self, prompt: ComfyPrompt, vectors: torch.Tensor | None = None) -> list[list[Any]]:
        """A text's CONDITIONING, as CLIP Text Encode would give it.

        Args:
            vectors: float32 ``[rows, sum of widths]`` for its places.
        """
        parts = vectors.split(self.widths, dim=1) if vectors is not None else ()
        return self.clip.encode_from_tokens_scheduled(prompt.filled(parts), show_pbar=False)

    # ------------------------------------------------------------ words

    def words_of(self, text: str) -> list[list[int]]:
        """The ids of a plain text for each text encoder."""
        return [_ids(part.tokenizer, text) for part in self._parts]

    def knows(self, word: str) -> bool:
        """Whether a word is one token of a vocabulary."""
        forms = {word, word.lower()}
        forms |= {form for each in tuple(forms) for form in (each + _MARKS[0], _MARKS[1] + each, _MARKS[2] + each)}
        return any(not forms.isdisjoint(part.tokenizer.get_vocab()) for part in self._parts)

    def check_initializer(self, initializer: str, num_vectors: int, mode: str, first: int = 0) -> None:
        """See ``TokenModel.check_initializer``. One text encoder that knows it as one token is enough."""
        self._check_word(initializer, num_vectors, mode)
        self.words[first] = plain_word(initializer)

    def _check_word(self, initializer: str, num_vectors: int, mode: str) -> None:
        found = self.words_of(initializer)
        if not all(found):
            raise not_a_word(initializer)
        counts = [len(ids) for ids in found]
        if mode == "single" and not {1, num_vectors} & set(counts):
            raise TokenError(
                f"initializer {initializer!r} is {min(counts)} tokens; choose a one-token word, or set "
                f"initializer_mode to mean for their mean or to first for the first ones, or num_vectors to "
                f"{min(counts)}"
            )

    def initial_vectors(self, initializer: str, num_vectors: int, mode: str) -> torch.Tensor:
        """See ``TokenModel.initial_vectors``. An encoder to which a single word is several tokens gives their mean."""
        self._check_word(initializer, num_vectors, mode)
        columns = []
        for part, ids in zip(self._parts, self.words_of(initializer), strict=True):
            rows = self._rows(part, ids)
            if mode == "mean" or (mode == "single" and len(rows) != num_vectors):
                rows = rows.mean(dim=0, keepdim=True)
            missing = max(0, num_vectors - len(rows))
            columns.append(torch.cat([rows[:num_vectors], rows[-1:].expand(missing, -1)]))
        return torch.cat(columns, dim=1)

    def word_rows(self) -> Iterator[torch.Tensor]:
        """The embeddings of words that all text encoders know, side by side, in pieces; see ``TokenModel``."""
        ids = self._common_words()
        for some in in_pieces(range(len(ids[0]))):
            pairs = zip(self._parts, ids, strict=True)
            yield torch.cat([self._rows(part, [own[i] for i in some]) for part, own in pairs], dim=1)

    def vocabularies(self) -> list[Vocabulary]:
        """The words of each text encoder."""
        return [
            Vocabulary(part.key, names_of_words(part.tokenizer), functools.partial(self._rows, part))
            for part in self._parts
        ]

    def _common_words(self) -> list[list[int]]:
        vocabularies = [{word: i for i, word in names_of_words(part.tokenizer).items()} for part in self._parts]
        common = sorted(set(vocabularies[0]).intersection(*vocabularies[1:]))
        if len(common) >= _FEWEST_COMMON or len(vocabularies) == 1:
            return [[vocabulary[word] for word in common] for vocabulary in vocabularies]
        fewest = min(map(len, vocabularies))
        return [sorted(vocabulary.values())[:fewest] for vocabulary in vocabularies]

    def _rows(self, part: Any, ids: Sequence[int]) -> torch.Tensor:
        """Rows ``[N, width]`` of a text encoder's table, float32 on the CPU."""
        self.clip.load_model()
        at = self.clip.patcher.load_device
        with torch.no_grad():
            rows = part.network.get_input_embeddings()(torch.tensor([list(ids)], device=at), out_dtype=torch.float32)
        return rows[0].float().cpu().clone()


def _ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a plain text, as it stands behind other words; none if some of it is unknown, as a smiley is to T5."""
    marks = set(tokenizer("")["input_ids"])
    spaced = f" {text}" if text and f"{_MARKS[2]}{text}" in tokenizer.get_vocab() else text
    ids = [i for i in tokenizer(spaced)["input_ids"] if i not in marks]
    return [] if getattr(tokenizer, "unk_token_id", None) in ids else ids
