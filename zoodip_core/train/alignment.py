"""The prompt that a token will be used in, as a target: PALP (arXiv 2401.06105) with forward passes alone.

The paper's eq. 6, rescaled as it advises, pulls the personalized prediction p by ``J^T D``, J being p's derivative by
what is learned (eq. 7) and D how the model's predictions for the caption and for the clean target prompt differ:

    D = G^beta(x, caption with the token) - G^alpha(x, target prompt with the class word)
    G^g(x, y) = (1 - g) eps(x, "") + g eps(x, y)

at ``x``, the predicted picture with the same noise again. D is the same for all candidates of a step, so that
``|p - t|^2 + lambda <D, p>`` is ``|p - (t - lambda / 2 D)|^2`` but for a constant: denoising with a shifted target.
Where a mask weighs squared errors by w, the pull stays as it is everywhere: ``w |p - t|^2 + lambda <D, p>`` is
``w |p - (t - lambda / (2 w) D)|^2`` but for a constant.
All is in the space of the model's own output, whatever it predicts. Of a LoRA that is learned, G^beta's model has it,
G^alpha's has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..base import rng
from ..base.stopping import check_stop
from ..model.token_model import Denoiser, Prompt, Row, View
from .draws import Draw


def forwards_beside(alpha: float, beta: float, own_weights: bool) -> int:
    """Forward passes of a step beside its candidates': the predicted picture's, and those that D is made of.

    Arguments are those of :class:`Alignment`.
    """
    of_empty = 2 * (alpha != 1 or beta != 1) if own_weights else alpha != beta
    return 3 + of_empty


@dataclass(frozen=True)
class Alignment:
    """What shifts the targets of a run.

    Args:
        clean: the target prompts with the class word in the token's place; a step's draw decides for one.
        empty: the prompt without a word.
        strength: the paper's lambda, above 0.
        alpha: the guidance scale of the clean prompt.
        beta: that of the caption, above 0.
        own_weights: whether weights are learned as well, so that the empty prompt has two predictions.
    """

    clean: Sequence[Prompt]
    empty: Prompt
    strength: float
    alpha: float = 1.0
    beta: float = 1.0
    own_weights: bool = False

    @property
    def prompts(self) -> list[Prompt]:
        """All texts that it needs encoded."""
        return [*self.clean, self.empty] if self._guided else list(self.clean)

    @property
    def forwards(self) -> int:
        """See :func:`forwards_beside`."""
        return forwards_beside(self.alpha, self.beta, self.own_weights)

    @property
    def _guided(self) -> bool:
        return self.alpha != 1 or self.beta != 1

    def shifted(self, denoiser: Denoiser, view: View, draw: Draw, at: torch.Tensor, together: bool = True) -> View:
        """The view with what shifts its target, ``lambda / 2 D``; over the view's weight, above 0, if it has one.

        Args:
            denoiser: what predicts.
            view: of the draw.
            draw: decides for a target prompt.
            at: what the candidates are taken around, as one of them, ``[1, ...]``.
            together: whether D's predictions share a forward pass.

        Raises:
            OutOfMemoryError: there is no room.
        """
        shift = self.strength / 2 * self._difference(denoiser, view, draw, at, together)
        return replace(view, shift=shift if view.weight is None else (shift.double() / view.weight).to(shift.dtype))

    def rest(self, denoiser: Denoiser, view: View, draw: Draw, at: torch.Tensor, together: bool = True) -> float:
        """What is left to align, on the scale of the loss: ``lambda / (2 beta) |D|^2``, whose gradient is about J^T D.

        Arguments are those of :meth:`shifted`.
        """
        square = self._difference(denoiser, view, draw, at, together).double().square().mean()
        return self.strength / (2 * self.beta) * float(square)

    def _difference(self, denoiser: Denoiser, view: View, draw: Draw, at: torch.Tensor, together: bool) -> torch.Tensor:
        """D on the path: ``[1, ...]`` of the view's latents."""
        on_path = self._on_path(denoiser, view, at)
        clean = self.clean[rng.integer(draw.seed, draw.step, "target prompt", 0, len(self.clean))]
        terms = self._terms(view.prompt, clean, at)
        rows = [row for row, _ in terms]
        groups = [rows] if together else [[row] for row in rows]
        outputs = torch.cat([_outputs(denoiser, on_path, group) for group in groups])
        factors = torch.tensor([factor for _, factor in terms]).view(-1, *[1] * (outputs.ndim - 1))
        return (factors * outputs).sum(dim=0, keepdim=True)

    def _on_path(self, denoiser: Denoiser, view: View, at: torch.Tensor) -> View:
        """Of the picture that is predicted, with the same noise: where the paper's D is taken."""
        return replace(view, latents=denoiser.picture(view, _outputs(denoiser, view, [(view.prompt, at)])))

    def _terms(self, caption: Prompt, clean: Prompt, at: torch.Tensor | None) -> list[tuple[Row, float]]:
        """What D is the sum of: predictions and their factors."""
        terms: list[tuple[Row, float]] = [((caption, at), self.beta), ((clean, None), -self.alpha)]
        if self.own_weights and self._guided:
            return [*terms, ((self.empty, at), 1 - self.beta), ((self.empty, None), self.alpha - 1)]
        return [*terms, ((self.empty, None), self.alpha - self.beta)] if self.alpha != self.beta else terms


def _outputs(denoiser: Denoiser, view: View, rows: Sequence[Row]) -> torch.Tensor:
    """One forward pass, not begun where a stop is asked for."""
    check_stop()
    return denoiser.outputs(view, rows)
