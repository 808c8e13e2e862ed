"""Placeholder tokens: names, starting vectors, and candidates placed into a text encoder.

The tokenizer is never changed. A prompt is tokenised around the placeholder, whose places are
filled by a hook on the embedding layer, a different token for each row of the batch; so a
quantised, shared or read-only model can be trained.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..base.errors import CaptionError, ModelError, TokenError
from ..base.paths import fault
from ..data.prompts import SLOT

MAX_NAME = 200
_LONGEST_TEXT = 100_000
INITIALIZER_MODES = ("single", "mean", "first")


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


def check_new(tokenizer: Any, token: str) -> None:
    """Refuse a placeholder that the model already knows as a word."""
    known = tokenizer.get_vocab()
    for form in (token, token.lower() + "</w>"):
        if form in known:
            raise TokenError(
                f"token {token!r} is already a word of the model's vocabulary; choose a new one, "
                f"like <my-{file_stem(token)}>"
            )


class TokenTable(nn.Module):
    """The rows of a text encoder's embedding table that are in use, read from its file when first asked for.

    Stands in for the ``nn.Embedding``, which holds tens of thousands of rows of which a run reads twenty.
    The ids that the encoder sees stay the vocabulary's own: it looks for its end of text among them.

    Args:
        shape: ``(vocabulary, dim)`` of the whole table.
        read: rows ``[N, dim]`` of some ids.
        dtype: of the output.
        device: of the output.
    """

    ids: torch.Tensor
    weight: torch.Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        read: Callable[[list[int]], torch.Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = shape
        self._read = read
        self._known: set[int] = set()
        self.register_buffer("ids", torch.zeros(0, dtype=torch.long, device=device))
        self.register_buffer("weight", torch.zeros(0, shape[1], dtype=dtype, device=device))

    def keep(self, ids: Iterable[int]) -> None:
        """Have the rows of these ids at hand; a forward of others fails."""
        new = sorted(set(ids) - self._known)
        if not new:
            return
        order = torch.cat([self.ids, torch.tensor(new, device=self.ids.device)]).sort()
        self.weight = torch.cat([self.weight, self._read(new).to(self.weight)])[order.indices]
        self.ids = order.values
        self._known |= set(new)

    def rows(self, ids: Sequence[int]) -> torch.Tensor:
        """Rows ``[N, dim]`` as the file has them, in float32 on the CPU."""
        return self._read(list(ids)).float().cpu()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[..., dim]`` of ids that were kept.

        Raises:
            KeyError: other ids (on the CPU; to look would stall a GPU).
        """
        places = torch.searchsorted(self.ids, ids.contiguous())
        if ids.device.type == "cpu" and not torch.equal(self.ids[places.clamp(max=len(self.ids) - 1)], ids):
            raise KeyError("the token table was not told to keep some of these ids")
        return self.weight[places]


def table_of(text_encoder: nn.Module) -> TokenTable:
    """A loaded text encoder's table."""
    table: TokenTable = text_encoder.get_input_embeddings()  # type: ignore[operator]
    return table


def initial_vectors(
    tokenizers: Sequence[Any],
    text_encoders: Sequence[nn.Module],
    initializer: str,
    num_vectors: int,
    mode: str = "single",
) -> torch.Tensor:
    """The starting token, float32 ``[num_vectors, sum of dims]`` on the CPU, from a word's embedding.

    A one-token initializer starts every vector; ``mode="mean"`` starts them with the mean of
    several tokens, ``mode="first"`` gives one token to each vector, as many as there are.
    For a model of several text encoders, each gives its part of the vectors.

    Raises:
        TokenError: an initializer that is unknown, or of several tokens with ``mode="single"``.
    """
    ids = _initializer_ids(tokenizers[0], initializer, num_vectors, mode)
    rows = torch.cat([table_of(encoder).rows(ids) for encoder in text_encoders], dim=1)
    if mode == "mean":
        rows = rows.mean(dim=0, keepdim=True)
    missing = max(0, num_vectors - len(rows))
    return torch.cat([rows[:num_vectors], rows[-1:].expand(missing, -1)])


def check_initializer(tokenizer: Any, initializer: str, num_vectors: int, mode: str) -> None:
    """Refuse an initializer that :func:`initial_vectors` could not start from. Needs no text encoder.

    Raises:
        TokenError: as there.
    """
    _initializer_ids(tokenizer, initializer, num_vectors, mode)


def _initializer_ids(tokenizer: Any, initializer: str, num_vectors: int, mode: str) -> list[int]:
    ids = _plain_ids(tokenizer, initializer)
    if not ids or tokenizer.eos_token_id in ids:
        raise TokenError(
            f"initializer {initializer!r} is unknown to the model's tokenizer; choose a plain word for "
            'the subject\'s kind, like "dog"'
        )
    if mode == "single" and len(ids) > 1 and len(ids) != num_vectors:
        pieces = ", ".join(piece.replace("</w>", "") for piece in tokenizer.convert_ids_to_tokens(ids))
        first = f"first {num_vectors}" if num_vectors > 1 else "first"
        raise TokenError(
            f"initializer {initializer!r} is {len(ids)} tokens ({pieces}); choose a one-token word, or set "
            f"initializer_mode to mean for their mean or to first for the {first}, or num_vectors to {len(ids)} "
            f"(on the command line --init-mode mean, --init-mode first, --vectors {len(ids)})"
        )
    return ids


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    if len(text) > _LONGEST_TEXT:
        raise CaptionError(f"a text of {len(text)} characters is too long, models read some 300; shorten {text[:40]!r}")
    try:
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    except Exception as error:  # the library raises whatever damaged files make it
        raise ModelError(
            f"model: its tokenizer can not read {text[:80]!r} ({error}); its files may be damaged, copy them again"
        ) from error


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids ``[1, length]`` and the positions at which the placeholder's vectors stand."""

    ids: torch.Tensor
    positions: tuple[int, ...]
    num_vectors: int


def encode_prompt(tokenizer: Any, text: str, num_vectors: int, where: str = "the prompt") -> EncodedPrompt:
    """Tokenise a prompt in which each ``{}`` stands for ``num_vectors`` vectors; padded, never cut.

    ``where`` names the text in errors.

    The places are held by the end-of-text-free id of an ordinary letter, so that a text encoder
    finds its end of text where it should.

    Raises:
        CaptionError: the prompt is longer than the model reads.
    """
    length = tokenizer.model_max_length
    holder = _plain_ids(tokenizer, "a")[0]
    ids = [tokenizer.bos_token_id]
    positions: list[int] = []
    for i, part in enumerate(text.split(SLOT)):
        if i:
            positions += range(len(ids), len(ids) + num_vectors)
            ids += [holder] * num_vectors
        if part.strip():
            ids += _plain_ids(tokenizer, part)
    ids.append(tokenizer.eos_token_id)
    if len(ids) > length:
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise CaptionError(
            f"{where} {shown!r} is {len(ids)} tokens long, with {num_vectors} for the placeholder; the "
            f"model reads {length}: shorten it or use fewer vectors"
        )
    ids += [tokenizer.pad_token_id] * (length - len(ids))
    return EncodedPrompt(torch.tensor([ids]), tuple(positions), num_vectors)


@contextlib.contextmanager
def placed(text_encoder: nn.Module, prompt: EncodedPrompt, candidates: torch.Tensor) -> Iterator[torch.Tensor]:
    """Within this context a forward of the yielded ids sees row k's token in row k's places.

    Args:
        candidates: float tensor ``[K, num_vectors, dim]``.

    Yields:
        The ids to encode, ``[K, length]``, on the text encoder's device.
    """
    table = table_of(text_encoder)
    table.keep(prompt.ids[0].tolist())
    device = table.weight.device
    places = torch.tensor(prompt.positions, dtype=torch.long, device=device)
    uses = len(prompt.positions) // max(prompt.num_vectors, 1)

    def fill(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        rows = candidates.to(output.device, output.dtype).repeat(1, uses, 1)
        return output.index_copy(1, places, rows)

    hook = table.register_forward_hook(fill)
    try:
        yield prompt.ids.to(device).expand(len(candidates), -1)
    finally:
        hook.remove()
