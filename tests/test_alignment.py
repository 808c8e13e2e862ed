"""Alignment with a target prompt: against PALP's equations, and that nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.fake_model import FakeModel
from tests.test_lora import train
from tests.test_ranks import together
from zoodip_core.base import rng
from zoodip_core.base.errors import CaptionError, ConfigError
from zoodip_core.base.events import Commands, Event, Message, Started
from zoodip_core.base.stopping import Stopped, stopped_by
from zoodip_core.data.images import load_images, random_cuts
from zoodip_core.model.embedding import load_embedding
from zoodip_core.model.kinds import TINY_PATH
from zoodip_core.model.latents import encode_images
from zoodip_core.model.load import load_quantized
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_model import Row, View
from zoodip_core.model.tokens import initial_vectors
from zoodip_core.model.unet import predict
from zoodip_core.tiny import concepts
from zoodip_core.train.alignment import Alignment
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.draws import Draw
from zoodip_core.train.inputs import aligned, load_references
from zoodip_core.train.loop import train_token
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.prepared import Training
from zoodip_core.train.presets import preset_for
from zoodip_core.train.timesteps import PUTS

PIP, BOO = concepts.load("pip"), concepts.load("boo")
CAPTION, TARGET, CLEAN = "a photo of a {}", "a {} in neon style", "a monster in neon style"
T = 640
DRAW = Draw(seed=3, step=5, image=2, caption=0, timestep=T)
SHAPE = (4, 12, 12)
NEAR = 1e-3
"""How far candidates lie from the token: in float64 the losses' differences are then a derivative."""


def objective_of(model: StableDiffusion, alignment: Alignment | None = None, **more: Any) -> DiffusionObjective:
    images, _ = load_images([PIP.images], 48)
    posteriors = encode_images(model, images)
    return DiffusionObjective(
        model, posteriors, [[model.prompt(CAPTION, 1)]] * len(images), PUTS(), alignment=alignment, **more
    )


def alignment_of(model: StableDiffusion, strength: float = 1.0, alpha: float = 1.0, beta: float = 1.0) -> Alignment:
    return Alignment([model.prompt(CLEAN)], model.prompt(""), strength, alpha, beta)


def token_of(model: StableDiffusion) -> torch.Tensor:
    word = initial_vectors(model.tokenizers, model.text_encoders, "monster", 1)
    return word + 0.05 * torch.randn(word.shape, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- the equations


class Reference:
    """The paper's quantities in float64 from diffusers' own parts; noise schedule and mixing in NumPy."""

    def __init__(self, objective: DiffusionObjective, kind: str) -> None:
        pipeline = StableDiffusionPipeline.from_pretrained(TINY_PATH, safety_checker=None, local_files_only=True)
        self.tokenizer = pipeline.tokenizer
        self.encoder, self.unet = pipeline.text_encoder.double(), pipeline.unet.double()
        self.kind = kind
        bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[T]
        self.signal, self.sigma = float(np.sqrt(bar)), float(np.sqrt(1 - bar))
        posterior = rng.normal(3, 5, "posterior", SHAPE)
        self.noise = rng.normal(3, 5, "noise", SHAPE).double()[None]
        mean, std = objective.posteriors.mean[2], objective.posteriors.std[2]
        self.x0 = 0.18215 * (mean + std * posterior).double()[None]
        self.x_t = self.signal * self.x0 + self.sigma * self.noise

    def hidden(self, text: str, theta: torch.Tensor | None = None) -> torch.Tensor:
        """With ``theta`` in the place of the word "star"."""
        ids = self.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        word = self.tokenizer("star", add_special_tokens=False).input_ids[0]

        def placed(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            assert theta is not None
            return torch.where((ids == word)[..., None], theta, output)

        hook = self.encoder.get_input_embeddings().register_forward_hook(placed) if theta is not None else None
        found = self.encoder(ids)[0]
        if hook:
            hook.remove()
        return found

    def epsilon(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The predicted noise, of either kind of model."""
        out = self.unet(x, T, hidden).sample
        return out if self.kind == "epsilon" else self.sigma * x + self.signal * out

    def guided(self, x: torch.Tensor, hidden: torch.Tensor, scale: float) -> torch.Tensor:
        """G^scale(x, y), the paper's eq. 5."""
        return (1 - scale) * self.epsilon(x, self.hidden("")) + scale * self.epsilon(x, hidden)

    def gradient(self, theta: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
        """Eq. 7 in eq. 6, rescaled: D^T dG(x_t, y_P) / d theta, for the noise."""
        theta = theta.double().requires_grad_()
        with torch.enable_grad():
            own = self.epsilon(self.x_t, self.hidden("a photo of a star", theta))
            with torch.no_grad():
                x0 = (self.x_t - self.sigma * own) / self.signal
                on_path = self.signal * x0 + self.sigma * self.noise
                difference = self.guided(on_path, self.hidden("a photo of a star", theta), beta) - self.guided(
                    on_path, self.hidden(CLEAN), alpha
                )
            (found,) = torch.autograd.grad((difference * own).mean(), theta)
        return found


@pytest.fixture(scope="module")
def double_model() -> StableDiffusion:
    return replace(load_quantized(weights="none"), dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "alpha", "beta"),
    [
        ("epsilon", 1.0, 1.0),
        ("v_prediction", 3.0, 1.5),
        pytest.param("epsilon", 3.0, 1.5, marks=pytest.mark.slow),
        pytest.param("v_prediction", 1.0, 1.0, marks=pytest.mark.slow),
    ],
)
def test_losses_lead_along_the_papers_gradient(
    double_model: StableDiffusion, kind: str, alpha: float, beta: float
) -> None:
    """The difference that alignment makes to losses' slopes along many directions, against autograd's."""
    info = replace(double_model.info, prediction_type=kind)
    model = replace(double_model, blueprint=replace(double_model.blueprint, info=info))
    model.__dict__ |= {name: double_model.__dict__[name] for name in ("unet",) if name in double_model.__dict__}
    strength = 0.7
    plain = objective_of(model)
    with_target = DiffusionObjective(
        model, plain.posteriors, plain.captions, PUTS(), alignment=alignment_of(model, strength, alpha, beta)
    )
    theta = token_of(model)
    directions = torch.randn(6, 1, theta.shape[1], generator=torch.Generator().manual_seed(2))
    both_ways = torch.cat([theta + NEAR * directions, theta - NEAR * directions])
    slopes = [
        (losses[:6] - losses[6:]) / (2 * NEAR)
        for losses in (with_target.losses(both_ways, DRAW, theta[None]), plain.losses(both_ways, DRAW))
    ]
    measured = slopes[0] - slopes[1]
    reference = Reference(plain, kind)
    expected = (directions.double() * reference.gradient(theta, alpha, beta)).sum(dim=(1, 2))
    assert torch.cosine_similarity(measured, expected, dim=0) > 0.999
    # The same as eq. 7's for epsilon; of v-prediction in v, as the loss that it stands beside, 1 / abar as large.
    factor = strength if kind == "epsilon" else strength / reference.signal**2
    torch.testing.assert_close(measured.norm(), factor * expected.norm(), rtol=1e-2, atol=0)


def test_what_is_left_falls_along_the_same_gradient(double_model: StableDiffusion) -> None:
    """lambda / 2 |D|^2, which checks look at, has about J^T D as its slope."""
    objective = objective_of(double_model, alignment_of(double_model))
    theta = token_of(double_model)
    gradient = Reference(objective, "epsilon").gradient(theta, 1.0, 1.0)[None].float()
    step = 0.05 * theta.norm() * gradient / gradient.norm()

    def left(at: torch.Tensor) -> float:
        return float(objective.check(at, DRAW) - objective.losses(at, DRAW))

    here = left(theta[None])
    assert left(theta[None] - step) < here < left(theta[None] + step)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_picture_of_a_right_output_is_the_view_s(tiny_model: StableDiffusion, kind: str) -> None:
    info = replace(tiny_model.info, prediction_type=kind)
    model = replace(tiny_model, blueprint=replace(tiny_model.blueprint, info=info))
    latents, noise = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    prompt = model.prompt("a monster")
    view = View(prompt, latents, noise, T, torch.zeros(6))
    _, target = model.noised(view)
    denoiser = model.denoiser([prompt], None, print)
    torch.testing.assert_close(denoiser.picture(view, target), latents, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- forward passes


def counted(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each of its UNet's forward passes from now on."""
    rows: list[int] = []

    def predicted(unet: Any, noisy: Any, timestep: Any, hidden: torch.Tensor, added: Any = None) -> torch.Tensor:
        rows.append(len(hidden))
        return predict(unet, noisy, timestep, hidden, added)

    monkeypatch.setattr("zoodip_core.model.quantized.predict", predicted)
    return rows


@pytest.mark.parametrize(
    ("alpha", "beta", "batch", "expected"),
    [
        (1.0, 1.0, 0, [1, 2, 5]),
        (2.0, 2.0, 0, [1, 2, 5]),
        (2.0, 1.0, 0, [1, 3, 5]),
        (2.0, 1.0, 2, [1, 1, 1, 1, 2, 2, 1]),
    ],
)
def test_a_step_takes_three_forward_passes_more(
    tiny_model: StableDiffusion,
    monkeypatch: pytest.MonkeyPatch,
    alpha: float,
    beta: float,
    batch: int,
    expected: list[int],
) -> None:
    alignment = alignment_of(tiny_model, 1.0, alpha, beta)
    objective = objective_of(tiny_model, alignment, batch=batch)
    theta = token_of(tiny_model)
    candidates = theta + 0.05 * torch.randn(5, 1, theta.shape[1], generator=torch.Generator().manual_seed(4))
    rows = counted(tiny_model, monkeypatch)
    objective.losses(candidates, DRAW, theta[None])
    assert rows == expected
    assert sum(rows) == 5 + alignment.forwards


def counted_texts(model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each text encoding from now on."""
    (encoder,) = model.text_encoders
    rows: list[int] = []
    forward = type(encoder).forward

    def encoded(self: Any, ids: torch.Tensor, *args: Any, **more: Any) -> Any:
        rows.append(len(ids))
        return forward(self, ids, *args, **more)

    monkeypatch.setattr(type(encoder), "forward", encoded)
    return rows


def test_texts_that_stay_are_encoded_once(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = objective_of(tiny_model, alignment_of(tiny_model, 1.0, 2.0, 1.0))
    theta = token_of(tiny_model)
    encoded = counted_texts(tiny_model, monkeypatch)
    for _ in range(3):
        objective.losses(theta.expand(5, 1, -1), DRAW, theta[None])
    first, *others = encoded[:5], encoded[5:8], encoded[8:]
    assert sorted(first) == [1, 1, 1, 1, 5]  # the caption twice, the clean prompt and the empty one
    assert [sorted(each) for each in others] == [[1, 1, 5]] * 2


def test_where_there_is_no_room_the_passes_come_one_by_one(tiny_model: StableDiffusion) -> None:
    full = objective_of(tiny_model, alignment_of(tiny_model, 1.0, 2.0, 1.0))
    theta = token_of(tiny_model)
    expected = full.losses(theta[None], DRAW, theta[None])
    objective = objective_of(tiny_model, alignment_of(tiny_model, 1.0, 2.0, 1.0))
    denoiser, outputs, asked = objective._denoiser, objective._denoiser.outputs, []

    def small(view: View, rows: list[Row]) -> torch.Tensor:
        asked.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("no room")
        return outputs(view, rows)

    denoiser.outputs = small  # type: ignore[method-assign, assignment]
    for _ in range(2):
        torch.testing.assert_close(objective.losses(theta[None], DRAW, theta[None]), expected, rtol=1e-5, atol=0)
    assert asked == [1, 3, 1, 1, 1, 1, 1, 1, 1, 1]  # it is not tried again


def test_a_stop_is_answered_within_a_forward_pass(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, theta = objective_of(tiny_model, alignment_of(tiny_model)), token_of(tiny_model)
    rows = counted(tiny_model, monkeypatch)
    for stop_after in (0, 1, 2):
        rows.clear()
        with pytest.raises(Stopped), stopped_by(lambda: len(rows) >= stop_after):  # noqa: B023 - asked in the loop
            objective.losses(theta.expand(5, 1, -1), DRAW, theta[None])
        assert len(rows) == stop_after


def test_several_target_prompts_are_drawn_in_turn(tiny_model: StableDiffusion) -> None:
    texts = [tiny_model.prompt(text) for text in (CLEAN, "a monster in sepia style")]
    both = Alignment(texts, tiny_model.prompt(""), 1.0)
    alone = [objective_of(tiny_model, replace(both, clean=[text])) for text in texts]
    objective, theta = objective_of(tiny_model, both), token_of(tiny_model)
    drawn = []
    for step in range(4):
        draw = objective.draw(1, step)
        found = [each.losses(theta[None], draw, theta[None]) for each in (objective, *alone)]
        drawn.append([torch.equal(found[0], other) for other in found[1:]].index(True))
    assert set(drawn) == {0, 1}


# ---------------------------------------------------------------- runs


def config_of(preset: str = "default", **settings: Any) -> TrainConfig:
    own: dict[str, Any] = {
        "images": (str(PIP.images),),
        "token": "<pip>",
        "initializer": "monster",
        "target_prompt": TARGET,
        "steps": 8,
        "n": 2,
        "save_every": 4,
        "checks": 0,  # each costs 32 forward passes
        "adapt_mu": False,
    }
    return TrainConfig.with_preset(preset, {**own, **settings})


def test_alignment_0_is_as_without_a_target_prompt(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    off = train(config_of(steps=3, alignment=0.0), tmp_path / "off", tiny_model)
    without = train(config_of(steps=3, target_prompt=None), tmp_path / "without", tiny_model)
    on = train(config_of(steps=3, alignment=3.0), tmp_path / "on", tiny_model)
    journals = [(tmp_path / run / "steps.jsonl").read_bytes() for run in ("off", "without", "on")]
    assert journals[0] == journals[1] != journals[2]
    assert torch.equal(off.embedding.vectors, without.embedding.vectors)
    assert not torch.equal(on.embedding.vectors, off.embedding.vectors)


CASES: list[Any] = [
    pytest.param({"checks": 4}, marks=pytest.mark.slow),
    {"preset": "two-stage", "lora_share": 0.5, "alignment_alpha": 2.0, "steps": 6, "save_every": 3},
    pytest.param({"preset": "paper", "n": 2, "alignment_beta": 2.0}, marks=pytest.mark.slow),
    pytest.param({"estimator": "spsa", "num_vectors": 2, "checks": 4, "patience": 2}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("settings", CASES)
def test_a_stopped_run_resumes_to_the_same_bytes(
    settings: dict[str, Any], tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    config = config_of(**settings)
    whole = train(config, tmp_path / "whole", tiny_model)
    for stop in (2, 5):
        train(config, tmp_path / "stopped", tiny_model, stop_after=stop)
    resumed = train(config, tmp_path / "stopped", tiny_model)
    for name in ("pip.safetensors", "steps.jsonl", *(["pip-lora.safetensors"] if config.lora_rank else [])):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert whole.finished
    assert resumed.finished
    lines = [json.loads(line) for line in (tmp_path / "whole" / "steps.jsonl").read_text().splitlines()]
    assert {len(line["losses"]) for line in lines} == {config.make_estimator().num_candidates}


@pytest.mark.parametrize(("alignment", "steps"), [(30.0, 12), pytest.param(0.1, 40, marks=pytest.mark.slow)])
def test_a_token_that_was_pulled_off_its_pictures_is_told(
    alignment: float, steps: int, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    """Told where its loss on its pictures is not below its word's, both worked out apart from the run."""
    said: list[str] = []
    config = config_of(alignment=alignment, steps=steps, n=4)
    result = train_token(
        config,
        tmp_path / "run",
        model=tiny_model,
        on_event=lambda event: said.append(event.text) if isinstance(event, Message) and event.warning else None,
    )
    objective = objective_of(tiny_model)
    draws = config.check_draws(len(objective.posteriors))
    word = initial_vectors(tiny_model.tokenizers, tiny_model.text_encoders, "monster", 1)
    before, now = (
        float(np.mean([float(objective.losses(each[None], draw)) for draw in draws]))
        for each in (word, result.embedding.vectors[0])
    )
    print(alignment, before, now)
    assert sum("explains its pictures no better than monster" in line for line in said) == (alignment > 1)
    assert (now >= before) == (alignment > 1)


def test_two_subjects_are_aligned_with_one_scene(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """The clean prompt has both class words; a caption's prediction has the rows of its own token alone."""
    config = config_of(
        token="<pip>, <boo>",
        initializer="monster, creature",
        images=(str(PIP.images), str(BOO.images)),
        target_prompt="a <pip> and a <boo> in neon style",
        steps=4,
        save_every=2,
    )
    training = Training(config, tiny_model)
    objective, theta = training.objective, training.search.theta
    assert isinstance(objective, DiffusionObjective)
    assert objective.alignment is not None
    expected = tiny_model.prompt("a monster and a creature in neon style")
    assert tiny_model.prompt_bytes(objective.alignment.clean[0]) == tiny_model.prompt_bytes(expected)
    draw = next(draw for draw in (objective.draw(0, step) for step in range(50)) if draw.image < 6)
    other = theta.clone()
    other[1] += 1  # boo's, which a picture of pip does not show
    alone = [objective.losses(each[None], draw, each[None]) for each in (theta, other)]
    assert torch.equal(*alone)
    whole = train(config, tmp_path / "whole", tiny_model)
    train(config, tmp_path / "stopped", tiny_model, stop_after=3)
    resumed = train(config, tmp_path / "stopped", tiny_model)
    assert [path.read_bytes() for path in resumed.paths] == [path.read_bytes() for path in whole.paths]


@pytest.mark.slow
def test_two_ranks_learn_the_bytes_of_one(tmp_path: Path) -> None:
    config = config_of(batch=1)
    train_token(config, tmp_path / "one", model=load_quantized("tiny"))
    together(2, lambda ranks: train_token(config, tmp_path / "two", model=load_quantized("tiny"), ranks=ranks))
    for name in ("pip.safetensors", "steps.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_a_lora_that_is_learned_is_in_the_token_s_model_alone(tiny_model: StableDiffusion) -> None:
    """D of cores that change nothing is the token's; of others the clean prediction stays as it was."""
    training = Training(config_of("two-stage", alignment_alpha=2.0), tiny_model)
    objective = training.objective
    assert isinstance(objective, DiffusionObjective)
    assert objective.alignment is not None
    assert objective.alignment.own_weights
    numbers = training.frames.numbers if training.frames else 0
    theta, draw = training.search.theta, objective.draw(0, 3)
    none = torch.cat([theta.flatten()[None], torch.zeros(1, numbers)], dim=1)
    some = none + torch.cat([torch.zeros_like(theta.flatten())[None], torch.full((1, numbers), 0.3)], dim=1)
    view, denoiser = objective.view(draw), objective._denoiser
    clean, empty = objective.alignment.clean[0], objective.alignment.empty
    rows: list[Row] = [(view.prompt, some), (clean, None), (empty, some), (empty, None)]
    with torch.no_grad():
        found = denoiser.outputs(view, rows)
        plain = denoiser.outputs(view, [(view.prompt, none), (clean, None), (empty, none), (empty, None)])
        of_token = denoiser.outputs(view, [(view.prompt, theta[None]), (clean, None), (empty, None)])
    torch.testing.assert_close(plain, of_token[[0, 1, 2, 2]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[[1, 3]], plain[[1, 3]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[[0, 2]], plain[[0, 2]], rtol=1e-2, atol=1e-2)


def test_the_user_is_told_of_what_a_step_takes(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """Before the first one, where these runs are stopped."""

    def told(config: TrainConfig, run: str) -> list[str]:
        said: list[str] = []
        commands = Commands()

        def on_event(event: Event) -> None:
            if isinstance(event, Message):
                said.append(event.text)
            if isinstance(event, Started):
                commands.stop()

        train_token(config, tmp_path / run, model=tiny_model, on_event=on_event, commands=commands)
        return said

    said = told(config_of(), "run")
    assert any("5 forward passes a step, 3 of them for the target prompt" in line for line in said), said
    said = told(config_of(target_prompt="a photo of a {}"), "same")
    assert any("target_prompt: 'a photo of a {}' is a caption too" in line for line in said), said


def test_it_trains_on_any_model(tmp_path: Path) -> None:
    """On one that is nothing but the protocol: the token comes nearer to the word that the target is made with."""

    found = {}
    for strength in (0.0, 3.0):
        given = {**preset_for("flux", "none", "float32"), **FakeModel().settings(), "images": (str(PIP.images),)}
        given |= {"token": "<pip>", "initializer": "dog", "steps": 200, "checks": 0, "patience": 0}
        config = TrainConfig.from_dict({**given, "target_prompt": "{}", "alignment": strength})
        model = FakeModel()
        learned = train_token(config, tmp_path / str(strength), model=model).embedding
        before, after = (
            np.asarray(picture, dtype=float)[0, 0]
            for picture in model.generate(["dog", "{}"], [0, 0], embedding=learned)
        )
        found[strength] = np.linalg.norm(after - before)
    assert found[3.0] < 0.6 * found[0.0]


# ---------------------------------------------------------------- settings


def test_the_class_word_makes_the_clean_prompt() -> None:
    many = config_of(target_prompt=" a sketch of <pip> in Paris;a {} as a king ")
    assert [each.text for each in many.targets] == ["a sketch of {} in Paris", "a {} as a king"]
    assert many.clean_prompts == ["a sketch of monster in Paris", "a monster as a king"]
    assert many.sample_prompt == "a sketch of {} in Paris"
    two = config_of(
        token="<pip>, <tom>",
        initializer="monster, creature",
        images=(str(PIP.images), str(BOO.images)),
        target_prompt="<pip> and <tom> in Paris",
    )
    assert [(each.text, each.tokens) for each in two.targets] == [("{} and {} in Paris", (0, 1))]
    assert two.clean_prompts == ["monster and creature in Paris"]
    assert two.sample_prompts == ("<pip> and <tom> in Paris",)
    adjective = config_of(template="adjective", class_word="creature", target_prompt="a {} creature in the snow")
    assert adjective.clean_prompts == ["a creature in the snow"]
    assert adjective.sample_prompt == "a {} creature in the snow"
    assert config_of(sample_prompt="a {} at night").sample_prompt == "a {} at night"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_prompt": "a monster in Paris"}, "target_prompt: 'a monster in Paris' has no placeholder"),
        ({"target_prompt": "a {} ; in Paris"}, "target_prompt: 'in Paris' has no placeholder"),
        ({"target_prompt": " ; "}, "target_prompt is empty"),
        ({"target_prompt": "a {}", "class_word": "dog"}, "target_prompt: 'a {}' does not say dog, the class word"),
        (
            {"token": "<pip>, <tom>", "target_prompt": "a {} in Paris"},
            "target_prompt = 'a {} in Paris' holds {}, which may be any of 2 tokens; write <pip> or <tom> in its place",
        ),
        (
            {"token": "<pip>, <tom>", "target_prompt": "<pip> in Paris; <tom> and {} there"},
            "target_prompt = '<pip> in Paris; <tom> and {} there' holds {}, which may be any of 2 tokens",
        ),
        (
            {"token": "<pip>, <tom>", "target_prompt": "a monster in Paris"},
            "target_prompt: 'a monster in Paris' has no placeholder; write <pip> or <tom> where the token will stand",
        ),
        (
            {"token": "<pip>, <tom>", "class_word": "dog, cat", "target_prompt": "a <pip> dog; a <tom> in Paris"},
            "does not say cat, the class word: write <tom> cat where the subject stands",
        ),
        ({"alignment": -0.1}, "alignment = -0.1: must be from 0"),
        ({"alignment": 101.0}, "alignment = 101.0: must be from 0"),
        ({"alignment": float("nan")}, "alignment = nan: must be"),
        ({"alignment_beta": 0.0}, "alignment_beta = 0.0: must be above 0"),
        ({"target_prompt": None, "alignment": 0.5}, "alignment = 0.5 is a setting of alignment, which has no target"),
        ({"target_prompt": None, "alignment_alpha": 2.0}, "or leave alignment_alpha out"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config_of(**settings)
    assert message in str(refused.value)


def test_a_target_prompt_that_is_too_long_is_refused(tiny_model: StableDiffusion) -> None:
    long = "a {} " + "in neon style " * 30
    with pytest.raises(CaptionError, match=r"target_prompt: the prompt 'a \{\} in neon"):
        Training(config_of(target_prompt=long), tiny_model)


def test_nothing_aligns_without_a_target(tiny_model: StableDiffusion) -> None:
    assert aligned(config_of(target_prompt=None), tiny_model) is None
    assert aligned(config_of(alignment=0.0), tiny_model) is None
    found: Callable[..., Any] = aligned
    assert found(config_of(alignment=0.5, alignment_alpha=2.0), tiny_model).forwards == 4


def test_what_was_learned_says_its_target(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    path = train(config_of(steps=1), tmp_path / "run", tiny_model).path
    assert json.loads(load_embedding(path).metadata["config"])["target_prompt"] == TARGET


# ---------------------------------------------------------------- a single picture


def test_cuts_are_pieces_of_the_larger_picture() -> None:
    pictures, _ = load_images([PIP.images], 48, enlarged=True)
    assert {picture.picture.size for picture in pictures} == {(60, 60)}
    cuts = random_cuts(pictures, 5, seed=7)
    assert len(cuts) == 5 * len(pictures)
    assert [cut.path for cut in cuts[:6]] == [pictures[0].path] * 5 + [pictures[1].path]
    places = []
    for number, cut in enumerate(cuts):
        whole = pictures[number // 5]
        top, left = (cut.crop_top_left[i] - whole.crop_top_left[i] for i in (0, 1))
        expected = np.asarray(whole.picture)[top : top + 48, left : left + 48]
        assert np.array_equal(np.asarray(cut.picture), expected)
        places.append((top, left))
    assert len(set(places)) > 10
    assert {0 <= place <= 12 for pair in places for place in pair} == {True}
    again = random_cuts(pictures, 5, seed=7)
    assert [cut.crop_top_left for cut in again] == [cut.crop_top_left for cut in cuts]
    assert [cut.crop_top_left for cut in random_cuts(pictures, 5, seed=8)] != [cut.crop_top_left for cut in cuts]


@pytest.mark.slow
def test_the_preset_for_one_picture(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    default, own = preset_for("sd1"), preset_for("sd1", preset="aligned")
    assert own == {**default, "random_crops": 8, "steps": 3750}
    assert own["steps"] * (own["n"] + 3) == default["steps"] * default["n"]
    picture = sorted(PIP.images.glob("*.png"))[0]
    config = TrainConfig.with_preset(
        "aligned",
        {"images": (str(picture),), "token": "<pip>", "initializer": "monster", "target_prompt": TARGET, "steps": 4},
    )
    whole = train(config, tmp_path / "whole", tiny_model)
    drawn = {json.loads(line)["image"] for line in (tmp_path / "whole" / "steps.jsonl").read_text().splitlines()}
    assert drawn <= set(range(9))
    train(config, tmp_path / "stopped", tiny_model, stop_after=2)
    assert train(config, tmp_path / "stopped", tiny_model).path.read_bytes() == whole.path.read_bytes()
    flipped, _ = load_references(replace(config, flip=True), tiny_model.info)
    assert len(flipped) == 18
