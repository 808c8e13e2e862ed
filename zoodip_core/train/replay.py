"""A run's search as it was after any step, rebuilt from the journal without a single forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..base.errors import EmbeddingFileError, RunFolderError
from ..base.names import file_stem
from ..model.embedding import Embedding, load_embedding, save_embedding
from ..model.lora import lora_of, save_lora
from ..search.staged import StagedSearch
from ..search.state import State
from .config import Search, TrainConfig
from .journal import Record
from .run_folder import RunFolder, lora_beside

Records = Mapping[int, Record]


def restore(search: Search, config: TrainConfig, records: Records, state: State | None = None) -> int | None:
    """Take a search to the furthest step that a run's files lead to.

    Args:
        search: at its start.
        config: the run's settings.
        records: the journal's, by their steps.
        state: a saved state; it shortens the way, and bridges what is missing in the records.

    Returns:
        None, or the first step that came out other than it was, before which the search stands: another processor or
        version computes it, or the settings were changed by hand.
    """
    way = _way(search, records, state, max([*records, int(state["step"]) if state else 0], default=0))
    search.load_state_dict(way.base)
    differs = replay(search, config, records, way.reach)
    if differs is not None:
        search.load_state_dict(way.base)
        replay(search, config, records, differs - 1)
    return differs


def replay(search: Search, config: TrainConfig, records: Records, upto: int) -> int | None:
    """Take the recorded steps from where a search stands on; returns the first that came out other than it was."""
    differs = None
    for step in range(search.step + 1, upto + 1):
        record = records[step]
        losses = torch.tensor(record.losses, dtype=torch.float64)
        lr_scale, mu_scale = config.lr_scale(step - 1, search.began), config.mu_scale(step - 1, search.began)
        search.tell(losses, lr_scale, check_loss=record.check_loss, mu_scale=mu_scale)
        if differs is None and record.theta not in (None, search.checksum):
            differs = step
    return differs


@dataclass(frozen=True)
class _Way:
    """A state to start from, and the step to which records lead from there."""

    base: State
    reach: int


def _way(search: Search, records: Records, state: State | None, upto: int) -> _Way:
    known = {step for step, record in records.items() if len(record.losses) == search.estimator.num_candidates}
    ways = []
    for base in (state, search.state_dict()):
        if base is not None and int(base["step"]) <= upto:
            reach = int(base["step"])
            while reach < upto and reach + 1 in known:
                reach += 1
            ways.append(_Way(base, reach))
    return max(ways, key=lambda way: way.reach)  # of two that lead as far the first, which is shorter


# ---------------------------------------------------------------- rewind


@dataclass(frozen=True)
class Rewound:
    """The token of an earlier step.

    Args:
        path: its file.
        differs: None, or the step from which on it may differ from what it was; see :func:`restore`.
        lora: the file of its LoRA, if weights had been learned by then.
        others: the files of the tokens that were learned together with it.
    """

    path: Path
    differs: int | None
    lora: Path | None = None
    others: tuple[Path, ...] = ()


def rewind(path: str | Path, step: int, output: str | Path | None = None) -> Rewound:
    """Write a run's token as it was after a step. The run stays as it is, and may be at work.

    Args:
        path: the run's folder.
        step: completed steps; 0 for the token that it started from.
        output: the file to write, those of further tokens with their names behind its own; the run's snapshots of that
            step if None.

    Raises:
        RunFolderError: no run folder, the run has not come to that step, or its files do not lead there.
        StorageError: the file cannot be written.
    """
    folder = RunFolder.open(Path(path))
    records = folder.past().records
    targets = _beside(Path(output), folder.config.tokens) if output else folder.snapshot_paths(step)
    beside = lora_beside(targets[0]) if output else folder.lora_snapshot_path(step)
    written = [*targets, *([beside] if folder.config.lora_rank else [])]
    for file in written if output else ():
        if file.exists():
            raise RunFolderError(f"{file} already exists; choose another file")
    last = max(folder.step(), *records, 0)
    if not 0 <= step <= last:
        raise RunFolderError(f"{folder.path} has no step {step}; choose one from 0 to {last}")
    first = _first_tokens(folder)
    frames = folder.frames()
    theta0 = torch.cat([each.vectors for each in first])
    search = folder.config.make_search(theta0, folder.spread(), frames.numbers if frames else 0)
    way = _way(search, records, folder.sound_state(), step)
    if way.reach < step:
        raise RunFolderError(
            f"{folder.path}: step {step} cannot be rebuilt, for the journal says nothing of step {way.reach + 1}; "
            f"take the nearest token in {folder.snapshot_path(step).parent}"
        )
    search.load_state_dict(way.base)
    differs = replay(search, folder.config, records, step)
    rows = search.theta.split([each.num_vectors for each in first])
    metadata = {**_described(folder, step, first[0]), "steps": str(step)}
    for each, own, target in reversed(list(zip(first, rows, targets, strict=True))):
        tensors = tuple(part.contiguous() for part in own.split(each.dims, dim=1))
        own_word = {name: text for name, text in each.metadata.items() if name == "initializer"}
        save_embedding(Embedding(each.token, tensors, {**metadata, **own_word}, encoders=each.encoders), target)
    lora = None
    if frames and isinstance(search, StagedSearch) and search.in_second:
        lora = save_lora(lora_of(frames, search.cores.theta[0], {**metadata, "token": first[0].token}), beside)
    return Rewound(targets[0], differs, lora, targets[1:])


def _beside(path: Path, tokens: Sequence[str]) -> tuple[Path, ...]:
    """A file for each token: the first one's, and beside it those with the other tokens' names behind its own."""
    return (path, *(path.with_stem(f"{path.stem}-{file_stem(token)}") for token in tokens[1:]))


def _first_tokens(folder: RunFolder) -> list[Embedding]:
    try:
        return [load_embedding(path) for path in folder.snapshot_paths(0)]
    except EmbeddingFileError as error:
        raise RunFolderError(
            f"{error}; it is the token that the run started from. Resuming the run writes it again, as long as "
            "there are steps left"
        ) from error


def _described(folder: RunFolder, step: int, first: Embedding) -> dict[str, str]:
    """What the run's files said of the token at that time: the number of steps that it is made for may change."""
    for path in sorted(folder.snapshot_path(0).parent.glob("step-*.safetensors"), reverse=True):
        if path.name <= folder.snapshot_path(step).name:
            try:
                return load_embedding(path).metadata
            except EmbeddingFileError:
                continue
    return first.metadata
