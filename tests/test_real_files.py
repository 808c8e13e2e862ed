"""Files, names and terminals as people have them, one of each kind that trained wrongly or ended the work."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
import torch
from PIL import Image, ImageCms, PngImagePlugin
from safetensors.torch import load_file, save_file

from tests.small_models import Change, SmallModels
from zoodip_core import RGE, SPSA, LeaveOneOut, OnePoint, SubspaceGradient, ZerothOrderSearch, load_quantized
from zoodip_core.base.errors import CaptionError, ConfigError, ModelError, TokenError
from zoodip_core.base.names import check_name, file_stem
from zoodip_core.cli.main import main
from zoodip_core.data.images import find_images, open_picture
from zoodip_core.data.prompts import captions_for, with_slots
from zoodip_core.model.embedding import Embedding, save_embedding
from zoodip_core.model.memory import predict_memory
from zoodip_core.model.quantize import QuantizedLayer
from zoodip_core.model.recognise import identify, open_model
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.tokens import EncodedPrompt
from zoodip_core.search.guard import Guard
from zoodip_core.tiny import concepts
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.inputs import name_warning

PIP = concepts.load("pip").images


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SmallModels:
    return SmallModels(tmp_path_factory.mktemp("files"))


def with_tensors(**more: torch.Tensor) -> Change:
    return lambda tensors: {**tensors, **{name.replace("__", "."): tensor for name, tensor in more.items()}}


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        identify(path)
    return str(caught.value)


# ---------------------------------------------------------------- 1: counts


def without_the_last_block(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    gone = ("cond_stage_model.model.transformer.resblocks.2.", "cond_stage_model.model.text_projection")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(gone)}


@pytest.mark.parametrize("change", [dict, without_the_last_block])
def test_as_many_text_blocks_are_run_as_were_trained(files: SmallModels, change: Change) -> None:
    encoder = files.modules("sd21")["text_encoder"]
    model = load_quantized(files.write("sd21", change), weights="none", device="cpu")
    ids = torch.randint(0, 98, (1, 77), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.encode((EncodedPrompt(ids, (), ()),)).hidden
        torch.testing.assert_close(ours, encoder(ids)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", [23, pytest.param(24, marks=pytest.mark.slow), 25])
def test_a_full_sd2_runs_openclip_h_s_23_blocks(files: SmallModels, blocks: int) -> None:
    prefix = "cond_stage_model.model.transformer.resblocks."

    def more(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        one = {name.removeprefix(f"{prefix}0."): t for name, t in tensors.items() if name.startswith(f"{prefix}0.")}
        return {
            **tensors,
            **{f"{prefix}{i}.{name}": t[..., :1].clone() for i in range(3, blocks) for name, t in one.items()},
        }

    blueprint = open_model(files.write("sd21", more))
    assert blueprint.configs["text_encoder"]["num_hidden_layers"] == 23


# ---------------------------------------------------------------- 2: what nothing reads


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("sdxl", "edm_mean", "EDM"),
        ("sdxl", "edm_vpred.sigma_max", "EDM"),
        ("sd15", "model.diffusion_model.time_embed.cond_proj.weight", "LCM"),
        ("sd15", "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.fuser.alpha_attn", "GLIGEN"),
        ("sd15", "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight", "shown pictures"),
        ("sd15", "model.diffusion_model.input_blocks.1.2.motion_modules.0.weight", "videos"),
        ("sd21", "model.diffusion_model.label_emb.0.0.weight", "unCLIP"),
        ("sd15", "control_model.input_blocks.0.0.weight", "ControlNet"),
        ("sd15", "model.diffusion_model.out.3.weight", "no Stable Diffusion (model.diffusion_model.out.3.weight)"),
        ("sd15", "a_mark_of_next_year", "no Stable Diffusion (a_mark_of_next_year)"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_name(files: SmallModels, family: str, name: str, kind: str) -> None:
    assert kind in refused(files.write(family, with_tensors(**{name: torch.zeros(4)})))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("sd15", name) for name in ("model_ema.decay", "global_step", "first_stage_model.loss.x")),
        *(("sd15", name) for name in ("sqrt_alphas_cumprod", "cond_stage_model.logit_scale")),
        *(("sdxl", f"conditioner.embedders.0.{name}") for name in ("logit_scale", "text_projection.weight")),
    ],
)
def test_what_programs_leave_is_harmless(files: SmallModels, family: str, name: str) -> None:
    path = files.write(family, with_tensors(**{name: torch.zeros(4)}))
    assert identify(path).dims == {"sd15": (768,), "sdxl": (768, 1280)}[family]


def test_marks_of_fine_tunes_are_honoured(files: SmallModels) -> None:
    marked = load_quantized(files.write("sdxl", with_tensors(v_pred=torch.zeros(0), ztsnr=torch.zeros(0))))
    noted = load_quantized(files.write("sdxl", ss_v_parameterization="True", ss_zero_terminal_snr="True"))
    for model in (marked, noted):
        assert model.prediction_type == "v_prediction"
        assert float(model.scheduler.alphas_cumprod[-1]) < 1e-6
    assert float(load_quantized(files.write("sdxl")).scheduler.alphas_cumprod[-1]) > 1e-3


# ---------------------------------------------------------------- 3: folders


@pytest.fixture(scope="module")
def folder(files: SmallModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folders") / "plain"
    random_models.write_diffusers(path, random_models.build("sd15", "small", 4), "sd15")
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def test_a_folder_saved_by_transformers_5_is_whole(copied: Path) -> None:
    """tokenizer.json is in it, and neither vocab.json nor merges.txt."""
    before = load_quantized(copied).prompt("a photo of a {} on grass", 1)
    load_quantized(copied).tokenizers[0].backend_tokenizer.save(str(copied / "tokenizer" / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        (copied / "tokenizer" / name).unlink()
    after = load_quantized(copied).prompt("a photo of a {} on grass", 1)
    assert torch.equal(before[0].ids, after[0].ids)


@pytest.mark.parametrize("variant", ["bf16", "non_ema", "fp16"])
def test_a_folder_of_a_variant_is_whole(copied: Path, variant: str) -> None:
    for part in ("unet", "vae", "text_encoder"):
        (path,) = (copied / part).glob("*.safetensors")
        path.rename(path.with_suffix(f".{variant}.safetensors"))
    assert load_quantized(copied).unet


def test_full_precision_comes_before_variants(copied: Path) -> None:
    (path,) = (copied / "unet").glob("*.safetensors")
    (path.parent / f"{path.stem}.fp16.safetensors").write_bytes(b"not this one")
    (path.parent / f"{path.stem}.non_ema.safetensors").write_bytes(b"nor this one")
    assert load_quantized(copied).unet


def test_the_top_of_a_cached_model_is_the_model(folder: Path, tmp_path: Path) -> None:
    top = tmp_path / "models--someone--their-model"
    shutil.copytree(folder, top / "snapshots" / "abc")
    (top / "snapshots" / "older").mkdir()
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text("abc")
    info = identify(top)
    assert (info.name, info.family) == ("someone/their-model", "sd1")
    for _ in range(2):  # its quantised copy is written, then read
        model = load_quantized(top, device="cpu", cache=tmp_path / "copies")
        assert (model.info.name, len(model.tokenizers)) == (info.name, 1)
    shutil.rmtree(top / "snapshots" / "abc")
    assert "without a whole model" in refused(top)


# ---------------------------------------------------------------- 4: names of parameters


def attention(layers: dict[str, str]) -> Change:
    """A VAE's attention by other names."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        def renamed(name: str) -> str:
            above, found, layer = name.partition(".mid.attn_1.")
            stem, _, kind = layer.rpartition(".")
            return f"{above}{found}{layers[stem]}.{kind}" if found else name

        return {
            renamed(name): tensor.flatten(1) if ".attn_1." in name and tensor.ndim == 4 else tensor
            for name, tensor in tensors.items()
        }

    return change


@pytest.mark.parametrize(
    "layers",
    [
        {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
        {"norm": "norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
        {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"},
    ],
)
def test_a_vae_s_attention_has_many_names(files: SmallModels, layers: dict[str, str]) -> None:
    model = load_quantized(files.write("sd15", attention(layers)), dtype="float32", device="cpu")
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model.vae("encoder") as vae:
        theirs = files.modules("sd15")["vae"].encode(picture).latent_dist.mean
        torch.testing.assert_close(vae.encode(picture).latent_dist.mean, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["decoder.mid.attn_1.q.weight", "encoder.conv_in.bias"])
def test_what_is_missing_is_found_when_a_model_is_looked_at(files: SmallModels, name: str) -> None:
    def without(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: tensor for key, tensor in tensors.items() if key != f"first_stage_model.{name}"}

    blueprint = open_model(files.write("sd15", without))
    with pytest.raises(ModelError, match=f"has no first_stage_model.{name}"):
        predict_memory(blueprint, "int8", torch.float32, torch.device("cpu"), 64, 1)


# ---------------------------------------------------------------- 5: terminals


@pytest.fixture(scope="module")
def dog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedding of a token in Chinese for the embedded model."""
    vectors = torch.randn(1, 128, generator=torch.Generator().manual_seed(0)) * 0.1
    return save_embedding(Embedding("犬", (vectors,)), tmp_path_factory.mktemp("dog"))


@pytest.mark.parametrize("encoding", ["cp1252", pytest.param("ascii", marks=pytest.mark.slow)])
def test_no_encoding_ends_a_command(dog: Path, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    drawing = ["generate", "--embedding", str(dog), "--prompt", "a 犬", "--count", "3", "--steps", "1"]
    assert main(["inspect", str(dog)]) == 0
    assert main([*drawing, "--output", str(tmp_path / "drawn")]) == 0
    assert len(list((tmp_path / "drawn").iterdir())) == 3
    assert main(["train", "--images", str(PIP), "--token", "犬犬", "--init", "没有"]) == 2
    short = ["--steps", "2", "--checks", "0", "--no-adapt-mu"]
    train = ["train", "--images", str(PIP), "--token", "犬犬", "--init", "monster", *short]
    assert main([*train, "--output", str(tmp_path / "run")]) == 0
    out.flush()
    assert b"\\u72ac" in out.buffer.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is told of otherwise")
def test_nobody_who_reads_ends_no_command(dog: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "zoodip_core", "inspect", str(dog)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


# ---------------------------------------------------------------- 6: given twice


def test_pictures_given_twice_are_all_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64), colour).save(tmp_path / name / f"{name}.png")
    images = ["--images", str(tmp_path / "a"), "--images", str(tmp_path / "b")]
    rest = ["--token", "<pip>", "--init", "monster", "--steps", "1", "--no-adapt-mu", "--checks", "0"]
    assert main(["train", *images, *rest, "--output", str(tmp_path / "run")]) == 0
    assert "encoding 2 images" in capsys.readouterr().err


def test_an_embedding_given_twice_is_refused(dog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--embedding", str(dog), "--embedding", str(dog), "--prompt", "a 犬"]) == 2
    assert "2 embeddings have the same token 犬" in capsys.readouterr().err


def test_no_picture_takes_another_s_place(dog: Path, tmp_path: Path) -> None:
    for prompt in ("a 犬 in the sunset", "a 犬 on grass"):
        drawing = ["generate", "--embedding", str(dog), "--prompt", prompt, "--steps", "1"]
        assert main([*drawing, "--output", str(tmp_path)]) == 0
    one, other = sorted(tmp_path.iterdir())
    assert one.read_bytes() != other.read_bytes()


# ---------------------------------------------------------------- 7: not a number


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("first_stage_model.encoder.conv_in.weight", "paper"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                ("first_stage_model.encoder.conv_in.weight", "default"),
                ("model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight", "paper"),
                ("model.diffusion_model.out.0.bias", "paper"),
                ("cond_stage_model.transformer.text_model.embeddings.position_embedding.weight", "paper"),
            )
        ),
    ],
)
def test_the_part_that_is_not_finite_is_named_before_anything_is_written(
    name: str, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = random_models.write_random(tmp_path / "model.safetensors", "sd15", "small")
    tensors = load_file(file)
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, file)
    command = ["train", "--model", str(file), "--images", str(PIP), "--token", "<zzz>", "--init", "dog"]
    assert main([*command, "--resolution", "64", "--preset", preset, "--output", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"{name} holds NaN or infinity" in told
    assert "dtype" not in told
    assert not (tmp_path / "run").exists()


def test_nothing_that_is_not_finite_is_drawn(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("zoodip_core.cli.arguments.load_quantized", lambda *_args, **_more: tiny_model)
    hook = tiny_model.unet.conv_out.register_forward_hook(lambda _layer, _given, out: out * torch.nan)
    try:
        assert main(["generate", "--prompt", "a monster", "--steps", "1", "--output", str(tmp_path / "drawn")]) == 2
    finally:
        hook.remove()
    assert "the UNet of" in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()


# ---------------------------------------------------------------- 8: pictures


def test_a_png_with_long_notes_is_read(tmp_path: Path) -> None:
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    notes = PngImagePlugin.PngInfo()
    notes.add_text("workflow", "x" * 3_000_000, zip=True)
    picture.save(tmp_path / "profile.png", icc_profile=b"\0" * 1_200_000)
    picture.save(tmp_path / "notes.png", pnginfo=notes)
    for name in ("profile.png", "notes.png"):
        assert open_picture(tmp_path / name).tobytes() == picture.tobytes()


@pytest.mark.parametrize("top", [200, 255, 256, 65535])
def test_sixteen_bits_are_sixteen_bits(tmp_path: Path, top: int) -> None:
    values = np.linspace(0, top, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "gray.png")
    read = np.asarray(open_picture(tmp_path / "gray.png"))[..., 0]
    np.testing.assert_allclose(read, values / 257, atol=1)


def display_p3() -> bytes:
    """Apple's colours: sRGB's curve and white, other primaries, adapted to D50 as ICC wants it."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    columns = {b"rXYZ": (0.51512, 0.24120, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189)}
    columns[b"bXYZ"] = (0.15710, 0.06657, 0.78407)
    for i in range(int.from_bytes(data[128:132], "big")):
        entry = 132 + 12 * i
        if (tag := bytes(data[entry : entry + 4])) in columns:
            at = int.from_bytes(data[entry + 4 : entry + 8], "big") + 8
            data[at : at + 12] = b"".join(round(x * 65536).to_bytes(4, "big", signed=True) for x in columns[tag])
    return bytes(data).replace(b"s\0R\0G\0B", b"D\0i\0s\0p").replace(b"sRGB built-in", b"Display P3 it")


def srgb_of_p3(colour: tuple[int, int, int]) -> list[int]:
    """By CSS Color 4's matrices, in float64."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255])
    to_xyz = [[0.48657095, 0.26566769, 0.19821729], [0.22897456, 0.69173852, 0.07928691], [0, 0.04511338, 1.04394437]]
    of_xyz = [
        [3.24096994, -1.53738318, -0.49861076],
        [-0.96924364, 1.8759675, 0.04155506],
        [0.05563008, -0.20397696, 1.05697151],
    ]
    found = np.clip(np.array(of_xyz) @ np.array(to_xyz) @ linear, 0, 1)
    return [round(255 * (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055)) for c in found]


@pytest.mark.parametrize(
    ("kind", "mode"), [("png", "RGB"), ("png", "RGBA"), ("jpg", "RGB"), ("webp", "RGB"), ("webp", "RGBA")]
)
def test_colours_of_a_phone_become_srgb_s(tmp_path: Path, kind: str, mode: str) -> None:
    colour = (60, 170, 90)
    quality: dict[str, Any] = {} if kind == "png" else {"quality": 100}
    picture = Image.new("RGB", (64, 64), colour).convert(mode)
    picture.save(tmp_path / f"p3.{kind}", icc_profile=display_p3(), **quality)
    read = np.asarray(open_picture(tmp_path / f"p3.{kind}"))[32, 32]
    np.testing.assert_allclose(read, srgb_of_p3(colour), atol=3)
    assert abs(int(read[0]) - colour[0]) > 8  # without it, red would be another


def test_a_damaged_profile_is_as_good_as_none(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), (60, 170, 90))
    picture.save(tmp_path / "a.png", icc_profile=display_p3()[:200] + b"\xff" * 100)
    assert open_picture(tmp_path / "a.png").tobytes() == picture.tobytes()


# ---------------------------------------------------------------- 9: names


@pytest.mark.parametrize("name", ["rex\u200b", "\u200erex", "re\u00adx", "\ufeffrex", "rex\ue000"])
def test_a_name_that_nobody_can_write_is_refused(name: str) -> None:
    with pytest.raises(TokenError, match=r"holds U\+\w+, which is not seen"):
        check_name(name)


def test_the_same_letters_are_the_same_name() -> None:
    composed, apart = unicodedata.normalize("NFC", "<zoë>"), unicodedata.normalize("NFD", "<zoë>")
    assert composed != apart
    for token in (composed, apart):
        assert file_stem(token) == composed.strip("<>")
        for text in (composed, apart):
            assert with_slots(f"a photo of {text} on grass", token) == "a photo of {} on grass"


@pytest.mark.parametrize(("token", "warned"), [("<cat>", True), ("<Cat>", True), ("<my-cat>", False)])
def test_a_file_that_takes_a_word_s_place_is_told_of(token: str, warned: bool, folder: Path) -> None:
    config = TrainConfig(images=(str(PIP),), token=token, initializer="dog")
    told = name_warning(config, load_quantized(folder))
    assert bool(told) is warned
    assert not warned or f"choose a token like <my-{token.strip('<>')}>" in told[0]


# ---------------------------------------------------------------- 10: the search


@pytest.mark.parametrize("estimator", [RGE(8, 1e-3), SPSA(8, 1e-3), OnePoint(8, 1e-3), LeaveOneOut(8, 1e-3)])
def test_every_estimate_points_down_the_hill(estimator: Any) -> None:
    hill = np.linspace(1, 2, 40)
    theta = torch.linspace(-1, 1, 40).double()[None]
    mean = np.zeros(40)
    for step in range(400):
        directions = estimator.directions(0, step, theta.shape)
        points = estimator.candidates(theta, directions)[:, 0].numpy()
        mean += estimator.gradient(torch.from_numpy((hill * points**2).sum(axis=1)), directions)[0].numpy()
    true = 2 * hill * theta[0].numpy()
    assert mean @ true / np.linalg.norm(mean) / np.linalg.norm(true) > 0.9


def test_a_share_that_is_lost_in_rounding_is_refused() -> None:
    with pytest.raises(ConfigError, match="lost in rounding"):
        SubspaceGradient(8, 1e-17)
    whole = SubspaceGradient(8, 1e-12)
    for row in torch.randn(8, 1, 20, generator=torch.Generator().manual_seed(0)).double():
        whole.record(row)
    gradient = torch.ones(1, 20, dtype=torch.float64)
    torch.testing.assert_close(whole.project(gradient), gradient, rtol=0, atol=1e-6)


def test_going_back_forgets_the_path() -> None:
    subspace = SubspaceGradient(4, 0.5)
    search = ZerothOrderSearch(torch.ones(1, 6), RGE(2, 1e-2), subspace, guard=Guard(3))
    for _ in range(6):
        search.tell(search.ask().square().sum(dim=(1, 2)), check_loss=6.0)
    assert search.subspace is not None
    assert set(search.subspace.state_dict()) >= {"buffer", "projection"}
    search.tell(search.ask().square().sum(dim=(1, 2)), check_loss=6e9)
    assert set(search.subspace.state_dict()) == {"turns", "kept"}


def test_int4_is_the_unet_s_alone(files: SmallModels) -> None:
    model = load_quantized(files.write("sdxl"), weights="int4", device="cpu")
    networks = (*model.text_encoders, model.unet)
    kinds = [{layer.data.dtype for layer in net.modules() if isinstance(layer, QuantizedLayer)} for net in networks]
    assert kinds == [{torch.int8}, {torch.int8}, {torch.uint8}]


# ---------------------------------------------------------------- left out without a word


def photo(path: Path, side: int = 64) -> Path:
    Image.effect_noise((side, side), 80).convert("RGB").save(path, "JPEG")
    return path


def train(folder: Path, output: Path, *more: str) -> list[str]:
    short = ["--steps", "1", "--no-adapt-mu", "--checks", "0", "--output", str(output)]
    return ["train", "--images", str(folder), "--token", "<pip>", "--init", "monster", *short, *more]


def test_what_is_given_and_not_used_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    (folder / "10_rex").mkdir(parents=True)
    for name in ("a.jpg", "b.jfif", "10_rex/c.jpg", "a-masklabel.jpg"):
        photo(folder / name)
    photo(folder / "dot.jpg", 8)
    for kind in ("pcx", "tga", "ppm"):
        Image.new("RGB", (64, 64)).save(folder / f"{kind}.{kind}")
    moving = [Image.new("L", (64, 64), shade) for shade in (9, 99)]
    moving[0].save(folder / "dance.gif", save_all=True, append_images=moving[1:])
    (folder / "film").write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isommp41")
    (folder / "a.txt").write_text("a {}")
    (folder / "lone.txt").write_text("a {}")
    (tmp_path / "captions.json").write_text('{"a.jpg": "a {}", "misspelt.jpg": "a {}"}')
    assert main(train(folder, tmp_path / "run", "--captions", str(tmp_path / "captions.json"))) == 0
    told = capsys.readouterr().err
    assert "encoding 4 images" in told
    assert "film is a video; save some frames of it as pictures" in told
    assert "left out, 1 caption of no picture: lone.txt" in told
    assert "dance.gif is a moving picture or a file of several pages, of which the first picture alone is used" in told
    assert (
        "left out, 3 of another kind than JPEG, PNG or WebP; save them as one of these: pcx.pcx, ppm.ppm, tga.tga"
        in told
    )
    assert "masks for 1 of 4 pictures; the rest is learned whole" in told
    assert "10_rex (1) is a folder with pictures in it; give it with --images too, or move the pictures" in told
    assert "dot.jpg (6.0 times)" in told
    assert "1 of its 2 names is of no picture here: misspelt.jpg" in told


def test_captions_as_other_programs_keep_them(tmp_path: Path) -> None:
    paths = [photo(tmp_path / f"{name}.jpg") for name in "abcd"]
    (tmp_path / "a.caption").write_text("a {} on grass")
    (tmp_path / "b.TXT").write_text("a {} in snow")
    (tmp_path / "c.txt").write_text("a {} at noon\na {} at night\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "d.jpg", "text": "a {} in a box"}\n')
    found = captions_for(paths, token="<pip>")
    assert found == [("a {} on grass",), ("a {} in snow",), ("a {} at noon", "a {} at night"), ("a {} in a box",)]


def test_captions_beside_pictures_come_along_with_a_glob(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("a {}")
    pictures = [photo(tmp_path / "a.jpg"), photo(tmp_path / "b.jpg")]
    assert find_images(sorted(tmp_path.iterdir())) == pictures


def test_all_captions_without_the_token_are_named_at_once(tmp_path: Path) -> None:
    paths = [photo(tmp_path / f"{name}.jpg") for name in "abc"]
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("a dog")
    with pytest.raises(CaptionError) as caught:
        captions_for(paths, token="<pip>")
    assert all(f"{name}.txt" in str(caught.value) for name in "abc")
