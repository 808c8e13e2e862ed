"""Hostile files at every reader: no code is run, little memory is taken, and what is wrong is told."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attacks import files
from tests.attacks.campaign import measured
from tests.attacks.canary import Canary
from zoodip_core.base.errors import (
    CaptionError,
    EmbeddingFileError,
    ImagesError,
    ModelError,
    RunFolderError,
    ZoodipError,
)
from zoodip_core.data.images import MAX_SCANS, load_images, open_picture
from zoodip_core.data.prompts import MAX_TEXT, captions_for, read_listed
from zoodip_core.jobs.history import delete_run, list_runs, losses_of
from zoodip_core.jobs.job_folder import log_tail
from zoodip_core.jobs.protocol import FAILED
from zoodip_core.model.embedding import Embedding, load_embedding, save_embedding
from zoodip_core.model.recognise import identify
from zoodip_core.page.draft import Draft
from zoodip_core.train.run_folder import RunFolder

needs_links = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="for systems with links and pipes")
ROOM = 300_000_000
"""Bytes that a refusal may take; the largest picture that is taken has its own test."""
PATIENCE = 600.0
"""Seconds after which something is taken to wait for ever."""


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "canary")


def refused(work: Callable[[], Any], kind: type[Exception], canary: Canary) -> str:
    """What a piece of work is refused with; it leaves no trace, and takes little memory."""
    before = canary.listing(canary.outside)
    canary.seen.clear()
    with canary.watched(), measured() as peak, pytest.raises(kind) as error:
        work()
    assert canary.seen == []
    assert canary.listing(canary.outside) == before
    assert peak.memory < ROOM, f"{peak.memory:,} bytes"
    return str(error.value)


def error_of(work: Callable[[], Any], kind: type[Exception]) -> str:
    """What a piece of work is refused with; nothing if it is done."""
    try:
        work()
    except kind as error:
        return str(error)
    return ""


# ---------------------------------------------------------------- embeddings and models


def test_no_pickle_runs_code_or_fills_memory(canary: Canary, tmp_path: Path) -> None:
    made, models = 0, 0
    for path in files.pickles(tmp_path, canary.outside):
        made += 1
        models += path.suffix == ".ckpt"
        if path.suffix != ".ckpt":
            assert path.name in refused(lambda path=path: load_embedding(path), EmbeddingFileError, canary)  # type: ignore[misc]
        else:
            assert path.name in refused(lambda path=path: identify(path), ModelError, canary)  # type: ignore[misc]
    assert made > 100
    assert models > 50


def test_headers_that_lie_are_refused(canary: Canary, tmp_path: Path) -> None:
    for path in files.safetensors(tmp_path):
        assert path.name in refused(lambda path=path: load_embedding(path), EmbeddingFileError, canary)  # type: ignore[misc]
        refused(lambda path=path: identify(path), ModelError, canary)  # type: ignore[misc]


@needs_links
def test_what_is_no_file_is_not_read(canary: Canary, tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        (tmp_path / f"zeros{suffix}").symlink_to("/dev/zero")
        for name in ("pipe", "zeros"):
            path = tmp_path / f"{name}{suffix}"
            refused(lambda path=path: load_embedding(path), EmbeddingFileError, canary)  # type: ignore[misc]
            refused(lambda path=path: identify(path), ModelError, canary)  # type: ignore[misc]


# ---------------------------------------------------------------- pictures


def test_no_picture_fills_memory(canary: Canary, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    taken = []
    for path in files.pictures(tmp_path / "given"):
        draft = Draft(tmp_path / "draft")
        with canary.watched(tmp_path / "draft"), measured() as peak:
            told = error_of(lambda path=path: open_picture(path), ImagesError)  # type: ignore[misc]
            lines = draft.add([(path, path.name)])
        assert not told or path.name in told
        taken += [] if told else [path.name]
        assert not canary.seen
        assert peak.memory < ROOM, f"{path.name}: {peak.memory:,} bytes"
        assert len(lines) == (len(draft.pictures()) == 0 or path.stem == "frames"), path.name
        draft.clear()
    # Sound pictures with more in them than is used.
    notes = {"exif.jpg", "iccp.png", "itxt.png", "ztxt.png", "texts.png"}
    assert set(taken) <= {"frames.png", "frames.webp", "idat.png", "gif.png", "tiff.png", "bmp.png", *notes}


@pytest.fixture(scope="module")
def other_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    list(files.pictures(folder))
    return folder


@pytest.mark.parametrize("kind", ["ico", "pcx", "tga", "ppm", "fits", "postscript", "svg", "psd"])
def test_pillow_tries_no_other_kinds(other_kinds: Path, kind: str) -> None:
    path = other_kinds / f"{kind}.png"
    with pytest.raises(ImagesError, match="no JPEG, PNG or WebP whatever its name says"):
        open_picture(path)


def test_a_jpeg_of_ordinary_scans_opens(tmp_path: Path) -> None:
    for name, times in (("few", 1), ("most", MAX_SCANS - 6)):
        (tmp_path / f"{name}.jpg").write_bytes(files._scanned((64, 64), times))
        assert open_picture(tmp_path / f"{name}.jpg").size == (64, 64)
    (tmp_path / "film.jpg").write_bytes(files._scanned((64, 64), 1) + b"\xff\xda\0\0" * 999)  # as phones add one
    assert open_picture(tmp_path / "film.jpg").size == (64, 64)
    (tmp_path / "more.jpg").write_bytes(files._scanned((64, 64), MAX_SCANS))
    with pytest.raises(ImagesError, match="made to take hours"):
        open_picture(tmp_path / "more.jpg")


@needs_links
def test_a_folder_of_pictures_is_not_waited_for(tmp_path: Path) -> None:
    given = tmp_path / "given"
    (given / "folder.png").mkdir(parents=True)
    os.mkfifo(given / "pipe.png")
    (given / "device.png").symlink_to("/dev/zero")
    for name in ("empty.png", "text.jpg"):
        (given / name).write_text("")
    with pytest.raises(ImagesError, match="no image can be used"):
        load_images([given], 64)


# ---------------------------------------------------------------- captions


def test_captions_of_a_gigabyte_are_refused(canary: Canary, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"")
    files.sparse(tmp_path / "one.txt")
    files.sparse(tmp_path / "captions.json")
    picture = tmp_path / "one.png"
    assert "too much" in refused(lambda: captions_for([picture], token="<r>"), CaptionError, canary)
    assert "too much" in refused(lambda: read_listed(tmp_path / "captions.json"), CaptionError, canary)
    draft = Draft(tmp_path / "draft")
    with measured() as peak:
        assert "too large for a caption" in draft.add([(tmp_path / "one.txt", "one.txt")])[0]
    assert peak.memory < ROOM
    assert MAX_TEXT < 2e7


@pytest.mark.parametrize("name", files.texts())
def test_captions_that_are_no_json_are_refused(canary: Canary, tmp_path: Path, name: str) -> None:
    (tmp_path / "captions.json").write_bytes(files.texts()[name])
    refused(lambda: read_listed(tmp_path / "captions.json", ["one.png"]), CaptionError, canary)


# ---------------------------------------------------------------- runs


def make_run(home: Path, name: str = "stranger") -> Path:
    """A stranger's run in a home."""
    run = home / name / "run"
    run.mkdir(parents=True)
    settings = {"images": ["x"], "token": "<rex>", "initializer": "dog"}
    (run / "config.json").write_text(json.dumps({"config_version": 1, **settings}))
    (run / "steps.jsonl").write_text('{"step": 1, "losses": [0.5, 0.5, 0.5]}\n')
    save_embedding(Embedding("<rex>", (torch.ones(1, 768),)), run / "snapshots" / "step-00000001.safetensors")
    return home / name


@pytest.mark.parametrize("file", ["run/config.json", "task.json", "outcome.json", "run/steps.jsonl"])
@pytest.mark.parametrize("name", files.texts())
def test_a_run_s_files_may_be_anything(canary: Canary, tmp_path: Path, file: str, name: str) -> None:
    folder = make_run(tmp_path / "home")
    (folder / file).write_bytes(files.texts()[name])
    with canary.watched(), measured() as peak:
        for run in list_runs(tmp_path / "home"):
            losses_of(run.run)
        told = error_of(lambda: RunFolder.open(folder / "run"), ZoodipError)
    assert bool(told) == (file == "run/config.json")
    assert canary.seen == []
    assert peak.memory < ROOM


def links(canary: Canary) -> Iterator[tuple[str, Path]]:
    """What in a run's folder may lead out of it."""
    outside = canary.outside
    yield from (("run/snapshots", outside), ("run/samples", outside), ("run", outside / "run"))
    yield from (("run/steps.jsonl", outside / "secret.json"), ("log.txt", outside / "secret"))
    yield from (("before_after.png", outside / "secret.png"), ("task.json", outside / "secret.json"))
    yield from (("run/config.json", outside / "run" / "config.json"), ("run/state.safetensors", outside / "secret"))


@needs_links
def test_a_run_of_which_a_part_lies_elsewhere_is_neither_read_nor_written(canary: Canary, tmp_path: Path) -> None:
    for i, (name, to) in enumerate(links(canary)):
        home = tmp_path / f"home-{i}"
        folder = make_run(home)
        (folder / "task.json").write_text('{"version": 1, "kind": "train"}')
        link = folder / name
        if link.is_dir():
            link.rename(tmp_path / f"away-{i}")
        link.unlink(missing_ok=True)
        link.symlink_to(to)
        before = canary.listing(canary.outside)
        with canary.watched(tmp_path):
            (run,) = list_runs(home)
            assert run.state == FAILED
            assert "leads out of the run's folder" in run.message
            assert (run.embedding, run.before_after, run.sample, run.can_resume) == (None, None, None, False)
            if name.startswith("run/"):
                with pytest.raises(RunFolderError, match="is a link that leads out of the run's folder"):
                    RunFolder.open(folder if (folder / "config.json").is_file() else folder / "run")
            delete_run(home, "stranger")
        assert canary.seen == [], name
        assert canary.listing(canary.outside) == before
        assert list(home.iterdir()) == []


@needs_links
@pytest.mark.parametrize("name", ["task.json", "outcome.json", "log.txt", "run/config.json", "run/steps.jsonl"])
def test_a_run_s_files_are_not_waited_for(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "home")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)

    def look() -> None:
        for run in list_runs(tmp_path / "home"):
            losses_of(run.run)
        log_tail(folder)
        done.set()

    done = threading.Event()
    threading.Thread(target=look, daemon=True).start()
    assert done.wait(PATIENCE), "it waits for a pipe"
