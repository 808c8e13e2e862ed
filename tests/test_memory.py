"""Memory: what is predicted is what a run takes, and a run is laid out to fit."""

from __future__ import annotations

import functools
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import random_models
import torch
from safetensors.torch import load_file, save_file

from zoodip_core.base.errors import ModelError, NoRoomError, ZoodipError
from zoodip_core.data.cuts import buckets
from zoodip_core.model import dry_run, memory
from zoodip_core.model.kinds import DTYPES, TINY
from zoodip_core.model.load import load_quantized
from zoodip_core.model.memory import CUDA_CONTEXT, activation_peak, plan, predict_memory
from zoodip_core.model.memory_use import MemoryUse
from zoodip_core.model.quantize import stored_bytes
from zoodip_core.model.recognise import open_model
from zoodip_core.train.presets import RECIPE

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
"""CUDA need not be there: it is described only."""
SCORES = 8 << 20
"""What attention in pieces takes, of any size of picture, and the prediction leaves out."""


OTHERS = [pytest.param(family, marks=pytest.mark.slow) for family in random_models.FAMILIES if family != "sdxl"]
"""Their layers are among those of SDXL, whose text encoders are theirs as well."""


@pytest.fixture(scope="module", params=[TINY, "sdxl", *OTHERS])
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | Path]:
    if request.param == TINY:
        yield TINY
        return
    place = tmp_path_factory.mktemp(request.param)
    yield random_models.write_random(place / "model.safetensors", request.param, "small", 6)
    shutil.rmtree(place)


@pytest.mark.parametrize(
    ("weights", "dtype", "pixels"),
    [
        ("int8", "float32", 128),
        pytest.param("int8", "bfloat16", 192, marks=pytest.mark.slow),
        pytest.param("none", "float32", 256, marks=pytest.mark.slow),
        pytest.param("int4", "float32", 64, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_predicted_memory_is_what_a_step_takes(model_path: str | Path, weights: str, dtype: str, pixels: int) -> None:
    model = load_quantized(model_path, weights=weights, dtype=dtype, device="cpu")
    use = predict_memory(model.blueprint, weights, DTYPES[dtype], CPU, pixels, 3)
    side = pixels // (4 if model_path == TINY else 8)
    prompt = model.prompt("a {}", 1)
    candidates, noisy = torch.zeros(3, 1, sum(model.info.dims)), torch.zeros(1, 4, side, side)

    def step() -> None:
        model.predict(noisy, 500, model.encode(prompt, candidates), torch.zeros(6))

    step()  # loads the model
    assert use.weights == model.stored_bytes()
    measured = activation_peak(step, CPU)
    assert use.activations == pytest.approx(measured, rel=0.15, abs=SCORES if dtype == "bfloat16" else 0)

    with model.vae("encoder") as vae:
        picture = torch.zeros(1, 3, pixels, pixels, dtype=vae.dtype)
        encoding = stored_bytes(vae) + activation_peak(lambda: vae.encode(picture), CPU)
    assert use.encoding == pytest.approx(encoding, rel=0.15)


@pytest.mark.parametrize("model_path", [TINY, pytest.param("sdxl", marks=pytest.mark.slow), *OTHERS], indirect=True)
@torch.no_grad()
def test_the_largest_of_several_shapes_is_foretold(model_path: str | Path) -> None:
    """A run on pictures of three shapes takes what is predicted for the largest, squares or none among them."""
    model = load_quantized(model_path, weights="int8", dtype="float32", device="cpu")
    factor, prompt = 4 if model_path == TINY else 8, model.prompt("a {}", 1)
    candidates = torch.zeros(3, 1, sum(model.info.dims))

    def measured(height: int, width: int) -> tuple[int, int]:
        noisy = torch.zeros(1, 4, height // factor, width // factor)
        step = activation_peak(lambda: model.predict(noisy, 500, model.encode(prompt, candidates), torch.zeros(6)), CPU)
        with model.vae("encoder") as vae:
            picture = torch.zeros(1, 3, height, width, dtype=vae.dtype)
            return step, stored_bytes(vae) + activation_peak(lambda: vae.encode(picture), CPU)

    measured(64, 64)  # loads the model
    shapes = [(128, 128), (80, 192), (256, 64)]
    assert set(shapes) <= {(height, width) for width, height in buckets(128)}
    peak_of_shape = {shape: measured(*shape) for shape in shapes}
    for some in (shapes, shapes[1:]):
        largest = max(some, key=math.prod)
        found = plan(model.blueprint, "int8", torch.float32, CPU, 128, 3, free=10**12, largest=largest).use
        peaks = [peak_of_shape[shape] for shape in some]
        assert found.activations == pytest.approx(max(step for step, _ in peaks), rel=0.15)
        assert found.encoding == pytest.approx(max(encoding for _, encoding in peaks), rel=0.15)


@pytest.mark.parametrize(
    ("weights", "dtype"), [("none", "bfloat16"), ("int8", "float32"), ("float8", "bfloat16"), ("int4", "bfloat16")]
)
def test_predicted_weights_are_the_stored_bytes(weights: str, dtype: str) -> None:
    model = load_quantized(TINY, weights=weights, dtype=dtype, device="cpu")
    use = predict_memory(model.blueprint, weights, DTYPES[dtype], CPU, 64, 1)
    model.encode(model.prompt("a {}", 1), torch.zeros(1, 1, 128))
    assert use.weights == model.stored_bytes()


def test_the_measured_peak_counts_what_lives_at_once() -> None:
    def work() -> None:
        first = torch.ones(1000)
        del first
        second = torch.ones(2000)
        view = second[1:].view(-1)
        view += 1
        third = second + second
        del second, view, third
        torch.ones(10)

    assert activation_peak(work, CPU) == 2 * 2000 * 4


def test_the_total_is_the_larger_of_encoding_and_training() -> None:
    weights = {"unet": 100, "text_encoder": 20}
    assert MemoryUse(weights, activations=30, encoding=90, fixed=7).total == 157
    assert MemoryUse(weights, activations=30, encoding=400, fixed=7).total == 407


SEEN = [(717, 795), (1035, 1141), (1166, 1229), (3527, 3752), (3873, 4251)]
"""Allocated and reserved on an H100, in MB: SD1.5 in int4, int8 in turn and in a batch, SDXL in turn and in a batch."""


@pytest.mark.parametrize(("allocated", "reserved"), SEEN)
def test_what_the_allocator_keeps_is_never_foretold_too_low(allocated: int, reserved: int) -> None:
    foretold = allocated + memory._kept_free(allocated * 10**6) / 1e6
    assert reserved <= foretold <= 1.05 * reserved


def test_the_context_is_what_a_card_of_our_own_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def card(free: int, reserved: int, *, touched: bool = True) -> int:
        for name, answer in {
            "is_available": True,
            "is_initialized": touched,
            "mem_get_info": (free * 10**6, 80_000 * 10**6),
            "memory_reserved": reserved * 10**6,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        return memory.cuda_context(CUDA)

    assert card(79_480, 0) == card(78_251, 1229) == 520_000_000
    assert card(70_000, 0) == CUDA_CONTEXT  # another program has the rest
    assert card(79_480, 0, touched=False) == CUDA_CONTEXT


def test_the_same_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []

    def counted(work: object) -> int:
        runs.append(work)
        return 1000

    monkeypatch.setattr(dry_run, "peak_of", counted)
    for batch in (5, 5, 7, 5):
        for text_apart in (False, True):
            predict_memory(open_model(TINY), "int8", torch.float32, CPU, 72, batch, text_apart=text_apart)
    assert len(runs) == 2 + 1  # two sizes of a batch, and encoding


def test_a_model_that_was_cut_is_refused_though_its_like_is_known(tmp_path: Path) -> None:
    whole = random_models.write_random(tmp_path / "whole.safetensors", "sd15", "small", 0)
    tensors = load_file(whole)
    del tensors["model.diffusion_model.out.0.weight"]
    save_file(tensors, tmp_path / "cut.safetensors")
    predict_memory(open_model(whole), "int8", torch.float32, CPU, 64, 1)
    with pytest.raises(ModelError, match=r"out\.0\.weight"):
        predict_memory(open_model(tmp_path / "cut.safetensors"), "int8", torch.float32, CPU, 64, 1)


# ---------------------------------------------------------------- documents


def full_of_holes(path: Path, family: str) -> Path:
    """A file of a model of full size without content: it takes no room, and its shapes can be read."""

    def skip(file: BinaryIO, tensors: dict[str, torch.Tensor]) -> None:
        file.truncate(file.seek(sum(tensor.nbytes for tensor in tensors.values()), os.SEEK_CUR))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_models, "_filled", lambda _part, module, _seed: module)
        patch.setattr(random_models, "_append", skip)
        return random_models.write_random(path, family, "full")


@pytest.mark.parametrize(
    ("family", "named", "pixels"),
    [("sd15", "SD1.5", 512), pytest.param("sdxl", "SDXL", 1024, marks=pytest.mark.slow)],
)
def test_the_documents_say_what_is_predicted(family: str, named: str, pixels: int, tmp_path: Path) -> None:
    blueprint = open_model(full_of_holes(tmp_path / f"{family}.safetensors", family))
    in_turn, at_once = (
        " | ".join(
            f"{predict_memory(blueprint, weights, torch.float16, CUDA, pixels, batch).total / 1e9:.2f} GB"
            for weights in ("int8", "int4")
        )
        for batch in (1, RECIPE["n"])
    )
    root = Path(__file__).parent.parent
    results = (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"| {named} at {pixels} px | {in_turn} |" in (root / "README.md").read_text(encoding="utf-8")
    assert f"| {named}, {pixels} px, candidates in turn | {in_turn} |" in results
    assert f"| {named}, {pixels} px, five at once | {at_once} |" in results
    rows = (root / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    for weights, total, batched in zip(("int8", "int4"), in_turn.split(" | "), at_once.split(" | "), strict=True):
        (row,) = (row for row in rows if row.startswith(f"| {named}, {pixels} px, {weights} |"))
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[5].replace("*", "").removesuffix(" (encoding)") == total
        assert cells[6] == batched


# ---------------------------------------------------------------- layouts


def laid_out(free: int, device: torch.device = CPU, **settings: Any) -> Any:
    """The layout for eight candidates of the embedded model at 256 pixels."""
    return plan(open_model(TINY), "int8", torch.float32, device, 256, 8, free=free, **settings)


@functools.cache
def needed(batch: int, device: torch.device = CPU, **settings: Any) -> int:
    return memory.predict_memory(open_model(TINY), "int8", torch.float32, device, 256, batch, **settings).total


@pytest.mark.slow
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_the_batch_shrinks_with_the_free_memory(device: torch.device) -> None:
    for batch in (8, 4, 1):
        just_enough = int(needed(batch, device) * 1.05) + 1
        found = laid_out(just_enough, device)
        assert (found.batch, found.text_apart) == (batch, False)
        assert found.use.total == needed(batch, device)
    assert laid_out(10**12, device, batch=2).batch == 2


def test_text_moves_to_the_cpu_when_only_that_fits() -> None:
    apart, together = needed(1, CUDA, text_apart=True), needed(1, CUDA)
    assert CUDA_CONTEXT < apart < together
    found = laid_out((int(apart * 1.05) + int(together * 1.05)) // 2, CUDA)
    assert (found.batch, found.text_apart) == (1, True)
    assert set(found.use.weights) == {"unet"}


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=pytest.mark.slow)])
def test_no_room_says_what_is_needed_and_what_is_free(device: torch.device) -> None:
    with pytest.raises(NoRoomError) as caught:
        laid_out(2_000_000, device)
    size = needed(1, device, text_apart=device == CUDA)
    shown = f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e9:.2f} GB"
    message = str(caught.value)
    assert isinstance(caught.value, ZoodipError)
    assert f"tiny with int8 weights at 256 px takes {shown}, and 2.0 MB is free on {device}" in message
    assert message.endswith("Free some memory, or use a smaller model")


@pytest.mark.slow
def test_no_room_says_what_would_fit() -> None:
    blueprint = open_model(TINY)
    with pytest.raises(NoRoomError, match="What would fit: weights ") as caught:
        laid_out(int(needed(1) * 0.8))
    options = re.findall(r"weights (\w+) at (\d+) px takes ([\d.]+) MB", str(caught.value).split("What would fit")[1])
    assert ("int8", "128") in {(weights, pixels) for weights, pixels, _ in options}
    for weights, pixels, size in options:
        use = memory.predict_memory(blueprint, weights, torch.float32, CPU, int(pixels), 1)
        assert use.total / 1e6 == pytest.approx(float(size), abs=0.06)
        assert use.total * 1.05 <= needed(1) * 0.8


def test_a_converged_batch_that_does_not_fit_is_told_of_a_smaller_one() -> None:
    free = int(needed(4) * 1.05) + 1
    assert laid_out(free).batch == 4
    with pytest.raises(NoRoomError, match=r"What would fit: .*(batch|in turn|at once)"):
        laid_out(free, batch=8)
