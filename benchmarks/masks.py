"""What masks do: subjects that were always seen in one place, beside one thing, and drawn somewhere else.

python benchmarks/masks.py [--rows none,0.1] [--seeds 3] [--json FILE]

Six pictures of each of the six bundled subjects are drawn in one place, the same in all six, with a lamp beside it, and
with exact masks. The template's captions say nothing of place or lamp, as most people's: the case in which a token
takes over what is around its subject. Each is learned with the product's default settings, from the same draws in each
row:

    none        without masks
    0.1         with masks, and this mask_background

Then **place** is the share of pictures of "a SUBJECT in the PLACE" that the judge sees in the place that was asked for,
over all places but the one that was trained in, **own place** the share that it sees in that one instead, **identity**
the judge's mean probability of the subject's shape, pattern, eyes and head in these pictures, **colour error** how far
the subject's colour is off, in RGB. **Held-out loss** is that of pictures of the subject in all other places, without
a lamp, whole and captioned with their places (the same draws for all; in thousandths). The word itself is the first
row.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import monsters
from make_concepts import CONCEPTS, REFERENCES

from benchmarks.worlds import WORLDS, World
from zoodip_core import generate
from zoodip_core.base.files import read_object, write_atomically
from zoodip_core.model.embedding import Embedding
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.tiny.judge import Judge
from zoodip_core.tiny.scores import JUDGE
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.heldout import heldout_losses
from zoodip_core.train.prepared import Training
from zoodip_core.train.presets import preset_for

SUBJECTS = tuple(each.name for each in CONCEPTS if each.kind != "style")
IDENTITY = ("shape", "pattern", "eyes", "head")
SEEDS_OF_A_PLACE, DDIM_STEPS = 6, 15
WORD, NONE = "the word", "none"
LAMP = ((0.03, 0.3, 0.17, 0.44), (0.08, 0.44, 0.12, 0.82))
"""A bulb and its post, in shares of the side."""
_BLACK, _WHITE = "black", "white"


# ---------------------------------------------------------------- pictures


def _drawn(monster: monsters.Monster) -> NDArray[np.float64]:
    return np.asarray(monsters.draw(monster), dtype=np.float64)


def opacity(monster: monsters.Monster) -> NDArray[np.float64]:
    """How much of each pixel is the monster, in [0, 1]: from how it is drawn on black and on white."""
    known = dict(monsters.PLACES)
    monsters.PLACES.update({_BLACK: ((0, 0, 0),) * 2, _WHITE: ((255, 255, 255),) * 2})
    try:
        on_black, on_white = (_drawn(replace(monster, place=place)) for place in (_BLACK, _WHITE))
    finally:
        monsters.PLACES.clear()
        monsters.PLACES.update(known)
    return np.asarray(1 - (on_white - on_black).mean(axis=-1) / 255)


def with_lamp(monster: monsters.Monster) -> Image.Image:
    """The monster in its place, with a lamp behind it."""
    side = 4 * monsters.SIZE
    lamp = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(lamp)
    bulb, post = (tuple(side * each for each in box) for box in LAMP)
    pen.rectangle(post, fill=(70, 50, 40, 255))
    pen.ellipse(bulb, fill=(255, 238, 120, 255), outline=(70, 50, 40, 255), width=4)
    small = np.asarray(lamp.resize((monsters.SIZE,) * 2, Image.Resampling.BOX), dtype=np.float64)
    over = small[..., 3:] / 255 * (1 - opacity(monster))[..., None]
    return Image.fromarray(np.rint(_drawn(monster) * (1 - over) + small[..., :3] * over).clip(0, 255).astype(np.uint8))


def write_pictures(folder: Path, name: str) -> str:
    """References with masks, and held-out pictures in all other places; returns the place of the references."""
    number, concept = next((i, each) for i, each in enumerate(CONCEPTS) if each.name == name)
    rng = np.random.default_rng(700 + number)
    place = list(monsters.PLACES)[number]
    for part in ("images", "heldout"):
        (folder / part).mkdir(parents=True)
    for i in range(1, REFERENCES + 1):
        subject = monsters.posed(replace(concept.subject, place=place), rng)
        with_lamp(subject).save(folder / "images" / f"{i:02}.png")
        mask = np.rint(opacity(subject) * 255).clip(0, 255).astype(np.uint8)
        Image.fromarray(mask).save(folder / "images" / f"{i:02}.mask.png")
    captions = {}
    for i, other in enumerate(each for each in monsters.PLACES if each != place):
        monsters.draw(monsters.posed(replace(concept.subject, place=other), rng)).save(folder / "heldout" / f"{i}.png")
        captions[f"{i}.png"] = f"a {{}} in the {other}"
    (folder / "heldout.json").write_text(json.dumps(captions), encoding="utf-8")
    return place


# ---------------------------------------------------------------- learning and looking


def config_of(concept: concepts.Concept, row: str, seed: int, world: World, folder: Path) -> TrainConfig:
    """The product's settings."""
    given: dict[str, Any] = {"model": world.model, "token": concept.token, "initializer": concept.initializer}
    given |= {"images": (str(folder / "images"),), "seed": seed, "cache": None}
    given["mask_background"] = 1.0 if row == NONE else float(row)
    return TrainConfig.from_dict({**preset_for("tiny"), **given})


def learn(config: TrainConfig, model: StableDiffusion) -> torch.Tensor:
    """The token ``[1, dim]`` that the product learns."""
    training = Training(config, model)
    while not training.done:
        training.step()
    return training.search.theta


def look(
    model: StableDiffusion, judge: Judge, concept: concepts.Concept, place: str, theta: torch.Tensor | None
) -> dict[str, float]:
    """Where the subject is drawn, and how like it is; its word where there is no token."""
    word = concept.initializer if theta is None else concept.token
    asked = [other for other in monsters.PLACES if other != place for _ in range(SEEDS_OF_A_PLACE)]
    made = generate(
        model,
        [f"a {word} in the {other}" for other in asked],
        list(range(len(asked))),
        embedding=None if theta is None else Embedding(concept.token, (theta,)),
        num_inference_steps=DDIM_STEPS,
    )
    read, names = judge.read(made), judge.classes["place"]
    seen = [names[int(each)] for each in read["place"].argmax(dim=1)]
    truth = concept.attributes
    off = (read["colour"] - torch.tensor(truth["colour"], dtype=torch.float32)).norm(dim=1)
    return {
        "place": statistics.fmean(a == b for a, b in zip(seen, asked, strict=True)),
        "own place": statistics.fmean(each == place for each in seen),
        "identity": statistics.fmean(float(read[k][:, judge.classes[k].index(truth[k])].mean()) for k in IDENTITY),
        "colour error": float(off.mean()),
    }


# ---------------------------------------------------------------- the table


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The means of each row, and in how many of the subjects its held-out loss, mean over seeds, is below none's."""
    lines = [
        "| row | place | worst subject | own place | identity | colour error | held-out loss | better than none |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def by_subject(row: str, what: str) -> dict[str, float]:
        cells = found.get(row, {})
        names = dict.fromkeys(key.split()[0] for key in cells)
        return {name: statistics.fmean(v[what] for k, v in cells.items() if k.split()[0] == name) for name in names}

    base = by_subject(NONE, "held-out loss")
    for row in found:
        means = {what: statistics.fmean(by_subject(row, what).values()) for what in next(iter(found[row].values()))}
        loss = by_subject(row, "held-out loss")
        better = sum(loss[name] < base[name] for name in loss if name in base)
        compared = f"{better} of {len(loss)}" if row not in (WORD, NONE) and base else ""
        worst = min(by_subject(row, "place").values())
        lines.append(
            f"| {row} | {means['place']:.3f} | {worst:.3f} | {means['own place']:.3f} | {means['identity']:.3f} | "
            f"{means['colour error']:.1f} | {1000 * means['held-out loss']:.2f} | {compared} |"
        )
    return "\n".join(lines)


def measure(args: argparse.Namespace, save: Callable[[dict[str, Any]], None], known: dict[str, Any]) -> dict[str, Any]:
    world = WORLDS[args.bench]
    model, judge = world.load(), Judge.load(JUDGE)
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in args.concepts}
        places = {name: write_pictures(folder, name) for name, folder in folders.items()}
        jobs = list(itertools.product(args.seeds, args.concepts, args.rows))
        for seed, name, row in tqdm(jobs, desc="runs"):
            key = f"{name} {seed}"
            if key in known.setdefault(row, {}) or (row == WORD and seed):
                continue
            concept, folder = concepts.load(name), folders[name]
            theta = None if row == WORD else learn(config_of(concept, row, seed, world, folder), model)
            candidate = model.initial_vectors(concept.initializer, 1, "single") if theta is None else theta
            loss = heldout_losses(model, candidate[None], folder / "heldout", folder / "heldout.json")
            known[row][key] = {**look(model, judge, concept, places[name], theta), "held-out loss": float(loss)}
            save(known)
    return known


def main(argv: Sequence[str] | None = None) -> None:
    listed = lambda text: [each.strip() for each in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", choices=tuple(WORLDS), default="tiny", help="the model (default tiny)")
    parser.add_argument("--rows", type=listed, default=[WORD, NONE, "0.1"], metavar="A,B")
    parser.add_argument("--concepts", type=listed, default=list(SUBJECTS), metavar="A,B")
    parser.add_argument("--seeds", type=lambda text: list(range(int(text))), default=[0, 1, 2], metavar="N")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write the subjects' pictures here, and no more")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here, and resume from it")
    args = parser.parse_args(argv)
    if args.pictures:
        for name in args.concepts:
            write_pictures(args.pictures / name, name)
        return
    known = read_object(args.json, 100_000_000) if args.json and args.json.exists() else {}

    def save(found: dict[str, Any]) -> None:
        if args.json:
            write_atomically(args.json, json.dumps(found).encode())

    print(table(measure(args, save, known)))


if __name__ == "__main__":
    main()
