"""What a candidate token is judged by: the denoising loss on one draw (paper, eq. 1)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ..base import rng
from ..base.stopping import check_stop
from ..model.posteriors import CachedPosteriors
from ..model.token_model import Denoiser, LossesOf, Prompt, TokenModel, View
from .alignment import Alignment
from .draws import Draw
from .timesteps import TimestepSampler

Kept = TypeVar("Kept")


class DiffusionObjective:
    """Mean squared error of a diffusion model's prediction, for K candidates on one draw.

    Args:
        model: what predicts.
        posteriors: the cached posteriors of the N reference images.
        captions: for each image the prompts it may be shown with.
        timesteps: draws a step's timestep.
        batch: candidates in one forward, 0 for all. Halved for good when the device runs out of memory.
        on_smaller_batch: told the new batch when that happens.
        denoiser: what judges candidates; the model's own for tokens if None.
        alignment: of a run with a target prompt.
    """

    def __init__(
        self,
        model: TokenModel,
        posteriors: CachedPosteriors,
        captions: Sequence[Sequence[Prompt]],
        timesteps: TimestepSampler,
        batch: int = 0,
        on_smaller_batch: Callable[[int], None] = lambda batch: None,
        denoiser: Denoiser | None = None,
        alignment: Alignment | None = None,
    ) -> None:
        self.model = model
        self.posteriors = posteriors
        self.captions = captions
        self.timesteps = timesteps
        self.batch = batch
        self.on_smaller_batch = on_smaller_batch
        self._denoiser = denoiser or model.denoiser([p for each in captions for p in each], None, lambda line: None)
        self.alignment = alignment
        self._rows = alignment.forwards - 1 if alignment else 0
        self._room = True

    def draw(self, seed: int, step: int) -> Draw:
        image = rng.integer(seed, step, "image", 0, len(self.posteriors))
        caption = rng.integer(seed, step, "caption", 0, len(self.captions[image]))
        return Draw(seed, step, image, caption, self.timesteps.sample(seed, step))

    def view(self, draw: Draw) -> View:
        """What a draw shows: its latents are drawn from the picture's posterior."""
        shape = self.posteriors.mean[draw.image].shape
        latents = self.posteriors.sample(draw.image, rng.normal(draw.seed, draw.step, "posterior", shape))
        noise = rng.normal(draw.seed, draw.step, "noise", shape)
        prompt, time_ids = self.captions[draw.image][draw.caption], self.posteriors.time_ids[draw.image]
        weight = self.posteriors.weight(draw.image)
        return View(prompt, latents[None], noise[None], draw.timestep, time_ids, weight=weight)

    def losses(self, candidates: torch.Tensor, draw: Draw, at: torch.Tensor | None = None) -> torch.Tensor:
        return self.judge(draw, at)(candidates)

    def judge(self, draw: Draw, at: torch.Tensor | None = None) -> LossesOf:
        """What gives candidates' losses on one draw; see :meth:`losses`."""
        view, alignment = self.view(draw), self.alignment
        if alignment and at is not None:
            view = self._with_room(lambda together: alignment.shifted(self._denoiser, view, draw, at, together))
        return functools.partial(self._losses, self._denoiser.losses_on(view))

    def check(self, candidate: torch.Tensor, draw: Draw) -> torch.Tensor:
        """The loss ``[1]`` of a candidate ``[1, ...]`` with what is left to align: what a run is to make less of."""
        losses, alignment = self.losses(candidate, draw), self.alignment
        if not alignment:
            return losses
        view = self.view(draw)
        rest = self._with_room(lambda together: alignment.rest(self._denoiser, view, draw, candidate, together))
        return losses + rest

    @torch.no_grad()
    def _with_room(self, work: Callable[[bool], Kept]) -> Kept:
        """What the alignment gives, its forward passes one after the other where they have no room together."""
        if self._room and not 0 < self.batch < self._rows:
            try:
                return work(True)
            except torch.OutOfMemoryError:
                pass
            torch.cuda.empty_cache()  # outside of the except block: the exception held the failed forward's tensors
            self._room = False
        return work(False)

    @torch.no_grad()
    def _losses(self, losses_of: LossesOf, candidates: torch.Tensor) -> torch.Tensor:
        losses: list[torch.Tensor] = []
        while len(losses) < len(candidates):
            check_stop()
            size = self.batch or len(candidates)
            some = candidates[len(losses) : len(losses) + size]
            try:
                losses += losses_of(some)
                continue
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside of the except block: the exception held the failed forward's tensors.
            torch.cuda.empty_cache()
            self.batch = size // 2
            self.on_smaller_batch(self.batch)
        return torch.stack(losses)
