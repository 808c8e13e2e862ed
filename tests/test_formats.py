"""Files that an earlier ZOODiP wrote are read today with the values they had; those of a later one are told as such.

See ``docs/formats.md``. Those in ``formats`` are never made anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from zoodip_core.base.errors import ConfigError, EmbeddingFileError, ModelError, RunFolderError
from zoodip_core.base.stopping import Stopped, stopped_by
from zoodip_core.cli.main import main
from zoodip_core.data.prompts import read_listed
from zoodip_core.evaluate.evaluation import EvaluationPlan, Judges, evaluate
from zoodip_core.jobs.history import find_run, list_runs
from zoodip_core.jobs.job_folder import Task, task_of
from zoodip_core.jobs.protocol import FAILED, UNFINISHED
from zoodip_core.model.embedding import Embedding, load_embedding
from zoodip_core.model.load import load_quantized
from zoodip_core.model.lora import load_lora
from zoodip_core.model.recognise import open_copy, open_model
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.page.draft import Draft
from zoodip_core.tiny import concepts
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.loop import resume_training
from zoodip_core.train.replay import rewind
from zoodip_core.train.run_folder import RunFolder

FORMATS = Path(__file__).parent / "formats"
NOW, BEFORE = FORMATS / "version1", FORMATS / "before"
TASK = "79538a0ca4793abb"
SETTINGS = {"images": ["images"], "token": "<rex>", "initializer": "dog", "steps": 7, "lr": 0.25}


def thousandths(vectors: int, width: int) -> torch.Tensor:
    return torch.arange(vectors * width, dtype=torch.float32).reshape(vectors, width) / 1000


def changed(source: Path, target: Path, **values: Any) -> Path:
    """A copy of a JSON file with other values; None takes one out."""
    data = {**json.loads(source.read_text(encoding="utf-8")), **values}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    return target


def relabelled(source: Path, target: Path, more: dict[str, torch.Tensor] | None = None, **metadata: str) -> Path:
    """A copy of a safetensors file with another header, and further tensors."""
    with safe_open(source, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file({**tensors, **(more or {})}, target, metadata={**(file.metadata() or {}), **metadata})
    return target


# ---------------------------------------------------------------- the token's file


def test_a_token_of_version_1() -> None:
    token = load_embedding(NOW / "rex.safetensors")
    assert (token.token, token.family, token.metadata["format_version"]) == ("<rex>", "sd1", "1")
    assert (token.metadata["initializer"], token.metadata["steps"]) == ("dog", "7")
    (rows,) = token.tensors
    assert torch.equal(rows, thousandths(2, 768))


def test_learned_weights_of_version_1() -> None:
    """Frames A [4, 2] and B [2, 6] of thousandths, and the LoRA of the cores 0, 1, 2, 3 thousandths between them."""
    settings = {"images": ["images"], "token": "<rex>", "initializer": "dog", "lora_rank": 2}
    frames = RunFolder(NOW, TrainConfig.from_dict(settings)).frames()
    assert frames is not None
    ((name, (a, b)),) = frames.layers.items()
    assert torch.equal(a, thousandths(4, 2))
    assert torch.equal(b, thousandths(2, 6))
    lora = load_lora(NOW / "rex-lora.safetensors")
    ((stem, (up, down)),) = lora.layers.items()
    assert stem == name.replace(".", "_") == "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    core = torch.tensor([[0.0, 0.001], [0.002, 0.003]])
    torch.testing.assert_close(up, thousandths(4, 2) @ core)
    assert torch.equal(down, thousandths(2, 6))
    assert (lora.metadata["lora_format_version"], lora.metadata["token"], lora.rank) == ("1", "<rex>", 2)


def test_a_token_of_sdxl_of_version_1() -> None:
    token = load_embedding(NOW / "rex-sdxl.safetensors")
    assert (token.token, token.family, token.num_vectors) == ("<rex>", "sdxl", 1)
    assert torch.equal(token.tensors[0], thousandths(1, 768))
    assert torch.equal(token.tensors[1], thousandths(1, 1280))


def test_a_token_without_a_header() -> None:
    token = load_embedding(BEFORE / "rex.safetensors")
    assert (token.token, token.metadata) == ("<rex>", {})
    assert torch.equal(token.tensors[0], thousandths(2, 768))


def test_a_token_of_a_later_version_is_read_where_its_tensors_are_a_token(tmp_path: Path) -> None:
    """As every other program reads it."""
    later = relabelled(NOW / "rex.safetensors", tmp_path / "rex.safetensors", format_version="2")
    assert torch.equal(load_embedding(later).tensors[0], thousandths(2, 768))
    other = {"more": torch.zeros(1, 768)}
    for version, told in (("2", "a newer ZOODiP wrote it: update ZOODiP"), ("1", "an embedding has one")):
        later = relabelled(NOW / "rex.safetensors", tmp_path / "rex.safetensors", other, format_version=version)
        with pytest.raises(EmbeddingFileError, match=told) as error:
            load_embedding(later)
        assert ("update" in str(error.value)) == (version == "2")


# ---------------------------------------------------------------- settings


def test_a_runs_settings_of_version_1() -> None:
    config = RunFolder.open(NOW / "page" / "run").config
    kept = {"model": "small.safetensors", "cache": None, "crop": "center"}  # that was the default, which a run keeps
    assert config == TrainConfig.from_dict({**SETTINGS, **kept})
    assert (config.tau, config.nu, config.t_lower, config.t_upper, config.mu) == (128, 1e-3, 500, 900, 1e-3)


def test_a_settings_file_of_version_1() -> None:
    text = (NOW / "settings.json").read_text(encoding="utf-8")
    assert TrainConfig.settings_from_json(text) == {**SETTINGS, "subspace_gradient": False}
    assert TrainConfig.from_json(text).subspace_gradient is False


def test_settings_of_a_later_version_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = changed(NOW / "page" / "run" / "config.json", tmp_path / "config.json", config_version=2)
    with pytest.raises(ConfigError, match=r"config_version 2, this program reads 1; update ZOODiP"):
        RunFolder.open(tmp_path)
    assert main(["train", "--config", str(file)]) == 2
    assert "update ZOODiP" in capsys.readouterr().err


def test_settings_without_a_version_say_what_to_add(tmp_path: Path) -> None:
    """Written by hand, it may be."""
    file = changed(NOW / "settings.json", tmp_path / "settings.json", config_version=None)
    with pytest.raises(ConfigError, match='no config_version; add "config_version": 1'):
        TrainConfig.from_json(file.read_text(), str(file))


# ---------------------------------------------------------------- a page's run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a run of version 1."""
    shutil.copytree(NOW / "page", tmp_path / "home" / "rex")
    return tmp_path / "home"


def test_a_job_of_version_1(home: Path) -> None:
    job = Task.read(NOW / "page" / "task.json")
    assert (job.kind, job.folder, job.settings, job.preset, job.changes) == (
        "train",
        Path("page"),
        SETTINGS,
        "fast",
        {},
    )
    task = task_of(home / "rex")
    assert (task["id"], task["replace"], task["settings"]) == (TASK, True, SETTINGS)


def test_a_run_of_version_1(home: Path) -> None:
    (run,) = list_runs(home)
    assert (run.state, run.message, run.token, run.model) == (FAILED, "the disk is full", "<rex>", "small")
    assert (run.step, run.steps, run.settings["lr"], run.can_resume) == (0, 7, 0.25, True)


def test_an_outcome_of_another_job_does_not_count(home: Path) -> None:
    changed(NOW / "page" / "task.json", home / "rex" / "task.json", id="f" * 16)
    assert list_runs(home)[0].state == UNFINISHED


def without_ids(folder: Path) -> None:
    for name in ("task.json", "outcome.json"):
        shutil.copyfile(BEFORE / name, folder / name)


def old_task_alone(folder: Path) -> None:
    """The outcome knows of no task."""
    shutil.copyfile(BEFORE / "task.json", folder / "task.json")
    changed(NOW / "page" / "outcome.json", folder / "outcome.json", task=None)


@pytest.mark.parametrize("older", [without_ids, old_task_alone])
def test_a_run_without_ids_goes_by_the_times_of_its_files(older: Callable[[Path], None], home: Path) -> None:
    older(home / "rex")
    for seconds, state in ((-60, UNFINISHED), (60, FAILED)):
        when = (home / "rex" / "task.json").stat().st_mtime + seconds
        os.utime(home / "rex" / "outcome.json", (when, when))
        assert list_runs(home)[0].state == state


def test_an_outcome_without_an_id_is_older_than_a_job_that_has_one(home: Path) -> None:
    shutil.copyfile(BEFORE / "outcome.json", home / "rex" / "outcome.json")
    assert list_runs(home)[0].state == UNFINISHED


def test_a_job_of_a_later_version_is_refused(home: Path) -> None:
    file = changed(NOW / "page" / "task.json", home / "rex" / "task.json", version=2)
    with pytest.raises(ConfigError, match="newer ZOODiP; update ZOODiP"):
        Task.read(file)
    assert list_runs(home)[0].settings["steps"] == 7  # its run's own settings are enough
    shutil.rmtree(home / "rex" / "run")
    (run,) = list_runs(home)
    assert (run.state, run.can_resume) == (FAILED, False)
    assert "newer ZOODiP" in run.message
    assert "update ZOODiP" in run.message
    assert find_run(home, "rex") == run


def test_an_outcome_of_a_later_version_is_not_known(home: Path) -> None:
    changed(NOW / "page" / "outcome.json", home / "rex" / "outcome.json", version=2)
    assert list_runs(home)[0].state == UNFINISHED


def test_settings_of_a_later_version_are_told_in_the_list(home: Path) -> None:
    config = home / "rex" / "run" / "config.json"
    changed(config, config, config_version=2)
    (run,) = list_runs(home)
    assert (run.state, run.can_resume) == (FAILED, False)
    assert "update ZOODiP" in run.message
    with pytest.raises((ConfigError, RunFolderError), match="update ZOODiP"):
        RunFolder.open(run.run)


# ---------------------------------------------------------------- a run's journal and state


def test_a_run_of_version_1_goes_on_without_the_loss_of_a_step(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """Killed after step 30 of 40, saved at step 15; neither its journal nor its state had checksums."""
    run = Path(shutil.copytree(NOW / "run", tmp_path / "run"))
    changes = {"images": (str(concepts.load("boo").images),)}
    folder = RunFolder.open(run, changes)
    state = folder.saved_state()
    assert state
    assert (int(state.tensors["step"]), folder.step()) == (15, 30)
    assert (folder.past().records[30].theta, folder.past().damaged) == (None, ())
    with pytest.raises(RunFolderError, match="Resuming the run writes it again"):
        rewind(run, 20)
    resumed = resume_training(run, changes, model=tiny_model)
    assert len(resumed.losses) == 10
    assert sorted(RunFolder.open(run).past().records) == list(range(1, 41))
    assert resumed.step == 40
    token = load_embedding(NOW / "boo-step30.safetensors").vectors  # as that version had it after the step
    assert torch.allclose(load_embedding(rewind(run, 30).path).vectors, token, atol=1e-6)


# ---------------------------------------------------------------- the form's draft


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    """The folder of a draft of version 1."""
    shutil.copytree(NOW / "draft", tmp_path / "draft")
    return tmp_path / "draft"


def test_a_draft_of_version_1(draft: Path) -> None:
    read = Draft(draft)
    assert read.values() == {"token": "<rex>", "steps": 7, "overwrite": True}
    assert [(picture.name, picture.caption) for picture in read.pictures()] == [
        ("0001-one.png", ""),
        ("0002-two.png", "a {} on grass\na {}, blue"),
    ]
    assert read_listed(draft / "captions.json") == {"0002-two.png": ["a {} on grass", "a {}, blue"]}


def test_a_draft_of_a_later_version_is_set_aside(draft: Path) -> None:
    """A page that begins empty is no harm; what was typed into the later one must not be lost."""
    later = changed(draft / "draft.json", draft / "draft.json", version=2).read_bytes()
    read = Draft(draft)
    assert read.values() == {}
    assert len(read.pictures()) == 2
    assert (draft / "draft.json").read_bytes() == later
    for token in ("<dog>", "<cat>"):
        read.keep({"token": token})
    assert read.values() == {"token": "<cat>"}
    assert (draft / "draft-version-2.json").read_bytes() == later


# ---------------------------------------------------------------- a model's quantised copy


def test_a_quantised_copy_of_version_1() -> None:
    blueprint = open_model(NOW / "small-int8.safetensors")
    assert (blueprint.weights, blueprint.info.family, blueprint.info.dims) == ("int8", "sd1", (768,))
    assert blueprint.copy_of == "5b1793642326826f178d705197c0e458e0919fe25bf5cd2dbe374b033d790494"
    assert set(blueprint.readers) == {"unet", "vae", "text_encoder"}
    unet = blueprint.readers["unet"]
    parts = unet.quantized("conv_in", torch.Size((32, 4, 3, 3)))
    assert parts is not None
    assert {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()} == {
        "data": (torch.int8, (32, 4, 3, 3)),
        "scale": (torch.float32, (32, 1, 1, 1)),
    }
    assert parts["data"].flatten()[:4].tolist() == [-11, -18, 11, -13]
    assert int(parts["data"].long().sum()) == 126
    assert float(parts["scale"].sum()) == pytest.approx(0.10348487)
    bias = unet.parameter("conv_in.bias", (32,))
    assert bias.dtype == torch.float16
    assert float(bias.float().sum()) == pytest.approx(0.12002182)


def test_a_quantised_copy_of_a_later_version_is_refused(tmp_path: Path) -> None:
    copy = NOW / "small-int8.safetensors"
    later = relabelled(copy, tmp_path / "later.safetensors", zoodip_quantized_copy="2")
    for read in (open_model, open_copy):
        with pytest.raises(ModelError, match="a newer ZOODiP made; update ZOODiP, or give the model itself"):
            read(later)


# ---------------------------------------------------------------- an evaluation's settings


def test_an_evaluation_of_version_1_goes_on(tmp_path: Path) -> None:
    model = load_quantized(device="cpu")
    plan = EvaluationPlan(("a {} in the snow", "a {}"), "monster", seeds=2, num_inference_steps=7, guidance_scale=2.5)
    learned = Embedding("<rex>", (thousandths(1, 128),))
    pictures, folder = [Image.new("RGB", (64, 64))], tmp_path / "evaluation"
    file = NOW / "evaluation" / "settings.json"
    changed(file, folder / "settings.json", model=model.blueprint.fingerprint)
    with pytest.raises(Stopped), stopped_by(lambda: True):
        evaluate(model, learned, pictures, plan, Judges(None, None), folder)
    changed(file, folder / "settings.json", evaluation_version=2)
    with pytest.raises(RunFolderError, match="written by a newer ZOODiP; update"):
        evaluate(model, learned, pictures, plan, Judges(None, None), folder)
