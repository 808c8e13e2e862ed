"""Loading a Stable Diffusion with quantised weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .host import CLIP, FOR_OWN_MODELS, NEEDED, VAE, check_packages, host, stoppable
from .inputs import inputs_of

if TYPE_CHECKING:
    from ..zoodip_core.model.stable_diffusion import StableDiffusion

TINY_CHOICE = "tiny (embedded)"
OWN = "the checkpoint's own"
COPIES = "zoodip"
"""In ComfyUI's folder of models: quantised copies."""


class LoadQuantizedSD:
    """A Stable Diffusion whose weights stay int8 or int4."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Opens a Stable Diffusion 1.x, 2.x or XL whose weights will be kept quantised. It takes memory only while a "
        "ZOODiP node computes with it, and leaves the GPU afterwards. UNet, text encoders and VAE may be files of "
        "their own."
    )
    RETURN_TYPES = ("ZOODIP_MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    OUTPUT_TOOLTIPS = (
        "For ZO Train Token and every other ZOODiP node with an input model.",
        "What the model is, and the memory that training on it takes.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        from ..zoodip_core.train.settings import MODEL

        settings = inputs_of(MODEL, without=("model", "device", "clip", "vae", "cache"), in_sight=("weights", "dtype"))
        names = host().models()
        models = [name for name in names if not name.endswith((CLIP, VAE))]
        return {
            "required": {
                "checkpoint": (
                    [TINY_CHOICE, *models],
                    {
                        "default": TINY_CHOICE,
                        "tooltip": "A checkpoint, UNet or diffusers folder of yours, or the embedded model that comes "
                        "with ZOODiP and needs no download.",
                    },
                ),
                **{name: settings.pop(name) for name in ("weights", "activations")},
            },
            "optional": {
                **settings,
                "keep_copy": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "Keep a quantised copy in models/zoodip, so that the model loads in seconds from "
                        "the second time on. It takes the disk space that the weights take in memory.",
                    },
                ),
                "clip": _apart(names, CLIP, "The text encoder's file, for a UNet or in place of the checkpoint's."),
                "clip_2": _apart(names, CLIP, "SDXL's second text encoder; the order of the two does not matter."),
                "vae": _apart(names, VAE, "The VAE's file, for a UNet or in place of the checkpoint's."),
            },
        }

    @classmethod
    def IS_CHANGED(  # noqa: N802
        cls, checkpoint: str, clip: str = OWN, clip_2: str = OWN, vae: str = OWN, **_settings: Any
    ) -> str:
        from ..zoodip_core.model.copies import file_stamps

        chosen = {"checkpoint": checkpoint, "clip": clip, "clip_2": clip_2, "vae": vae}
        paths = [_path(name, choice) for name, choice in chosen.items() if choice != OWN]
        return f"{paths} {file_stamps(*paths)}"

    def load(
        self,
        checkpoint: str,
        weights: str,
        activations: str,
        prediction_type: str = "auto",
        keep_copy: bool = True,
        clip: str = OWN,
        clip_2: str = OWN,
        vae: str = OWN,
    ) -> tuple[StableDiffusion, str]:
        check_packages(
            (*NEEDED, *FOR_OWN_MODELS), "Or use Model from ComfyUI, which needs neither diffusers nor optimum-quanto."
        )
        from ..zoodip_core.model.kinds import TINY
        from ..zoodip_core.model.load import load_quantized

        with stoppable():  # a copy takes as long to make as the model to load
            model = load_quantized(
                TINY if checkpoint == TINY_CHOICE else _path("checkpoint", checkpoint),
                weights=weights,
                dtype=activations,
                device=host().device(),
                prediction_type=prediction_type,
                clip=[_path(name, choice) for name, choice in (("clip", clip), ("clip_2", clip_2)) if choice != OWN],
                vae=None if vae == OWN else _path("vae", vae),
                cache=host().models_folder() / COPIES if keep_copy else None,
            )
        return model, _report(model)


def _apart(names: Iterable[str], part: str, tooltip: str) -> tuple[list[str], dict[str, Any]]:
    choices = [OWN, *(name for name in names if name.endswith(part))]
    return choices, {"default": OWN, "tooltip": tooltip, "advanced": True}


def _path(name: str, choice: str) -> Path:
    """The file or folder behind a choice.

    Args:
        name: of the input, for errors.
        choice: what was chosen there.

    Raises:
        ModelError: it is gone.
    """
    from ..zoodip_core.base.errors import ModelError
    from ..zoodip_core.model.kinds import TINY_PATH

    if choice == TINY_CHOICE:
        return TINY_PATH
    known = host().models()
    if choice not in known:
        raise ModelError(
            f"{name}: {choice} is not among ComfyUI's checkpoints and diffusers folders; press R to read "
            "them anew, and choose another"
        )
    return known[choice]


def _report(model: StableDiffusion) -> str:
    from ..zoodip_core.model.memory import free_memory, predict_memory
    from ..zoodip_core.model.memory_use import megabytes

    info = model.info
    use = predict_memory(model.blueprint, model.weights, model.dtype, model.device, info.resolution, 1)
    return "\n".join(
        (
            f"{info.name} ({info.family}, {info.prediction_type}), {info.resolution} px",
            f"weights {model.weights}, activations {str(model.dtype).removeprefix('torch.')}, on {model.device}",
            f"training takes, candidates in turn: {use}",
            f"free on {model.device}: {megabytes(free_memory(model.device))}",
            *model.blueprint.notes,
        )
    )
