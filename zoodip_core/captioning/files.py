"""Where the models that write captions are: a folder of the user's, or the cache of Hugging Face's programs.

Nothing is fetched, no pickle is read, and no code that comes with a model is run. What cannot be used is told before
anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import ModelError
from ..base.hub_cache import cache_folder, cached
from ..model.checkpoints import read_json

PLAIN = ("blip", "blip-2", "git")
"""Kinds that say what they see without being asked."""
FLORENCE = "florence2"
"""The kind that is given a task."""
CHATS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""Kinds that are asked in a chat."""
_SINCE = {FLORENCE: "4.56", "qwen2_vl": "4.45", "qwen2_5_vl": "4.49", "qwen3_vl": "4.57"}
"""The version of transformers that a kind came with, of kinds newer than the oldest version that is asked for."""
_FAMILIES = "BLIP, BLIP-2, GIT, Florence-2 or Qwen-VL"
CONFIG, WEIGHTS, SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")

BLIP_ID = "Salesforce/blip-image-captioning-base"
FLORENCE_ID = "florence-community/Florence-2-base"
# The main revision of BLIP has its weights as a pickle alone.
_FETCH = (
    "Nothing is downloaded here; fetch one with\n"
    f"  hf download {BLIP_ID} --revision refs/pr/38 config.json {WEIGHTS} preprocessor_config.json tokenizer.json "
    "tokenizer_config.json special_tokens_map.json vocab.txt\n"
    "(990 MB, a short sentence), or with\n"
    f"  hf download {FLORENCE_ID}\n"
    f"(0.27 billion weights, a longer text; needs transformers {_SINCE[FLORENCE]}), and give its name or its folder"
)


class MissingCaptionerError(ModelError):
    """A model that writes captions is not on this computer."""


@dataclass(frozen=True)
class CaptionerFiles:
    """A model's folder, looked through but not loaded.

    Args:
        name: for people, as it was given.
        folder: with its config, processor, tokenizer and weights.
        kind: its ``model_type``: of :data:`PLAIN`, :data:`FLORENCE`, or of :data:`CHATS`.
        made_for: the type that its weights have, such as ``bfloat16``; empty if that is not said.
    """

    name: str
    folder: Path
    kind: str
    made_for: str


def find_captioner(where: str | Path, *, by_name: bool = False) -> CaptionerFiles:
    """The files of a model that writes captions. The network is not asked.

    Args:
        where: a folder, or a name in the cache of Hugging Face's programs.
        by_name: whether it can only be a name, as where others than this computer's user may have given it.

    Raises:
        MissingCaptionerError: it is not there, or not all of it; the message says what is missing, where it was looked
            for, and the command that fetches one.
        ModelError: it is another kind of model, one that this transformers does not know, or has no safetensors.
    """
    given = str(where).strip()
    is_folder = bool(given) and not by_name and Path(given).is_dir()
    folders = [Path(given)] if is_folder else cached(given)
    if not folders:
        raise MissingCaptionerError(f"{_not_there(given)}. {_FETCH}")
    folder = min(folders, key=lambda each: len(_lacking(each)))
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        kind = _kind(given, config)
        if lacking := _lacking(folder):
            raise MissingCaptionerError(f"{folder}: {_incomplete(folder, lacking)}. {_FETCH}")
        return CaptionerFiles(given, folder, kind, str(config.get("torch_dtype") or config.get("dtype") or ""))
    raise MissingCaptionerError(f"{folder} is not the folder of a model: it has no {CONFIG}. {_FETCH}")


def _not_there(given: str) -> str:
    if not given:
        return "no model is named that could write captions"
    place = cache_folder(given)
    if place is not None:
        return f"{given}, to write captions, is not in {place.parent} (Hugging Face's cache), and is not a folder"
    return f"{given[:200]}, to write captions, is not a folder, nor a name like {BLIP_ID}"


def _lacking(folder: Path) -> list[str]:
    """What a folder lacks of a model."""
    wanted = {CONFIG: (CONFIG,), _PROCESSORS[0]: _PROCESSORS, _TOKENIZERS[0]: _TOKENIZERS}
    lacking = [name for name, names in wanted.items() if not any((folder / each).is_file() for each in names)]
    return lacking + _weights_lacking(folder)


def _weights_lacking(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return []
    if not (folder / SHARDS).is_file():
        return [WEIGHTS]
    listed = read_json(folder / SHARDS).get("weight_map")
    names = {str(name)[:100] for name in listed.values()} if isinstance(listed, dict) else set()
    return sorted(
        name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", name) or not (folder / name).is_file()
    )


def _incomplete(folder: Path, lacking: Sequence[str]) -> str:
    pickles = sorted(path.name for path in folder.glob("*.bin")) if WEIGHTS in lacking else []
    if pickles:
        return (
            f"its weights are in {pickles[0]} alone, a pickle, which is not read here: weights have to be "
            f"{WEIGHTS}, which another revision of the model may have"
        )
    return f"{', '.join(lacking[:3])} not found there"


def _kind(given: str, config: dict[str, Any]) -> str:
    """A model's kind.

    Raises:
        ModelError: none that can be used.
    """
    kind = str(config.get("model_type"))[:40]
    if kind not in (*PLAIN, FLORENCE, *CHATS):
        raise ModelError(
            f"{given}: it is a model of type {kind!r}, which does not write captions; give the folder or the name of "
            f"one like {_FAMILIES}"
        )
    if "auto_map" in config and kind == FLORENCE:
        raise ModelError(
            f"{given}: this form of Florence-2 needs code that comes with it, which is not run here; fetch the form "
            f"without it with\n  hf download {FLORENCE_ID}\n(needs transformers {_SINCE[FLORENCE]} or newer)"
        )
    import transformers

    if class_name(kind) is None:
        needed = f"{_SINCE[kind]} or newer" if kind in _SINCE else "a newer one"
        raise ModelError(
            f"{given}: transformers {transformers.__version__}, which is installed, does not know models of type "
            f"{kind!r}; version {needed} does. Update transformers, or give another model: {_FAMILIES}"
        )
    return kind


def class_name(kind: str) -> str | None:
    """The class of transformers' that writes captions with a kind of model; None where this version has none."""
    from transformers.models.auto import modeling_auto

    # Version 4 has them in two lists, of which version 5 has kept the first.
    lists = ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_VISION_2_SEQ_MAPPING_NAMES")
    names = (getattr(modeling_auto, each, {}).get(kind) for each in lists)
    found = next(filter(None, names), None)
    return found[0] if isinstance(found, tuple) else found
