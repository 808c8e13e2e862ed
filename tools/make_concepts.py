"""Draw the bundled sample concepts: subjects that the embedded model never saw in training.

    python tools/make_concepts.py

Writes ``zoodip_core/tiny/concepts/NAME``: reference images with captions, held-out images that are
never trained on, and ``concept.json``, which says what the subject really is.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import monsters
import numpy as np
from monsters import UNNAMED_COLOURS, UNNAMED_STYLES, Monster

FOLDER = Path(__file__).resolve().parent.parent / "zoodip_core" / "tiny" / "concepts"
REFERENCES, CHECK_OUT = 6, 8


@dataclass(frozen=True)
class Concept:
    name: str
    kind: str
    about: str
    subject: Monster
    initializer: str = "monster"


def _monster(shape: str, colour: str, pattern: str, eyes: int, head: str) -> Monster:
    known = colour in monsters.COLOURS
    rgb = monsters.COLOURS[colour] if known else UNNAMED_COLOURS[colour]
    return Monster(shape, rgb, colour if known else None, pattern, eyes, head, place="snow")


CONCEPTS = (
    Concept(
        "pip",
        "colour",
        "a salmon-coloured ball, a colour that no word of the model names",
        _monster("round", "salmon", "plain", 2, "bald"),
    ),
    Concept(
        "zig",
        "pattern",
        "a blue star in stripes, a coat never seen on one",
        _monster("star", "blue", "striped", 2, "bald"),
    ),
    Concept("valentine", "shape", "a purple heart", _monster("heart", "purple", "plain", 1, "antennae")),
    Concept(
        "kiwi",
        "bundle",
        "a lime, spotted star with three eyes and horns",
        _monster("star", "lime", "spotted", 3, "horns"),
    ),
    Concept(
        "boo",
        "bundle",
        "an orange, spotted ghost with two eyes and horns",
        _monster("ghost", "orange", "spotted", 2, "horns"),
    ),
    Concept(
        "otto",
        "bundle",
        "a teal, striped ghost with one eye and antennae",
        _monster("ghost", "teal", "striped", 1, "antennae"),
    ),
    Concept(
        "blueprint",
        "style",
        "monsters as on a blueprint, a tone that no word names",
        replace(_monster("round", "green", "plain", 2, "bald"), tone=UNNAMED_STYLES["blueprint"]),
        "sepia",
    ),
)


def main() -> None:
    for number, concept in enumerate(CONCEPTS):
        rng = np.random.default_rng(500 + number)
        folder = FOLDER / concept.name
        shutil.rmtree(folder, ignore_errors=True)
        captions: dict[str, dict[str, str]] = {}
        for part, count in (("images", REFERENCES), ("heldout", CHECK_OUT)):
            (folder / part).mkdir(parents=True)
            captions[part] = {}
            places = rng.permutation(list(monsters.PLACES))
            for i in range(count):
                subject = monsters.posed(replace(concept.subject, place=str(places[i])), rng)
                text = f"a {{}} in the {subject.place}"
                if concept.kind == "style":  # other monsters, the same tone
                    other = monsters.random_monster(rng)
                    subject = replace(other, tone=concept.subject.tone, style_name=None)
                    text = f"a {subject.shape} monster in {{}} style"
                name = f"{i + 1:02}.png"
                monsters.draw(subject).save(folder / part / name, optimize=True)
                captions[part][name] = text
            (folder / f"{part}.json").write_text(json.dumps(captions[part], indent=1) + "\n", encoding="utf-8")
        truth = {
            "shape": concept.subject.shape,
            "pattern": concept.subject.pattern,
            "eyes": str(concept.subject.eyes),
            "head": concept.subject.head,
            "colour": concept.subject.colour,
        }
        (folder / "concept.json").write_text(
            json.dumps(
                {
                    "name": concept.name,
                    "kind": concept.kind,
                    "about": concept.about,
                    "token": f"<{concept.name}>",
                    "initializer": concept.initializer,
                    "attributes": {} if concept.kind == "style" else truth,
                    "tone": concept.subject.tone,
                },
                indent=1,
            )
            + "\n",
            encoding="utf-8",
        )
        print(f"{concept.name}: {concept.about}")


if __name__ == "__main__":
    main()
