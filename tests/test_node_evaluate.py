"""Evaluate Embedding: what it hands to the core, what it shows, and how it shares the device."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fake_host import FakeHost, Interrupted
from tests.judges import write_judges

PROMPTS = "a {} in the snow\n\na {} at the beach"


@pytest.fixture(scope="module")
def judges_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture
def models(host: FakeHost, judges_at: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's models folder with CLIP and DINOv2 in it; Hugging Face's cache is empty."""
    folder = host.root / "models" / "clip_vision"
    shutil.copytree(judges_at, folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(host.root / "hub"))
    return folder


@pytest.fixture(scope="module")
def model(pack: Any) -> Any:
    """The embedded model by the pack's own core."""
    return importlib.import_module("zoodip_pack.zoodip_core.model.load").load_quantized("tiny", device="cpu")


def core(name: str) -> Any:
    return importlib.import_module(f"zoodip_pack.zoodip_core.{name}")


def token(name: str = "<boo>", width: int = 128, **metadata: str) -> Any:
    vector = 0.3 * torch.randn(1, width, generator=torch.Generator().manual_seed(5))
    return core("model.embedding").Embedding(name, (vector,), {"initializer": "monster", **metadata})


def pictures(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    """IMAGE batches of noise, as Load Reference Images hands them on."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, *size, 3, generator=generator) for size in sizes]


def run(pack: Any, model: Any, **inputs: Any) -> dict[str, Any]:
    kind = pack.NODE_CLASS_MAPPINGS["ZoodipEvaluateEmbedding"]
    given = {
        "model": model,
        "embedding": token(),
        "prompt_set": "auto",
        "class_word": "",
        "seeds": 2,
        "seed": 0,
        "steps": 2,
        "guidance": 0.0,
        "clip": "clip_vision/clip",
        "dino": "clip_vision/dino",
        "prompts": PROMPTS,
        **inputs,
    }
    images = given.pop("images", pictures((48, 64), (50, 40)))
    with torch.inference_mode():  # as ComfyUI runs nodes, with each input in a list
        result: dict[str, Any] = kind().evaluate(images=images, **{name: [value] for name, value in given.items()})
    return result


def test_the_node_gives_what_the_core_finds(pack: Any, host: FakeHost, model: Any, models: Path) -> None:
    out = run(pack, model)
    sheet, table, clip_t, clip_i, dino, inter = out["result"]
    (folder,) = (host.root / "output" / "zoodip" / "evaluations").iterdir()
    assert folder.name.startswith("boo-")
    evaluation = core("evaluate.evaluation")
    plan = evaluation.EvaluationPlan(
        ("a {} in the snow", "a {} at the beach"), "monster", seeds=2, num_inference_steps=2
    )
    own = importlib.import_module("zoodip_pack.nodes.pictures").to_pictures(pictures((48, 64), (50, 40)), "images")
    judges = evaluation.find_judges(models / "clip", models / "dino")
    expected = evaluation.evaluate(model, token(), own, plan, judges, host.root / "again")
    assert (clip_t, clip_i, dino, inter) == tuple(vars(expected.after).values())
    assert table.splitlines()[2].split()[-4:] == [f"{value:.3f}" for value in (clip_t, clip_i, dino, inter)]
    assert out["ui"]["text"] == [table]
    kept = np.asarray(Image.open(folder / "evaluation.png").convert("RGB"))
    np.testing.assert_array_equal((sheet[0].numpy() * 255).round().astype(np.uint8), kept)
    assert json.loads((folder / "evaluation.json").read_text())["after"] == vars(expected.after)
    assert (host.shown[0][:2], host.shown[-1][:2]) == ((0, 16), (10, 10))


def test_the_device_is_its_own_and_a_stop_keeps_what_is_drawn(
    pack: Any, host: FakeHost, model: Any, models: Path
) -> None:
    host.asked = lambda: len(host.shown) >= 8
    with pytest.raises(Interrupted):
        run(pack, model)
    assert host.calls == ["make_room", "return_memory"]
    assert "unet" not in vars(model)
    kept = {path: path.stat().st_mtime_ns for path in host.root.glob("output/zoodip/evaluations/*/*/*.png")}
    assert 0 < len(kept) < 8
    host.asked = lambda: False
    host.shown.clear()
    run(pack, model)
    assert host.shown[0][:2] == (2 * len(kept), 16)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(host.root.glob("output/zoodip/evaluations/*/*/*.png"))) == 8


def test_a_token_that_gives_way_to_its_word(pack: Any, host: FakeHost, model: Any, models: Path) -> None:
    """In a folder of its own, with other images after and the same before."""
    one = {"seeds": 1, "prompts": "a {} in the snow", "class_word": "monster"}
    run(pack, model, **one)
    table = run(pack, model, **one, until=0.5)["result"][1]
    assert "until 0.5" in table
    root = host.root / "output" / "zoodip" / "evaluations"
    assert sorted(json.loads(path.read_text()).get("until", 1) for path in root.glob("*/settings.json")) == [0.5, 1]
    for when, count in (("before", 1), ("after", 2)):
        assert len({path.read_bytes() for path in root.glob(f"*/{when}/prompt001-seed0.png")}) == count


def test_weights_draw_the_images_with_the_token(pack: Any, host: FakeHost, model: Any, models: Path) -> None:
    frames = core("model.frames").frames_of(model.unet, 4)
    lora = core("model.lora").lora_of(frames, torch.ones(frames.numbers), {})
    one = {"seeds": 1, "prompts": "a {} in the snow"}
    run(pack, model, **one)
    run(pack, model, **one, lora=lora)
    folders = sorted((host.root / "output" / "zoodip" / "evaluations").iterdir())
    assert len(folders) == 2
    drawn = {
        when: [(folder / when / "prompt001-seed0.png").read_bytes() for folder in folders]
        for when in ("before", "after")
    }
    assert drawn["before"][0] == drawn["before"][1]
    assert drawn["after"][0] != drawn["after"][1]
    with pytest.raises(ValueError, match="put Apply LoRA before Model from ComfyUI"):
        run(pack, SimpleNamespace(own_memory=False, info=model.info), **one, lora=lora)


@pytest.mark.slow
def test_other_settings_get_a_folder_of_their_own(
    pack: Any, host: FakeHost, model: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def noted(*given: Any) -> Any:
        folders.append(given[5])
        raise core("base.errors").ConfigError("enough")

    monkeypatch.setattr(core("evaluate.evaluation"), "evaluate", noted)
    for inputs in ({}, {"seeds": 9}, {"class_word": "x"}, {"guidance": 2.0}, {"seed": 3}, {"embedding": token("../x")}):
        with pytest.raises(ValueError, match="enough"):
            run(pack, model, **inputs)
    assert folders[0] == folders[1]  # more seeds go on
    assert len(set(folders)) == 5
    assert {folder.parent for folder in folders} == {host.root / "output" / "zoodip" / "evaluations"}
    assert folders[-1].name.startswith("x-")


def test_a_missing_model_is_left_out_and_said(pack: Any, host: FakeHost, model: Any, models: Path) -> None:
    for dino in ("facebook/dinov2-base", "  "):
        out = run(pack, model, prompts="a {}", seeds=1, steps=1, dino=dino)
        _, table, clip_t, _, alike, inter = out["result"]
        assert -1 <= clip_t <= 1
        assert math.isnan(alike)
        assert math.isnan(inter)
        assert "left out: DINO and DINO_inter" in table
        assert "hf download facebook/dinov2-base" in table


def test_what_can_not_be_is_refused_before_anything_is_drawn(
    pack: Any, host: FakeHost, model: Any, models: Path
) -> None:
    for inputs, told in (
        ({"clip": "openai/clip-vit-base-patch32", "dino": ""}, "hf download"),
        ({"clip": "clip_vision/gone"}, "clip: ComfyUI's models folder has no folder"),
        ({"dino": "../models/clip_vision/dino"}, "dino: .* parts of a path"),
        ({"dino": str(models / "dino")}, "dino: "),
        ({"dino": "clip_vision/clip"}, "'dinov2' is needed"),
        ({"prompt_set": "other", "prompts": ""}, "prompt_set: "),
        ({"prompts": "a dog"}, "no place for the subject"),
        ({"seeds": 0}, "seeds = 0"),
        ({"embedding": token(width=768)}, "width 768"),
        ({"embedding": token(initializer="")}, "class word"),
        ({"images": []}, "images: "),
    ):
        with pytest.raises(ValueError, match=f"(?s){told}"):
            run(pack, model, **inputs)
    assert not (host.root / "output" / "zoodip").exists()
    assert host.shown == []


def test_models_are_looked_for_when_the_graph_is_queued(pack: Any, host: FakeHost, models: Path) -> None:
    """Hours of training may come before."""
    check = pack.NODE_CLASS_MAPPINGS["ZoodipEvaluateEmbedding"].VALIDATE_INPUTS
    assert check("clip_vision/clip", "clip_vision/dino") is True
    assert check(["clip_vision/clip"], ["facebook/dinov2-base"]) is True
    assert check(None, "gone") is True  # one comes from another node
    assert "no folder 'gone'" in check("gone", "clip_vision/dino")
    assert "hf download" in check("openai/clip-vit-base-patch32", "facebook/dinov2-base")


def test_the_embedded_model_has_its_own_prompts(pack: Any, host: FakeHost, model: Any) -> None:
    plan = importlib.import_module("zoodip_pack.nodes.evaluate")._plan
    sets = core("evaluate.prompt_sets").PROMPT_SETS
    given = {"class_word": "", "seeds": 1, "seed": 0, "steps": 1, "guidance": 0.0}
    for chosen, expected in (("auto", "tiny"), ("living", "living")):
        found = plan(model, token(), {**given, "prompt_set": chosen})
        assert found.prompts == sets[expected]
        assert (found.class_word, found.guidance_scale) == ("monster", None)
