"""The node that trains a token."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .generate import seed_input
from .host import check_packages, host, on_the_device
from .live import Live
from .pictures import thumbnails, to_image, to_pictures, write_references

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..zoodip_core.model.quantized import QuantizedModel
    from ..zoodip_core.train.config import TrainConfig
    from ..zoodip_core.train.loop import TrainResult

FOLDER = "zoodip"
"""In ComfyUI's output folder: a folder for each run."""
_SAMPLES = 4
_BY_PRESET = "0: by preset and model"


class ZOTrainToken:
    """Learns a token from images with forward passes only (paper, algorithm 1)."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Learns a new word from a few images, with forward passes only. Cancel saves the state; queue again to resume. "
        "Everything is kept in output/zoodip."
    )
    RETURN_TYPES = ("ZOODIP_EMBEDDING", "IMAGE", "IMAGE")
    RETURN_NAMES = ("embedding", "previews", "loss_curve")
    OUTPUT_TOOLTIPS = (
        "The learned token, for Apply, Save and Evaluate Embedding, and Generate Preview.",
        "Images of the preview prompt with the finished token.",
        "The loss of every step, raw and smoothed.",
    )
    FUNCTION = "train"
    INPUT_IS_LIST = True
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        required = {**_what_to_learn(), **_how_to_search(), **_while_it_runs()}
        return {
            "required": required,
            "optional": _optional(),
            "hidden": {"unique_id": "UNIQUE_ID", "extra": "EXTRA_PNGINFO"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, token: Any) -> bool | str:  # noqa: N802
        # One input alone: ComfyUI would show the same message at each of several.
        from ..zoodip_core.base.errors import TokenError
        from ..zoodip_core.base.names import check_name

        name = _one(token)
        try:
            if name is not None:  # None: it comes from another node, and is checked when that has run
                check_name(name)
        except TokenError as error:
            return str(error)
        return True

    def train(self, **inputs: Any) -> dict[str, Any]:
        check_packages()
        from ..zoodip_core.base.stopping import Stopped

        model: QuantizedModel = _one(inputs.pop("model"))
        pictures = to_pictures(inputs.pop("images"), "images")
        captions = _captions(inputs.pop("captions", None), _one(inputs["token"]), len(pictures))
        _check_prompt(_one(inputs["preview_prompt"]), _one(inputs["token"]))
        live = Live(host(), str(_one(inputs.pop("unique_id", "0"))), _workflow(_one(inputs.pop("extra", None))))
        resume = bool(_one(inputs.pop("resume")))
        settings = _settings(model, {name: _one(value) for name, value in inputs.items()})
        config = _checked(settings)
        with on_the_device(model), live:
            folder = _folder(host().output_folder() / FOLDER, config, _key(config, model, pictures, captions), resume)
            trained = _train(settings, model, pictures, captions, folder, live)
            if not trained.finished:
                again = "queue again" if resume else "turn resume on and queue again"
                raise Stopped(f"stopped at step {trained.step}; {again} to resume")
            previews = _previews(config, model, trained)
        chart = live.end("finished", f"{config.token} learned in {trained.step} steps, kept in {FOLDER}/{folder.name}")
        return {
            "ui": {**thumbnails(previews), "zoodip": [chart]},
            "result": (trained.embedding, to_image(previews), to_image([_loss_curve(folder / "run" / "loss.png")])),
        }


# ---------------------------------------------------------------- inputs


def _what_to_learn() -> dict[str, Any]:
    from ..zoodip_core.data.prompts import TEMPLATES
    from ..zoodip_core.model.tokens import INITIALIZER_MODES

    return {
        "model": ("ZOODIP_MODEL", {"tooltip": "From Load Quantized SD."}),
        "images": ("IMAGE", {"tooltip": "Three to ten pictures of the subject: a batch, or a list of any sizes."}),
        "token": (
            "STRING",
            {"default": "<my-subject>", "tooltip": "The new word, and the name of its file: letters, digits, - and _."},
        ),
        "initializer": (
            "STRING",
            {"default": "dog", "tooltip": "The plain word that the token starts from: what kind of thing it is."},
        ),
        "initializer_mode": (
            list(INITIALIZER_MODES),
            {
                "default": "single",
                "tooltip": "For an initializer of several tokens: refuse it, or start from their mean, or the first.",
            },
        ),
        "num_vectors": (
            "INT",
            {
                "default": 1,
                "min": 1,
                "max": 75,
                "tooltip": "Vectors in the token: 1 is the paper's; more hold more detail and need more steps.",
            },
        ),
        "template": (
            list(TEMPLATES),
            {"default": "object", "tooltip": "Captions for pictures without one: an object's, a style's, or varied."},
        ),
        "resolution": (
            "INT",
            {"default": 0, "min": 0, "max": 4096, "step": 8, "tooltip": "Pixels a side; 0 is the model's own."},
        ),
    }


def _how_to_search() -> dict[str, Any]:
    from ..zoodip_core.search.estimators import ESTIMATORS
    from ..zoodip_core.search.optimizers import OPTIMIZERS
    from ..zoodip_core.train.config import LR_SCHEDULES

    return {
        "steps": _number(
            "INT", 10_000_000, f"Optimisation steps; {_BY_PRESET} (default: SD1.5 and SD2.1 6000, SDXL 4000, tiny 900)."
        ),
        "lr": _number("FLOAT", 10.0, f"Learning rate; {_BY_PRESET}."),
        "lr_schedule": (
            ["auto", *LR_SCHEDULES],
            {
                "default": "auto",
                "tooltip": "Learning rate over the run: constant, or falling to 0. auto: by preset.",
            },
        ),
        "n": _number(
            "INT",
            1024,
            "Random directions a step, which takes n + 1 forward passes (spsa: 2n); "
            f"{_BY_PRESET} (default: 4; paper: 2).",
        ),
        "mu": _number(
            "FLOAT",
            10.0,
            f"How far each candidate is from the current token; {_BY_PRESET}. Of vocabulary directions, 1 is as far as "
            "words are from their mean.",
        ),
        "estimator": (
            list(ESTIMATORS),
            {
                "default": "rge",
                "tooltip": "rge: the paper's. spsa: both sides of each direction, 2n forward passes. "
                "one-point: for comparison.",
            },
        ),
        "optimizer": (
            ["auto", *OPTIMIZERS],
            {
                "default": "auto",
                "tooltip": "zoadam: the paper's Adam. zosgd: plain descent. normalized-sgd: steps whose size does not "
                "depend on the losses'. zosgd needs an lr of its own. auto: by preset.",
            },
        ),
        "seed": seed_input("Of every random draw: the same seed learns the same token."),
    }


def _while_it_runs() -> dict[str, Any]:
    return {
        "preview_prompt": (
            "STRING",
            {"default": "a photo of a {}", "tooltip": "What to draw while it learns; {} stands for the token."},
        ),
        "preview_every": (
            "INT",
            {"default": 0, "min": 0, "max": 10_000_000, "tooltip": "Steps between previews; 0 draws only at the end."},
        ),
        "save_every": ("INT", {"default": 500, "min": 1, "max": 10_000_000, "tooltip": "Steps between saved states."}),
        "resume": (
            "BOOLEAN",
            {
                "default": True,
                "tooltip": "Resume a stopped run of the same inputs, or to more steps with a finished one where "
                "learning rate and mu stay and there are no checks, as with the preset paper. Off: start anew.",
            },
        ),
    }


def _number(kind: str, largest: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    fine = {"step": 1e-4, "round": 1e-7} if kind == "FLOAT" else {}
    zero = 0.0 if kind == "FLOAT" else 0
    return kind, {"default": zero, "min": zero, "max": largest, **fine, "tooltip": tooltip}


def _optional() -> dict[str, Any]:
    from ..zoodip_core.train.presets import PACES

    return {
        "captions": (
            "STRING",
            {
                "forceInput": True,
                "tooltip": "A text for each picture, in their order, with {} for the token. Empty: the template. "
                "Several lines: one of them is drawn at each step.",
            },
        ),
        "subspace_gradient": (
            "SUBSPACE_GRADIENT",
            {"tooltip": "From Subspace Gradient. Unconnected: gradients are used as estimated."},
        ),
        "timestep_sampler": ("TIMESTEP_SAMPLER", {"tooltip": "From PUTS Sampler. Unconnected: all timesteps alike."}),
        "preset": (  # optional, so that graphs without it are still run
            list(PACES),
            {
                "default": "default",
                "tooltip": "What inputs left at 0 or auto stand for. fast: a third of default's steps. careful: three "
                "times as many. paper: the paper's settings for the model, where its two parts are wired as well: "
                "what is unconnected is left out.",
            },
        ),
    }


def _workflow(extra: dict[str, Any] | None) -> str | None:
    """The id of the workflow that was queued, if a page queued it."""
    return ((extra or {}).get("workflow") or {}).get("id")


def _one(value: Any) -> Any:
    """A single input's value, which arrives in a list, or in a tuple when a linked one is validated."""
    return value[0] if isinstance(value, list | tuple) and value else value


def _check_prompt(prompt: str, token: str) -> None:
    from ..zoodip_core.base.errors import ConfigError
    from ..zoodip_core.data.prompts import SLOT, with_slots

    if SLOT not in with_slots(prompt, token):
        raise ConfigError(f"preview_prompt: {prompt!r} has no place for the token; write {{}} where it should stand")


def _captions(captions: Sequence[str] | None, token: str, pictures: int) -> list[str]:
    from ..zoodip_core.base.errors import CaptionError
    from ..zoodip_core.data.prompts import SLOT, with_slots

    texts = list(captions or [""])
    if len(texts) == 1:
        texts *= pictures
    if len(texts) != pictures:
        raise CaptionError(f"captions: {len(texts)} texts for {pictures} images; give one for each, or a single one")
    for i, text in enumerate(texts, 1):
        for line in filter(str.strip, text.splitlines()):
            if SLOT not in with_slots(line, token):
                raise CaptionError(
                    f"captions: text {i}, {line!r}, has no place for the token; write {{}} or {token} where the "
                    "subject stands, or leave captions unconnected"
                )
    return texts


def _settings(model: QuantizedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """The settings that the inputs stand for: where an input is 0 or auto, the preset's for the model.

    Raises:
        ConfigError: an input needs another one.
    """
    from ..zoodip_core.model.kinds import TINY, TINY_PATH
    from ..zoodip_core.train.presets import check_given, preset_for

    sampler = inputs.pop("timestep_sampler", None) or {"timesteps": "uniform"}
    subspace = inputs.pop("subspace_gradient", None) or {"subspace_gradient": False}
    named = {
        **inputs,
        **sampler,
        **subspace,
        "sample_prompt": inputs["preview_prompt"],
        "sample_every": inputs["preview_every"],
    }
    del named["preview_prompt"], named["preview_every"]
    dtype = str(model.dtype).removeprefix("torch.")
    by_model = preset_for(model.info.family, model.weights, dtype, named.pop("preset", "default"))
    left_out = {"steps": 0, "lr": 0, "n": 0, "mu": 0, "lr_schedule": "auto", "optimizer": "auto"}
    for name, left in left_out.items():
        if named.get(name) == left:
            del named[name]
    check_given({**by_model, **named}, by_model, named)
    path = model.info.path
    return {
        **by_model,
        **named,
        "model": TINY if path == TINY_PATH else str(path),
        "weights": model.weights,
        "dtype": dtype,
        "device": str(model.device),
        "prediction_type": model.info.prediction_type,
    }


def _checked(settings: dict[str, Any]) -> TrainConfig:
    """The settings, without their images yet."""
    from ..zoodip_core.train.config import TrainConfig

    return TrainConfig.from_dict({**settings, "images": ["images"]})


# ---------------------------------------------------------------- runs


def _key(config: TrainConfig, model: QuantizedModel, pictures: Sequence[Image], captions: Sequence[str]) -> str:
    """What a run can be resumed with: all that decides its steps, but not how many there are."""
    from ..zoodip_core.train.run_folder import CHANGEABLE

    free = {*CHANGEABLE, "device", "batch"}
    if not config.can_grow:
        free.remove("steps")
    decides = {name: value for name, value in config.to_dict().items() if name not in free}
    schedule = model.blueprint.configs["scheduler"]
    parts = [decides, model.blueprint.fingerprint, schedule, list(captions)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for picture in pictures:
        digest.update(str(picture.size).encode() + picture.tobytes())
    return digest.hexdigest()[:10]


def _folder(parent: Path, config: TrainConfig, key: str, resume: bool) -> Path:
    """The folder of the run to resume, of several the furthest, or a new one."""
    from ..zoodip_core.base.names import file_stem

    name = f"{file_stem(config.token)}-{key}"

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
    model: QuantizedModel,
    pictures: Sequence[Image],
    captions: Sequence[str],
    folder: Path,
    live: Live,
) -> TrainResult:
    from ..zoodip_core.base.events import Commands
    from ..zoodip_core.train.config import TrainConfig
    from ..zoodip_core.train.loop import resume_training, train_token
    from ..zoodip_core.train.run_folder import CHANGEABLE

    run, commands = folder / "run", Commands(host().interrupted)
    try:
        references = write_references(pictures, captions, folder)
        config = TrainConfig.from_dict({**settings, **references})
        if run.exists():
            changes = {name: getattr(config, name) for name in CHANGEABLE}
            return resume_training(run, changes, model=model, on_event=live, commands=commands)
        return train_token(config, run, model=model, on_event=live, commands=commands)
    finally:
        if not run.exists():  # nothing came of it
            shutil.rmtree(folder, ignore_errors=True)


def _previews(config: TrainConfig, model: QuantizedModel, trained: TrainResult) -> list[Image]:
    from ..zoodip_core.model.generation import generate

    bar = host().bar()
    return generate(
        model,
        [config.sample_prompt] * _SAMPLES,
        list(range(_SAMPLES)),
        embedding=trained.embedding,
        resolution=config.resolution,
        on_step=bar.update,
    )


def _loss_curve(path: Path) -> Image:
    """The picture of a run's losses; an empty one if its log was deleted."""
    from PIL import Image

    if not path.is_file():
        return Image.new("RGB", (792, 396), "white")
    with Image.open(path, formats=("PNG",)) as picture:
        return picture.convert("RGB")
