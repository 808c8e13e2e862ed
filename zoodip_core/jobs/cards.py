"""A job on all graphics cards of this computer: a process for each of the others, as torchrun would start them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ..base.errors import ConfigError
from ..train.ranks import ALL, Place, Ranks, joined, place_in
from .environment import ROOT

_LAST_SECONDS = 30.0
"""That the others have to end once the first one has."""


def check_cards(device: str) -> None:
    """Refuse all cards where there are not several.

    Raises:
        ConfigError: there is one, or none.
    """
    if device == ALL and (cards := torch.cuda.device_count()) < 2:
        raise ConfigError(f"device = {ALL!r} is for several graphics cards, and this computer has {cards}; use auto")


@contextlib.contextmanager
def on_cards(device: str, file: Path) -> Iterator[Ranks]:
    """The processes that a job is done by: this one alone, or where its device is ``all``, one for each card.

    Args:
        device: of the job's settings.
        file: the job's, with which the others are started. The end of their input is a stop to them as well.
    """
    place = place_in(os.environ)
    if device != ALL or place:
        with joined(place if device == ALL else None) as ranks:
            yield ranks
        return
    size = torch.cuda.device_count()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    others = [_start(Place(rank, size, rank, "127.0.0.1", port), file) for rank in range(1, size)]
    try:
        with joined(Place(0, size, 0, "127.0.0.1", port, hosts=True)) as ranks:
            yield ranks
    finally:
        for other in others:
            _end(other)


def _start(place: Place, file: Path) -> subprocess.Popen[bytes]:
    names = {
        "RANK": place.rank,
        "WORLD_SIZE": place.size,
        "LOCAL_RANK": place.local,
        "MASTER_ADDR": place.address,
        "MASTER_PORT": place.port,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "zoodip_core.jobs.worker", str(file)],
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in names.items()}},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # the first one's events are the job's
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if process.stdin:
            process.stdin.close()
    try:
        process.wait(_LAST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
