"""A long run holds no more memory, files or threads at its end than at its beginning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zoodip_core.jobs.environment import ROOT
from zoodip_core.tiny import concepts

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

STEPS, EARLY = 5000, 500
MOST_GROWTH = 0.02
PIP = concepts.load("pip")

PROGRAM = """
import gc, json, re, sys
from pathlib import Path
import psutil
from zoodip_core import TrainConfig, train_token
from zoodip_core.model.building import give_back_freed
from zoodip_core.base.events import Saved

this, taken = psutil.Process(), {}

def look(event):
    if isinstance(event, Saved) and event.step not in taken:
        gc.collect()
        give_back_freed()
        status = Path("/proc/self/status").read_text()
        own, resident = (1024 * int(re.search(name + r":\\s+(\\d+) kB", status)[1]) for name in ("RssAnon", "VmRSS"))
        files, threads = this.num_fds(), this.num_threads()
        taken[event.step] = {"own": own, "resident": resident, "files": files, "threads": threads}

train_token(TrainConfig.from_preset("tiny", **json.loads(sys.argv[1])), sys.argv[2], on_event=look)
print(json.dumps(taken))
"""
"""Own memory is what no file stands behind: pages of libraries count for whom else happens to use them just then."""


def test_five_thousand_steps_hold_no_more_than_five_hundred(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {
        "images": [str(PIP.images)],
        "captions": str(PIP.captions),
        "token": "<pip>",
        "initializer": "monster",
        "steps": STEPS,
        "save_every": EARLY,
        "n": 1,
        "resolution": 32,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings), str(tmp_path / "run")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    taken = {int(step): figures for step, figures in json.loads(done.stdout).items()}
    with capsys.disabled():
        print()
        for step, figures in taken.items():
            own, resident = (figures[name] / 1e6 for name in ("own", "resident"))
            print(f"step {step:5}: {own:.1f} MB of its own, {resident:.1f} MB resident,", end=" ")
            print(f"{figures['files']} files, {figures['threads']} threads")
    early, late = taken[EARLY], taken[STEPS]
    assert late["own"] < early["own"] * (1 + MOST_GROWTH)
    assert (late["files"], late["threads"]) == (early["files"], early["threads"])
