"""The node pack as ComfyUI sees it, and the nodes that load a model, carry settings and draw."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import random_models
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.fake_host import FakeHost, Interrupted

ROOT = Path(__file__).resolve().parent.parent
NODES = (
    "ZoodipLoadQuantizedSD",
    "ZoodipModelFromComfyUI",
    "ZoodipLoadReferenceImages",
    "ZoodipCaptionImages",
    "ZoodipSubspaceGradient",
    "ZoodipPUTSSampler",
    "ZoodipTrainToken",
    "ZoodipApplyEmbedding",
    "ZoodipSaveEmbedding",
    "ZoodipLoadEmbedding",
    "ZoodipConvertEmbedding",
    "ZoodipWordAsEmbedding",
    "ZoodipMergeEmbeddings",
    "ZoodipNearestWords",
    "ZoodipApplyLora",
    "ZoodipSaveLora",
    "ZoodipLoadLearnedLora",
    "ZoodipGeneratePreview",
    "ZoodipCompareEmbeddings",
    "ZoodipEvaluateEmbedding",
)
TINY = "tiny (embedded)"
CHILD = """
import builtins, importlib.util, json, sys
sys.dont_write_bytecode = True
before = list(sys.path), set(sys.modules), set(vars(builtins))
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
spec = importlib.util.spec_from_file_location(sys.argv[1], sys.argv[2])
module = importlib.util.module_from_spec(spec)
sys.modules[sys.argv[1]] = module
spec.loader.exec_module(module)
print(json.dumps({
    "opened": opened,
    "nodes": sorted(module.NODE_CLASS_MAPPINGS),
    "path": sys.path == before[0],
    "modules": sorted(set(sys.modules) - before[1]),
    "builtins": sorted(set(vars(builtins)) - before[2]),
}))
"""


def node(pack: Any, name: str) -> Any:
    """A new node, as ComfyUI makes one."""
    return pack.NODE_CLASS_MAPPINGS[name]()


@pytest.fixture(scope="module")
def model(pack: Any) -> Any:
    """The embedded model by the pack's own core."""
    return importlib.import_module("zoodip_pack.zoodip_core.model.load").load_quantized("tiny", device="cpu")


# ---------------------------------------------------------------- the pack


def test_the_pack_loads_fast_and_alone(tmp_path: Path) -> None:
    """In a fresh process, under the kind of name that ComfyUI gives: no torch, nothing of anyone else's.

    That is what is slow to import; nor is any file read but modules.
    """
    name = str(ROOT).replace(".", "_x_")
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, name, str(ROOT / "__init__.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["nodes"] == sorted(NODES)
    assert [path for path in told["opened"] if Path(path).suffix not in (".py", ".pyc", ".so")] == []
    assert told["path"]
    assert told["builtins"] == []
    ours = [each for each in told["modules"] if each.partition(".")[0] == name.partition(".")[0]]
    others = {each.partition(".")[0] for each in told["modules"] if each not in ours}
    assert others <= set(sys.stdlib_module_names)
    assert all(each == name or each.startswith(f"{name}.") for each in ours)
    assert not [each for each in ours if ".zoodip_core" in each]


def test_the_pack_has_its_nodes_with_names_and_a_web_folder(pack: Any) -> None:
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS) == set(NODES)
    assert len(set(pack.NODE_DISPLAY_NAME_MAPPINGS.values())) == len(NODES)
    assert (ROOT / pack.WEB_DIRECTORY).is_dir()


@pytest.mark.parametrize("name", NODES)
def test_a_node_says_what_it_is_and_does(name: str, pack: Any) -> None:
    kind = pack.NODE_CLASS_MAPPINGS[name]
    assert kind.CATEGORY == "ZOODiP"
    assert kind.DESCRIPTION.strip()
    assert callable(getattr(kind, kind.FUNCTION))
    assert len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES) == len(kind.OUTPUT_TOOLTIPS) > 0
    assert len(set(kind.RETURN_NAMES)) == len(kind.RETURN_NAMES)
    assert all(text.strip() for text in (*kind.RETURN_NAMES, *kind.OUTPUT_TOOLTIPS))
    assert all(text == text.upper() for text in kind.RETURN_TYPES)
    if hasattr(kind, "OUTPUT_IS_LIST"):
        assert len(kind.OUTPUT_IS_LIST) == len(kind.RETURN_TYPES)


@pytest.mark.parametrize("name", NODES)
def test_every_input_is_well_formed_and_explained(name: str, pack: Any, host: FakeHost) -> None:
    for folder in ("embeddings", "loras"):
        (host.root / folder / "a.safetensors").write_bytes(b"")
    groups = pack.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    assert set(groups) <= {"required", "optional", "hidden"}
    assert groups.get("hidden", {}).items() <= {"unique_id": "UNIQUE_ID", "extra": "EXTRA_PNGINFO"}.items()
    for label, (kind, options) in {**groups["required"], **groups.get("optional", {})}.items():
        assert label.isidentifier()
        assert options["tooltip"].strip(), label
        if isinstance(kind, list):
            assert kind
            assert all(isinstance(choice, str) for choice in kind)
            assert options.get("default", kind[0]) in kind
        else:
            assert kind == kind.upper(), label
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], label
                number = int if kind == "INT" else float
                assert all(type(options[key]) is number for key in ("default", "min", "max")), label
            elif kind in ("STRING", "BOOLEAN") and not options.get("forceInput"):
                assert type(options["default"]) is {"STRING": str, "BOOLEAN": bool}[kind], label
    json.dumps(groups)  # ComfyUI's page asks for it


@pytest.mark.parametrize("name", NODES)
def test_a_nodes_functions_take_its_inputs(name: str, pack: Any, host: FakeHost) -> None:
    kind = pack.NODE_CLASS_MAPPINGS[name]
    groups = kind.INPUT_TYPES()
    required, more = set(groups["required"]), {*groups.get("optional", ()), *groups.get("hidden", ())}
    own = dict(inspect.signature(getattr(kind(), kind.FUNCTION)).parameters)
    if not any(each.kind is each.VAR_KEYWORD for each in own.values()):
        assert set(own) == required | more
        assert {label for label, each in own.items() if each.default is each.empty} == required
    for function in ("IS_CHANGED", "VALIDATE_INPUTS"):
        if hasattr(kind, function):
            asked = inspect.signature(getattr(kind, function)).parameters
            named = {label for label, each in asked.items() if each.kind is not each.VAR_KEYWORD}
            assert named <= required | more
            # ComfyUI hands IS_CHANGED every input, VALIDATE_INPUTS those it names.
            assert function == "VALIDATE_INPUTS" or named == required | more or len(named) < len(asked)


def test_nodes_show_without_the_packages_and_say_how_to_get_them(tmp_path: Path) -> None:
    """What ComfyUI's own requirements do not bring must not keep the nodes from being listed."""
    child = f"""
import importlib, importlib.util, pathlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "optimum", "matplotlib"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.dont_write_bytecode = True
sys.path.insert(0, {str(ROOT)!r})
from tests.fake_host import FakeHost
spec = importlib.util.spec_from_file_location("a_pack", {str(ROOT / "__init__.py")!r})
pack = importlib.util.module_from_spec(spec)
sys.modules["a_pack"] = pack
spec.loader.exec_module(pack)
with importlib.import_module("a_pack.nodes.host").hosted_by(FakeHost(pathlib.Path("host"))):
    for kind in pack.NODE_CLASS_MAPPINGS.values():
        kind.INPUT_TYPES()
    try:
        pack.NODE_CLASS_MAPPINGS["ZoodipLoadQuantizedSD"]().load({TINY!r}, "int8", "auto")
    except ModuleNotFoundError as error:
        print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", child], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert all(name in ran.stdout for name in ("diffusers", "optimum.quanto", "matplotlib"))
    assert "pip install" in ran.stdout


# ---------------------------------------------------------------- Load Quantized SD


def test_the_embedded_model_loads_and_reports(pack: Any, host: FakeHost) -> None:
    model, report = node(pack, "ZoodipLoadQuantizedSD").load(TINY, "int4", "bfloat16")
    assert (model.info.family, model.weights, model.dtype, str(model.device)) == (
        "tiny",
        "int4",
        torch.bfloat16,
        "cpu",
    )
    assert "unet" not in vars(model)  # it takes memory only while a node computes
    for expected in ("tiny", "epsilon", "48 px", "int4", "bfloat16", "cpu", "MB"):
        assert expected in report
    assert "float32" in node(pack, "ZoodipLoadQuantizedSD").load(TINY, "int8", "auto")[1]


@pytest.mark.slow
def test_a_checkpoint_of_the_users_loads_and_a_copy_is_kept_if_asked(pack: Any, host: FakeHost) -> None:
    file = random_models.write_random(host.root / "models" / "small.safetensors", "sd15", "small")
    loader = node(pack, "ZoodipLoadQuantizedSD")
    assert file.name in loader.INPUT_TYPES()["required"]["checkpoint"][0]
    model, report = loader.load(file.name, "int8", "auto")
    assert (model.info.family, model.info.path, model.info.dims) == ("sd1", file, (768,))
    assert "small (sd1, epsilon), 512 px" in report
    assert not (host.root / "models" / "zoodip").exists()
    forced, report = loader.load(file.name, "int8", "auto", "v_prediction", True)
    assert forced.prediction_type == "v_prediction"
    assert "v_prediction" in report
    (copy,) = (host.root / "models" / "zoodip").glob("*.safetensors")
    assert copy.stat().st_size < file.stat().st_size
    assert forced.blueprint.fingerprint == model.blueprint.fingerprint


def test_a_changed_checkpoint_is_noticed(pack: Any, host: FakeHost) -> None:
    file = host.root / "models" / "some.safetensors"
    file.write_bytes(b"weights")
    loader = node(pack, "ZoodipLoadQuantizedSD")
    states = [loader.IS_CHANGED(file.name, weights="int8", activations="auto")]
    assert loader.IS_CHANGED(file.name, weights="int8", activations="auto") == states[0]
    os.utime(file, (1, 1))
    states.append(loader.IS_CHANGED(file.name, weights="int8", activations="auto"))
    file.write_bytes(b"more weights")
    states.append(loader.IS_CHANGED(file.name, weights="int8", activations="auto"))
    assert len(set(states)) == 3
    assert loader.IS_CHANGED(TINY) == loader.IS_CHANGED(TINY)


def test_a_config_laid_beside_a_checkpoint_is_noticed(pack: Any, host: FakeHost) -> None:
    """The webui's way to say what a model predicts, which loading goes by."""
    file = host.root / "models" / "some.safetensors"
    file.write_bytes(b"weights")
    before = node(pack, "ZoodipLoadQuantizedSD").IS_CHANGED(file.name)
    file.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: v\n")
    assert node(pack, "ZoodipLoadQuantizedSD").IS_CHANGED(file.name) != before


def test_a_diffusers_folder_loads_and_its_change_is_noticed(pack: Any, host: FakeHost) -> None:
    folder = host.root / "models" / "mine"
    shutil.copytree(ROOT / "zoodip_core" / "tiny" / "model", folder)
    loader = node(pack, "ZoodipLoadQuantizedSD")
    model, report = loader.load("mine", "int8", "float32")
    assert model.info.path == folder
    assert report.startswith("mine (tiny, epsilon), 48 px")
    before = loader.IS_CHANGED("mine")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + " ")
    assert loader.IS_CHANGED("mine") != before


def test_an_unknown_model_is_refused_by_the_inputs_name(pack: Any, host: FakeHost) -> None:
    loader = node(pack, "ZoodipLoadQuantizedSD")
    for name in ("gone.safetensors", "../secret.safetensors", str(ROOT / "zoodip_core" / "tiny" / "model")):
        with pytest.raises(ValueError, match=r"^checkpoint: "):
            loader.load(name, "int8", "auto")
        with pytest.raises(ValueError, match=r"^checkpoint: "):
            loader.IS_CHANGED(name)


def test_missing_packages_are_named_with_the_command_that_gets_them(
    pack: Any, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = importlib.import_module("zoodip_pack.nodes.host")
    command = f'"{sys.executable}" -m pip install -r "{ROOT / "requirements.txt"}"'

    def refused(missing: set[str], name: str, *given: Any) -> list[str]:
        monkeypatch.setattr(place, "_installed", lambda package: package not in missing)
        with pytest.raises(ModuleNotFoundError) as caught:
            getattr(node(pack, name), pack.NODE_CLASS_MAPPINGS[name].FUNCTION)(*given)
        return str(caught.value).splitlines()

    first, *others = refused({"optimum.quanto", "diffusers"}, "ZoodipLoadQuantizedSD", TINY, "int8", "auto")
    assert "diffusers, optimum.quanto" in first
    assert others == [command, "Or use Model from ComfyUI, which needs neither diffusers nor optimum-quanto."]
    for name, given in (("ZoodipTrainToken", ()), ("ZoodipModelFromComfyUI", (None, None, None))):
        first, *others = refused({"matplotlib", "diffusers"}, name, *given)
        assert "needs matplotlib, which" in first  # diffusers is for models of our own
        assert others == [command]
    asked = {line.split("=")[0].split(">")[0] for line in (ROOT / "requirements.txt").read_text().split()}
    assert {"diffusers", "optimum-quanto"} <= asked


def test_a_package_below_a_missing_one_is_missing(pack: Any) -> None:
    installed = importlib.import_module("zoodip_pack.nodes.host")._installed
    assert installed("torch")
    assert installed("optimum.quanto")
    assert not installed("no_such_package")
    assert not installed("no_such_package.below")


# ---------------------------------------------------------------- settings


def settings_of(pack: Any, family: str, weights: str = "int8", dtype: str = "float16", **changes: Any) -> Any:
    """The checked settings that the trainer's inputs stand for, as they are unless changed, on a model."""
    train = importlib.import_module("zoodip_pack.nodes.train")
    kinds = pack.NODE_CLASS_MAPPINGS["ZoodipTrainToken"].INPUT_TYPES()
    shown = {**kinds["required"], **kinds["optional"]}
    inputs = {name: options["default"] for name, (_, options) in shown.items() if "default" in options}
    del inputs["resume"], inputs["cards"]
    info = SimpleNamespace(family=family, path=Path("/models/some.safetensors"), prediction_type="epsilon")
    own = {"model": "/models/some.safetensors", "weights": weights, "dtype": dtype, "device": "cpu"}
    model = SimpleNamespace(info=info, settings=lambda: own)
    return train._checked(train._settings(model, {**inputs, **changes}))


@pytest.mark.parametrize(
    ("family", "weights", "dtype", "steps", "lr", "mu", "n"),
    [
        ("sd1", "int8", "float16", 30_000, 5e-3, 1e-3, 2),
        ("sd1", "none", "float32", 30_000, 5e-3, 1e-3, 2),
        ("sd1", "int4", "float16", 30_000, 5e-3, 1e-2, 2),
        ("sd1", "int8", "bfloat16", 30_000, 5e-3, 1e-2, 2),
        ("sd2", "int8", "float16", 30_000, 1e-2, 1e-2, 2),
        ("sdxl", "int8", "float16", 20_000, 5e-3, 1e-2, 2),
        ("sdxl", "int4", "bfloat16", 20_000, 5e-3, 1e-2, 2),
        ("tiny", "int8", "float32", 4500, 2e-2, 1e-3, 2),
    ],
)
def test_zero_means_the_papers_number_for_the_model_if_the_preset_is_the_papers(
    family: str, weights: str, dtype: str, steps: int, lr: float, mu: float, n: int, pack: Any, host: FakeHost
) -> None:
    """The paper, section 4 and supplement S3.2, S3.4; scaled for the embedded model."""
    config = settings_of(pack, family, weights, dtype, preset="paper")
    assert (config.steps, config.lr, config.mu, config.n) == (steps, lr, mu, n)
    assert (config.estimator, config.optimizer, config.directions) == ("rge", "zoadam", "normal")
    assert (config.adapt_mu, config.mu_end, config.checks) == (False, 1, 0)
    assert config.lr_schedule == "constant"
    assert (config.weights, config.dtype, config.device) == (weights, dtype, "cpu")
    # Nothing wired: neither of the paper's two parts.
    assert (config.subspace_gradient, config.timesteps) == (False, "uniform")


@pytest.mark.parametrize(
    ("family", "forwards", "t_lower"),
    [("sd1", 30_000 * 3, 500), ("sd2", 30_000 * 3, 500), ("sdxl", 20_000 * 3, 700), ("tiny", 4500 * 3, 500)],
)
def test_zero_means_a_third_of_the_papers_forwards_by_default(
    family: str, forwards: int, t_lower: int, pack: Any, host: FakeHost
) -> None:
    (puts,) = node(pack, "ZoodipPUTSSampler").settings("puts", t_lower, 900)
    config = settings_of(pack, family, timestep_sampler=puts)
    assert 0.25 < config.steps * config.make_estimator().num_candidates / forwards <= 1 / 3
    assert (config.directions, config.adapt_mu, config.averaging) == ("adaptive", True, 0.1)
    fast, careful = (settings_of(pack, family, preset=name).steps for name in ("fast", "careful"))
    assert (fast, careful) == (config.steps // 3, config.steps * 3)
    assert config.t_lower == t_lower


def test_an_optimizer_of_other_units_wants_its_learning_rate(pack: Any, host: FakeHost) -> None:
    with pytest.raises(ValueError, match="optimizer = zosgd: lr has another unit"):
        settings_of(pack, "sd1", optimizer="zosgd")
    assert settings_of(pack, "sd1", optimizer="zosgd", lr=0.5).lr == 0.5
    assert settings_of(pack, "sd1", optimizer="zoadam").lr == 1  # of the same unit


def test_numbers_of_the_users_stand(pack: Any, host: FakeHost) -> None:
    config = settings_of(
        pack, "sdxl", steps=7, lr=0.25, mu=0.5, n=3, lr_schedule="cosine", preview_every=2, preview_prompt="my {}"
    )
    assert (config.steps, config.lr, config.mu, config.n, config.lr_schedule) == (7, 0.25, 0.5, 3, "cosine")
    assert (config.sample_every, config.sample_prompt) == (2, "my {}")
    assert config.model == str(Path("/models/some.safetensors"))


def test_wired_parts_of_the_search_carry_their_settings(pack: Any, host: FakeHost) -> None:
    (subspace,) = node(pack, "ZoodipSubspaceGradient").settings(128, 1e-3)
    (puts,) = node(pack, "ZoodipPUTSSampler").settings("puts", 700, 900)
    config = settings_of(pack, "sd1", subspace_gradient=subspace, timestep_sampler=puts)
    assert (config.subspace_gradient, config.tau, config.nu) == (True, 128, 1e-3)
    assert (config.timesteps, config.t_lower, config.t_upper) == ("puts", 700, 900)
    (puts,) = node(pack, "ZoodipPUTSSampler").settings("puts", 0, 500)
    config = settings_of(pack, "sd1", timestep_sampler=puts)
    assert (config.t_lower, config.t_upper) == (0, 500)  # a wired 0 is a timestep, and not left to the preset
    (snr,) = node(pack, "ZoodipPUTSSampler").settings("snr", 900, 500)
    assert settings_of(pack, "sd1", timestep_sampler=snr).timesteps == "snr"
    (twenty,) = node(pack, "ZoodipSubspaceGradient").settings(20, 0.5)
    config = settings_of(pack, "tiny", subspace_gradient=twenty)
    assert (config.tau, config.nu, config.timesteps) == (20, 0.5, "uniform")


def test_the_defaults_of_the_wired_parts_are_the_papers(pack: Any, host: FakeHost) -> None:
    def defaults(name: str) -> dict[str, Any]:
        required = pack.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()["required"]
        return {label: options["default"] for label, (_, options) in required.items()}

    assert defaults("ZoodipSubspaceGradient") == {"tau": 128, "nu": 1e-3}
    assert defaults("ZoodipPUTSSampler") == {"timesteps": "puts", "T_L": 500, "T_U": 900}


def test_timesteps_the_wrong_way_round_are_refused(pack: Any) -> None:
    settings = node(pack, "ZoodipPUTSSampler").settings
    for low, high in ((900, 900), (900, 500)):
        with pytest.raises(ValueError, match=f"T_L = {low} must be below T_U = {high}"):
            settings("puts", low, high)
    assert settings("uniform", 900, 500) == ({"timesteps": "uniform"},)


# ---------------------------------------------------------------- Generate Preview


def draw(pack: Any, model: Any, prompts: str, **inputs: Any) -> Any:
    given = {"seed": 3, "steps": 2, "guidance": 0.0, "resolution": 0, **inputs}
    with torch.inference_mode():  # as ComfyUI runs nodes
        return node(pack, "ZoodipGeneratePreview").draw(model, prompts, **given)


def token(name: str = "<boo>", width: int = 128) -> Any:
    embedding = importlib.import_module("zoodip_pack.zoodip_core.model.embedding")
    vector = 0.3 * torch.randn(1, width, generator=torch.Generator().manual_seed(5))
    return embedding.Embedding(name, (vector,))


def core_pictures(model: Any, prompts: list[str], seeds: list[int], **settings: Any) -> Any:
    generate = importlib.import_module("zoodip_pack.zoodip_core.model.generation").generate
    drawn = generate(model, prompts, seeds, num_inference_steps=2, **settings)
    model.unload()
    return np.stack([np.asarray(picture) for picture in drawn])


def test_a_preview_is_what_the_core_draws(pack: Any, host: FakeHost, model: Any) -> None:
    """One image a line, seeds that count on, the token by {} and by its own name."""
    out = draw(pack, model, "a red monster\n\n  a {} here \na <boo> here\n", embedding=token(), negative_prompt="blue")
    (images,) = out["result"]
    assert images.dtype == torch.float32
    assert images.shape == (3, 48, 48, 3)
    expected = core_pictures(
        model,
        ["a red monster", "a {} here", "a {} here"],
        [3, 4, 5],
        embedding=token(),
        negative_prompt="blue",
    )
    np.testing.assert_array_equal((images.numpy() * 255).round().astype(np.uint8), expected)
    shown = [Image.open(host.root / "temp" / each["subfolder"] / each["filename"]) for each in out["ui"]["images"]]
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in shown]), expected)
    assert {each["type"] for each in out["ui"]["images"]} == {"temp"}
    assert [(done, of) for done, of, _ in host.shown] == [(1, 2), (2, 2)]


def test_a_preview_calls_a_loaded_token_by_its_file(pack: Any, host: FakeHost, model: Any) -> None:
    """A webui's prompt, with a file that says nothing of a name."""
    save_file({"emb_params": token().vectors}, host.root / "embeddings" / "EasyNegative.safetensors")
    loaded, _ = node(pack, "ZoodipLoadEmbedding").load("EasyNegative.safetensors")
    negatives = ("<EasyNegative>", "easynegative", "embedding:EasyNegative", "")
    drawn = [draw(pack, model, "a star", embedding=loaded, negative_prompt=each, steps=1) for each in negatives]
    by_token, by_word, by_file, without = (each["result"][0] for each in drawn)
    assert torch.equal(by_token, by_word)
    assert torch.equal(by_token, by_file)
    assert not torch.equal(by_token, without)


def test_size_guidance_and_steps_reach_the_drawing(pack: Any, host: FakeHost, model: Any) -> None:
    (images,) = draw(pack, model, "a red monster", resolution=32, guidance=2.5)["result"]
    expected = core_pictures(model, ["a red monster"], [3], resolution=32, guidance_scale=2.5)
    assert images.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal((images.numpy() * 255).round().astype(np.uint8), expected)


def test_a_preview_has_the_device_to_itself_and_leaves_it(pack: Any, host: FakeHost, model: Any) -> None:
    seen: list[tuple[str, bool]] = []

    def see(call: str) -> None:
        seen.append((call, "unet" in vars(model) or "text_encoders" in vars(model)))

    host.make_room = lambda: see("make_room")  # type: ignore[method-assign]
    host.return_memory = lambda: see("return_memory")  # type: ignore[method-assign]
    draw(pack, model, "a monster")
    with pytest.raises(ValueError, match="width 768"):
        draw(pack, model, "a {}", embedding=token(width=768))
    host.asked = lambda: len(host.shown) >= 3  # two of the first drawing
    with pytest.raises(Interrupted):
        draw(pack, model, "a monster", steps=5)
    assert len(host.shown) == 3
    assert seen == [("make_room", False), ("return_memory", False)] * 3


def test_prompts_that_can_not_be_drawn_are_refused(pack: Any, host: FakeHost, model: Any) -> None:
    for prompts in ("", " \n ", "a {} in the snow"):
        with pytest.raises(ValueError, match=r"^prompts: "):
            draw(pack, model, prompts)
    with pytest.raises(ValueError, match="tokens long"):
        draw(pack, model, "monster " * 100)
    assert host.calls.count("make_room") == host.calls.count("return_memory")
