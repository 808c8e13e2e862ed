"""ZO Train Token as ComfyUI runs it, on the embedded model: a run, its events, stops, refusals, and what it leaves."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.fake_host import FakeHost, Interrupted

PIP = Path(__file__).resolve().parent.parent / "zoodip_core" / "tiny" / "concepts" / "pip"
STEPS, FEW = 6, 4
NODE = "7"


@pytest.fixture(scope="module")
def core(pack: Any) -> Any:
    """The pack's own copy of the core."""
    return importlib.import_module("zoodip_pack.zoodip_core")


@pytest.fixture(scope="module")
def model(core: Any) -> Any:
    """The embedded model as Load Quantized SD gives it; nodes unload it after each use."""
    return importlib.import_module("zoodip_pack.zoodip_core.model.load").load_quantized("tiny", device="cpu")


@pytest.fixture(autouse=True)
def _every_step_is_told(pack: Any) -> Iterator[None]:
    """Else only a few are, by the clock."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("zoodip_pack.nodes.live._BETWEEN", 0.0)
        yield


def pictures() -> list[torch.Tensor]:
    """The reference pictures as IMAGEs, a list of single ones."""
    files = sorted((PIP / "images").iterdir())
    return [torch.from_numpy(np.asarray(Image.open(f).convert("RGB"), dtype=np.float32))[None] / 255 for f in files]


def captions() -> list[str]:
    return list(json.loads((PIP / "images.json").read_text()).values())


def train(pack: Any, model: Any, **changes: Any) -> Any:
    """Run the node as ComfyUI does: every input in a list, in inference mode."""
    given = {
        "model": model,
        "images": pictures(),
        "token": "<pip>",
        "initializer": "monster",
        "initializer_mode": "single",
        "num_vectors": 1,
        "template": "object",
        "resolution": 0,
        "steps": STEPS,
        "lr": 0.02,
        "lr_schedule": "constant",
        "n": 2,
        "mu": 0.001,
        "estimator": "rge",
        "optimizer": "zoadam",
        "seed": 0,
        "preview_prompt": "a {} in the sunset",
        "preview_every": 0,
        "save_every": 2,
        "resume": True,
        "preset": "paper",
        "captions": captions(),
        "subspace_gradient": {"subspace_gradient": True, "tau": 3, "nu": 1e-3},
        "timestep_sampler": {"timesteps": "puts", "t_lower": 500, "t_upper": 900},
        "unique_id": NODE,
        **changes,
    }
    inputs = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    with torch.inference_mode():
        return pack.NODE_CLASS_MAPPINGS["ZoodipTrainToken"]().train(**inputs)


def stopped(pack: Any, model: Any, host: FakeHost, at: int = 1, **changes: Any) -> None:
    """Train, and ask for a stop once a step was told."""
    host.sent.clear()
    host.asked = lambda: told(host, "step")[-1:] == [at]
    with pytest.raises(Interrupted):
        train(pack, model, **changes)
    host.asked = lambda: False


def loaded(model: Any) -> set[str]:
    """The parts of a model that are in memory."""
    return {"unet", "text_encoders"} & set(vars(model))


def told(host: FakeHost, key: str) -> list[Any]:
    """What events said of something, in order."""
    return [data[key] for _, data in host.sent if key in data]


def states(host: FakeHost) -> list[str]:
    return [state for state, _ in itertools.groupby(told(host, "state"))]


def runs(host: FakeHost) -> list[Path]:
    """The folders of the host's runs."""
    return sorted((host.root / "output").glob("zoodip/*"))


def around(losses: Any) -> list[float]:
    """The mean of each loss and a twentieth of them to either side."""
    half = max(1, len(losses) // 20)
    return [float(np.mean(losses[max(0, i - half) : i + half + 1])) for i in range(len(losses))]


@dataclass
class Ran:
    """A finished run of the node."""

    host: FakeHost
    out: Any
    loaded_afterwards: set[str]

    @property
    def embedding(self) -> Any:
        return self.out["result"][0]

    @property
    def folder(self) -> Path:
        (folder,) = runs(self.host)
        return folder


@pytest.fixture
def one_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    """For time's sake, where previews are not looked at: one, of few denoising steps."""
    drawing = importlib.import_module("zoodip_pack.zoodip_core.model.stable_diffusion")
    generate = drawing.generate
    monkeypatch.setattr("zoodip_pack.zoodip_core.train.samples._PICTURES", 1)
    monkeypatch.setattr(drawing, "generate", lambda *on, **how: generate(*on, **{**how, "num_inference_steps": FEW}))


@pytest.fixture(scope="module")
def ran(pack: Any, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    place = FakeHost(tmp_path_factory.mktemp("ran"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("zoodip_pack.nodes.live._BETWEEN", 0.0)
        real = importlib.import_module("zoodip_pack.zoodip_core.data.sheets").loss_curve
        patched.setattr("zoodip_pack.zoodip_core.train.loop.loss_curve", real)
        with importlib.import_module("zoodip_pack.nodes.host").hosted_by(place):
            return Ran(place, train(pack, model, preview_every=3), loaded(model))


# ---------------------------------------------------------------- a run


def test_the_outputs_are_an_embedding_and_images(ran: Ran) -> None:
    embedding, previews, chart, lora, grid = ran.out["result"]
    assert lora is None  # no weights were asked for: see test_node_loras.py
    assert embedding.token == "<pip>"
    assert [(tensor.shape, tensor.dtype) for tensor in embedding.tensors] == [((1, 128), torch.float32)]
    assert previews.shape == (4, 48, 48, 3)
    assert chart.shape[0] == 1
    assert chart.shape[3] == 3
    assert chart.shape[1] >= 300
    assert grid.shape == (1, 144 + 2 * 6, 150 + 4 * 150 + 6, 3)  # one prompt: the previews in a row
    for image in (previews, chart, grid):
        assert image.dtype == torch.float32
        assert image.min() >= 0
        assert 0.5 < image.max() <= 1
        assert image.std() > 0.02  # something is drawn
    assert len({preview.numpy().tobytes() for preview in previews}) == 4


def test_the_token_is_the_one_that_the_core_learns(ran: Ran, core: Any, tmp_path: Path) -> None:
    """Bit for bit: from the files themselves, outside of inference mode, without a host."""
    config = core.TrainConfig(
        images=(str(PIP / "images"),),
        captions=str(PIP / "images.json"),
        token="<pip>",
        initializer="monster",
        dtype="float32",
        device="cpu",
        steps=STEPS,
        lr=0.02,
        n=2,
        mu=0.001,
        tau=3,
        nu=1e-3,
    )
    expected = core.train_token(config, tmp_path / "run").embedding
    assert torch.equal(ran.embedding.vectors, expected.vectors)
    assert ran.embedding.metadata["base_model_hash"] == expected.metadata["base_model_hash"]
    assert ran.embedding.metadata["steps"] == "6"


@pytest.mark.slow
def test_the_previews_are_what_the_token_draws(ran: Ran, pack: Any, model: Any, core: Any) -> None:
    generate = importlib.import_module("zoodip_pack.zoodip_core.model.generation").generate
    drawn = generate(model, ["a <pip> in the sunset"] * 4, [0, 1, 2, 3], embedding=ran.embedding)
    model.unload()
    expected = np.stack([np.asarray(picture) for picture in drawn])
    previews = (ran.out["result"][1].numpy() * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(previews, expected)
    shown = [ran.host.root / "temp" / each["subfolder"] / each["filename"] for each in ran.out["ui"]["images"]]
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(file)) for file in shown]), expected)


def test_a_runs_folder_holds_all_it_needs_to_be_resumed(ran: Ran, core: Any) -> None:
    assert re.fullmatch(r"pip-[0-9a-f]{10}", ran.folder.name)
    assert sorted(path.name for path in ran.folder.iterdir()) == ["captions.json", "images", "run"]
    names = [f"{i:04}.png" for i in range(1, 7)]
    assert sorted(path.name for path in (ran.folder / "images").iterdir()) == names
    for name, image in zip(names, pictures(), strict=True):
        written = np.asarray(Image.open(ran.folder / "images" / name))
        np.testing.assert_array_equal(written, (image[0].numpy() * 255).round())
    listed = json.loads((ran.folder / "captions.json").read_text())
    assert listed == {name: [text] for name, text in zip(names, captions(), strict=True)}
    assert sorted(path.relative_to(ran.folder / "run").as_posix() for path in (ran.folder / "run").rglob("*.*")) == [
        ".lock",
        "config.json",
        "loss.png",
        "pip.safetensors",
        "samples/step-00000003.png",
        "samples/step-00000006.png",
        *(f"snapshots/step-{step:08}.safetensors" for step in (0, 2, 4, 6)),
        "state.safetensors",
        "steps.jsonl",
    ]
    saved = core.load_embedding(ran.folder / "run" / "pip.safetensors")
    assert torch.equal(saved.vectors, ran.embedding.vectors)


def test_events_tell_a_run_from_beginning_to_end(ran: Ran) -> None:
    assert {event for event, _ in ran.host.sent} == {"zoodip.step"}
    assert set(told(ran.host, "node")) == {NODE}
    assert states(ran.host) == ["preparing", "training", "finished"]
    assert [step for step, _ in itertools.groupby(told(ran.host, "step"))] == list(range(STEPS + 1))
    assert set(told(ran.host, "steps")) == {STEPS}
    losses = [json.loads(line)["losses"][0] for line in (ran.folder / "run" / "steps.jsonl").read_text().splitlines()]
    assert [loss for loss, _ in itertools.groupby(told(ran.host, "loss"))] == losses
    curves = told(ran.host, "curve")
    assert [len(curve["raw"]) for curve in curves] == sorted(len(curve["raw"]) for curve in curves)
    assert all(len(curve["raw"]) == len(curve["smoothed"]) < 240 for curve in curves)
    assert curves[-1]["stride"] == 1
    np.testing.assert_allclose(curves[-1]["raw"], losses, atol=1e-6)
    np.testing.assert_allclose(curves[-1]["smoothed"], around(losses), atol=1e-6)
    assert json.loads(json.dumps([data for _, data in ran.host.sent], allow_nan=False))
    assert ran.out["ui"]["zoodip"] == [ran.host.sent[-1][1]]
    assert ran.folder.name in told(ran.host, "text")[-1]


@pytest.mark.slow
def test_listed_previews_are_shown_over_time(pack: Any, model: Any, host: FakeHost) -> None:
    """The same picture whether the run was stopped or not, and as it lies in the run's folder."""
    listed = {"preview_prompt": "a {}; my {} in the snow", "preview_every": 3, "preview_steps": 2}
    listed |= {"preview_negative_prompt": "night", "preview_guidance": 2.0}
    _, previews, _, _, grid = train(pack, model, **listed, resume=False)["result"]
    assert previews.shape[0] == 2
    stopped(pack, model, host, 4, **listed, seed=1)
    again = train(pack, model, **{**listed, "seed": 1})["result"]
    whole, resumed = (np.asarray(Image.open(run / "run" / "samples" / "grid.png")) for run in sorted_by_seed(host))
    np.testing.assert_array_equal((grid[0].numpy() * 255).round(), whole)
    np.testing.assert_array_equal((again[4][0].numpy() * 255).round(), resumed)
    assert resumed.shape == whole.shape
    assert whole.shape[1] == 150 + 2 * 150 + 6
    assert len(list((sorted_by_seed(host)[1] / "run" / "samples").glob("step-*.png"))) == 3
    enlarged = (previews.numpy() * 255).round().repeat(3, axis=1).repeat(3, axis=2)
    for column, picture in enumerate(enlarged):  # the last row is the finished token's
        left = 150 + column * 150
        np.testing.assert_array_equal(whole[-150:-6, left : left + 144], picture)


def sorted_by_seed(host: FakeHost) -> list[Path]:
    return sorted(runs(host), key=lambda run: int(json.loads((run / "run" / "config.json").read_text())["seed"]))


def test_photographs_with_the_embedded_model_are_told_on_the_node(
    pack: Any, model: Any, host: FakeHost, one_preview: None
) -> None:
    """Before the first step, and not of a bundled subject."""
    photographs = sorted((Path(__file__).parent / "photographs").glob("*.jpg"))
    images = [torch.from_numpy(np.asarray(Image.open(path), dtype=np.float32) / 255)[None] for path in photographs]
    train(pack, model, steps=1, images=images, captions=["a {}"])
    warned = [bool([line for line in lines if "look like photographs" in line]) for lines in told(host, "warnings")]
    assert warned[told(host, "state").index("training")]
    host.sent.clear()
    train(pack, model, steps=1)
    assert not any("photographs" in line for lines in told(host, "warnings") for line in lines)


def test_the_bar_and_live_previews_show_on_the_node(ran: Ran) -> None:
    training = [each for each in ran.host.shown if each[1] == STEPS]
    assert [done for done, _, picture in training if picture is None] == list(range(1, STEPS + 1))
    live = [(done, picture) for done, _, picture in training if picture is not None]
    assert [done for done, _ in live] == [3, 6]
    for _, picture in live:
        assert picture.size == (192, 192)  # four of 48 pixels, two by two, enlarged
        corners = [picture.crop((x, y, x + 96, y + 96)).tobytes() for x in (0, 96) for y in (0, 96)]
        assert len(set(corners)) == 4
    assert ran.host.shown[-1][:2] == (25, 25)  # the final previews' own bar


def test_the_device_is_had_alone_and_left(ran: Ran) -> None:
    assert ran.host.calls == ["make_room", "return_memory"]
    assert not ran.loaded_afterwards


def test_learning_needs_no_captions_and_nothing_wired(pack: Any, model: Any, host: FakeHost) -> None:
    stopped(pack, model, host, captions=[], subspace_gradient=None, timestep_sampler=None)
    (folder,) = runs(host)
    config = json.loads((folder / "run" / "config.json").read_text())
    assert (config["captions"], config["subspace_gradient"], config["timesteps"]) == (None, False, "uniform")
    assert not (folder / "captions.json").exists()


# ---------------------------------------------------------------- all cards


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card beside the node's, in whose place its process takes the CPU."""
    monkeypatch.setattr("zoodip_pack.zoodip_core.jobs.cards.cards_beside", lambda device: [1])


def followers() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "steps.jsonl").read_text().splitlines()]


def test_all_cards_of_one_are_said_to_be_one(pack: Any, model: Any, host: FakeHost) -> None:
    stopped(pack, model, host, cards="all")
    assert told(host, "warnings")[-1] == ["cards = all: there is no graphics card beside cpu; cpu trains alone"]


@pytest.mark.slow
@pytest.mark.usefixtures("two_cards", "one_preview")
def test_all_cards_share_the_steps_of_a_node(pack: Any, model: Any, host: FakeHost) -> None:
    """Three candidates are two on the node's card and one on the other. A run of one card is gone on with as well."""
    stopped(pack, model, host, at=2, cards="all")
    (folder,) = runs(host)
    assert not followers()
    assert [line["batch"] for line in journal(folder)] == [2, 2]
    stopped(pack, model, host, at=4)
    out = train(pack, model, cards="all")
    assert not followers()
    assert runs(host) == [folder]
    assert states(host)[-1] == "finished"
    assert [line["batch"] for line in journal(folder)] == [2] * STEPS
    assert out["result"][0].metadata["steps"] == str(STEPS)
    assert sorted(path.name for path in folder.iterdir()) == ["captions.json", "images", "run"]


@pytest.mark.slow
@pytest.mark.usefixtures("two_cards")
def test_a_stop_before_the_other_card_is_ready_leaves_nothing(pack: Any, model: Any, host: FakeHost) -> None:
    host.asked = lambda: bool(followers())
    with pytest.raises(Interrupted):
        train(pack, model, cards="all")
    assert not followers()
    assert not runs(host)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cards")
def test_a_process_of_another_card_that_is_killed_is_an_error_that_keeps_the_run(
    pack: Any, model: Any, host: FakeHost
) -> None:
    def asked() -> bool:
        if told(host, "step")[-1:] == [3]:
            for each in followers():
                each.kill()
        return False

    host.asked = asked
    errors = importlib.import_module("zoodip_pack.zoodip_core.base.errors")
    with pytest.raises(errors.RanksError, match="ended without a word"):
        train(pack, model, cards="all")
    assert not followers()
    assert len(journal(runs(host)[0])) >= 3


# ---------------------------------------------------------------- stops


def test_a_stop_saves_and_running_again_ends_as_if_never_stopped(
    pack: Any, model: Any, host: FakeHost, ran: Ran
) -> None:
    stopped(pack, model, host, at=3)
    (folder,) = runs(host)
    assert states(host) == ["preparing", "training", "stopped"]
    assert "step 3" in told(host, "text")[-1]
    assert int(load_file(folder / "run" / "state.safetensors")["step"]) == 3
    assert host.calls == ["make_room", "return_memory"]
    assert host.shown[-1][0] == 2  # ComfyUI's bar would raise once a stop is asked for
    assert not loaded(model)
    host.sent.clear()
    out = train(pack, model)
    assert runs(host) == [folder]
    assert folder.name == ran.folder.name
    assert states(host) == ["preparing", "training", "finished"]
    assert told(host, "step")[0] == 3
    assert told(host, "curve")[-1] == told(ran.host, "curve")[-1]
    assert torch.equal(out["result"][0].vectors, ran.embedding.vectors)
    assert torch.equal(out["result"][1], ran.out["result"][1])
    assert (folder / "run" / "steps.jsonl").read_bytes() == (ran.folder / "run" / "steps.jsonl").read_bytes()


@pytest.mark.slow
def test_a_stop_between_two_candidates_throws_only_their_step_away(
    pack: Any, model: Any, core: Any, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device with room for one candidate at a time."""
    memory = importlib.import_module("zoodip_pack.zoodip_core.model.memory")
    use = memory.predict_memory(model.blueprint, "int8", torch.float32, model.device, 48, 1)
    monkeypatch.setattr("zoodip_pack.zoodip_core.train.prepared.free_memory", lambda device: int(1.05 * use.total) + 1)
    passes: list[int] = []
    predict = type(model).predict

    def counted(self: Any, *arguments: Any) -> Any:
        passes.extend([1] if self is model else [])  # memory is predicted by a dry run of another
        return predict(self, *arguments)

    monkeypatch.setattr(type(model), "predict", counted)
    host.asked = lambda: len(passes) >= 5
    with pytest.raises(Interrupted):
        train(pack, model)
    assert len(passes) == 5
    (folder,) = runs(host)
    assert int(load_file(folder / "run" / "state.safetensors")["step"]) == 1


def test_a_stop_before_the_first_step_leaves_nothing(pack: Any, model: Any, host: FakeHost) -> None:
    host.asked = lambda: any("encoding" in text for text in told(host, "text"))
    with pytest.raises(Interrupted):
        train(pack, model)
    assert states(host) == ["preparing", "stopped"]
    assert "before the first step" in told(host, "text")[-1]
    assert runs(host) == []
    assert host.calls == ["make_room", "return_memory"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_preview")
def test_a_stop_while_the_final_previews_are_drawn_keeps_the_token(
    pack: Any, model: Any, host: FakeHost, ran: Ran
) -> None:
    host.asked = lambda: any(of == FEW and done == 2 for done, of, _ in host.shown)
    with pytest.raises(Interrupted):
        train(pack, model)
    assert host.shown[-1][:2] == (2, FEW)
    assert states(host)[-1] == "stopped"
    (folder,) = runs(host)
    token = (folder / "run" / "pip.safetensors").read_bytes()
    assert "before the first step" not in told(host, "text")[-1]
    host.asked = lambda: False
    host.shown.clear()
    assert torch.equal(train(pack, model)["result"][0].vectors, ran.embedding.vectors)
    assert not [each for each in host.shown if each[1] == STEPS]  # not a step more was taken
    assert (folder / "run" / "pip.safetensors").read_bytes() == token


@pytest.mark.parametrize("kind", ["no room", "not finite"])
def test_a_token_does_not_hang_on_its_previews(
    pack: Any, model: Any, host: FakeHost, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """They are grey where nothing can be drawn, and a line says why."""
    own_errors, generation = (
        importlib.import_module(f"zoodip_pack.zoodip_core.{name}") for name in ("base.errors", "model.generation")
    )
    errors = {"no room": torch.OutOfMemoryError("CUDA out of memory"), "not finite": own_errors.ModelError("NaN")}

    def fail(*_: Any) -> None:
        raise errors[kind]

    monkeypatch.setattr(generation, "_decode", fail)
    embedding, previews = train(pack, model)["result"][:2]
    assert len(embedding.vectors) == 1
    assert previews.shape[1:] == (48, 48, 3)
    assert previews.std() == 0
    assert f"no previews of the finished token: {errors[kind]}" in told(host, "warnings")[-1]
    assert states(host)[-1] == "finished"


def test_the_hosts_own_interrupt_passes_through_and_the_state_is_saved(pack: Any, model: Any, host: FakeHost) -> None:
    """ComfyUI raises it out of the progress bar as well, wherever that is updated."""

    def update(done: int, total: int, picture: Any = None) -> None:
        if done == 2:
            raise Interrupted

    host.update = update  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        train(pack, model)
    (folder,) = runs(host)
    assert int(load_file(folder / "run" / "state.safetensors")["step"]) == 2
    assert host.calls == ["make_room", "return_memory"]
    assert not loaded(model)


def test_without_resume_a_run_starts_anew_beside_the_other(pack: Any, model: Any, host: FakeHost) -> None:
    stopped(pack, model, host, at=3)
    (first,) = runs(host)
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    stopped(pack, model, host, at=2, resume=False)
    assert [step for step, _ in itertools.groupby(told(host, "step"))] == [0, 1, 2]
    assert runs(host) == [first, first.with_name(f"{first.name}-2")]
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("one_preview")
@pytest.mark.slow
def test_of_several_runs_the_furthest_goes_on(pack: Any, model: Any, host: FakeHost) -> None:
    stopped(pack, model, host, at=2)
    stopped(pack, model, host, at=4, resume=False)
    assert told(host, "text")[-1] == "stopped at step 4; turn resume on and queue again to resume"
    host.sent.clear()
    train(pack, model)
    assert told(host, "step")[0] == 4
    assert len(runs(host)) == 2


@pytest.mark.usefixtures("one_preview")
def test_a_damaged_run_is_passed_over_and_kept(pack: Any, model: Any, host: FakeHost) -> None:
    stopped(pack, model, host, at=3)
    (first,) = runs(host)
    (first / "run" / "config.json").write_bytes(b"{")
    train(pack, model)
    assert runs(host) == [first, first.with_name(f"{first.name}-2")]
    assert (first / "run" / "config.json").read_bytes() == b"{"


@pytest.mark.slow
@pytest.mark.usefixtures("one_preview")
def test_a_run_goes_on_without_its_saved_state(pack: Any, model: Any, host: FakeHost, ran: Ran) -> None:
    stopped(pack, model, host, at=3)
    (first,) = runs(host)
    (first / "run" / "state.safetensors").write_bytes(b"{")
    host.sent.clear()
    train(pack, model)
    assert runs(host) == [first]
    assert told(host, "step")[0] == 3
    for name in ("pip.safetensors", "state.safetensors"):
        assert (first / "run" / name).read_bytes() == (ran.folder / "run" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("one_preview")
def test_an_empty_run_folder_is_in_nobodys_way(pack: Any, model: Any, host: FakeHost) -> None:
    """A process killed while it made the folder."""
    stopped(pack, model, host, at=2)
    (first,) = runs(host)
    shutil.rmtree(first / "run")
    (first / "run").mkdir()
    assert train(pack, model)["ui"]["zoodip"][0]["state"] == "finished"


def test_what_a_user_puts_into_a_runs_folder_is_never_removed(pack: Any, model: Any, host: FakeHost) -> None:
    stopped(pack, model, host, at=2)
    (first,) = runs(host)
    (first / "run").rename(first / "kept by me")
    host.asked = lambda: told(host, "state")[-1:] == ["preparing"]
    with pytest.raises(Interrupted):
        train(pack, model)
    assert (first / "kept by me" / "state.safetensors").is_file()
    assert runs(host) == [first]


@pytest.mark.slow
@pytest.mark.usefixtures("one_preview")
def test_a_run_goes_on_after_the_output_folder_has_moved(
    pack: Any, model: Any, host: FakeHost, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(pack, model, host, at=3)
    (host.root / "output").rename(host.root / "moved")
    monkeypatch.setattr(host, "output_folder", lambda: host.root / "moved")
    out = train(pack, model)
    assert out["result"][0].vectors.equal(ran.embedding.vectors)
    assert told(host, "step").count(3) >= 1


@pytest.mark.slow
@pytest.mark.usefixtures("one_preview")
def test_what_only_shows_the_run_is_not_in_the_file(pack: Any, model: Any, host: FakeHost) -> None:
    """Else the same token would be saved a second time, under another name."""
    one = train(pack, model)["result"][0]
    other = train(pack, model, preview_prompt="{} again", save_every=3)["result"][0]
    assert one.metadata == other.metadata


def test_events_name_the_workflow(pack: Any, model: Any, host: FakeHost) -> None:
    stopped(pack, model, host, extra={"workflow": {"id": "abc"}})
    assert set(told(host, "workflow")) == {"abc"}
    stopped(pack, model, host, at=2, extra=None)
    assert set(told(host, "workflow")) == {None}


@pytest.mark.usefixtures("one_preview")
def test_more_steps_go_on_in_the_same_folder_and_fewer_do_not(pack: Any, model: Any, host: FakeHost, ran: Ran) -> None:
    train(pack, model, steps=4)
    (folder,) = runs(host)
    host.sent.clear()
    out = train(pack, model, steps=STEPS)
    assert runs(host) == [folder]
    assert told(host, "step")[0] == 4
    assert torch.equal(out["result"][0].vectors, ran.embedding.vectors)
    stopped(pack, model, host, steps=2)
    assert len(runs(host)) == 2
    assert int(load_file(folder / "run" / "state.safetensors")["step"]) == STEPS


@pytest.mark.slow
def test_what_decides_a_run_has_a_folder_of_its_own(pack: Any, model: Any, host: FakeHost) -> None:
    other = [image.clone() for image in pictures()]
    other[2][0, 0, 0, 0] = 1 - other[2][0, 0, 0, 0]
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"images": other},
        {"captions": [*captions()[:5], "another {}"]},
    ]
    for count, change in enumerate(changes, 1):
        stopped(pack, model, host, **change)
        assert len(runs(host)) == count, change
    folders = runs(host)
    free: list[dict[str, Any]] = [{"save_every": 9, "unique_id": "8"}, {"preview_every": 9, "preview_prompt": "my {}"}]
    for change in free:
        stopped(pack, model, host, **change)
        assert runs(host) == folders, change
        assert told(host, "step")[0] == 1, change


# ---------------------------------------------------------------- refusals


def test_a_failing_run_leaves_no_folder(pack: Any, model: Any, host: FakeHost) -> None:
    left: list[set[str]] = []
    host.make_room = lambda: left.append(loaded(model))  # type: ignore[method-assign]
    host.return_memory = lambda: left.append(loaded(model))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="initializer 'purple elephants' is"):
        train(pack, model, initializer="purple elephants")
    assert runs(host) == []
    assert states(host) == ["preparing", "failed"]
    assert "purple elephants" in told(host, "text")[-1]
    assert left == [set(), set()]


@pytest.mark.parametrize(
    ("images", "why"),
    [
        ([], "empty"),
        ([torch.zeros(0, 48, 48, 3)], "empty"),
        ([torch.zeros(48, 48, 3)], r"\[48, 48, 3\]"),
        ([torch.zeros(2, 48, 48)], r"\[2, 48, 48\]"),
        ([torch.zeros(1, 48, 48, 1)], r"\[1, 48, 48, 1\]"),
        ([torch.zeros(1, 3, 48, 48)], r"\[1, 3, 48, 48\]"),
        ([torch.zeros(1, 48, 48, 3), torch.zeros(1, 0, 48, 3)], ""),
        ([torch.full((1, 48, 48, 3), float("nan"))], "NaN"),
        ([torch.full((1, 48, 48, 3), float("inf"))], "NaN or infinity"),
        ([None], "NoneType"),
        ([{"samples": torch.zeros(1, 4, 8, 8)}], "dict"),
        ([np.zeros((1, 48, 48, 3))], "ndarray"),
    ],
)
def test_images_that_are_none_are_refused_by_the_inputs_name(
    images: list[Any], why: str, pack: Any, model: Any, host: FakeHost
) -> None:
    with pytest.raises(ValueError, match=rf"^images: .*{why}"):
        train(pack, model, images=images, captions=[""])
    assert runs(host) == []
    assert host.calls == []  # nothing of the host's was put off the device for it


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["a {}", "the {}"], "2 texts for 6 images"),
        (["a {}"] * 7, "7 texts for 6 images"),
        (["a dog"], "text 1, 'a dog'"),
        ([*["a {}"] * 5, "a {}\na dog"], "text 6, 'a dog'"),
        (["a pip"], "no place for the token"),
    ],
)
def test_captions_that_do_not_fit_are_refused_by_the_inputs_name(
    texts: list[str], why: str, pack: Any, model: Any, host: FakeHost
) -> None:
    with pytest.raises(ValueError, match=rf"^captions: .*{why}"):
        train(pack, model, captions=texts)
    assert runs(host) == []
    assert host.calls == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"resolution": 8}, "resolution"),
        ({"token": "a b"}, "token"),
        ({"preview_prompt": "a dog"}, "^preview_prompt: 'a dog' has no place"),
        ({"token": "state"}, "token"),
        ({"timestep_sampler": {"timesteps": "puts", "t_lower": 900, "t_upper": 500}}, "t_lower|T_L"),
    ],
)
def test_settings_out_of_range_are_refused(
    change: dict[str, Any], named: str, pack: Any, model: Any, host: FakeHost
) -> None:
    with pytest.raises(ValueError, match=named):
        train(pack, model, **change)
    assert runs(host) == []
    assert host.calls == []
    assert states(host) == []  # else the chart would say for ever that it is being prepared


def test_pictures_of_any_sizes_and_batches_mix(pack: Any, model: Any, host: FakeHost) -> None:
    """Transparency lies on white; values beyond 0 and 1 are cut."""
    images = [
        torch.full((1, 64, 48, 3), 0.5),
        torch.full((2, 33, 40, 3), 2.0),
        torch.cat([torch.zeros(1, 50, 50, 3), torch.full((1, 50, 50, 1), 0.2)], dim=3),
        torch.full((1, 50, 70, 3), -1.0, dtype=torch.float16),
    ]
    stopped(pack, model, host, images=images, captions=["a {} here"])
    (folder,) = runs(host)
    written = [Image.open(path) for path in sorted((folder / "images").iterdir())]
    assert [picture.size for picture in written] == [(48, 64), (40, 33), (40, 33), (50, 50), (70, 50)]
    assert [picture.getpixel((0, 0)) for picture in written] == [
        (128, 128, 128),
        (255, 255, 255),
        (255, 255, 255),
        (204, 204, 204),
        (0, 0, 0),
    ]
    assert set(map(tuple, json.loads((folder / "captions.json").read_text()).values())) == {("a {} here",)}


def test_several_captions_of_a_picture_are_all_used(pack: Any, model: Any, host: FakeHost) -> None:
    texts = ["a {} here\n\nthe <pip>\n", *[""] * 5]
    stopped(pack, model, host, captions=texts)
    (folder,) = runs(host)
    assert json.loads((folder / "captions.json").read_text()) == {"0001.png": ["a {} here", "the <pip>"]}


def test_a_token_is_checked_before_a_run_as_comfyui_hands_it(pack: Any) -> None:
    """In a list."""
    check = pack.NODE_CLASS_MAPPINGS["ZoodipTrainToken"].VALIDATE_INPUTS
    for token in ("<my-cat>", "cat-1", "<a>"):
        assert check([token]) is True
    for bad in ("", " ", "a b", "../up", "<a/b>", "con", "<>", "{}"):
        why = check([bad])
        assert isinstance(why, str)
        assert why.startswith("token ")


@pytest.mark.parametrize("linked", [(None,), [None]], ids=["tuple", "list"])
def test_a_token_from_another_node_is_checked_later(linked: Any, pack: Any) -> None:
    """ComfyUI v0.3.64's ``get_input_data`` hands the tuple (execution.py:152)."""
    assert pack.NODE_CLASS_MAPPINGS["ZoodipTrainToken"].VALIDATE_INPUTS(linked) is True


# ---------------------------------------------------------------- the chart


@pytest.mark.slow
def test_a_curve_of_any_length_is_means_of_its_steps(pack: Any) -> None:
    live = importlib.import_module("zoodip_pack.nodes.live")
    losses = np.random.default_rng(0).uniform(0.01, 0.9, 2500)
    curve = live.Curve()
    assert curve.data() == {"stride": 1, "raw": [], "smoothed": []}
    for count, loss in enumerate(losses, 1):
        curve.add(float(loss))
        if count > 500 and count % 13:
            continue
        data = curve.data()
        stride, points = data["stride"], len(data["raw"])
        assert points == len(data["smoothed"]) < 240
        assert 0 <= count - stride * points < stride  # all steps but those of a point not yet full
        assert points >= min(count, 119)
        stood_for = losses[: stride * points]
        np.testing.assert_allclose(data["raw"], stood_for.reshape(points, stride).mean(axis=1), atol=1e-6)
        assert np.mean(data["raw"]) == pytest.approx(stood_for.mean(), abs=1e-6)
        np.testing.assert_allclose(data["smoothed"], around(data["raw"]), atol=1e-6)
    assert live.POINTS == 240


def test_a_page_is_told_no_more_often_than_it_can_show(pack: Any, host: FakeHost, monkeypatch: Any) -> None:
    """But of the last step always; warnings stay on the chart."""
    live = importlib.import_module("zoodip_pack.nodes.live")
    events = importlib.import_module("zoodip_pack.zoodip_core.base.events")
    monkeypatch.setattr(live, "_BETWEEN", 3600.0)
    tell = live.Live(host, NODE)
    tell(events.Message("a warning", warning=True))
    tell(events.Message("no warning"))
    tell(events.Started(host.root, 0, 500, ()))
    for step in range(1, 501):
        tell(events.Progress(step, 500, 0.25, 0.25, 10.0, 1.0, None))
    assert told(host, "step") == [0, 500]
    assert told(host, "warnings")[1:] == [["a warning"]] * 4
    assert host.sent[-1][1]["curve"] == {"stride": 4, "raw": [0.25] * 125, "smoothed": [0.25] * 125}
    assert [each[:2] for each in host.shown] == [(500, 500)]


# ---------------------------------------------------------------- memory


@pytest.mark.usefixtures("one_preview")
@pytest.mark.slow
def test_ten_trainings_hold_no_more_than_one(pack: Any, model: Any, host: FakeHost) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
        return len(tensors), sum(each.untyped_storage().nbytes() for each in tensors if each.device.type == "cpu")

    train(pack, model, steps=2, n=1, resolution=32)
    after_one = held()
    for seed in range(1, 10):
        train(pack, model, steps=2, n=1, resolution=32, seed=seed)
    assert held() == after_one
    assert len(runs(host)) == 10
