"""What the figures of ``fidelity.py`` say: gains, tables, curves."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MARKS = (300, 600, 1000, 1500, 2000, 3000, 4500, 9000, 15000)
"""Forward passes at which every method is measured."""
ORDER = ("gradient", "paper", "naive", "gf-ti")
"""The order that the paper's table 1 would have, by gain."""
RIVALS = ("paper", "paper, tuned")
"""Whose final loss ours should come to sooner."""


def gain(start: float, loss: float, ceiling: float) -> float:
    """Share of the ceiling's improvement over the start, in percent."""
    return 100 * (start - loss) / (start - ceiling)


def forwards_to_reach(curve: dict[int, float], start: float, target: float) -> float | None:
    """Forward passes at which a curve of losses, straight between its marks, first comes to the target.

    Args:
        curve: loss at each mark.
        start: loss at 0 forwards.

    Returns:
        None where it never does.
    """
    before, above = 0, start
    if start <= target:
        return 0.0
    for mark, loss in sorted(curve.items()):
        if loss <= target:
            return before + (mark - before) * (above - target) / (above - loss)
        before, above = mark, loss
    return None


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds, 0 of one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


class Figures:
    """Results by name, with the questions that the tables ask. ``data`` is the file's content."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.results: dict[str, Any] = data["methods"]
        self.start = {name: float(each["loss"]) for name, each in data["start"].items()}
        self.names = list(self.start)

    def marks(self, name: str) -> list[int]:
        return sorted(int(mark) for mark in self.results[name]["runs"][0]["losses"])

    def losses(self, name: str, concept: str, mark: int) -> list[float]:
        """One a seed."""
        return [run["losses"][str(mark)] for run in self.results[name]["runs"] if run["concept"] == concept]

    def loss(self, name: str, concept: str, mark: int = 0) -> float:
        """Mean over seeds, at the end if no mark is given."""
        return statistics.fmean(self.losses(name, concept, mark or self.marks(name)[-1]))

    def gains(self, name: str, concept: str, mark: int = 0) -> list[float]:
        """One a seed; the ceiling is the gradient's mean over seeds."""
        ceiling = self.loss("gradient", concept)
        losses = self.losses(name, concept, mark or self.marks(name)[-1])
        return [gain(self.start[concept], loss, ceiling) for loss in losses]

    def mean_gains(self, name: str, mark: int = 0) -> list[float]:
        """One a seed, the mean over concepts."""
        each = zip(*(self.gains(name, concept, mark) for concept in self.names), strict=True)
        return [statistics.fmean(gains) for gains in each]

    def scores(self, name: str, figure: str) -> list[float]:
        """One a seed, the mean over concepts."""
        found: dict[int, list[float]] = {}
        for each in self.results[name]["runs"]:
            if figure in each["scores"]:
                found.setdefault(each["seed"], []).append(each["scores"][figure])
        return [statistics.fmean(values) for values in found.values()]

    def reach(self, name: str, rival: str) -> dict[str, dict[str, float | None]]:
        """For each concept the forwards that ``name`` needs to come to the rival's final loss, and their ratio."""
        found: dict[str, dict[str, float | None]] = {}
        total = self.marks(rival)[-1]
        for concept in self.names:
            curve = {mark: self.loss(name, concept, mark) for mark in self.marks(name)}
            needed = forwards_to_reach(curve, self.start[concept], self.loss(rival, concept))
            found[concept] = {"forwards": needed, "ratio": total / needed if needed else None}
        return found

    def worst(self, name: str, rival: str) -> list[dict[str, Any]]:
        """At each mark of both, the concept in which ``name`` is least ahead of the rival, and by how much."""
        found = []
        for mark in sorted(set(self.marks(name)) & set(self.marks(rival))):
            leads = {
                concept: statistics.fmean(self.gains(name, concept, mark))
                - statistics.fmean(self.gains(rival, concept, mark))
                for concept in self.names
            }
            concept = min(leads, key=lambda each: leads[each])
            found.append({"forwards": mark, "concept": concept, "lead": leads[concept]})
        return found

    def order(self) -> list[dict[str, Any]]:
        """For neighbours in ORDER: whether the first is ahead, in how many concepts, and whether seeds overlap."""
        known = [name for name in ORDER if name in self.results]
        found = []
        for better, worse in itertools.pairwise(known):
            high, low = self.mean_gains(better), self.mean_gains(worse)
            ahead = [
                statistics.fmean(self.gains(better, each)) > statistics.fmean(self.gains(worse, each))
                for each in self.names
            ]
            found.append(
                {
                    "better": better,
                    "worse": worse,
                    "lead": statistics.fmean(high) - statistics.fmean(low),
                    "concepts": sum(ahead),
                    "overlap": min(high) <= max(low),
                }
            )
        return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def with_spread(values: Sequence[float], digits: int = 0) -> str:
    if not values:
        return ""
    mean = round(statistics.fmean(values), digits) + 0.0  # no -0
    return f"{mean:.{digits}f} ± {spread(values):.{digits}f}"


def tables(figures: Figures) -> str:
    """All tables as Markdown; those that need a method which is not there are left out."""
    names = list(figures.results)
    if "gradient" not in figures.results:
        return "No gains without the method gradient.\n"
    common = [mark for mark in MARKS if any(mark in figures.marks(name) for name in names)]
    rows = [
        [
            name,
            *(with_spread(figures.mean_gains(name, mark)) if mark in figures.marks(name) else "" for mark in common),
            f"{with_spread(figures.mean_gains(name))} ({figures.marks(name)[-1]:,})",
        ]
        for name in names
    ]
    parts = [
        "Gain, percent, mean over concepts ± standard deviation over seeds, at so many forward passes:\n",
        table(["method", *(f"{mark:,}" for mark in common), "at its end"], rows),
        "Final gain by concept ± standard deviation over seeds, and held-out losses x 1,000:\n",
        table(
            ["method", *figures.names],
            [
                ["loss of the word", *(f"{1e3 * figures.start[concept]:.1f}" for concept in figures.names)],
                [
                    "loss of the gradient",
                    *(f"{1e3 * figures.loss('gradient', concept):.1f}" for concept in figures.names),
                ],
                *([name, *(with_spread(figures.gains(name, concept)) for concept in figures.names)] for name in names),
            ],
        ),
    ]
    if any(figures.scores(name, "text") for name in names):
        parts += _score_table(figures)
    for rival in RIVALS:
        if {"ours", rival} <= figures.results.keys():
            parts += _reach_table(figures, rival)
    if order := figures.order():
        parts.append("Order by gain, and whether the methods' seeds overlap (mean over concepts, min to max):\n")
        total = len(figures.names)
        parts += [
            f"- {each['better']} over {each['worse']}: {each['lead']:+.0f} points, ahead in {each['concepts']} of "
            f"{total} concepts; seeds {'overlap' if each['overlap'] else 'do not overlap'}"
            for each in order
        ]
    return "\n".join(parts) + "\n"


def _score_table(figures: Figures) -> list[str]:
    kinds = ["attributes", "features", "text", "also", "distance"]
    weights = [figures.scores(name, "class word") for name in figures.results]
    started = figures.data["start"].values()
    rows = []
    for label in ("word", "pictures"):
        known = [[each[label][kind] for each in started if kind in each[label]] for kind in kinds]
        rows.append(
            [f"the {label}", *(f"{statistics.fmean(values):.3f}" if values else "" for values in known)],
        )
    rows += [[name, *(with_spread(figures.scores(name, kind), 3) for kind in kinds)] for name in figures.results]
    head = [
        "",
        "image alignment: attributes",
        "image alignment: features",
        "text alignment: place",
        "text alignment: another attribute",
        "distance, words' rms",
    ]
    if any(weights):
        head.append("the class word's loss, %")
        rows = [[*row, *([""] if len(row) == len(kinds) + 1 else [])] for row in rows]
        for row, found in zip(rows[-len(weights) :], weights, strict=True):
            row[-1] = with_spread([100 * each for each in found], 2) if found else ""
    return ["What the final tokens draw (1 is best), and how far from the words' mean they lie:\n", table(head, rows)]


def _reach_table(figures: Figures, rival: str) -> list[str]:
    reach, total = figures.reach("ours", rival), figures.marks(rival)[-1]
    ratios = [each["ratio"] for each in reach.values() if each["ratio"]]
    rows = [
        [
            concept,
            f"{each['forwards']:,.0f}" if each["forwards"] is not None else "not reached",
            f"{each['ratio']:.1f}" if each["ratio"] else "",
        ]
        for concept, each in reach.items()
    ]
    if len(ratios) == len(reach):
        rows.append(["geometric mean", "", f"{geometric_mean(ratios):.2f}"])
    worst = ", ".join(
        f"{each['concept']} by {each['lead']:+.0f} at {each['forwards']:,}" for each in figures.worst("ours", rival)
    )
    return [
        f'Forward passes that ours needs to come to the loss of "{rival}" at {total:,}:\n',
        table(["concept", "forwards", "times fewer"], rows),
        f"Least ahead of it at equal forwards, in points of gain: {worst}.\n",
    ]


STYLES: dict[str, tuple[str, float, str]] = {
    "gradient": ("#000000", 1.6, "--"),
    "ours": ("#d62728", 2.6, "-"),
    "paper": ("#1f5fb4", 2.2, "-"),
    "paper, tuned": ("#1f5fb4", 1.6, "--"),
    "naive": ("#6b6b6b", 2.0, "-"),
    "naive, tuned": ("#6b6b6b", 1.6, "--"),
    "naive+PUTS": ("#7a9bd1", 1.2, "-"),
    "naive+SG": ("#a7a7a7", 1.2, "-"),
    "spsa": ("#2a9d8f", 1.2, "-"),
    "one-point": ("#8c6d31", 1.2, "-"),
    "snr": ("#9467bd", 1.2, "-"),
    "gf-ti": ("#e08a00", 1.8, "-"),
}
"""Colour, width and dashes; what has no style here gets one of matplotlib's."""


Curves = dict[str, list[tuple[int, float, float]]]
"""Of each method: forward passes, mean gain, and its standard deviation over seeds."""


def curves_of(figures: Figures) -> Curves:
    """What a bench has found."""

    def points(name: str) -> Iterator[tuple[int, float, float]]:
        for mark in figures.marks(name):
            if mark >= MARKS[0]:
                values = figures.mean_gains(name, mark)
                yield mark, statistics.fmean(values), spread(values)

    return {name: list(points(name)) for name in figures.results}


_CELL = re.compile(r"(-?\d+) ± (\d+)(?: \(([\d,]+)\))?")


def curves_in(text: str) -> dict[str, Curves]:
    """What the tables of gains in RESULTS.md say, by the heading that each stands under.

    The figure is drawn from them without another hour of the bench.

    Raises:
        ValueError: there is no such table.
    """
    found = {}
    for head in re.finditer(r"^\| method \|(.+)\| at its end \|$\n^\|[-|]+\|$\n((?:^\|.+\|$\n)+)", text, re.MULTILINE):
        heading = re.findall(r"^#+ (.+)$", text[: head.start()], re.MULTILINE)[-1]
        found[heading] = _curves([int(mark.replace(",", "")) for mark in head[1].split("|")], head[2].splitlines())
    if not found:
        raise ValueError("no table of gains over forward passes")
    return found


def _curves(marks: list[int], lines: Sequence[str]) -> Curves:
    found: Curves = {}
    for line in lines:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        points = {}
        for mark, cell in zip([*marks, 0], cells, strict=True):
            if match := _CELL.fullmatch(cell):
                at = int(match[3].replace(",", "")) if match[3] else mark
                points[at] = float(match[1]), float(match[2])
        found[name] = [(mark, *point) for mark, point in sorted(points.items())]
    return found


def draw_figure(panels: dict[str, Curves], path: Path) -> None:
    """Mean gain over forwards, with a band of one standard deviation over seeds around the main methods.

    Args:
        panels: curves by the title that they stand under, side by side.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    width = 8.4 if len(panels) == 1 else 2.2 + 5.2 * len(panels)
    figure = Figure(figsize=(width, 4.4), dpi=150, layout="constrained", facecolor="white")
    lines: dict[str, tuple[float, Any]] = {}
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, line, end in _draw_panel(axes, curves, title):
            lines.setdefault(name, (end, line))
    order = sorted(lines, key=lambda name: -lines[name][0])  # the legend stands as the first panel's lines end
    handles = [lines[name][1] for name in order]
    figure.legend(handles, order, loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_panel(axes: Any, curves: Curves, title: str) -> Iterator[tuple[str, Any, float]]:
    """Each method's name, its line, and the gain at its end."""
    from matplotlib.ticker import FixedLocator, NullLocator

    lowest = 0.0
    for i, (name, points) in enumerate(curves.items()):
        colour, width, dashes = STYLES.get(name, (f"C{i % 10}", 1.4, "-"))
        for short, others in (("ours", "ours@"), ("paper", "paper, lr ")):
            if name.startswith(others):
                colour, width, dashes = STYLES[short][0], 1.4, ":"
        marks, means, spreads = zip(*points, strict=True)
        (line,) = axes.plot(marks, means, color=colour, linewidth=width, linestyle=dashes, zorder=width)
        if width > 1.5 or name not in STYLES:
            low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(marks, low, high, color=colour, alpha=0.15, linewidth=0, zorder=1)
        lowest = min(lowest, *means)
        yield name, line, means[-1]
    ticks = sorted({mark for points in curves.values() for mark, *_ in points if mark in MARKS})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:,}" for tick in ticks])
    axes.set_ylim(max(lowest - 5, -40), 108)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("forward passes of one candidate")
    axes.set_ylabel("gain, % of gradient textual inversion's")
    axes.set_title(title, fontsize=11)


def derived(figures: Figures) -> dict[str, Any]:
    """What the tables say of gains, for the file."""
    if "gradient" not in figures.results:
        return {}
    found: dict[str, Any] = {
        "gain": {
            name: {str(mark): figures.mean_gains(name, mark) for mark in figures.marks(name)}
            for name in figures.results
        },
        "gain_by_concept": {
            name: {concept: figures.gains(name, concept) for concept in figures.names} for name in figures.results
        },
        "order": figures.order(),
    }
    for rival in RIVALS:
        if {"ours", rival} <= figures.results.keys():
            found[f"to {rival}"] = {"reach": figures.reach("ours", rival), "worst": figures.worst("ours", rival)}
    return found
