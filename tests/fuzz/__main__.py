"""Feed every reader with damaged files: ``python -m tests.fuzz --cases 100000``; exits with 1 at any fault."""

from __future__ import annotations

import argparse
import faulthandler
import random
import sys
import time
from collections.abc import Sequence

from .judge import Tally, limited
from .readers import READERS, warm_up
from .rounds import fuzz, shares

_HEAD = f"{'reader':28}{'cases':>8}{'accepted':>10}{'refused':>9}{'ways':>6}{'longest':>9}{'peak':>9}{'took':>8}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="in all")
    parser.add_argument("--seed", type=int, help="of the cases; else another each time")
    parser.add_argument("--reader", choices=READERS, help="this one alone, with all of the cases")
    args = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**9) if args.seed is None else args.seed
    faulthandler.enable()
    counts = {args.reader: args.cases} if args.reader else shares(args.cases)
    print(f"seed {seed}\n{_HEAD}")
    faults, began, whole = 0, time.monotonic(), Tally()
    warm_up()
    with limited() as place:
        for name, cases in counts.items():
            print(f"{name:28}", end="", flush=True)
            start = time.monotonic()
            try:
                tally = fuzz(name, cases, seed, place=place)
            except Exception as fault:  # a Fault, or what hypothesis makes of one that does not come again
                faults += 1
                every = getattr(fault, "exceptions", (fault,))
                print(" FAULT: " + "\nand: ".join(map(str, every)))
                print(f"again with: --reader {name!r} --cases {cases} --seed {seed}", flush=True)
                continue
            _print(tally, time.monotonic() - start)
            whole = _together(whole, tally)
    print(f"{'all':28}", end="")
    _print(whole, time.monotonic() - began)
    print(f"{faults} of {len(counts)} readers at fault")
    return 1 if faults else 0


def _print(tally: Tally, took: float) -> None:
    print(
        f"{tally.cases:8}{tally.accepted:10}{tally.refused:9}{len(tally.ways):6}{tally.longest:8.2f}s"
        f"{tally.peak / 1e6:6.0f} MB{took:7.0f}s",
        flush=True,
    )


def _together(one: Tally, other: Tally) -> Tally:
    return Tally(
        one.cases + other.cases,
        one.accepted + other.accepted,
        one.refused + other.refused,
        max(one.longest, other.longest),
        max(one.peak, other.peak),
        one.ways | other.ways,
    )


if __name__ == "__main__":
    sys.exit(main())
