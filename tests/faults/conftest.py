"""What the tests of faults share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.run import train
from zoodip_core.model.stable_diffusion import StableDiffusion


@pytest.fixture(scope="session")
def model(tiny_model: StableDiffusion) -> StableDiffusion:
    return tiny_model


@pytest.fixture(scope="module")
def whole(model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed, with a snapshot of each step."""
    return train(tmp_path_factory.mktemp("whole") / "run", model, save_every=1).path.parent
