"""Training a token: the loop, its events outward and its commands inward."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .config import TrainConfig
from .embedding import Embedding, save_embedding
from .errors import ModelError, NonFiniteLossError, NoRoomError, RunFolderError, StorageError
from .generation import generate
from .images import ReferenceImage, load_images, with_flips
from .journal import Journal, Past, Record, cut
from .latents import encode_images
from .memory import Plan, Watch, free_memory, megabytes, plan
from .models import ModelInfo, Prompt, QuantizedModel, identify, load_quantized
from .objective import DiffusionObjective
from .pictures import contact_sheet, loss_curve
from .prompts import captions_for, with_slots
from .replay import restore
from .runs import CHANGEABLE, RunFolder, SavedState, check_free, locked
from .stopping import Stopped, stopped_by
from .tokens import check_initializer, check_new, initial_vectors
from .version import __version__

# ---------------------------------------------------------------- outward


@dataclass(frozen=True)
class Message:
    """A line for the user; ``warning`` if something needs their eye."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Started:
    """All is checked and loaded. ``losses`` are those of the ``step`` steps taken before, of a run that goes on."""

    folder: Path
    step: int
    steps: int
    losses: Sequence[float] = field(repr=False)


@dataclass(frozen=True)
class Progress:
    """A completed step. ``smoothed`` is the loss's running mean; times are in seconds.

    ``memory`` is the peak of the run so far in bytes, None where that is not known.
    """

    step: int
    steps: int
    loss: float
    smoothed: float
    steps_per_second: float
    eta: float
    memory: int | None


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


Event = Message | Started | Progress | Sampled | Saved


# ---------------------------------------------------------------- inward


class Commands:
    """What a front may ask of a running training, from any thread.

    A stop is obeyed before the next forward pass, the others after the step under way.

    Args:
        asked_elsewhere: true once a stop was asked for by other means, as a host's own button.
    """

    def __init__(self, asked_elsewhere: Callable[[], bool] = lambda: False) -> None:
        self._asked_elsewhere = asked_elsewhere
        self._stop, self._save, self._sample = threading.Event(), threading.Event(), threading.Event()

    def stop(self) -> None:
        """Leave the step under way, save, and return; that step is taken again when the run goes on."""
        self._stop.set()

    def save(self) -> None:
        """Save the state and a snapshot now."""
        self._save.set()

    def sample(self) -> None:
        """Make sample images now."""
        self._sample.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set() or self._asked_elsewhere()

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
        tell: called with what the user should know while it is prepared.
        batch: candidates in one forward so far, of a run that goes on: another number rounds differently.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: QuantizedModel | None = None,
        tell: Callable[[Event], None] = lambda event: None,
        batch: int = 0,
    ) -> None:
        self.config = config
        self.tell = tell
        info = model.info if model else identify(config.model, config.prediction_type)
        self.images, skipped = load_references(config, info)
        self.model = model or load_quantized(
            config.model,
            weights=config.weights,
            dtype=config.dtype,
            device=config.device,
            prediction_type=config.prediction_type,
            cache=config.cache,
        )
        self.warnings = skipped + noise_warning(config, self.model.dtype)
        prompts = tokenised(config, self.model, self.images)
        self.plan = self._plan(config.resolution or info.resolution, batch)
        tell(Message(f"memory, predicted: {self.plan.use}"))
        self.watch = Watch(self.model.device)
        self._load(prompts)

    def _plan(self, resolution: int, batch: int) -> Plan:
        model, candidates = self.model, self.config.make_estimator().num_candidates
        # What is loaded already, by a host that shares its model, is not free and not needed again.
        free = free_memory(model.device) + model.loaded_bytes()

        def laid_out(batch: int) -> Plan:
            return plan(
                model.blueprint, model.weights, model.dtype, model.device, resolution, candidates, batch, free=free
            )

        if not batch or self.config.batch:
            return laid_out(self.config.batch)
        try:
            return laid_out(batch)
        except NoRoomError:
            found = laid_out(0)
            self.warnings.append(
                f"there is room for {found.batch} candidates in one forward, not {batch} as before: the last digits "
                "will differ from a run that was not stopped"
            )
            return found

    def _load(self, prompts: list[list[Prompt]]) -> None:
        """The long part: encode the images while the device is empty, then load the rest."""
        config, model = self.config, self.model
        self.fingerprint = model.blueprint.fingerprint
        self.inputs = _inputs_hash(model, self.images, prompts)
        self.tell(Message(f"encoding {len(self.images)} images"))
        posteriors = encode_images(model, self.images)
        self.tell(Message(f"loading {model.info.name}, {model.weights} weights"))
        if self.plan.text_apart:
            model.keep_text_apart()
        theta0 = initial_vectors(
            model.tokenizers, model.text_encoders, config.initializer, config.num_vectors, config.initializer_mode
        )
        self.objective = DiffusionObjective(
            model,
            posteriors,
            prompts,
            config.make_timesteps(model.scheduler.alphas_cumprod),
            self.plan.batch,
            lambda batch: self.tell(
                Message(f"the device ran out of memory: {batch} candidates in one forward from now on", warning=True)
            ),
        )
        self.search = config.make_search(theta0)
        _ = model.unet  # a damaged file shows here, before anything is written

    @property
    def batch(self) -> int:
        """Candidates in one forward pass, as the losses so far were computed."""
        return self.objective.batch

    @property
    def done(self) -> bool:
        return self.search.step >= self.config.steps

    def step(self) -> Record:
        """One step of algorithm 1: draw, K losses in one forward, move. Returns what the journal keeps of it.

        Raises:
            NonFiniteLossError: a loss is not finite; the search stays where it was.
        """
        draw = self.objective.draw(self.config.seed, self.search.step)
        losses = self.objective.losses(self.search.ask(), draw)
        try:
            self.search.tell(losses, self.config.lr_scale(self.search.step))
        except NonFiniteLossError as error:
            name = self.images[draw.image].path.name
            raise NonFiniteLossError(
                f"{error} (image {name}, timestep {draw.timestep}); the token is kept as of step {self.search.step}: "
                "try a smaller lr, a larger mu, or dtype float32"
            ) from error
        return Record(
            self.search.step,
            draw.image,
            draw.caption,
            draw.timestep,
            tuple(losses.tolist()),
            self.batch or len(losses),
            self.search.checksum,
        )

    def embedding(self) -> Embedding:
        """The token as it is now. Nothing in it depends on the run's paths or clock."""
        config = {
            key: value
            for key, value in self.config.to_dict().items()
            if key == "steps" or key not in {*CHANGEABLE, "device", "batch", "token", "initializer"}
        }
        return Embedding(
            self.config.token,
            tuple(part.contiguous() for part in self.search.theta.split(self.model.info.dims, dim=1)),
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


# ---------------------------------------------------------------- what can be checked without loading a model


def load_references(config: TrainConfig, info: ModelInfo) -> tuple[list[ReferenceImage], list[str]]:
    """The images that a run trains on, mirror images included, and a line for each that can not be used.

    Raises:
        ImagesError: none can be used.
    """
    resolution = config.resolution or info.resolution
    images, skipped = load_images(config.images, resolution, crop=config.crop, background=config.background)
    return with_flips(images) if config.flip else images, [f"skipped: {line}" for line in skipped]


def tokenised(config: TrainConfig, model: QuantizedModel, images: Sequence[ReferenceImage]) -> list[list[Prompt]]:
    """The captions of each image, as the model's text encoders read them. Needs tokenizers alone.

    Raises:
        CaptionError: one has no place for the token, or is too long; so for the samples' prompt.
        TokenError: the model knows the token as a word, or no start can be made from the initializer.
    """
    texts = captions_for(
        [image.path for image in images],
        template=config.template,
        token=config.token,
        captions_file=Path(config.captions) if config.captions else None,
    )
    for tokenizer in model.tokenizers:
        check_new(tokenizer, config.token)
    check_initializer(model.tokenizers[0], config.initializer, config.num_vectors, config.initializer_mode)
    sample_text = with_slots(config.sample_prompt, config.token)
    model.prompt(sample_text, config.num_vectors, "sample_prompt: the prompt")
    return [
        [model.prompt(text, config.num_vectors, f"{image.path}: the caption") for text in each]
        for image, each in zip(images, texts, strict=True)
    ]


def noise_warning(config: TrainConfig, dtype: torch.dtype) -> list[str]:
    """A line for the user if mu is lost in the rounding of the activations."""
    if dtype != torch.bfloat16 or config.mu >= 5e-3:
        return []
    return [
        f"mu = {config.mu:g} is below the rounding noise of bfloat16: the estimated gradients will be noise. "
        "Use mu 0.01 (the preset int4 does), or dtype float32 or float16"
    ]


def _inputs_hash(model: QuantizedModel, images: list[ReferenceImage], prompts: list[list[Prompt]]) -> str:
    """What a run's losses depend on besides its settings: weights, noise schedule, pictures, texts as tokenised."""
    digest = hashlib.sha256(model.blueprint.fingerprint.encode())
    digest.update(json.dumps(model.blueprint.configs["scheduler"], sort_keys=True).encode())
    for image, each in zip(images, prompts, strict=True):
        digest.update(image.picture.tobytes())
        for encoded in (encoded for prompt in each for encoded in prompt):
            digest.update(encoded.ids.numpy().tobytes() + str(encoded.positions).encode())
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
        Stopped: a stop was asked for before the first step; nothing is written.
    """
    path, commands = Path(output), commands or Commands()
    check_free(path)
    with stopped_by(lambda: commands.stopping):
        training = Training(config, model, on_event)
        with locked(path):
            folder = RunFolder.create(path, config)
            _save(training, folder)
            return _run(training, folder, on_event, commands)


def resume_training(
    path: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    model: QuantizedModel | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    commands: Commands | None = None,
) -> TrainResult:
    """Go on with a run as if it had never stopped: the finished file is the same, byte for byte.

    Args:
        path: the run's folder.
        changes: settings that shall differ from now on, of :data:`runs.CHANGEABLE`; more ``steps``, say.
        model: a loaded model, to share one.
        on_event: called with each :data:`Event`.
        commands: a front's wishes while it runs.

    Raises:
        RunFolderError: no run folder, another process is at work on it, or its model, images or captions have changed.
        Stopped: a stop was asked for before it went on; the folder is as it was.
    """
    folder = RunFolder.open(Path(path), changes)
    commands = commands or Commands()
    with stopped_by(lambda: commands.stopping), locked(folder.path):
        past = folder.past()
        state, damage = _state(folder, past)
        last = past.records.get(past.last)
        training = Training(folder.config, model, on_event, (last and last.batch) or (state.batch if state else 0))
        training.warnings += damage
        if state and state.inputs != training.inputs:
            raise RunFolderError(
                f"{folder.path}: the model, images or captions are not those of this run any more; put "
                "them back, or start a new run"
            )
        if not folder.snapshot_path(0).exists():  # the first version kept none
            folder.save_snapshot(training.embedding(), 0)
        _restore(training, past, state)
        cut(folder.journal_path, training.search.step)
        folder.save_config()
        return _run(training, folder, on_event, commands)


def _state(folder: RunFolder, past: Past) -> tuple[SavedState | None, list[str]]:
    """The saved state, and a line for the user about each damage that the run can be gone on with.

    Raises:
        RunFolderError: it is damaged, and there is no journal to do without it.
    """
    damage = []
    if past.damaged:
        lines = ", ".join(map(str, past.damaged[:5])) + (", ..." if len(past.damaged) > 5 else "")
        damage.append(f"{folder.journal_path}: line {lines} does not match its checksum, and is left out")
    try:
        return folder.saved_state(), damage
    except RunFolderError:
        if not past.records:
            raise
        return None, [*damage, f"{folder.state_path} is damaged or of a newer ZOODiP; the journal does without it"]


def _restore(training: Training, past: Past, state: SavedState | None) -> None:
    """Take the search to where the run was, as far as its files lead."""
    search = training.search
    differs = restore(search, training.config, past.records, state.tensors if state else None)
    if differs is not None:
        training.warnings.append(
            f"the steps from {differs} on are taken again: they come out with other last digits here than where they "
            "were taken"
        )
    elif search.step < past.last:
        training.warnings.append(f"the steps from {search.step + 1} on are taken again")


def _run(training: Training, folder: RunFolder, tell: Callable[[Event], None], commands: Commands) -> TrainResult:
    config, search = training.config, training.search
    for warning in training.warnings:
        tell(Message(warning, warning=True))
    tell(
        Message(
            f"{len(training.images)} images on {training.model.info.name} ({training.model.info.family}), weights "
            f"{training.model.weights}, {search.estimator.num_candidates} forward passes a step, "
            f"{training.plan.batch} at once"
        )
    )

    curve = folder.losses()
    tell(Started(folder.path, search.step, config.steps, tuple(curve)))
    first = len(curve)
    with Journal(folder.journal_path, search.step) as journal:
        try:
            _steps(training, folder, journal, tell, commands, curve)
        except Stopped:  # between two forwards: the step under way is taken again when the run goes on
            pass
        except StorageError:  # what the journal has, stands
            raise
        except BaseException:  # whatever else ends the loop, a host's interrupt too, what was learned stays
            if journal.step == search.step:  # else it came between a step and its record: that step is taken again
                journal.sync()
                _save(training, folder)
            raise
        journal.sync()
    path = _save(training, folder)
    tell(Saved(search.step, path))
    if training.done:
        path = save_embedding(training.embedding(), folder.embedding_path)
    grown = training.watch.grown()
    if grown is not None:
        tell(Message(f"memory, measured: {megabytes(grown)} (predicted {megabytes(training.plan.use.total)})"))
    if curve:
        loss_curve(curve, folder.loss_path, f"denoising loss while learning {config.token}")
    return TrainResult(training.embedding(), path, search.step, training.done, curve[first:])


def _steps(
    training: Training,
    folder: RunFolder,
    journal: Journal,
    tell: Callable[[Event], None],
    commands: Commands,
    curve: list[float],
) -> None:
    """Take the steps that are left, adding to ``curve``."""
    config, search = training.config, training.search
    mean = RunningMean()
    for loss in curve:
        mean.add(loss)
    first, began = search.step, time.monotonic()
    while not training.done and not commands.stopping:
        journal.append(training.step())
        loss = search.loss or 0.0
        curve.append(loss)
        smoothed = mean.add(loss)
        rate = (search.step - first) / max(time.monotonic() - began, 1e-9)
        eta = (config.steps - search.step) / rate
        tell(Progress(search.step, config.steps, loss, smoothed, rate, eta, training.watch.grown()))
        if search.step % config.save_every == 0 or commands.take_save():
            journal.sync()  # first, so that no state on the disk is ahead of it
            tell(Saved(search.step, _save(training, folder)))
        if commands.take_sample() or (config.sample_every and search.step % config.sample_every == 0):
            _sample(training, folder, tell)


class RunningMean:
    """An exponential mean over about the last fifty losses; the first ones all count alike, as in Adam."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, loss: float) -> float:
        """The mean after another loss."""
        self._sum = 0.98 * self._sum + 0.02 * loss
        self._weight = 0.98 * self._weight + 0.02
        return self._sum / self._weight


def _save(training: Training, folder: RunFolder) -> Path:
    """Write the state and a snapshot of the token; returns the snapshot's file."""
    folder.save_state(training.search.state_dict(), training.inputs, training.batch)
    return folder.save_snapshot(training.embedding(), training.search.step)


def _sample(training: Training, folder: RunFolder, tell: Callable[[Event], None]) -> None:
    seeds = list(range(4))
    config = training.config
    try:
        images = generate(
            training.model,
            [config.sample_prompt] * len(seeds),
            seeds,
            embedding=training.embedding(),
            resolution=config.resolution,
        )
    except (torch.OutOfMemoryError, ModelError) as error:  # pictures are no reason to end a run
        tell(Message(f"no samples at step {training.search.step}: {error}", warning=True))
        return
    path = folder.sample_path(training.search.step)
    references = [image.picture for image in training.images[: len(seeds)]]
    contact_sheet([("reference\nimages", references), (f"step {training.search.step}", images)], path)
    tell(Sampled(training.search.step, images, path))
