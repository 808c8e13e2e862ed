"""Work that takes longer than the steps of most of the tests' runs: what they share of it, and what they do without."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zoodip_core.base.files import write_atomically

NOTE = "losses"


def remembering(predict: Callable[..., Any], check_stop: Callable[[], None]) -> Callable[..., Any]:
    """Predicts the memory of a layout, or tells what was predicted for it before; a stop is heeded in either case."""
    known: dict[str, Any] = {}

    def predicted(blueprint: Any, *arguments: Any, **more: Any) -> Any:
        check_stop()
        key = repr((blueprint.info, blueprint.configs, blueprint.tokenizers, arguments, sorted(more.items())))
        if key not in known:
            known[key] = predict(blueprint, *arguments, **more)
        return known[key]

    return predicted


def encoding_once(encode: Callable[..., Any], embedded: Path, check_stop: Callable[[], None]) -> Callable[..., Any]:
    """Encodes pictures by the embedded model's VAE, or gives what came of the same; a stop is heeded in either case.

    Args:
        encode: what encodes them.
        embedded: where that model lies; others encode each time.
        check_stop: asked before each picture.
    """
    known: dict[Any, Any] = {}

    def encoded(model: Any, images: Sequence[Any]) -> Any:
        if model.info.path != embedded or model.blueprint.vae:
            return encode(model, images)
        pictures = [
            (image.picture.mode, image.picture.size, image.picture.tobytes(), image.time_ids) for image in images
        ]
        key = repr((model.dtype, model.device)), tuple(pictures)
        if key not in known:
            known[key] = encode(model, images)
        for _ in images:
            check_stop()
        return known[key]

    return encoded


def noted_losses(losses: Sequence[float], path: Path, *more: str) -> None:
    """In place of the picture of losses: one of its size that is blank, whose note has what it would show."""
    about, buffer = PngInfo(), io.BytesIO()
    about.add_text(NOTE, repr((*losses, *more)))
    Image.new("L", (792, 396), 255).save(buffer, format="PNG", pnginfo=about)
    write_atomically(path, buffer.getvalue())
