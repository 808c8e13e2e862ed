"""Drawing with the quantised model itself: the whole story without another checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .host import host, on_the_device
from .loras import drawn_with
from .pictures import thumbnails, to_image
from .tokens import each_of

if TYPE_CHECKING:
    from ..zoodip_core.model.embedding import Embedding
    from ..zoodip_core.model.lora import Lora
    from ..zoodip_core.model.token_model import TokenModel
    from .tokens import Tokens

_SEED_LIMIT = 2**53 - 1
"""The largest whole number that JavaScript keeps exactly."""


def seed_input(tooltip: str) -> tuple[str, dict[str, Any]]:
    """A seed that stays as it is: ComfyUI would draw another after each run, and so train again."""
    return "INT", {"default": 0, "min": 0, "max": _SEED_LIMIT, "control_after_generate": False, "tooltip": tooltip}


def until_input() -> tuple[str, dict[str, Any]]:
    """The share of the steps in which a token stands in its prompt."""
    return "FLOAT", {
        "default": 1.0,
        "min": 0.05,
        "max": 1.0,
        "step": 0.05,
        "tooltip": "The share of the steps in which the token stands in the prompt; from there on the word that it "
        "began as, which leaves more of the prompt to the model. Try 0.7 where a token draws over a style.",
    }


def denoising_inputs() -> dict[str, Any]:
    """How pictures of any size are drawn."""
    from ..zoodip_core.model.kinds import MOST_GUIDANCE, MOST_STEPS

    return {
        "steps": ("INT", {"default": 25, "min": 1, "max": MOST_STEPS, "tooltip": "Denoising steps."}),
        "guidance": (
            "FLOAT",
            {
                "default": 0.0,
                "min": 0.0,
                "max": float(MOST_GUIDANCE),
                "step": 0.5,
                "tooltip": "Classifier-free guidance; 0 is its kind's own: 7.5 for Stable Diffusion, "
                "1 for Flux, 4.5 for others, 5 for the embedded model.",
            },
        ),
    }


def drawing_inputs() -> dict[str, Any]:
    """How pictures are drawn: steps, guidance and size."""
    return {
        **denoising_inputs(),
        "resolution": (
            "INT",
            {"default": 0, "min": 0, "max": 4096, "step": 8, "tooltip": "Pixels a side; 0 is the model's own."},
        ),
    }


class GeneratePreview:
    """Images from the quantised model, with or without a learned token, and weights that were learned with it."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = "Draws with the quantised model itself, with or without a learned token. One image for each prompt."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_TOOLTIPS = ("An image for each prompt.",)
    FUNCTION = "draw"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": {
                "model": ("ZOODIP_MODEL", {"tooltip": "From Load Quantized SD or Model from ComfyUI."}),
                "prompts": (
                    "STRING",
                    {
                        "default": "a photo of a {}",
                        "multiline": True,
                        "tooltip": "A prompt a line. {} or the token's own name stands for the learned token.",
                    },
                ),
                "seed": seed_input("Of the first image; the next ones count on."),
                **drawing_inputs(),
            },
            "optional": {
                "embedding": ("ZOODIP_EMBEDDING", {"tooltip": "A learned token, or several, for the prompts to use."}),
                "negative_prompt": (
                    "STRING",
                    {"default": "", "multiline": True, "tooltip": "What to stay away from."},
                ),
                "lora": (
                    "ZOODIP_LORA",
                    {
                        "tooltip": "Weights that were learned with the token, from ZO Train Token or Load Learned "
                        "LoRA. For the model of Load Quantized SD."
                    },
                ),
                "embedding_2": (
                    "ZOODIP_EMBEDDING",
                    {"tooltip": "Another token, of another run or file, for the same prompts, which name both."},
                ),
                "until": until_input(),
            },
        }

    def draw(
        self,
        model: TokenModel,
        prompts: str,
        seed: int,
        steps: int,
        guidance: float,
        resolution: int,
        embedding: Tokens | None = None,
        negative_prompt: str = "",
        lora: Lora | None = None,
        embedding_2: Tokens | None = None,
        until: float = 1.0,
    ) -> dict[str, Any]:
        texts = [line.strip() for line in prompts.splitlines() if line.strip()]
        images = draw(
            model,
            texts,
            [seed + i for i in range(len(texts))],
            each_of(embedding, embedding_2),
            lora,
            negative_prompt=negative_prompt,
            num_inference_steps=steps,
            guidance_scale=guidance or None,
            resolution=resolution,
            until=until,
        )
        notes = [line.removeprefix("note: ") for line in lora.notes_on(model)] if lora else []  # type: ignore[arg-type]
        return {"ui": {**thumbnails(images), "text": notes}, "result": (to_image(images),)}


def draw(
    model: TokenModel,
    texts: list[str],
    seeds: list[int],
    embeddings: Sequence[Embedding],
    lora: Lora | None,
    **settings: Any,
) -> list[Any]:
    """Images of some texts, with the node's bar; the model leaves the device afterwards.

    Raises:
        ConfigError: no prompt, or a token's place without a token.
        LoraFileError: the learned weights are not for this model.
    """
    from ..zoodip_core.base.errors import ConfigError
    from ..zoodip_core.data.prompts import SLOT

    if not texts:
        raise ConfigError("prompts: write at least one, a line each")
    if not embeddings and any(SLOT in text for text in texts):
        raise ConfigError("prompts: {} stands for a learned token; connect embedding, or write a word in its place")
    bar = host().bar()
    with on_the_device(model), drawn_with(model, lora):
        return model.generate(texts, seeds, embedding=embeddings or None, on_step=bar.update, **settings)
