"""The short run that everything goes wrong with: one picture, twelve steps, three turns of the Subspace Gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoodip_core.base.events import Commands, Event, Progress
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.loop import TrainResult, train_token

PICTURE = sorted(concepts.load("pip").images.iterdir())[0]
FILES = ("pip.safetensors", "state.safetensors", "steps.jsonl")
"""What must be the same, byte for byte, however often a run was interrupted."""


def config_of(**settings: Any) -> TrainConfig:
    """Saves fall between turns, so that a run goes on from every mixture of both."""
    return TrainConfig.from_preset(
        "tiny",
        **{
            "images": (str(PICTURE),),
            "token": "<pip>",
            "initializer": "monster",
            "resolution": 32,
            "steps": 12,
            "n": 2,
            "tau": 4,
            "save_every": 5,
            **settings,
        },
    )


def train(path: Path, model: StableDiffusion, stop_after: int | None = None, **settings: Any) -> TrainResult:
    """Train, to the end or to a stop after a step."""
    commands = Commands()
    return train_token(
        config_of(**settings), path, model=model, on_event=stopping(commands, stop_after), commands=commands
    )


def stopping(commands: Commands, step: int | None) -> Callable[[Event], None]:
    """Stops after a step."""

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.step == step:
            commands.stop()

    return on_event


def assert_same(run: Path, whole: Path) -> None:
    """Check that a run ended as one that nothing disturbed."""
    for name in FILES:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
