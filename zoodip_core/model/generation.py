"""Images from a loaded model, with or without a learned token, through diffusers' own pipelines."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..base import rng
from ..base.errors import ConfigError, LoraFileError, ModelError
from ..base.stopping import check_stop
from ..base.texts import how_many
from ..data.images import check_resolution
from .building import empty_network
from .calls import Call, calls_in
from .embedding import Embedding, check_fits
from .frames import with_layers
from .kinds import MOST_GUIDANCE, MOST_STEPS
from .latents import advice
from .lora import Lora
from .quantized import Conditioning, QuantizedModel

_PIXELS_AT_ONCE = 512 * 512
_SMALLEST_TILE = 16
"""Latents a side."""


Embeddings = Embedding | Sequence[Embedding] | None


def encode_text(model: QuantizedModel, text: str, embedding: Embeddings = None) -> Conditioning:
    """A text's conditioning, of one row; the embeddings' tokens in the text become their vectors."""
    (call,) = calls_in([text], _listed(embedding))
    return _encode(model, call)


def _encode(model: QuantizedModel, call: Call) -> Conditioning:
    if not call.embeddings:
        return model.encode(model.prompt(call.text))
    return model.encode(model.prompt(call.text, call.counts), call.vectors)


def _listed(embedding: Embeddings) -> Sequence[Embedding]:
    return [embedding] if isinstance(embedding, Embedding) else embedding or []


@torch.no_grad()
def generate(
    model: QuantizedModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    embedding: Embeddings = None,
    negative_prompt: str = "",
    num_inference_steps: int = 25,
    guidance_scale: float | None = None,
    resolution: int = 0,
    until: float = 1.0,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """One image for each prompt and seed, paired.

    Small images are made several at once, large ones one after the other.

    Args:
        prompts: texts.
        seeds: as many as prompts. A seed gives the same image on any device, up to rounding.
        embedding: a learned token or several, for prompts and negative prompt to call; see :func:`calls.calls_in`.
        guidance_scale: classifier-free guidance; 7.5 if None, 5 for the embedded tiny model.
        resolution: pixels a side, 0 for the model's own.
        until: the share of the steps in which tokens stand in the prompts; from there on the words stand that they
            began as, which leave the rest of a prompt to the model.
        on_step: called with (done, of) after each denoising step.

    Raises:
        ConfigError: a setting out of range, ``{}`` in a prompt for one of several embeddings, or an embedding that does
            not say which word it began as, to stand there after ``until``.
        EmbeddingFileError: an embedding is of another model family, or two have the same token.
        CaptionError: a prompt longer than the model reads.
        ModelError: what comes out is not finite.
        Stopped: a stop was asked for.
    """
    if guidance_scale is None:
        guidance_scale = 5.0 if model.info.family == "tiny" else 7.5
    check_settings(prompts, seeds, num_inference_steps, guidance_scale)
    check_until(until)
    check_resolution(resolution)
    for each in _listed(embedding):
        check_fits(each, model.info.dims, "generate")
    encoded, later = _encoded(model, prompts, negative_prompt, _listed(embedding), until)
    side = resolution or model.info.resolution
    at_once = max(1, _PIXELS_AT_ONCE // side**2)
    batches = range(0, len(prompts), at_once)
    told = _after_each_step(on_step, num_inference_steps * len(batches))
    run, latents = _pipeline(model), []
    for first in batches:
        rows = slice(first, first + at_once)
        conditions = [encoded[text] for text in prompts[rows]]
        words = [later[text] for text in prompts[rows]] if later else []
        after_each = _Changing(told, words, steps_until(until, num_inference_steps))
        latents += run(
            **_embeds(conditions, ""),
            **_embeds([encoded[negative_prompt]] * len(conditions), "negative_"),
            latents=_noise(model, seeds[rows], side).to(model.device, model.dtype),
            height=side,
            width=side,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            callback_on_step_end=after_each,
            callback_on_step_end_tensor_inputs=after_each.inputs,
            output_type="latent",
        ).images
    return _decode(model, latents)


def _encoded(
    model: QuantizedModel, prompts: Sequence[str], negative_prompt: str, embeddings: Sequence[Embedding], until: float
) -> tuple[dict[str, Conditioning], dict[str, Conditioning]]:
    """All texts by themselves, and the prompts as they are after ``until``; none where that is the end."""
    texts = list(dict.fromkeys([*prompts, negative_prompt]))
    calls = dict(zip(texts, calls_in(texts, embeddings), strict=True))
    encoded = {text: _encode(model, call) for text, call in calls.items()}
    return encoded, {text: _encode(model, calls[text].in_words(until)) for text in set(prompts)} if until < 1 else {}


@contextlib.contextmanager
def with_lora(model: object, lora: Lora | None) -> Iterator[None]:
    """Within this context a model draws with weights that were learned; as ever if there are none.

    Raises:
        LoraFileError: they are not for this model.
    """
    if lora is None:
        yield
        return
    if not isinstance(model, QuantizedModel):
        raise LoraFileError("the LoRA is for a Stable Diffusion that ZOODiP loads; load it as ComfyUI's LoRAs are")
    with with_layers(model.unet, lora.for_unet(model.unet, model.device, model.dtype)):
        yield


def _after_each_step(on_step: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    """What is called after each denoising step: it tells of it and answers a stop."""
    steps = itertools.count(1)

    def told() -> None:
        check_stop()
        if on_step:
            on_step(next(steps), total)

    return told


class _Changing:
    """Called after each denoising step; after one of them the pipeline has other conditionings from there on.

    Args:
        told: called as well.
        later: of each row; none where nothing changes.
        after: how many steps are done by then.
    """

    def __init__(self, told: Callable[[], None], later: Sequence[Conditioning], after: int) -> None:
        self._told, self._after = told, after
        self._later = {"prompt_embeds": torch.cat([each.hidden for each in later])} if later else {}
        if pooled := [each.pooled for each in later if each.pooled is not None]:
            self._later["add_text_embeds"] = torch.cat(pooled)

    @property
    def inputs(self) -> list[str]:
        """What the pipeline is to hand over."""
        return list(self._later)

    def __call__(self, _pipe: Any, index: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        self._told()
        if index + 1 != self._after:
            return {}
        # With guidance the negative prompt's rows are above.
        return {name: torch.cat([kwargs[name][: -len(own)], own]) for name, own in self._later.items()}


def steps_until(until: float, num_inference_steps: int) -> int:
    """How many of the steps a token stands in, at least one."""
    return max(1, round(until * num_inference_steps))


def check_settings(
    prompts: Sequence[str], seeds: Sequence[int], num_inference_steps: int, guidance_scale: float | None
) -> None:
    """Refuse what :func:`generate` could not draw; needs no model.

    Raises:
        ConfigError: a setting out of range.
    """
    if len(prompts) != len(seeds) or not prompts:
        raise ConfigError(
            f"generate: {how_many(len(prompts), 'prompt')} and {how_many(len(seeds), 'seed')}; give one seed a prompt"
        )
    if not 1 <= num_inference_steps <= MOST_STEPS:
        raise ConfigError(f"steps = {num_inference_steps}: must be from 1 to {MOST_STEPS}")
    if guidance_scale is not None and not 0 <= guidance_scale <= MOST_GUIDANCE:
        raise ConfigError(f"guidance = {guidance_scale}: must be from 0 to {MOST_GUIDANCE}")


def check_until(until: float) -> None:
    """Refuse a share of the steps that is none.

    Raises:
        ConfigError: it is out of range.
    """
    if not 0 < until <= 1:
        raise ConfigError(f"until = {until:g}: must be above 0 and at most 1, all of the steps")


def _noise(model: QuantizedModel, seeds: Sequence[int], side: int) -> torch.Tensor:
    factor = 2 ** (len(model.blueprint.configs["vae"]["block_out_channels"]) - 1)
    shape = (model.unet.config.in_channels, side // factor, side // factor)
    return torch.stack([rng.normal(seed, 0, "latents", shape) for seed in seeds])


def _embeds(conditions: Sequence[Conditioning], kind: str) -> dict[str, torch.Tensor]:
    """The pipeline's arguments for some rows of text."""
    embeds = {f"{kind}prompt_embeds": torch.cat([c.hidden for c in conditions])}
    pooled = [c.pooled for c in conditions if c.pooled is not None]
    return {**embeds, f"{kind}pooled_prompt_embeds": torch.cat(pooled)} if pooled else embeds


def _pipeline(model: QuantizedModel) -> Any:
    """Diffusers' sampling around our UNet, from encoded text to latents."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    # It only asks the VAE for its config and its device; what decodes is loaded when the UNet is done.
    vae = empty_network(model.blueprint, "vae")
    vae.encoder = vae.decoder = torch.nn.Identity()
    vae.to_empty(device=model.device)
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": None,
        "tokenizer": None,
        "unet": model.unet,
        "scheduler": DDIMScheduler.from_config(model.scheduler.config),
        "feature_extractor": None,
    }
    if model.info.family == "sdxl":
        pipeline = StableDiffusionXLPipeline(
            **parts, text_encoder_2=None, tokenizer_2=None, image_encoder=None, add_watermarker=False
        )
    else:
        pipeline = StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _decode(model: QuantizedModel, latents: Sequence[torch.Tensor]) -> list[Image.Image]:
    images = []
    with model.vae("decoder") as vae:
        for each in latents:  # one at a time: decoding takes more room than denoising
            check_stop()
            pixels = _decoded(vae, each[None].to(vae.dtype) / vae.config.scaling_factor)
            if not torch.isfinite(pixels).all():
                part, dtype = ("VAE", vae.dtype) if torch.isfinite(each).all() else ("UNet", model.dtype)
                raise ModelError(
                    f"model: the {part} of {model.info.path} makes NaN or infinity of this prompt, computing in "
                    f"{str(dtype).removeprefix('torch.')}; {advice(dtype)}"
                )
            array = ((pixels.float().cpu() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            images.append(Image.fromarray(np.ascontiguousarray(array.permute(1, 2, 0).numpy())))
    return images


def _decoded(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pixels ``[3, height, width]`` of latents ``[1, ...]``; where there is no room for all at once, tile by tile.

    SDXL's decoder takes as much as its UNet and text encoders do, which are there beside it.

    Raises:
        OutOfMemoryError: there is no room for a small tile either.
    """
    while True:
        try:
            pixels: torch.Tensor = vae.decode(latents).sample[0]
            return pixels
        except torch.OutOfMemoryError:
            side = (vae.tile_latent_min_size if vae.use_tiling else max(latents.shape[-2:])) // 2
            if side < _SMALLEST_TILE:
                raise
        torch.cuda.empty_cache()  # outside of the except block: the exception held what was computed
        vae.enable_tiling()
        vae.tile_latent_min_size = side
        vae.tile_sample_min_size = side * 2 ** (len(vae.config.block_out_channels) - 1)
