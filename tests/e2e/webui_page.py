"""Our page in a webui's, in a real browser: what its tests and the pictures of the README do with it.

It needs Playwright for Python and a Chromium, named by CHROMIUM or on the PATH; see also :mod:`tests.e2e.webui`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.e2e.page import LEARNING_LIMIT, LIMIT, Page
from tests.e2e.webui import LONG, Webui

TABS = "#tabs > .tab-nav > button"
TRAINING_TABS = "#train_tabs > .tab-nav > button"
PROMPT = "#txt2img_prompt textarea"
ABSENT = ("net::ERR_NAME_NOT_RESOLVED", "net::ERR_INTERNET_DISCONNECTED")
"""What the webui's own page complains of where there is no network."""


@contextlib.contextmanager
def open_page(webui: Webui, browser: Any) -> Iterator[Page]:
    """The webui's page, in a browser that has never seen it; it must not complain of anything."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(LIMIT)
    complaints: list[str] = []
    try:
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"{error.message}\n{error.stack}"))
        page.on("console", lambda told: complaints.append(told.text) if told.type == "error" else None)
        page.goto(webui.url)
        wait_until_ready(page)
        yield page
    finally:
        context.close()
    found = [each for each in complaints if not any(sign in each for sign in ABSENT)]
    if found:
        raise AssertionError("the page complains:\n" + "\n".join(found))


def wait_until_ready(page: Page) -> None:
    page.wait_for_function(f"window.gradioApp && gradioApp().querySelectorAll('{TABS}').length > 3")
    page.wait_for_function("window.opts && Object.keys(opts).length > 3")  # set when the page has loaded its settings


def open_tab(webui: Webui, page: Page) -> None:
    """Show our page, and wait until it has looked at the job."""
    if webui.kind.among:
        page.locator(TABS, has_text="Train").click()
        page.locator(TRAINING_TABS, has_text="ZOODiP").click()
    else:
        page.locator(TABS, has_text="ZOODiP").click()
    page.locator("#zoodip_start").wait_for()
    page.wait_for_function("gradioApp().querySelector('#zoodip_status [data-state]')")


def tab_names(page: Page, tabs: str) -> list[str]:
    return [str(name).strip() for name in page.locator(tabs).all_text_contents()]


def choose_subject(page: Page, name: str) -> None:
    """Choose a bundled subject, and wait until the form has its pictures and its token."""
    token = page.locator("#zoodip_token").get_by_role("textbox")
    token.fill("")  # of another subject
    page.locator("#zoodip_bundled input").click()
    page.locator("ul.options li", has_text=name).click()
    page.wait_for_function("([box, text]) => box.value === text", arg=[token.element_handle(), f"<{name}>"])
    page.locator("#zoodip_pictures img").first.wait_for()


def set_number(page: Page, name: str, value: int) -> None:
    """Type into a field of "Every setting"."""
    field = page.locator(f"#zoodip_{name} input")
    if not field.is_visible():
        page.locator("#zoodip_settings").get_by_text("Every setting").click()
    field.fill(str(value))
    field.press("Tab")


def wait_for_state(page: Page, state: str) -> str:
    """Wait until the newest job is in a state; returns what is told of it."""
    box = page.locator(f"#zoodip_status [data-state='{state}']").first
    box.wait_for(timeout=LEARNING_LIMIT)
    return str(box.inner_text())


def wait_for_step(page: Page, token: str, step: int) -> None:
    """Wait until the training of a token has taken so many steps."""
    page.wait_for_function(
        """([token, step]) => {
          const box = gradioApp().querySelector('#zoodip_status [data-step]')
          return box && box.textContent.includes(token) && Number(box.dataset.step) >= step
        }""",
        arg=[token, step],
        timeout=LEARNING_LIMIT,
    )


def start(page: Page, subject: str, token: str) -> None:
    """Start a training that does not end, and wait until it learns."""
    choose_subject(page, subject)
    page.locator("#zoodip_token").get_by_role("textbox").fill(token)
    set_number(page, "steps", LONG)
    page.locator("#zoodip_start").click()
    wait_for_step(page, token, 3)
