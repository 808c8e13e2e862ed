"""Tokens learned on what a real ComfyUI's own loaders load, over its HTTP API; see :mod:`tests.e2e.comfyui`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.e2e.comfyui import ComfyUI, InterruptError, NodeError, Prompt, cached
from tests.e2e.slim_sd15 import write_gguf, write_parts, write_sd15

pytestmark = pytest.mark.e2e

SD15, LORA, GGUF = "random-sd15.safetensors", "random-lora.safetensors", "random-unet.gguf"
GGUF_PACK = os.environ.get("COMFYUI_GGUF_DIR")
"""A checkout of city96's ComfyUI-GGUF, whose package gguf COMFYUI_PYTHON then has."""
KEYS = tuple(
    f"diffusion_model.input_blocks.{block}.1.transformer_blocks.0.attn2.to_{part}" for block in (1, 4) for part in "qv"
)
"""Of the UNet's weights that the LoRA changes."""


@pytest.fixture(scope="module")
def comfy() -> Iterator[ComfyUI]:
    with ComfyUI(packs=[Path(GGUF_PACK)] if GGUF_PACK else []) as server:
        models = server.base / "models"
        write_sd15(models / "checkpoints" / SD15)
        write_parts(models / "checkpoints" / SD15)
        tensors = load_file(models / "diffusion_models/bare.safetensors")
        noise = torch.Generator().manual_seed(0)
        lora = {}
        for key in KEYS:
            rows, columns = tensors[f"{key.removeprefix('diffusion_model.')}.weight"].shape
            lora[f"{key}.lora_up.weight"] = torch.randn(rows, 2, generator=noise)
            lora[f"{key}.lora_down.weight"] = torch.randn(2, columns, generator=noise)
        if GGUF_PACK:
            write_gguf(models / "diffusion_models/bare.safetensors", models / "unet" / GGUF)
        (models / "loras").mkdir(exist_ok=True)
        save_file(lora, models / "loras" / LORA)
        yield server


def whole(comfy: ComfyUI) -> Prompt:
    """The model from a single file, as MODEL, CLIP and VAE."""
    return {"checkpoint": comfy.node("CheckpointLoaderSimple", ckpt_name=SD15)}


def trained(comfy: ComfyUI, *, steps: int = 3, seed: int = 0, nodes: Prompt | None = None, **given: Any) -> Prompt:
    """A short training on a model.

    Args:
        nodes: that load it; the checkpoint's loader unless given.
        given: the links ``model``, ``clip`` and ``vae`` that do not come from the checkpoint.
    """
    links = {name: given.get(name, ["checkpoint", i]) for i, name in enumerate(("model", "clip", "vae"))}
    return {
        **(nodes or whole(comfy)),
        "wrapped": comfy.node("ZoodipModelFromComfyUI", **links),
        "pictures": comfy.node("ZoodipLoadReferenceImages", folder="bundled: boo"),
        "train": comfy.node(
            "ZoodipTrainToken",
            model=["wrapped", 0],
            images=["pictures", 0],
            token="<boo>",
            initializer="monster",
            preset="paper",  # it looks at no vocabulary
            steps=steps,
            n=1,
            lr=0.05,
            mu=0.05,
            seed=seed,
            resolution=64,
            preview_prompt="a {}",
        ),
    }


def learned(comfy: ComfyUI, prompt: Prompt) -> torch.Tensor:
    """The token of a prompt that is run, from its new folder."""
    before = runs(comfy)
    entry = comfy.run(prompt)
    assert entry["outputs"]["train"]["zoodip"][0]["state"] == "finished"
    (run,) = runs(comfy) - before
    (vectors,) = load_file(run / "boo.safetensors").values()
    return vectors


def runs(comfy: ComfyUI) -> set[Path]:
    return {path / "run" for path in (comfy.base / "output" / "zoodip").glob("*")}


def steps_taken(run: Path) -> int:
    return len((run / "steps.jsonl").read_text().splitlines())


def drawn(comfy: ComfyUI, prompt: Prompt, clip: tuple[str, int], text: Any) -> Image.Image:
    """What ComfyUI's own nodes draw beside a training."""
    more = {
        "positive": comfy.node("CLIPTextEncode", clip=list(clip), text=text),
        "negative": comfy.node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "latent": comfy.node("EmptyLatentImage", width=64, height=64),
        "sampler": comfy.node(
            "KSampler",
            model=["checkpoint", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            steps=1,
        ),
        "decoded": comfy.node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "shown": comfy.node("PreviewImage", images=["decoded", 0]),
    }
    (picture,) = comfy.images(comfy.run({**prompt, **more}), "shown")
    return picture


def test_a_token_is_learned_and_drawn_in_one_prompt(comfy: ComfyUI) -> None:
    prompt = trained(comfy)
    prompt["saved"] = comfy.node("ZoodipSaveEmbedding", embedding=["train", 0], filename="learned")
    prompt["applied"] = comfy.node("ZoodipApplyEmbedding", clip=["checkpoint", 1], embedding=["train", 0])
    by_node = drawn(comfy, prompt, ("applied", 0), "a photo of <boo>")
    by_file = drawn(comfy, prompt, ("checkpoint", 1), "a photo of embedding:learned")
    plain = drawn(comfy, prompt, ("checkpoint", 1), "a photo of monster")
    assert by_node.tobytes() == by_file.tobytes()
    assert by_node.tobytes() != plain.tobytes()
    report = comfy.run(prompt | {"report": comfy.node("PreviewAny", source=["wrapped", 1])})
    (text,) = report["outputs"]["report"]["text"]
    assert "random-sd15 (sd1, eps), 512 px" in text or "SD15 (sd1, eps), 512 px" in text
    assert "text encoders: clip_l 768" in text


def test_separate_files_learn_what_the_single_one_does(comfy: ComfyUI) -> None:
    parts = {
        "unet": comfy.node("UNETLoader", unet_name="bare.safetensors"),
        "encoder": comfy.node("CLIPLoader", clip_name="clip_l.safetensors", type="stable_diffusion"),
        "decoder": comfy.node("VAELoader", vae_name="vae-ft.safetensors"),
    }
    apart = learned(
        comfy, trained(comfy, seed=1, nodes=parts, model=["unet", 0], clip=["encoder", 0], vae=["decoder", 0])
    )
    assert torch.allclose(apart, learned(comfy, trained(comfy, seed=1)), atol=1e-4)


def test_a_model_with_a_lora_learns_another_token(comfy: ComfyUI) -> None:
    lora = comfy.node("LoraLoader", model=["checkpoint", 0], clip=["checkpoint", 1], lora_name=LORA, strength_model=1.0)
    nodes = {**whole(comfy), "lora": lora}
    one, other = (
        learned(comfy, trained(comfy, seed=2, nodes=nodes, model=[of, 0], clip=[of, 1]))
        for of in ("lora", "checkpoint")
    )
    assert not torch.allclose(one, other, atol=1e-4)


def test_cancelled_training_goes_on_where_it_stopped(comfy: ComfyUI) -> None:
    prompt, before = trained(comfy, steps=30, seed=3), runs(comfy)
    with comfy.events() as events:
        queued = comfy.queue(prompt)
        events.wait(lambda event: event["type"] == "zoodip.step" and event["data"].get("step", 0) >= 3)
        comfy.interrupt()
        with pytest.raises(InterruptError):
            comfy.wait(queued)
    (run,) = runs(comfy) - before
    reached = steps_taken(run)
    assert 3 <= reached < 30
    with comfy.events() as events:
        entry = comfy.run(prompt)
        told = events.of_a_prompt("zoodip.step")
    assert next(chart["step"] for chart in told if chart["state"] == "training") == reached
    assert {"checkpoint", "wrapped"} <= cached(entry)
    (stopped,) = load_file(run / "boo.safetensors").values()
    prompt["train"]["inputs"]["resume"] = False
    assert torch.allclose(stopped, learned(comfy, prompt), atol=1e-4)


def test_another_model_s_vae_is_refused_at_the_node(comfy: ComfyUI) -> None:
    pixels = {"pixels": comfy.node("VAELoader", vae_name="pixel_space")}
    with pytest.raises(NodeError, match="vae: it makes latents of 3 channels, the model takes 4") as failed:
        comfy.run(trained(comfy, nodes={**whole(comfy), **pixels}, vae=["pixels", 0]))
    assert failed.value.node == "wrapped"


def test_ten_trainings_leave_no_memory_behind() -> None:
    with ComfyUI() as comfy:
        write_sd15(comfy.base / "models" / "checkpoints" / SD15)
        for seed in range(2):  # what is imported, loaded and allocated once
            comfy.run(trained(comfy, seed=seed))
        few = comfy.rss()
        for seed in range(2, 10):
            comfy.run(trained(comfy, seed=seed))
        assert comfy.rss() < 1.03 * few


@pytest.mark.skipif(not GGUF_PACK, reason="set COMFYUI_GGUF_DIR to a checkout of city96's ComfyUI-GGUF to run this")
def test_a_token_is_learned_on_a_gguf_file(comfy: ComfyUI) -> None:
    nodes = {**whole(comfy), "unet": comfy.node("UnetLoaderGGUF", unet_name=GGUF)}
    on_gguf = learned(comfy, trained(comfy, nodes=nodes, model=["unet", 0], seed=11))
    whole_model = learned(comfy, trained(comfy, seed=11))  # which no other test has trained with
    assert on_gguf.shape == whole_model.shape
    assert not torch.equal(on_gguf, whole_model)  # eight bits are not sixteen
    assert torch.allclose(on_gguf, whole_model, atol=0.5)
