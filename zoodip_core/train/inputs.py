"""What a run reads: pictures, captions and prompts, checked with no more of the model than its tokenizers."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..base.errors import ConfigError
from ..base.names import file_stem
from ..base.texts import how_many
from ..data.images import ReferenceImage, blown_up, cut_off, left_out, load_images, only_first, random_cuts, with_flips
from ..data.masks import Masks, masked_of, without_masks
from ..data.naming import Naming, captions_of, naming
from ..data.prompts import listing_left_out, unused_captions
from ..model.blueprint import ModelInfo
from ..model.places import Rows
from ..model.token_model import Prompt, TokenModel
from .alignment import Alignment
from .config import TrainConfig
from .identity import Inputs


def load_references(config: TrainConfig, info: ModelInfo) -> tuple[list[ReferenceImage], list[str]]:
    """The images that a run trains on, mirror images included, and lines on what is not used of what was given.

    Raises:
        ImagesError: none can be used.
    """
    resolution = config.resolution or info.resolution
    masks = Masks(config.transparency) if config.masked else None
    sources = without_masks(config.images) if masks else config.images
    how: dict[str, Any] = {"crop": config.crop, "background": config.background, "masks": masks.of if masks else None}
    images, skipped = load_images(sources, resolution, **how)
    captions = Path(config.captions) if config.captions else None
    cuts: list[ReferenceImage] = []
    if config.random_crops:
        larger, _ = load_images(sources, resolution, **how, enlarged=True)
        cuts = random_cuts(larger, config.random_crops, config.seed)
    lines = [
        *(f"skipped: {line}" for line in skipped),
        *left_out(config.images, masks.known.union(map(Path, sources)) if masks else None),
        *(masks.lines if masks else []),
        *only_first([image.path.name for image in images if image.has_more]),
        *blown_up(images),
        *(cut_off(images) if config.crop == "bucket" else []),
        *unused_captions(captions, [image.path for image in images], config.images),
        *listing_left_out(captions, [image.path for image in images]),
    ]
    empty = config.random_crops * len(images) - len(cuts)
    if empty:
        lines.append(f"left out, {how_many(empty, 'random cut')} without the subject, by their pictures' masks")
    images += cuts
    _check_target(config, images)
    return with_flips(images) if config.flip else images, lines


def masks_told(images: Sequence[ReferenceImage]) -> list[str]:
    """A line on how many of the pictures have a mask, where any has."""
    found: dict[Path, bool] = {}
    for image in images:
        found[image.path] = found.get(image.path, False) or image.mask is not None
    return masked_of(found)


def _check_target(config: TrainConfig, images: Sequence[ReferenceImage]) -> None:
    """Refuse masks outside of which nothing counts beside a target prompt, which pulls there too."""
    if config.aligned and config.mask_background == 0 and any(image.mask for image in images):
        raise ConfigError(
            "mask_background = 0: with a target prompt, what lies outside of masks has to count a little; set "
            "mask_background to 0.1, or leave target_prompt out"
        )


def tokenised(config: TrainConfig, model: TokenModel, images: Sequence[ReferenceImage]) -> list[list[Prompt]]:
    """The captions of each image, as the model's text encoders read them. Needs tokenizers alone.

    Raises:
        CaptionError: one has no place for the token, or is too long; so for the samples' prompt.
        TokenError: the model knows the token as a word, or no start can be made from the initializer.
    """
    captions = captions_in(config, images)
    for number, (token, word) in enumerate(zip(config.tokens, config.initializers, strict=True)):
        model.check_token(token)
        model.check_initializer(word, config.num_vectors, config.initializer_mode, number * config.num_vectors)
    for target in config.targets:
        model.prompt(target.text, _rows(config, target), "target_prompt: the prompt")
    for text in config.sample_prompts:
        sample = naming(text, config.tokens, own=0)
        model.prompt(sample.text, _rows(config, sample), "sample_prompt: the prompt")
    negative = naming(config.sample_negative_prompt or "", config.tokens, own=0)
    model.prompt(negative.text, _rows(config, negative), "sample_negative_prompt: the prompt")
    return [
        [model.prompt(each.text, _rows(config, each), f"{image.path}: the caption") for each in own]
        for image, own in zip(images, captions, strict=True)
    ]


def same_as_captions(config: TrainConfig, model: TokenModel, prompts: Sequence[Sequence[Prompt]]) -> list[str]:
    """A line for the user on target prompts that pictures are captioned with: those pull the token both ways."""
    captions = {model.prompt_bytes(prompt) for each in prompts for prompt in each}
    return [
        f"target_prompt: {target.text!r} is a caption too: a target says what the pictures do not show, such as "
        "another place"
        for target in (config.targets if config.aligned else ())
        if model.prompt_bytes(model.prompt(target.text, _rows(config, target))) in captions
    ]


def aligned(config: TrainConfig, model: TokenModel) -> Alignment | None:
    """What aligns a run with its target prompts; None if nothing does.

    Raises:
        CaptionError: one is longer than the model reads.
    """
    if not config.aligned:
        return None
    return Alignment(
        [model.prompt(text, 0, "target_prompt: the prompt") for text in config.clean_prompts],
        model.prompt(""),
        config.alignment,
        config.alignment_alpha,
        config.alignment_beta,
        config.lora_rank > 0,
    )


def captions_in(config: TrainConfig, images: Sequence[ReferenceImage]) -> list[tuple[Naming, ...]]:
    """The captions of each image, and the tokens that they name; see :func:`.data.naming.captions_of`."""
    return captions_of(
        [image.path for image in images],
        config.images,
        tokens=config.tokens,
        class_words=config.class_words,
        template=config.template,
        captions_file=Path(config.captions) if config.captions else None,
    )


def _rows(config: TrainConfig, named: Naming) -> Rows:
    """The candidates' rows for the places of a text."""
    size = config.num_vectors
    if len(config.tokens) == 1:
        return size
    return [range(number * size, (number + 1) * size) for number in named.tokens]


def name_warning(config: TrainConfig, model: TokenModel) -> list[str]:
    """A line for the user if the token's file takes the place of a word, where prompts name tokens by their files."""
    return [
        f"{stem} is a word of the model's: in A1111 and Forge {stem}.safetensors takes its place in every prompt. "
        f"Give the file another name there, or choose a token like <my-{stem}>"
        for stem in map(file_stem, config.tokens)
        if model.knows(stem)
    ]


def noise_warning(config: TrainConfig, dtype: torch.dtype) -> list[str]:
    """A line for the user if mu is lost in the rounding of the activations."""
    if dtype != torch.bfloat16 or config.mu >= 5e-3 or config.adapt_mu:
        return []
    return [
        f"mu = {config.mu:g} is below the rounding noise of bfloat16: the estimated gradients will be noise. "
        "Use mu 0.01, or dtype float32 or float16"
    ]


def inputs_of(model: TokenModel, images: list[ReferenceImage], prompts: list[list[Prompt]]) -> Inputs:
    """What a run's losses depend on besides its settings: weights, noise schedule, pictures, texts as tokenised."""
    start = model.fingerprint.encode()
    start += json.dumps(model.schedule, sort_keys=True).encode()
    texts = [b"".join(map(model.prompt_bytes, each)) for each in prompts]
    pairs = zip(images, texts, strict=True)
    together = (piece for image, text in pairs for piece in (image.picture.tobytes(), text))
    masks = _digest(image.mask.tobytes() if image.mask else b"none" for image in images)
    drawn_over = {"masks": masks} if any(image.mask for image in images) else {}
    return Inputs(
        _digest(itertools.chain([start], together, map(str.encode, drawn_over.values()))),
        {
            "model": _digest([start]),
            "images": _digest(image.picture.tobytes() for image in images),
            "captions": _digest(dict.fromkeys(texts)),  # one picture more with the template's are the same captions
            **drawn_over,
        },
    )


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
