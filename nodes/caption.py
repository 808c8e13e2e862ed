"""Captions of pictures, by a model that sees them or from another node, with the token's place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .host import NEEDED, check_packages, host, on_the_device
from .inputs import one
from .pictures import to_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..zoodip_core.captioning.files import CaptionerFiles
    from ..zoodip_core.data.slots import Subject

_AUTO, _CPU = "auto", "cpu"
_OBJECT = "object"


class CaptionImages:
    """A caption for each picture that has none, and the token's place in those that lack it."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Writes a caption for each picture, so that what else is in it stays out of the token. It takes BLIP, BLIP-2, "
        "GIT, Florence-2 or Qwen-VL from your computer. Captions of another node get the token's place here."
    )
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("captions",)
    OUTPUT_IS_LIST = (True,)
    OUTPUT_TOOLTIPS = ("A text for each picture, in their order, for captions of ZO Train Token.",)
    FUNCTION = "caption"
    INPUT_IS_LIST = True
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": _needed(), "optional": _optional()}

    def caption(self, **inputs: Any) -> dict[str, Any]:
        check_packages()
        pictures = to_pictures(inputs.pop("images"), "images")
        there = _texts(inputs.pop("captions", None), len(pictures))
        given = {name: one(value) for name, value in inputs.items()}
        subject = _subject(str(given["class_word"]), str(given.get("template", _OBJECT)))
        lines = _corrected(_placed(there, subject), str(given.get("corrections") or ""))
        missing = [number for number, text in enumerate(lines) if not text]
        if missing:
            seen = [pictures[number] for number in missing]
            found = _written(seen, subject, str(given["caption_with"]), str(given.get("device", _AUTO)))
            for number, text in zip(missing, found, strict=True):
                lines[number] = text
        shown = [f"{number}. {text or '(nothing: the template)'}" for number, text in enumerate(lines, 1)]
        return {"ui": {"text": shown}, "result": (lines,)}


# ---------------------------------------------------------------- inputs


def _needed() -> dict[str, Any]:
    from ..zoodip_core.captioning.files import BLIP_ID

    return {
        "images": ("IMAGE", {"tooltip": "The pictures: a batch, or a list of any sizes."}),
        "caption_with": (
            "STRING",
            {
                "default": BLIP_ID,
                "tooltip": "The model that writes: its folder in ComfyUI's models folder, such as "
                "LLM/Florence-2-base, or its name in Hugging Face's cache. Nothing is downloaded.",
            },
        ),
        "class_word": (
            "STRING",
            {"default": "dog", "tooltip": "What the subject is, like dog: the token takes this word's place."},
        ),
    }


def _optional() -> dict[str, Any]:
    from ..zoodip_core.data.prompts import ADJECTIVE, STYLE

    return {
        "captions": (
            "STRING",
            {
                "forceInput": True,
                "tooltip": "Texts that are there already, one for each picture, as from Load Reference Images or a "
                "captioning node of another pack: kept, with the token's place where they lack it. Empty ones are "
                "written.",
            },
        ),
        "template": (
            [_OBJECT, STYLE, ADJECTIVE],
            {
                "default": _OBJECT,
                "tooltip": "What the token is: the object itself, a style, or an adjective, which leaves the class "
                "word behind it.",
            },
        ),
        "device": (
            [_AUTO, _CPU],
            {"default": _AUTO, "tooltip": "Where the model computes; auto is ComfyUI's own.", "advanced": True},
        ),
        "corrections": (
            "STRING",
            {
                "default": "",
                "multiline": True,
                "tooltip": "Captions in place of those shown on the node: a line for each picture, in their order; an "
                "empty line leaves a picture's as it is.",
            },
        ),
    }


def _subject(word: str, template: str) -> Subject:
    from ..zoodip_core.base.errors import ConfigError
    from ..zoodip_core.data.prompts import ADJECTIVE, STYLE
    from ..zoodip_core.data.slots import Subject

    if not word.strip():
        raise ConfigError("class_word is empty; give what the subject is, like dog")
    return Subject(" ".join(word.split()), keep_word=template == ADJECTIVE, style=template == STYLE)


def _texts(captions: Sequence[Any] | None, pictures: int) -> list[str]:
    from ..zoodip_core.base.errors import CaptionError
    from ..zoodip_core.base.texts import how_many

    texts = list(captions or [""] * pictures)
    if len(texts) != pictures:
        raise CaptionError(
            f"captions: {how_many(len(texts), 'text')} for {how_many(pictures, 'image')}; give one for each, or none"
        )
    return [text if isinstance(text, str) else "" for text in texts]


def _placed(texts: Sequence[str], subject: Subject) -> list[str]:
    """The texts, each line of which is a caption, with the token's place where a line lacks it."""
    from ..zoodip_core.data.prompts import SLOT
    from ..zoodip_core.data.slots import caption_of

    def placed(line: str) -> str:
        named = SLOT in line or re.search(r"<[^<>\s]+>", line)
        return " ".join(line.split()) if named else caption_of(line, subject)

    return ["\n".join(filter(None, map(placed, text.splitlines()))) for text in texts]


def _corrected(texts: Sequence[str], corrections: str) -> list[str]:
    """The texts, with a user's own in the place of some.

    Raises:
        CaptionError: they are more than there are pictures.
    """
    from ..zoodip_core.base.errors import CaptionError
    from ..zoodip_core.base.texts import how_many

    own = [line.strip() for line in corrections.rstrip().splitlines()]
    if len(own) > len(texts):
        raise CaptionError(
            f"corrections: {len(own)} lines for {how_many(len(texts), 'image')}; give a line for each, an empty "
            "one for none"
        )
    own += [""] * (len(texts) - len(own))
    return [re.sub(r"^\d+\. ", "", mine) or text for mine, text in zip(own, texts, strict=True)]


# ---------------------------------------------------------------- work


def _found(name: str) -> CaptionerFiles:
    """The model of a name: a folder in ComfyUI's models folder, or one in Hugging Face's cache.

    Raises:
        ModelError: it cannot be used, or is not there.
        PathError: the name leads out of ComfyUI's models folder.
    """
    from ..zoodip_core.base.errors import ModelError, PathError
    from ..zoodip_core.base.paths import inside
    from ..zoodip_core.captioning.files import MissingCaptionerError, find_captioner

    given = name.strip()
    try:
        folder = inside(host().models_folder(), given, "ComfyUI's models folder") if given else None
        return find_captioner(folder) if folder and folder.is_dir() else find_captioner(given, by_name=True)
    except PathError as error:
        raise PathError(f"caption_with: {error}, or a name in Hugging Face's cache") from None
    except MissingCaptionerError as error:
        raise MissingCaptionerError(f"caption_with: {error} in {host().models_folder()}") from None
    except ModelError as error:
        raise ModelError(f"caption_with: {error}") from None


def _written(pictures: Sequence[Image], subject: Subject, name: str, device: str) -> list[str]:
    check_packages((*NEEDED, "transformers"))
    from ..zoodip_core.captioning.captioner import Captioner
    from ..zoodip_core.captioning.captions import write_captions

    captioner = Captioner(_found(name), host().device() if device == _AUTO else device)
    bar = host().bar()
    with on_the_device(captioner):
        return write_captions(
            captioner,
            pictures,
            [subject] * len(pictures),
            lambda number, _: bar.update(number + 1, len(pictures)),
        )
