"""Embedding files as people have them: several in a prompt, EasyNegative, packs of tokens, LoRAs among them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
import torch
from safetensors.torch import save_file

from zoodip_core import Embedding, load_embedding, save_embedding
from zoodip_core.base.errors import CaptionError, ConfigError, EmbeddingFileError
from zoodip_core.cli import generate as command
from zoodip_core.cli.main import main
from zoodip_core.model.calls import calls_in
from zoodip_core.model.embedding import check_fits, describe, load_embeddings, serialize
from zoodip_core.model.embedding_tensors import MAX_BYTES
from zoodip_core.model.generation import encode_text
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_table import table_of

Tensors = dict[str, torch.Tensor]


def rows(vectors: int = 1, dim: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(vectors, dim, generator=torch.Generator().manual_seed(seed)) * 0.1


def learned(token: str, vectors: int = 1, seed: int = 0, alias: str = "") -> Embedding:
    return Embedding(token, (rows(vectors, seed=seed),), {}, alias)


REX, PIP = learned("<rex>", 2, 1), learned("<pip>", 3, 2)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tiny_model: StableDiffusion) -> list[dict[str, Any]]:
    """What the command draws, without drawing: a call of ``generate`` as it encodes its texts."""
    from PIL import Image

    asked: list[dict[str, Any]] = []

    def encode_only(model: StableDiffusion, prompts: list[str], seeds: list[int], **more: Any) -> list[Any]:
        texts = [*prompts, more["negative_prompt"]]
        found = calls_in(texts, more["embedding"])
        asked.append({text: [each.token for each in call.embeddings] for text, call in zip(texts, found, strict=True)})
        return [Image.new("RGB", (8, 8))] * len(prompts)

    monkeypatch.setattr(command, "load", lambda args: tiny_model)
    monkeypatch.setattr(command, "generate", encode_only)
    return asked


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main([str(each) for each in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


# ---------------------------------------------------------------- several in one prompt


def by_hand(model: StableDiffusion, pieces: list[str | torch.Tensor]) -> torch.Tensor:
    """What the text encoder makes of words and vectors put one after the other into its input embeddings."""
    (tokenizer,), (encoder,) = model.tokenizers, model.text_encoders
    text = encoder.text_model if hasattr(encoder, "text_model") else encoder
    table, dtype = encoder.get_input_embeddings(), model.dtype

    def of(ids: list[int]) -> torch.Tensor:
        return table(torch.tensor(ids)).to(dtype) if ids else torch.zeros(0, 128, dtype=dtype)

    middle = [
        of(tokenizer(piece, add_special_tokens=False).input_ids) if isinstance(piece, str) else piece.to(dtype)
        for piece in pieces
    ]
    held = torch.cat([of([tokenizer.bos_token_id]), *middle, of([tokenizer.eos_token_id])])
    pad = of([tokenizer.pad_token_id] * (tokenizer.model_max_length - len(held)))
    inputs = torch.cat([held, pad])[None]
    positions = text.embeddings.position_embedding.weight[None].to(dtype)
    mask = torch.full((inputs.shape[1],) * 2, torch.finfo(dtype).min, dtype=dtype).triu(1)[None, None]
    state = inputs + positions
    for layer in text.encoder.layers:
        out = layer(state, attention_mask=mask)
        state = out if isinstance(out, torch.Tensor) else out[0]
    return text.final_layer_norm(state)


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a <rex> beside a <pip>", ["a", REX, "beside a", PIP]),
        ("<pip><rex> red", [PIP, REX, "red"]),
        ("<rex>, <pip> and <rex>", [REX, ",", PIP, "and", REX]),
        ("a red star", ["a red star"]),
    ],
)
def test_two_tokens_stand_where_their_names_stood(
    tiny_model: StableDiffusion, prompt: str, pieces: list[str | Embedding]
) -> None:
    expected = [piece if isinstance(piece, str) else piece.vectors for piece in pieces]
    with torch.no_grad():
        ours = encode_text(tiny_model, prompt, [REX, PIP]).hidden
        theirs = by_hand(tiny_model, expected)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_one_token_of_two_is_as_if_it_were_alone(tiny_model: StableDiffusion) -> None:
    with torch.no_grad():
        both, alone = (encode_text(tiny_model, "a <rex> here", given).hidden for given in ([PIP, REX], REX))
    assert torch.equal(both, alone)


def test_both_halves_of_sdxl_are_placed(tmp_path: Path) -> None:
    """The vectors of both text encoders go to the same places."""
    wide = [Embedding(f"<{name}>", (rows(n, 768, n), rows(n, 1280, n))) for name, n in (("a", 1), ("b", 2))]
    (call,) = calls_in(["<b> on <a>"], wide)
    assert (call.text, call.counts) == ("{} on {}", (2, 1))
    assert call.vectors is not None
    assert torch.equal(call.vectors[0], torch.cat([wide[1].vectors, wide[0].vectors]))


def test_the_command_draws_with_two_and_in_the_negative_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [save_embedding(each, tmp_path) for each in (REX, PIP, learned("<bad>", seed=3))]
    given = [part for file in files for part in ("--embedding", str(file))]
    drawing = ["generate", *given, "--steps", "1", "--prompt", "a <rex> beside a <pip>"]
    assert main([*drawing, "--negative-prompt", "<bad>", "--output", str(tmp_path / "a")]) == 0
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["rex-pip-bad-1-seed0.png"]
    assert main([*drawing, "--negative-prompt", "<pip> <bad>", "--output", str(tmp_path / "b")]) == 0
    one, other = (next((tmp_path / name).iterdir()).read_bytes() for name in "ab")
    assert one != other
    assert "no prompt holds the token <bad>;" in refused(capsys, *drawing)


@pytest.mark.parametrize(
    ("tokens", "prompt", "text", "called"),
    [
        (("rex", "<rex>"), "a <rex>, a rex", "a {}, a {}", ("<rex>", "rex")),
        (("dog", "dog-2"), "a dog-2 and a dog", "a {} and a {}", ("dog-2", "dog")),
        (("dog", "<dog-2>"), "dog <dog-2>dogs", "{} {}dogs", ("dog", "<dog-2>")),
        (("<a>", "<b>"), "<A> <a><b>", "<A> {}{}", ("<a>", "<b>")),
        (("caf\u00e9", "<x>"), "a cafe\u0301 <x>", "a {} {}", ("caf\u00e9", "<x>")),
    ],
)
def test_no_name_eats_another(tokens: tuple[str, ...], prompt: str, text: str, called: tuple[str, ...]) -> None:
    for order in (tokens, tokens[::-1]):
        (call,) = calls_in([prompt], [learned(token) for token in order])
        assert (call.text, tuple(each.token for each in call.embeddings)) == (text, called)


def test_what_could_be_either_is_refused(tiny_model: StableDiffusion) -> None:
    with pytest.raises(EmbeddingFileError, match="2 embeddings have the same token <rex>"):
        calls_in(["<rex>"], [REX, learned("<rex>", seed=5)])
    with pytest.raises(ConfigError, match="may be any of 2 tokens"):
        calls_in(["a {}"], [REX, PIP])
    with pytest.raises(CaptionError) as caught:
        encode_text(tiny_model, "<rex>" * 20, REX)
    assert "40 for its tokens" in str(caught.value)
    assert "fewer vectors" not in str(caught.value)


# ---------------------------------------------------------------- called by its file


def easy(name: str = "EasyNegative") -> Embedding:
    return learned(f"<{name}>", alias=name)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("EasyNegative, bad hands", "{}, bad hands"),
        ("bad, easynegative", "bad, {}"),
        ("(EASYNEGATIVE:1.2)", "({}:1.2)"),
        ("<easynegative>", "{}"),
        ("embedding:EasyNegative, x", "{}, x"),
        ("embedding:easynegative.safetensors.", "{}."),
        ("(embedding:sub/EasyNegative.pt:1.1)", "({}:1.1)"),
        ("EasyNegativeV2 easynegative-2 xEasyNegative embedding:EasyNegative-2", None),
        ("<EasyNegative> and easynegative", "{} and easynegative"),
        ("<EasyNegative> and embedding:EasyNegative", "{} and {}"),
        ("{} and EasyNegative", "{} and EasyNegative"),
    ],
)
def test_a_file_s_name_calls_its_token(prompt: str, text: str | None) -> None:
    (call,) = calls_in([prompt], [easy()])
    assert call.text == (text or prompt)
    assert len(call.embeddings) == (text or "").count("{}")


def test_a_word_stays_a_word_where_another_prompt_has_the_token() -> None:
    dog = learned("<dog>", alias="dog")
    before, after = calls_in(["a photo of a dog", "a photo of a <dog>"], [dog])
    assert (before.text, before.embeddings) == ("a photo of a dog", ())
    assert after.embeddings == (dog,)


def test_two_files_of_one_name_have_their_tokens_alone() -> None:
    pair = [learned("<a>", alias="style"), learned("<b>", alias="Style")]
    first, second = calls_in(["in style, <a>", "embedding:style"], pair)
    assert (first.text, second.embeddings) == ("in style, {}", ())


def test_a_token_goes_before_another_s_file() -> None:
    cat = learned("cat", alias="x")
    (call,) = calls_in(["a cat"], [learned("<my-cat>", alias="cat"), cat])
    assert call.embeddings == (cat,)


def test_the_webui_s_prompt_works(
    tmp_path: Path, drawn: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"emb_params": rows(8)}, tmp_path / "EasyNegative.safetensors")
    drawing = ["generate", "--embedding", str(tmp_path / "EasyNegative.safetensors"), "--output", str(tmp_path / "out")]
    negative = "EasyNegative, (worst quality:1.4)"
    assert main([*drawing, "--prompt", "a monster", "--negative-prompt", negative]) == 0
    assert drawn == [{"a monster": [], negative: ["<EasyNegative>"]}]
    assert "no prompt holds the token <EasyNegative>;" in refused(capsys, *drawing, "--prompt", "a monster")


def test_a_name_is_not_written_into_files(tmp_path: Path) -> None:
    path = save_embedding(REX, tmp_path / "other.safetensors")
    read = load_embedding(path)
    assert read.alias == "other"
    assert serialize(read) == path.read_bytes()


# ---------------------------------------------------------------- several in one file


def diffusers(path: Path) -> Path:
    torch.save({"<rex>": rows(2, seed=1), "<pip>": rows(seed=2)[0]}, path.with_suffix(".bin"))
    return path.with_suffix(".bin")


def webui(path: Path) -> Path:
    torch.save({"string_to_param": {"<rex>": rows(2, seed=1), "<pip>": rows(seed=2)}, "name": "both"}, path)
    return path


def tensors(path: Path) -> Path:
    save_file({"<rex>": rows(2, seed=1), "<pip>": rows(seed=2)}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def bundle(path: Path) -> Path:
    parts = {"bundle_emb.<rex>.string_to_param.*": rows(2, seed=1), "bundle_emb.<pip>.emb_params": rows(seed=2)}
    save_file(parts, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("make", [diffusers, webui, tensors, bundle])
def test_each_token_of_a_file_can_be_taken(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "both.pt")
    for which in ("<pip>", "pip"):
        assert (chosen := load_embedding(path, which)).token == "<pip>"
        assert torch.equal(chosen.vectors, rows(seed=2))
    assert {each.token: each.num_vectors for each in load_embeddings(path)} == {"<rex>": 2, "<pip>": 1}
    with pytest.raises(EmbeddingFileError, match=r"holds 2 tokens \(<.*>, <.*>\).*--which NAME.*the input which"):
        load_embedding(path)
    with pytest.raises(EmbeddingFileError, match=r"holds no token <cat>; choose one of <.*, <"):
        load_embedding(path, "<cat>")


def test_a_pack_of_sdxl_tokens(tmp_path: Path) -> None:
    sizes = {"clip_g": 1280, "clip_l": 768}
    parts = {f"{name}.{part}": rows(2, dim) for name in ("<a>", "<b>") for part, dim in sizes.items()}
    save_file(parts, tmp_path / "pack.safetensors")
    assert [(each.token, each.dims) for each in load_embeddings(tmp_path / "pack.safetensors")] == [
        ("<a>", (768, 1280)),
        ("<b>", (768, 1280)),
    ]


def test_commands_take_all_tokens_of_a_file_or_one(
    tmp_path: Path, drawn: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tensors(tmp_path / "both")
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("the embedded tiny model") == 2
    assert main(["inspect", str(file), "--which", "rex"]) == 0
    shown = capsys.readouterr().out
    assert ("<rex>" in shown, "<pip>" in shown) == (True, False)
    drawing = ["generate", "--embedding", str(file), "--output", str(tmp_path / "out")]
    assert main([*drawing, "--prompt", "<pip> with <rex>", "--prompt", "<pip>"]) == 0
    assert main([*drawing, "--prompt", "<pip> with <rex>", "--which", "<rex>"]) == 0
    assert drawn == [
        {"<pip> with <rex>": ["<pip>", "<rex>"], "<pip>": ["<pip>"], "": []},
        {"<pip> with <rex>": ["<rex>"], "": []},
    ]
    told = refused(capsys, *drawing, "--prompt", "a monster")
    assert "no prompt holds a token of" in told
    assert "<rex>" in told
    assert "give one --embedding with it" in refused(capsys, "generate", "--which", "x", "--prompt", "x")
    assert "holds no token <x>" in refused(capsys, *drawing, "--prompt", "x", "--which", "<x>")
    images = ("--images", Path(__file__).parent.parent / "zoodip_core" / "tiny" / "concepts" / "pip" / "images")
    evaluating = ("evaluate", "--embedding", file, *images)
    assert "--which NAME" in refused(capsys, *evaluating)
    assert "holds no token <x>" in refused(capsys, *evaluating, "--which", "<x>")


def test_inspect_says_where_a_token_lies_among_the_words(
    tmp_path: Path, tiny_model: StableDiffusion, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a vector on the line from the words' mean through a word, five times as far out as words are."""
    (encoder,), (tokenizer,) = tiny_model.text_encoders, tiny_model.tokenizers
    ids = {text: i for text, i in tokenizer.get_vocab().items() if text.endswith("</w>") and len(text) > 5}
    table = np.asarray(table_of(encoder).rows(list(ids.values())), dtype=np.float64)
    mean = table.mean(axis=0)
    size = np.sqrt(((table - mean) ** 2).sum(axis=1).mean())
    word = table[list(ids).index("horns</w>")] - mean
    vector = mean + 5 * size * word / np.linalg.norm(word)
    cosines = (table - mean) @ word / np.linalg.norm(table - mean, axis=1) / np.linalg.norm(word)
    near = [list(ids)[i].removesuffix("</w>") for i in np.argsort(-cosines)[:5]]
    file = tmp_path / "far.safetensors"
    save_embedding(Embedding("<far>", (torch.from_numpy(vector)[None].float(),)), file)
    assert main(["inspect", str(file), "--model", "tiny"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "distance 5.0 (from the words' mean; that of words is 1)" in shown
    listed = ", ".join(f"{name} {sorted(cosines)[-1 - i]:.2f}" for i, name in enumerate(near))
    assert near[0] == "horns"
    assert f"nearest words {listed}" in shown
    assert "show less" not in shown
    save_embedding(Embedding("<far>", (torch.from_numpy(mean + 5 * (vector - mean))[None].float(),)), file)
    assert main(["inspect", str(file), "--model", "tiny"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "distance 25.0" in shown
    assert "show less of what it has learned" in shown
    assert "tiny is not an embedding; leave it out" in refused(capsys, "inspect", "tiny", "--model", "tiny")


def test_the_node_takes_one_token_of_several(pack: Any, host: Any) -> None:
    file = tensors(host.root / "embeddings" / "both")
    node = pack.NODE_CLASS_MAPPINGS["ZoodipLoadEmbedding"]()
    assert node.INPUT_TYPES()["optional"]["which"][1]["advanced"]
    loaded, report = node.load(file.name, " <pip> ")
    assert (loaded.token, torch.equal(loaded.vectors, rows(seed=2))) == ("<pip>", True)
    assert "<rex>" not in report
    with pytest.raises(ValueError, match=r"holds 2 tokens.*the input which of the node Load Embedding"):
        node.load(file.name)


# ---------------------------------------------------------------- something else


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"lora_unet_down_blocks_0.lora_down.weight": rows(4)}, "is a LoRA, not an embedding"),
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(1)}, "is a LoRA, not an embedding"),
        ({"base_model.model.to_q.lora_A.weight": rows(4, 768)}, "is a LoRA, not an embedding"),
        ({"shared.weight": rows(4, 4096)}, "is a layer of a network"),
        ({"token_embedding": rows(100)}, "more vectors than the 75 that a prompt holds"),
        ({"clip_l": rows(1, 768), "ofa": rows(1, 4096)}, "another kind of model: it holds clip_l, ofa"),
        ({"t5xxl": rows(1, 4096), "<rex>": rows(1, 4096)}, "another kind of model: it holds <rex>, t5xxl"),
        ({"clip_l": rows(1, 768), "t5xxl": rows(1, 768)}, "holds 2 tensors"),
        ({"clip_l": rows(1, 767), "t5xxl": rows(1, 4096)}, "holds 2 tensors"),
        ({"t5": rows(1, 4096), "t5xxl": rows(1, 4096)}, "holds 2 tensors"),
        ({"clip_l": rows(1, 768), "t5xxl": rows(2, 4096)}, "clip_l and t5xxl differ in their number of vectors"),
        ({"clip_l": rows(1, 768), "t5_out": rows(1, 4096)}, "t5_out, an output embedding of OneTrainer's"),
        ({"bundle_emb.<a>.clip_l_out": rows(1, 768)}, "an output embedding of OneTrainer's"),
        ({"a": rows(1, 768), "b": rows(1, 1024)}, "holds 2 tensors"),
        ({f"t{i:04}": rows() for i in range(1001)}, "holds 1001 tensors"),
        ({}, "holds 0 tensors"),
    ],
)
def test_what_is_no_token_is_refused_by_what_it_is(tmp_path: Path, found: Tensors, message: str) -> None:
    save_file(found, tmp_path / "a.safetensors")
    torch.save(found, tmp_path / "a.bin")
    for name in ("a.safetensors", "a.bin"):
        with pytest.raises(EmbeddingFileError, match=message):
            load_embedding(tmp_path / name)


def test_a_thousand_tokens_are_read(tmp_path: Path) -> None:
    save_file({f"t{i:04}": rows(1, 8) for i in range(1000)}, tmp_path / "a.safetensors")
    assert load_embedding(tmp_path / "a.safetensors", "t0500").token == "t0500"
    (call,) = calls_in(["t0001 t0999 t1000"], load_embeddings(tmp_path / "a.safetensors"))
    assert call.text == "{} {} t1000"


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (768, "Stable Diffusion 1.x"),
        (1280, "clip_g alone"),
        (4096, "T5 XXL, as in Stable Diffusion 3 and Flux"),
        (2560, "Qwen3"),
        (999, "another kind of model, of width 999"),
    ],
)
def test_a_width_is_called_by_its_model(width: int, said: str) -> None:
    embedding = Embedding("<a>", (torch.ones(1, width),))
    assert said in dict(describe(embedding))["for"]
    with pytest.raises(EmbeddingFileError, match=f"width {width} ") as caught:
        check_fits(embedding, (128,), "here")
    assert "sd-" not in str(caught.value)


# ---------------------------------------------------------------- inspect


def test_inspect_describes_a_model_of_any_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "zoodip_core.cli.inspect.predict_memory", lambda *_: "little"
    )  # it takes the words of a larger one
    modules = random_models.build("sd15", "small", 4, vocab=100)
    model = random_models.write_ldm(tmp_path / "small.safetensors", modules, "sd15")
    assert model.stat().st_size < MAX_BYTES
    assert main(["inspect", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "trained on" in shown
    assert "GPU, int8" in shown


def test_inspect_says_what_is_there_of_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "inspect", tmp_path / "typo.safetensors")
    assert "typo.safetensors does not exist; give an embedding" in told
    assert "embedding file" not in told

    vae = {f"encoder.{name}.weight": rows() for name in ("conv_in", "mid.a", "mid.b", "norm", "conv_out")}
    save_file(vae, tmp_path / "vae.safetensors")
    assert "is a VAE alone" in refused(capsys, "inspect", tmp_path / "vae.safetensors")
    save_file({"a": rows(), "b": rows(1, 64)}, tmp_path / "two.safetensors")
    assert "an embedding has one" in refused(capsys, "inspect", tmp_path / "two.safetensors")
    shutil.copy(tmp_path / "two.safetensors", tmp_path / "two.ckpt")
    assert "model: " in refused(capsys, "inspect", tmp_path / "two.ckpt")
    assert "is not an embedding; leave it out" in refused(capsys, "inspect", "tiny", "--which", "x")
