"""Embedding files: ours in diffusers' own loader, other tools' in ours, bytes and damage."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zoodip_core import Embedding, load_embedding, save_embedding
from zoodip_core.base.errors import EmbeddingFileError, StorageError, TokenError
from zoodip_core.model.embedding import check_fits, describe, serialize


def an_embedding(num_vectors: int = 2, dim: int = 768) -> Embedding:
    vectors = torch.randn(num_vectors, dim, generator=torch.Generator().manual_seed(1))
    return Embedding("<pip>", (vectors,), {"initializer": "monster", "steps": "30", "base_model": "tiny"})


def test_one_float_tensor_named_by_the_token(tmp_path: Path) -> None:
    embedding = an_embedding()
    path = save_embedding(embedding, tmp_path)
    assert path == tmp_path / "pip.safetensors"
    tensors = load_file(path)
    assert list(tensors) == ["<pip>"]  # any tensor more breaks A1111, Forge and diffusers
    assert tensors["<pip>"].dtype == torch.float32
    assert torch.equal(tensors["<pip>"], embedding.tensors[0])
    read = load_embedding(path)
    assert read.token == "<pip>"
    assert torch.equal(read.tensors[0], embedding.tensors[0])
    assert read.metadata["initializer"] == "monster"
    assert not list(tmp_path.glob(".*"))


def test_sdxl_is_clip_l_and_clip_g(tmp_path: Path) -> None:
    path = save_embedding(Embedding("<pip>", (torch.ones(1, 768), torch.ones(1, 1280))), tmp_path)
    assert {key: list(t.shape) for key, t in load_file(path).items()} == {"clip_l": [1, 768], "clip_g": [1, 1280]}
    read = load_embedding(path)
    assert read.family == "sdxl"
    assert read.token == "<pip>"


def test_same_embedding_same_bytes_in_every_process() -> None:
    code = (
        "import hashlib, torch; from zoodip_core import Embedding; from zoodip_core.model.embedding import serialize;"
        "e = Embedding('<a>', (torch.arange(12.).view(2, 6),), {c: c for c in 'qwertyuiop'});"
        "print(hashlib.sha256(serialize(e)).hexdigest())"
    )
    here = Embedding("<a>", (torch.arange(12.0).view(2, 6),), {c: c for c in "qwertyuiop"})
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == hashlib.sha256(serialize(here)).hexdigest()


def test_header_stays_aligned_and_readable() -> None:
    data = serialize(an_embedding())
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])


def test_diffusers_loads_our_file(tmp_path: Path, tiny_model: Any) -> None:
    from diffusers import StableDiffusionPipeline

    from zoodip_core.model.kinds import TINY_PATH

    vectors = torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    path = save_embedding(Embedding("<pip>", (vectors,)), tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(TINY_PATH, safety_checker=None, local_files_only=True)
    pipeline.load_textual_inversion(str(path))
    ids = pipeline.tokenizer(pipeline.maybe_convert_prompt("a <pip>", pipeline.tokenizer)).input_ids
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert len(ids) == 5  # start, "a", two vectors, end
    torch.testing.assert_close(table[ids[2:4]], vectors.to(table.dtype), atol=1e-3, rtol=1e-3)


def test_diffusers_sees_the_token_as_we_do(tmp_path: Path, tiny_model: Any) -> None:
    """The text encoding of a prompt with the token, by diffusers' own way and by ours."""
    from diffusers import StableDiffusionPipeline

    from zoodip_core.model.generation import encode_text
    from zoodip_core.model.kinds import TINY_PATH
    from zoodip_core.model.load import load_quantized

    embedding = Embedding("<pip>", (torch.randn(3, 128, generator=torch.Generator().manual_seed(1)),))
    path = save_embedding(embedding, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(TINY_PATH, safety_checker=None, local_files_only=True)
    pipeline.text_encoder.float()
    pipeline.load_textual_inversion(str(path))
    theirs, _ = pipeline.encode_prompt("a photo of <pip> in the snow", "cpu", 1, False)
    with torch.no_grad():
        ours = encode_text(load_quantized(weights="none"), "a photo of <pip> in the snow", embedding)
    torch.testing.assert_close(ours.hidden, theirs, atol=1e-4, rtol=1e-4)


def a1111_file(path: Path, vectors: torch.Tensor) -> None:
    """As A1111's textual inversion tab writes it."""
    torch.save(
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": vectors},
            "name": "pip",
            "step": 1500,
            "sd_checkpoint": "cc6cb27103",
            "sd_checkpoint_name": "v1-5-pruned-emaonly",
        },
        path,
    )


def test_reads_a1111_pt(tmp_path: Path) -> None:
    vectors = torch.randn(3, 768)
    a1111_file(tmp_path / "a.pt", vectors)
    read = load_embedding(tmp_path / "a.pt")
    assert read.token == "pip"
    assert torch.equal(read.tensors[0], vectors)
    assert read.metadata["base_model"] == "v1-5-pruned-emaonly"
    assert read.metadata["steps"] == "1500"


def test_reads_the_first_textual_inversion_files(tmp_path: Path) -> None:
    vectors = torch.randn(1, 768)
    table = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": table}, tmp_path / "embeddings.pt")
    read = load_embedding(tmp_path / "embeddings.pt")
    assert torch.equal(read.tensors[0], vectors)
    assert not read.tensors[0].requires_grad


@pytest.mark.parametrize("shape", [(768,), (1, 768)])
def test_reads_diffusers_bin(tmp_path: Path, shape: tuple[int, ...]) -> None:
    vectors = torch.randn(shape, dtype=torch.float16)
    torch.save({"<cat>": vectors}, tmp_path / "learned_embeds.bin")
    read = load_embedding(tmp_path / "learned_embeds.bin")
    assert read.token == "<cat>"
    assert read.tensors[0].shape == (1, 768)
    assert torch.equal(read.tensors[0], vectors.float().view(1, 768))


def test_reads_other_tools_safetensors(tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(2, 1024, dtype=torch.bfloat16)}, tmp_path / "style.safetensors")
    read = load_embedding(tmp_path / "style.safetensors")
    assert read.token == "<style>"
    assert read.family == "sd2"
    assert read.tensors[0].dtype == torch.float32


def test_code_in_a_pickle_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    torch.save({"string_to_param": {"*": Bomb()}}, tmp_path / "evil.pt")
    with pytest.raises(EmbeddingFileError, match="never run"):
        load_embedding(tmp_path / "evil.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.ones(1, 8), "step": torch.ones(1)}, "holds 2 tensors"),
        ({"a": torch.ones(1, 2, 3)}, "not the float"),
        ({"a": torch.ones(1, 8, dtype=torch.int32)}, "not the float"),
        ({"a": torch.full((1, 8), torch.nan)}, "NaN"),
        ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(2, 1280)}, "differ"),
        ({"a": torch.ones(0, 8)}, "not the float"),
    ],
)
def test_what_is_no_embedding_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(EmbeddingFileError, match=message):
        load_embedding(tmp_path / "x.safetensors")


def test_every_truncation_is_refused_cleanly(tmp_path: Path) -> None:
    data = serialize(an_embedding(1, 16))
    path = tmp_path / "cut.safetensors"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(EmbeddingFileError, match="cut"):
            load_embedding(path)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_embedding(an_embedding(), tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        save_embedding(an_embedding(5), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_token_that_can_not_name_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="path"):
        save_embedding(Embedding("../up", (torch.ones(1, 8),)), tmp_path)


def test_describe_and_fit() -> None:
    lines = dict(describe(an_embedding()))
    assert lines["token"] == "<pip>"
    assert lines["for"] == "Stable Diffusion 1.x"
    assert lines["vectors"] == "2 (2 x 768)"
    check_fits(an_embedding(), (768,), "here")
    with pytest.raises(EmbeddingFileError, match="width 768"):
        check_fits(an_embedding(), (1024,), "here")
