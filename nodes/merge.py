"""One token made of two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .tokens import one_of

if TYPE_CHECKING:
    from ..zoodip_core.model.embedding import Embedding
    from .tokens import Tokens

MEAN, CONCATENATION = "weighted mean", "one after the other"


class MergeEmbeddings:
    """Makes one token of two: between them, or with the vectors of both."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Makes one token of two of the same model family: their weighted mean, or the vectors of both one after the "
        "other. For more than two, merge again."
    )
    RETURN_TYPES = ("ZOODIP_EMBEDDING", "STRING")
    RETURN_NAMES = ("embedding", "report")
    OUTPUT_TOOLTIPS = ("The new token, for Apply, Save and Convert Embedding.", "What it is made of.")
    FUNCTION = "merge"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        def weight(of: str) -> tuple[str, dict[str, Any]]:
            tooltip = f"Of {of} in the weighted mean; only the ratio of the two counts."
            return "FLOAT", {"default": 0.5, "min": 0.0, "max": 100.0, "step": 0.05, "tooltip": tooltip}

        return {
            "required": {
                "embedding_1": ("ZOODIP_EMBEDDING", {"tooltip": "From Load Embedding or ZO Train Token."}),
                "embedding_2": ("ZOODIP_EMBEDDING", {"tooltip": "Of the same model family."}),
                "method": (
                    [MEAN, CONCATENATION],
                    {
                        "tooltip": f"{MEAN}: something between the two, which need the same number of vectors. "
                        f"{CONCATENATION}: as if both names stood in the prompt, which then has as many places less.",
                    },
                ),
                "weight_1": weight("embedding_1"),
                "weight_2": weight("embedding_2"),
                "token": ("STRING", {"default": "<merged>", "tooltip": "Name of the new token."}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, token: str | None) -> bool | str:  # noqa: N802
        from ..zoodip_core.base.names import check_name

        try:
            if token is not None:
                check_name(token.strip())
        except ValueError as error:
            return f"token: {str(error).removeprefix('token ')}"
        return True

    def merge(
        self,
        embedding_1: Tokens,
        embedding_2: Tokens,
        method: str,
        weight_1: float,
        weight_2: float,
        token: str,
    ) -> tuple[Embedding, str]:
        from ..zoodip_core.base.names import check_name
        from ..zoodip_core.model.embedding import describe
        from ..zoodip_core.model.merging import concatenation, notes_on, weighted_mean

        check_name(token.strip())
        both = [one_of(embedding_1, "embedding_1"), one_of(embedding_2, "embedding_2")]
        if method == CONCATENATION:
            made = concatenation(both, token.strip())
        else:
            made = weighted_mean(both, token.strip(), [weight_1, weight_2])
        lines = [f"{label}: {text}" for label, text in describe(made)]
        return made, "\n".join([*lines, *(f"note: {note}" for note in notes_on(both))])
