"""A real ComfyUI with this node pack, run for a test and spoken to over its HTTP API.

Set COMFYUI_DIR to a ComfyUI checkout and, unless its packages are those of the tests' Python, COMFYUI_PYTHON to the
Python that has them.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = Path(__file__).with_name("launch_comfyui.py")
START_LIMIT, PROMPT_LIMIT, EVENT_LIMIT, STOP_LIMIT = 180.0, 400.0, 120.0, 10.0
"""Seconds."""
ENDS = ("execution_success", "execution_error", "execution_interrupted")

Json = Any
Prompt = dict[str, dict[str, Any]]


class RefusedError(Exception):
    """The server answered with an error. ``body`` is its JSON, or text."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(f"HTTP {status}: {body}")
        self.status, self.body = status, body


class NodeError(Exception):
    """A prompt ended with a node's error, whose text this is. ``node`` is the node's id."""

    def __init__(self, message: str, node: str) -> None:
        super().__init__(message)
        self.node = node


class InterruptError(Exception):
    """A prompt was interrupted; ``entry`` is its history entry."""

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__("the prompt was interrupted")
        self.entry = entry


class ComfyUI:
    """A server, from ``__enter__`` to ``__exit__``, whose folders are temporary and hold nothing but the node pack.

    Args:
        arguments: more of ComfyUI's command line, as ``--front-end-root``.
        packs: folders of other node packs to load beside ours.

    Attributes:
        base: the folder with ``input``, ``output``, ``models``, ``custom_nodes``.
        url: ``http://127.0.0.1:PORT``.
        pid: the server's process.
        client: the id under which prompts are queued and events arrive.
    """

    def __init__(self, *arguments: str, packs: Sequence[Path] = ()) -> None:
        self._arguments, self._packs = arguments, packs
        self.client = uuid.uuid4().hex
        self._defaults: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> ComfyUI:
        if not os.environ.get("COMFYUI_DIR"):
            pytest.skip("set COMFYUI_DIR to a ComfyUI checkout (and COMFYUI_PYTHON to its Python) to run this")
        self._temporary = tempfile.TemporaryDirectory(prefix="comfyui-")
        self.base = Path(self._temporary.name)
        for name in ("input", "output", "temp", "user", "custom_nodes", "models/checkpoints", "models/embeddings"):
            (self.base / name).mkdir(parents=True)
        (self.base / "custom_nodes" / "ComfyUI-ZOODiP").symlink_to(ROOT, target_is_directory=True)
        for pack in self._packs:
            (self.base / "custom_nodes" / pack.name).symlink_to(pack, target_is_directory=True)
        self._log_path = self.base / "server.log"
        self._process = self._start()
        self.pid = self._process.pid
        try:
            self._wait_for(self._answers, START_LIMIT, "ComfyUI did not start")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [os.environ.get("COMFYUI_PYTHON") or sys.executable, LAUNCHER]
        command += [Path(os.environ["COMFYUI_DIR"]) / "main.py"]
        options = ["--cpu", "--listen", "127.0.0.1", "--port", port, "--base-directory", self.base]
        options += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        with self._log_path.open("wb") as log:
            return subprocess.Popen(
                [str(part) for part in (*command, *options, *self._arguments)],
                stdin=subprocess.PIPE,  # closed with this process, at which the launcher ends the server
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    def _stop(self) -> None:
        with self._process:  # which closes its stdin
            self._process.terminate()
            try:
                self._process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._temporary.cleanup()

    def _answers(self) -> Json:
        try:
            return self.get("/system_stats")
        except (OSError, RefusedError):
            return None

    def _wait_for(self, find: Callable[[], Json], limit: float, failure: str) -> Json:
        """What ``find`` returns once it is true; an error with the log's end if it never is."""
        until = time.monotonic() + limit
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with exit status {self._process.returncode}\n{self._log_tail()}")
            found = find()
            if found:
                return found
            time.sleep(0.05)
        raise TimeoutError(f"{failure} within {limit:g} s\n{self._log_tail()}")

    def log(self) -> str:
        """All that the server has written."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    def _log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-40:])

    def rss(self) -> int:
        """Resident memory of the server in bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)

    # ---------------------------------------------------------------- HTTP

    def read(self, path: str, body: Json = None) -> bytes:
        """The answer to a GET, or to a POST of ``body`` as JSON.

        Raises:
            RefusedError: the answer is an error.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            raise RefusedError(error.code, _parsed(error.read())) from None

    def get(self, path: str) -> Json:
        return _parsed(self.read(path))

    def post(self, path: str, body: Json) -> Json:
        return _parsed(self.read(path, body))

    # ---------------------------------------------------------------- prompts

    def node(self, kind: str, **inputs: Any) -> dict[str, Any]:
        """A node for a prompt. Widgets that are not given have their defaults; a link is ``[node, output]``."""
        if kind not in self._defaults:
            self._defaults[kind] = defaults(self.get(f"/object_info/{kind}")[kind])
        return {"class_type": kind, "inputs": self._defaults[kind] | inputs}

    def queue(self, prompt: Prompt) -> str:
        """Queue a prompt in the API's format; returns its id.

        Raises:
            RefusedError: it is not valid.
        """
        return str(self.post("/prompt", {"prompt": prompt, "client_id": self.client})["prompt_id"])

    def wait(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt that has succeeded.

        Raises:
            NodeError: a node raised an error.
            InterruptError: it was interrupted.
        """
        path = f"/history/{prompt_id}"
        entry: dict[str, Any] = self._wait_for(
            lambda: self.get(path).get(prompt_id), PROMPT_LIMIT, "the prompt did not end"
        )
        told = messages(entry)
        if "execution_interrupted" in told:
            raise InterruptError(entry)
        if "execution_error" in told:
            error = told["execution_error"]
            raise NodeError(str(error["exception_message"]), str(error["node_id"]))
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry

    def run(self, prompt: Prompt) -> dict[str, Any]:
        """Queue a prompt and wait for it."""
        return self.wait(self.queue(prompt))

    def interrupt(self) -> None:
        """What the page's Cancel button does."""
        self.read("/interrupt", {})

    def images(self, entry: dict[str, Any], node: str) -> list[Image.Image]:
        """The pictures that a node shows."""
        shown = entry["outputs"][node]["images"]
        return [
            Image.open(io.BytesIO(self.read(f"/view?{urllib.parse.urlencode(where)}"))).convert("RGB")
            for where in shown
        ]

    def events(self) -> Events:
        """What the page would be told from now on. It is a context, and ends with it."""
        return Events(self.url, self.client)


class Events:
    """A websocket to the server, read by a thread. Previews, which are not JSON, are left out."""

    def __init__(self, url: str, client: str) -> None:
        place = urllib.parse.urlsplit(url)
        self._socket = socket.create_connection((place.hostname, place.port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        while self._stream.readline() not in (b"\r\n", b""):
            pass
        if b" 101 " not in status:
            raise RuntimeError(f"no websocket: {status!r}")
        self._socket.settimeout(None)
        self._came: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.wait(lambda event: event["type"] == "status")  # the server's greeting: it knows us now

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_error: object) -> None:
        # The server forgets a client when its socket ends, even if it has come again by then: wait for that.
        with contextlib.suppress(OSError):
            self._socket.sendall(b"\x88\x80\0\0\0\0")  # a close frame
        self._thread.join(STOP_LIMIT)
        self._socket.close()

    def _listen(self) -> None:
        with self._stream:
            for kind, data in iter(self._frame, None):
                if kind == 1:
                    self._came.put(json.loads(data))

    def _frame(self) -> tuple[int, bytes] | None:
        """A frame's kind and content, None at the end. The server neither masks nor splits them."""
        head = self._stream.read(2)
        if len(head) < 2:
            return None
        length = head[1]
        if length >= 126:
            length = int.from_bytes(self._stream.read(2 if length == 126 else 8), "big")
        return head[0] & 15, self._stream.read(length)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each event, ``{"type": ..., "data": ...}``, as it comes.

        Raises:
            TimeoutError: none came for long.
        """
        while True:
            try:
                yield self._came.get(timeout=EVENT_LIMIT)
            except queue.Empty:
                raise TimeoutError(f"no event within {EVENT_LIMIT:g} s") from None

    def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next event that is wanted; those before it are gone."""
        return next(event for event in self if wanted(event))

    def of_a_prompt(self, kind: str) -> list[dict[str, Any]]:
        """The data of the events of a type that came before the next end of a prompt; all are gone then."""
        return [event["data"] for event in self.until_the_end() if event["type"] == kind]

    def until_the_end(self) -> Iterator[dict[str, Any]]:
        """The events up to the end of a prompt, the last one included."""
        for event in self:
            yield event
            if event["type"] in ENDS:
                return


def messages(entry: dict[str, Any]) -> dict[str, Json]:
    """What a history entry tells of its execution, by type: ``execution_cached`` and so on."""
    return dict(entry["status"]["messages"])


def cached(entry: dict[str, Any]) -> set[str]:
    """The ids of the nodes that did not run again."""
    return set(messages(entry)["execution_cached"]["nodes"])


def _parsed(body: bytes) -> Json:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


# ---------------------------------------------------------------- nodes and workflows

_NOTES = ("Note", "MarkdownNote")
_NEVER, _BYPASS = 2, 4


def defaults(info: dict[str, Any]) -> dict[str, Any]:
    """The values that a node's widgets begin with, of its entry in /object_info."""
    values = {}
    for name, kind, options in _widgets(info):
        if isinstance(kind, list):
            values[name] = options.get("default", kind[0] if kind else "")
        elif "default" in options:
            values[name] = options["default"]
    return values


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """A workflow as the page saves it, as a prompt for the API. Muted and bypassed nodes are left out."""
    nodes = {
        node["id"]: node
        for node in workflow["nodes"]
        if node["type"] not in _NOTES and node.get("mode", 0) not in (_NEVER, _BYPASS)
    }
    sources = {link: [str(node), slot] for link, node, slot, *_to in workflow["links"] if node in nodes}
    prompt = {}
    for number, node in nodes.items():
        links = {slot["name"]: sources[slot["link"]] for slot in node.get("inputs", []) if slot["link"] in sources}
        values = _widget_values(node, object_info[node["type"]])
        prompt[str(number)] = {"class_type": node["type"], "inputs": values | links}
    return prompt


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """A node's widgets by name. The page saves their values in order, and after a seed what shall become of it."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return values
    left = iter(values)
    named = {}
    for name, kind, options in _widgets(info):
        try:
            named[name] = next(left)
        except StopIteration:
            raise ValueError(f"node {node['id']} ({node['type']}) has no value for {name}: {values}") from None
        if options.get("control_after_generate", kind == "INT" and name in ("seed", "noise_seed")):
            next(left, None)
    return named


def _widgets(info: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The inputs with a widget, as (name, type or list of choices, options)."""
    for group in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            if kind == "COMBO":  # the newer way to tell choices
                kind = options.get("options", [])
            widget = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN")
            if widget and not options.get("forceInput"):
                yield name, kind, options
