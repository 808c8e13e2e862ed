"""Several tokens side by side, with the same prompt and seeds: a sheet to choose by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .generate import drawing_inputs, seed_input
from .host import host, on_the_device
from .pictures import thumbnails, to_image
from .tokens import each_of

if TYPE_CHECKING:
    from ..zoodip_core.model.token_model import TokenModel
    from .tokens import Tokens

_MOST = 6
"""Inputs for tokens."""


class CompareEmbeddings:
    """One picture of several tokens: a row for each, in the columns the same seeds."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Draws several tokens with the same prompt and seeds, a row for each, as one picture to choose by: the same "
        "subject learned at several values of alignment, say."
    )
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("sheet",)
    OUTPUT_TOOLTIPS = ("A row for each token, labelled with its name and alignment; a column for each seed.",)
    FUNCTION = "compare"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        from ..zoodip_core.data.sheets import MOST_COLUMNS

        token = "ZOODIP_EMBEDDING"
        return {
            "required": {
                "model": (
                    "ZOODIP_MODEL",
                    {"tooltip": "From Load Quantized SD or Model from ComfyUI, of the tokens' family."},
                ),
                "embedding_1": (token, {"tooltip": "The first row's token, from ZO Train Token or Load Embedding."}),
                "prompt": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "What to draw, with {} for each row's token; empty: the target prompt that the "
                        "tokens were trained for, else a photo of a {}.",
                    },
                ),
                "seed": seed_input("Of the first column; the next ones count on."),
                "count": (
                    "INT",
                    {"default": 4, "min": 1, "max": MOST_COLUMNS, "tooltip": "Images of each token."},
                ),
                **drawing_inputs(),
            },
            "optional": {
                **{f"embedding_{row}": (token, {"tooltip": "Another row's token."}) for row in range(2, _MOST + 1)},
                "word": (
                    "STRING",
                    {"default": "", "tooltip": "A first row with this plain word, like dog; empty: none."},
                ),
            },
        }

    def compare(
        self,
        model: TokenModel,
        embedding_1: Tokens,
        prompt: str,
        seed: int,
        count: int,
        steps: int,
        guidance: float,
        resolution: int,
        word: str = "",
        **more: Tokens | None,
    ) -> dict[str, Any]:
        from ..zoodip_core.train.comparison import Compared, Comparison, comparison_sheet

        others = [more.get(f"embedding_{row}") for row in range(2, _MOST + 1)]
        compared = [Compared(each, each.alias) for some in (embedding_1, *others) for each in each_of(some)]
        seeds = range(seed, seed + count)
        asked = Comparison(compared, seeds, prompt, word, steps, guidance or None, resolution)
        with on_the_device(model):
            sheet = comparison_sheet(model, asked, host().bar().update)
        return {"ui": thumbnails([sheet]), "result": (to_image([sheet]),)}
