"""What CLIP and DINOv2 see in pictures and texts: the features that generated images are scored by (supplement S1.2).

The models are the user's own files: a folder, or the cache of Hugging Face's programs. Nothing is fetched. Weights are
read as those of Stable Diffusion are, safetensors or plain tensors of a pickle that was looked through first; configs
are taken by the settings known here, as the rest may name code for the library to fetch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..base.errors import ConfigError, ModelError
from ..base.hub_cache import cache_folder, cached
from ..base.stopping import Stopped, check_stop
from ..data.images import open_picture
from ..model.building import build
from ..model.checkpoints import Checkpoint, ComponentReader, component_files, read_json
from ..model.kinds import CLIP_PATH
from ..model.source import Source

CLIP_ID = "openai/clip-vit-base-patch32"
DINO_ID = "facebook/dinov2-base"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# What of each model's page is needed: it has the weights of other libraries too.
_WEIGHTS = {CLIP_ID: "pytorch_model.bin", DINO_ID: "model.safetensors"}
_BATCH = 16
_LONGEST_SIDES = 4
"""A picture's long side over its short one; what lies farther out is cut off by the processors anyway."""
_LARGEST_NUMBER = 100_000
_MOST_LAYERS = 200
_LARGEST_SIDE = 1024

Picture = Path | Image.Image
"""A picture's file, opened when it is looked at, or the picture itself."""
OnStep = Callable[[int, int], None]


# ---------------------------------------------------------------- where the models are


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, found but not read.

    Args:
        kind: ``clip`` or ``dinov2``.
        name: for people.
        config: its ``config.json``.
        preprocessor: its ``preprocessor_config.json``: how pictures are scaled, cut and normalised.
        weights: one file, or shards.
    """

    kind: str
    name: str
    config: Path
    preprocessor: Path
    weights: tuple[Path, ...]


class MissingModelError(ModelError):
    """A model for scoring that is not on this computer."""


def find_clip(where: str | Path | None = None) -> ModelFiles:
    """The files of CLIP, which are not read yet. The network is not asked.

    Args:
        where: a folder, or a name in the cache of Hugging Face's programs; None for :data:`CLIP_ID`, the paper's.

    Raises:
        MissingModelError: they are not there; the message says what is missing, where it was looked for, and the
            command that fetches it.
        ModelError: the folder holds another kind of model.
    """
    return _find("clip", CLIP_ID, where)


def find_dino(where: str | Path | None = None) -> ModelFiles:
    """The files of DINOv2, :data:`DINO_ID` unless another is given; as :func:`find_clip`."""
    return _find("dinov2", DINO_ID, where)


def _find(kind: str, usual: str, where: str | Path | None) -> ModelFiles:
    given = str(where or usual)
    folders = [Path(given)] if Path(given).is_dir() else cached(given)
    config, preprocessor, weights = _first(folders, CONFIG), _first(folders, PREPROCESSOR), _weights(folders)
    if not (config and preprocessor and weights):
        parts = {CONFIG: config, PREPROCESSOR: preprocessor, "weights": weights}
        raise MissingModelError(_missing(kind, usual, given, [name for name, found in parts.items() if not found]))
    found = read_json(config).get("model_type")
    if found != kind:
        raise ModelError(
            f"{given}: it is a model of type {str(found)[:40]!r}, {kind!r} is needed; give the folder of a model like "
            f"{usual}"
        )
    return ModelFiles(kind, given, config, preprocessor, tuple(weights))


def _first(folders: Sequence[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _weights(folders: Sequence[Path]) -> list[Path]:
    """The weights' files, safetensors before pickled ones in whichever folder; empty if there are none."""
    found: list[list[Path]] = []
    for folder in folders:
        try:
            found.append(component_files(folder))
        except ModelError:
            continue
    return min(found, key=lambda files: files[0].suffix != ".safetensors", default=[])


def _missing(kind: str, usual: str, given: str, lacking: Sequence[str]) -> str:
    if Path(given).is_dir():
        place = f"the folder {given}"
    elif (folder := cache_folder(given)) is not None:
        place = f"{folder} (Hugging Face's cache)"
    else:
        place = f"{given}, which is not a folder"
    files = f"{CONFIG} {PREPROCESSOR} {_WEIGHTS[usual]}"
    option = "clip" if kind == "clip" else "dino"
    return (
        f"{usual} for the {'CLIP' if kind == 'clip' else 'DINO'} scores: {', '.join(lacking)} not found in {place}. "
        f"Nothing is downloaded here; fetch it with\n  hf download {usual} {files}\n"
        f"or give its folder (--{option}; in ComfyUI the input {option})"
    )


# ---------------------------------------------------------------- CLIP


_CLIP_KEYS = ("projection_dim",)
_TRANSFORMER_KEYS = (
    *("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    "layer_norm_eps",
)
_TEXT_KEYS = (
    *_TRANSFORMER_KEYS,
    *("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
)
_VISION_KEYS = (*_TRANSFORMER_KEYS, "image_size", "patch_size", "num_channels")
_DINO_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "hidden_act", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "qkv_bias", "use_swiglu_ffn"),
)


class _ImageFeatures(ABC):
    """Pictures through a model's processor and the model, a batch at a time."""

    _model: Any
    _processor: Any

    @abstractmethod
    def _images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features ``[N, dim]`` of a batch as the processor makes it."""

    @torch.no_grad()
    def of_images(self, pictures: Sequence[Picture], on_step: OnStep | None = None) -> torch.Tensor:
        """Features ``[N, dim]`` of pictures of any size, on the CPU.

        Args:
            on_step: called with (done, of) after each batch.

        Raises:
            ImagesError: a file cannot be read.
            Stopped: a stop was asked for.
        """
        return _in_batches(pictures, self._processor, self._images, self._model.device, on_step)

    def _try_out(self, files: ModelFiles) -> None:
        """Look at a black picture: settings that do not go together are told of before there is anything to lose."""
        try:
            if not self.of_images([Image.new("RGB", (8, 8))]).isfinite().all():
                raise ValueError("what they see in a black picture is not finite")
        except Stopped:
            raise
        except Exception as error:  # whatever the library makes of them
            raise ModelError(
                f"{files.preprocessor} and {files.config.name} beside it cannot be used together: {_reason(error)}; "
                "fetch the model again"
            ) from error


class ClipFeatures(_ImageFeatures):
    """CLIP's projected features of images and texts, in float32, not normalised.

    Args:
        files: from :func:`find_clip`.
        device: where it computes.

    Raises:
        ModelError: the files are damaged, or of another kind of CLIP.
    """

    def __init__(self, files: ModelFiles, device: torch.device) -> None:
        from transformers import CLIPConfig, CLIPModel

        config = read_json(files.config)
        text, vision = (_section(config, name, files) for name in ("text_config", "vision_config"))
        if text.get("vocab_size", 49408) != 49408:
            raise ModelError(
                f"{files.config}: its vocabulary is not that of OpenAI's CLIP; give the folder of {CLIP_ID}"
            )
        settings = {
            **_known(config, _CLIP_KEYS, files),
            "text_config": _known(text, _TEXT_KEYS, files),
            "vision_config": _known(vision, _VISION_KEYS, files),
        }
        self._model = _load(lambda: CLIPModel(CLIPConfig(**settings)), files, device)
        self._processor = _processor("CLIPImageProcessor", files)
        self._length = int(self._model.config.text_config.max_position_embeddings)
        self._try_out(files)

    def _images(self, pixels: torch.Tensor) -> torch.Tensor:
        # What get_image_features gives is a tensor in transformers 4, an output object in 5.
        return self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Features ``[N, dim]`` of texts, on the CPU. Each is cut to the 77 tokens that CLIP reads.

        Raises:
            Stopped: a stop was asked for.
        """
        # Every CLIP of OpenAI's has the tokenizer that Stable Diffusion has.
        tokenizer = _tokenizer()
        features = []
        for first in range(0, len(texts), _BATCH):
            check_stop()
            batch = tokenizer(
                list(texts[first : first + _BATCH]),
                padding=True,
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            ).to(self._model.device)
            self._model.text_model.embeddings.token_embedding.keep(batch.input_ids.flatten().tolist())
            seen = self._model.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            features.append(self._model.text_projection(seen.pooler_output).cpu())
        return torch.cat(features)


def _tokenizer() -> Any:
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(CLIP_PATH, local_files_only=True)


# ---------------------------------------------------------------- DINOv2


class DinoFeatures(_ImageFeatures):
    """DINOv2's embedding of an image: the class token of its last layer after the layer norm, in float32.

    The paper says "DINOv2 embeddings" (supplement S1.2). The class token is what DINOv2's authors use to compare whole
    images, and what DreamBooth's DINO score takes; in transformers it is ``pooler_output``.

    Args:
        files: from :func:`find_dino`.
        device: where it computes.

    Raises:
        ModelError: the files are damaged, or of another kind of model.
    """

    def __init__(self, files: ModelFiles, device: torch.device) -> None:
        from transformers import Dinov2Config, Dinov2Model

        settings = _known(read_json(files.config), _DINO_KEYS, files)
        self._model = _load(lambda: Dinov2Model(Dinov2Config(**settings)), files, device)
        self._processor = _processor("BitImageProcessor", files)
        self._try_out(files)

    def _images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._model(pixel_values=pixels).pooler_output


# ---------------------------------------------------------------- loading


def _section(config: Mapping[str, Any], name: str, files: ModelFiles) -> dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise ModelError(f"{files.config}: {name} is missing; the file is damaged, fetch the model again")
    return section


def _known(config: Mapping[str, Any], keys: Sequence[str], files: ModelFiles) -> dict[str, Any]:
    """The settings that count, checked: none is so large that building from it would fill the memory.

    Raises:
        ModelError: one is.
    """
    settings = {key: config[key] for key in keys if config.get(key) is not None}
    for key, value in settings.items():
        most = {"num_hidden_layers": _MOST_LAYERS, "image_size": _LARGEST_SIDE}.get(key, _LARGEST_NUMBER)
        if not isinstance(value, str | bool | int | float) or (not isinstance(value, str) and not 0 <= value <= most):
            raise ModelError(f"{files.config}: {key} = {str(value)[:40]} cannot be; fetch the model again")
    return settings


def _load(empty: Callable[[], Any], files: ModelFiles, device: torch.device) -> Any:
    try:
        with torch.device("meta"):
            network = empty()
    except Exception as error:  # the library raises a dozen kinds on configs that make no sense
        raise ModelError(f"{files.config} cannot be used: {_reason(error)}; fetch the model again") from error
    checkpoint = Checkpoint(files.weights)
    reader = ComponentReader(checkpoint, partial(_place, checkpoint))
    return build(network, reader, weights="none", dtype=torch.float32, device=device)


def _reason(error: Exception) -> str:
    """The first line of a library's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


_OLD_DINO = {
    **{f"attention.{each[0]}_proj": f"attention.attention.{each}" for each in ("query", "key", "value")},
    "attention.o_proj": "attention.output.dense",
}
"""Names that transformers 5 gives DINOv2's layers, and those of transformers 4, which published files have."""


def _place(checkpoint: Checkpoint, name: str) -> Source:
    forms = [name]
    for new, old in _OLD_DINO.items():
        forms += [name.replace(f".{new}.", f".{old}."), name.replace(f".{old}.", f".{new}.")]
    return Source(next((form for form in forms if form in checkpoint.shapes), name))


def _processor(kind: str, files: ModelFiles) -> Any:
    """The library's image processor that computes with Pillow and NumPy, as the folder sets it.

    The other kind wants torchvision, which we do not ask for, and scales a little otherwise.

    Raises:
        ModelError: its settings make no sense.
    """
    import transformers

    maker = getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind)
    config = read_json(files.preprocessor)
    try:
        _check_sizes(config)
        return maker.from_dict({key: value for key, value in config.items() if key in _PROCESSOR_KEYS})
    except Exception as error:  # the library raises several kinds on settings that make no sense
        raise ModelError(f"{files.preprocessor} cannot be used: {_reason(error)}; fetch it again") from error


_PROCESSOR_KEYS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize"),
    *("image_mean", "image_std", "do_convert_rgb"),
)


def _check_sizes(config: Mapping[str, Any]) -> None:
    for key in ("size", "crop_size"):
        value = config.get(key, 1)
        sides = list(value.values()) if isinstance(value, dict) else [value]
        if not all(isinstance(side, int) and 1 <= side <= _LARGEST_SIDE for side in sides):
            raise ValueError(f"{key} = {str(value)[:100]}")


# ---------------------------------------------------------------- pictures


def _in_batches(
    pictures: Sequence[Picture],
    processor: Any,
    network: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    on_step: OnStep | None,
) -> torch.Tensor:
    if not pictures:
        raise ConfigError("there are no pictures to score")
    features = []
    for first in range(0, len(pictures), _BATCH):
        check_stop()
        # One by one: a photograph takes a thousand times what is left of it.
        seen = [_pixels(picture, processor) for picture in _opened(pictures[first : first + _BATCH])]
        check_stop()
        features.append(network(torch.stack(seen).to(device)).float().cpu())
        if on_step:
            on_step(min(first + _BATCH, len(pictures)), len(pictures))
    return torch.cat(features)


def _opened(pictures: Sequence[Picture]) -> Iterator[Image.Image]:
    for picture in pictures:
        yield picture.convert("RGB") if isinstance(picture, Image.Image) else open_picture(picture)


def _pixels(picture: Image.Image, processor: Any) -> torch.Tensor:
    pixels: torch.Tensor = processor(images=_not_too_long(picture), return_tensors="pt").pixel_values[0]
    return pixels


def _not_too_long(picture: Image.Image) -> Image.Image:
    """The middle of a picture that is a mere strip: scaled by its short side it would fill the memory."""
    width, height = picture.size
    most = _LONGEST_SIDES * min(width, height)
    if max(width, height) <= most:
        return picture
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return picture.crop((left, top, min(width, left + most), min(height, top + most)))
