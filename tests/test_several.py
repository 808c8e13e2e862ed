"""Runs with several tokens: whose captions are whose, what a run leaves, resume and rewind, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.fake_page_host import FakePageHost
from tests.test_ranks import together
from zoodip_core import Commands, TrainConfig, load_embedding, resume_training, train_token
from zoodip_core.base.errors import CaptionError, ConfigError, TokenError, ZoodipError
from zoodip_core.base.events import Event, Progress
from zoodip_core.cli.main import main
from zoodip_core.data.naming import Naming, captions_of, in_turn, naming, owner_of
from zoodip_core.model.embedding import save_embedding
from zoodip_core.model.load import load_quantized
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.page.studio import Studio
from zoodip_core.train import run_folder
from zoodip_core.train.before_after import before_after
from zoodip_core.train.loop import TrainResult
from zoodip_core.train.ranks import Ranks
from zoodip_core.train.replay import rewind

CONCEPTS = Path(__file__).parent.parent / "zoodip_core" / "tiny" / "concepts"
BOO, PIP = CONCEPTS / "boo" / "images", CONCEPTS / "pip" / "images"
TOKENS = ("<boo>", "<pip>")


def config_of(**settings: Any) -> TrainConfig:
    return TrainConfig.from_preset(
        "tiny",
        **{
            "images": (str(BOO), str(PIP)),
            "token": "<boo>, <pip>",
            "initializer": "ghost, monster",
            "steps": 12,
            "tau": 4,
            "save_every": 5,
            "num_vectors": 2,
            "initializer_mode": "first",
            "checks": 3,
            **settings,
        },
    )


def stopping(step: int) -> dict[str, Any]:
    commands = Commands()

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.step == step:
            commands.stop()

    return {"on_event": on_event, "commands": commands}


@pytest.fixture(scope="module")
def whole(tiny_model: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train_token(config_of(), tmp_path_factory.mktemp("whole") / "run", model=tiny_model)


# ---------------------------------------------------------------- a run


def test_each_token_has_its_own_files(whole: TrainResult) -> None:
    folder = whole.path.parent
    assert [path.name for path in whole.paths] == ["boo.safetensors", "pip.safetensors"]
    assert whole.path == whole.paths[0]
    for token, word, embedding, path in zip(TOKENS, ("ghost", "monster"), whole.embeddings, whole.paths, strict=True):
        read = load_embedding(path)
        assert (embedding.token, read.token, read.num_vectors) == (token, token, 2)
        assert list(load_file(path)) == [token]
        assert read.metadata["initializer"] == word
        assert torch.equal(read.vectors, embedding.vectors)
    assert not torch.equal(whole.embeddings[0].vectors, whole.embeddings[1].vectors)
    steps = [f"step-{step:08d}.safetensors" for step in (0, 5, 10, 12)]
    assert sorted(path.name for path in (folder / "snapshots").glob("*.*")) == steps
    assert sorted(path.name for path in (folder / "snapshots" / "pip").iterdir()) == steps
    first = [load_embedding(folder / "snapshots" / name) for name in (steps[0], f"pip/{steps[0]}")]
    assert [each.token for each in first] == list(TOKENS)


def test_a_token_alone_is_as_ever(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    alone = {"images": (str(BOO),), "token": "<boo>", "initializer": "ghost", "steps": 2}
    result = train_token(config_of(**alone), tmp_path / "run", model=tiny_model)
    assert (result.paths, result.embeddings, result.others) == ((result.path,), (result.embedding,), ())
    assert not [path for path in (tmp_path / "run" / "snapshots").iterdir() if path.is_dir()]


def test_stop_at_any_step_and_resume(whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "run"
    stopped = train_token(config_of(), path, model=tiny_model, **stopping(3))
    assert not stopped.finished
    assert [load_embedding(each).metadata["steps"] for each in stopped.paths] == ["3", "3"]
    assert not list(path.glob("*p.safetensors"))
    resume_training(path, model=tiny_model, **stopping(10))
    assert resume_training(path, model=tiny_model).finished
    for name in ("boo.safetensors", "pip.safetensors", "state.safetensors", "steps.jsonl"):
        assert (path / name).read_bytes() == (whole.path.parent / name).read_bytes(), name


def test_killed_between_the_two_files(
    whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token's file is written last: without it the run is not over, and it is resumed to the same bytes."""
    path = tmp_path / "run"

    def killed(embedding: Any, file: Path) -> Path:
        if file == path / "boo.safetensors":
            raise KeyboardInterrupt
        return save_embedding(embedding, file)

    monkeypatch.setattr(run_folder, "save_embedding", killed)
    with pytest.raises(KeyboardInterrupt):
        train_token(config_of(), path, model=tiny_model)
    assert (path / "pip.safetensors").exists()
    assert not (path / "boo.safetensors").exists()
    monkeypatch.undo()
    (path / "snapshots" / "pip" / "step-00000000.safetensors").unlink()  # as if killed between two snapshots
    resumed = resume_training(path, model=tiny_model)
    assert resumed.finished
    assert [each.read_bytes() for each in resumed.paths] == [each.read_bytes() for each in whole.paths]
    assert (path / "snapshots" / "pip" / "step-00000000.safetensors").exists()


def test_rewind_gives_all_tokens(whole: TrainResult, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.path.parent, folder)
    before = [path.read_bytes() for path in run_folder.RunFolder.open(folder).snapshot_paths(10)]
    rewound = rewind(folder, 10, tmp_path / "early.safetensors")
    assert [path.name for path in (rewound.path, *rewound.others)] == ["early.safetensors", "early-pip.safetensors"]
    assert [path.read_bytes() for path in (rewound.path, *rewound.others)] == before
    assert rewound.differs is None
    (tmp_path / "early.safetensors").unlink()
    with pytest.raises(ZoodipError, match=r"early-pip\.safetensors already exists"):
        rewind(folder, 10, tmp_path / "early.safetensors")


def test_weights_learned_with_several_are_called_like_the_first(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    weights = {"lora_rank": 1, "lora_share": 0.5, "steps": 4, "save_every": 4, "checks": 0}
    result = train_token(config_of(**weights), tmp_path / "run", model=tiny_model)
    assert result.lora is not None
    assert result.lora.metadata["token"] == "<boo>"
    assert result.lora_path == tmp_path / "run" / "boo-lora.safetensors"
    rewound = rewind(tmp_path / "run", 4, tmp_path / "early.safetensors")
    assert [load_embedding(path).token for path in (rewound.path, *rewound.others)] == list(TOKENS)
    assert rewound.lora == tmp_path / "early-lora.safetensors"
    ours, theirs = load_file(rewound.lora), load_file(result.lora_path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_samples_show_the_tokens_in_turn(tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[Sequence[str]] = []
    generate = type(tiny_model).generate

    def told(self: Any, prompts: Sequence[str], *more: Any, **settings: Any) -> Any:
        asked.append(prompts)
        return generate(self, prompts, *more, **settings)

    monkeypatch.setattr(type(tiny_model), "generate", told)
    train_token(config_of(steps=1, sample_every=1, sample_steps=1), tmp_path / "run", model=tiny_model)
    own = ["a photo of a <boo>", "a photo of a <pip>"]
    assert asked == [own * 2]
    named = config_of(sample_prompt="a <boo> beside a <pip>")
    assert named.sample_prompts == ("a <boo> beside a <pip>",)
    adjective = config_of(template="adjective", class_word="ghost, monster")
    assert adjective.sample_prompts == ("a photo of a <boo> ghost", "a photo of a <pip> monster")


def test_checks_look_at_pictures_of_all_tokens(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    from zoodip_core.train.prepared import Training

    many = [tmp_path / f"{i:02d}.png" for i in range(10)]
    for i, path in enumerate(many):
        shutil.copy(sorted(BOO.iterdir())[i % 6], path)
    training = Training(config_of(images=(str(tmp_path), str(PIP))), tiny_model)
    shown = [draw.image for draw in training._check_draws()]
    assert shown == [0, 10, 1, 11, 2, 12, 3, 13]


def test_the_command_tells_all_files(whole: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--model", "tiny", "--images", str(BOO), str(PIP), "--token", "<boo>,<pip>"]
    command += ["--init", "ghost,monster", "--steps", "1", "--output", str(tmp_path / "run")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"tokens <boo> in {tmp_path / 'run' / 'boo.safetensors'}" in said
    assert f"<pip> in {tmp_path / 'run' / 'pip.safetensors'}" in said


# ---------------------------------------------------------------- captions


def texts_in(folder: Path, texts: dict[str, str]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        shutil.copy(BOO / "01.png", folder / name)
        if text:
            (folder / name).with_suffix(".txt").write_text(text)
    return sorted(folder.glob("*.png"))


def named(paths: list[Path], sources: list[Path], **more: Any) -> list[tuple[Naming, ...]]:
    return captions_of(paths, sources, **{"tokens": TOKENS, "class_words": (), **more})


def test_what_a_text_names() -> None:
    assert naming("a <pip>, and <boo> with {}", TOKENS) == Naming("a {}, and {} with {}", (1, 0))
    assert naming("a {} with a <boo>", TOKENS, own=1) == Naming("a {} with a {}", (1, 0))
    assert naming("rex, rex-2 and trex", ("rex", "rex-2")) == Naming("{}, {} and trex", (0, 1))


def test_captions_name_their_tokens(tmp_path: Path) -> None:
    paths = texts_in(tmp_path / "a", {"1.png": "a <boo> on grass", "2.png": "<pip> and <boo>\na <pip> in snow"})
    assert named(paths, [tmp_path / "a"]) == [
        (Naming("a {} on grass", (0,)),),
        (Naming("{} and {}", (1, 0)), Naming("a {} in snow", (1,))),
    ]


def test_a_source_for_each_token_says_whose_a_picture_is(tmp_path: Path) -> None:
    boo = texts_in(tmp_path / "boo", {"1.png": "a {} at sea", "2.png": ""})
    (pip,) = texts_in(tmp_path / "other", {"9.png": "a {} held by <boo>"})
    found = named([*boo, pip], [tmp_path / "boo", pip])
    assert found == [
        (Naming("a {} at sea", (0,)),),
        (Naming("a photo of a {}", (0,)),),
        (Naming("a {} held by {}", (1, 0)),),
    ]
    assert [owner_of(path, [tmp_path / "boo", pip], 2) for path in (*boo, pip)] == [0, 0, 1]
    assert owner_of(pip, [tmp_path], 2) is None
    assert in_turn(found) == [0, 2, 1]


def test_class_words_of_each(tmp_path: Path) -> None:
    paths = texts_in(tmp_path / "a", {"1.png": "a <boo> ghost", "2.png": "a <pip> ball by a <boo> ghost"})
    words = {"class_words": ("ghost", "ball"), "template": "adjective"}
    assert [each[0].tokens for each in named(paths, [tmp_path / "a"], **words)] == [(0,), (1, 0)]
    (tmp_path / "a" / "1.txt").write_text("a <boo> ball")
    with pytest.raises(CaptionError, match=r"1\.txt: the caption 'a <boo> ball' does not say ghost, the class word of"):
        named(paths, [tmp_path / "a"], **words)
    plain = texts_in(tmp_path / "b", {"1.png": ""}) + texts_in(tmp_path / "c", {"2.png": ""})
    found = named(plain, [tmp_path / "b", tmp_path / "c"], **words)
    assert [each[0].text for each in found] == ["a photo of a {} ghost", "a photo of a {} ball"]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            {"1.png": "a {} on grass", "2.png": "<pip>"},
            r"1\.txt: in the caption .* may be any of 2 tokens; write",
        ),
        ({"1.png": "a dog", "2.png": "<pip>"}, r"1\.txt: the caption 'a dog' names none of the tokens"),
        ({"1.png": "", "2.png": "<pip>"}, r"1\.png: it has no caption, so that nobody knows whose it is; write <boo>"),
        ({"1.png": "<pip>", "2.png": "a <pip>"}, r"no picture shows <boo>: name it in the captions"),
    ],
)
def test_captions_that_leave_it_open_are_refused(tmp_path: Path, texts: dict[str, str], said: str) -> None:
    paths = texts_in(tmp_path / "a", texts)
    with pytest.raises(CaptionError, match=said):
        named(paths, [tmp_path / "a"])


def test_one_caption_for_pictures_of_two_tokens_is_refused(tmp_path: Path) -> None:
    paths = texts_in(tmp_path / "a", {"1.png": "", "2.png": ""}) + texts_in(tmp_path / "b", {"1.png": ""})
    folders, file = [tmp_path / "a", tmp_path / "b"], tmp_path / "captions.json"
    file.write_text(json.dumps({"2.png": "a {} at sea"}))
    assert named(paths, folders, captions_file=file)[1] == (Naming("a {} at sea", (0,)),)
    file.write_text(json.dumps({"1.png": "a {} at sea"}))
    with pytest.raises(CaptionError, match=r"captions\.json, 1\.png: pictures of several folders have this name"):
        named(paths, folders, captions_file=file)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"token": "<boo>, <boo>"}, TokenError, "<boo> and <boo> would have the same file"),
        ({"token": "<boo>, BOO"}, TokenError, "<boo> and BOO would have the same file"),
        ({"token": "<boo>,"}, TokenError, "token '' is empty"),
        ({"token": "<boo>, a b"}, TokenError, "token 'a b' holds white space"),
        ({"token": "<boo>, <state>"}, TokenError, "'<state>' names a file of every such run"),
        ({"token": "<directions>", "directions": "vocabulary"}, TokenError, "names a file of every such run"),
        ({"token": "<frames>", "lora_rank": 2}, TokenError, "names a file of every such run"),
        ({"token": "<boo>, <boo-lora>", "lora_rank": 2}, TokenError, "has the name of the LoRA's file"),
        ({"initializer": "ghost, monster, star"}, ConfigError, "initializer = .*: list one for each of the 2 tokens"),
        ({"initializer": "ghost,"}, ConfigError, "initializer = 'ghost,': list one for each of the 2 tokens"),
        ({"class_word": "a, b, c"}, ConfigError, "class_word = 'a, b, c': list one for each of the 2 tokens"),
        ({"sample_prompt": "a dog"}, ConfigError, "sample_prompt = 'a dog' has no placeholder"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        config_of(**settings)


def test_settings_of_several() -> None:
    config = config_of(initializer="monster", class_word="ghost, ball")
    assert (config.tokens, config.initializers) == (TOKENS, ("monster", "monster"))
    assert config.class_words == ("ghost", "ball")
    assert config_of(token="<frames>", directions="normal").token == "<frames>"  # a file of no such run
    alone = config_of(token="<boo>", initializer="a, b", class_word="dog, the brown one")
    assert (alone.tokens, alone.initializers, alone.class_words) == (("<boo>",), ("a, b",), ("dog, the brown one",))
    assert TrainConfig.from_json(config.to_json()) == config


def test_words_of_the_model_are_refused_as_any_of_the_tokens(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="token 'monster' is already a word"):
        train_token(config_of(token="<boo>, monster"), tmp_path / "run", model=tiny_model)
    with pytest.raises(TokenError, match="initializer 'qq'"):
        train_token(config_of(initializer="ghost, qq", num_vectors=1, initializer_mode="single"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- the page


@pytest.fixture
def studio(whole: TrainResult, tmp_path: Path) -> Studio:
    """With a run of two tokens."""
    shutil.copytree(whole.path.parent, tmp_path / "home" / "boo-pip")
    return Studio(FakePageHost(tmp_path, sys.executable))


def test_a_run_of_the_page_has_all_files(studio: Studio, tmp_path: Path) -> None:
    run = studio.run("boo-pip")
    folder = tmp_path / "home" / "boo-pip"
    assert run.learned == {"<boo>": folder / "boo.safetensors", "<pip>": folder / "pip.safetensors"}
    (folder / "boo.safetensors").unlink()  # as before the last of the two files
    snapshots = folder / "snapshots"
    name = "step-00000012.safetensors"
    assert studio.run("boo-pip").learned == {"<boo>": snapshots / name, "<pip>": snapshots / "pip" / name}
    assert run.embeddings == [folder / "boo.safetensors", folder / "pip.safetensors"]


def test_all_are_published_or_none(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir(exist_ok=True)
    (tmp_path / "embeddings" / "pip.safetensors").write_bytes(b"another")
    with pytest.raises(ZoodipError, match=r"pip\.safetensors is in the embeddings folder already"):
        studio.publish("boo-pip")
    assert not (tmp_path / "embeddings" / "boo.safetensors").exists()
    assert studio.replaceable("<boo>, <pip>", False)
    with pytest.raises(TokenError, match=r"pip\.safetensors is in the embeddings folder already"):
        studio._check_free("<boo>, <pip>", {})
    published = studio.publish("boo-pip", replace=True)
    files = [published.token, *published.others]
    assert [path.name for path in files] == ["boo.safetensors", "pip.safetensors"]
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in studio.run("boo-pip").embeddings]
    assert published.words_beside() == "boo, pip"
    assert str(published) == f"saved as {files[0]} and {files[1]}: write boo, pip in a prompt"


def test_before_and_after_show_all(whole: TrainResult, tiny_model: StableDiffusion, tmp_path: Path) -> None:
    asked: list[tuple[Sequence[str], Any]] = []

    class Model:
        info = tiny_model.info

        def generate(self, prompts: Sequence[str], seeds: Sequence[int], *, embedding: Any, **how: Any) -> Any:
            asked.append((prompts, embedding))
            return [Image.new("RGB", (8, 8))] * len(seeds)

    before_after(Model(), config_of(), whole.embeddings, tmp_path / "sheet.png")  # type: ignore[arg-type]
    assert asked == [
        (["a photo of a ghost", "a photo of a monster"] * 2, None),
        (["a photo of a <boo>", "a photo of a <pip>"] * 2, whole.embeddings),
    ]
    assert (tmp_path / "sheet.png").is_file()


def test_several_ranks_learn_the_same(tmp_path: Path) -> None:
    own = {"steps": 3, "batch": 1}
    train_token(config_of(**own), tmp_path / "one", model=load_quantized("tiny"))

    def work(ranks: Ranks) -> TrainResult:
        return train_token(config_of(**own), tmp_path / "two", model=load_quantized("tiny"), ranks=ranks)

    leader, follower = together(2, work)
    for name in ("boo.safetensors", "pip.safetensors", "state.safetensors", "steps.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert [each.token for each in leader.embeddings] == list(TOKENS)
    assert torch.equal(follower.embedding.vectors, leader.embedding.vectors)
