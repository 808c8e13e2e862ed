"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.run import train
from zoodip_core.model import memory
from zoodip_core.model.quantized import QuantizedModel
from zoodip_core.train import prepared


@pytest.fixture(scope="session")
def model(tiny_model: QuantizedModel) -> QuantizedModel:
    return tiny_model


@pytest.fixture(scope="module")
def whole(model: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed, with a snapshot of each step."""
    return train(tmp_path_factory.mktemp("whole") / "run", model, save_every=1).path.parent


@pytest.fixture
def quick(model: QuantizedModel, tmp_path: Path) -> Iterator[None]:
    """Predicts the memory of these runs once only: it takes longer than their steps."""
    known: dict[str, memory.MemoryPlan] = {}
    with pytest.MonkeyPatch.context() as patch:

        def plan(*arguments: Any, **more: Any) -> memory.MemoryPlan:
            key = repr(arguments[5:])
            if key not in known:
                known[key] = memory.plan(*arguments, **more)
            return known[key]

        patch.setattr(prepared, "plan", plan)
        yield
