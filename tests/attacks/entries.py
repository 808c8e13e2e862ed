"""Every way in for a name: the command line, the nodes, the page, and the interface for scripts.

What takes minutes, the training itself, is left out of each: in its place stands what writes the same files.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import io
import json
import os
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastapi
import gradio as gr
import node_pack
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from tests.attacks.canary import COLOUR, MARK, Canary, plant_links
from tests.attacks.hostile import LINK
from tests.fake_host import FakeHost
from tests.fake_page_host import FakePageHost, fake_worker
from tests.fake_webui import A1111, FakeWebui
from zoodip_core.base.errors import ZoodipError
from zoodip_core.base.files import make_folder
from zoodip_core.base.locks import locked
from zoodip_core.cli import arguments
from zoodip_core.cli import evaluate as evaluate_command
from zoodip_core.cli import generate as generate_command
from zoodip_core.cli import main as cli
from zoodip_core.cli import train as train_command
from zoodip_core.data.prompts import captions_for
from zoodip_core.evaluate import evaluation
from zoodip_core.jobs.job import Job
from zoodip_core.jobs.job_folder import write_task
from zoodip_core.jobs.queue import Jobs
from zoodip_core.model.embedding import Embedding, load_embedding, save_embedding
from zoodip_core.model.kinds import TINY
from zoodip_core.model.lora import Lora, save_lora
from zoodip_core.page import form
from zoodip_core.page.page import Page
from zoodip_core.page.studio import TINY_LABEL, Studio
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.journal import Journal, Record
from zoodip_core.train.loop import TrainResult
from zoodip_core.train.run_folder import RunFolder
from zoodip_webui import api

ALL, BAD, NONE = "all names", "bad names", "none"
"""What an entry refuses: all, for it knows what it offers; those that cannot be safe; none, for it makes its own."""
VECTOR = (torch.ones(1, 768),)


class RefusedError(Exception):
    """An entry said no, in words."""


@dataclass(frozen=True)
class Entry:
    """A way in.

    Args:
        title: of it.
        folder: what names are to stay in.
        attempt: hands a name in; returns all that is answered, as text. Raises RefusedError.
        refuses: which names.
        blank: whether a blank name stands for another one.
        link: the ending of the files that lie there; links that lead out are planted if it is not None.
        allowed: folders besides that it may write into.
    """

    title: str
    folder: Path
    attempt: Callable[[str], str]
    refuses: str = BAD
    blank: bool = False
    link: str | None = ""
    allowed: tuple[Path, ...] = ()


@contextlib.contextmanager
def entries(canary: Canary) -> Iterator[list[Entry]]:
    """All of them, on folders beside the canary's place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(canary.outside))
        patch.setenv("USERPROFILE", str(canary.outside))
        patch.setattr(os, "fsync", lambda _file: None)  # the disk takes its time
        found = [
            *_command_line(canary, patch),
            *_nodes(canary, patch),
            *_page(canary, patch),
            *_scripts(canary, patch),
        ]
        for entry in found:
            if entry.link is not None:
                plant_links(entry.folder, canary.outside, LINK, entry.link)
        yield found


def ours(work: Callable[[], Any], kind: type[Exception] = ZoodipError) -> Any:
    """What the work returns; our own errors are a refusal, and any other is a fault."""
    try:
        return work()
    except kind as error:
        raise RefusedError(str(error)) from error


# ---------------------------------------------------------------- the command line


def _command_line(canary: Canary, patch: pytest.MonkeyPatch) -> list[Entry]:
    patch.setattr(cli, "_parser", functools.cache(cli._parser))  # to make it takes longer than what it is for
    patch.setattr(cli, "quiet_libraries", lambda: None)
    patch.setattr(train_command, "train_token", _trained)
    patch.setattr(train_command, "resume_training", _resumed)
    patch.setattr(arguments, "load_quantized", lambda *_given, **_named: None)
    patch.setattr(
        generate_command,
        "generate",
        lambda _model, prompts, *_rest, **_named: [Image.new("RGB", (8, 8))] * len(prompts),
    )
    patch.setattr(evaluate_command, "evaluate", _scoring("zoodip_core", patch))
    patch.setattr(evaluate_command, "find_judges", lambda *_given: evaluation.Judges(None, None))
    runs, drawn, scored = (canary.folder("cli", name) for name in ("runs", "generated", "evaluations"))
    program = _Program(canary.root / "cli", runs, canary.temp / "given")
    trained, resumed = program.train_config, program.resume
    written: dict[str, Any] = {"folder": runs, "allowed": (drawn,)}
    return [
        Entry("command line: train --token", attempt=program.train, **written),
        Entry("command line: the token of train --config", attempt=lambda name: trained(token=name), **written),
        Entry("command line: the cache of train --config", runs, lambda name: trained(cache=name), ALL),
        Entry("command line: a name in train --captions", runs, program.captions, NONE),
        Entry("command line: the token of generate --embedding", drawn, program.generate, NONE),
        Entry("command line: the token of evaluate --embedding", scored, program.evaluate, NONE),
        Entry("command line: the token of inspect", drawn, program.inspect, NONE),
        Entry("command line: the token of convert", program.given, program.convert, NONE),
        Entry("command line: convert --as", program.given, program.convert_as),
        Entry("command line: merge --as", program.given, program.merge),
        Entry("command line: the token of train --resume", attempt=lambda name: resumed(token=name), **written),
        Entry("command line: the cache of train --resume", runs, lambda name: resumed(cache=name), NONE),
    ]


class _Program:
    """The command line, run in a folder, with files made for each name.

    Args:
        here: the folder that it is run in.
        runs: in which one is resumed.
        given: where what it is given is written.
    """

    def __init__(self, here: Path, runs: Path, given: Path) -> None:
        self.here, self.runs, self.given, self.pictures = here, runs, given, given / "pictures"
        self.pictures.mkdir(parents=True)
        Image.new("RGB", (64, 64), "red").save(self.pictures / "one.png")

    def run(self, *arguments: str) -> str:
        """What a command prints."""
        out, error = (io.TextIOWrapper(io.BytesIO(), "utf-8", kind) for kind in ("strict", "backslashreplace"))
        with _in_folder(self.here), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                code = cli.main(arguments)
            except SystemExit as left:
                code = int(left.code or 0)
        for pipe in (out, error):
            pipe.seek(0)
        told = [pipe.read() for pipe in (out, error)]
        if code:
            assert "Traceback" not in told[1]
            raise RefusedError(told[1])
        return "".join(told)

    def train(self, token: str) -> str:
        return self.run("train", "--images", str(self.pictures), f"--token={token}", "--init", "dog")

    def train_config(self, **changes: Any) -> str:
        return self.run("train", "--config", str(self._config(self.given, changes)))

    def resume(self, **changes: Any) -> str:
        folder = self.runs / "stranger"
        folder.mkdir(exist_ok=True)
        self._config(folder, changes)
        return self.run("train", "--resume", str(folder))

    def _config(self, folder: Path, changes: dict[str, Any]) -> Path:
        settings = {"images": [str(self.pictures)], "token": "<rex>", "initializer": "dog", **changes}
        (folder / "config.json").write_text(json.dumps({"config_version": 1, **settings}))
        return folder / "config.json"

    def captions(self, name: str) -> str:
        file = self.given / "captions.json"
        file.write_text(json.dumps({name: "a {}", "one.png": "a {} in red"}))
        return str(ours(lambda: captions_for([self.pictures / "one.png"], captions_file=file, token="<r>")))

    def generate(self, token: str) -> str:
        return self.run("generate", "--embedding", self._embedding(token), f"--prompt={token or 'x'}")

    def evaluate(self, token: str) -> str:
        what = ("--images", str(self.pictures), "--prompts", "photo", "--class", "x", "--seeds", "1")
        return self.run("evaluate", "--embedding", self._embedding(token), *what)

    def inspect(self, token: str) -> str:
        return self.run("inspect", self._embedding(token))

    def convert(self, token: str) -> str:
        return self.run("convert", self._embedding(token), "--to", "diffusers-bin", "--overwrite")

    def convert_as(self, token: str) -> str:
        return self.run("convert", self._embedding("<rex>"), "--to", "diffusers-bin", f"--as={token}", "--overwrite")

    def merge(self, token: str) -> str:
        return self.run("merge", *[self._embedding("<rex>")] * 2, f"--as={token}", "--overwrite")

    def _embedding(self, token: str) -> str:
        file = self.given / "learned.pt"
        torch.save({"string_to_param": {"*": VECTOR[0]}, "name": token}, file)
        return str(file)


def _scoring(core: str, patch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What stands in the place of an evaluation, of that core: it writes where that would."""
    names = ("evaluate.evaluation", "evaluate.report", "evaluate.metrics", "data.sheets")
    module, report, metrics, pictures = (importlib.import_module(f"{core}.{name}") for name in names)
    small = Image.new("RGB", (8, 8))
    patch.setattr(report, "contact_sheet", lambda _rows, path, _columns: pictures.save_png(small, path))

    def scored(
        _model: Any, embedding: Any, _references: Any, plan: Any, _judges: Any, folder: Path, *_rest: Any
    ) -> Any:
        none = metrics.Scores()
        for when in (module.BEFORE, module.AFTER):
            pictures.save_png(small, module.image_path(folder, when, 0, 0))
        by_prompt = ((none, none),) * len(plan.prompts)
        return module.Evaluation(embedding.token, "small", plan, 1, none, none, none, by_prompt, {}, ())

    return scored


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    """As ``contextlib.chdir``, which Python 3.10 lacks."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _trained(config: TrainConfig, path: Path, **_given: Any) -> Any:
    folder = RunFolder.create(path, config)
    return _learned(folder)


def _resumed(path: Path, changes: dict[str, Any], **_given: Any) -> Any:
    folder = RunFolder.open(path, changes)
    folder.save_config()
    return _learned(folder)


def _learned(folder: RunFolder) -> Any:
    """Write what a training does that has ended."""
    if folder.config.cache not in (None, "auto"):  # auto is the user's own folder
        make_folder(Path(str(folder.config.cache)))
    with locked(folder.path), Journal(folder.journal_path, 0) as journal:
        journal.append(Record(1, 0, 0, 600, (0.5,)))
    embedding = Embedding(folder.config.token, VECTOR)
    folder.save_snapshots((embedding,), 1)
    save_embedding(embedding, folder.embedding_path)
    return TrainResult(embedding, folder.embedding_path, 1, True, [])


# ---------------------------------------------------------------- the nodes


def _nodes(canary: Canary, patch: pytest.MonkeyPatch) -> list[Entry]:
    for name in ("input", "output", "embeddings", "loras", "models"):
        canary.folder("comfyui", name)
    host = FakeHost(canary.root / "comfyui")
    nodes = _Nodes(host)
    patch.setattr(f"{node_pack.NAME}.nodes.host._host", host)
    patch.setattr(f"{node_pack.NAME}.nodes.host.gc", SimpleNamespace(collect=lambda: None))  # it takes its time
    patch.setattr(nodes.evaluation, "evaluate", _scoring(f"{node_pack.NAME}.zoodip_core", patch))
    patch.setattr(nodes.evaluation, "key_of", lambda *_given: "0")
    patch.setattr(f"{node_pack.NAME}.nodes.train._train", _train_in_node)
    embeddings, loras, read, output, models = (
        host.root / name for name in ("embeddings", "loras", "input", "output", "models")
    )
    written = canary.folder("comfyui", "output/embeddings")
    temp, token = (host.root / "temp",), functools.partial(nodes.save, "")
    weights, converted = (functools.partial(each, "") for each in (nodes.save_lora, nodes.convert))
    return [
        Entry("nodes: file of Load Embedding", embeddings, nodes.load, ALL, allowed=temp),
        Entry("nodes: file name of Save Embedding", embeddings, nodes.save, blank=True, allowed=temp),
        Entry("nodes: token in Save Embedding", embeddings, token, allowed=temp),
        Entry("nodes: file name of Convert Embedding", written, nodes.convert, blank=True, allowed=temp),
        Entry("nodes: token in Convert Embedding", written, converted, allowed=temp),
        Entry("nodes: token of Merge Embeddings", output, nodes.merge, allowed=temp),
        Entry("nodes: file of Load Learned LoRA", loras, nodes.load_lora, ALL, allowed=temp),
        Entry("nodes: file name of Save LoRA", loras, nodes.save_lora, blank=True, allowed=temp),
        Entry("nodes: token in Save LoRA", loras, weights, allowed=temp),
        Entry("nodes: folder of Load Reference Images", read, nodes.pictures, ALL, link=".png", allowed=temp),
        Entry("nodes: checkpoint of Load Quantized SD", models, nodes.model, ALL, link=None, allowed=temp),
        Entry("nodes: token of ZO Train Token", output, nodes.train, allowed=temp),
        Entry("nodes: clip of Evaluate Embedding", models, nodes.judge, ALL, True, link=None, allowed=temp),
        Entry("nodes: caption_with of Caption Images", models, nodes.captioner, ALL, True, link=None, allowed=temp),
        Entry("nodes: token in Evaluate Embedding", output, nodes.evaluate, NONE, allowed=temp),
    ]


class _Nodes:
    """The pack's nodes, as a host asks them. Their core is another copy of the modules than ``zoodip_core``."""

    def __init__(self, host: FakeHost) -> None:
        self.classes = node_pack.import_pack().NODE_CLASS_MAPPINGS
        self.embedding, self.lora, self.errors, self.evaluation = (
            importlib.import_module(f"{node_pack.NAME}.zoodip_core.{name}")
            for name in ("model.embedding", "model.lora", "base.errors", "evaluate.evaluation")
        )
        self.models, self.scoring, self.captions = (
            importlib.import_module(f"{node_pack.NAME}.nodes.{name}") for name in ("models", "evaluate", "caption")
        )
        (host.root / "input" / "rex").mkdir()
        Image.new("RGB", (64, 64), "red").save(host.root / "input" / "rex" / "one.png")
        self.embedding.save_embedding(self._embedding("<rex>"), host.root / "embeddings" / "rex.safetensors")

    def _embedding(self, token: str) -> Any:
        return self.embedding.Embedding(token, VECTOR)

    def ask(self, node: str, given: dict[str, Any], work: Callable[[Any], Any]) -> str:
        """As ComfyUI does; it asks the node first whether it likes its inputs."""
        kind, error = self.classes[node], self.errors.ZoodipError
        liked = ours(lambda: kind.VALIDATE_INPUTS(**given), error) if hasattr(kind, "VALIDATE_INPUTS") else True
        told = "" if liked is True else str(liked)
        try:
            answer = ours(lambda: work(kind), error)
        except _TrainedError as trained:
            answer = str(trained)
        assert liked is True, f"refused, and done all the same: {told}"
        return _text(answer)

    def save(self, filename: str, token: str = "<rex>") -> str:
        def work(kind: Any) -> Any:
            return kind().save(self._embedding(token), filename, True, "a {}")

        return self.ask("ZoodipSaveEmbedding", {"filename": filename}, work)

    def convert(self, filename: str, token: str = "<rex>") -> str:
        def work(kind: Any) -> Any:
            return kind().convert(self._embedding(token), "diffusers-bin", filename, True)

        return self.ask("ZoodipConvertEmbedding", {"filename": filename}, work)

    def merge(self, token: str) -> str:
        def work(kind: Any) -> Any:
            return kind().merge(*[self._embedding("<rex>")] * 2, "weighted mean", 1.0, 1.0, token)[1]

        return self.ask("ZoodipMergeEmbeddings", {"token": token}, work)

    def save_lora(self, filename: str, token: str = "<rex>") -> str:
        def work(kind: Any) -> Any:
            layers = {"mid": (VECTOR[0].T.clone(), VECTOR[0])}
            return kind().save(self.lora.Lora(layers, {"token": token}), filename, True)

        return self.ask("ZoodipSaveLora", {"filename": filename}, work)

    def load(self, file: str) -> str:
        return self.ask("ZoodipLoadEmbedding", {"file": file}, lambda kind: (kind.IS_CHANGED(file), kind().load(file)))

    def load_lora(self, file: str) -> str:
        def work(kind: Any) -> Any:
            return kind.IS_CHANGED(file), kind().load(file)[0].metadata

        return self.ask("ZoodipLoadLearnedLora", {"file": file}, work)

    def pictures(self, folder: str) -> str:
        def work(kind: Any) -> Any:
            return kind.IS_CHANGED(folder), kind().load(folder)

        return self.ask("ZoodipLoadReferenceImages", {"folder": folder}, work)

    def model(self, checkpoint: str) -> str:
        def work(kind: Any) -> Any:
            return kind.IS_CHANGED(checkpoint), str(self.models._path(checkpoint))

        return self.ask("ZoodipLoadQuantizedSD", {}, work)

    def train(self, token: str) -> str:
        return self.ask("ZoodipTrainToken", {"token": [token]}, lambda kind: _train_node(kind, token))

    def judge(self, name: str) -> str:
        given = {"clip": [name], "dino": [""]}
        return self.ask("ZoodipEvaluateEmbedding", given, lambda _kind: self.scoring._judges(name, ""))

    def captioner(self, name: str) -> str:
        return self.ask("ZoodipCaptionImages", {}, lambda _kind: self.captions._found(name))

    def evaluate(self, token: str) -> str:
        plan = self.evaluation.EvaluationPlan(("a {}",), "dog", seeds=1)

        def work(_kind: Any) -> Any:
            pictures = [Image.new("RGB", (64, 64))]
            embedding = self._embedding(token)
            found, folder = self.scoring._evaluate(_small_model(), embedding, pictures, plan, None)
            return self.scoring._shown(found, pictures, folder)["ui"]

        return self.ask("ZoodipEvaluateEmbedding", {"clip": None, "dino": None}, work)


def _small_model() -> Any:
    info = SimpleNamespace(path=Path("model.safetensors"), family="sd1", prediction_type="epsilon")
    own = {"model": "model.safetensors", "weights": "int8", "dtype": "float32", "device": "cpu"}
    return SimpleNamespace(
        info=info,
        fingerprint="0",
        schedule={},
        dtype=torch.float32,
        device="cpu",
        weights="int8",
        own_memory=True,
        portable=True,
        settings=lambda: own,
        unload=lambda: None,
    )


def _train_node(kind: Any, token: str) -> Any:
    given = {
        "model": _small_model(),
        "images": torch.zeros(1, 16, 16, 3),
        "captions": "",
        "token": token,
        "initializer": "dog",
        "preview_prompt": "a {}",
        "unique_id": "1",
        **dict.fromkeys(("lr", "n", "mu", "seed", "preview_every"), 0),
        **dict.fromkeys(("steps", "save_every"), 1),
        "lr_schedule": "auto",
        "resume": True,
    }
    return kind().train(**{name: [value] for name, value in given.items()})


class _TrainedError(Exception):
    """A training is done, and its token is where this says."""


def _train_in_node(
    settings: dict[str, Any],
    _model: Any,
    pictures: Sequence[Any],
    captions: Any,
    masks: Any,
    folder: Path,
    _live: Any,
    _cards: str,
) -> Any:
    core = importlib.import_module(f"{node_pack.NAME}.zoodip_core.train.config")
    runs = importlib.import_module(f"{node_pack.NAME}.zoodip_core.train.run_folder")
    embedding = importlib.import_module(f"{node_pack.NAME}.zoodip_core.model.embedding")
    references = importlib.import_module(f"{node_pack.NAME}.nodes.pictures").write_references(
        pictures, captions, folder, masks
    )
    run = runs.RunFolder.create(folder / "run", core.TrainConfig.from_dict({**settings, **references}))
    embedding.save_embedding(embedding.Embedding(run.config.token, VECTOR), run.embedding_path)
    raise _TrainedError(run.embedding_path)


# ---------------------------------------------------------------- the page


def _text(answer: Any) -> str:
    """All that is answered, as text; pictures by their colour, files by their content."""
    if isinstance(answer, dict):
        return " ".join(_text(value) for value in answer.values())
    if isinstance(answer, list | tuple):
        return " ".join(_text(value) for value in answer)
    if isinstance(answer, torch.Tensor) and answer.ndim == 4:
        answer = Image.fromarray((answer[0] * 255).round().to(torch.uint8).numpy())
    if isinstance(answer, Image.Image):
        near = all(abs(a - b) < 9 for a, b in zip(answer.convert("RGB").getpixel((8, 8)), COLOUR, strict=True))  # type: ignore[arg-type]
        return MARK if near else "a picture"
    if isinstance(answer, str) and answer.endswith(".safetensors") and "\0" not in answer:
        with contextlib.suppress(OSError, ValueError):
            return answer + load_embedding(answer).token
    return str(getattr(answer, "token", answer))


def _fake_submit(self: Any, kind: str, folder: Path, token: str, **more: Any) -> Job:
    """Queue a job that nobody works on."""
    return Job(1, kind, folder, token, write_task(folder, kind, folder, **more))


def _run(home: Path, name: str, token: str, snapshot: bool = True) -> Path:
    """A run that was cut off before its settings were written, so that its task file alone gives the token."""
    folder = home / name
    if snapshot:
        step = "step-00000001.safetensors"
        save_embedding(Embedding("<x>", VECTOR), folder / "run" / "snapshots" / step)
        save_lora(Lora({"layer": (torch.ones(2, 1), torch.ones(1, 2))}), folder / "run" / "loras" / step)
    settings = {"images": ["x"], "token": token, "initializer": "dog"}
    write_task(folder, "train", folder, settings=settings)
    return folder


def _page(canary: Canary, patch: pytest.MonkeyPatch) -> list[Entry]:
    patch.setattr(Jobs, "submit", _fake_submit)
    for name in ("home", "models", "embeddings", "loras"):
        canary.folder("page", name)
    host = FakePageHost(canary.root / "page", fake_worker(canary.temp))
    page = _built(host)
    both = (host.home(), host.root / "embeddings")
    return [*_form(canary, host, page, both), *_pictures(canary, page, both), *_runs(canary, host, page, both)]


def _built(host: FakePageHost) -> Page:
    with gr.Blocks():
        page = Page(Studio(host))
        page.build()
    return page


def _told(notice: Any, *more: Any) -> str:
    text = _text(notice)
    assert "fault of ZOODiP" not in text, text
    if "zoodip-error" in text:
        raise RefusedError(text)
    return text + _text(more)


def _form(canary: Canary, host: FakePageHost, page: Page, both: tuple[Path, ...]) -> list[Entry]:
    """What is typed into the form."""
    home, studio = host.home(), page.studio

    def values(**changes: Any) -> list[Any]:
        given = {"token": "<rex>", "initializer": "dog", "model": TINY_LABEL, **changes}
        return [*form.filled(given), False]

    def start(token: str) -> str:
        return _told(*page._started(*values(token=token)))

    def model(label: str) -> str:
        host.alone = False
        try:
            found = ours(
                lambda: studio.settings(form.read_named({"token": "<r>", "initializer": "dog", "model": label}))
            )
        finally:
            host.alone = True
        return "" if found["model"] == TINY else str(found["model"])

    def folder(name: str) -> str:
        host.alone = False
        try:
            return _told(*page._pictures._folder_added(name))
        finally:
            host.alone = True

    return [
        Entry("page: token", home, start, allowed=both),
        Entry("page: model, where others can reach it", host.root / "models", model, ALL, True, None, allowed=both),
        Entry("page: folder of pictures, where others can reach it", home, folder, ALL, allowed=both),
    ]


def _pictures(canary: Canary, page: Page, both: tuple[Path, ...]) -> list[Entry]:
    """The pictures' names."""
    home, studio = both[0], page.studio
    Image.new("RGB", (64, 64), "red").save(canary.temp / "red.png")
    studio.draft.add([(canary.temp / "red.png", "red.png")])

    def picture(name: str) -> str:
        pictures = page._pictures
        mask = {"mask": Image.new("L", (64, 64), 255)}
        done = [pictures._painting(name), pictures._painted(name, mask), pictures._unmasked(name)]
        text = _text([pictures._captioned(name, "a caption"), *done, pictures._removed(name)])
        assert len(studio.draft.pictures()) == 1
        if "is not there any more" in text:
            raise RefusedError(text)
        return text

    def upload(name: str) -> str:
        Image.effect_noise((32, 32), 90).save(canary.temp / "new.png")
        skipped = studio.draft.add([(canary.temp / "new.png", f"{name}.png")])
        for each in studio.draft.pictures()[1:]:
            studio.draft.remove(each.name)
        return _text(skipped)

    def mask(name: str) -> str:
        Image.linear_gradient("L").save(canary.temp / "new.mask.png")
        told = studio.draft.add([(canary.temp / "new.mask.png", f"{name}.mask.png")])
        for each in studio.draft.pictures():
            studio.draft.mask(each.name, None)
        return _text(told)

    def subject(name: str) -> str:
        return str(ours(lambda: page._pictures._add_concept(name)))

    return [
        Entry("page: name of a picture, to caption and remove", home, picture, ALL, allowed=both),
        Entry("page: name of an upload", home, upload, NONE, allowed=both),
        Entry("page: name of a mask", home, mask, NONE, allowed=both),
        Entry("page: bundled subject", home, subject, ALL, allowed=both),
    ]


def _runs(canary: Canary, host: FakePageHost, page: Page, both: tuple[Path, ...]) -> list[Entry]:
    """Runs by their names, and what a stranger's run says."""
    home, embeddings = both
    canary.folder("runs", "home")
    listed = FakePageHost(canary.root / "runs", host.python())
    _run(listed.home(), "learned", "<learned>")
    lists = _built(listed)

    def run(name: str) -> str:
        runs = lists._runs
        shown = _text(runs._choose(name))
        if "data-run" in shown:
            return shown
        done = [runs._resumed(name), runs._shown(name), runs._deleted(name)[0], runs._used(name, True)[0]]
        for each in done:
            with pytest.raises(RefusedError):
                _told(each)
        raise RefusedError(_text(done))

    def publish(token: str) -> str:
        _run(home, "stranger", token)
        shown = page._runs._describe("stranger")
        json.dumps(shown, ensure_ascii=False, default=str).encode()  # as it goes to the browser
        return _told(page._runs._used("stranger", True)[0], shown)

    def unfinished(cache: str) -> str:
        folder = _run(home, "cut-off", "<rex>")
        settings = {"images": ["x"], "token": "<rex>", "initializer": "dog", "cache": cache}
        write_task(folder, "train", folder, settings=settings)
        _told(page._runs._resumed("cut-off"))
        kept = json.loads((folder / "task.json").read_text())["settings"]["cache"]
        return "" if kept is None else f"{MARK}: a copy would be written to {kept}"

    return [
        Entry("page: name of a run, to show, resume, draw, delete and use", listed.home(), run, ALL),
        Entry(
            "page: token of a stranger's run, to use",
            embeddings,
            publish,
            blank=True,
            link=".safetensors",
            allowed=(home, host.root / "loras", page._runs._downloads),
        ),
        Entry("page: cache of a stranger's run, to resume", home, unfinished, NONE, allowed=both),
    ]


# ---------------------------------------------------------------- the interface for scripts


def _scripts(canary: Canary, patch: pytest.MonkeyPatch) -> list[Entry]:
    for name in ("home", "models", "embeddings"):
        canary.folder("scripts", name)
    root = canary.root / "scripts"
    FakeWebui(A1111, canary.temp, patch)
    host = FakePageHost(root, fake_worker(canary.temp))
    host.alone = False  # others can reach it
    app = fastapi.FastAPI()
    api.add(app, Studio(host))
    home = root / "home"
    canary.folder("scripts-runs", "home")
    lists = fastapi.FastAPI()
    listed = FakePageHost(canary.root / "scripts-runs", host.python())
    api.add(lists, Studio(listed))
    _run(listed.home(), "learned", "<learned>")
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()

    client, of_lists = (TestClient(each, base_url="http://localhost") for each in (app, lists))

    def ask(client: TestClient, path: str, **given: Any) -> str:
        # Not by the client's own JSON, which refuses half pairs.
        answer = client.post(
            f"{api.ROOT}/{path}", content=json.dumps(given), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code in (200, 404, 405, 422), answer.text
        if answer.status_code != 200:
            raise RefusedError(answer.text)
        return answer.text

    def job(name: str = "red.png", **changes: Any) -> str:
        given = {"token": "<rex>", "initializer": "dog", "pictures": [{"name": name, "data": data}], **changes}
        return ask(client, "jobs", **given)

    def listed_token(token: str) -> str:
        _run(listed.home(), "stranger", token)
        answer = of_lists.get(f"{api.ROOT}/runs")
        assert answer.status_code == 200
        return answer.text

    def resume(name: str) -> str:
        return ask(of_lists, f"runs/{urllib.parse.quote(name, safe='', errors='surrogatepass')}/resume")

    both: dict[str, Any] = {"allowed": (home, root / "embeddings")}
    return [
        Entry("scripts: token", home, lambda name: job(token=name), **both),
        Entry("scripts: name of a picture", home, lambda name: job(name=f"{name}.png"), NONE, **both),
        Entry(
            "scripts: model, where others can reach it",
            root / "models",
            lambda name: job(model=name),
            ALL,
            True,
            None,
            **both,
        ),
        Entry("scripts: name of a run, to resume", listed.home(), resume, ALL),
        Entry("scripts: token of a stranger's run, in the list", listed.home(), listed_token, NONE),
    ]
