"""Tokens of models beyond Stable Diffusion: a tensor for each text encoder, by ComfyUI's names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zoodip_core import Embedding, load_embedding, save_embedding
from zoodip_core.base.errors import EmbeddingFileError
from zoodip_core.cli.main import main
from zoodip_core.model.embedding import check_fits, describe, load_embeddings, serialize
from zoodip_core.model.kinds import ENCODERS, in_order, names_of

FORMATS = Path(__file__).parent / "formats" / "version1"


def rows(width: int, vectors: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(vectors, width, generator=torch.Generator().manual_seed(seed)) * 0.1


def learned(*encoders: str, vectors: int = 2, token: str = "<rex>") -> Embedding:
    tensors = tuple(rows(ENCODERS[name], vectors, place) for place, name in enumerate(encoders))
    return Embedding(token, tensors, {"steps": "30"}, encoders=names_of((name, ENCODERS[name]) for name in encoders))


def same(one: Embedding, other: Embedding) -> bool:
    pairs = zip(one.tensors, other.tensors, strict=True)
    return (one.token, one.encoders) == (other.token, other.encoders) and all(torch.equal(a, b) for a, b in pairs)


MODELS = [
    (("clip_l", "t5xxl"), "Flux.1"),
    (("clip_l", "clip_g", "t5xxl"), "Stable Diffusion 3 and 3.5"),
    (("t5xxl",), "Chroma"),
    (("qwen3_4b",), "Z-Image and Flux.2 Klein 4B"),
    (("qwen3_8b",), "Flux.2 Klein 9B"),
    (("mistral3_24b",), "Flux.2 dev"),
    (("qwen25_7b",), "Qwen-Image"),
    (("umt5xxl",), "Wan"),
    (("gemma2_2b",), "Lumina 2"),
    (("qwen3_06b",), "Anima"),
    (("clip_g",), "Stable Cascade"),
    (("clip_l", "clip_g", "t5xxl", "llama"), "HiDream"),
]


@pytest.mark.parametrize(("encoders", "model"), MODELS)
def test_a_token_has_a_tensor_for_each_text_encoder(
    encoders: tuple[str, ...], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedding = learned(*encoders)
    path = save_embedding(embedding, tmp_path)
    assert {key: (list(rows.shape), rows.dtype) for key, rows in load_file(path).items()} == {
        name: ([2, ENCODERS[name]], torch.float32) for name in encoders
    }
    read = load_embedding(path)
    assert same(read, embedding)
    assert serialize(read) == path.read_bytes() == serialize(embedding)
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    assert model in shown
    assert f"text encoders  {' + '.join(encoders)}\n" in shown
    assert f"2 ({' + '.join(f'2 x {ENCODERS[name]}' for name in encoders)})" in shown


@pytest.mark.parametrize("name", ["rex.safetensors", "rex-sdxl.safetensors"])
def test_files_of_stable_diffusion_have_the_bytes_they_had(name: str) -> None:
    read = load_embedding(FORMATS / name)
    assert read.encoders == ()
    assert serialize(read) == (FORMATS / name).read_bytes()
    assert "text encoders" not in dict(describe(read))


def test_the_order_is_not_the_file_s(tmp_path: Path) -> None:
    parts = {name: rows(ENCODERS[name]) for name in ("t5xxl", "llama", "clip_g", "clip_l")}
    torch.save(parts, tmp_path / "a.bin")
    read = load_embedding(tmp_path / "a.bin")
    assert read.encoders == ("clip_l", "clip_g", "t5xxl", "llama")
    assert all(torch.equal(parts[name], each) for name, each in zip(read.encoders, read.tensors, strict=True))
    assert in_order([("new", 8), ("t5xxl", 4096), ("a", 8), ("clip_l", 768)]) == (
        ("clip_l", 768),
        ("t5xxl", 4096),
        ("a", 8),
        ("new", 8),
    )


def test_stable_diffusion_s_encoders_go_without_names() -> None:
    assert names_of([("clip_l", 768)]) == names_of([("clip_h", 1024)]) == ()
    assert names_of([("clip_g", 1280), ("clip_l", 768)]) == ()
    assert names_of([("qwen3_06b", 1024)]) == ("qwen3_06b",)
    assert names_of([("t5xxl", 4096), ("clip_l", 768)]) == ("clip_l", "t5xxl")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize(
    ("names", "encoders"),
    [
        ({"clip_l": "clip_l", "t5": "t5xxl"}, ("clip_l", "t5xxl")),
        ({"t5": "t5xxl"}, ("t5xxl",)),
        ({"t5": "t5xxl", "clip_g": "clip_g", "clip_l": "clip_l"}, ("clip_l", "clip_g", "t5xxl")),
        ({"bundle_emb.<rex>.clip_l": "clip_l", "bundle_emb.<rex>.t5": "t5xxl"}, ("clip_l", "t5xxl")),
    ],
)
def test_t5_by_the_name_that_onetrainer_and_diffusers_write(
    names: dict[str, str], encoders: tuple[str, ...], suffix: str, tmp_path: Path
) -> None:
    parts = {key: rows(ENCODERS[name], 2) for key, name in names.items()}
    path = tmp_path / f"rex{suffix}"
    if suffix == ".bin":
        torch.save(parts, path)
    else:
        save_file(parts, path)
    read = load_embedding(path)
    assert (read.token, read.encoders) == ("<rex>", encoders)
    assert torch.equal(read.tensors[-1], next(each for key, each in parts.items() if key.endswith("t5")))
    assert "t5xxl was called t5, which ComfyUI does not read" in dict(describe(read))["note"]
    again = load_embedding(save_embedding(read, tmp_path / "again.safetensors"))
    assert same(again, read)
    assert set(load_file(tmp_path / "again.safetensors")) == set(encoders)


@pytest.mark.parametrize("token", ["llama", "t5", "qwen3_06b", "t5xxl"])
@pytest.mark.parametrize("width", [768, 1024])
def test_a_word_of_stable_diffusion_s_is_no_text_encoder(token: str, width: int, tmp_path: Path) -> None:
    ours = save_embedding(Embedding(token, (rows(width),)), tmp_path)
    assert (load_embedding(ours).token, load_embedding(ours).encoders) == (token, ())
    if (token, width) in (("qwen3_06b", 1024), ("t5xxl", 1024), ("t5", 1024)):
        return  # in another program's file nothing tells the one from the other
    save_file({token: rows(width)}, tmp_path / "theirs.safetensors")
    assert (load_embedding(tmp_path / "theirs.safetensors").token, load_embedding(ours).encoders) == (token, ())


def test_words_of_stable_diffusion_s_in_a_pack(tmp_path: Path) -> None:
    save_file({"llama": rows(768), "cat": rows(768), "v1.t5": rows(768)}, tmp_path / "a.safetensors")
    found = {each.token: each.encoders for each in load_embeddings(tmp_path / "a.safetensors")}
    assert found == {"llama": (), "cat": (), "v1.t5": ()}


def test_a_pack_of_flux_tokens(tmp_path: Path) -> None:
    pairs = [("clip_l", 768), ("t5xxl", 4096)]
    save_file({f"{token}.{name}": rows(width) for token in "ab" for name, width in pairs}, tmp_path / "a.safetensors")
    found = load_embeddings(tmp_path / "a.safetensors")
    assert sorted((each.token, each.encoders) for each in found) == [
        ("a", ("clip_l", "t5xxl")),
        ("b", ("clip_l", "t5xxl")),
    ]
    save_file({"a.t5xxl": rows(4096), "b.umt5xxl": rows(4096)}, tmp_path / "b.safetensors")
    with pytest.raises(EmbeddingFileError, match="holds 2 tensors"):
        load_embeddings(tmp_path / "b.safetensors")


@pytest.mark.parametrize("names", [("brand_new",), ("clip_l", "brand_new"), ("brand_new", "newer")])
def test_text_encoders_that_came_later_are_told_by_the_header(names: tuple[str, ...], tmp_path: Path) -> None:
    tensors = tuple(rows(ENCODERS.get(name, 96)) for name in names)
    embedding = Embedding("<rex>", tensors, encoders=names)
    path = save_embedding(embedding, tmp_path)
    assert set(load_file(path)) == set(names)
    read = load_embedding(path)
    assert same(read, embedding)
    assert "another kind of model, with" in dict(describe(read))["for"]


def test_a_header_that_names_other_encoders_is_not_believed(tmp_path: Path) -> None:
    for stated in ("t5xxl", "clip_l+nothing", "<rex>", "x" * 500, "+"):
        save_file({"<rex>": rows(768)}, tmp_path / "a.safetensors", metadata={"encoders": stated})
        assert load_embedding(tmp_path / "a.safetensors").encoders == ()


def test_a_tensor_without_a_known_name_is_read_as_ever(tmp_path: Path) -> None:
    for width, said in ((4096, "UMT5 XXL, as in Wan"), (2560, "Qwen3, as in Z-Image"), (3584, "Qwen-Image")):
        save_file({"emb_params": rows(width)}, tmp_path / "a.safetensors")
        read = load_embedding(tmp_path / "a.safetensors")
        assert read.encoders == ()
        assert said in dict(describe(read))["for"]
        check_fits(read, (width,), "here", ("t5xxl",))  # it may be that


# ---------------------------------------------------------------- whether it fits


@pytest.mark.parametrize(
    ("embedding", "dims", "encoders"),
    [
        (learned("clip_l", "t5xxl"), (768, 4096), ("clip_l", "t5xxl")),
        (learned("t5xxl"), (4096,), ("t5xxl",)),
        (learned("clip_l"), (768,), ()),
        (learned("clip_l", "clip_g"), (768, 1280), ()),
        (learned("clip_h"), (1024,), ()),
        (Embedding("<a>", (rows(96),)), (96,), ("brand_new",)),
    ],
)
def test_a_token_fits_the_model_it_is_for(
    embedding: Embedding, dims: tuple[int, ...], encoders: tuple[str, ...]
) -> None:
    check_fits(embedding, dims, "here", encoders)


@pytest.mark.parametrize(
    ("embedding", "encoders", "said"),
    [
        (learned("umt5xxl"), ("t5xxl",), r"4096 \(for Wan\), the model needs 4096 \(t5xxl, for Chroma, .*\);"),
        (learned("t5xxl"), ("umt5xxl",), r"\(for Chroma, .*\), the model needs 4096 \(umt5xxl, for Wan\);"),
        (learned("t5xxl"), ("qwen3_8b",), r"the model needs 4096 \(qwen3_8b, for Flux.2 Klein 9B\);"),
        (learned("clip_h"), ("qwen3_06b",), r"\(for sd2\), the model needs 1024 \(qwen3_06b, for Anima\);"),
        (
            learned("clip_l"),
            ("clip_l", "t5xxl"),
            r"768 \(for sd1\), the model needs 768\+4096 \(clip_l\+t5xxl, for Flux",
        ),
        (learned("clip_l", "t5xxl"), ("clip_l", "clip_g", "t5xxl"), r"\(for Flux.1\), .* 768\+1280\+4096 .*3.5\);"),
    ],
)
def test_a_token_of_other_text_encoders_is_refused(embedding: Embedding, encoders: tuple[str, ...], said: str) -> None:
    with pytest.raises(EmbeddingFileError, match=rf"^here: the embedding '<rex>' has width .*{said}.* use it with"):
        check_fits(embedding, tuple(ENCODERS[name] for name in encoders), "here", encoders)


def test_the_encoders_of_stable_diffusion_are_known_without_names() -> None:
    with pytest.raises(EmbeddingFileError, match=r"1024 \(for Anima\), the model needs 1024;"):
        check_fits(learned("qwen3_06b"), (1024,), "here")


def test_the_family_is_not_told_by_a_width_alone() -> None:
    assert learned("qwen3_06b").family == "qwen3_06b"
    assert dataclasses.replace(learned("qwen3_06b"), encoders=()).family == "sd2"
