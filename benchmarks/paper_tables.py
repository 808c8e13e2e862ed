"""The paper's tables of settings, by the searches and measures of ``fidelity.py``, on either of its models.

    sg      table 4: Subspace Gradient's tau and nu
    mu      table S5: the perturbation size
    n       table S6: the number of random directions, at equal forward passes and at equal steps
    puts    table S7: gradient textual inversion with PUTS's timesteps and with uniform ones

tau is the paper's as a share of the token's numbers. The search has the learning rate that is tuned to the model
(``worlds.py``), so that few forwards tell. Of each cell, the mean over concepts and seeds: the held-out gain, and the
image alignment that the paper's CLIP-I stands for, the cosine between the judge's features of what the token draws and
of the references.

    python benchmarks/paper_tables.py --bench words --json FILE [--tables sg,mu,n,puts]

The JSON file is written after every cell; the same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fidelity import Method, Plan, Recipe, gradient, measure
from benchmarks.gains import Figures, table
from benchmarks.worlds import WORLDS, World

CONCEPTS, SEEDS, BUDGET, IMAGES = ("pip", "zig"), 2, 1_500, 6
TAUS, PAPER_TAU = (32, 64, 128, 256, 512), 128
NUS = (1e-1, 1e-2, 1e-3, 1e-4)
MUS = (1e-1, 1e-2, 1e-3, 1e-4)
COUNTS = (1, 2, 4, 8)
PLAIN = "no Subspace Gradient"
TITLES = {
    "sg": "tau and nu (table 4)",
    "mu": "mu (table S5)",
    "n": "n (table S6)",
    "puts": "PUTS with gradients (table S7)",
}


def paper_search(world: World) -> Recipe:
    return Recipe(lr=world.tuned_lrs[0], tau=world.tau)


def scaled(tau: int, world: World) -> int:
    """One of the paper's tau for this model's width."""
    return round(tau * world.tau / PAPER_TAU)


def cells(name: str, world: World, budget: int) -> dict[str, Method]:
    """The trainings that a table is made of, by name."""
    paper = paper_search(world)
    if name == "sg":
        grid = {
            f"tau {tau}, nu {nu:g}": replace(paper, tau=scaled(tau, world), nu=nu).method(budget)
            for tau in TAUS
            for nu in NUS
        }
        return {PLAIN: replace(paper, tau=0).method(budget), **grid}
    if name == "mu":
        return {f"mu {mu:g}": replace(paper, mu=mu).method(budget) for mu in MUS}
    if name == "n":
        steps = budget // (paper.n + 1)
        return {
            **{f"n {n}": replace(paper, n=n).method(budget) for n in COUNTS},
            **{f"n {n}, {steps} steps": replace(paper, n=n).method(steps * (n + 1)) for n in COUNTS},
        }
    return {"gradient": gradient(world), "gradient, uniform": gradient(world, timesteps="uniform")}


def cell(figures: Figures, name: str) -> str:
    """Gain and image alignment."""
    gains, features = (statistics.fmean(each) for each in (figures.mean_gains(name), figures.scores(name, "features")))
    return f"{gains:.0f} ({features:.3f})"


def shown(name: str, figures: Figures, world: World, budget: int) -> str:
    """A table of :data:`TITLES` as Markdown."""
    if name != "sg":
        return table(("", "gain, % (alignment)"), [[each, cell(figures, each)] for each in cells(name, world, budget)])
    rows = [[f"{tau} ({scaled(tau, world)})", *(cell(figures, f"tau {tau}, nu {nu:g}") for nu in NUS)] for tau in TAUS]
    plain = [PLAIN, cell(figures, PLAIN), *[""] * (len(NUS) - 1)]
    return table(("the paper's tau (here) \\ nu", *(f"{nu:g}" for nu in NUS)), [*rows, plain])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="tiny", choices=tuple(WORLDS), help="the model (default tiny)")
    parser.add_argument("--tables", default=",".join(TITLES), metavar="A,B", help=f"{', '.join(TITLES)} (default all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"default {SEEDS}")
    parser.add_argument("--budget", type=int, default=BUDGET, metavar="N", help=f"forwards (default {BUDGET:,})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, and resume from it")
    args = parser.parse_args()
    names = args.tables.split(",")
    if unknown := set(names) - set(TITLES):
        parser.error(f"--tables: {', '.join(unknown)} unknown; choose from {', '.join(TITLES)}")
    plan = Plan(CONCEPTS, tuple(range(args.seeds)), args.budget, bench=args.bench)
    wanted = {"gradient": gradient(plan.world)}
    for name in names:
        wanted |= cells(name, plan.world, args.budget)
    try:
        figures = measure(plan, wanted, args.json, IMAGES)
    except ValueError as error:
        parser.error(str(error))
    for name in names:
        print(f"\n{TITLES[name]}:\n\n{shown(name, figures, plan.world, args.budget)}", end="")


if __name__ == "__main__":
    main()
