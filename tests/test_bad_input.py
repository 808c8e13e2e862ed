"""Bad input ends in one line that says what is wrong, where, and what to do, and leaves no half-written file."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.faults.disk import Disk
from zoodip_core.cli.main import main
from zoodip_core.model.embedding import Embedding, save_embedding
from zoodip_core.model.kinds import TINY_PATH
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.tiny import concepts
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.draws import Draw
from zoodip_core.train.objective import DiffusionObjective

PIP = concepts.load("pip").images
STEPS = 3


def train_command(output: Path, *more: str | Path) -> list[str]:
    """A command that works, unless ``more``, whose options win, makes it a bad one."""
    good = [
        "train",
        *([] if "--images" in more else ["--images", str(PIP)]),
        "--token",
        "<pip>",
        "--init",
        "monster",
        "--steps",
        str(STEPS),
    ]
    short = ["--no-adapt-mu", "--checks", "0"]  # of what takes longer than the steps
    return [*good, *short, "--output", str(output), *map(str, more)]


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that must fail; returns its error, the one and last line it says."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("zoodip: error: ")] == lines[-1:]
    return lines[-1]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], output: Path, *words: str) -> None:
    """Check that a command fails with an error of these words before it writes anything."""
    message = error_of(capsys, arguments)
    for word in words:
        assert word in message
    assert not output.exists()


def assert_whole(folder: Path) -> None:
    """Check that every file in a folder is complete."""
    for path in folder.rglob("*"):
        assert path.suffix != ".part"
        if path.suffix == ".json":
            assert json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                assert all(file.get_tensor(key).isfinite().all() for key in file.keys())  # noqa: SIM118


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def shared_model(monkeypatch: pytest.MonkeyPatch, tiny_model: StableDiffusion) -> StableDiffusion:
    """Spare a test the loading: its commands get the model that all tests share."""
    for module in ("train.prepared", "cli.arguments"):
        monkeypatch.setattr(f"zoodip_core.{module}.load_quantized", lambda *args, **kwargs: tiny_model)
    return tiny_model


@pytest.fixture
def finished(tmp_path: Path, shared_model: StableDiffusion) -> bytes:
    """The embedding file of a run that nothing disturbs."""
    assert main(train_command(tmp_path / "undisturbed")) == 0
    return (tmp_path / "undisturbed" / "pip.safetensors").read_bytes()


# ---------------------------------------------------------------- images


def cut_off(folder: Path) -> None:
    whole = folder / "whole.jpg"
    Image.effect_noise((128, 128), 80).save(whole)
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()


def huge(folder: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")


def dot(folder: Path) -> None:
    Image.new("RGB", (1, 1)).save(folder / "dot.png")


USELESS = [
    pytest.param(cut_off, ("cut.jpg", "damaged or cut off"), id="truncated"),
    pytest.param(huge, ("huge.png", "10000 x 10000", "scale it down"), id="100-megapixels"),
    pytest.param(dot, ("dot.png", "1 x 1", "use a larger picture"), id="1x1"),
]


@pytest.mark.parametrize("files", [(), ("notes.txt", "clip.mp4")])
def test_folder_without_images(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str], files: tuple[str, ...]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("no picture")
    words = ("no JPEG, PNG or WebP image", str(folder), "put 3 to 10 pictures")
    refused(capsys, train_command(output, "--images", folder), output, *words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", ("images: ", "missing", "does not exist", "give a folder")),
        ("notes.txt", ("notes.txt", "is not a JPEG, PNG or WebP file", "convert it")),
        ("x" * 300, ("x" * 300,)),
    ],
)
def test_images_path_that_is_no_image(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str], name: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    refused(capsys, train_command(output, "--images", tmp_path / name), output, *words)


@pytest.mark.parametrize(("make", "words"), USELESS)
def test_only_useless_images(
    tmp_path: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    words: tuple[str, ...],
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)
    refused(capsys, train_command(output, "--images", folder), output, "no image can be used", *words)


@pytest.mark.usefixtures("shared_model")
@pytest.mark.parametrize(("make", "words"), USELESS)
def test_useless_image_among_good_ones_is_skipped(
    tmp_path: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    words: tuple[str, ...],
) -> None:
    make(tmp_path)
    assert main(train_command(output, "--images", PIP, *tmp_path.glob("*.*"))) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    for word in ("skipped: ", *words):
        assert word in warning
    assert (output / "pip.safetensors").is_file()


# ---------------------------------------------------------------- models


def flux(model: Path) -> None:
    (model / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')


def without_index(model: Path) -> None:
    (model / "model_index.json").unlink()


def broken_index(model: Path) -> None:
    (model / "model_index.json").write_text('{"_class_name": ')


def without_unet(model: Path) -> None:
    shutil.rmtree(model / "unet")


def without_vocabulary(model: Path) -> None:
    (model / "tokenizer" / "vocab.json").unlink()


def broken_vocabulary(model: Path) -> None:
    (model / "tokenizer" / "vocab.json").write_text("{")


def without_weights(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def broken_config(model: Path) -> None:
    path = model / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "down_block_types": ["NoBlock"] * 2}))


def broken_weights(model: Path) -> None:
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def broken_vae(model: Path) -> None:
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(b"\xff" * 1000)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flux, ("is a FluxPipeline", "supported are Stable Diffusion 1.x and 2.x")),
        (without_index, ("has no model_index.json", "give the top of a diffusers folder")),
        (broken_index, ("model_index.json cannot be read",)),
        (without_unet, ("unet/config.json is missing", "copy it again")),
        (without_vocabulary, ("vocab.json is missing", "copy it again")),
        (broken_vocabulary, ("tokenizer cannot be loaded", "copy them again")),
        (without_weights, ("unet has no weights", "copy it again")),
        (broken_weights, ("diffusion_pytorch_model.safetensors", "cut short", "download it again")),
        (broken_vae, ("diffusion_pytorch_model.safetensors", "cut short", "download it again")),
        (broken_config, ("unet", "config", "cannot be used")),
    ],
)
def test_damaged_model(
    tmp_path: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: tuple[str, ...],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY_PATH, model)
    damage(model)
    refused(capsys, train_command(output, "--model", model), output, f"model: {model}", *words)


def test_model_that_is_no_folder(tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "v1-5.safetensors"
    refused(capsys, train_command(output, "--model", file), output, "model: ", "does not exist", "diffusers folder")
    file.write_bytes(b"weights")
    refused(capsys, train_command(output, "--model", file), output, "model: ", "cut short")
    text = tmp_path / "v1-5.txt"
    text.write_text("weights")
    refused(capsys, train_command(output, "--model", text), output, "model: ", "is not a checkpoint", ".safetensors")


# ---------------------------------------------------------------- token and initializer


@pytest.mark.usefixtures("shared_model")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--token", "red"], ("token 'red'", "already a word", "choose a new one")),
        (["--init", "salmon"], ("initializer 'salmon'", "4 tokens", "--init-mode mean", "--init-mode first")),
        (["--init", " "], ("initializer ' '", "unknown", "choose a plain word")),
        (["--init", ""], ("initializer ''", "unknown", "choose a plain word")),
        (["--sample-prompt", "very " * 90 + "{}"], ("sample_prompt: ", "the model reads 24", "shorten it")),
        (["--vectors", "75"], ("75 for the placeholder", "use fewer vectors")),
    ],
)
def test_words_that_do_not_fit_the_model(
    output: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: tuple[str, ...]
) -> None:
    refused(capsys, train_command(output, *options), output, *words)


@pytest.mark.usefixtures("shared_model")
@pytest.mark.parametrize("mode", ["mean", "first"])
def test_initializer_of_several_tokens_is_accepted_with_a_mode(output: Path, mode: str) -> None:
    assert main(train_command(output, "--init", "salmon", "--init-mode", mode)) == 0
    assert (output / "pip.safetensors").is_file()


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("../x", "parts of a path"),
        ("a/b", "parts of a path"),
        ("a\\b", "parts of a path"),
        (".hidden", "parts of a path"),
        ("<.hidden>", "parts of a path"),
        ("a\0b", "control characters"),
        ("my cat", "white space"),
        ("my\ncat", "white space"),
        ("\ud83d", "control characters"),
        ("", "is empty"),
        (" ", "is empty"),
        ("<>", "no name between"),
        ("x" * 201, "more than 200 characters"),
        ("\u8a9e" * 100, "more than 200 characters"),
        ("<con>", "Windows reserves"),
        ("nul", "Windows reserves"),
        ("COM1", "Windows reserves"),
        ("<state>", "every such run"),
    ],
)
def test_token_that_can_not_be_used(output: Path, capsys: pytest.CaptureFixture[str], token: str, why: str) -> None:
    refused(capsys, train_command(output, "--token", token), output, "error: token ", why, "choose a name of letters")


# ---------------------------------------------------------------- numbers

NUMBERS = {
    "--n": (("0", "100000"), ("n = ", "from 1 to 1024")),
    "--mu": (("0", "-1", "nan", "inf"), ("mu = ", "above 0 and at most 10")),
    "--tau": (("1", "0"), ("tau = ", "from 2 to 65536")),
    "--nu": (("0", "1", "nan"), ("nu = ", "above 0 and below 1")),
    "--lr": (("0", "-0.1", "nan", "inf"), ("lr = ", "above 0 and at most 100")),
    "--steps": (("0", "-5"), ("steps = ", "from 1 to")),
    "--vectors": (("0", "76"), ("num_vectors = ", "from 1 to 75")),
    "--seed": (("-1",), ("seed = ", "from 0 to")),
    "--resolution": (("20", "8192"), ("resolution = ", "must be")),
    "--t-lower": (("900", "950"), ("T_L = ", "T_U = 900", "0 <= t_lower < t_upper <= 1000")),
    "--t-upper": (("500",), ("T_L = 500", "T_U = ", "0 <= t_lower < t_upper <= 1000")),
    "--t-lower=-1 --t-upper": (("900",), ("t_lower = -1", "from 0 to 999")),
    "--t-lower=0 --t-upper": (("1001",), ("t_upper = 1001", "from 1 to 1000")),
}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [(option, value, words) for option, (values, words) in NUMBERS.items() for value in values],
)
def test_number_out_of_range(
    output: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, words: tuple[str, ...]
) -> None:
    refused(capsys, train_command(output, *f"{option}={value}".split()), output, *words)


@pytest.mark.parametrize("option", ["--n=two", "--steps=1e3", "--estimator=best"])
def test_value_of_the_wrong_kind(output: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(train_command(output, option))
    assert stopped.value.code == 2
    assert option.split("=")[0] in capsys.readouterr().err
    assert not output.exists()


# ---------------------------------------------------------------- captions


@pytest.mark.usefixtures("shared_model")
@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a monster on grass", ("no placeholder", "write {} or <pip>")),
        ("", ("no placeholder", "write {} or <pip>")),
        ("a {} " + "very " * 90, ("the model reads 24", "shorten it")),
    ],
)
def test_caption_that_can_not_be_used(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str], caption: str, words: tuple[str, ...]
) -> None:
    image = shutil.copy(PIP / "01.png", tmp_path)
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({"01.png": caption}))
    arguments = train_command(output, "--images", image, "--captions", captions)
    refused(capsys, arguments, output, "01.png", *words)

    (tmp_path / "01.txt").write_text(caption)
    refused(capsys, train_command(output, "--images", image), output, str(tmp_path / "01."), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("does not exist",)),
        (b"{", ("is not valid JSON",)),
        (b"[]", ("expected an object of file names and captions",)),
        (b'{"01.png": 5}', ("01.png", "expected a caption or a list")),
        (b'{"other.png": "a {}"}', ("none of its names", "name the image files")),
        (b"\xff\xfe", ("is not UTF-8", "save it as UTF-8")),
    ],
)
def test_captions_file_that_can_not_be_used(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: tuple[str, ...]
) -> None:
    captions = tmp_path / "captions.json"
    if content is not None:
        captions.write_bytes(content)
    refused(capsys, train_command(output, "--captions", captions), output, str(captions), *words)


# ---------------------------------------------------------------- settings files and run folders


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 1}, ("'learning_rate' is not a setting", "the settings are", "lr, ")),
        ({"num_vector": 1}, ("'num_vector' is not a setting", "did you mean num_vectors?")),
        ({"config_version": 2}, ("config_version 2", "this program reads 1", "update ZOODiP")),
        ({"n": "two"}, ("n = 'two'", "expected int")),
        ({"flip": 1}, ("flip = 1", "expected bool")),
        ({"lr": float("nan")}, ("lr = nan", "above 0")),
        ({"images": 5}, ("images = 5", "expected a list of paths")),
        ({"images": []}, ("images: ", "give a folder")),
    ],
)
def test_settings_file_with_a_bad_setting(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    good = json.loads(TrainConfig(images=(str(PIP),), token="<pip>", initializer="monster").to_json())
    config = tmp_path / "config.json"
    config.write_text(json.dumps(good | settings))
    refused(capsys, ["train", "--config", str(config), "--output", str(output)], output, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("cannot be read", "No such file")),
        (b"{,}", ("is not valid JSON",)),
        (b"[1]", ("is not a JSON object of settings",)),
        (b"\xff", ("cannot be read", "not UTF-8")),
    ],
)
def test_settings_file_that_can_not_be_read(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: tuple[str, ...]
) -> None:
    config = tmp_path / "config.json"
    if content is not None:
        config.write_bytes(content)
    refused(capsys, train_command(output, "--config", config), output, str(config), *words)


def test_settings_that_are_missing(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["train", "--images", str(PIP), "--output", str(output)], output, "--token is missing", "--help")


def test_output_folder_that_is_in_use(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    message = error_of(capsys, train_command(output))
    for word in (str(output), "already exists", "choose another output folder", "--resume"):
        assert word in message
    assert [path.name for path in output.iterdir()] == ["thesis.txt"]


def test_resume_of_a_folder_that_is_no_run(tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        message = error_of(capsys, ["train", "--resume", str(folder)])
        for word in (str(folder), "is not a run folder", "config.json", "give the folder that a training run made"):
            assert word in message
    assert not list(tmp_path.iterdir())


def test_resume_takes_no_settings(tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["train", "--resume", str(output), "--lr", "1"], output, "own settings", "leave out lr")


# ---------------------------------------------------------------- disks


@pytest.mark.skipif(os.name == "nt", reason="the disk that fails stands in for POSIX calls")
@pytest.mark.parametrize("good", [0, pytest.param(20, marks=pytest.mark.slow), 50])
def test_full_disk(
    output: Path,
    capsys: pytest.CaptureFixture[str],
    finished: bytes,
    good: int,
) -> None:
    """At any of its operations: tests/faults/test_disk.py."""
    with pytest.MonkeyPatch.context() as patch:
        Disk(output.parent, patch, good)
        message = error_of(capsys, train_command(output))
    for word in (f"could not write {output}", "the disk is full", "free some space"):
        assert word in message

    # With some space freed, the same command starts anew if there was no run yet, else the run goes on.
    assert main(["train", "--resume", str(output)] if good else train_command(output)) == 0
    assert (output / "pip.safetensors").read_bytes() == finished


@pytest.mark.usefixtures("shared_model")
def test_output_below_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    output = tmp_path / "file" / "output"
    words = (f"could not write {output}", "is a file, not a folder", "choose another folder")
    refused(capsys, train_command(output), output, *words)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.usefixtures("shared_model")
def test_output_name_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, train_command(tmp_path / ("x" * 300)))
    assert "too long" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("shared_model")
def test_read_only_file_system(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", mkdir)
        refused(capsys, train_command(output), output, str(output), "is read-only", "choose another folder")


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("bad", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", range(STEPS))
def test_loss_that_is_not_finite(
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    finished: bytes,
    step: int,
    bad: float,
) -> None:
    losses = DiffusionObjective.losses
    seen: list[Draw] = []

    def spoilt(self: DiffusionObjective, candidates: torch.Tensor, draw: Draw, at: torch.Tensor) -> torch.Tensor:
        found = losses(self, candidates, draw, at)
        if draw.step == step:
            seen.append(draw)
            found[-1] = bad
        return found

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionObjective, "losses", spoilt)
        message = error_of(capsys, train_command(output))
    words = (f"step {step + 1}:", f"timestep {seen[-1].timestep}", f"image {seen[-1].image + 1:02}.png")
    for word in (*words, "not all finite", f"kept as of step {step}", "try a smaller lr"):
        assert word in message
    assert_whole(output)
    with safe_open(output / "state.safetensors", framework="pt") as state:
        assert int(state.get_tensor("step")) == step

    assert main(["train", "--resume", str(output)]) == 0
    assert (output / "pip.safetensors").read_bytes() == finished


# ---------------------------------------------------------------- generate


@pytest.mark.usefixtures("shared_model")
@pytest.mark.parametrize(
    ("width", "prompt", "words"),
    [
        (128, "a monster", ("no prompt holds the token <pip>", "write it where")),
        (768, "a <pip>", ("'<pip>' has width 768", "sd1", "the model needs 128", "model family")),
        (128, "a <pip> " + "very " * 90, ("the model reads 24", "shorten it")),
    ],
)
def test_generate_with_an_embedding_that_does_not_fit(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str], width: int, prompt: str, words: tuple[str, ...]
) -> None:
    file = save_embedding(Embedding("<pip>", (torch.ones(1, width),)), tmp_path / "pip.safetensors")
    arguments = ["generate", "--embedding", str(file), "--prompt", prompt, "--output", str(output)]
    refused(capsys, arguments, output, *words)


@pytest.mark.usefixtures("shared_model")
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--steps=0", ("steps = 0", "from 1 to 999")),
        ("--steps=1000", ("steps = 1000", "from 1 to 999")),
        ("--guidance=nan", ("guidance = nan", "from 0 to 100")),
        ("--count=0", ("--count 0", "from 1 to 256")),
    ],
)
def test_generate_with_a_number_out_of_range(
    output: Path, capsys: pytest.CaptureFixture[str], option: str, words: tuple[str, ...]
) -> None:
    refused(capsys, ["generate", "--prompt", "a monster", "--output", str(output), option], output, *words)


# ---------------------------------------------------------------- inspect


def plain_text(path: Path) -> None:
    path.write_text("learn me a token")


def two_tensors(path: Path) -> None:
    torch.save({"a": torch.ones(1, 768), "b": torch.ones(1, 512)}, path)


def not_finite(path: Path) -> None:
    torch.save({"<pip>": torch.full((1, 768), float("nan"))}, path)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("missing.safetensors", None, ("does not exist",)),
        ("text.safetensors", plain_text, ("is not a safetensors file, or damaged",)),
        ("text.pt", plain_text, ("cannot be read as plain tensors",)),
        ("text.txt", plain_text, ("embedding files end in .safetensors, .pt, .bin",)),
        ("two.bin", two_tensors, ("holds 2 tensors", "an embedding has one")),
        ("nan.bin", not_finite, ("holds NaN", "its training failed")),
    ],
)
def test_inspect_of_what_is_no_embedding(
    tmp_path: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    make: Callable[[Path], None] | None,
    words: tuple[str, ...],
) -> None:
    if make:
        make(tmp_path / name)
    refused(capsys, ["inspect", str(tmp_path / name)], output, str(tmp_path / name), *words)


class RunsCode:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f'mkdir "{self.folder}"',)


@pytest.mark.parametrize("name", ["evil.pt", "evil.bin"])
def test_inspect_runs_no_code(tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    torch.save({"string_to_param": {"*": RunsCode(output)}}, tmp_path / name)
    words = (str(tmp_path / name), "cannot be read as plain tensors", "holds code, which is never run")
    refused(capsys, ["inspect", str(tmp_path / name)], output, *words)
