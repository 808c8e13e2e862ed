"""What the default search takes of a step beyond its forward passes: time, and memory it holds.

For tokens of 768 numbers (SD1.x), 1024 (SD2.x) and 2048 (SDXL): ask and tell, with directions in the shape of a
vocabulary of random words; the numbers it holds, and how long that shape takes to work out at the start. For the
embedded model the share of a real step, whose forwards are the cheapest there are.

    python benchmarks/search_cost.py [--steps 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoodip_core import TrainConfig
from zoodip_core.base import rng
from zoodip_core.cli.demo import demo_config
from zoodip_core.search.preconditioner import spread_of
from zoodip_core.search.zeroth_order import ZerothOrderSearch
from zoodip_core.tiny import concepts
from zoodip_core.train.prepared import Training
from zoodip_core.train.presets import RECIPE

WORDS = 33_000
"""About as many whole words as CLIP's vocabulary has."""


def random_words(dim: int) -> Any:
    """Rows ``[2048, dim]`` at a time, as a model's table is read."""
    for first in range(0, WORDS, 2048):
        yield rng.normal(0, first, "words", (min(2048, WORDS - first), dim))


def cost(dim: int, steps: int) -> dict[str, float]:
    """Of a token of one vector."""
    config = TrainConfig(images=("x",), token="<x>", initializer="x", **RECIPE)
    began = time.perf_counter()
    spread = spread_of(random_words(dim))
    shape = time.perf_counter() - began
    search = config.make_token_search(torch.zeros(1, dim), spread)
    losses = torch.rand(search.estimator.num_candidates, dtype=torch.float64)
    times = []
    for step in range(steps):
        began = time.perf_counter()
        search.ask(config.mu_scale(step))
        check_loss = 1.0 if step % 20 == 0 else None
        search.tell(losses, config.lr_scale(step), check_loss=check_loss, mu_scale=config.mu_scale(step))
        times.append(time.perf_counter() - began)
    return {"dim": dim, "ms": 1e3 * statistics.median(times), "mb": held_bytes(search) / 1e6, "start_s": shape}


def held_bytes(search: ZerothOrderSearch) -> int:
    """Of its state and the shape of its directions."""
    assert search.spread
    tensors = [*search.state_dict().values(), search.spread.basis, search.spread.reach]
    return sum(tensor.nbytes for tensor in tensors)


def share(steps: int) -> dict[str, float]:
    """Of a training of the embedded model, from the clock around ask and tell."""
    inside = 0.0

    def timed(method: Any) -> Any:
        def run(*args: Any, **more: Any) -> Any:
            nonlocal inside
            began = time.perf_counter()
            try:
                return method(*args, **more)
            finally:
                inside += time.perf_counter() - began

        return run

    config = demo_config(concepts.load("boo"), steps=steps)
    training = Training(config)
    training.step()
    training.search.ask, training.search.tell = timed(training.search.ask), timed(training.search.tell)  # type: ignore[method-assign]
    began = time.perf_counter()
    while not training.done:
        training.step()
    return {"share": inside / (time.perf_counter() - began), "ms": 1e3 * inside / (training.search.step - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="steps of each (default 200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    rows = [cost(dim, args.steps) for dim in (768, 1024, 2048)]
    tiny = share(args.steps)
    print("| numbers | ask and tell, ms | held, MB | shape, once, s |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['dim']} | {row['ms']:.2f} | {row['mb']:.2f} | {row['start_s']:.1f} |")
    print(f"\nThe embedded model: {tiny['ms']:.2f} ms, {100 * tiny['share']:.1f} % of a step")
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows, "tiny": tiny}, indent=2) + "\n")


if __name__ == "__main__":
    main()
