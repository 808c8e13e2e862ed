"""Samples: how they are drawn, listed prompts over time as one picture, and what a run says before it begins."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder
from PIL import Image

from tests.test_training import PIP, config_of, resume, train
from zoodip_core import Commands, load_embedding, resume_training, train_token
from zoodip_core.base.errors import CaptionError, ConfigError
from zoodip_core.base.events import Event, Message, Sampled, Started
from zoodip_core.cli.main import main
from zoodip_core.data.photographs import is_photograph
from zoodip_core.data.sheets import evenly
from zoodip_core.jobs.history import find_run
from zoodip_core.jobs.job import Job
from zoodip_core.jobs.job_folder import write_task
from zoodip_core.jobs.pipes import Outbox
from zoodip_core.jobs.protocol import event_of
from zoodip_core.jobs.tasks import work
from zoodip_core.model import generation
from zoodip_core.model.generation import generate
from zoodip_core.model.recognise import identify
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.train import before_after as drawing
from zoodip_core.train.hints import EMBEDDED_SIDE, photographs
from zoodip_core.train.loop import TrainResult
from zoodip_core.train.run_folder import RunFolder
from zoodip_core.train.samples import Sampling, write_grid

PHOTOGRAPHS = Path(__file__).parent / "photographs"
PROMPTS = "a photo of a {}; a {} in the snow; a monster"
LISTED = {"sample_prompt": PROMPTS, "sample_every": 3, "sample_steps": 2, "steps": 8, "save_every": 4}
ROWS = (0, 3, 6, 8)
"""The start, those that are due, the end."""
TILE, LABEL, GAP = 144, 150, 6


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "samples").iterdir())


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "samples").iterdir())}


def tiles(grid: Path, row: int, columns: int) -> list[np.ndarray[Any, Any]]:
    """The pictures of a row of a grid, counted from below, where it ends with a gap."""
    with Image.open(grid) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    bottom = len(pixels) - GAP - row * (TILE + GAP)
    return [
        pixels[bottom - TILE : bottom, left : left + TILE]
        for left in (LABEL + column * (TILE + GAP) for column in range(columns))
    ]


def enlarged(picture: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(picture).repeat(3, axis=0).repeat(3, axis=1)


@pytest.fixture(scope="module")
def listed(tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An uninterrupted run that lists three prompts."""
    return train(config_of(**LISTED), tmp_path_factory.mktemp("listed") / "run", tiny_model)


# ---------------------------------------------------------------- how they are drawn


def test_how_samples_are_drawn_reaches_the_model(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Sequence[str], Sequence[int], dict[str, Any]]] = []

    def told(self: Any, prompts: Sequence[str], seeds: Sequence[int], **how: Any) -> list[Image.Image]:
        asked.append((list(prompts), list(seeds), how))
        return [Image.new("RGB", (48, 48))] * len(prompts)

    monkeypatch.setattr(type(tiny_model), "generate", told)
    plain: dict[str, Any] = {"num_inference_steps": 25, "guidance_scale": None, "negative_prompt": ""}
    own: dict[str, Any] = {"sample_negative_prompt": "a {} in the dark", "sample_guidance": 2.5, "sample_steps": 3}
    changed = {"num_inference_steps": 3, "guidance_scale": 2.5, "negative_prompt": "a {} in the dark"}
    settings: dict[str, Any]
    for number, (settings, how) in enumerate((({}, plain), (own, changed))):
        config = config_of(steps=1, sample_every=1, **settings)
        result = train_token(config, tmp_path / str(number), model=tiny_model)
        drawing.before_after(tiny_model, config, result.embeddings, tmp_path / "sheet.png")
        sampled, before, after = asked
        assert sampled[:2] == (["a photo of a {}"] * 4, [0, 1, 2, 3])
        assert before[:2] == (["a photo of a monster"] * 4, [0, 1, 2, 3])
        assert after[0] == ["a photo of a <pip>"] * 4
        for (_, _, given), place in zip(asked, ("{}", "monster", "<pip>"), strict=True):
            named = {**how, "negative_prompt": str(how["negative_prompt"]).replace("{}", place)}
            assert {name: given[name] for name in how} == named
        asked.clear()


def test_a_sheet_of_one_prompt_is_as_it_was(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """Four seeds of it, below reference images; no start, no picture over time, and nothing told in the file."""
    result = train(config_of(steps=2, sample_every=2, sample_steps=3), tmp_path / "run", tiny_model)
    assert names(tmp_path / "run") == ["step-00000002.png"]
    assert result.grid is None
    sheet = tmp_path / "run" / "samples" / "step-00000002.png"
    with Image.open(sheet) as picture:
        assert "zoodip" not in picture.info
    how: dict[str, Any] = {"embedding": result.embedding, "num_inference_steps": 3}
    drawn = generate(tiny_model, ["a photo of a <pip>"] * 4, [0, 1, 2, 3], **how)
    for shown, image in zip(tiles(sheet, 0, 4), drawn, strict=True):
        assert np.array_equal(shown, enlarged(image))


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"sample_steps": 0}, ConfigError, "sample_steps = 0"),
        ({"sample_steps": 1000}, ConfigError, "sample_steps = 1000"),
        ({"sample_guidance": 101.0}, ConfigError, "sample_guidance"),
        ({"sample_prompt": "a monster; a dog"}, ConfigError, "no placeholder"),
        ({"sample_prompt": ";".join(f"{{}} {i}" for i in range(17))}, ConfigError, "17 prompts are too many"),
        ({"sample_negative_prompt": "very " * 90}, CaptionError, "sample_negative_prompt: the prompt"),
        ({"sample_prompt": "{};" + "very " * 90}, CaptionError, "sample_prompt: the prompt"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(
    settings: dict[str, Any], kind: type[Exception], said: str, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said):
        train(config_of(**settings), tmp_path / "run", tiny_model)
    assert not (tmp_path / "run").exists()


def test_of_several_tokens_each_prompt_is_drawn_with_each() -> None:
    several = {"token": "<pip>,<boo>", "initializer": "monster"}
    config = config_of(**several, sample_prompt="a {}; <boo> in the snow ; a {}", sample_negative_prompt="<pip>")
    assert config.sample_prompts == ("a <pip>", "a <boo>", "<boo> in the snow")
    with pytest.raises(ConfigError, match=r"sample_negative_prompt.*any of 2 tokens"):
        config_of(**several, sample_negative_prompt="not {}")


def test_pictures_of_each_of_several_tokens_stand_above(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    folders = [concepts.load(name).images for name in ("pip", "boo")]
    given = {"images": tuple(map(str, folders)), "captions": None, "token": "<pip>,<boo>", "initializer": "monster"}
    own = {"sample_prompt": "a {}; a monster", "sample_every": 1, "sample_steps": 2, "steps": 1}
    train(config_of(**given, **own), tmp_path / "run", tiny_model)
    shown = tiles(tmp_path / "run" / "samples" / "step-00000001.png", 1, 3)
    for tile, (folder, name) in zip(shown, [(0, "01.png"), (1, "01.png"), (0, "02.png")], strict=True):
        with Image.open(folders[folder] / name) as picture:
            assert np.array_equal(tile, enlarged(picture.convert("RGB")))


def test_a_separator_at_the_end_makes_no_list() -> None:
    config = config_of(sample_prompt="a photo of a {};")
    assert (config.sample_prompts, config.lists_samples) == (("a photo of a {}",), False)
    assert Sampling.of(config).prompts == ("a photo of a {}",) * 4


# ---------------------------------------------------------------- over time


def test_listed_prompts_are_kept_over_time(listed: TrainResult, tiny_model: StableDiffusion) -> None:
    run = listed.path.parent
    assert listed.grid == run / "samples" / "grid.png"
    assert names(run) == ["grid.png", *(f"step-{step:08d}.png" for step in ROWS)]
    with Image.open(listed.grid) as grid:
        assert grid.width == LABEL + 3 * (TILE + GAP) + GAP
        assert grid.height > (1 + len(ROWS)) * (TILE + GAP)
    start, end = RunFolder.open(run).snapshot_path(0), listed.embedding
    for row, token in ((0, end), (len(ROWS) - 1, load_embedding(start))):
        prompts = ["a photo of a {}", "a {} in the snow", "a monster"]
        drawn = generate(tiny_model, prompts, [0, 1, 2], embedding=token, num_inference_steps=2)
        for shown, image in zip(tiles(listed.grid, row, 3), drawn, strict=True):
            assert np.array_equal(shown, enlarged(image))
    first, last = (tiles(listed.grid, row, 3) for row in (len(ROWS) - 1, 0))
    assert [np.array_equal(*pair) for pair in zip(first, last, strict=True)] == [False, False, True]


@pytest.mark.parametrize("step", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 7))])
def test_a_resumed_run_has_the_same_picture(
    step: int, listed: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    train(config_of(**LISTED), tmp_path / "run", tiny_model, stop_after=step)
    resumed = resume(config_of(**LISTED), tmp_path / "run", tiny_model)
    assert contents(tmp_path / "run") == contents(listed.path.parent)
    assert resumed.path.read_bytes() == listed.path.read_bytes()


@pytest.mark.parametrize("at", [0, pytest.param(6, marks=pytest.mark.slow)])
def test_a_stop_while_they_are_drawn_is_made_up_for(
    at: int, listed: TrainResult, tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, drawn, steps = Commands(), Sampling.draw, iter(ROWS)

    def draw(self: Sampling, *given: Any) -> Any:
        if next(steps) == at:
            commands.stop()
        return drawn(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Sampling, "draw", draw)
        result = train_token(config_of(**LISTED), tmp_path / "run", model=tiny_model, commands=commands)
    assert (result.step, result.finished) == (at, False)
    assert resume_training(tmp_path / "run", model=tiny_model).finished
    assert contents(tmp_path / "run") == contents(listed.path.parent)


def test_a_run_that_goes_back_leaves_later_rows_out(
    listed: TrainResult, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    """A run that lost its last steps, as in a power cut, goes on from an earlier one: what lies beyond is not yet."""
    run = shutil.copytree(listed.path.parent, tmp_path / "run")
    (run / "pip.safetensors").unlink()
    journal = (run / "steps.jsonl").read_bytes().splitlines(keepends=True)
    (run / "steps.jsonl").write_bytes(b"".join(journal[:4]))
    (run / "state.safetensors").unlink()
    seen: list[tuple[int, int]] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Sampled):
            assert event.grid
            with Image.open(event.grid) as grid:
                seen.append((event.step, grid.height))

    whole = Image.open(listed.grid or "").height
    commands = Commands()
    stop = commands.stop
    resume_training(
        run, model=tiny_model, on_event=lambda e: stop() if isinstance(e, Started) else None, commands=commands
    )
    with Image.open(run / "samples" / "grid.png") as grid:
        assert grid.height == whole - 2 * (TILE + GAP)  # the start and step 3
    resume_training(run, model=tiny_model, on_event=on_event)
    assert seen == [(6, whole - TILE - GAP), (8, whole)]
    assert contents(run) == contents(listed.path.parent)


def test_other_prompts_begin_another_picture(listed: TrainResult, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    train(config_of(**LISTED), tmp_path / "run", tiny_model, stop_after=4)
    changes = {"sample_prompt": "a {} at night; a {}; a {} on the beach"}
    resume_training(tmp_path / "run", changes, model=tiny_model)
    with Image.open(tmp_path / "run" / "samples" / "grid.png") as grid, Image.open(listed.grid or "") as whole:
        assert grid.height == whole.height - 2 * (TILE + GAP)
    assert set(contents(tmp_path / "run")) == set(contents(listed.path.parent))


def test_a_damaged_sheet_is_left_out(listed: TrainResult, tmp_path: Path) -> None:
    run = shutil.copytree(listed.path.parent, tmp_path / "run")
    folder = RunFolder.open(run)
    cut = folder.sample_path(3)
    cut.write_bytes(cut.read_bytes()[:-5000])
    folder.sample_path(5).write_bytes(b"no picture")
    Image.new("RGB", (400, 300)).save(folder.sample_path(6))
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder.sample_path(7))  # a stranger's: it would be waited for
    assert write_grid(folder, Sampling.of(folder.config), 8)
    with Image.open(folder.grid_path) as grid, Image.open(listed.grid or "") as whole:
        assert grid.height == whole.height - 2 * (TILE + GAP)
    for step in ROWS:
        folder.sample_path(step).unlink()
    assert write_grid(folder, Sampling.of(folder.config), 8) is None
    assert not folder.grid_path.exists()


def test_of_very_many_samplings_an_even_selection_is_shown(listed: TrainResult, tmp_path: Path) -> None:
    run = shutil.copytree(listed.path.parent, tmp_path / "run")
    folder = RunFolder.open(run)
    sheets = [Image.open(folder.sample_path(step)).convert("RGB") for step in (0, 8)]
    end_sheet = folder.sample_path(8).read_bytes()
    for step in range(1, 101):
        shutil.copy(folder.sample_path(0), folder.sample_path(step))
    folder.sample_path(100).write_bytes(end_sheet)
    assert write_grid(folder, Sampling.of(folder.config), 100)
    with Image.open(folder.grid_path) as grid, Image.open(listed.grid or "") as whole:
        assert grid.height == whole.height + (32 - len(ROWS)) * (TILE + GAP)
    start, end = (np.asarray(sheet)[-TILE - GAP : -GAP, LABEL : LABEL + TILE] for sheet in sheets)
    rows = [tiles(folder.grid_path, row, 1)[0] for row in range(32)]
    assert [np.array_equal(row, end) for row in rows] == [True] + [False] * 31
    assert np.array_equal(rows[-1], start)


@pytest.mark.parametrize(("count", "most"), [(0, 5), (5, 5), (6, 5), (7, 5), (1000, 32), (33, 32)])
def test_an_even_selection(count: int, most: int) -> None:
    chosen = evenly(count, most)
    assert len(chosen) == min(count, most)
    if count:
        assert (chosen[0], chosen[-1]) == (0, count - 1)
        apart = np.diff(chosen)
        assert apart.min() >= 1
        assert apart.max() - apart.min() <= 1


def test_no_room_for_listed_samples_ends_nothing(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_arguments: Any, **_settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("zoodip_core.model.stable_diffusion.generate", no_room)
        result = train_token(
            config_of(**{**LISTED, "sample_prompt": "a {}; my {}"}),
            tmp_path / "run",
            model=tiny_model,
            on_event=lambda event: told.append(event.text) if isinstance(event, Message) and event.warning else None,
        )
    assert (result.finished, result.grid) == (True, None)
    assert told == [f"no samples at step {step}: CUDA out of memory" for step in ROWS]


def drawn(model: StableDiffusion) -> np.ndarray[Any, Any]:
    pictures = generate(model, ["a photo of a red monster"] * 2, [0, 1], resolution=128, num_inference_steps=4)
    return np.stack([np.asarray(picture, dtype=np.float64) for picture in pictures])


@pytest.fixture(scope="module")
def undivided(tiny_model: StableDiffusion) -> np.ndarray[Any, Any]:
    return drawn(tiny_model)


@pytest.mark.parametrize("most", [16, 8])
def test_a_picture_that_has_no_room_is_decoded_in_tiles(
    tiny_model: StableDiffusion, undivided: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """As small as need be; the picture is the same but for what tiles do not see of their neighbours."""
    monkeypatch.setattr(generation, "_SMALLEST_TILE", 4)
    whole, decode = undivided, Decoder.forward
    sides: list[int] = []

    def small(self: Any, latents: torch.Tensor, *more: Any) -> Any:
        sides.append(max(latents.shape[-2:]))
        if sides[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, latents, *more)

    monkeypatch.setattr(Decoder, "forward", small)
    tiled = drawn(tiny_model)
    assert tiled.shape == whole.shape
    assert sides.count(32) == 1  # the second picture begins with the tiles of the first one
    assert not np.array_equal(tiled, whole)
    assert np.corrcoef(tiled.ravel(), whole.ravel())[0, 1] > 0.9
    monkeypatch.setattr(Decoder, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        drawn(tiny_model)


def test_none_are_drawn_that_nobody_asked_for(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """Not at the start or the end either; when they are asked for now, the picture over time has that row."""
    train(config_of(**{**LISTED, "sample_every": 0}), tmp_path / "none", tiny_model)
    assert not (tmp_path / "none" / "samples").exists()
    commands = Commands()
    commands.sample()
    config = config_of(**{**LISTED, "sample_every": 0})
    result = train_token(config, tmp_path / "now", model=tiny_model, commands=commands)
    assert names(tmp_path / "now") == ["grid.png", "step-00000001.png"]
    assert result.grid


def test_a_worker_tells_of_the_picture_over_time(tmp_path: Path) -> None:
    """A real job, as the page queues them; a page that heard its lines knows the files."""
    pipe = io.BytesIO()
    settings: dict[str, Any] = {"images": [str(PIP / "images")], "token": "<pip>", "initializer": "monster"}
    settings |= {"sample_prompt": "a {}; my {}", "sample_every": 1, "sample_steps": 1, "steps": 1}
    file = write_task(tmp_path, "train", tmp_path, settings=settings, preset="paper", changes={})
    assert work(file, Outbox(pipe), Commands()) == 0
    job = Job(1, "train", tmp_path, "<pip>", file)
    for line in pipe.getvalue().splitlines():
        job.hear(event_of(line) or {})
    assert job.sampled_step == 1
    assert job.grid == tmp_path / "run" / "samples" / "grid.png"
    found = find_run(tmp_path.parent, tmp_path.name)
    assert found.grid == job.grid
    with Image.open(found.before_after or "") as picture:  # a column for each prompt there too
        assert picture.width == LABEL + 2 * (TILE + GAP) + GAP


def test_the_command_tells_where_the_picture_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--images", str(PIP / "images"), "--token", "<pip>", "--init", "monster", "--steps", "1"]
    command += [
        "--sample-prompt",
        "a {}; a dog",
        "--sample-every",
        "1",
        "--sample-steps",
        "1",
        "--sample-guidance",
        "3",
    ]
    command += ["--sample-negative-prompt", "night", "--preset", "paper", "--output", str(tmp_path / "run")]
    assert main(command) == 0
    said = capsys.readouterr()
    assert f"samples over time: {tmp_path / 'run' / 'samples' / 'grid.png'}" in said.out
    assert "done: 1 step, token <pip> in " in said.out
    assert "sample_prompt: 'a dog' has no place for the token" in said.err
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (kept["sample_negative_prompt"], kept["sample_guidance"], kept["sample_steps"]) == ("night", 3.0, 1)


# ---------------------------------------------------------------- photographs with the embedded model


def test_photographs_are_told_from_small_drawings(tmp_path: Path) -> None:
    assert identify("tiny").resolution == EMBEDDED_SIDE
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        with Image.open(path) as photograph:
            grey = photograph.convert("L")
            small = photograph.resize((96, 96))
        assert is_photograph(path, EMBEDDED_SIDE)
        grey.save(tmp_path / "grey.png")
        small.save(tmp_path / "small.png")
        assert is_photograph(tmp_path / "grey.png", EMBEDDED_SIDE)
        assert not is_photograph(tmp_path / "small.png", EMBEDDED_SIDE)
        assert not is_photograph(path, 512)
    concepts = sorted((PIP.parent).glob("*/images/*.png"))
    assert len(concepts) > 30
    assert not any(is_photograph(path, EMBEDDED_SIDE) for path in concepts)
    with Image.open(concepts[0]) as monster:
        monster.resize((480, 480), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    assert not is_photograph(tmp_path / "large.png", EMBEDDED_SIDE)
    (tmp_path / "none.png").write_bytes(b"no picture")
    assert not is_photograph(tmp_path / "none.png", EMBEDDED_SIDE)
    assert not is_photograph(tmp_path / "missing.png", EMBEDDED_SIDE)


def test_most_pictures_decide() -> None:
    photographed, drawn = sorted(PHOTOGRAPHS.glob("*.jpg")), sorted((PIP / "images").glob("*.png"))
    assert photographs(photographed[:2] + drawn[:2])
    assert not photographs(photographed[:1] + drawn[:2])
    assert not photographs([])


def test_a_training_on_photographs_with_the_embedded_model_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(images: Path, word: str, code: int, *more: str) -> str:
        command = ["train", "--images", str(images), "--token", "<rex>", "--init", word, "--steps", "1", *more]
        command += ["--preset", "paper"]
        assert main([*command, "--output", str(tmp_path / word / images.name)]) == code
        return capsys.readouterr().err

    refused = said(PHOTOGRAPHS, "dog", 2)  # a word that it does not know: the warning says why
    assert refused.index("photographs") < refused.index("initializer 'dog'")
    told = said(PHOTOGRAPHS, "monster", 0)
    warning = next(line for line in told.splitlines() if "photographs" in line)
    assert warning.startswith("warning: model: the embedded model draws nothing but little monsters")
    assert "dog-00.jpg" in warning
    assert "--model" in warning
    assert told.index("photographs") < told.index("encoding 4 images")
    assert "photographs" not in said(PIP / "images", "monster", 0, "--captions", str(PIP / "images.json"))
