"""What only a CUDA card can show: ``python -m pytest -m gpu``, or ``benchmarks/on_a_card.sh``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import random_models
import torch
from PIL import Image
from torch import nn

from zoodip_core import TrainConfig, load_quantized
from zoodip_core.base.stopping import Stopped, stopped_by
from zoodip_core.model.graphs import MOST_SHAPES
from zoodip_core.model.quantize import QuantizedLayer, quantize_weight
from zoodip_core.tiny import concepts
from zoodip_core.train.prepared import Training

pytestmark = pytest.mark.gpu
CARD = torch.device("cuda")
STEPS = 50


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / f"{request.param}.safetensors"
    random_models.write_random(path, request.param, "small")
    return path


def training(model: str | Path, **settings: Any) -> Training:
    """A run of the paper's search on the card."""
    given: dict[str, Any] = {"images": (str(concepts.load("boo").images),), "token": "<boo>", "initializer": "monster"}
    given |= {"model": str(model), "resolution": 128, "steps": STEPS, "device": "cuda", "dtype": "float16"}
    return Training(TrainConfig.with_preset("paper", {**given, **settings}))


def losses(run: Training) -> list[float]:
    return [loss for _ in range(STEPS) for loss in run.step().losses]


@pytest.mark.parametrize("weights", ["int8", "int4", "float8"])
def test_graphs_give_the_same_losses(file: Path, weights: str) -> None:
    said: list[str] = []
    captured = training(file, weights=weights)
    captured.on_event = lambda event: said.append(str(event))
    assert captured.plan.graphs
    with_graphs = losses(captured)
    assert not said, said
    assert with_graphs == losses(training(file, weights=weights, graphs="off"))


def test_candidates_in_turn_and_several_captions(file: Path) -> None:
    settings = {"batch": 1, "template": "ti", "num_vectors": 3}
    assert losses(training(file, **settings)) == losses(training(file, **settings, graphs="off"))


def test_pictures_of_five_shapes(file: Path, tmp_path: Path) -> None:
    """Four are captured, the fifth is launched plainly."""
    for number, size in enumerate([(128, 128), (200, 150), (150, 200), (240, 120), (300, 100)]):
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / f"{number}.png")
    settings = {"images": (str(tmp_path),)}
    run = training(file, **settings)
    assert run.plan.captured == MOST_SHAPES
    assert losses(run) == losses(training(file, **settings, graphs="off"))


LAYERS = [nn.Linear(96, 50), nn.Linear(256, 33), nn.Conv2d(32, 7, 3), nn.Conv2d(4, 8, 3), nn.Conv2d(64, 5, 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weights", ["int8", "int4", "float8"])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_weight_is_the_same_on_the_card(layer: Any, weights: str, dtype: torch.dtype) -> None:
    full = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.05
    parts = quantize_weight(full, weights)
    here = QuantizedLayer(layer, parts, None, dtype, torch.device("cpu")).weight
    there = QuantizedLayer(layer, parts, None, dtype, CARD).weight
    assert torch.equal(there.cpu(), here)


def test_a_stop_is_answered_within_a_step(file: Path) -> None:
    run = training(file)
    for _ in range(3):
        run.step()
    before = run.search.step
    with stopped_by(lambda: True), pytest.raises(Stopped):
        run.step()
    assert run.search.step == before


def test_the_card_is_empty_afterwards(file: Path) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = load_quantized(file, device="cuda")
    run = training(file)
    losses(run)
    del run, model
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before
