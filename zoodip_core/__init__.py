"""ZOODiP: teach Stable Diffusion a new subject with forward passes only.

The core imports no host: neither ComfyUI nor A1111. Importing it is cheap; torch and the model
libraries are loaded when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .base.version import __version__

if TYPE_CHECKING:
    from .base.errors import ZoodipError as ZoodipError
    from .base.events import Commands as Commands
    from .model.embedding import Embedding as Embedding
    from .model.embedding import load_embedding as load_embedding
    from .model.embedding import save_embedding as save_embedding
    from .model.generation import generate as generate
    from .model.generation import with_lora as with_lora
    from .model.load import load_quantized as load_quantized
    from .model.lora import load_lora as load_lora
    from .model.lora import save_lora as save_lora
    from .search.estimators import RGE as RGE
    from .search.estimators import SPSA as SPSA
    from .search.estimators import LeaveOneOut as LeaveOneOut
    from .search.estimators import OnePoint as OnePoint
    from .search.optimizers import ZOSGD as ZOSGD
    from .search.optimizers import ZOAdam as ZOAdam
    from .search.subspace import SubspaceGradient as SubspaceGradient
    from .search.zeroth_order import ZerothOrderSearch as ZerothOrderSearch
    from .train.config import TrainConfig as TrainConfig
    from .train.loop import TrainResult as TrainResult
    from .train.loop import resume_training as resume_training
    from .train.loop import train_token as train_token
    from .train.replay import rewind as rewind
    from .train.timesteps import PUTS as PUTS
    from .train.timesteps import SNRTimesteps as SNRTimesteps
    from .train.timesteps import UniformTimesteps as UniformTimesteps

_HOMES = {
    "train.config": ("TrainConfig",),
    "model.embedding": ("Embedding", "load_embedding", "save_embedding"),
    "base.errors": ("ZoodipError",),
    "search.estimators": ("RGE", "SPSA", "OnePoint", "LeaveOneOut"),
    "base.events": ("Commands",),
    "model.generation": ("generate", "with_lora"),
    "model.load": ("load_quantized",),
    "model.lora": ("load_lora", "save_lora"),
    "search.optimizers": ("ZOAdam", "ZOSGD"),
    "train.replay": ("rewind",),
    "search.zeroth_order": ("ZerothOrderSearch",),
    "search.subspace": ("SubspaceGradient",),
    "train.timesteps": ("PUTS", "SNRTimesteps", "UniformTimesteps"),
    "train.loop": ("TrainResult", "resume_training", "train_token"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
