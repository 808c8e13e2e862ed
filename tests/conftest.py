"""Fixtures that several test files share."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import node_pack
import pytest

from tests.fake_host import FakeHost
from zoodip_core.model.load import load_quantized
from zoodip_core.model.quantized import QuantizedModel


@pytest.fixture(scope="session")
def tiny_model() -> QuantizedModel:
    """The embedded model, loaded once; nothing changes a loaded model."""
    return load_quantized("tiny")


@pytest.fixture(scope="session")
def pack() -> Any:
    """The node pack, as ComfyUI imports it.

    Its core is another copy of the modules than ``zoodip_core``: classes of the two differ.
    """
    return node_pack.import_pack()


@pytest.fixture
def host(pack: Any, tmp_path: Path) -> Iterator[FakeHost]:
    """A fake host that the nodes run in during the test."""
    place = FakeHost(tmp_path / "host")
    with importlib.import_module(f"{node_pack.NAME}.nodes.host").hosted_by(place):
        yield place
