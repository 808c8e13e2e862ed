"""A prepared training: all that its settings need is checked and loaded, and it can take a step."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence

import torch
from PIL.Image import Image

from ..base.errors import ConfigError, NonFiniteLossError, NoRoomError
from ..base.events import Event, Message
from ..base.texts import how_many
from ..base.version import __version__
from ..data.images import ReferenceImage
from ..data.naming import in_turn
from ..model.embedding import Embedding
from ..model.frames import Frames, frames_of
from ..model.graphs import capture_on
from ..model.latents import advice
from ..model.load import load_quantized
from ..model.lora import Lora, lora_of
from ..model.memory import Watch
from ..model.memory_use import MemoryPlan
from ..model.posteriors import with_masks
from ..model.recognise import identify
from ..model.stable_diffusion import StableDiffusion
from ..model.token_model import Denoiser, Prompt, TokenModel
from ..search.preconditioner import Spread
from ..search.staged import StagedSearch
from .alignment import Alignment
from .config import TrainConfig
from .directions import check_directions, shaped
from .draws import Draw, Objective, mean_losses, mean_over
from .hints import hints
from .inputs import (
    aligned,
    captions_in,
    inputs_of,
    load_references,
    masks_told,
    name_warning,
    noise_warning,
    same_as_captions,
    tokenised,
)
from .journal import Record
from .objective import DiffusionObjective
from .ranks import Ranks
from .remarks import far_out, pulled_away
from .rounding import adapted
from .run_folder import CHANGEABLE
from .settings import ALL, NORMAL
from .shared import SharedObjective
from .sizes import largest_of, shapes_in, sizes_in

_WORST = sys.float_info.max
"""In place of a loss that is not finite: the guard goes back from it, and a journal's line can hold it."""
_OWN = ("device", "images", "captions", "model", "clip", "vae", "cache")
"""Settings in which ranks may differ: where things lie on their computers. What lies there is compared by itself."""


def load_model(
    config: TrainConfig, on_event: Callable[[Event], None] = lambda event: None, *, keep: bool = True
) -> StableDiffusion:
    """The model that a run's settings name; on one card, if they name all.

    Args:
        config: the settings.
        on_event: told what the user should know of its loading.
        keep: whether a quantised copy of it is made where there is none yet.

    Raises:
        ModelError: it is missing, damaged, or of a family that is not supported.
    """
    return load_quantized(
        config.model,
        weights=config.weights,
        dtype=config.dtype,
        device="auto" if config.device == ALL else config.device,
        prediction_type=config.prediction_type,
        clip=config.clip,
        vae=config.vae,
        cache=config.cache,
        keep=keep,
        on_event=on_event,
    )


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a run's texts are to the model.

    Args:
        prompts: the captions of each image.
        alignment: what aligns the run with its target prompts; None if nothing does.
        warnings: lines for the user.
    """

    prompts: list[list[Prompt]]
    alignment: Alignment | None
    warnings: list[str]


def read_texts(config: TrainConfig, model: TokenModel, images: Sequence[ReferenceImage]) -> Reading:
    """What a run's texts are to the model, of which tokenizers alone are needed. What cannot be learned is refused.

    Raises:
        ConfigError: the model has nothing of which directions can have their shape.
        CaptionError: a text has no place for the token, or is too long.
        TokenError: the model knows the token as a word, or no start can be made from the initializer.
    """
    check_directions(config, model)
    prompts = tokenised(config, model, images)
    alignment = aligned(config, model)
    warnings = [*model.notes, *noise_warning(config, model.dtype), *name_warning(config, model)]
    return Reading(prompts, alignment, [*warnings, *same_as_captions(config, model, prompts)])


class Training:
    """A prepared run: everything a user could get wrong is checked by the constructor.

    Args:
        config: the settings.
        model: a loaded model, to share one; loaded as the settings say if None.
        on_event: called with what the user should know while it is prepared.
        batch: candidates in one forward so far, of a run that is resumed: another number rounds differently.
        spread: that of the vocabulary, of a run that is resumed; worked out if it is wanted and None.
        frames: those of the weights that are learned, likewise.
        ranks: the processes that share its candidates; this one alone if None.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: TokenModel | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
        batch: int = 0,
        spread: Spread | None = None,
        ranks: Ranks | None = None,
        frames: Frames | None = None,
    ) -> None:
        self.config = config
        self.on_event = on_event
        self.ranks = ranks or Ranks()
        info = model.info if model else identify(config.model, config.prediction_type, clip=config.clip, vae=config.vae)
        if config.lora_rank and model and not isinstance(model, StableDiffusion):
            raise ConfigError(
                f"lora_rank = {config.lora_rank}: weights are learned on a Stable Diffusion that ZOODiP loads, not on "
                f"{info.name}; use Load Quantized SD, or set lora_rank to 0"
            )
        self.images, skipped = load_references(config, info)
        for line in hints(config, info, [image.path for image in self.images]):  # first: what follows may be refused
            on_event(Message(line, warning=True))
        sizes = sizes_in(self.images)
        if sizes:
            on_event(Message(sizes))
        for line in masks_told(self.images):
            on_event(Message(line))
        own = dataclasses.replace(config, device=self.ranks.device(config.device))
        self.model: TokenModel = model or load_model(own, on_event, keep=self.ranks.first_here)
        texts = read_texts(config, self.model, self.images)
        prompts, self.alignment, self.warnings = texts.prompts, texts.alignment, [*skipped, *texts.warnings]
        self._in_turn = in_turn(captions_in(config, self.images)) if len(config.tokens) > 1 else None
        self.fingerprint = self.model.fingerprint
        self.inputs = inputs_of(self.model, self.images, prompts)
        self._agree()
        self.plan = self._plan(config.resolution or info.resolution, batch)
        forwards = -(-config.make_estimator().num_candidates // self.plan.batch)
        self.warnings += filter(None, [self.ranks.idle(forwards)])
        on_event(Message(f"memory, predicted: {self.plan.use}"))
        if self.plan.text_apart:
            on_event(Message(f"texts are encoded on the CPU: {self.model.device} has no room for that as well"))
        self.watch = Watch(self.model.device)
        self._load(prompts, spread, frames)

    def _agree(self) -> None:
        """Refuse ranks that would not do the same, before the long part."""
        settings = {key: value for key, value in self.config.to_dict().items() if key not in _OWN}
        kind = {"device": self.model.device.type, "dtype": str(self.model.dtype).removeprefix("torch.")}
        self.ranks.agree({"masks": "none", **self.inputs.parts, **settings, **kind})

    def _plan(self, resolution: int, batch: int) -> MemoryPlan:
        candidates = self.config.make_estimator().num_candidates
        shapes, largest = shapes_in(self.images), largest_of(self.images)

        def laid_out(batch: int) -> MemoryPlan:
            most = candidates if batch else -(-candidates // self.ranks.size)
            return self.model.plan(resolution, most, batch, shapes if self.config.graphs == "auto" else 0, largest)

        found = self._laid_out(laid_out, batch)
        least = min(self.ranks.exchange(found.batch))  # so that all do the same forward passes
        return found if found.batch == least else laid_out(least)

    def _laid_out(self, laid_out: Callable[[int], MemoryPlan], batch: int) -> MemoryPlan:
        if not self.config.batch:
            batch = self._shared_out(batch)
        if not batch or self.config.batch:
            return laid_out(self.config.batch)
        try:
            return laid_out(batch)
        except NoRoomError:
            found = laid_out(0)
            self.warnings.append(
                f"there is room for {how_many(found.batch, 'candidate')} in one forward, not {batch} as before: the "
                "last digits will differ from a run that was not stopped"
            )
            return found

    def _shared_out(self, batch: int) -> int:
        """Candidates in one forward of a run that is resumed: as before, unless that leaves ranks without any."""
        candidates, ranks = self.config.make_estimator().num_candidates, self.ranks.size
        share = -(-candidates // ranks)
        if not share < batch or -(-candidates // batch) >= min(candidates, ranks):
            return batch
        self.warnings.append(
            f"{batch} candidates in one forward, as before, would leave ranks without any: from now on there are "
            f"{share}, and the last digits will differ from a run that was not stopped. Resume on fewer ranks to keep "
            "them"
        )
        return share

    def _load(self, prompts: list[list[Prompt]], spread: Spread | None, frames: Frames | None) -> None:
        """The long part: encode the images while the device is empty, then load the rest."""
        config, model = self.config, self.model
        model.lay_out(self.plan)
        self.on_event(Message(f"encoding {how_many(len(self.images), 'image')}"))
        posteriors = with_masks(model.encode_images(self.images), self.images, config.mask_background)
        self.on_event(Message(f"loading {model.info.name}, {model.weights} weights"))
        how = config.num_vectors, config.initializer_mode
        theta0 = torch.cat([model.initial_vectors(word, *how) for word in config.initializers])
        self.frames = self._framed(frames)
        self._own = DiffusionObjective(
            model,
            posteriors,
            prompts,
            config.make_timesteps(model.alphas_cumprod),
            self.plan.batch,
            lambda batch: self.on_event(
                Message(
                    f"the device ran out of memory: {how_many(batch, 'candidate')} in one forward from now on",
                    warning=True,
                )
            ),
            self._denoiser(prompts, self.alignment.prompts if self.alignment else []),
            self.alignment,
        )
        shared = self.ranks.size > 1
        self.objective: Objective = SharedObjective(self._own, self.ranks) if shared else self._own
        if config.directions != NORMAL and not spread and self.ranks.leads:
            self.on_event(Message("looking at the vocabulary and the text encoder"))
            config, spread, said = shaped(config, model, prompts[0][0], theta0)
            self.config = config
            self.on_event(said)
        if config.directions != NORMAL and shared:
            spread = Spread.of_tensors(self.ranks.handed(spread.tensors() if spread else None))
        if config.adapt_mu:
            self.on_event(Message("measuring how losses are rounded"))
            numbers = self.frames.numbers if self.frames else 0
            self.config, said = adapted(config, self.objective, len(self.images), theta0, spread, numbers)
            self.on_event(said)
        self.search = self.config.make_search(theta0, spread, self.frames.numbers if self.frames else 0)
        self._start = self.search.candidate.clone()
        model.load()  # a damaged file shows here, before anything is written
        self.fingerprint = model.fingerprint
        self.inputs = inputs_of(model, self.images, prompts)

    def _framed(self, frames: Frames | None) -> Frames | None:
        """What the weights that are learned stand between, the same on all ranks; None if none are."""
        if not self.config.lora_rank:
            return None
        if not frames and self.ranks.leads:
            assert isinstance(self.model, StableDiffusion)
            self.on_event(Message("looking at the weights that read the text"))
            frames = frames_of(self.model.unet, self.config.lora_rank)
        if self.ranks.size > 1:
            frames = Frames.of_tensors(self.ranks.handed(frames.tensors() if frames else None))
        return frames

    def _denoiser(self, prompts: list[list[Prompt]], more: Sequence[Prompt]) -> Denoiser:
        """What judges candidates."""
        every = [*(prompt for each in prompts for prompt in each), *more]
        capture = capture_on(self.model.device) if self.plan.graphs else None

        def on_plain(line: str) -> None:
            self.on_event(Message(line, warning=True))

        if not self.frames:
            return self.model.denoiser(every, capture, on_plain, self.plan.captured)
        assert isinstance(self.model, StableDiffusion)
        return self.model.weights_denoiser(every, self.frames, capture, on_plain, self.plan.captured)

    @property
    def forwards(self) -> tuple[int, int]:
        """Forward passes of a step: the candidates', and those for the target prompt."""
        return self.search.estimator.num_candidates, self.config.forwards_for_target

    @property
    def batch(self) -> int:
        """Candidates in one forward pass, as the losses so far were computed."""
        return self._own.batch

    @property
    def dtype(self) -> str:
        """Of activations, by name."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def done(self) -> bool:
        return self.search.step >= self.config.steps or self.search.converged

    def step(self) -> Record:
        """One step of algorithm 1: draw, K losses in one forward, move. Returns what the journal keeps of it.

        Raises:
            NonFiniteLossError: a loss is not finite; the search stays where it was.
        """
        self.ranks.mark = f"token {self.search.checksum} after step {self.search.step}"
        step, began, guard = self.search.step, self.search.began, self.search.guard
        draw, scale = self.objective.draw(self.config.seed, step), guard.scale
        check_loss = self._check_loss() if self.config.checked(step, began) else None
        lr_scale, mu_scale = self.config.lr_scale(step, began), self.config.mu_scale(step, began)
        losses = self.objective.losses(self.search.ask(mu_scale), draw, self.search.around)
        try:
            self.search.tell(losses, lr_scale, check_loss=check_loss, mu_scale=mu_scale)
        except NonFiniteLossError as error:
            name, exact = self.images[draw.image].path.name, self.model.dtype == torch.float32
            raise NonFiniteLossError(
                f"{error} (image {name}, timestep {draw.timestep}); the token is kept as of step {self.search.step}: "
                + ("try a smaller lr, or a larger mu" if exact else "try a smaller lr, a larger mu, or dtype float32")
            ) from error
        self._tell_of_stages(began)
        guard = self.search.guard
        if self.search.converged:
            self.on_event(
                Message(
                    f"no progress in the last {how_many(guard.patience, 'check')}: the best token so far is the result"
                )
            )
        elif guard.scale < scale and self.search.began == began:
            what = "is not finite any more" if check_loss == _WORST else f"rose to {check_loss:.4g}"
            said = f"step {self.search.step}: the loss {what}; back to the best token, and smaller steps"
            self.on_event(Message(said, warning=True))
        return Record(
            self.search.step,
            draw.image,
            draw.caption,
            draw.timestep,
            tuple(losses.tolist()),
            self.batch or len(losses),
            self.search.checksum,
            check_loss,
        )

    def _tell_of_stages(self, began: int) -> None:
        search = self.search
        if isinstance(search, StagedSearch) and search.began > began:
            why = ", which makes no more progress" if search.token.converged else ""
            also = "the token as well" if self.config.lora_with_token else "the token stays as it is"
            self.on_event(Message(f"step {search.step}: after the token{why}, weights are learned ({also})"))

    def _check_loss(self) -> float:
        """The token's loss on draws that stay the same."""
        draws, candidate = self._check_draws(), self.search.candidate
        loss = float(mean_over(draws, lambda draw: self._own.check(candidate, draw), self.ranks.share))
        if math.isfinite(loss):
            return loss
        if self.search.guard.point is None:
            raise NonFiniteLossError(f"the losses at the starting token are not all finite: {advice(self.model.dtype)}")
        return _WORST

    def _check_draws(self) -> list[Draw]:
        """Draws that stay the same: of several tokens, pictures of each in turn."""
        draws, order = self.config.check_draws(len(self.images)), self._in_turn
        return [dataclasses.replace(draw, image=order[draw.image]) for draw in draws] if order else draws

    @property
    def references(self) -> list[Image]:
        """The pictures as they are shown: of several tokens, those of each in turn."""
        return [self.images[i].picture for i in self._in_turn or range(len(self.images))]

    def remarks(self) -> list[str]:
        """Lines for the user on what was learned, once the run is over. Some take forward passes.

        Raises:
            Stopped: a stop was asked for.
        """
        found = [far_out(self.config, self.model, self.search.theta, self.search.radius)]
        if self.alignment:
            draws = self._check_draws()
            before, now = (float(mean_losses(self._own, each, draws)) for each in (self._start, self.search.candidate))
            found.append(pulled_away(self.config, before, now, self.search.step))
        return [line for line in found if line]

    def release(self) -> None:
        """Let go of what judges candidates, and of the memory that its captured work holds: no step comes after it."""
        del self.objective, self._own
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def learns(self) -> str:
        """What is learned by now in a run of two stages; empty in others."""
        if not isinstance(self.search, StagedSearch):
            return ""
        both = "the token and weights" if self.config.lora_with_token else "weights"
        return both if self.search.in_second else "the token"

    def lora(self) -> Lora | None:
        """The weights that are learned as they are now, None while there are none."""
        if not self.frames or not isinstance(self.search, StagedSearch) or not self.search.in_second:
            return None
        return lora_of(self.frames, self.search.cores.theta[0], {**self._about(), "token": self.config.tokens[0]})

    def embeddings(self) -> tuple[Embedding, ...]:
        """The tokens as they are now, mostly one."""
        named = zip(self.config.tokens, self.config.initializers, strict=True)
        rows = self.search.theta.split(self.config.num_vectors)
        return tuple(
            Embedding(
                token,
                tuple(part.contiguous() for part in own.split(self.model.info.dims, dim=1)),
                {**self._about(), "initializer": word},
                encoders=self.model.info.encoders,
            )
            for (token, word), own in zip(named, rows, strict=True)
        )

    def _about(self) -> dict[str, str]:
        """What files of the run say of it. Nothing in it depends on the run's paths or clock."""
        config = {
            key: value
            for key, value in self.config.to_dict().items()
            if key == "steps" or key not in {*CHANGEABLE, "batch", "token", "initializer"}
        }
        return {
            "initializer": self.config.initializer,
            "base_model": self.model.info.name,
            "base_model_hash": self.fingerprint,
            "family": self.model.info.family,
            "steps": str(self.search.step),
            "images": str(len(self.images)),
            "config": json.dumps(config, sort_keys=True),
            "zoodip_version": __version__,
        }
