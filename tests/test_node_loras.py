"""Weights learned with a token in ComfyUI's nodes: trained, applied to a MODEL, saved, drawn with."""

from __future__ import annotations

import copy
import importlib
import json
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import zoodip_core.model.lora
from tests.fake_host import FakeHost
from tests.test_node_training import STEPS, runs, states, stopped, told, train
from tests.test_nodes import settings_of
from tests.test_token_model import train_in_node

LEARNED = {"lora_rank": 2, "lora_share": 0.5, "lora_mu": 0.5, "lora_lr": 0.5}
"""Inputs of a short training in two stages."""
FEW = {"num_inference_steps": 3}


def core(name: str) -> Any:
    return importlib.import_module(f"zoodip_pack.zoodip_core.{name}")


@pytest.fixture(scope="module")
def model(pack: Any) -> Any:
    """The embedded model by the pack's own core."""
    return core("model.load").load_quantized("tiny", device="cpu")


@pytest.fixture(autouse=True)
def _every_step_is_told(pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else only a few are, by the clock."""
    monkeypatch.setattr("zoodip_pack.nodes.live._BETWEEN", 0.0)


@pytest.fixture
def apply_node(pack: Any) -> Any:
    return pack.NODE_CLASS_MAPPINGS["ZoodipApplyLora"]()


@pytest.fixture
def save_node(pack: Any) -> Any:
    return pack.NODE_CLASS_MAPPINGS["ZoodipSaveLora"]()


SHAPES = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (320, 768),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v": (320, 768),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (1280, 768),
}


def learned(seed: int = 0, token: str = "<boo>", **metadata: str) -> Any:
    """A LoRA of random numbers for Stable Diffusion 1.x."""
    noise = torch.Generator().manual_seed(seed)
    layers = {
        name.replace(".", "_"): (
            torch.randn(shape[0], 4, generator=noise),
            torch.randn(4, shape[1], generator=noise),
        )
        for name, shape in SHAPES.items()
    }
    return core("model.lora").Lora(layers, {"token": token, "family": "sd1", **metadata})


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.layers.items(), other.layers.items(), strict=True)
    return all(
        a == b and torch.equal(up, up_) and torch.equal(down, down_) for (a, (up, down)), (b, (up_, down_)) in pairs
    )


# ---------------------------------------------------------------- a MODEL like ComfyUI's


class SD15:
    """ComfyUI's name of a kind of model."""


class SDXL:
    """Another's."""


class Model:
    """Like ``comfy.model_patcher.ModelPatcher``: a clone shares the weights, and has its own lists of patches."""

    def __init__(self, shapes: dict[str, tuple[int, int]], config: Any = None, blind: tuple[str, ...] = ()) -> None:
        self.shapes = shapes
        self.patches: dict[str, list[Any]] = {}
        self.model = SimpleNamespace(model_config=config or SD15())
        self._blind = blind

    def clone(self) -> Model:
        clone = copy.copy(self)
        clone.patches = {name: list(each) for name, each in self.patches.items()}
        return clone

    def get_model_object(self, name: str) -> torch.Tensor:
        return torch.empty(self.shapes[name], device="meta")

    def lay_on(self, tensors: dict[str, torch.Tensor], strength: float) -> None:
        """What ComfyUI does with a file's tensors; it passes over what it does not know, and says so in its log."""
        for name in self.shapes:
            stem = f"lora_unet_{name.replace('.', '_')}"
            if f"{stem}.lora_up.weight" in tensors and name not in self._blind:
                up, down, alpha = (
                    tensors[f"{stem}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha")
                )
                self.patches.setdefault(name, []).append(strength * float(alpha) / len(down) * (up @ down))


# ---------------------------------------------------------------- Apply LoRA


def test_every_layer_is_laid_on_a_copy_of_the_model(apply_node: Any, host: FakeHost) -> None:
    lora, given = learned(), Model(SHAPES)
    (patched,) = apply_node.apply(given, lora, 0.5)
    assert given.patches == {}
    assert patched.patches.keys() == SHAPES.keys()
    for name in SHAPES:
        up, down = lora.layers[name.replace(".", "_")]
        torch.testing.assert_close(patched.patches[name], [0.5 * (up @ down)])
    (twice,) = apply_node.apply(patched, learned(1), 1.0)
    assert [len(each) for each in twice.patches.values()] == [2, 2, 2]
    assert [len(each) for each in patched.patches.values()] == [1, 1, 1]


def test_a_strength_of_0_is_without(apply_node: Any, host: FakeHost) -> None:
    given = Model(SHAPES)
    assert apply_node.apply(given, learned(), 0.0) == (given,)
    assert given.patches == {}


@pytest.mark.parametrize(
    ("shapes", "kind", "why"),
    [
        ({name: (rows, 2048) for name, (rows, _) in SHAPES.items()}, SDXL(), r"\[320, 2048\]"),
        ({name: (rows, 1024) for name, (rows, _) in SHAPES.items()}, None, r"\[320, 1024\]"),
        (dict(list(SHAPES.items())[:2]), SDXL(), "mid_block_attentions_0.*missing"),
        ({}, SDXL(), "missing"),
    ],
    ids=["SDXL", "SD2", "fewer layers", "none"],
)
@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_a_lora_of_another_family_is_refused(
    shapes: Any, kind: Any, why: str, strength: float, apply_node: Any, host: FakeHost
) -> None:
    """ComfyUI itself would pass over it, or fail while it draws, with a line in its log."""
    given = Model(shapes, kind)
    called = "Stable Diffusion XL" if kind else "Stable Diffusion 1.x"
    with pytest.raises(
        ValueError, match=rf"^lora does not fit model: it is for Stable Diffusion 1.x, .* {called}, .*{why}"
    ):
        apply_node.apply(given, learned(), strength)
    assert given.patches == {}


def test_a_kind_of_model_without_a_family_here_is_called_as_comfyui_calls_it(apply_node: Any, host: FakeHost) -> None:
    class Flux:
        pass

    with pytest.raises(ValueError, match=r"it is for the embedded tiny model, the model is Flux, .*missing"):
        apply_node.apply(Model({}, Flux()), learned(family="tiny"), 1.0)


def test_layers_that_comfyui_passes_over_are_not_passed_over_in_silence(apply_node: Any, host: FakeHost) -> None:
    blind = list(SHAPES)[1]
    with pytest.raises(ValueError, match=rf"^lora: ComfyUI takes 2 of its 3 layers .* not {blind}"):
        apply_node.apply(Model(SHAPES, blind=(blind,)), learned(), 1.0)


def test_without_learned_weights_the_nodes_say_what_to_do(apply_node: Any, save_node: Any, host: FakeHost) -> None:
    for refused in (lambda: apply_node.apply(Model(SHAPES), None, 1.0), lambda: save_node.save(None, "", False)):
        with pytest.raises(ValueError, match=r"^lora: no weights were learned .* two-stage, or its lora_rank to 4"):
            refused()
    with pytest.raises(ValueError, match=r"^model: nothing comes in"):
        apply_node.apply(None, learned(), 1.0)


# ---------------------------------------------------------------- Save LoRA


def save(save_node: Any, lora: Any, filename: str = "", **inputs: Any) -> str:
    assert save_node.VALIDATE_INPUTS(filename) is True
    out = save_node.save(lora, filename, **{"overwrite": False, "unique_id": "1", **inputs})
    (file,) = out["result"]
    assert out["ui"]["text"] == [file]
    return str(file)


def files(host: FakeHost) -> list[str]:
    folder = host.root / "loras"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_saved_weights_are_a_file_that_others_read(save_node: Any, host: FakeHost) -> None:
    lora = learned()
    assert save(save_node, lora) == "boo-lora.safetensors"
    assert files(host) == ["boo-lora.safetensors"]
    assert same(zoodip_core.model.lora.load_lora(host.root / "loras" / "boo-lora.safetensors"), lora)
    names = load_file(host.root / "loras" / "boo-lora.safetensors")
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    assert {f"{stem}.lora_up.weight", f"{stem}.lora_down.weight", f"{stem}.alpha"} <= names.keys()


@pytest.mark.parametrize(
    ("filename", "file"),
    [("", "boo-lora"), ("mine.safetensors", "mine"), ("v1.5", "v1.5"), ("sub\\mine", "sub/mine"), ("<boo>", "boo")],
)
def test_a_file_is_named_as_asked(filename: str, file: str, save_node: Any, host: FakeHost) -> None:
    assert save(save_node, learned(), filename) == f"{file}.safetensors"
    assert files(host) == [f"{file}.safetensors"]


def test_other_weights_of_the_name_are_not_overwritten(save_node: Any, host: FakeHost) -> None:
    one, other = learned(), learned(1)
    assert [save(save_node, each) for each in (one, other)] == ["boo-lora.safetensors", "boo-lora-2.safetensors"]
    assert save(save_node, other) == "boo-lora-2.safetensors"  # it stands there already
    assert save(save_node, other, overwrite=True) == "boo-lora.safetensors"
    assert len(files(host)) == 2
    assert same(zoodip_core.model.lora.load_lora(host.root / "loras" / "boo-lora.safetensors"), other)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_weights_again_write_nothing(overwrite: bool, save_node: Any, host: FakeHost) -> None:
    save(save_node, learned())
    file = host.root / "loras" / "boo-lora.safetensors"
    os.utime(file, (1, 1))
    assert save(save_node, learned(), overwrite=overwrite) == file.name
    assert file.stat().st_mtime == 1
    assert files(host) == [file.name]


@pytest.mark.parametrize("filename", ["../boo", "/tmp/boo", "sub/../../boo", "..\\boo", "link/boo", "con", "my boo"])
def test_names_that_lead_out_are_refused(filename: str, save_node: Any, host: FakeHost) -> None:
    (host.root / "outside").mkdir()
    (host.root / "loras" / "link").symlink_to(host.root / "outside", target_is_directory=True)
    before = sorted(host.root.rglob("*"))
    assert str(save_node.VALIDATE_INPUTS(filename)).startswith("filename")
    with pytest.raises(ValueError, match=r"^filename"):
        save_node.save(learned(), filename, True)
    assert sorted(host.root.rglob("*")) == before
    assert save_node.VALIDATE_INPUTS(None) is True  # it comes from another node


def test_a_strangers_token_names_no_file_elsewhere(save_node: Any, host: FakeHost) -> None:
    with pytest.raises(ValueError, match=r"^filename"):
        save_node.save(learned(token="../../up"), "", False)
    assert files(host) == []


def test_a_deleted_file_is_noticed_and_written_again(save_node: Any, host: FakeHost) -> None:
    save(save_node, learned(), unique_id="7")
    state = save_node.IS_CHANGED(unique_id="7", filename="", overwrite=False)
    (host.root / "loras" / "boo-lora.safetensors").unlink()
    assert save_node.IS_CHANGED(unique_id="7", filename="", overwrite=False) != state
    assert save(save_node, learned(), unique_id="7") in files(host)


# ---------------------------------------------------------------- Load Learned LoRA


@pytest.fixture
def load_node(pack: Any) -> Any:
    return pack.NODE_CLASS_MAPPINGS["ZoodipLoadLearnedLora"]()


def test_saved_weights_are_loaded_again(save_node: Any, load_node: Any, host: FakeHost) -> None:
    lora = learned(steps="40", config=json.dumps({"weights": "int4"}))
    name = save(save_node, lora, "pets/rex")
    assert load_node.INPUT_TYPES()["required"]["file"][0] == [name]
    assert load_node.VALIDATE_INPUTS(name) is True
    loaded, report = load_node.load(name)
    assert same(loaded, lora)
    told = dict(line.split(": ", 1) for line in report.splitlines())
    assert told == {
        "token": "<boo>",
        "for": "Stable Diffusion 1.x",
        "rank": "4",
        "layers": "3",
        "steps": "40",
        "settings": "weights int4",
    }
    before = load_node.IS_CHANGED(name)
    save(save_node, learned(1), "pets/rex", overwrite=True)
    assert load_node.IS_CHANGED(name) != before


def test_a_file_that_cannot_be_drawn_with_is_refused(load_node: Any, host: FakeHost) -> None:
    (host.root / "loras" / "hidden.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"hidden\.safetensors is not a safetensors file, or damaged"):
        load_node.load("hidden.safetensors")
    for asked in (load_node.VALIDATE_INPUTS, load_node.load):
        told: Any = ""
        try:
            told = asked("../hidden.safetensors")
        except ValueError as error:
            told = error
        assert str(told).startswith("file: ../hidden.safetensors is not among ComfyUI's LoRAs; press R")


# ---------------------------------------------------------------- Generate Preview


@pytest.fixture(scope="module")
def tiny(model: Any) -> Any:
    """A LoRA for the embedded model that is seen."""
    frames = core("model.frames").frames_of(model.unet, 2)
    values = torch.randn(frames.numbers, generator=torch.Generator().manual_seed(2))
    model.unload()
    return core("model.lora").lora_of(frames, values, {"token": "<boo>", "family": "tiny"})


def preview(pack: Any, model: Any, lora: Any, **inputs: Any) -> Any:
    given = {"prompts": "a red monster", "seed": 3, "steps": 2, "guidance": 0.0, "resolution": 0, **inputs}
    with torch.inference_mode():  # as ComfyUI runs nodes
        return pack.NODE_CLASS_MAPPINGS["ZoodipGeneratePreview"]().draw(model, lora=lora, **given)


def test_a_preview_is_what_the_core_draws_with_the_weights(pack: Any, host: FakeHost, model: Any, tiny: Any) -> None:
    generation = core("model.generation")

    def drawn(lora: Any) -> Any:
        with generation.with_lora(model, lora):
            (picture,) = generation.generate(model, ["a red monster"], [3], num_inference_steps=2)
        model.unload()
        return np.asarray(picture)

    for lora in (tiny, None):
        (images,) = preview(pack, model, lora)["result"]
        assert not {"unet", "text_encoders"} & set(vars(model))  # it has left the device
        np.testing.assert_array_equal((images[0].numpy() * 255).round().astype(np.uint8), drawn(lora))
    assert not np.array_equal(drawn(tiny), drawn(None))


def test_a_preview_says_that_the_weights_were_learned_on_others(
    pack: Any, host: FakeHost, model: Any, tiny: Any
) -> None:
    def said(weights: str) -> Any:
        about = {**tiny.metadata, "config": json.dumps({"weights": weights})}
        return preview(pack, model, core("model.lora").Lora(tiny.layers, about), steps=1)["ui"]["text"]

    assert said("int8") == []
    assert said("int4") == [
        "the LoRA was learned on int4 weights, this model has int8: it draws nearly the same, not exactly"
    ]


def test_weights_of_another_model_are_not_drawn_with(pack: Any, host: FakeHost, model: Any) -> None:
    with pytest.raises(ValueError, match=r"^lora: the LoRA for Stable Diffusion 1.x does not fit this model"):
        preview(pack, model, learned())
    assert host.calls == ["make_room", "return_memory"]
    comfyui = SimpleNamespace(own_memory=False)
    with pytest.raises(ValueError, match=r"^lora: .* put Apply LoRA before Model from ComfyUI"):
        preview(pack, comfyui, learned())


# ---------------------------------------------------------------- ZO Train Token


@pytest.fixture
def one_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    """For time's sake: one, of few denoising steps."""
    drawing = core("model.stable_diffusion")
    generate = drawing.generate
    monkeypatch.setattr("zoodip_pack.zoodip_core.train.samples._PICTURES", 1)
    monkeypatch.setattr(drawing, "generate", lambda *given, **more: generate(*given, **{**more, **FEW}))


@pytest.mark.usefixtures("one_preview")
def test_weights_come_out_beside_the_token(pack: Any, host: FakeHost, model: Any) -> None:
    out = train(pack, model, **LEARNED)
    embedding, previews, _, lora, _ = out["result"]
    (folder,) = runs(host)
    assert states(host)[-1] == "finished"
    written = zoodip_core.model.lora.load_lora(folder / "run" / "pip-lora.safetensors")
    assert same(written, lora)
    assert lora.metadata["steps"] == str(STEPS)
    assert any(up.any() for up, _ in lora.layers.values())

    def drawn(with_lora: Any) -> Any:
        return preview(pack, model, with_lora, prompts="a {} in the sunset", embedding=embedding, seed=0)["result"][0]

    assert torch.equal(previews, drawn(lora))
    assert not torch.equal(previews, drawn(None))


@pytest.mark.slow
@pytest.mark.usefixtures("one_preview")
def test_a_stop_in_either_stage_ends_as_if_never_stopped(pack: Any, host: FakeHost, model: Any) -> None:
    whole = train(pack, model, **LEARNED, resume=False)["result"][3]
    (first,) = runs(host)
    first.rename(first.with_name("whole"))
    for at in (2, 5):
        stopped(pack, model, host, at=at, **LEARNED)
        assert told(host, "step")[-1] == at
    lora = train(pack, model, **LEARNED)["result"][3]
    assert same(lora, whole)
    (second,) = (folder for folder in runs(host) if folder.name != "whole")
    for name in ("pip.safetensors", "pip-lora.safetensors"):
        assert (second / "run" / name).read_bytes() == (first.with_name("whole") / "run" / name).read_bytes()


@pytest.mark.parametrize("left", [{"lora_rank": 2}, {"preset": "two-stage"}])
def test_weights_of_a_model_of_comfyuis_are_refused_before_the_long_part(
    left: dict[str, Any], pack: Any, host: FakeHost
) -> None:
    with pytest.raises(ValueError, match=r"^lora_rank = .* use Load Quantized SD, or set lora_rank to 0"):
        train_in_node(pack, **left)
    assert not any("encoding" in text for text in told(host, "text"))
    assert runs(host) == []


def test_settings_of_weights_without_weights_are_refused(pack: Any, host: FakeHost, model: Any) -> None:
    with pytest.raises(ValueError, match=r"^lora_lr = 0.5 is a setting of weights"):
        train(pack, model, lora_lr=0.5)
    assert host.calls == []


@pytest.mark.parametrize(("given", "word"), [("", None), ("  ", None), (" dog ", "dog")])
def test_a_class_word_is_one_where_it_is_given(given: str, word: str | None, pack: Any, host: FakeHost) -> None:
    assert settings_of(pack, "sd1", class_word=given).class_word == word
    if word is None:
        with pytest.raises(ValueError, match="give class_word"):
            settings_of(pack, "sd1", class_word=given, template="adjective")
    else:
        config = settings_of(pack, "sd1", class_word=given, template="adjective")
        assert config.sample_prompt == "a photo of a {} dog"


@pytest.mark.parametrize(("family", "rank"), [("sd1", 4), ("sd2", 4), ("sdxl", 2)])
def test_the_preset_two_stage_learns_weights(family: str, rank: int, pack: Any, host: FakeHost) -> None:
    config = settings_of(pack, family, preset="two-stage")
    assert config.lora_rank == rank
    own = core("train.settings").SETTINGS
    for name in ("lora_share", "lora_mu", "lora_lr", "lora_with_token"):
        assert getattr(config, name) == own[name].default
    assert settings_of(pack, family, preset="two-stage", lora_rank=1).lora_rank == 1
    with_token = settings_of(pack, family, preset="two-stage", lora_with_token="on")
    assert with_token.lora_with_token
    assert settings_of(pack, family, preset="coarse").lora_rank == 0


def test_the_trainers_latest_inputs_are_its_last(pack: Any, host: FakeHost) -> None:
    """A workflow that was saved before them still has each value at its place."""
    kinds = pack.NODE_CLASS_MAPPINGS["ZoodipTrainToken"].INPUT_TYPES()
    names = [*kinds["required"], *kinds["optional"]]
    latest = ["class_word", "lora_rank", "lora_share", "lora_mu", "lora_lr", "lora_with_token"]
    latest += ["target_prompt", "alignment", "alignment_alpha", "alignment_beta", "random_crops"]
    latest += ["preview_negative_prompt", "preview_guidance", "preview_steps", "mask_background", "lora_weight_decay"]
    assert names[-len(latest) - 1 :] == [*latest, "masks"]  # the last has no value of its own
    assert all(kinds["optional"][name][1]["advanced"] for name in latest)
