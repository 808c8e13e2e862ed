"""Pictures drawn by ComfyUI's own samplers, for previews and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import comfy.sample
import numpy as np
import torch
from PIL import Image

from ...zoodip_core.base import rng
from ...zoodip_core.base.errors import ModelError
from ...zoodip_core.base.stopping import check_stop
from ...zoodip_core.data.images import check_resolution
from ...zoodip_core.model.blueprint import ModelInfo
from ...zoodip_core.model.calls import Call, calls_in
from ...zoodip_core.model.embedding import Embedding, check_fits
from ...zoodip_core.model.generation import check_settings, check_until
from ...zoodip_core.model.places import Rows, rows_of
from ..placing import plain_word
from .kinds import is_distilled, is_guided
from .texts import ComfyPrompt, Texts

_SAMPLER = "euler"
_SCHEDULES = {True: "normal", False: "simple"}
"""ComfyUI's own examples draw so with Stable Diffusion, and with flow models."""


class Source(Protocol):
    """What pictures are drawn with: a ``ComfyUIModel``."""

    model: Any
    vae: Any
    info: ModelInfo
    texts: Texts

    def prompt(self, text: str, num_vectors: Rows = 0) -> ComfyPrompt: ...

    def latents_shape(self, height: int, width: int) -> tuple[int, ...]: ...


def pixels_of(picture: Image.Image) -> torch.Tensor:
    """A picture as ComfyUI's IMAGE: float32 ``[1, height, width, 3]`` from 0 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def generate(
    model: Source,
    prompts: Sequence[str],
    seeds: Sequence[int],
    embedding: Embedding | Sequence[Embedding] | None,
    negative_prompt: str,
    num_inference_steps: int,
    guidance_scale: float | None,
    resolution: int,
    until: float,
    on_step: Callable[[int, int], None] | None,
) -> list[Image.Image]:
    """One picture for each prompt and seed; see ``TokenModel.generate``."""
    scale = _own_guidance(model) if guidance_scale is None else guidance_scale
    check_settings(prompts, seeds, num_inference_steps, scale)
    check_until(until)
    check_resolution(resolution)
    listed = [embedding] if isinstance(embedding, Embedding) else list(embedding or ())
    for each in listed:
        check_fits(each, model.info.dims, "generate", model.info.encoders)
    texts = list(dict.fromkeys([*prompts, negative_prompt]))
    calls = dict(zip(texts, calls_in(texts, listed), strict=True))
    encoded = {text: _encode(model, call) for text, call in calls.items()}
    if until < 1:
        for text in set(prompts):
            words = _encode(model, calls[text].in_words(until))
            encoded[text] = _during(encoded[text], 0.0, until) + _during(words, until, 1.0)
    done = _Steps(on_step, num_inference_steps * len(prompts))
    pairs = zip(prompts, seeds, strict=True)
    how = (num_inference_steps, scale, resolution, done)
    # All are drawn before one is decoded: on a small card model and VAE take turns.
    latents = [_drawn(model, encoded[text], encoded[negative_prompt], seed, *how) for text, seed in pairs]
    return [_decoded(model, each) for each in latents]


def _encode(model: Source, call: Call) -> Any:
    """What a prompt conditions on, with what it calls."""
    vectors, firsts = call.vectors, (place.start for place in rows_of(call.counts, 0))
    words = (plain_word(each.metadata.get("initializer", "")) for each in call.embeddings)
    model.texts.words = dict(zip(firsts, words, strict=True))
    return model.texts.conditioning(model.prompt(call.text, call.counts), None if vectors is None else vectors[0])


def _during(conditioning: Any, start: float, end: float) -> list[Any]:
    """A conditioning for a part of the steps, as ComfyUI's node for it says."""
    return [[tensor, {**more, "start_percent": start, "end_percent": end}] for tensor, more in conditioning]


class _Steps:
    """ComfyUI's callback after each denoising step: tells of it, and answers a stop."""

    def __init__(self, on_step: Callable[[int, int], None] | None, total: int) -> None:
        self._on_step, self._total, self._done = on_step, total, 0

    def __call__(self, _step: int, _denoised: Any, _noisy: Any, _steps: int) -> None:
        check_stop()
        self._done += 1
        if self._on_step:
            self._on_step(self._done, self._total)


def _own_guidance(model: Source) -> float:
    """Classifier-free guidance that a kind of model is drawn with."""
    if model.info.family == "tiny":
        return 5.0
    if is_guided(model.model) or is_distilled(model.model, model.info.name):
        return 1.0  # it was taught to draw as with guidance
    return 4.5 if model.info.encoders else 7.5


def _drawn(
    model: Source,
    positive: Any,
    negative: Any,
    seed: int,
    steps: int,
    scale: float,
    resolution: int,
    callback: _Steps,
) -> torch.Tensor:
    check_stop()
    shape = model.latents_shape(resolution, resolution)
    noise = rng.normal(seed, 0, "latents", shape[1:])[None]
    sampling = model.model.get_model_object("model_sampling")
    return comfy.sample.sample(
        model.model,
        noise,
        steps,
        scale,
        _SAMPLER,
        _SCHEDULES[hasattr(sampling, "num_timesteps")],
        positive,
        negative,
        torch.zeros(shape),
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )


def _decoded(model: Source, latents: torch.Tensor) -> Image.Image:
    check_stop()
    pixels = model.vae.decode(latents).float().cpu()
    pixels = pixels.reshape(-1, *pixels.shape[-3:])[0]
    if not torch.isfinite(pixels).all():
        raise ModelError(
            f"model: {model.info.name} makes NaN or infinity of this prompt; start ComfyUI with --fp32-vae or "
            "--force-fp32, or use another model"
        )
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
