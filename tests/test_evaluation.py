"""Scores of a token, worked again in NumPy from plain calls of transformers; stops, and bad input."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fake_model import FakeModel
from tests.judges import write_judges
from zoodip_core.base.errors import (
    CaptionError,
    ConfigError,
    EmbeddingFileError,
    ImagesError,
    ModelError,
    PathError,
    RunFolderError,
)
from zoodip_core.base.stopping import Stopped, stopped_by
from zoodip_core.cli import main as cli
from zoodip_core.cli import screen
from zoodip_core.data.images import find_images, open_picture
from zoodip_core.evaluate import evaluation
from zoodip_core.evaluate.encoders import (
    CLIP_ID,
    DINO_ID,
    ClipFeatures,
    DinoFeatures,
    MissingModelError,
    ModelFiles,
    find_clip,
    find_dino,
)
from zoodip_core.evaluate.evaluation import (
    AFTER,
    BEFORE,
    Evaluation,
    EvaluationPlan,
    Judges,
    as_json,
    evaluate,
    find_judges,
    image_path,
    key_of,
)
from zoodip_core.evaluate.metrics import image_alignment, mutual_similarity, text_alignment
from zoodip_core.evaluate.prompt_sets import LIVING, OBJECT, PROMPT_SETS, default_set, prompts_of
from zoodip_core.evaluate.report import JSON, MARKDOWN, SHEET, as_markdown, as_text, write_report
from zoodip_core.model import stable_diffusion
from zoodip_core.model.embedding import Embedding, save_embedding
from zoodip_core.model.frames import frames_of
from zoodip_core.model.generation import generate
from zoodip_core.model.kinds import CLIP_PATH
from zoodip_core.model.lora import lora_of
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts

CPU = torch.device("cpu")
PROMPTS = ("a {} in the snow", "a {} at the beach")
PLAN = EvaluationPlan(PROMPTS, "monster", seeds=2, num_inference_steps=2)


@pytest.fixture(scope="module")
def judges_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture(scope="module")
def judges(judges_at: Path) -> Judges:
    return find_judges(judges_at / "clip", judges_at / "dino")


@pytest.fixture(scope="module")
def references() -> list[Path]:
    return find_images([concepts.load("kiwi").images])[:3]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test here may ask the network; and Hugging Face's cache is empty unless a test fills it."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def token(name: str = "<boo>", width: int = 128, **metadata: str) -> Embedding:
    vector = 0.3 * torch.randn(1, width, generator=torch.Generator().manual_seed(5))
    return Embedding(name, (vector,), metadata)


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: StableDiffusion, judges: Judges, references: list[Path]
) -> tuple[Evaluation, Path]:
    """A whole evaluation and its folder, which no test changes."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    return evaluate(tiny_model, token(), references, PLAN, judges, folder), folder


@pytest.fixture
def drawn(done: tuple[Evaluation, Path], tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(done[1], tmp_path / "out"))


def test_a_token_that_gives_way_to_its_word(
    done: tuple[Evaluation, Path], tiny_model: StableDiffusion, judges: Judges, references: list[Path], tmp_path: Path
) -> None:
    """The images before are the same, those after are what is drawn so; its file says no word: the class word."""
    plan, folder = replace(PLAN, until=0.5), tmp_path / "half"
    found = evaluate(tiny_model, token(), references, plan, judges, folder)
    text = PROMPTS[0].replace("{}", "<boo>")
    own = replace(token(), metadata={"initializer": "monster"})
    expected = generate(tiny_model, [text] * 2, [0, 1], embedding=own, num_inference_steps=2, until=0.5)
    for seed, picture in enumerate(expected):
        drawn = np.asarray(Image.open(image_path(folder, "after", 0, seed)))
        np.testing.assert_array_equal(drawn, np.asarray(picture))
        assert drawn.tobytes() != np.asarray(Image.open(image_path(done[1], "after", 0, seed))).tobytes()
        paths = (image_path(each, "before", 0, seed) for each in (folder, done[1]))
        assert len({path.read_bytes() for path in paths}) == 1
    assert found.before == done[0].before
    assert found.after != done[0].after
    assert as_text(found).splitlines()[2].startswith("after: the token <boo> until 0.5 ")
    assert "the token in the first 0.5 of the steps, its word in the rest" in as_markdown(found)
    with pytest.raises(RunFolderError, match="until differ"):
        evaluate(tiny_model, token(), references, PLAN, judges, folder)


@pytest.mark.parametrize("until", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_of_the_steps_that_is_none(
    until: float, tiny_model: StableDiffusion, judges: Judges, references: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"until = .*must be above 0 and at most 1"):
        evaluate(tiny_model, token(), references, replace(PLAN, until=until), judges, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the figures


def cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def all_pairs(some: Any, others: Any) -> float:
    return float(np.mean([cosine(a, b) for a in some for b in others]))


def different_pairs(images: Any) -> float:
    count = range(len(images))
    return float(np.mean([cosine(images[i], images[j]) for i in count for j in count if i != j]))


def test_the_metrics_are_means_of_cosines() -> None:
    rng = np.random.default_rng(0)
    texts, images, references = (rng.normal(size=(n, 7)) * 3 for n in (5, 5, 4))
    to = torch.from_numpy
    expected = np.mean([cosine(a, b) for a, b in zip(texts, images, strict=True)])
    assert text_alignment(to(texts), to(images)) == pytest.approx(expected, abs=1e-12)
    assert image_alignment(to(references), to(images)) == pytest.approx(all_pairs(references, images), abs=1e-12)
    assert mutual_similarity(to(images)) == pytest.approx(different_pairs(images), abs=1e-12)


def test_the_same_image_is_as_alike_as_can_be() -> None:
    one = torch.randn(1, 9)
    assert mutual_similarity(one.expand(50, -1)) == pytest.approx(1, abs=1e-12)
    assert image_alignment(one, 3 * one.expand(2, -1)) == pytest.approx(1, abs=1e-12)
    assert mutual_similarity(one) is None
    assert mutual_similarity(torch.eye(3)) == pytest.approx(0, abs=1e-12)


def plain_clip(folder: Path, pictures: list[Image.Image], texts: list[str]) -> tuple[Any, Any]:
    """CLIP's projected image and text features, by the library's own way."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt").pixel_values
    words = CLIPTokenizerFast.from_pretrained(CLIP_PATH)(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**words, pixel_values=pixels)
    return out.image_embeds.double().numpy(), out.text_embeds.double().numpy()


def plain_dino(folder: Path, pictures: list[Image.Image]) -> Any:
    """DINOv2's class tokens, by the library's own way."""
    from transformers import BitImageProcessor, Dinov2Model

    model = Dinov2Model.from_pretrained(folder, local_files_only=True).eval()
    pixels = BitImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        return model(pixel_values=pixels).last_hidden_state[:, 0].double().numpy()


def test_an_evaluation_is_what_plain_calls_give(
    done: tuple[Evaluation, Path], judges_at: Path, references: list[Path]
) -> None:
    """Every figure, from the images as they lie in the folder."""
    found, folder = done
    own = [open_picture(path) for path in references]
    clip_refs, texts = plain_clip(judges_at / "clip", own, [prompt.replace("{}", "monster") for prompt in PROMPTS])
    dino_refs = plain_dino(judges_at / "dino", own)
    for when, scores in ((BEFORE, found.before), (AFTER, found.after)):
        made = [open_picture(image_path(folder, when, *each)) for each in ((0, 0), (0, 1), (1, 0), (1, 1))]
        clip, _ = plain_clip(judges_at / "clip", made, ["x"])
        dino = plain_dino(judges_at / "dino", made)
        clip_t = np.mean([cosine(texts[i // 2], clip[i]) for i in range(4)])
        assert scores.clip_t == pytest.approx(clip_t, abs=1e-5)
        assert scores.clip_i == pytest.approx(all_pairs(clip_refs, clip), abs=1e-5)
        assert scores.dino == pytest.approx(all_pairs(dino_refs, dino), abs=1e-5)
        inter = np.mean([different_pairs(dino[:2]), different_pairs(dino[2:])])
        assert scores.dino_inter == pytest.approx(inter, abs=1e-5)
        second = found.by_prompt[1][0 if when == BEFORE else 1]
        assert second.clip_t == pytest.approx(np.mean([cosine(texts[1], clip[i]) for i in (2, 3)]), abs=1e-5)
        assert second.dino == pytest.approx(all_pairs(dino_refs, dino[2:]), abs=1e-5)
        assert second.dino_inter == pytest.approx(different_pairs(dino[2:]), abs=1e-5)
    assert found.ceiling.clip_i == pytest.approx(different_pairs(clip_refs), abs=1e-5)
    assert found.ceiling.dino == pytest.approx(different_pairs(dino_refs), abs=1e-5)
    assert (found.ceiling.clip_t, found.ceiling.dino_inter) == (None, None)


def test_before_is_the_word_and_after_the_token(done: tuple[Evaluation, Path], tiny_model: StableDiffusion) -> None:
    """With the same prompts and seeds, as the core draws them."""
    for when, text, embedding in ((BEFORE, "a monster at the beach", None), (AFTER, "a {} at the beach", token())):
        made = generate(tiny_model, [text] * 2, [0, 1], embedding=embedding, num_inference_steps=2)
        for seed, image in enumerate(made):
            kept = np.asarray(open_picture(image_path(done[1], when, 1, seed)))
            np.testing.assert_array_equal(kept, np.asarray(image))


def test_a_tokens_name_is_a_plain_word_in_the_prompts(
    done: tuple[Evaluation, Path], tiny_model: StableDiffusion, judges: Judges, references: list[Path], tmp_path: Path
) -> None:
    """An A1111 file's name may be any word."""
    evaluate(tiny_model, token("snow"), references, PLAN, judges, tmp_path / "out")
    for file in sorted(done[1].glob("after/*.png")):
        assert (tmp_path / "out" / "after" / file.name).read_bytes() == file.read_bytes()


def test_pictures_that_are_the_references_score_one(judges: Judges, references: list[Path]) -> None:
    assert judges.clip
    assert judges.dino
    for judge in (ClipFeatures(judges.clip, CPU), DinoFeatures(judges.dino, CPU)):
        seen = judge.of_images(references)
        again = judge.of_images([open_picture(path) for path in references])
        assert torch.equal(seen, again)
        assert [image_alignment(seen[i : i + 1], again[i : i + 1]) for i in range(3)] == pytest.approx([1] * 3)


def test_texts_that_are_too_long_are_cut_as_clip_does(judges_at: Path, references: list[Path]) -> None:
    texts = ["a dog", "very long " * 100, "a dog in the snow"] * 12
    seen = ClipFeatures(find_clip(judges_at / "clip"), CPU).of_texts(texts)
    _, expected = plain_clip(judges_at / "clip", [open_picture(references[0])], texts)
    assert [cosine(a, b) for a, b in zip(seen, expected, strict=True)] == pytest.approx([1] * 36, abs=1e-6)


def test_a_strip_is_seen_by_its_middle_and_fills_no_memory(judges: Judges) -> None:
    assert judges.dino
    dino = DinoFeatures(judges.dino, CPU)
    noise = np.random.default_rng(3).integers(0, 256, (8, 64, 3), dtype=np.uint8)
    strip = Image.new("RGB", (2_000_000, 8), "red")
    strip.paste(Image.fromarray(noise), (1_000_000 - 32, 0))
    upright = strip.crop((900_000, 0, 1_100_000, 8)).transpose(Image.Transpose.ROTATE_90)
    expected = dino.of_images([Image.fromarray(noise).crop((16, 0, 48, 8))])
    assert torch.equal(dino.of_images([strip]), expected)
    assert dino.of_images([upright]).shape == expected.shape


# ---------------------------------------------------------------- stopping and going on


def count_drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The (prompt, seed) of all that is drawn from now on."""
    asked: list[tuple[str, int]] = []
    draw = generate

    def counted(model: Any, prompts: list[str], seeds: list[int], **settings: Any) -> Any:
        asked.extend(zip(prompts, seeds, strict=True))
        return draw(model, prompts, seeds, **settings)

    monkeypatch.setattr(stable_diffusion, "generate", counted)
    return asked


def test_an_evaluation_that_was_stopped_goes_on_to_the_same_scores(
    done: tuple[Evaluation, Path],
    tiny_model: StableDiffusion,
    judges: Judges,
    references: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "out"
    steps: list[tuple[str, int, int]] = []
    with pytest.raises(Stopped), stopped_by(lambda: len(steps) >= 8):
        evaluate(tiny_model, token(), references, PLAN, judges, folder, lambda *told: steps.append(told))
    kept = {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/*.png")}
    assert 0 < len(kept) < 8
    asked = count_drawn(monkeypatch)
    told: list[tuple[str, int, int]] = []
    again = evaluate(tiny_model, token(), references, PLAN, judges, folder, lambda *each: told.append(each))
    assert len(asked) == 8 - len(kept)
    assert as_json(again) == as_json(done[0])
    assert told[0] == ("drawing", 2 * len(kept), 16)
    assert [each for each in told if each[1] == each[2]] == [
        ("drawing", 16, 16),
        ("scoring with CLIP", 11, 11),
        ("scoring with DINO", 11, 11),
    ]
    for path in done[1].glob("*/*.png"):
        assert (folder / path.relative_to(done[1])).read_bytes() == path.read_bytes()


def test_a_stop_while_it_scores_is_answered(
    tiny_model: StableDiffusion, judges: Judges, references: list[Path], drawn: Path
) -> None:
    stages: list[str] = []
    with pytest.raises(Stopped), stopped_by(lambda: "scoring with CLIP" in stages):
        evaluate(tiny_model, token(), references, PLAN, judges, drawn, lambda stage, *_: stages.append(stage))
    assert "scoring with DINO" not in stages


def test_the_drawing_model_has_left_before_the_scoring_ones_come(
    tiny_model: StableDiffusion, judges: Judges, references: list[Path], drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both at once need not fit."""
    loaded: list[bool] = []

    def seen(kind: Any) -> Callable[..., Any]:
        def make(*args: Any) -> Any:
            loaded.append("unet" in vars(tiny_model) or "text_encoders" in vars(tiny_model))
            return kind(*args)

        return make

    monkeypatch.setattr(evaluation, "ClipFeatures", seen(ClipFeatures))
    monkeypatch.setattr(evaluation, "DinoFeatures", seen(DinoFeatures))
    image_path(drawn, AFTER, 0, 0).unlink()
    evaluate(tiny_model, token(), references, PLAN, judges, drawn)
    assert loaded[-2:] == [False, False]  # the first two were tried before anything was drawn


@pytest.mark.slow
def test_a_damaged_image_is_drawn_again(
    done: tuple[Evaluation, Path],
    tiny_model: StableDiffusion,
    judges: Judges,
    references: list[Path],
    drawn: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged = image_path(drawn, BEFORE, 1, 1)
    damaged.write_bytes(damaged.read_bytes()[:300])
    asked = count_drawn(monkeypatch)
    again = evaluate(tiny_model, token(), references, PLAN, judges, drawn)
    assert asked == [("a monster at the beach", 0), ("a monster at the beach", 1)]  # a batch, for the same bits
    assert as_json(again) == as_json(done[0])


@pytest.mark.slow
def test_more_seeds_go_on_with_what_there_is(
    tiny_model: StableDiffusion, references: list[Path], judges: Judges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, prompts=PROMPTS[:1], seeds=4, num_inference_steps=1)
    evaluate(tiny_model, token(), references, plan, judges, tmp_path / "out")
    asked = count_drawn(monkeypatch)
    more = evaluate(tiny_model, token(), references, replace(plan, seeds=5), judges, tmp_path / "out")
    assert asked == [("a monster in the snow", 4), ("a {} in the snow", 4)]
    assert more.after.dino_inter is not None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"class_word": "ghost"}, "class_word"),
        ({"prompts": PROMPTS[:1]}, "prompts"),
        ({"num_inference_steps": 3}, "steps"),
        ({"guidance_scale": 2.0}, "guidance"),
        ({"first_seed": 1}, "first_seed"),
    ],
)
def test_other_settings_want_another_folder(
    changes: dict[str, Any],
    named: str,
    tiny_model: StableDiffusion,
    judges: Judges,
    references: list[Path],
    drawn: Path,
) -> None:
    with pytest.raises(RunFolderError, match=rf"other settings \({named} differ\); choose another output folder"):
        evaluate(tiny_model, token(), references, replace(PLAN, **changes), judges, drawn)


def test_weights_are_part_of_what_is_evaluated(
    done: tuple[Evaluation, Path],
    drawn: Path,
    tiny_model: StableDiffusion,
    judges: Judges,
    references: list[Path],
    tmp_path: Path,
) -> None:
    """The images after are drawn with them, those before without; they want a folder of their own."""
    frames = frames_of(tiny_model.unet, 4)
    lora = lora_of(frames, torch.ones(frames.numbers), {})
    plan, plain = done[0].plan, done[1]
    with pytest.raises(RunFolderError, match=r"other settings \(lora differ\)"):
        evaluate(tiny_model, token(), references, plan, judges, drawn, lora=lora)
    evaluate(tiny_model, token(), references, plan, judges, tmp_path / "lora", lora=lora)
    for prompt, seed in plan.images():
        before, after = (image_path(tmp_path / "lora", when, prompt, seed).read_bytes() for when in ("before", "after"))
        assert before == image_path(plain, "before", prompt, seed).read_bytes()
        assert after != image_path(plain, "after", prompt, seed).read_bytes()
    assert key_of(tiny_model, token(), plan) != key_of(tiny_model, token(), plan, lora)
    assert key_of(tiny_model, token(), plan, lora) != key_of(tiny_model, token(), plan, lora.scaled(0.5))


def test_a_model_of_a_host_with_another_schedule_is_drawn_anew() -> None:
    """ComfyUI's nodes for the shift of a flow, or for CLIP's layer, change no weight."""
    other = FakeModel()
    other.schedule = {**other.schedule, "shift": 3.0}
    assert key_of(FakeModel(), token(), PLAN) == key_of(FakeModel(), token(), PLAN) != key_of(other, token(), PLAN)


def test_another_token_or_a_later_version_wants_another_folder(
    tiny_model: StableDiffusion, judges: Judges, references: list[Path], drawn: Path
) -> None:
    other = replace(token(), tensors=(token().tensors[0] + 1,))
    with pytest.raises(RunFolderError, match=r"\(embedding differ\)"):
        evaluate(tiny_model, other, references, PLAN, judges, drawn)
    file = drawn / "settings.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "evaluation_version": 2}))
    with pytest.raises(RunFolderError, match="newer ZOODiP; update"):
        evaluate(tiny_model, token(), references, PLAN, judges, drawn)


@pytest.mark.slow
def test_a_token_of_any_name_goes_on_as_well(
    tiny_model: StableDiffusion, judges: Judges, references: list[Path], tmp_path: Path
) -> None:
    plan, odd = EvaluationPlan(("a {}",), "monster", seeds=1, num_inference_steps=1), token("\udc80" + "y" * 5 * 10**6)
    found = [evaluate(tiny_model, odd, references, plan, judges, tmp_path / "out") for _ in range(2)]
    write_report(found[1], references, tmp_path / "out")
    assert as_json(found[0]) == as_json(found[1])


def test_a_folder_with_something_else_is_left_alone(
    tiny_model: StableDiffusion, judges: Judges, references: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="holds something else"):
        evaluate(tiny_model, token(), references, PLAN, judges, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_link_that_leads_out_is_refused(
    tiny_model: StableDiffusion, judges: Judges, references: list[Path], drawn: Path, tmp_path: Path
) -> None:
    shutil.rmtree(drawn / "after")
    (tmp_path / "elsewhere").mkdir()
    (drawn / "after").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(RunFolderError, match="link that leads out"):
        evaluate(tiny_model, token(), references, PLAN, judges, drawn)


# ---------------------------------------------------------------- the models that score


def test_without_either_model_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(MissingModelError) as caught:
        find_judges()
    told = str(caught.value)
    for name in (CLIP_ID, DINO_ID):
        assert f"hf download {name} " in told
        assert str(tmp_path / "hub" / f"models--{name.replace('/', '--')}") in told
    assert "Nothing is downloaded" in told


def test_one_model_may_be_missing(
    tiny_model: StableDiffusion, references: list[Path], judges_at: Path, drawn: Path
) -> None:
    for given, kept in (({"clip": judges_at / "clip"}, "clip"), ({"dino": judges_at / "dino"}, "dino")):
        judges = find_judges(**given)
        (why,) = judges.left_out
        assert "hf download" in why
        found = evaluate(tiny_model, token(), references, PLAN, judges, drawn)
        have = {name for name, value in vars(found.after).items() if value is not None}
        assert have == ({"clip_t", "clip_i"} if kept == "clip" else {"dino", "dino_inter"})
        gone = "DINO and DINO_inter" if kept == "clip" else "CLIP-T and CLIP-I"
        assert f"left out: {gone}" in as_text(found)
        assert "Left out: " in as_markdown(found)


def test_a_model_that_was_named_must_be_there(judges_at: Path, tmp_path: Path) -> None:
    for find, place in ((find_clip, "clip"), (find_dino, "dino")):
        for where in (str(tmp_path / "nowhere"), "nobody/nothing", "../hub"):
            with pytest.raises(MissingModelError, match=r"(?s)not found in .*hf download"):
                find(where)
        folder = shutil.copytree(judges_at / place, tmp_path / place)
        for name in ("preprocessor_config.json", "model.safetensors", "config.json"):
            (folder / name).unlink()
            with pytest.raises(MissingModelError, match="weights" if name.startswith("model") else name):
                find(folder)
    with pytest.raises(MissingModelError):
        find_judges(judges_at / "clip", tmp_path / "nowhere")


def test_another_kind_of_model_is_refused(judges_at: Path) -> None:
    with pytest.raises(ModelError, match="type 'dinov2', 'clip' is needed"):
        find_clip(judges_at / "dino")
    with pytest.raises(ModelError, match="type 'clip', 'dinov2' is needed"):
        find_dino(judges_at / "clip")


def in_cache(tmp_path: Path, name: str, source: Path) -> Path:
    """A model's folder in Hugging Face's cache, with its files in the main revision ``aaa``."""
    folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / "aaa")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("aaa")
    return folder


def test_the_users_cache_is_looked_into(judges_at: Path, tmp_path: Path, references: list[Path]) -> None:
    in_cache(tmp_path, CLIP_ID, judges_at / "clip")
    in_cache(tmp_path, DINO_ID, judges_at / "dino")
    judges = find_judges()
    assert judges.left_out == ()
    assert judges.clip
    assert judges.clip.config.parent.name == "aaa"
    assert judges.clip.name == CLIP_ID
    assert torch.equal(seen(judges.clip, references), seen(find_clip(judges_at / "clip"), references))


def test_weights_may_be_of_another_revision(judges_at: Path, tmp_path: Path, references: list[Path]) -> None:
    """Of openai/clip-vit-base-patch32 the main revision has pickled weights, pull requests have others."""
    folder = in_cache(tmp_path, CLIP_ID, judges_at / "clip")
    main, other = folder / "snapshots" / "aaa", folder / "snapshots" / "000"
    other.mkdir()
    (main / "model.safetensors").rename(other / "model.safetensors")
    assert find_clip().weights == (other / "model.safetensors",)
    (main / "pytorch_model.bin").write_bytes(b"not looked at")
    assert find_clip().weights == (other / "model.safetensors",)
    shutil.rmtree(folder / "refs")  # as where a revision was asked for by its name
    assert find_clip().config == main / "config.json"


def seen(files: ModelFiles, references: list[Path]) -> torch.Tensor:
    return ClipFeatures(files, CPU).of_images(references)


def test_pickled_weights_are_read_as_plain_tensors(judges_at: Path, tmp_path: Path, references: list[Path]) -> None:
    from safetensors.torch import load_file

    folder = shutil.copytree(judges_at / "clip", tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, "text_model.embeddings.position_ids": torch.arange(77)[None]}, folder / "pytorch_model.bin")
    assert torch.equal(seen(find_clip(folder), references), seen(find_clip(judges_at / "clip"), references))


class Code:
    """What a hostile file would run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_code_in_weights_is_not_run(judges_at: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(judges_at / "clip", tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Code(tmp_path / "ran")}))
    with pytest.raises(ModelError, match="holds code, which is never"):
        ClipFeatures(find_clip(folder), CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("place", "file", "changes"),
    [
        ("clip", "config.json", {"vision_config": {"hidden_size": 10**9, "image_size": 64, "patch_size": 16}}),
        ("clip", "config.json", {"vision_config": {"image_size": 10**9, "patch_size": 1}}),
        ("clip", "config.json", {"text_config": []}),
        ("clip", "config.json", {"text_config": {"vocab_size": 1000}}),
        ("dino", "config.json", {"num_hidden_layers": 10**9}),
        ("dino", "config.json", {"hidden_act": "no such thing"}),
        ("dino", "config.json", {"patch_size": 0}),
        ("dino", "config.json", {"hidden_size": 64}),
        ("clip", "preprocessor_config.json", {"size": {"shortest_edge": 10**9}}),
        ("dino", "preprocessor_config.json", {"crop_size": "large"}),
        ("dino", "preprocessor_config.json", {"crop_size": 10**6}),
        ("dino", "preprocessor_config.json", {"image_std": [0.2, 0.2]}),
        ("dino", "preprocessor_config.json", {"image_std": [0, 0, 0]}),
        ("clip", "preprocessor_config.json", {"crop_size": {"height": 32, "width": 32}}),
    ],
)
def test_settings_that_make_no_sense_are_told(
    place: str, file: str, changes: dict[str, Any], judges_at: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(judges_at / place, tmp_path / place)
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **changes}))
    with pytest.raises(ModelError, match=re.escape(str(folder))):
        _ = ClipFeatures(find_clip(folder), CPU) if place == "clip" else DinoFeatures(find_dino(folder), CPU)


def test_judges_that_do_not_work_are_told_of_before_anything_is_drawn(
    tiny_model: StableDiffusion, judges_at: Path, tmp_path: Path, references: list[Path]
) -> None:
    folder = shutil.copytree(judges_at / "dino", tmp_path / "dino")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_std": [0.2, 0.2]}))
    with pytest.raises(ModelError, match="cannot be used together"):
        evaluate(tiny_model, token(), references, PLAN, Judges(None, find_dino(folder)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_can_not_name_code_to_fetch(judges_at: Path, tmp_path: Path, references: list[Path]) -> None:
    folder = shutil.copytree(judges_at / "clip", tmp_path / "clip")
    for name in ("config.json", "preprocessor_config.json"):
        more = {
            "auto_map": {"AutoModel": "nobody/code--model.Model"},
            "attn_implementation": "nobody/kernel",
            "_attn_implementation": "nobody/kernel",
            "image_processor_type": "Other",
        }
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **more}))
    assert torch.equal(seen(find_clip(folder), references), seen(find_clip(judges_at / "clip"), references))


# ---------------------------------------------------------------- what is asked for


def test_the_sets_are_those_of_the_dataset() -> None:
    assert len(set(LIVING)) == len(set(OBJECT)) == 25
    assert set(LIVING) & set(OBJECT) == {*LIVING[:10], *LIVING[-5:]}
    assert all(prompt.count("{}") == 1 for prompts in PROMPT_SETS.values() for prompt in prompts)
    assert (default_set("sd1"), default_set("sdxl"), default_set("tiny")) == ("object", "object", "tiny")


def test_prompts_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeffa {} here\r\n\n  a {}  there \na {} here\n", encoding="utf-8")
    assert prompts_of(str(file)) == ("a {} here", "a {} there")
    for text, told in (("", "0 prompts"), ("a dog\n", "no place for the subject"), ("a {} x\n" * 2_000_000, "MB")):
        file.write_text(text)
        with pytest.raises(CaptionError, match=told):
            prompts_of(str(file))
    file.write_text("\n".join(f"{{}} {i}" for i in range(501)))
    with pytest.raises(CaptionError, match="501 prompts; give 1 to 500"):
        prompts_of(str(file))
    with pytest.raises(ConfigError, match="choose living, object"):
        prompts_of(str(tmp_path / "none.txt"))


def test_the_class_word_is_the_one_given_or_the_initializer() -> None:
    assert evaluation.class_word_of(token(initializer="dog")) == "dog"
    assert evaluation.class_word_of(token(initializer="dog"), " stuffed  animal ") == "stuffed animal"
    for given in ("", "a {}", "x" * 300):
        with pytest.raises(ConfigError, match="class word"):
            evaluation.class_word_of(token(), given)


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"seeds": 0}, ConfigError, "seeds = 0"),
        ({"seeds": 257}, ConfigError, "seeds = 257"),
        ({"num_inference_steps": 0}, ConfigError, "steps = 0"),
        ({"guidance_scale": 101.0}, ConfigError, "guidance = 101"),
        ({"prompts": ("a {} " + "very " * 100,)}, CaptionError, "the model reads"),
        ({"prompts": ()}, ConfigError, "0 prompts"),
    ],
)
def test_bad_settings_are_found_before_anything_is_drawn(
    changes: dict[str, Any],
    kind: type[Exception],
    told: str,
    tiny_model: StableDiffusion,
    judges: Judges,
    references: list[Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(kind, match=told):
        evaluate(tiny_model, token(), references, replace(PLAN, **changes), judges, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_inputs_are_found_before_anything_is_drawn(
    tiny_model: StableDiffusion, judges: Judges, references: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for embedding, pictures, told in (
        (token(width=768), references, "width 768"),
        (token(), [], "no reference images"),
        (token(), [*references, tmp_path / "bad.png"], "take it out"),
    ):
        with pytest.raises((EmbeddingFileError, ImagesError), match=told):
            evaluate(tiny_model, embedding, pictures, PLAN, judges, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_called_like_the_token_but_never_leads_out(tmp_path: Path) -> None:
    for name, called in (
        ("<rex>", "rex"),
        ("../../x", "x"),
        ("<con>", "token"),
        ("/", "token"),
        ("y" * 500, "y" * 120),
    ):
        assert evaluation.folder_for(tmp_path, token(name)) == tmp_path / called
        assert evaluation.folder_for(tmp_path, token(name), "12ab") == tmp_path / f"{called}-12ab"
    (tmp_path / "rex").symlink_to(tmp_path.parent, target_is_directory=True)
    with pytest.raises(PathError, match="is a link"):
        evaluation.folder_for(tmp_path, token("<rex>"))


# ---------------------------------------------------------------- the report


def test_the_report_has_the_table_the_figures_and_a_sheet(
    done: tuple[Evaluation, Path], references: list[Path], drawn: Path
) -> None:
    found = done[0]
    sheet = write_report(found, references, drawn)
    assert sheet == drawn / SHEET
    with Image.open(sheet) as picture:
        assert (picture.width, picture.height) == (606, 482)  # three references
    data = json.loads((drawn / JSON).read_text())
    assert data["evaluation_version"] == 1
    assert data["after"] == vars(found.after)
    assert data["plan"]["prompts"] == list(PROMPTS)
    text = (drawn / MARKDOWN).read_text(encoding="utf-8")
    assert "| before: the word `monster` |" in text
    assert f"| after: the token `<boo>` | {found.after.clip_t:.3f} | {found.after.clip_i:.3f} |" in text
    assert "| `a {} at the beach` |" in text
    assert "3 reference images; 2 prompts, 2 images of each" in text
    lines = as_text(found).splitlines()
    assert lines[0].split() == ["CLIP-T", "CLIP-I", "DINO", "DINO_inter"]
    assert lines[2].split()[-1] == f"{found.after.dino_inter:.3f}"
    assert lines[3].split()[-4:] == ["-", f"{found.ceiling.clip_i:.3f}", f"{found.ceiling.dino:.3f}", "-"]


def test_a_strangers_words_do_not_command_the_screen_or_the_page(
    done: tuple[Evaluation, Path], references: list[Path], drawn: Path
) -> None:
    plan = replace(PLAN, class_word="a | b `c` <img>", prompts=("x \x1b[2J {}", "|{}"))
    odd = replace(done[0], token="<\x1b]0;x\x07" + "y" * 100_000, plan=plan)
    assert "\x1b" not in as_text(odd) + as_markdown(odd)
    assert "before: the word `a / b 'c' <img>`" in as_markdown(odd)
    assert len(as_text(odd)) < 2000
    write_report(replace(odd, token="<\udc80" + "\n" * 900 + "猫>"), references, drawn)


def test_the_sheet_shows_eight_prompts_of_all_parts_or_seeds_of_one(done: tuple[Evaluation, Path]) -> None:
    from zoodip_core.evaluate.report import _columns

    many = replace(done[0], plan=EvaluationPlan(OBJECT, "dog", seeds=4, first_seed=7))
    assert _columns(many) == [(i, 7) for i in (0, 3, 6, 9, 12, 15, 18, 21)]
    one = replace(done[0], plan=EvaluationPlan(("a {}",), "dog", seeds=50))
    assert [seed for _, seed in _columns(one)] == [0, 6, 12, 18, 25, 31, 37, 43]


# ---------------------------------------------------------------- the command


@pytest.fixture
def command(judges_at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A good command line; the folder it is given in is empty."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    save_embedding(token(initializer="monster"), tmp_path / "boo.safetensors")
    return [
        *("evaluate", "--embedding", "boo.safetensors", "--images", str(concepts.load("kiwi").images)),
        *("--clip", str(judges_at / "clip"), "--dino", str(judges_at / "dino")),
        *("--prompts", "prompts.txt", "--seeds", "1", "--steps", "1"),
    ]


def test_the_command_scores_a_token(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    folder = Path("evaluations/boo")
    assert out.splitlines()[-1] == str(folder / SHEET)
    assert "before: the word monster" in out
    assert "drawing 100%" in err
    assert (folder / MARKDOWN).is_file()
    assert {path.name for path in folder.glob("*/*.png")} == {"prompt001-seed0.png", "prompt002-seed0.png"}
    assert cli.main([*command, "--until", "0.5"]) == 0  # beside it, in a folder of its own
    assert capsys.readouterr().out.splitlines()[-1] == str(folder.with_name("boo-until-0.5") / SHEET)
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / JSON).read_text())


def test_ctrl_c_stops_and_the_same_command_goes_on(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = screen.Stages.__call__

    def interrupted(self: Any, stage: str, done: int, total: int) -> None:
        shown(self, stage, done, total)
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(screen.Stages, "__call__", interrupted)
        assert cli.main(command) == 1
    assert "the same command resumes it" in capsys.readouterr().err
    assert not Path("evaluations/boo/evaluation.md").exists()
    asked = count_drawn(monkeypatch)
    assert cli.main(command) == 0
    assert 0 < len(asked) < 4


def test_the_commands_errors(command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def told(*options: str) -> str:
        assert cli.main([*command, *options]) == 2
        return capsys.readouterr().err

    (tmp_path / "empty").mkdir()
    save_embedding(token(), tmp_path / "wordless.safetensors")
    save_embedding(token(width=768, initializer="dog"), tmp_path / "sd1.safetensors")
    assert "seeds = 0: must be from 1" in told("--seeds", "0")
    assert "until = 2: must be above 0" in told("--until", "2")
    assert "no JPEG, PNG or WebP image" in told("--images", "empty")
    assert "does not exist" in told("--images", "gone")
    assert "--class dog" in told("--embedding", "wordless.safetensors")
    assert "the model needs 128" in told("--embedding", "sd1.safetensors")
    assert "hf download facebook/dinov2-base" in told("--dino", "gone")
    assert "choose living, object" in told("--prompts", "dogs")
    assert not (tmp_path / "evaluations").exists()


def test_what_is_missing_is_told_before_anything_is_drawn(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = command.index("--dino")
    asked = count_drawn(monkeypatch)
    assert cli.main([*command[: at - 2], *command[at + 2 :]]) == 2
    assert capsys.readouterr().err.count("hf download") == 2
    assert asked == []
    assert cli.main([*command[:at], *command[at + 2 :]]) == 0
    out, err = capsys.readouterr()
    assert "warning: facebook/dinov2-base" in err
    assert "left out: DINO and DINO_inter" in out


def test_the_embedded_models_own_prompts_are_its_default(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = command.index("--prompts")
    asked: list[EvaluationPlan] = []

    def noted(model: Any, embedding: Any, references: Any, plan: EvaluationPlan, *_: Any) -> Any:
        asked.append(plan)
        raise ConfigError("enough")

    monkeypatch.setattr("zoodip_core.cli.evaluate.evaluate", noted)
    assert cli.main([*command[:at], *command[at + 2 :]]) == 2
    assert asked[0].prompts == PROMPT_SETS["tiny"]
