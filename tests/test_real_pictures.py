"""Pictures as phones, scanners and programs write them: read by their content, in their colours, or told why not."""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin, features

from tests.attacks.files import GREY, NEWER, ROOM, STRIP, tiff
from tests.test_draft import Uploads
from tests.test_real_files import display_p3, srgb_of_p3
from zoodip_core.base.errors import ImagesError
from zoodip_core.data import kinds
from zoodip_core.data.images import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    find_images,
    left_out,
    load_images,
    open_picture,
    read_picture,
)
from zoodip_core.data.kinds import FORMATS, kind_of
from zoodip_core.data.prompts import CAPTION_SUFFIXES, captions_for, unused_captions
from zoodip_core.page.draft import Draft

SIDE = 64
COLOUR = (60, 170, 90)
MP4 = b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(100)
RAW = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 254, 4, 1, 1) + bytes(4)  # its first picture is a preview


def noise(size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    return Image.effect_noise(size, 80).convert("RGB")


def written(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture's file; of a lossy kind at its best."""
    buffer = io.BytesIO()
    if kind == "HEIF":
        heif = pytest.importorskip("pillow_heif")
        if not heif.libheif_info()["encoders"]:
            pytest.skip("this pillow_heif cannot write")
        heif.from_pillow(picture).save(buffer, **{"quality": -1, "chroma": 444, **options})
    else:
        if kind == "AVIF" and not kinds._can_read("AVIF"):
            pytest.skip("this Pillow has no AVIF")
        lossy: dict[str, dict[str, Any]] = {
            "JPEG": {"quality": 100, "subsampling": 0},
            "AVIF": {"quality": 100, "subsampling": "4:4:4"},
        }
        picture.save(buffer, kind, **lossy.get(kind, {}) | options)
    return buffer.getvalue()


def near(path: Path, colours: Any, tolerance: int = 3, **given: Any) -> None:
    """The picture's middle row has these colours, evenly spaced."""
    picture = np.asarray(open_picture(path, **given))
    colours = np.atleast_2d(colours)
    at = ((np.arange(len(colours)) + 0.5) * picture.shape[1] / len(colours)).astype(int)
    np.testing.assert_allclose(picture[picture.shape[0] // 2, at], colours, atol=tolerance)


@pytest.fixture
def no_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


# ---------------------------------------------------------------- kinds


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["photo", "x.dat", "y.jpg"])
def test_a_picture_is_known_by_its_content(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(written(Image.new("RGB", (SIDE, SIDE), COLOUR), kind))
    assert kind_of(tmp_path / name) == kind
    for source in (tmp_path, tmp_path / name):
        assert find_images([source]) == [tmp_path / name]
        assert left_out([source]) == []
    near(tmp_path / name, COLOUR, 6)
    assert read_picture(tmp_path / name)[1] is False


def test_what_is_called_a_picture_and_is_none_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(written(noise(), "PNG"))
    (tmp_path / "b.tif").write_text("a text")
    images, (line,) = load_images([tmp_path], 32)
    assert len(images) == 1
    assert "b.tif is damaged" in line


@pytest.mark.parametrize(
    "data", [b"", b"BM", b"BMW is a car", b"II*", b"RIFF\0\0\0\0WAVEfmt ", b"%PDF-1.7", b"8BPS\0\1", b"\0" * 64, b"MM"]
)
def test_what_only_begins_alike_is_no_picture(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    assert kind_of(tmp_path / "x") == ""
    with pytest.raises(ImagesError, match="is not a JPEG, PNG or WebP file; convert it first"):
        find_images([tmp_path / "x"])


def test_pillow_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(written(noise(), "HEIF"))
    before = set(Image.OPEN)
    open_picture(tmp_path / "a.heic")
    assert "HEIF" not in set(Image.OPEN) - before


# ---------------------------------------------------------------- colours and sides


@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "HEIF"])
def test_a_profile_s_colours_become_srgb_s(tmp_path: Path, kind: str) -> None:
    picture = Image.new("RGB", (SIDE, SIDE), COLOUR)
    picture.info["icc_profile"] = display_p3()
    (tmp_path / "x").write_bytes(written(picture, kind, icc_profile=display_p3()))
    near(tmp_path / "x", srgb_of_p3(COLOUR), 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_is_turned_once(tmp_path: Path, kind: str, orientation: int) -> None:
    stored = Image.new("RGB", (96, 64), "red")
    stored.paste("blue", (48, 0, 96, 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    given = exif.tobytes() if kind == "HEIF" else exif  # its writer adds a turn of HEIF's own, as phones do
    (tmp_path / "x").write_bytes(written(stored, kind, exif=given))
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
    expected = stored.transpose(turn[orientation]) if orientation in turn else stored
    found = open_picture(tmp_path / "x")
    assert found.size == expected.size
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
    assert np.percentile(difference, 90) < 8


def test_a_cmyk_tiff(tmp_path: Path) -> None:
    Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(tmp_path / "print.tif", compression="tiff_lzw")
    near(tmp_path / "print.tif", (255, 0, 0))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF", "HEIF"])
def test_transparency_shows_the_background(tmp_path: Path, kind: str) -> None:
    layer = Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 255))
    layer.paste((0, 0, 0, 0), (SIDE // 2, 0, SIDE, SIDE))
    (tmp_path / "x").write_bytes(written(layer, kind))
    near(tmp_path / "x", [(255, 0, 0), (0, 255, 0)], 6, background=(0, 255, 0))


# ---------------------------------------------------------------- greys of more than 8 bits


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("top", [200, 65535])
def test_sixteen_bits_are_sixteen_bits(tmp_path: Path, compression: str, top: int) -> None:
    values = np.tile(np.linspace(0, top, SIDE), (SIDE, 1)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.tif", compression=compression)
    np.testing.assert_allclose(np.asarray(open_picture(tmp_path / "x.tif"))[..., 0], values / 257, atol=1)


def test_sixteen_bits_of_which_zero_is_white(tmp_path: Path) -> None:
    values = np.tile(np.linspace(0, 65535, SIDE), (SIDE, 1)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.tif")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    data[data.find(struct.pack("<HHI", 262, 3, 1)) + 8] = 0
    (tmp_path / "x.tif").write_bytes(data)
    np.testing.assert_allclose(np.asarray(open_picture(tmp_path / "x.tif"))[..., 0], 255 - values / 257, atol=1)


@pytest.mark.parametrize("white", [1, 255, 65535])
@pytest.mark.parametrize("bright", [False, True])
def test_fractions_are_of_what_nearly_all_of_them_keep_below(tmp_path: Path, white: int, bright: bool) -> None:
    values = np.tile(np.linspace(0, white, SIDE, dtype=np.float32), (SIDE, 1))
    expected = values / white * 255
    if bright:
        values[0, :5], expected[0, :5] = 9 * white, 255  # a lamp
    values[1, 1], expected[1, 1] = np.nan, 0
    Image.fromarray(values).save(tmp_path / "x.tif")
    np.testing.assert_allclose(np.asarray(open_picture(tmp_path / "x.tif"))[..., 0], expected, atol=1)


def test_fractions_of_anything_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE), 1e9, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ImagesError, match=r"values up to 1e\+09, of which nobody knows which is white"):
        open_picture(tmp_path / "x.tif")


@pytest.mark.parametrize(("dtype", "white"), [(np.int32, 2**31 - 1), (np.uint32, 2**32 - 1)])
def test_thirty_two_bits(tmp_path: Path, dtype: Any, white: int) -> None:
    values = np.tile(np.linspace(0, white, SIDE), (SIDE, 1)).astype(dtype)
    picture = Image.frombytes("I", (SIDE, SIDE), values.tobytes())
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[339] = 2 if dtype is np.int32 else 1
    picture.save(tmp_path / "x.tif", tiffinfo=tags)
    data = bytearray((tmp_path / "x.tif").read_bytes())
    entry = data.find(struct.pack("<HHI", 339, 3, 1))
    data[entry + 8] = 2 if dtype is np.int32 else 1
    (tmp_path / "x.tif").write_bytes(data)
    found = np.asarray(open_picture(tmp_path / "x.tif"))[..., 0]
    np.testing.assert_allclose(found, np.linspace(0, 255, SIDE)[None].repeat(SIDE, 0), atol=1.1)


# ---------------------------------------------------------------- more than one picture


def several(kind: str) -> bytes:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue", "green")]
    return written(frames[0], kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_of_several_is_used_and_that_is_told(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").write_bytes(several(kind))
    near(tmp_path / "x", (255, 0, 0), 4)
    ((image,), _) = load_images([tmp_path], 32)
    assert image.has_more


# ---------------------------------------------------------------- hostile


@pytest.mark.parametrize("name", NEWER)
def test_hostile_pictures_are_refused(tmp_path: Path, name: str) -> None:
    make, words = NEWER[name]
    (tmp_path / "x.jpg").write_bytes(make())
    with pytest.raises(ImagesError, match=words):
        open_picture(tmp_path / "x.jpg")


def test_directories_in_a_circle_and_notes_of_any_size_are_not_followed(tmp_path: Path) -> None:
    notes = [(tag, 7, 2**31, 8) for tag in (34377, 34665, 34853, 37724, 40965)]
    (tmp_path / "x").write_bytes(tiff(sorted([*GREY, *STRIP, *notes]), ROOM, following=8))
    picture, has_more = read_picture(tmp_path / "x")
    assert picture.size == (SIDE, SIDE)
    assert has_more


def test_a_long_comment_of_a_gif_takes_no_time(tmp_path: Path) -> None:
    """Pillow puts it together anew for each of its parts; 40 MB would take it an hour."""
    data = written(noise(), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    (tmp_path / "x").write_bytes(data[:at] + b"!\xfe" + (b"\xff" + bytes(255)) * 150_000 + b"\0" + data[at:])
    assert open_picture(tmp_path / "x").size == (SIDE, SIDE)


def test_pictures_of_a_heic_that_share_a_profile_are_not_loaded_each_with_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif")
    monkeypatch.setattr(kinds, "_MOST_LOADED", 5_000_000)
    for count in (2, 40):
        burst = heif.HeifFile()
        for i in range(count):
            frame = Image.new("RGB", (SIDE, SIDE), (i, 0, 0))
            frame.info["icc_profile"] = b"\0" * 200_000
            burst.add_from_pillow(frame)
        burst.save(tmp_path / f"{count}.heic")
    assert (tmp_path / "40.heic").stat().st_size < 500_000
    assert open_picture(tmp_path / "2.heic").size == (SIDE, SIDE)
    with pytest.raises(ImagesError, match="made to fill the memory"):
        open_picture(tmp_path / "40.heic")


def test_the_tiles_of_a_phone_s_heic_are_none_of_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    monkeypatch.setattr(heif.options, "GRID_TILE_SIZE", 64, raising=False)
    monkeypatch.setattr(kinds, "_MOST_LOADED", 200_000)
    (tmp_path / "x").write_bytes(written(noise((640, 640)), "HEIF", quality=1))
    assert open_picture(tmp_path / "x").size == (640, 640)


def test_the_largest_picture_is_as_large_as_its_word() -> None:
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS  # type: ignore[operator]  # Pillow's own warning comes later


# ---------------------------------------------------------------- what is left out


def fill(folder: Path) -> Path:
    """One picture, and one of everything that is none."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "a.png": written(noise(), "PNG"),
        "b.mp4": MP4,
        "c.mov": b"\0\0\0\x08wide" + bytes(40),
        "d.dng": RAW,
        "e.psd": b"8BPS\0\1" + bytes(50),
        "f": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50),
        "a.txt": b"a {}",
        "lone.txt": b"a {}",
        "notes.md": b"notes",
        ".hidden": MP4,
        "a-masklabel.png": written(noise(), "PNG"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


MASK = "a-masklabel.png is a mask, which is not used"
LEFT_OUT = {
    "left out, 2 videos; save some frames of them as pictures: b.mp4, c.mov",
    "d.dng is a camera's raw file; save it as JPEG",
    "e.psd is not a JPEG, PNG or WebP file; convert it first",
    "f is HEIC: install pillow-heif, or save as JPEG",
    MASK,
    "left out, 1 caption of no picture: lone.txt",
}


@pytest.mark.usefixtures("no_heif")
def test_each_kind_is_told_in_a_line_at_the_command_line(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos")
    found = find_images([folder])
    assert found == [folder / "a.png"]
    assert {*left_out([folder]), *unused_captions(None, found, [folder])} == LEFT_OUT


@pytest.mark.usefixtures("no_heif")
def test_each_kind_is_told_in_a_line_of_a_page(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "draft")
    assert set(draft.add_folder(fill(tmp_path / "photos"))) == LEFT_OUT - {MASK}
    assert draft.pictures()[0].mask is not None
    assert [(each.name, each.caption) for each in draft.pictures()] == [("0001-a.png", "a {}")]


@pytest.mark.usefixtures("no_heif")
def test_each_kind_is_told_in_a_line_on_the_node(pack: Any, host: Any) -> None:
    fill(host.root / "input" / "photos")
    node = pack.NODE_CLASS_MAPPINGS["ZoodipLoadReferenceImages"]
    assert node.VALIDATE_INPUTS("photos") is True
    assert set(node().load("photos")["ui"]["text"]) == {*LEFT_OUT - {MASK}, "masks for 1 of 1 picture"}


@pytest.mark.usefixtures("no_heif")
def test_what_is_dropped_on_a_page_is_told_in_a_line(tmp_path: Path) -> None:
    folder, uploads, draft = fill(tmp_path / "photos"), Uploads(tmp_path / "uploads"), Draft(tmp_path / "draft")
    lines = draft.add([uploads.one(path.name, path.read_bytes()) for path in sorted(folder.iterdir())])
    assert "left out, 3 videos; save some frames of them as pictures: .hidden, b.mp4, c.mov" in lines
    assert "f is HEIC: install pillow-heif, or save as JPEG" in lines
    assert "d.dng is a camera's raw file; save it as JPEG" in lines


@pytest.mark.usefixtures("no_heif")
def test_a_phone_s_folder_without_pillow_heif_says_what_to_install(tmp_path: Path) -> None:
    for name in ("IMG_1.HEIC", "IMG_2.jpg"):  # as mail programs call them
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
    with pytest.raises(ImagesError, match=r"left out, 2 HEIC: install pillow-heif, or save as JPEG: IMG_1.HEIC, IMG_2"):
        find_images([tmp_path])
    with pytest.raises(ImagesError, match=r"IMG_1.HEIC is HEIC: install pillow-heif"):
        find_images([tmp_path / "IMG_1.HEIC"])
    with pytest.raises(ImagesError, match=r"IMG_1.HEIC is HEIC: install pillow-heif"):
        open_picture(tmp_path / "IMG_1.HEIC")


def test_an_old_pillow_says_what_to_install_for_avif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "modules", {})
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(50))
    with pytest.raises(ImagesError, match=r"is AVIF: install Pillow 11\.3 or newer, or save as JPEG"):
        find_images([tmp_path / "a.avif"])


def test_a_glob_brings_anything_along(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos")
    sources = sorted(folder.glob("[a-z]*"))
    assert [path.name for path in find_images(sources)][:2] == ["a-masklabel.png", "a.png"]
    assert "left out, 2 videos; save some frames of them as pictures: b.mp4, c.mov" in left_out(sources)


# ---------------------------------------------------------------- the page's copies


@pytest.mark.parametrize("kind", FORMATS)
def test_the_page_keeps_a_picture_as_it_was_given(tmp_path: Path, kind: str) -> None:
    draft, uploads, data = Draft(tmp_path / "draft"), Uploads(tmp_path / "uploads"), written(noise(), kind)
    assert draft.add([uploads.one("my photo.dat", data), uploads.one("my photo.Caption", b"a {} here")]) == []
    (picture,) = draft.pictures()
    assert picture.path.read_bytes() == data
    assert picture.caption == "a {} here"
    assert picture.name == f"0001-my-photo{kinds._SUFFIXES_OF[kind][0]}"
    draft.remove(picture.name)


@pytest.mark.parametrize("suffix", kinds.SUFFIXES)
def test_every_suffix_is_one_of_the_draft_s(tmp_path: Path, suffix: str) -> None:
    draft, uploads = Draft(tmp_path / "draft"), Uploads(tmp_path / "uploads")
    draft.add([uploads.one(f"a{suffix}", written(noise(), "PNG"))])
    assert [each.name for each in draft.pictures()] == [f"0001-a{suffix}"]


# ---------------------------------------------------------------- captions, everywhere the same


def with_captions(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in "abcdef":
        (folder / f"{name}.png").write_bytes(written(noise(), "PNG"))
    (folder / "a.caption").write_text("a {} on grass")
    (folder / "b.TXT").write_text("a {} in\nsnow")
    (folder / "c.txt").write_text("a {} at noon\n\nthe <pip> at night\n")
    (folder / "d.txt").write_text("")
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "e.png", "text": "a {} in a box"}\n{"file_name": "z.png", "text": "{}"}'
    )
    return [folder / f"{name}.png" for name in "abcef"]


OWN = ["a {} on grass", "a {} in snow", "a {} at noon\nthe <pip> at night", "", "a {} in a box", ""]


def test_captions_at_the_command_line(tmp_path: Path) -> None:
    found = captions_for(with_captions(tmp_path), token="<pip>")
    expected = [tuple(text.replace("<pip>", "{}").split("\n")) for text in OWN if text]
    assert found == [*expected, ("a photo of a {}",)]


def test_captions_on_a_page(tmp_path: Path) -> None:
    draft = Draft(tmp_path / "draft")
    with_captions(tmp_path / "photos")
    (line,) = draft.add_folder(tmp_path / "photos")
    assert line.endswith("metadata.jsonl: 1 of its 2 names is of no picture here: z.png")
    assert [each.caption for each in draft.pictures()] == OWN


def test_captions_dropped_on_a_page(tmp_path: Path) -> None:
    draft, uploads = Draft(tmp_path / "draft"), Uploads(tmp_path / "uploads")
    with_captions(tmp_path / "photos")
    files = [uploads.one(path.name, path.read_bytes()) for path in sorted((tmp_path / "photos").iterdir())]
    assert draft.add(files) == ["metadata.jsonl: 1 of its 2 names is of no picture here: z.png"]
    assert [each.caption for each in draft.pictures()] == OWN
    listed = {"b.png": ["a {} later", "the {}"], "q.png": "{}"}
    lines = draft.add([uploads.one("captions.json", json.dumps(listed).encode()), uploads.one("w.json", b"{}")])
    assert lines[0].startswith("no captions were taken: w.json: expected an object")
    assert lines[1:] == ["captions.json: 1 of its 2 names is of no picture here: q.png"]
    assert draft.pictures()[1].caption == "a {} later\nthe {}"


def test_captions_on_the_node(pack: Any, host: Any) -> None:
    with_captions(host.root / "input" / "photos")
    done = pack.NODE_CLASS_MAPPINGS["ZoodipLoadReferenceImages"]().load("photos")
    assert done["result"][1] == OWN
    (line,) = done["ui"]["text"]
    assert line.endswith("metadata.jsonl: 1 of its 2 names is of no picture here: z.png")


def test_the_profile_of_a_cmyk_tiff_is_used(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("CMYK", (SIDE, SIDE), (0, 0, 0, 0)).save(tmp_path / "x.tif", icc_profile=profile)  # another's: ignored
    near(tmp_path / "x.tif", (255, 255, 255))


def test_the_node_s_upload_knows_the_same_names() -> None:
    text = (Path(__file__).resolve().parents[1] / "web" / "upload.js").read_text(encoding="utf-8")
    listed = text[text.index("const PICTURES") : text.index("const PARENT")]
    assert set(re.findall(r'"(\.\w+)"', listed)) == {*kinds.SUFFIXES, *CAPTION_SUFFIXES, ".json", ".jsonl"}
    assert f"MOST_BYTES = {MAX_FILE_BYTES:_}" in listed


def test_a_png_takes_no_more_room_than_it_has(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (16, 16), "red").save(file)
    data = file.read_bytes()
    at = data.index(b"IDAT") - 4
    file.write_bytes(data[:at] + b"\xff\xff\xff\xf0" + data[at + 4 :])  # says four gigabytes
    tracemalloc.start()
    try:
        with pytest.raises(ImagesError, match="is damaged"):
            open_picture(file)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
