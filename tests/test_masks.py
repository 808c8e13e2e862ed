"""Masks: found, laid over their pictures, and what they make of a loss, worked by hand in NumPy float64."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.small_models import SmallModels
from tests.test_alignment import CAPTION, DRAW, NEAR, SHAPE, Reference, T, alignment_of, token_of
from tests.test_lora import train
from zoodip_core.base import rng
from zoodip_core.base.errors import ConfigError, ImagesError, ModelError, RunFolderError
from zoodip_core.base.events import Event, Message
from zoodip_core.data.images import ReferenceImage, left_out, load_images, random_cuts, with_flips
from zoodip_core.data.masks import Masks, without_masks
from zoodip_core.model.forward import Forward, Forwards, Inputs
from zoodip_core.model.latents import encode_images
from zoodip_core.model.load import load_quantized
from zoodip_core.model.posteriors import place_weights, with_masks
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.draws import fixed_draws, mean_losses
from zoodip_core.train.heldout import TIMESTEPS, heldout_losses
from zoodip_core.train.inputs import load_references, masks_told
from zoodip_core.train.loop import resume_training, train_token
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.prepared import Training
from zoodip_core.train.presets import check_given, preset_for
from zoodip_core.train.timesteps import PUTS

PIP = concepts.load("pip")
SUBJECT = (250, 10, 200)
"""A colour that nothing else in a picture has."""
SIDE = 64


def noise(size: tuple[int, int]) -> Image.Image:
    """Greys, so that :data:`SUBJECT` is told from them."""
    return Image.effect_noise(size, 60).convert("RGB")


def soft(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """White in a box, with edges of 128 around it."""
    mask = Image.new("L", size)
    mask.paste(128, (box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3))
    mask.paste(255, box)
    return mask


def pair(folder: Path, name: str, size: tuple[int, int], box: tuple[int, int, int, int], **how: Any) -> Path:
    """A picture whose subject is of one colour, and its mask beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size)
    mask.paste(255, box)
    picture = noise(size)
    picture.paste(SUBJECT, (0, 0), mask)
    path = folder / f"{name}.png"
    picture.save(path, **how)
    mask.save(folder / f"{name}.mask.png")
    return path


def load(sources: Sequence[Path], side: int = SIDE, **how: Any) -> tuple[list[ReferenceImage], list[str], Masks]:
    masks = Masks(how.pop("transparency", "background"))
    images, skipped = load_images(sources, side, masks=masks.of, **how)
    return images, skipped, masks


def said(folder: Path, **how: Any) -> list[str]:
    return load([folder], **how)[2].lines


# ---------------------------------------------------------------- geometry


def share_of_subject(image: ReferenceImage) -> np.ndarray[Any, Any]:
    """How much of each pixel is the subject's colour; its green is far from any grey's of that red."""
    red, green, _ = np.moveaxis(np.asarray(image.picture, dtype=np.float64), -1, 0)
    return (red - green) / (SUBJECT[0] - SUBJECT[1])


def lies_over(image: ReferenceImage) -> bool:
    assert image.mask is not None
    assert image.mask.mode == "L"
    assert image.mask.size == image.picture.size
    difference = np.abs(np.asarray(image.mask) / 255 - share_of_subject(image))
    return bool(difference.mean() < 0.02 and 0.02 < share_of_subject(image).mean() < 0.9)


@pytest.mark.parametrize("crop", ["center", "resize"])
@pytest.mark.parametrize("size", [(200, 120), (120, 200), (97, 131), (40, 40)])
def test_a_mask_moves_with_its_picture(tmp_path: Path, size: tuple[int, int], crop: str) -> None:
    width, height = size
    pair(tmp_path, "a", size, (width // 3, height // 2, width * 3 // 4, height * 7 // 8))
    images, _, masks = load([tmp_path], crop=crop)
    larger, _, _ = load([tmp_path], crop=crop, enlarged=True)
    cuts = random_cuts(larger, 12, seed=3)
    flipped = with_flips([*images, *cuts])
    assert masks.lines == []
    assert len(flipped) == 2 * (1 + len(cuts)) > 10
    assert all(map(lies_over, flipped))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn", ["as stored", "as seen"])
def test_a_mask_is_turned_as_its_picture(tmp_path: Path, orientation: int, drawn: str) -> None:
    """Of a camera's lying picture, a mask is drawn on what is seen, or on the file's pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = pair(tmp_path, "a", (160, 96), (20, 40, 90, 80), exif=exif)
    if drawn == "as stored" and orientation in (2, 3, 4):
        pytest.skip("of the same shape either way: it is taken as drawn on what is seen")
    if drawn == "as seen":
        with Image.open(path) as picture, Image.open(tmp_path / "a.mask.png") as mask:
            marked = mask.copy()
            marked.getexif()[0x0112] = orientation
            assert picture.getexif()[0x0112] == orientation
            ImageOps.exif_transpose(marked).save(tmp_path / "a.mask.png")
    ((image,), _, masks) = load([tmp_path], crop="resize")
    assert masks.lines == []
    assert lies_over(image)


@pytest.mark.parametrize("size", [(80, 48), (320, 192), (81, 48), (53, 32)])
def test_a_mask_of_another_size_is_scaled(tmp_path: Path, size: tuple[int, int]) -> None:
    pair(tmp_path, "a", (160, 96), (20, 40, 90, 80))
    with Image.open(tmp_path / "a.mask.png") as mask:
        mask.resize(size, Image.Resampling.BOX).save(tmp_path / "a.mask.png")
    ((image,), _, masks) = load([tmp_path], crop="resize")
    assert masks.lines == []
    assert lies_over(image)


# ---------------------------------------------------------------- where they come from


NAMES = ["a.mask.png", "a-masklabel.png", "A.Mask.PNG", "masks/a.png", "Masks/a.jpg", "a.jpg.mask.png", "a.mask.webp"]


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_found_by_their_names(tmp_path: Path, name: str) -> None:
    noise((80, 80)).save(tmp_path / "a.jpg")
    noise((80, 80)).save(tmp_path / "b.jpg")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    soft((80, 80), (20, 20, 50, 50)).save(tmp_path / name)
    images, _, masks = load([tmp_path])
    assert [image.mask is not None for image in images] == [True, False]
    assert masks_told(images) == ["masks for 1 of 2 pictures; the rest is learned whole"]
    assert left_out([tmp_path], masks.known) == masks.lines == []
    assert left_out([tmp_path]) != []  # where masks are not used, as before


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_any_kind_of_picture_is_a_mask(tmp_path: Path, mode: str) -> None:
    noise((80, 80)).save(tmp_path / "a.png")
    grey = Image.new("L", (80, 80))
    grey.paste(255, (20, 20, 50, 50))
    if mode == "I;16":
        Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "a.mask.png")
    else:
        grey.convert("RGB").convert(mode).save(tmp_path / "a.mask.png")
    ((image,), _, _) = load([tmp_path], 80)
    assert image.mask is not None
    assert image.mask.tobytes() == grey.tobytes()


def test_transparency_is_a_mask_where_asked_for(tmp_path: Path) -> None:
    mask = soft((80, 80), (20, 20, 50, 50))
    layer = noise((80, 80)).convert("RGBA")
    layer.putalpha(mask)
    layer.save(tmp_path / "a.png")
    noise((80, 80)).save(tmp_path / "b.png")
    plain, _, _ = load([tmp_path], 80)
    images, _, masks = load([tmp_path], 80, transparency="mask")
    assert [image.mask for image in plain] == [None, None]
    assert [image.picture.tobytes() for image in images] == [image.picture.tobytes() for image in plain]
    assert images[0].mask is not None
    assert images[0].mask.tobytes() == mask.tobytes()
    assert images[1].mask is None
    soft((80, 80), (40, 40, 60, 60)).save(tmp_path / "a.mask.png")
    images, _, masks = load([tmp_path], 80, transparency="mask")
    assert images[0].mask.tobytes() == soft((80, 80), (40, 40, 60, 60)).tobytes()  # type: ignore[union-attr]
    assert masks.lines == ["a.png has 2 masks: a.mask.png is used, its transparency left out"]


def test_masks_that_a_glob_brings_along_are_no_pictures(tmp_path: Path) -> None:
    pair(tmp_path, "a", (80, 80), (20, 20, 50, 50))
    pair(tmp_path, "b", (80, 80), (20, 20, 50, 50))
    (tmp_path / "masks").mkdir()
    (tmp_path / "b.mask.png").rename(tmp_path / "masks" / "b.png")
    soft((80, 80), (20, 20, 50, 50)).save(tmp_path / "gone.mask.png")
    sources = sorted(tmp_path.iterdir())
    assert without_masks(sources) == [tmp_path / "a.png", tmp_path / "b.png"]
    images, _, masks = load(without_masks(sources))  # type: ignore[arg-type]
    assert all(image.mask for image in images)
    told = left_out(sources, {*masks.known, *without_masks(sources)})  # type: ignore[arg-type]
    assert told == ["gone.mask.png is a mask of no picture"]
    assert without_masks([tmp_path / "a.mask.png"]) == [tmp_path / "a.mask.png"]  # alone it is a picture


# ---------------------------------------------------------------- bad masks


def bad(folder: Path, name: str) -> Path:
    """A picture with a mask that cannot be used."""
    noise((80, 60)).save(folder / "a.png")
    file = folder / "a.mask.png"
    if name == "unreadable":
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    elif name == "shape":
        soft((80, 80), (20, 20, 50, 50)).save(file)
    elif name == "black":
        Image.new("L", (80, 60)).save(file)
    elif name == "white":
        Image.new("L", (80, 60), 255).save(file)
    elif name == "two":
        soft((80, 60), (20, 20, 50, 50)).save(file)
        soft((80, 60), (30, 20, 50, 50)).save(folder / "a-masklabel.png")
    return file


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("unreadable", "a.mask.png is damaged"),
        ("shape", "the mask a.mask.png is of another shape, 80 x 80 for a picture of 80 x 60; it has to lie over"),
        ("black", "the mask a.mask.png is black all over and shows no subject, which is to be white; a.png is learned"),
        ("white", "the mask a.mask.png is the same all over; a.png is learned whole"),
        ("two", "a.png has 2 masks: a.mask.png is used, a-masklabel.png left out"),
    ],
)
def test_a_bad_mask_is_told_once_with_its_name(tmp_path: Path, name: str, line: str) -> None:
    bad(tmp_path, name)
    images, skipped, masks = load([tmp_path])
    load_images([tmp_path], SIDE, masks=masks.of, enlarged=True)
    assert (len(images), skipped) == (1, [])
    assert (images[0].mask is None) == (name != "two")
    assert len(masks.lines) == 1
    assert line in masks.lines[0]
    assert left_out([tmp_path], masks.known) == []


def test_a_picture_whose_subject_is_cut_off_is_skipped(tmp_path: Path) -> None:
    pair(tmp_path, "a", (400, 80), (0, 10, 60, 60))
    pair(tmp_path, "b", (80, 80), (10, 10, 60, 60))
    images, skipped, _ = load([tmp_path])
    assert [image.path.name for image in images] == ["b.png"]
    assert "a.png shows nothing of the subject once it is cut to 64 x 64, by its mask; set crop to resize" in skipped[0]
    assert len(load([tmp_path], crop="resize")[0]) == 2
    with pytest.raises(ImagesError, match="no image can be used"):
        load([tmp_path / "a.png"])


def test_cuts_without_the_subject_are_left_out_and_told(tmp_path: Path, tiny_model: StableDiffusion) -> None:
    pair(tmp_path, "a", (80, 80), (0, 0, 9, 9))
    config = config_of(tmp_path, random_crops=20)
    images, lines = load_references(config, tiny_model.info)
    assert 1 < len(images) < 21
    assert all(map(lambda image: image.mask and image.mask.getbbox(), images))  # noqa: C417 - one line
    assert f"left out, {21 - len(images)} random cuts without the subject, by their pictures' masks" in lines


# ---------------------------------------------------------------- the weights


def weights_by_hand(mask: Image.Image, side: int, background: float) -> np.ndarray[Any, Any]:
    step = mask.width // side
    m = np.asarray(mask, dtype=np.float64).reshape(side, step, side, step).mean(axis=(1, 3)) / 255
    w = background + (1 - background) * m
    return np.asarray(w / w.mean())


@pytest.mark.parametrize("background", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("shape", [(4, 12, 12), (16, 1, 12, 12)])
def test_weights_are_the_masks_area_mean(background: float, shape: tuple[int, ...]) -> None:
    mask = soft((48, 48), (7, 9, 30, 33))
    weight = place_weights(mask, shape, background)
    assert weight is not None
    assert weight.dtype == torch.float64
    np.testing.assert_allclose(weight.numpy(), weights_by_hand(mask, 12, background), rtol=1e-12)
    assert weight.mean().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_mask_that_is_the_same_everywhere_is_none(value: int) -> None:
    assert place_weights(Image.new("L", (48, 48), value), (4, 12, 12), 0.1) is None


@pytest.mark.parametrize("size", [(40, 504), (504, 40), (500, 500)])
def test_sides_that_a_vae_cuts_off_are_fine(size: tuple[int, int]) -> None:
    width, height = size
    weight = place_weights(soft(size, (10, 10, 30, 30)), (4, height // 16, width // 16), 0.1)
    assert weight is not None
    assert weight.shape == (height // 16, width // 16)


@pytest.mark.parametrize("shape", [(144, 64), (4, 12, 48), (4, 96, 96)])
def test_latents_without_places_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"masks cannot be used; set mask_background to 1"):
        place_weights(soft((48, 48), (7, 9, 30, 33)), shape, 0.1)


# ---------------------------------------------------------------- the loss


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallModels:
    return SmallModels(tmp_path_factory.mktemp("models"))


def objective_of(model: StableDiffusion, folder: Path, side: int, background: float = 0.1) -> DiffusionObjective:
    """Of one picture with a mask, and one without."""
    pair(folder, "a", (96, 96), (20, 30, 70, 80))
    soft((96, 96), (20, 30, 70, 80)).save(folder / "a.mask.png")
    noise((96, 96)).save(folder / "b.png")
    images, _, _ = load([folder], side)
    posteriors = with_masks(encode_images(model, images), images, background)
    prompt = model.prompt(CAPTION, 1)
    return DiffusionObjective(model, posteriors, [[prompt]] * 2, PUTS())


@pytest.mark.parametrize("family", [pytest.param("sd15", marks=pytest.mark.slow), "sdxl"])
def test_the_loss_is_the_weighted_mean(tmp_path: Path, small: SmallModels, family: str) -> None:
    """sum(w e^2) / (channels sum(w)), in NumPy from the model's own outputs."""
    model = load_quantized(small.write(family, vocab=49_408), weights="none", dtype="float32", device="cpu")
    side = 64
    objective = objective_of(model, tmp_path, side)
    token = model.initial_vectors("a", 1, "first")
    candidates = torch.stack([token, token + 0.02, token - 0.02])
    for image in (0, 1):
        draw = replace(DRAW, image=image)
        view = objective.view(draw)
        found = objective.losses(candidates, draw).numpy()
        _, target = model.noised(view)
        denoiser = model.denoiser([view.prompt], None, print)
        for row, candidate in enumerate(candidates):
            output = denoiser.outputs(view, [(view.prompt, candidate[None])])[0].double().numpy()
            e = output - target[0].double().numpy()
            latent = e.shape[-1]
            w = np.ones((latent, latent))
            if image == 0:
                with Image.open(tmp_path / "a.mask.png") as mask:
                    w = weights_by_hand(mask.resize((side, side), Image.Resampling.BILINEAR), latent, 0.1)
            expected = (w * e**2).sum() / (len(e) * w.sum())
            assert found[row] == pytest.approx(expected, rel=1e-6)
        assert view.weight is not None
        assert (view.weight == 1).all() == (image == 1)  # without a mask, in the buffers of those that have one


def test_an_all_white_mask_is_as_none_to_the_byte(tmp_path: Path, tiny_model: StableDiffusion) -> None:
    for name, colour in (("none", None), ("white", 255)):
        folder = tmp_path / name
        folder.mkdir()
        for path in sorted(PIP.images.glob("*.png"))[:2]:
            (folder / path.name).write_bytes(path.read_bytes())
            if colour is not None:
                Image.new("L", (48, 48), colour).save(folder / f"{path.stem}.mask.png")
        train(config_of(folder), tmp_path / f"run-{name}", tiny_model)
    journals = [(tmp_path / f"run-{name}" / "steps.jsonl").read_bytes() for name in ("none", "white")]
    tokens = [(tmp_path / f"run-{name}" / "pip.safetensors").read_bytes() for name in ("none", "white")]
    assert journals[0] == journals[1]
    assert tokens[0] == tokens[1]


def test_buffers_take_another_weight_without_being_made_anew(tmp_path: Path, tiny_model: StableDiffusion) -> None:
    """What a graph would read is filled, and nothing is read back from it by the host."""
    objective = objective_of(tiny_model, tmp_path, 48)
    view = objective.view(replace(DRAW, image=0))
    noisy, target = tiny_model.noised(view)
    token = token_of(tiny_model)[None]
    assert view.weight is not None
    weights = [view.weight, view.weight.flip(0)]
    each = [Inputs(token, view.prompt, noisy, target, T, view.time_ids, weight=weight) for weight in (*weights, None)]
    assert each[0].shapes == replace(each[0], weight=objective.view(replace(DRAW, image=1)).weight).shapes
    forwards = Forwards(tiny_model, [view.prompt])
    found = [forwards.losses(inputs) for inputs in each]
    assert len(forwards._known) == 2
    fresh = Forward(tiny_model, each[1])
    fresh.fill(each[1])
    assert torch.equal(found[1], fresh.compute())
    assert len({float(loss) for loss in found}) == 3


# ---------------------------------------------------------------- with a target prompt


@pytest.fixture(scope="module")
def double_model() -> StableDiffusion:
    return replace(load_quantized(weights="none"), dtype=torch.float64)


def test_the_pull_of_a_target_prompt_stays_unweighted(double_model: StableDiffusion) -> None:
    """The difference that alignment makes to weighted losses' slopes, against autograd's of ``<D, p>``."""
    images, _ = load_images([PIP.images], 48)
    images = [replace(image, mask=soft((48, 48), (7, 9, 30, 33))) for image in images]
    posteriors = with_masks(encode_images(double_model, images), images, 0.1)
    captions = [[double_model.prompt(CAPTION, 1)]] * len(images)
    strength = 0.7
    plain = DiffusionObjective(double_model, posteriors, captions, PUTS())
    alignment = alignment_of(double_model, strength, 2.0, 1.5)
    with_target = DiffusionObjective(double_model, posteriors, captions, PUTS(), alignment=alignment)
    theta = token_of(double_model)
    directions = torch.randn(12, 1, theta.shape[1], generator=torch.Generator().manual_seed(2))
    both_ways = torch.cat([theta + NEAR * directions, theta - NEAR * directions])
    slopes = [
        (losses[:12] - losses[12:]) / (2 * NEAR)
        for losses in (with_target.losses(both_ways, DRAW, theta[None]), plain.losses(both_ways, DRAW))
    ]
    measured = slopes[0] - slopes[1]
    expected = (directions.double() * Reference(plain, "epsilon").gradient(theta, 2.0, 1.5)).sum(dim=(1, 2))
    assert torch.cosine_similarity(measured, expected, dim=0) > 0.999
    torch.testing.assert_close(measured.norm(), strength * expected.norm(), rtol=1e-2, atol=0)


def test_mask_background_0_with_a_target_prompt_is_refused(tmp_path: Path, tiny_model: StableDiffusion) -> None:
    pair(tmp_path, "a", (80, 80), (20, 20, 50, 50))
    config = config_of(tmp_path, mask_background=0.0, target_prompt="a {} in neon style", alignment=0.3)
    with pytest.raises(ConfigError, match=r"mask_background = 0: .* set mask_background to 0\.1"):
        load_references(config, tiny_model.info)
    (tmp_path / "a.mask.png").unlink()
    load_references(config, tiny_model.info)  # no mask is in use
    pair(tmp_path, "a", (80, 80), (20, 20, 50, 50))
    load_references(replace(config, alignment=0.0), tiny_model.info)


# ---------------------------------------------------------------- runs


def config_of(folder: Path, **settings: Any) -> TrainConfig:
    own = {"images": (str(folder),), "token": "<pip>", "initializer": "monster", "steps": 6, "n": 2, "save_every": 3}
    return TrainConfig.with_preset("default", {**own, "adapt_mu": False, "cache": None, **settings})


def test_every_preset_uses_masks_and_the_settings_alone_do_not() -> None:
    assert TrainConfig(images=("x",), token="<x>", initializer="dog").masked is False  # as runs of before
    for preset in ("default", "fast", "two-stage", "aligned", "paper", "paper-released"):
        assert preset_for("sd1", preset=preset)["mask_background"] == 0.1
    with pytest.raises(ConfigError, match="transparency = mask, and mask_background = 1 uses no masks"):
        check_given({"transparency": "mask", "mask_background": 1.0}, {}, {})


def test_without_the_setting_masks_are_passed_over_as_before(tmp_path: Path, tiny_model: StableDiffusion) -> None:
    pair(tmp_path, "a", (80, 80), (20, 20, 50, 50))
    images, lines = load_references(config_of(tmp_path, mask_background=1.0), tiny_model.info)
    assert [image.mask for image in images] == [None]
    assert lines == ["a.mask.png is a mask, which is not used"]
    (tmp_path / "masks").mkdir()
    (tmp_path / "a.mask.png").rename(tmp_path / "masks" / "a.png")
    assert left_out([tmp_path]) == ["masks/a.png is a mask, which is not used"]


def test_a_run_says_how_many_have_masks_and_checks_use_them(tmp_path: Path, tiny_model: StableDiffusion) -> None:
    pair(tmp_path, "a", (80, 80), (20, 20, 50, 50))
    noise((80, 80)).save(tmp_path / "b.png")
    events: list[Event] = []
    training = Training(config_of(tmp_path, checks=2), tiny_model, events.append)
    assert Message("masks for 1 of 2 pictures; the rest is learned whole") in events
    weights = training._own.posteriors.weights
    assert [bool((weight == 1).all()) for weight in weights] == [False, True]
    checked = training._check_loss()
    training._own.posteriors = replace(training._own.posteriors, weights=())
    assert checked != training._check_loss()


def test_a_resumed_run_ends_in_the_same_bytes(tmp_path: Path, tiny_model: StableDiffusion) -> None:
    photos = tmp_path / "photos"
    pair(photos, "a", (80, 80), (20, 20, 50, 50))
    pair(photos, "b", (90, 60), (30, 20, 50, 50))
    whole = config_of(photos, flip=True, random_crops=2)
    train(whole, tmp_path / "whole", tiny_model)
    stop_after(whole, tmp_path / "parts", tiny_model, 4)
    resume_training(tmp_path / "parts", model=tiny_model)
    for name in ("steps.jsonl", "pip.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def stop_after(config: TrainConfig, folder: Path, model: StableDiffusion, step: int) -> None:
    from zoodip_core.base.events import Commands, Progress

    commands = Commands()

    def watch(event: Event) -> None:
        if isinstance(event, Progress) and event.step >= step:
            commands.stop()

    assert not train_token(config, folder, model=model, on_event=watch, commands=commands).finished


@pytest.mark.parametrize("change", ["painted", "gone", "new"])
def test_a_changed_mask_refuses_to_resume(tmp_path: Path, tiny_model: StableDiffusion, change: str) -> None:
    photos = tmp_path / "photos"
    pair(photos, "a", (80, 80), (20, 20, 50, 50))
    mask = photos / "a.mask.png"
    if change == "new":
        mask.unlink()
    stop_after(config_of(photos), tmp_path / "run", tiny_model, 2)
    state = json.dumps(Training(config_of(photos), tiny_model).inputs.parts)
    assert ("masks" in state) == (change != "new")
    if change == "gone":
        mask.unlink()
    else:
        soft((80, 80), (10, 10, 30, 30)).save(mask)
    with pytest.raises(RunFolderError, match=r"the masks \(of .*photos\) are not those of this run any more"):
        resume_training(tmp_path / "run", model=tiny_model)


def test_held_out_losses_use_masks_that_are_there(tmp_path: Path, tiny_model: StableDiffusion) -> None:
    pair(tmp_path, "a", (48, 48), (10, 10, 30, 30))
    candidates = token_of(tiny_model)[None]
    whole, weighted = (heldout_losses(tiny_model, candidates, tmp_path, None, mask_background=b) for b in (1.0, 0.1))
    images, _, _ = load([tmp_path], 48)
    posteriors = with_masks(encode_images(tiny_model, images), images, 0.1)
    objective = DiffusionObjective(tiny_model, posteriors, [[tiny_model.prompt("a photo of a {}", 1)]], PUTS())
    assert torch.equal(weighted, mean_losses(objective, candidates, fixed_draws(2025, 1, TIMESTEPS, 2)))
    assert not torch.equal(whole, weighted)


def test_rng_of_a_view_is_as_without_a_mask(tmp_path: Path, tiny_model: StableDiffusion) -> None:
    objective = objective_of(tiny_model, tmp_path, 48)
    view = objective.view(replace(DRAW, image=0))
    assert torch.equal(view.noise[0], rng.normal(DRAW.seed, DRAW.step, "noise", SHAPE))
