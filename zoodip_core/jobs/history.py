"""The runs under a home folder: listing, finding, deleting them, and what is known of each.

A page's run is ``home/NAME/`` with its pictures, what was asked, how it ended, its log, and in ``run/`` the
:class:`RunFolder`. A run of the command line is a RunFolder itself.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.errors import RunFolderError, StorageError, for_user
from ..base.files import is_newer, make_folder, read_object, storage_errors
from ..base.locks import locked
from ..base.names import fault, run_name
from ..base.paths import contains, link_out
from ..base.texts import whole_text
from ..model.checkpoints import SUFFIXES
from ..model.embedding import load_embedding
from ..model.kinds import TINY
from ..train.config import TrainConfig
from ..train.run_folder import (
    CONFIG,
    GRID,
    JOURNAL,
    LORAS,
    LOSSES,
    SAMPLES,
    SNAPSHOTS,
    STATE,
    RunFolder,
    free_folder,
    lora_beside,
)
from .job import Run
from .job_folder import BEFORE_AFTER, OUTCOME, RUN, TASK, VERSION, task_of
from .protocol import FAILED, FINISHED, RESUME, STOPPED, TRAIN, UNFINISHED

NOT_RUNS = ("cache",)
"""Folders of a home that hold something else; so do those whose names begin with a dot."""
TINY_NAME = "embedded tiny model"
_DELETED = ".deleted-"
_MOST_CONFIG = 4_000_000
_MOST_MESSAGE = 2000


# ---------------------------------------------------------------- the runs of a home


def list_runs(home: Path) -> list[Run]:
    """All runs, newest first. What is not a run is left out; of one that is damaged, ``message`` says how."""
    runs = []
    for folder in _folders(home):
        with contextlib.suppress(OSError):  # it vanished meanwhile, or nobody may look into it
            found = _run_of(folder)
            runs += [found] if found else []
    return sorted(runs, key=lambda run: (-run.when, run.name))


def find_run(home: Path, name: str) -> Run:
    """The run of a name.

    Raises:
        RunFolderError: there is none.
    """
    with contextlib.suppress(OSError):
        found = next((_run_of(folder) for folder in _folders(home) if folder.name == name), None)
        if found:
            return found
    raise RunFolderError(f"there is no run {name[:80]!r} in {home}; look for it in the list of runs, reloaded")


def delete_run(home: Path, name: str) -> None:
    """Delete a run's folder with all that is in it.

    Raises:
        RunFolderError: there is no such run, or a process is at work on it.
        StorageError: it cannot be deleted; what is left of it is not listed any more.
    """
    run = find_run(home, name)
    folder = run.folder
    if run.run.is_dir() and link_out(folder) is None:
        with locked(run.run):  # not one that the command line works on
            pass
    hidden = home / f"{_DELETED}{secrets.token_hex(8)}"
    try:
        folder.rename(hidden)  # first, so that a half deleted one is never taken for a run
    except OSError as error:
        raise StorageError(
            error.errno or 0,
            f"could not delete {folder}: {error.strerror}; close what uses its files, and see that you may write there",
        ) from error
    for left in home.glob(f"{_DELETED}*"):  # with those that could not be deleted before
        if left != hidden:
            shutil.rmtree(left, ignore_errors=True)
    try:
        shutil.rmtree(hidden)
    except OSError as error:
        raise StorageError(
            error.errno or 0,
            f"{name} is not a run any more, but not all of its files could be deleted ({error.strerror}); delete the "
            f"folder {hidden} yourself",
        ) from error


def new_folder(home: Path, token: str) -> Path:
    """Make an empty folder for a new run, named after the token.

    Raises:
        TokenError: the token cannot name a folder.
        StorageError: it cannot be made.
    """
    own = name = run_name(token)
    make_folder(home)
    while True:
        path = free_folder(home, f"{name}-run" if name.lower() in NOT_RUNS else name)
        with storage_errors(path), contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
        name = f"{own}-{secrets.token_hex(2)}"  # another was faster, or a broken link has that name


def _folders(home: Path) -> list[Path]:
    """The folders in a home that may be runs: direct children, none that a link leads to."""
    try:
        with os.scandir(home) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # no home yet
        return []
    return [
        home / name
        for name in names
        if not name.startswith(".") and name.lower() not in NOT_RUNS and not fault(name) and contains(home, home / name)
    ]


# ---------------------------------------------------------------- one run


def _run_of(folder: Path) -> Run | None:
    """What a folder tells of its run, None if it is none."""
    if (link := link_out(folder)) is not None:
        return _with_link(folder, link)
    asked, run = task_of(folder), folder / RUN
    if _is_run_folder(folder):
        run = folder
    config, step, complete, damage = _progress(run)
    if not asked and not _is_run_folder(run):
        if not is_newer(read_object(folder / TASK).get("version"), VERSION):
            return None
        damage = f"{folder / TASK} was written by a newer ZOODiP, and no step was taken yet; update ZOODiP"
    settings: dict[str, Any] = {}
    for given in (asked.get("settings"), config and config.to_dict()):
        settings |= given if isinstance(given, dict) else {}
    steps = settings.get("steps")
    own = RunFolder(run, config) if config else None
    embedding = token_in(own, complete) if own else newest(run / SNAPSHOTS, ".safetensors")
    outcome = _outcome(folder, asked)
    state = FAILED if damage else _state(outcome, complete, own is not None and own.embedding_path.is_file())
    message = damage or (_text(outcome.get("message"))[:_MOST_MESSAGE] if state == FAILED else "")
    return Run(
        name=folder.name,
        folder=folder,
        run=run,
        token=_text(settings.get("token")) or folder.name,
        model=_model_name(settings.get("model")),
        step=step,
        steps=steps if isinstance(steps, int) else 0,
        state=state,
        message=message,
        when=_when(folder, run),
        embedding=embedding,
        before_after=_existing(folder / BEFORE_AFTER),
        loss_curve=_existing(run / LOSSES),
        sample=newest(run / SAMPLES, ".png"),
        settings=settings,
        can_resume=not damage and state != FINISHED and (config is not None or asked.get("kind") == TRAIN),
        lora=lora_with(embedding) if embedding else None,
        others=_others(own, embedding) if own and embedding else (),
        grid=_existing(run / SAMPLES / GRID),
    )


def _others(folder: RunFolder, first: Path) -> tuple[tuple[str, Path], ...]:
    """The tokens that were learned together with the first one, and their files."""
    files = zip(folder.config.tokens, folder.beside(first), strict=True)
    return tuple((token, path) for token, path in files if path != first and path.is_file())


def _with_link(folder: Path, link: Path) -> Run | None:
    """A folder of which a part lies elsewhere, and may be anything: none of it is read, but it can be deleted."""
    run = folder if (folder / CONFIG).is_file() else folder / RUN
    if not ((folder / TASK).is_file() or (run / CONFIG).is_file()):
        return None
    why = f"{link} is a link that leads out of the run's folder; put what it leads to in its place"
    when, name = _changed(folder), folder.name
    return Run(name=name, folder=folder, run=run, token=name, state=FAILED, message=why, when=when)


def _is_run_folder(path: Path) -> bool:
    """Whether there is a :class:`RunFolder`, damaged maybe. Other programs have a ``config.json`` as well."""
    if not (path / CONFIG).is_file():
        return False
    return "config_version" in read_object(path / CONFIG) or (path / STATE).is_file() or (path / JOURNAL).is_file()


def _progress(run: Path) -> tuple[TrainConfig | None, int, bool, str]:
    """Settings, completed steps, whether that is all, and what is damaged, if anything."""
    file, config = run / CONFIG, None
    if not file.is_file():  # it was cut off, or failed, before it began
        return None, 0, False, ""
    try:
        with file.open("rb") as opened:
            text = opened.read(_MOST_CONFIG).decode("utf-8", "replace")
        config = TrainConfig.from_json(text, str(file))
        return config, *RunFolder(run, config).progress(), ""
    except Exception as error:  # a damaged file may raise anything, and must not hide the other runs
        return config, 0, False, (for_user(error) or f"{run} is damaged ({error})")[:_MOST_MESSAGE]


def _outcome(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """How a run ended; empty if that is not known, or it was asked to resume since and then was cut off."""
    outcome = read_object(folder / OUTCOME)
    if outcome.get("version") != VERSION:
        return {}
    if asked.get("kind") not in (TRAIN, RESUME):  # drawings had no file of their own once
        return outcome
    if "id" in asked:
        current = outcome.get("task") == asked["id"]
    else:  # a job of the first version's beginnings: then the files' times must do, though clocks are set back
        current = _changed(folder / TASK) <= _changed(folder / OUTCOME)
    return outcome if current else {}


def _state(outcome: Mapping[str, Any], complete: bool, has_token: bool) -> str:
    said = outcome.get("state")
    if said == FAILED:
        return FAILED
    if complete and (has_token or said == FINISHED):
        return FINISHED
    return STOPPED if said == STOPPED else UNFINISHED


def _model_name(model: Any) -> str:
    if model == TINY:
        return TINY_NAME
    name = re.split(r"[/\\]", _text(model).rstrip("/\\"))[-1]
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def _text(value: Any) -> str:
    return whole_text(str(value)) if isinstance(value, str | int) else ""


def _when(folder: Path, run: Path) -> float:
    files = (folder / TASK, folder / OUTCOME, run / CONFIG, run / JOURNAL, run / STATE)
    return max(map(_changed, files)) or _changed(folder)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def newest(folder: Path, suffix: str) -> Path | None:
    """A run's file of the last step, by its name; not that of step 0, at which nothing was learned yet."""
    try:
        names = [name for name in os.listdir(folder) if re.fullmatch(rf"step-0*[1-9]\d*\{suffix}", name)]  # noqa: PTH208
    except OSError:
        return None
    return folder / max(names, key=lambda name: _step_of(name, suffix)) if names else None


def token_in(run: RunFolder, complete: bool) -> Path | None:
    """The file of a run's token: the finished one, or the newest snapshot; None if there is neither.

    A finished run that takes more steps has snapshots that are newer than its token's file.

    Args:
        run: the run.
        complete: whether it has taken all its steps.
    """
    finished, snapshot = run.embedding_path, newest(run.path / SNAPSHOTS, ".safetensors")
    if not finished.is_file():
        return snapshot
    newer = snapshot is not None and not complete and _step_of(snapshot.name, ".safetensors") > _steps_in(finished)
    return snapshot if newer else finished


def _step_of(name: str, suffix: str) -> int:
    return int(name[len("step-") : -len(suffix)])


def _steps_in(token: Path) -> float:
    """After how many steps a token was what its file holds."""
    try:
        return float(load_embedding(token).metadata["steps"])
    except Exception:  # a damaged file may raise anything, and is told of where it is used
        return math.inf


def lora_with(token: Path) -> Path | None:
    """The LoRA that was learned with a run's token, finished or a snapshot; None if there were no weights by then."""
    snapshot = token.parent.name == SNAPSHOTS
    return _existing(token.parent.parent / LORAS / token.name if snapshot else lora_beside(token))


# ---------------------------------------------------------------- the losses of one


def losses_of(run: Path) -> list[float]:
    """The loss at the token of each logged step of a :class:`RunFolder`, as its loss curve shows them.

    None are given for a run that has not begun, or whose settings are damaged.
    """
    config, *_ = _progress(run)
    if config is None:
        return []
    try:
        return RunFolder(run, config).losses()
    except OSError:
        return []
