"""Models that write captions: found, loaded, asked and stopped; what cannot be used; the command and the training."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from PIL import Image

from tests.small_captioners import BLUE, KINDS, RED, SmallCaptioners, pictures
from zoodip_core import TrainConfig, resume_training
from zoodip_core.base.errors import CaptionError, ModelError
from zoodip_core.base.stopping import Stopped, stopped_by
from zoodip_core.captioning.captioner import Captioner
from zoodip_core.captioning.captions import write_captions
from zoodip_core.captioning.files import BLIP_ID, MissingCaptionerError, find_captioner
from zoodip_core.cli.main import main
from zoodip_core.data.slots import Subject
from zoodip_core.model.kinds import CLIP_PATH
from zoodip_core.tiny import concepts

LIKE_OTHERS = ("git", "qwen2_vl", "qwen2_5_vl")
"""Read as BLIP and Qwen3-VL are."""
EACH = [pytest.param(kind, marks=pytest.mark.slow) if kind in LIKE_OTHERS else kind for kind in KINDS]
DOG, CAT = Subject("dog"), Subject("cat")
ROOT = Path(__file__).parent.parent
PHOTOGRAPHS = ROOT / "tests" / "photographs"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallCaptioners:
    return SmallCaptioners(tmp_path_factory.mktemp("captioners"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reaches for it, fails."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def photos(folder: Path, *names: str) -> Path:
    """A folder with red and blue pictures in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names or ("red.png", "blue.png")):
        pictures()[number % 2].resize((80, 80)).save(folder / name)
    return folder


def captions_in(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


# ---------------------------------------------------------------- each kind


@pytest.mark.parametrize("kind", EACH)
def test_a_model_says_what_it_sees(kind: str, small: SmallCaptioners) -> None:
    """Without the prompt, the task or the form of a chat in it, and the same again."""
    captioner = Captioner(find_captioner(small.of(kind)), "cpu")
    assert captioner.files.kind == kind
    said = [captioner.describe(picture) for picture in pictures()]
    assert said == [RED, BLUE]
    captioner.unload()
    assert captioner._model is None
    assert [captioner.describe(picture) for picture in pictures()] == said
    assert captioner.dtype == torch.float32


@pytest.mark.parametrize("kind", EACH)
def test_a_stop_is_answered_within_a_token(kind: str, small: SmallCaptioners) -> None:
    captioner = Captioner(find_captioner(small.of(kind)), "cpu")
    captioner.load()
    forwards: list[int] = []
    captioner._model.register_forward_hook(lambda *_: forwards.append(1))
    asked: list[int] = []

    def stop_at(count: int) -> Callable[[], bool]:
        def ask() -> bool:
            asked.append(1)
            return len(asked) >= count

        return ask

    with pytest.raises(Stopped), stopped_by(stop_at(3)):
        captioner.describe(pictures()[0])
    assert len(asked) == 3  # before the first forward, then after each of two tokens
    assert len(forwards) <= 2
    assert captioner.describe(pictures()[1]) == BLUE


def test_generators_stay_as_they_were(small: SmallCaptioners) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    Captioner(find_captioner(small.of("blip")), "cpu").describe(pictures()[0])
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_a_camera_s_picture_and_a_strip_are_looked_at(small: SmallCaptioners) -> None:
    captioner = Captioner(find_captioner(small.of("qwen2_vl")), "cpu")
    large = Image.new("RGB", (4000, 3000), "red")
    assert captioner.describe(large) == RED
    assert large.size == (4000, 3000)
    assert captioner.describe(Image.new("RGB", (600, 30), "red"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_card_says_the_same_in_half_the_memory(kind: str, small: SmallCaptioners) -> None:
    """And gives its memory back, with its generator as it was."""
    before = torch.cuda.memory_allocated(), torch.cuda.get_rng_state()
    captioner = Captioner(find_captioner(small.of(kind)), "auto")
    assert (captioner.device.type, captioner.dtype) == ("cuda", torch.float16)
    assert [captioner.describe(picture) for picture in pictures()] == [RED, BLUE]
    captioner.unload()
    assert torch.cuda.memory_allocated() == before[0]
    assert torch.equal(torch.cuda.get_rng_state(), before[1])


def test_what_was_made_in_bfloat16_computes_so_on_a_card(
    small: SmallCaptioners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the card can; on a CPU everything is float32."""
    folder = small.copy("blip", tmp_path / "model")
    of_type("blip", dtype="bfloat16")(folder)
    captioner = Captioner(find_captioner(folder), "cpu")
    assert captioner.dtype == torch.float32
    captioner.device = torch.device("cuda")
    for can, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda can=can: can)
        assert captioner.dtype == dtype


# ---------------------------------------------------------------- what is found


def test_the_cache_is_looked_into_by_name(
    small: SmallCaptioners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole revision is taken before the main one that lacks something."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingCaptionerError, match="Hugging Face's cache") as caught:
        find_captioner(BLIP_ID)
    assert str(tmp_path) in str(caught.value)
    assert f"hf download {BLIP_ID} --revision refs/pr/38" in str(caught.value)
    assert "990 MB" in str(caught.value)
    place = tmp_path / f"models--{BLIP_ID.replace('/', '--')}"
    main_revision = small.copy("blip", place / "snapshots" / "aaaa")
    (main_revision / "model.safetensors").rename(main_revision / "pytorch_model.bin")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("aaaa")
    with pytest.raises(MissingCaptionerError, match=r"pytorch_model\.bin alone, a pickle"):
        find_captioner(BLIP_ID)
    small.copy("blip", place / "snapshots" / "bbbb")
    found = find_captioner(BLIP_ID)
    assert found.folder.name == "bbbb"
    assert Captioner(found, "cpu").describe(pictures()[0]) == RED


def test_the_cache_is_where_the_environment_says(tmp_path: Path, small: SmallCaptioners) -> None:
    """In a process of its own, as HF_HOME is read once."""
    place = tmp_path / "hub" / "models--me--captions" / "snapshots" / "cccc"
    small.copy("blip", place)
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    code = "from zoodip_core.captioning.files import find_captioner as f; print(f('me/captions').folder)"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == str(place), done.stderr


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def as_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lacking_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def of_type(kind: str, **more: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, **more}))

    return change


def half_of_its_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def weights_of_another_head(folder: Path) -> None:
    """As of a BLIP that compares pictures with texts: the same type, with no decoder."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "text_decoder" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


WRONG = [
    (without_config, "no config.json"),
    (without_tokenizer, "tokenizer.json not found"),
    (as_a_pickle, "a pickle, which is not read here"),
    (lacking_a_shard, "model-00002-of-00002.safetensors not found"),
    (of_type("clip"), "model of type 'clip', which does not write captions"),
    (of_type("gpt2"), "model of type 'gpt2', which does not write captions"),
    (of_type("florence2", auto_map={"AutoConfig": "x.Y"}), "needs code that comes with it"),
]


@pytest.mark.parametrize(("damage", "says"), WRONG, ids=lambda value: getattr(value, "__name__", None))
def test_what_cannot_write_captions_is_told_before_anything_is_loaded(
    damage: Callable[[Path], None], says: str, small: SmallCaptioners, tmp_path: Path
) -> None:
    folder = small.copy("blip", tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelError, match=says) as caught:
        find_captioner(folder)
    assert "hf download" in str(caught.value) or "BLIP-2" in str(caught.value)


@pytest.mark.parametrize("damage", [half_of_its_weights, weights_of_another_head])
def test_damaged_weights_are_told(damage: Callable[[Path], None], small: SmallCaptioners, tmp_path: Path) -> None:
    folder = small.copy("blip", tmp_path / "model")
    damage(folder)
    with pytest.raises(ModelError, match="cannot write captions"):
        Captioner(find_captioner(folder), "cpu").describe(pictures()[0])


@pytest.mark.parametrize("where", ["", "nowhere", "/nowhere/at/all", "a/b/c", "../x"])
def test_a_place_that_is_none(where: str) -> None:
    with pytest.raises(MissingCaptionerError, match="hf download"):
        find_captioner(where)


def test_an_older_library_is_told_what_to_do(small: SmallCaptioners, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.auto import modeling_auto

    monkeypatch.setattr(modeling_auto, "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", {"blip": "X"})
    with pytest.raises(ModelError, match=r"does not know models of type 'florence2'; version 4\.56 or newer does"):
        find_captioner(small.of("florence2"))


# ---------------------------------------------------------------- captions


def test_captions_name_what_they_are_of(small: SmallCaptioners, tmp_path: Path) -> None:
    captioner = Captioner(find_captioner(small.of("blip")), "cpu")
    folder = photos(tmp_path / "photos")
    told: list[tuple[int, str]] = []
    files = [folder / "red.png", folder / "blue.png"]
    found = write_captions(captioner, files, [DOG, CAT], lambda number, text: told.append((number, text)))
    assert found == ["a {} sitting on grass", "a {} in the room"]
    assert told == list(enumerate(found))
    assert write_captions(captioner, pictures(), [CAT, Subject("cat", keep_word=True)]) == [
        "a photo of a {}, a dog sitting on grass",
        "a {} cat in the room",
    ]


def test_a_model_that_says_nothing(small: SmallCaptioners) -> None:
    """Of one picture: its caption is empty; of all of them: an error."""
    captioner = Captioner(find_captioner(small.of("blip", red=". .", blue=BLUE)), "cpu")
    assert write_captions(captioner, pictures(), [CAT, CAT]) == ["", "a {} in the room"]
    with pytest.raises(CaptionError, match="says nothing of any picture"):
        write_captions(captioner, pictures()[:1], [CAT])


def test_an_endless_text_is_cut_to_what_a_text_encoder_reads(
    small: SmallCaptioners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words of many tokens, and a token of many vectors, leave room for fewer."""
    captioner = Captioner(find_captioner(small.of("blip")), "cpu")
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(CLIP_PATH)
    for said, vectors in (("a dog and " + "supercalifragilistic zyxwvut " * 250, 1), ("a dog near the sofa " * 9, 40)):
        words = said.split()
        words = [f"{word}{place}" if place % 7 == 3 else word for place, word in enumerate(words)]  # no repeats
        text = " ".join(words)
        monkeypatch.setattr(Captioner, "describe", lambda *_, text=text: text)
        [caption] = write_captions(captioner, pictures()[:1], [DOG], vectors=vectors)
        assert caption.startswith("a {} ")
        read = len(tokenizer(caption.replace("{}", ""), add_special_tokens=False).input_ids)
        assert read + vectors <= 75
        assert read > 20


# ---------------------------------------------------------------- the command


def run(*arguments: Any) -> int:
    return main([str(each) for each in arguments])


def test_the_command_writes_a_file_to_edit(small: SmallCaptioners, tmp_path: Path, capsys: Any) -> None:
    folder = photos(tmp_path / "photos", "red.png", "blue.png", "red-2.png", "blue-2.png")
    (folder / "red-2.txt").write_text("a {} of my own")
    base = ("caption", "--images", folder, "--init", "dog", "--caption-with", small.of("blip"))
    assert run(*base) == 0
    written = captions_in(folder / "captions.json")
    assert written == {
        "red.png": "a {} sitting on grass",
        "blue.png": "a photo of a {}, a cat in the room",
        "blue-2.png": "a photo of a {}, a cat in the room",
    }
    said = capsys.readouterr()
    assert "red.png: a {} sitting on grass" in said.err
    assert f'--captions "{folder / "captions.json"}"' in said.out
    # what is there stays, and no model is needed where all is there
    (folder / "captions.json").write_text(json.dumps({**written, "red.png": ["mine {}", "and {}"], "old.png": "x {}"}))
    pictures()[0].save(folder / "red-3.png")
    assert run(*base) == 0
    again = captions_in(folder / "captions.json")
    assert (again["red.png"], again["old.png"]) == (["mine {}", "and {}"], ["x {}"])
    assert again["red-3.png"] == "a {} sitting on grass"
    assert run(*base[:-1], "nowhere") == 0
    assert "all pictures have captions" in capsys.readouterr().out
    assert run(*base, "--overwrite") == 0
    anew = captions_in(folder / "captions.json")
    assert anew["red.png"] == anew["red-2.png"] == "a {} sitting on grass"
    assert anew["old.png"] == ["x {}"]


def test_masks_beside_pictures_get_no_captions(small: SmallCaptioners, tmp_path: Path, capsys: Any) -> None:
    folder = photos(tmp_path / "photos", "red.png", "blue.png", "red.mask.png", "gone.mask.png")
    photos(folder / "masks", "blue.png")
    base = ("--init", "dog", "--caption-with", small.of("blip"))
    for images in ([folder], sorted(folder.iterdir())):  # a shell's glob brings the masks along
        assert run("caption", "--images", *images, *base) == 0
        assert list(captions_in(folder / "captions.json")) == ["blue.png", "red.png"]
        warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
        assert warned == ["warning: gone.mask.png is a mask of no picture"]
        (folder / "captions.json").unlink()


def test_the_command_s_templates_and_output(small: SmallCaptioners, tmp_path: Path) -> None:
    one, two = photos(tmp_path / "one", "red.png"), photos(tmp_path / "two", "blue.png")
    base = ("caption", "--images", one, two, "--init", "dog", "--caption-with", small.of("blip"))
    assert run(*base) == 2  # whose folder?
    file = tmp_path / "out" / "texts.json"
    assert run(*base, "--output", file, "--template", "adjective") == 0
    assert captions_in(file)["red.png"] == "a {} dog sitting on grass"
    assert run(*base, "--output", file, "--template", "style", "--overwrite") == 0
    assert captions_in(file)["red.png"] == "a dog sitting on grass in the style of {}"
    photos(tmp_path / "two", "red.png")
    assert run(*base, "--output", file) == 2  # which red.png?
    assert not (one / "captions.json").exists()


def test_a_stopped_command_keeps_what_it_wrote(
    small: SmallCaptioners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = photos(tmp_path / "photos", "a.png", "b.png", "c.png")
    describe, seen = Captioner.describe, list[Image.Image]()

    def stopping(self: Captioner, picture: Image.Image) -> str:
        seen.append(picture)
        if len(seen) > 2:
            raise Stopped
        return describe(self, picture)

    monkeypatch.setattr(Captioner, "describe", stopping)
    assert run("caption", "--images", folder, "--init", "dog", "--caption-with", small.of("blip")) == 1
    assert list(captions_in(folder / "captions.json")) == ["a.png", "b.png"]
    assert "2 of 3 captions" in capsys.readouterr().err


# ---------------------------------------------------------------- a training


@pytest.fixture(scope="module")
def of_monsters(small: SmallCaptioners) -> Path:
    """Words that the embedded model knows."""
    return small.of("blip", red="a monster on a red background", blue="a blue monster")


def train(run_folder: Path, captioner: Path | str, *images: Path, **more: Any) -> int:
    given = {"model": "tiny", "token": "<boo>", "init": "monster", "steps": 2, **more}
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    where = ("--output", run_folder, "--caption-with", captioner, "--device", "cpu")
    return run("train", "--preset", "tiny", "--images", *images, *where, *flags)


def test_a_training_has_captions_written_and_keeps_them(of_monsters: Path, tmp_path: Path, capsys: Any) -> None:
    folder, place = photos(tmp_path / "photos", "red.png", "blue.png", "own.png"), tmp_path / "run"
    (folder / "own.txt").write_text("a {} of my own")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert train(place, of_monsters, folder) == 0
    assert captions_in(place / "captions.json") == {
        "red.png": "a {} on a red background",
        "blue.png": "a blue {}",
    }
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "red.png: a {} on a red background" in capsys.readouterr().err
    config = TrainConfig.from_json((place / "config.json").read_text())
    assert config.captions == str(place / "captions.json")
    # the same run as with the same captions given
    again = tmp_path / "again"
    given = ("--captions", place / "captions.json", "--output", again, "--device", "cpu", "--steps", 2)
    subject = ("--images", folder, "--token", "<boo>", "--init", "monster")
    assert run("train", "--model", "tiny", "--preset", "tiny", *subject, *given) == 0
    assert (again / "steps.jsonl").read_bytes() == (place / "steps.jsonl").read_bytes()


def test_a_run_with_written_captions_resumes_without_their_model(
    small: SmallCaptioners, of_monsters: Path, tmp_path: Path
) -> None:
    folder, place = photos(tmp_path / "photos"), tmp_path / "run"
    captioner = Path(shutil.copytree(of_monsters, tmp_path / "captioner"))
    assert train(place, captioner, folder) == 0
    shutil.rmtree(captioner)
    assert resume_training(place, {"steps": 3}).step == 3
    assert run("train", "--resume", place, "--caption-with", captioner) == 2


def test_what_is_wrong_is_told_before_any_caption_is_written(
    of_monsters: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, place = photos(tmp_path / "photos"), tmp_path / "run"

    def never(*_: Any) -> NoReturn:
        raise AssertionError("a caption was written")

    monkeypatch.setattr(Captioner, "describe", never)
    (folder / "red.txt").write_text("no place")
    assert train(place, of_monsters, folder) == 2
    assert "has no placeholder" in capsys.readouterr().err
    (folder / "red.txt").unlink()
    assert train(place, tmp_path / "nowhere", folder) == 2
    assert "hf download" in capsys.readouterr().err
    assert train(place, of_monsters, folder, model=tmp_path / "no-model") == 2
    assert train(place, of_monsters, folder / "red.png", folder / "blue.png", token="<a>, <b>, <c>") == 2
    assert "nobody knows whose it is" in capsys.readouterr().err
    assert not place.exists()


def test_what_cannot_come_of_it_is_told_before_the_first_caption_and_once(
    of_monsters: Path, tmp_path: Path, capsys: Any
) -> None:
    assert train(tmp_path / "run", of_monsters, PHOTOGRAPHS, steps=1, sample_prompt="a sky; a {}") == 0
    told = capsys.readouterr().err
    written = told.index("dog-00.jpg: ")
    for warning in ("look like photographs", "'a sky' has no place for the token"):
        assert told.index(warning) < written
        assert told.count(warning) == 1


@pytest.mark.slow
def test_captions_of_several_tokens_name_each_by_its_folder(of_monsters: Path, tmp_path: Path) -> None:
    one, two = photos(tmp_path / "one", "red.png"), photos(tmp_path / "two", "x.png", "blue.png")
    place = tmp_path / "run"
    (two / "x.txt").write_text("<pip> and <boo>")
    assert train(place, of_monsters, one, two, token="<boo>, <pip>") == 0
    written = {"red.png": "a <boo> on a red background", "blue.png": "a blue <pip>"}
    assert captions_in(place / "captions.json") == written
    assert train(tmp_path / "other", of_monsters, one / "red.png", two / "blue.png", token="<boo>, <pip>") == 0


def test_a_listing_beside_the_pictures_is_not_passed_over_in_silence(
    of_monsters: Path, tmp_path: Path, capsys: Any
) -> None:
    """What the command wrote and somebody corrected: told where it is not used, and not written anew."""
    folder, place = photos(tmp_path / "photos", "red.png", "blue.png"), tmp_path / "run"
    listing = folder / "captions.json"
    listing.write_text(json.dumps({"red.png": "a {} of my own"}))
    assert train(place, of_monsters, folder) == 2
    told = f"captions: {listing} lies beside the pictures and is not used; give it with --captions"
    assert told in capsys.readouterr().err
    assert not place.exists()
    assert train(place, of_monsters, folder, captions=listing) == 0
    assert captions_in(place / "captions.json") == {"red.png": ["a {} of my own"], "blue.png": "a blue {}"}
    subject = ("--images", folder, "--model", "tiny", "--token", "<boo>", "--init", "monster", "--steps", 2)
    capsys.readouterr()
    assert run("train", "--preset", "tiny", *subject, "--output", tmp_path / "plain", "--device", "cpu") == 0
    assert told in capsys.readouterr().err
    listing.write_text(json.dumps({"another.png": "x {}"}))  # of none of them
    assert run("train", "--preset", "tiny", *subject, "--output", tmp_path / "other", "--device", "cpu") == 0
    assert "lies beside" not in capsys.readouterr().err


def test_where_all_have_captions_no_model_is_needed(tmp_path: Path) -> None:
    subject, place = concepts.load("boo"), tmp_path / "run"
    assert train(place, "nowhere", subject.images, captions=subject.captions) == 0
    assert not (place / "captions.json").exists()


def test_captions_of_a_run_that_did_not_begin_are_taken_up(
    of_monsters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder, place = photos(tmp_path / "photos", "a.png", "b.png"), tmp_path / "run"
    describe, seen = Captioner.describe, list[Image.Image]()

    def stopping(self: Captioner, picture: Image.Image) -> str:
        if len(seen) == 1:
            seen.append(picture)
            raise Stopped
        seen.append(picture)
        return describe(self, picture)

    monkeypatch.setattr(Captioner, "describe", stopping)
    assert train(place, of_monsters, folder) == 1
    assert list(captions_in(place / "captions.json")) == ["a.png"]
    assert "captions are kept in" in capsys.readouterr().err
    assert train(place, of_monsters, folder) == 0
    assert len(seen) == 3  # the first one was not asked for again
    assert list(captions_in(place / "captions.json")) == ["a.png", "b.png"]
