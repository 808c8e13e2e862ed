"""A run's folder: settings, journal, a saved state that spares most of its replay, snapshots, samples, loss curve."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save

from ..base.errors import RunFolderError
from ..base.files import make_folder, storage_errors, write_atomically
from ..base.locks import LOCK
from ..base.names import file_stem
from ..base.paths import link_out
from ..base.safetensors_files import open_safetensors
from ..base.texts import how_many
from ..data.prompts import LISTING
from ..model.embedding import Embedding, save_embedding
from ..model.frames import Frames
from ..search.preconditioner import Spread
from . import journal
from .config import TrainConfig
from .identity import Inputs
from .settings import NORMAL

T = TypeVar("T")
CONFIG, JOURNAL, STATE = "config.json", "steps.jsonl", "state.safetensors"
DIRECTIONS, FRAMES, LORAS = "directions.safetensors", "frames.safetensors", "loras"
SNAPSHOTS = "snapshots"
SAMPLES, GRID, LOSSES = "samples", "grid.png", "loss.png"
STATE_VERSION = 2
"""Of the saved state; the first had no checksum."""
CHANGEABLE = (
    *("steps", "save_every", "sample_every", "sample_prompt"),
    *("sample_negative_prompt", "sample_guidance", "sample_steps"),
    *("images", "captions", "model", "clip", "vae", "cache", "device", "graphs"),
)
"""Settings that a run may change when it is resumed: they do not change the steps it takes. What stands at another
place must have the same content, which is checked."""


@dataclass(frozen=True)
class SavedState:
    """A search's state on disk.

    Args:
        tensors: of :meth:`ZerothOrderSearch.state_dict`.
        inputs: of the model, images and captions it belongs to.
        batch: candidates in one forward pass at that time, 0 if that is not known.
        dtype: of activations at that time, empty if that is not known.
    """

    tensors: dict[str, torch.Tensor]
    inputs: Inputs
    batch: int
    dtype: str = ""


class RunFolder:
    """Reads and writes one run's folder; see the module's first line for what lies in it."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> RunFolder:
        """Start a folder that does not exist yet, or has nothing but captions; best while it is :func:`locked`.

        Raises:
            RunFolderError: there is something already.
            StorageError: it cannot be written.
        """
        check_free(path)
        make_folder(path)
        folder = cls(path, config)
        folder.save_config()
        return folder

    @classmethod
    def open(cls, path: Path, changes: Mapping[str, Any] | None = None) -> RunFolder:
        """A folder to resume in.

        Args:
            changes: settings that differ from now on, of :data:`CHANGEABLE`.

        Raises:
            RunFolderError: not a run folder, one from which a link leads out, or one whose search would not be the
                same with these changes.
            ConfigError: its settings cannot be read, or a changed one is out of range.
        """
        file = path / CONFIG
        if not file.is_file():
            raise RunFolderError(
                f"{path} is not a run folder: it has no {CONFIG}; give the folder that a training run made"
            )
        link = link_out(path)
        if link is not None:  # the folder may be a stranger's
            raise RunFolderError(
                f"{link} is a link that leads out of the run's folder; put what it leads to in its place"
            )
        try:
            with storage_errors(file):
                text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RunFolderError(f"{file} is damaged ({error}); start a new run, or put back a copy of it") from error
        config = writing_nowhere_else(TrainConfig.from_json(text, str(file)))
        fixed = sorted(set(changes or {}) - set(CHANGEABLE))
        if fixed:
            raise RunFolderError(
                f"{path}: {', '.join(fixed)} cannot change when a run is resumed, only {', '.join(CHANGEABLE)}; "
                "start a new run"
            )
        folder = cls(path, dataclasses.replace(config, **(changes or {})))
        if folder.config.steps != config.steps:
            folder._check_steps(config)
        return folder

    def _check_steps(self, before: TrainConfig) -> None:
        if not before.can_grow:
            raise RunFolderError(
                f"{self.path}: the run's schedules and checks follow its {how_many(before.steps, 'step')}, so their "
                "number cannot change; start a new run"
            )
        if self.config.steps < self.step():
            raise RunFolderError(f"{self.path}: the run is at step {self.step()} already, beyond {self.config.steps}")

    @property
    def embedding_path(self) -> Path:
        """Where the finished token goes, of several the first one: where it is, the run is over."""
        return self.embedding_paths[0]

    @property
    def embedding_paths(self) -> tuple[Path, ...]:
        """Where the finished tokens go."""
        return tuple(self.path / f"{file_stem(token)}.safetensors" for token in self.config.tokens)

    def beside(self, first: Path) -> tuple[Path, ...]:
        """The files of all tokens that belong to one of the first one's, finished or a snapshot."""
        folder, others = first.parent, self.config.tokens[1:]
        if folder.name == SNAPSHOTS:
            return (first, *(folder / file_stem(token) / first.name for token in others))
        return (first, *self.embedding_paths[1:])

    def save_embeddings(self, embeddings: Sequence[Embedding]) -> tuple[Path, ...]:
        """Write the finished tokens, the first one last."""
        return _save_all(embeddings, self.embedding_paths)

    @property
    def lora_path(self) -> Path:
        """Where the finished LoRA goes, of a run that learns weights."""
        return lora_beside(self.embedding_path)

    @property
    def loss_path(self) -> Path:
        """Where the picture of the whole run's losses goes."""
        return self.path / LOSSES

    @property
    def journal_path(self) -> Path:
        """Where each step has a line."""
        return self.path / JOURNAL

    @property
    def state_path(self) -> Path:
        """Where the search's state is kept."""
        return self.path / STATE

    def past(self) -> journal.Past:
        """What the journal tells.

        Raises:
            StorageError: it cannot be read.
        """
        return journal.read(self.journal_path)

    def losses(self) -> list[float]:
        """The loss at the token of each step that the journal tells of.

        Raises:
            StorageError: it cannot be read.
        """
        estimator = self.config.make_estimator()
        return [
            estimator.loss(torch.tensor(record.losses, dtype=torch.float64))
            for _, record in sorted(self.past().records.items())
            if len(record.losses) == estimator.num_candidates
        ]

    def save_config(self) -> None:
        """Write the settings, which may have changed."""
        write_atomically(self.path / CONFIG, self.config.to_json())

    def step(self) -> int:
        """Completed steps, as far as the journal's end and the saved state tell."""
        return self.progress()[0]

    def progress(self) -> tuple[int, bool]:
        """Completed steps, and whether the run is over: it has taken all, or its token had converged."""
        saved = self.sound_state() or {"step": torch.tensor(0)}
        step = max(journal.last_step(self.journal_path), int(saved["step"]))
        converged = "guard.idle" in saved and 0 < self.config.patience <= int(saved["guard.idle"])
        return step, converged or step >= self.config.steps

    def save_state(self, state: dict[str, torch.Tensor], inputs: Inputs, batch: int, dtype: str) -> None:
        """Write the search's state.

        Args:
            state: its tensors.
            inputs: of the model, images and captions it belongs to.
            batch: candidates in one forward pass.
            dtype: of activations.
        """
        about = {"version": STATE_VERSION, "inputs": inputs.digest, "parts": inputs.parts, "batch": batch}
        about |= {"dtype": dtype, "checksum": _checksum(state)}
        # One entry: the library writes several in any order.
        write_atomically(self.state_path, save(state, metadata={"about": json.dumps(about)}))

    def saved_state(self) -> SavedState | None:
        """The saved state, None if there is none.

        Raises:
            RunFolderError: it is damaged, or of a newer version.
        """
        file = self.state_path
        if not file.is_file():
            return None
        try:
            with open_safetensors(file) as stored:
                tensors = {key: stored.get_tensor(key).clone() for key in stored.keys()}  # noqa: SIM118
                about = json.loads((stored.metadata() or {}).get("about", "{}"))
            version, batch = int(about.get("version", 1)), int(about.get("batch", 0))
            parts = {str(name): str(digest) for name, digest in dict(about.get("parts", {})).items()}
            counts = int(tensors["step"]), int(tensors.get("guard.idle", 0))
            if min(counts) < 0 or (version == STATE_VERSION and about["checksum"] != _checksum(tensors)):
                raise ValueError("its content does not match its checksum")
        except Exception as error:  # a damaged file may raise anything
            raise RunFolderError(f"{file} is damaged ({error}); start a new run, or put back a copy of it") from error
        if version > STATE_VERSION:
            raise RunFolderError(f"{file} was written by a newer ZOODiP; update this one, or start a new run")
        return SavedState(tensors, Inputs(str(about.get("inputs")), parts), batch, str(about.get("dtype", "")))

    def sound_state(self) -> dict[str, torch.Tensor] | None:
        """The saved state's tensors, None if there is none to rely on."""
        try:
            saved = self.saved_state()
        except RunFolderError:
            return None
        return saved.tensors if saved else None

    @property
    def spread_path(self) -> Path:
        """Where the shape of the random directions is kept, of a run whose directions have one."""
        return self.path / DIRECTIONS

    def save_spread(self, spread: Spread) -> None:
        """Keep the shape of the random directions: worked out anew, it might differ in its last digits."""
        write_atomically(self.spread_path, save(spread.tensors()))

    def spread(self) -> Spread | None:
        """The shape of the random directions, None if the run's have none.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        if self.config.directions == NORMAL:
            return None
        return self._kept(self.spread_path, Spread.of_tensors)

    def _kept(self, path: Path, of_tensors: Callable[[dict[str, torch.Tensor]], T]) -> T:
        """What a file that could be worked out anew holds.

        Raises:
            RunFolderError: it is missing or damaged.
        """
        try:
            with open_safetensors(path) as stored:
                return of_tensors({name: stored.get_tensor(name).clone() for name in stored.keys()})  # noqa: SIM118
        except Exception as error:  # a damaged file may raise anything
            raise RunFolderError(
                f"{path} is missing or damaged ({error}); put back a copy of it. Resuming the run writes it again, as "
                "long as there are steps left"
            ) from error

    @property
    def frames_path(self) -> Path:
        """Where the frames of the weights that are learned are kept, of a run that learns some."""
        return self.path / FRAMES

    def save_frames(self, frames: Frames) -> None:
        """Keep the frames: worked out anew, they might differ in their last digits."""
        write_atomically(self.frames_path, save(frames.tensors()))

    def frames(self) -> Frames | None:
        """The frames of the weights that are learned, None if none are.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        return self._kept(self.frames_path, self._checked_frames) if self.config.lora_rank else None

    def _checked_frames(self, tensors: dict[str, torch.Tensor]) -> Frames:
        frames = Frames.of_tensors(tensors)
        if frames.rank != self.config.lora_rank:
            raise ValueError(f"its rank is {frames.rank}")
        return frames

    def lora_snapshot_path(self, step: int) -> Path:
        """Where the LoRA of a step goes."""
        return self.path / LORAS / self.snapshot_path(step).name

    def snapshot_path(self, step: int) -> Path:
        """Where the token of a step goes, of several the first one."""
        return self.path / SNAPSHOTS / f"step-{step:08d}.safetensors"

    def snapshot_paths(self, step: int) -> tuple[Path, ...]:
        """Where the tokens of a step go: all but the first one in a folder of their name."""
        return self.beside(self.snapshot_path(step))

    def save_snapshots(self, embeddings: Sequence[Embedding], step: int) -> tuple[Path, ...]:
        """Keep the tokens as they are at a step, the first one last."""
        return _save_all(embeddings, self.snapshot_paths(step))

    def sample_path(self, step: int) -> Path:
        """Where a step's sample images go."""
        return self.samples_path / f"step-{step:08d}.png"

    @property
    def samples_path(self) -> Path:
        """The folder of the sample images."""
        return self.path / SAMPLES

    @property
    def grid_path(self) -> Path:
        """Where the picture of all sample prompts over time goes, of a run that lists several."""
        return self.samples_path / GRID


def _save_all(embeddings: Sequence[Embedding], paths: Sequence[Path]) -> tuple[Path, ...]:
    """Write several tokens, the first one last: where it is, nothing is missing."""
    pairs = list(zip(embeddings, paths, strict=True))
    return tuple(save_embedding(*pair) for pair in reversed(pairs))[::-1]


def lora_beside(embedding: Path) -> Path:
    """The file of the LoRA that was learned with a token, beside the token's."""
    return embedding.with_name(f"{embedding.stem}-lora.safetensors")


def writing_nowhere_else(config: TrainConfig) -> TrainConfig:
    """The settings of a run that may be a stranger's.

    Copies of models are read where its settings say. They are made there only if ``changes`` of :meth:`RunFolder.open`
    say so as well, or some are there.
    """
    from ..model.copies import has_copies
    from ..model.copy_folder import AUTO

    known = config.cache in (None, AUTO) or has_copies(Path(str(config.cache)))
    return config if known else dataclasses.replace(config, cache=None)


def _checksum(state: Mapping[str, torch.Tensor]) -> str:
    checksum = 0
    for key in sorted(state):
        checksum = zlib.crc32(state[key].numpy().tobytes(), zlib.crc32(key.encode(), checksum))
    return f"{checksum:08x}"


def check_free(path: Path) -> None:
    """Refuse a folder with something in it but captions, a path that is a file, or one that cannot be made.

    Raises:
        RunFolderError: it is not free.
        StorageError: its place cannot be written.
    """
    if path.is_file() or (path.is_dir() and any(file.name not in (LOCK, LISTING) for file in path.iterdir())):
        raise RunFolderError(
            f"{path} already exists; choose another output folder, or resume with "
            f'--resume "{path}" if it is an unfinished run'
        )
    above = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    with storage_errors(path):
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        if not os.access(above, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def free_folder(parent: Path, token: str) -> Path:
    """A folder in ``parent`` named after the token that does not exist yet."""
    stem = file_stem(token)
    path, count = parent / stem, 1
    while path.exists():
        count += 1
        path = parent / f"{stem}-{count}"
    return path
