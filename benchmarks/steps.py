"""Steps a second and peak memory of a training on the CPU, of this checkout and of another.

Each trains in a process of its own, with the paper's search, whose settings every version has. They take turns, a block
of steps each, so that both meet the same computer whatever else it does: the ratio is that of two blocks one after the
other, and the median of all is shown. For a model of full size, ``python tools/random_models.py --family sd15 --size
full --dtype float16 MODEL.safetensors``.

    python benchmarks/steps.py --before DIR [--model MODEL] [--resolution 128] [--blocks 40] [--steps 10]
"""

from __future__ import annotations

import argparse
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
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--steps", type=int, default=10, help="of a block")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train(args.model, Path(args.child), args.resolution, args.blocks, args.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        _pictures(Path(folder))
        runs = [begun(args, tree, folder) for tree in (args.before.resolve(), ROOT)]
        pairs = []
        for number in range(args.blocks):
            order = runs if number % 2 else runs[::-1]  # neither is always the first
            taken = {run.pid: asked(run) for run in order}
            pairs.append([taken[run.pid] for run in runs])
        memory = [asked(run) for run in runs]
    before, now = (args.steps / statistics.median(each) for each in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    middle, quarter = statistics.median(ratios), len(ratios) // 4
    print("| | before | now | now / before, median | the middle half |\n|---|---|---|---|---|")
    print(
        f"| steps/s | {before:.2f} | {now:.2f} | {middle:.3f} | {ratios[quarter]:.3f} to {ratios[-quarter - 1]:.3f} |"
    )
    print(f"| memory, GB | {memory[0]:.3f} | {memory[1]:.3f} | {memory[1] / memory[0]:.3f} | |")


def begun(args: argparse.Namespace, tree: Path, folder: str) -> subprocess.Popen[str]:
    """A process that has a checkout's training ready, having taken its first steps."""
    command = [sys.executable, __file__, "--child", folder, "--before", tree, "--model", args.model]
    command += ["--resolution", args.resolution, "--blocks", args.blocks, "--steps", args.steps]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    run = subprocess.Popen(
        [str(part) for part in command],
        env=environment,
        cwd=tree,
        text=True,
        bufsize=1,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    asked(run)
    return run


def asked(run: subprocess.Popen[str]) -> float:
    """The next number that a process has to tell."""
    assert run.stdin
    assert run.stdout
    run.stdin.write("\n")
    answer = run.stdout.readline()
    if not answer:
        sys.exit("a training failed; see above")
    return float(answer)


def train(model: str, folder: Path, resolution: int, blocks: int, steps: int) -> None:
    """For each line that comes in, tell: first that all is ready, then a block's seconds, at last the memory in GB."""
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
        "steps": WARM + blocks * steps + 1,
    }
    training = Training(TrainConfig.with_preset("paper", settings))
    for _ in range(WARM):
        training.step()

    def block() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            training.step()
        return time.perf_counter() - began

    for tell in (lambda: 0.0, *[block] * blocks, lambda: (training.watch.grown() or 0) / 1e9):
        sys.stdin.readline()
        print(tell(), flush=True)


def _pictures(folder: Path) -> None:
    """Three square pictures of noise."""
    import torch
    from PIL import Image

    for number in range(3):
        noise = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(number)).mul(255).byte().numpy()
        Image.fromarray(noise).resize((256, 256)).save(folder / f"{number}.png")


if __name__ == "__main__":
    main()
