"""Any model that is a ``TokenModel`` trains, resumes, draws and saves: nothing above it knows which one it is.

The model here is of pure torch (``tests/fake_model.py``), and has nothing but what the protocol names. It stands for
those that run in ComfyUI, and with it everything works where diffusers and optimum-quanto are not installed.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.fake_host import FakeHost, Interrupted
from tests.fake_model import FAMILY, NAME, SIDE, WIDTH, FakeModel
from zoodip_core import Commands, TrainConfig, TrainResult, resume_training, train_token
from zoodip_core.base.errors import ModelError
from zoodip_core.base.events import Event, Message, Progress
from zoodip_core.cli.main import main
from zoodip_core.jobs.history import find_run, list_runs
from zoodip_core.model.load import load_quantized
from zoodip_core.model.recognise import identify, open_model
from zoodip_core.model.token_model import Denoiser, TokenModel
from zoodip_core.train.presets import preset_for

ROOT = Path(__file__).resolve().parent.parent
COLOUR = (40, 120, 200)
STEPS = 60


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (SIDE, SIDE), COLOUR).save(folder / f"{number}.png")
    return folder


def config_of(pictures: Path, **settings: Any) -> TrainConfig:
    named = {"images": [str(pictures)], "token": "<it>", "initializer": "dog", "steps": STEPS, "sample_every": 30}
    model = FakeModel()
    return TrainConfig.from_dict({**preset_for(FAMILY, "none", "float32"), **named, **model.settings(), **settings})


def train(pictures: Path, run: Path, stop_after: int = 0, **settings: Any) -> TrainResult:
    return train_token(config_of(pictures, **settings), run, model=FakeModel(), **_stopping(stop_after))


def _stopping(after: int) -> dict[str, Any]:
    commands = Commands()

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.step == after:
            commands.stop()

    return {"on_event": on_event, "commands": commands}


def kept(model: str) -> Any:
    """Load it with a copy of it kept in this folder."""
    return load_quantized(model, cache="copies")


def distance(picture: Image.Image) -> float:
    return float(np.abs(np.asarray(picture, dtype=np.float64) - COLOUR).mean())


# ---------------------------------------------------------------- the protocol alone


def test_the_model_has_what_the_protocol_names_and_no_more() -> None:
    """So whatever trains with it reads nothing else: it would fail."""
    model: TokenModel = FakeModel()
    _denoiser: Denoiser = FakeModel()
    named = {name for kind in (TokenModel, Denoiser) for name in vars(kind) if not name.startswith("_")}
    assert {name for name in dir(model) if not name.startswith("_")} == named


def test_a_token_is_learned_on_it(pictures: Path, tmp_path: Path) -> None:
    model = FakeModel()
    told: list[Event] = []
    config = config_of(pictures, steps=300)
    result = train_token(config, tmp_path / "run", model=model, on_event=told.append)
    assert result.finished
    before, after = model.generate(["dog", "{}"], [0, 0], embedding=result.embedding)
    assert distance(after) < 0.2 * distance(before)
    saved = load_file(result.path)
    assert [tensor.shape for tensor in saved.values()] == [(1, WIDTH)]
    about = result.embedding.metadata
    assert (about["base_model"], about["base_model_hash"], about["family"]) == (NAME, model.fingerprint, FAMILY)
    assert "made of one matrix" in [each.text for each in told if isinstance(each, Message)]
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())[0] == "step-00000030.png"


@pytest.mark.parametrize("settings", [{}, {"preset": "paper"}], ids=["default", "paper"])
def test_a_stopped_run_resumes_to_the_same_bytes(settings: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    own = preset_for(FAMILY, "none", "float32", settings["preset"]) if settings else {}
    named = {**own, "steps": STEPS, "sample_every": 0}
    whole = train(pictures, tmp_path / "whole", **named)
    train(pictures, tmp_path / "stopped", stop_after=7, **named)
    resumed = resume_training(tmp_path / "stopped", model=FakeModel())
    assert resumed.finished
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    journals = [(tmp_path / run / "steps.jsonl").read_bytes() for run in ("whole", "stopped")]
    assert journals[0] == journals[1]


def test_another_model_s_run_does_not_resume(pictures: Path, tmp_path: Path) -> None:
    train(pictures, tmp_path / "run", stop_after=7)
    with pytest.raises(ValueError, match="the model's weights or noise schedule"):
        resume_training(tmp_path / "run", model=FakeModel(seed=1))


# ---------------------------------------------------------------- outside of ComfyUI


def test_a_run_of_comfyui_says_where_it_resumes(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(pictures, tmp_path / "run", stop_after=7)
    before = (tmp_path / "run" / "steps.jsonl").read_bytes()
    assert main(["train", "--resume", str(tmp_path / "run")]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{NAME} ran in ComfyUI" in said
    assert "queue the same workflow again" in said
    assert (tmp_path / "run" / "steps.jsonl").read_bytes() == before


@pytest.mark.parametrize("asked", [open_model, identify, load_quantized, kept])
def test_no_file_is_looked_for_by_the_name_of_a_model_in_comfyui(
    asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"^model: a ran in ComfyUI, and only there can its run be resumed: queue"):
        asked("ComfyUI: a")
    assert not list(tmp_path.iterdir())


def test_runs_of_comfyui_are_listed_with_the_others(pictures: Path, tmp_path: Path) -> None:
    """As its node leaves them: a folder with pictures, and the run within."""
    train(pictures, tmp_path / "home" / "it-0123456789" / "run", stop_after=7)
    train(pictures, tmp_path / "home" / "done", sample_every=0)
    runs = {run.name: (run.model, run.state, run.step, run.message) for run in list_runs(tmp_path / "home")}
    assert runs == {
        "it-0123456789": (f"ComfyUI: {NAME}", "unfinished", 7, ""),
        "done": (f"ComfyUI: {NAME}", "finished", STEPS, ""),
    }
    assert find_run(tmp_path / "home", "done").embedding


# ---------------------------------------------------------------- the nodes


def node(pack: Any, name: str) -> Any:
    return pack.NODE_CLASS_MAPPINGS[name]()


def train_in_node(pack: Any, **changes: Any) -> Any:
    colour = torch.tensor(COLOUR) / 255
    given = {
        "model": FakeModel(),
        "images": colour.expand(3, SIDE, SIDE, 3).clone(),
        "token": "<it>",
        "initializer": "dog",
        "preset": "default",
        "steps": STEPS,
        "preview_prompt": "a photo of a {}",
        "resume": True,
        **changes,
    }
    with torch.inference_mode():  # as ComfyUI runs nodes
        return node(pack, "ZoodipTrainToken").train(**{name: [value] for name, value in given.items()})


def test_the_nodes_train_draw_and_save_with_it(pack: Any, host: FakeHost) -> None:
    out = train_in_node(pack)
    embedding, previews, _, lora, _ = out["result"]
    assert lora is None
    assert previews.shape == (4, SIDE, SIDE, 3)
    assert host.calls == ["return_memory"]  # its memory is the host's to manage
    drawn = node(pack, "ZoodipGeneratePreview").draw(FakeModel(), "a {}\nin snow", 0, 2, 0.0, 0, embedding)
    assert drawn["result"][0].shape == (2, SIDE, SIDE, 3)
    assert torch.equal(drawn["result"][0][0], previews[0])
    node(pack, "ZoodipSaveEmbedding").save(embedding, "", False, "a {}")
    (saved,) = (host.root / "embeddings").glob("*.safetensors")
    assert torch.equal(next(iter(load_file(saved).values())), embedding.vectors)
    loaded, report = node(pack, "ZoodipLoadEmbedding").load(saved.name)
    assert torch.equal(loaded.vectors, embedding.vectors)
    assert NAME in report


def test_a_cancelled_node_resumes_where_it_was(pack: Any, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoodip_pack.nodes.live._BETWEEN", 0.0)  # every step is told
    whole = train_in_node(pack)["result"][0].vectors
    (first,) = (host.root / "output" / "zoodip").iterdir()
    first.rename(host.root / "whole")
    host.shown.clear()
    host.asked = lambda: any((done, of) == (9, STEPS) for done, of, _ in host.shown)
    with pytest.raises(Interrupted):
        train_in_node(pack)
    host.asked = lambda: False
    (folder,) = (host.root / "output" / "zoodip").iterdir()
    config = json.loads((folder / "run" / "config.json").read_text())
    assert (config["model"], config["weights"]) == (f"ComfyUI: {NAME}", "none")
    host.shown.clear()
    assert torch.equal(train_in_node(pack)["result"][0].vectors, whole)
    assert host.shown[0][:2] == (10, STEPS)
    assert len(list((host.root / "output" / "zoodip").iterdir())) == 1


def test_all_cards_of_a_model_in_comfyui_are_one(pack: Any, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoodip_pack.zoodip_core.jobs.cards.cards_beside", lambda device: [1])
    train_in_node(pack, cards="all", steps=3)
    warnings = [each for _, data in host.sent for each in data.get("warnings", [])]
    assert any("this model is in ComfyUI alone" in each for each in warnings)


def test_what_to_expect_of_a_model_reaches_the_user(pack: Any) -> None:
    """The presets are a guess where nobody has tried them."""
    kinds = importlib.import_module("zoodip_pack.nodes.any_model.kinds")

    class Sampling: ...

    class Config: ...

    class Patcher:
        model = type("Inner", (), {"model_config": Config()})()

        def get_model_object(self, _name: str) -> Any:
            return Sampling()

    for family in ("sd1", "sd2", "sdxl", "tiny"):
        assert kinds.notes_on(Patcher(), "some model", family) == []
    for family in ("flux", "sd3", "chroma", "lumina2", "zimage", "qwenimage"):
        (line,) = kinds.notes_on(Patcher(), "some model", family)
        assert family in line
        assert "untried on real weights" in line
    told = kinds.notes_on(Patcher(), "flux1-schnell", "flux")
    assert [("untried" in line, "distilled" in line) for line in told] == [(True, False), (False, True)]


# ---------------------------------------------------------------- without diffusers and optimum-quanto

BARE = """
import importlib, importlib.util, pathlib, pkgutil, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "optimum"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.dont_write_bytecode = True
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
spec = importlib.util.spec_from_file_location("zoodip_pack", root / "__init__.py")
pack = sys.modules["zoodip_pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
for room in ("base", "search", "data", "tiny", "model", "train", "evaluate", "jobs"):
    folder = root / "zoodip_core" / room
    for each in pkgutil.iter_modules([str(folder)]):
        if each.name != "triton_kernels":  # which needs triton, where there is a card
            importlib.import_module(f"zoodip_pack.zoodip_core.{room}.{each.name}")
from tests import test_token_model as tests
from tests.fake_host import FakeHost
host = FakeHost(pathlib.Path("host"))
with importlib.import_module("zoodip_pack.nodes.host").hosted_by(host):
    try:
        pack.NODE_CLASS_MAPPINGS["ZoodipLoadQuantizedSD"]().load("tiny (embedded)", "int8", "auto")
    except ModuleNotFoundError as error:
        print(error)
    tests.test_the_nodes_train_draw_and_save_with_it(pack, host)
print("finished", sorted({each.partition(".")[0] for each in sys.modules} & {"diffusers", "optimum", "transformers"}))
"""


@pytest.mark.slow
def test_everything_works_without_diffusers_and_optimum(tmp_path: Path) -> None:
    """What Load Quantized SD alone needs: there it is asked for, by name, and nothing else imports it."""
    ran = subprocess.run(
        [sys.executable, "-c", BARE, str(ROOT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    assert said[0].startswith("ZOODiP needs diffusers, optimum.quanto, which ComfyUI's Python does not have.")
    assert "pip install -r" in said[1]
    assert said[2] == "Or use Model from ComfyUI, which needs neither diffusers nor optimum-quanto."
    assert said[-1] == "finished []"
