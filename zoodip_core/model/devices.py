"""What computes."""

from __future__ import annotations

import torch

from ..base.errors import ConfigError


def device_of(device: str) -> torch.device:
    """The device of a name; ``auto`` is a graphics card where there is one.

    Raises:
        ConfigError: it is not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"device = {device!r} is not available here; use cpu or auto") from None
