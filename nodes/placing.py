"""Tokens in the texts of any CLIP of ComfyUI whose tokenizers read embeddings, by the host's own way of reading files.

How a tokenizer takes an embedding is found by asking it: some weigh what stands in brackets and others take brackets
for words, some put the prompt into a template without a space around it, and some compare what they read with numbers,
which fails on vectors.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tokenizer import inner_of, text_encoders_of, words_alone

if TYPE_CHECKING:
    from ..zoodip_core.model.embedding import Embedding


def with_token(clip: Any, embedding: Embedding, strength: float, folder: Path) -> tuple[Any, str]:
    """A copy of a CLIP that knows the token, and the text that stands for it in prompts.

    The copy shares the weights. It reads the embedding from a file in ``folder`` whose name is that of its
    content, so nothing that ComfyUI remembers of another token can be taken for it. In a prompt the token's own
    name works as well. Where the tokenizer does not weigh words, the strength scales the file's vectors.

    Raises:
        EmbeddingFileError: the CLIP's tokenizers do not read embeddings.
    """
    known = _known(embedding, folder)
    words = words_alone(clip)
    way = way_of(clip, words, known)
    if strength != 1 and way.weighs:
        known = dataclasses.replace(known, text=f"({known.text}:{strength:g})")
    elif strength != 1:
        scaled = tuple(tensor * strength for tensor in embedding.tensors)
        known = _known(dataclasses.replace(embedding, tensors=scaled), folder)
    applied = clip.clone()
    applied.tokenizer = _with_token(clip.tokenizer, unicodedata.normalize("NFC", embedding.token), known, words, way)
    return applied, known.text


@dataclass(frozen=True)
class Known:
    """A token that a tokenizer knows: what stands for it in prompts, its file with the file's content, and a word.

    The word is for tokenizers that read words alone, as Anima's T5: there the token's initializer stands in its place,
    or nothing where that is not known.
    """

    text: str
    file: Path
    content: bytes
    word: str


def _known(embedding: Embedding, folder: Path) -> Known:
    from ..zoodip_core.model.embedding import serialize

    content = serialize(embedding)
    name = f"zoodip_{hashlib.sha256(content).hexdigest()[:16]}"
    word = plain_word(embedding.metadata.get("initializer", ""))
    return Known(f"embedding:{name}", folder / f"{name}.safetensors", content, word)


def plain_word(initializer: str) -> str:
    """A token's initializer, for tokenizers that read words alone; empty if a prompt would read more in it."""
    return initializer if re.fullmatch(r"[\w ,'-]{1,100}", initializer) else ""


# ---------------------------------------------------------------- how a tokenizer takes it


@dataclass(frozen=True)
class Way:
    """How a tokenizer takes an embedding.

    Args:
        weighs: ``(embedding:x:1.2)`` weighs it; if not, brackets are words like others.
        spaces: it has to have a space before and after it even where the prompt begins and ends.
        wrapped: vectors have to come in the form that ComfyUI gives those of pictures.
    """

    weighs: bool = True
    spaces: bool = False
    wrapped: bool = False


def way_of(clip: Any, words: Collection[str], known: Known) -> Way:
    """How a CLIP's tokenizer takes an embedding, by what comes out of it.

    Raises:
        EmbeddingFileError: not all of its text encoders are given the vectors.
    """
    from ..zoodip_core.base.errors import EmbeddingFileError
    from ..zoodip_core.base.files import write_atomically

    write_atomically(known.file, known.content)
    for wrapped in (False, True):
        asked = reading(clip.tokenizer, [known.file.parent], words, _in_words({"": known}), wrapped)
        try:
            among, alone, weighed = (
                _weights_in(asked.tokenize_with_weights(text))
                for text in (f"a {known.text} b", known.text, f"a ({known.text}:1.5) b")
            )
        except RuntimeError:  # PyTorch's, of a vector that is compared with a number
            continue
        if among is None or alone is None:  # another pack's form: as Stable Diffusion's
            return Way()
        if len(among) >= len(text_encoders_of(clip)):
            heavy = {key: [1.5] * len(weights) for key, weights in among.items()}
            return Way(weighed == heavy, alone.keys() != among.keys(), wrapped)
    raise EmbeddingFileError("clip: this kind reads no embeddings; connect the CLIP of a model whose tokenizer does")


def _weights_in(tokens: Any) -> dict[str, list[float]] | None:
    """The weights of the vectors among a CLIP's tokens by text encoder; None if the tokens are of another form."""
    if not isinstance(tokens, Mapping):
        return None
    vectors = {
        key: [entry[1] for batch in batches for entry in batch if _is_vector(entry[0])]
        for key, batches in tokens.items()
    }
    return {key: weights for key, weights in vectors.items() if weights}


def _is_vector(entry: Any) -> bool:
    import torch

    return isinstance(entry, torch.Tensor) or (isinstance(entry, Mapping) and entry.get("type") == "embedding")


def reading(
    tokenizer: Any, folders: Iterable[Path], words: Collection[str], in_words: Callable[[str], str], wrapped: bool
) -> Any:
    """A copy of a tokenizer whose inner ones find embeddings in some folders as well.

    Args:
        words: the attributes of those that read words alone.
        in_words: what a text with embeddings is to these.
        wrapped: as :class:`Way` has it.
    """
    copied = copy.copy(tokenizer)
    places = list(dict.fromkeys(map(str, folders)))
    for name, inner in inner_of(tokenizer).items():
        inner, plain = copy.copy(inner), vars(type(inner)).get("zoodip_plain", type(inner))
        if name in words:
            inner.__class__ = _with_words(plain, in_words)
        else:
            inner.embedding_directory = list(dict.fromkeys([*places, *_listed(inner.embedding_directory)]))
            if wrapped:
                inner.__class__ = _wrapping(plain)
        setattr(copied, name, inner)
    return copied


def _in_words(known: Mapping[str, Known]) -> Callable[[str], str]:
    """What puts the tokens' words in the place of their files."""
    pieces = {each.file.stem: each.word for each in known.values()}
    files = re.compile(f"embedding:({'|'.join(pieces)})")
    return lambda text: files.sub(lambda file: pieces[file[1]], text)


def _with_words(plain: Any, in_words: Callable[[str], str]) -> Any:
    """A tokenizer's class that reads words in the place of embeddings."""

    class WithWords(plain):  # type: ignore[misc]
        zoodip_plain = plain

        def tokenize_with_weights(self, text: str, *args: Any, **options: Any) -> Any:
            return super().tokenize_with_weights(in_words(text), *args, **options)

    WithWords.__name__ = plain.__name__
    return WithWords


def _wrapping(plain: Any) -> Any:
    """A tokenizer's class that gives vectors in the form of pictures', which nothing compares with a number."""

    class Wrapping(plain):  # type: ignore[misc]
        zoodip_plain = plain

        def tokenize_with_weights(self, *args: Any, **options: Any) -> Any:
            import torch

            return [
                [({"type": "embedding", "data": e[0]}, *e[1:]) if isinstance(e[0], torch.Tensor) else e for e in batch]
                for batch in super().tokenize_with_weights(*args, **options)
            ]

    Wrapping.__name__ = plain.__name__
    return Wrapping


# ---------------------------------------------------------------- the token's name in prompts


def _with_token(tokenizer: Any, token: str, known: Known, words: Collection[str], way: Way) -> Any:
    """A copy of a tokenizer that knows this token besides those that it knows already."""
    from ..zoodip_core.base.files import write_atomically

    all_known: dict[str, Known] = {**getattr(tokenizer, "zoodip_known", {}), token: known}
    plain: Any = vars(type(tokenizer)).get("zoodip_plain", type(tokenizer))  # another's class on top of ours stays

    class WithTokens(plain):  # type: ignore[misc]
        zoodip_known, zoodip_plain = all_known, plain

        def tokenize_with_weights(self, prompt: str, *args: Any, **options: Any) -> Any:
            for each in all_known.values():
                if not each.file.is_file():  # the folder is temporary
                    write_atomically(each.file, each.content)
            return super().tokenize_with_weights(in_prompt(prompt, all_known, way), *args, **options)

    WithTokens.__name__ = plain.__name__
    folders = [each.file.parent for each in all_known.values()]
    copied = reading(tokenizer, folders, words, _in_words(all_known), way.wrapped)
    copied.__class__ = WithTokens
    write_atomically(known.file, known.content)
    return copied


def in_prompt(prompt: str, known: Mapping[str, Known], way: Way) -> str:
    """The prompt with the tokens' names replaced, all at once: ``dog`` is not looked for in ``dog-2``."""
    text = replaced(prompt, names_in(known), lambda token: known[token].text, way.weighs)
    files = "|".join(re.escape(f"embedding:{each.file.stem}") for each in known.values())
    return spaced(text, files, way.spaces)


def names_in(tokens: Iterable[str], *others: str) -> str:
    """A regular expression for tokens' names, of which the longest is meant, and for other texts."""
    from ..zoodip_core.data.prompts import token_pattern

    longest_first = sorted(tokens, key=len, reverse=True)
    return "|".join([*map(token_pattern, longest_first), *map(re.escape, others)])


def nfc(token: str) -> str:
    """A token's name with its letters written in one way."""
    return unicodedata.normalize("NFC", token)


def spaced(text: str, pattern: str, spaces: bool) -> str:
    """A prompt with a space before what it begins with and after what it ends with, if that is the pattern."""
    if not spaces:
        return text
    left = " " if re.match(pattern, text) else ""
    right = " " if re.search(rf"(?:{pattern})$", text) else ""
    return left + text + right


def replaced(prompt: str, pattern: str, text_for: Callable[[str], str], weighs: bool = True) -> str:
    """The prompt with an embedding's text in place of what matches.

    ComfyUI reads an embedding's name up to the next space, and only where a space, a line or a bracket begins it; a
    bracket does so only where brackets weigh words.
    """
    opens, closes = (r"|(?<!\\)\(", r"|\)|:[\d.]+\)") if weighs else ("", "")

    def placed(match: re.Match[str]) -> str:
        before, after = prompt[: match.start()], prompt[match.end() :]
        if re.search(r"(?:^|[\s(])embedding:\S*$", before):  # the name of a file of the user's
            return match[0]
        left = "" if not before or re.search(rf"(?:[ \n]{opens})$", before) else " "
        right = "" if not after or re.match(rf"\s{closes}", after) else " "
        return left + text_for(match[0]) + right

    return re.sub(pattern, placed, prompt)


def _listed(directories: Any) -> list[str]:
    if directories is None:
        return []
    return [directories] if isinstance(directories, str) else list(directories)
