"""A real A1111 or Forge with this extension, run for a test and spoken to over HTTP.

Set A1111_DIR and A1111_PYTHON, FORGE_DIR and FORGE_PYTHON to a checkout and the Python that has its packages. They run
on the CPU and offline: their checkpoint has random weights. All that they write goes into a temporary folder.
"""

from __future__ import annotations

import base64
import contextlib
import http.cookiejar
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from tests.e2e.comfyui import LAUNCHER, ROOT, RefusedError

START_LIMIT, LIMIT, STOP_LIMIT = 240.0, 240.0, 15.0
"""Seconds for the start, for anything that a test waits for, and for the end."""
MODEL = "small15.safetensors"
LONG = 100_000
"""Steps that no test waits for."""
SPY = Path(__file__).with_name("spy_webui")
CLIP = ROOT / "zoodip_core" / "clip"

Json = Any


@dataclass(frozen=True)
class Kind:
    """One of the webuis.

    Args:
        name: for people.
        folder: the environment variable of its checkout.
        python: that of its Python.
        flags: what it needs to run on the CPU, offline.
        among: whether our page stands among its training tabs.
    """

    name: str
    folder: str
    python: str
    flags: tuple[str, ...]
    among: bool

    @property
    def root(self) -> Path:
        return Path(os.environ[self.folder])

    def run(self, *arguments: str) -> str:
        """What its Python prints, run as the webui runs an installer: in its folder, which is on the path."""
        env = {**os.environ, "PYTHONPATH": str(self.root)}
        command = [os.environ[self.python], *arguments]
        return subprocess.run(command, cwd=self.root, env=env, check=True, capture_output=True, text=True).stdout

    def freeze(self) -> str:
        """The packages of its environment."""
        return self.run("-m", "pip", "freeze", "--disable-pip-version-check")

    def skip_if_absent(self) -> None:
        if not (os.environ.get(self.folder) and os.environ.get(self.python)):
            pytest.skip(f"set {self.folder} to a checkout of {self.name} and {self.python} to its Python to run this")


_COMMON = (
    *("--skip-python-version-check", "--skip-torch-cuda-test", "--skip-prepare-environment", "--skip-install"),
    "--skip-version-check",
)
A1111 = Kind(
    "A1111",
    "A1111_DIR",
    "A1111_PYTHON",
    (*_COMMON, "--use-cpu", "all", "--no-half", "--skip-load-model-at-start", "--no-download-sd-model"),
    True,
)
FORGE = Kind("Forge", "FORGE_DIR", "FORGE_PYTHON", (*_COMMON, "--always-cpu"), False)
KINDS = (A1111, FORGE)


# ---------------------------------------------------------------- a webui's folder of data


@lru_cache(1)
def small_model() -> Path:
    """A checkpoint of SD1.5 with random weights, narrow and of few layers; it stays as long as this process."""
    import random_models

    place = tempfile.TemporaryDirectory(prefix="zoodip-model-")
    _kept.append(place)
    path = Path(place.name) / MODEL
    random_models.write_random(path, "sd15", "small")
    return path


_kept: list[Any] = []


@contextlib.contextmanager
def data_folder(kind: Kind) -> Iterator[Path]:
    """A folder for a webui's data, in which this extension, the spy and a small checkpoint are."""
    kind.skip_if_absent()
    with tempfile.TemporaryDirectory(prefix=f"webui-{kind.name.lower()}-", ignore_cleanup_errors=True) as place:
        data = Path(place)
        for name in ("tmp", "extensions", "embeddings", "models/Stable-diffusion"):
            (data / name).mkdir(parents=True)
        (data / "extensions" / "zoodip").symlink_to(ROOT, target_is_directory=True)
        (data / "extensions" / "spy").symlink_to(SPY, target_is_directory=True)
        (data / "config.json").write_text(json.dumps({"zoodip_python": sys.executable}))
        (data / "models" / "Stable-diffusion" / MODEL).symlink_to(small_model())
        if kind is A1111:
            _fit_a1111(kind.root, data)
        else:
            _fit_forge(kind.root, data)
        yield data


def _fit_a1111(root: Path, data: Path) -> None:
    """Have it take the small model for an SD1.5: by a config beside it, and by a cache of the hub's files."""
    config = (root / "configs" / "v1-inference.yaml").read_text()
    config = config.replace("model_channels: 320", "model_channels: 32").replace("ch: 128", "ch: 32")
    (data / "models" / "Stable-diffusion" / MODEL).with_suffix(".yaml").write_text(config)
    cache, version = data / "hub" / "hub" / "models--openai--clip-vit-large-patch14", "0" * 40
    snapshot = cache / "snapshots" / version
    shutil.copytree(CLIP, snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(version)
    (snapshot / "config.json").write_text(json.dumps(_text_config({"architectures": ["CLIPTextModel"]})))


def _fit_forge(root: Path, data: Path) -> None:
    """Have it take the small model for an SD1.5: by an extension that changes what it knows of those."""
    extension = data / "extensions" / "small"
    repository = extension / "repository"
    shutil.copytree(root / "backend" / "huggingface" / "runwayml" / "stable-diffusion-v1-5", repository)
    text = repository / "text_encoder" / "config.json"
    text.write_text(json.dumps(_text_config(json.loads(text.read_text()))))
    vae = repository / "vae" / "config.json"
    vae.write_text(json.dumps({**json.loads(vae.read_text()), "block_out_channels": [32, 64, 128, 128]}))
    (extension / "scripts").mkdir()
    (extension / "scripts" / "small.py").write_text(
        "from huggingface_guess.model_list import SD15\n"
        "SD15.unet_config = {**SD15.unet_config, 'model_channels': 32}\n"
        f"SD15.huggingface_repo = {str(repository)!r}\n"
    )


def _text_config(published: dict[str, Any]) -> dict[str, Any]:
    import random_models

    return {**published, "model_type": "clip_text_model", **random_models.configs("sd15", "small")["text_encoder"]}


# ---------------------------------------------------------------- a server


class Webui:
    """A server on a folder of data, from ``__enter__`` to ``__exit__``.

    Args:
        kind: which webui.
        data: its folder, see :func:`data_folder`.
        flags: more of its command line.

    Attributes:
        url: ``http://127.0.0.1:PORT``.
        process: the server's.
        account: name and password for HTTP Basic, if any.
    """

    def __init__(self, kind: Kind, data: Path, *flags: str) -> None:
        self.kind, self.data, self._flags = kind, data, flags
        self.account: tuple[str, str] | None = None
        self._log = data / f"server-{len(list(data.glob('server-*')))}.log"
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def __enter__(self) -> Webui:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [os.environ[self.kind.python], str(LAUNCHER), str(self.kind.root / "launch.py"), *self.kind.flags]
        command += ["--port", str(port), "--data-dir", str(self.data), "--gradio-allowed-path", str(self.kind.root)]
        started = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self._flags],
                cwd=self.kind.root,
                stdin=subprocess.PIPE,  # closed with this process, at which the launcher ends the server
                start_new_session=True,  # what Ctrl-C in its terminal reaches is a group of its own
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": "1", **os.environ, **self._settings()},
            )
        try:
            self.wait(self._is_ready, "it did not start", START_LIMIT)
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.monotonic() - started
        return self

    def _settings(self) -> dict[str, str]:
        return {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HOME": str(self.data / "hub"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "SD_WEBUI_RESTARTING": "1",  # or it would open a browser
            "TMPDIR": str(self.data / "tmp"),
        }

    def __exit__(self, *_error: object) -> None:
        with self.process:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                try:
                    self.process.wait(STOP_LIMIT)
                except subprocess.TimeoutExpired:
                    self.process.kill()

    def _is_ready(self) -> bool:
        return "Startup time" in self.log() and self.status("/docs") != 0

    def wait(self, condition: Callable[[], Any], failure: str, limit: float = LIMIT) -> Any:
        """What the condition is once it is true; an error with the log's end if it never is."""
        until = time.monotonic() + limit
        while time.monotonic() < until:
            found = condition()
            if found:
                return found
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.kind.name} ended: {self.process.returncode}\n{self._log_tail()}")
            time.sleep(0.1)
        raise TimeoutError(f"{failure} within {limit:g} s\n{self._log_tail()}")

    def log(self) -> str:
        """All that the server has written."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-40:])

    def complaints(self) -> list[str]:
        """The lines of the log that our extension is to blame for: tracebacks that name its files."""
        text = re.sub(r"\*\*\* Failed reading extension data.*?\n---\n", "", self.log(), flags=re.DOTALL)  # no remote
        blocks = re.split(r"(?=Traceback \(most recent call last\))", text)[1:]
        return [block for block in blocks if "zoodip" in block.partition("\n---")[0]]

    def worker(self) -> psutil.Process | None:
        """The process that trains, if there is one."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if "zoodip_core.jobs.worker" in child.cmdline():
                    return child
        return None

    # ---------------------------------------------------------------- HTTP

    def read(self, path: str, body: Json = None, *, post: bool = False, **headers: str) -> bytes:
        """The answer to a GET, or to a POST of ``body`` as JSON.

        Raises:
            RefusedError: the answer is an error.
        """
        data = json.dumps(body).encode() if post else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **headers})
        if self.account:
            word = base64.b64encode(":".join(self.account).encode()).decode()
            request.add_header("Authorization", f"Basic {word}")
        try:
            with self._opener.open(request, timeout=LIMIT) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                raise RefusedError(error.code, json.loads(text)) from None
            except ValueError:
                raise RefusedError(error.code, text) from None

    def get(self, path: str) -> Json:
        return json.loads(self.read(path))

    def post(self, path: str, body: Json = None) -> Json:
        return json.loads(self.read(path, {} if body is None else body, post=True) or "null")

    def status(self, path: str, method: str = "GET", **headers: str) -> int:
        """The status of an answer; 0 where there is none."""
        try:
            self.read(path, {}, post=method == "POST", **headers)
        except RefusedError as error:
            return error.status
        except OSError:
            return 0
        return 200

    def login(self, name: str, password: str) -> None:
        """Log in as the page does; the cookie is kept."""
        form = f"username={name}&password={password}".encode()
        self._opener.open(urllib.request.Request(f"{self.url}/login", form), timeout=60).close()

    def look(self) -> dict[str, Any]:
        """What the spy sees."""
        return dict(self.get("/spy/look"))

    # ---------------------------------------------------------------- pictures

    def draw(self, prompt: str, steps: int = 2, **more: Any) -> tuple[Image.Image, str]:
        """A picture of the small model, and the text that the webui gives with it."""
        asked = {
            "prompt": prompt,
            "steps": steps,
            "width": 64,
            "height": 64,
            "sampler_name": "Euler",
            "seed": 1,
            **more,
        }
        answer = self.post("/sdapi/v1/txt2img", asked)
        picture = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
        return picture, str(json.loads(answer["info"])["infotexts"][0])

    # ---------------------------------------------------------------- our own interface

    def start(self, **changes: Any) -> int:
        """Start a job; returns its number."""
        return int(self.post("/zoodip/v1/jobs", request(**changes))["id"])

    def job(self, number: int) -> dict[str, Any]:
        return dict(self.get(f"/zoodip/v1/jobs/{number}"))

    def wait_for(self, number: int, *states: str) -> dict[str, Any]:
        """The job once it is in one of the states; an error if it ends in another one."""

        def found() -> dict[str, Any] | None:
            job = self.job(number)
            if job["state"] in ("finished", "stopped", "failed") and job["state"] not in states:
                raise AssertionError(f"the job is {job['state']}: {job['message']}\n{job['log']}")
            return job if job["state"] in states else None

        return dict(self.wait(found, f"the job did not come to {', '.join(states)}"))

    def wait_for_step(self, number: int, step: int = 1) -> dict[str, Any]:
        """The job once it has taken so many steps."""

        def found() -> dict[str, Any] | None:
            job = self.job(number)
            assert job["state"] in ("waiting", "running"), f"{job['message']}\n{job['log']}"
            return job if job["step"] >= step else None

        return dict(self.wait(found, "the job did not begin to learn"))

    def stop_all(self) -> None:
        """Stop what is at work or waits, and wait for the webui's queue."""
        for job in self.get("/zoodip/v1/jobs"):
            if job["state"] in ("waiting", "running"):
                self.post(f"/zoodip/v1/jobs/{job['id']}/stop")
        self.wait(lambda: self.look()["free"], "the webui's queue is held")

    def reload_page(self) -> None:
        """What the button Reload UI of the settings does."""
        started = self.log().count("Startup time")
        self.post("/spy/reload")
        self.wait(lambda: self.log().count("Startup time") > started, "it did not come back")
        self.wait(lambda: self.status("/zoodip/v1/jobs") == 200, "our routes did not come back")


def request(concept: str = "boo", **changes: Any) -> dict[str, Any]:
    """A request for a training on the embedded model and a bundled subject's pictures."""
    folder = ROOT / "zoodip_core" / "tiny" / "concepts" / concept / "images"
    captions = json.loads(folder.with_suffix(".json").read_text())
    pictures = [
        {"name": path.name, "data": base64.b64encode(path.read_bytes()).decode(), "caption": captions[path.name]}
        for path in sorted(folder.iterdir())
    ]
    for picture in pictures:
        if isinstance(picture["caption"], list):
            picture["caption"] = "\n".join(picture["caption"])
    base = {"token": f"<{concept}>", "initializer": "monster", "steps": 6, "sample_every": LONG, "pictures": pictures}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}
