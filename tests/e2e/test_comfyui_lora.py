"""Weights learned with a token, in a real ComfyUI over its HTTP API; see :mod:`tests.e2e.comfyui`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import random_models
import torch
from safetensors.torch import load_file

from tests.e2e.comfyui import ROOT, ComfyUI, NodeError, Prompt
from tests.e2e.launch_comfyui import declare_torchvision
from tests.e2e.own_engine import CLOSE, OwnEngine, apart
from tests.e2e.slim_sd15 import write_gguf, write_parts, write_sd15
from tests.e2e.test_comfyui_api import example, of_kind
from zoodip_core.model.embedding import load_embedding
from zoodip_core.model.frames import read_text
from zoodip_core.model.lora import load_lora

pytestmark = pytest.mark.e2e

SD15, GGUF = "random-sd15.safetensors", "random-unet.gguf"
GGUF_PACK = os.environ.get("COMFYUI_GGUF_DIR")
"""A checkout of city96's ComfyUI-GGUF, whose package gguf COMFYUI_PYTHON then has."""
TINY = "tiny (embedded)"
TEXT, STEPS, GUIDANCE, SEED = "a photo of a dog on a hill", 4, 7.5, 5


@pytest.fixture(scope="module")
def comfy() -> Iterator[ComfyUI]:
    with ComfyUI(packs=[Path(GGUF_PACK)] if GGUF_PACK else []) as server:
        write_sd15(server.base / "models" / "checkpoints" / SD15)
        yield server


def trained(comfy: ComfyUI, checkpoint: str = SD15, weights: str = "none", **settings: Any) -> Prompt:
    """A short training in two stages, whose weights move far, and the nodes that save what it learns."""
    steps = {"steps": 4, "n": 1, "lr": 0.01, "mu": 0.01, "resolution": 64 if checkpoint == SD15 else 0}
    learned = {"lora_rank": 4, "lora_share": 0.5, "lora_mu": 0.5, "lora_lr": 2.0}
    named = {"token": "<boo>", "initializer": "monster", "preview_prompt": "a {}", "preset": "paper"}
    return {
        "quantized": comfy.node(
            "ZoodipLoadQuantizedSD",
            checkpoint=checkpoint,
            weights=weights,
            activations="float32",
            keep_copy=False,
        ),
        "pictures": comfy.node("ZoodipLoadReferenceImages", folder="bundled: boo"),
        "train": comfy.node(
            "ZoodipTrainToken",
            model=["quantized", 0],
            images=["pictures", 0],
            **{**steps, **learned, **named, **settings},
        ),
    }


def applied(comfy: ComfyUI, strength: float = 1.0, model: str = "checkpoint") -> Prompt:
    lora = {"model": [model, 0], "lora": ["train", 3], "strength": strength}
    return {"patched": comfy.node("ZoodipApplyLora", **lora)}


def loaded(comfy: ComfyUI, file: str, strength: float = 1.0) -> Prompt:
    """ComfyUI's own node."""
    lora = {"lora_name": file, "strength_model": strength, "strength_clip": strength}
    return {"patched": comfy.node("LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], **lora)}


def latents(comfy: ComfyUI, *parts: Prompt, model: str = "patched", clip: tuple[str, int] = ("checkpoint", 1)) -> Any:
    """What a standard graph makes of a MODEL before the VAE, ``[1, 4, 8, 8]``.

    The training stands in every prompt: ComfyUI remembers what a node gave while prompts have it.
    """
    folder = comfy.base / "output" / "latents"
    before = set(folder.glob("*.latent"))
    prompt = {
        **trained(comfy),
        "checkpoint": comfy.node("CheckpointLoaderSimple", ckpt_name=SD15),
        "positive": comfy.node("CLIPTextEncode", clip=list(clip), text=TEXT),
        "negative": comfy.node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "nothing": comfy.node("EmptyLatentImage", width=64, height=64),
        "sampled": comfy.node(
            "KSampler",
            model=[model, 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["nothing", 0],
            seed=SEED,
            steps=STEPS,
            cfg=GUIDANCE,
            sampler_name="euler",
            scheduler="ddim_uniform",
        ),
        "kept": comfy.node("SaveLatent", samples=["sampled", 0]),
    }
    for part in parts:
        prompt |= part
    comfy.run(prompt)
    (file,) = set(folder.glob("*.latent")) - before
    return load_file(file)["latent_tensor"]


@pytest.fixture(scope="module")
def plain(comfy: ComfyUI) -> torch.Tensor:
    """Latents without a LoRA."""
    found: torch.Tensor = latents(comfy, model="checkpoint")
    return found


@pytest.fixture(scope="module")
def saved(comfy: ComfyUI) -> str:
    """The name of the LoRA's file in ComfyUI's folder."""
    prompt = {**trained(comfy), "saved": comfy.node("ZoodipSaveLora", lora=["train", 3])}
    entry = comfy.run(prompt)
    (name,) = entry["outputs"]["saved"]["text"]
    assert name == "boo-lora.safetensors"
    return str(name)


# ---------------------------------------------------------------- drawing


def test_applied_weights_draw_what_their_file_draws(comfy: ComfyUI, saved: str, plain: torch.Tensor) -> None:
    """To the last bit: both go through ComfyUI's own code for LoRAs."""
    assert saved in comfy.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    for strength in (1.0, 0.5, -1.0):
        by_file = latents(comfy, loaded(comfy, saved, strength), clip=("patched", 1))
        by_node = latents(comfy, applied(comfy, strength))
        assert torch.equal(by_node, by_file), strength
        assert apart(by_node, plain) > 20 * CLOSE, strength
    assert "lora key not loaded" not in comfy.log()
    assert "NOT LOADED" not in comfy.log()
    assert "ERROR lora" not in comfy.log()


def test_a_strength_of_0_draws_what_is_drawn_without(comfy: ComfyUI, plain: torch.Tensor) -> None:
    assert torch.equal(latents(comfy, applied(comfy, 0.0)), plain)


def test_the_model_that_was_given_stays_as_it_was(comfy: ComfyUI, plain: torch.Tensor) -> None:
    latents(comfy, applied(comfy))
    assert torch.equal(latents(comfy, model="checkpoint"), plain)


def test_comfyui_draws_what_our_own_engine_draws(comfy: ComfyUI, saved: str, plain: torch.Tensor) -> None:
    """The same noise and steps, on weights that are not quantised."""
    engine = OwnEngine(comfy.base / "models" / "checkpoints" / SD15)
    theirs = {"with": latents(comfy, loaded(comfy, saved), clip=("patched", 1)), "without": plain}
    for name, lora in (("with", load_lora(comfy.base / "models" / "loras" / saved)), ("without", None)):
        ours = engine.latents(TEXT, SEED, STEPS, GUIDANCE, lora=lora)
        ours = ours / engine.model.blueprint.configs["vae"]["scaling_factor"]
        print(f"{name} the LoRA: {apart(theirs[name], ours):.2e} apart")
        assert apart(theirs[name], ours) < CLOSE
    assert apart(theirs["with"], theirs["without"]) > 20 * CLOSE


def test_token_and_weights_go_together(comfy: ComfyUI, plain: torch.Tensor) -> None:
    token = {
        "told": comfy.node("ZoodipApplyEmbedding", clip=["checkpoint", 1], embedding=["train", 0]),
        "positive": comfy.node("CLIPTextEncode", clip=["told", 0], text="a photo of <boo>"),
    }
    both = latents(comfy, applied(comfy), token)
    alone = latents(comfy, token, model="checkpoint")
    assert apart(both, alone) > 20 * CLOSE


@pytest.mark.skipif(not GGUF_PACK, reason="set COMFYUI_GGUF_DIR to a checkout of city96's ComfyUI-GGUF to run this")
def test_weights_are_laid_on_a_gguf_file(comfy: ComfyUI, saved: str) -> None:
    models = comfy.base / "models"
    write_parts(models / "checkpoints" / SD15)
    write_gguf(models / "diffusion_models" / "bare.safetensors", models / "unet" / GGUF)
    unet = {"unet": comfy.node("UnetLoaderGGUF", unet_name=GGUF)}
    without = latents(comfy, unet, model="unet")
    by_file = {"patched": comfy.node("LoraLoaderModelOnly", model=["unet", 0], lora_name=saved)}
    by_node = latents(comfy, unet, applied(comfy, model="unet"))
    assert torch.equal(by_node, latents(comfy, unet, by_file))
    assert apart(by_node, without) > 20 * CLOSE


def test_a_preview_is_drawn_with_the_weights(comfy: ComfyUI, saved: str) -> None:
    read = {**trained(comfy), "read": comfy.node("ZoodipLoadLearnedLora", file=saved)}
    drawn = []
    for lora in ({}, {"lora": ["train", 3]}, {"lora": ["read", 0]}):
        node = comfy.node(
            "ZoodipGeneratePreview", model=["quantized", 0], prompts="a dog", steps=2, resolution=64, **lora
        )
        (picture,) = comfy.images(comfy.run({**read, "drawn": node}), "drawn")
        drawn.append(picture.tobytes())
    assert drawn[0] != drawn[1]
    assert drawn[1] == drawn[2]  # as saved, so loaded


def test_tokens_are_compared_with_their_weights(comfy: ComfyUI, saved: str) -> None:
    read = {**trained(comfy), "read": comfy.node("ZoodipLoadLearnedLora", file=saved)}
    sheets = []
    for weights in ({}, {"lora_2": ["train", 3]}, {"lora_2": ["read", 0]}):
        node = comfy.node(
            "ZoodipCompareEmbeddings",
            model=["quantized", 0],
            embedding_1=["train", 0],
            embedding_2=["train", 0],
            count=1,
            steps=2,
            resolution=64,
            **weights,
        )
        (sheet,) = comfy.images(comfy.run({**read, "sheet": node}), "sheet")
        sheets.append(sheet.tobytes())
    assert sheets[0] != sheets[1]
    assert sheets[1] == sheets[2]


# ---------------------------------------------------------------- names


def test_every_layer_of_a_published_model_has_its_place(tmp_path: Path) -> None:
    """By its name in the file and its shape, in all families."""
    if not os.environ.get("COMFYUI_DIR"):
        pytest.skip("set COMFYUI_DIR to a ComfyUI checkout (and COMFYUI_PYTHON to its Python) to run this")
    declared = declare_torchvision()  # noqa: F841 - kept while diffusers is imported
    from diffusers import UNet2DConditionModel

    unets = {}
    for family in random_models.FAMILIES:
        with torch.device("meta"):
            unets[family] = UNet2DConditionModel.from_config(random_models.configs(family, "full")["unet"])
    shapes = {
        family: {name: list(each.shape) for name, each in unet.state_dict().items()} for family, unet in unets.items()
    }
    (tmp_path / "shapes.json").write_text(json.dumps(shapes))
    command = [os.environ.get("COMFYUI_PYTHON") or sys.executable, "-m", "tests.e2e.lora_names"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])}
    subprocess.run([*command, tmp_path / "shapes.json", tmp_path / "named.json"], cwd=ROOT, env=env, check=True)
    for family, named in json.loads((tmp_path / "named.json").read_text()).items():
        layers = read_text(unets[family])
        assert len(layers) == {"sd15": 32, "sd21": 32, "sdxl": 140}[family]
        taken = set()
        for name, layer in layers.items():
            weight, shape = named[f"lora_unet_{name.replace('.', '_')}"]
            assert shape == list(layer.weight.shape), name
            assert weight.endswith(f"attn2.{name[-4:]}.weight")
            taken.add(weight)
        assert len(taken) == len(layers)


# ---------------------------------------------------------------- files


def test_a_deleted_file_is_saved_again(comfy: ComfyUI) -> None:
    prompt = {**trained(comfy), "saved": comfy.node("ZoodipSaveLora", lora=["train", 3], filename="pets/rex")}
    comfy.run(prompt)
    file = comfy.base / "models" / "loras" / "pets" / "rex.safetensors"
    content = file.read_bytes()
    file.unlink()
    comfy.run(prompt)
    assert file.read_bytes() == content
    listed = comfy.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert str(Path("pets") / "rex.safetensors") in listed


@pytest.mark.parametrize("filename", ["../evil", "/tmp/evil", "down/../../evil", "..\\evil"])
def test_weights_are_not_saved_elsewhere(comfy: ComfyUI, filename: str) -> None:
    prompt = {**trained(comfy), "saved": comfy.node("ZoodipSaveLora", lora=["train", 3], filename=filename)}
    answer = comfy.post("/prompt", {"prompt": prompt, "client_id": comfy.client})  # the trainer alone may run
    (told,) = answer["node_errors"]["saved"]["errors"]
    assert "what lies in the loras folder" in told["details"]
    comfy.wait(answer["prompt_id"])
    prompt["name"] = comfy.node("PrimitiveString", value=filename)  # known only when it runs
    prompt["saved"]["inputs"]["filename"] = ["name", 0]
    with pytest.raises(NodeError, match="what lies in the loras folder") as failed:
        comfy.run(prompt)
    assert failed.value.node == "saved"
    assert not list(comfy.base.rglob("evil*"))
    assert not Path("/tmp/evil.safetensors").exists()


# ---------------------------------------------------------------- other trainings


def test_the_example_learns_draws_and_saves_both(comfy: ComfyUI) -> None:
    prompt = example(comfy, ROOT / "example_workflows" / "token_and_lora.json")
    (train,) = of_kind(prompt, "ZoodipTrainToken").values()
    assert train["preset"] == "two-stage"
    train |= {"resolution": 64, "steps": 4, "n": 2, "preview_every": 0}
    changes: dict[str, dict[str, Any]] = {
        "ZoodipLoadQuantizedSD": {"checkpoint": SD15},
        "CheckpointLoaderSimple": {"ckpt_name": SD15},
        "EmptyLatentImage": {"width": 64, "height": 64},
        "KSampler": {"steps": 1},
    }
    for kind, values in changes.items():
        (inputs,) = of_kind(prompt, kind).values()
        inputs |= values
    ((shown, _),) = of_kind(prompt, "SaveImage").items()
    assert len(comfy.images(comfy.run(prompt), shown)) == 1
    models = comfy.base / "models"
    token = load_embedding(models / "embeddings" / "my-subject.safetensors")
    lora = load_lora(models / "loras" / "my-subject-lora.safetensors")
    assert (lora.rank, len(lora.layers)) == (4, 32)
    assert token.metadata["steps"] == lora.metadata["steps"] == "4"


def test_weights_learned_on_int8_are_laid_on_others(comfy: ComfyUI, plain: torch.Tensor) -> None:
    """They are for any model of the family."""
    learned = latents(comfy, trained(comfy, weights="int8"), applied(comfy))
    assert apart(learned, plain) > 20 * CLOSE


def test_weights_of_another_family_are_refused_by_both_names(comfy: ComfyUI) -> None:
    tiny = trained(comfy, TINY, lora_rank=2)
    with pytest.raises(NodeError, match="lora does not fit model: it is for the embedded tiny model") as failed:
        latents(comfy, tiny, applied(comfy))
    assert failed.value.node == "patched"
    assert "the model is Stable Diffusion 1.x" in str(failed.value)


def test_a_token_alone_has_no_weights_to_apply(comfy: ComfyUI) -> None:
    alone = trained(comfy, TINY, lora_rank=0, lora_share=0, lora_mu=0, lora_lr=0)
    saving = {**alone, "saved": comfy.node("ZoodipSaveLora", lora=["train", 3])}
    for node, work in (
        ("patched", lambda: latents(comfy, alone, applied(comfy))),
        ("saved", lambda: comfy.run(saving)),
    ):
        with pytest.raises(NodeError, match="lora: no weights were learned with this token") as failed:
            work()
        assert failed.value.node == node


def test_weights_of_a_model_of_comfyuis_are_refused_at_the_trainer(comfy: ComfyUI) -> None:
    links = {name: ["checkpoint", i] for i, name in enumerate(("model", "clip", "vae"))}
    prompt = {
        **trained(comfy),
        "checkpoint": comfy.node("CheckpointLoaderSimple", ckpt_name=SD15),
        "quantized": comfy.node("ZoodipModelFromComfyUI", **links),
    }
    with comfy.events() as events:
        with pytest.raises(NodeError, match=r"^lora_rank = 4: .* use Load Quantized SD") as failed:
            comfy.run(prompt)
        told = events.of_a_prompt("zoodip.step")
    assert failed.value.node == "train"
    assert not [chart["text"] for chart in told if "encoding" in chart["text"]]
