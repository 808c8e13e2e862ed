"""A Chromium for the tests. ``python -m tests.browser`` says which one they would take, and fails if there is none."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NONE = "no Chromium: name one in CHROMIUM, install the system's, or run: python -m playwright install chromium"


def find_chromium(driver: Any) -> str | None:
    """The one named by CHROMIUM, else Playwright's own, else one on the PATH; ``driver`` is Playwright."""
    own = driver.chromium.executable_path
    named = os.environ.get("CHROMIUM") or (own if Path(own).is_file() else None)
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return named or next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """A browser without a window; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="install playwright to run this")
    with playwright.sync_playwright() as driver:
        chromium = find_chromium(driver)
        if chromium is None:
            pytest.skip(NONE)
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def main() -> int:
    """Whether there is a Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = find_chromium(driver)
    print(found or NONE)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
