"""The bundled sample concepts: subjects that the embedded model was never trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..base.errors import ConfigError

FOLDER = Path(__file__).parent / "concepts"


@dataclass(frozen=True)
class Concept:
    """A subject to learn: reference images, held-out images, and what it really is.

    Args:
        kind: what is special about it: colour, pattern, shape, bundle or style.
        attributes: its true shape, pattern, eyes, head (class names) and colour (RGB); empty for a style.
        tone: a style's darkest and lightest RGB, else None.
    """

    name: str
    kind: str
    about: str
    token: str
    initializer: str
    attributes: dict[str, Any]
    tone: list[list[int]] | None

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def images(self) -> Path:
        """The folder of reference images."""
        return self.folder / "images"

    @property
    def captions(self) -> Path:
        """The reference images' captions."""
        return self.folder / "images.json"

    @property
    def heldout(self) -> Path:
        """The folder of images never trained on."""
        return self.folder / "heldout"

    @property
    def heldout_captions(self) -> Path:
        return self.folder / "heldout.json"

    def pictures(self) -> list[Image.Image]:
        """The reference images, opened."""
        return [Image.open(path, formats=("PNG",)).convert("RGB") for path in sorted(self.images.glob("*.png"))]

    def prompt(self, place: str) -> str:
        """A text that asks for the concept, with ``{}`` for its token or word; a style has no place."""
        if self.kind == "style":
            return "a monster in {} style"
        return f"a {{}} in the {place}"


def names() -> list[str]:
    """All bundled concepts."""
    return sorted(path.parent.name for path in FOLDER.glob("*/concept.json"))


def load(name: str) -> Concept:
    """A bundled concept by name.

    Raises:
        ConfigError: there is no such concept.
    """
    if name not in names():
        raise ConfigError(f"concept {name!r} is unknown; choose one of {', '.join(names())}")
    return Concept(**json.loads((FOLDER / name / "concept.json").read_text(encoding="utf-8")))
