"""Caption Images in a real ComfyUI over its HTTP API; see :mod:`.comfyui`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.e2e.comfyui import ComfyUI, NodeError, Prompt
from tests.e2e.test_comfyui_api import TINY
from tests.small_captioners import SmallCaptioners, pictures

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    small = SmallCaptioners(tmp_path_factory.mktemp("captioners"))
    with ComfyUI() as server:
        monster = small.of("blip", red="a monster on a red background", blue="a blue monster")
        place = server.base / "models" / "LLM"
        place.mkdir(parents=True)
        monster.rename(place / "blip")
        small.of("qwen2_vl").rename(place / "qwen")
        photos = server.base / "input" / "photos"
        photos.mkdir(parents=True)
        for number, picture in enumerate(pictures(), 1):
            picture.resize((96, 64)).save(photos / f"{number}.png")
        Image.new("RGB", (64, 64), "green").save(photos / "3.png")
        (photos / "3.txt").write_text("a {} of my own")
        yield server


def captioned(comfy: ComfyUI, **inputs: Any) -> Prompt:
    links = {"images": ["pictures", 0], "captions": ["pictures", 1]}
    given = {"caption_with": "LLM/blip", "class_word": "monster", **links, **inputs}
    return {
        "pictures": comfy.node("ZoodipLoadReferenceImages", folder="photos"),
        "captions": comfy.node("ZoodipCaptionImages", **given),
    }


def shown(comfy: ComfyUI, **inputs: Any) -> list[str]:
    return list(comfy.run(captioned(comfy, **inputs))["outputs"]["captions"]["text"])


def test_captions_are_written_and_trained_with(comfy: ComfyUI) -> None:
    links = {"model": ["model", 0], "images": ["pictures", 0], "captions": ["captions", 0]}
    named = {"token": "<boo>", "initializer": "monster", "preview_prompt": "a {}", "steps": 20}
    trainer = comfy.node("ZoodipTrainToken", **links, **named)
    model = comfy.node("ZoodipLoadQuantizedSD", checkpoint=TINY)
    entry = comfy.run({**captioned(comfy), "model": model, "train": trainer})
    assert entry["outputs"]["captions"]["text"] == [
        "1. a {} on a red background",
        "2. a blue {}",
        "3. a {} of my own",
    ]
    (file,) = (comfy.base / "output" / "zoodip").glob("*/captions.json")
    assert json.loads(file.read_text()) == {
        "0001.png": ["a {} on a red background"],
        "0002.png": ["a blue {}"],
        "0003.png": ["a {} of my own"],
    }


def test_a_chat_model_and_corrections(comfy: ComfyUI) -> None:
    told = shown(comfy, caption_with="LLM/qwen", class_word="cat", corrections="\n\nanother {}")
    assert told == ["1. a photo of a {}, a dog sitting on grass", "2. a {} in the room", "3. another {}"]


def test_texts_of_another_node_get_the_token_s_place(comfy: ComfyUI) -> None:
    """As a captioner of another pack gives them, one string for each picture: no model is asked for."""
    prompt = captioned(comfy, caption_with="nowhere", captions=["text", 0], images=["one", 0])
    prompt["text"] = comfy.node("PrimitiveString", value="The image shows a monster in the woods.")
    prompt["one"] = comfy.node("ZoodipLoadReferenceImages", folder="photos/1.png")
    (told,) = comfy.run(prompt)["outputs"]["captions"]["text"]
    assert told == "1. a {} in the woods"


def test_what_is_missing_is_told_on_the_node(comfy: ComfyUI) -> None:
    with pytest.raises(NodeError, match="hf download") as failed:
        comfy.run(captioned(comfy, caption_with="me/nothing"))
    assert failed.value.node == "captions"
    with pytest.raises(NodeError, match="parts of a path"):
        comfy.run(captioned(comfy, caption_with="../models/LLM/blip"))
