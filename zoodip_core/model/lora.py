"""Learned weights as a LoRA: files in kohya's layout, which ComfyUI, A1111, Forge and diffusers load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ..base.errors import LoraFileError
from ..base.files import write_atomically
from ..base.safetensors_files import bytes_of, open_safetensors
from .embedding import made_how, settings_in, settings_line
from .frames import Frames, Layers
from .kinds import FAMILIES
from .quantize import QuantizedLayer
from .quantized import QuantizedModel

FORMAT_VERSION = 1
MOST_STRENGTH = 10
MAX_BYTES = 2_000_000_000
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PREFIX = "lora_unet_"
_UP, _DOWN, _ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"
_BASE_MODELS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
"""What kohya's trainer calls the families, which webuis and ComfyUI read."""


@dataclass(frozen=True, eq=False)
class Lora:
    """What is added to a UNet's weights at a strength of 1.

    Args:
        layers: by the layer's name with ``_`` for each dot, ``[out, rank]`` and ``[rank, in]``, float32.
        metadata: what is known of it, as in the safetensors header.
    """

    layers: Layers
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest of its layers'."""
        return max(len(down) for _, down in self.layers.values())

    def scaled(self, strength: float) -> Lora:
        """The same at another strength."""
        return Lora({name: (strength * up, down) for name, (up, down) in self.layers.items()}, self.metadata)

    def notes_on(self, model: QuantizedModel) -> list[str]:
        """Lines for the user on how it may come out otherwise on a model than where it was learned."""
        learned = settings_in(self.metadata).get("weights")
        if learned in (None, model.weights):
            return []
        return [
            f"note: the LoRA was learned on {learned} weights, this model has {model.weights}: it draws nearly the "
            "same, not exactly"
        ]

    def for_unet(self, unet: nn.Module, device: torch.device, dtype: torch.dtype) -> Layers:
        """Its layers by their names in a UNet, there.

        Raises:
            LoraFileError: it is for another one.
        """
        known = _linear_layers(unet)
        found = {}
        for stem, (up, down) in self.layers.items():
            name, shape = known.get(stem, ("", ()))
            if shape != (len(up), down.shape[1]):
                raise LoraFileError(_misfit(self.metadata, stem, shape))
            found[name] = (up.to(device, dtype), down.to(device, dtype))
        return found


def _linear_layers(unet: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Their names and shapes, by their names with ``_`` for each dot. No weight is made from its parts for that."""
    return {
        name.replace(".", "_"): (name, (layer.out_features, layer.in_features))
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, QuantizedLayer) and layer.conv is None)
    }


def _misfit(metadata: Mapping[str, str], stem: str, shape: tuple[int, ...]) -> str:
    made_for = FAMILIES.get(metadata.get("family", ""), metadata.get("base_model", ""))
    what = f"shaped {list(shape)}" if shape else "missing"
    return (
        f"the LoRA{f' for {made_for}' if made_for else ''} does not fit this model, whose layer {stem} is {what}; use "
        "it with the model family it was trained on"
    )


def lora_of(frames: Frames, values: torch.Tensor, metadata: Mapping[str, str]) -> Lora:
    """Frames and the cores ``[numbers]`` between them: ``up = A R`` and ``down = B``, so that up @ down is A R B."""
    cores = frames.cores(values.detach().to("cpu", torch.float32))
    layers = {name.replace(".", "_"): (a @ cores[name], b) for name, (a, b) in frames.layers.items()}
    return Lora(layers, dict(metadata))


def serialize(lora: Lora) -> bytes:
    """The bytes of the LoRA's safetensors file; the same LoRA gives the same bytes."""
    tensors = {}
    for stem, (up, down) in lora.layers.items():
        tensors[f"{_PREFIX}{stem}{_UP}"] = up.contiguous()
        tensors[f"{_PREFIX}{stem}{_DOWN}"] = down.contiguous()
        tensors[f"{_PREFIX}{stem}{_ALPHA}"] = torch.tensor(float(len(down)))  # equal to the rank: no factor
    family = lora.metadata.get("family", "")
    kohya = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.rank),
        "ss_v2": str(family == "sd2"),
        **({"ss_base_model_version": _BASE_MODELS[family]} if family in _BASE_MODELS else {}),
    }
    return bytes_of(tensors, {**lora.metadata, **kohya, "lora_format_version": str(FORMAT_VERSION)})


def save_lora(lora: Lora, path: str | Path) -> Path:
    """Write the LoRA atomically as ``.safetensors``.

    Raises:
        LoraFileError: another ending.
        StorageError: the file cannot be written; an older file there is kept.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise LoraFileError(f"{path}: LoRAs are saved as .safetensors; choose that ending")
    write_atomically(path, serialize(lora))
    return path


def load_lora(path: str | Path) -> Lora:
    """Read a LoRA of a UNet's linear layers under the names that diffusers and kohya give them.

    Raises:
        LoraFileError: no such file, another kind of file, or one that is for more than that.
    """
    path = Path(path)
    if not path.is_file():
        raise LoraFileError(f"LoRA file {path} does not exist")
    if path.stat().st_size > MAX_BYTES:
        raise LoraFileError(f"{path} has {path.stat().st_size / 1e9:.1f} GB, too much for a LoRA; is it a model?")
    try:
        with open_safetensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except Exception as error:  # the library's own, and PyTorch's where it has no such type or so many dimensions
        raise LoraFileError(f"{path} is not a safetensors file, or damaged: {error}") from error
    if odd := next((name for name, tensor in tensors.items() if tensor.dtype not in _DTYPES), None):
        kind = str(tensors[odd].dtype).removeprefix("torch.")
        raise LoraFileError(f"{path}: {odd[:80]} is of the type {kind}, which no LoRA has; copy the file again")
    return Lora(_layers_in(path, {name: tensor.float().clone() for name, tensor in tensors.items()}), metadata)


def describe(lora: Lora) -> list[tuple[str, str]]:
    """What a person wants to know of learned weights, as (label, text) lines."""
    metadata = lora.metadata
    family = metadata.get("family", "")
    return [
        *([("token", metadata["token"])] if "token" in metadata else []),
        *([("for", FAMILIES.get(family, family))] if family else []),
        ("rank", str(lora.rank)),
        ("layers", str(len(lora.layers))),
        *made_how(metadata),
        *settings_line(metadata),
    ]


def _layers_in(path: Path, tensors: Mapping[str, torch.Tensor]) -> Layers:
    endings = (_UP, _DOWN, _ALPHA)
    stems = {name.removesuffix(next((end for end in endings if name.endswith(end)), "")) for name in tensors}
    foreign = sorted(stem for stem in stems if not stem.startswith(_PREFIX) or f"{stem}{_UP}" not in tensors)
    if foreign or not stems:
        what = f"it holds {foreign[0][:80]}" if foreign else "it is empty"
        raise LoraFileError(
            f"{path} is not a LoRA that can be drawn with here: {what}. Those that ZOODiP learns can, which are of a "
            f"UNet's linear layers alone ({_PREFIX}...); draw with others in ComfyUI or a webui"
        )
    layers: Layers = {}
    for stem in sorted(stems):
        up, down = tensors[f"{stem}{_UP}"], tensors.get(f"{stem}{_DOWN}", torch.zeros(()))
        alpha = tensors.get(f"{stem}{_ALPHA}", torch.tensor(float(len(down)) if down.ndim else 0.0))
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != len(down) or alpha.numel() != 1 or not len(down):
            raise LoraFileError(f"{path}: {stem} is not of a linear layer, or damaged; draw with it in another program")
        factor = float(alpha) / len(down)
        if not all(torch.isfinite(each).all() for each in (up, down, alpha)):
            raise LoraFileError(f"{path}: {stem} holds NaN or infinity; it is damaged, copy it again")
        layers[stem.removeprefix(_PREFIX)] = (up if factor == 1 else up * factor, down)
    return layers
