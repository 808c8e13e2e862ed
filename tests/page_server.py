"""Our page as a server, a process of its own, and a driver for a browser that looks at it.

The driver finds its way on the pages of gradio 3.41, 4.40 and 6.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPHS = sorted((ROOT / "tests" / "photographs").glob("*.jpg"))
LIMIT = 600.0
"""Seconds that a busy computer may take for what an idle one does at once."""
LOOK = 250.0
"""Milliseconds between two looks at what is waited for."""


def free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


class PageServer:
    """A server of the page, with runs and embeddings in folders below ``root``.

    Args:
        root: gets ``runs``, ``embeddings`` and ``log.txt``.
        command: starts it, with ``{port}`` in place of the port; by default our own command.
        env: more environment variables.
    """

    def __init__(self, root: Path, command: Sequence[str] = (), env: dict[str, str] | None = None) -> None:
        self.runs, self.embeddings, self._log = root / "runs", root / "embeddings", root / "log.txt"
        self.embeddings.mkdir(parents=True, exist_ok=True)
        own = [sys.executable, "-m", "zoodip_core", "ui", "--port", "{port}"]
        self._command = command or [*own, "--runs", str(self.runs), "--embeddings", str(self.embeddings)]
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False", **(env or {})}
        self._process: psutil.Popen | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.port = free_port()
        command = [part.replace("{port}", str(self.port)) for part in self._command]
        with self._log.open("ab") as out:
            self._process = psutil.Popen(command, cwd=ROOT, env=self._env, stdout=out, stderr=out)
        deadline = time.monotonic() + LIMIT
        while not self._answers():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=LIMIT) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            return error.code == 401  # it wants a password first
        except OSError:
            return False

    def workers(self) -> list[psutil.Process]:
        """The processes that it has started and that have not ended."""
        return list(self._process.children(recursive=True)) if self._process else []

    def stop(self) -> None:
        """End it without a word of warning, and wait for its workers, which save and end by themselves."""
        if self._process is not None:
            workers = self.workers()
            self._process.kill()
            self._process.wait()
            _, alive = psutil.wait_procs(workers, timeout=LIMIT)
            for worker in alive:
                worker.kill()
            assert not alive, "a worker outlived its page"


# ---------------------------------------------------------------- a browser that looks at it


class Visitor:
    """What a person does on the page.

    Args:
        browser: Playwright's.
        url: of the page.
        query: after the address, as ``?__theme=dark``.
        size: of the window.
    """

    def __init__(self, browser: Any, url: str, query: str = "", size: tuple[int, int] = (1440, 900)) -> None:
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self._url, self._port = url + query, url.rpartition(":")[2]
        window = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=window, accept_downloads=True, reduced_motion="reduce")
        context.set_default_timeout(LIMIT * 1000)
        self.page = context.new_page()
        self.page.on("request", lambda request: self.hosts.update(re.findall(r"^\w+://([^/]+)", request.url)))
        self.page.on("pageerror", lambda error: self.errors.append(error.message))
        self.page.on("console", self._heard)
        context.route(lambda address: self._is_foreign(address), lambda route: route.abort())

    def _is_foreign(self, address: str) -> bool:
        return bool(re.match(r"https?://", address)) and not address.startswith(self._url.partition("/?")[0])

    def _heard(self, message: Any) -> None:
        if message.type == "error" and not self._is_foreign(message.location.get("url", "")):
            self.errors.append(message.text)

    def close(self) -> None:
        self.page.context.close()

    @property
    def foreign(self) -> set[str]:
        """The other servers that the page asked for something."""
        return {host for host in self.hosts if host != f"127.0.0.1:{self._port}"}

    def look(self) -> None:
        """Load the page, and wait until it shows what is kept and how far the job is."""
        self.page.goto(self._url)
        self.page.wait_for_selector("#zoodip_status [data-state]")  # the first look, after what is kept

    def until(self, condition: str, argument: Any = None) -> None:
        """Wait for a condition in JavaScript; looked at now and then, since at every frame would take a core."""
        self.page.wait_for_function(condition, arg=argument, polling=LOOK)

    def until_python(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, "nothing came of it"
            self.page.wait_for_timeout(LOOK)

    # ------------------------------------------------------------ the form

    def field(self, name: str) -> Any:
        """The input of a field."""
        return self.page.locator(f"#zoodip_{name} :is(input, textarea)").first

    def value(self, name: str) -> str:
        return str(self.field(name).input_value())

    def write(self, name: str, text: str) -> None:
        """Type into a field, and leave it."""
        self.field(name).fill(text)
        self.field(name).blur()

    def choose(self, name: str, option: str) -> None:
        """Choose from a list."""
        self.field(name).click()
        self.page.locator("[role=option], ul.options li").filter(has_text=option).first.click()

    def tab(self, title: str) -> None:
        """Go to a tab."""
        older = self.page.locator("#zoodip_page .tab-nav > button").filter(has_text=title)
        self.page.get_by_role("tab", name=title).or_(older).first.click()

    def open_settings(self) -> None:
        self.page.locator("#zoodip_settings .label-wrap").first.click()
        self.field("steps").wait_for()

    def press(self, name: str) -> None:
        self.page.locator(f"#zoodip_{name}").first.click()

    def shown(self, name: str) -> bool:
        return bool(self.page.locator(f"#zoodip_{name}").first.is_visible())

    def notice(self, kind: str, where: str = "notice") -> str:
        """Wait for a notice of a kind, and return its words."""
        found = self.page.locator(f"#zoodip_{where} .zoodip-{kind}").first
        found.wait_for()
        return str(found.inner_text())

    # ------------------------------------------------------------ pictures

    def drop(self, files: Sequence[Path]) -> None:
        """Drop files onto the page; returns when they are taken or refused."""
        self.page.locator("#zoodip_drop input[type=file]").set_input_files([str(file) for file in files])
        self.page.wait_for_selector("#zoodip_pictures_notice .zoodip-box")

    def drag(self, path: Path) -> None:
        """Drag a file or folder onto the page with the mouse; returns when it is taken or refused."""
        box = self.page.locator("#zoodip_drop").bounding_box()
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        session = self.page.context.new_cdp_session(self.page)
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
        self.page.wait_for_selector("#zoodip_pictures_notice .zoodip-box")

    @property
    def pictures(self) -> Any:
        return self.page.locator("#zoodip_pictures .thumbnail-item")

    @property
    def captions(self) -> list[str]:
        return [str(text).strip() for text in self.pictures.all_inner_texts()]

    def paint(self, number: int) -> None:
        """Paint a stroke through the middle of a picture, and keep it as its mask."""
        self.pictures.nth(number).click()
        self.page.locator("#zoodip_paint").first.wait_for()
        self.press("paint")
        canvases = self.page.locator("#zoodip_mask canvas")
        canvases.first.wait_for()

        def said() -> str:
            return " ".join(self.page.locator("#zoodip_pictures_notice").all_inner_texts())  # it may not be there

        def strokes() -> bool:
            """The editor takes none until it has drawn the picture, which it does not tell."""
            if "has a mask" in said() or not self.shown("keep_mask"):  # kept by now, or just about to be told
                return "has a mask" in said()
            boxes = [box for canvas in canvases.all() if (box := canvas.bounding_box())]
            box = max(boxes, key=lambda each: each["width"] * each["height"])
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            mouse = self.page.mouse
            mouse.move(x - 30, y - 10)
            mouse.down()
            for i in range(12):
                mouse.move(x - 30 + 5 * i, y - 10 + 2 * i)
            mouse.up()
            self.page.wait_for_timeout(4 * LOOK)
            self.press("keep_mask")
            self.until_python(lambda: "has a mask" in said() or "nothing is painted" in said())
            self.page.wait_for_timeout(4 * LOOK)
            return "has a mask" in said()

        canvases.last.scroll_into_view_if_needed()
        self.until_python(strokes)

    # ------------------------------------------------------------ the job

    @property
    def status(self) -> Any:
        return self.page.locator("#zoodip_status [data-state]").first

    @property
    def state(self) -> str:
        return str(self.status.get_attribute("data-state"))

    @property
    def step(self) -> int:
        return int(self.status.get_attribute("data-step") or 0)

    def start(self, token: str) -> None:
        """Press Start, and wait until the first step on this token is done."""
        self.press("start")
        self.until("token => document.querySelector('#zoodip_status .zoodip-said b')?.innerText === token", token)
        self.until_step(1)

    def until_state(self, state: str) -> None:
        self.until("state => document.querySelector('#zoodip_status [data-state]')?.dataset.state === state", state)

    def until_step(self, step: int) -> None:
        self.until("step => Number(document.querySelector('#zoodip_status [data-step]')?.dataset.step) >= step", step)

    @property
    def line(self) -> str:
        """The points of the loss chart's line."""
        return str(self.page.locator("#zoodip_status .zoodip-chart > polyline").first.get_attribute("points"))

    def sample(self) -> str:
        """The address of the newest samples, once there are some."""
        picture = self.page.locator("#zoodip_sample img").first
        picture.wait_for()
        return str(picture.get_attribute("src"))

    # ------------------------------------------------------------ runs

    def runs(self) -> list[str]:
        return [str(text).strip() for text in self.page.locator("#zoodip_run_list label").all_inner_texts()]

    def choose_run(self, name: str) -> None:
        self.page.locator("#zoodip_run_list label").filter(has_text=name).first.click()
        self.page.wait_for_selector(f"#zoodip_run_details [data-run='{name}']")


@contextlib.contextmanager
def visit(browser: Any, url: str, query: str = "", size: tuple[int, int] = (1440, 900)) -> Iterator[Visitor]:
    """A visitor who has the page before them."""
    visitor = Visitor(browser, url, query, size)
    try:
        visitor.look()
        yield visitor
    finally:
        visitor.close()
