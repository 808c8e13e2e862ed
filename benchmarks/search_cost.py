"""What the default search takes of a step beyond its forward passes: time, and memory it holds.

For tokens of 768 numbers (SD1.x), 1024 (SD2.x) and 2048 (SDXL): ask and tell, with directions in the shape of a
vocabulary of random words, and in that of the text encoders, which has all axes; what they hold, and how long the
shape takes to work out at the start, beside the encodings that a text encoder's is found by. For the embedded model
the share of a real step, whose forwards are the cheapest there are.

Of weights that are learned after the token (the preset two-stage): what their frames hold and take to work out, and how
much longer a step's forward pass takes with them, both in turn. On the embedded model, or on a checkpoint.

    python benchmarks/search_cost.py [--steps 200] [--model FILE --resolution 256] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoodip_core import TrainConfig
from zoodip_core.base import rng
from zoodip_core.cli.demo import demo_config
from zoodip_core.model.frames import frames_of
from zoodip_core.model.load import load_quantized
from zoodip_core.model.token_model import View
from zoodip_core.search.preconditioner import sensitive_spread, spread_of
from zoodip_core.search.zeroth_order import ZerothOrderSearch
from zoodip_core.tiny import concepts
from zoodip_core.train.prepared import Training
from zoodip_core.train.presets import RECIPE, preset_for
from zoodip_core.train.settings import ENCODER, VOCABULARY

DIMS = ((768,), (1024,), (768, 1280))
WORDS = 33_000
"""About as many whole words as CLIP's vocabulary has."""


def random_words(dim: int) -> Any:
    """Rows ``[2048, dim]`` at a time, as a model's table is read."""
    for first in range(0, WORDS, 2048):
        yield rng.normal(0, first, "words", (min(2048, WORDS - first), dim))


def cost(dims: Sequence[int], directions: str, steps: int) -> dict[str, Any]:
    """Of a token of one vector for text encoders of such widths."""
    config = TrainConfig(images=("x",), token="<x>", initializer="x", **RECIPE)
    dim = sum(dims)
    changes = [rng.normal(0, 0, "changes", (width, 2 * width)).double() for width in dims]
    began = time.perf_counter()
    spread = spread_of(random_words(dim))
    if directions == ENCODER:
        spread = sensitive_spread([each @ each.T for each in changes], spread)
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
    held = {"mb": held_bytes(search) / 1e6, "start_s": shape}
    return {"dim": dim, "directions": directions, "ms": 1e3 * statistics.median(times), **held}


def held_bytes(search: ZerothOrderSearch) -> int:
    """Of its state and the shape of its directions, with all that is kept of what was worked out of it."""
    assert search.spread
    shape = [each for part in search.spread.parts for each in vars(part).values()]
    kept = [*search.state_dict().values(), *shape, search.spread.scale]
    return sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))


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


def weights_cost(name: str, resolution: int, repeats: int = 9) -> dict[str, float]:
    """Of cores in the forward passes of a step's candidates."""
    model = load_quantized(name)
    rank = preset_for(model.info.family, preset="two-stage")["lora_rank"]
    model.load()
    began = time.perf_counter()
    frames = frames_of(model.unet, rank)
    start = time.perf_counter() - began
    side, draws = (resolution or model.info.resolution) // 8, torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1, model.unet.config.in_channels, side, side, generator=draws)
    prompt = model.prompt("a photo of a {}", 1)
    view = View(prompt, latents, noise, 700, torch.tensor([float(side), side, 0, 0, side, side]))
    losses_of = model.weights_denoiser([prompt], frames, None, print).losses_on(view)
    tokens = 0.1 * torch.randn(RECIPE["n"], 1, sum(model.info.dims), generator=draws)
    cores = 0.1 * torch.randn(RECIPE["n"], frames.numbers, generator=draws)
    candidates = {"token": tokens, "weights": torch.cat([tokens.flatten(1), cores], dim=1)}
    times: dict[str, list[float]] = {kind: [] for kind in candidates}
    with torch.no_grad():
        for _ in range(repeats + 1):
            for kind, each in candidates.items():
                began = time.perf_counter()
                losses_of(each)
                times[kind].append(time.perf_counter() - began)
    token, both = (statistics.median(times[kind][1:]) for kind in ("token", "weights"))
    held = sum(tensor.nbytes for tensor in frames.tensors().values())
    return {"numbers": frames.numbers, "mb": held / 1e6, "start_s": start, "ms": 1e3 * token, "ratio": both / token}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="steps of each (default 200)")
    parser.add_argument("--model", default="tiny", metavar="FILE", help="a checkpoint to learn weights of")
    parser.add_argument("--resolution", type=int, default=0, metavar="PIXELS", help="of its pictures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    rows = [cost(dims, directions, args.steps) for directions in (VOCABULARY, ENCODER) for dims in DIMS]
    tiny = share(args.steps)
    print("| numbers | directions | ask and tell, ms | held, MB | shape, once, s |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['dim']} | {row['directions']} | {row['ms']:.2f} | {row['mb']:.2f} | {row['start_s']:.1f} |")
    print(f"\nThe embedded model: {tiny['ms']:.2f} ms, {100 * tiny['share']:.1f} % of a step")
    weights = weights_cost(args.model, args.resolution)
    print(
        f"\nWeights of {Path(args.model).stem}: {weights['numbers']} numbers, {weights['mb']:.2f} MB of frames, "
        f"{weights['start_s']:.1f} s for them once; {RECIPE['n']} candidates' forward {weights['ms']:.1f} ms, with "
        f"weights {weights['ratio']:.3f} times that"
    )
    if args.json:
        found = {"torch": torch.__version__, "rows": rows, "tiny": tiny, "weights": weights}
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
