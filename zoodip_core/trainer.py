"""Training a token: the loop, its events outward and its commands inward."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from .config import TrainConfig
from .embedding import Embedding, save_embedding
from .errors import NonFiniteLossError, StorageError
from .generation import generate
from .images import ReferenceImage, load_images, with_flips
from .latents import encode_images
from .memory import MemoryReport, activation_peak, process_peak
from .models import QuantizedModel, identify, load_quantized
from .objective import DiffusionObjective, Draw, Objective
from .pictures import contact_sheet, loss_curve
from .prompts import SLOT, captions_for
from .runs import RunFolder, check_free
from .search import ZerothOrderSearch
from .tokens import check_new, encode_prompt, initial_vectors
from .version import __version__

# ---------------------------------------------------------------- outward


@dataclass(frozen=True)
class Message:
    """A line for the user; ``warning`` if something needs their eye."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Progress:
    """A completed step. ``smoothed`` is the loss's running mean; times are in seconds."""

    step: int
    steps: int
    loss: float
    smoothed: float
    steps_per_second: float
    eta: float


@dataclass(frozen=True)
class Sampled:
    """Sample images were made and saved as one sheet."""

    step: int
    images: list[Image.Image]
    path: Path


@dataclass(frozen=True)
class Saved:
    """The state is on disk; ``embedding`` is the token as of ``step``."""

    step: int
    embedding: Path


Event = Message | Progress | Sampled | Saved


# ---------------------------------------------------------------- inward


class Commands:
    """What a front may ask of a running training, from any thread; obeyed after the step under way."""

    def __init__(self) -> None:
        self._stop, self._save, self._sample = threading.Event(), threading.Event(), threading.Event()

    def stop(self) -> None:
        """Finish the step, save, and return."""
        self._stop.set()

    def save(self) -> None:
        """Save the state and a snapshot now."""
        self._save.set()

    def sample(self) -> None:
        """Make sample images now."""
        self._sample.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def take_save(self) -> bool:
        return _take(self._save)

    def take_sample(self) -> bool:
        return _take(self._sample)


def _take(event: threading.Event) -> bool:
    was = event.is_set()
    event.clear()
    return was


# ---------------------------------------------------------------- one run


@dataclass(frozen=True)
class TrainResult:
    """How a training ended.

    Args:
        embedding: the token as it is now.
        path: its file: the finished one, or the last snapshot of a stopped run.
        step: completed steps.
        finished: False if it was stopped before ``config.steps``.
        losses: the loss at theta of each step of this session.
    """

    embedding: Embedding
    path: Path
    step: int
    finished: bool
    losses: list[float] = field(repr=False)


class Training:
    """A prepared run: everything a user could get wrong is checked by the constructor.

    Args:
        config: the settings.
        model: a loaded model, to share one; loaded as the settings say if None.
    """

    def __init__(self, config: TrainConfig, model: QuantizedModel | None = None) -> None:
        self.config = config
        info = model.info if model else identify(config.model)
        images, self.warnings = load_images(
            config.images, config.resolution or info.resolution, crop=config.crop, background=config.background
        )
        if config.flip:
            images = with_flips(images)
        texts = captions_for(
            [image.path for image in images],
            template=config.template,
            token=config.token,
            captions_file=Path(config.captions) if config.captions else None,
        )
        self.model = model or load_quantized(
            config.model, weights=config.weights, dtype=config.dtype, device=config.device
        )
        check_new(self.model.tokenizer, config.token)
        theta0 = initial_vectors(
            self.model.tokenizer,
            self.model.text_encoder,
            config.initializer,
            config.num_vectors,
            config.initializer_mode,
        )
        prompts = [
            [
                encode_prompt(self.model.tokenizer, text, config.num_vectors, f"{image.path}: the caption")
                for text in each
            ]
            for image, each in zip(images, texts, strict=True)
        ]
        encode_prompt(self.model.tokenizer, self.sample_text(), config.num_vectors, "sample_prompt: the prompt")
        self.fingerprint = self.model.fingerprint()
        self.inputs = _inputs_hash(self.fingerprint, images, texts)
        self.images = images
        self.objective: Objective = DiffusionObjective(
            self.model,
            encode_images(self.model, images),
            prompts,
            config.make_timesteps(self.model.scheduler.alphas_cumprod),
        )
        self.search = ZerothOrderSearch(
            theta0, config.make_estimator(), config.make_subspace(), config.make_optimizer(), config.seed
        )

    def sample_text(self) -> str:
        return self.config.sample_prompt.replace(self.config.token, SLOT)

    @property
    def done(self) -> bool:
        return self.search.step >= self.config.steps

    def lr_scale(self) -> float:
        """The schedule's value for the next step, a function of the step alone."""
        if self.config.lr_schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.search.step / self.config.steps))

    def step(self) -> tuple[Draw, torch.Tensor]:
        """One step of algorithm 1: draw, K losses in one forward, move.

        Raises:
            NonFiniteLossError: a loss is not finite; the search stays where it was.
        """
        draw = self.objective.draw(self.config.seed, self.search.step)
        losses = self.objective.losses(self.search.ask(), draw)
        try:
            self.search.tell(losses, self.lr_scale())
        except NonFiniteLossError as error:
            name = self.images[draw.image].path.name
            raise NonFiniteLossError(
                f"{error} (image {name}, timestep {draw.timestep}); the token is kept as of step {self.search.step}: "
                "try a smaller lr, a larger mu, or dtype float32"
            ) from error
        return draw, losses

    def embedding(self) -> Embedding:
        """The token as it is now. Nothing in it depends on the run's paths or clock."""
        config = {
            key: value
            for key, value in self.config.to_dict().items()
            if key not in ("images", "captions", "model", "device", "token", "initializer")
        }
        return Embedding(
            self.config.token,
            (self.search.theta,),
            {
                "initializer": self.config.initializer,
                "base_model": self.model.info.name,
                "base_model_hash": self.fingerprint,
                "family": self.model.info.family,
                "steps": str(self.search.step),
                "images": str(len(self.images)),
                "config": json.dumps(config, sort_keys=True),
                "zoodip_version": __version__,
            },
        )

    def memory(self) -> MemoryReport:
        """Measure this run's memory; costs two forward passes and leaves no trace."""
        candidates = self.search.ask()
        draw = self.objective.draw(self.config.seed, self.search.step)
        model, count = self.model, len(candidates)
        ids = encode_prompt(model.tokenizer, "", 0).ids.to(model.device).expand(count, -1)
        side = (
            (self.config.resolution or model.info.resolution) * model.unet.config.sample_size // model.info.resolution
        )
        noise = torch.zeros(count, model.unet.config.in_channels, side, side, device=model.device, dtype=model.dtype)

        @torch.no_grad()
        def infer() -> None:
            model.unet(
                noise, torch.tensor([draw.timestep], device=model.device), encoder_hidden_states=model.encode(ids)
            )

        subspace = 2 * self.config.tau if self.config.subspace_gradient else 0
        return MemoryReport(
            model.stored_bytes(),
            (subspace + 4) * self.search.theta.numel() * 8,
            activation_peak(lambda: self.objective.losses(candidates, draw), model.device),
            activation_peak(infer, model.device),
            process_peak(),
        )


def _inputs_hash(fingerprint: str, images: list[ReferenceImage], texts: list[tuple[str, ...]]) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for image, captions in zip(images, texts, strict=True):
        digest.update(image.picture.tobytes())
        digest.update(json.dumps(captions).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- the loop


def train_token(
    config: TrainConfig,
    output: str | Path,
    *,
    model: QuantizedModel | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    commands: Commands | None = None,
) -> TrainResult:
    """Learn a token from images with forward passes only, in a new run folder.

    Nothing is written before all inputs are checked. See :func:`resume_training` to go on.

    Args:
        config: the settings.
        output: the run folder to make.
        model: a loaded model, to share one.
        on_event: called with each :data:`Event`.
        commands: a front's wishes while it runs.

    Raises:
        ZoodipError: of the kind that tells what is wrong.
    """
    check_free(Path(output))
    training = Training(config, model)
    return _run(training, RunFolder.create(Path(output), config), on_event, commands or Commands())


def resume_training(
    path: str | Path,
    *,
    model: QuantizedModel | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    commands: Commands | None = None,
) -> TrainResult:
    """Go on with a run as if it had never stopped: the finished file is the same, byte for byte.

    Raises:
        RunFolderError: no run folder, or its model, images or captions have changed.
    """
    folder = RunFolder.open(Path(path))
    training = Training(folder.config, model)
    state = folder.load_state(training.inputs)
    if state:
        training.search.load_state_dict(state)
    folder.keep_records(training.search.step)
    return _run(training, folder, on_event, commands or Commands())


def _run(training: Training, folder: RunFolder, tell: Callable[[Event], None], commands: Commands) -> TrainResult:
    config, search = training.config, training.search
    for warning in training.warnings:
        tell(Message(f"skipped: {warning}", warning=True))
    tell(
        Message(
            f"{len(training.images)} images on {training.model.info.name} ({training.model.info.family}), weights "
            f"{training.model.weights}, {search.estimator.num_candidates} forward passes a step"
        )
    )
    tell(Message(f"memory: {training.memory()}"))

    losses: list[float] = []
    smoothed: float | None = None
    first, began = search.step, time.monotonic()
    try:
        while not training.done and not commands.stopping:
            draw, drawn = training.step()
            folder.append(
                {
                    "step": search.step,
                    "image": draw.image,
                    "caption": draw.caption,
                    "t": draw.timestep,
                    "losses": drawn.tolist(),
                }
            )
            loss = search.loss or 0.0
            losses.append(loss)
            smoothed = loss if smoothed is None else 0.98 * smoothed + 0.02 * loss
            rate = (search.step - first) / max(time.monotonic() - began, 1e-9)
            tell(Progress(search.step, config.steps, loss, smoothed, rate, (config.steps - search.step) / rate))
            if search.step % config.save_every == 0 or commands.take_save():
                _save(training, folder, tell)
            if commands.take_sample() or (config.sample_every and search.step % config.sample_every == 0):
                _sample(training, folder, tell)
    except StorageError:  # the last saved state and its log stand; steps after it are taken again
        raise
    except Exception:  # whatever else ends the loop, what was learned stays
        _save(training, folder, lambda event: None)
        raise
    path = _save(training, folder, tell)
    if training.done:
        path = save_embedding(training.embedding(), folder.embedding_path)
    curve = [search.estimator.loss(torch.tensor(record["losses"])) for record in folder.records()]
    if curve:
        loss_curve(curve, folder.loss_path, f"denoising loss while learning {config.token}")
    return TrainResult(training.embedding(), path, search.step, training.done, losses)


def _save(training: Training, folder: RunFolder, tell: Callable[[Event], None]) -> Path:
    folder.save_state(training.search.state_dict(), training.inputs)
    path = folder.save_snapshot(training.embedding(), training.search.step)
    tell(Saved(training.search.step, path))
    return path


def _sample(training: Training, folder: RunFolder, tell: Callable[[Event], None]) -> None:
    seeds = list(range(4))
    images = generate(training.model, [training.sample_text()] * len(seeds), seeds, embedding=training.embedding())
    path = folder.sample_path(training.search.step)
    contact_sheet([(f"step {training.search.step}", images)], path)
    tell(Sampled(training.search.step, images, path))
