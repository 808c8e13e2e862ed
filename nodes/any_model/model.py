"""A model that runs in ComfyUI, as a ``TokenModel``."""

from __future__ import annotations

import functools
import hashlib
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from PIL import Image

from ...zoodip_core.base.errors import ModelError
from ...zoodip_core.base.stopping import Stopped, check_stop
from ...zoodip_core.data.images import ReferenceImage
from ...zoodip_core.model.blueprint import ModelInfo
from ...zoodip_core.model.embedding import Embedding
from ...zoodip_core.model.kinds import COMFYUI
from ...zoodip_core.model.memory_use import MemoryPlan, MemoryUse
from ...zoodip_core.model.places import Rows
from ...zoodip_core.model.posteriors import CachedPosteriors
from ...zoodip_core.model.token_model import LossesOf, Row, View
from ...zoodip_core.model.tokens import already_a_word
from ...zoodip_core.model.words import Vocabulary
from ..tokenizer import encoder_names
from . import drawing, forward, kinds
from .fingerprint import fingerprint
from .noise import sigma_at
from .texts import ComfyPrompt, Texts

GUIDANCE = 1.0
"""Of models that are told it, as Flux: at another they draw sharper than pictures are."""
_ROOM, _SPARE = 1.5, 0.1
"""ComfyUI takes as many at once as fit by its estimate with the first, and keeps the second share of a model free."""
_STREAMED = 0.6
"""What candidates may take of the room beside a model that does not fit; ComfyUI wants the rest for its weights."""
_MISFIT = re.compile(r"shape|size|dimension", re.IGNORECASE)
"""In PyTorch's words for numbers that do not fit together."""


@dataclass
class ComfyUIModel:
    """A MODEL, CLIP and VAE of ComfyUI's. ComfyUI loads, patches and unloads them.

    Args:
        model: with all its patches, LoRAs and hooks.
        clip: with any text encoders.
        vae: of the model's latents.
        folder: for small files of ours, which may vanish.
    """

    model: Any
    clip: Any
    vae: Any
    folder: Path

    portable = own_memory = False
    _room_each = forward.HALF
    """Forward passes that ComfyUI makes room for, for each candidate."""

    def __post_init__(self) -> None:
        kinds.check_parts(self.model, self.clip, self.vae)
        name = kinds.name_of(self.model)
        self.model = forward.without_caches(self.model)
        self._own_clip, self._seen_with = self.clip, None
        self._encoded: dict[tuple[bytes, tuple[float, ...]], list[list[Any]]] = {}
        self.texts = Texts(self.clip, self.folder)
        if not self.texts.encoders:
            raise ModelError("clip: this kind reads no embeddings; connect the CLIP that belongs to the model")
        encoders = encoder_names(self.clip)
        family = kinds.family_of(self.model, self.texts.widths, encoders)
        prediction = self.model.model.model_type.name.lower()
        self.info = ModelInfo(
            Path(name), name, family, self.texts.widths, kinds.resolution_of(family, prediction), prediction, encoders
        )
        self.notes: Sequence[str] = kinds.notes_on(self.model, name, family)

    # ------------------------------------------------------------ what it is

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.load_device
        return device

    @property
    def dtype(self) -> torch.dtype:
        inner = self.model.model
        dtype: torch.dtype = inner.manual_cast_dtype or inner.get_dtype()
        return dtype

    @property
    def weights(self) -> str:
        return "none"

    @cached_property
    def fingerprint(self) -> str:
        hooks = self.clip.apply_hooks_to_conds or self.clip.patcher.forced_hooks
        return fingerprint(self.model, self.clip.patcher, self.vae.patcher, hooks=hooks)

    @property
    def schedule(self) -> Mapping[str, Any]:
        sampling = self._sampling
        kept: dict[str, Any] = {"kind": [each.__name__ for each in type(sampling).__mro__[1:-1]]}
        kept |= {"layer": self.clip.layer_idx, **({"hooks": "scheduled"} if self.clip.use_clip_schedule else {})}
        numbers = ("shift", "multiplier", "sigma_data", "noise_scale")
        found = {name: getattr(sampling, name) for name in numbers if hasattr(sampling, name)}
        sigmas = sampling.sigmas.detach().float().cpu().numpy().tobytes()
        return {**kept, **found, "sigmas": hashlib.sha256(sigmas).hexdigest()}

    @property
    def _sampling(self) -> Any:
        return self.model.get_model_object("model_sampling")

    @property
    def alphas_cumprod(self) -> None:
        return None

    def settings(self) -> dict[str, Any]:
        return {
            "model": f"{COMFYUI}{self.info.name}",
            "weights": self.weights,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
        }

    def report(self) -> str:
        """What it is, and what training on it takes, for people."""
        info = self.info
        encoders = ", ".join(f"{name} {width}" for name, width in self.texts.encoders)
        layout = self.plan(info.resolution, 1, 1, graphs=0)
        return "\n".join(
            (
                f"{info.name} ({info.family}, {info.prediction_type}), {info.resolution} px",
                f"text encoders: {encoders}",
                f"activations {str(self.dtype).removeprefix('torch.')}, on {self.device}",
                f"ComfyUI will hold, candidates in turn: {layout.use}",
                *(["texts are encoded on the CPU: there is no room for that as well"] if layout.text_apart else []),
                *self.notes,
            )
        )

    # ------------------------------------------------------------ texts

    def check_token(self, token: str) -> None:
        if self.texts.knows(token):
            raise already_a_word(token)

    def knows(self, word: str) -> bool:
        return self.texts.knows(word)

    def check_initializer(self, initializer: str, num_vectors: int, mode: str, first: int = 0) -> None:
        self.texts.check_initializer(initializer, num_vectors, mode, first)

    def prompt(self, text: str, num_vectors: Rows = 0, where: str = "the prompt") -> ComfyPrompt:
        return self.texts.prompt(text, num_vectors, where)

    def prompt_bytes(self, prompt: ComfyPrompt) -> bytes:
        return prompt.identity()

    def initial_vectors(self, initializer: str, num_vectors: int, mode: str) -> torch.Tensor:
        return self.texts.initial_vectors(initializer, num_vectors, mode)

    def word_rows(self) -> Iterator[torch.Tensor]:
        return self.texts.word_rows()

    def vocabularies(self) -> Sequence[Vocabulary]:
        return self.texts.vocabularies()

    # ------------------------------------------------------------ memory

    def plan(
        self, resolution: int, candidates: int, batch: int, graphs: int, largest: tuple[int, int] | None = None
    ) -> MemoryPlan:
        sizes = [min(batch, candidates)] if batch else sorted({candidates, -(-candidates // 2), 1}, reverse=True)
        own, room, sides = self._own_clip.patcher, self._room(), largest or (resolution, resolution)
        movable = self.device.type != "cpu" and own.load_device.type != "cpu" and not forward.is_streamed(own)
        layouts = [(size, apart) for apart in ((False, True) if movable else (False,)) for size in sizes]
        plans = [
            MemoryPlan(size, apart, self._use(sides, size, text_apart=apart or own.load_device != self.device))
            for size, apart in layouts
        ]
        whole = next((each for each in plans if _beyond(each.use, room) <= 0), None)
        return whole or min(plans[-len(sizes) :], key=functools.partial(_crossing, candidates=candidates, room=room))

    def _use(self, sides: tuple[int, int], batch: int, text_apart: bool) -> MemoryUse:
        shape = self.latents_shape(*sides)
        pixels = (1, 3, *([1] if len(shape) == 5 else []), *sides)
        encoding = self.vae.patcher.model_size() + int(self.vae.memory_used_encode(pixels, self.vae.vae_dtype))
        own_text = {} if text_apart else {"text encoders": self._own_clip.patcher.model_size()}
        activations = int(self.model.model.memory_required([batch, *shape[1:]]))  # a streamed MODEL's own adds to it
        return MemoryUse({"diffusion model": self.model.model_size(), **own_text}, activations, encoding)

    def _room(self) -> int:
        """Bytes that ComfyUI can have on the device once its other models leave."""
        free = comfy.model_management.get_free_memory(self.device)
        there = [each for each in comfy.model_management.current_loaded_models if each.device == self.device]
        loaded = sum(each.model_loaded_memory() for each in there)
        return int(free + loaded - comfy.model_management.minimum_inference_memory())

    def lay_out(self, plan: MemoryPlan) -> None:
        self._room_each = forward.HALF if _beyond(plan.use, self._room()) <= 0 else _ROOM
        self._texts_of(_on_the_cpu(self._own_clip) if plan.text_apart else self._own_clip)
        self.load()  # what does not fit together is not first found after the pictures and the vocabulary

    def _texts_of(self, clip: Any) -> None:
        if clip is not self.clip:
            if clip is not self._own_clip:
                weakref.finalize(self, _unloaded, clip.patcher).atexit = False
            if self.clip is not self._own_clip:
                _unloaded(self.clip.patcher)
            self._encoded.clear()
            self.clip, self.texts = clip, Texts(clip, self.folder, self.texts.words)

    # ------------------------------------------------------------ pictures and losses

    def encode_images(self, images: Sequence[ReferenceImage]) -> CachedPosteriors:
        latents = []
        for image in images:  # one at a time: encoding is the largest peak of a run
            check_stop()
            pixels = drawing.pixels_of(image.picture)
            encoded = self._tried(functools.partial(self.vae.encode, pixels)).float().cpu()
            if not torch.isfinite(encoded).all():
                raise ModelError(f"vae: it turns {image.path.name} into NaN or infinity; connect another VAE")
            latents.append(encoded[0])
        sizes = [image.time_ids for image in images]
        # ComfyUI's VAEs give the middle of the posterior alone.
        nothing = [torch.zeros_like(each) for each in latents]
        return CachedPosteriors(latents, nothing, 1.0, torch.tensor(sizes, dtype=torch.float32))

    def denoiser(
        self, prompts: Sequence[ComfyPrompt], capture: object, on_plain: Callable[[str], None], captured: int = 0
    ) -> ComfyUIModel:
        return self

    def losses_on(self, view: View) -> LossesOf:
        return functools.partial(self._losses, view)

    @torch.no_grad()
    def _losses(self, view: View, candidates: torch.Tensor) -> torch.Tensor:
        conditionings = []
        for each in candidates:  # a text encoder may take longer than the model
            check_stop()
            conditionings.append(self._conditioning(view.prompt, each, view.time_ids))
        check_stop()
        sigma = sigma_at(self._sampling, view.timestep)
        given = (self.model, conditionings, view.latents, view.noise, sigma, view.shift, view.weight)
        return self._tried(lambda: forward.losses(*given, room=self._room_each))

    @torch.no_grad()
    def outputs(self, view: View, rows: Sequence[Row]) -> torch.Tensor:
        conditionings = []
        for prompt, at in rows:
            check_stop()
            conditionings.append(self._conditioning_of(prompt, at, view.time_ids))
        check_stop()
        sigma = sigma_at(self._sampling, view.timestep)
        given = (self.model, conditionings, view.latents, view.noise, sigma)
        return self._tried(lambda: forward.outputs(*given, room=self._room_each))

    def picture(self, view: View, output: torch.Tensor) -> torch.Tensor:
        return forward.picture(self.model, output, sigma_at(self._sampling, view.timestep))

    def _conditioning_of(self, prompt: ComfyPrompt, at: torch.Tensor | None, time_ids: torch.Tensor) -> list[list[Any]]:
        """That of a text without a token is worked out once."""
        if at is not None:
            return self._conditioning(prompt, at[0], time_ids)
        key = (prompt.identity(), tuple(time_ids.tolist()))
        if key not in self._encoded:
            self._encoded[key] = self._conditioning(prompt, None, time_ids)
        return self._encoded[key]

    def _conditioning(
        self, prompt: ComfyPrompt, vectors: torch.Tensor | None, time_ids: torch.Tensor | None
    ) -> list[list[Any]]:
        found = self._tried(lambda: self.texts.conditioning(prompt, vectors))
        if time_ids is None:
            return found
        names = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
        more: dict[str, float] = {name: int(each) for name, each in zip(names, time_ids.tolist(), strict=True)}
        if kinds.is_guided(self.model):
            more["guidance"] = GUIDANCE
        return [[cond, {**about, **more}] for cond, about in found]

    def _tried(self, work: Callable[[], Any]) -> Any:
        """What work gives, or what to do about its failure: shapes that differ say that parts do not fit.

        Raises:
            OutOfMemoryError: there is no room.
            Stopped: ComfyUI's own interrupt came.
            ModelError: CLIP and model are of different kinds.
        """
        try:
            return work()
        except comfy.model_management.InterruptProcessingException as interrupt:
            raise Stopped from interrupt  # the node raises ComfyUI's again, once what was learned is kept
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            if "out of memory" in reason.lower():  # in the words of devices that have no error of their own for it
                raise torch.OutOfMemoryError(reason) from error
            if not _MISFIT.search(reason):
                raise
            raise ModelError(
                f"clip, model: {self.info.name} cannot compute with this CLIP ({reason}); connect the CLIP that "
                "belongs to the model"
            ) from error

    def load(self) -> None:
        """One forward pass of a small picture, once for a CLIP: parts that do not fit together show here."""
        if self._seen_with is self.clip:
            return
        side = 16
        shape = self.latents_shape(side * self._compression, side * self._compression)
        nothing = torch.zeros(shape)
        prompt = self.prompt("a")
        time_ids = torch.tensor([64.0, 64, 0, 0, 64, 64])
        conditioning = self._conditioning(prompt, None, time_ids)
        sigma = sigma_at(self._sampling, 500)
        self._tried(lambda: forward.losses(self.model, [conditioning], nothing, nothing + 1, sigma))
        self._seen_with = self.clip

    @property
    def _compression(self) -> int:
        return int(self.vae.spacial_compression_encode())

    def latents_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Of one picture's latents."""
        latents, sides = self.model.model.latent_format, (height // self._compression, width // self._compression)
        return (1, latents.latent_channels, *([1] if latents.latent_dimensions == 3 else []), *sides)

    # ------------------------------------------------------------ samples

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        embedding: Embedding | Sequence[Embedding] | None = None,
        negative_prompt: str = "",
        num_inference_steps: int = 25,
        guidance_scale: float | None = None,
        resolution: int = 0,
        until: float = 1.0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        side = resolution or self.info.resolution
        more = (embedding, negative_prompt, num_inference_steps, guidance_scale, side, until, on_step)
        images: list[Image.Image] = self._tried(lambda: drawing.generate(self, prompts, seeds, *more))
        return images

    def unload(self) -> None:
        """Have all of ComfyUI's models leave the device; text encoders go back to where ComfyUI has them."""
        comfy.model_management.unload_all_models()
        self._encoded.clear()
        self._texts_of(self._own_clip)


def _beyond(use: MemoryUse, room: int) -> float:
    """Bytes of weights that have no room on the device beside a forward pass; none where it is 0 or less."""
    weights = use.weights.values()
    return sum(weights) + _SPARE * max(weights) + _ROOM * use.activations - room


def _crossing(plan: MemoryPlan, candidates: int, room: int) -> tuple[bool, float]:
    """Of a model that does not fit: whether candidates leave too little room to its weights, and the bytes of them that
    cross to the device in a step. They cross once for each forward pass, so fewer passes of more candidates are faster.
    """
    crowded = plan.batch > 1 and _ROOM * plan.use.activations > _STREAMED * room
    return crowded, -(-candidates // plan.batch) * _beyond(plan.use, room)


def _unloaded(patcher: Any) -> None:
    """Have ComfyUI forget a model that it has loaded: where it merely vanishes, older versions keep its device for the
    one that it is a copy of, and would load a user's text encoders to the CPU from then on."""
    loaded = comfy.model_management.current_loaded_models
    for each in [each for each in loaded if each.model is patcher]:
        each.model_unload()
        loaded.remove(each)


def _on_the_cpu(clip: Any) -> Any:
    """A CLIP of the same weights that computes on the CPU."""
    comfy.model_management.unload_all_models()  # its weights among them, which the two share
    apart = clip.clone()
    apart.patcher.load_device = apart.patcher.offload_device = torch.device("cpu")
    return apart
