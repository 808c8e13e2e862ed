"""Passwords, ends and starts of a real A1111 and a real Forge. See :mod:`tests.e2e.webui` for what this needs."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.browser import open_browser
from tests.e2e.webui import LIMIT, LONG, Kind, Webui, data_folder
from tests.e2e.webui_page import open_page, open_tab, wait_for_state

pytestmark = pytest.mark.e2e

STEPS = 60
ROUTES = ("/zoodip/v1/jobs", "/zoodip/v1/jobs/1", "/zoodip/v1/runs")


def until(condition: Callable[[], object], failure: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.05)


def ended_by_itself(worker: psutil.Process) -> bool:
    return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def saved_step(run: Path) -> int:
    return len((run / "run" / "steps.jsonl").read_text().splitlines())


def test_a_killed_webui_and_its_next_start(kind: Kind) -> None:
    """Nothing is lost, and the run ends in the same bytes as one that was never stopped."""
    with data_folder(kind) as data:
        runs = data / "zoodip"
        with Webui(kind, data, "--api", "--gradio-auth", "me:secret") as first:
            for path in ROUTES:
                assert first.status(path) == 401, "the page asks for a password, and our interface does not"
            assert first.status("/zoodip/v1/jobs", "POST") == 401
            first.login("me", "secret")
            whole = first.start(steps=STEPS)
            killed = first.start(steps=STEPS, overwrite=True)
            first.wait_for(whole, "finished")
            first.wait_for_step(killed, 8)
            worker = first.worker()
            assert worker is not None
            first.process.send_signal(signal.SIGKILL)
            until(lambda: ended_by_itself(worker), "the training goes on without its webui")
        reached = saved_step(runs / "boo-2")
        assert 8 <= reached < STEPS
        embedding = data / "embeddings" / "boo.safetensors"
        assert embedding.read_bytes() == (runs / "boo" / "run" / "boo.safetensors").read_bytes()

        with Webui(kind, data) as second, open_browser() as browser, open_page(second, browser) as page:
            for path in ROUTES:
                assert second.status(path) == 404, "the webui's API is off"
            open_tab(second, page)
            button = page.locator("#zoodip_resume")
            button.wait_for()
            assert "boo-2" in button.inner_text()
            button.click()
            wait_for_state(page, "finished")
            assert second.complaints() == []
        one, other = (runs / name / "run" / "boo.safetensors" for name in ("boo", "boo-2"))
        assert one.read_bytes() == other.read_bytes()


def test_ctrl_c_in_the_terminal_of_a_webui_without_a_page(kind: Kind) -> None:
    """With passwords for the API, which are ours too."""
    with data_folder(kind) as data, Webui(kind, data, "--nowebui", "--api-auth", "me:secret") as webui:
        assert webui.status("/sdapi/v1/progress") == 401
        for path in ROUTES:
            assert webui.status(path) == 401
        webui.account = ("me", "wrong")
        assert webui.status("/zoodip/v1/jobs") == 401
        assert webui.status("/zoodip/v1/jobs/1/stop", "POST") == 401
        webui.account = ("me", "secret")
        assert webui.status("/zoodip/v1/jobs") == 200
        number = webui.start(steps=LONG)
        webui.wait_for_step(number, 5)
        worker = webui.worker()
        assert worker is not None
        os.killpg(webui.process.pid, signal.SIGINT)
        until(lambda: ended_by_itself(worker), "the training goes on without its webui")
        until(lambda: webui.process.poll() is not None, "the webui does not end")
        run = data / "zoodip" / "boo" / "run"
        assert json.loads((run / "config.json").read_text())["steps"] == LONG
        assert (run / "state.safetensors").is_file()
        assert saved_step(run.parent) >= 5
        assert webui.complaints() == []
