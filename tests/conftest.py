"""Fixtures that several test files share."""

from __future__ import annotations

import pytest

from zoodip_core.models import QuantizedModel, load_quantized


@pytest.fixture(scope="session")
def tiny_model() -> QuantizedModel:
    """The embedded model, loaded once; nothing changes a loaded model."""
    return load_quantized("tiny")
