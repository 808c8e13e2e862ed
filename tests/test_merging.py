"""Embeddings made of others, and the words that one is near."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoodip_core.base.errors import ConfigError, EmbeddingFileError, TokenError
from zoodip_core.cli.main import main
from zoodip_core.model.embedding import Embedding, describe, load_embedding, save_embedding
from zoodip_core.model.merging import concatenation, notes_on, of_word, weighted_mean
from zoodip_core.model.nearest import places, places_of, told
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_table import table_of
from zoodip_core.model.words import Vocabulary


def learned(
    token: str, *widths: int, vectors: int = 2, seed: int = 0, encoders: tuple[str, ...] = (), **metadata: str
) -> Embedding:
    noise = torch.Generator().manual_seed(seed)
    tensors = tuple(torch.randn(vectors, width, generator=noise) for width in widths or (768,))
    return Embedding(token, tensors, metadata, encoders=encoders)


REX, PIP, BOO = learned("<rex>", seed=1), learned("<pip>", seed=2), learned("<boo>", seed=3)


# ---------------------------------------------------------------- mean


@pytest.mark.parametrize("widths", [(768,), (768, 1280)])
def test_the_mean_is_weighted(widths: tuple[int, ...]) -> None:
    given = [learned(f"<{i}>", *widths, seed=i) for i in range(3)]
    for weights in ((0.7, 0.3, 0.0), (7.0, 3.0, 0.0), (1.0, 2.0, 3.0), ()):
        made = weighted_mean(given, "<new>", weights)
        assert made.token == "<new>"
        for i, rows in enumerate(made.tensors):
            stacked = np.stack([each.tensors[i].double().numpy() for each in given])
            expected = np.average(stacked, axis=0, weights=weights or (1, 1, 1)).astype(np.float32)
            np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-6)
            assert rows.dtype == torch.float32


def test_a_token_is_its_own_mean_to_the_last_bit() -> None:
    for weights in ((1.0, 0.0), (0.7, 0.3), (1 / 3, 1 / 7)):
        assert torch.equal(weighted_mean([REX, REX], "<new>", weights).tensors[0], REX.tensors[0])


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), (-0.5, 1.5), (0.0, 0.0), (math.nan, 1.0), (1e308, 1e308)])
def test_weights_that_make_no_mean(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        weighted_mean([REX, PIP], "<new>", weights)


def test_a_mean_of_different_numbers_of_vectors() -> None:
    with pytest.raises(EmbeddingFileError, match=r"<rex> has 2, <one> has 1; .*--concatenate"):
        weighted_mean([REX, learned("<one>", vectors=1)], "<new>")


# ---------------------------------------------------------------- one after the other


def test_vectors_stand_one_after_the_other() -> None:
    one, two = learned("<a>", 768, 1280, vectors=1), learned("<b>", 768, 1280, vectors=3, seed=1)
    made = concatenation([two, one], "<new>")
    assert made.num_vectors == 4
    for i, rows in enumerate(made.tensors):
        assert torch.equal(rows[:3], two.tensors[i])
        assert torch.equal(rows[3:], one.tensors[i])


def test_more_vectors_than_a_prompt_holds() -> None:
    many = learned("<a>", vectors=38)
    assert concatenation([many, learned("<b>", vectors=37)], "<new>").num_vectors == 75
    with pytest.raises(EmbeddingFileError, match="76 vectors are more than the 75"):
        concatenation([many, many], "<new>")


# ---------------------------------------------------------------- what belongs together


@pytest.mark.parametrize("merge", [weighted_mean, concatenation])
@pytest.mark.parametrize(
    ("other", "told"),
    [
        (learned("<x>", 1024), "<rex> is for Stable Diffusion 1.x, <x> is for Stable Diffusion 2.x"),
        (learned("<x>", 768, 1280), "<rex> is for Stable Diffusion 1.x, <x> is for Stable Diffusion XL"),
        (learned("<x>", 768, encoders=("t5base",)), "<rex> is for Stable Diffusion 1.x, <x> is for Stable Audio"),
    ],
)
def test_tokens_of_different_models_are_refused_by_name(merge: Any, other: Embedding, told: str) -> None:
    with pytest.raises(EmbeddingFileError, match=re.escape(told)):
        merge([REX, other], "<new>")
    with pytest.raises(EmbeddingFileError, match="needs two embeddings or more"):
        merge([REX], "<new>")


def test_an_unnamed_text_encoder_is_taken_for_the_named_one() -> None:
    """As everywhere: files of diffusers' name none."""
    named, unnamed = learned("<a>", 4096, encoders=("t5xxl",)), learned("<b>", 4096)
    assert concatenation([unnamed, named], "<new>").encoders == ("t5xxl",)
    with pytest.raises(EmbeddingFileError, match="only tokens of one model family"):
        concatenation([unnamed, named, learned("<c>", 4096, encoders=("umt5xxl",))], "<new>")


def test_the_file_says_what_it_is_made_of(tmp_path: Path) -> None:
    here = {"base_model": "v1-5", "initializer": "dog", "steps": "5"}
    rex, pip = (
        replace(REX, metadata=here, alias="rex"),
        replace(PIP, metadata={**here, "initializer": "cat"}, alias="x"),
    )
    made = load_embedding(save_embedding(weighted_mean([rex, pip], "<new>", (0.7, 0.3)), tmp_path))
    shown = dict(describe(made))
    assert shown["made of"] == "mean of 0.7 <rex>, 0.3 <pip> of x"
    assert shown["base model"] == "v1-5"
    assert not {"initializer", "steps"} & set(made.metadata)
    assert dict(describe(concatenation([rex, pip], "<new>")))["made of"] == "vectors of <rex>, <pip> of x"
    assert notes_on([rex, pip]) == []
    other = replace(pip, metadata={"base_model": "anything-v5"})
    assert "different models of one family (anything-v5, v1-5)" in notes_on([rex, other])[0]
    assert "base_model" not in weighted_mean([rex, other], "<new>").metadata


def test_the_merge_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(save_embedding(each, tmp_path)) for each in (REX, PIP, BOO)]
    assert main(["merge", *files[:2], "--weights", "0.7", "0.3", "--as", "<both>"]) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "both.safetensors") in shown
    assert "made of: mean of 0.7 <rex>, 0.3 <pip>" in shown
    read = load_embedding(tmp_path / "both.safetensors")
    assert torch.equal(read.vectors, weighted_mean([REX, PIP], "", (0.7, 0.3)).vectors)
    again = ["merge", *files, "--concatenate", "--as", "<both>"]
    assert main(again) == 2
    assert "both.safetensors is there already" in capsys.readouterr().err
    assert main([*again, "--output", str(tmp_path / "all.safetensors")]) == 0
    assert load_embedding(tmp_path / "all.safetensors").num_vectors == 6
    assert main(["merge", *files, "--as", "a/b"]) == 2
    assert "holds parts of a path" in capsys.readouterr().err
    assert main([*again, "--output", str(tmp_path / "all.pt")]) == 2
    assert "merge writes a .safetensors file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*again, "--weights", "1", "1", "1"])
    assert "not allowed with argument --concatenate" in capsys.readouterr().err


# ---------------------------------------------------------------- with a word


def words_of(model: StableDiffusion, *words: str) -> np.ndarray:
    """Their rows in the text encoder's own table, by the tokenizer's own vocabulary."""
    (encoder,), (tokenizer,) = model.text_encoders, model.tokenizers
    ids = tokenizer.get_vocab()
    return np.asarray(table_of(encoder).rows([ids[f"{word}</w>"] for word in words]), dtype=np.float64)


def test_a_word_is_what_the_model_has_for_it(tiny_model: StableDiffusion) -> None:
    one, two = of_word(tiny_model, "monster"), of_word(tiny_model, "snow monster", 3)
    np.testing.assert_array_equal(one.tensors[0].double().numpy(), words_of(tiny_model, "monster"))
    np.testing.assert_allclose(
        two.tensors[0].double().numpy(), [words_of(tiny_model, "snow", "monster").mean(axis=0)] * 3, rtol=1e-6
    )
    assert one.token == "monster"
    with pytest.raises(TokenError, match="unknown"):
        of_word(tiny_model, "")


def test_a_token_is_moved_towards_a_word(
    tmp_path: Path, tiny_model: StableDiffusion, capsys: pytest.CaptureFixture[str]
) -> None:
    width = tiny_model.info.dims[0]
    rex = learned("<rex>", width, vectors=2, seed=1)
    given = [str(save_embedding(rex, tmp_path)), "--word", "monster", "--model", "tiny", "--as", "<soft>"]
    assert main(["merge", *given, "--weights", "0.25", "0.75"]) == 0
    made = load_embedding(tmp_path / "soft.safetensors")
    expected = 0.25 * rex.tensors[0].double().numpy() + 0.75 * words_of(tiny_model, "monster")
    np.testing.assert_allclose(made.tensors[0].numpy(), expected, rtol=1e-6)
    assert "mean of 0.25 <rex>, 0.75 monster" in capsys.readouterr().out

    assert main(["merge", *given, "--concatenate", "--overwrite"]) == 0
    assert load_embedding(tmp_path / "soft.safetensors").num_vectors == 4


def test_a_word_that_cannot_be_had_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rex = str(save_embedding(REX, tmp_path))
    assert main(["merge", rex, "--word", "monster", "--as", "<soft>"]) != 0
    assert "--word needs --model PATH" in capsys.readouterr().err
    assert main(["merge", rex, "--model", "tiny", "--as", "<soft>"]) != 0
    assert "--model names whose --word" in capsys.readouterr().err
    assert main(["merge", rex, "--word", "monster", "--model", "tiny", "--as", "<soft>"]) != 0
    assert "--model tiny" in capsys.readouterr().err
    assert not (tmp_path / "soft.safetensors").exists()


# ---------------------------------------------------------------- nearest words


def by_hand(vectors: np.ndarray, table: np.ndarray, count: int) -> list[tuple[float, float, list[Any]]]:
    """Length, distance and the nearest words (number, cosine, distance) of each vector, by NumPy."""
    mean = table.mean(axis=0)
    size = np.sqrt(((table - mean) ** 2).sum(axis=1).mean())
    usual = np.sqrt((table**2).sum(axis=1).mean())
    found = []
    for vector in vectors:
        own = vector - mean
        cosines = (table - mean) @ own / np.linalg.norm(table - mean, axis=1) / np.linalg.norm(own)
        first = np.argsort(-cosines)[:count]
        near = [(int(i), cosines[i], np.linalg.norm(table[i] - vector) / size) for i in first]
        found.append((np.linalg.norm(vector) / usual, np.linalg.norm(own) / size, near))
    return found


def test_places_against_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces that do not fill up."""
    monkeypatch.setattr("zoodip_core.model.words._ROWS", 7)
    noise = np.random.default_rng(0)
    table = noise.normal(0.3, 1, (40, 6)).astype(np.float32)
    vectors = noise.normal(0, 3, (3, 6)).astype(np.float32)
    ids = {i + 100: f"word{i}" for i in range(40)}
    vocabulary = Vocabulary("clip_l", ids, lambda some: torch.from_numpy(table[[i - 100 for i in some]]))
    expected = by_hand(vectors.astype(np.float64), table.astype(np.float64), 4)
    for place, (length, distance, near) in zip(places(torch.from_numpy(vectors), vocabulary, 4), expected, strict=True):
        assert place.length == pytest.approx(length, rel=1e-6)
        assert place.distance == pytest.approx(distance, rel=1e-6)
        assert [each.word for each in place.words] == [f"word{i}" for i, *_ in near]
        np.testing.assert_allclose([each[1:] for each in place.words], [each[1:] for each in near], rtol=1e-6)
    assert len(places(torch.from_numpy(vectors), vocabulary, 1000)[0].words) == 40


def test_each_text_encoder_has_its_lines() -> None:
    table = torch.eye(4)
    both = [Vocabulary(name, {0: "a", 1: "bcd"}, lambda ids: table[list(ids)]) for name in ("clip_l", "clip_g")]
    embedding = Embedding("<x>", (table[:2] * 2, table[:2]))
    lines = told(places_of(embedding, both, 1), both)
    assert [line for line in lines if line.startswith("vector")] == [
        "vector 1, clip_l: 2.00 times as long as words, 2.24 times as far from their mean",
        "vector 1, clip_g: 1.00 times as long as words, 1.00 times as far from their mean",
        "vector 2, clip_l: 2.00 times as long as words, 2.24 times as far from their mean",
        "vector 2, clip_g: 1.00 times as long as words, 1.00 times as far from their mean",
    ]
    assert lines[1] == "  a  cosine 0.894  distance 1.41"
    assert lines[7] == "  bcd  cosine 1.000  distance 0.00"


def test_a_word_is_its_own_nearest(
    tmp_path: Path, tiny_model: StableDiffusion, capsys: pytest.CaptureFixture[str]
) -> None:
    (vocabulary,) = tiny_model.vocabularies()
    ids = {name: i for i, name in vocabulary.names.items()}
    rows = vocabulary.rows([ids["horns"], ids["snow"]])
    file = str(save_embedding(Embedding("<two>", (rows,)), tmp_path))
    assert main(["nearest", file, "--model", "tiny", "--words", "2"]) == 0
    shown = capsys.readouterr().out
    assert "<two> among the words of tiny" in shown
    first, _, second, *_ = [line.split() for line in shown.splitlines() if "cosine" in line]
    assert first == ["horns", "cosine", "1.000", "distance", "0.00"]
    assert second == ["snow", "cosine", "1.000", "distance", "0.00"]
    assert main(["nearest", file, "--model", "tiny", "--words", "0"]) == 2
    assert "--words 0: must be from 1 to 1000" in capsys.readouterr().err
    other = str(save_embedding(REX, tmp_path))
    assert main(["nearest", other, "--model", "tiny"]) == 2
    assert "--model tiny: the embedding '<rex>' has width 768" in capsys.readouterr().err
