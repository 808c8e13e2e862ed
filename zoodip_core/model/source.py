"""Where a parameter lies in a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Source:
    """Where a parameter lies in a checkpoint: a tensor, or the third of one, perhaps transposed."""

    name: str
    third: int | None = None
    transposed: bool = False

    def holds(self, have: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether a file's tensor of the shape ``have`` is one for a parameter of ``shape``."""
        if self.third is not None:
            if not have or have[0] % 3:
                return False
            have = (have[0] // 3, *have[1:])
        have = have[::-1] if self.transposed else have
        return [n for n in have if n != 1] == [n for n in shape if n != 1]

    def take(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The parameter of ``shape`` out of the file's tensor (1x1 convolutions are linear layers, too)."""
        if self.third is not None:
            tensor = tensor.chunk(3)[self.third]
        return (tensor.T if self.transposed else tensor).reshape(shape)
