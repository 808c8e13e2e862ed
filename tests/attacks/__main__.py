"""All attacks at once, with figures: ``python -m tests.attacks``."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from tests.attacks import campaign
from tests.attacks.canary import Canary
from tests.attacks.entries import entries


def names() -> bool:
    """Hostile names at every way in; whether all went well."""
    attempts = refused = 0
    longest, well = 0.0, True
    with tempfile.TemporaryDirectory() as place:
        canary = Canary(Path(place).resolve())
        with entries(canary) as found:
            for entry in found:
                began = time.perf_counter()
                result = campaign.attack(entry, canary)
                attempts, refused = attempts + result.attempts, refused + result.refused
                longest, well = max(longest, result.longest), well and not result.failures
                took = time.perf_counter() - began
                counts = f"{result.attempts:>5} names{result.refused:>5} refused"
                print(f"{entry.title:<62}{counts}{took:>7.2f} s", flush=True)
                for failure in result.failures[:7]:
                    print(f"    FAILED: {failure}")
    print(
        f"{attempts} attempts, {refused} refused, {'none' if well else 'SOME'} left its folder; longest {longest:.2f} s"
    )
    return well


if __name__ == "__main__":
    sys.exit(0 if names() else 1)
