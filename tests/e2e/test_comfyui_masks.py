"""Masks in a real ComfyUI: what LoadImage and LoadImageMask give is what lies beside a run's references."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.comfyui import ComfyUI, NodeError, Prompt

pytestmark = pytest.mark.e2e

SIDE = 48


@pytest.fixture(scope="module")
def comfy() -> Iterator[ComfyUI]:
    with ComfyUI() as server:
        yield server


def grey() -> Image.Image:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (10, 12, 30, 40))
    mask.paste(128, (30, 12, 33, 40))
    return mask


def write_pictures(folder: Path) -> None:
    """One that was painted on in ComfyUI's mask editor, which makes paint transparent; a plain one, and its mask."""
    folder.mkdir(parents=True, exist_ok=True)
    painted = Image.effect_noise((SIDE, SIDE), 80).convert("RGBA")
    painted.putalpha(grey().point(lambda value: 255 - value))
    painted.save(folder / "painted.png")
    Image.effect_noise((SIDE, SIDE), 80).convert("RGB").save(folder / "plain.png")
    grey().convert("RGB").save(folder / "mask.png")


def training(comfy: ComfyUI, masks: list[Any], **more: Any) -> Prompt:
    return {
        "model": comfy.node("ZoodipLoadQuantizedSD", checkpoint="tiny (embedded)"),
        "one": comfy.node("LoadImage", image="masked/painted.png"),
        "other": comfy.node("LoadImage", image="masked/plain.png"),
        "both": comfy.node("ImageBatch", image1=["one", 0], image2=["other", 0]),
        **more,
        "train": comfy.node(
            "ZoodipTrainToken",
            model=["model", 0],
            images=["both", 0],
            masks=masks,
            token="<masked>",
            initializer="monster",
            preview_prompt="a {} in the snow",
            steps=3,
        ),
    }


def folders(comfy: ComfyUI) -> set[Path]:
    return set((comfy.base / "output" / "zoodip").glob("masked*"))


def test_masks_of_comfyui_s_nodes_are_learned_with(comfy: ComfyUI) -> None:
    write_pictures(comfy.base / "input" / "masked")
    mask = {
        "mask": comfy.node("LoadImageMask", image="masked/mask.png", channel="red"),
        "third": comfy.node("MaskToImage", mask=["one", 1]),
        "first": comfy.node("ImageToMask", image=["pair", 0], channel="red"),
        "second": comfy.node("MaskToImage", mask=["mask", 0]),
        "pair": comfy.node("ImageBatch", image1=["third", 0], image2=["second", 0]),
    }
    comfy.run(training(comfy, ["first", 0], **mask))
    (folder,) = folders(comfy)
    assert sorted(path.name for path in (folder / "images").iterdir()) == [
        "0001.mask.png",
        "0001.png",
        "0002.mask.png",
        "0002.png",
    ]
    for name in ("0001", "0002"):
        with Image.open(folder / "images" / f"{name}.mask.png") as written:
            np.testing.assert_allclose(np.asarray(written, dtype=int), np.asarray(grey(), dtype=int), atol=1)
    config = json.loads((folder / "run" / "config.json").read_text())
    assert (config["mask_background"], config["transparency"]) == (0.1, "background")
    assert len((folder / "run" / "steps.jsonl").read_text().splitlines()) == 3
    before = folders(comfy)
    comfy.run(training(comfy, ["one", 1]) | {"both": comfy.node("ImageScale", image=["one", 0], width=48, height=48)})
    (alone,) = folders(comfy) - before
    assert sorted(path.name for path in (alone / "images").iterdir()) == ["0001.mask.png", "0001.png"]


def test_an_empty_mask_is_none_and_a_lone_one_is_refused(comfy: ComfyUI) -> None:
    write_pictures(comfy.base / "input" / "masked")
    before = folders(comfy)
    comfy.run(training(comfy, ["other", 1]))  # 64 x 64 zeros
    (folder,) = folders(comfy) - before
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["0001.png", "0002.png"]
    with pytest.raises(NodeError, match="masks: 1 mask for 2 images; give one for each"):
        comfy.run(training(comfy, ["one", 1]))


def test_a_folder_s_masks_come_along(comfy: ComfyUI) -> None:
    folder = comfy.base / "input" / "beside"
    folder.mkdir()
    Image.effect_noise((SIDE, SIDE), 80).convert("RGB").save(folder / "a.png")
    Image.effect_noise((SIDE, SIDE), 80).convert("RGB").save(folder / "b.png")
    grey().save(folder / "b.mask.png")
    before = folders(comfy)
    prompt = training(comfy, ["pictures", 2]) | {
        "pictures": comfy.node("ZoodipLoadReferenceImages", folder="beside"),
    }
    prompt["train"]["inputs"]["images"] = ["pictures", 0]
    comfy.run(prompt)
    (run,) = folders(comfy) - before
    assert sorted(path.name for path in (run / "images").iterdir()) == ["0001.png", "0002.mask.png", "0002.png"]
    with Image.open(run / "images" / "0002.mask.png") as written:
        assert written.tobytes() == grey().tobytes()
