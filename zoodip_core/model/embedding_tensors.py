"""What the tensors of an embedding file are: which tokens, by their names, or something else, which is refused by it.

A file of one token has one tensor ``[num_vectors, dim]``, or ``clip_l`` and ``clip_g``. A file of several has one for
each, called like the token, as diffusers keeps them, or their parts behind the token's name, as packs of webuis do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from ..base.errors import EmbeddingFileError
from ..base.files import is_newer

FORMAT_VERSION = 1
SDXL_KEYS = ("clip_l", "clip_g")
MAX_BYTES = 64_000_000
MOST_TOKENS = 1000
MOST_VECTORS = 75
"""What a prompt of CLIP's 77 holds besides its start and end."""
_NAMELESS = ("emb_params", "*")
_PART = re.compile(r"(?:bundle_emb\.)?(.+)\.(clip_[lg]|emb_params|string_to_param\.\*)", re.DOTALL)
_LORA = re.compile(
    r"^lora_(unet|te\d?|transformer|prior)_|(^|[._])lora[._](up|down|mid|A|B)\b|lora_linear_layer"
    r"|\.(alpha|dora_scale|hada_\w+|lokr_\w+|oft_\w+)$"
)
_LAYER = re.compile(r"\.(weight|bias)$")
_OTHER_ENCODERS = {
    "t5xxl": "T5 XXL, as of Stable Diffusion 3 or Flux",
    "t5base": "T5, as of Stable Audio",
    "umt5xxl": "UMT5 XXL, as of Wan",
    "pile_t5xl": "T5 XL, as of AuraFlow",
    "mt5xl": "T5 XL, as of HunyuanDiT",
}


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
    if not names or len(names) > MOST_TOKENS or (newer and len(names) > 1 and set(names) != set(SDXL_KEYS)):
        raise other_tensors(path, names, "; a newer ZOODiP wrote it: update ZOODiP" if newer else "")
    lora = next(filter(_LORA.search, foreign), None)
    if lora is not None:
        raise OtherTensorsError(
            f"{path} is a LoRA, not an embedding (it holds {lora[:80]}); it belongs among the LoRAs", len(names)
        )
    layer = next(filter(_LAYER.search, foreign), None)
    if layer is not None:
        raise other_tensors(path, names, f"; {layer[:80]} is a layer of a network")
    beside = [name for name in foreign if name not in SDXL_KEYS]
    named = next((f" ({name} is {_OTHER_ENCODERS[name]})" for name in beside if name in _OTHER_ENCODERS), "")
    if named or (beside and len(foreign) > len(beside)):
        raise OtherTensorsError(
            f"{path} is an embedding of another kind of model: it holds {_listed(foreign)}{named}; Stable Diffusion "
            "1.x and 2.x have one text encoder, XL has clip_l and clip_g",
            len(names),
        )


def other_tensors(path: Path, names: Collection[str], why: str = "") -> OtherTensorsError:
    """The error for tensors that are not an embedding's."""
    return OtherTensorsError(
        f"{path} holds {len(names)} tensors ({_listed(sorted(names), 4)}), an embedding has one, or clip_l and "
        f"clip_g{why}",
        len(names),
    )


def token_parts(path: Path, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The tensors of each token, in the order of the text encoders, by the token; that of a nameless one is empty.

    Raises:
        OtherTensorsError: a token has parts that do not belong together.
    """
    found: dict[str, dict[str, str]] = {}
    for name in names:
        match = _PART.fullmatch(name)
        token, part = match.groups() if match else ("", name) if name in (*_NAMELESS, *SDXL_KEYS) else (name, "")
        found.setdefault(token, {})[part] = name
    if any(len(parts) > 1 and set(parts) != set(SDXL_KEYS) for parts in found.values()):
        raise other_tensors(path, names)
    return {token: tuple(parts[part] for part in sorted(parts, reverse=True)) for token, parts in found.items()}


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
