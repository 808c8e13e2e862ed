"""The embedded model in ComfyUI's own classes: its parts compute as ours do, and boo is learned as on ours.

See :mod:`tests.e2e.comfyui` for what this needs, and ``tiny_in_comfyui.py`` for the classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.gains import gain
from tests.e2e import run_tiny_in_comfyui
from tests.e2e.run_tiny_in_comfyui import CAPTION, CLEAN, ROOT
from zoodip_core.base import rng
from zoodip_core.cli.demo import demo_config
from zoodip_core.data.images import load_images, to_tensor
from zoodip_core.model.embedding import Embedding, load_embedding
from zoodip_core.model.load import load_quantized
from zoodip_core.model.quantized import Conditioning
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_model import View
from zoodip_core.tiny import concepts
from zoodip_core.train.alignment import Alignment
from zoodip_core.train.draws import Draw
from zoodip_core.train.heldout import heldout_losses
from zoodip_core.train.loop import train_token

pytestmark = pytest.mark.e2e

TIMESTEP, CLOSE = 640, 1e-4
GRADIENT_LOSS = 0.0191
"""Of boo, by ``benchmarks/fidelity.py``: what 100 points of gain come to."""
POINTS = 2.0
COMPUTE_LIMIT, LEARN_LIMIT = 300, 1800
"""Seconds."""


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return load_quantized("tiny", weights="none", dtype="float32", device="cpu")


@dataclasses.dataclass(frozen=True)
class Computed:
    """Inputs, and what ComfyUI makes of them."""

    given: dict[str, torch.Tensor]
    theirs: dict[str, torch.Tensor]

    def check(self, name: str, ours: torch.Tensor) -> None:
        assert self.theirs[name].shape == ours.shape
        torch.testing.assert_close(self.theirs[name], ours, rtol=0, atol=CLOSE)


@pytest.fixture(scope="module")
def computed(model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Computed:
    folder = tmp_path_factory.mktemp("computed")
    (picture, *_), _ = load_images([concepts.load("boo").images], model.info.resolution)
    posteriors = model.encode_images([picture])
    word = model.initial_vectors("monster", 2, "single")
    given = {
        "candidates": torch.stack([word, word + rng.normal(0, 0, "direction", word.shape), -word]),
        "pixels": (to_tensor([picture.picture]).movedim(1, -1) + 1) / 2,
        "latents": posteriors.sample(0, torch.zeros_like(posteriors.mean[0]))[None],
        "noise": rng.normal(0, 0, "noise", posteriors.mean[0].shape)[None],
        "timestep": torch.tensor([TIMESTEP]),
    }
    save_file({name: each.contiguous() for name, each in given.items()}, folder / "given.safetensors")
    with running("compute", folder / "given.safetensors", folder / "made.safetensors") as process:
        check_ended(process, COMPUTE_LIMIT)
    return Computed(given, load_file(folder / "made.safetensors"))


@contextlib.contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The program in ComfyUI's Python."""
    if not os.environ.get("COMFYUI_DIR"):
        pytest.skip("set COMFYUI_DIR to a ComfyUI checkout (and COMFYUI_PYTHON to its Python) to run this")
    command = [os.environ.get("COMFYUI_PYTHON") or sys.executable, "-m", run_tiny_in_comfyui.__name__, *arguments]
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # beside a training in this process
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def check_ended(process: subprocess.Popen[str], limit: float) -> None:
    """Wait for a process, which has to end well."""
    printed, _ = process.communicate(timeout=limit)
    assert process.returncode == 0, printed


# ---------------------------------------------------------------- parts


def test_texts_are_read_alike(model: StableDiffusion, computed: Computed) -> None:
    (encoded,) = prompt = model.prompt(CAPTION, 2)
    places = computed.theirs["ids"] == -1
    assert torch.nonzero(places).flatten().tolist() == list(encoded.positions)
    assert torch.equal(computed.theirs["ids"][~places], encoded.ids[0][~places])
    with torch.no_grad():
        computed.check("texts", model.encode(prompt, computed.given["candidates"]).hidden)


def test_words_are_the_same(model: StableDiffusion, computed: Computed) -> None:
    def in_order(rows: torch.Tensor) -> list[list[float]]:
        return sorted(rows.tolist())

    computed.check("initial", model.initial_vectors("monster", 1, "single"))
    assert in_order(computed.theirs["words"]) == in_order(torch.cat(list(model.word_rows())))


def test_the_network_predicts_alike(model: StableDiffusion, computed: Computed) -> None:
    condition = Conditioning(computed.theirs["texts"][:1])
    with torch.no_grad():
        computed.check("network", model.predict(computed.given["noise"], TIMESTEP, condition, torch.zeros(6)))
    computed.check("alphas_cumprod", model.alphas_cumprod)


def test_it_is_of_the_same_size(model: StableDiffusion, computed: Computed) -> None:
    assert int(computed.theirs["resolution"]) == model.info.resolution


def test_pictures_become_the_same_latents_and_back(model: StableDiffusion, computed: Computed) -> None:
    pixels = computed.given["pixels"].movedim(-1, 1) * 2 - 1
    with torch.no_grad():
        with model.vae("encoder") as encoder:
            computed.check("encoded", encoder.encode(pixels).latent_dist.mean)
        with model.vae("decoder") as decoder:
            decoded = decoder.decode(computed.theirs["encoded"]).sample
    computed.check("decoded", (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1))


def test_losses_of_candidates_are_ours(model: StableDiffusion, computed: Computed) -> None:
    prompt, given = model.prompt(CAPTION, 2), computed.given
    view = View(prompt, given["latents"], given["noise"], TIMESTEP, torch.zeros(6))
    with torch.no_grad():
        ours = model.denoiser([prompt], None, print).losses_on(view)(given["candidates"])
    assert ours.max() - ours.min() > 100 * CLOSE * ours.mean()  # else it says nothing of candidates
    torch.testing.assert_close(computed.theirs["losses"], ours, rtol=CLOSE, atol=0)


def test_a_target_prompt_shifts_them_as_ours(model: StableDiffusion, computed: Computed) -> None:
    prompt, given = model.prompt(CAPTION, 2), computed.given
    view = View(prompt, given["latents"], given["noise"], TIMESTEP, torch.zeros(6))
    draw = Draw(0, 0, 0, 0, TIMESTEP)
    for name, alpha in (("plainly", 1.0), ("guided", 3.0)):
        alignment = Alignment([model.prompt(CLEAN)], model.prompt(""), 0.5, alpha)
        denoiser = model.denoiser([prompt, *alignment.prompts], None, print)
        with torch.no_grad():
            view_of_target = alignment.shifted(denoiser, view, draw, given["candidates"][:1])
            ours = denoiser.losses_on(view_of_target)(given["candidates"])
            left = alignment.rest(denoiser, view, draw, given["candidates"][:1])
        torch.testing.assert_close(computed.theirs[f"aligned {name}"], ours, rtol=CLOSE, atol=0)
        assert float(computed.theirs[f"aligned left {name}"]) == pytest.approx(left, rel=1e-3)


# ---------------------------------------------------------------- learning


@pytest.mark.slow
def test_boo_is_learned_as_by_our_engine(model: StableDiffusion, tmp_path: Path) -> None:
    """The default preset and the same seed. ComfyUI's VAE gives the middle of what ours draws latents from."""
    boo = concepts.load("boo")
    config = demo_config(boo, seed=0, weights="none", dtype="float32", device="cpu")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    with running("learn", settings, tmp_path) as process:
        ours = train_token(config, tmp_path / "ours", model=model).embedding
        check_ended(process, LEARN_LIMIT)
    theirs = load_embedding(tmp_path / "run" / "boo.safetensors")
    assert (theirs.dims, theirs.encoders) == (ours.dims, ours.encoders)
    assert theirs.metadata["family"] == "tiny"
    in_ours, in_comfyui = gains(boo, model, [ours, theirs])
    print(f"gain of boo: {in_ours:.1f} by our engine, {in_comfyui:.1f} in ComfyUI")
    assert in_ours > 80
    assert abs(in_comfyui - in_ours) <= POINTS


def gains(concept: concepts.Concept, model: StableDiffusion, tokens: list[Embedding]) -> list[float]:
    """Held-out gains, by our engine."""
    word = model.initial_vectors(concept.initializer, tokens[0].num_vectors, "single")
    candidates = torch.stack([word, *(token.vectors for token in tokens)])
    start, *losses = heldout_losses(model, candidates, concept.heldout, concept.heldout_captions).tolist()
    return [gain(start, loss, GRADIENT_LOSS) for loss in losses]
