"""What our own engine draws from a host's noise, on a host's checkpoint as it is: weights that are not quantised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from zoodip_core.model import generation
from zoodip_core.model.load import load_quantized
from zoodip_core.model.lora import Lora

CLOSE = 1e-3
"""How far apart latents may be that a host and our engine draw."""


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far two latents differ, as a share of their size."""
    return float((one - other).norm() / other.norm())


class OwnEngine:
    """A checkpoint in float32 on the CPU, which draws by the steps of the hosts' Euler on their DDIM schedule."""

    def __init__(self, checkpoint: Path) -> None:
        from diffusers import DDIMScheduler

        self.model = load_quantized(checkpoint, weights="none", dtype="float32", device="cpu", cache=None)
        # Hosts end where no noise is left.
        self.model.scheduler = DDIMScheduler.from_config(self.model.scheduler.config, set_alpha_to_one=True)

    def latents(
        self, text: str, seed: int, steps: int, guidance: float, *, lora: Lora | None = None, embedding: Any = None
    ) -> torch.Tensor:
        """``[1, 4, 8, 8]``, as large as a UNet has them: before the VAE's factor is taken out."""
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))  # as the hosts draw it
        first = 1 + 1000 // steps * (steps - 1)
        # Hosts begin with noise alone, as large as it is at the first timestep.
        noise = noise * (1 - float(self.model.alphas_cumprod[first])) ** 0.5
        settings: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "resolution": 64}
        with _undecoded(noise) as drawn, generation.with_lora(self.model, lora):
            generation.generate(self.model, [text], [seed], embedding=embedding, **settings)
        return drawn.pop()[None]


@contextmanager
def _undecoded(noise: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Drawings begin with this noise, and what comes out stays latents, which are put into the list."""
    drawn: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "_noise", lambda *_given: noise)
        patch.setattr(generation, "_decode", lambda _model, found: drawn.__iadd__(found))
        yield drawn
