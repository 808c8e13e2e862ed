"""A Stable Diffusion for forward passes, whose weights rest quantised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..base.errors import ModelError
from .attention import PiecewiseAttention
from .blueprint import Blueprint, ModelInfo, config_useless
from .building import build, empty_network
from .libraries import importing
from .places import Rows
from .quantize import stored_bytes, weights_of
from .tokens import EncodedPrompt, encode_prompt, placed
from .unet import predict

_LONGEST_PROMPT = 4096
_LARGEST_WORDS = 16_000_000
_MOST_TRAINED = 1000
"""Rows of a text encoder beyond its tokenizer's words: those of tokens that were trained into the model."""
_MOST_TIMESTEPS = 100_000


@dataclass(frozen=True)
class Conditioning:
    """What the UNet attends to.

    Args:
        hidden: text encoder output ``[N, length, width]``.
        pooled: SDXL's pooled text ``[N, dim]``, else None.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def copied(self) -> Conditioning:
        """Another one in memory of its own."""
        return Conditioning(self.hidden.clone(), None if self.pooled is None else self.pooled.clone())

    def fill(self, other: Conditioning) -> None:
        """Take over the numbers of another one of the same shape."""
        self.hidden.copy_(other.hidden)
        if self.pooled is not None and other.pooled is not None:
            self.pooled.copy_(other.pooled)

    def joined(self, other: Conditioning) -> Conditioning:
        """Its rows, and those of another one below them."""
        pooled = None if self.pooled is None or other.pooled is None else torch.cat([self.pooled, other.pooled])
        return Conditioning(torch.cat([self.hidden, other.hidden]), pooled)

    def repeated(self, count: int) -> Conditioning:
        """One row for so many candidates; as many rows as they are."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return Conditioning(self.hidden.expand(count, -1, -1), pooled)


Prompt = tuple[EncodedPrompt, ...]
"""A text as each of a model's text encoders reads it."""


@dataclass
class QuantizedModel:
    """A Stable Diffusion for forward passes. Each part is loaded when it is first used.

    Args:
        blueprint: what it is and where its tensors are.
        weights: storage of Linear and Conv2d weights.
        dtype: of activations.
        device: where UNet and VAE compute.
        text_device: where the text encoders compute.
    """

    blueprint: Blueprint
    weights: str
    dtype: torch.dtype
    device: torch.device
    text_device: torch.device

    @property
    def info(self) -> ModelInfo:
        return self.blueprint.info

    @property
    def prediction_type(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return self.info.prediction_type

    @cached_property
    def scheduler(self) -> Any:
        """The noise schedule, as a ``DDPMScheduler``."""
        with importing():
            from diffusers import DDPMScheduler

        config = dict(self.blueprint.configs["scheduler"])
        try:
            if not 1 <= config["num_train_timesteps"] <= _MOST_TIMESTEPS:
                raise ValueError(f"num_train_timesteps = {config['num_train_timesteps']}")
            return DDPMScheduler.from_config(config)
        except Exception as error:  # the library raises a dozen kinds on configs that make no sense
            raise config_useless(self.info.path, "scheduler", error) from error

    @cached_property
    def tokenizers(self) -> tuple[Any, ...]:
        """One for each text encoder."""
        configs = [self.blueprint.configs[part] for part in self.blueprint.text_parts]
        return tuple(
            _load_tokenizer(*place, config.get("vocab_size", 49408), config.get("max_position_embeddings", 77))
            for place, config in zip(self.blueprint.tokenizers, configs, strict=True)
        )

    @cached_property
    def text_encoders(self) -> tuple[Any, ...]:
        """Loaded at the first use, on ``text_device``."""
        half_on_cpu = self.text_device.type == "cpu" and self.dtype == torch.float16
        dtype = torch.float32 if half_on_cpu else self.dtype
        return tuple(self._build(part, self.text_device, dtype=dtype) for part in self.blueprint.text_parts)

    @cached_property
    def unet(self) -> Any:
        """Loaded at the first use, on ``device``."""
        unet = self._build("unet", self.device)
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            unet.set_attn_processor(PiecewiseAttention())
        return unet

    def _build(self, part: str, device: torch.device, **more: Any) -> Any:
        settings = {"weights": weights_of(part, self.weights), "dtype": self.dtype, "device": device, **more}
        return build(empty_network(self.blueprint, part), self.blueprint.readers[part], **settings)

    @contextlib.contextmanager
    def vae(self, half: str) -> Iterator[Any]:
        """The VAE's ``encoder`` or ``decoder``, loaded for this context only.

        It is not quantised: it leaves before the UNet needs the room, and latents keep their accuracy.
        """
        exact = self.dtype == torch.bfloat16 or self.blueprint.configs["vae"].get("force_upcast")
        dtype = torch.float32 if exact else self.dtype
        without = ("decoder", "post_quant_conv") if half == "encoder" else ("encoder", "quant_conv")
        vae = self._build("vae", self.device, weights="none", dtype=dtype, without=without)
        try:
            yield vae
        finally:
            del vae
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def prompt(self, text: str, num_vectors: Rows = 0, where: str = "the prompt") -> Prompt:
        """Tokenise a text in which ``{}`` stands for a token; see :func:`tokens.encode_prompt`."""
        return tuple(encode_prompt(tokenizer, text, num_vectors, where) for tokenizer in self.tokenizers)

    def encode(self, prompt: Prompt, candidates: torch.Tensor | None = None) -> Conditioning:
        """Encode a prompt, once for each candidate token in it.

        Args:
            prompt: from :meth:`prompt`.
            candidates: ``[K, num_vectors, sum of dims]``, or None for a prompt without a token in it.
        """
        widths = self.info.dims
        if candidates is None:
            candidates = torch.zeros(1, 0, sum(widths))
        pieces = zip(prompt, candidates.split(widths, dim=-1), strict=True)
        return self.conditioning([self._output(which, *piece) for which, piece in enumerate(pieces)])

    def encode_part(self, which: int, encoded: EncodedPrompt, candidates: torch.Tensor) -> torch.Tensor:
        """What one text encoder adds to what the UNet attends to, ``[K, length, width]``.

        Args:
            which: the encoder's number.
            encoded: the prompt as it reads it.
            candidates: ``[K, num_vectors, dim]``, its numbers of them.
        """
        return self._attended([self._output(which, encoded, candidates)]).to(self.device, self.dtype)

    def _output(self, which: int, encoded: EncodedPrompt, candidates: torch.Tensor) -> Any:
        encoder = self.text_encoders[which]
        with placed(encoder, encoded, candidates) as ids:
            return encoder(ids, output_hidden_states=len(self.info.dims) > 1)

    def conditioning(self, outputs: Sequence[Any]) -> Conditioning:
        """What the UNet attends to, of the text encoders' outputs."""
        pooled = outputs[-1].text_embeds.to(self.device, self.dtype) if len(outputs) > 1 else None
        return Conditioning(self._attended(outputs).to(self.device, self.dtype), pooled)

    def _attended(self, outputs: Sequence[Any]) -> torch.Tensor:
        if len(self.info.dims) == 1:
            return outputs[0].last_hidden_state
        # SDXL attends to the layer before the last of both; the second one's pooled output is not of that layer.
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)

    def predict(
        self, noisy: torch.Tensor, timestep: int | torch.Tensor, condition: Conditioning, time_ids: torch.Tensor
    ) -> torch.Tensor:
        """The UNet's output ``[K, channels, height, width]`` for one latents ``[1, ...]`` and K conditionings.

        Args:
            timestep: a tensor ``[1]`` on the device where it is to be read there.
            time_ids: ``[6]``, SDXL's original size, crop and target size; not used by others.
        """
        added = None
        if condition.pooled is not None:
            times = time_ids.to(self.device, torch.float32).expand(len(condition), -1)
            added = {"text_embeds": condition.pooled, "time_ids": times}
        return predict(self.unet, noisy.to(self.device, self.dtype), timestep, condition.hidden, added)

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of weights in memory, by component."""
        parts = zip(self.blueprint.text_parts, self.text_encoders, strict=True)
        return {"unet": stored_bytes(self.unet), **{name: stored_bytes(encoder) for name, encoder in parts}}

    def loaded_bytes(self) -> int:
        """Bytes of the parts that are loaded now."""
        networks = [self.__dict__.get("unet"), *self.__dict__.get("text_encoders", ())]
        return sum(stored_bytes(network) for network in networks if network is not None)

    def keep_text_apart(self) -> None:
        """Compute text on the CPU, for want of room on the device."""
        self.__dict__.pop("text_encoders", None)
        self.text_device = torch.device("cpu")

    def unload(self) -> None:
        """Drop all loaded parts; they are loaded again when used, where they were meant to be."""
        for part in ("unet", "text_encoders"):
            self.__dict__.pop(part, None)
        self.text_device = self.device
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _load_tokenizer(folder: Path, pad: str | None, vocabulary: int, length: int) -> Any:
    with importing():
        from transformers import CLIPTokenizerFast

    if any(file.stat().st_size > _LARGEST_WORDS for file in folder.glob("*.*") if file.is_file()):
        raise ModelError(
            f"model: {folder} has files of more than {_LARGEST_WORDS // 10**6} MB, which are not a tokenizer's; "
            "copy the right one"
        )
    # Without them the library makes a two-word tokenizer, silently. transformers 5 writes one file in their place.
    for file in () if (folder / "tokenizer.json").is_file() else ("vocab.json", "merges.txt"):
        if not (folder / file).is_file():
            raise ModelError(f"model: {folder / file} is missing; the folder is incomplete, copy it again")
    try:
        # The slow one of transformers 4 splits some scripts and emoji otherwise where ftfy is not installed.
        padding = {"pad_token": pad} if pad else {}
        tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True, **padding)
        tokenizer.model_max_length = min(tokenizer.model_max_length, length)
        _check_tokenizer(tokenizer)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"model: {folder} cannot be loaded: {reason[0] if reason else type(error).__name__}; "
            "its files may be damaged, copy them again"
        ) from error
    if not len(tokenizer) <= vocabulary <= len(tokenizer) + _MOST_TRAINED:
        raise ModelError(
            f"model: the tokenizer in {folder} knows {len(tokenizer)} words, the text encoder {vocabulary}; "
            "it is not this model's, copy the right one"
        )
    return tokenizer


def _check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer whose texts no text encoder could read.

    Raises:
        ValueError: it is one.
    """
    if not 2 <= tokenizer.model_max_length <= _LONGEST_PROMPT:
        raise ValueError(f"it reads {tokenizer.model_max_length} words")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        number = getattr(tokenizer, name)
        if not isinstance(number, int) or not 0 <= number < len(tokenizer):
            raise ValueError(f"its {name} is {number}")
