"""A host for the nodes that needs no ComfyUI: folders of its own, and a record of what it was told.

What it imitates is tested against the real one in ``tests/e2e``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image


class Interrupted(BaseException):
    """What this host raises after a stop: like the newer ComfyUI's, no ``Exception``."""


_PARTS = {"diffusion_models": "(unet)", "text_encoders": "(clip)", "vae": "(vae)"}


class FakeHost:
    """Implements ``nodes.host.Host`` on folders below ``root``.

    Args:
        root: gets ``input``, ``output``, ``temp``, ``models``, ``embeddings`` and ``loras``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sent: list[tuple[str, dict[str, Any]]] = []
        """Events, in order."""
        self.shown: list[tuple[int, int, Image.Image | None]] = []
        """What the progress bars showed."""
        self.calls: list[str] = []
        """``make_room`` and ``return_memory``, in order."""
        self.asked: Callable[[], bool] = lambda: False
        """Whether a stop was asked for."""
        for name in ("input", "output", "temp", "models", "embeddings", "loras"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def device(self) -> str:
        return "cpu"

    def models(self) -> dict[str, Path]:
        folder = self.root / "models"
        found = {path.name: path for path in sorted(folder.iterdir()) if path.name not in _PARTS}
        parts = {part: sorted((folder / kind).glob("*")) for kind, part in _PARTS.items()}
        return found | {f"{path.name} {part}": path for part, paths in parts.items() for path in paths}

    def models_folder(self) -> Path:
        return self.root / "models"

    def input_folder(self) -> Path:
        return self.root / "input"

    def output_folder(self) -> Path:
        return self.root / "output"

    def temp_folder(self) -> Path:
        return self.root / "temp"

    def embeddings(self) -> dict[str, Path]:
        return self._files("embeddings")

    def _files(self, kind: str) -> dict[str, Path]:
        folder = self.root / kind
        return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}

    def embeddings_folder(self) -> Path:
        return self.root / "embeddings"

    def loras(self) -> dict[str, Path]:
        return self._files("loras")

    def loras_folder(self) -> Path:
        return self.root / "loras"

    def weights_by_lora(self, model: Any) -> dict[str, Any]:
        return {f"lora_unet_{name.replace('.', '_')}": name for name in model.shapes}

    def with_lora(self, model: Any, tensors: dict[str, Any], strength: float) -> Any:
        copy = model.clone()
        copy.lay_on(tensors, strength)
        return copy

    def bar(self) -> FakeHost:
        return self

    def update(self, done: int, total: int, picture: Image.Image | None = None) -> None:
        if self.asked():
            raise importlib.import_module("zoodip_pack.zoodip_core.base.stopping").Stopped
        self.shown.append((done, total, picture))

    def send(self, event: str, data: dict[str, Any]) -> None:
        self.sent.append((event, data))

    def interrupted(self) -> bool:
        return self.asked()

    def interrupt(self) -> NoReturn:
        raise Interrupted

    def make_room(self) -> None:
        self.calls.append("make_room")

    def return_memory(self) -> None:
        self.calls.append("return_memory")
