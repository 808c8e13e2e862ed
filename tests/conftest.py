"""Fixtures that several test files share."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_host import FakeHost
from zoodip_core.models import QuantizedModel, load_quantized

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_model() -> QuantizedModel:
    """The embedded model, loaded once; nothing changes a loaded model."""
    return load_quantized("tiny")


@pytest.fixture(scope="session")
def pack() -> Any:
    """The node pack, imported from its file under a name of its own, as ComfyUI does.

    Its core is then another copy of the modules than ``zoodip_core``: classes of the two differ.
    """
    name = "zoodip_pack"
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def host(pack: Any, tmp_path: Path) -> Iterator[FakeHost]:
    """A fake host that the nodes run in during the test."""
    place = FakeHost(tmp_path / "host")
    with importlib.import_module("zoodip_pack.nodes.host").hosted_by(place):
        yield place
