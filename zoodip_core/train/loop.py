"""Training a token: beginning a run, resuming one, and the loop."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..base.errors import RanksError, RunFolderError, StorageError
from ..base.events import Commands, Event, Message, Progress, Saved, Started
from ..base.locks import locked
from ..base.stopping import Stopped, stopped_by
from ..base.texts import how_many
from ..data.sheets import loss_curve
from ..model.embedding import Embedding
from ..model.frames import Frames
from ..model.lora import Lora, save_lora
from ..model.memory_use import megabytes
from ..model.token_model import TokenModel
from ..search.preconditioner import Spread
from .config import TrainConfig
from .identity import Inputs
from .journal import Journal, Past, cut
from .prepared import Training
from .ranks import Ranks
from .replay import restore
from .run_folder import RunFolder, SavedState, check_free, writing_nowhere_else
from .samples import Samples

_LATEST = 200
"""Steps whose time tells how long the rest takes: a computer that slept is forgotten."""


@dataclass(frozen=True)
class TrainResult:
    """How a training ended.

    Args:
        embedding: the token as it is now.
        path: its file: the finished one, or the last snapshot of a stopped run.
        step: completed steps.
        finished: False if it was stopped before ``config.steps``, and had not converged either.
        losses: of each step of this session, at the token that it was taken from.
        lora: the weights that were learned with it, None if there are none, or none yet.
        lora_path: their file.
        others: where several tokens were learned together, those behind the first one, and their files.
        grid: the picture of what listed sample prompts drew over time, None if there is none.
    """

    embedding: Embedding
    path: Path
    step: int
    finished: bool
    losses: list[float] = field(repr=False)
    lora: Lora | None = None
    lora_path: Path | None = None
    others: tuple[tuple[Embedding, Path], ...] = ()
    grid: Path | None = None

    @property
    def embeddings(self) -> tuple[Embedding, ...]:
        """All tokens that were learned together, mostly one."""
        return (self.embedding, *(embedding for embedding, _ in self.others))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of all of them."""
        return (self.path, *(path for _, path in self.others))


def train_token(
    config: TrainConfig,
    output: str | Path,
    *,
    model: TokenModel | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    commands: Commands | None = None,
    ranks: Ranks | None = None,
) -> TrainResult:
    """Learn a token from images with forward passes only, in a new run folder.

    Nothing is written before all inputs are checked. See :func:`resume_training` to resume.

    Args:
        config: the settings.
        output: the run folder to make.
        model: a loaded model, to share one.
        on_event: called with each :data:`Event`.
        commands: a front's wishes while it runs.
        ranks: the processes that take its steps together, each of which calls this; see :func:`ranks.joined`. All but
            the first one leave the folder to it.

    Raises:
        ZoodipError: of the kind that tells what is wrong.
        Stopped: a stop was asked for before the first step; nothing is written.
    """
    path, commands, ranks = Path(output), commands or Commands(), ranks or Ranks()
    if ranks.leads:
        check_free(path)
    with stopped_by(lambda: commands.stopping):
        training = Training(config, model, on_event, ranks=ranks)
        if not ranks.leads:
            return _follow(training, path)
        with locked(path):
            folder = RunFolder.create(path, training.config)
            if training.search.spread:
                folder.save_spread(training.search.spread)
            if training.frames:
                folder.save_frames(training.frames)
            _save(training, folder)
            return _run(training, folder, on_event, commands)


def resume_training(
    path: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    model: TokenModel | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    commands: Commands | None = None,
    ranks: Ranks | None = None,
) -> TrainResult:
    """Resume a run as if it had never stopped: the finished file is the same, byte for byte.

    Args:
        path: the run's folder.
        changes: settings that differ from now on, of :data:`run_folder.CHANGEABLE`; ``steps`` where
            :attr:`TrainConfig.can_grow`.
        model: a loaded model, to share one.
        on_event: called with each :data:`Event`.
        commands: a front's wishes while it runs.
        ranks: the processes that take its steps together, as for :func:`train_token`. They may be others than before.

    Raises:
        RunFolderError: no run folder, another process is at work on it, or its model, images or captions have changed.
        Stopped: a stop was asked for before it was resumed; the folder is as it was.
    """
    commands, ranks = commands or Commands(), ranks or Ranks()
    if not ranks.leads:
        with stopped_by(lambda: commands.stopping):
            return _follow_resumed(Path(path), changes or {}, model, ranks, on_event)
    folder = RunFolder.open(Path(path), changes)
    with stopped_by(lambda: commands.stopping), locked(folder.path):
        past = folder.past()
        state, damage = _state(folder, past)
        last = past.records.get(past.last)
        batch = (last and last.batch) or (state.batch if state else 0)
        spread, lost = _spread(folder)
        frames, missing = _frames(folder)
        ranks.exchange([folder.config.to_json(), batch])
        training = Training(folder.config, model, on_event, batch, spread, ranks, frames)
        training.warnings += damage + lost + missing
        if state and state.inputs.digest != training.inputs.digest:
            raise RunFolderError(
                f"{folder.path}: {_what_changed(state.inputs, training)} are not those of this run any more; put them "
                "back, or start a new run"
            )
        if state and state.dtype not in ("", training.dtype):
            training.warnings.append(
                f"computes in {training.dtype} from here on, in {state.dtype} before: losses round otherwise, and mu "
                "was chosen for the latter. Where it learns no more, resume on the device on which it began"
            )
        if not all(path.exists() for path in folder.snapshot_paths(0)):  # the first version kept none
            folder.save_snapshots(training.embeddings(), 0)
        if training.search.spread is not spread and training.search.spread:
            folder.save_spread(training.search.spread)
        if training.frames is not frames and training.frames:
            folder.save_frames(training.frames)
        _restore(training, past, state)
        ranks.handed(training.search.state_dict())
        cut(folder.journal_path, training.search.step)
        folder.save_config()
        return _run(training, folder, on_event, commands)


def _follow_resumed(
    path: Path,
    changes: Mapping[str, Any],
    model: TokenModel | None,
    ranks: Ranks,
    on_event: Callable[[Event], None],
) -> TrainResult:
    """:func:`resume_training` on a rank that does not lead, with what the first one tells of the run."""
    text, batch = ranks.exchange(None)[0]
    config = replace(writing_nowhere_else(TrainConfig.from_json(text, str(path))), **changes)
    training = Training(config, model, on_event, batch, ranks=ranks)
    training.search.load_state_dict(ranks.handed(None))
    return _follow(training, path)


def _follow(training: Training, path: Path) -> TrainResult:
    """Take the steps together with the first rank, which keeps the run."""
    losses: list[float] = []
    with contextlib.suppress(Stopped):
        while not training.done:
            training.step()
            losses.append(training.search.loss or 0.0)
    return TrainResult(training.embeddings()[0], path, training.search.step, training.done, losses)


def _what_changed(before: Inputs, training: Training) -> str:
    """What of a run's inputs is other than it was, and where it is now."""
    config = training.config
    images = ", ".join(map(str, config.images))
    said = {
        "model": f"the model's weights or noise schedule ({config.model})",
        "images": f"the images ({images})",
        "captions": f"the captions ({config.captions or 'beside the images, or the template'})",
        "masks": f"the masks (of {images})",
    }
    return " and ".join(said[part] for part in training.inputs.differ_in(before)) or "the model, images or captions"


def _state(folder: RunFolder, past: Past) -> tuple[SavedState | None, list[str]]:
    """The saved state, and a line for the user about each damage that the run can be resumed with.

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


def _spread(folder: RunFolder) -> tuple[Spread | None, list[str]]:
    """The shape of the run's directions, and a line for the user if it has to be worked out anew."""
    try:
        return folder.spread(), []
    except RunFolderError:
        return None, [f"{folder.spread_path} is missing or damaged, and is made anew"]


def _frames(folder: RunFolder) -> tuple[Frames | None, list[str]]:
    """What the weights of the run stand between, and a line for the user if it has to be worked out anew."""
    try:
        return folder.frames(), []
    except RunFolderError:
        return None, [f"{folder.frames_path} is missing or damaged, and is made anew"]


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


def _run(training: Training, folder: RunFolder, on_event: Callable[[Event], None], commands: Commands) -> TrainResult:
    config, search = training.config, training.search
    for warning in training.warnings:
        on_event(Message(warning, warning=True))
    candidates, more = training.forwards
    of_target = f", {more} of them for the target prompt" if more else ""
    on_event(
        Message(
            f"{how_many(len(training.images), 'image')} on {training.model.info.name} ({training.model.info.family}), "
            f"weights {training.model.weights}, {how_many(candidates + more, 'forward pass', 'forward passes')} a "
            f"step{of_target}, {training.plan.batch} at once"
        )
    )

    curve = folder.losses()
    on_event(Started(folder.path, search.step, config.steps, tuple(curve)))
    first = len(curve)
    with Journal(folder.journal_path, search.step) as journal:
        try:
            _steps(training, folder, journal, on_event, commands, curve)
        except Stopped:  # between two forwards: the step under way is taken again when the run is resumed
            pass
        except StorageError:  # what the journal has, stands
            raise
        except BaseException as error:  # whatever else ends the loop, a host's interrupt too, what was learned stays
            if journal.step == search.step:  # else it came between a step and its record: that step is taken again
                journal.sync()
                _save(training, folder)
            if isinstance(error, RanksError):
                raise RanksError(
                    f"{error}. The token is kept as of step {search.step}: resume the run with --resume "
                    f'"{folder.path}", on any number of ranks'
                ) from error
            raise
        journal.sync()
    paths, lora, lora_path = _save(training, folder), training.lora(), folder.lora_snapshot_path(search.step)
    on_event(Saved(search.step, paths[0]))
    if training.done:
        if lora:  # first: where the token is, the run is over
            lora_path = save_lora(lora, folder.lora_path)
        paths = folder.save_embeddings(training.embeddings())
        with contextlib.suppress(Stopped):  # all is kept
            for line in training.remarks():
                on_event(Message(line, warning=True))
    grown = training.watch.grown()
    if grown is not None:
        on_event(Message(f"memory, measured: {megabytes(grown)} (predicted {megabytes(training.plan.use.total)})"))
    training.release()  # fronts draw with the model next
    if curve:
        loss_curve(curve, folder.loss_path, f"denoising loss while learning {config.token}")
    (embedding, path), *others = zip(training.embeddings(), paths, strict=True)
    weights = lora_path if lora else None
    grid = folder.grid_path if config.lists_samples and folder.grid_path.is_file() else None
    return TrainResult(embedding, path, search.step, training.done, curve[first:], lora, weights, tuple(others), grid)


def _steps(
    training: Training,
    folder: RunFolder,
    journal: Journal,
    on_event: Callable[[Event], None],
    commands: Commands,
    curve: list[float],
) -> None:
    """Take the steps that are left, adding to ``curve``."""
    config, search = training.config, training.search
    mean = RunningMean()
    for loss in curve:
        mean.add(loss)
    references = training.references
    samples = Samples(training.model, folder, references, lambda: (training.embeddings(), training.lora()), on_event)
    samples.begin(search.step)
    times = collections.deque([time.monotonic()], maxlen=_LATEST)
    while not training.done:
        journal.append(training.step())  # not begun where a stop is asked for
        loss = search.loss or 0.0
        curve.append(loss)
        smoothed = mean.add(loss)
        times.append(time.monotonic())
        rate = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
        eta = (config.steps - search.step) / rate
        grown, learns = training.watch.grown(), training.learns
        on_event(Progress(search.step, config.steps, loss, smoothed, rate, eta, grown, learns))
        if search.step % config.save_every == 0 or commands.take_save():
            journal.sync()  # first, so that no state on the disk is ahead of it
            on_event(Saved(search.step, _save(training, folder)[0]))
        if commands.take_sample() or (config.sample_every and search.step % config.sample_every == 0):
            samples.draw(search.step)
    samples.end(search.step)


class RunningMean:
    """An exponential mean over about the last fifty losses; the first ones all count alike, as in Adam."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, loss: float) -> float:
        """The mean after another loss."""
        self._sum = 0.98 * self._sum + 0.02 * loss
        self._weight = 0.98 * self._weight + 0.02
        return self._sum / self._weight


def _save(training: Training, folder: RunFolder) -> tuple[Path, ...]:
    """Write the state and a snapshot of each token; returns the snapshots' files."""
    folder.save_state(training.search.state_dict(), training.inputs, training.batch, training.dtype)
    if lora := training.lora():
        save_lora(lora, folder.lora_snapshot_path(training.search.step))
    return folder.save_snapshots(training.embeddings(), training.search.step)
