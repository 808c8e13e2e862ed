"""Fixtures that several test files share."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import node_pack
import pytest

from tests.fake_host import FakeHost
from tests.once import encoding_once, noted_losses, remembering
from zoodip_core.base.stopping import check_stop
from zoodip_core.jobs import tasks
from zoodip_core.model import memory, stable_diffusion
from zoodip_core.model.kinds import TINY_PATH
from zoodip_core.model.latents import encode_images
from zoodip_core.model.load import load_quantized
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.train import loop

os.environ["ZOODIP_CACHE"] = tempfile.mkdtemp(prefix="zoodip-tests-cache-")
"""No test, and no process that one starts, writes copies of models into the user's own folder."""
atexit.register(shutil.rmtree, os.environ["ZOODIP_CACHE"], ignore_errors=True)
LONG = ("test_page_browser", "test_worker", "test_engine", "test_environment", "test_node_training", "test_memory")
"""Begun first, so that at the end no process waits for another's long file."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files; within each its tests stay in order."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def keep_what_is_loaded() -> None:
    """No collection of garbage looks through what is loaded by now and stays, which takes a tenth of the time."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    keep_what_is_loaded()


@pytest.fixture(scope="session", autouse=True)
def work_done_once() -> Iterator[None]:
    """Predicting memory, encoding pictures and drawing losses take longer than the steps of most runs: the first two
    are done once for the same, and losses are written down.

    The tests of each of them have imported the real ones.
    """
    with pytest.MonkeyPatch.context() as patch:
        predict = remembering(memory.predict_memory, check_stop)
        for module in (memory, tasks):
            patch.setattr(module, "predict_memory", predict)
        patch.setattr(loop, "loss_curve", noted_losses)
        patch.setattr(stable_diffusion, "encode_images", encoding_once(encode_images, TINY_PATH, check_stop))
        yield


@pytest.fixture(scope="session")
def tiny_model() -> StableDiffusion:
    """The embedded model, loaded once; nothing changes a loaded model."""
    made = load_quantized("tiny")
    made.load()  # and the libraries with it
    keep_what_is_loaded()
    return made


@pytest.fixture(scope="session")
def pack() -> Any:
    """The node pack, as ComfyUI imports it.

    Its core is another copy of the modules than ``zoodip_core``: classes of the two differ.
    """
    made = node_pack.import_pack()
    own_memory: Any
    own_loop: Any
    own_model: Any
    own_memory, own_loop, own_model, own_kinds, own_stopping = (
        importlib.import_module(f"{node_pack.NAME}.zoodip_core.{name}")
        for name in ("model.memory", "train.loop", "model.stable_diffusion", "model.kinds", "base.stopping")
    )
    own_memory.predict_memory = remembering(own_memory.predict_memory, own_stopping.check_stop)
    own_loop.loss_curve = noted_losses
    own_model.encode_images = encoding_once(own_model.encode_images, own_kinds.TINY_PATH, own_stopping.check_stop)
    keep_what_is_loaded()
    return made


@pytest.fixture
def host(pack: Any, tmp_path: Path) -> Iterator[FakeHost]:
    """A fake host that the nodes run in during the test."""
    place = FakeHost(tmp_path / "host")
    with importlib.import_module(f"{node_pack.NAME}.nodes.host").hosted_by(place):
        yield place
