"""What a worker does: checks, trains, resumes, follows, draws, writes captions, as a job file says.

See :mod:`worker` for the process that does it. This module loads torch and the model libraries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..base.errors import ConfigError, for_user
from ..base.events import Commands, Event, Message, Progress, Sampled, Saved, Started
from ..base.stopping import Stopped, stopped_by
from ..base.texts import how_many
from ..captioning.captioner import Captioner
from ..captioning.captions import write_captions
from ..captioning.files import find_captioner
from ..model.embedding import load_embedding
from ..model.lora import Lora, load_lora
from ..model.memory import predict_memory
from ..model.recognise import identify
from ..model.stable_diffusion import StableDiffusion
from ..train.before_after import before_after
from ..train.comparison import Compared, Comparison, until_each, write_comparison
from ..train.config import TrainConfig, preset_of
from ..train.hints import hints
from ..train.inputs import load_references, masks_told
from ..train.loop import TrainResult, resume_training, train_token
from ..train.prepared import load_model, read_texts
from ..train.ranks import joined, place_in
from ..train.run_folder import RunFolder
from ..train.setting import AUTO
from ..train.settings import ALL
from ..train.sizes import largest_of, sizes_in
from .cards import all_cards, check_cards, with_cards
from .history import lora_with, token_in
from .job_folder import BEFORE_AFTER, COMPARISON, RUN, WITH_WEIGHTS, Task, run_in
from .pipes import Outbox
from .protocol import CAPTION, CHECK, COMPARE, FINISHED, FOLLOW, RESUME, SHOW, STOPPED, TRAIN, Exit

_SAMPLINGS = 10
"""Over a run, where a job does not say how often."""
_SEEDS = 4
"""Pictures of each token that is compared."""


def settings_of(task: Task) -> TrainConfig:
    """The settings of a new run: the preset for the model, the weights that are learned too, the job's on top.

    Raises:
        ZoodipError: of the kind that tells what is wrong with them.
    """
    given = task.settings
    if task.learn_weights:
        given = {"lora_rank": preset_of(given, WITH_WEIGHTS)["lora_rank"], **given}
    config = TrainConfig.with_preset(task.preset, given)
    if "sample_every" in given:
        return config
    return dataclasses.replace(config, sample_every=max(1, config.steps // _SAMPLINGS))


def check(config: TrainConfig) -> dict[str, Any]:
    """What a run with these settings would be, without loading its model or touching a graphics card.

    Returns:
        ``settings`` in full, ``model`` and ``family``, ``device``, ``images`` and ``captions`` in number, ``warnings``,
        and ``memory``: predicted bytes with all of a step's candidates in one forward, and ``memory_in_turn``; lines on
        ``masks`` where there are any, and in ``sizes`` one on those of the images, where not all are squares.

    Raises:
        ZoodipError: of the kind that tells what is wrong.
    """
    check_cards(config.device)
    info = identify(config.model, config.prediction_type, clip=config.clip, vae=config.vae)
    images, skipped = load_references(config, info)
    on_card = config.device.startswith("cuda") or (config.device in ("auto", ALL) and torch.cuda.is_available())
    device = torch.device("cuda" if on_card else "cpu")
    dtype = "float16" if on_card and config.dtype == "auto" else config.dtype
    nowhere = "meta" if on_card else "cpu"  # nothing is computed, and no card is touched
    model = load_model(dataclasses.replace(config, dtype=dtype, device=nowhere, cache=None))
    texts = read_texts(config, model, images)
    candidates = config.make_estimator().num_candidates
    batches = (min(config.batch or candidates, candidates), 1)
    largest, sizes, masks = largest_of(images), sizes_in(images), masks_told(images)
    memory, in_turn = (
        predict_memory(model.blueprint, config.weights, model.dtype, device, largest, batch).total for batch in batches
    )
    return {
        "settings": config.to_dict(),
        "model": info.name,
        "family": info.family,
        "device": device.type,
        "images": len(images),
        "captions": sum(len(each) for each in texts.prompts),
        "forwards": candidates + config.forwards_for_target,
        "memory": memory,
        "memory_in_turn": in_turn,
        **({"masks": masks} if masks else {}),
        **({"sizes": sizes} if sizes else {}),
        "warnings": [*skipped, *hints(config, info, [image.path for image in images]), *texts.warnings],
    }


def telling(out: Outbox) -> Callable[[Event], None]:
    """Sends on what a training tells."""

    def tell(event: Event) -> None:
        if isinstance(event, Message):
            out.send("message", text=event.text, warning=event.warning)
        elif isinstance(event, Started):
            out.send("started", step=event.step, steps=event.steps, losses=list(event.losses))
        elif isinstance(event, Progress):
            out.send(
                "progress",
                step=event.step,
                steps=event.steps,
                loss=event.loss,
                smoothed=event.smoothed,
                rate=event.steps_per_second,
                eta=event.eta,
                memory=event.memory,
                **({"learns": event.learns} if event.learns else {}),
            )
        elif isinstance(event, Sampled):
            out.send("sampled", step=event.step, path=str(event.path), **_named("grid", event.grid))
        elif isinstance(event, Saved):
            out.send("saved", step=event.step, path=str(event.embedding), **_named("lora", lora_with(event.embedding)))

    return tell


def _named(field: str, file: Path | None) -> dict[str, str]:
    """An event's field of a file, where there is one."""
    return {field: str(file)} if file else {}


def _check(job: Task, out: Outbox, commands: Commands) -> int:
    with stopped_by(lambda: commands.stopping):
        out.send("checked", **check(settings_of(job)))
    out.send("ended", state=FINISHED)
    return Exit.FINISHED


def _train(job: Task, out: Outbox, commands: Commands) -> int:
    with stopped_by(lambda: commands.stopping):
        config, run = settings_of(job), job.folder / RUN
        out.send("checked", **check(config))
    with stopped_by(lambda: commands.stopping), with_cards(all_cards(config.device), config, run) as ranks:
        model = load_model(dataclasses.replace(config, device=ranks.device(config.device)), telling(out))
        result = train_token(config, run, model=model, on_event=telling(out), commands=commands, ranks=ranks)
    return _close(job, config, model, result, out, commands)


def _resume(job: Task, out: Outbox, commands: Commands) -> int:
    changes = dict(job.changes)
    config = RunFolder.open(job.run, changes).config
    if config.device == ALL and torch.cuda.device_count() < 2:  # it was begun where there are several
        changes["device"] = AUTO
        config = dataclasses.replace(config, device=AUTO)
    with stopped_by(lambda: commands.stopping), with_cards(all_cards(config.device), config, job.run) as ranks:
        model = load_model(dataclasses.replace(config, device=ranks.device(config.device)), telling(out))
        result = resume_training(job.run, changes, model=model, on_event=telling(out), commands=commands, ranks=ranks)
    return _close(job, config, model, result, out, commands)


def _follow(job: Task, out: Outbox, commands: Commands) -> int:
    """Take the steps of a run together with the process that keeps it, on this rank's own card."""
    config = TrainConfig.from_dict(job.settings)
    with stopped_by(lambda: commands.stopping), joined(place_in(os.environ)) as ranks:
        model = load_model(dataclasses.replace(config, device=ranks.device(ALL)), telling(out), keep=False)
        if job.resumed:
            resume_training(job.folder, model=model, commands=commands, ranks=ranks)
        else:
            train_token(config, job.folder, model=model, commands=commands, ranks=ranks)
    return Exit.FINISHED


def _close(
    job: Task, config: TrainConfig, model: StableDiffusion, result: TrainResult, out: Outbox, commands: Commands
) -> int:
    if result.finished:
        try:
            _draw(job, config, model, result.paths, result.lora, out, commands)
        except Stopped:
            pass
        except Exception as error:  # a token that was learned does not hang on its pictures
            text = for_user(error)
            if text is None:
                _log_fault()
            out.send("message", text=f"no pictures before and after: {text or repr(error)}", warning=True)
    state = FINISHED if result.finished else STOPPED
    learned = {"embedding": str(result.path), **_named("lora", result.lora_path)}
    out.send("ended", state=state, step=result.step, **learned)
    return Exit.FINISHED if result.finished else Exit.STOPPED


def _show(job: Task, out: Outbox, commands: Commands) -> int:
    folder = RunFolder.open(job.run)
    token = _token_of(folder)
    with stopped_by(lambda: commands.stopping):
        model = load_model(folder.config, telling(out))
    lora = lora_with(token)
    _draw(job, folder.config, model, folder.beside(token), load_lora(lora) if lora else None, out, commands)
    out.send("ended", state=FINISHED)
    return Exit.FINISHED


def _token_of(folder: RunFolder) -> Path:
    """The file of a run's token, finished or the newest snapshot.

    Raises:
        ConfigError: there is none yet.
    """
    token = token_in(folder, folder.progress()[1])
    if token is None:
        raise ConfigError(f"{folder.path} has no token to draw yet; resume the run first")
    return token


def _compare(job: Task, out: Outbox, commands: Commands) -> int:
    """Draw the tokens of several runs side by side, the less aligned first: with the first one's model, with LoRAs."""
    runs = [(run.name, RunFolder.open(run_in(run))) for run in job.runs]
    runs.sort(key=lambda run: run[1].config.alignment if run[1].config.aligned else 0)
    compared = []
    for name, folder in runs:
        token = _token_of(folder)
        file = lora_with(token)
        lora = load_lora(file) if file else None
        compared += [Compared(load_embedding(each), name, lora) for each in folder.beside(token)]
    config, words = runs[0][1].config, {word for _, folder in runs for word in folder.config.initializers}
    word = words.pop() if len(words) == 1 else ""
    compared = until_each(compared, job.until)
    comparison = Comparison(compared, range(_SEEDS), job.prompt, word, resolution=config.resolution)
    with stopped_by(lambda: commands.stopping):
        model = load_model(config, telling(out))
        out.send("message", text=f"drawing {len(compared)} rows side by side", warning=False)
        write_comparison(model, comparison, job.folder / COMPARISON)
    out.send("shown", path=str(job.folder / COMPARISON))
    out.send("ended", state=FINISHED)
    return Exit.FINISHED


def _caption(job: Task, out: Outbox, commands: Commands) -> int:
    """Write captions of pictures; each is told as soon as there is one."""
    config = TrainConfig.from_dict(job.settings)
    paths = [path for path in map(Path, config.images) if path.is_file()]  # some may have been taken away meanwhile
    found = find_captioner(job.caption_with, by_name=not Path(job.caption_with).is_absolute())
    captioner = Captioner(found, config.device)

    def on_caption(number: int, caption: str) -> None:
        name = paths[number].name
        if caption:
            out.send("captioned", name=name, caption=caption, done=number + 1, total=len(paths))
        else:
            out.send("message", text=f"{name}: the model says nothing of it; write its caption yourself", warning=True)

    with stopped_by(lambda: commands.stopping):
        out.send("message", text=f"loading {found.name}", warning=False)
        captioner.load()
        out.send("message", text=f"looking at {how_many(len(paths), 'picture')}", warning=False)
        write_captions(captioner, paths, [config.subject()] * len(paths), on_caption, vectors=config.num_vectors)
    out.send("ended", state=FINISHED)
    return Exit.FINISHED


def _draw(
    job: Task,
    config: TrainConfig,
    model: StableDiffusion,
    tokens: Sequence[Path],
    lora: Lora | None,
    out: Outbox,
    commands: Commands,
) -> None:
    """Draw with the words and with the tokens."""
    out.send("message", text="drawing the pictures before and after", warning=False)
    with stopped_by(lambda: commands.stopping):
        before_after(model, config, [load_embedding(token) for token in tokens], job.folder / BEFORE_AFTER, lora)
    out.send("shown", path=str(job.folder / BEFORE_AFTER))


_WORK: dict[str, Callable[[Task, Outbox, Commands], int]] = {
    CHECK: _check,
    TRAIN: _train,
    RESUME: _resume,
    FOLLOW: _follow,
    SHOW: _show,
    COMPARE: _compare,
    CAPTION: _caption,
}


def _log_fault() -> None:
    """Print the traceback of the error that is being handled; the log's disk may be full."""
    with contextlib.suppress(OSError):
        traceback.print_exc()


def work(file: Path, out: Outbox, commands: Commands) -> int:
    """Do what a job file asks for, and tell how it ended; returns the exit code."""
    try:
        job = Task.read(file)
        return _WORK[job.kind](job, out, commands)
    except Stopped:
        out.send("ended", state=STOPPED)
        return Exit.STOPPED
    except Exception as error:
        text = for_user(error)
        if text is None:
            _log_fault()
        out.send("failed", error=text or f"{type(error).__name__}: {error}", fault=text is None)
        return Exit.FAULT if text is None else Exit.FAILED
