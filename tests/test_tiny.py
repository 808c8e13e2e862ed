"""The embedded model and its concepts: captions obeyed, pictures sharp, subjects learned."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoodip_core import generate, train_token
from zoodip_core.cli import demo
from zoodip_core.cli.demo import demo_config, show
from zoodip_core.data.images import load_images, to_tensor
from zoodip_core.model.kinds import family_of_widths, names_of
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.tiny.judge import Judge
from zoodip_core.tiny.scores import JUDGE, score

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import monsters


def test_six_kinds_of_subjects() -> None:
    loaded = [concepts.load(name) for name in concepts.names()]
    assert len(loaded) >= 6
    assert {concept.kind for concept in loaded} == {"colour", "pattern", "shape", "bundle", "style"}
    for concept in loaded:
        references = {path.read_bytes() for path in concept.images.glob("*.png")}
        held_out = {path.read_bytes() for path in concept.heldout.glob("*.png")}
        assert len(references) >= 5
        assert len(held_out) >= 5
        assert not references & held_out


def test_its_text_encoder_has_no_name_in_files_as_of_stable_diffusion() -> None:
    """In ComfyUI it is a clip_l, and its tokens are those of our own engine."""
    assert names_of([("clip_l", 128)]) == names_of([("clip_l", 768)]) == ()
    assert family_of_widths((128,)) == "tiny"


def test_subjects_are_not_in_the_training_world() -> None:
    """What the training draws never comes near a held-out colour, bundle or tone."""
    rng = np.random.default_rng(0)
    for _ in range(5000):
        seen = monsters.random_monster(rng)
        assert (seen.shape, seen.pattern, seen.colour_name) not in monsters.CHECK_OUT
        if seen.colour_name is None:
            for colour in monsters.UNNAMED_COLOURS.values():
                assert np.linalg.norm(np.subtract(seen.colour, colour)) >= 28
    for name in ("zig", "valentine", "boo"):
        truth = concepts.load(name).attributes
        named = {rgb: word for word, rgb in monsters.COLOURS.items()}
        assert (truth["shape"], truth["pattern"], named[tuple(truth["colour"])]) in monsters.CHECK_OUT


def test_the_judge_reads_drawn_pictures() -> None:
    judge = Judge.load(JUDGE)
    rng = np.random.default_rng(5)
    subjects = [m for m in (monsters.random_monster(rng) for _ in range(150)) if not m.tone]
    read = judge.read([monsters.draw(m) for m in subjects])
    for name in ("shape", "pattern", "head", "place"):
        right = [
            judge.classes[name][int(p.argmax())] == getattr(m, name) for p, m in zip(read[name], subjects, strict=True)
        ]
        assert np.mean(right) > 0.97, name
    errors = [float((c - torch.tensor(m.colour)).norm()) for c, m in zip(read["colour"], subjects, strict=True)]
    assert np.median(errors) < 25


@pytest.mark.slow
def test_captions_are_obeyed(tiny_model: StableDiffusion) -> None:
    """A quick look; ``tools/train_tiny.py --phase report`` prints the full table over 200 captions."""
    rng = np.random.default_rng(8)
    subjects: list[monsters.Monster] = []
    while len(subjects) < 24:
        subject = monsters.random_monster(rng)
        if subject.colour_name and not subject.tone:
            subjects.append(subject)
    prompts = [monsters.full_caption(subject) for subject in subjects]
    made = generate(tiny_model, prompts, range(24), guidance_scale=5.0, num_inference_steps=20)
    judge = Judge.load(JUDGE)
    read = judge.read(made)
    for name, least in (("shape", 0.8), ("pattern", 0.75), ("eyes", 0.75), ("head", 0.75), ("place", 0.9)):
        right = [
            judge.classes[name][int(p.argmax())] == str(getattr(m, name))
            for p, m in zip(read[name], subjects, strict=True)
        ]
        assert np.mean(right) >= least, name


def test_the_vae_is_sharp(tiny_model: StableDiffusion) -> None:
    pictures = [image for name in concepts.names() for image in load_images([concepts.load(name).heldout], 48)[0]]
    real = to_tensor([image.picture for image in pictures])
    with tiny_model.vae("encoder") as encoder, tiny_model.vae("decoder") as decoder, torch.no_grad():
        out = decoder.decode(encoder.encode(real).latent_dist.mean).sample.clamp(-1, 1)
    decibels = -10 * ((out - real).square().mean((1, 2, 3)) / 4).log10()
    assert decibels.mean() > 29


@pytest.mark.parametrize("name", ["kiwi", "blueprint"])
def test_scores_know_the_subject_from_others(name: str) -> None:
    concept = concepts.load(name)
    other = concepts.load("pip").pictures()
    own, foreign = score(concept, concept.pictures()), score(concept, other)
    for figure in own:
        assert own[figure] < foreign[figure] / 2 if "error" in figure else own[figure] > foreign[figure] + 0.3, figure


def short_demo(name: str, folder: Path, model: StableDiffusion, **settings: Any) -> None:
    concept = concepts.load(name)
    trained = train_token(demo_config(concept, **settings), folder, model=model)
    result = show(concept, model, trained, folder)
    for path in (result.before_after, result.loss_curve, result.embedding):
        assert path.is_file()
    assert result.loss_after < result.loss_before


@pytest.mark.slow
def test_the_demo_learns_a_subject(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_SCORED", len(demo._PLACES))  # those that are shown
    short_demo("blueprint", tmp_path / "demo", tiny_model, steps=40)


@pytest.mark.slow
@pytest.mark.parametrize("name", concepts.names())
def test_every_concept_is_learned(name: str, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    short_demo(name, tmp_path / name, tiny_model)
