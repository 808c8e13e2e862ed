"""One table of what ``on_a_card.sh`` measured, beside what is wanted.

python benchmarks/on_a_card.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = tuple[str, float | None, str, float]


def rows(found: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """Each figure with its name, ``>=`` or ``<=``, and the limit."""

    def speed(run: str, arm: str) -> float | None:
        return found.get(run, {}).get(arm, {}).get("steps_per_second")

    def ratio(one: float | None, other: float | None) -> float | None:
        return one / other if one and other else None

    def reserved(run: str) -> float | None:
        peak = found.get(run, {}).get("a", {}).get("training_peak", {}).get("reserved")
        return peak and peak / 1e9

    yield "SD1.5 int8, steps/s to those without graphs", ratio(speed("sd15", "a"), speed("sd15", "a-off")), ">=", 2.0
    yield "SD1.5 int8, steps/s to the paper's procedure", ratio(speed("sd15", "a"), speed("sd15", "c")), ">=", 9.0
    yield "SD1.5 int4, steps/s to int8's", ratio(speed("sd15-int4", "a"), speed("sd15", "a")), ">=", 0.8
    yield "SDXL int8, steps/s to the paper's procedure", ratio(speed("sdxl", "a"), speed("sdxl", "c")), ">=", 6.0
    yield "SD1.5 int8, GB reserved above the context", reserved("sd15"), "<=", 1.25
    yield "SD1.5 int4, GB reserved above the context", reserved("sd15-int4"), "<=", 0.85


def main() -> None:
    folder = Path(sys.argv[1])
    found = {file.stem: json.loads(file.read_text())["arms"] for file in sorted(folder.glob("*.json"))}
    print(f"\n{'':<48}{'found':>8}  wanted")
    for name, value, kind, limit in rows(found):
        met = value is not None and (value >= limit if kind == ">=" else value <= limit)
        shown = "-" if value is None else f"{value:.2f}"
        print(f"{name:<48}{shown:>8}  {kind} {limit:g}  {'yes' if met else 'NO'}")


if __name__ == "__main__":
    main()
