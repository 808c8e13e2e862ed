"""The loss of a model of ComfyUI's on devices that are not at hand; the real host's are in tests/e2e."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch


class OnApple(torch.Tensor):
    """Refuses what a tensor on Apple's graphics card refuses."""

    device = property(lambda self: torch.device("mps"))

    def double(self) -> Any:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> Any:
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("weighted", [False, True])
def test_errors_are_exact_where_the_device_has_no_float64(pack: Any, weighted: bool) -> None:
    module = importlib.import_module(f"{pack.__name__}.nodes.any_model.exact")
    rng = np.random.default_rng(0)
    x0, *predicted = (rng.standard_normal((1, 4, 2, 3)).astype(np.float32) for _ in range(3))
    places = rng.random((2, 3)) if weighted else np.ones((2, 3))
    on_apple = [torch.from_numpy(each).as_subclass(OnApple) for each in predicted]
    target = module.exact(torch.from_numpy(x0).as_subclass(OnApple))
    errors = module.mean_squares(on_apple, target, torch.from_numpy(places) if weighted else None)
    expected = [np.mean(places * (each.astype(np.float64) - x0.astype(np.float64)) ** 2) for each in predicted]
    assert errors.dtype == torch.float64
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-12)
