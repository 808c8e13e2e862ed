"""Checks of "Model from ComfyUI" on a small model of ComfyUI's own classes, in the host's Python.

``python -m tests.e2e.any_model_checks KIND FOLDER`` prints as JSON what each check found; the tests that start it say
what has to be. COMFYUI_DIR names the checkout.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import importlib
import json
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import node_pack
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.e2e import small_comfyui
from tests.e2e.small_comfyui import KINDS, Parts

TEXT, VECTORS, CANDIDATES = "a photo of a {} on the grass", 2, 3
TIMESTEPS = (500, 900)
SIZES = (96.0, 128.0, 4.0, 8.0, 64.0, 72.0)
"""Of a picture, as SDXL is told them: height, width, crop's top and left, target's height and width."""
SIDES = (64, 96)
"""Of the picture: height and width."""
STEPS, STOP = 20, 8


class Case:
    """A small model, wrapped as the node wraps it."""

    def __init__(self, kind: str, folder: Path) -> None:
        small_comfyui.start()
        node_pack.import_pack()
        self.kind, self.folder = KINDS[kind], folder
        self.embeddings = folder / "embeddings"
        self.embeddings.mkdir(parents=True)
        self.parts = small_comfyui.build(kind, self.embeddings)
        self.model = self.wrapped(self.parts.model)
        self.model.load()
        noise = torch.Generator().manual_seed(5)
        shape = self.model.latents_shape(*SIDES)
        self.latents, self.noise = (torch.randn(shape, generator=noise) for _ in range(2))
        width = sum(self.model.info.dims)
        self.candidates = 0.03 * torch.randn(CANDIDATES, VECTORS, width, generator=noise)

    def wrapped(self, model: Any) -> Any:
        return _pack("nodes.any_model.model").ComfyUIModel(
            model, self.parts.clip, self.parts.vae, self.folder / "places"
        )

    def losses(
        self, timestep: int, model: Any = None, candidates: torch.Tensor | None = None, mask: Any = None
    ) -> list[float]:
        """What a training is told."""
        model = model or self.model
        prompt = model.prompt(TEXT, VECTORS)
        view = _pack("zoodip_core.model.token_model").View(
            prompt, self.latents, self.noise, timestep, torch.tensor(SIZES), weight=self.weight(mask)
        )
        losses_of = model.denoiser([prompt], None, print).losses_on(view)
        found: list[float] = losses_of(self.candidates if candidates is None else candidates).tolist()
        return found

    def weight(self, mask: Any) -> torch.Tensor | None:
        """What a training makes of a mask of the picture."""
        if mask is None:
            return None
        found: torch.Tensor = _pack("zoodip_core.model.posteriors").place_weights(mask, self.latents.shape[1:], 0.1)
        return found


def _pack(module: str) -> Any:
    return importlib.import_module(f"{node_pack.NAME}.{module}")


# ---------------------------------------------------------------- losses


def losses(case: Case) -> Any:
    """By a training, in one forward pass and one by one, and by hand."""
    found = {}
    for timestep in TIMESTEPS:
        alone = [case.losses(timestep, candidates=each[None])[0] for each in case.candidates]
        by_hand = [native_loss(case, each, timestep) for each in case.candidates]
        found[str(timestep)] = {"together": case.losses(timestep), "alone": alone, "by hand": by_hand}
    return found


def masked_losses(case: Case) -> Any:
    """With a mask of the left half and a little more, of the network itself and by a training."""
    mask = Image.new("L", SIDES[::-1])
    mask.paste(255, (0, 0, 52, 64))
    share = (np.asarray(mask, dtype=np.float64) / 255).mean(axis=0)
    width = case.latents.shape[-1]
    weight = 0.1 + 0.9 * share.reshape(width, -1).mean(axis=1)  # the same in all rows
    places = torch.from_numpy(weight / weight.mean())
    timestep = TIMESTEPS[0]
    by_hand = [native_loss(case, each, timestep, places) for each in case.candidates]
    return {"together": case.losses(timestep, mask=mask), "by hand": by_hand, "plain": case.losses(timestep)}


@torch.no_grad()
def native_loss(case: Case, candidate: torch.Tensor, timestep: int, places: torch.Tensor | None = None) -> float:
    """The loss that models of the kind are trained by, of the network itself; weighted from left to right."""
    weight = 1.0 if places is None else places
    encoded = stock_encoding(case, candidate)
    inner = case.parts.model.model
    x0, noise = inner.process_latent_in(case.latents), case.noise
    left = float((1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double() ** 2).cumprod(0)[timestep])
    alpha, sigma = left**0.5, (1 - left) ** 0.5
    flow = sigma / (alpha + sigma)
    context, pooled = encoded["cond"].float(), cast(torch.Tensor, encoded.get("pooled_output"))
    network, name = inner.diffusion_model, case.kind.name
    if name in ("SD15", "SD20", "SDXL"):
        told = {"y": torch.cat([pooled, *map(_sinusoid, SIZES)], dim=1)} if name == "SDXL" else {}
        out = network(alpha * x0 + sigma * noise, torch.tensor([float(timestep)]), context=context, **told)
        target = alpha * noise - sigma * x0 if case.kind.prediction == "V_PREDICTION" else noise
        return float(((out.double() - target.double()).square() * weight).mean())
    noisy, target = (1 - flow) * x0 + flow * noise, noise - x0
    at = torch.tensor([flow])
    if name == "SD3":
        out = network(noisy, 1000 * at, context=context, y=pooled)
    elif name == "Flux":
        out = network(noisy, at, context, y=pooled, guidance=torch.ones(1))
    elif name == "Chroma":  # not guided by a number
        out = network(noisy, at, context, guidance=torch.zeros(1))
    elif name == "ZImage":
        out = network(noisy, at, context, num_tokens=context.shape[1])
    else:
        out = network(noisy, at, context)
    return float(((out.double() - target.double()).square() * weight).mean())


def _sinusoid(number: float) -> torch.Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    return torch.cat([torch.cos(number * frequencies), torch.sin(number * frequencies)])[None]


def stock_encoding(case: Case, candidate: torch.Tensor) -> dict[str, Any]:
    """A text with a candidate in it, by ComfyUI's own reading of files, or by its inner tokenizer's."""
    clip = case.parts.clip
    tensors = dict(zip(case.kind.encoders, candidate.split(case.model.info.dims, dim=1), strict=True))
    # ComfyUI does not remember what it has read.
    save_file({key: each.contiguous() for key, each in tensors.items()}, case.embeddings / "candidate.safetensors")
    text = TEXT.format("embedding:candidate")
    if case.kind.reads:
        tokens = clip.tokenize(text)
    else:
        (key,) = tensors
        inner = copy.copy(getattr(clip.tokenizer, key))
        inner.embedding_directory = [str(case.embeddings)]
        (rows,) = inner.tokenize_with_weights(clip.tokenizer.llama_template.format(text), disable_weights=True)
        placed = [({"type": "embedding", "data": e[0]}, *e[1:]) if torch.is_tensor(e[0]) else e for e in rows]
        tokens = {key: [placed]}
    encoded: dict[str, Any] = clip.encode_from_tokens(tokens, return_dict=True)
    return encoded


def shares(case: Case) -> Any:
    """Of noise, at the timesteps."""
    sampling = case.parts.model.get_model_object("model_sampling")
    sigmas = [_pack("nodes.any_model.noise").sigma_at(sampling, timestep) for timestep in TIMESTEPS]
    flow = case.kind.name not in ("SD15", "SD20", "SDXL")
    return [sigma if flow else sigma / (1 + sigma) for sigma in sigmas]


def sides(case: Case) -> Any:
    """Pixels a side that are taken for the model's own: as it is, and if it predicted the noise."""
    base = importlib.import_module("comfy.model_base")
    clone = case.parts.model.clone()
    clone.model = copy.copy(clone.model)
    clone.model.model_type = base.ModelType.EPS
    return [each.info.resolution for each in (case.model, case.wrapped(clone))]


# ---------------------------------------------------------------- training


def training(case: Case) -> Any:
    """Twenty steps; the same stopped after eight and resumed; and what is made of the file."""
    loop, events = _pack("zoodip_core.train.loop"), _pack("zoodip_core.base.events")
    config = _config(case)
    whole = loop.train_token(config, case.folder / "whole", model=case.model)

    commands = events.Commands()

    def stop(event: Any) -> None:
        if isinstance(event, events.Progress) and event.step == STOP:
            commands.stop()

    parted = case.folder / "parted"
    first = loop.train_token(config, parted, model=case.model, on_event=stop, commands=commands)
    messages: list[str] = []
    told = lambda event: messages.append(event.text) if isinstance(event, events.Message) else None  # noqa: E731
    rest = loop.resume_training(parted, model=case.wrapped(case.parts.model), on_event=told)
    files = [path / "my-thing.safetensors" for path in (case.folder / "whole", parted)]
    return {
        "finished": whole.finished,
        "stopped at": first.step,
        "resumed": rest.finished,
        "steps": [len((path / "steps.jsonl").read_text().splitlines()) for path in (case.folder / "whole", parted)],
        "same losses": [*first.losses, *rest.losses] == list(whole.losses),
        "same file": files[0].read_bytes() == files[1].read_bytes(),
        "warnings": [text for text in messages if "again" in text],
        "moved": _moved(case, whole.embedding),
        "keys": sorted(load_file(files[0])),
        "taken": _taken(case, files[0]),
    }


def _config(case: Case) -> Any:
    pictures = case.folder / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0)
    for number, size in enumerate(((96, 80), (60, 120))):  # of two shapes
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    named = {"images": [str(pictures)], "token": "<my-thing>", "initializer": "dog", "resolution": 64}
    few = {"steps": STEPS, "n": 1, "tau": 3, "save_every": 5, "lr": 0.05, "mu": 0.05}
    config = _pack("zoodip_core.train.config").TrainConfig
    return config.from_dict({**named, **few, **case.model.settings()})


def _moved(case: Case, embedding: Any) -> float:
    start = case.model.initial_vectors("dog", 1, "single")
    return float((torch.cat(embedding.tensors, dim=1) - start).abs().max())


def _taken(case: Case, file: Path) -> bool:
    """Whether ComfyUI's loader, or Apply Embedding where that one reads none, puts the file's vectors in the text."""
    tensors = load_file(file)
    if case.kind.reads:
        (case.embeddings / "learned.safetensors").write_bytes(file.read_bytes())
        clip, text = case.parts.clip, "embedding:learned"
    else:
        embedding = _pack("zoodip_core.model.embedding").load_embedding(file)
        clip, text = _pack("nodes.placing").with_token(case.parts.clip, embedding, 1.0, case.folder / "applied")
    tokens = clip.tokenize(f"a photo of {text} here")
    clip.encode_from_tokens(tokens)  # and it computes with them
    entries = [entry[0] for sections in tokens.values() for section in sections for entry in section]
    found = [each["data"] if isinstance(each, dict) else each for each in entries if not isinstance(each, int)]
    if len(tensors) == 1:
        wanted = list(tensors.values())
    else:
        order = {"g": "clip_g", "l": "clip_l", "t5xxl": "t5xxl"}
        wanted = [tensors[order[key]] for key in tokens]
    return len(found) == len(wanted) and all(
        torch.equal(each.float().reshape(-1), own.reshape(-1)) for each, own in zip(found, wanted, strict=True)
    )


# ---------------------------------------------------------------- patches and caches


def patches(case: Case) -> Any:
    """A MODEL with a LoRA on it."""
    patched = case.parts.model.clone()
    weights = {name: each for name, each in patched.model.named_parameters() if _is_attention(name) and each.ndim == 2}
    noise = torch.Generator().manual_seed(1)
    adapter = importlib.import_module("comfy.weight_adapter").LoRAAdapter

    def lora(weight: torch.Tensor) -> Any:
        up, down = (torch.randn(size, generator=noise) for size in ((weight.shape[0], 2), (2, weight.shape[1])))
        return adapter(set(), (up, down, 1.0, None, None, None))

    patched.add_patches({name: lora(weight) for name, weight in weights.items()}, 0.5)
    management = importlib.import_module("comfy.model_management")
    plain, other = case.wrapped(case.parts.model), case.wrapped(patched)
    management.unload_all_models()
    apart = [case.wrapped(each).fingerprint for each in (case.parts.model, patched)]
    lost = [case.losses(500, each) for each in (other, plain, other)]  # loaded in turn
    loaded = case.wrapped(patched).fingerprint
    beneath = case.wrapped(case.parts.model).fingerprint  # while the patches are in the weights
    return {
        "patched": len(weights),
        "fingerprints differ": apart[0] != apart[1],
        "fingerprint stays when loaded": loaded == apart[1],
        "fingerprint without it stays": beneath == apart[0],
        "losses differ": lost[0] != lost[1],
        "losses come back": lost[0] == lost[2],
        "losses without it stay": lost[1] == case.losses(500),
    }


def _is_attention(name: str) -> bool:
    return name.startswith("diffusion_model.") and any(each in name for each in ("attn", "attention", "qkv"))


def caches(case: Case) -> Any:
    """EasyCache and LazyCache on the model."""
    nodes = importlib.import_module("comfy_extras.nodes_easycache")
    plain = [case.losses(timestep) for timestep in (500, 500, 520)]
    found = {}
    for node in (nodes.EasyCacheNode, nodes.LazyCacheNode):
        made = node.execute(case.parts.model, 3.0, 0.0, 1.0, False)
        cached = case.wrapped(made.result[0] if hasattr(made, "result") else made[0])
        found[node.__name__] = [case.losses(timestep, cached) for timestep in (500, 500, 520)] == plain
    return found


def hooks(case: Case) -> Any:
    """LoRAs that a CLIP's hooks lay on the model, and on the CLIP, where its prompts are."""
    hooking, nodes = importlib.import_module("comfy.hooks"), importlib.import_module("comfy_extras.nodes_hooks")
    shapes = {
        name.removesuffix(".weight"): each.shape
        for name, each in [*case.parts.model.model.named_parameters(), *_of_clip(case)]
        if name.endswith(".weight") and each.ndim == 2 and ("attn2.to_k" in name or "mlp.fc1" in name)
    }

    def hooked(seed: int, strength: float = 1.0, clip_too: bool = True) -> Any:
        noise = torch.Generator().manual_seed(seed)
        lora = {}
        for name, (rows, columns) in shapes.items():
            lora[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=noise)
            lora[f"{name}.lora_down.weight"] = 0.1 * torch.randn(2, columns, generator=noise)
        group = hooking.create_hook_lora(lora=lora, strength_model=strength, strength_clip=float(clip_too))
        (clip,) = nodes.SetClipHooks().apply_hooks(case.parts.clip, False, True, group)
        return _pack("nodes.any_model.model").ComfyUIModel(
            case.parts.model, clip, case.parts.vae, case.folder / "places"
        )

    models = [case.model, hooked(1), hooked(2), hooked(1, 0.5), hooked(1, 1.0, clip_too=False)]
    apart = [model.fingerprint for model in models]
    lost = [case.losses(500, model) for model in models]
    within = hooked(1)
    case.losses(500, within)  # its hooks are in the text encoder's weights now
    return {
        "losses differ": len(set(map(tuple, lost))) == len(models),
        "fingerprints differ": len(set(apart)) == len(models),
        "fingerprint stays": hooked(1).fingerprint == within.fingerprint == apart[1],
        "fingerprint without it stays": case.wrapped(case.parts.model).fingerprint == apart[0],
        "losses come back": case.losses(500) == lost[0],
    }


def beside(case: Case) -> Any:
    """LoRAs that are computed beside the weights, which stay as they are: of one kind of them all."""
    files = importlib.import_module("comfy.sd")
    if not hasattr(files, "load_bypass_lora_for_models"):  # an older ComfyUI
        return {}
    layers = [name for name, _ in case.parts.model.model.named_parameters() if name.endswith("attn2.to_k.weight")]
    sizes = dict(case.parts.model.model.named_parameters())

    def with_lora(seed: int, strength: float = 1.0) -> Any:
        """In a file of more bits than the model computes with."""
        noise, lora = torch.Generator().manual_seed(seed), {}
        for name in layers:
            rows, columns = sizes[name].shape
            stem = name.removesuffix(".weight")
            lora[f"{stem}.lora_up.weight"] = torch.randn(rows, 2, generator=noise).double()
            lora[f"{stem}.lora_down.weight"] = 0.1 * torch.randn(2, columns, generator=noise).double()
        return files.load_bypass_lora_for_models(case.parts.model, None, lora, strength, 0.0)[0]

    patched = [with_lora(1), with_lora(2), with_lora(1, 0.5)]
    models = [case.model, *map(case.wrapped, patched)]
    apart = [model.fingerprint for model in models]
    lost = [case.losses(500, model) for model in models]
    return {
        "losses differ": len(set(map(tuple, lost))) == len(models),
        "fingerprints differ": len(set(apart)) == len(models),
        "fingerprint stays": case.wrapped(with_lora(1)).fingerprint == case.wrapped(patched[0]).fingerprint == apart[1],
        "losses come back": case.losses(500) == lost[0],
    }


def scheduled_hooks(case: Case) -> Any:
    """A LoRA that a CLIP's hook lays on its weights in the first half of the steps: each timestep has its own."""
    hooking, nodes = importlib.import_module("comfy.hooks"), importlib.import_module("comfy_extras.nodes_hooks")
    noise, lora = torch.Generator().manual_seed(1), {}
    for name, each in _of_clip(case):
        if name.endswith("mlp.fc1.weight"):
            stem = name.removesuffix(".weight")
            lora[f"{stem}.lora_up.weight"] = torch.randn(len(each), 2, generator=noise)
            lora[f"{stem}.lora_down.weight"] = 0.1 * torch.randn(2, each.shape[1], generator=noise)

    def losses_with(*strengths: float) -> list[list[float]]:
        """Of half of the steps each."""
        group, frames = hooking.create_hook_lora(lora=lora, strength_model=0.0, strength_clip=1.0), []
        for number, strength in enumerate(strengths):
            frames.append(hooking.HookKeyframe(strength, number / len(strengths), 0))
        keyframes = hooking.HookKeyframeGroup()
        for frame in frames:
            keyframes.add(frame)
        group.set_keyframes_on_hooks(keyframes)
        (clip,) = nodes.SetClipHooks().apply_hooks(case.parts.clip, True, False, group)
        made = _pack("nodes.any_model.model").ComfyUIModel(
            case.parts.model, clip, case.parts.vae, case.folder / "places"
        )
        return [case.losses(timestep, made) for timestep in (900, 300)]

    whole, none, half = losses_with(1.0), losses_with(0.0), losses_with(1.0, 0.0)
    return {"first half": half[0] == whole[0], "second half": half[1] == none[1], "it counts": whole[1] != none[1]}


def _of_clip(case: Case) -> list[tuple[str, torch.Tensor]]:
    """CLIP's weights by the names that LoRA files may have for them."""
    named = case.parts.clip.cond_stage_model.clip_l.transformer.named_parameters()
    return [(f"text_encoders.clip_l.transformer.{name}", each) for name, each in named]


def negatives(case: Case) -> Any:
    """What patches do that tell prompts from negative ones: candidates are prompts, all of them."""
    asked: list[list[int]] = []

    def zeroed(apply: Any, given: Any) -> Any:
        out, rows = apply(given["input"], given["timestep"], **given["c"]), given["cond_or_uncond"]
        asked.extend((rows, given["c"]["transformer_options"]["cond_or_uncond"]))
        for part, which in zip(out.chunk(len(rows)), rows, strict=True):
            part *= which == 0
        return out

    patched = case.parts.model.clone()
    patched.set_model_unet_function_wrapper(zeroed)
    plain = case.losses(500)
    found = {"patch": case.losses(500, case.wrapped(patched)) == plain, "told": asked == 2 * [[0] * CANDIDATES]}
    try:
        node = importlib.import_module("comfy_extras.nodes_nag").NAGuidance
    except ModuleNotFoundError:  # an older ComfyUI
        return {**found, "NAGuidance": True}
    (guided,) = node.execute(case.parts.model, 5.0, 0.5, 1.5).result
    return {**found, "NAGuidance": case.losses(500, case.wrapped(guided)) == plain}


def on_a_card(case: Case) -> Any:
    """Whether text encoders are to leave a card that has no room: of a patcher as ComfyUI has always had, and of one
    that hands weights to the card as they are used. A card is only said to be there."""
    patching, card = importlib.import_module("comfy.model_patcher"), torch.device("cuda", 0)
    model, clip = case.parts.model.clone(), case.parts.clip.clone()
    model.load_device = clip.patcher.load_device = card

    def leave() -> bool:
        made = _pack("nodes.any_model.model").ComfyUIModel(model, clip, case.parts.vae, case.folder / "places")
        made._room = lambda: 0
        return bool(made.plan(64, CANDIDATES, 0, 0).text_apart)

    found = {"plain": leave(), "streamed": False}
    if hasattr(patching, "ModelPatcherDynamic"):
        buffers: Any = importlib.import_module("comfy_aimdo.host_buffer")
        buffers.HostBuffer = lambda *_sizes: SimpleNamespace(size=0)  # its library wants a card
        clip.patcher = patching.ModelPatcherDynamic(clip.cond_stage_model, card, torch.device("cpu"))
        found["streamed"] = leave()
    return found


def at_once(case: Case) -> Any:
    """How many of five candidates go through a model at once, and how many forward passes ComfyUI is asked room for: by
    room for all of it with five, with one, for a part of it, and for next to nothing."""
    made, sizes = case.wrapped(case.parts.model), {}
    weights = [case.parts.model.model_size(), case.parts.clip.patcher.model_size()]
    whole = sum(weights) + 0.1 * max(weights)
    five, one = (1.5 * made.model.model.memory_required([count, *made.latents_shape(64, 64)[1:]]) for count in (5, 1))
    made.load = lambda: None
    rooms = {"five": whole + five, "one": whole + one, "a part": five / 0.6 + 1, "next to nothing": one}
    for name, room in rooms.items():
        made._room = lambda room=room: int(room) + 1
        plan = made.plan(64, 5, 0, 0)
        made.lay_out(plan)
        sizes[name] = [plan.batch, math.ceil(plan.batch * made._room_each)]
    return {"five are less than the model": five / 0.6 < whole, **sizes}


def back_on_a_card(case: Case) -> Any:
    """Where ComfyUI would load the user's text encoders to, once they have been on the CPU for a model that is gone."""
    management, card = importlib.import_module("comfy.model_management"), torch.device("meta")
    model, clip = case.parts.model.clone(), case.parts.clip.clone()
    model.load_device = clip.patcher.load_device = card
    made = _pack("nodes.any_model.model").ComfyUIModel(model, clip, case.parts.vae, case.folder / "places")
    made._room, made.load = lambda: 0, lambda: None
    made.lay_out(made.plan(64, CANDIDATES, 0, 0))
    made.texts.conditioning(made.prompt("a dog"))
    apart = [each.device.type for each in management.current_loaded_models if each.model.is_clone(clip.patcher)]
    del made
    gc.collect()
    left = [each.device.type for each in management.current_loaded_models if each.model.is_clone(clip.patcher)]
    return {"apart": apart, "left on the CPU": left.count("cpu")}


def streamed_fingerprint(_case: Case) -> Any:
    """Whether a model is the same once ComfyUI has handed it to a card that weights are streamed to, which makes of a
    file's buffers those of the dtype that is computed in. Of the card and its memory there is nothing but the names."""
    patching, ops = importlib.import_module("comfy.model_patcher"), importlib.import_module("comfy.ops")
    if not hasattr(patching, "ModelPatcherDynamic"):
        return True
    buffers: Any = importlib.import_module("comfy_aimdo.host_buffer")
    places: Any = importlib.import_module("comfy_aimdo.model_vbar")
    buffers.HostBuffer = lambda *_sizes: SimpleNamespace(size=0)
    places.ModelVBAR = lambda *_sizes: SimpleNamespace(prioritize=lambda: None, alloc=lambda size: (None, 0, size))
    linear, norm = ops.manual_cast.Linear(256, 256), torch.nn.BatchNorm2d(4)
    torch.nn.init.normal_(linear.weight)
    network = torch.nn.Sequential(linear, norm).to(torch.bfloat16)
    importlib.import_module("comfy.model_management").archive_model_dtypes(network)
    file = {
        name: each.float() + 0.1 if each.is_floating_point() else each for name, each in network.state_dict().items()
    }
    network.load_state_dict(file, assign=True)
    card = torch.device("meta")
    patcher = patching.ModelPatcherDynamic(network, card, torch.device("cpu"))
    fingerprint = _pack("nodes.any_model.fingerprint").fingerprint
    before = fingerprint(patcher)
    patcher.load(card)
    return norm.state_dict()["running_mean"].device == card and fingerprint(patcher) == before


def schedules(case: Case) -> Any:
    """A MODEL with another schedule, as a ModelSampling node gives it one; ComfyUI puts it there while it is loaded."""
    shifted = case.parts.model.clone()
    sampling = copy.deepcopy(shifted.get_model_object("model_sampling"))
    sampling.sigmas = sampling.sigmas * 1.01
    shifted.add_object_patch("model_sampling", sampling)
    management = importlib.import_module("comfy.model_management")
    management.unload_all_models()
    plain, other = case.wrapped(case.parts.model), case.wrapped(shifted)
    apart = (plain.fingerprint, other.fingerprint)
    case.losses(500, other)
    loaded = tuple(case.wrapped(each).fingerprint for each in (case.parts.model, shifted))
    return {"weights are the same": apart == loaded, "schedules differ": dict(plain.schedule) != dict(other.schedule)}


def interrupts(case: Case) -> Any:
    """What comes of ComfyUI's own interrupt within a forward pass."""
    interrupt = importlib.import_module("comfy.model_management").InterruptProcessingException

    def interrupted(_apply: Any, _given: Any) -> Any:
        raise interrupt

    stopped = case.parts.model.clone()
    stopped.set_model_unet_function_wrapper(interrupted)
    try:
        case.losses(500, case.wrapped(stopped))
    except BaseException as error:
        return type(error).__name__
    return ""


def others_tokens(case: Case) -> Any:
    """A file of the user's beside the token, in a caption and in a negative prompt: its vectors stay what they are."""
    noise = torch.Generator().manual_seed(3)
    own = {key: torch.randn(2, width, generator=noise) for key, width in case.model.texts.encoders}
    save_file(own, case.embeddings / "badhand.safetensors")
    prompt = case.model.prompt("a {} embedding:badhand photo", 1, "the caption")
    parts = [torch.zeros(1, width) for _, width in case.model.texts.encoders]
    entries = [entry[0] for rows in prompt.filled(parts).values() for row in rows for entry in row]
    vectors = [each["data"] if isinstance(each, dict) else each for each in entries]
    left = [each.flatten() for each in vectors if torch.is_tensor(each) and each.any()]
    wanted = [row for rows in own.values() for row in rows]
    kept = all(any(torch.equal(each.float(), row) for each in left) for row in wanted)
    pictures = case.model.generate(
        ["a dog"], [0], negative_prompt="embedding:badhand", num_inference_steps=1, resolution=64, guidance_scale=2.0
    )
    return {"places": len(prompt.places), "kept": kept, "left": len(left) == len(wanted), "drawn": len(pictures)}


def until(case: Case) -> Any:
    """A token for half of the steps, its word for the rest: as ComfyUI's own nodes make a prompt of two."""
    nodes: Any = importlib.import_module("nodes")  # the host's
    drawing, steps = _pack("nodes.any_model.drawing"), 4
    parts = case.candidates[0].split(case.model.info.dims, dim=1)
    kind = _pack("zoodip_core.model.embedding").Embedding
    token = kind("<rex>", parts, {"initializer": "dog"}, encoders=case.model.info.encoders)
    how = {"num_inference_steps": steps, "guidance_scale": 2.0, "resolution": 64}

    def drawn(text: str, share: float) -> bytes:
        (picture,) = case.model.generate([text], [0], embedding=token, until=share, **how)
        return bytes(picture.tobytes())

    encoded = {
        text: case.model.texts.conditioning(case.model.prompt(text, rows), vectors)
        for text, rows, vectors in (("a {}", VECTORS, case.candidates[0]), ("a dog", 0, None), ("", 0, None))
    }
    during = nodes.ConditioningSetTimestepRange().set_range
    (first,), (then,) = during(encoded["a {}"], 0.0, 0.5), during(encoded["a dog"], 0.5, 1.0)
    (both,) = nodes.ConditioningCombine().combine(first, then)
    told = drawing._Steps(None, steps)
    latents = drawing._drawn(case.model, both, encoded[""], 0, steps, 2.0, 64, told)
    half = drawn("a <rex>", 0.5)
    return {
        "as by the host's nodes": half == bytes(drawing._decoded(case.model, latents).tobytes()),
        "not the token alone": half != drawn("a <rex>", 1.0),
        "not the word alone": half != drawn("a dog", 1.0),
    }


def several(case: Case) -> Any:
    """Two tokens' rows: each place has its own token's, and those of a token that is not named do not count."""
    model, (first, second) = case.model, (range(1), range(1, 2))
    vectors = case.candidates.flatten(0, 1)[:2]
    other = torch.cat([vectors[:1] + 1, vectors[1:]])

    def encoded(text: str, rows: Any, given: torch.Tensor) -> torch.Tensor:
        conditioning: torch.Tensor = model.texts.conditioning(model.prompt(text, rows), given)[0][0]
        return conditioning.cpu()

    one, both = "a photo of a {} dog", "a {} and a {} dog"
    seen, swapped = encoded(one, [second], vectors), encoded(both, [second, first], vectors)
    return {
        "unnamed": torch.equal(seen, encoded(one, [second], other)),
        "as alone": torch.equal(seen, encoded(one, 1, vectors[1:])),
        "named": not torch.equal(seen, encoded(one, [first], vectors)),
        "in their places": torch.equal(swapped, encoded(both, [1, 1], vectors.flip(0))),
        "not swapped": not torch.equal(swapped, encoded(both, [first, second], vectors)),
        "told apart": model.prompt_bytes(model.prompt(one, [first])) != model.prompt_bytes(model.prompt(one, [second])),
    }


def words(case: Case) -> Any:
    """Refusals of texts and words, as the user reads them."""
    model = case.model
    tries: dict[str, Callable[[], Any]] = {
        "known token": lambda: model.check_token("dog"),
        "new token": lambda: model.check_token("<my-dog>"),
        "unknown initializer": lambda: model.check_initializer("", 1, "single"),
        "initializer of no letters": lambda: model.check_initializer("\u2603", 1, "mean"),
        "long initializer": lambda: model.check_initializer("pneumonoultramicroscopicsilicosis", 1, "single"),
        "glued": lambda: model.prompt("a photo of a{}s", 1, "the caption"),
        "weighted": lambda: model.prompt("a photo ({}:1.2)", 1, "the caption"),
    }
    return {name: told(work) for name, work in tries.items()}


def told(work: Callable[[], Any]) -> str:
    """What a user is told where work is refused; nothing where it is done."""
    try:
        work()
    except _pack("zoodip_core.base.errors").ZoodipError as error:
        return f"{type(error).__name__}: {error}"
    return ""


# ---------------------------------------------------------------- parts that do not fit


def refusals(case: Case) -> Any:
    """What is said of a Stable Diffusion 1.5 some of whose parts are others."""
    parts, base = case.parts, importlib.import_module("comfy.model_base")
    xl = small_comfyui.build("sdxl", case.embeddings)
    inpainting = small_comfyui.build("sd15", case.embeddings, {"in_channels": 9})
    turbo = parts.model.clone()
    turbo.cached_patcher_init = (None, ("/models/checkpoints/sd_turbo-fp16.safetensors",))

    def wrapped(**others: Any) -> Callable[[], Any]:
        return lambda: _loaded(case, dataclasses.replace(parts, **others))

    def of_class(name: str) -> Any:
        """A MODEL that is of a class of ComfyUI's, but for that a Stable Diffusion 1.5."""
        clone = parts.model.clone()
        inner = object.__new__(getattr(base, name))
        inner.__dict__ = dict(parts.model.model.__dict__)
        clone.model = inner
        return clone

    fill = of_class("Flux")
    fill.model.model_config = SimpleNamespace(unet_config={"image_model": "flux", "in_channels": 96})
    tries = {
        "fits": wrapped(),
        "clip of SDXL": wrapped(clip=xl.clip),
        "clip of SD1.5 with SDXL": wrapped(model=xl.model),
        "vae of 16 channels": wrapped(vae=small_comfyui.vae_of(parts.model.model.latent_format, 16)),
        "inpainting": wrapped(model=inpainting.model),
        "Flux Fill": wrapped(model=fill),
        "video": wrapped(model=of_class("WAN21")),
        "refiner": wrapped(model=of_class("SDXLRefiner")),
        "sound": wrapped(model=of_class("StableAudio1")),
        **{f"no {name}": wrapped(**{name: None}) for name in ("model", "clip", "vae")},
    }
    return {
        **{name: told(work) for name, work in tries.items()},
        "notes": [*case.model.notes, *case.wrapped(turbo).notes],
    }


def _loaded(case: Case, parts: Parts) -> None:
    made = _pack("nodes.any_model.model").ComfyUIModel(parts.model, parts.clip, parts.vae, case.folder / "places")
    made.load()


# ---------------------------------------------------------------- the process

CHECKS: Sequence[Callable[[Case], Any]] = (
    *(losses, masked_losses, shares, sides, words, several, until, patches, negatives, schedules, interrupts, caches),
    training,
)
ONCE: Sequence[Callable[[Case], Any]] = (
    *(
        others_tokens,
        hooks,
        beside,
        scheduled_hooks,
        on_a_card,
        at_once,
        back_on_a_card,
        streamed_fingerprint,
        refusals,
    ),
)


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    del sys.argv[1:]
    case = Case(kind, folder)
    found = {}
    for check in (*CHECKS, *(ONCE if kind == "sd15" else [])):
        try:
            found[check.__name__] = {"found": check(case)}
        except Exception:
            found[check.__name__] = {"error": traceback.format_exc()}
    (folder / "found.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
