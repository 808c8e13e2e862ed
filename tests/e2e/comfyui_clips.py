"""What ComfyUI's own text encoders make of our tokens: a program for the host's Python, which prints JSON.

    COMFYUI_DIR=... COMFYUI_PYTHON comfyui_clips.py FOLDER NAME...

The classes are ComfyUI's and the tokenizers whole; the models are as wide as they are, with few random layers. A row of
a table of words is drawn when a prompt first holds the word, for the tables are large. What is expected is encoded from
tokens in whose list the vectors were put by hand.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
LLAMA = {"num_hidden_layers": 4, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
SMALL = {
    "clip_l": {"num_hidden_layers": 3},
    "clip_g": {"num_hidden_layers": 3},
    "clip_h": {"num_hidden_layers": 3},
    "t5xxl": {"num_layers": 1, "d_ff": 64},
    "umt5xxl": {"num_layers": 1, "d_ff": 64},
}
SENTENCES = ("WanT5Tokenizer", "LuminaTokenizer")
"""Tokenizers that come with a model's file, not with ComfyUI."""
VECTORS = 2


@dataclass(frozen=True)
class Kind:
    """A kind of CLIP.

    Args:
        tokenizer: ``module:class`` in ``comfy``.
        model: the same of its text encoders; with ``()`` at its end where a function makes the class.
        encoders: each one's width, by what ComfyUI looks for in files.
        parts: of the tokens by text encoder the key, with the tokenizer's attribute that makes them.
        weighs: whether the strength is a weight.
        stock: whether ComfyUI's own loader takes the file.
        options: of the function that makes the class.
        layers: more of the text encoder's config.
    """

    tokenizer: str
    model: str
    encoders: dict[str, int]
    parts: dict[str, tuple[str, str]]
    weighs: bool = True
    stock: bool = True
    options: tuple[tuple[str, Any], ...] = ()
    layers: tuple[tuple[str, int], ...] = ()


def one(name: str, width: int, attribute: str = "") -> dict[str, Any]:
    """The fields of a kind with one text encoder."""
    key = attribute.removeprefix("clip_") if attribute else name
    return {"encoders": {name: width}, "parts": {name: (key, attribute or name)}}


L, G, T5 = ("l", "clip_l"), ("g", "clip_g"), ("t5xxl", "t5xxl")
LG, LT5 = {"clip_l": 768, "clip_g": 1280}, {"clip_l": 768, "t5xxl": 4096}
ENCODERS = "text_encoders"
KINDS = {
    "sd1": Kind("sd1_clip:SD1Tokenizer", "sd1_clip:SD1ClipModel", **one("clip_l", 768, "clip_l")),
    "sd2": Kind(
        f"{ENCODERS}.sd2_clip:SD2Tokenizer", f"{ENCODERS}.sd2_clip:SD2ClipModel", **one("clip_h", 1024, "clip_h")
    ),
    "sdxl": Kind("sdxl_clip:SDXLTokenizer", "sdxl_clip:SDXLClipModel", LG, {"clip_l": L, "clip_g": G}),
    "sdxl refiner": Kind("sdxl_clip:SDXLTokenizer", "sdxl_clip:SDXLRefinerClipModel", LG, {"clip_l": L, "clip_g": G}),
    "sd35": Kind(
        f"{ENCODERS}.sd3_clip:SD3Tokenizer",
        f"{ENCODERS}.sd3_clip:sd3_clip()",
        {**LG, "t5xxl": 4096},
        {"clip_l": L, "clip_g": G, "t5xxl": T5},
    ),
    "flux": Kind(f"{ENCODERS}.flux:FluxTokenizer", f"{ENCODERS}.flux:flux_clip()", LT5, {"clip_l": L, "t5xxl": T5}),
    "chroma": Kind(
        f"{ENCODERS}.pixart_t5:PixArtTokenizer",
        f"{ENCODERS}.pixart_t5:pixart_te()",
        {"t5xxl": 4096},
        {"t5xxl": ("t5xxl", "clip_t5xxl")},
    ),
    "z-image": Kind(
        f"{ENCODERS}.z_image:ZImageTokenizer", f"{ENCODERS}.z_image:te()", **one("qwen3_4b", 2560), weighs=False
    ),
    "klein": Kind(
        f"{ENCODERS}.flux:KleinTokenizer",
        f"{ENCODERS}.flux:klein_te()",
        **one("qwen3_4b", 2560),
        weighs=False,
        layers=(("num_hidden_layers", 28),),
    ),
    "qwen-image": Kind(
        f"{ENCODERS}.qwen_image:QwenImageTokenizer",
        f"{ENCODERS}.qwen_image:te()",
        **one("qwen25_7b", 3584),
        weighs=False,
        stock=False,
    ),
    "hunyuan-image": Kind(
        f"{ENCODERS}.hunyuan_image:HunyuanImageTokenizer",
        f"{ENCODERS}.hunyuan_image:te()",
        **one("qwen25_7b", 3584),
        weighs=False,
        stock=False,
        options=(("byt5", False),),
    ),
    "hunyuan-video": Kind(
        f"{ENCODERS}.hunyuan_video:HunyuanVideoTokenizer",
        f"{ENCODERS}.hunyuan_video:hunyuan_video_clip()",
        {"clip_l": 768, "llama": 4096},
        {"clip_l": L, "llama": ("llama", "llama")},
        stock=False,
    ),
    "krea2": Kind(
        f"{ENCODERS}.krea2:Krea2Tokenizer", f"{ENCODERS}.krea2:te()", **one("qwen3vl_4b", 2560), weighs=False
    ),
    "anima": Kind(
        f"{ENCODERS}.anima:AnimaTokenizer",
        f"{ENCODERS}.anima:te()",
        **one("qwen3_06b", 1024),
        weighs=False,
        stock=False,
    ),
    "wan": Kind(
        f"{ENCODERS}.wan:WanT5Tokenizer",
        f"{ENCODERS}.wan:te()",
        {"umt5xxl": 4096},
        {"umt5xxl": ("umt5xxl", "clip_umt5xxl")},
        stock=False,
    ),
    "lumina2": Kind(
        f"{ENCODERS}.lumina2:LuminaTokenizer", f"{ENCODERS}.lumina2:te()", **one("gemma2_2b", 2304), stock=False
    ),
}
TEXT = "a photo of {} on grass"


def found(place: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """A class of ComfyUI's.

    Raises:
        ModuleNotFoundError: this version has none.
    """
    module, _, name = place.partition(":")
    thing = getattr(importlib.import_module(f"comfy.{module}"), name.removesuffix("()"), None)
    if thing is None:
        raise ModuleNotFoundError(f"comfy.{module} has no {name}")
    return thing(**dict(options)) if name.endswith("()") else thing


def sentences() -> torch.Tensor:
    """A sentencepiece model that knows a few letters."""
    import sentencepiece  # type: ignore[import-untyped,import-not-found,unused-ignore]

    model = io.BytesIO()
    text = ["a photo of a dog on grass", "the quick brown fox jumps over the lazy dog", "embedding: (x:1.2) zoodip"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 5), model_writer=model, vocab_size=50, hard_vocab_limit=False, minloglevel=2
    )
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def small_clip(kind: Kind, stock_folder: Path) -> Any:
    import comfy.sd

    names = {*kind.encoders, "clip_l", "clip_g", "t5xxl"}
    options = {f"{name}_model_config": {**SMALL.get(name, LLAMA), **dict(kind.layers)} for name in names}
    target = SimpleNamespace(params={}, clip=found(kind.model, kind.options), tokenizer=found(kind.tokenizer, ()))
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=[str(stock_folder)],
        model_options=options,
        parameters=0,
        tokenizer_data={"spiece_model": sentences()} if kind.tokenizer.endswith(SENTENCES) else {},
    )
    generator = torch.Generator().manual_seed(0)
    tables = {id(table.weight) for table in tables_of(clip)}
    for name, parameter in clip.cond_stage_model.named_parameters():
        if id(parameter) in tables:
            parameter.data = torch.zeros_like(parameter)
        elif "visual" not in name:
            plain = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.data = (plain if parameter.ndim > 1 else 1 + plain).to(parameter.dtype)
    return clip


def tables_of(clip: Any) -> list[Any]:
    parts = [part for part in clip.cond_stage_model.children() if hasattr(part, "transformer")]
    return [part.transformer.get_input_embeddings() for part in parts]


def encoded(clip: Any, tokens: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What a CLIP makes of tokens. Rows of words that come for the first time are drawn, by their numbers."""
    words = {entry[0] for batches in tokens.values() for batch in batches for entry in batch if type(entry[0]) is int}
    for table in tables_of(clip):
        for word in words:
            if word < len(table.weight) and not table.weight[word].any():
                drawn = torch.randn(table.weight.shape[1], generator=torch.Generator().manual_seed(word))
                table.weight.data[word] = 0.3 * drawn
    with torch.inference_mode():
        out = clip.encode_from_tokens(tokens, return_dict=True)
    return {key: value for key, value in out.items() if isinstance(value, torch.Tensor)}


def by_hand(kind: Kind, clip: Any, embedding: Any, sentinel: Path, weight: float = 1.0) -> dict[str, Any]:
    """Tokens of the text with the vectors put in their places, which a file of other numbers marks."""
    marked = f"embedding:{sentinel.stem}"
    asked: dict[str, list[Any]] = {}
    copied = copy.copy(clip.tokenizer)
    for name, inner in vars(clip.tokenizer).items():
        if hasattr(inner, "embedding_directory"):
            inner = copy.copy(inner)
            inner.embedding_directory = [str(sentinel.parent)]
            setattr(copied, name, noting(inner, name, asked))
    try:
        tokens = copied.tokenize_with_weights(TEXT.format(marked))
    except RuntimeError:  # as Qwen-Image's does; then what its inner tokenizer gave is all that there is
        tokens = {}
    for name, tensor in zip(embedding.encoders or kind.encoders, embedding.tensors, strict=True):
        key, attribute = kind.parts[name]
        tokens[key] = placed(asked[attribute], tensor, weight)
    if "t5xxl" in vars(clip.tokenizer) and "t5xxl" not in kind.parts:
        tokens["t5xxl"] = clip.tokenizer.t5xxl.tokenize_with_weights(TEXT.format("dog"))
    return tokens


def noting(inner: Any, name: str, asked: dict[str, list[Any]]) -> Any:
    class Noting(type(inner)):  # type: ignore[misc]
        def tokenize_with_weights(self, *args: Any, **options: Any) -> Any:
            asked[name] = super().tokenize_with_weights(*args, **options)
            return asked[name]

    inner.__class__ = Noting
    return inner


def placed(batches: list[Any], tensor: torch.Tensor, weight: float) -> list[Any]:
    rows = iter(tensor)
    return [[(next(rows), weight) if torch.is_tensor(e[0]) else e[:2] for e in batch] for batch in batches]


def vectors_in(tokens: dict[str, Any]) -> dict[str, int]:
    """How many vectors stand among the tokens of each text encoder."""
    counts = {
        key: sum(not isinstance(e[0], int) for batch in batches for e in batch) for key, batches in tokens.items()
    }
    return {key: count for key, count in counts.items() if count}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].shape == other[key].shape and torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-5) for key in one
    )


def seen(kind: Kind, folder: Path, pack: Any) -> dict[str, Any]:
    """What is true of a kind of CLIP, by what is asked."""
    core = importlib.import_module(f"{pack.__name__}.zoodip_core.model.embedding")
    kinds = importlib.import_module(f"{pack.__name__}.zoodip_core.model.kinds")
    tokenizer = importlib.import_module(f"{pack.__name__}.nodes.tokenizer")
    apply: Callable[..., Any] = pack.NODE_CLASS_MAPPINGS["ZoodipApplyEmbedding"]().apply
    stock, marks = folder / "stock", folder / "marks"
    for place in (stock, marks):
        place.mkdir(parents=True)
    generator = torch.Generator().manual_seed(1)
    tensors = tuple(0.3 * torch.randn(VECTORS, width, generator=generator) for width in kind.encoders.values())
    named = kinds.names_of(kind.encoders.items())
    embedding = core.Embedding("<rex>", tensors, {"initializer": "dog"}, encoders=named)
    core.save_embedding(embedding, stock / "rex.safetensors")
    save_file({name: torch.ones(VECTORS, width) for name, width in kind.encoders.items()}, marks / "mark.safetensors")
    clip = small_clip(kind, stock)
    report: dict[str, Any] = {"encoders": dict(tokenizer.text_encoders_of(clip)) == kind.encoders}
    expected = encoded(clip, by_hand(kind, clip, embedding, marks / "mark.safetensors"))
    report["finite"] = all(bool(each.isfinite().all()) for each in expected.values())
    if kind.stock:
        report["stock"] = same(encoded(clip, clip.tokenize(TEXT.format("embedding:rex"))), expected)
    applied, text = apply(clip, embedding, 1.0)
    report["applied"] = same(encoded(applied, applied.tokenize(TEXT.format("<rex>"))), expected)
    report["wired"] = same(encoded(applied, applied.tokenize(TEXT.format(text))), expected)
    heavy, text = apply(clip, embedding, 1.2)
    scaled = core.Embedding("<rex>", tuple(1.2 * each for each in tensors), {}, encoders=named)
    hand = (embedding, marks / "mark.safetensors", 1.2) if kind.weighs else (scaled, marks / "mark.safetensors")
    weighed = encoded(clip, by_hand(kind, clip, *hand))
    report["heavier"] = same(encoded(heavy, heavy.tokenize(TEXT.format("<rex>"))), weighed)
    report["weight seen"] = not same(weighed, expected)
    report["bracket"] = text.startswith("(") == kind.weighs
    counts = {key: VECTORS for key, _ in kind.parts.values()}
    prompts = ("<rex>", "(<rex>:1.3)", "a (<rex>) here", "<rex>, sharp", "my-<rex>'s house", text)
    report["anywhere"] = all(vectors_in(heavy.tokenize(prompt)) == counts for prompt in prompts)
    both, _ = apply(applied, core.Embedding("<pip>", tensors, {}, encoders=named), 1.0)
    twice = {key: 2 * count for key, count in counts.items()}
    report["two"] = vectors_in(both.tokenize("<pip> and <rex>")) == twice
    report["clean"] = "zoodip_" not in repr(vars(clip.tokenizer)) and not vectors_in(clip.tokenize("a <rex>"))
    return report


def lacking(folder: Path, pack: Any) -> str:
    """What is said of a CLIP of Stable Diffusion 3.5 whose T5 was not loaded."""
    core = importlib.import_module(f"{pack.__name__}.zoodip_core.model.embedding")
    kind = KINDS["sd35"]
    clip = small_clip(
        Kind(kind.tokenizer, kind.model, LG, {"clip_l": L, "clip_g": G}, options=(("t5", False),)), folder
    )
    tensors = tuple(torch.ones(1, width) for width in kind.encoders.values())
    apply = pack.NODE_CLASS_MAPPINGS["ZoodipApplyEmbedding"]().apply
    apply(clip, core.Embedding("<xl>", tensors[:2]), 1.0)
    try:
        apply(clip, core.Embedding("<rex>", tensors, encoders=tuple(kind.encoders)), 1.0)
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder: Path, names: list[str]) -> None:
    declared = importlib.import_module("launch_comfyui").declare_torchvision()
    sys.path[:0] = [os.environ["COMFYUI_DIR"], str(HERE.parents[1] / "tools")]
    sys.argv = ["", "--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing()
    pack = importlib.import_module("node_pack").import_pack()
    host = SimpleNamespace(temp_folder=lambda: folder / "temp")
    report: dict[str, Any] = {}
    with importlib.import_module(f"{pack.__name__}.nodes.host").hosted_by(host):
        for name in names:
            try:
                if name == "lacking":
                    report[name] = lacking(folder, pack)
                else:
                    report[name] = seen(KINDS[name], folder / name, pack)
            except (ModuleNotFoundError, FileNotFoundError) as error:  # a tokenizer may be left out of a copy
                report[name] = f"absent: {error}"
    del declared
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
