"""A run's folder: settings, a line for each step, the state to go on from, snapshots, samples, loss curve."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .config import TrainConfig
from .embedding import Embedding, save_embedding
from .errors import RunFolderError
from .files import make_folder, storage_errors, write_atomically
from .tokens import file_stem

CONFIG, LOG, STATE = "config.json", "steps.jsonl", "state.safetensors"
CHANGEABLE = ("steps", "save_every", "sample_every", "sample_prompt", "images", "captions", "model", "cache")
"""Settings that a run may change when it goes on: they do not change the steps it takes. What stands at another
place must have the same content, which is checked."""


class RunFolder:
    """Reads and writes one run's folder; see the module's first line for what lies in it."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> RunFolder:
        """Start a folder that does not exist yet, or is empty.

        Raises:
            RunFolderError: there is something already.
            StorageError: it can not be written.
        """
        check_free(path)
        make_folder(path)
        folder = cls(path, config)
        folder.save_config()
        return folder

    @classmethod
    def open(cls, path: Path, changes: Mapping[str, Any] | None = None) -> RunFolder:
        """A folder to go on in.

        Args:
            changes: settings that shall differ from now on, of :data:`CHANGEABLE`.

        Raises:
            RunFolderError: not a run folder, or one whose search would not be the same with these changes.
            ConfigError: its settings can not be read, or a changed one is out of range.
        """
        file = path / CONFIG
        if not file.is_file():
            raise RunFolderError(
                f"{path} is no run folder: it has no {CONFIG}; give the folder that a training run made"
            )
        with storage_errors(file):
            text = file.read_text(encoding="utf-8")
        config = TrainConfig.from_json(text, str(file))
        fixed = sorted(set(changes or {}) - set(CHANGEABLE))
        if fixed:
            raise RunFolderError(
                f"{path}: {', '.join(fixed)} can not change when a run goes on, only {', '.join(CHANGEABLE)}; start a "
                "new run"
            )
        folder = cls(path, dataclasses.replace(config, **(changes or {})))
        if folder.config.steps != config.steps:
            folder._check_steps(config)
        return folder

    def _check_steps(self, before: TrainConfig) -> None:
        if before.lr_schedule != "constant":
            raise RunFolderError(
                f"{self.path}: the run's learning rate follows its {before.steps} steps ({before.lr_schedule}), so "
                "their number can not change; start a new run"
            )
        if self.config.steps < self.step():
            raise RunFolderError(f"{self.path}: the run is at step {self.step()} already, beyond {self.config.steps}")

    @property
    def embedding_path(self) -> Path:
        """Where the finished token goes."""
        return self.path / f"{file_stem(self.config.token)}.safetensors"

    @property
    def loss_path(self) -> Path:
        """Where the picture of the whole run's losses goes."""
        return self.path / "loss.png"

    def append(self, record: dict[str, Any]) -> None:
        """Add a step's line to the log."""
        with storage_errors(self.path / LOG), (self.path / LOG).open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> Iterator[dict[str, Any]]:
        """The logged steps in order, up to the first damaged line (a torn last one, say)."""
        file = self.path / LOG
        if file.is_file():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    yield json.loads(line)
                except ValueError:
                    return

    def keep_records(self, count: int) -> None:
        """Cut the log to its first ``count`` steps: those after the saved state are taken again."""
        kept = [record for record in self.records() if record["step"] <= count]
        write_atomically(self.path / LOG, "".join(json.dumps(record) + "\n" for record in kept))

    def save_config(self) -> None:
        """Write the settings, which may have changed."""
        write_atomically(self.path / CONFIG, self.config.to_json())

    def step(self) -> int:
        """Completed steps of the saved state, 0 if there is none.

        Raises:
            RunFolderError: it is damaged.
        """
        file = self.path / STATE
        if not file.is_file():
            return 0
        try:
            with safe_open(file, framework="pt") as stored:
                return int(stored.get_tensor("step"))
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(file, error) from error

    def save_state(self, state: dict[str, torch.Tensor], inputs: str, batch: int) -> None:
        """Write the search's state.

        Args:
            state: its tensors.
            inputs: identifies the model, images and captions it belongs to.
            batch: candidates in one forward pass.
        """
        about = json.dumps({"inputs": inputs, "batch": batch})  # one entry: the library writes several in any order
        write_atomically(self.path / STATE, save(state, metadata={"about": about}))

    def batch(self) -> int:
        """Candidates in one forward pass when the state was saved, 0 if that is not known."""
        try:
            with safe_open(self.path / STATE, framework="pt") as stored:
                return int(_about(stored).get("batch", 0))
        except (SafetensorError, OSError, ValueError, TypeError):
            return 0  # what is wrong with it shows when the state is loaded

    def load_state(self, inputs: str) -> dict[str, torch.Tensor] | None:
        """The saved state, or None if the run never got so far.

        Raises:
            RunFolderError: it is damaged, or belongs to other inputs.
        """
        file = self.path / STATE
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                state = {key: stored.get_tensor(key).clone() for key in stored.keys()}  # noqa: SIM118
                known = _about(stored).get("inputs")
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(file, error) from error
        if known != inputs:
            raise RunFolderError(
                f"{self.path}: the model, images or captions are not those of this run any more; put "
                "them back, or start a new run"
            )
        return state

    def save_snapshot(self, embedding: Embedding, step: int) -> Path:
        """Keep the token as it is at a step."""
        return save_embedding(embedding, self.path / "snapshots" / f"step-{step:08d}.safetensors")

    def sample_path(self, step: int) -> Path:
        """Where a step's sample images go."""
        return self.path / "samples" / f"step-{step:08d}.png"


def _damaged(file: Path, error: Exception) -> RunFolderError:
    return RunFolderError(f"{file} is damaged ({error}); start a new run, or put back a copy of it")


def _about(stored: Any) -> dict[str, Any]:
    about = json.loads((stored.metadata() or {}).get("about", "{}"))
    return about if isinstance(about, dict) else {}


def check_free(path: Path) -> None:
    """Refuse a folder with something in it, a path that is a file, or one that can not be made.

    Raises:
        RunFolderError: it is not free.
        StorageError: its place can not be written.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunFolderError(
            f"{path} already exists; choose another output folder, or go on with "
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
