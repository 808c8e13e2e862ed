"""Random draws as pure functions of (seed, step, purpose).

Every draw comes from a private CPU generator seeded from a hash of the three, so that it is the
same on every device, in every process and in any order of asking; the global generators are never
read or set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one step."""
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little", signed=True))


def normal(seed: int, step: int, purpose: str, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal float32 tensor of ``shape`` on the CPU."""
    return torch.randn(tuple(shape), generator=generator(seed, step, purpose), dtype=torch.float32)


def uniform(seed: int, step: int, purpose: str) -> float:
    """A float in [0, 1)."""
    return float(torch.rand((), generator=generator(seed, step, purpose), dtype=torch.float64))


def integer(seed: int, step: int, purpose: str, low: int, high: int) -> int:
    """An integer in [low, high)."""
    return int(torch.randint(low, high, (), generator=generator(seed, step, purpose)))
