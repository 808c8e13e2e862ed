"""The nodes in a real ComfyUI, over its HTTP API. See :mod:`tests.e2e.comfyui` for what this needs."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.e2e.comfyui import (
    ROOT,
    ComfyUI,
    Events,
    InterruptError,
    NodeError,
    Prompt,
    RefusedError,
    cached,
    messages,
    to_api,
)
from tests.e2e.launch_comfyui import declare_torchvision
from tests.e2e.slim_sd15 import write_parts, write_sd15
from tests.judges import write_judges
from zoodip_core.model.embedding import Embedding, load_embedding, save_embedding

pytestmark = pytest.mark.e2e

NODES = {
    "ZoodipLoadQuantizedSD": "Load Quantized SD",
    "ZoodipModelFromComfyUI": "Model from ComfyUI",
    "ZoodipLoadReferenceImages": "Load Reference Images",
    "ZoodipCaptionImages": "Caption Images",
    "ZoodipSubspaceGradient": "Subspace Gradient",
    "ZoodipPUTSSampler": "PUTS Sampler",
    "ZoodipTrainToken": "ZO Train Token",
    "ZoodipApplyEmbedding": "Apply Embedding",
    "ZoodipSaveEmbedding": "Save Embedding",
    "ZoodipLoadEmbedding": "Load Embedding",
    "ZoodipConvertEmbedding": "Convert Embedding",
    "ZoodipWordAsEmbedding": "Word as Embedding",
    "ZoodipMergeEmbeddings": "Merge Embeddings",
    "ZoodipNearestWords": "Nearest Words",
    "ZoodipApplyLora": "Apply LoRA",
    "ZoodipSaveLora": "Save LoRA",
    "ZoodipLoadLearnedLora": "Load Learned LoRA",
    "ZoodipGeneratePreview": "Generate Preview",
    "ZoodipCompareEmbeddings": "Compare Embeddings",
    "ZoodipEvaluateEmbedding": "Evaluate Embedding",
}
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
TINY = "tiny (embedded)"
SD15 = "random-sd15.safetensors"


@pytest.fixture(scope="module")
def comfy() -> Iterator[ComfyUI]:
    with ComfyUI() as server:
        yield server


@pytest.fixture(scope="module")
def sd15(comfy: ComfyUI) -> str:
    """The name of an SD1.5 checkpoint with random weights."""
    write_sd15(comfy.base / "models" / "checkpoints" / SD15)
    return SD15


# ---------------------------------------------------------------- prompts


def trained(comfy: ComfyUI, steps: int = 3, **settings: Any) -> Prompt:
    """A training on the embedded model, with Subspace Gradient and PUTS."""
    links: dict[str, Any] = {
        "model": ["model", 0],
        "images": ["pictures", 0],
        "captions": ["pictures", 1],
        "subspace_gradient": ["subspace", 0],
        "timestep_sampler": ["puts", 0],
    }
    named = {"token": "<boo>", "initializer": "monster", "preview_prompt": "a {} in the snow", "steps": steps}
    return {
        "model": comfy.node("ZoodipLoadQuantizedSD", checkpoint=TINY),
        "pictures": comfy.node("ZoodipLoadReferenceImages", folder="bundled: boo"),
        "subspace": comfy.node("ZoodipSubspaceGradient", tau=21),
        "puts": comfy.node("ZoodipPUTSSampler"),
        "train": comfy.node("ZoodipTrainToken", **{**links, **named, **settings}),
    }


@pytest.fixture(scope="module")
def judges(comfy: ComfyUI) -> dict[str, str]:
    """What Evaluate Embedding is given for a CLIP and a DINOv2 of random weights in ComfyUI's models folder."""
    declared = declare_torchvision()  # noqa: F841 - kept while transformers looks for it
    write_judges(comfy.base / "models" / "judges")
    return {"clip": "judges/clip", "dino": "judges/dino"}


def drawn(comfy: ComfyUI, text: Any, clip: Any = ("checkpoint", 1), **more: dict[str, Any]) -> Image.Image:
    """What the standard nodes draw on the SD1.5 checkpoint; ``more`` nodes stand before the text's."""
    prompt = {
        "checkpoint": comfy.node("CheckpointLoaderSimple", ckpt_name=SD15),
        **more,
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
    (picture,) = comfy.images(comfy.run(prompt), "shown")
    return picture


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.tobytes() == other.tobytes()


def charts(events: Events) -> list[dict[str, Any]]:
    """What the trainer told the page up to the end of a prompt."""
    return events.of_a_prompt("zoodip.step")


def steps_taken(run: Path) -> int:
    log = run / "steps.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def run_folders(comfy: ComfyUI) -> set[Path]:
    return {path / "run" for path in (comfy.base / "output" / "zoodip").glob("*")}


def write_token(comfy: ComfyUI, name: str, *widths: int, seed: int = 0) -> None:
    """Put a random token of a name into ComfyUI's embeddings folder."""
    noise = torch.Generator().manual_seed(seed)
    tensors = tuple(torch.randn(1, width, generator=noise) for width in widths)
    save_embedding(Embedding(f"<{name}>", tensors), comfy.base / "models" / "embeddings" / f"{name}.safetensors")


def write_pictures(folder: Path, caption: str = "a {} on a hill") -> None:
    """Three pictures of noise, and a caption for the first."""
    folder.mkdir(parents=True)
    for i in range(3):
        write_picture(folder / f"{i}.png", seed=i)
    (folder / "0.txt").write_text(caption)


def write_picture(file: Path, seed: int) -> None:
    Image.frombytes("RGB", (48, 48), random.Random(seed).randbytes(48 * 48 * 3)).save(file)


# ---------------------------------------------------------------- the pack


def test_all_nodes_are_there_and_explain_themselves(comfy: ComfyUI) -> None:
    info = comfy.get("/object_info")
    assert {name: info[name]["display_name"] for name in info if name.startswith("Zoodip")} == NODES
    for name in NODES:
        node = info[name]
        assert node["category"] == "ZOODiP"
        assert node["description"]
        assert len(node["output_tooltips"]) == len(node["output"])
        assert all(node["output_tooltips"]), name
        for group in ("required", "optional"):
            for input_, (_kind, *options) in node["input"].get(group, {}).items():
                assert options, f"{name}.{input_} has no tooltip"
                assert options[0].get("tooltip"), f"{name}.{input_} has no tooltip"


def test_import_is_silent(comfy: ComfyUI) -> None:
    """And quick: see ``test_the_pack_loads_fast_and_alone``, which looks at what it imports and reads."""
    log = comfy.log().partition("Starting server")[0]
    told = re.search(r"([\d.]+) seconds(.*): .*ComfyUI-ZOODiP", log)
    assert told, log
    assert not told[2], "the import failed"
    lines = log.splitlines()
    assert [line for line in lines if re.search("zoodip|traceback", line, re.IGNORECASE)] == [
        line for line in lines if told[0] in line
    ]


# ---------------------------------------------------------------- learning


def test_story_on_the_embedded_model(comfy: ComfyUI) -> None:
    prompt = trained(comfy, steps=40, preview_every=20)
    prompt["drawn"] = comfy.node(
        "ZoodipGeneratePreview", model=["model", 0], embedding=["train", 0], prompts="a {} in the snow\na monster"
    )
    prompt["compared"] = comfy.node(
        "ZoodipCompareEmbeddings", model=["model", 0], embedding_1=["train", 0], embedding_4=["train", 0], steps=2
    )
    prompt["curve"] = comfy.node("PreviewImage", images=["train", 2])
    with comfy.events() as events:
        entry = comfy.run(prompt)
        told = charts(events)
    shown = ("pictures", "train", "drawn", "compared", "curve")
    assert [len(comfy.images(entry, node)) for node in shown] == [6, 4, 2, 1, 1]
    one, other = comfy.images(entry, "drawn")
    assert not same(one, other)

    assert {chart["node"] for chart in told} == {"train"}
    states = list(dict.fromkeys(chart["state"] for chart in told))
    assert states == ["preparing", "training", "finished"]
    steps = [chart["step"] for chart in told if "loss" in chart]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 2
    last = told[-1]
    assert (last["step"], last["steps"], last["eta"]) == (40, 40, 0)
    assert len(last["curve"]["raw"]) == len(last["curve"]["smoothed"]) == 40
    assert all(chart["rate"] > 0 and chart["eta"] >= 0 and chart["memory"] > 0 for chart in told if "loss" in chart)
    assert entry["outputs"]["train"]["zoodip"] == [last]


def test_interrupted_training_goes_on_where_it_stopped(comfy: ComfyUI) -> None:
    prompt = trained(comfy, steps=150, seed=3)
    before = run_folders(comfy)
    with comfy.events() as events:
        queued = comfy.queue(prompt)
        events.wait(lambda event: event["type"] == "zoodip.step" and event["data"].get("step", 0) >= 20)
        (run,) = run_folders(comfy) - before
        taken = steps_taken(run)
        comfy.interrupt()
        with pytest.raises(InterruptError) as interrupted:
            comfy.wait(queued)
        stopped = charts(events)[-1]
    assert messages(interrupted.value.entry)["execution_interrupted"]["node_id"] == "train"
    reached = steps_taken(run)
    assert taken <= reached <= taken + 10
    assert stopped["state"] == "stopped"
    assert stopped["text"] == f"stopped at step {reached}; queue again to resume"

    with comfy.events() as events:
        comfy.run(prompt)
        told = charts(events)
    first = next(chart for chart in told if chart["state"] == "training")
    assert first["step"] == reached
    assert len(first["curve"]["raw"]) == reached
    assert told[-1]["state"] == "finished"

    with comfy.events() as events:
        comfy.run(trained(comfy, steps=150, seed=3, resume=False))
        assert next(chart["step"] for chart in charts(events) if "step" in chart) == 0
    (whole,) = run_folders(comfy) - before - {run}
    assert steps_taken(run) == steps_taken(whole) == 150
    assert (run / "boo.safetensors").read_bytes() == (whole / "boo.safetensors").read_bytes()


def test_stop_while_the_last_pictures_are_drawn(comfy: ComfyUI) -> None:
    prompt = trained(comfy, seed=7)
    with comfy.events() as events:
        queued = comfy.queue(prompt)
        events.wait(lambda event: event["type"] == "progress" and event["data"]["max"] != 3)  # no step of the training
        comfy.interrupt()
        with pytest.raises(InterruptError):
            comfy.wait(queued)
        stopped = charts(events)[-1]
    with comfy.events() as events:
        comfy.run(prompt)
        told = charts(events)
    assert next(chart["step"] for chart in told if chart["state"] == "training") == 3, "it was learned again"
    assert (stopped["state"], stopped["step"]) == ("stopped", 3)
    assert stopped["text"] != "stopped before the first step"


def test_generate_preview_can_be_interrupted(comfy: ComfyUI) -> None:
    prompt = {
        "model": comfy.node("ZoodipLoadQuantizedSD", checkpoint=TINY),
        "drawn": comfy.node("ZoodipGeneratePreview", model=["model", 0], prompts="a monster", steps=900),
    }
    with comfy.events() as events:
        queued = comfy.queue(prompt)
        events.wait(lambda event: event["type"] == "progress")
        comfy.interrupt()
        with pytest.raises(InterruptError):
            comfy.wait(queued)
        done = events.of_a_prompt("progress")
    assert all(progress["value"] < 300 for progress in done)


def test_prompt_after_an_interrupted_one_is_not_disturbed(comfy: ComfyUI) -> None:
    with comfy.events() as events:
        queued = comfy.queue(trained(comfy, steps=10_000, seed=4))
        following = comfy.queue(trained(comfy, seed=5))
        events.wait(lambda event: event["type"] == "zoodip.step" and event["data"].get("step", 0) >= 1)
        comfy.interrupt()
    with pytest.raises(InterruptError):
        comfy.wait(queued)
    assert comfy.wait(following)["outputs"]["train"]["zoodip"][0]["state"] == "finished"


def test_same_prompt_is_not_trained_again(comfy: ComfyUI) -> None:
    comfy.run(trained(comfy, seed=6))
    folders = run_folders(comfy)
    with comfy.events() as events:
        entry = comfy.run(trained(comfy, seed=6))
        assert charts(events) == []
    assert "train" in cached(entry)
    assert run_folders(comfy) == folders


def test_changed_input_is_trained_again(comfy: ComfyUI) -> None:
    folder = comfy.base / "input" / "subject"
    write_pictures(folder)
    prompt = trained(comfy, steps=12)  # each picture is drawn in some of them
    prompt["pictures"]["inputs"]["folder"] = "subject"

    def learned() -> bytes:
        known = run_folders(comfy)
        assert "train" not in cached(comfy.run(prompt))
        (run,) = run_folders(comfy) - known
        return (run / "boo.safetensors").read_bytes()

    tokens = [learned()]
    (folder / "0.txt").write_text("a {} in the ocean")
    tokens.append(learned())
    write_picture(folder / "1.png", seed=9)
    tokens.append(learned())
    prompt["train"]["inputs"]["mu"] = 0.02
    tokens.append(learned())
    prompt["subspace"]["inputs"]["tau"] = 2
    tokens.append(learned())
    assert len(set(tokens)) == 5


def test_changed_picture_of_the_same_name_is_noticed(comfy: ComfyUI) -> None:
    folder = comfy.base / "input" / "changing"
    write_pictures(folder)
    prompt = {
        "pictures": comfy.node("ZoodipLoadReferenceImages", folder="changing"),
        "shown": comfy.node("PreviewImage", images=["pictures", 0]),
    }
    before = comfy.images(comfy.run(prompt), "pictures")
    write_picture(folder / "1.png", seed=9)
    after = comfy.images(comfy.run(prompt), "pictures")
    assert [same(one, other) for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_ten_trainings_leave_no_memory_behind() -> None:
    with ComfyUI() as comfy:
        for seed in range(2):  # what is imported and allocated once
            comfy.run(trained(comfy, seed=seed))
        few = comfy.rss()
        for seed in range(2, 10):
            comfy.run(trained(comfy, seed=seed))
        many = comfy.rss()
    # Eight UNets of the embedded model that stayed would be 44 MB; 3 % are 20, and 0.3 were measured.
    assert many < 1.03 * few


# ---------------------------------------------------------------- standard nodes


@pytest.mark.usefixtures("sd15")
def test_saved_token_is_used_in_the_same_prompt(comfy: ComfyUI) -> None:
    write_token(comfy, "hat", 768)
    by_nodes = drawn(
        comfy,
        ["saved", 0],
        loaded=comfy.node("ZoodipLoadEmbedding", file="hat.safetensors"),
        saved=comfy.node(
            "ZoodipSaveEmbedding", embedding=["loaded", 0], filename="worn/top-hat", prompt="a photo of a {} on a hill"
        ),
    )
    assert (comfy.base / "models" / "embeddings" / "worn" / "top-hat.safetensors").is_file()
    assert not same(by_nodes, drawn(comfy, "a photo of a hat on a hill"))
    assert not same(by_nodes, drawn(comfy, "a photo of a on a hill"))
    assert same(by_nodes, drawn(comfy, "a photo of a embedding:worn/top-hat on a hill"))


def test_deleted_file_is_saved_again(comfy: ComfyUI) -> None:
    write_token(comfy, "hat", 768)
    prompt = {
        "loaded": comfy.node("ZoodipLoadEmbedding", file="hat.safetensors"),
        "saved": comfy.node("ZoodipSaveEmbedding", embedding=["loaded", 0], filename="cap"),
    }
    comfy.run(prompt)
    file = comfy.base / "models" / "embeddings" / "cap.safetensors"
    file.unlink()
    comfy.run(prompt)
    assert file.is_file()


@pytest.mark.usefixtures("sd15")
def test_applied_token_draws_what_its_file_draws(comfy: ComfyUI) -> None:
    write_token(comfy, "bow", 768)

    def applied(text: Any, strength: float) -> Image.Image:
        return drawn(
            comfy,
            text,
            clip=("applied", 0),
            loaded=comfy.node("ZoodipLoadEmbedding", file="bow.safetensors"),
            applied=comfy.node(
                "ZoodipApplyEmbedding", clip=["checkpoint", 1], embedding=["loaded", 0], strength=strength
            ),
        )

    by_file = drawn(comfy, "a photo of embedding:bow on a hill")
    assert same(applied("a photo of <bow> on a hill", 1.0), by_file)
    assert not same(by_file, drawn(comfy, "a photo of <bow> on a hill"))
    stronger = drawn(comfy, "a photo of (embedding:bow:1.3) on a hill")
    assert same(applied("a photo of <bow> on a hill", 1.3), stronger)
    assert not same(by_file, stronger)
    assert same(applied(["applied", 1], 1.3), drawn(comfy, "(embedding:bow:1.3)"))


@pytest.mark.usefixtures("sd15")
def test_two_tokens_in_one_prompt(comfy: ComfyUI) -> None:
    nodes = {}
    clip: list[Any] = ["checkpoint", 1]
    for seed, name in enumerate(("one", "other")):
        write_token(comfy, name, 768, seed=seed)
        nodes[f"loaded {name}"] = comfy.node("ZoodipLoadEmbedding", file=f"{name}.safetensors")
        nodes[f"applied {name}"] = comfy.node("ZoodipApplyEmbedding", clip=clip, embedding=[f"loaded {name}", 0])
        clip = [f"applied {name}", 0]
    by_file = drawn(comfy, "a embedding:one on a embedding:other")
    assert same(drawn(comfy, "a <one> on a <other>", clip=clip, **nodes), by_file)
    assert not same(by_file, drawn(comfy, "a embedding:other on a embedding:one"))


@pytest.mark.usefixtures("sd15")
def test_token_of_a_changed_file_is_never_stale(comfy: ComfyUI) -> None:
    pictures = []
    for seed in range(2):
        write_token(comfy, "changing", 768, seed=seed)
        pictures.append(
            drawn(
                comfy,
                "a <changing>",
                clip=("applied", 0),
                loaded=comfy.node("ZoodipLoadEmbedding", file="changing.safetensors"),
                applied=comfy.node("ZoodipApplyEmbedding", clip=["checkpoint", 1], embedding=["loaded", 0]),
            )
        )
    assert not same(*pictures)


@pytest.mark.usefixtures("sd15")
@pytest.mark.parametrize(("widths", "told"), [((128,), "128"), ((768, 1280), "768+1280")], ids=["tiny", "sdxl"])
def test_token_of_another_model_is_refused(comfy: ComfyUI, widths: tuple[int, ...], told: str) -> None:
    write_token(comfy, "foreign", *widths)
    with pytest.raises(NodeError) as failed:
        drawn(
            comfy,
            "a <foreign>",
            clip=("applied", 0),
            loaded=comfy.node("ZoodipLoadEmbedding", file="foreign.safetensors"),
            applied=comfy.node("ZoodipApplyEmbedding", clip=["checkpoint", 1], embedding=["loaded", 0]),
        )
    assert failed.value.node == "applied"
    message = str(failed.value)
    assert "embedding does not fit clip" in message
    assert f"width {told} " in message
    assert "needs 768;" in message


# ---------------------------------------------------------------- example workflows


def example(comfy: ComfyUI, path: Path) -> Prompt:
    return to_api(json.loads(path.read_text(encoding="utf-8")), comfy.get("/object_info"))


def of_kind(prompt: Prompt, kind: str) -> dict[str, dict[str, Any]]:
    """The inputs of the nodes of a kind, by id."""
    return {node: told["inputs"] for node, told in prompt.items() if told["class_type"] == kind}


FILES = ("checkpoint", "ckpt_name", "unet_name", "clip_name", "clip_name1", "clip_name2", "vae_name", "lora_name")
"""Inputs of loaders, ours and ComfyUI's own, that name a file."""


def needs_files(path: Path) -> bool:
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    return any(node["type"] in ("CheckpointLoaderSimple", "UNETLoader") for node in nodes) or any(
        node["type"] == "ZoodipLoadQuantizedSD" and node["widgets_values"][0] != TINY for node in nodes
    )


def test_there_are_examples() -> None:
    assert EXAMPLES, f"{ROOT / 'example_workflows'} holds no workflow"
    assert not all(map(needs_files, EXAMPLES)), "no example runs on the embedded model alone"


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in EXAMPLES if not needs_files(path)])
def test_example_runs(comfy: ComfyUI, judges: dict[str, str], path: Path) -> None:
    prompt = example(comfy, path)
    for inputs in of_kind(prompt, "ZoodipEvaluateEmbedding").values():
        inputs |= {**judges, "seeds": 1, "steps": 2}
    for inputs in of_kind(prompt, "ZoodipTrainToken").values():
        inputs |= {"steps": 30, "preview_every": min(inputs["preview_every"], 20)}
    entry = comfy.run(prompt)
    trainers = of_kind(prompt, "ZoodipTrainToken")
    assert trainers
    for node in trainers:
        (chart,) = entry["outputs"][node]["zoodip"]
        assert (chart["state"], chart["step"]) == ("finished", 30)
    for node, inputs in of_kind(prompt, "ZoodipGeneratePreview").items():
        assert len(comfy.images(entry, node)) == len(inputs["prompts"].splitlines())
    for node in of_kind(prompt, "ZoodipEvaluateEmbedding"):
        assert len(comfy.images(entry, node)) == 1
        (table,) = entry["outputs"][node]["text"]
        assert all(name in table for name in ("CLIP-T", "CLIP-I", "DINO", "before", "after"))


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in EXAMPLES if needs_files(path)])
def test_example_lacks_only_its_files(comfy: ComfyUI, path: Path) -> None:
    prompt = example(comfy, path)
    try:
        answer = comfy.post("/prompt", {"prompt": prompt, "client_id": comfy.client})
    except RefusedError as refused:
        answer = refused.body
    else:  # Caption Images alone runs, and keeps the captions that the bundled subject has
        (node,) = of_kind(prompt, "ZoodipCaptionImages")
        assert len(comfy.wait(answer["prompt_id"])["outputs"][node]["text"]) == 6
    errors = [error for node in answer["node_errors"].values() for error in node["errors"]]
    lacking = {name for node in prompt.values() for name in node["inputs"] if name in FILES}
    assert {(error["type"], error["extra_info"]["input_name"]) for error in errors} == {
        ("value_not_in_list", name) for name in lacking
    }


def test_a_model_in_files_of_its_parts_draws_as_the_checkpoint(comfy: ComfyUI, sd15: str) -> None:
    write_parts(comfy.base / "models/checkpoints" / sd15)

    def drawn(**model: str) -> Image.Image:
        prompt = {
            "model": comfy.node("ZoodipLoadQuantizedSD", **model),
            "draw": comfy.node("ZoodipGeneratePreview", model=["model", 0], prompts="a dog", steps=1, resolution=64),
        }
        (picture,) = comfy.images(comfy.run(prompt), "draw")
        return picture

    whole = drawn(checkpoint=sd15)
    parted = {"clip": "clip_l.safetensors (clip)", "vae": "vae-ft.safetensors (vae)"}
    assert same(whole, drawn(checkpoint="bare.safetensors (unet)", **parted))
    with pytest.raises(NodeError, match="has no VAE"):
        drawn(checkpoint="bare.safetensors (unet)")


def test_sd15_example_draws_the_token(comfy: ComfyUI, sd15: str) -> None:
    prompt = example(comfy, ROOT / "example_workflows" / "sd15_int8.json")
    (train,) = of_kind(prompt, "ZoodipTrainToken").values()
    (positive,) = (text for text in of_kind(prompt, "CLIPTextEncode").values() if train["token"] in text["text"])
    ((image, _),) = of_kind(prompt, "SaveImage").items()
    train |= {"resolution": 64, "steps": 2, "n": 2, "preview_every": 0}
    changes: dict[str, dict[str, Any]] = {
        "ZoodipLoadQuantizedSD": {"checkpoint": sd15},
        "CheckpointLoaderSimple": {"ckpt_name": sd15},
        "EmptyLatentImage": {"width": 64, "height": 64},
        "KSampler": {"steps": 1},
    }
    for kind, values in changes.items():
        (inputs,) = of_kind(prompt, kind).values()
        inputs |= values
    apply, clip = positive["clip"][0], positive["clip"]
    assert prompt[apply]["class_type"] == "ZoodipApplyEmbedding"

    entry = comfy.run(prompt)
    (applied,) = comfy.images(entry, image)
    (saved,) = comfy.base.glob("models/embeddings/my-subject*.safetensors")
    assert load_embedding(saved).metadata["steps"] == "2"

    text = positive["text"]
    positive["clip"] = prompt[apply]["inputs"]["clip"]
    (without,) = comfy.images(comfy.run(prompt), image)
    positive["text"] = text.replace(train["token"], f"embedding:{saved.stem}")
    (by_file,) = comfy.images(comfy.run(prompt), image)
    assert not same(applied, without)
    assert same(applied, by_file)

    positive |= {"text": text, "clip": clip}
    train["seed"] = 1
    (again,) = comfy.images(comfy.run(prompt), image)
    assert not same(applied, again), "the image is of the token before"


# ---------------------------------------------------------------- files that are none of our business


@pytest.fixture
def outside(comfy: ComfyUI) -> Path:
    """A folder outside of ComfyUI's, with a picture and a token; links to it stand in ``input`` and ``embeddings``."""
    folder = comfy.base / "outside"
    if not folder.exists():
        write_pictures(folder)
        write_token(comfy, "secret", 768)
        (comfy.base / "models" / "embeddings" / "secret.safetensors").rename(folder / "secret.safetensors")
        write_picture(comfy.base / "output" / "result.png", seed=0)
        (comfy.base / "input" / "linked").symlink_to(folder)
        (comfy.base / "input" / "mixed").mkdir()
        (comfy.base / "input" / "mixed" / "0.png").symlink_to(folder / "0.png")
        (comfy.base / "models" / "embeddings" / "linked").symlink_to(folder)
    return folder


def files(comfy: ComfyUI) -> set[Path]:
    """All files but ComfyUI's own records."""
    kept = (path for path in comfy.base.rglob("*") if "ComfyUI-ZOODiP" not in path.parts)
    return {path for path in kept if path.is_file() and comfy.base / "user" not in path.parents}


def refusal(comfy: ComfyUI, prompt: Prompt) -> str:
    """What ComfyUI says on a prompt that it must not run."""
    with pytest.raises(RefusedError) as refused:
        comfy.run(prompt)
    assert refused.value.status == 400
    return " ".join(error["details"] for node in refused.value.body["node_errors"].values() for error in node["errors"])


LEADS_OUT = ["../evil", "/tmp/evil", "down/../../evil", "..\\evil", "linked/evil", "../embeddings-2/evil"]


@pytest.mark.parametrize("filename", LEADS_OUT)
def test_token_is_not_saved_elsewhere(comfy: ComfyUI, outside: Path, filename: str) -> None:
    write_token(comfy, "hat", 768)
    saving: Prompt = {
        "loaded": comfy.node("ZoodipLoadEmbedding", file="hat.safetensors"),
        "saved": comfy.node("ZoodipSaveEmbedding", embedding=["loaded", 0], filename=filename),
    }
    before = files(comfy)
    assert "what lies in the embeddings folder" in refusal(comfy, saving)
    saving["name"] = comfy.node("PrimitiveString", value=filename)  # known only when it runs
    saving["saved"]["inputs"]["filename"] = ["name", 0]
    with pytest.raises(NodeError, match="what lies in the embeddings folder") as failed:
        comfy.run(saving)
    assert failed.value.node == "saved"
    assert files(comfy) == before
    assert not Path("/tmp/evil.safetensors").exists()


@pytest.mark.parametrize(
    "folder",
    [
        "../outside",
        "{base}/outside",
        "../outside/0.png",
        "../output/result.png",
        "result.png [output]",
        "linked",
        "linked/0.png",
        "mixed",
        "mixed/0.png",
        "bundled: ../model",
    ],
)
def test_pictures_are_not_read_elsewhere(comfy: ComfyUI, outside: Path, folder: str) -> None:
    loading = {
        "pictures": comfy.node("ZoodipLoadReferenceImages", folder=folder.format(base=comfy.base)),
        "shown": comfy.node("PreviewImage", images=["pictures", 0]),
    }
    before = files(comfy)
    assert refusal(comfy, loading).startswith("folder")
    assert files(comfy) == before


@pytest.mark.parametrize("file", ["../../outside/secret.safetensors", "{base}/outside/secret.safetensors"])
def test_tokens_are_not_read_elsewhere(comfy: ComfyUI, outside: Path, file: str) -> None:
    loading = {
        "loaded": comfy.node("ZoodipLoadEmbedding", file=file.format(base=comfy.base)),
        "saved": comfy.node("ZoodipSaveEmbedding", embedding=["loaded", 0], filename="stolen"),
    }
    before = files(comfy)
    assert "is not among ComfyUI's embeddings" in refusal(comfy, loading)
    assert files(comfy) == before
