"""The objective against the loss worked by hand, and what it must never do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from zoodip_core.base import rng
from zoodip_core.data.images import load_images
from zoodip_core.model.kinds import TINY_PATH
from zoodip_core.model.latents import encode_images
from zoodip_core.model.load import load_quantized
from zoodip_core.model.memory import activation_peak
from zoodip_core.model.posteriors import CachedPosteriors
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.tokens import initial_vectors
from zoodip_core.train.draws import Draw, fixed_draws, mean_losses
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.timesteps import PUTS

PIP = Path(__file__).parent.parent / "zoodip_core" / "tiny" / "concepts" / "pip" / "images"
CAPTION = "a {} in the snow"


def objective_of(model: StableDiffusion, num_vectors: int = 1) -> DiffusionObjective:
    images, _ = load_images([PIP], 48)
    prompt = model.prompt(CAPTION, num_vectors)
    return DiffusionObjective(model, encode_images(model, images), [[prompt]] * len(images), PUTS())


@pytest.fixture(scope="module")
def float_model() -> StableDiffusion:
    return load_quantized(weights="none")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_equation_1(float_model: StableDiffusion, prediction_type: str) -> None:
    """Eq. 1 by hand: alpha-bar from SD's betas in NumPy, the token written into the embedding table."""
    objective = objective_of(float_model)
    info = replace(float_model.info, prediction_type=prediction_type)
    other = replace(float_model, blueprint=replace(float_model.blueprint, info=info))
    objective = DiffusionObjective(other, objective.posteriors, objective.captions, PUTS())
    token = initial_vectors(float_model.tokenizers, float_model.text_encoders, "monster", 1)
    draw = Draw(seed=3, step=5, image=2, caption=0, timestep=640)
    ours = objective.losses(torch.stack([token, token + 0.1]), draw)

    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[640]
    shape = (4, 12, 12)
    posterior, noise = rng.normal(3, 5, "posterior", shape).numpy(), rng.normal(3, 5, "noise", shape).numpy()
    mean, std = objective.posteriors.mean[2].numpy(), objective.posteriors.std[2].numpy()
    z = (mean + std * posterior) * 0.18215
    z_t = np.sqrt(alpha_bar) * z + np.sqrt(1 - alpha_bar) * noise
    target = noise if prediction_type == "epsilon" else np.sqrt(alpha_bar) * noise - np.sqrt(1 - alpha_bar) * z

    pipeline = StableDiffusionPipeline.from_pretrained(TINY_PATH, safety_checker=None, local_files_only=True)
    tokenizer, encoder, unet = pipeline.tokenizer, pipeline.text_encoder.float(), pipeline.unet.float()
    table = encoder.get_input_embeddings().weight
    word = tokenizer("monster", add_special_tokens=False).input_ids[0]
    ids = tokenizer("a monster in the snow", padding="max_length", return_tensors="pt").input_ids
    kept = table[word].clone()
    for row, shift in enumerate((0.0, 0.1)):
        with torch.no_grad():
            table[word] = kept + shift
            hidden = encoder(ids)[0]
            out = unet(torch.from_numpy(z_t)[None].float(), 640, hidden).sample[0].double().numpy()
        assert ours[row].item() == pytest.approx(((out - target) ** 2).mean(), rel=1e-5)


def test_batched_equals_one_at_a_time(tiny_model: StableDiffusion) -> None:
    objective = objective_of(tiny_model, num_vectors=2)
    candidates = torch.randn(5, 2, 128, generator=torch.Generator().manual_seed(0)) * 0.05
    draw = objective.draw(0, 0)
    together = objective.losses(candidates, draw)
    alone = torch.cat([objective.losses(candidate[None], draw) for candidate in candidates])
    assert together.dtype == torch.float64
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


def test_all_candidates_see_the_same_draw(tiny_model: StableDiffusion) -> None:
    objective = objective_of(tiny_model)
    same = torch.zeros(4, 1, 128)
    losses = objective.losses(same, objective.draw(1, 2))
    torch.testing.assert_close(losses, losses[:1].expand(4), rtol=1e-6, atol=0)
    assert not torch.equal(losses, objective.losses(same, objective.draw(1, 3)))


def test_finite_differences_match_autograd(float_model: StableDiffusion) -> None:
    """The directional derivative from two forwards, against backpropagation through an own forward."""
    objective = objective_of(float_model)
    token = initial_vectors(float_model.tokenizers, float_model.text_encoders, "monster", 1)
    direction = torch.randn(1, 128, generator=torch.Generator().manual_seed(1))
    draw = Draw(seed=0, step=0, image=0, caption=0, timestep=700)
    plus, minus = objective.losses(torch.stack([token + 1e-3 * direction, token - 1e-3 * direction]), draw)
    measured = (plus - minus) / 2e-3

    (prompt,) = objective.captions[0][0]
    (encoder,) = float_model.text_encoders
    theta = token.clone().requires_grad_()
    with torch.enable_grad():
        layer = encoder.get_input_embeddings()
        hook = layer.register_forward_hook(
            lambda _m, _i, out: torch.cat(
                [out[:, : prompt.positions[0]], theta[None], out[:, prompt.positions[0] + 1 :]], 1
            )
        )
        hidden = encoder(prompt.ids)[0]
        hook.remove()
        noise = rng.normal(0, 0, "noise", (4, 12, 12))[None]
        z = objective.posteriors.sample(0, rng.normal(0, 0, "posterior", (4, 12, 12)))[None]
        z_t = float_model.scheduler.add_noise(z, noise, torch.tensor([700]))
        loss = (float_model.unet(z_t, 700, hidden).sample - noise).square().mean()
        (gradient,) = torch.autograd.grad(loss, theta)
    assert measured.item() == pytest.approx((gradient * direction).sum().item(), rel=2e-2)


def test_no_autograd_graph_is_ever_built(tiny_model: StableDiffusion) -> None:
    objective = objective_of(tiny_model)

    def saved(_tensor: torch.Tensor) -> Any:
        raise AssertionError("a tensor was saved for a backward pass")

    candidates = torch.zeros(3, 1, 128, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved, lambda x: x):
        losses = objective.losses(candidates, objective.draw(0, 0))
    assert not losses.requires_grad
    assert losses.grad_fn is None


def test_training_takes_no_more_memory_than_inference(tiny_model: StableDiffusion) -> None:
    """Beside diffusers' own forward of the same batch."""
    objective = objective_of(tiny_model)
    candidates = torch.zeros(3, 1, 128)
    condition = tiny_model.encode(objective.captions[0][0], candidates)

    def infer() -> None:
        with torch.no_grad():
            tiny_model.unet(torch.zeros(3, 4, 12, 12), 700, condition.hidden)

    training = activation_peak(lambda: objective.losses(candidates, objective.draw(0, 0)), tiny_model.device)
    inference = activation_peak(infer, tiny_model.device)
    assert 0 < inference < 50e6
    assert training < 1.1 * inference


def test_the_meter_sees_what_is_held_at_once() -> None:
    def work() -> None:
        a = torch.zeros(1000, dtype=torch.float32)
        b = a + 1
        del a
        c = b * 2
        _view = c.view(10, 100)
        del b

    assert activation_peak(work, torch.device("cpu")) == 8000


def test_posterior_is_sampled_exactly() -> None:
    mean, std = torch.full((4, 8, 8), 2.0), torch.full((4, 8, 8), 0.5)
    cached = CachedPosteriors([mean], [std], 0.5, torch.zeros(1, 6))
    samples = torch.stack([cached.sample(0, rng.normal(0, step, "posterior", (4, 8, 8))) for step in range(200)])
    assert samples.mean().item() == pytest.approx(1.0, abs=0.01)
    assert samples.std().item() == pytest.approx(0.25, abs=0.01)


def test_the_vae_leaves_memory(tiny_model: StableDiffusion) -> None:
    import gc

    from diffusers import AutoencoderKL

    images, _ = load_images([PIP], 48)
    encode_images(tiny_model, images)
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, AutoencoderKL)]


def test_every_image_and_caption_is_drawn(tiny_model: StableDiffusion) -> None:
    images, _ = load_images([PIP], 48)
    prompts = [tiny_model.prompt(text, 1) for text in ("a {}", "the {}", "my {}")]
    objective = DiffusionObjective(tiny_model, encode_images(tiny_model, images), [prompts] * len(images), PUTS())
    seen = {(d.image, d.caption) for d in (objective.draw(0, step) for step in range(400))}
    assert len(seen) == 3 * len(images)


def test_held_out_draws_are_the_same_for_every_token(tiny_model: StableDiffusion) -> None:
    objective = objective_of(tiny_model)
    draws = fixed_draws(7, 2, (500, 700), repeats=2)
    assert len({draw.step for draw in draws}) == len(draws) == 8
    token = torch.randn(1, 1, 128) * 0.05
    both = mean_losses(objective, torch.cat([token, token + 0.01]), draws)
    assert both[0].item() == pytest.approx(mean_losses(objective, token, draws)[0].item(), rel=1e-6)
