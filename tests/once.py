"""Work that the runs of the tests share, since it takes longer than their steps, and comes out the same each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zoodip_core.base.files import write_atomically


def remembering(predict: Callable[..., Any]) -> Callable[..., Any]:
    """Predicts the memory of a layout, or tells what was predicted for it before."""
    known: dict[str, Any] = {}

    def predicted(blueprint: Any, *arguments: Any, **more: Any) -> Any:
        key = repr((blueprint.info, blueprint.configs, blueprint.tokenizers, arguments, sorted(more.items())))
        if key not in known:
            known[key] = predict(blueprint, *arguments, **more)
        return known[key]

    return predicted


def drawn_once(draw: Callable[..., None], folder: Path) -> Callable[..., None]:
    """Writes the picture of losses as ``draw`` does, which is asked once for the same losses."""
    known: dict[tuple[Any, ...], Path] = {}

    def drawn(losses: Sequence[float], path: Path, *more: str) -> None:
        key = (*losses, *more)
        if key not in known:
            draw(losses, folder / f"{len(known)}.png", *more)
            known[key] = folder / f"{len(known)}.png"
        write_atomically(path, known[key].read_bytes())

    return drawn
