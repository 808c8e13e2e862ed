"""Scoring a learned token: the paper's four figures, beside those of the word it began as."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .generate import denoising_inputs, seed_input, until_input
from .host import host, on_the_device
from .inputs import one
from .loras import check_draws_with
from .pictures import thumbnails, to_image, to_pictures
from .tokens import each_of

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from ..zoodip_core.evaluate.evaluation import Evaluation, EvaluationPlan, Judges
    from ..zoodip_core.model.embedding import Embedding
    from ..zoodip_core.model.lora import Lora
    from ..zoodip_core.model.token_model import TokenModel

FOLDER = "zoodip/evaluations"
"""In ComfyUI's output folder: a folder for each evaluation."""
_AUTO = "auto"


class EvaluateEmbedding:
    """CLIP-T, CLIP-I, DINO and DINO_inter of images drawn with a token, and with its class word."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Draws the same prompts and seeds with the word the token began as and with the token, and scores both with "
        "CLIP and DINOv2. Cancel keeps what is drawn; queue again to resume."
    )
    RETURN_TYPES = ("IMAGE", "STRING", "FLOAT", "FLOAT", "FLOAT", "FLOAT")
    RETURN_NAMES = ("sheet", "table", "CLIP_T", "CLIP_I", "DINO", "DINO_inter")
    OUTPUT_TOOLTIPS = (
        "Reference images, before and after, for a few of the prompts.",
        "All figures, before and after.",
        "Of the token: do images show what their prompts say? Higher is better. NaN without CLIP.",
        "Of the token: is it the subject, by CLIP? Higher is better. NaN without CLIP.",
        "Of the token: is it the subject, by DINOv2? Higher is better. NaN without DINOv2.",
        "Of the token: how alike are images of one prompt? Lower is more diverse. NaN without DINOv2 or with one seed.",
    )
    FUNCTION = "evaluate"
    INPUT_IS_LIST = True
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {**_what(), **_how()}, "optional": _optional()}

    @classmethod
    def VALIDATE_INPUTS(cls, clip: Any, dino: Any) -> bool | str:  # noqa: N802
        # The token may be trained for hours before this node has its turn.
        try:
            if isinstance(one(clip), str) and isinstance(one(dino), str):  # else they come from other nodes
                _judges(one(clip), one(dino))
        except (ValueError, OSError) as error:
            return str(error)
        return True

    def evaluate(self, **inputs: Any) -> dict[str, Any]:
        model: TokenModel = one(inputs.pop("model"))
        embedding, *others = each_of(one(inputs.pop("embedding")))
        further = each_of(one(inputs.pop("embedding_2", None)))
        pictures = to_pictures(inputs.pop("images"), "images")
        given = {name: one(value) for name, value in inputs.items()}
        judges, lora = _judges(given["clip"], given["dino"]), given.get("lora")
        plan = _plan(model, embedding, given)
        beside = each_of((*_named(others, plan), *further))
        found, folder = _evaluate(model, embedding, pictures, plan, judges, lora, beside)
        return _shown(found, pictures, folder)


# ---------------------------------------------------------------- inputs


def _what() -> dict[str, Any]:
    from ..zoodip_core.evaluate.prompt_sets import PROMPT_SETS

    return {
        "model": (
            "ZOODIP_MODEL",
            {"tooltip": "From Load Quantized SD or Model from ComfyUI, of the family that the token was learned on."},
        ),
        "embedding": (
            "ZOODIP_EMBEDDING",
            {
                "tooltip": "The token, from ZO Train Token or Load Embedding. Of several that were learned together, "
                "the first one; prompts may name the others."
            },
        ),
        "images": ("IMAGE", {"tooltip": "The subject's reference images: a batch, or a list of any sizes."}),
        "prompt_set": (
            [_AUTO, *PROMPT_SETS],
            {
                "default": _AUTO,
                "tooltip": "The DreamBooth dataset's 25 prompts for animals (living) or things (object), a single one "
                "(photo), or the embedded model's (tiny). auto: object, or tiny on the embedded model.",
            },
        ),
        "class_word": (
            "STRING",
            {
                "default": "",
                "tooltip": "What kind of thing the subject is, like dog; empty: the word that the token was learned "
                "from.",
            },
        ),
    }


def _how() -> dict[str, Any]:
    from ..zoodip_core.evaluate.encoders import CLIP_ID, DINO_ID
    from ..zoodip_core.evaluate.prompt_sets import MAX_SEEDS

    place = "its folder in ComfyUI's models folder; as it stands, the paper's in Hugging Face's cache."
    return {
        "seeds": ("INT", {"default": 4, "min": 1, "max": MAX_SEEDS, "tooltip": "Images of each prompt."}),
        "seed": seed_input("Of the first image of each prompt; the next ones count on."),
        **denoising_inputs(),
        "clip": ("STRING", {"default": CLIP_ID, "tooltip": f"CLIP, for CLIP-T and CLIP-I: {place}"}),
        "dino": ("STRING", {"default": DINO_ID, "tooltip": f"DINOv2, for DINO and DINO_inter: {place}"}),
    }


def _optional() -> dict[str, Any]:
    return {
        "prompts": (
            "STRING",
            {
                "default": "",
                "multiline": True,
                "tooltip": "Prompts of your own in place of the set, one a line, with {} for the subject.",
            },
        ),
        "lora": (
            "ZOODIP_LORA",
            {
                "tooltip": "Weights that were learned with the token, for the images with it, from ZO Train Token or "
                "Load Learned LoRA. For the model of Load Quantized SD."
            },
        ),
        "embedding_2": (
            "ZOODIP_EMBEDDING",
            {"tooltip": "Another token, which your prompts name beside {}. Before, the word it began as stands there."},
        ),
        "until": until_input(),
    }


def _named(others: Sequence[Embedding], plan: EvaluationPlan) -> list[Embedding]:
    """Those of the others that a prompt names: what was learned together comes together."""
    from ..zoodip_core.data.naming import naming

    tokens = [each.token for each in others]
    named = {number for prompt in plan.prompts for number in naming(prompt, tokens).tokens}
    return [each for number, each in enumerate(others) if number in named]


def _plan(model: TokenModel, embedding: Embedding, given: dict[str, Any]) -> EvaluationPlan:
    from ..zoodip_core.base.errors import ConfigError
    from ..zoodip_core.evaluate.evaluation import EvaluationPlan, class_word_of
    from ..zoodip_core.evaluate.prompt_sets import PROMPT_SETS, checked_prompts, default_set

    own = str(given.get("prompts") or "")
    name = default_set(model.info.family) if given["prompt_set"] == _AUTO else given["prompt_set"]
    if name not in PROMPT_SETS:
        raise ConfigError(f"prompt_set: there is no {str(name)[:60]!r}; choose one of {', '.join(PROMPT_SETS)}")
    return EvaluationPlan(
        checked_prompts(own.splitlines(), "prompts") if own.strip() else PROMPT_SETS[name],
        class_word_of(embedding, given["class_word"]),
        given["seeds"],
        given["seed"],
        given["steps"],
        given["guidance"] or None,
        given.get("until", 1.0),
    )


def _judges(clip: str, dino: str) -> Judges:
    """The models that score, by what stands in the inputs.

    Raises:
        MissingModelError: none is there, or one that was named.
        ModelError: a folder holds another kind of model.
        PathError: a name leads out of ComfyUI's models folder.
    """
    from ..zoodip_core.evaluate.encoders import CLIP_ID, DINO_ID
    from ..zoodip_core.evaluate.evaluation import find_judges

    return find_judges(_place(clip, CLIP_ID, "clip"), _place(dino, DINO_ID, "dino"))


def _place(name: str, usual: str, called: str) -> Path | None:
    """A folder in ComfyUI's models folder, None for the usual model, which is looked up in Hugging Face's cache."""
    from ..zoodip_core.base.errors import PathError
    from ..zoodip_core.base.paths import inside
    from ..zoodip_core.evaluate.encoders import MissingModelError

    if name.strip() in ("", usual):
        return None
    try:
        folder = inside(host().models_folder(), name.strip(), "ComfyUI's models folder")
    except PathError as error:
        raise PathError(f"{called}: {error}, or {usual}") from None
    if not folder.is_dir():
        raise MissingModelError(f"{called}: ComfyUI's models folder has no folder {name.strip()[:80]!r}; give {usual}")
    return folder


# ---------------------------------------------------------------- work


def _evaluate(
    model: TokenModel,
    embedding: Embedding,
    pictures: list[Image],
    plan: EvaluationPlan,
    judges: Judges,
    lora: Lora | None = None,
    beside: Sequence[Embedding] = (),
) -> tuple[Evaluation, Path]:
    """The scores, and the folder that keeps the images; the models leave the device afterwards."""
    from ..zoodip_core.evaluate.evaluation import evaluate, folder_for, key_of

    check_draws_with(model, lora)
    folder = folder_for(host().output_folder() / FOLDER, embedding, key_of(model, embedding, plan, lora, beside))
    bar = host().bar()
    with on_the_device(model):
        told = lambda _stage, done, total: bar.update(done, total)  # noqa: E731
        return evaluate(model, embedding, pictures, plan, judges, folder, told, lora, beside), folder


def _shown(found: Evaluation, pictures: list[Image], folder: Path) -> dict[str, Any]:
    from PIL import Image

    from ..zoodip_core.evaluate.report import as_text, write_report

    with Image.open(write_report(found, pictures, folder), formats=("PNG",)) as file:
        sheet = file.convert("RGB")
    table = "\n".join((as_text(found), *found.left_out))
    after = (found.after.clip_t, found.after.clip_i, found.after.dino, found.after.dino_inter)
    figures = tuple(math.nan if value is None else value for value in after)
    return {"ui": {**thumbnails([sheet]), "text": [table]}, "result": (to_image([sheet]), table, *figures)}
