"""Figures 7 and 8 of the paper, made on the embedded model.

    figure 8    the histogram of Subspace Gradient's i*/tau: how much of a buffer's directions is kept, for two
                concepts, at tau scaled to the model's 128 dimensions and at the paper's 128, nu = 1e-3
    figure 7    a map of PUTS's T_L and T_U: held-out loss at high t, image and text alignment of the final token,
                for every T_L < T_U on a grid

Both train with the paper's search as ``fidelity.py`` has it, the map at the tuned learning rate, so that few forwards
tell; trainings share batches. Writes ``sg_histogram.png``, ``puts_map.png`` and ``paper_figures.json`` into FOLDER and
prints the tables.

    python benchmarks/paper_figures.py FOLDER [--figures sg,puts] [--step 200] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fidelity import DDIM_STEPS, Clock, Recipe, draw, pictures_of
from benchmarks.gains import table
from benchmarks.stacked import Lane, Stack, Subject, heldout, run
from benchmarks.worlds import WORLDS
from zoodip_core import ZerothOrderSearch
from zoodip_core.base.files import write_atomically
from zoodip_core.model.load import load_quantized
from zoodip_core.tiny import concepts
from zoodip_core.tiny.judge import Judge
from zoodip_core.tiny.scores import JUDGE

TAUS = (Recipe.tau, 128)
SG_CONCEPTS = ("kiwi", "pip")
MAP_CONCEPT = "pip"
LAST_T = 1000
PANELS = {
    "loss": ("held-out loss at t 500-899 x 1,000", "viridis_r"),
    "attributes": ("image alignment: attributes", "viridis"),
    "features": ("image alignment: features", "viridis"),
    "text": ("text alignment", "viridis"),
}


@dataclass(frozen=True)
class Size:
    """How much is run; budgets are forward passes of one candidate a training."""

    sg_budget: int = 6_000
    sg_seeds: int = 5
    map_budget: int = 1_200
    map_seeds: int = 2
    step: int = 100
    images: int = 6


QUICK = Size(sg_budget=1_200, sg_seeds=1, map_budget=300, map_seeds=1, step=200)

Cell = tuple[int, int]
"""T_L and T_U."""


def kept_shares(stack: Stack, subjects: Sequence[Subject], size: Size) -> list[dict[str, Any]]:
    """For each concept and tau the i* of every full buffer, over all seeds."""
    rows: list[dict[str, Any]] = [
        {"concept": each.concept.name, "tau": tau, "kept": []} for each in subjects for tau in TAUS
    ]
    places = {(row["concept"], row["tau"]): row for row in rows}
    lanes = [
        Recipe(tau=tau).lane(subject, seed) for subject in subjects for tau in TAUS for seed in range(size.sg_seeds)
    ]

    def note(lane: Lane) -> None:
        assert isinstance(lane.search, ZerothOrderSearch)
        subspace = lane.search.subspace
        assert subspace
        if lane.steps % subspace.tau == 0 and subspace.kept is not None:
            places[lane.subject.concept.name, subspace.tau]["kept"].append(subspace.kept)

    run(stack.losses, lanes, size.sg_budget, [], lambda *_: None, note)
    return rows


def cells(step: int) -> list[Cell]:
    """All T_L < T_U on the grid."""
    grid = range(0, LAST_T + 1, step)
    return [(low, high) for low in grid for high in grid if low < high]


def timestep_map(stack: Stack, subject: Subject, judge: Judge, size: Size) -> list[dict[str, Any]]:
    """For each cell its figures, the mean over seeds."""
    keys = [(cell, seed) for cell in cells(size.step) for seed in range(size.map_seeds)]
    searches = {
        cell: replace(Recipe(), lr=WORLDS["tiny"].tuned_lrs[0], t_lower=cell[0], t_upper=cell[1]) for cell, _ in keys
    }
    lanes = [searches[cell].lane(subject, seed) for cell, seed in keys]
    tokens: dict[int, torch.Tensor] = {}

    def keep(place: int, _mark: int, theta: torch.Tensor) -> None:
        tokens[place] = theta

    run(stack.losses, lanes, size.map_budget, [size.map_budget], keep)
    losses = heldout(stack.losses, [(subject, tokens[place]) for place in range(len(keys))])
    found: dict[Cell, list[dict[str, float]]] = {}
    for place, (cell, _) in enumerate(keys):
        scores = draw(subject, judge, tokens[place], size.images)
        stack.on_cost(2 * pictures_of(size.images) * DDIM_STEPS)
        found.setdefault(cell, []).append({"loss": losses[place], **{key: scores[key] for key in list(PANELS)[1:]}})
    return [
        {"t_lower": low, "t_upper": high, **{key: statistics.fmean(each[key] for each in values) for key in PANELS}}
        for (low, high), values in found.items()
    ]


def cost(size: Size, figures: Sequence[str]) -> float:
    """Forward passes of everything."""
    histogram = len(SG_CONCEPTS) * len(TAUS) * size.sg_seeds * size.sg_budget
    trainings = len(cells(size.step)) * size.map_seeds
    heat = trainings * (size.map_budget + 80 + 2 * pictures_of(size.images) * DDIM_STEPS)
    return ("sg" in figures) * histogram + ("puts" in figures) * heat


def histogram_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        shares = [kept / row["tau"] for kept in row["kept"]]
        figures = ["", "", ""]
        if shares:
            dropped, below = 1 - statistics.fmean(shares), statistics.fmean(share < 1 / 3 for share in shares)
            figures = [f"{statistics.median(row['kept']):g}", f"{dropped:.0%}", f"{below:.0%}"]
        lines.append([row["concept"], str(row["tau"]), str(len(shares)), *figures])
    return table(["concept", "tau", "full buffers", "median i*", "directions dropped, mean", "i*/tau below 1/3"], lines)


def map_table(rows: Sequence[dict[str, Any]], key: str) -> str:
    """T_L down, T_U across."""
    values = {(row["t_lower"], row["t_upper"]): row[key] for row in rows}
    lows, highs = sorted({low for low, _ in values}), sorted({high for _, high in values})
    scale, digits = (1e3, 1) if key == "loss" else (1, 2)
    return table(
        ["T_L \\ T_U", *map(str, highs)],
        [
            [str(low), *(f"{scale * values[low, high]:.{digits}f}" if low < high else "" for high in highs)]
            for low in lows
        ],
    )


def draw_histogram(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), dpi=150, layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(TAUS), sharey=True)
    edges = [(i - 0.5) / min(TAUS) for i in range(min(TAUS) + 2)]  # around what a small tau's i* can be
    for axes, tau in zip(panels, TAUS, strict=True):
        known = [row for row in rows if row["tau"] == tau and row["kept"]]
        shares = [[kept / tau for kept in row["kept"]] for row in known]
        weights = [[1 / len(each)] * len(each) for each in shares]
        colours = ["#1f5fb4", "#e08a00"][: len(known)]
        axes.hist(shares, edges, weights=weights, color=colours, label=[row["concept"] for row in known])
        axes.set(title=f"tau = {tau}", xlabel="i*/tau, share of directions kept", xlim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of full buffers")
    panels[0].legend(frameon=False)
    figure.savefig(path)


def draw_map(rows: Sequence[dict[str, Any]], step: int, path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(8.4, 7.2), dpi=150, layout="constrained", facecolor="white")
    grid = list(range(0, LAST_T + 1, step))
    for axes, (key, (title, colours)) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        values = torch.full((len(grid) - 1, len(grid) - 1), torch.nan)
        for row in rows:
            values[row["t_lower"] // step, row["t_upper"] // step - 1] = row[key]
        scale = 1e3 if key == "loss" else 1.0
        known = (scale * values[~values.isnan()]).tolist()
        least = 0.05 * max(known) if key == "loss" else 0.05  # no colours for differences that are none
        low, high = min(min(known), max(known) - least), max(known)
        shown = axes.imshow(scale * values.numpy(), cmap=colours, vmin=low, vmax=high)
        figure.colorbar(shown, ax=axes, shrink=0.8, format="%.1f" if key == "loss" else "%.2f")
        axes.set(title=title, xlabel="T_U", ylabel="T_L")
        axes.set_xticks(range(len(grid) - 1), [str(t) for t in grid[1:]], fontsize=8)
        axes.set_yticks(range(len(grid) - 1), [str(t) for t in grid[:-1]], fontsize=8)
        axes.spines[:].set_visible(False)
        if (Recipe.t_lower, Recipe.t_upper) in cells(step):  # the paper's choice
            corner = (Recipe.t_upper // step - 1.5, Recipe.t_lower // step - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#d62728", linewidth=2))
    figure.savefig(path)


def make(folder: Path, size: Size, figures: Sequence[str], map_concept: str) -> None:
    """Run, write and print what is asked for."""
    planned = cost(size, figures)
    print(f"{planned:,.0f} forward passes, {planned * 2.2e-3 / 60:.0f} min at 2.2 ms each\n", flush=True)
    clock = Clock(planned)
    model = load_quantized("tiny", dtype="float32")
    stack = Stack(model, on_cost=clock.add)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"size": vars(size)}
    if "sg" in figures:
        clock.label = "i*/tau"
        rows = kept_shares(stack, [Subject(model, concepts.load(name)) for name in SG_CONCEPTS], size)
        found["sg"] = rows
        draw_histogram(rows, folder / "sg_histogram.png")
        print("Directions that Subspace Gradient keeps (figure 8), nu = 1e-3:\n\n" + histogram_table(rows))
    if "puts" in figures:
        clock.label = "PUTS"
        rows = timestep_map(stack, Subject(model, concepts.load(map_concept)), Judge.load(JUDGE), size)
        found["puts"] = {"concept": map_concept, "cells": rows}
        draw_map(rows, size.step, folder / "puts_map.png")
        print(f"PUTS's range (figure 7), {map_concept}, {size.map_budget:,} forwards, {size.map_seeds} seeds:\n")
        for key, (title, _) in PANELS.items():
            print(f"{title}:\n\n{map_table(rows, key)}")
    write_atomically(folder / "paper_figures.json", json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--figures", default="sg,puts", metavar="A,B", help="sg, puts (default both)")
    parser.add_argument("--concept", default=MAP_CONCEPT, choices=concepts.names(), help="of the map")
    parser.add_argument("--step", type=int, choices=(100, 200), help="of the map's grid (default 100)")
    parser.add_argument("--budget", type=int, metavar="N", help=f"of the map (default {Size.map_budget:,} forwards)")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"of the map (default {Size.map_seeds})")
    parser.add_argument("--quick", action="store_true", help="a coarse map and few buffers: minutes")
    args = parser.parse_args()
    figures = args.figures.split(",")
    if not set(figures) <= {"sg", "puts"}:
        parser.error("--figures: choose from sg, puts")
    size = QUICK if args.quick else Size()
    given = {"step": args.step, "map_budget": args.budget, "map_seeds": args.seeds}
    size = replace(size, **{key: value for key, value in given.items() if value is not None})
    if size.map_budget < Recipe.n + 1 or size.map_seeds < 1:
        parser.error("--budget and --seeds: at least one step and one seed are needed")
    make(args.folder, size, figures, args.concept)


if __name__ == "__main__":
    main()
