"""What a candidate token is judged by: the denoising loss on one draw (paper, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from . import rng
from .latents import CachedPosteriors
from .models import QuantizedModel
from .timesteps import TimestepSampler
from .tokens import EncodedPrompt, placed


@dataclass(frozen=True)
class Draw:
    """Everything random about one step, shared by all its candidates. Noise follows from (seed, step)."""

    seed: int
    step: int
    image: int
    caption: int
    timestep: int


class Objective(Protocol):
    """Maps candidates to losses: all that the search needs to know of a model."""

    def draw(self, seed: int, step: int) -> Draw:
        """The draw of a training step."""
        ...

    def losses(self, candidates: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Losses ``[K]``, float64 on the CPU, of candidates ``[K, num_vectors, dim]`` on one draw."""
        ...


class DiffusionObjective:
    """Mean squared error of a Stable Diffusion's prediction, for K candidates in one batched forward.

    Args:
        model: text encoder and UNet.
        posteriors: the cached posteriors of the N reference images.
        captions: for each image the prompts it may be shown with.
        timesteps: draws a step's timestep.
    """

    def __init__(
        self,
        model: QuantizedModel,
        posteriors: CachedPosteriors,
        captions: Sequence[Sequence[EncodedPrompt]],
        timesteps: TimestepSampler,
    ) -> None:
        self.model = model
        self.posteriors = posteriors
        self.captions = captions
        self.timesteps = timesteps

    def draw(self, seed: int, step: int) -> Draw:
        image = rng.integer(seed, step, "image", 0, len(self.posteriors))
        caption = rng.integer(seed, step, "caption", 0, len(self.captions[image]))
        return Draw(seed, step, image, caption, self.timesteps.sample(seed, step))

    @torch.no_grad()
    def losses(self, candidates: torch.Tensor, draw: Draw) -> torch.Tensor:
        model, scheduler = self.model, self.model.scheduler
        shape = self.posteriors.mean.shape[1:]
        latents = self.posteriors.sample(draw.image, rng.normal(draw.seed, draw.step, "posterior", shape))[None]
        noise = rng.normal(draw.seed, draw.step, "noise", shape)[None]
        t = torch.tensor([draw.timestep])
        noisy = scheduler.add_noise(latents, noise, t)
        target = noise if model.prediction_type == "epsilon" else scheduler.get_velocity(latents, noise, t)

        prompt = self.captions[draw.image][draw.caption]
        with placed(model.text_encoder, prompt, candidates) as ids:
            hidden = model.encode(ids)
        batch = noisy.to(model.device, model.dtype).expand(len(candidates), -1, -1, -1)
        predicted = model.unet(batch, t.to(model.device), encoder_hidden_states=hidden).sample
        assert not predicted.requires_grad, "forward passes only: no autograd graph may be built"
        error = predicted.double() - target.to(model.device, torch.float64)
        return error.square().mean(dim=(1, 2, 3)).cpu()


def fixed_draws(seed: int, images: int, timesteps: Sequence[int], repeats: int = 1) -> list[Draw]:
    """Draws for measuring: every image at every timestep, ``repeats`` noises each; the first caption."""
    return [
        Draw(seed, 1_000_000 + (image * len(timesteps) + i) * repeats + repeat, image, 0, t)
        for image in range(images)
        for i, t in enumerate(timesteps)
        for repeat in range(repeats)
    ]


def mean_losses(objective: Objective, candidates: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Mean loss ``[K]`` of each candidate over the same draws (common random numbers)."""
    return torch.stack([objective.losses(candidates, draw) for draw in draws]).mean(dim=0)
