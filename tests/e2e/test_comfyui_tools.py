"""Convert Embedding, Merge Embeddings and Nearest Words in a real ComfyUI over its HTTP API; see :mod:`.comfyui`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.comfyui import ComfyUI, NodeError, Prompt
from tests.e2e.slim_sd15 import write_sd15
from tests.e2e.test_comfyui_api import SD15, TINY, drawn, same, write_token
from zoodip_core.model.conversion import FORMATS, joined
from zoodip_core.model.embedding import load_embedding, save_embedding
from zoodip_core.model.load import load_quantized
from zoodip_core.model.nearest import places_of, told

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def comfy() -> Iterator[ComfyUI]:
    with ComfyUI() as server:
        write_sd15(server.base / "models" / "checkpoints" / SD15)
        for seed, (name, widths) in enumerate(
            {"rex": (768,), "pip": (768,), "big": (768, 1280), "wee": (128,)}.items()
        ):
            write_token(server, name, *widths, seed=seed)
        yield server


def loaded(comfy: ComfyUI, *names: str) -> Prompt:
    return {name: comfy.node("ZoodipLoadEmbedding", file=f"{name}.safetensors") for name in names}


def converted(comfy: ComfyUI, name: str, to: str, **more: Any) -> list[Path]:
    """The files that the node says it has written."""
    node = comfy.node("ZoodipConvertEmbedding", embedding=[name, 0], format=to, **more)
    entry = comfy.run({**loaded(comfy, name), "converted": node})
    lines = entry["outputs"]["converted"]["text"]
    folder = comfy.base / "output" / "embeddings"
    return [path for line in lines if (path := folder / line).is_file()]


@pytest.mark.parametrize("to", FORMATS)
def test_comfyui_draws_the_same_with_a_token_in_another_format(comfy: ComfyUI, to: str) -> None:
    by_ours = drawn(comfy, "a photo of embedding:rex on a hill")
    (file,) = converted(comfy, "rex", to, filename=f"for-{to}")
    shutil.copy(file, comfy.base / "models" / "embeddings")
    assert same(drawn(comfy, f"a photo of embedding:for-{to} on a hill"), by_ours)
    assert not same(drawn(comfy, "a photo of a on a hill"), by_ours)


def test_a_pair_of_files_comes_back_as_one_token(comfy: ComfyUI) -> None:
    files = converted(comfy, "big", "diffusers-bin")
    assert [file.name for file in files] == ["big.bin", "big_2.bin"]
    whole = load_embedding(comfy.base / "models" / "embeddings" / "big.safetensors")
    assert all(map(torch.equal, joined([load_embedding(file) for file in files]).tensors, whole.tensors))
    for file in files:
        shutil.copy(file, comfy.base / "models" / "embeddings")
    prompt = {name: comfy.node("ZoodipLoadEmbedding", file=f"{name}.bin") for name in ("big", "big_2")}
    halves = {"embedding": ["big_2", 0], "second_half": ["big", 0]}
    prompt["converted"] = comfy.node("ZoodipConvertEmbedding", format="safetensors", filename="sub/again", **halves)
    comfy.run(prompt)
    again = load_embedding(comfy.base / "output" / "embeddings" / "sub" / "again.safetensors")
    assert all(map(torch.equal, again.tensors, whole.tensors))


def test_a_deleted_file_is_written_again(comfy: ComfyUI) -> None:
    for _ in range(2):
        (file,) = converted(comfy, "pip", "a1111-pt")
        file.unlink()


def test_a_name_that_leads_out_is_refused(comfy: ComfyUI) -> None:
    node = comfy.node("ZoodipConvertEmbedding", embedding=["rex", 0], format="a1111-pt", filename="../evil")
    name = comfy.node("PrimitiveString", value="../evil")
    prompt = {**loaded(comfy, "rex"), "name": name, "converted": node}
    prompt["converted"]["inputs"]["filename"] = ["name", 0]  # known only when it runs
    with pytest.raises(NodeError, match="holds parts of a path") as failed:
        comfy.run(prompt)
    assert failed.value.node == "converted"
    assert not list(comfy.base.rglob("evil*"))


def test_a_merged_token_is_applied_and_saved(comfy: ComfyUI) -> None:
    both = {"embedding_1": ["rex", 0], "embedding_2": ["pip", 0], "token": "<both>"}
    one_after_the_other = {
        **loaded(comfy, "rex", "pip"),
        "merged": comfy.node("ZoodipMergeEmbeddings", method="one after the other", **both),
        "applied": comfy.node("ZoodipApplyEmbedding", clip=["checkpoint", 1], embedding=["merged", 0]),
    }
    by_merged = drawn(comfy, "a <both> here", clip=("applied", 0), **one_after_the_other)
    assert same(by_merged, drawn(comfy, "a embedding:rex embedding:pip here"))
    mean = comfy.node("ZoodipMergeEmbeddings", method="weighted mean", weight_1=3.0, weight_2=1.0, **both)
    saved = comfy.node("ZoodipSaveEmbedding", embedding=["merged", 0])
    comfy.run({**loaded(comfy, "rex", "pip"), "merged": mean, "saved": saved})
    folder = comfy.base / "models" / "embeddings"
    rex, pip, both_read = (load_embedding(folder / f"{name}.safetensors") for name in ("rex", "pip", "both"))
    torch.testing.assert_close(both_read.vectors, 0.75 * rex.vectors + 0.25 * pip.vectors)
    assert both_read.metadata["made_of"] == "mean of 3 <rex>, 1 <pip>"


def test_tokens_of_two_families_are_not_merged(comfy: ComfyUI) -> None:
    node = comfy.node("ZoodipMergeEmbeddings", embedding_1=["rex", 0], embedding_2=["big", 0], token="<both>")
    with pytest.raises(NodeError, match=r"<rex> is for Stable Diffusion 1\.x, <big> is for Stable Diffusion XL"):
        comfy.run({**loaded(comfy, "rex", "big"), "merged": node, "saved": saved_node(comfy)})


def saved_node(comfy: ComfyUI) -> dict[str, Any]:
    return comfy.node("ZoodipSaveEmbedding", embedding=["merged", 0])


def nearest(comfy: ComfyUI, name: str, model: Prompt) -> str:
    node = comfy.node("ZoodipNearestWords", embedding=[name, 0], model=["model", 0], words=3)
    entry = comfy.run({**loaded(comfy, name), **model, "nearest": node})
    (report,) = entry["outputs"]["nearest"]["text"]
    return str(report)


def test_the_nearest_words_of_a_model_of_ours(comfy: ComfyUI) -> None:
    (vocabulary,) = load_quantized("tiny").vocabularies()
    ids = {name: i for i, name in vocabulary.names.items()}
    file = comfy.base / "models" / "embeddings" / "wee.safetensors"
    token = load_embedding(file)
    token.tensors[0][:] = vocabulary.rows([ids["horns"]])
    save_embedding(token, file)
    report = nearest(comfy, "wee", {"model": comfy.node("ZoodipLoadQuantizedSD", checkpoint=TINY)})
    assert report.splitlines() == told(places_of(token, [vocabulary], 3), [vocabulary])
    assert report.splitlines()[1].split() == ["horns", "cosine", "1.000", "distance", "0.00"]


def test_the_nearest_words_are_the_same_by_comfyuis_clip(comfy: ComfyUI) -> None:
    """Of a word of the checkpoint's, by ComfyUI's own text encoder."""
    file = comfy.base / "models" / "checkpoints" / SD15
    model = load_quantized(file, weights="none", dtype="float32", device="cpu", cache=None)
    (vocabulary,) = model.vocabularies()
    ids = {name: i for i, name in vocabulary.names.items()}
    token = load_embedding(comfy.base / "models" / "embeddings" / "pip.safetensors")
    token.tensors[0][:] = 2 * vocabulary.rows([ids["horns"]])
    save_embedding(token, comfy.base / "models" / "embeddings" / "word.safetensors")
    links = {name: ["checkpoint", i] for i, name in enumerate(("model", "clip", "vae"))}
    theirs: Prompt = {
        "checkpoint": comfy.node("CheckpointLoaderSimple", ckpt_name=SD15),
        "model": comfy.node("ZoodipModelFromComfyUI", **links),
    }
    report = nearest(comfy, "word", theirs)
    assert report.splitlines() == told(places_of(token, [vocabulary], 3), [vocabulary])
    assert report.splitlines()[1].split()[0] == "horns"
