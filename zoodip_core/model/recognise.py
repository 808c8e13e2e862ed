"""What a model is, by its tensors' names and shapes and its configs alone: files, our copies, diffusers folders."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..base.errors import ConfigError, ModelError
from ..base.files import is_newer
from ..base.texts import how_many, parse_json
from . import ldm, separate
from .blueprint import COPY_FORMAT, COPY_MARK, Blueprint, ModelInfo, config_useless, stored_name
from .checkpoints import SUFFIXES, Checkpoint, ComponentReader, Part, component_files, read_json
from .kinds import CLIP_PATH, CLIP_WORDS, COMFYUI, PREDICTION_TYPES, TINY, TINY_PATH, family_of_widths
from .layouts import with_old_attention
from .quantize import WEIGHTS
from .renaming import AVERAGES, UNET, canonical
from .source import Source

_PADS = {"sd1": (None,), "sd2": ("!",), "sdxl": (None, "!")}
_LONGEST_YAML = 1_000_000
_LARGEST = 8192
_LONGEST_REF = 100
_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


def identify(
    model: str | Path, prediction_type: str = "auto", *, clip: Sequence[str | Path] = (), vae: str | Path | None = None
) -> ModelInfo:
    """Read what a model is, without loading it; see :func:`open_model`.

    Raises:
        ModelError: nothing there, damaged, or an unsupported kind.
    """
    return open_model(model, prediction_type, clip=clip, vae=vae).info


def open_model(
    model: str | Path, prediction_type: str = "auto", *, clip: Sequence[str | Path] = (), vae: str | Path | None = None
) -> Blueprint:
    """A model's :class:`Blueprint`. Only headers and configs are read.

    Args:
        model: a ``.safetensors`` or ``.ckpt`` checkpoint, a UNet's file, a diffusers folder, or ``"tiny"``.
        prediction_type: ``auto``, or what the model predicts where its file does not tell rightly.
        clip: files of its text encoders, in any order, in place of the model's own.
        vae: file of its VAE, in place of the model's own.

    Raises:
        ModelError: nothing there, damaged, of an unsupported kind, or parts that do not belong together.
        ConfigError: an unknown ``prediction_type``.
    """
    _check_prediction_type(prediction_type)
    if str(model).startswith(COMFYUI):
        raise ModelError(
            f"model: {str(model).removeprefix(COMFYUI)} ran in ComfyUI, and only there can its run be resumed: queue "
            "the same workflow again, with Model from ComfyUI. To use its token here, give a checkpoint of the same "
            "family"
        )
    path = TINY_PATH if str(model) == TINY else Path(model)
    apart = separate.Files(tuple(map(Path, clip)), Path(vae) if vae else None)
    opened = _open_folder if path.is_dir() else _open_file
    if not path.is_file() and not path.is_dir():
        raise ModelError(
            f"model: {path} does not exist; give a checkpoint file, a diffusers folder, or {TINY!r} for the "
            "embedded model"
        )
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"model: {path} is not a checkpoint; their names end in {', '.join(SUFFIXES)}")
    return replace(_checked(opened(path, prediction_type, apart)), clip=apart.clip, vae=apart.vae)


_COUNTS = (
    ("num_hidden_layers",),
    ("layers_per_block",),
    ("transformer_layers_per_block", "reverse_transformer_layers_per_block"),
)


def _checked(blueprint: Blueprint) -> Blueprint:
    """The blueprint, if none of its configs has more layers than there are tensors: to build them would take for ever.

    Raises:
        ModelError: one has.
    """
    for part, reader in blueprint.readers.items():
        config, tensors = blueprint.configs[part], len(reader.checkpoint.shapes)
        levels = max((len(value) for value in config.values() if isinstance(value, list)), default=1)
        layers = [max((n for name in names for n in _numbers_in(config.get(name))), default=1) for names in _COUNTS]
        count = math.prod((levels, *layers))
        if not count <= tensors:
            error = ValueError(f"its layers are {count:g}, and the weights have {how_many(tensors, 'tensor')}")
            raise config_useless(blueprint.info.path, part, error)
    return blueprint


def _numbers_in(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for each in value for number in _numbers_in(each)]
    return [min(value, 1e9)] if isinstance(value, int | float) else []


def _check_prediction_type(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ConfigError(f"prediction_type = {prediction_type!r}: choose one of {', '.join(PREDICTION_TYPES)}")


# ---------------------------------------------------------------- single files


def _open_file(path: Path, prediction_type: str, apart: separate.Files) -> Blueprint:
    checkpoint = Checkpoint([path])
    if COPY_MARK in checkpoint.metadata:
        if apart:
            raise ModelError(f"model: {path} is a quantised copy, which is whole; leave out clip and vae")
        return open_copy(path, prediction_type)
    names = canonical(checkpoint.shapes)
    checkpoint = checkpoint.known_as(names)
    checkpoint.check_quantization()
    family = ldm.family_of(checkpoint.shapes, str(path))
    given = separate.parts(apart, ldm.WIDTHS[family], ldm.vae_scaling(family))
    parts = ldm.parts_of(checkpoint, family, str(path), given) | given
    predicts = _predicts(checkpoint, family) if prediction_type == "auto" else prediction_type
    zero_snr = "ztsnr" in checkpoint.shapes or checkpoint.metadata.get("ss_zero_terminal_snr") == "True"
    schedule = {**_SCHEDULE, "prediction_type": predicts, "rescale_betas_zero_snr": zero_snr}
    averaged = any(own.startswith(AVERAGES) for name, own in names.items() if name.startswith(UNET))
    return _assembled(
        path,
        family,
        parts,
        schedule,
        tuple((CLIP_PATH, pad) for pad in _PADS[family]),
        ("the averages of its weights (EMA) are used: the file holds no others",) if averaged else (),
    )


def _assembled(
    path: Path,
    family: str,
    parts: Mapping[str, Part],
    schedule: dict[str, Any],
    tokenizers: tuple[tuple[Path, str | None], ...],
    notes: tuple[str, ...] = (),
) -> Blueprint:
    configs = {**{name: part.config for name, part in parts.items()}, "scheduler": schedule}
    dims = tuple(configs[name]["hidden_size"] for name in ("text_encoder", "text_encoder_2") if name in configs)
    words = max(configs[name].get("vocab_size", 0) for name in parts if name.startswith("text_encoder"))
    if tokenizers[0][0] == CLIP_PATH and words > CLIP_WORDS:
        rows = f"row {CLIP_WORDS}" if words == CLIP_WORDS + 1 else f"rows {CLIP_WORDS} to {words - 1}"
        notes += (f"its text encoder holds trained tokens ({rows}), which stay; no prompt has their names",)
    return Blueprint(
        ModelInfo(path, _title(path), family, dims, _resolution(configs, family), schedule["prediction_type"]),
        configs,
        {name: part.reader for name, part in parts.items()},
        tokenizers,
        notes=notes,
    )


def _title(path: Path) -> str:
    if path == TINY_PATH:
        return TINY
    if path.parent.name == "snapshots":  # of the Hugging Face cache, whose folders here are named by a hash
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.stem if path.is_file() else path.resolve().name


def _resolution(configs: Mapping[str, dict[str, Any]], family: str) -> int:
    side = configs["unet"].get("sample_size")
    levels = configs["vae"].get("block_out_channels")
    scale = 2 ** (len(levels) - 1) if isinstance(levels, list) and 0 < len(levels) < 10 else 8
    if isinstance(side, int) and 0 < side * scale <= _LARGEST:
        return side * scale
    if family == "sd2" and configs["scheduler"]["prediction_type"] == "v_prediction":
        return 768
    return 1024 if family == "sdxl" else 512


def _predicts(checkpoint: Checkpoint, family: str) -> str:
    """What a single file predicts: as it says itself, or the webui's config beside it, or by its weights."""
    stated = checkpoint.metadata.get("modelspec.prediction_type", "")
    if not stated and checkpoint.metadata.get("ss_v_parameterization") == "True":
        return "v_prediction"
    beside = checkpoint.files[0].with_suffix(".yaml")
    if not stated and beside.is_file():
        with beside.open(encoding="utf-8", errors="replace") as file:
            found = re.search(r"parameterization:\s*[\"']?(\w+)", file.read(_LONGEST_YAML))
        stated = found[1] if found else ""
    if stated:
        return "v_prediction" if stated.lower() in ("v", "v_prediction", "v-prediction") else "epsilon"
    if "v_pred" in checkpoint.shapes:
        return "v_prediction"
    for block in ("output_blocks.11.1", "up_blocks.3.attentions.2"):
        tell = f"{UNET}{block}.transformer_blocks.0.norm1.bias"
        if family == "sd2" and tell in checkpoint.shapes:
            # The mark ComfyUI goes by: among SD2's models this norm's biases are wider in those that predict v.
            return "v_prediction" if _spread(checkpoint.tensor(tell)) > 0.09 else "epsilon"
    return "epsilon"


def _spread(tensor: torch.Tensor) -> float:
    """The standard deviation, 0 where PyTorch cannot compute with the tensor's type."""
    try:
        return float(tensor.float().std(unbiased=False))
    except RuntimeError:
        return 0.0


# ---------------------------------------------------------------- our own quantised copies


def open_copy(copy: Path, prediction_type: str = "auto", original: Path | None = None) -> Blueprint:
    """The blueprint of a quantised copy of a model.

    Args:
        copy: the file.
        prediction_type: as for :func:`open_model`.
        original: the model, if it is known; a diffusers folder's tokenizers are there.

    Raises:
        ModelError: the copy is damaged, of another version, or of a folder that is not known.
        ConfigError: an unknown ``prediction_type``.
    """
    _check_prediction_type(prediction_type)
    checkpoint = Checkpoint([copy])
    about = checkpoint.metadata
    if is_newer(about.get(COPY_MARK), COPY_FORMAT):
        raise ModelError(
            f"model: {copy} is a quantised copy that a newer ZOODiP made; update ZOODiP, or give the model itself"
        )
    try:
        info, configs, folders = (parse_json(about[key]) for key in ("info", "configs", "tokenizers"))
        _check_copy(info, configs, folders, about["weights"])
        if prediction_type != "auto":
            info["prediction_type"] = configs["scheduler"]["prediction_type"] = prediction_type
            info["resolution"] = _resolution(configs, info["family"])
        path = original or copy
        named = {"name": _title(path)} if original else {}
        if not {folder for folder, _ in folders} <= ({"", "tokenizer", "tokenizer_2"} if original else {""}):
            raise ModelError(f"model: {copy} is a copy of a diffusers folder; give the folder and --cache instead")
        blueprint = Blueprint(
            ModelInfo(**{**info, **named, "path": path, "dims": tuple(info["dims"])}),
            configs,
            {
                part: ComponentReader(checkpoint, lambda name, part=part: Source(f"{part}.{stored_name(name)}"))  # type: ignore[misc]
                for part in configs
                if part != "scheduler"
            },
            tuple((path / folder if folder else CLIP_PATH, pad) for folder, pad in folders),
            copy_of=about["sha256"],
            weights=about["weights"],
        )
        return _checked(blueprint)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"model: {copy} is a quantised copy that is damaged or of another version; delete it"
        ) from error


def _check_copy(info: Any, configs: Any, tokenizers: Any, weights: str) -> None:
    """Refuse what a copy's header cannot have said.

    Raises:
        Exception: of several kinds.
    """
    parts = {"unet", "vae", "scheduler", *("text_encoder", "text_encoder_2")[: len(info["dims"])]}
    numbers = (info["resolution"], *info["dims"])
    whole = (
        all(isinstance(info[key], str) for key in ("name", "family"))
        and all(isinstance(number, int) and number > 0 for number in numbers)
        and info["prediction_type"] in PREDICTION_TYPES[1:]
        and set(configs) == parts
        and all(isinstance(config, dict) for config in configs.values())
        and len(tokenizers) == len(info["dims"]) == len(parts) - 3
        and all(isinstance(pad, str | None) for _, pad in tokenizers)
        and weights in WEIGHTS
    )
    if not whole:
        raise ValueError("its header is damaged")


# ---------------------------------------------------------------- diffusers folders


def within_cache(path: Path) -> Path:
    """The folder itself, or the model within it where it is the top of one in the Hugging Face cache.

    Raises:
        ModelError: it is one, and no model is in it.
    """
    snapshots = path / "snapshots"
    if (path / "model_index.json").is_file() or not snapshots.is_dir():
        return path
    main = path / "refs" / "main"
    named = (
        [snapshots / main.read_text(encoding="utf-8", errors="replace").strip()[:_LONGEST_REF]]
        if main.is_file()
        else []
    )
    newest = sorted(snapshots.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
    for found in (*named, *newest):
        if found.parent == snapshots and (found / "model_index.json").is_file():
            return found
    raise ModelError(
        f"model: {path} is a folder of the Hugging Face cache without a whole model in {snapshots}; download it again, "
        "or give another folder"
    )


def _open_folder(path: Path, prediction_type: str, apart: separate.Files) -> Blueprint:
    path = within_cache(path)
    index = path / "model_index.json"
    if not index.is_file():
        raise ModelError(f"model: {path} has no model_index.json; give the top of a diffusers folder")
    kind = read_json(index).get("_class_name")
    if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise ModelError(
            f"model: {path} is a {kind or 'folder of an unknown kind'}; supported are Stable Diffusion 1.x and 2.x "
            "(StableDiffusionPipeline) and XL (StableDiffusionXLPipeline)"
        )
    texts = ("text_encoder", "text_encoder_2") if kind == "StableDiffusionXLPipeline" else ("text_encoder",)
    for part in ("unet", "vae", *texts):
        if not (path / part / "config.json").is_file():
            raise ModelError(f"model: {path / part}/config.json is missing; the folder is incomplete, copy it again")
    parts = {
        name: Part(read_json(path / name / "config.json"), _folder_reader(path / name))
        for name in ("unet", "vae", *texts)
    }
    dims = tuple(parts[name].config.get("hidden_size", 0) for name in texts)
    _check_folder(path, parts["unet"].config, dims)
    scaling = {key: value for key, value in parts["vae"].config.items() if key in ("scaling_factor", "force_upcast")}
    parts |= separate.parts(apart, dims, scaling)
    folders = tuple((path / name.replace("text_encoder", "tokenizer"), None) for name in texts)
    return _assembled(path, family_of_widths(dims), parts, _folder_schedule(path, prediction_type), folders)


def _check_folder(path: Path, unet: dict[str, Any], dims: tuple[int, ...]) -> None:
    attended = unet.get("cross_attention_dim")
    if not all(isinstance(dim, int) and dim > 0 for dim in dims) or sum(dims) != attended:
        raise ModelError(
            f"model: {path}: the text encoder's width is {'+'.join(map(str, dims))}, the UNet attends to {attended}; "
            "its parts are of different models"
        )
    special = [
        key for key in ("class_embed_type", "encoder_hid_dim", "time_cond_proj_dim") if unet.get(key) is not None
    ]
    if unet.get("addition_embed_type") not in (None, "text_time"):
        special.append("addition_embed_type")
    if unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") != "UNetMidBlock2DCrossAttn":
        special.append("mid_block_type")
    if special:
        raise ModelError(f"model: {path} has a UNet of a special kind ({', '.join(special)}), which is not supported")
    channels = unet.get("in_channels", 4)
    if channels != 4:
        raise ModelError(
            f"model: {path} is an inpainting model or another variant (its UNet reads {channels} channels, not 4); "
            "tokens are trained on the plain model of the same family"
        )


def _folder_schedule(path: Path, prediction_type: str) -> dict[str, Any]:
    file = path / "scheduler" / "scheduler_config.json"
    config = {**_SCHEDULE, "prediction_type": "epsilon", **read_json(file)}
    if "EDM" in str(config.get("_class_name")) or "Flow" in str(config.get("_class_name")):
        raise ModelError(f"model: {path} has another noise schedule ({config['_class_name']}), which is not supported")
    if prediction_type != "auto":
        config["prediction_type"] = prediction_type
    if config["prediction_type"] not in PREDICTION_TYPES[1:]:
        raise ModelError(f"model: {path}: prediction type {config['prediction_type']!r} is not supported")
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _folder_reader(folder: Path) -> ComponentReader:
    checkpoint = Checkpoint(component_files(folder))
    shapes = checkpoint.shapes

    def locate(name: str) -> Source:
        forms = (name, f"text_model.{name}", name.removeprefix("text_model."), with_old_attention(name))
        return Source(next((form for form in forms if form in shapes), name))

    return ComponentReader(checkpoint, locate)
