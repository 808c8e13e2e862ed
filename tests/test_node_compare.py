"""Compare Embeddings: what it hands to the core, and how it shares the device."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.fake_host import FakeHost, Interrupted
from tests.fake_model import FakeModel


@pytest.fixture(scope="module")
def model(pack: Any) -> Any:
    """The embedded model by the pack's own core."""
    return core("model.load").load_quantized("tiny", device="cpu")


def core(name: str) -> Any:
    return importlib.import_module(f"zoodip_pack.zoodip_core.{name}")


def token(alignment: float = 0.0, width: int = 128) -> Any:
    """A token of a run with that alignment, which all have the same name."""
    vector = 0.3 * torch.randn(1, width, generator=torch.Generator().manual_seed(round(10 * alignment)))
    config = json.dumps({"alignment": alignment, "target_prompt": "a {} in the snow"})
    return core("model.embedding").Embedding("<boo>", (vector,), {"config": config})


def compare(pack: Any, model: Any, *embeddings: Any, **inputs: Any) -> Any:
    given = {"prompt": "", "seed": 3, "count": 2, "steps": 2, "guidance": 0.0, "resolution": 0, **inputs}
    named = {f"embedding_{row}": each for row, each in enumerate(embeddings, 1)}
    with torch.inference_mode():  # as ComfyUI runs nodes
        return pack.NODE_CLASS_MAPPINGS["ZoodipCompareEmbeddings"]().compare(model, **named, **given)


def test_the_sheet_is_the_core_s(pack: Any, host: FakeHost, model: Any) -> None:
    """Of up to six tokens, of which some inputs are left unconnected."""
    out = compare(pack, model, token(), None, token(0.3), word="monster", guidance=2.0, resolution=32)
    (sheet,) = out["result"]
    comparison = core("train.comparison")
    rows = [comparison.Compared(token()), comparison.Compared(token(0.3))]
    assert host.calls == ["make_room", "return_memory"]
    assert "unet" not in vars(model)
    assert [(done, of) for done, of, _ in host.shown] == [(done, 6) for done in range(1, 7)]
    expected = comparison.comparison_sheet(model, comparison.Comparison(rows, [3, 4], "", "monster", 2, 2.0, 32))
    np.testing.assert_array_equal((sheet[0].numpy() * 255).round().astype(np.uint8), np.asarray(expected))
    assert len(out["ui"]["images"]) == 1


@pytest.fixture(scope="module")
def weights(model: Any) -> Any:
    """Weights that are seen, of a run on int4 weights."""
    frames = core("model.frames").frames_of(model.unet, 2)
    values = torch.randn(frames.numbers, generator=torch.Generator().manual_seed(2))
    model.unload()
    about = {"token": "<boo>", "family": "tiny", "config": json.dumps({"weights": "int4"})}
    return core("model.lora").lora_of(frames, values, about)


def test_rows_are_drawn_with_the_weights_of_their_number(pack: Any, host: FakeHost, model: Any, weights: Any) -> None:
    """Also of several tokens of one run; the same token without them in another row; a run that has learned none."""
    out = compare(pack, model, (token(0.5), token(0.6)), None, token(), token(0.5), lora_1=weights, lora_3=None)
    comparison = core("train.comparison")
    rows = [
        *(comparison.Compared(token(strength), lora=weights) for strength in (0.5, 0.6)),
        *(comparison.Compared(token(strength)) for strength in (0.0, 0.5)),
    ]
    (sheet,) = out["result"]
    expected = comparison.comparison_sheet(model, comparison.Comparison(rows, [3, 4], num_inference_steps=2))
    np.testing.assert_array_equal((sheet[0].numpy() * 255).round().astype(np.uint8), np.asarray(expected))
    assert out["ui"]["text"] == [
        "the LoRA was learned on int4 weights, this model has int8: it draws nearly the same, not exactly"
    ]
    plain = compare(pack, model, token(0.5))
    assert plain["ui"]["text"] == []


def test_its_latest_inputs_are_its_last(pack: Any, host: FakeHost) -> None:
    """A workflow that was saved before them still has each value at its place."""
    kinds = pack.NODE_CLASS_MAPPINGS["ZoodipCompareEmbeddings"].INPUT_TYPES()
    assert [*kinds["required"], *kinds["optional"]][-8:] == ["word", *(f"lora_{row}" for row in range(1, 7)), "until"]


def test_each_share_of_the_steps_has_a_row(pack: Any, host: FakeHost, model: Any) -> None:
    rex = core("model.embedding").Embedding("<boo>", token(0.5).tensors, {"initializer": "monster"})
    (sheet,) = compare(pack, model, rex, until="1, 0.5")["result"]
    comparison = core("train.comparison")
    rows = [comparison.Compared(rex), comparison.Compared(rex, until=0.5)]
    expected = comparison.comparison_sheet(model, comparison.Comparison(rows, [3, 4], num_inference_steps=2))
    np.testing.assert_array_equal((sheet[0].numpy() * 255).round().astype(np.uint8), np.asarray(expected))
    with pytest.raises(ValueError, match="until = 'half': write shares"):
        compare(pack, model, rex, until="half")


def test_weights_that_cannot_be_drawn_with_are_refused_first(
    pack: Any, host: FakeHost, model: Any, weights: Any
) -> None:
    other = core("model.lora").Lora({"nowhere": (torch.ones(8, 1), torch.ones(1, 8))}, {"family": "sd1"})
    with pytest.raises(ValueError, match=r"^token 2: the LoRA for Stable Diffusion 1.x does not fit this model"):
        compare(pack, model, token(), token(0.3), lora_2=other)
    with pytest.raises(ValueError, match=r"^lora_4: connect the token .* to embedding_4"):
        compare(pack, model, token(), lora_4=weights)
    with pytest.raises(ValueError, match=r"^lora_1: .* put Apply LoRA before Model from ComfyUI"):
        compare(pack, SimpleNamespace(own_memory=False), token(), lora_1=weights)
    assert host.shown == []
    assert host.calls.count("make_room") == host.calls.count("return_memory")


def test_there_are_as_many_rows_as_tokens(pack: Any, host: FakeHost) -> None:
    tokens = [token(strength, width=6) for strength in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)]
    inputs = pack.NODE_CLASS_MAPPINGS["ZoodipCompareEmbeddings"].INPUT_TYPES()
    sockets = [name for kind in inputs.values() for name, (of, *_) in kind.items() if of == "ZOODIP_EMBEDDING"]
    assert sockets == [f"embedding_{row}" for row in range(1, 7)]
    heights = [compare(pack, FakeModel(), *tokens[:count], prompt="{}")["result"][0].shape[1] for count in (1, 2, 6)]
    assert heights[2] - heights[1] == 4 * (heights[1] - heights[0]) > 0


def test_a_stop_ends_it_as_the_host_wants(pack: Any, host: FakeHost, model: Any) -> None:
    host.asked = lambda: len(host.shown) >= 3
    with pytest.raises(Interrupted):
        compare(pack, model, token(), token(0.3))
    assert host.calls == ["make_room", "return_memory"]
    assert not (host.root / "temp" / "zoodip").exists()


def test_what_can_not_be_is_refused_before_anything_is_drawn(pack: Any, host: FakeHost, model: Any) -> None:
    for inputs, told in (
        ({"prompt": "a dog"}, "prompt: 'a dog' has no place for the tokens"),
        ({"embedding_2": token(width=768)}, r"token 2: .*width 768"),
        ({"word": "a {}"}, "word 'a {}'"),
        ({"count": 17}, "count = 17"),
        ({"prompt": "{} " + "very " * 90}, "tokens long"),
    ):
        with pytest.raises(ValueError, match=told):
            compare(pack, model, token(), **inputs)
    assert host.shown == []
    assert host.calls.count("make_room") == host.calls.count("return_memory")
