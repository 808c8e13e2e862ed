"""Loading a Stable Diffusion, offline, with quantised weights."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import ConfigError, ModelError
from .quantize import WEIGHTS, quantize_weights, stored_bytes

TINY = "tiny"
"""The name of the embedded tiny model wherever a model's path is asked for."""
TINY_PATH = Path(__file__).parent / "tiny" / "model"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FAMILIES = {768: "sd1", 1024: "sd2", 128: "tiny"}


@dataclass(frozen=True)
class ModelInfo:
    """What a model folder holds, read from its configs alone.

    ``family`` is ``sd1``, ``sd2``, ``tiny``, or ``sd-DIM`` for another text width.
    """

    path: Path
    name: str
    family: str
    dim: int
    resolution: int


def identify(model: str | Path) -> ModelInfo:
    """Read what a diffusers folder (or ``"tiny"``) is, without loading it.

    Raises:
        ModelError: nothing there, not a diffusers folder, or an unsupported family.
    """
    path = TINY_PATH if str(model) == TINY else Path(model)
    if path.is_file():
        raise ModelError(
            f"model: {path} is a single file; this version reads diffusers folders (model_index.json with "
            "unet, vae, text_encoder, tokenizer and scheduler folders)"
        )
    if not path.exists():
        raise ModelError(f"model: {path} does not exist; give a diffusers folder, or {TINY!r} for the embedded model")
    index = path / "model_index.json"
    if not index.is_file():
        raise ModelError(f"model: {path} has no model_index.json; give the top of a diffusers folder")
    kind = _read_json(index).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise ModelError(
            f"model: {path} is a {kind or 'folder of an unknown kind'}; supported are Stable Diffusion 1.x "
            "and 2.x (StableDiffusionPipeline)"
        )
    for part in ("unet", "vae", "text_encoder"):
        if not (path / part / "config.json").is_file():
            raise ModelError(f"model: {path / part}/config.json is missing; the folder is incomplete, copy it again")
    unet, text, vae = (_read_json(path / part / "config.json") for part in ("unet", "text_encoder", "vae"))
    dim, attended = text.get("hidden_size"), unet.get("cross_attention_dim")
    if not isinstance(dim, int) or dim != attended:
        raise ModelError(
            f"model: {path}: the text encoder's width is {dim}, the UNet attends to {attended}; "
            "its parts are of different models"
        )
    factor = 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)
    resolution = int(unet.get("sample_size", 64)) * factor
    name = TINY if path == TINY_PATH else path.resolve().name
    return ModelInfo(path, name, _FAMILIES.get(dim, f"sd-{dim}"), dim, resolution)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model: {path} can not be read: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"model: {path} is not a JSON object; the folder is damaged, copy it again")
    return data


@dataclass
class QuantizedModel:
    """A Stable Diffusion ready for forward passes: UNet and text encoder loaded, the VAE on demand."""

    info: ModelInfo
    weights: str
    dtype: torch.dtype
    device: torch.device
    tokenizer: Any
    text_encoder: Any
    unet: Any
    scheduler: Any

    @property
    def prediction_type(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return str(self.scheduler.config.prediction_type)

    @contextlib.contextmanager
    def vae(self) -> Iterator[Any]:
        """The VAE, loaded for this context only."""
        from diffusers import AutoencoderKL

        vae = _ready(_load_part(AutoencoderKL, self.info.path, "vae"), self.weights, self.dtype, self.device)
        try:
            yield vae
        finally:
            del vae
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """Text encoder output ``[N, length, dim]`` of token ids ``[N, length]``."""
        hidden: torch.Tensor = self.text_encoder(ids)[0]
        return hidden

    def stored_bytes(self) -> dict[str, int]:
        """Bytes of weights in memory, by component."""
        return {"unet": stored_bytes(self.unet), "text_encoder": stored_bytes(self.text_encoder)}

    def fingerprint(self) -> str:
        """SHA-256 of the UNet's and text encoder's weight files: which base model a token belongs to."""
        digest = hashlib.sha256()
        for part in ("unet", "text_encoder"):
            folder = self.info.path / part
            for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
                with file.open("rb") as stream:
                    while chunk := stream.read(1 << 22):
                        digest.update(chunk)
        return digest.hexdigest()


def load_quantized(
    model: str | Path = TINY,
    *,
    weights: str = "int8",
    dtype: str = "auto",
    device: str = "auto",
) -> QuantizedModel:
    """Load a diffusers folder, or the embedded tiny model, never asking the network.

    Args:
        model: a diffusers folder or ``"tiny"``.
        weights: ``int8``, ``int4``, ``float8`` or ``none``: storage of Linear and Conv2d weights.
        dtype: activations: ``float32``, ``float16``, ``bfloat16``; ``auto`` is float16 on CUDA, else float32.
        device: a torch device; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ModelError: the model is missing, damaged or unsupported.
        ConfigError: an unknown ``weights``, ``dtype`` or ``device``.
    """
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel

    if weights not in WEIGHTS:
        raise ConfigError(f"weights = {weights!r}: choose one of {', '.join(WEIGHTS)}")
    info = identify(model)
    where = _device(device)
    kind = _dtype(dtype, where)
    tokenizer = _load_tokenizer(info.path)
    text_encoder = _ready(_load_part(CLIPTextModel, info.path, "text_encoder"), weights, kind, where)
    unet = _ready(_load_part(UNet2DConditionModel, info.path, "unet"), weights, kind, where)
    scheduler = _load_part(DDPMScheduler, info.path, "scheduler")
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelError(f"model: {info.path}: prediction type {scheduler.config.prediction_type!r} is not supported")
    return QuantizedModel(info, weights, kind, where, tokenizer, text_encoder, unet, scheduler)


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


def _load_part(kind: Any, path: Path, part: str) -> Any:
    offline: dict[str, Any] = {"local_files_only": True}
    if importlib.util.find_spec("accelerate") is None and part in ("unet", "vae"):
        offline["low_cpu_mem_usage"] = False
    try:
        with torch.random.fork_rng(devices=[]):  # some versions fill the weights at random before loading
            return kind.from_pretrained(path, subfolder=part, **offline)
    except Exception as error:  # the libraries raise a dozen kinds on missing and damaged files
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"model: {path / part} can not be loaded: {reason[0] if reason else type(error).__name__}; "
            "if its files are incomplete or damaged, copy them again"
        ) from error


def _load_tokenizer(path: Path) -> Any:
    from transformers import CLIPTokenizer

    folder = path / "tokenizer"
    for file in ("vocab.json", "merges.txt"):  # without them the library makes a two-word tokenizer, silently
        if not (folder / file).is_file():
            raise ModelError(f"model: {folder / file} is missing; the folder is incomplete, copy it again")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"model: {folder} can not be loaded: {reason[0] if reason else type(error).__name__}; "
            "its files may be damaged, copy them again"
        ) from error


def _ready(module: Any, weights: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Cast, move, then quantise: in the other order quanto fails."""
    module = module.eval().requires_grad_(False)
    torch.nn.Module.to(module, device=device, dtype=dtype)  # diffusers' own .to warns about nothing here
    quantize_weights(module, weights)
    return module
