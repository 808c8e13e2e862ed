"""Directions in the shape of what a text encoder is sensitive to: worked again, and in runs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import random_models
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import two_encoders
from tests.fake_model import FakeModel
from zoodip_core.base.errors import ConfigError, ModelError
from zoodip_core.base.stopping import Stopped, stopped_by
from zoodip_core.cli.demo import demo_config
from zoodip_core.jobs.tasks import check
from zoodip_core.model import sensitivity
from zoodip_core.model.frames import read_text
from zoodip_core.model.load import load_quantized
from zoodip_core.model.sensitivity import readings, sensitivities
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_model import View
from zoodip_core.search import preconditioner
from zoodip_core.search.preconditioner import Spread, moments_of, sensitive_spread, spread_of
from zoodip_core.tiny import concepts
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.directions import shaped
from zoodip_core.train.loop import resume_training, train_token
from zoodip_core.train.presets import preset_for
from zoodip_core.train.replay import rewind
from zoodip_core.train.run_folder import RunFolder

DIM = 12
TEXT = "a photo of a {}, in the snow"


def words() -> torch.Tensor:
    rows = np.random.default_rng(0).normal(size=(500, DIM)) * np.geomspace(3, 0.1, DIM)
    return torch.from_numpy(rows).float()


def changing() -> np.ndarray[Any, Any]:
    """J^T J of an output of thirty numbers."""
    jacobian = np.random.default_rng(1).normal(size=(30, DIM)) * np.geomspace(2, 0.05, DIM)
    return np.asarray(jacobian.T @ jacobian)


# ---------------------------------------------------------------- the shape


def test_directions_reach_by_the_root_of_what_they_change() -> None:
    """A = k (J^T J)^(1/4), worked in NumPy, with k from the mean square of what J A e and J V e are."""
    plain, square = spread_of([words()], rank=5), changing()
    values, axes = np.linalg.eigh(square)
    a = (axes * np.maximum(values, 0) ** 0.25) @ axes.T
    v = plain.stretch(torch.eye(DIM)).numpy()
    a *= math.sqrt(np.trace(v @ square @ v) / np.trace(a @ square @ a))
    spread = sensitive_spread([torch.from_numpy(square)], plain)
    vectors = np.random.default_rng(2).normal(size=(3, 2, DIM))
    np.testing.assert_allclose(spread.stretch(torch.from_numpy(vectors)).numpy(), vectors @ a, rtol=1e-4, atol=1e-5)


def test_they_change_the_text_as_much_as_the_words_directions_do() -> None:
    plain, square = spread_of([words()], rank=5), torch.from_numpy(changing())
    directions = torch.randn(50_000, DIM, generator=torch.Generator().manual_seed(0)).double()

    def changed(spread: Spread) -> float:
        moved = spread.stretch(directions)
        return float((moved @ square * moved).sum(dim=1).mean())

    assert changed(sensitive_spread([square], plain)) == pytest.approx(changed(plain), rel=0.05)


def test_a_radius_is_still_in_words() -> None:
    plain = spread_of([words()])
    spread = sensitive_spread([torch.from_numpy(changing())], plain)
    assert spread.size == pytest.approx(plain.size)
    far = spread.stretch(1e6 * torch.randn(20, DIM), radius=6.0).norm(dim=1)
    torch.testing.assert_close(far, torch.full((20,), 6.0 * plain.size).double(), rtol=1e-3, atol=0)


def test_an_encoder_that_reads_nothing_gives_no_shape() -> None:
    plain = spread_of([words()])
    with pytest.raises(ModelError, match="the same for any token"):
        sensitive_spread([torch.zeros(DIM, DIM).double()], plain)
    with pytest.raises(ModelError, match="NaN"):
        sensitive_spread([torch.full((DIM, DIM), math.nan).double()], plain)


def test_the_shape_survives_its_tensors() -> None:
    spread = sensitive_spread([torch.from_numpy(changing())], spread_of([words()]))
    again = Spread.of_tensors(spread.tensors())
    assert again.size == spread.size
    assert torch.equal(again.stretch(torch.eye(DIM)), spread.stretch(torch.eye(DIM)))
    for wrong in (math.nan, 0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="no size"):
            Spread.of_tensors({**spread.tensors(), "words": torch.tensor(wrong)})


def test_the_matrix_has_the_same_bits_with_any_number_of_threads() -> None:
    """It is made once, by whoever asks first, and a replay has to come to the same."""
    jacobian = torch.randn(900, 768, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.randn(2000, 768, generator=torch.Generator().manual_seed(1))
    spread = sensitive_spread([jacobian.T @ jacobian], spread_of([rows]))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(Spread.of_tensors(spread.tensors()).parts[0]._matrix)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("unlike", [1.0, 40.0])
def test_each_of_two_encoders_has_its_axes(unlike: float) -> None:
    """SDXL's, worked in NumPy: along each encoder's axes by l^(1/4), with one k, in each one's words' units."""
    widths, rows, (first, second) = (4, 8), words().numpy().astype(np.float64), (changing()[:4, :4], changing()[4:, 4:])
    rows[:, 4:] *= unlike * np.linalg.norm(rows[:, :4].std(0)) / np.linalg.norm(rows[:, 4:].std(0)) * math.sqrt(2)
    plain = spread_of([torch.from_numpy(rows).float()], widths, rank=5)
    assert (plain.scale is None) == (unlike == 1)
    sizes = np.repeat(np.sqrt([rows.var(0)[:4].mean(), rows.var(0)[4:].mean()]) if unlike > 1 else [1, 1], widths)
    square = np.zeros((DIM, DIM))
    square[:4, :4], square[4:, 4:] = first, second
    square *= np.outer(sizes, sizes)
    values, axes = np.linalg.eigh(square)
    a = (axes * np.maximum(values, 0) ** 0.25) @ axes.T
    v = plain.stretch(torch.eye(DIM)).numpy() / sizes
    a *= math.sqrt(np.trace(v @ square @ v) / np.trace(a @ square @ a))
    spread = sensitive_spread([torch.from_numpy(each) for each in (first, second)], plain)
    assert spread.widths == list(widths)
    vectors = np.random.default_rng(2).normal(size=(3, 2, DIM))
    np.testing.assert_allclose(spread.stretch(torch.from_numpy(vectors)).numpy(), vectors @ a * sizes, rtol=1e-4)
    again = Spread.of_tensors(spread.tensors())
    assert torch.equal(again.stretch(torch.eye(DIM)), spread.stretch(torch.eye(DIM)))
    far = again.stretch(torch.from_numpy(1e6 * vectors), radius=6.0) / torch.from_numpy(sizes)
    assert far.norm(dim=-1).max() == pytest.approx(6.0 * plain.size, rel=1e-3)
    with pytest.raises(KeyError):
        Spread.of_tensors({name: tensor for name, tensor in spread.tensors().items() if name != "reach.1"})


def test_a_wide_part_keeps_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    square, vectors = torch.from_numpy(changing()), torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))
    kept = sensitive_spread([square], spread_of([words()]))
    expected = kept.stretch(vectors)
    monkeypatch.setattr(preconditioner, "_MATRIX", DIM - 1)
    wide = Spread.of_tensors(kept.tensors())
    torch.testing.assert_close(wide.stretch(vectors), expected, rtol=1e-5, atol=1e-6)
    assert "_matrix" in vars(kept.parts[0])
    assert "_matrix" not in vars(wide.parts[0])


@pytest.mark.parametrize(("kept", "differ"), [(DIM, DIM), (3, 3)])
def test_participation_counts_directions(kept: int, differ: int) -> None:
    rows = torch.randn(40_000, DIM, generator=torch.Generator().manual_seed(0))
    rows[:, kept:] = 0
    assert moments_of(rows.split(1000)).participation == pytest.approx(differ, rel=0.01)


# ---------------------------------------------------------------- what a text encoder changes


@pytest.fixture(scope="module")
def theta0(tiny_model: StableDiffusion) -> torch.Tensor:
    return tiny_model.initial_vectors("monster", 1, "single")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    file = random_models.write_random(tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors", "sdxl", "small")
    return load_quantized(str(file), dtype="float32")


class Reader(torch.nn.Module):
    """Keys and values of two encoders' states, which stand one behind the other."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.attn2 = torch.nn.ModuleDict()
        for name, out in (("to_k", 6), ("to_v", 10)):
            layer = torch.nn.utils.skip_init(torch.nn.Linear, sum(widths), out, bias=False)
            torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(out))
            self.attn2.add_module(name, layer)


def changed(
    model: StableDiffusion, which: int, theta0: torch.Tensor, direction: torch.Tensor, unet: torch.nn.Module
) -> float:
    """By a direction in one encoder's numbers: what all projections read of its states, each by its whole square."""
    widths, prompt = model.info.dims, model.prompt(TEXT, len(theta0))
    columns = slice(sum(widths[:which]), sum(widths[: which + 1]))
    read = prompt[which].ids[0].tolist().index(model.tokenizers[which].eos_token_id) + 1 + 17  # of the padding

    def hidden(rows: torch.Tensor) -> torch.Tensor:
        theta = theta0.clone()
        theta[:, columns] = rows
        return model.encode(prompt, theta[None]).hidden[0, :read, columns]

    along = direction.expand(len(theta0), -1).contiguous()
    with sdpa_kernel(SDPBackend.MATH):  # the others have no derivative of their derivative
        _, by = torch.autograd.functional.jvp(hidden, theta0[:, columns].contiguous(), along)
    weights = [layer.weight.detach().float().double() for layer in read_text(unet).values()]
    sizes = [(by.double() @ w[:, columns].T).square().sum() / w.square().sum() for w in weights]
    return float(sum(sizes) / len(sizes))


def check_jacobian(model: StableDiffusion, unet: torch.nn.Module, theta0: torch.Tensor, steps: Sequence[float]) -> None:
    found = sensitivities(model, model.prompt(TEXT, len(theta0)), theta0, steps)
    assert [len(each) for each in found] == list(model.info.dims)
    for which, square in enumerate(found):
        for direction in torch.randn(3, len(square), generator=torch.Generator().manual_seed(which)):
            expected = changed(model, which, theta0, direction, unet)
            assert float(direction.double() @ square @ direction.double()) == pytest.approx(expected, rel=0.02)


def test_it_is_the_jacobian_of_keys_and_values(tiny_model: StableDiffusion, theta0: torch.Tensor) -> None:
    """Autograd through the text encoder, and each projection taken by itself."""
    check_jacobian(tiny_model, tiny_model.unet, theta0, [1e-3])


class Twice(StableDiffusion):
    """The embedded model's text encoder as if it were two."""

    def _output(self, which: int, encoded: Any, candidates: torch.Tensor) -> Any:
        output = super()._output(which, encoded, candidates)
        return SimpleNamespace(hidden_states=output.hidden_states, text_embeds=output.last_hidden_state[:, 0])


def test_of_two_encoders_each_is_looked_at(tiny_model: StableDiffusion) -> None:
    own = tiny_model.blueprint
    twice = dataclasses.replace(own, info=dataclasses.replace(own.info, dims=(128, 128)))
    model = Twice(twice, "none", torch.float32, torch.device("cpu"), torch.device("cpu"))
    unet = Reader(model.info.dims)
    vars(model).update(unet=unet, tokenizers=tiny_model.tokenizers * 2, text_encoders=tiny_model.text_encoders * 2)
    theta0 = tiny_model.initial_vectors("monster", 2, "single")
    check_jacobian(model, unet, torch.cat([theta0, 1.5 * theta0], dim=1), [1e-3, 2e-3])


@pytest.mark.slow
def test_of_sdxl_s_two_encoders_each_is_looked_at(sdxl: StableDiffusion) -> None:
    check_jacobian(sdxl, sdxl.unet, sdxl.initial_vectors("dog", 2, "single"), [1e-3, 1e-3])


def test_how_many_are_encoded_at_once_makes_no_difference(
    tiny_model: StableDiffusion, theta0: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, found = tiny_model.prompt(TEXT, 1), []
    for count in (7, 128):
        monkeypatch.setattr(sensitivity, "_AT_ONCE", count)
        found += sensitivities(tiny_model, prompt, theta0, [0.1])
    one, many = found
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5 * float(many.abs().max()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_encoder_takes_away_is_not_reached_for(dtype: str, theta0: torch.Tensor) -> None:
    """CLIP first takes the mean off a state: the start's rounding, which is in every difference, must not undo that."""
    model = load_quantized("tiny", dtype=dtype)
    size = spread_of(model.word_rows()).size
    (found,) = sensitivities(model, model.prompt(TEXT, 1), theta0, [0.3 * size])
    one = torch.full((len(found),), 1 / math.sqrt(len(found))).double()
    assert float(one @ found @ one) < 0.3 * float(found.trace()) / len(found)


def test_the_root_squared_is_what_all_layers_read(tiny_model: StableDiffusion) -> None:
    root = readings(tiny_model.unet, tiny_model.info.dims)[0].double()
    states = torch.randn(9, len(root), generator=torch.Generator().manual_seed(0)).double()
    weights = [layer.weight.detach().float().double() for layer in read_text(tiny_model.unet).values()]
    sizes = torch.stack([(states @ w.T).square().sum(1) / w.square().sum() for w in weights]).mean(dim=0)
    torch.testing.assert_close((states @ root).square().sum(dim=1), sizes, rtol=1e-3, atol=0)


def test_a_stop_is_answered_between_encodings(tiny_model: StableDiffusion, theta0: torch.Tensor) -> None:
    asked = iter([False] * (len(read_text(tiny_model.unet)) + 4) + [True] * 1000)
    with stopped_by(lambda: next(asked)), pytest.raises(Stopped):
        sensitivities(tiny_model, tiny_model.prompt(TEXT, 1), theta0, [0.1])


# ---------------------------------------------------------------- which is chosen


def config_of(**settings: Any) -> TrainConfig:
    return demo_config(concepts.load("pip"), **{"steps": 12, "n": 3, "checks": 0, "save_every": 5, **settings})


def many_words(model: StableDiffusion) -> Iterator[torch.Tensor]:
    """Words that differ in all directions, as a language's do."""
    yield 0.07 * torch.randn(5000, *model.info.dims, generator=torch.Generator().manual_seed(0))


def test_where_words_differ_in_few_directions_they_are_followed(
    tiny_model: StableDiffusion, theta0: torch.Tensor
) -> None:
    config, spread, said = shaped(config_of(), tiny_model, tiny_model.prompt(TEXT, 1), theta0)
    assert (config_of().directions, config.directions) == ("adaptive", "vocabulary")
    assert "19 of 128" in said.text
    assert torch.equal(spread.stretch(torch.eye(128)), spread_of(tiny_model.word_rows()).stretch(torch.eye(128)))


def test_where_words_differ_in_many_the_encoder_is(
    tiny_model: StableDiffusion, theta0: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, "word_rows", many_words)
    prompt = tiny_model.prompt(TEXT, 1)
    config, spread, said = shaped(config_of(), tiny_model, prompt, theta0)
    assert config.directions == "encoder"
    assert said.text.startswith("directions encoder")
    plain, sizes = spread_of(many_words(tiny_model)), moments_of(many_words(tiny_model)).sizes([128])
    assert sizes == pytest.approx([plain.size])
    expected = sensitive_spread(sensitivities(tiny_model, prompt, theta0, [0.3 * sizes[0]]), plain)
    assert torch.equal(spread.stretch(torch.eye(128)), expected.stretch(torch.eye(128)))


@pytest.mark.slow
def test_two_encoders_are_looked_at_by_themselves(sdxl: StableDiffusion) -> None:
    prompt, theta0 = sdxl.prompt(TEXT, 1), sdxl.initial_vectors("dog", 1, "single")
    config, spread, said = shaped(config_of(), sdxl, prompt, theta0)
    assert (config.directions, spread.widths) == ("encoder", list(sdxl.info.dims))
    assert said.text.startswith("directions encoder")


def test_a_model_of_another_kind_has_its_words(tmp_path: Path) -> None:
    model = FakeModel()
    given = {**preset_for("flux", "none", "float32"), **model.settings(), "token": "<pip>", "initializer": "dog"}
    config = TrainConfig(**{**given, "images": (str(concepts.load("pip").images),), "steps": 2})
    done = train_token(config, tmp_path / "run", model=model)
    assert (config.directions, RunFolder.open(done.path.parent).config.directions) == ("adaptive", "vocabulary")
    with pytest.raises(ConfigError, match="set directions to vocabulary"):
        train_token(dataclasses.replace(config, directions="encoder"), tmp_path / "refused", model=model)
    assert not (tmp_path / "refused").exists()


def test_what_a_training_would_refuse_a_check_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder's directions, of a model whose tokens are wider than any known."""
    monkeypatch.setattr("zoodip_core.train.directions._WIDEST", 64)
    with pytest.raises(ConfigError, match="set directions to vocabulary"):
        check(config_of(directions="encoder"))


# ---------------------------------------------------------------- runs


def test_a_run_keeps_its_choice_and_goes_on_as_if_never_stopped(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    whole = train_token(config_of(directions="encoder"), tmp_path / "whole", model=tiny_model)
    other = train_token(config_of(), tmp_path / "words", model=tiny_model)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["directions"] == "encoder"
    assert json.loads((tmp_path / "words" / "config.json").read_text())["directions"] == "vocabulary"
    assert not torch.equal(whole.embedding.vectors, other.embedding.vectors)
    half = rewind(tmp_path / "whole", 7, tmp_path / "half.safetensors")
    assert half.differs is None
    for name in ("state.safetensors", "directions.safetensors"):  # from the journal alone, the shape worked out anew
        (tmp_path / "whole" / name).unlink()
    again = resume_training(tmp_path / "whole", {"steps": 12}, model=tiny_model)
    assert again.path.read_bytes() == whole.path.read_bytes()


def test_settings_of_another_unit_are_asked_for() -> None:
    given = {"images": ("x",), "token": "<x>", "initializer": "monster"}
    for directions in ("vocabulary", "encoder"):
        assert TrainConfig.with_preset("default", {**given, "directions": directions}).directions == directions
        with pytest.raises(ConfigError, match="give both mu and lr"):
            TrainConfig.with_preset("paper", {**given, "directions": directions})
    with pytest.raises(ConfigError, match="set directions to adaptive"):
        TrainConfig.with_preset("paper", {**given, "radius": 3.0})


# ---------------------------------------------------------------- the bench of two encoders


def test_the_bench_s_two_encoders_predict_as_one(tiny_model: StableDiffusion, theta0: torch.Tensor) -> None:
    double = two_encoders.twice(load_quantized("tiny", dtype="float32"))
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def losses(model: StableDiffusion, candidates: torch.Tensor) -> torch.Tensor:
        prompt = model.prompt(TEXT, 1)
        view = View(prompt, latents, noise, 700, torch.zeros(6))
        return model.denoiser([prompt], None, print).losses_on(view)(candidates)

    candidates = torch.stack([theta0, 2 * theta0])
    one, both = losses(tiny_model, candidates), losses(double, candidates.repeat(1, 1, 2))
    torch.testing.assert_close(both, one, rtol=1e-5, atol=0)
    unlike = losses(double, torch.cat([candidates, candidates.flip(0)], dim=-1))
    assert not torch.allclose(unlike, one, rtol=1e-5)
    (whole,), halves = readings(tiny_model.unet, (128,)), readings(double.unet, (128, 128))
    for half in halves:  # |W| of two halves is 1 / sqrt(2) of the whole's
        torch.testing.assert_close(half @ half, whole @ whole / 2, rtol=1e-3, atol=1e-5 * float((whole @ whole).max()))
