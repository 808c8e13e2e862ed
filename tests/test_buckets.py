"""Pictures of any shape: which size they are cut to, what is told of it, and runs on several shapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoodip_core.base.errors import ImagesError
from zoodip_core.base.events import Event, Message
from zoodip_core.data.cuts import bucket_of, buckets, cut_of
from zoodip_core.data.images import blown_up, cut_off, load_images, random_cuts, with_flips
from zoodip_core.data.sheets import sheet_of
from zoodip_core.model.blueprint import ModelInfo
from zoodip_core.model.embedding import load_embedding
from zoodip_core.model.latents import encode_images
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.inputs import load_references
from zoodip_core.train.loop import TrainResult
from zoodip_core.train.prepared import Training
from zoodip_core.train.replay import rewind
from zoodip_core.train.run_folder import RunFolder
from zoodip_core.train.sizes import sizes_in

from .test_training import config_of, resume, train

SDXL_SIZES = """512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472 704x1408
704x1344 768x1344 768x1280 832x1216 832x1152 896x1152 896x1088 960x1088 960x1024 1024x1024"""
"""Of the table in the appendix of SDXL's paper (arXiv 2307.01952), those with a height of at most their width."""


def info_of(resolution: int) -> ModelInfo:
    return ModelInfo(Path("some"), "some", "sd1", (768,), resolution, "epsilon")


def folder_of(place: Path, *sizes: tuple[int, int]) -> Path:
    """Pictures of these sizes, named by their number."""
    place.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        small = values.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(place / f"{number:03}.png")
    return place


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("resolution", "unit"), [(48, 8), (64, 8), (256, 32), (384, 32), (512, 64), (768, 64), (1024, 64), (520, 8)]
)
def test_a_picture_goes_to_the_bucket_of_the_nearest_ratio(resolution: int, unit: int) -> None:
    """Worked anew in NumPy: every size of these units, with no more pixels than the square, and none to be added."""
    sides = np.arange(unit, 2 * resolution + 1, unit)
    across, down = (each.ravel() for each in np.meshgrid(sides, sides))
    longer, shorter = np.maximum(across, down), np.minimum(across, down)
    is_bucket = (across * down <= resolution**2) & ((shorter + unit) * longer > resolution**2)
    is_bucket &= (longer <= 4 * shorter) & (longer >= resolution)
    across, down = across[is_bucket], down[is_bucket]
    expected = set(zip(across.tolist(), down.tolist(), strict=True))
    assert set(buckets(resolution)) == expected
    assert (resolution, resolution) in expected

    generator = np.random.default_rng(resolution)
    for width, height in generator.integers(8, 5000, (400, 2)).tolist():
        off = np.abs(np.log(width / height) - np.log(across / down))
        found = bucket_of((width, height), resolution)
        assert off[(across == found[0]) & (down == found[1])][0] == pytest.approx(off.min(), abs=1e-12)


def test_sdxl_s_buckets_are_sizes_that_it_was_trained_on() -> None:
    known = {tuple(map(int, size.split("x"))) for size in SDXL_SIZES.split()}
    own = buckets(1024)
    assert {(min(size), max(size)) for size in own} < known
    for size in ((1152, 896), (1216, 832), (1344, 768), (1536, 640), (832, 1216)):
        assert size in own


@pytest.mark.parametrize("resolution", [48, 64, 512])
def test_a_square_picture_is_cut_as_the_center(resolution: int, tmp_path: Path) -> None:
    place = folder_of(tmp_path, (48, 48), (97, 97), (300, 300), (512, 512))
    shaped, _ = load_images([place], resolution, crop="bucket")
    centered, _ = load_images([place], resolution, crop="center")
    for ours, theirs in zip(shaped, centered, strict=True):
        assert ours.picture.tobytes() == theirs.picture.tobytes()
        assert replace(ours, picture=theirs.picture) == theirs


def test_bundled_subjects_are_cut_as_before() -> None:
    for name in concepts.names():
        for given in (concepts.load(name).images, concepts.load(name).heldout):
            both = [load_images([given], 48, crop=crop)[0] for crop in ("bucket", "center")]
            assert [each.picture.tobytes() for each in both[0]] == [each.picture.tobytes() for each in both[1]]


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (600, 200), (200, 600), (801, 532), (64, 8)])
def test_a_picture_is_scaled_alike_in_both_directions_and_cut_in_the_middle(size: tuple[int, int]) -> None:
    """A picture whose values say where they are: each pixel of the cut is found where plain geometry has it."""
    width, height = size
    cut = cut_of(size, 256, "bucket")
    scale = max(cut.size[0] / width, cut.size[1] / height)
    rows, columns = np.mgrid[:height, :width].astype(np.float32) + 0.5
    for values, axis in ((columns, 0), (rows, 1)):
        found = np.asarray(cut.apply(Image.fromarray(values), Image.Resampling.BILINEAR))
        here = np.arange(cut.size[axis]) + 0.5
        expected = (here - cut.size[axis] / 2) / scale + size[axis] / 2
        inner = (expected > 3 + 2 / scale) & (expected < size[axis] - 3 - 2 / scale)  # at edges a filter sees less
        line = found[cut.size[1] // 2] if axis == 0 else found[:, cut.size[0] // 2]
        np.testing.assert_allclose(line[inner], expected[inner], atol=0.1)
    top, left = cut.crop_top_left
    assert (left, top) == (round((width * scale - cut.size[0]) / 2), round((height * scale - cut.size[1]) / 2))
    assert 0 in (top, left)


def test_a_picture_of_one_to_three(tmp_path: Path) -> None:
    place = folder_of(tmp_path, (300, 900), (900, 300))
    (tall, wide), skipped = load_images([place], 512, crop="bucket")
    assert (tall.picture.size, wide.picture.size, skipped) == ((256, 832), (832, 256), [])
    assert (tall.original_size, tall.crop_top_left) == ((900, 300), (0, 11))  # 277 x 832 before it is cut
    assert cut_off([tall, wide]) == []


def test_what_is_too_thin_is_refused_and_what_is_too_long_is_cut_and_told(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="has only 1 x 4000 pixels; use a larger picture"):
        load_images([folder_of(tmp_path / "line", (1, 4000))], 512, crop="bucket")
    place = folder_of(tmp_path / "long", (16, 4000), (600, 100), (400, 100), (500, 100))
    images, _ = load_images([place], 64, crop="bucket")
    assert [image.picture.size for image in images] == [(32, 128), (128, 32), (128, 32), (128, 32)]
    (line,) = cut_off(images)
    assert line == "pictures so long that much of them is cut off: 000.png (98%), 001.png (33%)"


@pytest.mark.parametrize(("crop", "scales"), [("bucket", (1.6, 1.7)), ("center", (3.0, 2.7)), ("resize", (3.0, 2.7))])
def test_small_pictures_are_told_from_half_as_large_again_on(
    crop: str, scales: tuple[float, float], tmp_path: Path
) -> None:
    """As buckets they become 104 x 32 and 96 x 40."""
    images, _ = load_images([folder_of(tmp_path, (43, 43), (42, 42), (64, 21), (64, 24))], 64, crop=crop)
    (line,) = blown_up(images)
    small = "001.png (1.5 times), 002.png ({} times), 003.png ({} times)".format(*scales)
    assert line == f"pictures that are blown up, and so look soft: {small}; use larger ones"


def test_cuts_and_mirror_images_of_wide_pictures(tmp_path: Path) -> None:
    place = folder_of(tmp_path, (300, 100), (90, 140))
    plain, _ = load_images([place], 64, crop="bucket")
    larger, _ = load_images([place], 64, crop="bucket", enlarged=True)
    sizes = [image.picture.size for image in plain]
    assert sizes == [(104, 32), (48, 80)]
    assert [image.picture.size for image in larger] == [(130, 40), (60, 100)]
    cuts = random_cuts(larger, 6, seed=3)
    places = set()
    for number, cut in enumerate(cuts):
        whole, (width, height) = larger[number // 6], sizes[number // 6]
        top, left = (cut.crop_top_left[i] - whole.crop_top_left[i] for i in (0, 1))
        expected = np.asarray(whole.picture)[top : top + height, left : left + width]
        assert expected.shape == (height, width, 3)
        np.testing.assert_array_equal(np.asarray(cut.picture), expected)
        places.add((number // 6, top, left))
    assert len(places) > 9
    for image, flipped in zip(plain, with_flips(plain)[2:], strict=True):
        np.testing.assert_array_equal(np.asarray(flipped.picture), np.asarray(image.picture)[:, ::-1])
    config = config_of(images=(str(place),), captions=None, resolution=64, random_crops=6, flip=True)
    images, _ = load_references(config, info_of(64))
    assert len(images) == 2 * (2 + 2 * 6)
    assert sizes_in(images) == "2 pictures: 1 at 104 x 32, 1 at 48 x 80"


def test_two_hundred_pictures_of_forty_shapes(tmp_path: Path) -> None:
    """A command line takes any number; what is told stays a line."""
    shapes = [(100 + 10 * i, 100) for i in range(20)] + [(100, 110 + 10 * i) for i in range(20)]
    place = folder_of(tmp_path, *(shapes * 5))
    images, lines = load_references(config_of(images=(str(place),), captions=None, resolution=200), info_of(200))
    assert len(images) == 200
    found = {image.picture.size for image in images}
    assert len(found) > 30
    for image in images:
        height, width = image.original_size
        kept = np.prod(image.picture.size) / (200 * 200)
        assert 0.7 < kept <= 1
        assert abs(np.log(width / height * image.picture.height / image.picture.width)) < 0.1
    told = sizes_in(images)
    assert told.startswith("200 pictures: ")
    assert told.endswith(f" and {len(found) - 6} sizes more")
    assert len(told) < 150
    assert len(lines) == 1  # they are blown up


def test_a_sheet_shows_pictures_of_any_shape_undistorted() -> None:
    wide = Image.new("RGB", (640, 320), "red")
    wide.paste("blue", (160, 80, 480, 240))
    square = Image.new("RGB", (320, 320), "red")
    sheet = np.asarray(sheet_of([("pictures", [wide, wide.rotate(90, expand=True), square])]))
    red = (sheet == (255, 0, 0)).all(axis=2) | (sheet == (0, 0, 255)).all(axis=2)
    columns = [slice(150 + 150 * i, 150 + 150 * i + 144) for i in range(3)]
    for column, (width, height) in zip(columns, ((144, 72), (72, 144), (144, 144)), strict=True):
        down, across = np.nonzero(red[:, column])
        assert abs(np.ptp(down) + 1 - height) <= 2
        assert abs(np.ptp(across) + 1 - width) <= 2
        assert abs((down.min() + down.max()) / 2 - (6 + 71.5)) <= 1
        assert abs((across.min() + across.max()) / 2 - 71.5) <= 1


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shapes of one subject: at 48 pixels 48 x 48, 64 x 32 and 40 x 56."""
    place = tmp_path_factory.mktemp("photos")
    sources = sorted(concepts.load("pip").images.glob("*.png"))
    boxes = [(0, 0, 48, 48), (0, 10, 48, 36), (6, 0, 40, 48), (0, 0, 48, 48), (0, 12, 48, 36), (8, 0, 42, 48)]
    for source, box in zip(sources, boxes, strict=False):
        with Image.open(source) as picture:
            picture.convert("RGB").resize((48, 48)).crop(box).save(place / source.name)
    return place


def run_of(photos: Path, **settings: Any) -> TrainConfig:
    return config_of(images=(str(photos),), **settings)


def test_latents_are_of_their_pictures_shapes(photos: Path, tiny_model: StableDiffusion) -> None:
    images, _ = load_references(run_of(photos), tiny_model.info)
    assert {image.picture.size for image in images} == {(48, 48), (64, 32), (40, 56)}
    posteriors = encode_images(tiny_model, images)
    for image, mean, std in zip(images, posteriors.mean, posteriors.std, strict=True):
        width, height = image.picture.size
        assert mean.shape == std.shape == (4, height // 4, width // 4)
    assert posteriors.time_ids[:, 4:].tolist() == [[*image.picture.size[::-1]] for image in images]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="plain", marks=pytest.mark.slow),
        pytest.param({"flip": True, "random_crops": 1, "target_prompt": "a {} in the snow"}, id="aligned"),
    ],
)
def test_a_run_on_three_shapes_goes_on_to_the_same_bytes(
    more: dict[str, Any], photos: Path, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    """Stopped twice, and killed with its journal ahead of its state and the last line torn."""
    config = run_of(photos, checks=2, patience=3, **more)
    whole: TrainResult = train(config, tmp_path / "whole", tiny_model)
    drawn = {record.image for record in RunFolder.open(tmp_path / "whole").past().records.values()}
    images, _ = load_references(config, tiny_model.info)
    assert len({images[number].picture.size for number in drawn}) == 3
    for stop, do in ((4, train), (8, resume)):
        assert not do(config, tmp_path / "run", tiny_model, stop_after=stop).finished
    lines = (tmp_path / "whole" / "steps.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "steps.jsonl").write_bytes(b"".join(lines[:11]) + lines[11][:-5])
    assert len(resume(config, tmp_path / "run", tiny_model).losses) == 3
    for name in ("pip.safetensors", "steps.jsonl", "state.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    kept = load_embedding(tmp_path / "whole" / "snapshots" / "step-00000010.safetensors").vectors
    assert torch.equal(load_embedding(rewind(tmp_path / "run", 10).path).vectors, kept)
    assert torch.isfinite(whole.embedding.vectors).all()


def test_a_run_says_which_sizes_there_are(photos: Path, tiny_model: StableDiffusion) -> None:
    def told(**settings: Any) -> list[str]:
        events: list[Event] = []
        Training(run_of(photos, **settings), tiny_model, events.append)
        texts = [event.text for event in events if isinstance(event, Message) and not event.warning]
        return [text for text in texts if "pictures:" in text]

    assert told() == ["6 pictures: 2 at 48 x 48, 2 at 64 x 32, 2 at 40 x 56"]
    assert told(flip=True) == told()
    assert told(crop="center") == []


def test_old_runs_keep_the_square_in_the_middle(photos: Path, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    """A run's settings have always said how pictures are cut."""
    train(run_of(photos, crop="center"), tmp_path / "run", tiny_model, stop_after=2)
    config = RunFolder.open(tmp_path / "run").config
    assert config.crop == "center"
    assert {image.picture.size for image in load_references(config, tiny_model.info)[0]} == {(48, 48)}
    assert resume(config, tmp_path / "run", tiny_model).finished
