"""Checkpoints as trainers, converters and other programs write them: read as what they are, or refused by name."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fake_host import FakeHost
from tests.small_models import SmallModels, Tensors, cut, under
from zoodip_core import load_quantized
from zoodip_core.base.errors import ModelError
from zoodip_core.cli.main import main
from zoodip_core.model.blueprint import Blueprint
from zoodip_core.model.memory import predict_memory
from zoodip_core.model.recognise import open_model
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.tokens import EncodedPrompt
from zoodip_core.tiny import concepts

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {
    "sd15": ("cond_stage_model.transformer.",),
    "sd21": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}
TIME_IDS = torch.tensor([96.0, 128.0, 0.0, 16.0, 128.0, 128.0])
WORDS = 49_408


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallModels:
    return SmallModels(tmp_path_factory.mktemp("models"))


@torch.no_grad()
def assert_is(model: StableDiffusion, modules: dict[str, Any]) -> None:
    """Texts, UNet and VAE compute what the modules do that the file was written from."""
    close = functools.partial(torch.testing.assert_close, rtol=1e-3, atol=1e-3)
    ids = torch.randint(0, 98, (1, 77), generator=torch.Generator().manual_seed(0))
    ids[0, -1] = model.blueprint.configs["text_encoder"]["eos_token_id"]  # the largest, by which the modules go
    condition = model.encode((EncodedPrompt(ids, (), ()),) * len(model.info.dims))
    outputs = [
        modules[part](ids, output_hidden_states=True) for part in ("text_encoder", "text_encoder_2") if part in modules
    ]
    xl = len(outputs) == 2
    theirs = torch.cat([each.hidden_states[-2] for each in outputs], dim=-1) if xl else outputs[0].last_hidden_state
    close(condition.hidden, theirs)
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    added = {"text_embeds": outputs[1].text_embeds, "time_ids": TIME_IDS[None]} if xl else None
    predicted = modules["unet"](noisy, 500, theirs, added_cond_kwargs=added).sample
    close(model.predict(noisy, 500, condition, TIME_IDS), predicted)
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with model.vae("encoder") as vae:
        mean = modules["vae"].encode(picture).latent_dist.mean
        close(vae.encode(picture).latent_dist.mean, mean)


def assert_holds(blueprint: Blueprint, modules: dict[str, Any]) -> None:
    """Each parameter is found, and has the numbers of the modules that the file was written from."""
    for part, module in modules.items():
        for name, tensor in module.named_parameters():
            found = blueprint.readers[part].parameter(name, tensor.shape)
            assert torch.equal(found.float(), tensor), f"{part}.{name}"


def loaded(path: Path, **settings: Any) -> StableDiffusion:
    return load_quantized(path, weights="none", dtype="float32", device="cpu", **settings)


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(ModelError) as caught:
        open_model(path, **settings)
    return str(caught.value)


# ---------------------------------------------------------------- names and wrappers


def averages(tensors: Tensors) -> Tensors:
    """As LitEma names them: without dots."""
    unet = {name.removeprefix("model.").replace(".", ""): t for name, t in tensors.items() if UNET in name}
    rest = without(tensors, UNET)
    return {**rest, **under("model_ema.", unet), "model_ema.decay": torch.tensor(0.9999)}


WRAPPED = {
    "DataParallel": lambda tensors: under("module.", tensors),
    "state_dict": lambda tensors: under("state_dict.", tensors),
    "torch.compile": lambda tensors: {name.replace(UNET, f"{UNET}_orig_mod."): t for name, t in tensors.items()},
    "a wrapper's model": lambda tensors: under("model.", tensors),
    "another name": lambda tensors: {name.replace(UNET, "unet."): t for name, t in tensors.items()},
    "averages alone": averages,
}


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("sd15", "DataParallel"),
        ("sd15", "averages alone"),
        *(
            pytest.param("sd15", kind, marks=pytest.mark.slow)
            for kind in WRAPPED
            if kind not in ("DataParallel", "averages alone")
        ),
        *(pytest.param(family, "averages alone", marks=pytest.mark.slow) for family in ("sd21", "sdxl")),
    ],
)
def test_what_trainers_wrap_a_network_in_is_taken_off(small: SmallModels, family: str, kind: str) -> None:
    blueprint = open_model(small.write(family, WRAPPED[kind]))
    assert_holds(blueprint, small.modules(family))
    assert [("EMA" in note) for note in blueprint.notes] == [True] * (kind == "averages alone")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_every_average_gets_its_dots_back(small: SmallModels, family: str) -> None:
    checkpoint = open_model(small.write(family, averages)).readers["unet"].checkpoint
    assert set(cut(checkpoint.shapes, UNET)) == set(cut(small.tensors(family), UNET))


def test_the_weights_are_read_where_a_file_has_their_averages_too(small: SmallModels) -> None:
    def both(tensors: Tensors) -> Tensors:
        return {**{name: tensor * 0 for name, tensor in averages(tensors).items()}, **tensors}

    assert_holds(open_model(small.write("sd15", both)), small.modules("sd15"))


@pytest.mark.parametrize(
    "nested",
    [
        lambda tensors: {"model": {"state_dict": tensors}, "step": 3},
        pytest.param(
            lambda tensors: {"state_dict": under("module.", tensors), "optimizer": {"state": {0: torch.zeros(2)}}},
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda tensors: {"module": tensors, "epoch": 1}, marks=pytest.mark.slow),
        lambda tensors: {"state_dict": {"model": {"diffusion_model": cut(tensors, UNET)}, **without(tensors, UNET)}},
    ],
)
def test_nested_state_dicts_are_read(small: SmallModels, nested: Any) -> None:
    path = small.folder / "nested.ckpt"
    torch.save(nested(small.tensors("sd15")), path)
    assert_holds(open_model(path), small.modules("sd15"))


def without(tensors: Tensors, prefix: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def test_a_file_is_read_by_its_content(small: SmallModels) -> None:
    whole = small.write("sd15").read_bytes()
    for name in ("renamed.ckpt", "renamed.sft"):
        (small.folder / name).write_bytes(whole)
        assert open_model(small.folder / name).info.family == "sd1"
    torch.save(small.tensors("sd15"), small.folder / "pickled.safetensors")
    assert "is not a safetensors file but a .ckpt by its content" in refused(small.folder / "pickled.safetensors")


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_vae_and_a_unet_with_diffusers_names_are_read_in_a_single_file(small: SmallModels, family: str) -> None:
    modules = small.modules(family)
    tensors = without(without(small.tensors(family), UNET), VAE)
    tensors |= under(UNET, modules["unet"].state_dict()) | under(VAE, modules["vae"].state_dict())
    assert_is(loaded(small.save(tensors, "mixed")), modules)


@pytest.mark.parametrize(
    ("levels", "name"),
    [((0, 2, 4), "SSD-1B"), ((0, 1, 2), "Segmind Vega"), ((0, 2, 3), "a pruned Stable Diffusion")],
)
def test_pruned_models_are_named(small: SmallModels, levels: tuple[int, ...], name: str) -> None:
    def pruned(tensors: Tensors) -> Tensors:
        kept = without(without(tensors, f"{UNET}middle_block.1."), f"{UNET}middle_block.2.")
        for block in (4, 5, 7, 8):
            transformer = f"{UNET}input_blocks.{block}.1.transformer_blocks."
            one = cut(tensors, f"{transformer}0.")
            kept = without(kept, transformer)
            for depth in range(levels[1 if block < 6 else 2]):
                kept |= under(f"{transformer}{depth}.", {name: tensor.clone() for name, tensor in one.items()})
        return kept

    assert f"is {name}" in refused(small.write("sdxl", pruned))


def test_tokens_trained_into_a_model_stay_and_are_told(small: SmallModels) -> None:
    model = loaded(small.write("sd15", vocab=WORDS + 1))
    assert_is(model, small.modules("sd15", WORDS + 1))
    assert model.tokenizers[0]("a dog").input_ids[-1] == model.text_encoders[0].config.eos_token_id == WORDS - 1
    assert f"holds trained tokens (row {WORDS}), which stay" in model.blueprint.notes[0]
    other = dataclasses.replace(
        model.blueprint, configs={**model.blueprint.configs, "text_encoder": {"vocab_size": 60_000}}
    )
    with pytest.raises(ModelError, match=f"knows {WORDS} words, the text encoder 60000"):
        _ = dataclasses.replace(model, blueprint=other).tokenizers


# ---------------------------------------------------------------- scaled weights


def scaled(tensors: Tensors, names: tuple[str, str], kind: torch.dtype, per_row: bool) -> tuple[Tensors, Tensors]:
    """The UNet's matrices in 8 bits with factors, and all tensors as they are then to be read."""
    stored, read = dict(tensors), dict(tensors)
    largest = 127.0 if kind == torch.int8 else torch.finfo(kind).max
    for name, weight in tensors.items():
        if UNET in name and name.endswith(".weight") and weight.ndim >= 2:
            rows = weight.flatten(1).abs().amax(1) if per_row else weight.abs().max()
            factor = rows.double() / largest
            shaped = factor.view(-1, *(1,) * (weight.ndim - 1)) if per_row else factor
            small = weight.double() / shaped
            stored[name] = (small.round() if kind == torch.int8 else small.float()).to(kind)
            read[name] = (stored[name].double() * shaped).float()
            layer = name.removesuffix("weight")
            stored[layer + names[0]] = factor.float().view(-1, 1) if per_row else factor.float()
            stored[layer + names[1]] = torch.ones(())
    return stored, read


@pytest.mark.parametrize(
    ("names", "kind", "per_row", "mark"),
    [
        (("scale_weight", "scale_input"), torch.float8_e4m3fn, False, True),
        pytest.param(*(("weight_scale", "input_scale"), torch.float8_e5m2, False, False), marks=pytest.mark.slow),
        (("weight_scale", "input_scale"), torch.int8, True, False),
    ],
)
def test_scaled_weights_are_read(
    small: SmallModels, names: tuple[str, str], kind: torch.dtype, per_row: bool, mark: bool
) -> None:
    stored, read = scaled(small.tensors("sd15"), names, kind, per_row)
    marks = {f"{UNET}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if mark else {}
    reader = open_model(small.save({**stored, **marks}, "scaled")).readers["unet"]
    theirs = open_model(small.save(read, "read")).readers["unet"]
    for name, tensor in small.modules("sd15")["unet"].named_parameters():
        one, other = (each.parameter(name, tensor.shape).float() for each in (reader, theirs))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8, msg=name)


LAYER = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn1.to_q."


@pytest.mark.parametrize("kind", ["nvfp4", pytest.param("convrot_w4a4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", ["tensor", "header"])
def test_other_quantisations_are_refused_by_name(small: SmallModels, kind: str, where: str) -> None:
    tensors, note = small.tensors("sd15"), {"format": kind}
    if where == "tensor":
        tensors[LAYER + "comfy_quant"] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
        message = refused(small.save(tensors, kind))
    else:
        header = json.dumps({"layers": {LAYER.rstrip("."): note}})
        message = refused(small.save(tensors, kind, _quantization_metadata=header))
    assert f"weights quantised as {kind}; use the 16-bit file" in message


def test_a_note_of_a_known_quantisation_is_read_past(small: SmallModels) -> None:
    stored, _ = scaled(small.tensors("sd15"), ("weight_scale", "input_scale"), torch.float8_e4m3fn, False)
    note = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
    stored[LAYER + "comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
    assert open_model(small.save(stored, "noted")).info.family == "sd1"


def test_a_scale_of_another_shape_is_refused(small: SmallModels) -> None:
    stored, _ = scaled(small.tensors("sd15"), ("weight_scale", "input_scale"), torch.int8, True)
    stored[LAYER + "weight_scale"] = torch.ones(3)
    with pytest.raises(ModelError, match=r"attn1\.to_q\.weight_scale is not a scale of .*16-bit"):
        _ = loaded(small.save(stored, "odd")).unet


# ---------------------------------------------------------------- files of parts


def apart(small: SmallModels, family: str, layout: str) -> dict[str, Any]:
    """A model's parts in files of their own, as ``--unet``, ``--clip`` and ``--vae`` name them."""
    tensors, modules = small.tensors(family), small.modules(family)
    texts = [modules[part] for part in ("text_encoder", "text_encoder_2") if part in modules]
    if layout == "ldm":
        unet, vae = {name: t for name, t in tensors.items() if UNET in name}, cut(tensors, VAE)
        clips = [cut(tensors, prefix) for prefix in TEXT[family]]
    else:
        unet, vae = modules["unet"].state_dict(), modules["vae"].state_dict()
        clips = [
            {
                name if name.startswith("text_projection") else f"text_model.{name.removeprefix('text_model.')}": t
                for name, t in text.state_dict().items()
            }
            for text in texts
        ]
    files = [small.save(each, f"clip-{number}") for number, each in enumerate(clips)]
    return {"unet": small.save(unet, "unet"), "clip": files[::-1], "vae": small.save(vae, "vae")}


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("sd15", "diffusers"),
        pytest.param("sdxl", "ldm", marks=pytest.mark.slow),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("sd21", "ldm"), ("sd21", "diffusers"), ("sd15", "ldm"))
        ),
        pytest.param("sdxl", "diffusers", marks=pytest.mark.slow),
    ],
)
def test_parts_in_files_of_their_own_are_one_model(small: SmallModels, family: str, layout: str) -> None:
    files = apart(small, family, layout)
    model = loaded(files["unet"], clip=files["clip"], vae=files["vae"])
    assert_is(model, small.modules(family))
    other = open_model(files["unet"], clip=files["clip"], vae=small.write(family))
    assert model.blueprint.fingerprint != other.fingerprint


def test_a_bare_unet_and_a_checkpoint_for_its_parts(small: SmallModels) -> None:
    whole = small.write("sdxl", name="whole")
    unet = small.save(cut(small.tensors("sdxl"), UNET), "bare")
    assert_holds(open_model(unet, clip=[whole], vae=whole), small.modules("sdxl"))


def test_another_vae_takes_the_place_of_a_models_own(small: SmallModels) -> None:
    nothing = {name: tensor * 0 for name, tensor in cut(small.tensors("sdxl"), VAE).items()}
    vae = small.save(cut(small.tensors("sdxl"), VAE), "another")
    broken = small.write("sdxl", lambda tensors: {**tensors, **under(VAE, nothing)}, "broken")
    assert_holds(open_model(broken, vae=vae), small.modules("sdxl"))


def test_copies_of_parts_are_told_from_those_of_others(small: SmallModels, tmp_path: Path) -> None:
    files = apart(small, "sd15", "ldm")
    settings = {"clip": files["clip"], "vae": files["vae"], "weights": "int8", "device": "cpu", "cache": tmp_path}
    first = load_quantized(files["unet"], **settings)
    again = load_quantized(files["unet"], **settings)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert again.blueprint.clip == tuple(files["clip"])
    assert first.blueprint.fingerprint == again.blueprint.fingerprint
    load_quantized(files["unet"], **{**settings, "vae": small.write("sd15")})
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_parts_that_do_not_belong_together_are_refused(small: SmallModels) -> None:
    files, xl = apart(small, "sd15", "ldm"), small.write("sdxl")
    unet, clip, vae = files["unet"], files["clip"], files["vae"]
    assert "has no VAE" in refused(unet, clip=clip)
    assert "or give the VAE's own file (--vae; in the node vae)" in refused(unet, clip=clip)
    assert "or give the text encoder's own file (--clip; in the node clip)" in refused(unet, vae=vae)
    large = small.save({"text_model.embeddings.token_embedding.weight": torch.zeros(9, 1024)}, "large")
    assert "is of width 1024; this model reads text encoders of width 768" in refused(unet, clip=[large], vae=vae)
    assert "holds no CLIP" in refused(unet, clip=[vae], vae=vae)
    assert "second text encoder of width 768; give one of each" in refused(unet, clip=[*clip, *clip], vae=vae)
    assert "holds no VAE" in refused(unet, clip=clip, vae=clip[0])
    assert "has no text encoder (conditioner.embedders.1.model....)" in refused(
        small.write("sdxl", lambda t: without(without(t, TEXT["sdxl"][1]), TEXT["sdxl"][0]), "texts"), clip=clip
    )
    flux = {"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3), "encoder.conv_out.weight": torch.zeros(32, 8, 3, 3)}
    assert "makes latents of 16 channels, the UNet reads 4" in refused(xl, vae=small.save(flux, "flux"))
    t5 = {"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(4, 4)}
    assert "is T5, a text encoder of SD3 and Flux" in refused(xl, clip=[small.save(t5, "t5")])
    for setting in ({"clip": [small.folder / "none.pt"]}, {"vae": small.folder / "none.pt"}):
        assert "none.pt does not exist" in refused(xl, **setting)


def test_what_a_part_lacks_is_found_before_it_is_used(small: SmallModels) -> None:
    files = apart(small, "sd15", "ldm")
    damaged = cut(small.tensors("sd15"), VAE)
    del damaged["encoder.mid.attn_1.q.weight"]
    blueprint = open_model(files["unet"], clip=files["clip"], vae=small.save(damaged, "damaged"))
    with pytest.raises(ModelError, match=r"damaged\.safetensors has no encoder\.mid\.attn_1\.q\.weight"):
        predict_memory(blueprint, "int8", torch.float32, torch.device("cpu"), 64, 1)
    del damaged["quant_conv.weight"]
    vae = small.save(damaged, "damaged")
    assert "lacks tensors ('quant_conv.weight')" in refused(files["unet"], clip=files["clip"], vae=vae)


# ---------------------------------------------------------------- where users meet it


@pytest.fixture(scope="module")
def parts(small: SmallModels) -> dict[str, list[str]]:
    """Options of the command line for an SD1.5 in files of its parts."""
    tensors = small.tensors("sd15", WORDS + 1)
    files = {
        "--unet": small.save(cut(tensors, UNET), "unet-alone"),
        "--clip": small.save(cut(tensors, TEXT["sd15"][0]), "clip-alone"),
        "--vae": small.save(cut(tensors, VAE), "vae-alone"),
    }
    return {option: [option, str(file)] for option, file in files.items()}


def test_the_command_line_trains_and_resumes_with_files_of_parts(
    parts: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [each for option in parts.values() for each in option]
    images, run = concepts.load("pip").images, tmp_path / "run"
    training = ["train", *model, "--images", str(images), "--token", "<pip>", "--init", "boy", "--resolution", "64"]
    search = ["--preset", "paper", "--steps", "2", "--output", str(run)]
    assert main([*training, *search]) == 0
    assert main(["train", "--resume", str(run), "--steps", "3"]) == 0
    for alone in ([*training[:3], *training[7:]], ["generate", *parts["--unet"], "--prompt", "a dog"]):
        assert main([*alone, "--output", str(tmp_path / "none")]) == 2
        assert "or give the VAE's own file (--vae" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_of_parts_is_described_and_draws(
    parts: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [each for option in parts.values() for each in option]
    assert main(["inspect", *model[1:]]) == 0
    assert f"its text encoder holds trained tokens (row {WORDS}), which stay" in capsys.readouterr().out
    assert main(["generate", *model, "--prompt", "a dog", "--steps", "1", "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_the_node_offers_and_loads_files_of_parts(parts: dict[str, list[str]], host: FakeHost) -> None:
    loader = importlib.import_module("zoodip_pack.nodes.models").LoadQuantizedSD
    for option, folder in (("--unet", "diffusion_models"), ("--clip", "text_encoders"), ("--vae", "vae")):
        (host.models_folder() / folder).mkdir()
        shutil.copy(parts[option][1], host.models_folder() / folder)
    shown = loader.INPUT_TYPES()
    assert shown["required"]["checkpoint"][0][1:] == ["unet-alone.safetensors (unet)"]
    own, clip = shown["optional"]["clip"][0]
    assert (own, shown["optional"]["clip_2"][0]) == ("the checkpoint's own", [own, clip])
    chosen = {
        "checkpoint": "unet-alone.safetensors (unet)",
        "clip": clip,
        "vae": shown["optional"]["vae"][0][1],
    }
    model, report = loader().load(weights="int8", activations="auto", **chosen)
    assert report.startswith("unet-alone (sd1, epsilon)")
    assert model.prompt("a dog")
    before = loader.IS_CHANGED(**chosen)
    (host.models_folder() / "vae/vae-alone.safetensors").touch()
    assert before != loader.IS_CHANGED(**chosen)
    with pytest.raises(Exception, match=r"^vae: gone\.pt \(vae\) is not among"):
        loader().load(weights="int8", activations="auto", **{**chosen, "vae": "gone.pt (vae)"})
