"""What is drawn of a token: how samples are made, a sheet for each step, and all prompts over time as one picture."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image

from ..base.errors import ModelError
from ..base.events import Event, Message, Sampled
from ..base.texts import printable
from ..data.naming import naming
from ..data.prompts import SLOT
from ..data.sheets import MOST_ROWS, contact_sheet, evenly, has_note, rows_in, save_png, stacked
from ..model.embedding import Embedding
from ..model.generation import with_lora
from ..model.lora import Lora
from ..model.token_model import TokenModel
from .config import TrainConfig
from .run_folder import RunFolder

_PICTURES = 4
"""Of a prompt that is drawn alone."""
_VERSION = 1
"""Of the note in a sheet."""


@dataclass(frozen=True)
class Sampling:
    """How a run's samples are drawn.

    Args:
        prompts: of each picture.
        negative_prompt: of all.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance, None for the model's own.
        resolution: pixels a side, 0 for the model's own.
        listed: whether the prompts are a list, of which each is drawn once.
    """

    prompts: tuple[str, ...]
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float | None
    resolution: int
    listed: bool

    @classmethod
    def of(cls, config: TrainConfig) -> Sampling:
        """That of a run's settings: each listed prompt once; else four pictures, of several tokens' prompts in turn."""
        prompts = config.sample_prompts
        if not config.lists_samples:
            prompts = tuple(itertools.islice(itertools.cycle(prompts), _PICTURES))
        return cls(
            prompts,
            config.sample_negative_prompt or "",
            config.sample_steps,
            config.sample_guidance or None,
            config.resolution,
            config.lists_samples,
        )

    def with_names(self, tokens: Sequence[str], names: Sequence[str]) -> Sampling:
        """The same with names, or words, in the places of the tokens."""

        def named(text: str) -> str:
            return naming(text, tokens, own=0).with_names(names)

        prompts = tuple(map(named, self.prompts))
        return dataclasses.replace(self, prompts=prompts, negative_prompt=named(self.negative_prompt))

    def draw(
        self,
        model: TokenModel,
        embeddings: Sequence[Embedding] | None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Image]:
        """A picture for each prompt; the seed of each is its number, from 0 on.

        Args:
            embeddings: the tokens; None where the prompts name none.
            on_step: called with (done, of) after each denoising step.

        Raises:
            ZoodipError: as :func:`..model.generation.generate`.
            Stopped: a stop was asked for.
        """
        return model.generate(
            list(self.prompts),
            list(range(len(self.prompts))),
            embedding=embeddings,
            negative_prompt=self.negative_prompt,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            resolution=self.resolution,
            on_step=on_step,
        )

    @property
    def note(self) -> str:
        """What tells pictures that were drawn so from others of the run; empty where they need not be told."""
        if not self.listed:
            return ""
        drawn = ("prompts", "negative_prompt", "num_inference_steps", "guidance_scale")
        return json.dumps({"version": _VERSION, **{name: getattr(self, name) for name in drawn}})


class Samples:
    """A run's samples, drawn into its folder.

    Of listed prompts a picture over time is kept as well, made from the sheets of the steps, so that it grows on in a
    resumed run. Its rows are the start, the steps that were due or asked for, and the end; not what lies beyond the
    step that the run is at, as where it was resumed from an earlier one.

    Args:
        model: what draws.
        folder: the run's.
        references: the pictures that it learns from.
        learned: gives the tokens as they are now, and the weights if there are any.
        on_event: told of each sampling.
    """

    def __init__(
        self,
        model: TokenModel,
        folder: RunFolder,
        references: Sequence[Image],
        learned: Callable[[], tuple[Sequence[Embedding], Lora | None]],
        on_event: Callable[[Event], None],
    ) -> None:
        self._model, self._folder, self._learned, self._on_event = model, folder, learned, on_event
        self._sampling = Sampling.of(folder.config)
        self._references = references[: len(self._sampling.prompts)]
        self._every = folder.config.sample_every if self._sampling.listed else 0
        self._at = -1
        """The step that was drawn, or need not be."""

    def begin(self, step: int) -> None:
        """Of listed prompts, draw the start, or what a stop has left out at the step that the run is at.

        Raises:
            Stopped: a stop was asked for.
        """
        if has_note(self._folder.sample_path(step), self._sampling.note):
            self._at = step
        elif self._every and step % self._every == 0:
            self.draw(step)
        write_grid(self._folder, self._sampling, step)

    def end(self, step: int) -> None:
        """Of listed prompts, draw the end.

        Raises:
            Stopped: a stop was asked for.
        """
        if self._every and step != self._at:
            self.draw(step)

    def draw(self, step: int) -> None:
        """Draw the token as it is now, after so many steps, and tell of it.

        Raises:
            Stopped: a stop was asked for.
        """
        self._at = step
        embeddings, lora = self._learned()
        try:
            with with_lora(self._model, lora):
                images = self._sampling.draw(self._model, embeddings)
        except (torch.OutOfMemoryError, ModelError) as error:  # pictures are not a reason to end a run
            self._on_event(Message(f"no samples at step {step}: {error}", warning=True))
            return
        path = self._folder.sample_path(step)
        label = f'step {step}\n"{self._folder.config.initializer}"' if step == 0 else f"step {step}"
        contact_sheet([("reference\nimages", self._references), (label, images)], path, note=self._sampling.note)
        self._on_event(Sampled(step, images, path, write_grid(self._folder, self._sampling, step)))


def write_grid(folder: RunFolder, sampling: Sampling, upto: int) -> Path | None:
    """Write what listed prompts drew over time, from the sheets of the steps up to one: of too many an even selection.

    Returns:
        Its file; None where the prompts are no list, or no sheet of them is there.
    """
    note, path = sampling.note, folder.grid_path
    if not note:
        return None
    sheets = [sheet for step, sheet in _sheets(folder) if step <= upto and has_note(sheet, note)]
    chosen = [sheets[i] for i in evenly(len(sheets), MOST_ROWS)]
    found = [rows for sheet in chosen if len(rows := rows_in(sheet, len(sampling.prompts), note)) == 2]
    if not found:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    token = folder.config.token if len(folder.config.tokens) == 1 else SLOT
    heads = [printable(prompt.replace(SLOT, token)) for prompt in sampling.prompts]
    save_png(stacked([found[-1][0], *(drawn for _, drawn in found)], heads), path)
    return path


def _sheets(folder: RunFolder) -> list[tuple[int, Path]]:
    """The sheets in a run's folder by their steps."""
    try:
        paths = list(folder.samples_path.iterdir())
    except OSError:  # there are none yet
        return []
    named = ((re.fullmatch(r"step-(\d{8,15})\.png", path.name), path) for path in paths)
    return sorted((int(match[1]), path) for match, path in named if match)
