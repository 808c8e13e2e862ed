"""Directions of a given shape: how far the search reaches along each axis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from ..base import rng
from ..base.errors import ModelError
from .threads import one_thread

RANK = 64
"""Directions whose reach differs; all others share one. At 2048 numbers they take half a megabyte."""
FLOOR = 0.3
"""What is added to a direction's reach, as a share of the words' mean standard deviation."""
_UNLIKE = 2.0
"""Parts whose words differ in size by more than this are each measured by their own. The two of SDXL do not."""
_WHOLE, _BESIDE, _TURNS = 2048, 64, 10
"""Up to which width all axes are worked out; beyond it how many beside those wanted are looked for, and how often."""
_ALIKE = 1e-6
"""Of the words' mean square: less variance is rounding."""
_MATRIX = 1024
"""Up to how many numbers a part's matrix is kept beside its axes: 8 MB at this width."""


@dataclass(frozen=True, eq=False)
class Axes:
    """A symmetric matrix ``[dim, dim]``, by its largest axes.

    Args:
        basis: float32 ``[rank, dim]``, orthonormal rows.
        reach: float32 ``[rank]``, along each of them.
        rest: along everything else.
    """

    basis: torch.Tensor
    reach: torch.Tensor
    rest: float

    @property
    def width(self) -> int:
        """dim."""
        return self.basis.shape[1]

    @property
    def square(self) -> float:
        """The sum of the squares of all its numbers."""
        rank, dim = self.basis.shape
        return float(self.reach.double().square().sum()) + (dim - rank) * self.rest**2

    @cached_property
    def _matrix(self) -> torch.Tensor:
        """In float64, where all axes are kept: half the work of two products."""
        basis = self.basis.double()
        with one_thread():
            return basis.T * self.reach.double() @ basis

    def stretch(self, vectors: torch.Tensor) -> torch.Tensor:
        """The product with vectors ``[..., dim]``, float64."""
        if len(self.basis) < self.width:
            basis, beyond = self.basis.double(), self.reach.double() - self.rest
            return self.rest * vectors + (vectors @ basis.T * beyond) @ basis
        if self.width <= _MATRIX:
            return vectors @ self._matrix
        with one_thread():  # in float32, as accurate as the axes are
            return ((vectors.float() @ self.basis.T * self.reach) @ self.basis).double()

    @property
    def useful(self) -> bool:
        """Whether its tensors fit each other."""
        basis, reach = self.basis, self.reach
        return basis.dtype == torch.float32 == reach.dtype and basis.ndim == 2 and basis.shape[:1] == reach.shape


@dataclass(frozen=True, eq=False)
class Spread:
    """How far random directions reach: a matrix A ``[dim, dim]``.

    Args:
        parts: what A is made of along its diagonal, in units of the token embedding: one for all numbers, or one for
            those of each text encoder.
        scale: float32 ``[dim]``, what each number is multiplied by in the end; None for 1.
        words: the words' root mean square distance from their mean, before ``scale``; None where directions reach as
            far as that themselves.
    """

    parts: tuple[Axes, ...]
    scale: torch.Tensor | None = None
    words: float | None = None

    @property
    def widths(self) -> list[int]:
        """The parts', whose sum is dim."""
        return [part.width for part in self.parts]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it, as a file can hold it."""
        found: dict[str, torch.Tensor] = {}
        for number, part in enumerate(self.parts):
            rest = torch.tensor(part.rest, dtype=torch.float64)
            named = {"basis": part.basis, "reach": part.reach, "rest": rest}
            found |= {_name(name, number): tensor for name, tensor in named.items()}
        scale = {} if self.scale is None else {"scale": self.scale}
        words = {} if self.words is None else {"words": torch.tensor(self.words, dtype=torch.float64)}
        return {**found, **scale, **words}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Spread:
        """From :meth:`tensors`.

        Raises:
            KeyError, ValueError: they are of another kind, or hold NaN or infinity.
        """
        parts: list[Axes] = []
        while not parts or _name("basis", len(parts)) in tensors:
            basis, reach, rest = (tensors[_name(name, len(parts))] for name in ("basis", "reach", "rest"))
            parts.append(Axes(basis, reach, float(rest)))
        if not all(part.useful for part in parts):
            raise ValueError("its tensors are of another kind")
        dim, scale = sum(part.width for part in parts), tensors.get("scale")
        if scale is not None and (scale.dtype != torch.float32 or scale.shape != (dim,)):
            raise ValueError("its scale is of another kind")
        words = float(tensors["words"]) if "words" in tensors else None
        if words is not None and not 0 < words < math.inf:
            raise ValueError("its words have no size")
        spread = cls(tuple(parts), scale, words)
        if not torch.isfinite(spread.stretch(torch.ones(dim))).all():
            raise ValueError("it holds NaN or infinity")
        return spread

    @property
    def size(self) -> float:
        """The words' root mean square distance from their mean, before ``scale``."""
        if self.words is not None:
            return self.words
        return math.sqrt(sum(part.square for part in self.parts))

    def stretch(self, vectors: torch.Tensor, radius: float = 0.0) -> torch.Tensor:
        """``A v`` in float64 for vectors ``[..., dim]``.

        Args:
            radius: in units of :attr:`size`, what no result is longer than: short ones stay as they are, of long ones
                the direction stays, ``A v / sqrt(1 + |A v|^2 / radius^2)``. 0: any length.
        """
        pieces = vectors.double().split(self.widths, dim=-1)
        stretched = torch.cat([part.stretch(piece) for part, piece in zip(self.parts, pieces, strict=True)], dim=-1)
        if radius:
            stretched = stretched / (1 + stretched.square().sum(-1, keepdim=True) / (radius * self.size) ** 2).sqrt()
        return stretched if self.scale is None else stretched * self.scale.double()


def _name(name: str, part: int) -> str:
    """In a file: the first part's have the names of when there was one alone."""
    return f"{name}.{part}" if part else name


@dataclass(frozen=True, eq=False)
class Moments:
    """Of rows: mean, float64 ``[dim]``, and covariance, float64 ``[dim, dim]``."""

    mean: torch.Tensor
    covariance: torch.Tensor

    @property
    def participation(self) -> float:
        """In how many directions rows differ, of ``dim``: ``(sum of variances)^2 / sum of their squares``."""
        return float(self.covariance.trace().square() / self.covariance.square().sum())

    def sizes(self, widths: Sequence[int]) -> list[float]:
        """The rows' root mean square distance from their mean in each of the parts that they consist of."""
        variances = self.covariance.diagonal().clamp(min=0)
        return [float(part.sum().sqrt()) for part in variances.split(list(widths))]


def moments_of(pieces: Iterable[torch.Tensor]) -> Moments:
    """Of the rows of all pieces ``[N, dim]``, float tensors.

    Raises:
        ModelError: they hold NaN or infinity.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for piece in pieces:
        rows = piece.float()
        count, total = count + len(rows), total + rows.double().sum(dim=0)
        products = products + (rows.T @ rows).double()  # in float32, which is twice as fast; the sum in float64
    mean = total / count
    if not torch.isfinite(products).all():
        raise ModelError("model: its words hold NaN or infinity, so it cannot be trained on")
    return Moments(mean, products / count - torch.outer(mean, mean))


def spread_of(
    pieces: Iterable[torch.Tensor], widths: Sequence[int] = (), *, rank: int = RANK, floor: float = FLOOR
) -> Spread:
    """:func:`spread_of_words` of the rows of all pieces."""
    return spread_of_words(moments_of(pieces), widths, rank=rank, floor=floor)


def spread_of_words(words: Moments, widths: Sequence[int] = (), *, rank: int = RANK, floor: float = FLOOR) -> Spread:
    """The spread of a model's words.

    With the variances v of their principal axes and the mean variance m, axes reach ``sqrt(v / m + floor^2)``; all
    scaled so that the squares sum to the words' whole variance.

    Args:
        widths: of the parts that rows consist of, one for each text encoder. Where their words differ in size, as
            those of CLIP and T5, rows are first divided by the size of each part's, and directions multiplied by it:
            else the larger part's floor would be a storm in the smaller.

    Raises:
        ModelError: the words are all alike.
    """
    mean, covariance = words.mean, words.covariance
    scale = _scale(covariance.diagonal(), widths)
    if scale is not None:
        covariance, mean = covariance / torch.outer(scale, scale), mean / scale
    rank = min(rank, len(mean))
    variances, axes = _axes(covariance, rank)
    whole = variances.clamp(min=0).sum()
    if not whole > _ALIKE * mean.square().sum():
        raise ModelError("model: its words are all alike, so they give directions no shape; choose directions normal")
    reach = (variances.clamp(min=0) / (whole / len(mean)) + floor**2).sqrt()
    reach *= whole.sqrt() / reach.norm()
    # The axes left out share what they have, so that the squares' sum stays what it was.
    rest = reach[: len(mean) - rank].square().mean().sqrt() if rank < len(mean) else reach[0]
    largest = Axes(axes[:, -rank:].T.float().contiguous(), reach[-rank:].float(), float(rest))
    return Spread((largest,), None if scale is None else scale.float())


def sensitive_spread(sensitivities: Sequence[torch.Tensor], words: Spread) -> Spread:
    """Directions that reach further where the text encoders' output changes more.

    With J the Jacobian of an encoder's output by its numbers of a token, the axes are those of ``J^T J``, and along the
    one whose eigenvalue is l they reach ``k l^(1/4)``, the square root of how much the output changes. k, one for all
    encoders, is such that a random direction changes the output, on the root mean square, as much as one of the words'
    spread, so that a perturbation size and a learning rate mean the same with both.

    Args:
        sensitivities: ``J^T J``, float64 ``[dim, dim]``, of each encoder.
        words: the spread of the model's words, whose size counts for a radius.

    Raises:
        ModelError: the output does not change, or holds NaN or infinity.
    """
    if not all(torch.isfinite(each).all() for each in sensitivities):
        raise ModelError(
            "model: its text encoder gives NaN or infinity, so it cannot be trained on; set dtype to float32"
        )
    if words.scale is not None:  # what is searched is what it multiplies
        scales = words.scale.double().split([len(each) for each in sensitivities])
        sensitivities = [each * torch.outer(size, size) for each, size in zip(sensitivities, scales, strict=True)]
    found = [torch.linalg.eigh(each) for each in sensitivities]
    values = [each.eigenvalues.clamp(min=0) for each in found]
    bases = [each.eigenvectors.T for each in found]
    stretched = dataclasses.replace(words, scale=None).stretch(torch.block_diag(*bases))
    pieces = stretched.split([len(each) for each in sensitivities], dim=-1)
    usual = sum((piece @ each * piece).sum() for piece, each in zip(pieces, sensitivities, strict=True))
    if not usual > 0:
        raise ModelError(
            "model: its text encoder gives the same for any token, so it gives directions no shape; choose "
            "directions vocabulary"
        )
    reaches = [each.pow(0.25) for each in values]
    changed = sum((each * reach.square()).sum() for each, reach in zip(values, reaches, strict=True))
    k = (usual / changed).sqrt()
    parts = (
        Axes(basis.float().contiguous(), (reach * k).float(), 0.0) for basis, reach in zip(bases, reaches, strict=True)
    )
    return Spread(tuple(parts), words.scale, words.size)


def _axes(covariance: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The variances ``[dim]`` along principal axes, rising, and the axes ``[dim, rank]`` or more of the largest.

    Of a wide one the largest are found by subspace iteration, in seconds in place of minutes; all others are given
    their mean.
    """
    dim = len(covariance)
    if dim <= _WHOLE:
        return torch.linalg.eigh(covariance)
    basis = rng.normal(0, 0, "axes", (dim, rank + _BESIDE)).double()
    for _ in range(_TURNS):
        basis = torch.linalg.qr(covariance @ basis).Q
    variances, within = torch.linalg.eigh(basis.T @ covariance @ basis)
    largest = variances[-rank:]
    others = (covariance.trace() - largest.sum()) / (dim - rank)
    return torch.cat([others.expand(dim - rank), largest]), basis @ within[:, -rank:]


def _scale(variances: torch.Tensor, widths: Sequence[int]) -> torch.Tensor | None:
    """The size of each part's words at each of its numbers; None if they are alike."""
    sizes = [float(part.clamp(min=0).mean().sqrt()) for part in variances.split(list(widths))] if widths else []
    if len(sizes) < 2 or not 0 < min(sizes) * _UNLIKE < max(sizes):
        return None
    return torch.cat([torch.full((width,), size).double() for width, size in zip(widths, sizes, strict=True)])
