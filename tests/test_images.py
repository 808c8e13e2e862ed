"""Odd but good image files become the RGB pictures that a person would expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from zoodip_core.base.errors import ConfigError, ImagesError
from zoodip_core.data.cuts import CROPS, cut_of
from zoodip_core.data.images import load_images, open_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SIDE = 32


def stripes(*colours: tuple[int, int, int]) -> Image.Image:
    """Upright stripes, each 32 x 32."""
    picture = Image.new("RGB", (SIDE * len(colours), SIDE))
    for i, colour in enumerate(colours):
        picture.paste(colour, (SIDE * i, 0, SIDE * (i + 1), SIDE))
    return picture


def loaded(path: Path, crop: str = "resize", background: str = "white") -> Image.Image:
    """The one picture at ``path``, 32 x 32."""
    (image,), skipped = load_images([path], SIDE, crop=crop, background=background)
    assert skipped == []
    assert image.path == path
    assert image.picture.mode == "RGB"
    assert image.picture.size == (SIDE, SIDE) or crop == "bucket"
    return image.picture


def near(picture: Image.Image, x: int, y: int, colour: tuple[int, ...], tolerance: int = 2) -> bool:
    found = picture.getpixel((x, y))
    assert isinstance(found, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(found, colour, strict=True))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is stored left is seen on top
    stripes(RED, BLUE).save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    picture = loaded(tmp_path / "turned.jpg")
    for x in (4, 28):
        assert near(picture, x, 4, RED, 10)
        assert near(picture, x, 28, BLUE, 10)


@pytest.mark.parametrize(("background", "colour"), [("white", WHITE), ("#00ff00", GREEN)])
def test_transparency_shows_the_background(tmp_path: Path, background: str, colour: tuple[int, int, int]) -> None:
    layer = stripes(RED, RED, RED).convert("RGBA")
    layer.putalpha(stripes((255, 255, 255), (128, 128, 128), (0, 0, 0)).convert("L"))
    layer.save(tmp_path / "layer.png")
    picture = loaded(tmp_path / "layer.png", background=background)
    assert near(picture, 4, 16, RED)
    assert near(picture, 16, 16, tuple((a + b) // 2 for a, b in zip(RED, colour, strict=True)))
    assert near(picture, 28, 16, colour)


def test_transparent_colour_of_a_palette_shows_the_background(tmp_path: Path) -> None:
    picture = Image.new("P", (2 * SIDE, SIDE))
    picture.putpalette([*RED, *BLUE])
    picture.paste(1, (SIDE, 0, 2 * SIDE, SIDE))
    picture.save(tmp_path / "palette.png", transparency=1)
    found = loaded(tmp_path / "palette.png", background="#00ff00")
    assert near(found, 4, 16, RED)
    assert near(found, 28, 16, GREEN)


def test_16_bit_grayscale_is_scaled_to_8_bit(tmp_path: Path) -> None:
    values = np.repeat(np.array([0, 128 * 257, 255 * 257], dtype=np.uint16), SIDE)
    Image.fromarray(np.tile(values, (SIDE, 1))).save(tmp_path / "deep.png")
    picture = loaded(tmp_path / "deep.png")
    for x, value in ((4, 0), (16, 128), (28, 255)):
        assert near(picture, x, 16, (value,) * 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "JPEG"])
def test_usual_formats(tmp_path: Path, suffix: str) -> None:
    stripes(RED, GREEN, BLUE).save(tmp_path / f"rgb.{suffix}", quality=100, lossless=True, subsampling=0)
    picture = loaded(tmp_path / f"rgb.{suffix}")
    for x, colour in ((4, RED), (16, GREEN), (28, BLUE)):
        assert near(picture, x, 16, colour, 6)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    assert near(loaded(tmp_path / "print.jpg"), 16, 16, RED, 6)


@pytest.mark.parametrize("turned", [False, True])
def test_crops_of_an_oblong_picture(tmp_path: Path, turned: bool) -> None:
    picture = stripes(RED, GREEN, BLUE)
    (picture.transpose(Image.Transpose.ROTATE_270) if turned else picture).save(tmp_path / "oblong.png")
    middle = loaded(tmp_path / "oblong.png", crop="center")
    assert middle.getcolors() == [(SIDE * SIDE, GREEN)]
    whole = loaded(tmp_path / "oblong.png", crop="resize")
    for place, colour in ((4, RED), (16, GREEN), (28, BLUE)):
        assert near(whole, *((16, place) if turned else (place, 16)), colour)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P with tRNS", "RGB with tRNS", "P with alpha"])
def test_transparency_with_an_old_pillow(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A1111 comes with 9.5, which does not tell whether a picture has any."""
    if mode == "RGB with tRNS":
        Image.new("RGB", (SIDE, SIDE), RED).save(tmp_path / "a.png", transparency=RED)
    elif mode == "P with tRNS":
        Image.new("RGB", (SIDE, SIDE), RED).quantize(2).save(tmp_path / "a.png", transparency=0)
    elif mode == "P with alpha":
        Image.new("RGBA", (SIDE, SIDE), (*RED, 0)).quantize(2, Image.Quantize.FASTOCTREE).save(tmp_path / "a.png")
    else:
        Image.new("RGBA", (SIDE, SIDE), (*RED, 0)).convert(mode).save(tmp_path / "a.png")
    monkeypatch.delattr(Image.Image, "has_transparency_data", raising=False)
    assert near(loaded(tmp_path / "a.png", background="#00ff00"), 16, 16, GREEN)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(97, 41), (41, 97), (8, 300), (32, 32)])
def test_a_picture_alone_is_cut_as_for_training(tmp_path: Path, crop: str, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise(size, 90).convert("RGB").save(path)
    picture = open_picture(path)
    assert cut_of(picture.size, SIDE, crop).apply(picture).tobytes() == loaded(path, crop).tobytes()


@pytest.mark.parametrize("side", [32, 48, 56, 512])
def test_the_middle_is_cut_as_pillow_does(side: int) -> None:
    """To the byte: runs of before resume with the same pictures."""
    noise = Image.effect_noise((700, 700), 90).convert("RGB")
    for size in ((97, 41), (41, 97), (8, 300), (331, 333), (640, 480), (683, 512), (side, side), (700, 699)):
        picture = noise.resize(size)
        cut = cut_of(size, side, "center")
        assert cut.apply(picture).tobytes() == ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS).tobytes()
        scale = side / min(size)
        assert cut.crop_top_left == tuple(round((each * scale - side) / 2) for each in reversed(size))
        mask = picture.convert("L")
        assert cut.apply(mask, Image.Resampling.BOX).size == (side, side)


def test_an_unknown_crop() -> None:
    with pytest.raises(ConfigError, match="crop = 'middle': choose one of bucket, center, resize"):
        cut_of((SIDE, SIDE), SIDE, "middle")


def test_no_program_is_run_on_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EOF\n")
    with pytest.raises(ImagesError, match=r"a\.png is damaged, or no JPEG, PNG or WebP whatever its name says"):
        open_picture(tmp_path / "a.png")


@pytest.mark.parametrize("setting", [{"crop": "middle"}, {"background": "blurple"}])
def test_unknown_setting(tmp_path: Path, setting: dict[str, Any]) -> None:
    stripes(RED).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} = "):
        load_images([tmp_path], SIDE, **setting)
