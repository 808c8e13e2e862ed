"""What a token's length does: learned tokens drawn out or in along their own line from the words' mean.

    python benchmarks/length.py FILE [--row ours] [--seeds 2]

FILE is what ``fidelity.py --json`` wrote, of either bench. Each token of a row is set at 1, 3, 10 and 30 times the
words' root mean square distance from their mean, and measured as there: the held-out loss, the subject, and what it
leaves to the prompt's other words. Two figures of the text encoder say why: how much the token's own state tells of the
words before it (one minus the cosine between its states after different words, in shares of what the word has), and the
cosine between the states of the words after it and those that they have after the word.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fidelity import IMAGES, PLACES, Plan, Words, draw
from benchmarks.gains import gain, table
from benchmarks.stacked import Stack, Subject, heldout
from zoodip_core.base.files import read_object
from zoodip_core.model.tokens import placed
from zoodip_core.tiny import concepts
from zoodip_core.tiny.judge import Judge
from zoodip_core.tiny.scores import JUDGE

LENGTHS = (1, 3, 10, 30)
BEFORE = ("a {}", "a photo of a {}", "in the snow a {}", "a painting of three eyes and a {}")
COLUMNS = ("gain", "text", "also", "attributes", "features", "state", "others")
HEAD = (
    "gain, %",
    "text alignment: place",
    "another attribute",
    "image alignment: attributes",
    "features",
    "its state by the words before it, of the word's",
    "states of the words after it, cosine to those after the word",
)


@torch.no_grad()
def states(subject: Subject, theta: torch.Tensor, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """In a text with ``{}``: the token's own state ``[dim]``, and those of the words after it ``[N, dim]``."""
    model = subject.model
    (encoder,), (prompt,) = model.text_encoders, model.prompt(text, len(theta))
    with placed(encoder, prompt, theta[None]) as ids:
        found = encoder(ids.to(model.text_device)).last_hidden_state[0].float().cpu()
    end = int((prompt.ids[0] == model.tokenizers[0].eos_token_id).int().argmax())
    last = prompt.positions[-1]
    return found[last], found[last + 1 : end]


def encoder_figures(subject: Subject, theta: torch.Tensor) -> dict[str, float]:
    """How much the token's state tells of the words before it, and how little it changes those after it."""
    own = torch.stack([states(subject, theta, text)[0] for text in BEFORE])
    word = torch.stack([states(subject, subject.theta0, text)[0] for text in BEFORE])
    pairs = list(itertools.combinations(range(len(BEFORE)), 2))
    apart = [
        float(1 - cosine_similarity(some[[i for i, _ in pairs]], some[[j for _, j in pairs]]).mean())
        for some in (own, word)
    ]
    after = [
        cosine_similarity(states(subject, theta, text)[1], states(subject, subject.theta0, text)[1]).mean()
        for text in (f"a photo of a {{}} in the {place}" for place in PLACES)
    ]
    return {"state": apart[0] / apart[1], "others": float(torch.stack(after).mean())}


def measure(path: Path, row: str, seeds: int) -> list[list[str]]:
    data = read_object(path, 100_000_000)
    known = data["plan"]
    plan = Plan(
        tuple(known["concepts"]), tuple(known["seeds"]), known["budget"], known["weights"], bench=known["bench"]
    )
    model = plan.world.load(plan.weights)
    words, stack, judge = Words(model), Stack(model), Judge.load(JUDGE)
    subjects = {name: Subject(model, concepts.load(name)) for name in plan.concepts}
    runs = [run for run in data["methods"][row]["runs"] if run["seed"] in plan.seeds[:seeds]]
    ceilings = {
        name: statistics.fmean(
            list(run["losses"].values())[-1] for run in data["methods"]["gradient"]["runs"] if run["concept"] == name
        )
        for name in plan.concepts
    }
    found: dict[int, list[dict[str, Any]]] = {length: [] for length in LENGTHS}
    for run in runs:
        subject = subjects[run["concept"]]
        theta = torch.tensor(run["token"]).view_as(subject.theta0)
        own = words.distance(theta)
        for length in LENGTHS:
            moved = (words.mean + (theta.double() - words.mean) * length / own).float()
            (loss,) = heldout(stack.losses, [(subject, moved)])
            start = data["start"][run["concept"]]["loss"]
            figures = {
                "gain": gain(start, loss, ceilings[run["concept"]]),
                **draw(subject, judge, moved, IMAGES),
                **encoder_figures(subject, moved),
            }
            found[length].append(figures)
            print(
                length, run["concept"], {key: round(figures[key], 3) for key in COLUMNS if key in figures}, flush=True
            )
    rows = []
    for length, each in found.items():
        cells = [[figures[key] for figures in each if key in figures] for key in COLUMNS]
        rows.append([str(length), *(f"{statistics.fmean(cell):.3g}" if cell else "" for cell in cells)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="what fidelity.py --json wrote")
    parser.add_argument("--row", default="ours", help="whose tokens (default ours)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="of each concept (default 1)")
    args = parser.parse_args()
    print(table(("distance, words' rms", *HEAD), measure(args.file, args.row, args.seeds)))


if __name__ == "__main__":
    main()
