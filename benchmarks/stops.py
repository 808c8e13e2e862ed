"""How long a stop takes until the training has left its loop and saved, by a forward pass of the same run.

    python benchmarks/stops.py [--fronts cli,page,node] [--stops 20] [--size 384]

Each stop is one training of the embedded model at a size at which a forward pass takes about a second: three steps are
timed, then at a random moment the front is asked to stop in its own way.

    cli    ``python -m zoodip_core train``, a process of its own: SIGINT, as of Ctrl-C
    page   a worker process under ``Jobs``, as the page and the webuis' tab have it: a line on its standard input
    node   ``ZO Train Token`` in a host that does nothing but say that it was interrupted, as ComfyUI's Cancel does

The command line and the page take the three candidates of a step in turn, the node all in one forward: that is then the
pass which the stop has to wait for. ``saved`` is from the request until the state and the token's snapshot are on disk,
by their times, in forward passes of that run (its median step by the passes of a step); ``over`` until the front says
so: the process has ended, the job is closed, the node has raised. Before that the picture of the losses is drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import node_pack  # noqa: E402

from zoodip_core.jobs.environment import Trainer  # noqa: E402
from zoodip_core.jobs.queue import Jobs  # noqa: E402
from zoodip_core.page.standalone import Alone  # noqa: E402
from zoodip_core.tiny import concepts  # noqa: E402
from zoodip_core.train.config import TrainConfig  # noqa: E402
from zoodip_core.train.run_folder import JOURNAL  # noqa: E402

CANDIDATES = 3
TIMED = 3
"""Steps whose median is the run's pace, after a first one that warms up."""
LIMIT = 300.0
_LOOK = 0.005


def settings(size: int) -> dict[str, Any]:
    """A run that knows no end, and saves when it is stopped only."""
    subject = concepts.load("pip")
    return {
        "images": [str(subject.images)],
        "captions": str(subject.captions),
        "token": "<pip>",
        "initializer": "monster",
        "resolution": size,
        "n": CANDIDATES - 1,
        "batch": 1,
        "steps": 1_000_000,
        "save_every": 1_000_000,
    }


# ---------------------------------------------------------------- the fronts


class Front(Protocol):
    """A training that has been started. ``passes`` are the forwards of its steps."""

    @property
    def run(self) -> Path: ...

    @property
    def passes(self) -> int: ...

    def stop(self) -> None: ...

    def alive(self) -> bool: ...


class CommandLine:
    passes = CANDIDATES

    def __init__(self, folder: Path, size: int) -> None:
        self.run = folder / "run"
        config = folder / "settings.json"
        config.write_text(TrainConfig.from_preset("tiny", **settings(size)).to_json())
        command = [sys.executable, "-m", "zoodip_core", "train", "--config", str(config), "--output", str(self.run)]
        with (folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def alive(self) -> bool:
        return self._process.poll() is None


class Page:
    passes = CANDIDATES

    def __init__(self, folder: Path, size: int) -> None:
        self.run = folder / "run"
        self._jobs = Jobs(Alone(folder), lambda: Trainer(Path(sys.executable), False, ""), lambda job: "")
        self._job = self._jobs.submit("train", folder, "<pip>", settings={**settings(size), "sample_every": 0}).id

    def stop(self) -> None:
        self._jobs.stop(self._job)

    def alive(self) -> bool:
        return self._jobs.get(self._job).open


class _Interrupted(Exception):  # noqa: N818 - not an error
    """What the host below raises after a stop."""


class _Host:
    """A :class:`nodes.host.Host` of which only what the trainer asks for is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.asked = False

    def output_folder(self) -> Path:
        return self._folder

    def bar(self) -> _Host:
        return self

    def update(self, *_progress: Any) -> None:
        pass

    def send(self, event: str, data: dict[str, Any]) -> None:
        json.dumps(data)  # as on the wire

    def interrupted(self) -> bool:
        return self.asked

    def interrupt(self) -> NoReturn:
        raise _Interrupted

    def make_room(self) -> None:
        pass

    def return_memory(self) -> None:
        pass


class Node:
    passes = 1

    def __init__(self, folder: Path, size: int) -> None:
        node_pack.import_pack()
        self._folder, self._host = folder, _Host(folder)
        self._thread = threading.Thread(target=self._train, args=(size,))
        self._thread.start()

    @property
    def run(self) -> Path:
        return next(iter(self._folder.glob("zoodip/*/run")), self._folder / "run")

    def _train(self, size: int) -> None:
        host, nodes, pictures, models, images = (
            importlib.import_module(f"{node_pack.NAME}.{name}")
            for name in (
                "nodes.host",
                "nodes.train",
                "nodes.pictures",
                "zoodip_core.model.load",
                "zoodip_core.data.images",
            )
        )
        asked = settings(size)
        inputs = nodes.ZOTrainToken.INPUT_TYPES()["required"]
        given = {name: spec[1].get("default") for name, spec in inputs.items() if len(spec) > 1}
        given |= {name: value for name, value in asked.items() if name in given}
        given["images"] = pictures.to_image([images.open_picture(path) for path in images.find_images(asked["images"])])
        given["model"] = models.load_quantized("tiny", device="cpu")
        with host.hosted_by(self._host), torch.inference_mode(), contextlib.suppress(_Interrupted):
            nodes.ZOTrainToken().train(**{k: v if isinstance(v, list) else [v] for k, v in given.items()})

    def stop(self) -> None:
        self._host.asked = True

    def alive(self) -> bool:
        return self._thread.is_alive()


FRONTS: dict[str, tuple[str, Callable[[Path, int], Front]]] = {
    "cli": ("command line, SIGINT", CommandLine),
    "page": ("page's worker, standard input", Page),
    "node": ("node, host's interrupt", Node),
}


# ---------------------------------------------------------------- one stop


@dataclass(frozen=True)
class Stop:
    """Seconds: of a forward pass of this run, from the request until all is saved, and until the front says so."""

    forward: float
    saved: float
    over: float


def stop_once(start: Callable[[Path, int], Front], folder: Path, size: int, chance: random.Random) -> Stop:
    front = start(folder, size)
    try:
        step = _pace(front)
        time.sleep(step * chance.random())
    except BaseException:
        front.stop()
        raise
    asked = time.time()
    front.stop()
    while front.alive():
        time.sleep(_LOOK)
    over = time.time()
    files = [front.run / "state.safetensors", *(front.run / "snapshots").glob("step-*.safetensors")]
    if len(files) < 2:
        raise RuntimeError(f"{front.run}: nothing was saved")
    saved = max(path.stat().st_ctime for path in files)  # of moving into place
    return Stop(step / front.passes, saved - asked, over - asked)


def _pace(front: Front) -> float:
    """Wait for some steps; the seconds of one."""
    began = time.monotonic()
    times: list[float] = []
    while len(times) < TIMED + 1:
        if not front.alive() or time.monotonic() - began > LIMIT:
            raise RuntimeError(f"{front.run}: the training does not get on")
        log = front.run / JOURNAL
        taken = log.read_bytes().count(b"\n") if log.is_file() else 0
        times += [time.monotonic()] * (taken - len(times))
        time.sleep(_LOOK)
    return statistics.median(after - before for before, after in itertools.pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a stop takes.")
    parser.add_argument("--fronts", default=",".join(FRONTS), help="some of cli, page, node")
    parser.add_argument("--stops", type=int, default=20, metavar="N")
    parser.add_argument("--size", type=int, default=384, metavar="PIXELS")
    args = parser.parse_args()
    print(f"the embedded model, {args.size} px, {torch.get_num_threads()} threads, torch {torch.__version__}, CPU")
    print("| front | stops | a forward, s | saved, median | saved, worst | over, median, s | over, worst, s |")
    print("|---|---|---|---|---|---|---|")
    for name in args.fronts.split(","):
        title, start = FRONTS[name]
        chance, stops = random.Random(name), []
        for _ in range(args.stops):
            with tempfile.TemporaryDirectory() as folder:
                stops.append(stop_once(start, Path(folder), args.size, chance))
                print(f"{name}: {stops[-1]}", file=sys.stderr, flush=True)
        ratios = [stop.saved / stop.forward for stop in stops]
        over = [stop.over for stop in stops]
        print(
            f"| {title} | {len(stops)} | {statistics.median(stop.forward for stop in stops):.2f} "
            f"| {statistics.median(ratios):.2f} | {max(ratios):.2f} "
            f"| {statistics.median(over):.2f} | {max(over):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
