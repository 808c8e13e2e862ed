"""ZOODiP: teach Stable Diffusion a new subject with forward passes only.

The core imports no host: neither ComfyUI nor A1111. Importing it is cheap; torch and the model
libraries are loaded when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .config import TrainConfig as TrainConfig
    from .embedding import Embedding as Embedding
    from .embedding import load_embedding as load_embedding
    from .embedding import save_embedding as save_embedding
    from .errors import ZoodipError as ZoodipError
    from .estimators import RGE as RGE
    from .estimators import SPSA as SPSA
    from .estimators import OnePoint as OnePoint
    from .events import Commands as Commands
    from .generation import generate as generate
    from .models import load_quantized as load_quantized
    from .optimizers import ZOSGD as ZOSGD
    from .optimizers import ZOAdam as ZOAdam
    from .replay import rewind as rewind
    from .search import ZerothOrderSearch as ZerothOrderSearch
    from .subspace import SubspaceGradient as SubspaceGradient
    from .timesteps import PUTS as PUTS
    from .timesteps import SNRTimesteps as SNRTimesteps
    from .timesteps import UniformTimesteps as UniformTimesteps
    from .trainer import TrainResult as TrainResult
    from .trainer import resume_training as resume_training
    from .trainer import train_token as train_token

_HOMES = {
    "config": ("TrainConfig",),
    "embedding": ("Embedding", "load_embedding", "save_embedding"),
    "errors": ("ZoodipError",),
    "estimators": ("RGE", "SPSA", "OnePoint"),
    "events": ("Commands",),
    "generation": ("generate",),
    "models": ("load_quantized",),
    "optimizers": ("ZOAdam", "ZOSGD"),
    "replay": ("rewind",),
    "search": ("ZerothOrderSearch",),
    "subspace": ("SubspaceGradient",),
    "timesteps": ("PUTS", "SNRTimesteps", "UniformTimesteps"),
    "trainer": ("TrainResult", "resume_training", "train_token"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
