"""How much memory a run takes, and how it is laid out for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on the device that computes.

    Args:
        weights: of the UNet and the text encoders, quantised, by component.
        activations: peak of a training step above the weights.
        encoding: peak of encoding one image, the VAE's encoder included; it is gone before the UNet comes.
        fixed: what the device's runtime takes: CUDA's context and what its allocator keeps free, a CPU's reordered
            copies of a layer.
        graphs: what steps that are captured take besides.
    """

    weights: Mapping[str, int]
    activations: int
    encoding: int
    fixed: int = 0
    graphs: int = 0

    @property
    def total(self) -> int:
        """Peak of the whole run."""
        return self.fixed + max(self.encoding, sum(self.weights.values()) + self.activations + self.graphs)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {megabytes(size)}" for name, size in self.weights.items())
        fixed = f", device's runtime {megabytes(self.fixed)}" if self.fixed else ""
        graphs = f", graphs {megabytes(self.graphs)}" if self.graphs else ""
        weights, activations = (megabytes(size) for size in (sum(self.weights.values()), self.activations))
        return (
            f"{megabytes(self.total)} in all: weights {weights} ({parts}), activations {activations}{graphs}{fixed}; "
            f"before that, encoding images {megabytes(self.encoding)}"
        )


@dataclass(frozen=True)
class MemoryPlan:
    """How a run is laid out.

    Args:
        batch: candidates in one forward.
        text_apart: whether the text encoders stay on the CPU.
        use: what it takes.
        captured: for how many shapes of pictures a step is to be captured.
    """

    batch: int
    text_apart: bool
    use: MemoryUse
    captured: int = 0

    @property
    def graphs(self) -> bool:
        """Whether steps are to be captured."""
        return self.captured > 0


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:.1f} MB" if size < 1e8 else f"{size / 1e9:.2f} GB"
