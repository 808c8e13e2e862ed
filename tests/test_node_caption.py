"""Caption Images: what it writes, keeps and corrects, where it looks for a model, and how it shares the device."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from tests.fake_host import FakeHost, Interrupted
from tests.small_captioners import SmallCaptioners, pictures


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallCaptioners:
    return SmallCaptioners(tmp_path_factory.mktemp("captioners"))


def core(name: str) -> Any:
    return importlib.import_module(f"zoodip_pack.zoodip_core.{name}")


def images() -> list[torch.Tensor]:
    """A red and a blue one, as nodes hand them on."""
    return [torch.from_numpy(np.asarray(each, dtype=np.float32) / 255)[None] for each in pictures()]


def caption(pack: Any, caption_with: str, *, batches: list[torch.Tensor] | None = None, **inputs: Any) -> Any:
    given = {"caption_with": [caption_with], "class_word": ["dog"], **inputs}
    with torch.inference_mode():  # as ComfyUI runs nodes
        return pack.NODE_CLASS_MAPPINGS["ZoodipCaptionImages"]().caption(images=batches or images(), **given)


@pytest.fixture
def blip(host: FakeHost, small: SmallCaptioners) -> str:
    """The name of a model in the host's folder of models."""
    small.copy("blip", host.root / "models" / "LLM" / "blip")
    return "LLM/blip"


def test_each_picture_gets_a_text_for_the_trainer(pack: Any, host: FakeHost, blip: str) -> None:
    out = caption(pack, blip)
    (texts,) = out["result"]
    assert texts == ["a {} sitting on grass", "a photo of a {}, a cat in the room"]
    assert out["ui"]["text"] == [f"{number}. {text}" for number, text in enumerate(texts, 1)]
    assert host.calls == ["make_room", "return_memory"]
    assert [(done, of) for done, of, _ in host.shown] == [(1, 2), (2, 2)]
    taken = importlib.import_module("zoodip_pack.nodes.train")._captions(texts, "<rex>", 2)
    assert taken == texts
    together = torch.cat(images())
    assert caption(pack, blip, batches=[together])["result"] == (texts,)


def test_templates(pack: Any, host: FakeHost, blip: str) -> None:
    assert caption(pack, blip, template=["adjective"])["result"][0][0] == "a {} dog sitting on grass"
    assert caption(pack, blip, template=["style"])["result"][0][1] == "a cat in the room in the style of {}"


def test_texts_that_are_there_are_kept_and_get_the_token_s_place(pack: Any, host: FakeHost, blip: str) -> None:
    """Those of another pack's node without a model at all."""
    there = ["a {} of mine\na <rex>, mine", ""]
    assert caption(pack, blip, captions=there)["result"][0] == [there[0], "a photo of a {}, a cat in the room"]
    host.calls.clear()
    others = ["The image shows a dog on a sofa.", "a puppy\na dog's tail"]
    assert caption(pack, "nowhere", captions=others)["result"][0] == [
        "a {} on a sofa",
        "a photo of a {}, a puppy\na {}'s tail",
    ]
    assert host.calls == []
    with pytest.raises(ValueError, match="captions: 1 text for 2 images"):
        caption(pack, blip, captions=["one"])


def test_corrections_count_more(pack: Any, host: FakeHost, blip: str) -> None:
    found = caption(pack, blip, corrections=["\n2. a {} in blue\n"])["result"][0]
    assert found == ["a {} sitting on grass", "a {} in blue"]
    with pytest.raises(ValueError, match="corrections: 3 lines for 2 images"):
        caption(pack, blip, corrections=["a\nb\nc"])


def test_a_name_of_the_cache(
    pack: Any, host: FakeHost, small: SmallCaptioners, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"(?s)caption_with: me/blip.*hf download.*folder in .*models"):
        caption(pack, "me/blip")
    small.copy("blip", tmp_path / "models--me--blip" / "snapshots" / "aaaa")
    assert caption(pack, "me/blip")["result"][0][0] == "a {} sitting on grass"


@pytest.mark.parametrize("name", ["../outside", "/etc", "nowhere", "", "a/b"])
def test_a_name_leads_nowhere_else(
    pack: Any, host: FakeHost, name: str, small: SmallCaptioners, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither out of the models folder, nor into a folder beneath the one that the host was started in."""
    small.copy("blip", host.root / "outside")
    small.copy("blip", tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="caption_with: "):
        caption(pack, name)
    assert host.calls == []


def test_what_is_wrong_is_told(pack: Any, host: FakeHost, blip: str) -> None:
    with pytest.raises(ValueError, match="class_word is empty"):
        caption(pack, blip, class_word=[" "])
    (host.root / "models" / "LLM" / "blip" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"caption_with: .*model\.safetensors not found"):
        caption(pack, blip)
    assert host.calls == []


@pytest.mark.parametrize("after", [1, 4, 12])
def test_cancel_is_answered_and_the_device_given_back(pack: Any, host: FakeHost, blip: str, after: int) -> None:
    """Before the first picture, within its text, and within the second one's."""
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > after

    host.asked = stop
    with pytest.raises(Interrupted):
        caption(pack, blip)
    assert host.calls == ["make_room", "return_memory"]
    assert len(host.shown) == (after == 12)


def test_the_trainer_says_where_a_place_comes_from(pack: Any) -> None:
    train = importlib.import_module("zoodip_pack.nodes.train")
    with pytest.raises(ValueError, match="through Caption Images"):
        train._captions(["a dog"], "<rex>", 1)
