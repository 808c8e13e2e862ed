"""Directions of a given shape: how far the search reaches along each axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from ..base.errors import ModelError

RANK = 64
"""Directions whose reach differs; all others share one. At 2048 numbers they take half a megabyte."""
FLOOR = 0.3
"""What is added to a direction's reach, as a share of the words' mean standard deviation."""
_ALIKE = 1e-6
"""Of the words' mean square: less variance is rounding."""


@dataclass(frozen=True, eq=False)
class Spread:
    """How far random directions reach: a symmetric matrix A ``[dim, dim]``, of which the largest axes are kept.

    Args:
        basis: float32 ``[rank, dim]``, orthonormal rows.
        reach: float32 ``[rank]``, along each of them, in units of the token embedding.
        rest: along everything else.
    """

    basis: torch.Tensor
    reach: torch.Tensor
    rest: float

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it, as a file can hold it."""
        return {"basis": self.basis, "reach": self.reach, "rest": torch.tensor(self.rest, dtype=torch.float64)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Spread:
        """From :meth:`tensors`.

        Raises:
            ValueError: they are of another kind, or hold NaN or infinity.
        """
        basis, reach, rest = (tensors[name] for name in ("basis", "reach", "rest"))
        if not (basis.dtype == torch.float32 == reach.dtype and basis.shape[:1] == reach.shape and basis.ndim == 2):
            raise ValueError("its tensors are of another kind")
        spread = cls(basis, reach, float(rest))
        if not torch.isfinite(spread.stretch(torch.ones(basis.shape[1]))).all():
            raise ValueError("it holds NaN or infinity")
        return spread

    def stretch(self, vectors: torch.Tensor) -> torch.Tensor:
        """``A v`` in float64 for vectors ``[..., dim]``."""
        basis = self.basis.double()
        along = vectors.double() @ basis.T
        return self.rest * vectors.double() + (along * (self.reach.double() - self.rest)) @ basis


def spread_of(pieces: Iterable[torch.Tensor], *, rank: int = RANK, floor: float = FLOOR) -> Spread:
    """The spread of the rows of all pieces ``[N, dim]``.

    With the variances v of their principal axes and the mean variance m, axes reach ``sqrt(v / m + floor^2)``; all
    scaled so that the squares sum to the rows' whole variance.

    Raises:
        ModelError: the rows are all alike, or hold NaN or infinity.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for piece in pieces:
        rows = piece.float()
        count, total = count + len(rows), total + rows.double().sum(dim=0)
        products = products + (rows.T @ rows).double()  # in float32, which is twice as fast; the sum in float64
    mean = total / count
    if not torch.isfinite(products).all():
        raise ModelError("model: its words hold NaN or infinity, so it cannot be trained on")
    variances, axes = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    whole = variances.clamp(min=0).sum()
    if not whole > _ALIKE * mean.square().sum():
        raise ModelError("model: its words are all alike, so they give directions no shape; choose directions normal")
    reach = (variances.clamp(min=0) / (whole / len(mean)) + floor**2).sqrt()
    reach *= whole.sqrt() / reach.norm()
    rank = min(rank, len(mean))
    # The axes left out share what they have, so that the squares' sum stays what it was.
    rest = reach[: len(mean) - rank].square().mean().sqrt() if rank < len(mean) else reach[0]
    return Spread(axes[:, -rank:].T.float().contiguous(), reach[-rank:].float(), float(rest))
