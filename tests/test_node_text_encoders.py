"""Apply Embedding on CLIPs whose tokenizers take embeddings in other ways than Stable Diffusion's.

The tokenizers here read as ComfyUI's do, in little; the real ones are in ``tests/e2e/test_comfyui_clips.py``.
"""

from __future__ import annotations

import copy
import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fake_host import FakeHost

PACK = "zoodip_pack"


class Inner:
    """Like ``comfy.sd1_clip.SDTokenizer``: words, and the vectors of files whose name stands behind a white space."""

    def __init__(self, key: str, size: int, directory: Any = "/none", disable_weights: bool = False) -> None:
        self.embedding_key, self.embedding_size = key, size
        self.embedding_directory, self.disable_weights = directory, disable_weights

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> Any:
        weights = not options.get("disable_weights", self.disable_weights)
        pattern = r"\(([^()]+?):([\d.]+)\)" if weights else r"(?!)()()"
        batch: list[tuple[Any, float]] = []
        end = 0
        for match in re.finditer(pattern, text):
            batch += self._read(text[end : match.start()], 1.0) + self._read(match[1], float(match[2]))
            end = match.end()
        return [batch + self._read(text[end:], 1.0)]

    def _read(self, text: str, weight: float) -> list[tuple[Any, float]]:
        found: list[tuple[Any, float]] = []
        for word in text.split():
            vectors = self._vectors(word.removeprefix("embedding:")) if word.startswith("embedding:") else None
            found += [(word, weight)] if vectors is None else [(row, weight) for row in vectors]
        return found

    def _vectors(self, name: str) -> torch.Tensor | None:
        directories = self.embedding_directory or []
        for folder in [directories] if isinstance(directories, str) else directories:
            file = Path(folder) / f"{name}.safetensors"
            if file.is_file():
                return load_file(file)[self.embedding_key]
        return None


class Tokenizer:
    """One of several text encoders; ``template`` stands around the prompt."""

    def __init__(self, template: str = "{}", compares: bool = False, options: Any = None, **inner: Inner) -> None:
        self.template, self.compares, self.options = template, compares, options or {}
        for name, each in inner.items():
            setattr(self, name, each)

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> Any:
        inner = {name: each for name, each in vars(self).items() if hasattr(each, "embedding_directory")}
        tokens = {
            name: each.tokenize_with_weights(self.template.format(text), return_word_ids, **self.options, **options)
            for name, each in inner.items()
            if name != "byt5" or '"' in text
        }
        if self.compares:
            assert not any(entry[0] == 151655 for batches in tokens.values() for batch in batches for entry in batch)
        return tokens


class Clip:
    def __init__(self, tokenizer: Tokenizer, **parts: Any) -> None:
        self.tokenizer, self.cond_stage_model = tokenizer, SimpleNamespace(**parts)

    def clone(self) -> Clip:
        return copy.copy(self)

    def reads(self, text: str) -> dict[str, list[tuple[Any, float]]]:
        return {key: batch for key, (batch,) in self.tokenizer.tokenize_with_weights(text).items()}


def encoder(width: int) -> Any:
    return SimpleNamespace(transformer=SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(1, width)))


def one(key: str, size: int, template: str = "{}", compares: bool = False, directory: Any = "/none") -> Clip:
    options = {"disable_weights": True}
    inner: dict[str, Any] = {key: Inner(key, size, directory)}
    return Clip(Tokenizer(template, compares, options, **inner), **{key: encoder(size)})


def flux() -> Clip:
    inner: dict[str, Any] = {"t5xxl": Inner("t5xxl", 4096), "clip_l": Inner("clip_l", 768)}
    return Clip(Tokenizer(**inner), clip_l=encoder(768), t5xxl=encoder(4096))


def anima() -> Clip:
    inner: dict[str, Any] = {"qwen3_06b": Inner("qwen3_06b", 1024, disable_weights=True), "t5xxl": Inner("t5xxl", 4096)}
    return Clip(Tokenizer(**inner), qwen3_06b=encoder(1024))


def learned(*encoders: str, initializer: str = "dog", token: str = "<rex>") -> Any:
    core = importlib.import_module(f"{PACK}.zoodip_core.model.embedding")
    kinds = importlib.import_module(f"{PACK}.zoodip_core.model.kinds")
    tensors = tuple(torch.randn(2, kinds.ENCODERS[name]) for name in encoders)
    named = kinds.names_of((name, kinds.ENCODERS[name]) for name in encoders)
    return core.Embedding(token, tensors, {"initializer": initializer}, encoders=named)


def vectors(batch: list[tuple[Any, float]]) -> torch.Tensor:
    found = [each["data"] if isinstance(each, dict) else each for each, _ in batch if not isinstance(each, str)]
    return torch.stack(found) if found else torch.zeros(0)


def words(batch: list[tuple[Any, float]]) -> list[str]:
    return [each for each, _ in batch if isinstance(each, str)]


@pytest.fixture
def tokenizer(pack: Any) -> Any:
    return importlib.import_module(f"{PACK}.nodes.tokenizer")


@pytest.fixture
def apply(pack: Any, host: FakeHost) -> Any:
    return pack.NODE_CLASS_MAPPINGS["ZoodipApplyEmbedding"]().apply


def test_the_text_encoders_are_told_in_their_order(tokenizer: Any) -> None:
    assert tokenizer.text_encoders_of(flux()) == (("clip_l", 768), ("t5xxl", 4096))
    assert tokenizer.encoder_names(flux()) == ("clip_l", "t5xxl")
    assert tokenizer.text_widths(flux()) == (768, 4096)
    assert tokenizer.text_encoders_of(anima()) == (("qwen3_06b", 1024),)
    for key, width in (("clip_l", 768), ("clip_h", 1024)):
        assert tokenizer.encoder_names(one(key, width)) == ()


def test_a_text_encoder_is_as_wide_as_its_table(tokenizer: Any) -> None:
    """ComfyUI's tokenizer of Ernie-Image states Flux.2's width."""
    clip = Clip(Tokenizer(mistral3_24b=Inner("mistral3_24b", 5120)), mistral3_24b=encoder(3072))
    assert tokenizer.text_encoders_of(clip) == (("mistral3_24b", 3072),)


def test_a_text_encoder_that_reads_quotations_alone_is_none_of_a_token_s(tokenizer: Any) -> None:
    inner: dict[str, Any] = {"qwen25_7b": Inner("qwen25_7b", 3584), "byt5": Inner("byt5_small", 1472)}
    clip = Clip(Tokenizer(**inner), qwen25_7b=encoder(3584), byt5=encoder(1472))
    assert tokenizer.text_encoders_of(clip) == (("qwen25_7b", 3584),)
    assert type(clip.tokenizer.byt5) is Inner  # type: ignore[attr-defined]


@pytest.mark.parametrize("strength", [1.0, 1.2])
def test_both_text_encoders_read_their_half(strength: float, apply: Any) -> None:
    embedding = learned("clip_l", "t5xxl")
    clip, text = apply(flux(), embedding, strength)
    for prompt in ("a <rex> here", f"a {text} here"):
        read = clip.reads(prompt)
        for name, tensor in zip(embedding.encoders, embedding.tensors, strict=True):
            assert torch.equal(vectors(read[name]), tensor)
            assert [weight for _, weight in read[name]] == [1, strength, strength, 1]


@pytest.mark.parametrize("template", ["{}", "user\n{} end", "[INST]{}[/INST]"])
@pytest.mark.parametrize("compares", [False, True])
@pytest.mark.parametrize("directory", ["/none", None])
def test_where_words_have_no_weights_the_vectors_are_scaled(
    template: str, compares: bool, directory: Any, apply: Any
) -> None:
    embedding = learned("qwen3_4b")
    clip, text = apply(one("qwen3_4b", 2560, template, compares, directory), embedding, 1.2)
    assert text.startswith("embedding:")
    for prompt in ("<rex>", f"{text}", "a <rex> here", "a (<rex>:1.3) here", "my-<rex>, sharp", "(<rex>)"):
        (batch,) = clip.reads(prompt).values()
        torch.testing.assert_close(vectors(batch), 1.2 * embedding.tensors[0])
        assert not any("embedding:" in word for word in words(batch))


def test_what_another_embedding_s_strength_is_stays(apply: Any) -> None:
    first, second = learned("qwen3_4b"), learned("qwen3_4b", token="<pip>")
    clip, _ = apply(one("qwen3_4b", 2560, "[INST]{}[/INST]", True), first, 0.5)
    both, _ = apply(clip, second, 2.0)
    (batch,) = both.reads("<pip><rex>").values()
    torch.testing.assert_close(vectors(batch), torch.cat([2 * second.tensors[0], 0.5 * first.tensors[0]]))


@pytest.mark.parametrize(("initializer", "stands"), [("dog", ["dog"]), ("", []), ("embedding:x (a:2)", [])])
def test_a_tokenizer_without_a_text_encoder_reads_words(initializer: str, stands: list[str], apply: Any) -> None:
    embedding = learned("qwen3_06b", initializer=initializer)
    clip, _ = apply(anima(), embedding, 1.0)
    other = learned("qwen3_06b", initializer="cat", token="<pip>")
    for applied, end, more in ((clip, "", []), (apply(clip, other, 1.0)[0], " <pip>", ["cat"])):
        read = applied.reads(f"a <rex> here{end}")
        assert words(read["t5xxl"]) == ["a", *stands, "here", *more]
        assert torch.equal(vectors(read["qwen3_06b"])[:2], embedding.tensors[0])
    assert words(anima().reads("a <rex>")["t5xxl"]) == ["a", "<rex>"]


def test_a_text_encoder_that_was_not_loaded_is_named(apply: Any) -> None:
    clip = flux()
    clip.cond_stage_model.t5xxl = None
    with pytest.raises(ValueError, match=r"^clip: it lacks the text encoder t5xxl, .*'<rex>' has vectors; load it"):
        apply(clip, learned("clip_l", "t5xxl"), 1.0)


def test_a_token_of_other_encoders_is_refused(apply: Any, host: FakeHost) -> None:
    with pytest.raises(ValueError, match=r"not fit clip: .* \(for Wan\), the model needs 4096 \(t5xxl, for Chroma"):
        apply(one("t5xxl", 4096), learned("umt5xxl"), 1.0)
    assert not list((host.root / "temp").rglob("*.safetensors"))


def test_a_tokenizer_that_reads_no_embeddings_is_refused(apply: Any) -> None:
    clip = one("qwen25_7b", 3584)
    clip.tokenizer.qwen25_7b._vectors = lambda name: None  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^clip: this kind reads no embeddings"):
        apply(clip, learned("qwen25_7b"), 1.0)
