"""A run on all graphics cards of this computer: a process for each of the others, as torchrun would start them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ..base.errors import ConfigError
from ..base.files import storage_errors
from ..train.config import TrainConfig
from ..train.ranks import Place, Ranks, joined
from ..train.settings import ALL
from .environment import ROOT, this_python
from .job_folder import write_task
from .protocol import FOLLOW

_LAST_SECONDS = 5.0
"""That the others have to end once the first one has: they keep nothing, and one that starts yet is not waited for."""
_WORKER = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module('zoodip_core.jobs.worker', run_name='__main__', alter_sys=True)"
)
"""In place of ``-m``, which finds nothing in a folder of ours where Python is embedded, as in ComfyUI's own."""


def check_cards(device: str) -> None:
    """Refuse all cards where there are not several.

    Raises:
        ConfigError: there is one, or none.
    """
    if device == ALL and (cards := torch.cuda.device_count()) < 2:
        raise ConfigError(f"device = {ALL!r} is for several graphics cards, and this computer has {cards}; use auto")


def all_cards(device: str) -> list[int]:
    """The numbers of the cards beside the first one where ``device`` stands for all of them, else none."""
    return list(range(1, torch.cuda.device_count())) if device == ALL else []


def cards_beside(device: torch.device) -> list[int]:
    """The numbers of this computer's other graphics cards; none beside a device that is not one."""
    own = device.index or 0
    return [card for card in range(torch.cuda.device_count()) if card != own] if device.type == "cuda" else []


@contextlib.contextmanager
def with_cards(others: Sequence[int], config: TrainConfig, run: Path, *, own: int = 0) -> Iterator[Ranks]:
    """The processes that take a run's steps: this one, which leads, and one for each of some other cards.

    They use this interpreter and the code of this folder. The end of their input, of this process too, is a stop to
    them; once this one is through, none is left.

    Args:
        others: the numbers of their cards; without any, this process is alone.
        config: the run's settings.
        run: its folder; it is resumed if it is there.
        own: the number of this process's card.

    Raises:
        RanksError: they do not come.
        StorageError: no room for the file that they are started with.
    """
    if not others:
        yield Ranks()
        return
    size = len(others) + 1
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    started: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as last:
        with storage_errors(Path(tempfile.gettempdir())):
            folder = Path(last.enter_context(tempfile.TemporaryDirectory(prefix="zoodip-")))
        file = write_task(folder, FOLLOW, run, settings=config.to_dict(), resumed=run.exists())
        last.callback(_end, started)
        for rank, card in enumerate(others, 1):
            started.append(_start(Place(rank, size, card, "127.0.0.1", port), file))
        with joined(Place(0, size, own, "127.0.0.1", port, hosts=True)) as ranks:
            yield ranks


def _start(place: Place, file: Path) -> subprocess.Popen[bytes]:
    names = {
        "RANK": place.rank,
        "WORLD_SIZE": place.size,
        "LOCAL_RANK": place.local,
        "MASTER_ADDR": place.address,
        "MASTER_PORT": place.port,
    }
    return subprocess.Popen(
        [str(this_python() or sys.executable), "-c", _WORKER, str(ROOT), str(file)],
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in names.items()}},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # the first one's events are the run's
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with contextlib.suppress(OSError):
            if process.stdin:
                process.stdin.close()
    for process in processes:
        try:
            process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
