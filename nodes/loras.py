"""Learned weights: applied to a MODEL, saved where ComfyUI finds them, drawn with by our own models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .host import host
from .loading import LoadsFile
from .saving import SavesFile, Written, free, holds, name_in, target

if TYPE_CHECKING:
    from pathlib import Path

    from ..zoodip_core.model.lora import Lora
    from ..zoodip_core.model.token_model import TokenModel

_PREFIX, _FAMILIES = "lora_unet_", {"SD15": "sd1", "SD20": "sd2", "SDXL": "sdxl"}
"""What ComfyUI calls a UNet's layers in LoRA files, and families of models."""


class ApplyLora:
    """Adds learned weights to a MODEL, without a file of the user's."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Adds the weights that were learned with a token to a MODEL, as ComfyUI does with a LoRA's file. Apply the "
        "token to the CLIP as well."
    )
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The MODEL with the learned weights, for a sampler.",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        from ..zoodip_core.model.lora import MOST_STRENGTH

        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Of the model family that the weights were learned on."}),
                "lora": (
                    "ZOODIP_LORA",
                    {"tooltip": "From ZO Train Token, where it has learned weights, or Load Learned LoRA."},
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -float(MOST_STRENGTH),
                        "max": float(MOST_STRENGTH),
                        "step": 0.05,
                        "tooltip": "1: as they were learned. 0: without them.",
                    },
                ),
            }
        }

    def apply(self, model: Any, lora: Lora | None, strength: float) -> tuple[Any]:
        from safetensors.torch import load

        from ..zoodip_core.base.errors import LoraFileError
        from ..zoodip_core.model.lora import serialize

        if model is None:
            raise LoraFileError("model: nothing comes in; load a checkpoint or UNet, and connect its MODEL")
        there = _learned(lora)
        weights = _weights(model, there)
        if strength == 0:
            return (model,)
        patched = host().with_lora(model, load(serialize(there)), strength)
        left = [name for name in weights if len(patched.patches.get(name, ())) == len(model.patches.get(name, ()))]
        if left:
            raise LoraFileError(
                f"lora: ComfyUI takes {len(weights) - len(left)} of its {len(weights)} layers for this model, and not "
                f"{left[0]}; load the model with another loader"
            )
        return (patched,)


class SaveLora(SavesFile):
    """Writes learned weights into the user's folder of LoRAs."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Writes the weights that were learned with a token into ComfyUI's loras folder as safetensors, for Load LoRA. "
        "They work in A1111, Forge and diffusers as well."
    )
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("file",)
    OUTPUT_TOOLTIPS = ("The name of the file, as Load LoRA lists it.",)
    FUNCTION = "save"
    OUTPUT_NODE = True
    WRITTEN = Written()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "lora": ("ZOODIP_LORA", {"tooltip": "From ZO Train Token, where it has learned weights."}),
                "filename": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Name of the file, perhaps in a subfolder; empty: the token's name and -lora.",
                    },
                ),
                "overwrite": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Replace another LoRA of this name. Off: the file gets the next free number.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def target(cls, filename: str, token: str) -> Path:
        from ..zoodip_core.train.run_folder import lora_beside

        path = target(filename, token, host().loras_folder(), "the loras folder")
        return path if filename.strip() else lora_beside(path)

    def save(self, lora: Lora | None, filename: str, overwrite: bool, unique_id: str = "") -> dict[str, Any]:
        from ..zoodip_core.model.lora import save_lora, serialize

        there = _learned(lora)
        path, content = self.target(filename, there.metadata.get("token", "")), serialize(there)
        if not overwrite:
            path = free(path, content)
        if not holds(path, content):
            save_lora(there, path)
        self.WRITTEN.add(unique_id, {path: content})
        name = f"{name_in(host().loras_folder(), path)}.safetensors"
        return {"ui": {"text": [name]}, "result": (name,)}


class LoadLearnedLora(LoadsFile):
    """Reads learned weights that were saved."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Reads weights that were learned with a token and saved as a LoRA, for the nodes of ZOODiP. ComfyUI's own "
        "Load LoRA reads the same files."
    )
    RETURN_TYPES = ("ZOODIP_LORA", "STRING")
    RETURN_NAMES = ("lora", "report")
    OUTPUT_TOOLTIPS = (
        "For Generate Preview, Compare Embeddings, Evaluate Embedding and Apply LoRA.",
        "What is known of the weights.",
    )
    FUNCTION = "load"
    CALLED = "LoRAs"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"file": (list(cls.listed()), {"tooltip": "A file in ComfyUI's folders of LoRAs."})}}

    @staticmethod
    def listed() -> dict[str, Path]:
        return host().loras()

    def load(self, file: str) -> tuple[Lora, str]:
        from ..zoodip_core.model.lora import describe, load_lora

        lora = load_lora(self.path_of(file))
        return lora, "\n".join(f"{label}: {text}" for label, text in describe(lora))


@contextlib.contextmanager
def drawn_with(model: TokenModel, lora: Lora | None) -> Iterator[None]:
    """Within this context one of our models draws with learned weights; as ever if there are none.

    Raises:
        LoraFileError: they are not for this model.
    """
    from ..zoodip_core.base.errors import LoraFileError
    from ..zoodip_core.model.generation import with_lora

    check_draws_with(model, lora)
    try:
        with with_lora(model, lora):
            yield
    except LoraFileError as error:
        raise LoraFileError(f"lora: {error}") from None


def check_draws_with(model: TokenModel, lora: Lora | None, name: str = "lora") -> None:
    """Refuse weights on a model that has a way of its own for them.

    Args:
        name: of the input that they come from.

    Raises:
        LoraFileError: it has one.
    """
    from ..zoodip_core.base.errors import LoraFileError

    if lora is not None and not model.own_memory:
        raise LoraFileError(
            f"{name}: a model of ComfyUI's draws with what is applied to its MODEL; put Apply LoRA before Model from "
            "ComfyUI, and leave this input unconnected"
        )


def _learned(lora: Lora | None) -> Lora:
    from ..zoodip_core.base.errors import LoraFileError

    if lora is None:
        raise LoraFileError(
            "lora: no weights were learned with this token; set preset of ZO Train Token to two-stage, or its "
            "lora_rank to 4, or take this node out"
        )
    return lora


def _weights(model: Any, lora: Lora) -> list[str]:
    """The names of the MODEL's weights that a LoRA is for.

    Raises:
        LoraFileError: it has not all of them, or of other shapes.
    """
    known = host().weights_by_lora(model)
    found: list[str] = []
    for stem, (up, down) in lora.layers.items():
        name = known.get(_PREFIX + stem)
        shape = tuple(model.get_model_object(name).shape) if name else ()
        if name is None or shape != (len(up), down.shape[1]):
            raise _misfit(model, lora, f"whose layer {stem} is {f'shaped {list(shape)}' if name else 'missing'}")
        found.append(name)
    return found


def _misfit(model: Any, lora: Lora, why: str) -> Exception:
    from ..zoodip_core.base.errors import LoraFileError
    from ..zoodip_core.model.kinds import FAMILIES

    kind = type(model.model.model_config).__name__
    called = FAMILIES.get(_FAMILIES.get(kind, ""), kind)
    family = lora.metadata.get("family", "")
    return LoraFileError(
        f"lora does not fit model: it is for {FAMILIES.get(family, family or 'another model')}, the model is {called}, "
        f"{why}; connect a MODEL of the family that the LoRA was learned on"
    )
