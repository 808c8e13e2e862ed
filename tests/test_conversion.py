"""Embeddings in other programs' formats: every pair of formats, what is lost, files as those programs read them."""

from __future__ import annotations

import copy
import itertools
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zoodip_core.base.errors import EmbeddingFileError
from zoodip_core.cli.main import main
from zoodip_core.model.conversion import FORMATS, converted, joined, save_together
from zoodip_core.model.embedding import Embedding, describe, load_embedding, save_embedding, serialize

GOLDEN = Path(__file__).parent / "formats" / "version1"
ABOUT = {"steps": "30", "base_model": "v1-5", "base_model_hash": "abc", "initializer": "dog", "config": '{"lr": 1}'}


def learned(*widths: int, vectors: int = 2, encoders: tuple[str, ...] = (), token: str = "<rex>") -> Embedding:
    """A token whose numbers are odd ones too: -0.0, the smallest and the largest float32."""
    noise = torch.Generator().manual_seed(sum(widths))
    tensors = tuple(torch.randn(vectors, width, generator=noise) for width in widths)
    for rows in tensors:
        rows[0, :4] = torch.tensor([-0.0, 1e-45, 3.4028234e38, -1e-38])
    return Embedding(token, tensors, dict(ABOUT), encoders=encoders)


KINDS = {
    "sd1": learned(768),
    "sd2": learned(1024),
    "sdxl": learned(768, 1280),
    "tiny": learned(128),
    "flux": learned(768, 4096, encoders=("clip_l", "t5xxl")),
    "sd3": learned(768, 1280, 4096, encoders=("clip_l", "clip_g", "t5xxl"), vectors=1),
    "chroma": learned(4096, encoders=("t5xxl",)),
    "z-image": learned(2560, encoders=("qwen3_4b",)),
}
HELD = {
    "safetensors": set(KINDS),
    "a1111-pt": {"sd1", "sd2", "sdxl", "tiny"},
    "diffusers-bin": {"sd1", "sd2", "sdxl", "tiny", "chroma", "z-image"},
    "diffusers-safetensors": {"sd1", "sd2", "sdxl", "tiny", "chroma", "z-image"},
    "onetrainer": set(KINDS) - {"z-image"},
}
"""Which kinds of tokens each format holds."""
PAIRS = [
    (one, other, kind)
    for one, other in itertools.product(FORMATS, repeat=2)
    for kind in KINDS
    if kind in HELD[one] & HELD[other]
]


def bits(embedding: Embedding) -> list[bytes]:
    return [rows.numpy().tobytes() for rows in embedding.tensors]


def through(embedding: Embedding, to: str, folder: Path) -> Embedding:
    """A token as it is read from its files in a format."""
    made = converted(embedding, to, "rex")
    folder.mkdir(exist_ok=True)
    for name, content in made.files.items():
        (folder / name).write_bytes(content)
    return joined([load_embedding(folder / name) for name in made.files])


def test_the_table_of_these_tests_has_every_format() -> None:
    assert HELD.keys() == FORMATS.keys()


@pytest.mark.parametrize(("one", "other", "kind"), PAIRS)
def test_numbers_go_from_each_format_to_each_and_back(tmp_path: Path, one: str, other: str, kind: str) -> None:
    """Bit for bit. The name stays too, in a file of that name if in no other way."""
    embedding = KINDS[kind]
    first = through(embedding, one, tmp_path / "first")
    second = through(first, other, tmp_path / "second")
    back = through(second, one, tmp_path / "back")
    assert bits(first) == bits(second) == bits(back) == bits(embedding)
    assert first.token == second.token == back.token == "<rex>"
    assert first.dims == second.dims == embedding.dims


@pytest.mark.parametrize(("to", "kind"), [(to, kind) for to in FORMATS for kind in KINDS if kind not in HELD[to]])
def test_where_a_tensor_would_be_lost_no_file_is_made(to: str, kind: str) -> None:
    with pytest.raises(EmbeddingFileError, match=rf"^{to} cannot hold <rex> for .*; safetensors holds it"):
        converted(KINDS[kind], to, "rex")


MADE = {"initializer", "settings"}
BASE = {"base model", "base model hash", "steps"}


@pytest.mark.parametrize(
    ("to", "kind", "stem", "lost"),
    [
        ("safetensors", "sdxl", "other", set()),
        ("safetensors", "flux", "other", set()),
        ("a1111-pt", "sd1", "other", MADE),
        ("a1111-pt", "sdxl", "rex", MADE | BASE),
        ("a1111-pt", "sdxl", "other", MADE | BASE | {"the token's name <rex>, for which programs take the file's"}),
        ("diffusers-bin", "sd2", "other", MADE | BASE),
        ("diffusers-bin", "chroma", "other", MADE | BASE | {"which text encoder it is for (t5xxl)"}),
        ("diffusers-safetensors", "sdxl", "other", set()),
        ("diffusers-safetensors", "z-image", "other", {"which text encoder it is for (qwen3_4b)"}),
        ("onetrainer", "sd1", "other", set()),
        ("onetrainer", "flux", "other", set()),
    ],
)
def test_what_a_format_has_no_place_for_is_said(to: str, kind: str, stem: str, lost: set[str]) -> None:
    assert set(converted(KINDS[kind], to, stem).lost) == lost


def test_the_same_token_gives_the_same_bytes() -> None:
    for to in FORMATS:
        assert converted(KINDS["sdxl"], to, "rex") == converted(KINDS["sdxl"], to, "rex"), to


def test_a_part_of_a_larger_tensor_brings_nothing_along() -> None:
    whole = torch.randn(75, 2048)
    parts = Embedding("<rex>", tuple(whole[:1].split((768, 1280), dim=1)))
    assert max(len(each) for each in converted(parts, "diffusers-bin", "rex").files.values()) < 8000


# ---------------------------------------------------------------- as other programs read them

A1111_ALLOWS = re.compile(r"^([^/]+)/((data/\d+)|version|byteorder|.data/serialization_id|(data\.pkl))$")
"""The names within a zipped file that A1111's ``modules/safe.py`` lets pass; what newer torch writes has others."""


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_an_a1111_file_is_one(tmp_path: Path, kind: str) -> None:
    (content,) = converted(KINDS[kind], "a1111-pt", "rex").files.values()
    (tmp_path / "rex.pt").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "rex.pt") as file:
        assert all(map(A1111_ALLOWS.match, file.namelist()))
        assert {entry.compress_type for entry in file.infolist()} == {zipfile.ZIP_STORED}
    data = torch.load(tmp_path / "rex.pt", weights_only=True)
    if kind == "sdxl":
        assert {key: list(rows.shape) for key, rows in data.items()} == {"clip_l": [2, 768], "clip_g": [2, 1280]}
        return
    rows = data.pop("string_to_param")["*"]
    assert rows.dtype == torch.float32
    assert torch.equal(rows, KINDS["sd1"].tensors[0])
    assert data == {
        "string_to_token": {"*": 265},
        "name": "<rex>",
        "step": 30,
        "sd_checkpoint": "abc",
        "sd_checkpoint_name": "v1-5",
    }


@pytest.mark.parametrize("to", ["a1111-pt", "diffusers-bin"])
def test_diffusers_loads_them(tmp_path: Path, to: str, tiny_model: Any) -> None:
    from diffusers import StableDiffusionPipeline

    from zoodip_core.model.kinds import TINY_PATH

    token = replace(KINDS["tiny"], tensors=(torch.randn(2, 128, generator=torch.Generator().manual_seed(1)),))
    ((name, content),) = converted(token, to, "rex").files.items()
    (tmp_path / name).write_bytes(content)
    pipeline = StableDiffusionPipeline.from_pretrained(TINY_PATH, safety_checker=None, local_files_only=True)
    pipeline.load_textual_inversion(str(tmp_path / name))
    ids = pipeline.tokenizer(pipeline.maybe_convert_prompt("a <rex>", pipeline.tokenizer)).input_ids
    table = pipeline.text_encoder.get_input_embeddings().weight
    torch.testing.assert_close(table[ids[2:4]], token.tensors[0].to(table.dtype), atol=1e-3, rtol=1e-3)


def test_diffusers_has_a_file_for_each_text_encoder_of_sdxl(tmp_path: Path) -> None:
    for to, ending in (("diffusers-bin", ".bin"), ("diffusers-safetensors", ".safetensors")):
        made = converted(KINDS["sdxl"], to, "rex")
        assert list(made.files) == [f"rex{ending}", f"rex_2{ending}"]
        save_together({tmp_path / name: content for name, content in made.files.items()})
        for name, rows in zip(made.files, KINDS["sdxl"].tensors, strict=True):
            file = tmp_path / name
            data = load_file(file) if ending == ".safetensors" else torch.load(file, weights_only=True)
            assert list(data) == ["<rex>"]
            assert torch.equal(data["<rex>"], rows)


def test_diffusers_loads_both_halves_into_their_text_encoders(tmp_path: Path, tiny_model: Any) -> None:
    """As the documentation says: a file, a text encoder and its tokenizer at a time."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    from zoodip_core.model.kinds import TINY_PATH

    pipeline = StableDiffusionPipeline.from_pretrained(TINY_PATH, safety_checker=None, local_files_only=True)
    token = learned(768, 1280)
    for (name, content), rows in zip(
        converted(token, "diffusers-bin", "rex").files.items(), token.tensors, strict=True
    ):
        (tmp_path / name).write_bytes(content)
        small = {"num_hidden_layers": 0, "num_attention_heads": 8, "intermediate_size": 8, "vocab_size": 1000}
        encoder = CLIPTextModel(CLIPTextConfig(hidden_size=rows.shape[1], **small))
        tokenizer = copy.deepcopy(pipeline.tokenizer)
        pipeline.load_textual_inversion(str(tmp_path / name), text_encoder=encoder, tokenizer=tokenizer)
        ids = tokenizer.convert_tokens_to_ids(["<rex>", "<rex>_1"])
        assert torch.equal(encoder.get_input_embeddings().weight[ids], rows)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [("sd1", {"emp_params"}), ("sdxl", {"clip_l", "clip_g"}), ("sd3", {"clip_l", "clip_g", "t5"}), ("chroma", {"t5"})],
)
def test_onetrainer_finds_its_names(tmp_path: Path, kind: str, keys: set[str]) -> None:
    (content,) = converted(KINDS[kind], "onetrainer", "rex").files.values()
    (tmp_path / "rex.safetensors").write_bytes(content)
    assert set(load_file(tmp_path / "rex.safetensors")) == keys


def test_a_token_of_onetrainers_is_called_like_its_file(tmp_path: Path) -> None:
    """OneTrainer writes no name, and spells its tensor so."""
    save_file({"emp_params": torch.ones(1, 768)}, tmp_path / "pip.safetensors")
    assert load_embedding(tmp_path / "pip.safetensors").token == "<pip>"
    save_file({"emp_params": torch.ones(1, 768), "emp_params_out": torch.ones(1, 768)}, tmp_path / "pip.safetensors")
    with pytest.raises(EmbeddingFileError, match="emp_params_out, an output embedding of OneTrainer's"):
        load_embedding(tmp_path / "pip.safetensors")


# ---------------------------------------------------------------- what is in files


@pytest.mark.parametrize("golden", ["rex", "rex-sdxl", "boo-step30"])
def test_a_token_of_version_1_comes_back_from_each_format(tmp_path: Path, golden: str) -> None:
    """To the byte where the format has a place for all of it."""
    token = load_embedding(GOLDEN / f"{golden}.safetensors")
    for to in FORMATS:
        back = through(token, to, tmp_path / to)
        assert bits(back) == bits(token)
        if to in ("safetensors", "diffusers-safetensors", "onetrainer"):
            assert serialize(back) == (GOLDEN / f"{golden}.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = torch.randn(2, 768).to(dtype)
    torch.save({"<rex>": rows}, tmp_path / "half.bin")
    read = through(load_embedding(tmp_path / "half.bin"), "a1111-pt", tmp_path / "out")
    assert torch.equal(read.tensors[0], rows.float())
    assert torch.equal(read.tensors[0].to(dtype), rows)


def test_double_precision_is_rounded_and_said(tmp_path: Path) -> None:
    exact = torch.full((1, 768), 0.5, dtype=torch.float64)
    for rows, rounded in ((exact, False), (exact + 1e-12, True)):
        torch.save({"<rex>": rows}, tmp_path / "long.bin")
        read = load_embedding(tmp_path / "long.bin")
        assert torch.equal(read.tensors[0], rows.float())
        assert ("its numbers were float64; they are rounded" in dict(describe(read)).get("note", "")) == rounded
        assert "note" not in dict(describe(through(read, "safetensors", tmp_path)))


def test_a_note_on_a_file_does_not_go_into_the_next(tmp_path: Path) -> None:
    """It would say of the new file that ComfyUI does not read it."""
    save_file({"clip_l": torch.ones(1, 768), "t5": torch.ones(1, 4096)}, tmp_path / "pip.safetensors")
    read = load_embedding(tmp_path / "pip.safetensors")
    assert "ComfyUI does not read" in dict(describe(read))["note"]
    again = through(read, "safetensors", tmp_path / "again")
    assert again.encoders == ("clip_l", "t5xxl")
    assert "note" not in dict(describe(again))


@pytest.mark.parametrize("token", ["x.weight", "*", "emb_params", "a.clip_l"])
def test_a_name_that_files_give_a_meaning(tmp_path: Path, token: str) -> None:
    """Is lost, and that is said, or the file is refused; the numbers are never another's."""
    for to in FORMATS:
        embedding = replace(KINDS["sd1"], token=token)
        try:
            made = converted(embedding, to, "rex")
        except EmbeddingFileError as error:
            assert "give it another name (--as NEW" in str(error)  # noqa: PT017
            continue
        assert bits(through(embedding, to, tmp_path)) == bits(embedding)
        kept = through(embedding, to, tmp_path).token == token
        assert kept or any(token in line for line in made.lost)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ((learned(768), learned(1024)), "<rex> is for Stable Diffusion 1.x and <rex> is for Stable Diffusion 2.x"),
        ((learned(768), learned(768)), "of width 768 in one file and 1280 in the other"),
        ((learned(768), learned(1280, token="<pip>")), "<rex> with 2 vectors, <pip> with 2"),
        ((learned(768), learned(1280, vectors=1)), "<rex> with 2 vectors, <rex> with 1"),
        ((learned(768), learned(1280), learned(1280)), "several files are one token only as diffusers keeps"),
    ],
)
def test_files_that_are_not_one_token(parts: tuple[Embedding, ...], told: str) -> None:
    with pytest.raises(EmbeddingFileError, match=re.escape(told)):
        joined(parts)


def test_of_two_files_none_is_written_if_one_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {tmp_path / "rex.bin": b"one", tmp_path / "rex_2.bin": b"other"}
    before, opened = Path.open, []

    def full(self: Path, *given: Any, **more: Any) -> Any:
        opened.append(self)
        if len(opened) == 2:
            raise OSError(28, "No space left on device")
        return before(self, *given, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"rex_2.bin: the disk is full"):
        save_together(files)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the command


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["convert", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["convert", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_the_command_takes_a_pair_and_writes_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rex.safetensors"
    file.write_bytes(serialize(KINDS["sdxl"]))
    shown = run(capsys, file, "--to", "diffusers-bin")
    assert shown.splitlines()[:2] == [str(tmp_path / "rex.bin"), str(tmp_path / "rex_2.bin")]
    assert "for: Stable Diffusion XL" in shown
    assert "not kept, for the format has no place for it: base model, base model hash, settings, initializer" in shown
    again = tmp_path / "again.safetensors"
    shown = run(capsys, tmp_path / "rex_2.bin", tmp_path / "rex.bin", "--to", "safetensors", "--output", again)
    assert "not kept" not in shown
    assert bits(load_embedding(again)) == bits(KINDS["sdxl"])


def test_the_command_never_overwrites_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_embedding(KINDS["sdxl"], tmp_path)
    (tmp_path / "rex_2.bin").write_bytes(b"mine")
    told = refused(capsys, file, "--to", "diffusers-bin")
    assert "rex_2.bin is there already; choose another --output FILE, or replace it with --overwrite" in told
    assert not (tmp_path / "rex.bin").exists()
    run(capsys, file, "--to", "diffusers-bin", "--overwrite")
    assert (tmp_path / "rex_2.bin").read_bytes() != b"mine"
    before = file.read_bytes()
    run(capsys, file, "--to", "onetrainer")  # whose file would have the same name
    assert (tmp_path / "rex-onetrainer.safetensors").is_file()
    assert file.read_bytes() == before
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".bin", ".bin", ".safetensors", ".safetensors"]


def test_the_command_names_and_chooses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"<rex>": torch.ones(1, 768), "<pip>": torch.zeros(2, 768)}, tmp_path / "both.bin")
    assert "holds 2 tokens" in refused(capsys, tmp_path / "both.bin", "--to", "a1111-pt")
    run(capsys, tmp_path / "both.bin", "--to", "a1111-pt", "--which", "pip", "--as", "<new>")
    read = load_embedding(tmp_path / "new.pt")
    assert (read.token, read.num_vectors) == ("<new>", 2)
    told = refused(capsys, tmp_path / "new.pt", "--to", "safetensors", "--output", tmp_path / "x.pt")
    assert "safetensors writes a .safetensors file; choose that ending" in told
    assert "holds brackets" in refused(capsys, tmp_path / "new.pt", "--to", "safetensors", "--as", "a,b")
    torch.save({"../up": torch.ones(1, 768), "x": torch.ones(1, 768)}, tmp_path / "odd.bin")
    assert "holds parts of a path" in refused(capsys, tmp_path / "odd.bin", "--to", "a1111-pt", "--which", "../up")
    out = ("--output", tmp_path / "up.pt")
    run(capsys, tmp_path / "odd.bin", "--to", "a1111-pt", "--which", "../up", *out)
    assert load_embedding(tmp_path / "up.pt").token == "../up"


def test_a_file_of_version_1_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shutil.copy(GOLDEN / "rex.safetensors", tmp_path)
    run(capsys, file, "--to", "a1111-pt")
    with safe_open(file, framework="pt") as ours:
        rows = ours.get_tensor("<rex>")
    data = torch.load(tmp_path / "rex.pt", weights_only=True)
    assert torch.equal(data["string_to_param"]["*"], rows)
    assert (data["name"], data["step"]) == ("<rex>", 7)
