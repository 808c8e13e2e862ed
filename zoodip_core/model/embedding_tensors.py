"""What the tensors of an embedding file are: which tokens, by their names, or something else, which is refused by it.

A file of one token has one tensor ``[num_vectors, dim]``, or one for each text encoder of the model's, called like it:
``clip_l`` and ``clip_g``, ``clip_l`` and ``t5xxl``. A file of several has one for each, called like the token, as
diffusers keeps them, or their parts behind the token's name, as packs of webuis and OneTrainer's do.

Names of text encoders are words as well: a tensor ``llama`` of width 768 is the token of a lama. So but for clip_l and
clip_g, which no one takes for a word, the width has to be the encoder's too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from ..base.errors import EmbeddingFileError
from ..base.files import is_newer
from .kinds import ENCODERS, NARROW_ENCODERS

FORMAT_VERSION = 1
SDXL_KEYS = ("clip_l", "clip_g")
MAX_BYTES = 64_000_000
MOST_TOKENS = 1000
MOST_VECTORS = 75
"""What a prompt of CLIP's 77 holds besides its start and end."""
ONETRAINERS = "emp_params"
"""What OneTrainer calls the tensor of a token for Stable Diffusion 1.x and 2.x."""
_NAMELESS = ("emb_params", ONETRAINERS, "*")
T5, RENAMED = "t5", "t5xxl"
"""What OneTrainer and diffusers call T5 XXL's tensor, and what ComfyUI does, which reads no other name."""
_NAMED = "|".join([*ENCODERS, T5])
_PART = re.compile(rf"(?:bundle_emb\.)?(.+)\.({_NAMED}|emb_params|string_to_param\.\*)", re.DOTALL)
_OUTPUT = re.compile(rf"(?:.*\.)?(?:{_NAMED}|gemma|{ONETRAINERS})_out", re.DOTALL)
"""OneTrainer's vectors for what comes out of a text encoder."""
_WORDS = {T5, "llama"}
"""Names of text encoders that may well be tokens."""
_DECLARED = re.compile(r"[a-z0-9_]{1,40}(\+[a-z0-9_]{1,40}){0,9}")
_LORA = re.compile(
    r"^lora_(unet|te\d?|transformer|prior)_|(^|[._])lora[._](up|down|mid|A|B)\b|lora_linear_layer"
    r"|\.(alpha|dora_scale|hada_\w+|lokr_\w+|oft_\w+)$"
)
_LAYER = re.compile(r"\.(weight|bias)$")


class OtherTensorsError(EmbeddingFileError):
    """A file of tensors that are not an embedding's, perhaps a model.

    Args:
        message: says what they are.
        count: how many there are.
    """

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message)
        self.count = count


def check_names(path: Path, names: Collection[str], metadata: Mapping[str, str]) -> None:
    """Refuse a file by the names of its tensors.

    Raises:
        OtherTensorsError: they are of a LoRA, a network or another model's embedding, too many, or of a newer ZOODiP.
    """
    ours = metadata.get("token")
    foreign = sorted(name for name in names if name != ours)
    newer = "zoodip_version" in metadata and is_newer(metadata.get("format_version"), FORMAT_VERSION)
    parts = {*SDXL_KEYS, *ENCODERS, T5, *declared_encoders(names, metadata)}
    if not names or len(names) > MOST_TOKENS or (newer and len(names) > 1 and not parts.issuperset(names)):
        raise other_tensors(path, names, "; a newer ZOODiP wrote it: update ZOODiP" if newer else "")
    lora = next(filter(_LORA.search, foreign), None)
    if lora is not None:
        raise OtherTensorsError(
            f"{path} is a LoRA, not an embedding (it holds {lora[:80]}); it belongs among the LoRAs", len(names)
        )
    layer = next(filter(_LAYER.search, foreign), None)
    if layer is not None:
        raise other_tensors(path, names, f"; {layer[:80]} is a layer of a network")
    output = next(filter(_OUTPUT.fullmatch, foreign), None)
    if output is not None:
        raise OtherTensorsError(
            f"{path} holds {output[:80]}, an output embedding of OneTrainer's, which no other program can place in a "
            "prompt; train it there again without output embeddings",
            len(names),
        )
    beside = [name for name in foreign if name not in parts]
    if beside and parts.intersection(foreign) - _WORDS:
        raise OtherTensorsError(
            f"{path} is an embedding of another kind of model: it holds {_listed(foreign)}; Stable Diffusion "
            "1.x and 2.x have one text encoder, XL has clip_l and clip_g",
            len(names),
        )


def declared_encoders(names: Collection[str], metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The text encoders that a file's header names, if its tensors are called so: those that ZOODiP does not know."""
    stated = metadata.get("encoders", "")
    found = tuple(stated.split("+")) if _DECLARED.fullmatch(stated) else ()
    return found if len(found) == len(names) and set(found) == set(names) else ()


def other_tensors(path: Path, names: Collection[str], why: str = "") -> OtherTensorsError:
    """The error for tensors that are not an embedding's."""
    return OtherTensorsError(
        f"{path} holds {len(names)} tensors ({_listed(sorted(names), 4)}), an embedding has one, or one for "
        f"each text encoder, as clip_l and clip_g{why}",
        len(names),
    )


def token_parts(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each token by their text encoders, by the token; that of a nameless one is empty.

    A token's only tensor has an empty name where no text encoder's is known.

    Raises:
        OtherTensorsError: a token has parts that do not belong together.
    """
    declared = declared_encoders(tensors, metadata)
    alone = next(iter(tensors)) if len(tensors) == 1 else None
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name in declared:
            token, part = "", name
        elif name == alone == metadata.get("token"):
            token, part = name, ""
        else:
            token, part = _place(name, tensor.shape[-1] if tensor.ndim else 0)
        parts = found.setdefault(token, {})
        if part in parts:
            raise other_tensors(path, tensors)
        parts[part] = tensor
    encoders_alone = "" in found and "" not in found[""]
    if (encoders_alone and len(found) > 1) or not all(_belong_together(each, declared) for each in found.values()):
        raise other_tensors(path, tensors)
    return found


def _place(name: str, width: int) -> tuple[str, str]:
    """The token that a tensor belongs to, empty if it has no name, and the tensor's text encoder, empty if unknown."""
    match = _PART.fullmatch(name)
    token, part = match.groups() if match else ("", name)
    if part in SDXL_KEYS or _is_encoders(part, width):
        return token, part
    return (token, "") if match and part not in (*ENCODERS, T5) else ("" if name in _NAMELESS else name, "")


def _is_encoders(part: str, width: int) -> bool:
    name = RENAMED if part == T5 else part
    return width in (ENCODERS.get(name), NARROW_ENCODERS.get(name))


def _belong_together(parts: Mapping[str, torch.Tensor], declared: Collection[str]) -> bool:
    if len(parts) == 1 or set(parts) == set(SDXL_KEYS):
        return True
    return (
        "" not in parts
        and not {T5, RENAMED}.issubset(parts)
        and all(
            part in declared or (tensor.ndim and _is_encoders(part, tensor.shape[-1])) for part, tensor in parts.items()
        )
    )


def check_size(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that would take more room than any embedding: those of a few bytes may share one number.

    Raises:
        EmbeddingFileError: they would.
    """
    count = sum(tensor.numel() for tensor in tensors.values())
    if count > MAX_BYTES // 4:
        raise EmbeddingFileError(f"{path} holds tensors of {count} numbers, too much for an embedding")


def rows_of(path: Path, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of a file as the vectors of a token, float32 ``[num_vectors, dim]``.

    Raises:
        EmbeddingFileError: it is of another shape or type, or not finite.
    """
    rows = tensor.detach()[None] if tensor.ndim == 1 else tensor.detach()
    if rows.ndim != 2 or 0 in rows.shape or not rows.is_floating_point():
        raise EmbeddingFileError(
            f"{path} holds a {tensor.dtype} tensor {list(tensor.shape)}, not the float [vectors, dim] of an embedding"
        )
    if len(rows) > MOST_VECTORS:
        raise EmbeddingFileError(
            f"{path} holds a tensor {list(tensor.shape)}, more vectors than the {MOST_VECTORS} that a prompt holds: it "
            "is part of a network, not an embedding"
        )
    try:
        rows = rows.float().contiguous()
    except RuntimeError as error:
        raise EmbeddingFileError(f"{path} holds {tensor.dtype}, which PyTorch cannot compute with") from error
    if not torch.isfinite(rows).all():
        raise EmbeddingFileError(f"{path} holds NaN or infinity; its training failed")
    return rows


def _listed(names: Collection[str], most: int = 10) -> str:
    shown = ", ".join(name[:80] for name in list(names)[:most])
    return f"{shown} ..." if len(names) > most else shown
