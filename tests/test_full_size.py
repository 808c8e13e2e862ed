"""Photographs through a model of full size, on the CPU. The photographs are the DreamBooth dataset's dog6."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import random_models
import torch

from zoodip_core.model.embedding import load_embedding

ROOT = Path(__file__).parents[1]
PHOTOS = Path(os.environ.get("ZOODIP_PHOTOS", ROOT.parent / "shared" / "data" / "dreambooth" / "dog6"))


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photographs: set ZOODIP_PHOTOS to a folder of some (not {PHOTOS})")
def test_photographs_through_a_full_size_sd15(tmp_path: Path) -> None:
    """Int8, 512 px, three steps, as a user runs it: a valid file, and the memory told before and after."""
    model = tmp_path / "sd15.safetensors"
    random_models.write_random(model, "sd15", "full", 0, torch.float16)
    command = [
        *(sys.executable, "-m", "zoodip_core", "train", "--model", model, "--images", PHOTOS, "--token", "<rex>"),
        *("--init", "dog", "--steps", "3", "--dtype", "bfloat16", "--mu", "0.01", "--output", tmp_path / "run"),
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, check=True)
    print(done.stderr)
    embedding = load_embedding(tmp_path / "run" / "rex.safetensors")
    assert embedding.vectors.shape == (1, 768)
    assert torch.isfinite(embedding.vectors).all()
    assert embedding.metadata["steps"] == "3"
    told = re.search(r"memory, measured: ([\d.]+) GB \(predicted ([\d.]+) GB\)", done.stderr)
    assert told
    measured, predicted = float(told[1]), float(told[2])
    assert 0.85 * measured <= predicted <= 1.15 * measured
    assert measured < 2.0
