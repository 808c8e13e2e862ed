"""The table of readers: what each reads, and how.

To add one: a strategy for each of its files, and the call that reads them from the folder they are in.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import queue
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from PIL import Image

from zoodip_core.base.errors import ConfigError, ModelError
from zoodip_core.base.events import Commands
from zoodip_core.data.images import load_images, open_picture
from zoodip_core.data.masks import Masks
from zoodip_core.data.prompts import captions_for, unused_captions
from zoodip_core.evaluate.encoders import CONFIG, PREPROCESSOR, ClipFeatures, DinoFeatures, find_clip, find_dino
from zoodip_core.jobs import environment, tasks
from zoodip_core.jobs.history import list_runs
from zoodip_core.jobs.job import Job
from zoodip_core.jobs.job_folder import Task, log_tail
from zoodip_core.jobs.pipes import obey
from zoodip_core.jobs.process import Worker
from zoodip_core.jobs.protocol import RUNNING
from zoodip_core.model.building import empty_network
from zoodip_core.model.calls import calls_in
from zoodip_core.model.copies import _name, cached_model, file_stamps
from zoodip_core.model.embedding import describe, load_embedding, load_embeddings
from zoodip_core.model.generation import with_lora
from zoodip_core.model.libraries import quiet_libraries
from zoodip_core.model.load import load_quantized
from zoodip_core.model.lora import load_lora, lora_of, serialize
from zoodip_core.model.recognise import open_model
from zoodip_core.page import views
from zoodip_core.page.draft import Draft
from zoodip_core.page.form import filled
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.replay import restore, rewind
from zoodip_core.train.run_folder import RunFolder
from zoodip_webui import api

from . import samples as of
from .mutations import boxes, damaged, jpeg, json_like, json_lines, pickles, png, safetensors, tiff, webp

Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """Something that reads what others wrote.

    Args:
        files: a case: files by their names.
        read: reads them from the folder they are in.
        also: what may be raised besides our errors, as the reader's own docstring says.
        share: how many cases it gets, as against the others.
    """

    files: st.SearchStrategy[Files]
    read: Callable[[Path], Any]
    also: tuple[type[Exception], ...] = ()
    share: float = 1.0


# ---------------------------------------------------------------- cases


def _one(
    name: str, content: st.SearchStrategy[bytes], beside: Mapping[str, bytes] = MappingProxyType({})
) -> st.SearchStrategy[Files]:
    """A single changed file; what lies ``beside`` it is sound."""
    return content.map(lambda data: {**beside, name: data})


def _named(name: str, data: bytes) -> Files:
    return {name: data}


def _any_of(sound: Mapping[str, bytes], changed: Mapping[str, st.SearchStrategy[bytes]]) -> st.SearchStrategy[Files]:
    """Sound files, one of which is changed, and now and then a second one."""
    one = st.one_of([content.map(partial(_named, name)) for name, content in changed.items()])
    return st.lists(one, min_size=1, max_size=2).map(
        lambda all_of: {**sound, **{k: v for d in all_of for k, v in d.items()}}
    )


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


FOLDER: Mapping[str, bytes] = {
    "model_index.json": _dumped(of.MODEL_INDEX),
    "scheduler/scheduler_config.json": _dumped(of.SCHEDULER_CONFIG),
    "unet/config.json": _dumped(of.UNET_CONFIG),
    "unet/diffusion_pytorch_model.safetensors.index.json": _dumped(of.SHARDS),
    "unet/one.safetensors": of.WEIGHTS.write(),
    "vae/config.json": _dumped(of.VAE_CONFIG),
    "vae/diffusion_pytorch_model.safetensors": of.WEIGHTS.write(),
    "text_encoder/config.json": _dumped(of.TEXT_CONFIG),
    "text_encoder/model.safetensors": of.WEIGHTS.write(),
    "tokenizer/vocab.json": _dumped(of.VOCABULARY),
    "tokenizer/merges.txt": of.MERGES,
    "tokenizer/tokenizer_config.json": _dumped(of.TOKENIZER),
    "tokenizer/special_tokens_map.json": _dumped(of.SPECIAL_TOKENS),
}
_MODEL_WORDS = (
    *("StableDiffusionPipeline", "StableDiffusionXLPipeline", "v_prediction", "epsilon", "text_time", "gelu", "silu"),
    *("CrossAttnDownBlock2D", "DownBlock2D", "UNetMidBlock2D", "linear", "squaredcos_cap_v2", "one.safetensors", "sd1"),
    *(*of.UNET_CONFIG, *of.TEXT_CONFIG, *of.SCHEDULER_CONFIG),
    *("class_embed_type", "num_class_embeds", "attn_implementation"),
)
_CONFIGS = {
    "scheduler/scheduler_config.json": json_like([of.SCHEDULER_CONFIG], _MODEL_WORDS),
    "unet/config.json": json_like([of.UNET_CONFIG], _MODEL_WORDS),
    "vae/config.json": json_like([of.VAE_CONFIG], _MODEL_WORDS),
    "text_encoder/config.json": json_like([of.TEXT_CONFIG], _MODEL_WORDS),
}
_TOKENIZER_WORDS = (
    *("<|startoftext|>", "<|endoftext|>", "a</w>", "added_tokens_decoder", "additional_special_tokens", "BPE", "Fixed"),
    *("WordPiece", "pad_to_multiple_of", "ByteLevel", "Replace", "Sequence", "TemplateProcessing", "byte_fallback"),
    *(*of.TOKENIZER, "strategy", "direction", "auto_map", "CLIPTokenizerFast", "chat_template", "type", "content"),
)
_TOKENIZER_FILES = {
    "tokenizer/vocab.json": json_like([of.VOCABULARY], _TOKENIZER_WORDS),
    "tokenizer/merges.txt": damaged([of.MERGES]),
    "tokenizer/tokenizer_config.json": json_like(of.TOKENIZER_CONFIGS, _TOKENIZER_WORDS),
    "tokenizer/special_tokens_map.json": json_like([of.SPECIAL_TOKENS], _TOKENIZER_WORDS),
    "tokenizer/tokenizer.json": json_like([of.TOKENIZER_FILE, of.PADDED], _TOKENIZER_WORDS),
}
_COPY_WORDS = (*_MODEL_WORDS, "zoodip_quantized_copy", "tokenizer", "tokenizer_2", "int4", "unet.conv_in.weight.data")
_YAML = b'model:\n  params:\n    parameterization: "v"\n'


@st.composite
def _request(draw: Callable[[Any], Any]) -> Files:
    """A request for a job, with a picture."""
    picture = base64.b64encode(draw(st.one_of(st.just(of.pngs()[0]), png(of.pngs()))))
    return {"request.json": draw(json_like([of.REQUEST], of.CONFIG_WORDS)).replace(b"@picture@", picture)}


@st.composite
def _journal(draw: Callable[[Any], Any]) -> bytes:
    """A journal; in half of them whoever changed the lines gave them their checksums."""
    lines: bytes = draw(st.one_of(damaged([of.journal()]), json_lines(of.RECORDS, ("-1", "1e999", "8"))))
    if not draw(st.booleans()):
        return lines
    bodies = (re.sub(rb',"crc":"[^"]*"\}?$', b"", line).removesuffix(b"}") for line in lines.split(b"\n"))
    return b"".join(b'%s,"crc":"%08x"}\n' % (body, zlib.crc32(body)) for body in bodies)


# ---------------------------------------------------------------- reading


def _tellable(*texts: Any) -> None:
    """A page can show them: in UTF-8, in JSON of numbers that JSON knows."""
    json.dumps(texts, ensure_ascii=False, allow_nan=False).encode()


def _lora(folder: Path) -> None:
    """A LoRA's file, on the embedded model."""
    model, lora = load_quantized("tiny", device="cpu"), load_lora(folder / "a.safetensors")
    _tellable(lora.notes_on(model), lora.metadata, lora.rank)
    with with_lora(model, lora.scaled(0.5)):
        pass
    serialize(lora)


def _frames(folder: Path) -> None:
    """What a run's learned weights stand between."""
    settings = {"images": ["x"], "token": "<x>", "initializer": "x", "lora_rank": 2}
    frames = RunFolder(folder, TrainConfig.from_dict(settings)).frames()
    assert frames is not None
    lora_of(frames, torch.ones(frames.numbers), {})


def _embedding(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        """All tokens of the file, and each as the one that is chosen."""
        found = load_embeddings(folder / name)
        for each in found:
            chosen = load_embedding(folder / name, each.token)
            assert chosen.token == each.token
            _tellable(describe(chosen), each.token, each.metadata, each.family, each.alias)
        calls_in([found[0].token, "a cat"], found)
        load_embedding(folder / name)  # which refuses several

    return read


def _model(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        blueprint = open_model(folder / name)
        info = blueprint.info
        _tellable(info.name, info.family, info.dims, info.resolution, info.prediction_type, len(blueprint.text_parts))

    return read


def _parts(folder: Path) -> None:
    unet, clip, vae = (folder / name for name in of.PARTS)
    info = open_model(unet, clip=[clip], vae=vae).info
    _tellable(info.name, info.family, info.dims, info.resolution, info.prediction_type)


def _networks(folder: Path) -> None:
    """What a prediction of memory builds, and the schedule."""
    model = load_quantized(folder, device="cpu", weights="none")
    for part in ("unet", "vae", "text_encoder"):
        empty_network(model.blueprint, part)
    model.scheduler.alphas_cumprod.tolist()


def _prompt(folder: Path) -> None:
    load_quantized(folder, device="cpu").prompt("a photo of a {} cat", 2)


def _copies_index(folder: Path) -> None:
    """The index, with the right stamp of a model of which there is a copy."""
    model, cache = folder / "model.safetensors", folder / "cache"
    model.write_bytes(b"x")
    os.utime(model, (1, 1))
    index = cache / "index.json"
    text = index.read_bytes().replace(b"@model@", str(model).encode())
    index.write_bytes(text.replace(b'"@stamp@"', json.dumps(file_stamps(model)).encode()))
    cached_model(model, "int8", cache)


def _pictures(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        open_picture(folder / name)
        ((image,), _) = load_images([folder], 32)
        assert image.picture.size == (32, 32)
        assert image.picture.mode == "RGB"

    return read


def _mask(folder: Path) -> None:
    """Beside a sound picture, which stays usable whatever its mask is."""
    Image.new("RGB", (48, 32), "red").save(folder / "a.jpg")
    masks = Masks("mask")
    ((image,), skipped) = load_images([folder / "a.jpg"], 32, masks=masks.of)
    assert image.mask is None or (image.mask.mode, image.mask.size) == ("L", (32, 32))
    assert skipped == []
    _tellable(masks.lines)


def _captions(folder: Path) -> None:
    listing = folder / "captions.json"
    paths = [folder / "01.png", folder / "02.png"]
    captions_file = listing if listing.exists() else None
    captions_for(paths, captions_file=captions_file, token="<pip>")
    _tellable(unused_captions(captions_file, paths, [folder]))


def _config(folder: Path) -> None:
    config = TrainConfig.from_json((folder / "config.json").read_text("utf-8", "replace"), "config.json")
    assert TrainConfig.from_json(config.to_json()) == config


def _draft(folder: Path) -> None:
    draft = Draft(folder)
    _tellable(filled(draft.values()), [(each.name, each.caption) for each in draft.pictures()])
    draft.keep({"token": "<x>"})


def _dropped(folder: Path) -> None:
    draft = Draft(folder / "draft")
    given = [path for path in sorted(folder.iterdir()) if path.is_file()]
    lines = draft.add([(path, path.name) for path in given])
    lines += Draft(folder / "other").add_folder(folder)
    _tellable(lines, [each.caption for each in draft.pictures()])


def _runs(folder: Path) -> None:
    runs = list_runs(folder)
    for run in runs:
        _tellable(views.run_head(run), views.run_details(run), views.run_label(run), log_tail(run.folder))
        _tellable(api._told(run))


def _run_folder(folder: Path) -> None:
    """All that is read when a run is resumed, and when it is rewound."""
    run = RunFolder.open(folder / "pip")
    _tellable(list_runs(folder)[0].step, run.step(), run.losses())
    state, past = run.saved_state(), run.past()
    with contextlib.suppress(ConfigError):  # another one's state
        restore(run.config.make_search(torch.zeros(2, 8)), run.config, past.records, state.tensors if state else None)
    _tellable(describe(load_embedding(rewind(run.path, min(run.step(), 6)).path)))


def _job_file(folder: Path) -> None:
    tasks.settings_of(Task.read(folder / "task.json"))


def _events(folder: Path) -> None:
    """A worker's lines, by the thread that reads them, into the job as a page shows it."""
    worker = Worker.__new__(Worker)
    worker._events = queue.Queue()
    worker._read(io.BytesIO((folder / "lines").read_bytes()), folder / "log.txt")
    job = Job(1, "train", folder, "<pip>", folder / "task.json", state=RUNNING)
    for event in worker.events(0.01, lambda: None):
        job.hear(event)
    _tellable(views.status(job), api._told(job))


def _commands(folder: Path) -> None:
    with (folder / "lines").open("rb") as pipe, mock.patch("sys.stderr", io.StringIO()):
        obey(pipe, Commands())


def _asked(folder: Path) -> None:
    """A script's request, as far as the training that it asks for."""
    request: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        request = json.loads((folder / "request.json").read_bytes())
    if isinstance(request, dict):  # fastapi refuses the rest
        host = SimpleNamespace(defaults=dict)
        api._start(SimpleNamespace(host=host, start=lambda form, draft: draft.pictures()), request)  # type: ignore[arg-type]


def _dino(folder: Path) -> None:
    features = DinoFeatures(find_dino(folder / "dino"), torch.device("cpu")).of_images([Image.new("RGB", (40, 30))])
    assert features.ndim == 2


def _clip(folder: Path) -> None:
    ClipFeatures(find_clip(folder / "clip"), torch.device("cpu"))


def _judge(name: str) -> st.SearchStrategy[Files]:
    sound = {file: data for file, data in of.judge_files().items() if file.startswith(name)}
    configs = (f"{name}/{CONFIG}", f"{name}/{PREPROCESSOR}")
    return _any_of(sound, {file: json_like([json.loads(sound[file])], of.JUDGE_WORDS) for file in configs})


def _stamp(folder: Path) -> None:
    with mock.patch.object(environment, "TRAINER", folder):
        environment._read_stamp()


def warm_up() -> None:
    """Read a sound model, so that what libraries do when they are first used is not laid to a case."""
    quiet_libraries()
    with tempfile.TemporaryDirectory() as place:
        for name, content in {**FOLDER, **of.judge_files()}.items():
            (Path(place) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(place) / name).write_bytes(content)
        _networks(Path(place))
        _prompt(Path(place))
        _dino(Path(place))
        with contextlib.suppress(ModelError):  # its weights are not its own
            _clip(Path(place))


_INDEX = {"@model@": {"stamp": "@stamp@", "key": "abcdef"}, "x": {"stamp": [["x", 1, 2]], "key": "ff"}, "y": {}}
_PICTURE = of.pngs()[0]

READERS: Mapping[str, Reader] = {
    "embedding .safetensors": Reader(
        _one(
            "a.safetensors",
            safetensors(of.EMBEDDINGS, ("<x>", "clip_l", "clip_g", "emb_params", "t5xxl", "a.clip_g", "a.alpha")),
        ),
        _embedding("a.safetensors"),
        share=2,
    ),
    "embedding .pt": Reader(_one("a.pt", pickles(of.embedding_pickles())), _embedding("a.pt"), share=2),
    "embedding .bin": Reader(_one("a.bin", pickles(of.diffusers_pickles())), _embedding("a.bin")),
    "LoRA .safetensors": Reader(
        _one("a.safetensors", safetensors(of.LORAS, ("lora_unet_x.alpha", "lora_te_x.alpha", "<x>"))), _lora
    ),
    "frames.safetensors": Reader(_one("frames.safetensors", safetensors(of.FRAMES, ("x.a", "x.b"))), _frames),
    "checkpoint .safetensors": Reader(
        _one("m.safetensors", safetensors(of.CHECKPOINTS, ("v_pred", "ztsnr", "lora_up", "scaled_fp8"))),
        _model("m.safetensors"),
        share=2,
    ),
    "checkpoint .ckpt": Reader(_one("m.ckpt", pickles(of.checkpoint_pickles())), _model("m.ckpt")),
    "files of a model's parts": Reader(
        _any_of(
            {name: sound.write() for name, sound in of.PARTS.items()},
            {
                name: safetensors([sound], ("quant_conv.weight", "token_embedding.weight", "text_projection"))
                for name, sound in of.PARTS.items()
            },
        ),
        _parts,
    ),
    "yaml beside a checkpoint": Reader(
        _one("m.yaml", damaged([_YAML]), {"m.safetensors": of.CHECKPOINTS[2].write()}),
        _model("m.safetensors"),
        share=0.3,
    ),
    "quantised copy": Reader(_one("c.safetensors", safetensors([of.COPY], _COPY_WORDS)), _model("c.safetensors")),
    "index of copies": Reader(
        _one(
            "cache/index.json",
            json_like([_INDEX], ("@stamp@", "abcdef", "../../x")),
            {f"cache/{_name('abcdef', 'int8')}": of.COPY.write()},
        ),
        _copies_index,
        share=0.5,
    ),
    "diffusers folder": Reader(
        _any_of(
            FOLDER,
            {
                **_CONFIGS,
                "model_index.json": json_like([of.MODEL_INDEX], _MODEL_WORDS),
                "unet/diffusion_pytorch_model.safetensors.index.json": json_like([of.SHARDS], _MODEL_WORDS),
            },
        ),
        _model("."),
    ),
    "diffusers configs": Reader(_any_of(FOLDER, _CONFIGS), _networks, share=0.15),
    "tokenizer": Reader(_any_of(FOLDER, _TOKENIZER_FILES), _prompt, share=0.3),
    "picture .png": Reader(_one("a.png", png(of.pngs())), _pictures("a.png"), share=1.5),
    "mask": Reader(_one("a.mask.png", png(of.pngs())), _mask, share=0.5),
    "picture .jpg": Reader(_one("a.jpg", jpeg(of.jpegs())), _pictures("a.jpg"), share=1.5),
    "picture .webp": Reader(_one("a.webp", webp(of.webps())), _pictures("a.webp")),
    "picture .gif": Reader(_one("a.gif", damaged(of.gifs())), _pictures("a.gif")),
    "picture .bmp": Reader(_one("a.bmp", damaged(of.bmps())), _pictures("a.bmp"), share=0.5),
    "picture .tif": Reader(_one("a.tif", tiff(of.tiffs())), _pictures("a.tif"), share=1.5),
    "picture .avif": Reader(_one("a.avif", boxes(of.avifs())), _pictures("a.avif")),
    "picture .heic": Reader(_one("a.heic", boxes(of.heics())), _pictures("a.heic")),
    "captions .json": Reader(_one("captions.json", json_like(of.CAPTIONS, of.CAPTION_WORDS)), _captions),
    "caption .txt": Reader(_one("01.txt", damaged(of.TEXTS)), _captions, share=0.5),
    "caption .caption": Reader(_one("01.Caption", damaged(of.TEXTS)), _captions, share=0.3),
    "metadata.jsonl": Reader(_one("metadata.jsonl", json_lines(of.NOTED, of.CAPTION_WORDS)), _captions, share=0.5),
    "config": Reader(_one("config.json", json_like([of.CONFIG], of.CONFIG_WORDS)), _config, share=1.5),
    "draft": Reader(
        _any_of(
            {"images/0001-a.png": _PICTURE},
            {
                "draft.json": json_like([of.DRAFT], of.CONFIG_WORDS),
                "captions.json": json_like([of.DRAFT_CAPTIONS], of.CAPTION_WORDS),
            },
        ),
        _draft,
        share=0.5,
    ),
    "files dropped on the page": Reader(
        _any_of(
            {"b.png": _PICTURE},
            {
                "a.png": png(of.pngs()),
                "c.webp": webp(of.webps()),
                "d": st.one_of(tiff(of.tiffs()), boxes(of.heics()), damaged(of.gifs())),
                "b.txt": damaged(of.TEXTS),
                "b.caption": damaged(of.TEXTS),
                "captions.json": json_like([{"b.png": "a {}"}], of.CAPTION_WORDS),
                "metadata.jsonl": json_lines(of.NOTED, of.CAPTION_WORDS),
            },
        ),
        _dropped,
        share=0.5,
    ),
    "runs of a page": Reader(
        _any_of(
            {"pip/task.json": _dumped(of.TASK)},
            {
                "pip/task.json": json_like([of.TASK], of.TASK_WORDS),
                "pip/outcome.json": json_like([of.OUTCOME], of.TASK_WORDS),
                "pip/run/config.json": json_like([of.CONFIG], of.CONFIG_WORDS),
                "pip/log.txt": damaged(of.TEXTS),
                "other/config.json": json_like([of.CONFIG], of.CONFIG_WORDS),
            },
        ),
        _runs,
        share=1.5,
    ),
    "run folder": Reader(
        _any_of(
            of.run_files(),
            {
                "pip/config.json": json_like([of.RUN_CONFIG], of.CONFIG_WORDS),
                "pip/steps.jsonl": _journal(),
                "pip/state.safetensors": safetensors([of.STATE], ("subspace.buffer", "optimizer.mean")),
                "pip/snapshots/step-00000000.safetensors": safetensors(of.EMBEDDINGS, ("<x>", "clip_l", "clip_g")),
            },
        ),
        _run_folder,
        share=2,
    ),
    # OSError: a model's name too long to be looked up, say.
    "job file": Reader(_one("task.json", json_like([of.TASK], of.TASK_WORDS)), _job_file, also=(OSError,)),
    "events of a worker": Reader(_one("lines", json_lines(of.EVENTS, of.EVENT_WORDS)), _events),
    "commands to a worker": Reader(_one("lines", json_lines(of.COMMANDS, ("stop", "save"))), _commands, share=0.5),
    "request of a script": Reader(_request(), _asked, share=0.5),
    "DINOv2": Reader(st.deferred(lambda: _judge("dino")), _dino, share=0.3),
    "CLIP": Reader(st.deferred(lambda: _judge("clip")), _clip, share=0.3),
    "stamp of the trainer": Reader(_one("installed.json", json_like([of.STAMP])), _stamp, share=0.2),
}
"""By what is read."""
