"""The :class:`~.token_model.TokenModel` that is our own: a Stable Diffusion whose weights rest quantised."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..data.images import ReferenceImage
from .embedding import Embedding
from .forward import Forwards, Inputs
from .frames import Frames
from .generation import generate
from .graphs import Capture
from .kinds import TINY, TINY_PATH
from .latents import encode_images
from .memory import free_memory, plan
from .memory_use import MemoryPlan
from .posteriors import CachedPosteriors
from .quantized import Conditioning, Prompt, QuantizedModel
from .token_model import LossesOf, Row, View
from .tokens import EncodedPrompt, check_initializer, check_new, initial_vectors
from .words import Vocabulary, vocabularies, word_rows


class StableDiffusion(QuantizedModel):
    """A :class:`QuantizedModel` that a token can be learned on."""

    portable = own_memory = True

    @property
    def notes(self) -> Sequence[str]:
        return self.blueprint.notes

    @property
    def fingerprint(self) -> str:
        return self.blueprint.fingerprint

    @property
    def schedule(self) -> Mapping[str, Any]:
        return self.blueprint.configs["scheduler"]

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        alphas: torch.Tensor = self.scheduler.alphas_cumprod
        return alphas

    def settings(self) -> dict[str, Any]:
        path, vae = self.info.path, self.blueprint.vae
        return {
            "model": TINY if path == TINY_PATH else str(path),
            "weights": self.weights,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "prediction_type": self.prediction_type,
            "clip": self.blueprint.clip,
            "vae": vae and str(vae),
        }

    def check_token(self, token: str) -> None:
        for tokenizer in self.tokenizers:
            check_new(tokenizer, token)

    def knows(self, word: str) -> bool:
        return any(f"{word.lower()}</w>" in tokenizer.get_vocab() for tokenizer in self.tokenizers)

    def check_initializer(self, initializer: str, num_vectors: int, mode: str, first: int = 0) -> None:
        check_initializer(self.tokenizers[0], initializer, num_vectors, mode)

    def prompt_bytes(self, prompt: Prompt) -> bytes:
        return b"".join(map(_bytes_of, prompt))

    def initial_vectors(self, initializer: str, num_vectors: int, mode: str) -> torch.Tensor:
        return initial_vectors(self.tokenizers, self.text_encoders, initializer, num_vectors, mode)

    def word_rows(self) -> Iterator[torch.Tensor]:
        return word_rows(self.tokenizers, self.text_encoders)

    def vocabularies(self) -> Sequence[Vocabulary]:
        return vocabularies(self.tokenizers, self.text_encoders)

    def plan(
        self, resolution: int, candidates: int, batch: int, graphs: int, largest: tuple[int, int] | None = None
    ) -> MemoryPlan:
        return plan(
            *(self.blueprint, self.weights, self.dtype, self.device),
            *(resolution, candidates, batch),
            free=free_memory(self.device) + self.loaded_bytes(),  # what is loaded is not free and not needed again
            graphs=graphs,
            largest=largest,
        )

    def lay_out(self, plan: MemoryPlan) -> None:
        self.blueprint.hash_meanwhile()  # while the images are encoded
        if plan.text_apart:
            self.keep_text_apart()

    def encode_images(self, images: Sequence[ReferenceImage]) -> CachedPosteriors:
        return encode_images(self, images)

    def noised(self, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents ``[1, ...]`` and what the model should predict of them, float32 on the CPU."""
        t = torch.tensor([view.timestep])
        noisy = self.scheduler.add_noise(view.latents, view.noise, t)
        if self.prediction_type == "epsilon":
            return noisy, view.noise
        return noisy, self.scheduler.get_velocity(view.latents, view.noise, t)

    def denoiser(
        self, prompts: Sequence[Prompt], capture: Capture | None, on_plain: Callable[[str], None], captured: int = 1
    ) -> _Denoiser:
        return _Denoiser(self, Forwards(self, prompts, capture, on_plain, captured=captured))

    def weights_denoiser(
        self,
        prompts: Sequence[Prompt],
        frames: Frames,
        capture: Capture | None,
        on_plain: Callable[[str], None],
        captured: int = 1,
    ) -> _Denoiser:
        """What judges candidates of weights as well: tokens, or flat ones, a token with cores' numbers behind it."""
        return _Denoiser(self, Forwards(self, prompts, capture, on_plain, frames, captured), frames.numbers)

    def load(self) -> None:
        _ = self.text_encoders, self.unet

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        embedding: Embedding | Sequence[Embedding] | None = None,
        **settings: Any,
    ) -> list[Image.Image]:
        return generate(self, prompts, seeds, embedding=embedding, **settings)


def _bytes_of(encoded: EncodedPrompt) -> bytes:
    firsts = [place.start for place in encoded.places]
    whose = str(firsts) if any(firsts) else ""  # of one token all places begin with its first row
    return encoded.ids.numpy().tobytes() + f"{encoded.positions}{whose}".encode()


class _Denoiser:
    def __init__(self, model: StableDiffusion, forwards: Forwards, numbers: int = 0) -> None:
        self._model, self._forwards, self._numbers = model, forwards, numbers
        self._encoded: dict[bytes, Conditioning] = {}
        """Of texts without a token, which stay as they are."""

    def losses_on(self, view: View) -> LossesOf:
        noisy, target = self._model.noised(view)
        target = target if view.shift is None else target - view.shift

        def losses(candidates: torch.Tensor) -> torch.Tensor:
            tokens, cores = self._parted(candidates)
            about = (view.timestep, view.time_ids, cores)
            inputs = Inputs(tokens, view.prompt, noisy, target, *about, weight=view.weight)
            return self._forwards.losses(inputs)

        return losses

    def outputs(self, view: View, rows: Sequence[Row]) -> torch.Tensor:
        noisy, _ = self._model.noised(view)
        prompt, at = rows[0]
        placed = at is not None and any(encoded.positions for encoded in prompt)
        tokens = self._parted(at)[0] if at is not None and placed else torch.zeros(0, 0, sum(self._model.info.dims))
        texts = [self._encoding(text) for text, _ in (rows[1:] if placed else rows)]
        beside = functools.reduce(Conditioning.joined, texts) if texts else None
        weights = any(at is not None and at.ndim == 2 for _, at in rows)
        cores = torch.cat([self._cores(at) for _, at in rows]) if weights else None
        return self._forwards.losses(Inputs(tokens, prompt, noisy, None, view.timestep, view.time_ids, cores, beside))

    def picture(self, view: View, output: torch.Tensor) -> torch.Tensor:
        noisy, _ = self._model.noised(view)
        alpha = self._model.alphas_cumprod[view.timestep]
        if self._model.prediction_type == "epsilon":
            return (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt()
        return alpha.sqrt() * noisy - (1 - alpha).sqrt() * output

    def _encoding(self, prompt: Prompt) -> Conditioning:
        key = self._model.prompt_bytes(prompt)
        if key not in self._encoded:
            self._encoded[key] = self._model.encode(prompt)
        return self._encoded[key]

    def _cores(self, at: torch.Tensor | None) -> torch.Tensor:
        """A candidate's numbers in the weights, ``[1, numbers]``; none, where it is none or a token alone."""
        cores = None if at is None else self._parted(at)[1]
        return torch.zeros(1, self._numbers) if cores is None else cores

    def _parted(self, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens, and cores where candidates have them; one token where all have the same, which is encoded once."""
        if candidates.ndim == 3:
            return candidates, None
        width = sum(self._model.info.dims)
        tokens, cores = candidates.split((candidates.shape[1] - self._numbers, self._numbers), dim=1)
        tokens = tokens.reshape(len(tokens), -1, width)
        return tokens[:1] if torch.equal(tokens, tokens[:1].expand_as(tokens)) else tokens, cores
