"""By what a run knows its model, images and captions again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Inputs:
    """What identifies the model, images and captions of a run.

    Args:
        digest: of all of them.
        parts: a digest of ``model``, with its noise schedule, of ``images``, of ``captions``, and of ``masks`` where
            there are any; a state of before has none.
    """

    digest: str
    parts: dict[str, str]

    def differ_in(self, other: Inputs) -> list[str]:
        """The parts of which it is known that they are not the same."""
        names = {**other.parts, **self.parts} if self.parts and other.parts else {}
        return [name for name in names if self.parts.get(name) != other.parts.get(name)]
