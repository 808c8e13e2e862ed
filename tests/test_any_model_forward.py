"""The loss of a model of ComfyUI's on devices that are not at hand; the real host's are in tests/e2e."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch


class OnApple(torch.Tensor):
    """Refuses what a tensor on Apple's graphics card refuses."""

    device = property(lambda self: torch.device("mps"))

    def double(self) -> Any:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    def cpu(self) -> Any:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)


@pytest.fixture
def forward(pack: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with as much of ComfyUI as it imports."""
    host = types.ModuleType("comfy")
    host.__path__ = []
    for name in ("patcher_extension", "sampler_helpers", "samplers"):
        part = types.ModuleType(f"comfy.{name}")
        setattr(host, name, part)
        monkeypatch.setitem(sys.modules, f"comfy.{name}", part)
    host.samplers.Sampler = object
    monkeypatch.setitem(sys.modules, "comfy", host)
    name = f"{pack.__name__}.nodes.any_model.forward"
    known = sys.modules.pop(name, None)
    yield importlib.import_module(name)
    sys.modules.pop(name)
    if known:
        sys.modules[name] = known


@pytest.mark.parametrize("shifted", [False, True])
def test_losses_are_exact_where_the_device_has_no_float64(
    forward: Any, monkeypatch: pytest.MonkeyPatch, shifted: bool
) -> None:
    rng = np.random.default_rng(0)
    x0, shift, *predicted = (rng.standard_normal((1, 4, 2, 2)).astype(np.float32) for _ in range(4))

    def on_apple(array: Any) -> Any:
        return torch.from_numpy(array).as_subclass(OnApple)

    def run(_model: Any, _conditionings: Any, latents: Any, work: Any) -> Any:
        return work(types.SimpleNamespace(model_sampling=None), {}, latents)

    monkeypatch.setattr(forward, "_predicted", lambda *_: [on_apple(each) for each in predicted])
    monkeypatch.setattr(forward, "loss_weight", lambda *_: 4.0)
    monkeypatch.setattr(forward, "run", run)
    given = torch.from_numpy(shift) if shifted else None
    losses = forward.losses(None, [None] * 2, on_apple(x0), on_apple(x0), 1.0, given)
    target = x0.astype(np.float64) - (shift.astype(np.float64) / 2 if shifted else 0)
    expected = [4.0 * np.mean((each.astype(np.float64) - target) ** 2) for each in predicted]
    assert losses.dtype == torch.float64
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-12)
