"""A model that runs in ComfyUI, to learn a token on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .host import check_packages, host

if TYPE_CHECKING:
    from .any_model.model import ComfyUIModel


class ModelFromComfyUI:
    """Whatever MODEL, CLIP and VAE the user has: Flux, Z-Image, GGUF, a checkpoint with LoRAs on it."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Lets a token be learned on any model that ComfyUI draws pictures with, as it is loaded and patched: fp8, "
        "GGUF, with LoRAs. It takes the memory of running it."
    )
    RETURN_TYPES = ("ZOODIP_MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    OUTPUT_TOOLTIPS = (
        "For ZO Train Token and every other ZOODiP node with an input model.",
        "What the model is, and the memory that training on it takes.",
    )
    FUNCTION = "wrap"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": {
                "model": (
                    "MODEL",
                    {"tooltip": "From any loader, with LoRAs or without; one that draws pictures."},
                ),
                "clip": ("CLIP", {"tooltip": "The text encoders that belong to the model."}),
                "vae": ("VAE", {"tooltip": "The VAE that belongs to the model."}),
            }
        }

    def wrap(self, model: Any, clip: Any, vae: Any) -> tuple[ComfyUIModel, str]:
        check_packages()
        from .any_model.model import ComfyUIModel

        wrapped = ComfyUIModel(model, clip, vae, host().temp_folder() / "zoodip")
        return wrapped, wrapped.report()
