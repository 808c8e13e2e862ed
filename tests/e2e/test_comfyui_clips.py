"""Our tokens in the text encoders of a real ComfyUI, by its own loader and by Apply Embedding.

See :mod:`tests.e2e.comfyui` for what this needs, and ``comfyui_clips.py`` for what is compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.comfyui_clips import KINDS

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program says of each kind of CLIP."""
    if not os.environ.get("COMFYUI_DIR"):
        pytest.skip("set COMFYUI_DIR to a ComfyUI checkout (and COMFYUI_PYTHON to its Python) to run this")
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    program = Path(__file__).with_name("comfyui_clips.py")
    ended = subprocess.run(
        [python, str(program), str(tmp_path_factory.mktemp("clips")), *KINDS, "lacking"],
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1"} | os.environ,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_token_is_where_it_was_put_by_hand(name: str, report: dict[str, Any]) -> None:
    if isinstance(report[name], str):
        pytest.skip(f"this ComfyUI has no {name} ({report[name]})")
    assert report[name] == dict.fromkeys(report[name], True)
    assert {"applied", "wired", "heavier", "anywhere"} <= set(report[name])
    assert ("stock" in report[name]) == KINDS[name].stock


def test_a_text_encoder_that_was_not_loaded_is_named(report: dict[str, Any]) -> None:
    assert report["lacking"].startswith("clip: it lacks the text encoder t5xxl, for which the embedding '<rex>'")
