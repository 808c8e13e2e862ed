"""Loading and quantising: every type and dtype on the embedded model, families, prompts."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from zoodip_core.base.errors import CaptionError, ConfigError
from zoodip_core.model.kinds import TINY_PATH
from zoodip_core.model.load import load_quantized
from zoodip_core.model.quantize import QuantizedLayer, pack, quantize_weight, stored_bytes
from zoodip_core.model.quantized_parts import group_size
from zoodip_core.model.recognise import identify
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.tokens import encode_prompt, initial_vectors

TABLE = "text_model.embeddings.token_embedding.weight"
# How far the UNet's output may be from full precision, relative: twice what random weights show.
TOLERANCE = {"none": 0.02, "int8": 0.06, "float8": 0.25, "int4": 0.6}


@torch.no_grad()
def prediction(model: StableDiffusion) -> torch.Tensor:
    noise = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    return model.predict(noise, 700, model.encode(model.prompt("a red monster")), torch.zeros(6)).float()


@pytest.fixture(scope="module")
def exact() -> torch.Tensor:
    return prediction(load_quantized(weights="none"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", ["none", "int8", "int4", "float8"])
def test_every_weight_type_runs_on_a_cpu(weights: str, dtype: str, exact: torch.Tensor) -> None:
    model = load_quantized(weights=weights, dtype=dtype)
    error = (prediction(model) - exact).norm() / exact.norm()
    assert error < TOLERANCE[weights]
    assert (error == 0) == (weights == "none" and dtype == "float32")


def test_quantised_weights_take_fewer_bytes() -> None:
    sizes = {w: sum(load_quantized(weights=w).stored_bytes().values()) for w in ("none", "int8", "int4")}
    assert sizes["int8"] < 0.3 * sizes["none"]
    assert sizes["int4"] < 0.2 * sizes["none"]


def test_all_linear_and_convolution_weights_are_quantised() -> None:
    model = load_quantized(weights="int8")
    reference = UNet2DConditionModel.from_pretrained(TINY_PATH, subfolder="unet", local_files_only=True)
    layers = [m for m in reference.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for network in (model.unet, *model.text_encoders):
        assert not [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    quantized = [m for m in model.unet.modules() if isinstance(m, QuantizedLayer)]
    assert len(quantized) == len(layers)
    assert all(layer.data.dtype == torch.int8 for layer in quantized)


@pytest.mark.parametrize("shape", [(48, 320), (33, 70), (64, 32, 3, 3), (5, 96, 1, 1), (16, 640)])
@pytest.mark.parametrize("weights", ["int8", "int4", "float8"])
def test_weights_are_those_of_quanto(weights: str, shape: tuple[int, ...]) -> None:
    """Quantised and dequantised by quanto's own layers, in float32: the same numbers."""
    from optimum import quanto

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer: nn.Linear | nn.Conv2d = (
        nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2])
    )
    layer.weight.data = weight
    ours = QuantizedLayer(layer, quantize_weight(weight, weights), None, torch.float32, torch.device("cpu"))
    theirs = nn.Sequential(layer)
    quanto.quantize(theirs, weights={"int8": quanto.qint8, "int4": quanto.qint4, "float8": quanto.qfloat8}[weights])
    quanto.freeze(theirs)
    whole: Any = theirs[0].weight
    if weights == "int4":  # quanto would compile C++ to unpack
        packed = whole._data._data
        values = torch.cat([packed & 15, packed >> 4])[: whole._data.shape[0]]
        expected = (whole._scale * values - whole._shift).reshape(shape)
    else:
        expected = whole.dequantize()
    torch.testing.assert_close(ours.weight, expected, rtol=0, atol=0)


def _hard_weights() -> Iterator[torch.Tensor]:
    """Weights of all kinds of rows: zeros, all alike, one sign, too small to be told apart, too many for one piece."""
    drawn = torch.Generator().manual_seed(0)
    for shape in ((6, 7), (33, 128), (10, 100), (5, 3, 3, 3), (40, 4, 3, 3), (1301, 1024), (2, 1_100_000)):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            weight = 0.03 * torch.randn(shape, generator=drawn)
            weight[0], weight[-1] = 0, 0.25
            if len(weight) > 4:
                weight[2], weight[3] = -weight[2].abs(), 1e-41
            yield weight.to(dtype)


@pytest.mark.parametrize("weights", ["int8", "int4", "float8"])
def test_parts_are_those_of_quantos_optimizers_to_the_bit(weights: str) -> None:
    from optimum import quanto

    for weight in _hard_weights():
        ours, full = quantize_weight(weight, weights), weight.float()
        if weights == "int4":
            group = group_size(weight.shape)
            scale, shift = quanto.MaxOptimizer()(full, qtype=quanto.qint4, axis=0, group_size=group)
            data = torch.ops.quanto.quantize_affine(full, bits=4, axis=0, group_size=group, scale=scale, shift=shift)
            theirs = {"data": pack(data), "scale": scale, "shift": shift}
        else:
            kind = {"int8": quanto.qint8, "float8": quanto.qfloat8}[weights]
            scale = quanto.AbsmaxOptimizer()(full, qtype=kind, axis=0).clamp(min=torch.finfo(torch.float32).tiny)
            data = torch.ops.quanto.quantize_symmetric(full, dtype=kind.dtype, axis=0, scale=scale)
            theirs = {"data": data, "scale": scale}
        assert {name: part.shape for name, part in ours.items()} == {n: part.shape for n, part in theirs.items()}
        for name, part in ours.items():
            assert part.dtype == theirs[name].dtype
            assert torch.equal(part.view(torch.uint8), theirs[name].view(torch.uint8)), (name, weight.shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("weights", ["int8", "int4", "float8"])
def test_a_graphics_card_quantises_to_the_same_bits(weights: str) -> None:
    for weight in _hard_weights():
        here, there = quantize_weight(weight, weights), quantize_weight(weight.cuda(), weights)
        for name, part in here.items():
            assert there[name].is_cuda
            assert torch.equal(part.view(torch.uint8), there[name].cpu().view(torch.uint8)), (name, weight.shape)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantised_layers_run_in_inference_mode_and_copy(weights: str) -> None:
    """Hosts run nodes inside inference_mode, where quanto's int4 fails."""
    layer = nn.Conv2d(8, 16, 3)
    parts, bias = quantize_weight(layer.weight.detach(), weights), layer.bias
    ours = QuantizedLayer(layer, parts, bias, torch.float32, torch.device("cpu"))
    image = torch.randn(1, 8, 6, 6)
    with torch.inference_mode():
        there = ours(image)
    assert torch.equal(copy.deepcopy(ours)(image), there)


def test_stored_bytes_of_plain_and_shared_weights() -> None:
    layer = nn.Linear(10, 5)
    assert stored_bytes(layer) == (50 + 5) * 4
    assert stored_bytes(nn.Sequential(layer, layer)) == (50 + 5) * 4


def test_tiny_is_identified_from_its_configs() -> None:
    info = identify("tiny")
    assert (info.name, info.family, info.dims, info.resolution) == ("tiny", "tiny", (128,), 48)


@pytest.mark.parametrize("setting", [{"weights": "int3"}, {"dtype": "float8"}, {"dtype": "float16", "device": "cpu"}])
def test_unknown_types_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        load_quantized(**setting)


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="device"):
        load_quantized(device="abacus")


def test_placeholder_fills_its_places(tiny_model: StableDiffusion) -> None:
    (tokenizer,) = tiny_model.tokenizers
    prompt = encode_prompt(tokenizer, "a {} and a {}", 2)
    plain = tokenizer("a x and a x", add_special_tokens=False).input_ids
    assert prompt.positions == (2, 3, 6, 7)
    assert prompt.ids.shape == (1, 24)
    ids = prompt.ids[0].tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids.index(tokenizer.eos_token_id) == 8
    assert [ids[1], ids[4], ids[5]] == [plain[0], plain[2], plain[3]]


def test_prompts_too_long_are_refused_not_cut(tiny_model: StableDiffusion) -> None:
    fits = "a {} " + "red " * 20
    encode_prompt(tiny_model.tokenizers[0], fits, 1)
    with pytest.raises(CaptionError, match="25 tokens long"):
        encode_prompt(tiny_model.tokenizers[0], fits, 2)


def test_initial_vectors_by_mode(tiny_model: StableDiffusion) -> None:
    tokenizers, encoders = tiny_model.tokenizers, tiny_model.text_encoders
    table = load_file(TINY_PATH / "text_encoder" / "model.safetensors")[TABLE].float()
    ids = tokenizers[0]("red star monster", add_special_tokens=False).input_ids

    def start(text: str, count: int, mode: str = "single") -> torch.Tensor:
        return initial_vectors(tokenizers, encoders, text, count, mode)

    assert torch.equal(start("monster", 2), table[[ids[2], ids[2]]])
    assert torch.equal(start("red star monster", 3), table[ids])
    assert torch.equal(start("red star monster", 2, "first"), table[ids[:2]])
    assert torch.equal(start("red star", 3, "first"), table[[ids[0], ids[1], ids[1]]])
    torch.testing.assert_close(start("red star", 1, "mean"), table[ids[:2]].mean(0, keepdim=True))


def test_importing_the_core_is_cheap_and_private() -> None:
    """No torch at import; nothing global changes: hosts import this at start-up."""
    code = "import sys, zoodip_core; print('torch' in sys.modules, 'gradio' in sys.modules); zoodip_core.RGE"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


def test_loading_never_asks_the_network() -> None:
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from zoodip_core import load_quantized; load_quantized()"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


def test_the_embedded_model_is_small() -> None:
    files = [p for p in TINY_PATH.parent.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert sum(p.stat().st_size for p in files) <= 10_000_000
