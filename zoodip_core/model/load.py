"""Loading a Stable Diffusion, offline, with quantised weights: single files and diffusers folders."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..base.errors import ConfigError, ModelError
from ..base.files import is_newer, parse_json
from . import ldm
from .attention import PiecewiseAttention
from .building import ComponentReader, build
from .checkpoints import SUFFIXES, Checkpoint, component_files, read_json
from .embedding import family_of_widths
from .quantize import WEIGHTS, check_weights, stored_bytes
from .tokens import EncodedPrompt, encode_prompt, placed
from .unet import predict

TINY = "tiny"
"""The name of the embedded tiny model wherever a model's path is asked for."""
TINY_PATH = Path(__file__).parent.parent / "tiny" / "model"
CLIP_PATH = Path(__file__).parent.parent / "clip"
"""The tokenizer of every Stable Diffusion, for checkpoints, which hold none."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PREDICTION_TYPES = ("auto", "epsilon", "v_prediction")
COPY_MARK = "zoodip_quantized_copy"
"""In the header of our own quantised copies of models, with their format's version."""
COPY_FORMAT = 1
_PADS = {"sd1": (None,), "sd2": ("!",), "sdxl": (None, "!")}
_LONGEST_PROMPT = 4096
_LONGEST_YAML = 1_000_000
_LARGEST = 8192
_LARGEST_WORDS = 16_000_000
_MOST_TIMESTEPS = 100_000
_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, read from its configs or its tensors' shapes alone.

    Args:
        path: its file or folder.
        name: for people.
        family: ``sd1``, ``sd2``, ``sdxl``, ``tiny``, or ``sd-DIM`` for another text width.
        dims: the width of each text encoder's token embeddings.
        resolution: pixels a side it was trained on.
        prediction_type: ``epsilon`` or ``v_prediction``.
    """

    path: Path
    name: str
    family: str
    dims: tuple[int, ...]
    resolution: int
    prediction_type: str


@dataclass(frozen=True)
class Blueprint:
    """All that is needed to build a model's parts: what it is, configs, tokenizers, where its tensors lie.

    ``copy_of`` is the hash of the model of which this is a quantised copy, and ``weights`` what it was quantised to.
    """

    info: ModelInfo
    configs: Mapping[str, dict[str, Any]]
    readers: Mapping[str, ComponentReader]
    tokenizers: tuple[tuple[Path, str | None], ...]
    """For each text encoder its tokenizer's folder, and the word it pads with if that is not the folder's."""
    copy_of: str | None = None
    weights: str | None = None

    @property
    def text_parts(self) -> tuple[str, ...]:
        """The names of its text encoders."""
        return ("text_encoder", "text_encoder_2")[: len(self.info.dims)]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Its files, each once, in a stable order."""
        return list({id(r.checkpoint): r.checkpoint for _, r in sorted(self.readers.items())}.values())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the model's files: which base model a token belongs to."""
        if self.copy_of:
            return self.copy_of
        hashes = [checkpoint.sha256() for checkpoint in self.checkpoints]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


# ---------------------------------------------------------------- what is it?


def identify(model: str | Path, prediction_type: str = "auto") -> ModelInfo:
    """Read what a checkpoint or diffusers folder (or ``"tiny"``) is, without loading it.

    Raises:
        ModelError: nothing there, damaged, or an unsupported kind.
    """
    return open_model(model, prediction_type).info


def open_model(model: str | Path, prediction_type: str = "auto") -> Blueprint:
    """A model's :class:`Blueprint`. Only headers and configs are read.

    Args:
        model: a ``.safetensors`` or ``.ckpt`` checkpoint, a diffusers folder, or ``"tiny"``.
        prediction_type: ``auto``, or what the model predicts where its file does not tell rightly.

    Raises:
        ModelError: nothing there, damaged, or an unsupported kind.
        ConfigError: an unknown ``prediction_type``.
    """
    _check_prediction_type(prediction_type)
    path = TINY_PATH if str(model) == TINY else Path(model)
    if path.is_dir():
        return _checked(_open_folder(path, prediction_type))
    if not path.is_file():
        raise ModelError(
            f"model: {path} does not exist; give a checkpoint file, a diffusers folder, or {TINY!r} for the "
            "embedded model"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"model: {path} is no checkpoint; their names end in {', '.join(SUFFIXES)}")
    return _checked(_open_file(path, prediction_type))


_COUNTS = (
    ("num_hidden_layers",),
    ("layers_per_block",),
    ("transformer_layers_per_block", "reverse_transformer_layers_per_block"),
)


def _checked(blueprint: Blueprint) -> Blueprint:
    """The blueprint, if none of its configs has more layers than there are tensors: to build them would take for ever.

    Raises:
        ModelError: one has.
    """
    for part, reader in blueprint.readers.items():
        config, tensors = blueprint.configs[part], len(reader.checkpoint.shapes)
        levels = max((len(value) for value in config.values() if isinstance(value, list)), default=1)
        layers = [max((n for name in names for n in _numbers_in(config.get(name))), default=1) for names in _COUNTS]
        count = math.prod((levels, *layers))
        if not count <= tensors:
            error = ValueError(f"it has {count:g} layers, and the weights {tensors} tensors")
            raise ModelError(_config_useless(blueprint.info.path, part, error))
    return blueprint


def _numbers_in(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for each in value for number in _numbers_in(each)]
    return [min(value, 1e9)] if isinstance(value, int | float) else []


def _check_prediction_type(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ConfigError(f"prediction_type = {prediction_type!r}: choose one of {', '.join(PREDICTION_TYPES)}")


def _open_file(path: Path, prediction_type: str) -> Blueprint:
    checkpoint = Checkpoint([path])
    if COPY_MARK in checkpoint.metadata:
        return open_copy(path, prediction_type)
    family = ldm.family_of(checkpoint.shapes, str(path))
    configs = ldm.configs_of(checkpoint.shapes, family, str(path))
    predicts = _predicts(checkpoint, family) if prediction_type == "auto" else prediction_type
    zero_snr = "ztsnr" in checkpoint.shapes
    configs["scheduler"] = {**_SCHEDULE, "prediction_type": predicts, "rescale_betas_zero_snr": zero_snr}
    names = ldm.naming(checkpoint.shapes, family, configs)
    dims = tuple(configs[part]["hidden_size"] for part in ("text_encoder", "text_encoder_2") if part in configs)
    return Blueprint(
        ModelInfo(path, _title(path), family, dims, _resolution(configs, family), predicts),
        configs,
        {part: ComponentReader(checkpoint, name) for part, name in names.items()},
        tuple((CLIP_PATH, pad) for pad in _PADS[family]),
    )


def _title(path: Path) -> str:
    if path == TINY_PATH:
        return TINY
    return path.stem if path.is_file() else path.resolve().name


def _resolution(configs: Mapping[str, dict[str, Any]], family: str) -> int:
    side = configs["unet"].get("sample_size")
    levels = configs["vae"].get("block_out_channels")
    scale = 2 ** (len(levels) - 1) if isinstance(levels, list) and 0 < len(levels) < 10 else 8
    if isinstance(side, int) and 0 < side * scale <= _LARGEST:
        return side * scale
    if family == "sd2" and configs["scheduler"]["prediction_type"] == "v_prediction":
        return 768
    return 1024 if family == "sdxl" else 512


def stored_name(name: str) -> str:
    """A parameter's name in a copy: transformers 4 and 5 differ in a text encoder's first part."""
    return name.removeprefix("text_model.")


def open_copy(copy: Path, prediction_type: str = "auto", original: Path | None = None) -> Blueprint:
    """The blueprint of a quantised copy of a model.

    Args:
        copy: the file.
        prediction_type: as for :func:`open_model`.
        original: the model, if it is known; a diffusers folder's tokenizers are there.

    Raises:
        ModelError: the copy is damaged, of another version, or of a folder that is not known.
        ConfigError: an unknown ``prediction_type``.
    """
    _check_prediction_type(prediction_type)
    checkpoint = Checkpoint([copy])
    about = checkpoint.metadata
    if is_newer(about.get(COPY_MARK), COPY_FORMAT):
        raise ModelError(
            f"model: {copy} is a quantised copy that a newer ZOODiP made; update ZOODiP, or give the model itself"
        )
    try:
        info, configs, folders = (parse_json(about[key]) for key in ("info", "configs", "tokenizers"))
        _check_copy(info, configs, folders, about["weights"])
        if prediction_type != "auto":
            info["prediction_type"] = configs["scheduler"]["prediction_type"] = prediction_type
            info["resolution"] = _resolution(configs, info["family"])
        path = original or copy
        named = {"name": _title(path)} if original else {}
        if not {folder for folder, _ in folders} <= ({"", "tokenizer", "tokenizer_2"} if original else {""}):
            raise ModelError(f"model: {copy} is a copy of a diffusers folder; give the folder and --cache instead")
        blueprint = Blueprint(
            ModelInfo(**{**info, **named, "path": path, "dims": tuple(info["dims"])}),
            configs,
            {
                part: ComponentReader(checkpoint, lambda name, part=part: ldm.Source(f"{part}.{stored_name(name)}"))  # type: ignore[misc]
                for part in configs
                if part != "scheduler"
            },
            tuple((path / folder if folder else CLIP_PATH, pad) for folder, pad in folders),
            copy_of=about["sha256"],
            weights=about["weights"],
        )
        return _checked(blueprint)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"model: {copy} is a quantised copy that is damaged or of another version; delete it"
        ) from error


def _check_copy(info: Any, configs: Any, tokenizers: Any, weights: str) -> None:
    """Refuse what a copy's header can not have said.

    Raises:
        Exception: of several kinds.
    """
    parts = {"unet", "vae", "scheduler", *("text_encoder", "text_encoder_2")[: len(info["dims"])]}
    numbers = (info["resolution"], *info["dims"])
    whole = (
        all(isinstance(info[key], str) for key in ("name", "family"))
        and all(isinstance(number, int) and number > 0 for number in numbers)
        and info["prediction_type"] in PREDICTION_TYPES[1:]
        and set(configs) == parts
        and all(isinstance(config, dict) for config in configs.values())
        and len(tokenizers) == len(info["dims"]) == len(parts) - 3
        and all(isinstance(pad, str | None) for _, pad in tokenizers)
        and weights in WEIGHTS
    )
    if not whole:
        raise ValueError("its header is damaged")


def _predicts(checkpoint: Checkpoint, family: str) -> str:
    """What a single file predicts: as it says itself, or the webui's config beside it, or by its weights."""
    stated = checkpoint.metadata.get("modelspec.prediction_type", "")
    beside = checkpoint.files[0].with_suffix(".yaml")
    if not stated and beside.is_file():
        with beside.open(encoding="utf-8", errors="replace") as file:
            found = re.search(r"parameterization:\s*[\"']?(\w+)", file.read(_LONGEST_YAML))
        stated = found[1] if found else ""
    if stated:
        return "v_prediction" if stated.lower() in ("v", "v_prediction", "v-prediction") else "epsilon"
    if "v_pred" in checkpoint.shapes:
        return "v_prediction"
    tell = ldm.UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if family == "sd2" and tell in checkpoint.shapes:
        # The mark ComfyUI goes by: among SD2's models this norm's biases are wider in those that predict v.
        return "v_prediction" if _spread(checkpoint.tensor(tell)) > 0.09 else "epsilon"
    return "epsilon"


def _spread(tensor: torch.Tensor) -> float:
    """The standard deviation, 0 where PyTorch can not compute with the tensor's type."""
    try:
        return float(tensor.float().std(unbiased=False))
    except RuntimeError:
        return 0.0


def _open_folder(path: Path, prediction_type: str) -> Blueprint:
    index = path / "model_index.json"
    if not index.is_file():
        raise ModelError(f"model: {path} has no model_index.json; give the top of a diffusers folder")
    kind = read_json(index).get("_class_name")
    if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise ModelError(
            f"model: {path} is a {kind or 'folder of an unknown kind'}; supported are Stable Diffusion 1.x and 2.x "
            "(StableDiffusionPipeline) and XL (StableDiffusionXLPipeline)"
        )
    texts = ("text_encoder", "text_encoder_2") if kind == "StableDiffusionXLPipeline" else ("text_encoder",)
    for part in ("unet", "vae", *texts):
        if not (path / part / "config.json").is_file():
            raise ModelError(f"model: {path / part}/config.json is missing; the folder is incomplete, copy it again")
    configs = {part: read_json(path / part / "config.json") for part in ("unet", "vae", *texts)}
    configs["scheduler"] = _folder_schedule(path, prediction_type)
    dims = tuple(configs[part].get("hidden_size", 0) for part in texts)
    _check_folder(path, configs["unet"], dims)
    family = family_of_widths(dims)
    predicts = configs["scheduler"]["prediction_type"]
    info = ModelInfo(path, _title(path), family, dims, _resolution(configs, family), predicts)
    readers = {part: _folder_reader(path / part) for part in ("unet", "vae", *texts)}
    folders = tuple((path / part.replace("text_encoder", "tokenizer"), None) for part in texts)
    return Blueprint(info, configs, readers, folders)


def _check_folder(path: Path, unet: dict[str, Any], dims: tuple[int, ...]) -> None:
    attended = unet.get("cross_attention_dim")
    if not all(isinstance(dim, int) and dim > 0 for dim in dims) or sum(dims) != attended:
        raise ModelError(
            f"model: {path}: the text encoder's width is {'+'.join(map(str, dims))}, the UNet attends to {attended}; "
            "its parts are of different models"
        )
    special = [
        key for key in ("class_embed_type", "encoder_hid_dim", "time_cond_proj_dim") if unet.get(key) is not None
    ]
    if unet.get("addition_embed_type") not in (None, "text_time"):
        special.append("addition_embed_type")
    if unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") != "UNetMidBlock2DCrossAttn":
        special.append("mid_block_type")
    if special:
        raise ModelError(f"model: {path} has a UNet of a special kind ({', '.join(special)}), which is not supported")
    channels = unet.get("in_channels", 4)
    if channels != 4:
        raise ModelError(
            f"model: {path} is an inpainting model or another variant (its UNet reads {channels} channels, not 4); "
            "tokens are trained on the plain model of the same family"
        )


def _folder_schedule(path: Path, prediction_type: str) -> dict[str, Any]:
    file = path / "scheduler" / "scheduler_config.json"
    config = {**_SCHEDULE, "prediction_type": "epsilon", **read_json(file)}
    if "EDM" in str(config.get("_class_name")) or "Flow" in str(config.get("_class_name")):
        raise ModelError(f"model: {path} has another noise schedule ({config['_class_name']}), which is not supported")
    if prediction_type != "auto":
        config["prediction_type"] = prediction_type
    if config["prediction_type"] not in PREDICTION_TYPES[1:]:
        raise ModelError(f"model: {path}: prediction type {config['prediction_type']!r} is not supported")
    return {key: value for key, value in config.items() if not key.startswith("_")}


_OLD_VAE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _folder_reader(folder: Path) -> ComponentReader:
    checkpoint = Checkpoint(component_files(folder))
    shapes = checkpoint.shapes

    def locate(name: str) -> ldm.Source:
        old = re.sub(r"\.(to_[qkv]|to_out\.0)\.", lambda m: f".{_OLD_VAE[m[1]]}.", name)
        forms = (name, f"text_model.{name}", name.removeprefix("text_model."), old)
        return ldm.Source(next((form for form in forms if form in shapes), name))

    return ComponentReader(checkpoint, locate)


# ---------------------------------------------------------------- the model


def empty_network(blueprint: Blueprint, part: str) -> Any:
    """A component of the right shape on the meta device, without content."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = {key: value for key, value in blueprint.configs[part].items() if not key.startswith("_")}
    if config.get("latents_mean") is not None:
        raise ModelError(f"model: {blueprint.info.path} has a VAE with normalised latents, which is not supported")
    try:
        with torch.device("meta"):
            if part == "unet":
                return UNet2DConditionModel.from_config(config)
            if part == "vae":
                return AutoencoderKL.from_config(config)
            kind = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            return kind(CLIPTextConfig(**{key: config[key] for key in _OF_TEXT if key in config}))
    except Exception as error:  # the libraries raise a dozen kinds on configs that make no sense
        raise ModelError(_config_useless(blueprint.info.path, part, error)) from error


_OF_TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id"),
)
"""What counts of a text encoder's config. The rest may name code for the library to fetch."""


def _config_useless(model: Path, part: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"model: {model}: the config of its {part} can not be used: "
        f"{reason[0] if reason else type(error).__name__}; copy the model again"
    )


@dataclass(frozen=True)
class Conditioning:
    """What the UNet attends to.

    Args:
        hidden: text encoder output ``[N, length, width]``.
        pooled: SDXL's pooled text ``[N, dim]``, else None.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)


Prompt = tuple[EncodedPrompt, ...]
"""A text as each of a model's text encoders reads it."""


@dataclass
class QuantizedModel:
    """A Stable Diffusion for forward passes. Each part is loaded when it is first used.

    Args:
        blueprint: what it is and where its tensors are.
        weights: storage of Linear and Conv2d weights.
        dtype: of activations.
        device: where UNet and VAE compute.
        text_device: where the text encoders compute.
    """

    blueprint: Blueprint
    weights: str
    dtype: torch.dtype
    device: torch.device
    text_device: torch.device

    @property
    def info(self) -> ModelInfo:
        return self.blueprint.info

    @property
    def prediction_type(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return self.info.prediction_type

    @cached_property
    def scheduler(self) -> Any:
        """The noise schedule, as a ``DDPMScheduler``."""
        from diffusers import DDPMScheduler

        config = dict(self.blueprint.configs["scheduler"])
        try:
            if not 1 <= config["num_train_timesteps"] <= _MOST_TIMESTEPS:
                raise ValueError(f"num_train_timesteps = {config['num_train_timesteps']}")
            return DDPMScheduler.from_config(config)
        except Exception as error:  # the library raises a dozen kinds on configs that make no sense
            raise ModelError(_config_useless(self.info.path, "scheduler", error)) from error

    @cached_property
    def tokenizers(self) -> tuple[Any, ...]:
        """One for each text encoder."""
        configs = [self.blueprint.configs[part] for part in self.blueprint.text_parts]
        return tuple(
            _load_tokenizer(*place, config.get("vocab_size", 49408), config.get("max_position_embeddings", 77))
            for place, config in zip(self.blueprint.tokenizers, configs, strict=True)
        )

    @cached_property
    def text_encoders(self) -> tuple[Any, ...]:
        """Loaded at the first use, on ``text_device``."""
        half_on_cpu = self.text_device.type == "cpu" and self.dtype == torch.float16
        dtype = torch.float32 if half_on_cpu else self.dtype
        return tuple(self._build(part, self.text_device, dtype=dtype) for part in self.blueprint.text_parts)

    @cached_property
    def unet(self) -> Any:
        """Loaded at the first use, on ``device``."""
        unet = self._build("unet", self.device)
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            unet.set_attn_processor(PiecewiseAttention())
        return unet

    def _build(self, part: str, device: torch.device, **more: Any) -> Any:
        settings = {"weights": self.weights, "dtype": self.dtype, "device": device, **more}
        return build(empty_network(self.blueprint, part), self.blueprint.readers[part], **settings)

    @contextlib.contextmanager
    def vae(self, half: str) -> Iterator[Any]:
        """The VAE's ``encoder`` or ``decoder``, loaded for this context only.

        It is not quantised: it leaves before the UNet needs the room, and latents keep their accuracy.
        """
        exact = self.dtype == torch.bfloat16 or self.blueprint.configs["vae"].get("force_upcast")
        dtype = torch.float32 if exact else self.dtype
        without = ("decoder", "post_quant_conv") if half == "encoder" else ("encoder", "quant_conv")
        vae = self._build("vae", self.device, weights="none", dtype=dtype, without=without)
        try:
            yield vae
        finally:
            del vae
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def prompt(self, text: str, num_vectors: int = 0, where: str = "the prompt") -> Prompt:
        """Tokenise a text in which ``{}`` stands for the placeholder; see :func:`tokens.encode_prompt`."""
        return tuple(encode_prompt(tokenizer, text, num_vectors, where) for tokenizer in self.tokenizers)

    def encode(self, prompt: Prompt, candidates: torch.Tensor | None = None) -> Conditioning:
        """Encode a prompt, once for each candidate token in it.

        Args:
            prompt: from :meth:`prompt`.
            candidates: ``[K, num_vectors, sum of dims]``, or None for a prompt without placeholder.
        """
        widths = self.info.dims
        if candidates is None:
            candidates = torch.zeros(1, 0, sum(widths))
        outputs = []
        for encoder, encoded, part in zip(self.text_encoders, prompt, candidates.split(widths, dim=-1), strict=True):
            with placed(encoder, encoded, part) as ids:
                outputs.append(encoder(ids, output_hidden_states=len(widths) > 1))
        if len(widths) == 1:
            return Conditioning(outputs[0].last_hidden_state.to(self.device, self.dtype))
        # SDXL attends to the layer before the last of both; the second one's pooled output is not of that layer.
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return Conditioning(hidden.to(self.device, self.dtype), outputs[-1].text_embeds.to(self.device, self.dtype))

    def predict(
        self, noisy: torch.Tensor, timestep: int, condition: Conditioning, time_ids: torch.Tensor
    ) -> torch.Tensor:
        """The UNet's output ``[K, channels, height, width]`` for one latents ``[1, ...]`` and K conditionings.

        Args:
            time_ids: ``[6]``, SDXL's original size, crop and target size; not used by others.
        """
        added = None
        if condition.pooled is not None:
            times = time_ids.to(self.device, torch.float32).expand(len(condition), -1)
            added = {"text_embeds": condition.pooled, "time_ids": times}
        return predict(self.unet, noisy.to(self.device, self.dtype), timestep, condition.hidden, added)

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of weights in memory, by component."""
        parts = zip(self.blueprint.text_parts, self.text_encoders, strict=True)
        return {"unet": stored_bytes(self.unet), **{name: stored_bytes(encoder) for name, encoder in parts}}

    def loaded_bytes(self) -> int:
        """Bytes of the parts that are loaded now."""
        networks = [self.__dict__.get("unet"), *self.__dict__.get("text_encoders", ())]
        return sum(stored_bytes(network) for network in networks if network is not None)

    def keep_text_apart(self) -> None:
        """Compute text on the CPU, for want of room on the device."""
        self.__dict__.pop("text_encoders", None)
        self.text_device = torch.device("cpu")

    def unload(self) -> None:
        """Drop all loaded parts; they are loaded again when used, where they were meant to be."""
        for part in ("unet", "text_encoders"):
            self.__dict__.pop(part, None)
        self.text_device = self.device
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def load_quantized(
    model: str | Path = TINY,
    *,
    weights: str = "int8",
    dtype: str = "auto",
    device: str = "auto",
    prediction_type: str = "auto",
    cache: str | Path | None = None,
) -> QuantizedModel:
    """A checkpoint, diffusers folder or the embedded tiny model, never asking the network.

    What the model is gets checked at once; its parts are loaded when they are first used.

    Args:
        model: a ``.safetensors`` or ``.ckpt`` file, a diffusers folder, or ``"tiny"``.
        weights: ``int8``, ``int4``, ``float8`` or ``none``: storage of Linear and Conv2d weights.
        dtype: activations: ``float32``, ``float16``, ``bfloat16``; ``auto`` is float16 on CUDA, else float32.
        device: a torch device; ``auto`` is CUDA where there is one, else the CPU.
        prediction_type: ``epsilon`` or ``v_prediction`` where ``auto`` gets it wrong.
        cache: a folder for quantised copies, made at the first load and read in place of the model afterwards.

    Raises:
        ModelError: the model is missing, damaged or unsupported.
        StorageError: the copy can not be written.
        ConfigError: an unknown ``weights``, ``dtype``, ``device`` or ``prediction_type``.
    """
    check_weights(weights)
    where = _device(device)
    kind = _dtype(dtype, where)
    if cache is None or weights == "none" or str(model) == TINY:
        blueprint = open_model(model, prediction_type)
    else:
        from .copies import cached_model

        blueprint = cached_model(Path(model), weights, Path(cache), prediction_type)
    if blueprint.weights not in (None, weights):
        raise ModelError(f"model: {model} is a quantised copy with {blueprint.weights} weights, not {weights}")
    return QuantizedModel(blueprint, weights, kind, where, where)


def _device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"device = {device!r} is not to be had here; use cpu or auto") from None


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: choose auto, {', '.join(DTYPES)}")
    if dtype == "float16" and device.type == "cpu":
        raise ConfigError("dtype = 'float16' does not run on a CPU; use float32 or bfloat16")
    return DTYPES[dtype]


def _load_tokenizer(folder: Path, pad: str | None, vocabulary: int, length: int) -> Any:
    from transformers import CLIPTokenizerFast

    if any(file.stat().st_size > _LARGEST_WORDS for file in folder.glob("*.*") if file.is_file()):
        raise ModelError(
            f"model: {folder} has files of more than {_LARGEST_WORDS // 10**6} MB, which are no tokenizer's; copy the "
            "right one"
        )
    for file in ("vocab.json", "merges.txt"):  # without them the library makes a two-word tokenizer, silently
        if not (folder / file).is_file():
            raise ModelError(f"model: {folder / file} is missing; the folder is incomplete, copy it again")
    try:
        # The slow one of transformers 4 splits some scripts and emoji otherwise where ftfy is not installed.
        padding = {"pad_token": pad} if pad else {}
        tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True, **padding)
        tokenizer.model_max_length = min(tokenizer.model_max_length, length)
        _check_tokenizer(tokenizer)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"model: {folder} can not be loaded: {reason[0] if reason else type(error).__name__}; "
            "its files may be damaged, copy them again"
        ) from error
    if len(tokenizer) != vocabulary:
        raise ModelError(
            f"model: the tokenizer in {folder} knows {len(tokenizer)} words, the text encoder {vocabulary}; "
            "it is not this model's, copy the right one"
        )
    return tokenizer


def _check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer whose texts no text encoder could read.

    Raises:
        ValueError: it is one.
    """
    if not 2 <= tokenizer.model_max_length <= _LONGEST_PROMPT:
        raise ValueError(f"it reads {tokenizer.model_max_length} words")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        number = getattr(tokenizer, name)
        if not isinstance(number, int) or not 0 <= number < len(tokenizer):
            raise ValueError(f"its {name} is {number}")
