"""A step's work captured once and done again from its buffers: the same losses, bit for bit, or the plain way.

Without a card a capture is stood in for by a record: the tensor operations of the work, and nothing that Python decided
between them. What would be frozen into a CUDA graph is frozen there as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import random_models
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from zoodip_core.model.blueprint import Blueprint
from zoodip_core.model.forward import Forward, Forwards, Inputs
from zoodip_core.model.graphs import MOST_SHAPES, Work
from zoodip_core.model.load import load_quantized
from zoodip_core.model.memory import CUDA_CONTEXT, GRAPHS, plan
from zoodip_core.model.stable_diffusion import StableDiffusion

CAPTIONS = ("a photo of a {}", "a {} beside a red {}", "the {} on grass, at night")


class Recorded(TorchDispatchMode):
    """Remembers operations, and does them again on what is in the same memory by then."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, result))
        return result

    def again(self, wanted: torch.Tensor) -> torch.Tensor:
        made: dict[int, Any] = {}

        def now(leaf: Any) -> Any:
            return made.get(id(leaf), leaf)

        for func, args, kwargs, result in self._operations:
            anew = func(*tree_map(now, args), **tree_map(now, kwargs))
            made.update(zip(map(id, tree_leaves(result)), tree_leaves(anew), strict=True))
        return now(wanted)


class Recording:
    """Captures by a record, and counts.

    Args:
        fail: raised in place of the ``fail_at``-th capture.
    """

    def __init__(self, fail: Exception | None = None, fail_at: int = 1) -> None:
        self.captured = 0
        self.replayed = 0
        self._fail, self._fail_at = fail, fail_at

    def __call__(self, work: Work) -> Work:
        self.captured += 1
        if self._fail is not None and self.captured == self._fail_at:
            raise self._fail
        with torch.no_grad(), Recorded() as recorded:
            result = work()

        def replay() -> torch.Tensor:
            self.replayed += 1
            with torch.no_grad():
                return recorded.again(result)

        return replay


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], StableDiffusion]:
    place, known = tmp_path_factory.mktemp("models"), {}

    def model(family: str) -> StableDiffusion:
        if family not in known:
            file = place / f"{family}.safetensors"
            if family != "tiny":
                random_models.write_random(file, family, "small")
            known[family] = load_quantized("tiny" if family == "tiny" else file, dtype="float32", device="cpu")
        return known[family]

    return model


def steps(
    model: StableDiffusion, count: int, num_vectors: int = 1, candidates: int = 3, sides: tuple[int, int] = (8, 8)
) -> Iterator[Inputs]:
    """Inputs of some steps: other candidates, captions, latents and timesteps each time."""
    generator = torch.Generator().manual_seed(num_vectors)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for step in range(count):
        yield Inputs(
            0.05 * normal(candidates, num_vectors, sum(model.info.dims)),
            model.prompt(CAPTIONS[(step // 2) % 3], num_vectors),
            normal(1, 4, *sides),
            normal(1, 4, *sides),
            100 + 150 * step,
            torch.tensor([64.0 + step, 64, 0, step, 64, 64]),
        )


@torch.no_grad()
def plain(model: StableDiffusion, inputs: Inputs) -> torch.Tensor:
    """The losses without any buffer, worked out on the CPU in float64."""
    assert inputs.target is not None
    condition = model.encode(inputs.prompt, inputs.candidates)
    predicted = model.predict(inputs.noisy, inputs.timestep, condition, inputs.time_ids)
    return (predicted.double() - inputs.target.double()).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def of(forwards: Forwards, inputs: Inputs) -> torch.Tensor:
    return forwards.losses(inputs)


CASES: list[Any] = [("tiny", 1), ("tiny", 3)]
CASES += [
    pytest.param(family, num_vectors, marks=pytest.mark.slow)
    for family in ("sd15", "sd21", "sdxl")
    for num_vectors in (1, 3)
]


@pytest.mark.parametrize(("family", "num_vectors"), CASES)
def test_what_is_captured_gives_the_same_losses(
    models: Callable[[str], StableDiffusion], family: str, num_vectors: int
) -> None:
    model, recording = models(family), Recording()
    forwards = Forwards(model, capture=recording, on_plain=pytest.fail)
    for inputs in steps(model, 6, num_vectors):
        assert torch.equal(of(forwards, inputs), plain(model, inputs))
    assert recording.replayed >= 2


@pytest.mark.parametrize(("family", "num_vectors"), CASES)
def test_what_is_captured_gives_the_same_outputs(
    models: Callable[[str], StableDiffusion], family: str, num_vectors: int
) -> None:
    """Of a candidate, and of texts beside it that are encoded already."""
    model, recording = models(family), Recording()
    forwards = Forwards(model, capture=recording, on_plain=pytest.fail)
    for inputs in steps(model, 6, num_vectors, candidates=1):
        with torch.no_grad():
            texts = [model.encode(model.prompt(text)) for text in ("a monster in neon style", "")]
            texts = texts[inputs.timestep // 150 % 2 :]
            beside = texts[0] if len(texts) == 1 else texts[0].joined(texts[1])
            all_texts = model.encode(inputs.prompt, inputs.candidates).joined(beside)
            expected = model.predict(inputs.noisy, inputs.timestep, all_texts, inputs.time_ids)
        found = of(forwards, replace(inputs, target=None, beside=beside))
        assert torch.equal(found, expected)
    assert recording.replayed >= 2


@pytest.mark.parametrize("family", ["tiny", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_nothing_that_is_captured_asks_the_host(models: Callable[[str], StableDiffusion], family: str) -> None:
    """A capture fails at a copy to or from the host's memory, or where the device is waited for."""
    asks = {torch.tensor, torch.as_tensor, torch.from_numpy}
    asks |= {getattr(torch.Tensor, name) for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__")}

    class OnTheDevice(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func not in asks, func
            return func(*args, **(kwargs or {}))

    model = models(family)
    (inputs,) = steps(model, 1)
    plain(model, inputs)  # has the rows of its words read
    with torch.no_grad():
        beside = model.encode(model.prompt("a monster"))
    for each in (inputs, replace(inputs, target=None, candidates=inputs.candidates[:1], beside=beside)):
        forward = Forward(model, each)
        forward.fill(each)
        with torch.no_grad(), OnTheDevice():
            forward.compute()


def test_each_shape_is_captured(models: Callable[[str], StableDiffusion]) -> None:
    model, recording = models("tiny"), Recording()
    prompts = [model.prompt(caption, 1) for caption in CAPTIONS]
    forwards = Forwards(model, prompts, recording, pytest.fail, captured=2)
    for side, candidates in ((8, 3), (16, 3), (8, 1), (8, 3)):
        for inputs in steps(model, 7, candidates=candidates, sides=(side, side)):
            assert torch.equal(of(forwards, inputs), plain(model, inputs))
    assert recording.captured == 6  # with one place and with two, of three shapes


@pytest.mark.slow
def test_pictures_of_more_shapes_than_are_captured_are_done_plainly(models: Callable[[str], StableDiffusion]) -> None:
    """What is captured stays: captured and dropped in turn, each step would take as long as many."""
    model, recording = models("tiny"), Recording()
    forwards = Forwards(model, capture=recording, on_plain=pytest.fail, captured=2)
    for _ in range(3):
        for sides in ((8, 16), (16, 8), (12, 12), (6, 20), (20, 6)):
            for inputs in [*steps(model, 2, sides=sides), *steps(model, 1, candidates=1, sides=sides)]:
                assert torch.equal(of(forwards, inputs), plain(model, inputs))
    assert recording.captured == 4  # of two shapes, with all candidates and with one
    assert recording.replayed == 2 * (3 * 2 - 1) + 2 * (3 - 1)


def test_pictures_of_any_shapes_follow_each_other_without_a_card(models: Callable[[str], StableDiffusion]) -> None:
    """More than are remembered, to the bit of a pass without buffers."""
    model, forwards = models("tiny"), Forwards(models("tiny"))
    for _ in range(2):
        for height in range(4, 24, 2):
            for inputs in steps(model, 1, sides=(height, 24 - height)):
                assert torch.equal(of(forwards, inputs), plain(model, inputs))
    assert len(forwards._known) == Forwards._MOST


def test_parts_that_were_loaded_again_are_captured_again(models: Callable[[str], StableDiffusion]) -> None:
    model, recording = models("tiny"), Recording()
    forwards = Forwards(model, capture=recording, on_plain=pytest.fail)
    for round_ in range(2):
        for inputs in steps(model, 2):
            assert torch.equal(of(forwards, inputs), plain(model, inputs))
        assert recording.captured == round_ + 1
        model.unload()


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted\nwhen capturing"), ValueError("no")])
def test_what_can_not_be_captured_is_done_plainly(models: Callable[[str], StableDiffusion], error: Exception) -> None:
    model = models("tiny")
    said: list[str] = []
    forwards = Forwards(model, capture=Recording(error), on_plain=said.append)
    for inputs in steps(model, 4):
        assert torch.equal(of(forwards, inputs), plain(model, inputs))
    assert [line.split(";")[0] for line in said] == [f"graphs: {str(error).splitlines()[0]}"]


def test_a_graph_s_memory_goes_before_the_batch_shrinks(models: Callable[[str], StableDiffusion]) -> None:
    model, recording = models("tiny"), Recording(torch.OutOfMemoryError("full"), fail_at=2)
    said: list[str] = []
    forwards = Forwards(model, capture=recording, on_plain=said.append)
    for inputs in (*steps(model, 2), *steps(model, 2, candidates=2)):
        assert torch.equal(of(forwards, inputs), plain(model, inputs))
    (line,) = said
    assert line.startswith("graphs: the device ran out of memory; each step is launched kernel by kernel")
    assert all(each._replay is None for each in forwards._known.values())


def test_out_of_memory_before_anything_is_captured_is_the_batch_s(models: Callable[[str], StableDiffusion]) -> None:
    model, recording = models("tiny"), Recording()
    forwards = Forwards(model, capture=recording, on_plain=pytest.fail)
    (inputs,) = steps(model, 1)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "compute", full)
        with pytest.raises(torch.OutOfMemoryError):
            of(forwards, inputs)
    assert torch.equal(of(forwards, inputs), plain(model, inputs))


def laid_out(blueprint: Blueprint, free: int, graphs: int = 1, kind: str = "cuda") -> Any:
    return plan(blueprint, "int8", torch.float16, torch.device(kind), 256, 3, free=free, graphs=graphs)


def test_a_plan_captures_where_there_is_room(models: Callable[[str], StableDiffusion]) -> None:
    blueprint = models("tiny").blueprint
    without = laid_out(blueprint, 10**12, graphs=0)
    roomy = laid_out(blueprint, 10**12)
    assert (without.graphs, roomy.graphs) == (False, True)
    assert roomy.use.total == without.use.total + GRAPHS > CUDA_CONTEXT
    assert f"graphs {GRAPHS / 1e9:.2f} GB" in str(roomy.use)
    tight = laid_out(blueprint, int(without.use.total * 1.05) + 1)
    assert (tight.batch, tight.graphs) == (without.batch, False)
    assert not laid_out(blueprint, 10**12, kind="cpu").graphs


def test_a_plan_captures_as_many_shapes_as_there_is_room_for(models: Callable[[str], StableDiffusion]) -> None:
    blueprint = models("tiny").blueprint
    without = laid_out(blueprint, 10**12, graphs=0).use.total
    assert [laid_out(blueprint, 10**12, graphs=shapes).captured for shapes in (0, 1, 3, 40)] == [0, 1, 3, MOST_SHAPES]
    for shapes in range(4):
        found = laid_out(blueprint, int((without + shapes * GRAPHS) * 1.05) + 1, graphs=3)
        assert (found.captured, found.use.total, found.batch) == (shapes, without + shapes * GRAPHS, 3)
