"""The page's draft: what goes in stays as it was, survives anything, and never leads out of its folder."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.reads import counted_reads
from zoodip_core.base.errors import CaptionError, ConfigError, ImagesError, StorageError
from zoodip_core.data.images import MAX_PICTURES, find_images, load_images
from zoodip_core.data.masks import Masks
from zoodip_core.data.prompts import captions_for
from zoodip_core.page.draft import Draft
from zoodip_core.page.given import MAX_CAPTION
from zoodip_core.tiny import concepts

MP4 = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + b"\x00" * 1000
RESERVED = {"con", "prn", "aux", "nul", "com1", "lpt1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".draft"


@pytest.fixture
def draft(folder: Path) -> Draft:
    return Draft(folder)


def encoded(
    colour: Any = "red", kind: str = "PNG", size: tuple[int, int] = (24, 16), mode: str = "RGB", **options: Any
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, format=kind, **options)
    return buffer.getvalue()


def animated(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (24, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(buffer, format=kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


class Uploads:
    """Files as a web server leaves them: under names of its own, beside the names that they had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __call__(self, **named: bytes) -> list[tuple[Path, str]]:
        return [self.one(name.replace("__", "."), data) for name, data in named.items()]

    def one(self, name: str, data: bytes) -> tuple[Path, str]:
        path = self.folder / f"upload-{len(list(self.folder.iterdir()))}.tmp"
        path.write_bytes(data)
        return path, name


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads")


def unwanted(*_given: Any) -> None:
    raise AssertionError("they are too many to be looked at")


def names(draft: Draft) -> list[str]:
    return [picture.name for picture in draft.pictures()]


def captions(draft: Draft) -> list[str]:
    return [picture.caption for picture in draft.pictures()]


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- values


def test_nothing_is_made_before_something_is_put_in(draft: Draft, folder: Path) -> None:
    assert draft.values() == {}
    assert draft.pictures() == []
    assert draft.add([]) == []
    draft.clear()
    assert not folder.exists()


def test_values_are_merged_and_survive_a_restart(draft: Draft, folder: Path) -> None:
    draft.keep({"token": "<rex>", "steps": 300, "model": None})
    draft.keep({"steps": 500, "caption": "愛 \ud800", "nested": {"a": [1, 2.5, True]}})
    expected = {
        "token": "<rex>",
        "steps": 500,
        "model": None,
        "caption": "愛 \ud800",
        "nested": {"a": [1, 2.5, True]},
    }
    assert Draft(folder).values() == expected
    assert [path.name for path in folder.iterdir()] == ["draft.json"]


def test_the_same_values_are_not_written_again(draft: Draft, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft.keep({"token": "<rex>"})
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("written"))
    draft.keep({"token": "<rex>"})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"[]",
        b"null",
        b'{"version": 2, "values": {"token": "<new>"}}',
        b'{"values": {"token": "<new>"}}',
        b'{"version": 1, "values": [1]}',
        b'{"version": 1}',
        b'{"version": 1, "values": {"a": "' + b"x" * 5_000_000 + b'"}}',
    ],
)
def test_damaged_values_are_none_and_can_be_written_anew(draft: Draft, folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "draft.json").write_bytes(content)
    assert draft.values() == {}
    draft.keep({"token": "<rex>"})
    assert draft.values() == {"token": "<rex>"}


def test_a_folder_where_the_values_should_be(draft: Draft, folder: Path) -> None:
    (folder / "draft.json").mkdir(parents=True)
    assert draft.values() == {}
    with pytest.raises(StorageError, match=r"could not write .*draft\.json"):
        draft.keep({"token": "<rex>"})


# ---------------------------------------------------------------- pictures


def test_pictures_are_kept_byte_for_byte_in_their_order(draft: Draft, folder: Path, uploads: Uploads) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        uploads.one("z last.PNG", encoded("red")),
        uploads.one("Äpfel & Birnen.jpeg", encoded("green", "JPEG", exif=exif)),
        uploads.one("狗.webp", encoded("blue", "WEBP")),
    ]
    assert draft.add(files) == []
    assert draft.add(uploads(a_first__jpg=encoded("white", "JPEG"))) == []
    assert names(draft) == ["0001-z-last.png", "0002-Äpfel-Birnen.jpeg", "0003-狗.webp", "0004-a_first.jpg"]
    for (path, _), picture in zip(files, draft.pictures(), strict=False):
        assert picture.path.read_bytes() == path.read_bytes()
        assert picture.path == folder / "images" / picture.name
    assert names(Draft(folder)) == names(draft)


@pytest.mark.parametrize(
    "original",
    [
        "../../../evil.png",
        "..\\..\\evil.png",
        "/etc/evil.png",
        "C:\\Windows\\evil.png",
        "C:evil.png",
        "con.png",
        "COM1.png",
        "nul.tar.png",
        ".png",
        "....png",
        "-rf.png",
        "a\x00b.png",
        "a\nb\x1b[31m.png",
        "\u202egnp.exe.png",
        "\ud800.png",
        "x" * 5000 + ".png",
        "愛" * 300 + ".png",
        "\U00020000" * 300 + ".png",
        "🐶.png",
        "ß" * 200 + ".PNG",
        "<img src=x onerror=alert(1)>.png",
        "trailing. .png",
        "",
    ],
)
def test_hostile_names(draft: Draft, folder: Path, uploads: Uploads, original: str) -> None:
    lines = draft.add([uploads.one(original, encoded())])
    assert [line for line in lines if any(not char.isprintable() for char in line) or len(line) > 200] == []
    assert lines == []
    (name,) = names(draft)
    assert list((folder / "images").iterdir()) == [folder / "images" / name]
    assert name.startswith("0001-")
    assert name.endswith(".png")
    assert len(name) <= 80
    assert len(name.encode()) <= 200
    assert all(char.isalnum() or char in "-_" for char in name.removesuffix(".png"))
    assert name.split(".")[0].lower() not in RESERVED
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    draft.caption(name, "a {}")
    draft.remove(name)
    assert draft.pictures() == []


USELESS = {
    "clip.mp4": (MP4, "clip.mp4 is a video; save some frames"),
    "clip.WEBM": (b"\x1aE\xdf\xa3" + bytes(500), "clip.WEBM is a video; save some frames"),
    "clip.png": (MP4, "clip.png is a video; save some frames"),
    "text.png": (b"hello", "text.png is damaged, or no JPEG, PNG or WebP"),
    "layers.psd": (b"8BPS\0\1" + bytes(50), "layers.psd is not a JPEG, PNG or WebP file; convert it first"),
    "empty.png": (b"", "empty.png is damaged"),
    "cut.jpg": (encoded("red", "JPEG", (200, 200))[:900], "cut.jpg cannot be read"),
    "cut.png": (encoded(size=(300, 300))[:200], "cut.png cannot be read"),
    "dot.png": (encoded(size=(7, 300)), "dot.png has only 7 x 300 pixels"),
    "huge.png": (encoded(1, size=(9000, 9000), mode="1"), "huge.png has 9000 x 9000 pixels"),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "script.jpg is damaged, or no JPEG"),
    "notes": (b"hello", "notes is not a JPEG, PNG or WebP file"),
    "run.exe": (b"MZ", "run.exe is not a JPEG, PNG or WebP file"),
}


@pytest.mark.parametrize("name", USELESS)
def test_a_useless_file_among_good_ones_is_skipped_with_a_line(draft: Draft, uploads: Uploads, name: str) -> None:
    data, words = USELESS[name]
    upload = uploads.one(name, data)
    (line,) = draft.add([upload, *uploads(good__png=encoded())])
    assert line.startswith(words)
    assert str(upload[0]) not in line  # the user never saw that name
    assert names(draft) == ["0001-good.png"]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_what_moves_is_used_and_that_is_told(draft: Draft, uploads: Uploads, kind: str) -> None:
    upload = uploads.one("dance.jpg", animated(kind))
    (line,) = draft.add([upload, *uploads(good__png=encoded())])
    assert line == (
        "dance.jpg is a moving picture or a file of several pages, of which the first picture alone is used"
    )
    assert names(draft) == ["0001-dance.jpg", "0002-good.png"]
    assert draft.pictures()[0].path.read_bytes() == upload[0].read_bytes()


def test_a_file_that_is_too_large_is_not_even_read(draft: Draft, uploads: Uploads) -> None:
    path, name = uploads.one("scan.png", encoded())
    os.truncate(path, 100_000_001)
    (line,) = draft.add([(path, name)])
    assert line == "scan.png has 100 MB, more than 100; scale it down first"
    os.truncate(path, 100_000_000)  # as large as may be
    assert draft.add([(path, name)]) == []


def test_an_upload_that_is_gone(draft: Draft, tmp_path: Path) -> None:
    lines = draft.add([(tmp_path / "gone", "cat.png"), (tmp_path / "gone", "cat.txt"), (tmp_path, "folder.png")])
    assert len(lines) == 3
    assert "cat.txt cannot be read" in lines[0]
    assert "cat.png cannot be read" in lines[1]
    assert "folder.png" in lines[2]
    assert draft.pictures() == []


def test_a_picture_of_a_phone_with_a_second_one_behind_it(draft: Draft, uploads: Uploads) -> None:
    """MPO files are called .jpg; Pillow takes them for animated."""
    buffer = io.BytesIO()
    frames = [Image.effect_noise((64, 64), 50).convert("RGB") for _ in range(2)]
    frames[0].save(buffer, format="MPO", save_all=True, append_images=frames[1:])
    assert draft.add(uploads(phone__jpg=buffer.getvalue())) == []
    assert names(draft) == ["0001-phone.jpg"]


def test_the_same_picture_is_taken_once(draft: Draft, uploads: Uploads) -> None:
    lines = draft.add(uploads(a__png=encoded("red"), b__png=encoded("red"), c__png=encoded("blue")))
    assert lines == ["b.png is the same picture as a.png, and was skipped"]
    assert draft.add(uploads(again__png=encoded("blue"))) == [
        "again.png is the same picture as 0002-c.png, and was skipped"
    ]
    assert names(draft) == ["0001-a.png", "0002-c.png"]


def test_500_files_are_refused_as_a_whole(draft: Draft, uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any is opened as a picture or copied; each is read twice at most: its beginning, and to find twins."""
    draft.add(uploads(there__png=encoded("red")))
    picture = bytearray(encoded("blue"))
    files = [uploads.one(f"{i}.png", bytes(picture) + i.to_bytes(2, "big")) for i in range(500)]
    with monkeypatch.context() as patch:
        patch.setattr("zoodip_core.page.draft.open_picture", unwanted)
        patch.setattr("zoodip_core.page.given.read_picture", unwanted)
        patch.setattr("zoodip_core.page.draft._copy", unwanted)
        with counted_reads() as reads, pytest.raises(ImagesError) as caught:
            draft.add(files)
    sizes = {path: path.stat().st_size for path, _ in files}
    assert reads.bytes <= 2 * sum(sizes.values()) + 10_000
    assert max(reads.opened[str(path)] for path in sizes) == 2
    for words in (
        "500 pictures",
        "none of them was taken",
        "three to ten good ones",
        "at most 100",
        "1 that are there",
    ):
        assert words in str(caught.value)
    assert names(draft) == ["0001-there.png"]
    assert draft.add(files[: MAX_PICTURES - 1]) == []
    assert len(names(draft)) == MAX_PICTURES
    assert names(draft) == sorted(names(draft))
    assert len(draft.add(files[: MAX_PICTURES - 1])) == MAX_PICTURES - 1  # the same ones are none too many
    with pytest.raises(ImagesError, match="1 picture is too many beside the 100 that are there, and it was not taken"):
        draft.add(files[-1:])


def test_a_draft_that_says_pace_is_read_as_its_preset(draft: Draft, folder: Path) -> None:
    """What is called preset was called pace once."""
    folder.mkdir(parents=True)
    (folder / "draft.json").write_text(json.dumps({"version": 1, "values": {"pace": "careful", "token": "<ä>"}}))
    assert draft.values() == {"preset": "careful", "token": "<ä>"}
    draft.keep({"token": "<ö>"})
    assert json.loads((folder / "draft.json").read_text())["values"] == {"preset": "careful", "token": "<ö>"}


def test_numbers_go_on_after_a_removal(draft: Draft, uploads: Uploads) -> None:
    draft.add(uploads(a__png=encoded("red"), b__png=encoded("blue"), c__png=encoded("green")))
    draft.remove("0002-b.png")
    draft.add(uploads(d__png=encoded("black")))
    assert names(draft) == ["0001-a.png", "0003-c.png", "0004-d.png"]


def test_damaged_and_vanished_pictures_are_left_out(draft: Draft, folder: Path, uploads: Uploads) -> None:
    files = uploads(a__png=encoded("red", size=(90, 90)), b__png=encoded("blue"), c__png=encoded("green"))
    draft.add([*files, *uploads(a__txt=b"a {}")])
    whole = (folder / "images" / "0001-a.png").read_bytes()
    (folder / "images" / "0001-a.png").write_bytes(whole[:60])
    (folder / "images" / "0002-b.png").unlink()
    (folder / "images" / "notes.md").write_text("not ours")
    (folder / "images" / ".0123.part").write_bytes(b"of a process that was cut off")
    (folder / "images" / "0009-dir.png").mkdir()
    for each in (draft, Draft(folder)):
        assert names(each) == ["0003-c.png"]
        assert each.references()["images"] == (str(folder / "images" / "0003-c.png"),)
        assert each.references()["captions"] is None
    (folder / "images" / "0001-a.png").write_bytes(whole)
    assert captions(draft) == ["a {}", ""]


def test_a_picture_that_is_a_link_is_none(draft: Draft, folder: Path, uploads: Uploads, tmp_path: Path) -> None:
    draft.add(uploads(a__png=encoded("red")))
    (tmp_path / "secret.png").write_bytes(encoded("blue"))
    (folder / "images" / "0002-link.png").symlink_to(tmp_path / "secret.png")
    assert names(draft) == ["0001-a.png"]
    with pytest.raises(ImagesError):
        draft.remove("0002-link.png")


# ---------------------------------------------------------------- captions


def test_a_text_beside_a_picture_is_its_caption(draft: Draft, uploads: Uploads) -> None:
    lines = draft.add(
        [
            uploads.one("Rex.txt", "\ufeffa {} on\n grass, 草\n".encode()),
            uploads.one("rex.png", encoded("red")),
            uploads.one("rex.jpg", encoded("red", "JPEG")),
            uploads.one("other.png", encoded("blue")),
            uploads.one("other.txt", b"  \n"),
            uploads.one("lone.txt", b"nobody's"),
        ]
    )
    assert lines == ["lone.txt was skipped: there is no picture of this name; add the picture as well"]
    assert captions(draft) == ["a {} on grass, 草", "a {} on grass, 草", ""]


def test_captions_that_come_later_find_their_pictures(draft: Draft, uploads: Uploads) -> None:
    long = "my dog " * 30
    draft.add([uploads.one("my dog!.png", encoded("red")), uploads.one(long + ".jpg", encoded("blue", "JPEG"))])
    assert draft.add([uploads.one("my dog!.txt", b"a {}"), uploads.one(long + ".txt", b"the {}")]) == []
    assert captions(draft) == ["a {}", "the {}"]
    both = [uploads.one("my dog!.png", encoded("red")), uploads.one("my dog!.txt", b"a better {}")]
    assert draft.add(both) == [
        "my dog!.png is the same picture as 0001-my-dog.png, which is there already and got its caption"
    ]
    assert captions(draft) == ["a better {}", "the {}"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a {} café".encode("latin-1"), "rex.txt is not UTF-8 text; save it as UTF-8"),
        (b"a {} " * 10_000, "rex.txt is too large for a caption"),
        (b"ab " * 5_000, "rex.txt: the caption has"),
    ],
)
def test_a_caption_that_can_not_be_used_does_not_lose_the_picture(
    draft: Draft, uploads: Uploads, data: bytes, words: str
) -> None:
    (line,) = draft.add([uploads.one("rex.png", encoded()), uploads.one("rex.txt", data)])
    assert line.startswith(words)
    assert names(draft) == ["0001-rex.png"]
    assert captions(draft) == [""]


def test_captions_can_be_written_and_taken_away(draft: Draft, folder: Path, uploads: Uploads) -> None:
    draft.add(uploads(a__png=encoded("red"), b__png=encoded("blue")))
    draft.caption("0002-b.png", " a {} here \n\n a {} there \ud800\n")
    draft.caption("0001-a.png", "{}")
    assert captions(Draft(folder)) == ["{}", "a {} here\na {} there ?"]
    draft.caption("0001-a.png", " ")
    assert captions(draft) == ["", "a {} here\na {} there ?"]
    assert json.loads((folder / "captions.json").read_text()) == {"0002-b.png": ["a {} here", "a {} there ?"]}
    with pytest.raises(CaptionError, match=r"0001-a\.png: the caption has"):
        draft.caption("0001-a.png", "x" * (MAX_CAPTION + 1))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"0001-a.png": 7}', b'{"0001-a.png": [1]}', b"\xff"])
def test_damaged_captions_are_none(draft: Draft, folder: Path, uploads: Uploads, content: bytes) -> None:
    draft.add(uploads(a__png=encoded(), a__txt=b"a {}"))
    (folder / "captions.json").write_bytes(content)
    assert captions(draft) == [""]
    draft.caption("0001-a.png", "a {}")
    assert captions(draft) == ["a {}"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "nothing.png",
        "0001-a",
        "../draft.json",
        "../images/0001-a.png",
        "./0001-a.png",
        "0001-a.png/",
        "0001-a.png\x00",
        "\ud800.png",
        "0" * 5000 + "-a.png",
        "ABSOLUTE",
    ],
)
def test_names_that_are_not_in_the_draft(draft: Draft, folder: Path, uploads: Uploads, name: str) -> None:
    draft.add(uploads(a__png=encoded()))
    draft.keep({"token": "<rex>"})
    before = everything(folder.parent)
    name = str(folder / "images" / "0001-a.png") if name == "ABSOLUTE" else name
    for act in (draft.remove, lambda name: draft.caption(name, "a {}")):
        with pytest.raises(ImagesError, match="is not there any more; reload the page") as caught:
            act(name)
        assert str(caught.value).isprintable()
    assert everything(folder.parent) == before


def test_removing_and_clearing(draft: Draft, folder: Path, uploads: Uploads) -> None:
    draft.keep({"token": "<rex>"})
    draft.add(uploads(a__png=encoded("red"), a__txt=b"a {}", b__png=encoded("blue"), b__txt=b"b {}"))
    draft.remove("0001-a.png")
    assert captions(draft) == ["b {}"]
    draft.clear()
    assert draft.pictures() == []
    assert draft.values() == {"token": "<rex>"}
    assert list((folder / "images").iterdir()) == []
    draft.add(uploads(b__png=encoded("green")))
    assert names(draft) == ["0001-b.png"]
    assert captions(draft) == [""]  # not the one of the picture that had this name


# ---------------------------------------------------------------- folders and bundled subjects


def test_a_folder_comes_with_its_captions(draft: Draft, tmp_path: Path) -> None:
    source = tmp_path / "my photos"
    source.mkdir()
    for name, colour in (("b.png", "red"), ("a.png", "blue"), ("c.PNG", "green"), ("d.png", "black")):
        (source / name).write_bytes(encoded(colour))
    (source / "captions.json").write_text(json.dumps({"a.png": ["a {} here", "a\n{} there"], "b.png": "the {}"}))
    (source / "a.txt").write_text("the listing goes before")
    (source / "c.txt").write_text("a {} in green")
    (source / "d.txt").write_bytes(b"\xff\xfe")
    for name in ("clip.mp4", "phone.heic", "x.heic", "y.heic"):
        (source / name).write_bytes(MP4)
    lines = draft.add_folder(source)
    assert names(draft) == ["0001-a.png", "0002-b.png", "0003-c.png", "0004-d.png"]
    assert captions(draft) == ["a {} here\na {} there", "the {}", "a {} in green", ""]
    assert lines == [
        "left out, 4 videos; save some frames of them as pictures: clip.mp4, phone.heic, x.heic, y.heic",
        "d.txt is not UTF-8 text; save it as UTF-8",
    ]


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"z.png": "a {}"}', '{"a.png": 5}', "x" * 5_000_000])
def test_a_listing_that_can_not_be_used_does_not_lose_the_pictures(draft: Draft, tmp_path: Path, content: str) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "captions.json").write_text(content)
    (line,) = draft.add_folder(tmp_path)
    assert "captions" in line
    assert len(line) < 300
    assert captions(draft) == [""]


def test_folders_that_can_not_be_taken(draft: Draft, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file.png").write_bytes(encoded())
    (tmp_path / "empty").mkdir()
    for source, words in [
        (tmp_path / "missing", "is not a folder; give the path"),
        (tmp_path / "file.png", "is not a folder; give the path"),
        (tmp_path / "empty", "no JPEG, PNG or WebP image in"),
        (tmp_path / ("x" * 400), "give the path of"),
        (tmp_path / "a\x00b", "give the path of"),
    ]:
        with pytest.raises(ImagesError, match=words):
            draft.add_folder(source)
    assert not folder.exists()


def test_a_folder_of_500_pictures(draft: Draft, folder: Path, tmp_path: Path) -> None:
    for i in range(500):
        (tmp_path / f"{i}.png").write_bytes(encoded((i % 256, i // 256, 0)))
    with pytest.raises(ImagesError, match="500 pictures are too many, and none of them was taken: three to ten"):
        draft.add_folder(tmp_path)
    assert not folder.exists()


@pytest.mark.parametrize("name", concepts.names())
def test_a_bundled_subject_is_what_the_demo_learns(draft: Draft, name: str) -> None:
    assert draft.add_concept(name) == []
    concept = concepts.load(name)
    sources = find_images([concept.images])
    assert [picture.path.read_bytes() for picture in draft.pictures()] == [path.read_bytes() for path in sources]
    assert captions(draft) == [
        "\n".join(texts) for texts in captions_for(sources, captions_file=concept.captions, token=concept.token)
    ]
    assert len(draft.add_concept(name)) == len(sources)  # a second time they are all there


@pytest.mark.parametrize("name", ["", "rex", "../concepts/pip", "pip/", "\x00"])
def test_a_subject_that_does_not_exist(draft: Draft, folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="choose one of blueprint, boo"):
        draft.add_concept(name)
    assert not folder.exists()


# ---------------------------------------------------------------- into a run


def used(references: dict[str, Any]) -> tuple[list[bytes], list[tuple[str, ...]]]:
    """The pictures and captions that a training with these settings sees."""
    images, skipped = load_images(references["images"], 16)
    assert skipped == []
    listing = Path(references["captions"]) if references["captions"] else None
    texts = captions_for([image.path for image in images], captions_file=listing, token="<rex>")
    return [image.path.read_bytes() for image in images], texts


def test_references_are_what_a_training_reads(draft: Draft, uploads: Uploads, tmp_path: Path) -> None:
    files = uploads(b__png=encoded("red"), a__jpg=encoded("blue", "JPEG"), c__webp=encoded("green", "WEBP"))
    draft.add(files)
    draft.caption("0001-b.png", "a {} here\na <rex> there")
    draft.caption("0003-c.webp", "愛 of a {}")
    run = tmp_path / "runs" / "rex"
    written = draft.write_references(run)
    pictures = [path.read_bytes() for path, _ in files]
    texts = [("a {} here", "a {} there"), ("a photo of a {}",), ("愛 of a {}",)]
    assert used(written) == used(draft.references()) == (pictures, texts)
    assert written == {"images": (str(run / "images"),), "captions": str(run / "captions.json")}
    assert sorted(path.name for path in run.rglob("*") if path.is_file()) == sorted([*names(draft), "captions.json"])
    draft.clear()
    assert used(written) == (pictures, texts)


def test_references_without_captions(draft: Draft, uploads: Uploads, tmp_path: Path) -> None:
    draft.add(uploads(a__png=encoded()))
    written = draft.write_references(tmp_path / "run")
    assert written["captions"] is draft.references()["captions"] is None
    assert used(written)[1] == [("a photo of a {}",)]
    draft.caption("0001-a.png", "one {} alone")
    assert used(draft.references())[1] == [("one {} alone",)]


def test_no_pictures_no_references(draft: Draft, tmp_path: Path) -> None:
    for act in (draft.references, lambda: draft.write_references(tmp_path / "run")):
        with pytest.raises(ImagesError, match="there are no pictures yet; add three to ten"):
            act()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- disks


class FullDisk:
    """A disk that takes a number of files and none after."""

    def __init__(self, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = files
        sync = os.fsync

        def full_sync(descriptor: int) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", full_sync)


# In order: three pictures, the captions.
@pytest.mark.parametrize("writes", range(4))
def test_full_disk(
    draft: Draft, folder: Path, uploads: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    draft.add(uploads(there__png=encoded("white"), there__txt=b"the {}"))
    before = everything(folder)
    files = uploads(a__png=encoded("red"), a__txt=b"a {}", b__png=encoded("blue"), c__png=encoded("green"))
    with monkeypatch.context() as patch:
        FullDisk(writes, patch)
        with pytest.raises(StorageError, match="the disk is full; free some space"):
            draft.add(files)
    assert everything(folder) == before
    assert names(draft) == ["0001-there.png"]
    assert draft.add(files) == []
    assert captions(draft) == ["the {}", "a {}", "", ""]
    with monkeypatch.context() as patch:
        FullDisk(writes, patch)
        with pytest.raises(StorageError, match="the disk is full; free some space"):
            draft.write_references(tmp_path / "run")
    assert everything(tmp_path / "run") == {}


def test_full_disk_keeps_the_old_values(draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    draft.keep({"token": "<old>"})
    with monkeypatch.context() as patch:
        FullDisk(0, patch)
        with pytest.raises(StorageError, match="the disk is full"):
            draft.keep({"token": "<new>"})
    assert draft.values() == {"token": "<old>"}


def test_read_only_file_system(draft: Draft, uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    draft.add(uploads(a__png=encoded(), a__txt=b"a {}"))
    monkeypatch.setattr(Path, "unlink", refuse)
    for act in (draft.clear, lambda: draft.remove("0001-a.png")):
        with pytest.raises(StorageError, match="is read-only"):
            act()
    assert captions(draft) == ["a {}"]


def test_a_file_stands_where_the_folder_should_be(draft: Draft, folder: Path, uploads: Uploads) -> None:
    folder.parent.mkdir()
    folder.write_text("in the way")
    assert (draft.values(), draft.pictures()) == ({}, [])
    for act in (lambda: draft.keep({"a": 1}), lambda: draft.add(uploads(a__png=encoded()))):
        with pytest.raises(StorageError, match="choose another folder"):
            act()
    assert folder.read_text() == "in the way"


# ---------------------------------------------------------------- threads


def test_many_threads_and_objects_of_one_folder(folder: Path, uploads: Uploads) -> None:
    """As a page does: each event another thread, and maybe another object."""
    files = [uploads.one(f"{i}.png", encoded((i, 0, 0))) for i in range(24)]
    failures: list[BaseException] = []

    def work(part: int) -> None:
        try:
            for i in range(part, 24, 6):
                mine = Draft(folder)
                assert mine.add([files[i]]) == []
                (name,) = [each.name for each in mine.pictures() if each.name.endswith(f"-{i}.png")]
                mine.caption(name, f"{i} of {{}}")
                mine.keep({f"value {i}": i})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = Draft(folder).pictures()
    assert len(found) == len({picture.name[:4] for picture in found}) == 24
    assert all(picture.caption == f"{picture.name[5:-4]} of {{}}" for picture in found)
    assert Draft(folder).values() == {f"value {i}": i for i in range(24)}


def test_a_draft_that_was_deleted_begins_anew(draft: Draft, folder: Path, uploads: Uploads) -> None:
    draft.add(uploads(a__png=encoded()))
    draft.keep({"token": "<rex>"})
    shutil.rmtree(folder)
    assert (draft.values(), draft.pictures()) == ({}, [])
    draft.add(uploads(b__png=encoded("blue")))
    assert names(draft) == ["0001-b.png"]


# ---------------------------------------------------------------- masks


def mask_of(size: tuple[int, int] = (24, 16), box: tuple[int, int, int, int] = (4, 4, 12, 12)) -> bytes:
    mask = Image.new("L", size)
    mask.paste(255, box)
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return buffer.getvalue()


def shown(path: Path | None) -> Image.Image:
    assert path is not None
    with Image.open(path) as picture:
        return picture.copy()


@pytest.mark.parametrize("name", ["b.mask.png", "b-masklabel.png", "B.MASK.PNG", "b.jpg.mask.png"])
@pytest.mark.parametrize("later", [False, True])
def test_a_mask_goes_to_its_picture(draft: Draft, uploads: Uploads, name: str, later: bool) -> None:
    pictures = [uploads.one("a.jpg", encoded("red", "JPEG")), uploads.one("b.jpg", encoded("blue", "JPEG"))]
    mask = uploads.one(name, mask_of())
    lines = draft.add(pictures) + draft.add([mask]) if later else draft.add([mask, *pictures])
    assert lines == []
    assert [(each.name, each.mask is not None) for each in draft.pictures()] == [
        ("0001-a.jpg", False),
        ("0002-b.jpg", True),
    ]
    found = shown(draft.pictures()[1].mask)
    assert (found.mode, found.tobytes()) == ("L", Image.open(io.BytesIO(mask_of())).tobytes())


def test_masks_go_with_references_and_leave_with_their_pictures(
    draft: Draft, folder: Path, uploads: Uploads, tmp_path: Path
) -> None:
    draft.add(uploads(a=encoded("red"), b=encoded("blue")))
    draft.mask(draft.pictures()[0].name, Image.open(io.BytesIO(mask_of())))
    references = draft.write_references(tmp_path / "run")
    for images in (references["images"], draft.references()["images"]):
        loaded, skipped = load_images(images, 16, masks=Masks().of)
        assert (len(loaded), skipped) == (2, [])
        assert [image.mask is not None for image in loaded] == [True, False]
    draft.remove(draft.pictures()[0].name)
    assert [path.suffixes for path in (folder / "images").iterdir()] == [draft.pictures()[0].path.suffixes]
    draft.mask(draft.pictures()[0].name, Image.open(io.BytesIO(mask_of())))
    draft.mask(draft.pictures()[0].name, None)
    assert draft.pictures()[0].mask is None
    draft.mask(draft.pictures()[0].name, Image.open(io.BytesIO(mask_of())))
    draft.clear()
    assert list((folder / "images").iterdir()) == []


def test_masks_that_cannot_be_used_are_told_and_the_pictures_stay(draft: Draft, uploads: Uploads) -> None:
    files = [
        uploads.one("a.png", encoded("red")),
        uploads.one("a.mask.png", mask_of((16, 16))),
        uploads.one("b.png", encoded("blue")),
        uploads.one("b.mask.png", encoded("black")),
        uploads.one("c.png", encoded("green")),
        uploads.one("c.mask.png", b"\x89PNG\r\n\x1a\n" + bytes(40)),
        uploads.one("d.mask.png", mask_of()),
        uploads.one("e.png", encoded("gray")),
        uploads.one("e.mask.png", mask_of()),
        uploads.one("e-masklabel.png", mask_of()),
    ]
    lines = draft.add(files)
    assert [each.mask is not None for each in draft.pictures()] == [False, False, False, True]
    told = "\n".join(lines)
    for line in (
        "the mask a.mask.png is of another shape, 16 x 16 for a picture of 24 x 16",
        "the mask b.mask.png is black all over",
        "c.mask.png is damaged",
        "d.mask.png was skipped: there is no picture of this name",
        "e-masklabel.png was skipped: e.mask.png is there as well",
    ):
        assert line in told
    assert len(lines) == 5
    with pytest.raises(ImagesError, match="the mask is of another shape"):
        draft.mask(draft.pictures()[0].name, Image.new("L", (16, 16), 255))
    with pytest.raises(ImagesError, match="not there any more"):
        draft.mask("0009-x.png", None)


def test_a_folder_comes_with_its_masks(draft: Draft, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    (source / "masks").mkdir(parents=True)
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "gray")):
        (source / f"{name}.png").write_bytes(encoded(colour))
    (source / "a.mask.png").write_bytes(mask_of())
    (source / "masks" / "b.png").write_bytes(mask_of())
    (source / "gone.mask.png").write_bytes(mask_of())
    assert draft.add_folder(source) == ["gone.mask.png is a mask of no picture"]
    assert [each.mask is not None for each in draft.pictures()] == [True, True, False]
    assert draft.add_folder(source)  # twins, whose masks are the same
    assert [each.mask is not None for each in draft.pictures()] == [True, True, False]


def test_no_room_for_a_mask_takes_nothing(
    draft: Draft, folder: Path, uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("zoodip_core.page.draft.save_png", full)
    with pytest.raises(StorageError):
        draft.add([uploads.one("a.png", encoded("red")), uploads.one("a.mask.png", mask_of())])
    assert draft.pictures() == []
