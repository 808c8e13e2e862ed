"""Loading and quantising: every type and dtype on the tiny model, families, prompts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from zoodip_core.errors import CaptionError, ConfigError
from zoodip_core.models import TINY_PATH, QuantizedModel, identify, load_quantized
from zoodip_core.quantize import quantize_weights, stored_bytes
from zoodip_core.tokens import encode_prompt, initial_vectors

# How far the UNet's output may be from full precision, relative: twice what random weights show.
TOLERANCE = {"none": 0.02, "int8": 0.06, "float8": 0.25, "int4": 0.6}


def prediction(model: QuantizedModel) -> torch.Tensor:
    ids = encode_prompt(model.tokenizer, "a red monster", 0).ids
    noise = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with torch.no_grad():
        return model.unet(noise, 700, model.encode(ids).expand(2, -1, -1)).sample.float()


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
    with model.vae() as vae, torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 48, 48, dtype=model.dtype)).latent_dist.mean
        assert torch.isfinite(vae.decode(latents).sample).all()


def test_quantised_weights_take_fewer_bytes() -> None:
    sizes = {w: sum(load_quantized(weights=w).stored_bytes().values()) for w in ("none", "int8", "int4")}
    assert sizes["int8"] < 0.3 * sizes["none"]
    assert sizes["int4"] < 0.2 * sizes["none"]


def test_all_linear_and_convolution_weights_are_quantised() -> None:
    from optimum.quanto import QTensor

    model = load_quantized(weights="int8")
    for module in (model.unet, model.text_encoder):
        layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert layers
        assert all(isinstance(layer.weight, QTensor) for layer in layers)
    assert not isinstance(model.text_encoder.get_input_embeddings().weight, QTensor)


@pytest.mark.parametrize("batch", [1, 2])
def test_linear_projections_and_vae_attention_run_in_bfloat16(batch: int) -> None:
    """SD2's UNet and every SD's VAE; quanto alone fails on them with one image."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=16,
        use_linear_projection=True,
    ).bfloat16()
    vae = AutoencoderKL(block_out_channels=(16,), norm_num_groups=8).bfloat16()
    for module in (unet, vae):
        quantize_weights(module, "int8")
    with torch.no_grad():
        noise = torch.randn(batch, 4, 8, 8, dtype=torch.bfloat16)
        assert torch.isfinite(unet(noise, 5, torch.randn(batch, 7, 32, dtype=torch.bfloat16)).sample).all()
        assert torch.isfinite(vae(torch.randn(batch, 3, 16, 16, dtype=torch.bfloat16)).sample).all()


def test_stored_bytes_of_plain_and_shared_weights() -> None:
    layer = nn.Linear(10, 5)
    assert stored_bytes(layer) == (50 + 5) * 4
    assert stored_bytes(nn.Sequential(layer, layer)) == (50 + 5) * 4


def test_tiny_is_identified_from_its_configs() -> None:
    info = identify("tiny")
    assert (info.name, info.family, info.dim, info.resolution) == ("tiny", "tiny", 128, 48)


@pytest.mark.parametrize(
    ("dim", "sample_size", "family", "resolution"), [(768, 64, "sd1", 512), (1024, 96, "sd2", 768)]
)
def test_families_by_text_width(tmp_path: Path, dim: int, sample_size: int, family: str, resolution: int) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    for part, config in (
        ("unet", {"cross_attention_dim": dim, "sample_size": sample_size}),
        ("text_encoder", {"hidden_size": dim}),
        ("vae", {"block_out_channels": [128, 256, 512, 512]}),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    info = identify(tmp_path)
    assert (info.family, info.resolution) == (family, resolution)


@pytest.mark.parametrize("setting", [{"weights": "int3"}, {"dtype": "float8"}, {"dtype": "float16", "device": "cpu"}])
def test_unknown_types_are_refused(setting: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        load_quantized(**setting)


def test_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="device"):
        load_quantized(device="abacus")


def test_placeholder_fills_its_places(tiny_model: QuantizedModel) -> None:
    tokenizer = tiny_model.tokenizer
    prompt = encode_prompt(tokenizer, "a {} and a {}", 2)
    plain = tokenizer("a x and a x", add_special_tokens=False).input_ids
    assert prompt.positions == (2, 3, 6, 7)
    assert prompt.ids.shape == (1, 24)
    ids = prompt.ids[0].tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids.index(tokenizer.eos_token_id) == 8
    assert [ids[1], ids[4], ids[5]] == [plain[0], plain[2], plain[3]]


def test_prompts_too_long_are_refused_not_cut(tiny_model: QuantizedModel) -> None:
    fits = "a {} " + "red " * 20
    encode_prompt(tiny_model.tokenizer, fits, 1)
    with pytest.raises(CaptionError, match="25 tokens long"):
        encode_prompt(tiny_model.tokenizer, fits, 2)


def test_initial_vectors_by_mode(tiny_model: QuantizedModel) -> None:
    tokenizer, encoder = tiny_model.tokenizer, tiny_model.text_encoder
    table = encoder.get_input_embeddings().weight.float()
    ids = tokenizer("red star monster", add_special_tokens=False).input_ids
    assert torch.equal(initial_vectors(tokenizer, encoder, "monster", 2), table[[ids[2], ids[2]]])
    assert torch.equal(initial_vectors(tokenizer, encoder, "red star monster", 3), table[ids])
    assert torch.equal(initial_vectors(tokenizer, encoder, "red star monster", 2, "first"), table[ids[:2]])
    assert torch.equal(initial_vectors(tokenizer, encoder, "red star", 3, "first"), table[[ids[0], ids[1], ids[1]]])
    torch.testing.assert_close(
        initial_vectors(tokenizer, encoder, "red star", 1, "mean"), table[ids[:2]].mean(0, keepdim=True)
    )


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
