"""Writes the files of ``version1`` with the program as it is: one of each format that it keeps or gives away.

    python tests/formats/make.py FOLDER

Those in the repository are never made anew: a later program shall read what an earlier one wrote. When a format gets
another version, its files go into a folder of their own beside. ``before`` holds what was written before the formats
had all that they have now, and ``settings.json`` is as people write it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import random_models  # noqa: E402

from zoodip_core.evaluate import evaluation  # noqa: E402
from zoodip_core.jobs.job_folder import (  # noqa: E402
    write_outcome,
    write_task,
)
from zoodip_core.model.copies import write_copy  # noqa: E402
from zoodip_core.model.embedding import Embedding, save_embedding  # noqa: E402
from zoodip_core.model.frames import Frames  # noqa: E402
from zoodip_core.model.load import load_quantized  # noqa: E402
from zoodip_core.model.lora import lora_of, save_lora  # noqa: E402
from zoodip_core.model.recognise import open_model  # noqa: E402
from zoodip_core.page.draft import Draft  # noqa: E402
from zoodip_core.train.config import TrainConfig  # noqa: E402
from zoodip_core.train.run_folder import RunFolder  # noqa: E402

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
KEPT = ("unet.conv_in.", "unet.time_embedding.linear_1.")
"""Of the model's copy, to keep it small: a convolution, and a matrix."""


def rows(vectors: int, width: int) -> torch.Tensor:
    """Numbers that are told easily: each is a thousandth of its place."""
    return torch.arange(vectors * width, dtype=torch.float32).reshape(vectors, width) / 1000


def embeddings(folder: Path) -> None:
    about = {"initializer": "dog", "base_model": "small", "family": "sd1", "steps": "7", "zoodip_version": "0.1.0"}
    save_embedding(Embedding("<rex>", (rows(2, 768),), about), folder / "rex.safetensors")
    about["family"] = "sdxl"
    save_embedding(Embedding("<rex>", (rows(1, 768), rows(1, 1280)), about), folder / "rex-sdxl.safetensors")


def lora(folder: Path) -> None:
    """Cores of rank 2 between frames of a matrix of 4 times 6."""
    frames = Frames({LAYER: (rows(4, 2), rows(2, 6))})
    save_frames(frames, folder / "frames.safetensors")
    about = {"token": "<rex>", "base_model": "small", "family": "sd1", "steps": "7", "zoodip_version": "0.1.0"}
    save_lora(lora_of(frames, rows(1, 4)[0], about), folder / "rex-lora.safetensors")


def save_frames(frames: Frames, path: Path) -> None:
    """As a run does."""
    settings = {"images": ["images"], "token": "<rex>", "initializer": "dog", "lora_rank": 2}
    RunFolder(path.parent, TrainConfig.from_dict(settings)).save_frames(frames)


def run(folder: Path) -> None:
    """A run of a page that has failed, and its settings, which ``--config`` takes as well."""
    settings = {"images": ["images"], "token": "<rex>", "initializer": "dog", "steps": 7, "lr": 0.25}
    RunFolder.create(folder / "run", TrainConfig.from_dict({**settings, "model": "small.safetensors"}))
    write_task(folder, "train", Path("page"), settings=settings, preset="fast", replace=True)
    write_outcome(folder, "failed", "the disk is full")


def draft(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        for name, colour in (("one.png", "red"), ("two.png", "blue")):
            Image.new("RGB", (16, 16), colour).save(Path(place) / name)
        made = Draft(folder)
        made.add([(Path(place) / name, name) for name in ("one.png", "two.png")])
    made.caption("0002-two.png", "a {} on grass\na {}, blue")
    made.keep({"token": "<rex>", "steps": 7, "overwrite": True})


def copy(file: Path) -> None:
    """A model's quantised copy, cut down."""
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)  # the header names the model's path
        model = random_models.write_random("small.safetensors", "sd15", "small", 6)
        write_copy(open_model(model), "int8", Path.cwd(), lambda: "copy.safetensors")
        with safe_open("copy.safetensors", framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys() if name.startswith(KEPT)}  # noqa: SIM118
            about = stored.metadata()
        configs = json.loads(about["configs"])
        configs["unet"]["layers_per_block"] = configs["vae"]["layers_per_block"] = (
            1  # no more layers than tensors: that would be refused
        )
        save_file(tensors, file, metadata={**about, "configs": json.dumps(configs)})
    file.chmod(0o644)


def evaluated(folder: Path) -> None:
    """The settings of an evaluation, without its images."""
    folder.mkdir()
    plan = evaluation.EvaluationPlan(
        ("a {} in the snow", "a {}"), "monster", seeds=2, num_inference_steps=7, guidance_scale=2.5
    )
    settings = evaluation._settings(load_quantized(device="cpu"), Embedding("<rex>", (rows(1, 128),)), plan)
    (folder / evaluation.SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True)
    embeddings(folder)
    lora(folder)
    run(folder / "page")
    draft(folder / "draft")
    copy(folder / "small-int8.safetensors")
    evaluated(folder / "evaluation")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:>8} {path.relative_to(folder)}")


if __name__ == "__main__":
    main()
