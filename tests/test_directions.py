"""Directions in the shape of what a text encoder is sensitive to: worked again, and in runs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
import torch

from tests.fake_model import FakeModel
from zoodip_core.base.errors import ConfigError, ModelError
from zoodip_core.base.stopping import Stopped, stopped_by
from zoodip_core.cli.demo import demo_config
from zoodip_core.jobs.tasks import check
from zoodip_core.model.frames import read_text
from zoodip_core.model.load import load_quantized
from zoodip_core.model.sensitivity import reading, sensitivity
from zoodip_core.model.stable_diffusion import StableDiffusion
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
    spread = sensitive_spread(torch.from_numpy(square), plain)
    vectors = np.random.default_rng(2).normal(size=(3, 2, DIM))
    np.testing.assert_allclose(spread.stretch(torch.from_numpy(vectors)).numpy(), vectors @ a, rtol=1e-4, atol=1e-5)


def test_they_change_the_text_as_much_as_the_words_directions_do() -> None:
    plain, square = spread_of([words()], rank=5), torch.from_numpy(changing())
    directions = torch.randn(50_000, DIM, generator=torch.Generator().manual_seed(0)).double()

    def changed(spread: Spread) -> float:
        moved = spread.stretch(directions)
        return float((moved @ square * moved).sum(dim=1).mean())

    assert changed(sensitive_spread(square, plain)) == pytest.approx(changed(plain), rel=0.05)


def test_a_radius_is_still_in_words() -> None:
    plain = spread_of([words()])
    spread = sensitive_spread(torch.from_numpy(changing()), plain)
    assert spread.size == pytest.approx(plain.size)
    far = spread.stretch(1e6 * torch.randn(20, DIM), radius=6.0).norm(dim=1)
    torch.testing.assert_close(far, torch.full((20,), 6.0 * plain.size).double(), rtol=1e-3, atol=0)


def test_an_encoder_that_reads_nothing_gives_no_shape() -> None:
    plain = spread_of([words()])
    with pytest.raises(ModelError, match="the same for any token"):
        sensitive_spread(torch.zeros(DIM, DIM).double(), plain)
    with pytest.raises(ModelError, match="NaN"):
        sensitive_spread(torch.full((DIM, DIM), math.nan).double(), plain)


def test_the_shape_survives_its_tensors() -> None:
    spread = sensitive_spread(torch.from_numpy(changing()), spread_of([words()]))
    again = Spread.of_tensors(spread.tensors())
    assert again.size == spread.size
    assert torch.equal(again.stretch(torch.eye(DIM)), spread.stretch(torch.eye(DIM)))
    for wrong in (math.nan, 0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="no size"):
            Spread.of_tensors({**spread.tensors(), "words": torch.tensor(wrong)})


def test_the_matrix_has_the_same_bits_with_any_number_of_threads() -> None:
    """It is made once, by whoever asks first, and a replay has to come to the same."""
    jacobian = torch.randn(900, 768, generator=torch.Generator().manual_seed(0)).double()
    spread = sensitive_spread(
        jacobian.T @ jacobian, spread_of([torch.randn(2000, 768, generator=torch.Generator().manual_seed(1))])
    )
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(Spread.of_tensors(spread.tensors())._matrix)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(("kept", "differ"), [(DIM, DIM), (3, 3)])
def test_participation_counts_directions(kept: int, differ: int) -> None:
    rows = torch.randn(40_000, DIM, generator=torch.Generator().manual_seed(0))
    rows[:, kept:] = 0
    assert moments_of(rows.split(1000)).participation == pytest.approx(differ, rel=0.01)


# ---------------------------------------------------------------- what a text encoder changes


@pytest.fixture(scope="module")
def theta0(tiny_model: StableDiffusion) -> torch.Tensor:
    return tiny_model.initial_vectors("monster", 1, "single")


def test_it_is_the_jacobian_of_keys_and_values(tiny_model: StableDiffusion, theta0: torch.Tensor) -> None:
    """Autograd through the text encoder, and each projection taken by itself."""
    prompt, layers = tiny_model.prompt(TEXT, 1), read_text(tiny_model.unet)
    read = prompt[0].ids[0].tolist().index(tiny_model.tokenizers[0].eos_token_id) + 1 + 17  # of the padding

    def hidden(theta: torch.Tensor) -> torch.Tensor:
        return tiny_model.encode(prompt, theta[None]).hidden[0, :read]

    jacobian = torch.autograd.functional.jacobian(hidden, theta0).double()[:, :, 0]  # [length, width, dim]
    expected = torch.zeros(theta0.shape[1], theta0.shape[1]).double()
    for layer in layers.values():
        weight = layer.weight.detach().float().double()
        through = torch.einsum("ow,lwd->lod", weight, jacobian).flatten(0, 1)
        expected += through.T @ through / weight.square().sum() / len(layers)
    found = sensitivity(tiny_model, prompt, theta0, 1e-3, 16)
    assert float((found - expected).norm() / expected.norm()) < 0.01


def test_how_many_are_encoded_at_once_makes_no_difference(tiny_model: StableDiffusion, theta0: torch.Tensor) -> None:
    prompt = tiny_model.prompt(TEXT, 1)
    one, many = (sensitivity(tiny_model, prompt, theta0, 0.1, batch) for batch in (7, 128))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-5 * float(many.abs().max()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_encoder_takes_away_is_not_reached_for(dtype: str, theta0: torch.Tensor) -> None:
    """CLIP first takes the mean off a state: the start's rounding, which is in every difference, must not undo that."""
    model = load_quantized("tiny", dtype=dtype)
    found = sensitivity(model, model.prompt(TEXT, 1), theta0, 0.3 * spread_of(model.word_rows()).size, 8)
    one = torch.full((len(found),), 1 / math.sqrt(len(found))).double()
    assert float(one @ found @ one) < 0.3 * float(found.trace()) / len(found)


def test_the_root_squared_is_what_all_layers_read(tiny_model: StableDiffusion) -> None:
    root = reading(tiny_model.unet).double()
    states = torch.randn(9, len(root), generator=torch.Generator().manual_seed(0)).double()
    weights = [layer.weight.detach().float().double() for layer in read_text(tiny_model.unet).values()]
    sizes = torch.stack([(states @ w.T).square().sum(1) / w.square().sum() for w in weights]).mean(dim=0)
    torch.testing.assert_close((states @ root).square().sum(dim=1), sizes, rtol=1e-3, atol=0)


def test_a_stop_is_answered_between_encodings(tiny_model: StableDiffusion, theta0: torch.Tensor) -> None:
    asked = iter([False] * 40 + [True] * 1000)
    with stopped_by(lambda: next(asked)), pytest.raises(Stopped):
        sensitivity(tiny_model, tiny_model.prompt(TEXT, 1), theta0, 0.1, 1)


# ---------------------------------------------------------------- which is chosen


def config_of(**settings: Any) -> TrainConfig:
    return demo_config(concepts.load("pip"), **{"steps": 12, "n": 3, "checks": 0, "save_every": 5, **settings})


def many_words(model: StableDiffusion) -> Iterator[torch.Tensor]:
    """Words that differ in all directions, as a language's do."""
    yield 0.07 * torch.randn(5000, *model.info.dims, generator=torch.Generator().manual_seed(0))


def test_where_words_differ_in_few_directions_they_are_followed(
    tiny_model: StableDiffusion, theta0: torch.Tensor
) -> None:
    config, spread, said = shaped(config_of(), tiny_model, tiny_model.prompt(TEXT, 1), theta0, 8)
    assert (config_of().directions, config.directions) == ("adaptive", "vocabulary")
    assert "19 of 128" in said.text
    assert torch.equal(spread.stretch(torch.eye(128)), spread_of(tiny_model.word_rows()).stretch(torch.eye(128)))


def test_where_words_differ_in_many_the_encoder_is(
    tiny_model: StableDiffusion, theta0: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, "word_rows", many_words)
    prompt = tiny_model.prompt(TEXT, 1)
    config, spread, said = shaped(config_of(), tiny_model, prompt, theta0, 8)
    assert config.directions == "encoder"
    assert said.text.startswith("directions encoder")
    plain = spread_of(many_words(tiny_model))
    expected = sensitive_spread(sensitivity(tiny_model, prompt, theta0, 0.3 * plain.size, 8), plain)
    assert torch.equal(spread.stretch(torch.eye(128)), expected.stretch(torch.eye(128)))


def test_a_model_of_another_kind_has_its_words(tmp_path: Path) -> None:
    model = FakeModel()
    given = {**preset_for("flux", "none", "float32"), **model.settings(), "token": "<pip>", "initializer": "dog"}
    config = TrainConfig(**{**given, "images": (str(concepts.load("pip").images),), "steps": 2})
    done = train_token(config, tmp_path / "run", model=model)
    assert (config.directions, RunFolder.open(done.path.parent).config.directions) == ("adaptive", "vocabulary")
    with pytest.raises(ConfigError, match="set directions to vocabulary"):
        train_token(dataclasses.replace(config, directions="encoder"), tmp_path / "refused", model=model)
    assert not (tmp_path / "refused").exists()


def test_what_a_training_would_refuse_a_check_refuses(tmp_path: Path) -> None:
    """The encoder's directions, of a model of two of them."""
    sdxl = random_models.write_random(tmp_path / "sdxl.safetensors", "sdxl", "small")
    config = config_of(directions="encoder", model=str(sdxl), initializer="dog", cache=None, resolution=64)
    with pytest.raises(ConfigError, match="set directions to vocabulary"):
        check(config)


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
