"""Loading a Stable Diffusion with quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .host import check_packages, host, stoppable
from .inputs import inputs_of

if TYPE_CHECKING:
    from ..zoodip_core.model.quantized import QuantizedModel

TINY_CHOICE = "tiny (embedded)"


class LoadQuantizedSD:
    """A Stable Diffusion whose weights stay int8 or int4."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Opens a Stable Diffusion 1.x, 2.x or XL whose weights will be kept quantised. It takes memory only while a "
        "ZOODiP node computes with it, and leaves the GPU afterwards."
    )
    RETURN_TYPES = ("ZOODIP_MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    OUTPUT_TOOLTIPS = (
        "For ZO Train Token, Generate Preview and Evaluate Embedding.",
        "What the model is, and the memory that training on it takes.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        from ..zoodip_core.train.settings import MODEL

        settings = inputs_of(MODEL, without=("model", "device", "cache"), in_sight=("weights", "dtype"))
        return {
            "required": {
                "checkpoint": (
                    [TINY_CHOICE, *host().models()],
                    {
                        "default": TINY_CHOICE,
                        "tooltip": "A checkpoint or diffusers folder of yours, or the tiny model that comes with "
                        "ZOODiP and needs no download.",
                    },
                ),
                **{name: settings.pop(name) for name in ("weights", "activations")},
            },
            "optional": {
                **settings,
                "keep_copy": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Keep a quantised copy in models/zoodip, so that the model loads in seconds from "
                        "the second time on. It takes the disk space that the weights take in memory.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, checkpoint: str, **_settings: Any) -> str:  # noqa: N802
        from ..zoodip_core.model.copies import file_stamps

        path = _path(checkpoint)
        return f"{path} {file_stamps(path)}"

    def load(
        self,
        checkpoint: str,
        weights: str,
        activations: str,
        prediction_type: str = "auto",
        keep_copy: bool = False,
    ) -> tuple[QuantizedModel, str]:
        check_packages()
        from ..zoodip_core.model.kinds import TINY
        from ..zoodip_core.model.load import load_quantized

        with stoppable():  # a copy takes as long to make as the model to load
            model = load_quantized(
                TINY if checkpoint == TINY_CHOICE else _path(checkpoint),
                weights=weights,
                dtype=activations,
                device=host().device(),
                prediction_type=prediction_type,
                cache=host().models_folder() / "zoodip" if keep_copy else None,
            )
        return model, _report(model)


def _path(checkpoint: str) -> Path:
    from ..zoodip_core.base.errors import ModelError
    from ..zoodip_core.model.kinds import TINY_PATH

    if checkpoint == TINY_CHOICE:
        return TINY_PATH
    known = host().models()
    if checkpoint not in known:
        raise ModelError(
            f"checkpoint: {checkpoint} is not among ComfyUI's checkpoints and diffusers folders; press R to read "
            "them anew, and choose another"
        )
    return known[checkpoint]


def _report(model: QuantizedModel) -> str:
    from ..zoodip_core.model.memory import free_memory, megabytes, predict_memory

    info = model.info
    use = predict_memory(model.blueprint, model.weights, model.dtype, model.device, info.resolution, 1)
    return "\n".join(
        (
            f"{info.name} ({info.family}, {info.prediction_type}), {info.resolution} px",
            f"weights {model.weights}, activations {str(model.dtype).removeprefix('torch.')}, on {model.device}",
            f"training takes, candidates in turn: {use}",
            f"free on {model.device}: {megabytes(free_memory(model.device))}",
        )
    )
