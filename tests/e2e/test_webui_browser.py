"""The extension's page in a real A1111 and a real Forge, in a real browser. See :mod:`tests.e2e.webui_page`.

ZOODIP_SCREENSHOTS is a folder to leave screenshots in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import open_browser
from tests.e2e.page import Page
from tests.e2e.webui import LONG, Webui
from tests.e2e.webui_page import (
    PROMPT,
    TABS,
    TRAINING_TABS,
    choose_subject,
    open_page,
    open_tab,
    set_number,
    start,
    tab_names,
    wait_for_state,
    wait_for_step,
)

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_left_at_work(webui: Webui) -> Iterator[None]:
    yield
    webui.stop_all()


@pytest.fixture
def page(webui: Webui, browser: Any) -> Iterator[Page]:
    with open_page(webui, browser) as opened:
        yield opened
    assert webui.complaints() == []


def screenshot(page: Page, webui: Webui, name: str) -> None:
    folder = os.environ.get("ZOODIP_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder) / f"{webui.kind.name.lower()}-{name}.png")


def test_where_the_tab_is(webui: Webui, page: Page) -> None:
    open_tab(webui, page)
    names = tab_names(page, TABS)
    if webui.kind.among:
        assert "ZOODiP" not in names
        assert tab_names(page, TRAINING_TABS)[-1] == "ZOODiP"
        assert not page.locator("#ti_gallery_container").is_visible(), "half of the page is empty"
        page.locator(TRAINING_TABS, has_text="Create embedding").click()
        page.locator("#ti_gallery_container").wait_for()
    else:
        assert names.count("ZOODiP") == 1
        assert names.index("ZOODiP") < names.index("Settings")


def test_the_settings(webui: Webui, page: Page) -> None:
    page.locator(TABS, has_text="Settings").click()
    page.locator("#settings > .tab-nav > button", has_text="ZOODiP").click()
    page.locator("#setting_zoodip_python").wait_for()
    for name in ("folder", "preset", "weights", "keep_copy", "python"):
        assert page.locator(f"#setting_zoodip_{name}").is_visible(), name
    screenshot(page, webui, "settings")


def learn_weights(page: Page) -> None:
    """Turn the switch on, after a preset that has it on and one that leaves it as it was."""
    switch = page.locator("#zoodip_learn_weights input")
    for preset, on in (("two-stage", True), ("fast", False)):
        page.locator("#zoodip_preset input").click()
        page.locator("#zoodip_preset ul.options li", has_text=preset).click()
        page.wait_for_function(
            """on => {
              const switched = gradioApp().querySelector('#zoodip_learn_weights input')
              return switched.disabled === on && switched.checked === on
            }""",
            arg=on,
        )
    switch.check()


def test_a_bundled_subject_is_learned_and_used(webui: Webui, page: Page) -> None:
    webui.draw("a dog")  # loads the webui's model
    page.locator(PROMPT).fill("a photo")
    open_tab(webui, page)
    choose_subject(page, "pip")
    assert page.locator("#zoodip_token").get_by_role("textbox").input_value() == "<pip>"
    set_number(page, "steps", 4)
    set_number(page, "sample_every", LONG)
    learn_weights(page)
    page.locator("#zoodip_start").click()
    told = wait_for_state(page, "finished")
    file, lora = webui.data / "embeddings" / "pip.safetensors", webui.data / "models" / "Lora" / "pip-lora.safetensors"
    assert f"saved as {file} and {lora}" in told
    assert file.is_file()
    assert lora.is_file()
    screenshot(page, webui, "finished")
    look = webui.look()
    assert "pip" in look["loaded"] + look["skipped"], "the webui does not see the file"

    page.get_by_role("tab", name="Runs", exact=True).or_(page.get_by_role("button", name="Runs", exact=True)).click()
    page.locator("#zoodip_run_list label", has_text="pip").first.click()
    page.locator("#zoodip_use").wait_for()
    screenshot(page, webui, "run")
    page.locator("#zoodip_use").click()
    page.wait_for_function("get_uiCurrentTabContent()?.id === 'tab_txt2img'")
    assert page.locator(PROMPT).input_value() == "a photo, pip <lora:pip-lora:1>"
    screenshot(page, webui, "prompt")


def test_other_pages_and_reload_ui(webui: Webui, browser: Any) -> None:
    """A page that is opened later shows the same. Reload UI interrupts a training as whatever the webui does: the run
    is saved, and the page offers to resume it."""
    with open_page(webui, browser) as page:
        open_tab(webui, page)
        start(page, "boo", "<again>")
        with open_page(webui, browser) as other:
            open_tab(webui, other)
            wait_for_step(other, "<again>", 3)
            assert other.locator("#zoodip_token").get_by_role("textbox").input_value() == "<again>"
            screenshot(other, webui, "running")
    before = webui.get("/zoodip/v1/jobs")
    webui.reload_page()
    job = webui.wait_for(before[-1]["id"], "stopped")
    assert len(webui.get("/zoodip/v1/jobs")) == len(before)
    with open_page(webui, browser) as page:
        open_tab(webui, page)
        assert f"stopped at step {job['step']}" in wait_for_state(page, "stopped")
        page.locator("#zoodip_resume", has_text="again").click()
        wait_for_step(page, "<again>", job["step"] + 1)
        page.locator("#zoodip_stop").click()
        wait_for_state(page, "stopped")
    assert webui.complaints() == []
