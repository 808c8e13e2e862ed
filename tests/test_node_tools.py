"""Convert Embedding, Merge Embeddings and Nearest Words: their files, their refusals, their reports."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fake_host import FakeHost
from tests.fake_model import WIDTH, FakeModel
from tests.test_node_embeddings import learned, same


def core(name: str) -> Any:
    return importlib.import_module(f"zoodip_pack.zoodip_core.{name}")


def node(pack: Any, kind: str) -> Any:
    return pack.NODE_CLASS_MAPPINGS[f"Zoodip{kind}"]()


def convert(pack: Any, embedding: Any, to: str, filename: str = "", overwrite: bool = False, **more: Any) -> Any:
    return node(pack, "ConvertEmbedding").convert(embedding, to, filename, overwrite, **more)


# ---------------------------------------------------------------- Convert Embedding


def test_every_format_is_offered(pack: Any, host: FakeHost) -> None:
    offered = node(pack, "ConvertEmbedding").INPUT_TYPES()["required"]["format"][0]
    assert sorted(offered) == sorted(core("model.conversion").FORMATS)


@pytest.mark.parametrize("to", ["a1111-pt", "diffusers-bin", "diffusers-safetensors", "onetrainer", "safetensors"])
@pytest.mark.parametrize("widths", [(768,), (768, 1280)])
def test_files_hold_the_token(pack: Any, host: FakeHost, to: str, widths: tuple[int, ...]) -> None:
    embedding = learned(widths=widths, vectors=2)
    paths, report = convert(pack, embedding, to)["result"]
    files = [Path(line) for line in paths.splitlines()]
    assert len(files) == (2 if widths == (768, 1280) and "diffusers" in to else 1)
    assert {file.parent for file in files} == {host.root / "output" / "embeddings"}
    assert report.splitlines()[: len(files)] == [file.name for file in files]
    load, joined = core("model.embedding").load_embedding, core("model.conversion").joined
    assert same(joined([load(file) for file in files]), embedding)


def test_two_halves_become_one_token(pack: Any, host: FakeHost) -> None:
    whole = learned(widths=(768, 1280))
    halves = [type(whole)("<boo>", (rows,)) for rows in whole.tensors]
    (path, _) = convert(pack, halves[1], "safetensors", second_half=halves[0])["result"]
    assert same(core("model.embedding").load_embedding(path), whole)
    with pytest.raises(ValueError, match="of width 768 in one file and 1280 in the other"):
        convert(pack, halves[1], "safetensors", second_half=halves[1])


def test_other_files_stay_unless_they_may_go(pack: Any, host: FakeHost) -> None:
    """A pair has one number."""
    folder = host.root / "output" / "embeddings" / "pets"
    folder.mkdir(parents=True)
    (folder / "rex_2.bin").write_bytes(b"mine")
    embedding = learned(widths=(768, 1280))
    for _ in range(2):  # the same again makes no further file
        (paths, _) = convert(pack, embedding, "diffusers-bin", "pets/rex")["result"]
        assert [Path(line).name for line in paths.splitlines()] == ["rex-2.bin", "rex-2_2.bin"]
    assert sorted(file.name for file in folder.iterdir()) == ["rex-2.bin", "rex-2_2.bin", "rex_2.bin"]
    assert (folder / "rex_2.bin").read_bytes() == b"mine"
    convert(pack, embedding, "diffusers-bin", "pets/rex.bin", overwrite=True)
    assert (folder / "rex_2.bin").read_bytes() != b"mine"


def test_a_lost_file_is_written_again(pack: Any, host: FakeHost) -> None:
    kind = type(node(pack, "ConvertEmbedding"))
    paths = convert(pack, learned(widths=(768, 1280)), "diffusers-bin", unique_id="7")["result"][0].splitlines()
    before = kind.IS_CHANGED("7")
    assert kind.IS_CHANGED("7") == before
    Path(paths[1]).unlink()
    assert kind.IS_CHANGED("7") != before


def test_what_is_not_kept_is_said_and_what_cannot_be_is_refused(pack: Any, host: FakeHost) -> None:
    report = convert(pack, learned(), "diffusers-bin")["result"][1]
    assert "not kept, for the format has no place for it: steps" in report
    flux = type(learned())("<x>", (torch.ones(1, 768), torch.ones(1, 4096)), encoders=("clip_l", "t5xxl"))
    with pytest.raises(ValueError, match="a1111-pt cannot hold <x> for Flux"):
        convert(pack, flux, "a1111-pt")
    assert [file.name for file in (host.root / "output").rglob("*.*")] == ["boo.bin"]


def test_files_stay_in_their_folder(pack: Any, host: FakeHost) -> None:
    for filename in ("../evil", "/tmp/evil", "a\\..\\..\\evil", "a:b"):
        assert str(type(node(pack, "ConvertEmbedding")).VALIDATE_INPUTS(filename)).startswith("filename: ")
        with pytest.raises(ValueError, match=r"^filename: "):
            convert(pack, learned(), "a1111-pt", filename)
    assert type(node(pack, "ConvertEmbedding")).VALIDATE_INPUTS("pets/rex") is True


# ---------------------------------------------------------------- Merge Embeddings


def merge(pack: Any, one: Any, other: Any, method: str, token: str = "<new>", weights: Any = (0.5, 0.5)) -> Any:
    return node(pack, "MergeEmbeddings").merge(one, other, method, *weights, token)


def test_two_tokens_become_one(pack: Any) -> None:
    one, other = learned("<a>", 1, vectors=2), learned("<b>", 2, vectors=2)
    mean, report = merge(pack, one, other, "weighted mean", " <new> ", (3.0, 1.0))
    torch.testing.assert_close(mean.vectors, 0.75 * one.vectors + 0.25 * other.vectors)
    assert mean.token == "<new>"
    assert "made of: mean of 3 <a>, 1 <b>" in report
    both, report = merge(pack, one, other, "one after the other")
    assert torch.equal(both.vectors, torch.cat([one.vectors, other.vectors]))
    assert "made of: vectors of <a>, <b>" in report


def test_what_cannot_be_merged_is_refused(pack: Any) -> None:
    with pytest.raises(ValueError, match="only tokens of one model family can be merged"):
        merge(pack, learned(), learned(widths=(1024,)), "weighted mean")
    with pytest.raises(ValueError, match="not all 0"):
        merge(pack, learned(), learned(), "weighted mean", weights=(0.0, 0.0))
    with pytest.raises(ValueError, match="holds parts of a path"):
        merge(pack, learned(), learned(), "weighted mean", "a/b")
    kind = type(node(pack, "MergeEmbeddings"))
    assert str(kind.VALIDATE_INPUTS("a/b")).startswith("token: 'a/b' holds parts of a path")
    assert kind.VALIDATE_INPUTS("<new>") is kind.VALIDATE_INPUTS(None) is True


def test_of_several_tokens_none_is_taken_without_a_word(pack: Any, host: FakeHost) -> None:
    several, one = (learned("<a>", 1), learned("<b>", 2)), learned("<c>", 3)
    message = r"^{}: holds 2 tokens \(<a>, <b>\), and this node takes one; .* Load Embedding"
    with pytest.raises(ValueError, match=message.format("embedding")):
        convert(pack, several, "a1111-pt")
    with pytest.raises(ValueError, match=message.format("second_half")):
        convert(pack, one, "a1111-pt", second_half=several)
    with pytest.raises(ValueError, match=message.format("embedding_2")):
        merge(pack, one, several, "weighted mean")
    with pytest.raises(ValueError, match=message.format("embedding")):
        node(pack, "NearestWords").find(several, FakeModel(), 3)
    assert not list(host.output_folder().rglob("*.pt"))


# ---------------------------------------------------------------- Word as Embedding


def test_a_word_is_merged_with_a_token(pack: Any, host: FakeHost) -> None:
    model = FakeModel()
    (vocabulary,) = model.vocabularies()
    toy = vocabulary.rows([4])
    (word,) = node(pack, "WordAsEmbedding").give(model, " toy ", 2)
    assert (word.token, word.tensors[0].tolist()) == ("toy", [toy[0].tolist()] * 2)
    token = type(word)("<x>", (-toy.repeat(2, 1),))
    made, report = merge(pack, token, word, "weighted mean", weights=(0.25, 0.75))
    torch.testing.assert_close(made.tensors[0], 0.5 * toy.repeat(2, 1))
    assert "0.25 <x>, 0.75 toy" in report


def test_a_word_that_is_none_is_refused(pack: Any) -> None:
    kind = type(node(pack, "WordAsEmbedding"))
    assert kind.VALIDATE_INPUTS(word=" ").startswith("word: ")
    assert kind.VALIDATE_INPUTS(word=None) is kind.VALIDATE_INPUTS(word="dog") is True


# ---------------------------------------------------------------- Nearest Words


def test_the_nearest_words_are_shown(pack: Any, host: FakeHost) -> None:
    model = FakeModel()
    (vocabulary,) = model.vocabularies()
    toy = vocabulary.rows([4])
    given = {"embedding": type(learned())("<x>", (torch.cat([toy, 30 * toy]),)), "model": model, "words": 3}
    shown = node(pack, "NearestWords").find(**given)
    (report,) = shown["result"]
    assert shown["ui"]["text"] == [report]
    lines = report.splitlines()
    assert [line.startswith("vector") for line in lines] == [True, False, False, False] * 2
    assert lines[1].split() == ["toy", "cosine", "1.000", "distance", "0.00"]
    with pytest.raises(ValueError, match=f"embedding does not fit model: .* has width 768.*needs {WIDTH}"):
        node(pack, "NearestWords").find(learned(), model, 3)
