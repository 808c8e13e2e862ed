"""The node pack for our own tools: loaded from its file as ComfyUI does, without ComfyUI."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME = "zoodip_pack"


def import_pack() -> Any:
    """The pack's module, under the name :data:`NAME`. Its core is another copy of the modules than ``zoodip_core``."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        spec.loader.exec_module(module)
    return sys.modules[NAME]


class _EmptyHost:
    """A host that has no models, pictures, embeddings or LoRAs to list."""

    def models(self) -> dict[str, Path]:
        return {}

    def embeddings(self) -> dict[str, Path]:
        return {}

    def loras(self) -> dict[str, Path]:
        return {}

    def input_folder(self) -> Path:
        return ROOT / "no such folder"


def without_files() -> Any:
    """A context in which the nodes list no files of anybody's."""
    return importlib.import_module(f"{NAME}.nodes.host").hosted_by(_EmptyHost())
