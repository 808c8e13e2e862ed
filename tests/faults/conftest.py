"""What the tests of faults share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.run import train
from zoodip_core.model.quantized import QuantizedModel


@pytest.fixture(scope="session")
def model(tiny_model: QuantizedModel) -> QuantizedModel:
    return tiny_model


@pytest.fixture(scope="module")
def whole(model: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed, with a snapshot of each step."""
    return train(tmp_path_factory.mktemp("whole") / "run", model, save_every=1).path.parent
