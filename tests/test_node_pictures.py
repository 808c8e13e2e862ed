"""Load Reference Images: which files it reads and refuses, and that their pictures and texts stay together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fake_host import FakeHost

CONCEPTS = Path(__file__).resolve().parent.parent / "zoodip_core" / "tiny" / "concepts"


@pytest.fixture
def kind(pack: Any) -> Any:
    """The node's class."""
    return pack.NODE_CLASS_MAPPINGS["ZoodipLoadReferenceImages"]


def load(kind: Any, folder: str) -> tuple[list[torch.Tensor], list[str]]:
    """The node's outputs, which must agree with what it accepts beforehand."""
    assert kind.VALIDATE_INPUTS(folder) is True
    images, captions, masks = kind().load(folder)["result"]
    assert len(images) == len(captions) == len(masks)
    return images, captions


def refused(kind: Any, folder: str) -> str:
    """Why a choice is refused: before the run, in it, and when ComfyUI asks whether it changed."""
    why = kind.VALIDATE_INPUTS(folder)
    assert isinstance(why, str)
    with pytest.raises(ValueError) as caught:
        kind().load(folder)
    assert str(caught.value) == why
    with pytest.raises(ValueError):
        kind.IS_CHANGED(folder)
    return why


def save(path: Path, colour: Any = "red", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def pixels(image: torch.Tensor) -> Any:
    assert image.dtype == torch.float32
    assert image.shape[0] == 1
    assert image.shape[3] == 3
    return (image[0].numpy() * 255).round().astype(np.uint8)


# ---------------------------------------------------------------- what it reads


def test_a_bundled_subject_comes_with_its_captions(kind: Any, host: FakeHost) -> None:
    choices = kind.INPUT_TYPES()["required"]["folder"][0]
    assert choices[:2] == ["bundled: blueprint", "bundled: boo"]
    images, captions = load(kind, "bundled: pip")
    assert captions[:2] == ["a {} in the sunset", "a {} in the meadow"]
    assert len(images) == 6
    for image, file in zip(images, sorted((CONCEPTS / "pip" / "images").iterdir()), strict=True):
        np.testing.assert_array_equal(pixels(image), np.asarray(Image.open(file).convert("RGB")))


def test_pictures_keep_their_sizes_and_order(kind: Any, host: FakeHost) -> None:
    folder = host.root / "input" / "cat"
    save(folder / "b.jpg", size=(64, 20))
    save(folder / "a.png", "blue", (31, 47))
    save(folder / "C.WEBP", "green", (50, 50))
    (folder / "notes.md").write_text("not a picture")
    save(folder / "below" / "d.png")
    images, captions = load(kind, "cat")
    assert [tuple(image.shape[1:3]) for image in images] == [(50, 50), (47, 31), (20, 64)]  # C, a, b
    assert [pixels(image)[5, 5].argmax() for image in images] == [1, 2, 0]
    assert captions == ["", "", ""]
    assert "cat" in kind.INPUT_TYPES()["required"]["folder"][0]
    assert "cat/below" in kind.INPUT_TYPES()["required"]["folder"][0]
    assert len(load(kind, "cat/below")[0]) == 1


def test_exif_rotation_is_applied(kind: Any, host: FakeHost) -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (0, 0, 20, 20))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: then white is on top
    (host.root / "input" / "a").mkdir()
    picture.save(host.root / "input" / "a" / "1.png", exif=exif)
    ((image,), _) = load(kind, "a")
    assert image.shape == (1, 40, 20, 3)
    assert pixels(image)[5, 10].tolist() == [255, 255, 255]
    assert pixels(image)[35, 10].tolist() == [0, 0, 0]


def test_transparency_lies_on_white(kind: Any, host: FakeHost) -> None:
    save(host.root / "input" / "a" / "1.png", (200, 0, 0, 0), mode="RGBA")
    save(host.root / "input" / "a" / "2.png", (200, 0, 0, 255), mode="RGBA")
    save(host.root / "input" / "a" / "3.png", (0, 0, 0, 51), mode="RGBA")  # a fifth of black
    images, _ = load(kind, "a")
    assert [pixels(image)[3, 3].tolist() for image in images] == [[255, 255, 255], [200, 0, 0], [204, 204, 204]]


def test_captions_stand_in_text_files_beside_the_pictures(kind: Any, host: FakeHost) -> None:
    folder = host.root / "input" / "a"
    for name in ("1.png", "2.png", "3.png"):
        save(folder / name)
    (folder / "1.txt").write_text("a {} on\n grass \n", encoding="utf-8-sig")
    (folder / "3.txt").write_text("ein {} auf der Straße", encoding="utf-8")
    assert load(kind, "a")[1] == ["a {} on grass", "", "ein {} auf der Straße"]


def test_captions_stand_in_a_json_file(kind: Any, host: FakeHost) -> None:
    """Several of one picture are lines; a picture that is not listed has its text file."""
    folder = host.root / "input" / "a"
    for name in ("1.png", "2.png", "3.png", "4.png"):
        save(folder / name)
    (folder / "1.txt").write_text("not this one")
    (folder / "3.txt").write_text("a {} by a text file")
    listed = {"2.png": ["a {} in\nsnow", "the {}"], "1.png": "a {} on grass", "other.png": "{}"}
    (folder / "captions.json").write_text(json.dumps(listed))
    assert load(kind, "a")[1] == ["a {} on grass", "a {} in snow\nthe {}", "a {} by a text file", ""]


def test_a_single_picture_may_be_chosen(kind: Any, host: FakeHost) -> None:
    save(host.root / "input" / "one.png", "blue")
    save(host.root / "input" / "other.png")
    (host.root / "input" / "one.txt").write_text("a {} alone")
    assert "one.png" in kind.INPUT_TYPES()["required"]["folder"][0]
    for choice in ("one.png", "one.png [input]"):
        images, captions = load(kind, choice)
        assert [pixels(image)[0, 0].tolist() for image in images] == [[0, 0, 255]]
        assert captions == ["a {} alone"]
    assert kind.IS_CHANGED("one.png") != kind.IS_CHANGED("other.png")


def test_a_single_picture_in_a_folder_may_be_chosen(kind: Any, host: FakeHost) -> None:
    save(host.root / "input" / "a" / "one.png", "blue")
    save(host.root / "input" / "a" / "other.png")
    (host.root / "input" / "a" / "captions.json").write_text(json.dumps({"one.png": "a {} alone"}))
    images, captions = load(kind, "a/one.png")
    assert (len(images), captions) == (1, ["a {} alone"])


def test_captions_of_other_pictures_are_refused(kind: Any, host: FakeHost) -> None:
    save(host.root / "input" / "a" / "1.png")
    (host.root / "input" / "a" / "captions.json").write_text('{"one.png": "a {}"}')
    assert "none of its names (one.png" in kind.VALIDATE_INPUTS("a")
    with pytest.raises(ValueError, match="none of its names"):
        kind().load("a")


def test_a_single_picture_need_not_be_in_the_captions_beside_it(kind: Any, host: FakeHost) -> None:
    save(host.root / "input" / "solo.png")
    (host.root / "input" / "captions.json").write_text('{"other.png": "a {}"}')
    assert load(kind, "solo.png")[1] == [""]


def test_a_file_beside_the_input_folder_is_not_read(kind: Any, host: FakeHost) -> None:
    """The input folder's own name plus .json lies outside of it."""
    save(host.root / "input" / "one.png")
    (host.root / "input.json").write_text(json.dumps({"one.png": "a {} from outside"}))
    assert load(kind, "one.png")[1] == [""]


def test_the_input_folder_may_itself_be_a_link(kind: Any, host: FakeHost) -> None:
    save(host.root / "elsewhere" / "a" / "1.png")
    (host.root / "input").rmdir()
    (host.root / "input").symlink_to(host.root / "elsewhere", target_is_directory=True)
    assert len(load(kind, "a")[0]) == 1


def test_links_within_the_input_folder_are_followed(kind: Any, host: FakeHost) -> None:
    save(host.root / "input" / "a" / "1.png", "blue")
    (host.root / "input" / "b").mkdir()
    (host.root / "input" / "b" / "2.png").symlink_to(host.root / "input" / "a" / "1.png")
    assert pixels(load(kind, "b")[0][0])[0, 0].tolist() == [0, 0, 255]


def test_a_cameras_picture_is_scaled_down(kind: Any, host: FakeHost) -> None:
    save(host.root / "input" / "a" / "1.png", size=(4120, 2060))
    ((image,), _) = load(kind, "a")
    assert image.shape == (1, 2048, 4096, 3)


def test_the_pictures_show_on_the_node(kind: Any, host: FakeHost) -> None:
    for i in range(12):
        save(host.root / "input" / "a" / f"{i:02}.png", (i, 0, 0), (600, 300))
    shown = kind().load("a")["ui"]["images"]
    assert len(shown) == 9
    files = [host.root / "temp" / each["subfolder"] / each["filename"] for each in shown]
    assert [Image.open(file).size for file in files] == [(512, 256)] * 9
    assert [Image.open(file).convert("RGB").getpixel((0, 0)) for file in files] == [(i, 0, 0) for i in range(9)]


# ---------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    "folder",
    [
        "..",
        "../secret",
        "a/../../secret",
        "../secret/1.png",
        "{secret}",
        "{secret}/1.png",
        "linked",
        "linked/1.png",
        "link.png",
        "a\0b",
    ],
)
def test_nothing_outside_of_the_input_folder_is_read(folder: str, kind: Any, host: FakeHost) -> None:
    secret = host.root / "secret"
    save(secret / "1.png")
    save(host.root / "input" / "a" / "1.png")
    (host.root / "input" / "linked").symlink_to(secret, target_is_directory=True)
    (host.root / "input" / "link.png").symlink_to(secret / "1.png")
    assert refused(kind, folder.format(secret=secret)).startswith("folder: ")


def test_a_folder_whose_name_begins_as_the_input_folders_is_outside(kind: Any, host: FakeHost) -> None:
    save(host.root / "input-of-another" / "1.png")
    assert refused(kind, "../input-of-another").startswith("folder: ")


@pytest.mark.parametrize("name", ["2.png", "1.txt", "captions.json"])
def test_a_link_that_leads_out_is_not_read(name: str, kind: Any, host: FakeHost) -> None:
    """A picture, a text beside one, a listing: what they lead to would show on the page."""
    save(host.root / "input" / "a" / "1.png")
    target = host.root / "secret"
    if name.endswith("png"):
        save(target / name)
    else:
        target.mkdir()
        (target / name).write_text('{"1.png": "secret"}')
    (host.root / "input" / "a" / name).symlink_to(target / name)
    why = refused(kind, "a")
    assert why.startswith("folder: ")
    assert name in why
    assert "secret" not in why


def test_a_text_file_named_as_a_picture_is_named(kind: Any, host: FakeHost) -> None:
    save(host.root / "input" / "a" / "1.png")
    (host.root / "input" / "a" / "2.png").write_text("root:x:0:0")
    with pytest.raises(ValueError, match=r"^folder: .*2\.png") as caught:
        kind().load("a")
    assert "root:x" not in str(caught.value)


@pytest.mark.parametrize(
    "folder",
    [
        "empty",
        "texts",
        "gone",
        "gone.png",
        "one.png [output]",
        "one.png [temp]",
        "texts/1.txt",
        "bundled: nobody",
        "bundled: ../pip",
    ],
)
def test_a_choice_without_pictures_is_refused(folder: str, kind: Any, host: FakeHost) -> None:
    (host.root / "input" / "empty").mkdir()
    (host.root / "input" / "texts").mkdir()
    (host.root / "input" / "texts" / "1.txt").write_text("a {}")
    save(host.root / "input" / "one.png")
    save(host.root / "output" / "one.png")
    assert refused(kind, folder).startswith("folder: ")


def test_a_choice_from_another_node_is_checked_later(kind: Any) -> None:
    assert kind.VALIDATE_INPUTS(None) is True


# ---------------------------------------------------------------- what it notices


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: save(folder / "1.png", "blue"),
        lambda folder: save(folder / "3.png"),
        lambda folder: (folder / "2.png").unlink(),
        lambda folder: (folder / "2.png").rename(folder / "4.png"),
        lambda folder: (folder / "1.txt").write_text("another {}"),
        lambda folder: (folder / "2.txt").write_text("a new {}"),
        lambda folder: (folder / "1.txt").unlink(),
        lambda folder: (folder / "captions.json").write_text('{"1.png": "{}"}'),
        lambda folder: (folder / "1.txt").rename(folder / "2.txt"),
    ],
    ids=[
        "picture",
        "one-more",
        "one-less",
        "renamed",
        "caption",
        "new-caption",
        "lost-caption",
        "listing",
        "caption-of-another",
    ],
)
def test_a_change_in_the_folder_is_noticed(change: Callable[[Path], Any], kind: Any, host: FakeHost) -> None:
    folder = host.root / "input" / "a"
    save(folder / "1.png")
    save(folder / "2.png", "green")
    (folder / "1.txt").write_text("a {}")
    before = kind.IS_CHANGED("a")
    shutil.copytree(folder, host.root / "input" / "copy")
    assert kind.IS_CHANGED("a") == before == kind.IS_CHANGED("copy")  # of the content, not of a clock
    change(folder)
    assert kind.IS_CHANGED("a") != before


# ---------------------------------------------------------------- masks


def test_masks_beside_pictures_come_with_them(kind: Any, host: FakeHost) -> None:
    folder = host.root / "input" / "cat"
    for name in ("a", "b", "c"):
        save(folder / f"{name}.jpg")
    mask = Image.new("L", (40, 30))
    mask.paste(255, (10, 5, 20, 25))
    mask.save(folder / "a.mask.png")
    save(folder / "masks" / "c.png", 255, (20, 15), "L")
    before = kind.IS_CHANGED("cat")
    done = kind().load("cat")
    first, second, third = done["result"][2]
    np.testing.assert_array_equal((first[0].numpy() * 255).round(), np.asarray(mask))
    assert second.shape == third.shape == (1, 64, 64)  # as LoadImage gives where there is none
    assert not second.any()
    assert not third.any()
    assert done["ui"]["text"] == [
        "the mask c.png is the same all over; c.jpg is learned whole",
        "masks for 1 of 3 pictures; the rest is learned whole",
    ]
    mask.paste(255, (0, 0, 9, 9))
    mask.save(folder / "a.mask.png")
    assert kind.IS_CHANGED("cat") != before


def test_a_mask_that_leads_out_of_the_input_folder_is_refused(kind: Any, host: FakeHost) -> None:
    save(host.root / "input" / "a" / "1.png")
    (host.root / "input" / "a" / "1.mask.png").symlink_to(save(host.root / "secret.png", 255, mode="L"))
    assert "1.mask.png leads out of ComfyUI's input folder" in refused(kind, "a")
