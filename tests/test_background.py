"""Work in the background, and the hash that is worked out there."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest
import random_models

from zoodip_core.base.background import in_background, share_out
from zoodip_core.base.stopping import Stopped, check_stop, stopped_by
from zoodip_core.model.recognise import open_model


def test_what_is_raised_in_the_background_is_raised_to_who_waits() -> None:
    assert in_background(lambda: 7).result() == 7
    with stopped_by(lambda: True):
        stopped = in_background(check_stop)
    assert in_background(check_stop).result() is None
    with pytest.raises(Stopped):
        stopped.result()


def test_a_models_hash_is_that_of_its_file_and_is_begun_anew_after_a_stop(tmp_path: Path) -> None:
    file = random_models.write_random(tmp_path / "model.safetensors", "sd15", "small", 0)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    blueprint = open_model(file)
    with stopped_by(lambda: True):
        blueprint.hash_meanwhile()
    with pytest.raises(Stopped):
        _ = blueprint.fingerprint
    blueprint.hash_meanwhile()
    assert blueprint.fingerprint == expected == open_model(file).fingerprint


def test_a_hash_of_several_files_goes_by_their_order() -> None:
    blueprint = open_model("tiny")
    hashes = [checkpoint.sha256() for checkpoint in blueprint.checkpoints]
    assert len(hashes) > 1
    assert blueprint.fingerprint == hashlib.sha256("".join(hashes).encode()).hexdigest()


def test_all_is_done_several_at_once() -> None:
    together, done = threading.Barrier(2, timeout=60), []

    def work(item: int) -> None:
        together.wait()  # would not end if one were done after the other
        done.append(item)

    share_out(range(6), work, 2)
    assert sorted(done) == list(range(6))


def test_what_is_raised_shows_and_the_rest_is_left() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.01)
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        share_out(range(1000), work, 2)
    assert len(begun) < 1000


def test_a_stop_is_seen_in_the_threads() -> None:
    begun = []

    def work(item: int) -> None:
        check_stop()
        begun.append(item)

    with pytest.raises(Stopped), stopped_by(lambda: len(begun) > 3):
        share_out(range(100), work, 2)
    assert len(begun) <= 5
