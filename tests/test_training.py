"""Whole runs: the same bytes in two processes, stop and resume, events, run folders, the command line."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.once import NOTE
from zoodip_core import Commands, TrainConfig, load_embedding, resume_training, train_token
from zoodip_core.base.errors import RunFolderError
from zoodip_core.base.events import Event, Message, Progress, Sampled, Saved
from zoodip_core.cli.main import main
from zoodip_core.data.sheets import loss_curve
from zoodip_core.model.forward import Forward
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_table import table_of
from zoodip_core.train import loop
from zoodip_core.train.identity import Inputs
from zoodip_core.train.loop import TrainResult
from zoodip_core.train.presets import PAPER_PRESETS
from zoodip_core.train.run_folder import RunFolder

PIP = Path(__file__).parent.parent / "zoodip_core" / "tiny" / "concepts" / "pip"


def config_of(**settings: Any) -> TrainConfig:
    """A short run whose Subspace Gradient turns three times."""
    return TrainConfig.from_preset(
        "tiny",
        **{
            "images": (str(PIP / "images"),),
            "captions": str(PIP / "images.json"),
            "token": "<pip>",
            "initializer": "monster",
            "steps": 14,
            "tau": 4,
            "save_every": 5,
            **settings,
        },
    )


def stopping(step: int | None) -> dict[str, Any]:
    """Arguments for a training that stops after a step."""
    commands = Commands()

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.step == step:
            commands.stop()

    return {"on_event": on_event, "commands": commands}


def train(config: TrainConfig, path: Path, model: StableDiffusion, stop_after: int | None = None) -> TrainResult:
    return train_token(config, path, model=model, **stopping(stop_after))


def resume(_config: TrainConfig, path: Path, model: StableDiffusion, stop_after: int | None = None) -> TrainResult:
    return resume_training(path, model=model, **stopping(stop_after))


@pytest.fixture(scope="module")
def whole(tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An uninterrupted run, for others to equal."""
    return train(config_of(), tmp_path_factory.mktemp("whole") / "run", tiny_model)


def test_a_finished_run_leaves_all_its_files(whole: TrainResult) -> None:
    folder = whole.path.parent
    assert whole.finished
    assert whole.step == len(whole.losses) == 14
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock",
        "config.json",
        "loss.png",
        "pip.safetensors",
        "snapshots",
        "state.safetensors",
        "steps.jsonl",
    ]
    assert [p.name for p in sorted((folder / "snapshots").iterdir())] == [
        f"step-{step:08d}.safetensors" for step in (0, 5, 10, 14)
    ]
    records = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 15))
    assert all(len(record["losses"]) == 1 + config_of().n and 500 <= record["t"] < 900 for record in records)
    assert [record["losses"][0] for record in records] == whole.losses
    assert TrainConfig.from_json((folder / "config.json").read_text()) == config_of()


def test_the_file_tells_how_it_was_made(whole: TrainResult) -> None:
    read = load_embedding(whole.path)
    assert list(load_file(whole.path)) == ["<pip>"]
    assert read.metadata["steps"] == "14"
    assert read.metadata["initializer"] == "monster"
    assert read.metadata["base_model"] == "tiny"
    assert len(read.metadata["base_model_hash"]) == 64
    assert json.loads(read.metadata["config"])["tau"] == 4
    assert str(Path.cwd()) not in str(read.metadata)  # nothing of the user's folders


def test_the_losses_are_drawn(whole: TrainResult, tmp_path: Path) -> None:
    """The run gives what is drawn; each step's losses are a pale line, below their running mean in red."""
    title = "denoising loss while learning <pip>"
    with Image.open(whole.path.parent / "loss.png") as noted:
        assert noted.info[NOTE] == repr((*whole.losses, title))

    def drawn(name: str, losses: list[float]) -> Image.Image:
        loss_curve(losses, tmp_path / name, title)
        with Image.open(tmp_path / name) as picture:
            return picture.convert("RGB")

    first, again, other = (
        drawn(name, losses) for name, losses in (("1", whole.losses), ("2", whole.losses), ("3", whole.losses[:-1]))
    )
    assert first.size == noted.size
    assert first.tobytes() == again.tobytes() != other.tobytes()
    colours = {colour for _, colour in first.getcolors(1 << 24) or ()}
    assert {(192, 57, 43), (255, 255, 255), (0, 0, 0)} <= colours
    rising, falling = (np.asarray(drawn(name, [*range(1, 99)][::way])) for name, way in (("4", 1), ("5", -1)))
    for pixels, below in ((rising, True), (falling, False)):
        rows, columns = np.nonzero((pixels == (192, 57, 43)).all(axis=2))
        left, right = (rows[columns == column].mean() for column in (columns.min(), columns.max()))
        assert (right < left) == below


def test_what_judged_candidates_is_gone_before_anything_else_is_done(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a card it holds captured work, whose memory the pictures that fronts draw next may need."""
    made: list[weakref.ref[Forward]] = []
    init = Forward.__init__

    def keeping(self: Forward, *arguments: Any) -> None:
        init(self, *arguments)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Forward, "__init__", keeping)
    gc.disable()
    try:
        train(config_of(steps=2), tmp_path / "run", tiny_model)
        assert made
        assert [each() for each in made] == [None] * len(made)
    finally:
        gc.enable()


def test_stop_at_any_step_and_resume(whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """One run, stopped after steps before, at and after a save and a turn, each time gone on with."""
    for stop in (1, 4, 5, 11, 13):
        stopped = (train if stop == 1 else resume)(config_of(), tmp_path / "run", tiny_model, stop_after=stop)
        assert not stopped.finished
        assert stopped.step == stop
        assert not (tmp_path / "run" / "pip.safetensors").exists()
        assert load_embedding(stopped.path).metadata["steps"] == str(stop)
    assert resume_training(tmp_path / "run", model=tiny_model).finished
    for name in ("pip.safetensors", "state.safetensors", "steps.jsonl", "loss.png"):
        assert (tmp_path / "run" / name).read_bytes() == (whole.path.parent / name).read_bytes(), name


def test_steps_after_the_saved_state_are_not_lost(
    whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    """A run killed between two saves: its journal is ahead of its state, its last line torn."""
    train(config_of(), tmp_path / "run", tiny_model, stop_after=10)
    lines = (whole.path.parent / "steps.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "steps.jsonl").write_bytes(b"".join(lines[:12]) + lines[12][:-5])
    resumed = resume_training(tmp_path / "run", model=tiny_model)
    assert len(resumed.losses) == 2  # of steps 13 and 14
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert (tmp_path / "run" / "steps.jsonl").read_bytes() == (whole.path.parent / "steps.jsonl").read_bytes()


def test_a_run_killed_before_its_first_save_starts_over(
    whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    train(config_of(), tmp_path / "run", tiny_model, stop_after=2)
    (tmp_path / "run" / "state.safetensors").unlink()
    assert resume_training(tmp_path / "run", model=tiny_model).path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"estimator": "spsa", "optimizer": "zosgd", "lr": 0.1}, marks=pytest.mark.slow),
        pytest.param(
            {"estimator": "one-point", "subspace_gradient": False, "timesteps": "snr"}, marks=pytest.mark.slow
        ),
        {"num_vectors": 3, "flip": True, "timesteps": "uniform", "lr_schedule": "constant"},
    ],
    ids=["spsa-zosgd", "one-point-plain-snr", "three-vectors-flips"],
)
def test_other_settings_resume_as_well(settings: dict[str, Any], tiny_model: StableDiffusion, tmp_path: Path) -> None:
    config = config_of(steps=9, **settings)
    straight = train(config, tmp_path / "a", tiny_model)
    train(config, tmp_path / "b", tiny_model, stop_after=6)
    assert resume_training(tmp_path / "b", model=tiny_model).path.read_bytes() == straight.path.read_bytes()


class Changeable:
    """A stopped run whose model, images and captions can be changed."""

    def __init__(self, folder: Path, model: StableDiffusion) -> None:
        self.images, self.captions, self.run = folder / "images", folder / "captions.json", folder / "run"
        shutil.copytree(PIP / "images", self.images)
        shutil.copy(PIP / "images.json", self.captions)
        config = config_of(images=(str(self.images),), captions=str(self.captions))
        train(config, self.run, model, stop_after=3)

    def refused(self, model: StableDiffusion) -> str:
        with pytest.raises(RunFolderError, match="not those of this run any more; put them back, or start a n") as told:
            resume_training(self.run, model=model)
        return str(told.value).removeprefix(f"{self.run}: ")


@pytest.fixture
def changeable(tiny_model: StableDiffusion, tmp_path: Path) -> Changeable:
    return Changeable(tmp_path, tiny_model)


def another(model: StableDiffusion, **scheduler: Any) -> StableDiffusion:
    """The model with another noise schedule, or other weights."""
    configs = {**model.blueprint.configs, "scheduler": {**model.blueprint.configs["scheduler"], **scheduler}}
    blueprint = dataclasses.replace(model.blueprint, configs=configs)
    if not scheduler:
        blueprint.__dict__["fingerprint"] = "0" * 64
    return dataclasses.replace(model, blueprint=blueprint)


def test_a_resume_says_what_has_changed(changeable: Changeable, tiny_model: StableDiffusion) -> None:
    for model in (another(tiny_model), another(tiny_model, beta_end=0.02)):
        assert changeable.refused(model).startswith("the model's weights or noise schedule (tiny) are not")

    captions = changeable.captions.read_text()
    changeable.captions.write_text(captions.replace("in the sunset", "at noon"))
    assert changeable.captions.read_text() != captions
    assert changeable.refused(tiny_model).startswith(f"the captions ({changeable.captions}) are not")
    changeable.captions.write_text(captions)

    Image.new("RGB", (48, 48), "red").save(changeable.images / "01.png")
    assert changeable.refused(tiny_model).startswith(f"the images ({changeable.images}) are not")
    told = changeable.refused(another(tiny_model))
    assert told.startswith("the model's weights or noise schedule (tiny) and the images (")


def test_a_state_of_before_says_that_something_has_changed(changeable: Changeable, tiny_model: StableDiffusion) -> None:
    folder = RunFolder.open(changeable.run)
    saved = folder.saved_state()
    assert saved
    folder.save_state(saved.tensors, Inputs(saved.inputs.digest, {}), saved.batch, saved.dtype)
    Image.new("RGB", (48, 48), "red").save(changeable.images / "01.png")
    assert changeable.refused(tiny_model).startswith("the model, images or captions are not")


def test_events_tell_progress_saves_and_samples(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    events: list[Event] = []
    commands = Commands()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.step == 2:
            commands.save()
            commands.sample()

    train_token(
        config_of(steps=4, sample_every=4, sample_steps=2),
        tmp_path / "run",
        model=tiny_model,
        on_event=on_event,
        commands=commands,
    )
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in progress] == [1, 2, 3, 4]
    assert progress[-1].eta == 0
    assert all(event.steps_per_second > 0 for event in progress)
    assert [event.step for event in events if isinstance(event, Saved)] == [2, 4]
    sampled = [event for event in events if isinstance(event, Sampled)]
    assert [event.step for event in sampled] == [2, 4]
    assert all(Image.open(event.path).width > 4 * 48 for event in sampled)
    assert any(isinstance(event, Message) and "memory" in event.text for event in events)


def test_a_computer_that_slept_is_forgotten(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that is left follows from the latest steps, each of which takes a second here."""
    clock = itertools.accumulate(itertools.chain([1.0] * 3, [30_000.0], itertools.repeat(1.0)))
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(loop, "_LATEST", 3)
    found: list[tuple[int, float]] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Progress):
            found.append((event.step, event.eta))

    train_token(config_of(steps=8), tmp_path / "run", model=tiny_model, on_event=on_event)
    assert found[:2] == [(1, 7.0), (2, 6.0)]
    assert found[2][1] > 60_000
    assert found[4:] == [(5, 3.0), (6, 2.0), (7, 1.0), (8, 0.0)]


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "far"), [(5e-3, False), (1.0, True)])
def test_a_token_that_left_the_words_is_told(lr: float, far: bool, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    said: list[str] = []
    result = train_token(
        config_of(lr=lr, steps=30),
        tmp_path / "run",
        model=tiny_model,
        on_event=lambda event: said.append(event.text) if isinstance(event, Message) and event.warning else None,
    )
    (encoder,), (tokenizer,) = tiny_model.text_encoders, tiny_model.tokenizers
    ids = sorted(i for text, i in tokenizer.get_vocab().items() if text.endswith("</w>"))
    words = np.asarray(table_of(encoder).rows(ids), dtype=np.float64)
    apart = np.asarray(load_file(result.path)["<pip>"], dtype=np.float64) - words.mean(axis=0)
    times = np.linalg.norm(apart) / np.sqrt(words.var(axis=0).sum())
    assert (times > 20) == far
    assert sum(f"<pip> lies {times:.0f} times as far" in line for line in said) == far


def test_a_run_goes_on_with_the_batch_it_had(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """Its rounding is part of the run; as many candidates at once as before, whatever there is room for now."""
    settings = {"steps": 6, "save_every": 2}
    path = tmp_path / "run"
    train(config_of(batch=2, **settings), path, tiny_model, stop_after=3)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "batch": 0}))
    told: list[str] = []
    resume_training(path, model=tiny_model, on_event=lambda e: told.append(e.text) if isinstance(e, Message) else None)
    assert any("3 forward passes a step, 2 at once" in text for text in told)
    whole = train(config_of(batch=2, **settings), tmp_path / "whole", tiny_model)
    assert (path / "pip.safetensors").read_bytes() == whole.path.read_bytes()


def test_samples_that_find_no_room_do_not_end_the_run(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_arguments: Any, **_settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("zoodip_core.model.stable_diffusion.generate", no_room)
    told: list[Message] = []
    result = train_token(
        config_of(steps=4, sample_every=2),
        tmp_path / "run",
        model=tiny_model,
        on_event=lambda event: told.append(event) if isinstance(event, Message) else None,
    )
    assert result.finished
    assert [event.text for event in told if event.warning] == [
        f"no samples at step {step}: CUDA out of memory" for step in (2, 4)
    ]


def test_training_leaves_global_randomness_and_settings_alone(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    torch.manual_seed(123)
    before, threads, grad = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    train(config_of(steps=2, sample_every=2, sample_steps=2), tmp_path / "run", tiny_model)
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "zoodip_core", *map(str, arguments)]


TRAIN = ("--images", PIP / "images", "--captions", PIP / "images.json", "--token", "<pip>", "--init", "monster")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    processes = [
        subprocess.Popen(
            command("train", *TRAIN, "--steps", 8, "--tau", 3, "--output", run),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": str(i)},
        )
        for i, run in enumerate(runs)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()
    first, second = ((run / "pip.safetensors").read_bytes() for run in runs)
    assert first == second


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a child")
def test_ctrl_c_saves_and_prints_the_command_that_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("train", *TRAIN, "--steps", 100_000, "--output", run),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 600
        while not (run / "steps.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 1, errors
    assert f'train --resume "{run}"' in output
    step = int(load_file(run / "state.safetensors")["step"])
    assert f"stopped at step {step}" in output
    assert len((run / "steps.jsonl").read_text().splitlines()) == step
    assert not list(run.rglob("*.part"))


def test_generate_and_inspect(
    whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--embedding", str(whole.path), "--prompt", "a <pip> in the snow", "--steps", "2"]
    assert main([*arguments, "--count", "2", "--output", str(tmp_path / "a")]) == 0
    assert main([*arguments, "--seed", "1", "--output", str(tmp_path / "b")]) == 0
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["pip-1-seed0.png", "pip-1-seed1.png"]
    assert Image.open(tmp_path / "a" / files[0]).size == (48, 48)
    batched, alone = (Image.open(tmp_path / x / "pip-1-seed1.png").convert("RGB") for x in "ab")
    worst = max(abs(a - b) for a, b in zip(batched.tobytes(), alone.tobytes(), strict=True))
    assert worst <= 2  # a seed's image is the same in any batch, up to rounding
    capsys.readouterr()
    assert main(["inspect", str(whole.path)]) == 0
    shown = capsys.readouterr().out
    for expected in ("<pip>", "the embedded tiny model", "monster", "14"):
        assert expected in shown


def test_a_strangers_token_name_is_no_path(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    torch.save({"../../up": torch.zeros(1, 128)}, tmp_path / "learned.bin")
    arguments = ["generate", "--embedding", str(tmp_path / "learned.bin"), "--prompt", "a ../../up", "--steps", "1"]
    assert main([*arguments, "--output", str(tmp_path / "deep" / "er" / "out")]) == 0
    assert [p.parent.name for p in tmp_path.rglob("*.png")] == ["out"]


def test_presets_are_the_papers() -> None:
    given: dict[str, Any] = {"images": ("x",), "token": "<a>", "initializer": "dog"}
    sd15 = TrainConfig.from_preset("sd15", **given)
    assert (sd15.n, sd15.mu, sd15.tau, sd15.nu, sd15.lr, sd15.steps) == (2, 1e-3, 128, 1e-3, 5e-3, 30_000)
    assert (sd15.t_lower, sd15.t_upper, sd15.weights, sd15.optimizer) == (500, 900, "int8", "zoadam")
    sd21 = TrainConfig.from_preset("sd21", **given)
    assert (sd21.mu, sd21.lr, sd21.steps) == (1e-2, 1e-2, 30_000)
    sdxl = TrainConfig.from_preset("sdxl", **given)
    assert (sdxl.mu, sdxl.t_lower, sdxl.t_upper, sdxl.steps, sdxl.lr) == (1e-2, 700, 900, 20_000, 5e-3)
    int4 = TrainConfig.from_preset("int4", **given)
    assert (int4.weights, int4.dtype, int4.mu) == ("int4", "bfloat16", 1e-2)
    for name in PAPER_PRESETS:
        config = TrainConfig.from_preset(name, **given)
        assert TrainConfig.from_json(config.to_json()) == config


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("train", "generate", "inspect", "demo"))
