"""Several tokens side by side, with the same prompt and seeds: a sheet to choose by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .generate import drawing_inputs, seed_input
from .host import host, on_the_device
from .loras import check_draws_with
from .pictures import thumbnails, to_image
from .tokens import each_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..zoodip_core.model.token_model import TokenModel
    from ..zoodip_core.train.comparison import Compared
    from .tokens import Tokens

_MOST = 6
"""Inputs for tokens, and for weights that were learned with them."""


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
                **{f"lora_{row}": _lora_input(row) for row in range(1, _MOST + 1)},
                "until": (
                    "STRING",
                    {
                        "default": "1",
                        "tooltip": "The share of the steps in which a token stands in the prompt; in the rest the word "
                        "that it began as. Several, with commas between: a row for each, such as 1, 0.8, 0.6.",
                    },
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
        until: str = "1",
        **more: Any,
    ) -> dict[str, Any]:
        from ..zoodip_core.train.comparison import Comparison, comparison_sheet, shares_in, until_each

        compared = until_each(_compared(model, {"embedding_1": embedding_1, **more}), shares_in(until))
        seeds = range(seed, seed + count)
        asked = Comparison(compared, seeds, prompt, word, steps, guidance or None, resolution)
        with on_the_device(model):
            sheet = comparison_sheet(model, asked, host().bar().update)
        notes = [line for each in compared if each.lora for line in each.lora.notes_on(model)]  # type: ignore[arg-type]
        told = [line.removeprefix("note: ") for line in dict.fromkeys(notes)]
        return {"ui": {**thumbnails([sheet]), "text": told}, "result": (to_image([sheet]),)}


def _lora_input(row: int) -> tuple[str, dict[str, Any]]:
    tooltip = (
        f"Weights that were learned with embedding_{row}, to draw it with, from ZO Train Token or Load Learned LoRA. "
        "For the model of Load Quantized SD."
    )
    return "ZOODIP_LORA", {"tooltip": tooltip}


def _compared(model: TokenModel, inputs: Mapping[str, Any]) -> list[Compared]:
    """The rows, by the inputs' names.

    Raises:
        ConfigError: there are weights without their token.
        LoraFileError: the model has a way of its own for weights.
    """
    from ..zoodip_core.base.errors import ConfigError
    from ..zoodip_core.train.comparison import Compared

    rows: list[Compared] = []
    for row in range(1, _MOST + 1):
        tokens, lora = each_of(inputs.get(f"embedding_{row}")), inputs.get(f"lora_{row}")
        check_draws_with(model, lora, f"lora_{row}")
        if lora and not tokens:
            raise ConfigError(f"lora_{row}: connect the token that these weights were learned with to embedding_{row}")
        rows += [Compared(each, each.alias, lora) for each in tokens]
    return rows
