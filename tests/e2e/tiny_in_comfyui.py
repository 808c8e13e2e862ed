"""The embedded model in ComfyUI's own classes, as loaders there would give it: a MODEL, a CLIP and a VAE.

ComfyUI knows models of this make, only larger. What it takes for granted and is otherwise here: groups of normalisation
(32), attention in the middle of the VAE (it adds nothing here), a vocabulary of 49,408 words, a VAE that makes pictures
eight times smaller.

Imported in ComfyUI's Python: see ``run_tiny_in_comfyui.py``.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.diffusers_convert
import comfy.ldm.modules.diffusionmodules.model
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import torch
from safetensors.torch import load_file

MODEL = Path(__file__).resolve().parents[2] / "zoodip_core" / "tiny" / "model"
WEIGHTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
Tensors = dict[str, torch.Tensor]


def config_of(part: str) -> dict[str, Any]:
    return json.loads((MODEL / part / "config.json").read_text(encoding="utf-8"))


def weights_of(part: str) -> Tensors:
    """In float32: they are kept in float16."""
    return {name: each.float() for name, each in load_file(MODEL / part / f"{WEIGHTS[part]}.safetensors").items()}


# ---------------------------------------------------------------- MODEL


def unet_config() -> dict[str, Any]:
    """ComfyUI's settings for the UNet."""
    own = config_of("unet")
    levels, layers = own["block_out_channels"], own["layers_per_block"]
    down = [int("CrossAttn" in kind) for kind in own["down_block_types"]]
    return {
        "image_size": own["sample_size"],
        "in_channels": own["in_channels"],
        "out_channels": own["out_channels"],
        "model_channels": levels[0],
        "channel_mult": [channels // levels[0] for channels in levels],
        "num_res_blocks": [layers] * len(levels),
        "context_dim": own["cross_attention_dim"],
        "transformer_depth": [depth for depth in down for _ in range(layers)],
        "transformer_depth_output": [depth for depth in down for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": own["use_linear_projection"],
        "use_temporal_attention": False,
        "adm_in_channels": None,
        "legacy": False,
        "dtype": torch.float32,
    }


class TinyConfig(comfy.supported_models.SD15):  # type: ignore[misc]
    """Of Stable Diffusion 1's kind: epsilon, its betas, its scale of latents."""

    unet_extra_config = {"num_heads": config_of("unet")["attention_head_dim"], "num_head_channels": -1}
    """diffusers calls the number of heads so."""


def tiny_model() -> Any:
    """The UNet as a MODEL."""
    config = TinyConfig(unet_config())
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    network, names = model.diffusion_model, comfy.utils.unet_to_diffusers(config.unet_config)
    for each in network.modules():
        if isinstance(each, torch.nn.GroupNorm):
            each.num_groups = config_of("unet")["norm_num_groups"]
    network.load_state_dict({names[name]: each for name, each in weights_of("unet").items()})
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    management = comfy.model_management
    return patcher(model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device())


# ---------------------------------------------------------------- CLIP


class TinyTextEncoder(comfy.sd1_clip.SDClipModel):  # type: ignore[misc]
    """Stable Diffusion 1's kind of text encoder: the last layer, normalised, and no attention mask."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] | None = None) -> None:
        config = config_of("text_encoder")
        marks = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["pad_token_id"]}
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=config["max_position_embeddings"],
            textmodel_json_config=config,
            special_tokens=marks,
            return_projected_pooled=False,
            model_options=dict(model_options or {}),
        )
        table = comfy.ops.manual_cast.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
        self.transformer.set_input_embeddings(table)


class TinyClip(comfy.sd1_clip.SD1ClipModel):  # type: ignore[misc]
    def __init__(self, **given: Any) -> None:
        super().__init__(clip_name="l", clip_model=TinyTextEncoder, **given)


class TinyTokenizer(comfy.sd1_clip.SD1Tokenizer):  # type: ignore[misc]
    def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] | None = None) -> None:
        config = config_of("text_encoder")
        inner = functools.partial(
            comfy.sd1_clip.SDTokenizer,
            tokenizer_path=str(MODEL / "tokenizer"),
            max_length=config["max_position_embeddings"],
            embedding_size=config["hidden_size"],
            embedding_key="clip_l",
        )
        super().__init__(embedding_directory, dict(tokenizer_data or {}), clip_name="l", tokenizer=inner)


def tiny_clip(embeddings: Path) -> Any:
    """The text encoder and its tokenizer as a CLIP, which reads embedding files in a folder."""
    target = types.SimpleNamespace(params={}, clip=TinyClip, tokenizer=TinyTokenizer)
    options = {"dtype": torch.float32, "initial_device": torch.device("cpu")}
    clip = comfy.sd.CLIP(target, embedding_directory=[str(embeddings)], model_options=options)
    network = clip.cond_stage_model.clip_l.transformer
    # Not a part of the model: what it makes is for others than Stable Diffusion 1.
    projection = {"text_projection.weight": torch.eye(config_of("text_encoder")["hidden_size"])}
    network.load_state_dict({**weights_of("text_encoder"), **projection})
    return clip


# ---------------------------------------------------------------- VAE


def tiny_vae() -> Any:
    """The autoencoder as a VAE."""
    own = config_of("vae")
    channels = own["block_out_channels"]
    shape = {
        "double_z": True,
        "z_channels": own["latent_channels"],
        "resolution": own["sample_size"],
        "in_channels": own["in_channels"],
        "out_ch": own["out_channels"],
        "ch": channels[0],
        "ch_mult": [each // channels[0] for each in channels],
        "num_res_blocks": own["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    ops = comfy.ldm.modules.diffusionmodules.model.ops
    plain = ops.GroupNorm

    def grouped(num_groups: int, **more: Any) -> Any:
        return plain(num_groups=own["norm_num_groups"], **more)

    config = {"params": {"ddconfig": shape, "embed_dim": own["latent_channels"]}}
    weights = {**vae_weights(len(channels)), **_idle_attention(channels[-1])}
    with mock.patch.object(ops, "GroupNorm", grouped):  # 16 channels are not a multiple of 32
        vae = comfy.sd.VAE(sd=weights, config=config, dtype=torch.float32)
    vae.first_stage_model.load_state_dict(weights)  # it leaves out silently what does not fit
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (len(channels) - 1)
    return vae


def vae_weights(levels: int) -> Tensors:
    """Under ComfyUI's names, which its converter gives to VAEs of four levels."""
    converted = comfy.diffusers_convert.convert_vae_state_dict(weights_of("vae"))
    return {
        re.sub(r"^decoder\.up\.(\d+)\.", lambda found: f"decoder.up.{int(found[1]) - (4 - levels)}.", name): each
        for name, each in converted.items()
    }


def _idle_attention(width: int) -> Tensors:
    """Weights of attention that adds nothing."""
    parts = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    for name in ("q", "k", "v", "proj_out"):
        parts[f"{name}.weight"], parts[f"{name}.bias"] = torch.zeros(width, width, 1, 1), torch.zeros(width)
    return {f"{half}.mid.attn_1.{name}": each for half in ("encoder", "decoder") for name, each in parts.items()}


# ---------------------------------------------------------------- what the test asks


def wrapped(folder: Path) -> Any:
    """The three as the node Model from ComfyUI gives them."""
    importlib.import_module("node_pack").import_pack()
    pack = importlib.import_module("zoodip_pack.nodes.any_model.model")
    return pack.ComfyUIModel(tiny_model(), tiny_clip(folder), tiny_vae(), folder)


def compute(caption: str, clean: str, given: Tensors, folder: Path) -> Tensors:
    """What ComfyUI and our model of its parts make of the same inputs.

    Args:
        caption: with a place for the candidates.
        clean: a target prompt without one.
        given: ``candidates`` ``[K, 2, width]``, ``latents`` and ``noise`` ``[1, 4, H, W]``, ``timestep`` ``[1]``,
            ``pixels`` ``[1, H, W, 3]`` from 0 to 1.
    """
    model = wrapped(folder)
    core = importlib.import_module("zoodip_pack.zoodip_core.model.token_model")
    prompt, t = model.prompt(caption, given["candidates"].shape[1]), given["timestep"]
    texts = torch.cat([model.texts.conditioning(prompt, each)[0][0] for each in given["candidates"]])
    inner, sigmas = model.model.model, model.model.model.model_sampling.sigmas
    with torch.no_grad():
        network = inner.diffusion_model(given["noise"], t.float(), context=texts[:1])
    unscaled = given["latents"] / inner.latent_format.scale_factor  # as a VAE gives them
    view = core.View(prompt, unscaled, given["noise"], int(t), torch.tensor([48.0, 48, 0, 0, 48, 48]))
    encoded = model.vae.encode(given["pixels"])
    return {
        "resolution": torch.tensor([model.info.resolution]),
        "texts": texts,
        "network": network,
        "alphas_cumprod": 1 / (1 + sigmas**2),
        "encoded": encoded,
        "decoded": model.vae.decode(encoded),
        "losses": model.denoiser([prompt], None, print).losses_on(view)(given["candidates"]),
        **{f"aligned {kind}": each for kind, each in _aligned(model, view, clean, given["candidates"]).items()},
        "initial": model.initial_vectors("monster", 1, "single"),
        "words": torch.cat(list(model.word_rows())),
        "ids": torch.tensor([entry if isinstance(entry, int) else -1 for entry, *_ in prompt.tokens["l"][0]]),
    }


def _aligned(model: Any, view: Any, clean: str, candidates: torch.Tensor) -> Tensors:
    """Losses with a target prompt, and what is left to align, without and with guidance."""
    train = {name: importlib.import_module(f"zoodip_pack.zoodip_core.train.{name}") for name in ("alignment", "draws")}
    draw, found = train["draws"].Draw(0, 0, 0, 0, view.timestep), {}
    for name, alpha in (("plainly", 1.0), ("guided", 3.0)):
        alignment = train["alignment"].Alignment([model.prompt(clean)], model.prompt(""), 0.5, alpha)
        denoiser = model.denoiser([view.prompt, *alignment.prompts], None, print)
        shifted = alignment.shifted(denoiser, view, draw, candidates[:1])
        found[name] = denoiser.losses_on(shifted)(candidates)
        found[f"left {name}"] = torch.tensor([alignment.rest(denoiser, view, draw, candidates[:1])])
    return found


def learn(settings: Mapping[str, Any], folder: Path) -> None:
    """Learn a token into the run folder ``folder/run``, as the node ZO Train Token does."""
    model = wrapped(folder)
    train = {name: importlib.import_module(f"zoodip_pack.zoodip_core.train.{name}") for name in ("config", "loop")}
    config = train["config"].TrainConfig.from_dict({**settings, **model.settings()})
    train["loop"].train_token(config, folder / "run", model=model)
