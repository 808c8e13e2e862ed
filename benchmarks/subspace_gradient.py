"""Subspace Gradient on a noisy quadratic: evaluations to a given error, with and without it.

The loss is L(x) = 1/2 |U^T x - c|^2 + noise in 768 dimensions, where U is a random orthonormal basis
of 20 directions: the other 748 have no curvature. Every evaluation has noise of its own. The error is
the noise-free loss as a share of its starting value, and evaluations are forward passes, n + 1 a step.
Both searches have the same problem, directions, noise and settings; they differ in Subspace Gradient
alone. The counts are figures of the method, not of the machine (up to rounding in its linear algebra).

How the setting was chosen. Subspace Gradient can only tell drift from noise where the drift of tau
steps outweighs their random walk, which takes tau * n well above the dimension, and a token that is
many buffers away from its goal, which takes a small learning rate. tau = 700 and n = 8 were picked by
a scan over tau, n, lr, noise and optimizer for a clear win, mu = 1e-2 so that the noise does not drown
the differences; the optimizer, its betas and nu are the defaults.

What the win is. Subspace Gradient drops much of the gradient's noise and less of its drift; Adam
divides by the gradient's running size, so what is left moves further a step. Plain descent (ZOSGD) has
no such division and loses. A larger learning rate without Subspace Gradient buys more here, and at the
best one the search is over before the first buffer fills: the rows with a larger lr show it. So this is
a gain at equal settings, not over a tuned learning rate.

The table is measured on few seeds. Its rows change one to three values of the setting each, and include
those where Subspace Gradient does not help.

    python benchmarks/subspace_gradient.py [--seeds 8] [--no-table] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from zoodip_core import RGE, ZOSGD, SubspaceGradient, ZerothOrderSearch, ZOAdam
from zoodip_core.base import rng

DIM, EFFECTIVE = 768, 20


@dataclass(frozen=True)
class Setting:
    """One problem and one search; the defaults are the setting of the headline figure.

    ``error`` is the share of the starting loss to reach, ``noise`` the standard deviation of one
    evaluation's noise (the starting loss is 10), ``limit`` the steps after which a search gives up.
    """

    n: int = 8
    mu: float = 1e-2
    lr: float = 2e-4
    tau: int = 700
    nu: float = 1e-3
    noise: float = 0.01
    error: float = 0.1
    optimizer: str = "adam"
    beta2: float = 0.999
    limit: int = 25_000


@dataclass(frozen=True)
class Pair:
    """Evaluations one seed needs to reach the error; None: not within the limit."""

    seed: int
    without: int | None
    with_sg: int | None


class Quadratic:
    """A bowl in EFFECTIVE of DIM dimensions, its lowest point one unit away in each of them (RMS)."""

    def __init__(self, seed: int) -> None:
        self.basis = torch.linalg.qr(rng.normal(seed, 0, "basis", (DIM, EFFECTIVE)).double())[0]
        goal = rng.normal(seed, 0, "goal", (EFFECTIVE,)).double()
        self.goal = goal * math.sqrt(EFFECTIVE) / goal.norm()

    def loss(self, points: torch.Tensor) -> torch.Tensor:
        """Noise-free loss of each row of ``points``."""
        away: torch.Tensor = points.double() @ self.basis - self.goal
        return away.square().sum(dim=-1) / 2


def evaluations(setting: Setting, seed: int, use_sg: bool) -> int | None:
    """Forward passes until the error is reached, or None."""
    problem = Quadratic(seed)
    theta = torch.zeros(1, DIM)
    search = ZerothOrderSearch(
        theta,
        RGE(setting.n, setting.mu),
        SubspaceGradient(setting.tau, setting.nu) if use_sg else None,
        ZOSGD(setting.lr) if setting.optimizer == "sgd" else ZOAdam(setting.lr, (0.9, setting.beta2)),
        seed,
    )
    target = setting.error * float(problem.loss(theta))
    passes = setting.n + 1
    for step in range(setting.limit):
        noise = setting.noise * rng.normal(seed, step, "noise", (passes,)).double()
        search.tell(problem.loss(search.ask()[:, 0]) + noise)
        if float(problem.loss(search.theta)) <= target:
            return (step + 1) * passes
    return None


def compare(setting: Setting, seeds: Sequence[int]) -> list[Pair]:
    """Both searches on every seed."""
    return [Pair(seed, evaluations(setting, seed, False), evaluations(setting, seed, True)) for seed in seeds]


def ratio(pairs: Sequence[Pair]) -> float | None:
    """Geometric mean of evaluations with over without; below 1 Subspace Gradient wins. None: some seed gave up."""
    logs = [math.log(pair.with_sg / pair.without) for pair in pairs if pair.without and pair.with_sg]
    return math.exp(sum(logs) / len(logs)) if logs and len(logs) == len(pairs) else None


def mean(counts: Sequence[int | None]) -> float | None:
    """Geometric mean, or None where a seed gave up."""
    known = [math.log(count) for count in counts if count]
    return math.exp(sum(known) / len(known)) if known and len(known) == len(counts) else None


HEADLINE = Setting()
TABLE = {
    "the setting": HEADLINE,
    "tau 128 (the default)": replace(HEADLINE, tau=128),
    "tau 384": replace(HEADLINE, tau=384),
    "tau 512": replace(HEADLINE, tau=512),
    "n 2 (the default)": replace(HEADLINE, n=2),
    "n 16": replace(HEADLINE, n=16),
    "lr 3e-4": replace(HEADLINE, lr=3e-4),
    "lr 5e-4": replace(HEADLINE, lr=5e-4),
    "lr 1e-3": replace(HEADLINE, lr=1e-3),
    "noise 0.03": replace(HEADLINE, noise=0.03),
    "noise 0.1, error 50%": replace(HEADLINE, noise=0.1, error=0.5),
    "beta2 0.99": replace(HEADLINE, beta2=0.99),
    "beta2 0.99, tau 128": replace(HEADLINE, beta2=0.99, tau=128),
    "ZOSGD, lr 1e-3": replace(HEADLINE, optimizer="sgd", lr=1e-3),
    "lr 5e-3, n 2, tau 128 (the defaults)": replace(HEADLINE, lr=5e-3, n=2, tau=128),
    "lr 5e-3 (over before the buffer fills)": replace(HEADLINE, lr=5e-3),
}


def _shown(count: float | None) -> str:
    return "not reached" if count is None else f"{count:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluations to an error with and without Subspace Gradient.")
    parser.add_argument("--seeds", type=int, default=8, help="seeds of the headline figure (default 8)")
    parser.add_argument("--table-seeds", type=int, default=2, help="seeds of each row of the table (default 2)")
    parser.add_argument("--no-table", action="store_true", help="the headline figure alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    args = parser.parse_args()
    if args.seeds < 1 or args.table_seeds < 1:
        parser.error("at least one seed is needed")

    s = HEADLINE
    print(f"{DIM}-dimensional quadratic, effective dimension {EFFECTIVE}, noise {s.noise} an evaluation, RGE n={s.n}")
    print(f"mu={s.mu}, ZOAdam lr={s.lr} betas=(0.9, {s.beta2}), SG tau={s.tau} nu={s.nu}")
    print(f"evaluations until the loss is {s.error:.0%} of its start\n")
    print(f"{'seed':>4} {'without SG':>12} {'with SG':>12} {'ratio':>7}")
    pairs = []
    for seed in range(args.seeds):
        pair = compare(s, [seed])[0]
        pairs.append(pair)
        one = ratio([pair])
        shown = "-" if one is None else f"{one:.3f}"
        print(f"{seed:>4} {_shown(pair.without):>12} {_shown(pair.with_sg):>12} {shown:>7}", flush=True)
    overall = ratio(pairs)
    wins = sum(pair.with_sg is not None and (pair.without or math.inf) > pair.with_sg for pair in pairs)
    shown = "-" if overall is None else f"{overall:.3f}"
    print(f"geometric mean ratio {shown}; fewer evaluations with SG on {wins} of {len(pairs)} seeds")

    rows = []
    if not args.no_table:
        print(f"\nOther settings ({args.table_seeds} seeds each, geometric means; a ratio above 1: SG is slower)")
        print(f"{'':<40} {'without SG':>12} {'with SG':>12} {'ratio':>7}")
        for label, setting in TABLE.items():
            results = compare(setting, range(args.table_seeds))
            without, with_sg = mean([pair.without for pair in results]), mean([pair.with_sg for pair in results])
            value = ratio(results)
            shown = "-" if value is None else f"{value:.3f}"
            print(f"{label:<40} {_shown(without):>12} {_shown(with_sg):>12} {shown:>7}", flush=True)
            rows.append(
                {
                    "label": label,
                    "setting": asdict(setting),
                    "pairs": [asdict(pair) for pair in results],
                    "ratio": value,
                }
            )

    if args.json:
        figures = {
            "dim": DIM,
            "effective_dim": EFFECTIVE,
            "setting": asdict(s),
            "pairs": [asdict(pair) for pair in pairs],
            "ratio": overall,
            "wins": wins,
            "table": rows,
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
