"""One job in a process of its own: ``python -m zoodip_core.worker JOB.json``.

A web page's process starts it and stays free of models. Events go out as JSON lines on the standard output,
commands come in as JSON lines on the standard input, everything else that is printed goes to the standard error.
Where the input ends, whoever started the job is gone: the run is saved, and the process ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .cli import quiet_libraries
from .config import TrainConfig, preset_for
from .embedding import load_embedding
from .errors import ConfigError, for_user
from .files import storage_errors
from .history import BEFORE_AFTER, RUN, newest
from .jobs import TASK_VERSION
from .memory import predict_memory
from .models import QuantizedModel, identify, load_quantized
from .runs import RunFolder
from .showing import before_after
from .stopping import Stopped, stopped_by
from .trainer import (
    Commands,
    Event,
    Message,
    Progress,
    Sampled,
    Saved,
    Started,
    TrainResult,
    load_references,
    noise_warning,
    resume_training,
    tokenised,
    train_token,
)

FINISHED, STOPPED, FAILED, FAULT = 0, 1, 2, 70
"""Exit codes: a user's error is 2, a fault of the program 70."""
_LONGEST_COMMAND = 4096
_SAMPLINGS = 10
"""Over a run, where a job does not say how often."""


# ---------------------------------------------------------------- the two pipes


class Outbox:
    """Events as JSON lines, on what was the standard output; prints of libraries can not come between them."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    @classmethod
    def on_stdout(cls) -> Outbox:
        """Take over the process's standard output; what is printed from now on goes to its standard error."""
        pipe = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        return cls(pipe)

    def send(self, event: str, **data: Any) -> None:
        """Send an event; silent where nobody listens any more, for then the end of the input stops the run."""
        line = json.dumps({"event": event, **data}).encode() + b"\n"
        try:
            with self._lock:
                self._pipe.write(line)
                self._pipe.flush()
        except (OSError, ValueError):
            pass

    def __call__(self, event: Event) -> None:
        """Send what a training tells."""
        if isinstance(event, Message):
            self.send("message", text=event.text, warning=event.warning)
        elif isinstance(event, Started):
            self.send("started", step=event.step, steps=event.steps, losses=list(event.losses))
        elif isinstance(event, Progress):
            self.send(
                "progress",
                step=event.step,
                steps=event.steps,
                loss=event.loss,
                smoothed=event.smoothed,
                rate=event.steps_per_second,
                eta=event.eta,
                memory=event.memory,
            )
        elif isinstance(event, Sampled):
            self.send("sampled", step=event.step, path=str(event.path))
        elif isinstance(event, Saved):
            self.send("saved", step=event.step, path=str(event.embedding))


def obey(pipe: IO[bytes], commands: Commands) -> None:
    """Hand commands on until the pipe ends, which is a stop."""
    known = {"stop": commands.stop, "save": commands.save, "sample": commands.sample}
    try:
        while line := pipe.readline(_LONGEST_COMMAND):
            try:
                known[json.loads(line)["command"]]()
            except (ValueError, KeyError, TypeError, RecursionError):
                print(f"not a command: {line[:80]!r}", file=sys.stderr)
    finally:  # whatever happens to the pipe, or to the log on a full disk
        commands.stop()


# ---------------------------------------------------------------- the jobs


@dataclass(frozen=True)
class Job:
    """What a job file asks for.

    Args:
        kind: check, train, resume, show.
        folder: where it all goes; a run is made or is to be found in its ``run``, or is the folder itself.
        settings: of a new run, by the names of :class:`TrainConfig`; the rest is the preset's for the model.
        pace: the preset; see :func:`preset_for`.
        changes: settings that differ when a run goes on.
    """

    kind: str
    folder: Path
    settings: Mapping[str, Any]
    pace: str
    changes: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> Job:
        """Read a job file.

        Raises:
            ConfigError: it is none, or of another version.
        """
        with storage_errors(file):
            content = file.read_bytes()
        try:
            data = json.loads(content)
            if data["version"] != TASK_VERSION or data["kind"] not in KINDS:
                raise ConfigError(f"{file} is a job of another version of ZOODiP; start the job again")
            settings, changes = dict(data.get("settings", {})), dict(data.get("changes", {}))
            return cls(data["kind"], Path(data["folder"]), settings, str(data.get("pace", "paper")), changes)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{file} is no job file ({error}); start the job again") from error

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder if (self.folder / "config.json").is_file() else self.folder / RUN

    def config(self) -> TrainConfig:
        """The settings of a new run: the preset for the model and the pace, with the job's on top.

        Raises:
            ZoodipError: of the kind that tells what is wrong with them.
        """
        given = dict(self.settings)
        family = identify(given.get("model", TrainConfig.model), given.get("prediction_type", "auto")).family
        weights, dtype = given.get("weights", TrainConfig.weights), given.get("dtype", TrainConfig.dtype)
        config = TrainConfig.from_dict({**preset_for(family, weights, dtype, self.pace), **given})
        if "sample_every" in given:
            return config
        return dataclasses.replace(config, sample_every=max(1, config.steps // _SAMPLINGS))


def check(config: TrainConfig) -> dict[str, Any]:
    """What a run with these settings would be, without loading its model or touching a graphics card.

    Returns:
        ``settings`` in full, ``model`` and ``family``, ``device``, ``images`` and ``captions`` in number, ``warnings``,
        and ``memory``: predicted bytes with all of a step's candidates in one forward, and ``memory_in_turn``.

    Raises:
        ZoodipError: of the kind that tells what is wrong.
    """
    import torch

    info = identify(config.model, config.prediction_type)
    images, skipped = load_references(config, info)
    on_card = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if on_card else "cpu")
    dtype = "float16" if on_card and config.dtype == "auto" else config.dtype
    model = load_quantized(
        config.model, weights=config.weights, dtype=dtype, device="cpu", prediction_type=config.prediction_type
    )
    prompts = tokenised(config, model, images)
    candidates = config.make_estimator().num_candidates
    batches = (min(config.batch or candidates, candidates), 1)
    resolution = config.resolution or info.resolution
    memory, in_turn = (
        predict_memory(model.blueprint, config.weights, model.dtype, device, resolution, batch).total
        for batch in batches
    )
    return {
        "settings": config.to_dict(),
        "model": info.name,
        "family": info.family,
        "device": device.type,
        "images": len(images),
        "captions": sum(len(each) for each in prompts),
        "forwards": candidates,
        "memory": memory,
        "memory_in_turn": in_turn,
        "warnings": skipped + noise_warning(config, model.dtype),
    }


def _check(job: Job, out: Outbox, commands: Commands) -> int:
    with stopped_by(lambda: commands.stopping):
        out.send("checked", **check(job.config()))
    out.send("ended", state="finished")
    return FINISHED


def _train(job: Job, out: Outbox, commands: Commands) -> int:
    with stopped_by(lambda: commands.stopping):
        config = job.config()
        out.send("checked", **check(config))
        model = _load(config)
    result = train_token(config, job.folder / RUN, model=model, on_event=out, commands=commands)
    return _close(job, config, model, result, out, commands)


def _resume(job: Job, out: Outbox, commands: Commands) -> int:
    config = RunFolder.open(job.run, job.changes).config
    with stopped_by(lambda: commands.stopping):
        model = _load(config)
    result = resume_training(job.run, job.changes, model=model, on_event=out, commands=commands)
    return _close(job, config, model, result, out, commands)


def _close(
    job: Job, config: TrainConfig, model: QuantizedModel, result: TrainResult, out: Outbox, commands: Commands
) -> int:
    if result.finished:
        try:
            _draw(job, config, model, result.path, out, commands)
        except Stopped:
            pass
        except Exception as error:  # a token that was learned does not hang on its pictures
            text = for_user(error)
            if text is None:
                _log_fault()
            out.send("message", text=f"no pictures before and after: {text or repr(error)}", warning=True)
    out.send("ended", state="finished" if result.finished else "stopped", step=result.step, embedding=str(result.path))
    return FINISHED if result.finished else STOPPED


def _show(job: Job, out: Outbox, commands: Commands) -> int:
    folder = RunFolder.open(job.run)
    finished = folder.embedding_path
    token = finished if finished.is_file() else newest(job.run / "snapshots", ".safetensors")
    if token is None:
        raise ConfigError(f"{job.run} has no token to draw yet; go on with the run first")
    with stopped_by(lambda: commands.stopping):
        model = _load(folder.config)
    _draw(job, folder.config, model, token, out, commands)
    out.send("ended", state="finished")
    return FINISHED


def _load(config: TrainConfig) -> QuantizedModel:
    return load_quantized(
        config.model,
        weights=config.weights,
        dtype=config.dtype,
        device=config.device,
        prediction_type=config.prediction_type,
        cache=config.cache,
    )


def _draw(job: Job, config: TrainConfig, model: QuantizedModel, token: Path, out: Outbox, commands: Commands) -> None:
    """Draw with the word and with the token."""
    out.send("message", text="drawing the pictures before and after", warning=False)
    with stopped_by(lambda: commands.stopping):
        before_after(model, config, load_embedding(token), job.folder / BEFORE_AFTER)
    out.send("shown", path=str(job.folder / BEFORE_AFTER))


KINDS: dict[str, Callable[[Job, Outbox, Commands], int]] = {
    "check": _check,
    "train": _train,
    "resume": _resume,
    "show": _show,
}


def _log_fault() -> None:
    """Print the traceback of the error that is being handled; the log's disk may be full."""
    with contextlib.suppress(OSError):
        traceback.print_exc()


def work(file: Path, out: Outbox, commands: Commands) -> int:
    """Do what a job file asks for, and tell how it ended; returns the exit code."""
    try:
        job = Job.read(file)
        return KINDS[job.kind](job, out, commands)
    except Stopped:
        out.send("ended", state="stopped")
        return STOPPED
    except Exception as error:
        text = for_user(error)
        if text is None:
            _log_fault()
        out.send("failed", error=text or f"{type(error).__name__}: {error}", fault=text is None)
        return FAULT if text is None else FAILED


def main() -> int:
    """The process's whole life."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return FAILED
    out, commands = Outbox.on_stdout(), Commands()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None if commands.stopping else commands.stop())
    # Unbuffered: at the end Python can not close a buffer that a thread still waits on.
    commanded = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - open for as long as the process lives
    threading.Thread(target=obey, args=(commanded, commands), daemon=True).start()
    quiet_libraries()
    return work(Path(sys.argv[1]), out, commands)


if __name__ == "__main__":
    sys.exit(main())
