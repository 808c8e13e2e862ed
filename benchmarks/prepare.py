"""What preparing a training takes, part by part: a first load with an empty folder for quantised copies, and a second.

Each load is a process of its own. With ``--before`` the same is done with another checkout of this repository, in
turn with this one, so that both meet the same computer. Pictures are drawn anew; a model of full size and random
weights is written by ``python tools/random_models.py --family sd15 --size full --dtype float16 MODEL.safetensors``.

    python benchmarks/prepare.py MODEL [--before DIR] [--resolution 512] [--weights int8] [--rounds 1] [--imported]

With ``--imported`` the process has prepared a training of the embedded model before: torch, diffusers and transformers
are imported by then, as they are in ComfyUI, in a webui, and in whatever trains a second time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURES = 3
REST, WHOLE = "the rest", "all but encoding"
ENCODING = "encoding pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--weights", default="int8")
    parser.add_argument("--rounds", type=int, default=1, help="the best of each part is shown")
    parser.add_argument("--imported", action="store_true", help="leave out the import of libraries")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        if args.imported:
            import_all()
        print(json.dumps(prepare(args.model, Path(args.child), args.resolution, args.weights)))
        return
    trees = {"before": args.before, "after": ROOT} if args.before else {"now": ROOT}
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for load in ("first", "second"):
                for name, tree in trees.items():
                    found.setdefault((load, name), []).append(in_process(args, tree, Path(folder) / name))
    print(table({key: best(rounds) for key, rounds in found.items()}))


def in_process(args: argparse.Namespace, tree: Path, folder: Path) -> dict[str, float]:
    """The parts' seconds of one load by a checkout."""
    command = [sys.executable, __file__, args.model.absolute(), "--child", folder]
    command += ["--resolution", args.resolution, "--weights", args.weights, *["--imported"] * args.imported]
    words, environment = [str(part) for part in command], {**os.environ, "PYTHONPATH": str(tree.resolve())}
    done = subprocess.run(words, env=environment, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return parts


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The least of each part over the rounds."""
    return {part: min(each[part] for each in rounds) for part in rounds[0]}


def table(found: dict[tuple[str, str], dict[str, float]]) -> str:
    """Markdown: a row for each part, a column for each load."""
    lines = [["seconds", *(f"{load} load, {name}" for load, name in found)]]
    parts = dict.fromkeys(part for each in found.values() for part in each)
    lines += [[part, *(f"{each.get(part, 0):.1f}" for each in found.values())] for part in parts]
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])


def import_all() -> None:
    """Have the libraries imported that a training needs, by preparing one."""
    from zoodip_core.cli.demo import demo_config
    from zoodip_core.tiny import concepts
    from zoodip_core.train.prepared import Training

    Training(demo_config(concepts.load("boo")))


def prepare(model: Path, folder: Path, resolution: int, weights: str) -> dict[str, float]:
    """Prepare a training as ``train`` does; seconds by part. Only a child process does this."""
    began = time.perf_counter()
    from zoodip_core.model.quantized import QuantizedModel
    from zoodip_core.train import prepared
    from zoodip_core.train.config import TrainConfig

    spent = {"libraries": time.perf_counter() - began}
    running: list[str] = []

    def timed(part: Callable[..., str], work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            if running:  # within another part, whose it is
                return work(*args, **more)
            running.append(part(*args))
            start = time.perf_counter()
            try:
                return work(*args, **more)
            finally:
                done = running.pop()
                spent[done] = spent.get(done, 0) + time.perf_counter() - start

        return run

    loading: Any = QuantizedModel
    loading._build = timed(lambda _, part, *more: f"reading the {part}", loading._build)
    for name, part in (
        ("plan", "foretelling memory"),
        ("encode_images", ENCODING),
        ("spread_of", "the directions' shape"),
        ("vocabulary_spread", "the directions' shape"),
        ("shaped", "the directions' shape"),
        ("load_references", "reading pictures"),
        ("tokenised", "tokenizers and captions"),
        ("_inputs", "waiting for the model's hash"),
        ("inputs_of", "waiting for the model's hash"),
        ("_identity", "waiting for the model's hash"),
        ("write_copy", "quantising and writing the copy"),
    ):
        for module in ("train.prepared", "model.stable_diffusion", "model.copies"):  # wherever a checkout has it
            place = sys.modules.get(f"zoodip_core.{module}")
            if hasattr(place, name):
                setattr(place, name, timed(lambda *_, part=part: part, getattr(place, name)))

    settings = {
        "images": _pictures(folder, resolution),
        "token": "<rex>",
        "initializer": "dog",
        "model": str(model),
        "weights": weights,
        "resolution": resolution,
        "cache": str(folder / "copies"),
    }
    config = TrainConfig.with_preset("default", {**settings, "adapt_mu": False, "mu": 1e-3, "lr": 5e-3})
    start = time.perf_counter()
    prepared.Training(config)
    whole = time.perf_counter() - start + spent["libraries"]
    spent[REST] = whole - sum(spent.values())
    return {**spent, WHOLE: whole - spent[ENCODING], "all": whole}


def _pictures(folder: Path, resolution: int) -> list[str]:
    """Pictures of noise in a folder, which is made."""
    import torch
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(PICTURES)]
    for number, path in enumerate(paths):
        noise = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(number)).mul(255).byte().numpy()
        Image.fromarray(noise).resize((resolution, resolution)).save(path)
    return [str(path) for path in paths]


if __name__ == "__main__":
    main()
