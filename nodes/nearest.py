"""Which words of a model a token is near."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .host import on_the_device
from .tokens import one_of

if TYPE_CHECKING:
    from ..zoodip_core.model.token_model import TokenModel
    from .tokens import Tokens


class NearestWords:
    """Shows for each vector of a token the words that are nearest, and how long it is."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Shows which of the model's words each vector of a token is nearest to, by cosine and distance, for each text "
        "encoder, and how long it is beside words."
    )
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_TOOLTIPS = ("The nearest words of each vector.",)
    FUNCTION = "find"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": {
                "embedding": (
                    "ZOODIP_EMBEDDING",
                    {"tooltip": "From Load Embedding, ZO Train Token or Merge Embeddings."},
                ),
                "model": ("ZOODIP_MODEL", {"tooltip": "From Load Quantized SD or Model from ComfyUI."}),
                "words": ("INT", {"default": 10, "min": 1, "max": 1000, "tooltip": "How many for each vector."}),
            },
        }

    def find(self, embedding: Tokens, model: TokenModel, words: int) -> dict[str, Any]:
        from ..zoodip_core.base.texts import printable
        from ..zoodip_core.model.embedding import check_fits
        from ..zoodip_core.model.nearest import places_of, told

        token = one_of(embedding, "embedding")
        check_fits(token, model.info.dims, "embedding does not fit model", model.info.encoders)
        with on_the_device(model):
            vocabularies = model.vocabularies()
            found = places_of(token, vocabularies, words)
        report = "\n".join(map(printable, told(found, vocabularies)))
        return {"ui": {"text": [report]}, "result": (report,)}
