"""What a model is and where its parts lie: all that is known of it before anything is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..base.background import in_background
from ..base.errors import ModelError
from .checkpoints import Checkpoint, ComponentReader

COPY_MARK = "zoodip_quantized_copy"
"""In the header of our own quantised copies of models, with their format's version."""
COPY_FORMAT = 1


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, read from its configs or its tensors' shapes alone.

    Args:
        path: its file or folder.
        name: for people.
        family: ``sd1``, ``sd2``, ``sdxl``, ``tiny``, or ``sd-DIM`` for another text width.
        dims: the width of each text encoder's token embeddings.
        resolution: pixels a side it was trained on.
        prediction_type: ``epsilon`` or ``v_prediction``.
        encoders: the names of the text encoders, as in :class:`Embedding`; empty for Stable Diffusion.
    """

    path: Path
    name: str
    family: str
    dims: tuple[int, ...]
    resolution: int
    prediction_type: str
    encoders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blueprint:
    """All that is needed to build a model's parts: what it is, configs, tokenizers, where its tensors lie.

    ``copy_of`` is the hash of the model of which this is a quantised copy, and ``weights`` what it was quantised to.
    """

    info: ModelInfo
    configs: Mapping[str, dict[str, Any]]
    readers: Mapping[str, ComponentReader]
    tokenizers: tuple[tuple[Path, str | None], ...]
    """For each text encoder its tokenizer's folder, and the word it pads with if that is not the folder's."""
    copy_of: str | None = None
    weights: str | None = None
    clip: tuple[Path, ...] = ()
    vae: Path | None = None
    """Files of text encoders and VAE, where they are not the model's own."""
    notes: tuple[str, ...] = ()
    """What is unusual about the model, for the user."""
    held: Any = None
    """What keeps a copy from being deleted as long as it is in use."""

    @property
    def text_parts(self) -> tuple[str, ...]:
        """The names of its text encoders."""
        return ("text_encoder", "text_encoder_2")[: len(self.info.dims)]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Its files, each once, in a stable order."""
        return list({id(r.checkpoint): r.checkpoint for _, r in sorted(self.readers.items())}.values())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model's files: which base model a token belongs to. Waits where it is not known yet.

        Raises:
            Stopped: a stop was asked for.
        """
        if self.copy_of:
            return self.copy_of
        try:
            return self._hash.result()
        except BaseException:  # also of the one who waits: whoever asks again begins anew
            self.__dict__.pop("_hash", None)
            raise

    def hash_meanwhile(self) -> None:
        """Begin to work out the fingerprint in the background: the files are hashed while their tensors are read."""
        if not self.copy_of:
            _ = self._hash

    @cached_property
    def _hash(self) -> Future[str]:
        return in_background(self._hashed)

    def _hashed(self) -> str:
        hashes = [checkpoint.sha256() for checkpoint in self.checkpoints]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def stored_name(name: str) -> str:
    """A parameter's name in a copy: transformers 4 and 5 differ in a text encoder's first part."""
    return name.removeprefix("text_model.")


def config_useless(model: Path, part: str, error: Exception) -> ModelError:
    """What is said of a part that cannot be made of its config."""
    reason = str(error).strip().splitlines()
    return ModelError(
        f"model: {model}: the config of its {part} cannot be used: "
        f"{reason[0] if reason else type(error).__name__}; copy the model again"
    )
