"""Single files of every family: what they are, and that they load as the modules they were written from.

The checkpoints are small and of random weights. What comes out of them is compared with diffusers' and transformers'
own modules, which never saw the file.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTokenizer

from zoodip_core.base.errors import ModelError
from zoodip_core.model import checkpoints
from zoodip_core.model.building import build, empty_network
from zoodip_core.model.checkpoints import Checkpoint
from zoodip_core.model.kinds import CLIP_PATH
from zoodip_core.model.load import load_quantized
from zoodip_core.model.quantize import QuantizedLayer
from zoodip_core.model.quantized_parts import Parts
from zoodip_core.model.recognise import identify, open_model
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_table import table_of
from zoodip_core.model.tokens import EncodedPrompt

FAMILIES = random_models.FAMILIES
DIMS = {"sd15": (768,), "sd21": (1024,), "sdxl": (768, 1280)}
CAPTION = "a photo of a {} on grass"
WORD = 40_000
"""A row of the embedding tables that is not in the caption."""
TIME_IDS = torch.tensor([96.0, 128.0, 0.0, 16.0, 128.0, 128.0])

# Relative errors. Measured on these models: UNet int8 0.034, float8 0.13, int4 0.50; layers as below or less.
UNET_ERROR = {"int8": 0.05, "float8": 0.2, "int4": 0.65}
TEXT_ERROR = {"int8": 0.03, "float8": 0.1, "int4": 0.35}
LAYER_ERROR = {"int8": 0.012, "float8": 0.035, "int4": 0.16}


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuses every connection, and fails the test that asked for one."""
    asked = []

    def refuse(*arguments: Any, **_named: Any) -> None:
        asked.append(arguments)
        raise OSError("no network")

    for where, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        monkeypatch.setattr(where, name, refuse)
    yield
    assert not asked


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Emptied after each test: the models would be gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@dataclass(frozen=True)
class Sample:
    """A family's modules, and the file they were written to."""

    family: str
    modules: dict[str, Any]
    file: Path

    @property
    def dims(self) -> tuple[int, ...]:
        return DIMS[self.family]


@dataclass(frozen=True)
class Truth:
    """What the modules say: of three candidates the texts and the UNet's output."""

    candidates: Tensor
    noisy: Tensor
    hidden: Tensor
    pooled: Tensor | None
    predicted: Tensor


@pytest.fixture(scope="module", params=["sd15", pytest.param("sd21", marks=pytest.mark.slow), "sdxl"])
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    family = request.param
    place = tmp_path_factory.mktemp(family)
    modules = random_models.build(family, "small", 1)
    file = random_models.write_ldm(place / "model.safetensors", modules, family)
    yield Sample(family, modules, file)
    shutil.rmtree(place)


@pytest.fixture(scope="module")
@torch.no_grad()
def truth(sample: Sample) -> Truth:
    generator = torch.Generator().manual_seed(2)
    candidates = 0.03 * torch.randn(3, 1, sum(sample.dims), generator=generator)
    noisy = torch.randn(1, 4, 16, 16, generator=generator)
    texts = [own_text(sample, candidate) for candidate in candidates]
    hidden = torch.cat([text for text, _ in texts])
    pooled = torch.cat([pool for _, pool in texts]) if sample.family == "sdxl" else None
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": TIME_IDS.expand(3, -1)}
    unet = sample.modules["unet"]
    predicted = unet(noisy.expand(3, -1, -1, -1), 500, hidden, added_cond_kwargs=added).sample
    return Truth(candidates, noisy, hidden, pooled, predicted)


@functools.cache
def tokenizer_of(pad: str) -> Any:
    return CLIPTokenizer.from_pretrained(CLIP_PATH, pad_token=pad)


def own_text(sample: Sample, candidate: Tensor) -> tuple[Tensor, Tensor]:
    """The caption by the modules' own text encoders, the candidate standing in their tables for a while."""
    outputs = []
    for i, vector in enumerate(candidate.split(sample.dims, dim=1)):
        encoder = sample.modules["text_encoder_2" if i else "text_encoder"]
        tokenizer = tokenizer_of("!" if i or sample.family == "sd21" else "<|endoftext|>")
        text = CAPTION.format("zebra")
        ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        ids[ids == tokenizer.convert_tokens_to_ids("zebra</w>")] = WORD
        assert (ids == WORD).sum() == 1
        table = encoder.get_input_embeddings().weight
        kept = table[WORD].clone()
        table[WORD] = vector
        outputs.append(encoder(ids, output_hidden_states=True))
        table[WORD] = kept
    if len(outputs) == 1:
        return outputs[0].last_hidden_state, torch.empty(0)
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1].text_embeds


@dataclass(frozen=True)
class Lean:
    """A family's modules with few words, which read no prompts, but are fast to write."""

    family: str
    modules: dict[str, Any]
    written: Path

    @torch.no_grad()
    def prediction(self, model: StableDiffusion) -> Tensor:
        """A model's output for two candidates in a prompt of a few of the words."""
        generator = torch.Generator().manual_seed(5)
        prompt = EncodedPrompt(torch.tensor([[98, 7, 3, 50, *[99] * 73]]), (2,), (range(1),))
        candidates = 0.03 * torch.randn(2, 1, sum(DIMS[self.family]), generator=generator)
        condition = model.encode((prompt,) * len(DIMS[self.family]), candidates)
        return model.predict(torch.randn(1, 4, 8, 8, generator=generator), 300, condition, TIME_IDS)

    def write(self, path: Path, **settings: Any) -> Path:
        """The model as a single file; a copy of what was written already if that is the same."""
        if settings or path.suffix != ".safetensors":
            return random_models.write_ldm(path, self.modules, self.family, **settings)
        if not self.written.exists():
            random_models.write_ldm(self.written, self.modules, self.family)
        return Path(shutil.copyfile(self.written, path))


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Lean]]:
    known: dict[str, Lean] = {}
    place = tmp_path_factory.mktemp("lean")

    def get(family: str) -> Lean:
        if family not in known:
            modules = random_models.build(family, "small", 4, vocab=100)
            known[family] = Lean(family, modules, place / f"{family}.safetensors")
        return known[family]

    yield get
    shutil.rmtree(place)


@torch.no_grad()
def predicted(model: StableDiffusion, truth: Truth) -> Tensor:
    """Our UNet's output for the candidates, on our text."""
    condition = model.encode(model.prompt(CAPTION, 1), truth.candidates)
    return model.predict(truth.noisy, 500, condition, TIME_IDS)


def error(ours: Tensor, true: Tensor) -> float:
    """Relative, of the whole tensor."""
    return ((ours.float() - true.float()).norm() / true.float().norm()).item()


def networks(model: StableDiffusion) -> dict[str, Any]:
    """A model's UNet and text encoders by name."""
    return {"unet": model.unet, **dict(zip(model.blueprint.text_parts, model.text_encoders, strict=True))}


def same_states(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two networks hold the same tensors, bit for bit."""
    ours, others = one.state_dict(), other.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def same(one: StableDiffusion, other: StableDiffusion) -> bool:
    """Whether two models that were not prompted yet are the same."""
    return all(same_states(network, networks(other)[part]) for part, network in networks(one).items())


# ---------------------------------------------------------------- the same numbers


@torch.no_grad()
def test_a_single_file_is_the_modules_it_was_written_from(sample: Sample, truth: Truth) -> None:
    model = load_quantized(sample.file, weights="none", dtype="float32", device="cpu")
    condition = model.encode(model.prompt(CAPTION, 1), truth.candidates)
    torch.testing.assert_close(condition.hidden, truth.hidden, rtol=1e-5, atol=1e-5)
    if truth.pooled is None:
        assert condition.pooled is None
    else:
        torch.testing.assert_close(condition.pooled, truth.pooled, rtol=1e-5, atol=1e-5)
    assert error(predicted(model, truth), truth.predicted) < 1e-5
    assert error(truth.predicted[0], truth.predicted[1]) > 1e-4  # the candidates matter


@torch.no_grad()
def test_both_halves_of_the_vae(sample: Sample) -> None:
    model = load_quantized(sample.file, weights="int4", dtype="float32", device="cpu")
    generator = torch.Generator().manual_seed(3)
    picture, latents = torch.randn(1, 3, 64, 64, generator=generator), torch.randn(1, 4, 8, 8, generator=generator)
    own = sample.modules["vae"]
    with model.vae("encoder") as vae:
        assert error(vae.encode(picture).latent_dist.mean, own.encode(picture).latent_dist.mean) < 1e-5
        assert vae.config.scaling_factor == own.config.scaling_factor
    with model.vae("decoder") as vae:
        assert error(vae.decode(latents).sample, own.decode(latents).sample) < 1e-5


@pytest.mark.parametrize(
    "sample",  # in the order of all, which share it
    ["sd15", *(pytest.param(family, marks=pytest.mark.slow) for family in ("sd21", "sdxl"))],
    indirect=True,
)
@pytest.mark.parametrize("weights", ["int8", pytest.param("float8", marks=pytest.mark.slow), "int4"])
@torch.no_grad()
def test_quantised_within_the_documented_errors(sample: Sample, truth: Truth, weights: str) -> None:
    model = load_quantized(sample.file, weights=weights, dtype="float32", device="cpu")
    for part, network in networks(model).items():
        own = dict(sample.modules[part].named_modules())
        layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, QuantizedLayer)}
        assert layers.keys() == {n for n, layer in own.items() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)}
        for name, layer in layers.items():
            assert error(layer.weight, own[name].weight) < LAYER_ERROR[weights], name
            assert (layer.bias is None) == (own[name].bias is None)
            assert layer.bias is None or torch.equal(layer.bias, own[name].bias), name
    condition = model.encode(model.prompt(CAPTION, 1), truth.candidates)
    assert error(condition.hidden, truth.hidden) < TEXT_ERROR[weights]
    if condition.pooled is not None and truth.pooled is not None:
        assert error(condition.pooled, truth.pooled) < 1.5 * TEXT_ERROR[weights]
    prediction = model.predict(truth.noisy, 500, condition, TIME_IDS)
    assert 0 < error(prediction, truth.predicted) < UNET_ERROR[weights]


def test_what_a_file_is(sample: Sample) -> None:
    info = identify(sample.file)
    family, resolution = {"sd15": ("sd1", 512), "sd21": ("sd2", 768), "sdxl": ("sdxl", 1024)}[sample.family]
    assert (info.family, info.dims, info.resolution) == (family, sample.dims, resolution)
    assert info.prediction_type == random_models.PREDICTION[sample.family]
    assert (info.name, info.path) == ("model", sample.file)
    blueprint = open_model(sample.file)
    for part, module in sample.modules.items():
        ours, own = blueprint.configs[part], module.config
        for key in ("block_out_channels", "layers_per_block", "cross_attention_dim", "scaling_factor"):
            if key in ours:
                assert ours[key] == (list(own[key]) if isinstance(own[key], tuple) else own[key]), key
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"):
            assert ours.get(key) == getattr(own, key, None), key


# ---------------------------------------------------------------- folders


@pytest.fixture
def folder(lean: Callable[[str], Lean], family: str, tmp_path: Path) -> Path:
    return random_models.write_diffusers(tmp_path / "folder", lean(family).modules, family)


@pytest.mark.parametrize(
    "family", ["sd15", pytest.param("sd21", marks=pytest.mark.slow), pytest.param("sdxl", marks=pytest.mark.slow)]
)
def test_a_diffusers_folder_is_the_same_model(
    lean: Callable[[str], Lean], family: str, folder: Path, tmp_path: Path
) -> None:
    file = lean(family).write(tmp_path / "folder.safetensors")
    assert replace(identify(folder), path=file) == identify(file)
    one, other = (load_quantized(path, weights="none", dtype="float32", device="cpu") for path in (folder, file))
    assert same(one, other)
    with one.vae("encoder") as ours, other.vae("encoder") as others:
        assert same_states(ours, others)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15"])
def test_a_folder_that_moved_keeps_its_copy(folder: Path, tmp_path: Path) -> None:
    before = load_quantized(folder, weights="int8", device="cpu", cache=tmp_path / "cache")
    expected = networks(before)
    moved = folder.rename(tmp_path / "moved")
    model = load_quantized(moved, weights="int8", device="cpu", cache=tmp_path / "cache")
    assert len(copies(tmp_path / "cache")) == 1
    assert all(same_states(network, expected[part]) for part, network in networks(model).items())
    assert all((place / "vocab.json").is_file() for place, _ in model.blueprint.tokenizers)


# ---------------------------------------------------------------- copies


def copies(folder: Path) -> set[str]:
    """The quantised copies in a folder, in which there must be nothing else but the index."""
    names = {path.name for path in folder.iterdir()}
    assert all(name.endswith(".safetensors") or name == "index.json" for name in names)
    return names - {"index.json"}


@pytest.mark.slow
def test_a_changed_config_makes_a_new_copy(lean: Callable[[str], Lean], tmp_path: Path) -> None:
    """The same weights, but a config beside them that says they predict velocity."""
    file, cache = lean("sd15").write(tmp_path / "model.safetensors"), tmp_path / "cache"
    assert cached(file, cache).prediction_type == "epsilon"
    file.with_suffix(".yaml").write_text('parameterization: "v"')
    assert cached(file, cache).prediction_type == "v_prediction"
    assert len(copies(cache)) == 2


def test_an_index_can_not_point_out_of_the_folder(lean: Callable[[str], Lean], tmp_path: Path) -> None:
    file, cache = lean("sd15").write(tmp_path / "model.safetensors"), tmp_path / "cache"
    cached(file, cache)
    index = json.loads((cache / "index.json").read_text())
    for entry in index.values():
        entry["key"] = "../../kept"
    (cache / "index.json").write_text(json.dumps(index))
    assert cached(file, cache).prediction_type == "epsilon"
    assert len(copies(cache)) == 1


def test_a_copy_names_no_parameter_as_one_version_alone_does(lean: Callable[[str], Lean], tmp_path: Path) -> None:
    """transformers 4 says text_model.encoder, its successor encoder: a copy serves both."""
    cached(lean("sd15").write(tmp_path / "model.safetensors"), tmp_path / "cache")
    (copy,) = copies(tmp_path / "cache")
    assert not [name for name in load_file(tmp_path / "cache" / copy) if "text_model." in name]


COPIES: list[Any] = [("sd15", "int4")]
COPIES += [
    pytest.param(*pair, marks=pytest.mark.slow)
    for pair in (("sd15", "int8"), ("sd21", "int4"), ("sdxl", "int8"), ("sdxl", "int4"))
]


@pytest.mark.parametrize(("family", "weights"), COPIES)
def test_a_quantised_copy_is_the_model(lean: Callable[[str], Lean], tmp_path: Path, family: str, weights: str) -> None:
    file, cache = lean(family).write(tmp_path / "model.safetensors"), tmp_path / "cache"
    plain = load_quantized(file, weights=weights, device="cpu")
    expected = lean(family).prediction(plain)
    at_first, model = (cached(file, cache, weights) for _ in range(2))
    (copy,) = copies(cache)
    itself = load_quantized(cache / copy, weights=weights, device="cpu")
    for copied in (at_first, model, itself):
        assert copied.blueprint.checkpoints[0].files == (cache / copy,)
        assert copied.blueprint.fingerprint == plain.blueprint.fingerprint
        path = cache / copy if copied is itself else file
        assert copied.info == replace(plain.info, path=path)
    assert torch.equal(lean(family).prediction(model), expected)
    with itself.vae("encoder") as ours, plain.vae("encoder") as own:
        assert same_states(ours, own)


@pytest.fixture
def file(lean: Callable[[str], Lean], tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return lean("sd15").write(tmp_path / "models" / "model.safetensors")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cached(file: Path, cache: Path, weights: str = "int8") -> StableDiffusion:
    return load_quantized(file, weights=weights, device="cpu", cache=cache)


def spoil(file: Path) -> None:
    """Replace the content by garbage of the same size and time."""
    stat = file.stat()
    file.write_bytes(b"\xab" * stat.st_size)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.slow
def test_the_second_load_does_not_read_the_model(file: Path, cache: Path) -> None:
    expected = load_quantized(file, weights="int8", device="cpu")
    assert same(expected, cached(file, cache))
    spoil(file)
    with pytest.raises(ModelError):
        load_quantized(file)
    assert same(expected, cached(file, cache))
    with pytest.raises(ModelError):  # there is no copy of this kind yet
        cached(file, cache, "int4")
    assert len(copies(cache)) == 1


@pytest.mark.slow
def test_a_model_that_changed_gets_a_new_copy(file: Path, cache: Path, lean: Callable[[str], Lean]) -> None:
    before = cached(file, cache)
    stat = file.stat()
    norm = lean("sd15").modules["unet"].conv_norm_out.weight
    other = load_file(file)
    other["model.diffusion_model.out.0.weight"] = (norm + 1).half()
    checkpoints_save(other, file)
    assert file.stat().st_size == stat.st_size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    after = cached(file, cache)
    assert len(copies(cache)) == 2
    assert after.blueprint.fingerprint != before.blueprint.fingerprint
    assert torch.equal(after.unet.conv_norm_out.weight, (norm + 1).half().float())

    extra = lean("sd15").write(file, extra={"global_step": torch.zeros(3)})  # now of another size, at the same time
    os.utime(extra, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    assert torch.equal(cached(extra, cache).unet.conv_norm_out.weight, norm)
    assert len(copies(cache)) == 3


def checkpoints_save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors that may be mapped from the same file."""
    from safetensors.torch import save

    path.write_bytes(save({name: tensor.clone() for name, tensor in tensors.items()}, {"format": "pt"}))


def test_a_touched_or_moved_model_keeps_its_copy(file: Path, cache: Path) -> None:
    expected = cached(file, cache)
    (copy,) = copies(cache)
    written = (cache / copy).stat().st_mtime_ns
    os.utime(file, ns=(1, 1))
    assert same(expected, cached(file, cache))
    moved = file.rename(file.with_name("renamed.safetensors"))
    assert same(expected, cached(moved, cache))
    assert copies(cache) == {copy}
    assert (cache / copy).stat().st_mtime_ns == written


def test_a_renamed_model_goes_by_its_new_name(file: Path, cache: Path) -> None:
    cached(file, cache)
    moved = file.rename(file.with_name("renamed.safetensors"))
    assert cached(moved, cache).info == identify(moved)


@pytest.mark.slow
def test_each_weights_type_has_its_copy(file: Path, cache: Path) -> None:
    for number, weights in enumerate(("int8", "int4"), 1):
        assert cached(file, cache, weights).weights == weights
        assert len(copies(cache)) == number
        assert sum(weights in name for name in copies(cache)) == 1
    assert cached(file, cache, "none").blueprint.checkpoints[0].files == (file,)
    assert len(copies(cache)) == 2


@pytest.mark.slow
def test_a_copy_can_be_deleted_at_any_time(file: Path, cache: Path) -> None:
    expected = cached(file, cache)
    assert same(expected, expected)  # read before the copy goes
    (copy,) = copies(cache)
    (cache / copy).unlink()
    assert same(expected, cached(file, cache))
    (cache / "index.json").write_text("{")
    assert same(expected, cached(file, cache))
    assert copies(cache) == {copy}


def test_a_copy_of_other_weights_is_refused(file: Path, cache: Path) -> None:
    cached(file, cache)
    (copy,) = copies(cache)
    for weights in ("int4", "float8", "none"):
        with pytest.raises(ModelError, match=f"{copy}.* is a quantised copy with int8 weights, not {weights}"):
            load_quantized(cache / copy, weights=weights)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_copy_is_not_copied_again(file: Path, cache: Path, tmp_path: Path, weights: str) -> None:
    expected = cached(file, cache)
    (copy,) = copies(cache)
    if weights == "int8":
        assert same(expected, cached(cache / copy, tmp_path / "other"))
    else:
        with pytest.raises(ModelError, match="is a quantised copy with int8 weights, not int4"):
            cached(cache / copy, cache, "int4")


@pytest.mark.slow
def test_an_explicit_prediction_type_reaches_a_copy(lean: Callable[[str], Lean], tmp_path: Path, cache: Path) -> None:
    file = lean("sd21").write(tmp_path / "model.safetensors", metadata={"modelspec.prediction_type": "epsilon"})
    assert cached(file, cache).prediction_type == "epsilon"
    model = load_quantized(file, device="cpu", cache=cache, prediction_type="v_prediction")
    assert model.prediction_type == model.scheduler.config.prediction_type == "v_prediction"
    assert cached(file, cache).prediction_type == "epsilon"


@pytest.mark.slow
def test_the_resolution_follows_the_prediction_type_in_a_copy_as_well(
    lean: Callable[[str], Lean], tmp_path: Path, cache: Path
) -> None:
    file = lean("sd21").write(tmp_path / "model.safetensors", metadata={"modelspec.prediction_type": "epsilon"})
    model = load_quantized(file, device="cpu", cache=cache, prediction_type="v_prediction")
    assert model.info == identify(file, "v_prediction")


# ---------------------------------------------------------------- what it predicts


V, EPSILON = "v_prediction", "epsilon"


@pytest.mark.parametrize(
    ("family", "stated", "beside", "says"),
    [
        ("sd21", "", "", V),
        ("sd21", "epsilon", "", EPSILON),
        ("sd21", "v", "", V),
        ("sd21", "", 'params:\n  parameterization: "v"', V),
        ("sd21", "", "params: {linear_start: 0.00085}", V),
        ("sd21", "", 'params:\n  parameterization: "eps"', EPSILON),
        ("sd21", "epsilon", 'params:\n  parameterization: "v"', EPSILON),
        ("sd15", "", "", EPSILON),
        ("sd15", "", "params:\n  parameterization: v", V),
        ("sd15", "v", "", V),
        ("sdxl", "v", "", V),
    ],
)
def test_prediction_type_by_what_the_file_says(
    lean: Callable[[str], Lean], tmp_path: Path, family: str, stated: str, beside: str, says: str
) -> None:
    settings = {"metadata": {"modelspec.prediction_type": stated}} if stated else {}
    file = lean(family).write(tmp_path / "model.safetensors", **settings)
    if beside:
        file.with_suffix(".yaml").write_text(beside + "\n")
    assert_predicts(file, says)
    for explicit in (V, EPSILON):
        assert_predicts(file, explicit, explicit)


def assert_predicts(file: Path, prediction_type: str, explicit: str = "auto") -> None:
    info = identify(file, explicit)
    assert info.prediction_type == prediction_type
    assert info.resolution == {"sd1": 512, "sd2": 768 if prediction_type == V else 512, "sdxl": 1024}[info.family]
    scheduler = load_quantized(file, device="cpu", prediction_type=explicit).scheduler
    assert scheduler.config.prediction_type == prediction_type


@pytest.mark.parametrize(("spread", "says"), [(0.02, EPSILON), (0.085, EPSILON), (0.095, V), (0.3, V)])
def test_prediction_type_of_sd2_by_its_weights(
    lean: Callable[[str], Lean], tmp_path: Path, spread: float, says: str
) -> None:
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    bias = torch.linspace(-1, 1, 64)
    bias *= spread / bias.std()
    assert_predicts(lean("sd21").write(tmp_path / "model.safetensors", extra={name: bias.half()}), says)


@pytest.mark.parametrize("marks", [("v_pred",), ("v_pred", "ztsnr"), ("ztsnr",), ()])
def test_marks_of_sdxl_models_that_predict_v(
    lean: Callable[[str], Lean], tmp_path: Path, marks: tuple[str, ...]
) -> None:
    extra = {mark: torch.zeros(0) for mark in marks}
    file = lean("sdxl").write(tmp_path / "model.safetensors", extra=extra)
    assert_predicts(file, V if "v_pred" in marks else EPSILON)
    scheduler = load_quantized(file, device="cpu").scheduler
    assert scheduler.config.rescale_betas_zero_snr == ("ztsnr" in marks)
    assert (float(scheduler.alphas_cumprod[-1]) < 1e-6) == ("ztsnr" in marks)


# ---------------------------------------------------------------- ways to write a file


def without_text_model(tensors: dict[str, Tensor], path: Path, _patch: pytest.MonkeyPatch) -> Path:
    file = path.with_suffix(".safetensors")
    checkpoints_save({name.replace(".text_model.", "."): tensor for name, tensor in tensors.items()}, file)
    return file


def upper_case(tensors: dict[str, Tensor], path: Path, _patch: pytest.MonkeyPatch) -> Path:
    file = path.with_suffix(".SAFETENSORS")
    checkpoints_save(tensors, file)
    return file


def ckpt(tensors: dict[str, Tensor], path: Path, _patch: pytest.MonkeyPatch) -> Path:
    torch.save({"state_dict": tensors, "global_step": 470_000}, path)
    return path


def bare_ckpt(tensors: dict[str, Tensor], path: Path, _patch: pytest.MonkeyPatch) -> Path:
    torch.save(tensors, path)
    return path


def legacy(tensors: dict[str, Tensor], path: Path, _patch: pytest.MonkeyPatch) -> Path:
    torch.save({"state_dict": tensors, "global_step": 1}, path, _use_new_zipfile_serialization=False)
    return path


def lightning(tensors: dict[str, Tensor], path: Path, patch: pytest.MonkeyPatch) -> Path:
    """As the first Stable Diffusion was published: with a class of a training library in it."""
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": names[-1]})
    with patch.context() as known:
        for name in names:
            known.setitem(sys.modules, name, types.ModuleType(name))
        known.setattr(sys.modules[names[-1]], "ModelCheckpoint", kind, raising=False)
        notes = {kind: {"monitor": "val/loss", "best_model_score": torch.tensor(0.1), "best_model_path": "x.ckpt"}}
        torch.save({"epoch": 1, "state_dict": tensors, "callbacks": notes, "lr_schedulers": [{"last_epoch": 1}]}, path)
    return path


def numpy_notes(tensors: dict[str, Tensor], path: Path, _patch: pytest.MonkeyPatch) -> Path:
    """With numbers of numpy among a training program's notes, which are no plain tensors."""
    notes = {"best": np.float64(0.1), "steps": np.int64(7)}
    torch.save({"state_dict": tensors, "notes": notes}, path)
    return path


WAYS: list[Any] = [without_text_model, numpy_notes]
WAYS += [pytest.param(write, marks=pytest.mark.slow) for write in (upper_case, legacy, ckpt, bare_ckpt, lightning)]


@pytest.mark.parametrize("write", WAYS)
def test_every_way_to_write_a_checkpoint(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[dict[str, Tensor], Path, pytest.MonkeyPatch], Path],
) -> None:
    written = write(load_file(file), tmp_path / "model.ckpt", monkeypatch)
    info = identify(written)
    assert replace(info, path=file) == identify(file)
    one, other = (load_quantized(path, weights="none", device="cpu") for path in (file, written))
    assert same(one, other)
    for part in one.blueprint.text_parts:
        ids = [0, 5, 99]
        rows = [table_of(networks(model)[part]).rows(ids) for model in (one, other)]
        assert torch.equal(*rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_every_type_of_numbers(lean: Callable[[str], Lean], tmp_path: Path, dtype: torch.dtype) -> None:
    file = lean("sd15").write(tmp_path / "model.safetensors", dtype=dtype)
    unet = load_quantized(file, weights="none", dtype="float32", device="cpu").unet.state_dict()
    for name, own in lean("sd15").modules["unet"].state_dict().items():
        assert torch.equal(unet[name], own.to(dtype).float()), name


# ---------------------------------------------------------------- a layer at a time


@dataclass
class Watched:
    """Hands out copies of a reader's parameters and keeps count of those that are still held."""

    reader: Any
    live: int = 0
    most: int = 0

    def parameter(self, name: str, shape: Sequence[int]) -> Tensor:
        tensor: Tensor = self.reader.parameter(name, shape).clone()
        self.live += 1
        self.most = max(self.most, self.live)
        weakref.finalize(tensor, self.gone)
        return tensor

    def gone(self) -> None:
        self.live -= 1

    def quantized(self, name: str, shape: torch.Size) -> Parts | None:
        found: Parts | None = self.reader.quantized(name, shape)
        return found

    def not_finite(self, name: str) -> ModelError:
        error: ModelError = self.reader.not_finite(name)
        return error

    def close(self) -> None:
        self.reader.close()


@pytest.mark.parametrize("weights", ["none", "int8"])
def test_building_holds_one_layer_in_full_precision(file: Path, weights: str) -> None:
    blueprint = open_model(file)
    for part in ("unet", "text_encoder"):
        reader = Watched(blueprint.readers[part])
        build(empty_network(blueprint, part), reader, weights=weights, dtype=torch.float32, device=torch.device("cpu"))
        assert reader.most <= 3
        assert reader.live == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are looked up in Linux's /proc")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_no_more_of_a_file_is_mapped_than_a_window(
    lean: Callable[[str], Lean], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    file = lean("sd15").write(tmp_path / f"model{suffix}")

    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(str(file))

    monkeypatch.setattr(checkpoints, "_WINDOW", 4 << 20)
    checkpoint = Checkpoint([file])
    opened = 0
    for reader in checkpoint._readers:
        original = reader._open

        def counted(original: Callable[[], Callable[[str], Tensor]] = original) -> Callable[[str], Tensor]:
            nonlocal opened
            opened += 1
            return original()

        monkeypatch.setattr(reader, "_open", counted)
    for number, name in enumerate(checkpoint.shapes):
        checkpoint.tensor(name)
        assert number % 20 or maps() <= 1
    assert 5 < opened < 2 + file.stat().st_size / (4 << 20)
    checkpoint.close()
    assert maps() == 0
    unet = load_quantized(file, weights="none", device="cpu").unet
    assert maps() == 0
    assert unet.conv_in.weight.isfinite().all()


# ---------------------------------------------------------------- the token table


def test_token_table_has_the_rows_of_the_file(sample: Sample) -> None:
    model = load_quantized(sample.file, weights="int4", dtype="float32", device="cpu")
    for part, encoder in zip(model.blueprint.text_parts, model.text_encoders, strict=True):
        own = sample.modules[part].get_input_embeddings().weight
        table = table_of(encoder)
        assert (table.num_embeddings, table.embedding_dim) == own.shape
        ids = [49407, 0, 320, 320]
        assert torch.equal(table.rows(ids), own[ids])
        table.keep([49407, 320])
        assert torch.equal(table(torch.tensor([[320, 49407]])), own[[320, 49407]][None])
        table.keep([5, 49406])
        late = torch.tensor([[49407, 5], [49406, 320]])
        assert torch.equal(table(late), own[late])
        assert len(table.weight) == 4


@torch.no_grad()
def test_prompts_bring_their_rows_with_them(sample: Sample) -> None:
    model, fresh = (load_quantized(sample.file, weights="int8", device="cpu") for _ in range(2))
    none = torch.zeros(1, 0, sum(sample.dims))
    model.encode(model.prompt("a red monster"), none)
    prompt = model.prompt("zebras in the rain, oil painting")
    late, first = model.encode(prompt, none), fresh.encode(prompt, none)
    assert torch.equal(late.hidden, first.hidden)
    for encoder, encoded in zip(model.text_encoders, prompt, strict=True):
        assert set(encoded.ids.flatten().tolist()) <= set(table_of(encoder).ids.tolist())


def test_token_table_refuses_ids_that_were_not_kept(file: Path) -> None:
    table = table_of(load_quantized(file, weights="int8", device="cpu").text_encoders[0])
    table.keep([10, 30])
    for unknown in (5, 20, 40):
        with pytest.raises((IndexError, KeyError, ValueError, RuntimeError)):
            table(torch.tensor([[unknown]]))


# ---------------------------------------------------------------- as published


PEAK = """
import sys, re, torch
from pathlib import Path
from zoodip_core.model.load import load_quantized
import diffusers, transformers, optimum.quanto
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

def resident(kind):
    return int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = load_quantized(sys.argv[1], weights="int8", dtype="bfloat16", device="cpu")
model.unet, model.text_encoders
print(resident("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    folder = tmp_path_factory.mktemp("full")

    def get(family: str) -> Path:
        path = folder / f"{family}.safetensors"
        if not path.exists():
            for old in folder.iterdir():  # up to seven gigabytes each
                old.unlink()
            random_models.write_random(path, family, "full", 0, torch.float16)
        return path

    yield get
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_full_sizes_load_and_predict(full: Callable[[str], Path], family: str) -> None:
    model = load_quantized(full(family), weights="int8", dtype="bfloat16", device="cpu")
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    candidates = 0.02 * torch.randn(1, 1, sum(model.info.dims), generator=torch.Generator().manual_seed(1))
    out = model.predict(noisy, 500, model.encode(model.prompt(CAPTION, 1), candidates), TIME_IDS)
    assert out.shape == noisy.shape
    assert out.isfinite().all()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured by Linux's /proc")
def test_loading_sd15_takes_less_memory_than_its_file(full: Callable[[str], Path]) -> None:
    command = [sys.executable, "-c", PEAK, str(full("sd15"))]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (peak,) = re.findall(r"^\d+$", out, re.MULTILINE)
    assert int(peak) <= 2_000_000_000
