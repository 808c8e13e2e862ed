"""Placeholder tokens: names, starting vectors, and candidates placed into a text encoder.

The tokenizer and the embedding table are never changed. A prompt is tokenised around the
placeholder, whose places are filled by a hook on the embedding layer, a different token for each
row of the batch; so a quantised, shared or read-only model can be trained.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .errors import CaptionError, TokenError
from .prompts import SLOT

MAX_NAME = 200
INITIALIZER_MODES = ("single", "mean", "first")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{i}" for device in ("com", "lpt") for i in range(1, 10))}


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
    if re.search(r"[\x00-\x1f\x7f\s\ud800-\udfff]", token):
        raise refuse("holds white space or control characters")
    if re.search(r"[/\\:*?\"|]", token) or token.startswith((".", "~")) or token.endswith("."):
        raise refuse("holds parts of a path")
    if re.search(r"[(){}\[\],]", token):
        raise refuse("holds brackets or commas, which mean something in prompts")
    if re.search(r"[<>]", token[1:-1]) or token.startswith(">") or token.endswith("<"):
        raise refuse("holds < or > in its middle")
    name = file_stem(token)
    if not name:
        raise refuse("has no name between its brackets")
    if name.startswith("."):
        raise refuse("holds parts of a path")
    if name.lower().split(".")[0] in _RESERVED:
        raise refuse("is a name that Windows reserves for a device")


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


def initial_vectors(
    tokenizer: Any,
    text_encoder: torch.nn.Module,
    initializer: str,
    num_vectors: int,
    mode: str = "single",
) -> torch.Tensor:
    """The starting token, float32 ``[num_vectors, dim]`` on the CPU, from a word's embedding.

    A one-token initializer starts every vector; ``mode="mean"`` starts them with the mean of
    several tokens, ``mode="first"`` gives one token to each vector, as many as there are.

    Raises:
        TokenError: an initializer that is unknown, or of several tokens with ``mode="single"``.
    """
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
            f"initializer {initializer!r} is {len(ids)} tokens ({pieces}); choose a one-token word, start "
            f"from their mean (--init-mode mean) or from the {first} "
            f"(--init-mode first), or train {len(ids)} vectors (--vectors {len(ids)})"
        )
    table = text_encoder.get_input_embeddings().weight  # type: ignore[operator]
    rows = table[torch.tensor(ids, device=table.device)].detach().float().cpu()
    if mode == "mean":
        rows = rows.mean(dim=0, keepdim=True)
    missing = max(0, num_vectors - len(rows))
    return torch.cat([rows[:num_vectors], rows[-1:].expand(missing, -1)])


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


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
def placed(text_encoder: torch.nn.Module, prompt: EncodedPrompt, candidates: torch.Tensor) -> Iterator[torch.Tensor]:
    """Within this context a forward of the yielded ids sees row k's token in row k's places.

    Args:
        candidates: float tensor ``[K, num_vectors, dim]``.

    Yields:
        The ids to encode, ``[K, length]``, on the text encoder's device.
    """
    layer = text_encoder.get_input_embeddings()  # type: ignore[operator]
    places = torch.tensor(prompt.positions, dtype=torch.long, device=layer.weight.device)
    uses = len(prompt.positions) // prompt.num_vectors

    def fill(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        rows = candidates.to(output.device, output.dtype).repeat(1, uses, 1)
        return output.index_copy(1, places, rows)

    hook = layer.register_forward_hook(fill)
    try:
        yield prompt.ids.to(layer.weight.device).expand(len(candidates), -1)
    finally:
        hook.remove()
