"""The engine's tricks against the plain way, per family: the same losses in float32 to 1e-5.

The plain way is worked with diffusers' and transformers' own modules: the token written into the
embedding tables, the image encoded at each step, one candidate after the other.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
import torch
from diffusers import DDIMScheduler
from PIL import Image
from transformers import CLIPTokenizerFast

from zoodip_core.base import rng
from zoodip_core.base.errors import ConfigError
from zoodip_core.data.images import ReferenceImage, load_images, to_tensor
from zoodip_core.model import generation
from zoodip_core.model.attention import PiecewiseAttention, attend
from zoodip_core.model.embedding import Embedding, load_embedding, save_embedding
from zoodip_core.model.generation import encode_text, generate
from zoodip_core.model.kinds import CLIP_PATH
from zoodip_core.model.latents import encode_images
from zoodip_core.model.load import load_quantized
from zoodip_core.model.quantized import Conditioning
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.train.draws import Draw
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.timesteps import PUTS

FAMILIES = ("sd15", pytest.param("sd21", marks=pytest.mark.slow), "sdxl")
"""What is done around the networks is for SD 2.1 as for SD 1.5; that they are its own is looked at below."""
SIDE = 64
CAPTION = "a photo of a {} on grass"
DRAW = Draw(seed=4, step=9, image=0, caption=0, timestep=640)


SD15_ALONE = pytest.mark.parametrize(
    "setting", ["sd15", *(pytest.param(family, marks=pytest.mark.slow) for family in ("sd21", "sdxl"))], indirect=True
)
"""For what no family has layers of its own for; in the order of all, which share a model."""
SDXL = pytest.mark.parametrize(
    "setting", [*(pytest.param(family, marks=pytest.mark.slow) for family in ("sd15", "sd21")), "sdxl"], indirect=True
)
"""For what is done with two text encoders as with one, and then some."""
EACH_FAMILY = pytest.mark.parametrize("setting", ["sd15", "sd21", "sdxl"], indirect=True)
"""For networks that are each family's own."""


@dataclass
class Setting:
    """A small random model of a family as float modules and as we load it, an image and candidates."""

    family: str
    modules: dict[str, Any]
    file: Path
    model: StableDiffusion
    photo: Path
    candidates: torch.Tensor

    def objective(self, **settings: Any) -> DiffusionObjective:
        images, _ = load_images([self.photo], SIDE)
        prompts = [[self.model.prompt(CAPTION, self.candidates.shape[1])]]
        return DiffusionObjective(self.model, encode_images(self.model, images), prompts, PUTS(), **settings)

    @cached_property
    def losses(self) -> torch.Tensor:
        """Of the candidates, all at once."""
        return self.objective().losses(self.candidates, DRAW)


@pytest.fixture(scope="module", params=FAMILIES)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp(request.param)
    modules = random_models.build(request.param, "small", 3)
    file = random_models.write_ldm(folder / "model.safetensors", modules, request.param, torch.float16)
    values = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / "photo.png")
    model = load_quantized(file, weights="none", prediction_type="epsilon")
    drawn = torch.randn(3, 2, sum(model.info.dims), generator=torch.Generator().manual_seed(1))
    return Setting(request.param, modules, file, model, folder / "photo.png", drawn * 0.02)


def plain_losses(setting: Setting) -> list[float]:
    (image,), _ = load_images([setting.photo], SIDE)
    # A 130 x 90 picture scaled to 92 x 64, 14 columns cut off on the left.
    return plain_losses_of(setting, image, torch.tensor([[90.0, 130.0, 0.0, 14.0, SIDE, SIDE]]))


@torch.no_grad()
def plain_losses_of(setting: Setting, image: ReferenceImage, sizes: torch.Tensor) -> list[float]:
    """Equation 1 for each candidate, with nothing shared and nothing cached."""
    modules = setting.modules
    mean, log_variance = modules["vae"].encode(to_tensor([image.picture])).latent_dist.parameters.chunk(2, dim=1)
    noise = rng.normal(DRAW.seed, DRAW.step, "noise", mean.shape[1:])[None]
    posterior = rng.normal(DRAW.seed, DRAW.step, "posterior", mean.shape[1:])[None]
    z = (mean + (log_variance / 2).exp() * posterior) * modules["vae"].config.scaling_factor
    alpha_bar = float(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[DRAW.timestep])
    noisy = alpha_bar**0.5 * z + (1 - alpha_bar) ** 0.5 * noise
    losses = []
    for candidate in setting.candidates:
        hidden, added = plain_text(setting, candidate, sizes)
        out = modules["unet"](noisy, DRAW.timestep, hidden, added_cond_kwargs=added).sample
        losses.append((out.double() - noise.double()).square().mean().item())
    return losses


@functools.cache
def tokenizer_of(pad: str) -> Any:
    return CLIPTokenizerFast.from_pretrained(CLIP_PATH, pad_token=pad)


def plain_text(
    setting: Setting, candidate: torch.Tensor, sizes: torch.Tensor
) -> tuple[torch.Tensor, dict[str, Any] | None]:
    """The prompt with the candidate's vectors in place of two words of each table."""
    modules, outputs = setting.modules, []
    encoders = [modules[part] for part in ("text_encoder", "text_encoder_2") if part in modules]
    for i, (encoder, part) in enumerate(zip(encoders, candidate.split(setting.model.info.dims, dim=1), strict=True)):
        tokenizer = tokenizer_of("!" if setting.family == "sd21" or i == 1 else "<|endoftext|>")
        text = CAPTION.format("zebra violin")
        ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        table = encoder.get_input_embeddings().weight
        words = tokenizer("zebra violin", add_special_tokens=False).input_ids
        kept = table[words].clone()
        table[words] = part
        outputs.append(encoder(ids, output_hidden_states=True))
        table[words] = kept
    if len(outputs) == 1:
        return outputs[0].last_hidden_state, None
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return hidden, {"text_embeds": outputs[1].text_embeds, "time_ids": sizes}


@SDXL
def test_all_tricks_together_give_the_plain_losses(setting: Setting) -> None:
    assert setting.losses.tolist() == pytest.approx(plain_losses(setting), rel=1e-5)


SHAPES = {
    "wide": ((130, 90), (72, 56), (90.0, 130.0, 0.0, 4.0, 56.0, 72.0)),
    "tall": ((60, 180), (32, 104), (180.0, 60.0, 0.0, 1.0, 104.0, 32.0)),
    "square": ((100, 100), (64, 64), (100.0, 100.0, 0.0, 0.0, 64.0, 64.0)),
}
"""Of pictures, of what they are cut to, and what SDXL is told: 130 x 90 become 80.9 x 56 before they are cut, and
60 x 180 become 34.7 x 104."""


@SDXL
def test_pictures_of_each_shape_have_the_plain_losses(setting: Setting, tmp_path: Path) -> None:
    """Three shapes in one run, each judged twice and in turn, as diffusers computes them one by one."""
    values = np.random.default_rng(1)
    for name, (size, _, _) in SHAPES.items():
        Image.fromarray(values.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    images, _ = load_images([tmp_path], SIDE, crop="bucket")
    prompts = [[setting.model.prompt(CAPTION, setting.candidates.shape[1])]] * len(images)
    objective = DiffusionObjective(setting.model, encode_images(setting.model, images), prompts, PUTS())
    expected = {}
    for image in images:
        _, size, sizes = SHAPES[image.path.stem]
        assert image.picture.size == size
        expected[image.path.stem] = plain_losses_of(setting, image, torch.tensor([sizes]))
    assert len({tuple(each) for each in expected.values()}) == 3
    for _ in range(2):
        for number, image in enumerate(images):
            found = objective.losses(setting.candidates, replace(DRAW, image=number))
            assert found.tolist() == pytest.approx(expected[image.path.stem], rel=1e-5), image.path.stem


def test_batched_is_in_turn(setting: Setting) -> None:
    """Two and then one; each alone is what is left where memory ends, below."""
    in_turn = setting.objective(batch=2).losses(setting.candidates, DRAW)
    torch.testing.assert_close(in_turn, setting.losses, rtol=1e-5, atol=0)


@EACH_FAMILY
@torch.no_grad()
def test_shared_prefix_is_the_whole_forward(setting: Setting) -> None:
    """Our pass over the same layers, against diffusers' forward on repeated latents."""
    model = setting.model
    condition = model.encode(model.prompt(CAPTION, 2), setting.candidates)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    sizes = torch.tensor([90.0, 130.0, 0.0, 14.0, SIDE, SIDE])
    added = {"text_embeds": condition.pooled, "time_ids": sizes.expand(3, -1)}
    whole = model.unet(noisy.expand(3, -1, -1, -1), 640, condition.hidden, added_cond_kwargs=added).sample
    torch.testing.assert_close(model.predict(noisy, 640, condition, sizes), whole, rtol=1e-5, atol=1e-5)


@EACH_FAMILY
@torch.no_grad()
def test_trimmed_token_table_is_the_whole_table(setting: Setting) -> None:
    """A long prompt of rare words: hidden states, and SDXL's pooled output which looks for the end of text."""
    text = "zucchini quokkas juggle tangerine accordions beneath 37 umbrellas"
    ours = setting.model.encode(setting.model.prompt(text))
    parts = [setting.modules[part] for part in ("text_encoder", "text_encoder_2") if part in setting.modules]
    outputs = [
        encoder(encoded.ids, output_hidden_states=True)
        for encoder, encoded in zip(parts, setting.model.prompt(text), strict=True)
    ]
    if len(outputs) == 1:
        torch.testing.assert_close(ours.hidden, outputs[0].last_hidden_state, rtol=1e-5, atol=1e-5)
    else:
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        torch.testing.assert_close(ours.hidden, hidden, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.pooled, outputs[1].text_embeds, rtol=1e-5, atol=1e-5)
    for encoder in setting.model.text_encoders:
        assert len(encoder.get_input_embeddings().weight) < 60  # of 49408


def test_cached_posterior_is_the_vae_at_each_step(setting: Setting) -> None:
    images, _ = load_images([setting.photo], SIDE)
    cached = encode_images(setting.model, images)
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        posterior = setting.modules["vae"].encode(to_tensor([images[0].picture])).latent_dist
    factor = setting.modules["vae"].config.scaling_factor
    fresh = (posterior.mean[0] + posterior.std[0] * noise) * factor
    torch.testing.assert_close(cached.sample(0, noise), fresh, rtol=1e-5, atol=1e-6)


def test_text_on_another_device_changes_nothing(setting: Setting) -> None:
    apart = replace(setting.model)
    apart.keep_text_apart()
    objective = setting.objective()
    objective.model = apart
    assert torch.equal(objective.losses(setting.candidates, DRAW), setting.losses)


def test_a_shared_model_forgets_that_text_was_apart(setting: Setting) -> None:
    """The next run may find more room."""
    card = torch.device("meta")
    model = replace(setting.model, device=card, text_device=card)
    model.keep_text_apart()
    assert model.text_device.type == "cpu"
    model.unload()
    assert model.text_device == card


def test_half_precision_text_apart_is_computed_in_float32(setting: Setting) -> None:
    """Float16 is for the card; a CPU has slow kernels for it, or none."""
    model = replace(setting.model, dtype=torch.float16)
    model.keep_text_apart()
    assert {p.dtype for encoder in model.text_encoders for p in encoder.parameters()} == {torch.float32}
    condition = model.encode(model.prompt(CAPTION, 2), setting.candidates)
    assert condition.hidden.dtype == torch.float16
    assert condition.pooled is None or condition.pooled.dtype == torch.float16


def test_out_of_memory_halves_the_batch_and_says_so(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    objective = setting.objective(on_smaller_batch=told.append)
    expected = setting.losses
    predict = StableDiffusion.predict

    def small_card(self: StableDiffusion, noisy: Any, timestep: int, condition: Any, time_ids: Any) -> torch.Tensor:
        if len(condition) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, noisy, timestep, condition, time_ids)

    monkeypatch.setattr(StableDiffusion, "predict", small_card)
    torch.testing.assert_close(objective.losses(setting.candidates, DRAW), expected, rtol=1e-5, atol=0)
    assert told == [1]
    monkeypatch.setattr(StableDiffusion, "predict", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        objective.losses(setting.candidates, DRAW)


@pytest.mark.parametrize("shape", [(2, 3, 70, 40), (1, 2, 300, 64)])
def test_attention_in_pieces_is_attention(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    whole = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    monkeypatch.setattr("zoodip_core.model.attention._SCORES", 32 * shape[2])  # several pieces, the last one short
    torch.testing.assert_close(attend(query, key, value), whole, rtol=1e-5, atol=1e-5)


@SD15_ALONE
@torch.no_grad()
def test_attention_in_pieces_runs_the_unet(setting: Setting) -> None:
    unet = setting.modules["unet"]
    latents, hidden = torch.randn(2, 4, 8, 8), torch.randn(2, 77, unet.config.cross_attention_dim)
    added = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.ones(2, 6)}
    whole = unet(latents, 300, hidden, added_cond_kwargs=added).sample
    processors = unet.attn_processors
    unet.set_attn_processor(PiecewiseAttention())
    in_pieces = unet(latents, 300, hidden, added_cond_kwargs=added).sample
    unet.set_attn_processor(processors)
    torch.testing.assert_close(in_pieces, whole, rtol=1e-4, atol=1e-5)


@SD15_ALONE
def test_bfloat16_on_a_cpu_uses_them(setting: Setting) -> None:
    model = load_quantized(setting.file, dtype="bfloat16", prediction_type="epsilon")
    kinds = {type(processor) for processor in model.unet.attn_processors.values()}
    assert kinds == {PiecewiseAttention}
    coarse = replace_model(setting.objective(), model).losses(setting.candidates, DRAW)
    torch.testing.assert_close(coarse, setting.losses, rtol=0.1, atol=0)


def replace_model(objective: DiffusionObjective, model: StableDiffusion) -> DiffusionObjective:
    objective.model = model
    return objective


# ---------------------------------------------------------------- tokens and pictures of all families


@SD15_ALONE
def test_a_token_is_what_diffusers_sees(setting: Setting, tmp_path: Path) -> None:
    """Saved, loaded by diffusers' own textual inversion into its pipeline, and encoded there."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    dims = setting.model.info.dims
    embedding = Embedding("<rex>", tuple(part.contiguous() for part in setting.candidates[0].split(dims, dim=1)))
    path = save_embedding(embedding, tmp_path)
    assert torch.equal(load_embedding(path).vectors, setting.candidates[0])
    folder = random_models.write_diffusers(tmp_path / "folder", setting.modules, setting.family)
    kind = StableDiffusionXLPipeline if len(dims) == 2 else StableDiffusionPipeline
    more = {} if len(dims) == 2 else {"safety_checker": None}
    pipeline = kind.from_pretrained(folder or tmp_path / "folder", local_files_only=True, **more)
    if len(dims) == 2:
        for part, tensor in zip(("", "_2"), embedding.tensors, strict=True):
            encoder, tokenizer = getattr(pipeline, f"text_encoder{part}"), getattr(pipeline, f"tokenizer{part}")
            pipeline.load_textual_inversion(tensor, token="<rex>", text_encoder=encoder, tokenizer=tokenizer)
            for module in encoder.modules():  # else some versions take the new, higher id for the end of text
                if hasattr(module, "eos_token_id"):
                    module.eos_token_id = tokenizer.eos_token_id
    else:
        pipeline.load_textual_inversion(str(path))
    with torch.no_grad():
        ours = encode_text(setting.model, "a photo of <rex> in the snow", embedding)
        theirs = pipeline.encode_prompt(
            prompt="a photo of <rex> in the snow",
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    torch.testing.assert_close(ours.hidden, theirs[0], rtol=1e-4, atol=1e-4)
    if len(dims) == 2:
        torch.testing.assert_close(ours.pooled, theirs[2], rtol=1e-4, atol=1e-4)


@SDXL
@pytest.mark.parametrize("weights", [pytest.param("none", marks=pytest.mark.slow), "int8"])
def test_pictures_of_every_family(setting: Setting, weights: str) -> None:
    """Through diffusers' pipeline of the family; several rows, one decode at a time, progress to the end."""
    model = load_quantized(setting.file, weights=weights, prediction_type="epsilon")
    steps: list[tuple[int, int]] = []
    images = generate(
        model,
        ["a dog", "a dog"],
        [0, 1],
        num_inference_steps=2,
        resolution=SIDE,
        on_step=lambda done, of: steps.append((done, of)),
    )
    assert [image.size for image in images] == [(SIDE, SIDE)] * 2
    assert images[0].tobytes() != images[1].tobytes()
    assert steps[-1] == (2, 2)
    (alone,) = generate(model, ["a dog"], [1], num_inference_steps=2, resolution=SIDE)
    difference = np.abs(np.asarray(alone, dtype=int) - np.asarray(images[1], dtype=int))
    assert difference.max() <= 2


@SDXL
def test_a_token_stands_until_a_share_of_the_steps(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against denoising by hand with the token's text first and its word's from there on; two prompts in one batch."""
    model, steps, guidance = setting.model, 4, 3.0
    noise = torch.Generator().manual_seed(1)
    vectors = tuple(0.02 * torch.randn(1, dim, generator=noise) for dim in model.info.dims)
    token = Embedding("<rex>", vectors, {"initializer": "dog"})
    texts = ["a <rex> in the snow", "a <rex>"]
    monkeypatch.setattr(generation, "_decode", lambda _model, latents: latents)

    def drawn(until: float) -> torch.Tensor:
        how: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "resolution": SIDE,
            "until": until,
        }
        latents: Any = generate(model, texts, [3, 4], embedding=token, negative_prompt="blurred", **how)
        return torch.stack(latents)

    @functools.cache
    def read(text: str) -> Conditioning:
        return encode_text(model, text, token if "<rex>" in text else None)

    def by_hand(text: str, seed: int, after: int) -> torch.Tensor:
        scheduler = DDIMScheduler.from_config(model.scheduler.config)
        scheduler.set_timesteps(steps)
        x = rng.normal(seed, 0, "latents", (4, SIDE // 8, SIDE // 8))[None]
        size = torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE])
        negative = read("blurred")
        for step, t in enumerate(scheduler.timesteps):
            words = read(text if step < after else text.replace("<rex>", "dog"))
            with torch.no_grad():
                without, with_it = (model.predict(x, int(t), each, size) for each in (negative, words))
            x = scheduler.step(without + guidance * (with_it - without), t, x).prev_sample
        return x[0]

    found = {until: drawn(until) for until in (0.5, 0.05, 1.0)}
    for until, after in ((0.5, 2), (0.05, 1)):
        expected = torch.stack([by_hand(text, seed, after) for text, seed in zip(texts, (3, 4), strict=True)])
        torch.testing.assert_close(found[until], expected, rtol=1e-3, atol=1e-3)
    assert (found[0.5] - found[1.0]).abs().max() > 1e-2


def test_a_word_is_needed_to_follow_a_token(tiny_model: StableDiffusion) -> None:
    nameless = Embedding("<rex>", (torch.zeros(1, *tiny_model.info.dims),))
    for until, message in ((0.5, "<rex> does not say which word"), (0.0, "until = 0"), (1.5, "until = 1.5")):
        with pytest.raises(ConfigError, match=message):
            generate(tiny_model, ["a <rex>"], [0], embedding=nameless, num_inference_steps=2, until=until)
    generate(tiny_model, ["a monster"], [0], embedding=nameless, num_inference_steps=2, until=0.5)


def test_the_size_of_a_photograph_reaches_sdxl(tmp_path: Path) -> None:
    """Original size, crop corner and target size, height before width, as diffusers' SDXL training gives them."""
    Image.new("RGB", (300, 100)).save(tmp_path / "wide.png")
    Image.new("RGB", (100, 200)).save(tmp_path / "tall.png")
    tall, wide = load_images([tmp_path], 64)[0]
    assert (tall.original_size, tall.crop_top_left) == ((200, 100), (32, 0))
    assert (wide.original_size, wide.crop_top_left) == ((100, 300), (0, 64))
    whole = load_images([tmp_path], 64, crop="resize")[0][0]
    assert (whole.original_size, whole.crop_top_left) == ((200, 100), (0, 0))
