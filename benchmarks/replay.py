"""How long the replay of a run's journal takes, and whether it comes to the same bits.

    python benchmarks/replay.py [--steps 30000] [--dim 768]

A run of the paper's settings (n = 2, tau = 128, ZOAdam) learns a vector of DIM numbers; in place of a model's, its
losses are those of a noisy bowl. Its journal is written and synced as a training does, then read, and the search is
rebuilt from it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoodip_core.base import rng
from zoodip_core.search.zeroth_order import ZerothOrderSearch
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.journal import Journal, Record, read
from zoodip_core.train.replay import restore


def live(search: ZerothOrderSearch, config: TrainConfig, path: Path) -> float:
    """Take the run's steps and write its journal; returns the seconds."""
    scale = rng.normal(1, 0, "scale", (search.theta.shape[1],)).square().double()
    began = time.monotonic()
    with Journal(path, 0) as journal:
        for step in range(config.steps):
            noise = rng.normal(1, step, "noise", (config.make_estimator().num_candidates,)).double()
            losses = (search.ask().double().square() * scale).sum(dim=(1, 2)) + 1e-3 * noise
            search.tell(losses, config.lr_scale(step))
            journal.append(Record(search.step, 0, 0, 600, tuple(losses.tolist()), 3, search.checksum))
        journal.sync()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay of a journal.")
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--dim", type=int, default=768)
    args = parser.parse_args()
    config = TrainConfig(images=("images",), token="<pip>", initializer="monster", steps=args.steps)
    theta0 = rng.normal(1, 0, "start", (1, args.dim))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "steps.jsonl"
        search = config.make_token_search(theta0)
        lived = live(search, config, path)
        began = time.monotonic()
        records = read(path).records
        reading = time.monotonic() - began
        rebuilt = config.make_token_search(theta0)
        differs = restore(rebuilt, config, records)
        took = time.monotonic() - began
        size = path.stat().st_size
    state, same = rebuilt.state_dict(), search.state_dict()
    equal = differs is None and state.keys() == same.keys() and all(torch.equal(state[key], same[key]) for key in state)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
    each = size / args.steps, took / args.steps * 1e3
    print(f"{args.steps} steps of {args.dim} numbers: journal {size / 1e6:.1f} MB, {each[0]:.0f} bytes a step")
    print(f"live {lived:.1f} s, read {reading:.1f} s, replay in all {took:.1f} s: {each[1]:.2f} ms a step")
    print(f"token, optimizer, buffer and projection equal the live run's bit for bit: {equal}")
    if not equal:
        sys.exit(1)


if __name__ == "__main__":
    main()
