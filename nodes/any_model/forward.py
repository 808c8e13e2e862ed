"""A forward pass of a model of ComfyUI's: loaded, patched and hooked by ComfyUI as for its samplers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch

from .exact import exact, mean_squares
from .noise import loss_weight

_CACHES = ("easycache", "lazycache")
"""Of ComfyUI's nodes that skip forward passes whose inputs look like the last ones: candidates do."""
_PROMPT = 0
"""What patches are told of a row that is computed with the prompt; 1 is the negative prompt."""
HALF = 0.5
"""Room for so many forward passes is asked of ComfyUI for each candidate: it makes twice that, one with the prompt and
one without."""
Inner = Callable[[Any, dict[str, Any], torch.Tensor], torch.Tensor]
Conditioning = list[list[Any]]


def without_caches(model: Any) -> Any:
    """A clone of a MODEL on which no forward pass is skipped."""
    clone = model.clone()
    for kind in list(clone.wrappers):
        for cache in _CACHES:
            clone.remove_wrappers_with_key(kind, cache)
    return clone


class _Instead(comfy.samplers.Sampler):  # type: ignore[misc]
    """In the place of a sampler: does some work where it would draw."""

    def __init__(self, work: Inner) -> None:
        self._work = work
        self.result: torch.Tensor | None = None

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None = None,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        assert latent_image is not None
        self.result = self._work(model_wrap.inner_model, extra_args["model_options"], latent_image)
        return latent_image


def losses(
    model: Any,
    conditionings: Sequence[Conditioning],
    latents: torch.Tensor,
    noise: torch.Tensor,
    sigma: float,
    shift: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
    room: float = HALF,
) -> torch.Tensor:
    """The model's own loss for each conditioning, float64 ``[K]`` on the CPU, all in one forward pass.

    Args:
        model: a MODEL.
        conditionings: K of the same shapes.
        latents: ``[1, channels, ...]``, as the VAE gives them.
        noise: of the same shape.
        sigma: of the model's.
        shift: ``[1, channels, ...]``, taken from what the model should give, of the kind of :func:`outputs`.
        places: float64 ``[height, width]``, of mean 1: how much squared errors count at each place; None: 1.
        room: as :func:`run` takes it.

    Raises:
        OutOfMemoryError: ComfyUI would not take so many at once.
    """

    def work(inner: Any, options: dict[str, Any], x0: torch.Tensor) -> torch.Tensor:
        weight = loss_weight(inner.model_sampling, sigma)
        target = exact(x0) if shift is None else exact(x0) - exact(shift.to(x0.device)) / math.sqrt(weight)
        return weight * mean_squares(_predicted(inner, options, x0, conditionings, noise, sigma), target, places)

    return run(model, conditionings, latents, work, room)


def outputs(
    model: Any,
    conditionings: Sequence[Conditioning],
    latents: torch.Tensor,
    noise: torch.Tensor,
    sigma: float,
    room: float = HALF,
) -> torch.Tensor:
    """The pictures that the model predicts, ``[K, channels, ...]``, float32 on the CPU, all in one forward pass.

    They are latents as the model takes them, scaled so that their squared errors are the losses of :func:`losses`.

    Raises:
        OutOfMemoryError: ComfyUI would not take so many at once.
    """

    def work(inner: Any, options: dict[str, Any], x0: torch.Tensor) -> torch.Tensor:
        predicted = _predicted(inner, options, x0, conditionings, noise, sigma)
        return math.sqrt(loss_weight(inner.model_sampling, sigma)) * torch.cat(predicted).float().cpu()

    return run(model, conditionings, latents, work, room)


def picture(model: Any, output: torch.Tensor, sigma: float) -> torch.Tensor:
    """The latents of one of :func:`outputs`, ``[1, channels, ...]``, as the VAE gives them."""
    predicted = output / math.sqrt(loss_weight(model.get_model_object("model_sampling"), sigma))
    latents: torch.Tensor = model.model.process_latent_out(predicted)
    return latents


def _predicted(
    inner: Any,
    options: dict[str, Any],
    x0: torch.Tensor,
    conditionings: Sequence[Conditioning],
    noise: torch.Tensor,
    sigma: float,
) -> list[torch.Tensor]:
    """The picture that the model predicts with each conditioning, all in one forward pass."""
    at = torch.tensor([sigma], dtype=torch.float32, device=x0.device)
    own_noise = noise.to(x0)
    noisy = inner.model_sampling.noise_scaling(at, own_noise.clone(), x0, False)
    conds = [_model_conds(inner, each, own_noise, x0) for each in conditionings]
    forwards: list[int] = []
    predicted: list[torch.Tensor] = comfy.samplers.calc_cond_batch(
        inner, conds, noisy, at, _counting(options, forwards)
    )
    if len(forwards) > 1:  # rounded otherwise than the same candidates in one: not without saying so
        raise torch.OutOfMemoryError(f"ComfyUI has no room for {len(conds)} candidates in one forward pass")
    return predicted


def run(
    model: Any, conditionings: Sequence[Conditioning], latents: torch.Tensor, work: Inner, room: float = HALF
) -> torch.Tensor:
    """Do some work with the model where ComfyUI would sample: on its device, with patches, hooks and options.

    Args:
        model: a MODEL.
        conditionings: K, for whose forward pass there is to be room.
        latents: ``[1, channels, ...]``, as the VAE gives them.
        work: given the inner model, the options and the latents as the model takes them.
        room: how many forward passes' room ComfyUI is asked for, for each of the K. More than half leaves less to the
            weights of a model that does not fit, of which ComfyUI else loads as much as leaves room for so many alone.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": conditionings[0]})
    instead = _Instead(work)
    asked = latents.new_zeros(math.ceil(room * len(conditionings)), *latents.shape[1:])
    if room > HALF:
        _make_room(model, asked)
    guider.sample(asked, latents, instead, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
    assert instead.result is not None
    return instead.result


def is_streamed(patcher: Any) -> bool:
    """Whether ComfyUI hands a model's weights to the card as they are used, where they have no room on it.

    Newer versions do so on NVIDIA's cards. Such a model need not leave the card, nor can a copy of it compute
    elsewhere: what it keeps of its weights is by the device that it was made for.
    """
    asked = getattr(patcher, "is_dynamic", None)
    return bool(asked and asked())


def _make_room(model: Any, asked: torch.Tensor) -> None:
    """Have weights leave the card, of this model too: older versions of ComfyUI load more of one and never less."""
    if model.load_device.type != "cpu" and not is_streamed(model):
        comfy.model_management.free_memory(model.model.memory_required(list(asked.shape)), model.load_device)


def _model_conds(inner: Any, conditioning: Conditioning, noise: torch.Tensor, x0: torch.Tensor) -> list[Any]:
    converted = comfy.sampler_helpers.convert_cond(conditioning)
    comfy.samplers.calculate_start_end_timesteps(inner, converted)  # of a CLIP that schedules its hooks
    more = {"latent_image": x0, "denoise_mask": None, "seed": 0, "latent_shapes": [x0.shape]}
    return comfy.samplers.encode_model_conds(inner.extra_conds, converted, noise, x0.device, "positive", **more)


def _counting(options: dict[str, Any], forwards: list[int]) -> dict[str, Any]:
    """Options with which each forward pass is noted, by its number of candidates.

    Patches are told that all of them are prompts. By ComfyUI's numbers the second one would be a negative prompt to
    them, and be treated as such, and the third something that many do not know.
    """
    before = options.get("model_function_wrapper")

    def counted(apply: Any, given: dict[str, Any]) -> Any:
        prompts = [_PROMPT] * len(given["cond_or_uncond"])
        forwards.append(len(prompts))
        told = {**given["c"]["transformer_options"], "cond_or_uncond": prompts}
        given = {**given, "c": {**given["c"], "transformer_options": told}, "cond_or_uncond": prompts}
        return before(apply, given) if before else apply(given["input"], given["timestep"], **given["c"])

    return {**options, "model_function_wrapper": counted}
