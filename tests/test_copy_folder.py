"""Quantised copies that are kept unasked: where, how many, for how long, and what happens where they cannot be."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import random_models

from zoodip_core.base.errors import StorageError
from zoodip_core.base.events import Message
from zoodip_core.model.copy_folder import AUTO, hold, own_folder, tidy
from zoodip_core.model.load import load_quantized
from zoodip_core.model.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.write_random(tmp_path_factory.mktemp("model") / "small.safetensors", "sd15", "small", 0)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOODIP_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


def loaded(file: Path, **more: Any) -> tuple[StableDiffusion, list[str]]:
    said: list[str] = []
    model = load_quantized(
        file,
        device="cpu",
        on_event=lambda event: said.append(event.text) if isinstance(event, Message) else None,
        **more,
    )
    return model, said


def copies_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.safetensors")} if folder.is_dir() else set()


def test_a_copy_is_kept_in_the_users_own_folder_and_told_of_once(file: Path, own: Path) -> None:
    model, said = loaded(file, cache=AUTO)
    (name,) = copies_in(own)
    assert said == [f"kept a quantised copy of small (0.1 GB) in {own}; --no-cache keeps none"]
    assert model.blueprint.checkpoints[0].files == (own / name,)
    again, said = loaded(file, cache=AUTO)
    assert not said
    assert again.blueprint.fingerprint == model.blueprint.fingerprint
    assert copies_in(own) == {name}


def test_who_keeps_none_reads_the_copy_that_is_there(file: Path, own: Path) -> None:
    model, said = loaded(file, cache=AUTO, keep=False)
    assert not said
    assert not own.exists()
    assert model.blueprint.checkpoints[0].files == (file,)
    loaded(file, cache=AUTO)
    (name,) = copies_in(own)
    assert loaded(file, cache=AUTO, keep=False)[0].blueprint.checkpoints[0].files == (own / name,)
    (own / name).write_bytes(b"damaged")
    assert loaded(file, cache=AUTO, keep=False)[0].blueprint.checkpoints[0].files == (file,)
    assert (own / name).read_bytes() == b"damaged"  # it is for whoever keeps one to make it again


@pytest.mark.parametrize("how", [{"cache": None}, {"cache": AUTO, "weights": "none"}, {}])
def test_no_copy_is_kept_where_none_is_wanted(file: Path, own: Path, how: dict[str, Any]) -> None:
    assert loaded(file, **how)[1] == []
    assert not own.exists()


def test_the_embedded_model_has_no_copy(own: Path) -> None:
    loaded(Path("tiny"), cache=AUTO)
    assert not own.exists()


def test_a_folder_that_cannot_be_written_is_gone_without_unless_it_was_asked_for(file: Path, own: Path) -> None:
    own.write_text("a file")
    model, said = loaded(file, cache=AUTO)
    assert model.unet
    (line,) = said
    assert line.startswith("no quantised copy is kept: could not write")
    with pytest.raises(StorageError):
        loaded(file, cache=own)


def test_a_full_disk_is_gone_without(file: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    model, said = loaded(file, cache=AUTO)
    assert model.blueprint.checkpoints[0].files == (file,)
    assert "free some space" in said[0]
    assert not copies_in(own)


def test_a_stamp_that_lies_is_found_out(file: Path, own: Path, tmp_path: Path) -> None:
    """Another model of the same size in the file's place, its time set back: name, size and time cannot tell it."""
    place = tmp_path / "model.safetensors"
    place.write_bytes(file.read_bytes())
    before, _ = loaded(place, cache=AUTO)
    time = place.stat().st_mtime_ns
    random_models.write_random(place, "sd15", "small", 1)
    os.utime(place, ns=(time, time + 1))
    after, _ = loaded(place, cache=AUTO)
    assert after.blueprint.fingerprint != before.blueprint.fingerprint
    assert len(copies_in(own)) == 2


# ---------------------------------------------------------------- how many


def written(folder: Path, number: int, age: float) -> Path:
    path = folder / f"{number:020x}-int8-quanto0.2.6-v1.safetensors"
    path.write_bytes(bytes(100))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now))
    return path


def test_those_not_used_for_longest_go_and_nothing_else(tmp_path: Path) -> None:
    oldest, middle, newest = (written(tmp_path, number, age) for number, age in ((3, 300), (1, 200), (2, 100)))
    other = tmp_path / "model.safetensors"
    other.write_bytes(bytes(1000))
    tidy(tmp_path, 300)
    assert oldest.exists()
    tidy(tmp_path, 299)
    assert [path.exists() for path in (oldest, middle, newest, other)] == [False, True, True, True]
    hold(middle).close()
    tidy(tmp_path, 100)
    assert [path.exists() for path in (middle, newest, other)] == [True, False, True]


def test_one_in_use_stays(tmp_path: Path) -> None:
    used, other = written(tmp_path, 1, 300), written(tmp_path, 2, 100)
    with hold(used):
        os.utime(used, (1, 1))
        tidy(tmp_path, 100)
        assert used.exists()
        assert not other.exists()
    tidy(tmp_path, 0)
    assert not used.exists()


def test_a_model_in_use_keeps_its_copy(file: Path, own: Path) -> None:
    model, _ = loaded(file, cache=AUTO)
    tidy(own, 0)
    assert model.unet
    del model
    tidy(own, 0)
    assert not copies_in(own)
    again, said = loaded(file, cache=AUTO)  # what was deleted is made again
    assert again.unet
    assert len(said) == 1


def test_what_was_left_half_written_goes(tmp_path: Path) -> None:
    old, new = tmp_path / f".{'a' * 16}.part", tmp_path / f".{'b' * 16}.part"
    for path in (old, new):
        path.touch()
    os.utime(old, (1, 1))
    tidy(tmp_path)
    assert not old.exists()
    assert new.exists()


def test_the_users_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ZOODIP_CACHE")
    for system, variable in (("linux", "XDG_CACHE_HOME"), ("win32", "LOCALAPPDATA")):
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setenv(variable, str(tmp_path / system))
        assert own_folder() == tmp_path / system / "zoodip"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert own_folder() == tmp_path / "Library" / "Caches" / "zoodip"
