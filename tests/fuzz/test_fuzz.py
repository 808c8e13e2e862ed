"""Some of the cases of every reader, the same each time; a long job has as many as are wanted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("memory cannot be judged here", allow_module_level=True)

from tests.fuzz.judge import limited
from tests.fuzz.readers import READERS, warm_up
from tests.fuzz.rounds import fuzz, shares

COUNTS = shares(500)
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    warm_up()


@pytest.mark.parametrize("name", READERS)
def test_no_file_harms_its_reader(name: str) -> None:
    with limited() as place:
        tally = fuzz(name, COUNTS[name], 0, place=place)
    assert tally.cases >= COUNTS[name]
    assert tally.accepted + len(tally.ways) > 1  # not all of them fail at the first look


@pytest.mark.slow
def test_a_hundred_thousand_cases() -> None:
    job = subprocess.run([sys.executable, "-m", "tests.fuzz", "--cases", "100000"], cwd=ROOT, check=False)
    assert job.returncode == 0
