"""What learned tokens are like: those that ``fidelity.py --json FILE`` keeps, of either bench.

python benchmarks/learned.py FILE [--figures length,dims,diversity] [--rows ours,gradient] [--seeds 2]

length      tokens drawn out or in along their own line from the words' mean, to 1, 3, 10 and 30 times the words'
            root mean square distance from it, and measured as there: the held-out gain, the subject, and what it
            leaves to the prompt's other words. Two figures of the text encoder say why: how much the token's own
            state tells of the words before it (one minus the cosine between its states after different words, in
            shares of what the word has), and the cosine between the states of the words after it and those that
            they have after the word
dims        the paper's figure 3: of what was learned, the k components of the largest change on the vocabulary's
            principal axes are kept, the others are the initializer's again
diversity   the paper's table S9, DINO_inter: the mean cosine between the features of pictures of one prompt; the
            judge's features here
weights     of a row that learns weights (``--rows two-stage``): what they leave of another subject's token, ours of the
            same seed, which was learned without them
strength    of such a row: the weights at 0, 0.5, 0.7, 0.85 times what was learned and as it was, with the token beside
            them, and by how much they raise the loss of the subject's word on the other subjects' pictures
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fidelity import (
    DDIM_STEPS,
    IMAGES,
    PLACES,
    Plan,
    Words,
    alignment,
    class_word_change,
    draw,
    features,
    methods,
    names_in,
)
from benchmarks.gains import Figures, gain, table
from benchmarks.kinds import Kind, kind_of
from benchmarks.stacked import Stack, Subject, heldout
from zoodip_core import generate
from zoodip_core.base.files import read_object
from zoodip_core.model.embedding import Embedding
from zoodip_core.model.lora import Lora
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.tokens import placed
from zoodip_core.model.words import word_rows
from zoodip_core.tiny import concepts
from zoodip_core.tiny.judge import Judge
from zoodip_core.tiny.scores import JUDGE

LENGTHS = (1, 3, 10, 30)
STRENGTHS = (0, 0.5, 0.7, 0.85, 1)
SHARES = (1, 1 / 2, 1 / 3, 1 / 4, 1 / 8)
"""Of the token's components that ``dims`` keeps: the paper keeps a third."""
PICTURES = 16
"""Of one prompt, for ``diversity``."""
BEFORE = ("a {}", "a photo of a {}", "in the snow a {}", "a painting of three eyes and a {}")
TOKENS = "length,dims,diversity"
"""The figures of a token alone."""
DRAWN = ("attributes", "features", "text", "also")
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


class Learned:
    """The tokens of a file, and the model that they are for."""

    def __init__(self, path: Path, names: str, seeds: int) -> None:
        self.data = read_object(path, 100_000_000)
        rows = names_in(names, self.data["methods"])
        known = self.data["plan"]
        settings = known["budget"], known["weights"], known["dtype"], known["num_vectors"], known["bench"]
        self.plan = Plan(tuple(known["concepts"]), tuple(known["seeds"]), *settings)
        if missing := [row for row in rows if row not in self.data["methods"]]:
            raise ValueError(f"{path} has no rows {', '.join(missing)}; it has {', '.join(self.data['methods'])}")
        self.model = model = self.plan.world.load(self.plan.weights, self.plan.dtype)
        self.words, self.stack, self.judge = Words(model), Stack(model), Judge.load(JUDGE)
        self.subjects = {
            name: Subject(model, concepts.load(name), self.plan.num_vectors) for name in self.plan.concepts
        }
        self.rows, self.seeds = rows, self.plan.seeds[:seeds]
        self.figures = Figures(self.data)

    def tokens(self, row: str) -> Iterator[tuple[Subject, torch.Tensor]]:
        """Of a row, ``[num_vectors, dim]`` each, without the weights that may have been learned with them."""
        for subject, numbers, _ in self._runs(row):
            yield subject, numbers[: subject.theta0.numel()].view_as(subject.theta0)

    def _runs(self, row: str) -> Iterator[tuple[Subject, torch.Tensor, int]]:
        for run in self.data["methods"][row]["runs"]:
            if run["seed"] in self.seeds:
                yield self.subjects[run["concept"]], torch.tensor(run["token"]), run["seed"]

    def weights(self, row: str) -> Iterator[tuple[Kind, Subject, torch.Tensor, torch.Tensor, int]]:
        """Of each run of a row the kind of its weights, the subject, token and weights apart, and the seed."""
        kind = kind_of(methods(self.plan)[row].kind, self.model.unet)
        for subject, numbers, seed in self._runs(row):
            token, weights = numbers.split([subject.theta0.numel(), len(numbers) - subject.theta0.numel()])
            if len(weights) != kind.numbers:
                raise ValueError(f"the row {row} has no weights; choose two-stage")
            yield kind, subject, token.view_as(subject.theta0), weights, seed

    def beside(self, row: str) -> Iterator[tuple[Lora, Subject, torch.Tensor]]:
        """The weights of each run of a row, and the next subject with ours of the same seed."""
        names = list(self.subjects)
        ours = {(subject.concept.name, seed): numbers for subject, numbers, seed in self._runs("ours")}
        for kind, subject, _, weights, seed in self.weights(row):
            other = self.subjects[names[(names.index(subject.concept.name) + 1) % len(names)]]
            yield kind.lora(weights), other, ours[other.concept.name, seed].view_as(other.theta0)

    def gain(self, subject: Subject, theta: torch.Tensor) -> float:
        """In percent of the gradient's."""
        (loss,) = heldout(self.stack.losses, [(subject, theta)])
        name = subject.concept.name
        return gain(self.figures.start[name], loss, self.figures.loss("gradient", name))


def mean_cells(found: Sequence[dict[str, float]], columns: Sequence[str]) -> list[str]:
    cells = [[each[key] for each in found if key in each] for key in columns]
    return [f"{statistics.fmean(cell):.3g}" if cell else "" for cell in cells]


def length_table(learned: Learned) -> str:
    lines = []
    for row, length in itertools.product(learned.rows, LENGTHS):
        found = []
        for subject, theta in learned.tokens(row):
            away = theta.double() - learned.words.mean
            factors = length * learned.words.rms / away.norm(dim=1, keepdim=True)
            moved = (learned.words.mean + away * factors).float()
            drawn = draw(subject, learned.judge, moved, IMAGES)
            found.append({"gain": learned.gain(subject, moved), **drawn, **encoder_figures(subject, moved)})
        lines.append([row, str(length), *mean_cells(found, COLUMNS)])
        print(lines[-1], flush=True)
    return table(("", "distance, words' rms", *HEAD), lines)


def components(model: StableDiffusion) -> torch.Tensor:
    """The vocabulary's principal axes, ``[dim, dim]``, one a row."""
    rows = torch.cat(list(word_rows(model.tokenizers, model.text_encoders))).double()
    return torch.linalg.eigh((rows - rows.mean(0)).T @ (rows - rows.mean(0))).eigenvectors.T


def kept(theta0: torch.Tensor, theta: torch.Tensor, axes: torch.Tensor, count: int) -> torch.Tensor:
    """The token whose ``count`` components of the largest change are theta's, the others theta0's."""
    change = (theta - theta0).double() @ axes.T
    largest = change.abs().topk(count, dim=1).indices
    chosen = torch.zeros_like(change).scatter(1, largest, change.gather(1, largest))
    return (theta0.double() + chosen @ axes).float()


def dims_table(learned: Learned) -> str:
    axes, lines = components(learned.model), []
    for row, share in itertools.product(learned.rows, SHARES):
        count, found = max(1, round(share * len(axes))), []
        for subject, theta in learned.tokens(row):
            some = kept(subject.theta0, theta, axes, count)
            change = ((some - subject.theta0).norm() / (theta - subject.theta0).norm()).square()
            drawn = alignment(subject, learned.judge, pictures(subject, some, IMAGES))
            found.append({"change": float(change), "gain": learned.gain(subject, some), **drawn})
        lines.append([row, str(count), *mean_cells(found, ("change", "gain", "attributes", "features"))])
        print(lines[-1], flush=True)
    head = "", "components kept", "of the change's square", "gain, %", "image alignment: attributes", "features"
    return table(head, lines)


def pictures(subject: Subject, theta: torch.Tensor, count: int) -> list[Image.Image]:
    """Of the token in a plain prompt, from the seeds 0, 1, ..."""
    token = subject.concept.token
    prompts, seeds = [f"a {token}"] * count, list(range(count))
    return generate(subject.model, prompts, seeds, embedding=Embedding(token, (theta,)), num_inference_steps=DDIM_STEPS)


def likeness(judge: Judge, made: Sequence[Image.Image]) -> float:
    """The mean cosine between the features of all pairs."""
    found = features(judge, made)
    cosines = found @ found.T
    return float((cosines.sum() - cosines.trace()) / (len(made) * (len(made) - 1)))


def diversity_table(learned: Learned) -> str:
    lines = []
    for row in learned.rows:
        each = [likeness(learned.judge, pictures(*token, PICTURES)) for token in learned.tokens(row)]
        lines.append([row, f"{statistics.fmean(each):.3f}"])
        print(lines[-1], flush=True)
    words = [likeness(learned.judge, pictures(each, each.theta0, PICTURES)) for each in learned.subjects.values()]
    own = [likeness(learned.judge, each.concept.pictures()) for each in learned.subjects.values()]
    others = [["the word", f"{statistics.fmean(words):.3f}"], ["the pictures", f"{statistics.fmean(own):.3f}"]]
    return table(("", "likeness of its pictures"), [*lines, *others])


def weights_table(learned: Learned) -> str:
    lines = []
    for row in learned.rows:
        kept: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
        for lora, other, theta in learned.beside(row):
            kept["without"].append(draw(other, learned.judge, theta, IMAGES))
            kept["with"].append(draw(other, learned.judge, theta, IMAGES, lora))
        lines += [[row, name, *mean_cells(found, DRAWN)] for name, found in kept.items()]
        print(lines[-2:], flush=True)
    head = "attributes", "features", "text alignment: place", "another attribute"
    return table(("", "the other subject's token, and these weights", *head), lines)


def strength_table(learned: Learned) -> str:
    lines = []
    for row, strength in itertools.product(learned.rows, STRENGTHS):
        found = []
        for kind, subject, theta, weights, _ in learned.weights(row):
            learned.stack.kind, some = kind, strength * weights
            drawn = draw(subject, learned.judge, theta, IMAGES, kind.lora(some))
            change = class_word_change(learned.stack, list(learned.subjects.values()), subject, some)
            own = learned.gain(subject, torch.cat([theta.flatten(), some]))
            found.append({"gain": own, **drawn, "class word": 100 * change})
        worst = min(each["gain"] for each in found)
        lines.append([row, str(strength), *mean_cells(found, ("gain", *DRAWN, "class word")), f"{worst:.3g}"])
        print(lines[-1], flush=True)
    drawn_head = "attributes", "features", "text alignment: place", "another attribute"
    return table(("", "strength", "gain, %", *drawn_head, "the class word's loss, %", "worst run's gain"), lines)


FIGURES = {
    "length": length_table,
    "dims": dims_table,
    "diversity": diversity_table,
    "weights": weights_table,
    "strength": strength_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="what fidelity.py --json wrote")
    parser.add_argument("--figures", default=TOKENS, metavar="A,B", help=f"{', '.join(FIGURES)} (default {TOKENS})")
    parser.add_argument("--rows", default="ours", metavar="A,B", help="whose tokens (default ours)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="of each concept (default 1)")
    args = parser.parse_args()
    names = args.figures.split(",")
    if unknown := set(names) - set(FIGURES):
        parser.error(f"--figures: {', '.join(unknown)} unknown; choose from {', '.join(FIGURES)}")
    try:
        learned = Learned(args.file, args.rows, args.seeds)
    except ValueError as error:
        parser.error(str(error))
    print("\n" + "\n".join(FIGURES[name](learned) for name in names), end="")


if __name__ == "__main__":
    main()
