"""Masks on ZO Train Token: as ComfyUI's nodes give them, and what a run makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fake_host import FakeHost
from tests.test_node_training import _every_step_is_told, core, model, one_preview, pictures, runs, stopped, train

__all__ = ["_every_step_is_told", "core", "model", "one_preview"]  # fixtures
EMPTY = torch.zeros(1, 64, 64)
"""What LoadImage gives of a picture without transparency."""


def painted(side: int = 48, box: tuple[int, int, int, int] = (10, 12, 30, 40)) -> torch.Tensor:
    mask = torch.zeros(1, side, side)
    mask[:, box[1] : box[3], box[0] : box[2]] = 1
    return mask


def masks_of(count: int = 6) -> list[torch.Tensor]:
    return [painted()] + [EMPTY] * (count - 1)


def losses(folder: Path) -> list[list[float]]:
    return [json.loads(line)["losses"] for line in (folder / "run" / "steps.jsonl").read_text().splitlines()]


def test_masks_lie_beside_the_runs_references(pack: Any, model: Any, host: FakeHost) -> None:
    stopped(pack, model, host, masks=masks_of())
    (folder,) = runs(host)
    names = sorted(path.name for path in (folder / "images").iterdir())
    assert names == ["0001.mask.png", *(f"{i:04}.png" for i in range(1, 7))]
    with Image.open(folder / "images" / "0001.mask.png") as mask:
        assert mask.mode == "L"
        np.testing.assert_array_equal(np.asarray(mask), (painted()[0].numpy() * 255))
    assert json.loads((folder / "run" / "config.json").read_text())["mask_background"] == 0.1


@pytest.mark.usefixtures("one_preview")
def test_a_run_with_masks_is_another_and_resumes_as_itself(pack: Any, model: Any, host: FakeHost) -> None:
    plain = train(pack, model)["result"][0]
    (first,) = runs(host)
    empty = train(pack, model, masks=[EMPTY] * 6)["result"][0]  # none is painted: the same run, which is finished
    assert runs(host) == [first]
    assert torch.equal(plain.vectors, empty.vectors)
    stopped(pack, model, host, at=2, masks=masks_of())
    (second,) = set(runs(host)) - {first}
    half = losses(second)
    masked = train(pack, model, masks=masks_of())["result"][0]
    assert set(runs(host)) == {first, second}
    assert losses(second)[: len(half)] == half
    assert not torch.equal(plain.vectors, masked.vectors)
    stopped(pack, model, host, masks=[painted(box=(10, 12, 30, 41)), *masks_of()[1:]])
    assert len(runs(host)) == 3


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([painted()], "masks: 1 mask for 6 images; give one for each, in their order"),
        ([painted()] * 7, "masks: 7 masks for 6 images"),
        ([painted()[:, :, :30]] * 6, "masks: mask 1 is 30 x 48, another shape than its picture of 48 x 48"),
        ([torch.zeros(1, 48, 48, 3)] * 6, r"masks: expected MASK batches .* got \[1, 48, 48, 3\]; connect a MASK"),
        (["mask"] * 6, r"masks: expected MASK batches .* got str"),
        ([painted() * float("nan")] * 6, "of finite numbers"),
    ],
)
def test_masks_that_do_not_fit_are_refused(pack: Any, model: Any, host: FakeHost, masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(pack, model, masks=masks)
    assert runs(host) == []


def test_masks_that_would_not_be_used_are_refused(pack: Any, model: Any, host: FakeHost) -> None:
    with pytest.raises(ValueError, match="mask_background = 1 uses no masks, and masks are connected"):
        train(pack, model, masks=masks_of(), mask_background=1.0)


def test_a_batch_a_list_and_plain_masks_are_the_same(pack: Any) -> None:
    import importlib

    nodes = importlib.import_module(f"{pack.__name__}.nodes.pictures")
    own = nodes.to_pictures(pictures(), "images")
    each = [painted(box=(i, 0, 30, 30)) for i in range(6)]
    ways = [each, [torch.cat(each)], [torch.cat(each[:2]), *each[2:]], [mask[0] for mask in each]]
    found = [[mask.tobytes() for mask in nodes.to_masks(way, own)] for way in ways]
    assert all(one == found[0] for one in found)
    assert len(set(found[0])) == 6
    assert nodes.to_masks(None, own) == [None] * 6
    assert nodes.to_masks([EMPTY], own) == [None] * 6  # of one LoadImage, beside a list of pictures
