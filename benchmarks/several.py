"""Two tokens in one prompt: what the model can draw of two things from words alone, and what it draws of two tokens.

    python benchmarks/several.py --bench tiny --out build/several

First the words: a prompt that names two monsters. Then, for each of some pairs, a token of a subject and one of a place
or a style are learned: together in one run, and each in a run of its own with as many steps for each token. Both are
drawn in one prompt. What counts are the seeds with which words alone manage the same monster there, or in the style.

A subject appears where the judge takes its shape and its coat for the true ones, a place likewise, a style where a
picture lies within its tones. The second token is learned from pictures of other monsters, and starts from the word of
another place or style. ``beside the word`` has one token in the prompt, the subject's, and a word for the second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import monsters
import numpy as np
import torch
from PIL import Image

from benchmarks.worlds import WORLDS
from zoodip_core.data.sheets import contact_sheet
from zoodip_core.model.embedding import Embedding
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.tiny.concepts import Concept
from zoodip_core.tiny.judge import Judge
from zoodip_core.tiny.scores import JUDGE, tone_error
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.loop import resume_training, train_token

PLACES = (("boo", "candy"), ("kiwi", "night"), ("otto", "desert"), ("zig", "ocean"))
STYLES = (("boo", "sepia"), ("kiwi", "rosy"), ("otto", "olive"), ("zig", "neon"))
OTHER = {"sepia": "neon", "rosy": "sepia", "olive": "sepia", "neon": "sepia"} | {place: "snow" for _, place in PLACES}
"""Words that tokens of places and styles start from."""
IN_TONE = 20.0
"""Mean distance of pixels from a style's line of tones, in RGB: what words draw in these styles lies below."""
BOTH = 0.3
"""Probability of a shape from which on the judge may have seen it beside another."""


class Bench:
    """A model, and what its pictures show."""

    def __init__(self, model: StableDiffusion, pictures: int) -> None:
        self.model, self.judge, self.seeds = model, Judge.load(JUDGE), list(range(pictures))

    def drawn(self, prompt: str, embeddings: Sequence[Embedding] = ()) -> list[Image.Image]:
        return self.model.generate([prompt] * len(self.seeds), self.seeds, embedding=embeddings)

    def of_shape(self, pictures: Sequence[Image.Image], shape: str) -> torch.Tensor:
        return self.judge.read(list(pictures))["shape"][:, self.judge.classes["shape"].index(shape)]

    def shown(self, concept: Concept, pictures: Sequence[Image.Image]) -> list[bool]:
        """Whether each picture's shape and coat are the concept's."""
        read, found = self.judge.read(list(pictures)), torch.ones(len(pictures), dtype=torch.bool)
        for name in ("shape", "pattern"):
            found &= read[name].argmax(dim=1) == self.judge.classes[name].index(concept.attributes[name])
        return [bool(each) for each in found]

    def set_in(self, second: str, pictures: Sequence[Image.Image]) -> list[bool]:
        """Whether each picture is in the place, or in the style."""
        if second in monsters.STYLES:
            return [tone_error(monsters.STYLES[second], [picture]) <= IN_TONE for picture in pictures]
        places = self.judge.read(list(pictures))["place"].argmax(dim=1)
        return (places == self.judge.classes["place"].index(second)).tolist()


def both(first: Sequence[bool], second: Sequence[bool]) -> list[bool]:
    return [one and other for one, other in zip(first, second, strict=True)]


def share(found: Sequence[bool]) -> float:
    return sum(found) / max(1, len(found))


def two_monsters(bench: Bench, out: Path) -> dict[str, float]:
    """How often words that name two monsters give a picture in which the judge may see both."""
    found, rows = [], []
    for first, second in itertools.combinations(("ghost", "star", "square", "heart"), 2):
        pictures = bench.drawn(f"a red {first} and a blue {second} in the snow")
        lesser = torch.minimum(bench.of_shape(pictures, first), bench.of_shape(pictures, second))
        found += (lesser >= BOTH).tolist()
        rows.append((f"{first}\nand {second}", pictures[:8]))
    contact_sheet(rows, out / "two-monsters.png")
    return {"two monsters by words": share(found)}


def prompt(subject: str, second: str, name: str) -> str:
    """A text for a subject in a place or a style, which is called so."""
    return f"a {subject} in {name} style" if second in monsters.STYLES else f"a {subject} in the {name}"


def in_words(concept: Concept) -> str:
    """The subject by its shape and coat."""
    return " ".join(concept.attributes[name] for name in ("pattern", "shape")) + " monster"


def pictures_of(name: str, folder: Path) -> Path:
    """A subject's pictures, or six of other monsters in a place or style, with their captions beside them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if name in OTHER:
        rng, pictures = np.random.default_rng(len(name)), []
        for _ in range(6):
            monster = replace(monsters.random_monster(rng), tone=monsters.STYLES.get(name), style_name=None)
            monster = monster if name in monsters.STYLES else replace(monster, place=name)
            pictures.append((monsters.draw(monster), prompt(f"{monster.shape} monster", name, "{}")))
    else:
        concept = concepts.load(name)
        texts = json.loads(concept.captions.read_text(encoding="utf-8"))
        pictures = list(zip(concept.pictures(), texts.values(), strict=True))
    for number, (picture, text) in enumerate(pictures, 1):
        picture.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


def learned(bench: Bench, names: Sequence[str], model: str, steps: int, seed: int, out: Path) -> tuple[Embedding, ...]:
    """The tokens of subjects and styles, learned in one run of so many steps for each."""
    config = TrainConfig.with_preset(
        "default",
        {
            "model": model,
            "images": [str(pictures_of(name, out / "pictures" / name)) for name in names],
            "token": ", ".join(f"<my-{name}>" for name in names),
            "initializer": ", ".join(OTHER.get(name, "monster") for name in names),
            "steps": steps * len(names),
            "seed": seed,
            "save_every": 10**6,
        },
    )
    folder = out / f"{'-'.join(names)}-{steps}-{seed}"
    if folder.exists():
        return resume_training(folder, model=bench.model).embeddings
    return train_token(config, folder, model=bench.model).embeddings


def measured(
    bench: Bench, pairs: Sequence[tuple[str, str]], model: str, steps: int, seeds: int, out: Path
) -> dict[str, dict[str, float]]:
    """Shares of the pictures that words manage, by how the tokens were learned; of all pairs and seeds."""
    found: dict[str, dict[str, list[bool]]] = {}
    rows = []
    for name, second in pairs:
        subject, token = concepts.load(name), f"<my-{name}>"
        pictures = bench.drawn(prompt(in_words(subject), second, second))
        managed = both(bench.shown(subject, pictures), bench.set_in(second, pictures))
        found.setdefault("words", {}).setdefault("both", []).extend(managed)
        rows.append((f"{name}, {second}\nwords", pictures[:8]))

        def seen(
            text: str,
            tokens: Sequence[Embedding],
            subject: Concept = subject,
            second: str = second,
            managed: Sequence[bool] = managed,
        ) -> tuple[dict[str, list[bool]], list[Image.Image]]:
            pictures = bench.drawn(text, tokens)
            first, other = bench.shown(subject, pictures), bench.set_in(second, pictures)
            figures = {"subject": first, "second": other, "both": both(first, other)}
            return {
                figure: [value for value, by in zip(values, managed, strict=True) if by]
                for figure, values in figures.items()
            }, pictures

        for seed in range(seeds):
            apart = [learned(bench, [each], model, steps, seed, out)[0] for each in (name, second)]
            both_tokens = prompt(token, second, f"<my-{second}>")
            ways = {
                "together": (both_tokens, learned(bench, [name, second], model, steps, seed, out)),
                "apart": (both_tokens, apart),
                "beside the word": (prompt(token, second, second), apart[:1]),
            }
            said = {"words": round(share(managed), 2)}
            for way, (text, tokens) in ways.items():
                figures, pictures = seen(text, tokens)
                for figure, values in figures.items():
                    found.setdefault(way, {}).setdefault(figure, []).extend(values)
                    said[f"{way}: {figure}"] = round(share(values), 2)
                rows.append((f"{name}, {second}\n{way}", pictures[:8]))
            print(name, second, seed, said, flush=True)
    contact_sheet(rows, out / f"{pairs[0][1]}.png")
    return {way: {figure: share(values) for figure, values in each.items()} for way, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", choices=tuple(WORLDS), default="tiny", help="the model")
    parser.add_argument("--steps", type=int, default=900, help="of each token (default: 900)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each pair (default: 3)")
    parser.add_argument("--pictures", type=int, default=32, help="of each prompt (default: 32)")
    parser.add_argument("--out", type=Path, default=Path("build/several"), help="folder for runs, pictures and figures")
    args = parser.parse_args()
    out = args.out / args.bench
    out.mkdir(parents=True, exist_ok=True)
    world = WORLDS[args.bench]
    bench = Bench(world.load(weights="int8"), args.pictures)
    figures = {"two monsters": two_monsters(bench, out)}
    print(figures, flush=True)
    for pairs, kind in ((PLACES, "place"), (STYLES, "style")):
        ways = measured(bench, pairs, world.model, args.steps, args.seeds, out)
        figures |= {f"subject and {kind}, {way}": each for way, each in ways.items()}
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
