"""What a training needs of a model: all that the search, the loop, journals, pages and nodes know of one.

:class:`~.stable_diffusion.StableDiffusion` is one, with quantised weights of its own; a model that runs in ComfyUI is
another. Texts, pictures and losses go through here, and nobody above asks which of them it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image

from ..data.images import ReferenceImage
from .blueprint import ModelInfo
from .embedding import Embedding
from .graphs import Capture
from .memory_use import MemoryPlan
from .places import Rows
from .posteriors import CachedPosteriors
from .words import Vocabulary

Prompt = Any
"""A text as a model reads it; only the model that made it looks inside."""
Row = tuple[Prompt, torch.Tensor | None]
"""A text, and the candidate ``[1, ...]`` that its prediction is made with; None: no token, and the model as it is."""
LossesOf = Callable[[torch.Tensor], torch.Tensor]
"""The losses ``[K]``, float64 on the CPU, of candidates ``[K, num_vectors, sum of dims]``, float32 on the CPU."""


@dataclass(frozen=True)
class View:
    """A picture with noise and a caption: what all candidates of a step are judged by.

    Args:
        prompt: the caption, with places for the token.
        latents: ``[1, channels, ...]``, float32 on the CPU, as the model's VAE gives them and the model takes them.
        noise: standard normal, of the same shape.
        timestep: how much noise, on Stable Diffusion's scale of :data:`.noise.NUM_TIMESTEPS`. A model of another kind
            takes the same share of noise, sigma / (1 + sigma): 0.62 at 500 and 0.89 at 900.
        time_ids: ``[6]``: original size, crop and target size of the picture, as SDXL is told them.
        shift: ``[1, ...]``, taken from what the model should give, in the space of :meth:`Denoiser.outputs`; None: 0.
        weight: float64 ``[height, width]`` of the latents, of mean 1: how much the squared error counts at each place,
            in all channels and frames; None: the same everywhere.
    """

    prompt: Prompt
    latents: torch.Tensor
    noise: torch.Tensor
    timestep: int
    time_ids: torch.Tensor
    shift: torch.Tensor | None = None
    weight: torch.Tensor | None = None


class Denoiser(Protocol):
    """Predicts what is noise in views."""

    def losses_on(self, view: View) -> LossesOf:
        """How far the model's predictions are off with a candidate in the prompt's places: mean squared errors.

        Of a view with a weight, squared errors are multiplied by it.

        The function raises ``torch.OutOfMemoryError`` where the device has no room for so many candidates at once.
        """
        ...

    def outputs(self, view: View, rows: Sequence[Row]) -> torch.Tensor:
        """What the model gives for texts over a view's noisy latents, ``[R, ...]``, float32 on the CPU.

        On the scale on which the mean squared errors of :meth:`losses_on` are taken.

        Args:
            view: its prompt is not looked at.
            rows: of which the first alone may have places for the token.

        Raises:
            OutOfMemoryError: the device has no room for so many at once.
        """
        ...

    def picture(self, view: View, output: torch.Tensor) -> torch.Tensor:
        """The latents ``[1, ...]`` that a view shows if an output ``[1, ...]`` is right, of the kind of the view's."""
        ...


class TokenModel(Protocol):
    """A model that a token can be learned on. Its parts are loaded when they are first used."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def device(self) -> torch.device:
        """Where it predicts."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        ...

    @property
    def weights(self) -> str:
        """How its weights are kept, for people and for presets."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What is unusual about it, for the user."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same for the same weights: which model a token belongs to."""
        ...

    @property
    def schedule(self) -> Mapping[str, Any]:
        """What decides its noise, as JSON could hold it."""
        ...

    @property
    def alphas_cumprod(self) -> torch.Tensor | None:
        """Of its noise schedule, ``[NUM_TIMESTEPS]``; None for Stable Diffusion's."""
        ...

    @property
    def portable(self) -> bool:
        """Whether another process can load it by its :meth:`settings`."""
        ...

    @property
    def own_memory(self) -> bool:
        """Whether it takes memory that its host does not manage, and so has to make room for and be told of."""
        ...

    def settings(self) -> dict[str, Any]:
        """The settings of a run that follow from it, by name."""
        ...

    # texts

    def check_token(self, token: str) -> None:
        """Refuse a placeholder that it already knows as a word.

        Raises:
            TokenError: it is one.
        """
        ...

    def knows(self, word: str) -> bool:
        """Whether a word is one token of its vocabulary."""
        ...

    def check_initializer(self, initializer: str, num_vectors: int, mode: str, first: int = 0) -> None:
        """Refuse an initializer that :meth:`initial_vectors` could not start from.

        Args:
            first: the row of candidates with which its token begins: places with that row are this token's.

        Raises:
            TokenError: it is unknown, or of several tokens with the mode ``single``.
        """
        ...

    def prompt(self, text: str, num_vectors: Rows = 0, where: str = "the prompt") -> Prompt:
        """A text in which each ``{}`` stands for ``num_vectors`` of the token that is trained, or for those listed.

        Args:
            num_vectors: one number for all places, or for each its rows of the candidates, or how many come next.

        Raises:
            CaptionError: it is longer than the model reads; ``where`` names it.
        """
        ...

    def prompt_bytes(self, prompt: Prompt) -> bytes:
        """What tells a prompt from another one."""
        ...

    def initial_vectors(self, initializer: str, num_vectors: int, mode: str) -> torch.Tensor:
        """The starting token from a word's embedding, float32 ``[num_vectors, sum of dims]`` on the CPU."""
        ...

    def word_rows(self) -> Iterator[torch.Tensor]:
        """The embeddings of its words in pieces, ``[N, sum of dims]``.

        Raises:
            Stopped: a stop was asked for.
        """
        ...

    def vocabularies(self) -> Sequence[Vocabulary]:
        """The words of each of its text encoders, in the order of an embedding's tensors."""
        ...

    # pictures and losses

    def plan(
        self, resolution: int, candidates: int, batch: int, graphs: int, largest: tuple[int, int] | None = None
    ) -> MemoryPlan:
        """How a training is laid out in the memory that is free now, or that the model has already.

        Args:
            resolution: pixels a side.
            candidates: of a step.
            batch: candidates in one forward pass if that is fixed, 0 to choose.
            graphs: for how many shapes of pictures a step may be captured.
            largest: height and width of the largest picture; the square's if None.

        Raises:
            NoRoomError: nothing fits; says what would.
        """
        ...

    def lay_out(self, plan: MemoryPlan) -> None:
        """Settle where parts compute, before any is loaded, and begin with what can be done meanwhile."""
        ...

    def encode_images(self, images: Sequence[ReferenceImage]) -> CachedPosteriors:
        """The latents of pictures.

        Raises:
            ModelError: they are not finite.
        """
        ...

    def denoiser(
        self, prompts: Sequence[Prompt], capture: Capture | None, on_plain: Callable[[str], None], captured: int = 1
    ) -> Denoiser:
        """What judges candidates.

        Args:
            prompts: those that views will have.
            capture: to launch a step's work as one, where the model can.
            on_plain: told in a line when that is given up.
            captured: for how many shapes of pictures that is done.
        """
        ...

    def load(self) -> None:
        """Load what is not loaded yet: a damaged file shows here.

        Raises:
            ModelError: there is one.
        """
        ...

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
        """One image for each prompt and seed; see :func:`generation.generate`."""
        ...

    def unload(self) -> None:
        """Let go of what is loaded; it is loaded again when it is used."""
        ...
