"""The node that trains a token."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .host import check_packages, host, on_the_device
from .inputs import input_of, inputs_of, one, settings_in
from .live import Live
from .loras import drawn_with
from .models import COPIES
from .pictures import thumbnails, to_image, to_masks, to_pictures, write_references
from .tokens import together

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..zoodip_core.model.token_model import TokenModel
    from ..zoodip_core.train.config import TrainConfig
    from ..zoodip_core.train.loop import TrainResult
    from ..zoodip_core.train.ranks import Ranks

FOLDER = "zoodip"
"""In ComfyUI's output folder: a folder for each run."""
ONE, ALL = "one", "all"
"""Choices of cards."""


class ZOTrainToken:
    """Learns a token from images with forward passes only (paper, algorithm 1)."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Learns a new word from a few images, with forward passes only. Cancel saves the state; queue again to resume. "
        "Everything is kept in output/zoodip."
    )
    RETURN_TYPES = ("ZOODIP_EMBEDDING", "IMAGE", "IMAGE", "ZOODIP_LORA", "IMAGE")
    RETURN_NAMES = ("embedding", "previews", "loss_curve", "lora", "grid")
    OUTPUT_TOOLTIPS = (
        "The learned token, for every node here with an input embedding; where several were learned "
        "together, all of them.",
        "Images of the preview prompt with the finished token: four, or one of each listed prompt.",
        "The loss of every step, raw and smoothed.",
        "Weights that were learned with it, for Apply LoRA, Save LoRA and the nodes that draw; none without lora_rank.",
        "Where preview_prompt lists several, what each drew over time, one column each; else the previews in one row.",
    )
    FUNCTION = "train"
    INPUT_IS_LIST = True
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {
            "required": _needed(),
            "optional": _optional(),
            "hidden": {"unique_id": "UNIQUE_ID", "extra": "EXTRA_PNGINFO"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, token: Any) -> bool | str:  # noqa: N802
        # One input alone: ComfyUI would show the same message at each of several.
        from ..zoodip_core.base.errors import TokenError
        from ..zoodip_core.base.names import check_names

        name = one(token)
        try:
            if name is not None:  # None: it comes from another node, and is checked when that has run
                check_names(name)
        except TokenError as error:
            return str(error)
        return True

    def train(self, **inputs: Any) -> dict[str, Any]:
        check_packages()
        from ..zoodip_core.base.stopping import Stopped
        from ..zoodip_core.base.texts import how_many
        from ..zoodip_core.train.run_folder import LOSSES

        model: TokenModel = one(inputs.pop("model"))
        pictures = to_pictures(inputs.pop("images"), "images")
        captions = _captions(inputs.pop("captions", None), one(inputs["token"]), len(pictures))
        masks = to_masks(inputs.pop("masks", None), pictures)
        _check_prompt(one(inputs["preview_prompt"]), one(inputs["token"]))
        node, workflow = str(one(inputs.pop("unique_id", "0"))), _workflow(one(inputs.pop("extra", None)))
        resume = bool(one(inputs.pop("resume", True)))
        cards = str(one(inputs.pop("cards", ONE)))
        settings = _settings(model, {name: one(value) for name, value in inputs.items()})
        config = _checked(settings)
        _check_masks(config, masks)
        live = Live(host(), node, workflow)  # not before: nothing would tell the page that it was refused
        with on_the_device(model), live:
            key = _key(config, model, pictures, captions, masks)
            folder = _folder(host().output_folder() / FOLDER, config, key, resume)
            trained = _train(settings, model, pictures, captions, masks, folder, live, cards)
            if not trained.finished:
                again = "queue again" if resume else "turn resume on and queue again"
                raise Stopped(f"stopped at step {trained.step}; {again} to resume")
            previews = _previews(config, model, trained, live)
        taken = how_many(trained.step, "step")
        chart = live.end("finished", f"{config.token} learned in {taken}, kept in {FOLDER}/{folder.name}")
        curve = to_image([_loss_curve(folder / "run" / LOSSES)])
        grid = to_image([_grid(trained, previews)])
        return {
            "ui": {**thumbnails(previews), "zoodip": [chart]},
            "result": (together(trained.embeddings), to_image(previews), curve, trained.lora, grid),
        }


# ---------------------------------------------------------------- inputs

_IN_SIGHT = ("token", "initializer", "steps", "seed", "sample_prompt", "sample_every")
"""Beside model, images and preset: what most people set. The page shows the others when it is asked to."""
_NOT_ASKED = ("images", "captions", "background", "transparency", "device", "clip", "vae", "cache")
"""They follow from the node's other inputs and from the model."""
_LATEST = (
    *("radius", "eps", "class_word", "lora_rank", "lora_share", "lora_mu", "lora_lr", "lora_with_token"),
    *("target_prompt", "alignment", "alignment_alpha", "alignment_beta", "random_crops"),
    *("preview_negative_prompt", "preview_guidance", "preview_steps", "mask_background", "lora_weight_decay"),
)
"""Inputs that came later are the last ones: saved workflows know an input's value by its place."""


def _needed() -> dict[str, Any]:
    from ..zoodip_core.train.presets import PRESET
    from ..zoodip_core.train.settings import RUN, SEARCH, SUBJECT

    settings = inputs_of(SUBJECT, SEARCH, RUN, without=_NOT_ASKED, in_sight=_IN_SIGHT)
    settings["token"][1]["default"], settings["initializer"][1]["default"] = "<my-subject>", "dog"
    in_sight = {name: each for name, each in settings.items() if not each[1].get("advanced")}
    preset = input_of(PRESET, advanced=False)
    preset[1]["tooltip"] += " For paper, wire its two parts as well: what is unconnected is left out."
    return {
        "model": ("ZOODIP_MODEL", {"tooltip": "From Load Quantized SD or Model from ComfyUI."}),
        "images": ("IMAGE", {"tooltip": "Three to ten pictures of the subject: a batch, or a list of any sizes."}),
        **{name: in_sight.pop(name) for name in ("token", "initializer")},
        "preset": preset,
        **in_sight,
    }


def _optional() -> dict[str, Any]:
    from ..zoodip_core.train.settings import ALIGNMENT, IMAGES, LORA, RUN, SEARCH, SUBJECT

    rest = inputs_of(SUBJECT, IMAGES, ALIGNMENT, SEARCH, LORA, RUN, without=(*_NOT_ASKED, *_IN_SIGHT))
    latest = {name: rest.pop(name) for name in _LATEST}
    return {
        "captions": (
            "STRING",
            {
                "forceInput": True,
                "tooltip": "A text for each picture, in their order, with {} for the token. Empty: the template. "
                "Several lines: one of them is drawn at each step. Of several tokens, each text names those it shows.",
            },
        ),
        "subspace_gradient": (
            "SUBSPACE_GRADIENT",
            {"tooltip": "From Subspace Gradient. Unconnected: gradients are used as estimated."},
        ),
        "timestep_sampler": (
            "TIMESTEP_SAMPLER",
            {"tooltip": "From PUTS Sampler. Unconnected: all timesteps alike, of which a token learns less."},
        ),
        "resume": (
            "BOOLEAN",
            {
                "default": True,
                "tooltip": "Resume a stopped run of the same inputs, or take more steps with a finished one where "
                "learning rate and mu stay and there are no checks and no weights, as with the preset paper. Off: "
                "start anew.",
                "advanced": True,
            },
        ),
        **rest,
        "cards": (
            [ONE, ALL],
            {
                "default": ONE,
                "tooltip": "all: a step's candidates are shared out to all graphics cards of this computer. Each of "
                "the others has a process of its own, with the model.",
                "advanced": True,
            },
        ),
        **latest,
        "masks": (
            "MASK",
            {
                "tooltip": "A mask for each picture, in their order, white at the subject, as painted in ComfyUI's "
                "mask editor: what lies outside is hardly learned. Of a cut-out with a transparent background, "
                "LoadImage's needs an InvertMask. Empty ones are none.",
            },
        ),
    }


def _workflow(extra: dict[str, Any] | None) -> str | None:
    """The id of the workflow that was queued, if a page queued it."""
    return ((extra or {}).get("workflow") or {}).get("id")


def _check_prompt(prompt: str, token: str) -> None:
    from ..zoodip_core.base.errors import ConfigError
    from ..zoodip_core.base.names import check_names
    from ..zoodip_core.data.naming import naming

    if not naming(prompt, check_names(token), own=0).tokens:
        raise ConfigError(f"preview_prompt: {prompt!r} has no place for the token; write {{}} where it should stand")


def _captions(captions: Sequence[str] | None, token: str, pictures: int) -> list[str]:
    from ..zoodip_core.base.errors import CaptionError
    from ..zoodip_core.base.names import check_names
    from ..zoodip_core.base.texts import how_many
    from ..zoodip_core.data.naming import naming
    from ..zoodip_core.data.prompts import SLOT

    tokens = check_names(token)
    names = " or ".join(tokens)
    texts = list(captions or [""])
    if len(texts) == 1:
        texts *= pictures
    if len(texts) != pictures:
        raise CaptionError(
            f"captions: {len(texts)} texts for {how_many(pictures, 'image')}; give one for each, or a single one"
        )
    for i, text in enumerate(texts, 1):
        lines = list(filter(str.strip, text.splitlines()))
        if len(tokens) > 1 and (not lines or SLOT in text):
            why = f"holds {SLOT}, which may be any of {len(tokens)} tokens" if lines else "names no token"
            raise CaptionError(f"captions: text {i}, {text!r}, {why}; write {names} where the subject stands")
        for line in lines:
            if not naming(line, tokens, own=0).tokens:
                rest = (
                    ", connect the texts through Caption Images, which puts it in the class word's place, or leave "
                    "captions unconnected"
                    if len(tokens) == 1
                    else ""
                )
                raise CaptionError(
                    f"captions: text {i}, {line!r}, has no place for the token; write "
                    f"{f'{{}} or {token}' if len(tokens) == 1 else names} where the subject stands{rest}"
                )
    return texts


def _check_masks(config: TrainConfig, masks: Sequence[Image | None]) -> None:
    from ..zoodip_core.base.errors import ConfigError

    if any(masks) and not config.masked:
        raise ConfigError(
            "mask_background = 1 uses no masks, and masks are connected: set mask_background to 0.1, or disconnect them"
        )


def _settings(model: TokenModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """The settings that the inputs stand for: where one is left to the preset, the preset's for the model.

    Raises:
        ConfigError: an input needs another one.
    """
    from ..zoodip_core.train.presets import check_given, preset_for
    from ..zoodip_core.train.settings import given

    sampler = inputs.pop("timestep_sampler", None) or {"timesteps": "uniform"}
    subspace = inputs.pop("subspace_gradient", None) or {"subspace_gradient": False}
    own = model.settings()
    by_model = preset_for(model.info.family, own["weights"], own["dtype"], inputs.pop("preset", "default"))
    named = {**given(settings_in(inputs)), **sampler, **subspace}
    check_given({**by_model, **named}, by_model, named)
    return {**by_model, **named, **own}


def _checked(settings: dict[str, Any]) -> TrainConfig:
    """The settings, without their images yet."""
    from ..zoodip_core.train.config import TrainConfig

    return TrainConfig.from_dict({**settings, "images": ["images"]})


# ---------------------------------------------------------------- runs


def _key(
    config: TrainConfig,
    model: TokenModel,
    pictures: Sequence[Image],
    captions: Sequence[str],
    masks: Sequence[Image | None],
) -> str:
    """What a run can be resumed with: all that decides its steps, but not how many there are."""
    from ..zoodip_core.train.run_folder import CHANGEABLE

    free = {*CHANGEABLE, "batch"}
    if not config.can_grow:
        free.remove("steps")
    decides = {name: value for name, value in config.to_dict().items() if name not in free}
    parts = [decides, model.fingerprint, model.schedule, list(captions)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for picture in pictures:
        digest.update(str(picture.size).encode() + picture.tobytes())
    for mask in masks if any(masks) else ():
        digest.update(f"mask {mask.size}".encode() + mask.tobytes() if mask else b"no mask")
    return digest.hexdigest()[:10]


def _folder(parent: Path, config: TrainConfig, key: str, resume: bool) -> Path:
    """The folder of the run to resume, of several the furthest, or a new one."""
    from ..zoodip_core.base.names import run_name

    name = f"{run_name(config.token)}-{key}"

    def numbered(count: int) -> Path:
        return parent / (name if count == 1 else f"{name}-{count}")

    taken = list(itertools.takewhile(Path.exists, map(numbered, itertools.count(1))))
    runs = [(_steps_taken(folder / "run", config.steps), folder) for folder in taken] if resume else []
    furthest, folder = max(runs, key=lambda run: run[0], default=(-1, parent))
    return folder if furthest >= 0 else numbered(len(taken) + 1)


def _steps_taken(run: Path, steps: int) -> int:
    """How far a run has come that can be resumed to so many steps, -1 if it cannot."""
    from ..zoodip_core.base.errors import ZoodipError
    from ..zoodip_core.train.run_folder import RunFolder

    try:
        return RunFolder.open(run, {"steps": steps}).step()
    except ZoodipError:  # half written, damaged, of another version, or further already
        return -1


def _train(
    settings: dict[str, Any],
    model: TokenModel,
    pictures: Sequence[Image],
    captions: Sequence[str],
    masks: Sequence[Image | None],
    folder: Path,
    live: Live,
    cards: str,
) -> TrainResult:
    from ..zoodip_core.base.events import Commands
    from ..zoodip_core.train.config import TrainConfig
    from ..zoodip_core.train.loop import resume_training, train_token
    from ..zoodip_core.train.run_folder import CHANGEABLE

    run, commands = folder / "run", Commands(host().interrupted)
    try:
        references = write_references(pictures, captions, folder, masks)
        config = TrainConfig.from_dict({**settings, **references})
        with _ranks(cards, config, model, run, live) as ranks:
            if run.exists():
                changes = {name: getattr(config, name) for name in CHANGEABLE}
                return resume_training(run, changes, model=model, on_event=live, commands=commands, ranks=ranks)
            return train_token(config, run, model=model, on_event=live, commands=commands, ranks=ranks)
    finally:
        if not run.exists():  # nothing came of it
            shutil.rmtree(folder, ignore_errors=True)


def _ranks(
    cards: str, config: TrainConfig, model: TokenModel, run: Path, live: Live
) -> contextlib.AbstractContextManager[Ranks]:
    """The processes that take a run's steps: this one, and where all cards are wanted one for each of the others."""
    from ..zoodip_core.base.events import Message
    from ..zoodip_core.jobs.cards import cards_beside, with_cards

    others = cards_beside(model.device) if cards == ALL and model.portable else []
    if cards == ALL and not others:
        why = f"there is no graphics card beside {model.device}" if model.portable else "this model is in ComfyUI alone"
        live(Message(f"cards = {ALL}: {why}; {model.device} trains alone", warning=True))
    read = dataclasses.replace(config, cache=str(host().models_folder() / COPIES))  # they keep no copy themselves
    return with_cards(others, read, run, own=model.device.index or 0)


def _previews(config: TrainConfig, model: TokenModel, trained: TrainResult, live: Live) -> list[Image]:
    """Pictures of the finished token; grey ones where none can be drawn: the token does not hang on them."""
    import torch
    from PIL import Image

    from ..zoodip_core.base.errors import ModelError
    from ..zoodip_core.base.events import Message
    from ..zoodip_core.train.samples import Sampling

    sampling, bar = Sampling.of(config), host().bar()
    try:
        with drawn_with(model, trained.lora):
            return sampling.draw(model, trained.embeddings, bar.update)
    except (torch.OutOfMemoryError, ModelError) as error:
        live(Message(f"no previews of the finished token: {error}", warning=True))
    side = config.resolution or model.info.resolution
    return [Image.new("RGB", (side, side), "grey") for _ in sampling.prompts]


def _grid(trained: TrainResult, previews: Sequence[Image]) -> Image:
    """What listed prompts drew over time; without such a picture the previews as a sheet of one row."""
    from ..zoodip_core.data.sheets import sheet_of

    return _picture(trained.grid) if trained.grid else sheet_of([(f"step {trained.step}", previews)])


def _loss_curve(path: Path) -> Image:
    """The picture of a run's losses; an empty one if its log was deleted."""
    from PIL import Image

    return _picture(path) if path.is_file() else Image.new("RGB", (792, 396), "white")


def _picture(path: Path) -> Image:
    """A picture that the run has made."""
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as picture:
        return picture.convert("RGB")
