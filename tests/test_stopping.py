"""A stop is answered between two forward passes and loses nothing; a run may go on to more steps."""

from __future__ import annotations

import contextlib
import contextvars
import io
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from zoodip_core import Commands, TrainConfig, resume_training, train_token
from zoodip_core.base.errors import ConfigError, RunFolderError
from zoodip_core.base.events import Event, Message, Progress, Sampled, Saved, Started
from zoodip_core.base.stopping import Stopped, check_stop, stopped_by
from zoodip_core.cli.main import main
from zoodip_core.jobs.history import find_run
from zoodip_core.jobs.job_folder import write_task
from zoodip_core.jobs.pipes import Outbox
from zoodip_core.jobs.protocol import Exit
from zoodip_core.jobs.tasks import work
from zoodip_core.model import stable_diffusion
from zoodip_core.model.generation import generate
from zoodip_core.model.latents import encode_images
from zoodip_core.model.load import load_quantized
from zoodip_core.model.quantize import QuantizedLayer
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.train.loop import TrainResult

PIP = Path(__file__).parent.parent / "zoodip_core" / "tiny" / "concepts" / "pip"
STEPS, CANDIDATES = 6, 3
FILES = ("pip.safetensors", "state.safetensors", "steps.jsonl", "loss.png")


def config_of(**settings: Any) -> TrainConfig:
    """Six steps of three candidates each, in turn, in which Subspace Gradient turns twice."""
    return TrainConfig.from_preset(
        "tiny",
        **{
            "images": (str(PIP / "images"),),
            "captions": str(PIP / "images.json"),
            "token": "<pip>",
            "initializer": "monster",
            "steps": STEPS,
            "n": CANDIDATES - 1,
            "batch": 1,
            "tau": 3,
            "save_every": 2,
            "lr_schedule": "constant",
            "sample_steps": 5,
            **settings,
        },
    )


@pytest.fixture(scope="module")
def whole(tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An uninterrupted run, for others to equal."""
    return train_token(config_of(), tmp_path_factory.mktemp("whole") / "run", model=tiny_model)


def assert_same(run: Path, whole: TrainResult) -> None:
    for name in FILES:
        assert (run / name).read_bytes() == (whole.path.parent / name).read_bytes(), name


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved_step(run: Path) -> int:
    return int(load_file(run / "state.safetensors")["step"])


@contextlib.contextmanager
def forwards_of(model: StableDiffusion) -> Iterator[list[int]]:
    """A list that grows by one with each forward pass of the UNet."""
    passes: list[int] = []
    hook = model.unet.conv_in.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        hook.remove()


# ---------------------------------------------------------------- within one forward pass


@pytest.mark.parametrize("passes", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3)), 17])
def test_a_stop_in_the_middle_of_a_step_runs_not_one_forward_more(
    passes: int, whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    """After the first, middle and last candidate of a step, and before the run's very last one."""
    with forwards_of(tiny_model) as taken:
        commands = Commands(lambda: len(taken) >= passes)
        stopped = train_token(config_of(), tmp_path / "run", model=tiny_model, commands=commands)
    assert len(taken) == passes
    assert stopped.step == saved_step(tmp_path / "run") == passes // CANDIDATES
    assert not stopped.finished
    assert not (tmp_path / "run" / "pip.safetensors").exists()
    assert stopped.losses == whole.losses[: stopped.step]
    assert resume_training(tmp_path / "run", model=tiny_model).finished
    assert_same(tmp_path / "run", whole)


def test_a_stop_after_the_last_forward_finds_the_run_finished(
    whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    with forwards_of(tiny_model) as taken:
        commands = Commands(lambda: len(taken) >= STEPS * CANDIDATES)
        result = train_token(config_of(), tmp_path / "run", model=tiny_model, commands=commands)
    assert result.finished
    assert_same(tmp_path / "run", whole)


def test_a_run_stopped_again_and_again_ends_in_the_same_bytes(
    whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    """Eight forwards a session: each takes two steps and throws two candidates of the next one away."""
    sessions = 0
    finished = False
    while not finished:
        sessions += 1
        with forwards_of(tiny_model) as taken:
            commands = Commands(lambda taken=taken: len(taken) >= 8)  # type: ignore[misc]
            if sessions == 1:
                result = train_token(config_of(), tmp_path / "run", model=tiny_model, commands=commands)
            else:
                result = resume_training(tmp_path / "run", model=tiny_model, commands=commands)
        finished = result.finished
        assert result.step == 2 * sessions
    assert sessions == 3
    assert_same(tmp_path / "run", whole)


def test_a_stop_while_images_are_encoded_writes_nothing(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    counting = False
    encode = diffusers.AutoencoderKL.encode

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        encoded.append(1)
        return encode(self, *arguments, **options)

    def asked() -> bool:
        return counting and len(encoded) >= 2

    def on_event(event: Event) -> None:  # memory is predicted before: that runs an encoder of no content
        nonlocal counting
        if isinstance(event, Message) and event.text.startswith("encoding"):
            counting = True
            encoded.clear()

    monkeypatch.setattr(stable_diffusion, "encode_images", encode_images)  # each time
    monkeypatch.setattr(diffusers.AutoencoderKL, "encode", counted)
    with pytest.raises(Stopped):
        train_token(config_of(), tmp_path / "run", model=tiny_model, on_event=on_event, commands=Commands(asked))
    assert len(encoded) == 2  # of six images
    assert not (tmp_path / "run").exists()


def test_a_stop_while_layers_are_loaded_writes_nothing(
    whole: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far in the UNet."""
    layers = 60
    built: list[int] = []
    loading = False
    init = QuantizedLayer.__init__

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        built.append(1)
        init(self, *arguments, **options)

    def on_event(event: Event) -> None:
        nonlocal loading
        if isinstance(event, Message) and event.text.startswith("loading"):
            loading = True
            built.clear()

    model = load_quantized("tiny")
    with monkeypatch.context() as patched:
        patched.setattr(QuantizedLayer, "__init__", counted)
        commands = Commands(lambda: loading and len(built) >= layers)
        with pytest.raises(Stopped):
            train_token(config_of(), tmp_path / "run", model=model, on_event=on_event, commands=commands)
    assert len(built) == layers
    assert "unet" not in vars(model)
    assert not (tmp_path / "run").exists()
    # What was left half loaded is loaded anew.
    assert train_token(config_of(), tmp_path / "run", model=model).finished
    assert_same(tmp_path / "run", whole)


def test_a_stop_before_anything_writes_nothing(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    with forwards_of(tiny_model) as taken, pytest.raises(Stopped):
        train_token(config_of(), tmp_path / "run", model=tiny_model, commands=Commands(lambda: True))
    assert not taken
    assert not (tmp_path / "run").exists()


def test_a_stop_before_a_run_goes_on_leaves_its_folder_as_it_was(
    short: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    run = shutil.copytree(short.path.parent, tmp_path / "run")
    before = contents(run)
    with pytest.raises(Stopped):
        resume_training(run, {"steps": 4}, model=tiny_model, commands=Commands(lambda: True))
    assert contents(run) == before


def test_a_stop_while_samples_are_drawn_is_answered_within_one_denoising_step(
    whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    until = 2 * CANDIDATES + 3
    with forwards_of(tiny_model) as taken:
        commands = Commands(lambda: len(taken) >= until)
        stopped = train_token(config_of(sample_every=2), tmp_path / "run", model=tiny_model, commands=commands)
    assert len(taken) == until
    assert (stopped.step, stopped.finished) == (2, False)
    assert saved_step(tmp_path / "run") == 2
    assert not (tmp_path / "run" / "samples").exists()
    resumed = resume_training(tmp_path / "run", {"sample_every": 0}, model=tiny_model)
    assert torch.equal(resumed.embedding.vectors, whole.embedding.vectors)
    assert resumed.losses == whole.losses[2:]


def test_a_stop_while_the_last_samples_are_drawn_finds_the_run_finished(
    tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    with forwards_of(tiny_model) as taken:
        commands = Commands(lambda: len(taken) >= 2 * CANDIDATES + 2)
        config = config_of(steps=2, sample_every=2)
        result = train_token(config, tmp_path / "run", model=tiny_model, commands=commands)
    assert len(taken) == 2 * CANDIDATES + 2
    assert (result.step, result.finished) == (2, True)
    assert (tmp_path / "run" / "pip.safetensors").is_file()


def test_drawing_is_left_within_one_denoising_step(tiny_model: StableDiffusion) -> None:
    told: list[tuple[int, int]] = []
    with forwards_of(tiny_model) as taken, stopped_by(lambda: len(taken) >= 3), pytest.raises(Stopped):
        generate(tiny_model, ["a monster"], [0], num_inference_steps=10, on_step=lambda *done: told.append(done))
    assert len(taken) == 3
    assert told == [(1, 10), (2, 10)]


# ---------------------------------------------------------------- a host that raises


class HostsInterrupt(BaseException):
    """As ComfyUI's: no ``Exception``, so that nobody swallows it."""


@pytest.mark.parametrize(
    ("kind", "step", "error"),
    [
        (Progress, 1, HostsInterrupt),
        pytest.param(Progress, 3, KeyboardInterrupt, marks=pytest.mark.slow),
        (Saved, 4, HostsInterrupt),
    ],
)
def test_whatever_an_event_handler_raises_the_state_is_saved(
    kind: type[Any],
    step: int,
    error: type[BaseException],
    whole: TrainResult,
    tiny_model: StableDiffusion,
    tmp_path: Path,
) -> None:
    """After the first step, between two saves, while saving."""

    def on_event(event: Event) -> None:
        if isinstance(event, kind) and event.step == step:
            raise error("from the host")

    with pytest.raises(error, match="from the host"):
        train_token(config_of(), tmp_path / "run", model=tiny_model, on_event=on_event)
    assert saved_step(tmp_path / "run") == step
    assert len((tmp_path / "run" / "steps.jsonl").read_text().splitlines()) == step
    assert resume_training(tmp_path / "run", model=tiny_model).finished
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("kind", [Started, pytest.param(Sampled, marks=pytest.mark.slow), Message])
def test_a_host_may_raise_at_any_event(
    kind: type[Any], whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    def on_event(event: Event) -> None:
        if isinstance(event, kind):
            raise HostsInterrupt

    settings = {"sample_every": 4} if kind is Sampled else {}
    with pytest.raises(HostsInterrupt):
        train_token(config_of(**settings), tmp_path / "run", model=tiny_model, on_event=on_event)
    if kind is Message:  # the first one comes before the run
        assert not (tmp_path / "run").exists()
        return
    resumed = resume_training(tmp_path / "run", {"sample_every": 0}, model=tiny_model)
    assert resumed.losses == whole.losses[4 if kind is Sampled else 0 :]
    assert_same(tmp_path / "run", whole)


# ---------------------------------------------------------------- the scope


def stops() -> bool:
    try:
        check_stop()
    except Stopped:
        return True
    return False


def test_outside_of_any_scope_nothing_stops() -> None:
    assert not stops()


def test_scopes_nest_and_are_undone() -> None:
    with stopped_by(lambda: False):
        with stopped_by(lambda: True):
            assert stops()
            with stopped_by(lambda: False):
                pass
            assert stops()
        assert not stops()
        with pytest.raises(RuntimeError), stopped_by(lambda: True):
            raise RuntimeError
        assert not stops()
    assert not stops()


def test_a_stopped_training_leaves_no_stop_behind(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train_token(config_of(), tmp_path / "a", model=tiny_model, commands=Commands(lambda: True))
    assert not stops()
    commands = Commands()
    train_token(
        config_of(),
        tmp_path / "b",
        model=tiny_model,
        commands=commands,
        on_event=lambda event: stop_at(2, event, commands),
    )
    assert commands.stopping
    assert not stops()


def stop_at(step: int, event: Event, commands: Commands) -> None:
    if isinstance(event, Progress) and event.step == step:
        commands.stop()


def test_a_stop_does_not_reach_another_thread_or_context() -> None:
    elsewhere: dict[str, bool] = {}

    def work() -> None:
        elsewhere["thread"] = stops()
        with stopped_by(lambda: True):
            elsewhere["own"] = stops()
            entered.set()
            assert leave.wait(600)

    entered, leave = threading.Event(), threading.Event()
    fresh = contextvars.Context()
    with stopped_by(lambda: True):
        elsewhere["context"] = fresh.run(stops)
    thread = threading.Thread(target=lambda: contextvars.Context().run(work))
    with stopped_by(lambda: False):
        thread.start()
        assert entered.wait(600)
        here = stops()  # while the other thread is within its scope
        leave.set()
        thread.join()
    assert elsewhere == {"thread": False, "own": True, "context": False}
    assert not here


def test_two_trainings_at_once_are_stopped_apart(tmp_path: Path, whole: TrainResult) -> None:
    results: dict[str, TrainResult] = {}
    started = threading.Barrier(2, timeout=600)

    def run(name: str, stopping: bool) -> None:
        def on_event(event: Event) -> None:
            if isinstance(event, Started):
                started.wait()
            stop_at(1 if stopping else 0, event, commands)

        commands = Commands()
        results[name] = train_token(
            config_of(), tmp_path / name, model=load_quantized("tiny"), on_event=on_event, commands=commands
        )

    threads = [threading.Thread(target=run, args=arguments) for arguments in (("a", True), ("b", False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert (results["a"].step, results["b"].step) == (1, STEPS)
    assert_same(tmp_path / "b", whole)


# ---------------------------------------------------------------- more steps


def test_more_steps_end_as_a_run_of_that_many_from_the_start(
    whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train_token(config_of(steps=5), run, model=tiny_model).finished
    resumed = resume_training(run, {"steps": STEPS}, model=tiny_model)
    assert resumed.finished
    assert resumed.step == STEPS
    assert resumed.losses == whole.losses[5:]
    assert_same(run, whole)
    assert json.loads((run / "config.json").read_text())["steps"] == STEPS
    assert json.loads(resumed.embedding.metadata["config"])["steps"] == STEPS


def test_a_stopped_run_may_be_given_the_steps_it_has(
    short: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    commands = Commands()
    train_token(
        config_of(),
        tmp_path / "run",
        model=tiny_model,
        commands=commands,
        on_event=lambda event: stop_at(2, event, commands),
    )
    result = resume_training(tmp_path / "run", {"steps": 2}, model=tiny_model)
    assert (result.step, result.finished) == (2, True)
    assert_same(tmp_path / "run", short)


def test_fewer_steps_than_were_taken_are_refused(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_token(config_of(steps=4), run, model=tiny_model)
    before = contents(run)
    with pytest.raises(RunFolderError, match="step 4 already, beyond 3"):
        resume_training(run, {"steps": 3}, model=tiny_model)
    assert contents(run) == before


def test_steps_of_a_cosine_run_can_not_change(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """Its learning rate is a function of their number: it would not be the run from the start."""
    run = tmp_path / "run"
    train_token(config_of(steps=3, lr_schedule="cosine"), run, model=tiny_model)
    before = (run / "config.json").read_bytes()
    with pytest.raises(RunFolderError, match="cosine"):
        resume_training(run, {"steps": 5}, model=tiny_model)
    assert (run / "config.json").read_bytes() == before
    assert resume_training(run, {"steps": 3, "save_every": 7}, model=tiny_model).finished


@pytest.fixture(scope="module")
def short(tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A finished run of two steps."""
    return train_token(config_of(steps=2), tmp_path_factory.mktemp("short") / "run", model=tiny_model)


@pytest.mark.parametrize(
    "change", [{"lr": 0.5}, {"seed": 1}, {"mu": 0.1}, {"n": 5}, {"token": "<other>"}, {"steps": 4, "tau": 9}]
)
def test_settings_that_decide_the_steps_can_not_change(
    change: dict[str, Any], short: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    run = shutil.copytree(short.path.parent, tmp_path / "run")
    before = contents(run)
    with pytest.raises((RunFolderError, ConfigError), match=list(change)[-1]):
        resume_training(run, change, model=tiny_model)
    assert contents(run) == before


def test_a_run_resumes_on_another_device(whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """The card that it began on may be gone."""
    stopped, run = Commands(), tmp_path / "run"
    config = config_of(device="cuda")
    train_token(config, run, model=tiny_model, commands=stopped, on_event=lambda event: stop_at(2, event, stopped))
    assert resume_training(run, {"device": "cpu"}).finished
    assert_same(run, whole)
    assert json.loads((run / "config.json").read_text())["device"] == "cpu"


def test_a_run_that_computes_in_another_type_says_so(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """As where a run of a CPU goes on on a card."""
    stopped, run = Commands(), tmp_path / "run"
    train_token(config_of(), run, model=tiny_model, commands=stopped, on_event=lambda event: stop_at(2, event, stopped))
    told: list[str] = []
    resume_training(
        run,
        model=load_quantized("tiny", dtype="bfloat16", device="cpu"),
        on_event=lambda event: told.append(event.text) if isinstance(event, Message) and event.warning else None,
    )
    assert any(line.startswith("computes in bfloat16 from here on, in float32 before") for line in told)


def test_a_run_of_all_cards_resumes_where_there_is_one(
    whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    stopped, folder = Commands(), tmp_path / "pip"
    train_token(
        config_of(device="all"),
        folder / "run",
        model=tiny_model,
        commands=stopped,
        on_event=lambda event: stop_at(2, event, stopped),
    )
    assert work(write_task(folder, "resume", folder), Outbox(io.BytesIO()), Commands()) == Exit.FINISHED
    assert_same(folder / "run", whole)


def test_a_run_that_grows_shows_the_token_that_it_has_now(
    short: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    """Not the one that it had when it was over before."""
    home, stopped = tmp_path / "runs", Commands()
    run = shutil.copytree(short.path.parent, home / "pip" / "run")
    before = find_run(home, "pip")
    assert before.embedding == run / short.path.name
    at = short.step + 1
    resume_training(
        run,
        {"steps": STEPS},
        model=tiny_model,
        commands=stopped,
        on_event=lambda event: stop_at(at, event, stopped),
    )
    found = find_run(home, "pip")
    assert (found.step, found.embedding) == (at, run / "snapshots" / f"step-{at:08d}.safetensors")
    resume_training(run, model=tiny_model)
    assert find_run(home, "pip").embedding == run / short.path.name


def test_the_command_line_goes_on_to_more_steps(
    whole: TrainResult, short: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(short.path.parent, tmp_path / "run")
    assert main(["train", "--resume", str(run), "--steps", str(STEPS)]) == 0
    assert f"done: {STEPS} steps" in capsys.readouterr().out
    assert_same(run, whole)
    assert main(["train", "--resume", str(run), "--steps", "5"]) == 2
    assert "beyond 5" in capsys.readouterr().err
    assert main(["train", "--resume", str(run), "--steps", "9", "--lr", "0.1"]) == 2
    assert "leave out lr" in capsys.readouterr().err
    assert_same(run, whole)


# ---------------------------------------------------------------- the curve goes on


def test_the_losses_and_their_running_mean_go_on(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    steps = 8
    events: dict[str, list[Event]] = {"whole": [], "before": [], "after": []}
    train_token(config_of(steps=steps), tmp_path / "whole", model=tiny_model, on_event=events["whole"].append)
    commands = Commands()

    def stopping(event: Event) -> None:
        events["before"].append(event)
        stop_at(3, event, commands)

    train_token(config_of(steps=steps), tmp_path / "run", model=tiny_model, on_event=stopping, commands=commands)
    resume_training(tmp_path / "run", model=tiny_model, on_event=events["after"].append)

    def progress(name: str) -> list[tuple[int, float, float]]:
        return [(e.step, e.loss, e.smoothed) for e in events[name] if isinstance(e, Progress)]

    assert progress("before") + progress("after") == progress("whole")
    (first,), (again,) = ([e for e in events[name] if isinstance(e, Started)] for name in ("before", "after"))
    assert (first.step, first.steps, list(first.losses)) == (0, steps, [])
    assert (again.step, again.steps) == (3, steps)
    assert list(again.losses) == [loss for _, loss, _ in progress("whole")[:3]]
    losses = [loss for _, loss, _ in progress("whole")]
    for count, (_, _, smoothed) in enumerate(progress("whole"), 1):
        weights = 0.98 ** np.arange(count)[::-1]  # the last one counts most, the first ones hardly less
        assert smoothed == pytest.approx(np.average(losses[:count], weights=weights), rel=1e-12)
