"""Embeddings in the formats of other programs.

What a format cannot hold is not looked up but found out: a file is read again before it is handed out, and what differs
is told. Where it would be a number, the file is not made.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..base.errors import EmbeddingFileError
from ..base.files import finish, storage_errors, unfinished_in
from ..base.pickles import bytes_of_plain
from ..base.safetensors_files import bytes_of
from ..base.texts import how_many
from .embedding import Embedding, load_embedding, serialize
from .embedding_tensors import ONETRAINERS, RENAMED, SDXL_KEYS, T5
from .kinds import model_of_widths

SECOND = "_2"
"""Behind the name of the file for the second text encoder of Stable Diffusion XL, as diffusers' script has it."""
_HALVES = ((768,), (1280,))
_ANY_TOKEN = 265
"""The id of ``*`` in CLIP's vocabulary, which A1111 notes beside a token and never reads."""
_OF_THE_FILE = ("token", "format_version", "encoders", "renamed", "rounded")
"""What is noted of a file rather than of its token."""
_CALLED = {"config": "settings", "made_of": "what it is made of", "zoodip_version": "which ZOODiP made it"}


@dataclass(frozen=True)
class Format:
    """A way to keep an embedding.

    Args:
        about: which programs read it.
        ending: of its files.
        contents: the files' bytes: one, or two for Stable Diffusion XL. Raises EmbeddingFileError where some tensor
            has no place in it.
    """

    about: str
    ending: str
    contents: Callable[[Embedding], Sequence[bytes]]


@dataclass(frozen=True)
class Conversion:
    """An embedding in a format.

    Args:
        files: the content of each file by its name.
        lost: what of the embedding they do not hold, each in words.
    """

    files: Mapping[str, bytes]
    lost: tuple[str, ...]


def converted(embedding: Embedding, to: str, stem: str) -> Conversion:
    """An embedding in one of :data:`FORMATS`.

    Args:
        to: the format's name.
        stem: the file's name without its ending.

    Raises:
        EmbeddingFileError: there is no such format, or it cannot hold the tensors.
    """
    if to not in FORMATS:
        raise EmbeddingFileError(f"{to} is not a format of embeddings; choose one of {', '.join(FORMATS)}")
    known = {key: text for key, text in embedding.metadata.items() if key not in _OF_THE_FILE}
    contents = FORMATS[to].contents(replace(embedding, metadata=known))
    names = [f"{stem}{number}{FORMATS[to].ending}" for number in ("", SECOND)[: len(contents)]]
    files = dict(zip(names, contents, strict=True))
    return Conversion(files, _lost(replace(embedding, metadata=known), _read_again(files, embedding, to)))


def joined(parts: Sequence[Embedding]) -> Embedding:
    """One embedding of what several files hold: diffusers' two for the two text encoders of Stable Diffusion XL.

    Raises:
        EmbeddingFileError: they do not belong together.
    """
    if len(parts) == 1:
        return parts[0]
    halves = sorted(parts, key=lambda part: part.dims)
    if tuple(half.dims for half in halves) != _HALVES:
        found = " and ".join(f"{part.token} is for {model_of_widths(part.dims, part.encoders)}" for part in parts)
        raise EmbeddingFileError(
            "several files are one token only as diffusers keeps one of Stable Diffusion XL, of width 768 in one file "
            f"and 1280 in the other; here {found}"
        )
    one, other = halves
    if one.token != other.token or one.num_vectors != other.num_vectors:
        raise EmbeddingFileError(
            f"the two files are not one token: {one.token} with {how_many(one.num_vectors, 'vector')}, {other.token} "
            f"with {other.num_vectors}"
        )
    return replace(one, tensors=one.tensors + other.tensors, encoders=())


def save_together(files: Mapping[Path, bytes]) -> None:
    """Write files of one folder, each atomically, and none of them before all are written out.

    Raises:
        StorageError: one cannot be written.
    """
    with contextlib.ExitStack() as stack:
        parts = []
        for path, content in files.items():
            stack.enter_context(storage_errors(path))
            part = stack.enter_context(unfinished_in(path.parent))
            with part.open("xb") as file:
                file.write(content)
            parts.append(part)
        for part, path in zip(parts, files, strict=True):
            finish(part, path)


def _read_again(files: Mapping[str, bytes], before: Embedding, to: str) -> Embedding:
    with tempfile.TemporaryDirectory(prefix="zoodip-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        try:
            after = joined([load_embedding(Path(folder) / name) for name in files])
        except EmbeddingFileError as error:
            raise EmbeddingFileError(
                f"{to}: a file with the token {before.token[:80]} would be taken for something else; give it another "
                "name (--as NEW, the node's input token)"
            ) from error
    if not all(map(torch.equal, before.tensors, after.tensors)) or len(before.tensors) != len(after.tensors):
        raise EmbeddingFileError(f"{to} does not hold the numbers of {before.token[:80]} as they are")
    return after


def _lost(before: Embedding, after: Embedding) -> tuple[str, ...]:
    lost = []
    if after.token != before.token:
        lost.append(f"the token's name {before.token}, for which programs take the file's")
    if after.encoders != before.encoders:
        lost.append(f"which text encoder it is for ({'+'.join(before.encoders)})")
    notes = sorted(key for key, text in before.metadata.items() if after.metadata.get(key) != text)
    return (*lost, *(_CALLED.get(key, key.replace("_", " "))[:80] for key in notes))


# ---------------------------------------------------------------- formats


def _safetensors(embedding: Embedding) -> list[bytes]:
    return [serialize(embedding)]


def _a1111(embedding: Embedding) -> list[bytes]:
    if embedding.encoders:
        raise _refused(embedding, "a1111-pt", "A1111 reads tokens of Stable Diffusion 1.x, 2.x and XL")
    if len(embedding.tensors) == 2:  # to which it allows nothing beside
        return [bytes_of_plain(dict(zip(SDXL_KEYS, _plain(embedding), strict=True)))]
    about, steps = embedding.metadata, embedding.metadata.get("steps", "")
    content: dict[str, Any] = {
        "string_to_token": {"*": _ANY_TOKEN},
        "string_to_param": {"*": _plain(embedding)[0]},
        "name": embedding.token,
        "step": int(steps) if steps.isascii() and steps.isdigit() and len(steps) < 19 else None,
        "sd_checkpoint": about.get("base_model_hash"),
        "sd_checkpoint_name": about.get("base_model"),
    }
    return [bytes_of_plain(content)]


def _diffusers_bin(embedding: Embedding) -> list[bytes]:
    return [bytes_of_plain({embedding.token: rows}) for rows in _apart(embedding, "diffusers-bin")]


def _diffusers(embedding: Embedding) -> list[bytes]:
    parts = _apart(embedding, "diffusers-safetensors")
    return [serialize(Embedding(embedding.token, (rows,), embedding.metadata)) for rows in parts]


def _apart(embedding: Embedding, to: str) -> list[torch.Tensor]:
    """The tensor of each file, of which diffusers' have one."""
    if len(embedding.encoders) > 1:
        raise _refused(embedding, to, "a file of diffusers' has one tensor")
    return _plain(embedding)


def _onetrainer(embedding: Embedding) -> list[bytes]:
    names = embedding.encoders or (SDXL_KEYS if len(embedding.tensors) == 2 else (ONETRAINERS,))
    unknown = [name for name in names if name not in (ONETRAINERS, *SDXL_KEYS, RENAMED, "llama")]
    if unknown:
        raise _refused(embedding, "onetrainer", f"OneTrainer has no name for {' and '.join(unknown)}")
    keys = [T5 if name == RENAMED else name for name in names]
    return [bytes_of(dict(zip(keys, _plain(embedding), strict=True)), {**embedding.metadata, "token": embedding.token})]


def _plain(embedding: Embedding) -> list[torch.Tensor]:
    """The tensors alone, without the storage that they may be a part of."""
    return [rows.detach().to("cpu", torch.float32, copy=True).contiguous() for rows in embedding.tensors]


def _refused(embedding: Embedding, to: str, why: str) -> EmbeddingFileError:
    return EmbeddingFileError(
        f"{to} cannot hold {embedding.token[:80]} for {model_of_widths(embedding.dims, embedding.encoders)}: {why}; "
        "safetensors holds it"
    )


FORMATS = {
    "safetensors": Format("ComfyUI, A1111, Forge, and for SD 1.x and 2.x diffusers", ".safetensors", _safetensors),
    "a1111-pt": Format("A1111, Forge, ComfyUI", ".pt", _a1111),
    "diffusers-bin": Format("diffusers' load_textual_inversion, two files for SDXL", ".bin", _diffusers_bin),
    "diffusers-safetensors": Format("as diffusers-bin, in safetensors", ".safetensors", _diffusers),
    "onetrainer": Format("OneTrainer, to train it further", ".safetensors", _onetrainer),
}
"""By the names under which users choose them."""
