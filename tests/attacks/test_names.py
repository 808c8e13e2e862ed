"""Hostile names at every way in: none leaves its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.attacks import campaign
from tests.attacks.canary import Canary, plant_links
from tests.attacks.entries import entries
from tests.attacks.hostile import LINK, Name, names
from zoodip_core.base.errors import PathError, TokenError
from zoodip_core.base.names import MAX_PART, check_name, fault, plain
from zoodip_core.base.paths import contains, inside, link_out, typed
from zoodip_core.base.texts import printable


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path)


@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_no_name_leads_out_at_any_way_in(canary: Canary, every: int) -> None:
    """Each name at each way in, or at one of some of them: sixteen neighbours in the list have all names together."""
    with entries(canary) as ways_in:
        assert len(ways_in) >= 25
        for i, entry in enumerate(ways_in):
            result = campaign.attack(entry, canary, slice(i % every, None, every))
            assert result.attempts >= 60 // every
            assert not result.failures, f"{entry.title}:\n" + "\n".join(result.failures[:12])


needs_links = pytest.mark.skipif(os.name == "nt", reason="Windows has links for administrators alone")
HERE = names(Path("/place/folder"), Path("/place/outside"))


@pytest.mark.parametrize("name", [each for each in HERE if each.refused], ids=lambda name: repr(name.text[:30]))
def test_a_checked_path_refuses(tmp_path: Path, name: Name) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "a").mkdir()
    folder = tmp_path / "place" / "folder"
    folder.mkdir(parents=True)
    plant_links(folder, tmp_path / "outside", LINK, ".png")
    with pytest.raises(PathError, match=r"; give the plain name of what lies in the folder$"):
        inside(folder, name.text, "the folder")
    if name.kind != "behind links":  # those have a slash
        with pytest.raises(TokenError):
            check_name(name.text)


@needs_links
@pytest.mark.parametrize("name", [LINK, f"{LINK}.png", f"{LINK}/new", f"a/back/{LINK}/new"])
def test_a_link_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    plant_links(folder, tmp_path / "outside", LINK, ".png")
    (folder / "a" / "back").symlink_to(folder)
    with pytest.raises(PathError, match="is a link, or behind one, that leads out of it"):
        inside(folder, name, "the folder")
    assert inside(folder, "a/back/a/new", "the folder") == folder / "a" / "new"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "rex",
            "rex.png",
            "my dog",
            "a/b/c",
            "a\\b\\c",
            ".hidden",
            "..rex",
            "re..x",
            "rex...png",
            "x" * 255,
            "é" * 127,
        ),
        *("con-1", "console", "nul_", "com10", "lpt", "aux1", "CONIN", "~", "$HOME", "%2e%2e", "犬", "🐶", "a (1) [2]"),
    ],
)
def test_an_ordinary_name_is_taken(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name, "the folder") == tmp_path.joinpath(*name.replace("\\", "/").split("/"))


@needs_links
def test_a_folder_that_is_a_link_itself_has_an_inside(tmp_path: Path) -> None:
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "shown").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "shown", "a/b", "the folder") == tmp_path / "real" / "a" / "b"
    assert link_out(tmp_path / "shown") is None


def test_a_folder_of_a_longer_name_is_another_one(tmp_path: Path) -> None:
    assert contains(tmp_path / "runs", tmp_path / "runs" / "rex")
    assert contains(tmp_path / "runs", tmp_path / "runs")
    assert not contains(tmp_path / "runs", tmp_path / "runs-2" / "rex")
    assert not contains(tmp_path / "runs", tmp_path)
    assert not contains(tmp_path / "runs", tmp_path / "runs" / "a\0b")


@needs_links
@pytest.mark.parametrize("where", ["", "below", "below/deeper"])
@pytest.mark.parametrize("to", ["outside", "outside/secret", "nowhere", "folder-2", "."])
def test_a_link_out_of_a_folder_is_found(tmp_path: Path, where: str, to: str) -> None:
    folder = tmp_path / "folder"
    (folder / "below" / "deeper").mkdir(parents=True)
    (folder / "one").write_text("1")
    (folder / "below" / "within").symlink_to(folder / "one")
    assert link_out(folder) is None
    (folder / where / "link").symlink_to(tmp_path / to)
    assert link_out(folder) == folder / where / "link"


def test_what_a_person_types_may_lead_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert typed(f" {tmp_path / 'a b'} ") == tmp_path / "a b"
    assert typed("~/pictures") == tmp_path / "pictures"
    assert typed("pictures") == tmp_path / "pictures"
    for wrong in ("", " ", "a\0b", "\x1b[2J", "\ud800", "~nobody-of-this-name/x"):
        with pytest.raises(PathError):
            typed(wrong)


@pytest.mark.parametrize("name", HERE, ids=lambda name: repr(name.text[:30]))
def test_a_name_can_be_made_of_any_text(name: Name) -> None:
    made = plain(name.text, 60)
    assert len(made.encode()) <= 60
    assert not made or fault(f"{made}-1.png") is None
    assert printable(name.text).isprintable()


def test_the_longest_name_is_what_file_systems_take(tmp_path: Path) -> None:
    (tmp_path / ("x" * MAX_PART)).write_text("there")
    assert fault("x" * MAX_PART) is None
    assert fault("x" * (MAX_PART + 1)) == "has more than 255 bytes"
