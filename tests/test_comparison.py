"""Tokens side by side: the rows' pictures, their labels, and what cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from safetensors.torch import save_file

from tests.fake_model import FakeModel
from zoodip_core import generate
from zoodip_core.base.errors import ConfigError, EmbeddingFileError
from zoodip_core.base.stopping import Stopped, stopped_by
from zoodip_core.cli.main import main
from zoodip_core.data.sheets import sheet_of, wrapped
from zoodip_core.model.embedding import Embedding, load_embedding, save_embedding
from zoodip_core.model.frames import frames_of
from zoodip_core.model.lora import Lora, load_lora, lora_of, save_lora
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.train.comparison import Compared, Comparison, comparison_sheet, draw, shares_in, until_each

TARGET = "a {} in the snow"


def token(name: str = "<rex>", seed: int = 0, width: int = 128, **config: Any) -> Embedding:
    """One of a run with these settings; of nobody knows what if there are none."""
    vector = 0.3 * torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
    return Embedding(name, (vector,), {"config": json.dumps(config)} if config else {})


def aligned(strength: float, seed: int = 0, target: str | None = TARGET) -> Embedding:
    return token(seed=seed, alignment=strength, target_prompt=target)


def compared(*embeddings: Embedding, **more: Any) -> Comparison:
    return Comparison([Compared(each) for each in embeddings], **{"seeds": range(2), "num_inference_steps": 2, **more})


def pixels(pictures: Sequence[Image.Image]) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


# ---------------------------------------------------------------- the rows


def test_each_row_is_what_generate_draws_with_its_token_alone(tiny_model: StableDiffusion) -> None:
    """Though all have the same name: the word first, then the tokens in their order, to the last bit."""
    tokens = [aligned(0.0, 1), aligned(0.3, 2)]
    told: list[tuple[int, int]] = []
    rows = draw(tiny_model, compared(*tokens, seeds=(7, 3), word=" monster "), lambda *done: told.append(done))
    texts = [("a monster in the snow", None), (TARGET, tokens[0]), (TARGET, tokens[1])]
    for (_, drawn), (text, embedding) in zip(rows, texts, strict=True):
        expected = generate(tiny_model, [text] * 2, [7, 3], embedding=embedding, num_inference_steps=2)
        np.testing.assert_array_equal(pixels(drawn), pixels(expected))
    assert [label for label, _ in rows] == ['the word\n"monster"', "<rex>\nalignment 0", "<rex>\nalignment 0.3"]
    assert told == [(done, 6) for done in range(1, 7)]


def test_a_row_with_a_lora_is_drawn_with_it_alone(tiny_model: StableDiffusion) -> None:
    lora = weights(tiny_model)
    plain, learned = Compared(token()), Compared(token(), lora=lora)
    with_it, without = draw(tiny_model, Comparison([learned, plain], [0], num_inference_steps=2))
    (expected,) = generate(tiny_model, ["a photo of a {}"], [0], embedding=token(), num_inference_steps=2)
    np.testing.assert_array_equal(pixels(without[1]), pixels([expected]))
    assert not np.array_equal(pixels(with_it[1]), pixels(without[1]))
    assert (with_it[0], without[0]) == ("<rex>\nwith its LoRA", "<rex>")


def test_each_token_is_drawn_with_each_share_of_the_steps(tiny_model: StableDiffusion) -> None:
    rex = replace(token(), metadata={"initializer": "monster"})
    rows = draw(tiny_model, Comparison(until_each([Compared(rex)], [1.0, 0.5]), [0], num_inference_steps=2))
    assert [label for label, _ in rows] == ["<rex>", "<rex>\nuntil 0.5"]
    for (_, drawn), until in zip(rows, (1.0, 0.5), strict=True):
        expected = generate(tiny_model, ["a photo of a {}"], [0], embedding=rex, num_inference_steps=2, until=until)
        np.testing.assert_array_equal(pixels(drawn), pixels(expected))
    told: list[tuple[int, int]] = []
    for rows_of, message in (([rex], "until = 2"), ([rex, token()], "until = 0.5: <rex> does not say which word")):
        shares = [1.0, 2.0] if len(rows_of) == 1 else [0.5]
        asked = Comparison(until_each([Compared(each) for each in rows_of], shares), [0], num_inference_steps=2)
        with pytest.raises(ConfigError, match=message):
            draw(tiny_model, asked, lambda *done: told.append(done))
    assert told == []  # before the first row


def test_shares_of_the_steps_are_read_from_a_text() -> None:
    assert shares_in("1, 0.8;0.6 ") == [1.0, 0.8, 0.6]
    assert shares_in(" ") == [1.0]
    with pytest.raises(ConfigError, match="until = 'half': write shares"):
        shares_in("half")


def weights(model: StableDiffusion) -> Lora:
    frames = frames_of(model.unet, 4)
    return lora_of(frames, torch.ones(frames.numbers), {})


def test_any_model_draws_a_comparison() -> None:
    small = [token(f"<{name}>", seed, width=6) for seed, name in enumerate("ab")]
    (_, one), (_, other) = draw(FakeModel(), compared(*small, prompt="<a> in the snow"))
    assert len(one) == len(other) == 2
    assert pixels(one).tolist() != pixels(other).tolist()


def test_settings_reach_the_drawing(tiny_model: StableDiffusion) -> None:
    ((_, drawn),) = draw(tiny_model, compared(token(), guidance_scale=2.0, resolution=32))
    expected = generate(
        tiny_model,
        ["a photo of a {}"] * 2,
        [0, 1],
        embedding=token(),
        num_inference_steps=2,
        guidance_scale=2.0,
        resolution=32,
    )
    np.testing.assert_array_equal(pixels(drawn), pixels(expected))


def test_a_stop_is_answered_in_the_middle(tiny_model: StableDiffusion) -> None:
    told: list[int] = []
    with pytest.raises(Stopped), stopped_by(lambda: len(told) >= 3):
        draw(tiny_model, compared(token(), token(seed=1)), lambda done, _: told.append(done))
    assert told == [1, 2, 3]


# ---------------------------------------------------------------- the prompt


@pytest.mark.parametrize(
    ("given", "tokens", "expected"),
    [
        ("", [token()], "a photo of a {}"),
        (
            "",
            [token(), aligned(0.1, target=None), aligned(0.1, target=" a sketch of <rex>; a {} at night")],
            "a sketch of {}",
        ),
        ("", [aligned(0.1, target="no place")], "a photo of a {}"),
        ("a {} and a <rex>", [token()], "a {} and a <rex>"),
        ("a <rex> or <rex-2>", [token(), token("<rex-2>")], "a {} or {}"),
        ("a rex-2", [token("rex"), token("rex-2")], "a {}"),
        ("", [token(alignment=[1], target_prompt=3)], "a photo of a {}"),
    ],
)
def test_the_prompt_has_a_place_for_each_row_s_token(given: str, tokens: list[Embedding], expected: str) -> None:
    assert compared(*tokens, prompt=given).text == expected


# ---------------------------------------------------------------- labels


def test_labels_tell_rows_apart() -> None:
    rows = [
        Compared(aligned(0.1), "rex"),
        Compared(aligned(1), "rex-2"),
        Compared(aligned(1.0, target=None), "rex"),
        Compared(token(), "rex"),
        Compared(token(), "rex"),
        Compared(token("<pip>\x1b[2J"), "strange\nname"),
    ]
    assert Comparison(rows, [0]).labels == [
        "<rex>\nalignment 0.1",
        "<rex>\nalignment 1\nrex-2",
        "<rex>\nalignment 0",
        "<rex>\nno. 4",
        "<rex>\nno. 5",
        "<pip>?[2J\nstrange?name",
    ]


@pytest.mark.parametrize("strange", [10**400, float("nan"), -1, "1", None])
def test_a_file_may_say_anything_of_its_alignment(strange: Any) -> None:
    tokens = [token(alignment=strange, target_prompt=TARGET), aligned(0.5)]
    assert compared(*tokens).labels == ["<rex>", "<rex>\nalignment 0.5"]


def test_without_a_target_prompt_nothing_is_said_of_alignment() -> None:
    assert compared(aligned(1.0, target=None), token("<pip>")).labels == ["<rex>", "<pip>"]


@pytest.mark.parametrize("text", ["<" + "W" * 150 + ">", "two words " * 30, "犬" * 90, "", " ", "a\n\nb"])
@pytest.mark.parametrize("width", [134, 10])
def test_a_wrapped_text_keeps_its_width_and_height(text: str, width: int) -> None:
    font, lines = ImageFont.load_default(13), wrapped(text, width, 8)
    assert len(lines) <= 8
    if width > 100:
        assert all(font.getlength(line) <= width for line in lines)
        if not lines or not lines[-1].endswith(" ..."):
            assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_label_of_any_length_stays_beside_its_row() -> None:
    """The pictures are black, and nothing is written into them or beyond them."""
    black = Image.new("RGB", (64, 64))
    sheet = sheet_of([("W" * 900, [black] * 2), ("x\n" * 40, [black] * 2)], ["seed 0", "seed 1"], "prompt " * 200, 100)
    found = np.asarray(sheet.convert("L"))
    rows, columns = np.nonzero(found[:, 150:] == 0)
    boxes = [found[y : y + 100, x : x + 100] for y in (sheet.height - 106, sheet.height - 212) for x in (150, 256)]
    assert all(not box.any() for box in boxes)
    assert (found[-212:, 146:150] == 255).all()
    assert (found[-6:] == 255).all()
    assert columns.max() + 150 < sheet.width - 5
    assert rows.min() > 5


def test_the_sheet_says_what_it_shows(tiny_model: StableDiffusion) -> None:
    tokens = [aligned(0.0, 1), aligned(0.3, 2)]
    sheet = comparison_sheet(tiny_model, compared(*tokens))
    rows = draw(tiny_model, compared(*tokens))
    assert sheet.tobytes() == sheet_of(rows, ["seed 0", "seed 1"], TARGET, 240).tobytes()
    shown = np.asarray(sheet)[-240 - 6 : -6, 150:390]
    np.testing.assert_array_equal(shown[2::5, 2::5], pixels(rows[1][1])[0])  # five pixels for one


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("comparison", "told"),
    [
        (compared(), "0 tokens to compare: must be from 1 to 32"),
        (compared(*[token()] * 33), "33 tokens to compare"),
        (compared(token(), seeds=()), "count = 0: must be from 1 to 16"),
        (compared(token(), seeds=range(17)), "count = 17"),
        (compared(token(), prompt="a dog"), "prompt: 'a dog' has no place for the tokens; write {} where"),
        (compared(token(), word="{}"), "word '{}': give a plain word"),
        (compared(token(), num_inference_steps=0), "steps = 0"),
        (compared(token(), guidance_scale=-1), "guidance = -1"),
    ],
)
def test_what_can_not_be_drawn_is_said(tiny_model: StableDiffusion, comparison: Comparison, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        draw(tiny_model, comparison)
    assert told in str(refused.value)


def test_all_is_looked_at_before_the_first_row_is_drawn(tiny_model: StableDiffusion) -> None:
    told: list[Any] = []
    last = Compared(token(width=768), "other")
    with pytest.raises(EmbeddingFileError, match=r"token 2 \(other\): .*'<rex>' has width 768"):
        draw(tiny_model, Comparison([Compared(token()), last], [0]), lambda *done: told.append(done))
    with pytest.raises(ValueError, match="the model reads 24"):
        draw(tiny_model, compared(token(), prompt="{} " + "very " * 30), lambda *done: told.append(done))
    with pytest.raises(ValueError, match="the model reads 24"):
        draw(tiny_model, compared(token(), word="very " * 30), lambda *done: told.append(done))
    assert told == []


# ---------------------------------------------------------------- the command


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: StableDiffusion) -> list[str]:
    """Two runs' tokens of one name, and a model that is loaded already."""
    monkeypatch.setattr("zoodip_core.cli.arguments.load_quantized", lambda *args, **kwargs: tiny_model)
    folders = [tmp_path / "runs" / name for name in ("rex", "rex-2")]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True)
        save_embedding(aligned(seed / 10, seed), folder / "rex.safetensors")
    return [str(folder / "rex.safetensors") for folder in folders]


def test_the_command_writes_the_sheet(
    files: list[str], tmp_path: Path, tiny_model: StableDiffusion, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "sheet.png"
    more = ["--seed", "3", "--count", "2", "--steps", "2", "--word", "monster", "--guidance", "2"]
    assert main(["compare", *files, *more, "--output", str(output)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{output}\n"
    assert f"prompt: {TARGET}" in told.err
    rows = [Compared(load_embedding(file), name) for file, name in zip(files, ("rex/rex", "rex-2/rex"), strict=True)]
    expected = comparison_sheet(tiny_model, Comparison(rows, [3, 4], "", "monster", 2, 2.0))
    assert Image.open(output).tobytes() == expected.tobytes()


def test_the_command_takes_files_of_several_tokens_and_loras_beside_them(
    files: list[str], tmp_path: Path, tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = tmp_path / "several.safetensors"
    save_file({"<a>": torch.zeros(1, 128), "<b>": torch.ones(1, 128)}, several)
    lora = save_lora(weights(tiny_model), tmp_path / "runs" / "rex-2" / "rex-lora.safetensors")
    drawn: list[Comparison] = []

    def sheet(_model: StableDiffusion, asked: Comparison) -> Image.Image:
        drawn.append(asked)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr("zoodip_core.train.comparison.comparison_sheet", sheet)
    output = ["--output", str(tmp_path / "sheet.png")]
    for more in ([], ["--with-loras"]):
        assert main(["compare", *files, str(several), *more, *output]) == 0
    without, with_them = drawn
    assert [each.embedding.token for each in with_them.compared] == ["<rex>", "<rex>", "<a>", "<b>"]
    assert [each.lora is not None for each in with_them.compared] == [False, True, False, False]
    assert with_them.compared[1].lora
    assert with_them.compared[1].lora.layers.keys() == load_lora(lora).layers.keys()
    assert all(each.lora is None for each in without.compared)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--count", "0"], "--count 0: must be from 1 to 16"),
        (["--output", "sheet.jpg"], "--output sheet.jpg: the sheet is a PNG"),
        (["--with-loras"], "--with-loras: there is no"),
        (["--prompt", "a dog"], "has no place for the tokens"),
        (["nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["--steps", "0"], "steps = 0"),
    ],
)
def test_the_command_says_what_is_wrong(
    files: list[str],
    more: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", *files, *more]) == 2
    assert told in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
