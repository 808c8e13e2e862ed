"""Steps a second and peak memory of a training on the CPU, of this checkout and of another, in turn.

Each run is a process of its own with the paper's search, whose settings every version has. The ratio of each round is
of two processes that ran one after the other; the median of the rounds is shown. For a model of full size,
``python tools/random_models.py --family sd15 --size full --dtype float16 MODEL.safetensors``.

    python benchmarks/steps.py --before DIR [--model MODEL] [--resolution 128] [--steps 200] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WARM = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="another checkout")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--resolution", type=int, default=0, help="0 for the model's own")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(args.model, Path(args.child), args.resolution, args.steps)))
        return
    trees = {"before": args.before.resolve(), "now": ROOT}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        _pictures(Path(folder))
        for tree in trees.values():  # makes the quantised copy, which all others read
            in_process(args, tree, folder, steps=1)
        for number in range(args.rounds):
            for name in sorted(trees, reverse=number % 2 == 1):  # neither is always the first
                found[name].append(in_process(args, trees[name], folder, args.steps))
    print("| | before | now | now / before, median | all |\n|---|---|---|---|---|")
    for part in found["now"][0]:
        before, now = ([run[part] for run in found[name]] for name in trees)
        ratios = [b / a for a, b in zip(before, now, strict=True)]
        each = " ".join(f"{ratio:.3f}" for ratio in ratios)
        medians = [statistics.median(some) for some in (before, now, ratios)]
        print(f"| {part} | {medians[0]:.3f} | {medians[1]:.3f} | {medians[2]:.3f} | {each} |")


def in_process(args: argparse.Namespace, tree: Path, folder: str, steps: int) -> dict[str, float]:
    """What a run of a checkout measures."""
    command = [sys.executable, __file__, "--child", folder, "--before", tree, "--model", args.model]
    command += ["--resolution", args.resolution, "--steps", steps]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        list(map(str, command)), env=environment, cwd=tree, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return parts


def measured(model: str, folder: Path, resolution: int, steps: int) -> dict[str, float]:
    """Steps a second, and by how many GB the process grew. Only a child process does this."""
    from zoodip_core.train.config import TrainConfig
    from zoodip_core.train.prepared import Training

    settings = {
        "images": (str(folder),),
        "token": "<rex>",
        "initializer": "monster" if model == "tiny" else "dog",
        "model": model,
        "resolution": resolution,
        "cache": str(folder / "copies"),
        "adapt_mu": False,
        "checks": 0,
        "patience": 0,
    }
    training = Training(TrainConfig.with_preset("paper", {**settings, "steps": WARM + steps}))
    for _ in range(WARM):
        training.step()
    began = time.perf_counter()
    for _ in range(steps):
        training.step()
    spent = time.perf_counter() - began
    return {"steps/s": steps / spent, "memory, GB": (training.watch.grown() or 0) / 1e9}


def _pictures(folder: Path) -> None:
    """Three square pictures of noise."""
    import torch
    from PIL import Image

    for number in range(3):
        noise = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(number)).mul(255).byte().numpy()
        Image.fromarray(noise).resize((256, 256)).save(folder / f"{number}.png")


if __name__ == "__main__":
    main()
