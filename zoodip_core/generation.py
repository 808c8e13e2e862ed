"""Images from a loaded model, with or without a learned token, through diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from . import rng
from .embedding import Embedding, check_fits
from .errors import ConfigError
from .models import QuantizedModel
from .prompts import SLOT
from .tokens import encode_prompt, placed


def encode_text(model: QuantizedModel, text: str, embedding: Embedding | None = None) -> torch.Tensor:
    """Text encoder output ``[1, length, dim]``; the embedding's token in the text becomes its vectors."""
    if embedding is None:
        return model.encode(encode_prompt(model.tokenizer, text, 0).ids.to(model.device))
    prompt = encode_prompt(model.tokenizer, text.replace(embedding.token, SLOT), embedding.num_vectors)
    with placed(model.text_encoder, prompt, embedding.tensors[0][None]) as ids:
        return model.encode(ids)


@torch.no_grad()
def generate(
    model: QuantizedModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    embedding: Embedding | None = None,
    negative_prompt: str = "",
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
    resolution: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """One image for each prompt and seed, paired; all in one batch.

    Args:
        prompts: texts; the embedding's token may stand in them.
        seeds: as many as prompts. A seed gives the same image on any device, up to rounding.
        resolution: pixels a side, 0 for the model's own.
        on_step: called with (done, of) after each denoising step.

    Raises:
        ConfigError: a setting out of range.
        EmbeddingFileError: the embedding is of another model family.
        CaptionError: a prompt longer than the model reads.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    if len(prompts) != len(seeds) or not prompts:
        raise ConfigError(f"generate: {len(prompts)} prompts and {len(seeds)} seeds; give one seed a prompt")
    if not 1 <= num_inference_steps <= 1000:
        raise ConfigError(f"steps = {num_inference_steps}: must be from 1 to 1000")
    if not 0 <= guidance_scale <= 100:
        raise ConfigError(f"guidance = {guidance_scale}: must be from 0 to 100")
    if embedding:
        check_fits(embedding, (model.info.dim,), "generate")
    hidden = torch.cat([encode_text(model, prompt, embedding) for prompt in prompts])
    empty = encode_text(model, negative_prompt, embedding).expand_as(hidden)
    side = resolution or model.info.resolution
    with model.vae() as vae:
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        shape = (model.unet.config.in_channels, side // factor, side // factor)
        noise = torch.stack([rng.normal(seed, 0, "latents", shape) for seed in seeds])
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            unet=model.unet,
            scheduler=DDIMScheduler.from_config(model.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)

        def told(_pipe: Any, index: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            if on_step:
                on_step(index + 1, num_inference_steps)
            return kwargs

        images: list[Image.Image] = pipeline(
            prompt_embeds=hidden,
            negative_prompt_embeds=empty,
            latents=noise.to(model.device, model.dtype),
            height=side,
            width=side,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            callback_on_step_end=told,
        ).images
    return images
