"""The default search over two text encoders, as SDXL has them: with their directions, and with the vocabulary's.

No small model of that kind is at hand. This is the one over real words (``worlds.py``) whose text encoder is there
twice: the UNet reads both states one behind the other with half of its weights each, so that a token of the same
embedding in both has the predictions that it has on the bench, and losses are on the bench's scale. What is searched
is twice as wide, and each encoder has half of the say. Words lie alike in both, which SDXL's do not: that should be to
the advantage of the vocabulary's directions.

Held-out gain in percent of the gradient's on the bench, from the JSON file of ``fidelity.py --bench words``, at marks
counted in forward passes of one candidate; mean over concepts and seeds.

    python benchmarks/two_encoders.py --gradient FILE --json FILE [--seeds 2] [--budget 1500]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fidelity import Plan, our_lane, ours
from benchmarks.gains import MARKS, table
from benchmarks.stacked import Request, Subject, heldout, run
from benchmarks.worlds import WORLDS
from zoodip_core.base.files import read_object, write_atomically
from zoodip_core.model.frames import read_text
from zoodip_core.model.quantized import Conditioning
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.train.settings import ENCODER, VOCABULARY

ROWS = (ENCODER, VOCABULARY)
PARTS = 2
"""Processes, each of one thread."""


class Halved(nn.Module):
    """A projection of two states that stand one behind the other, each by half of its weight."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    @property
    def weight(self) -> torch.Tensor:
        half = self.layer.weight.detach().float() / 2
        return torch.cat([half, half], dim=1)

    def forward(self, states: torch.Tensor) -> Any:
        first, second = states.chunk(2, dim=-1)
        return self.layer((first + second) / 2)


class Twice(StableDiffusion):
    """A model of one text encoder as if it had two."""

    @cached_property
    def tokenizers(self) -> tuple[Any, ...]:
        return self._one.tokenizers * 2

    @cached_property
    def text_encoders(self) -> tuple[Any, ...]:
        return self._one.text_encoders * 2

    @cached_property
    def unet(self) -> Any:
        unet = self._one.unet
        for name, layer in read_text(unet).items():
            unet.set_submodule(name, Halved(layer))
        return unet

    @cached_property
    def _one(self) -> StableDiffusion:
        info = replace(self.info, dims=self.info.dims[:1])
        settings = (self.weights, self.dtype, self.device, self.text_device)
        return StableDiffusion(replace(self.blueprint, info=info), *settings)

    def conditioning(self, outputs: Sequence[Any]) -> Conditioning:
        return Conditioning(self._attended(outputs).to(self.device, self.dtype))

    def _attended(self, outputs: Sequence[Any]) -> torch.Tensor:
        return torch.cat([output.last_hidden_state for output in outputs], dim=-1)


def twice(model: StableDiffusion) -> Twice:
    own = model.blueprint
    info = replace(own.info, dims=own.info.dims * 2, encoders=("clip_l", "clip_g"))
    return Twice(replace(own, info=info), model.weights, model.dtype, model.device, model.text_device)


def evaluate(requests: Sequence[Request]) -> list[torch.Tensor]:
    return [each.objective.losses(each.candidates, each.draw) for each in requests]


class Trial:
    """One model for all trainings of a process."""

    def __init__(self, budget: int) -> None:
        self.budget, self.model = budget, twice(WORLDS["words"].load())

    def gains(self, name: str, seed: int, directions: str, reference: float) -> dict[int, float]:
        """By marks, in percent of what the reference's held-out loss is below the word's."""
        subject, plan = Subject(self.model, concepts.load(name)), Plan((name,), (seed,), self.budget, bench="words")
        tokens: list[tuple[int, torch.Tensor]] = []
        lane = our_lane(ours(subject.concept, plan, self.budget, seed, directions=directions), subject)
        run(evaluate, [lane], self.budget, MARKS, lambda _, mark, theta: tokens.append((mark, theta)))
        word, *losses = heldout(evaluate, [(subject, each) for each in (subject.theta0, *(t for _, t in tokens))])
        return {mark: 100 * (word - loss) / (word - reference) for (mark, _), loss in zip(tokens, losses, strict=True)}


_trial: Trial


def _begin(budget: int) -> None:
    global _trial
    torch.set_num_threads(1)
    _trial = Trial(budget)


def _run(key: tuple[str, int, str, float]) -> dict[int, float]:
    return _trial.gains(*key)


def references(file: Path) -> dict[str, float]:
    """The gradient's last held-out loss by concept, mean over seeds."""
    runs = read_object(file, 1_000_000_000)["methods"]["gradient"]["runs"]
    last = [(each["concept"], each["losses"][max(each["losses"], key=int)]) for each in runs]
    return {name: statistics.fmean(loss for own, loss in last if own == name) for name, _ in last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gradient", type=Path, required=True, metavar="FILE", help="figures of the words' bench")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="write the figures here, and resume")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="seeds 0 to N-1 (default 2)")
    parser.add_argument("--budget", type=int, default=1500, metavar="N", help="forwards (default 1,500)")
    args = parser.parse_args()
    known = read_object(args.json, 100_000_000) if args.json.exists() else {}
    of = references(args.gradient)
    keys = [(name, seed, row, of[name]) for row in ROWS for name in of for seed in range(args.seeds)]
    keys = [key for key in keys if f"{key[2]} {key[0]} {key[1]}" not in known]
    with ProcessPoolExecutor(PARTS, multiprocessing.get_context("spawn"), _begin, (args.budget,)) as pool:
        for (name, seed, row, _), gains in tqdm(zip(keys, pool.map(_run, keys), strict=True), total=len(keys)):
            known[f"{row} {name} {seed}"] = gains
            write_atomically(args.json, json.dumps(known).encode())
    marks = [mark for mark in MARKS if mark <= args.budget]
    rows = []
    for row in ROWS:
        runs = [
            {int(mark): gain for mark, gain in each.items()} for key, each in known.items() if key.split()[0] == row
        ]
        worst = sorted(round(each[marks[-1]]) for each in runs)[:3]
        means = [f"{statistics.fmean(each[mark] for each in runs):.0f}" for mark in marks]
        rows.append([row, *means, ", ".join(map(str, worst))])
    print(table(("directions", *(f"{mark:,}" for mark in marks), "three lowest"), rows))


if __name__ == "__main__":
    main()
