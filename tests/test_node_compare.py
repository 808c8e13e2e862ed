"""Compare Embeddings: what it hands to the core, and how it shares the device."""

from __future__ import annotations

import importlib
import json
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
