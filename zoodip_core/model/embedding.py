"""Embedding files that ComfyUI, A1111, Forge and diffusers load, and reading theirs.

SD1.x and 2.x: a safetensors file with exactly one float tensor ``[num_vectors, dim]`` whose key is
the token; any tensor more breaks other readers. SDXL: ``clip_l`` and ``clip_g``. Any other model: a tensor for each
text encoder under the name by which ComfyUI looks for it. What else is worth knowing stands in the safetensors
header, as text.

The header's ``format_version`` does not decide what is read: other programs load these files by their tensors alone,
so a newer ZOODiP's file is as good as its tensors. Where they are not an embedding, it decides what the user is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..base.errors import EmbeddingFileError
from ..base.files import write_atomically
from ..base.names import check_name, file_stem
from ..base.pickles import load_plain, tensors_in
from ..base.safetensors_files import bytes_of, open_safetensors
from ..base.texts import parse_json, whole_text
from .embedding_tensors import (
    FORMAT_VERSION,
    MAX_BYTES,
    RENAMED,
    SDXL_KEYS,
    T5,
    check_names,
    check_size,
    other_tensors,
    rows_of,
    token_parts,
)
from .kinds import FAMILIES, STABLE_DIFFUSION, family_of_widths, in_order, model_of_widths, names_of

SUFFIXES = (".safetensors", ".pt", ".bin")


@dataclass(frozen=True)
class Embedding:
    """A learned token.

    Args:
        token: its placeholder text.
        tensors: one float32 tensor ``[num_vectors, dim]`` for each text encoder.
        metadata: what is known of it, as in the safetensors header.
        alias: the name of its file, by which webuis and ComfyUI call it; empty if it has none of its own.
        encoders: the text encoders, one a tensor, as ComfyUI names them and in the order of ``kinds.ENCODERS``; empty
            for Stable Diffusion 1.x, 2.x and XL, whose widths tell.
    """

    token: str
    tensors: tuple[torch.Tensor, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    alias: str = ""
    encoders: tuple[str, ...] = ()

    @property
    def vectors(self) -> torch.Tensor:
        """All text encoders' tensors side by side, ``[num_vectors, sum of dims]``, as the search sees them."""
        return torch.cat(self.tensors, dim=1)

    @property
    def num_vectors(self) -> int:
        return len(self.tensors[0])

    @property
    def dims(self) -> tuple[int, ...]:
        """The widths of its text encoders."""
        return tuple(tensor.shape[1] for tensor in self.tensors)

    @property
    def family(self) -> str:
        """The model family by the tensors' widths: sd1, sd2, sdxl, tiny, or sd-WIDTH; or its encoders' names."""
        return "+".join(self.encoders) or family_of_widths(self.dims)


def serialize(embedding: Embedding) -> bytes:
    """The bytes of the embedding's safetensors file; the same embedding gives the same bytes."""
    keys = embedding.encoders or (SDXL_KEYS if len(embedding.tensors) == 2 else (embedding.token,))
    tensors = {
        key: tensor.detach().to("cpu", torch.float32).contiguous()
        for key, tensor in zip(keys, embedding.tensors, strict=True)
    }
    metadata = {**embedding.metadata, "token": embedding.token, "format_version": str(FORMAT_VERSION)}
    if embedding.encoders:
        metadata["encoders"] = "+".join(embedding.encoders)
    return bytes_of(tensors, metadata)


def save_embedding(embedding: Embedding, path: str | Path) -> Path:
    """Write the embedding atomically as ``.safetensors``.

    Args:
        path: the file, or an existing folder, in which the file is named after the token.

    Raises:
        TokenError: the token cannot name a file.
        StorageError: the file cannot be written; an older file there is kept.
    """
    path = Path(path)
    if path.is_dir():
        check_name(embedding.token)
        path = path / f"{file_stem(embedding.token)}.safetensors"
    if path.suffix != ".safetensors":
        raise EmbeddingFileError(f"{path}: embeddings are saved as .safetensors; choose that ending")
    write_atomically(path, serialize(embedding))
    return path


def load_embedding(path: str | Path, which: str | None = None) -> Embedding:
    """Read our files and those of A1111 (``.pt``), diffusers (``.bin``) and other tools, without running code in them.

    Args:
        path: the file.
        which: the token to take of a file that holds several, with or without its angle brackets.

    Raises:
        EmbeddingFileError: no such file, another kind of file, tensors that are not an embedding, several tokens of
            which none was chosen, or no such token.
    """
    path = Path(path)
    tokens, metadata = _read(path)
    if which:
        token = _chosen(path, list(tokens), which)
    elif len(tokens) == 1:
        (token,) = tokens
    else:
        _all_of(path, tokens, metadata)  # they may be something else
        raise EmbeddingFileError(
            f"{path} holds {len(tokens)} tokens ({_names(tokens)}), where an embedding has one: say which (--which "
            "NAME on the command line, the input which of the node Load Embedding)"
        )
    return _embedding(path, token, tokens[token], metadata, path.stem)


def load_embeddings(path: str | Path) -> list[Embedding]:
    """All tokens of a file, of which most have one; see :func:`load_embedding`.

    Raises:
        EmbeddingFileError: no such file, another kind of file, or tensors that are not embeddings.
    """
    path = Path(path)
    return _all_of(path, *_read(path))


Parts = dict[str, torch.Tensor]
"""The tensors of a token by their text encoders; by an empty name where that is not known."""
Tokens = dict[str, Parts]


def _read(path: Path) -> tuple[Tokens, dict[str, str]]:
    """The tensors of each token in a file, as they are there, and what the file says of itself."""
    if not path.is_file():
        raise EmbeddingFileError(f"embedding file {path} does not exist")
    if path.suffix.lower() not in SUFFIXES:
        raise EmbeddingFileError(f"{path}: embedding files end in {', '.join(SUFFIXES)}")
    if path.stat().st_size > MAX_BYTES:
        raise EmbeddingFileError(
            f"{path} has {path.stat().st_size / 1e6:.0f} MB, too much for an embedding; is it a model or a LoRA?"
        )
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    else:
        tensors, metadata = _read_pickle(path)
    check_size(path, tensors)
    found = token_parts(path, tensors, metadata)
    stated = metadata.get("token") if len(found) == 1 else None
    tokens = {whole_text(stated or name or f"<{path.stem}>"): parts for name, parts in found.items()}
    if len(tokens) != len(found):
        raise other_tensors(path, tensors)
    return tokens, metadata


def _all_of(path: Path, tokens: Tokens, metadata: dict[str, str]) -> list[Embedding]:
    alias = path.stem if len(tokens) == 1 else ""
    found = [_embedding(path, token, parts, metadata, alias) for token, parts in tokens.items()]
    if len({(each.dims, each.encoders) for each in found}) > 1:
        raise other_tensors(path, tokens)
    return found


def _embedding(path: Path, token: str, parts: Parts, metadata: dict[str, str], alias: str) -> Embedding:
    rows = {part: rows_of(path, tensor) for part, tensor in parts.items()}
    if any(_is_rounded(tensor, rows[part]) for part, tensor in parts.items()):
        metadata = {**metadata, "rounded": "float64 to float32"}
    if T5 in rows:
        rows[RENAMED] = rows.pop(T5)
        metadata = {**metadata, "renamed": f"{T5} to {RENAMED}"}
    ordered = in_order((part, each.shape[1]) for part, each in rows.items())
    clean = tuple(rows[part] for part, _ in ordered)
    if len({len(each) for each in clean}) != 1:
        raise EmbeddingFileError(
            f"{path}: {' and '.join(part for part, _ in ordered)} differ in their number of vectors"
        )
    stable_diffusion = "" in rows or tuple(part for part, _ in ordered) in (SDXL_KEYS[:1], SDXL_KEYS)
    return Embedding(token, clean, metadata, alias, () if stable_diffusion else names_of(ordered))


def _is_rounded(tensor: torch.Tensor, rows: torch.Tensor) -> bool:
    """Whether a tensor of a file has numbers that its float32 rows have not; other types of numbers are all held."""
    return tensor.dtype == torch.float64 and not torch.equal(tensor.view_as(rows), rows.double())


def _chosen(path: Path, tokens: Sequence[str], which: str) -> str:
    stem = file_stem(which)
    found = [token for token in tokens if token == which] or [token for token in tokens if file_stem(token) == stem]
    if len(found) != 1:
        raise EmbeddingFileError(f"{path} holds no token {which}; choose one of {_names(tokens)}")
    return found[0]


def _names(tokens: Collection[str]) -> str:
    return ", ".join(token[:80] for token in list(tokens)[:20]) + (" ..." if len(tokens) > 20 else "")


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with open_safetensors(path) as file:
            names, metadata = file.keys(), dict(file.metadata() or {})
            check_names(path, names, metadata)
            return {name: file.get_tensor(name).clone() for name in names}, metadata
    except EmbeddingFileError:
        raise
    except Exception as error:  # the library's own, and PyTorch's where it has no such type or so many dimensions
        raise EmbeddingFileError(f"{path} is not a safetensors file, or damaged: {error}") from error


def _read_pickle(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        data = load_plain(path)
        tensors = tensors_in(data.get("string_to_param", data) if isinstance(data, dict) else {}, path)
    except Exception as error:  # the unpickler raises whatever a damaged or hostile file makes it
        raise EmbeddingFileError(
            f"{path} cannot be read as plain tensors; it is damaged or holds code, which is never run"
        ) from error
    if not isinstance(data, dict):
        raise EmbeddingFileError(f"{path} holds a {type(data).__name__}, not an embedding")
    notes = {"step": "steps", "sd_checkpoint_name": "base_model", "sd_checkpoint": "base_model_hash"}
    if "string_to_param" in data:
        notes["name"] = "token"
    metadata = {new: note for old, new in notes.items() if (note := _note(data.get(old)))}
    check_names(path, tensors, metadata)
    return tensors, metadata


def _note(value: Any) -> str:
    """A text or a number as text, empty for anything else: a list may be of any length, and hold itself."""
    if isinstance(value, str):
        return whole_text(value)
    return str(value) if isinstance(value, int) and abs(value) < 2**63 else ""


def describe(embedding: Embedding) -> list[tuple[str, str]]:
    """What a person wants to know of an embedding, as (label, text) lines."""
    shapes = " + ".join(f"{len(t)} x {t.shape[1]}" for t in embedding.tensors)
    lines = [
        ("token", embedding.token),
        ("for", model_of_widths(embedding.dims, embedding.encoders)),
        *([("text encoders", " + ".join(embedding.encoders))] if embedding.encoders else []),
        ("vectors", f"{embedding.num_vectors} ({shapes})"),
        ("norm", ", ".join(f"{norm:.3f}" for t in embedding.tensors for norm in t.norm(dim=1).tolist())),
        *made_how(embedding.metadata),
    ]
    if embedding.metadata.get("renamed") == f"{T5} to {RENAMED}":
        lines.append(("note", f"{RENAMED} was called {T5}, which ComfyUI does not read; saved again by ZOODiP it does"))
    if "rounded" in embedding.metadata:
        lines.append(("note", "its numbers were float64; they are rounded to float32, which all programs compute with"))
    return [*lines, *settings_line(embedding.metadata)]


def made_how(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """How a file was made, as far as it says so, as (label, text) lines."""
    labels = {
        "initializer": "initializer",
        "base_model": "base model",
        "base_model_hash": "base model hash",
        "steps": "steps",
        "made_of": "made of",
        "zoodip_version": "made by ZOODiP",
    }
    return [(label, metadata[key]) for key, label in labels.items() if key in metadata]


def settings_line(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """The settings of the run that a file is of, as a (label, text) line; none where it says nothing of them."""
    config = settings_in(metadata)
    return [("settings", ", ".join(f"{key} {value}" for key, value in config.items()))] if config else []


def settings_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The settings of the run that a file says it is of; none if it says nothing that can be read."""
    try:
        config = parse_json(metadata.get("config", "{}"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def check_fits(embedding: Embedding, dims: tuple[int, ...], where: str, encoders: tuple[str, ...] = ()) -> None:
    """Refuse an embedding that is not for a model's text encoders.

    Args:
        dims: the widths of the model's text encoders.
        where: begins the message.
        encoders: their names as in :class:`Embedding`; empty for Stable Diffusion.

    Raises:
        EmbeddingFileError: the widths differ, or the encoders do where both names are known.
    """
    have = embedding.dims
    theirs, ours = embedding.encoders or STABLE_DIFFUSION.get(have), encoders or STABLE_DIFFUSION.get(dims)
    if have == dims and (not theirs or not ours or theirs == ours):
        return
    made_for = embedding.family if embedding.family in FAMILIES else model_of_widths(have, embedding.encoders)
    needs = f" ({'+'.join(encoders)}, for {model_of_widths(dims, encoders)})" if encoders else ""
    raise EmbeddingFileError(
        f"{where}: the embedding {embedding.token!r} has width {'+'.join(map(str, have))} (for "
        f"{made_for}), the model needs {'+'.join(map(str, dims))}{needs}; use it with the model "
        "family it was trained on"
    )
