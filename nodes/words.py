"""A word of a model's as a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .host import on_the_device

if TYPE_CHECKING:
    from ..zoodip_core.model.embedding import Embedding
    from ..zoodip_core.model.token_model import TokenModel


class WordAsEmbedding:
    """Gives what a model has for a word, as if it had been learned."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Gives a word of the model's as an embedding. Merged with a token that was learned, half and half, it leaves "
        "more of a prompt to the model and keeps most of the subject: for a token that draws its subject, whatever "
        "else is asked for."
    )
    RETURN_TYPES = ("ZOODIP_EMBEDDING",)
    RETURN_NAMES = ("embedding",)
    OUTPUT_TOOLTIPS = ("The word, for Merge Embeddings; or for Compare Embeddings, to see what it draws alone.",)
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": {
                "model": ("ZOODIP_MODEL", {"tooltip": "From Load Quantized SD or Model from ComfyUI."}),
                "word": (
                    "STRING",
                    {"default": "dog", "tooltip": "A plain word for the subject's kind, such as the initializer."},
                ),
                "num_vectors": (
                    "INT",
                    {"default": 1, "min": 1, "max": 75, "tooltip": "As many as the token has that it is merged with."},
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, word: str | None) -> bool | str:  # noqa: N802
        if word is not None and not word.strip():
            return "word: give a plain word for the subject's kind, such as dog"
        return True

    def give(self, model: TokenModel, word: str, num_vectors: int) -> tuple[Embedding]:
        from ..zoodip_core.model.merging import of_word

        with on_the_device(model):
            return (of_word(model, word.strip(), num_vectors),)
