"""A small model of pure torch that is nothing but a ``TokenModel``: what trains and draws with it sees no more.

It "draws" squares of one colour. Its picture of a prompt is a linear function of the prompt's vectors, so a token can
be learned exactly: the mean colour of the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from zoodip_core.base import rng
from zoodip_core.base.errors import TokenError
from zoodip_core.base.stopping import check_stop
from zoodip_core.data.images import ReferenceImage
from zoodip_core.data.prompts import SLOT
from zoodip_core.model.blueprint import ModelInfo
from zoodip_core.model.calls import calls_in
from zoodip_core.model.embedding import Embedding
from zoodip_core.model.kinds import COMFYUI
from zoodip_core.model.memory_use import MemoryPlan, MemoryUse
from zoodip_core.model.noise import share_of_noise
from zoodip_core.model.places import Rows, rows_of
from zoodip_core.model.posteriors import CachedPosteriors
from zoodip_core.model.token_model import LossesOf, Row, View
from zoodip_core.model.words import Vocabulary

WORDS = ("a", "photo", "of", "dog", "toy", "the", "snow", "in", "on", "sunset")
NAME, FAMILY, WIDTH, SIDE = "flux1-small", "flux", 6, 16
_COLOURS = 3


@dataclass(frozen=True)
class Places:
    """A prompt: which rows of what is placed stand in its places."""

    text: str
    rows: tuple[range, ...]


class FakeModel:
    """A :class:`~zoodip_core.model.token_model.TokenModel` of 10 words, whose seed is its weights."""

    portable = own_memory = False
    device, dtype, weights = torch.device("cpu"), torch.float32, "none"
    alphas_cumprod = None
    notes: Sequence[str] = ("made of one matrix",)

    def __init__(self, seed: int = 0) -> None:
        self.info = ModelInfo(Path(NAME), NAME, FAMILY, (WIDTH,), SIDE, "flow")
        self.fingerprint = f"fake-{seed}"
        self.schedule: Mapping[str, Any] = {"kind": "fake"}
        self._table = rng.normal(seed, 0, "words", (len(WORDS), WIDTH)) / 4
        self._colours = rng.normal(seed, 0, "colours", (_COLOURS, WIDTH)) / 2

    def settings(self) -> dict[str, Any]:
        return {"model": f"{COMFYUI}{NAME}", "weights": self.weights, "dtype": "float32", "device": "cpu"}

    # texts

    def check_token(self, token: str) -> None:
        if self.knows(token):
            raise TokenError(f"token {token!r} is already a word of the model's vocabulary; choose a new one")

    def knows(self, word: str) -> bool:
        return word in WORDS

    def check_initializer(self, initializer: str, num_vectors: int, mode: str, first: int = 0) -> None:
        if not self.knows(initializer):
            raise TokenError(f"initializer {initializer!r} is unknown to the model's tokenizer; choose a plain word")

    def prompt(self, text: str, num_vectors: Rows = 0, where: str = "the prompt") -> Places:
        return Places(text, rows_of(num_vectors, text.count(SLOT)))

    def prompt_bytes(self, prompt: Places) -> bytes:
        return repr(prompt).encode()

    def initial_vectors(self, initializer: str, num_vectors: int, mode: str) -> torch.Tensor:
        return self._table[WORDS.index(initializer)].repeat(num_vectors, 1)

    def word_rows(self) -> Iterator[torch.Tensor]:
        yield from self._table.split(4)

    def vocabularies(self) -> list[Vocabulary]:
        return [Vocabulary("words", dict(enumerate(WORDS)), lambda ids: self._table[list(ids)])]

    # pictures and losses

    def plan(
        self, resolution: int, candidates: int, batch: int, graphs: int, largest: tuple[int, int] | None = None
    ) -> MemoryPlan:
        return MemoryPlan(batch or candidates, False, MemoryUse({"matrix": self._colours.nbytes}, 1, 1))

    def lay_out(self, plan: MemoryPlan) -> None: ...

    def encode_images(self, images: Sequence[ReferenceImage]) -> CachedPosteriors:
        means = [np.asarray(image.picture, dtype=np.float32).mean((0, 1)) / 127.5 - 1 for image in images]
        mean = torch.tensor(np.stack(means))[:, :, None, None]
        return CachedPosteriors(list(mean), list(torch.zeros_like(mean)), 1.0, torch.zeros(len(images), 6))

    def denoiser(
        self, prompts: Sequence[Places], capture: object, on_plain: Callable[[str], None], captured: int = 0
    ) -> FakeModel:
        return self

    def losses_on(self, view: View) -> LossesOf:
        """Of the predicted velocity, as flow models have it: noise less picture."""
        share = share_of_noise(view.timestep)
        noisy = (share * view.noise + (1 - share) * view.latents).double()

        def losses(candidates: torch.Tensor) -> torch.Tensor:
            rows = [row for place in view.prompt.rows for row in place]
            pictures = self._drawn(candidates[:, rows])[:, :, None, None].double()
            velocity = (noisy - pictures) / share
            target = (view.noise - view.latents).double()
            squares = (velocity - (target if view.shift is None else target - view.shift)).square()
            return (squares if view.weight is None else squares * view.weight).mean((1, 2, 3))

        return losses

    def outputs(self, view: View, rows: Sequence[Row]) -> torch.Tensor:
        share = share_of_noise(view.timestep)
        noisy = share * view.noise + (1 - share) * view.latents
        drawn = [self._drawn(self._words(prompt.text)[None] if at is None else at) for prompt, at in rows]
        return (noisy - torch.cat(drawn)[:, :, None, None]) / share

    def picture(self, view: View, output: torch.Tensor) -> torch.Tensor:
        share = share_of_noise(view.timestep)
        return share * view.noise + (1 - share) * view.latents - share * output

    def _words(self, text: str) -> torch.Tensor:
        known = [self._table[WORDS.index(word)] for word in text.split() if self.knows(word)]
        return torch.stack(known) if known else torch.zeros(1, WIDTH)

    def _drawn(self, vectors: torch.Tensor) -> torch.Tensor:
        """The colours ``[K, 3]`` of prompts' vectors ``[K, N, WIDTH]``."""
        return vectors.mean(1) @ self._colours.T

    def load(self) -> None: ...

    def unload(self) -> None: ...

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        embedding: Embedding | Sequence[Embedding] | None = None,
        negative_prompt: str = "",
        num_inference_steps: int = 25,
        guidance_scale: float | None = None,
        resolution: int = 0,
        until: float = 1.0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        given = [] if embedding is None else list(embedding) if isinstance(embedding, Sequence) else [embedding]
        pictures = []
        for call, _seed in zip(calls_in(prompts, given), seeds, strict=True):
            check_stop()
            vectors = self._words(call.text)[None] if call.vectors is None else call.vectors
            colour = ((self._drawn(vectors)[0].clamp(-1, 1) + 1) * 127.5).round().int().tolist()
            pictures.append(Image.new("RGB", (resolution or SIDE,) * 2, tuple(colour)))
            if on_step:
                on_step(len(pictures), len(prompts))
        return pictures
