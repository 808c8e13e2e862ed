"""The page's button that installs the trainer: one installation at a time, what it tells, stopping it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fake_page_host import until
from zoodip_core.base.errors import ConfigError
from zoodip_core.jobs import installer
from zoodip_core.jobs.installer import Installer


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of install.py, which is what a test writes into this file."""
    path = tmp_path / "install.py"
    monkeypatch.setattr(installer, "SCRIPT", path)
    return path


def test_it_is_run_with_what_it_needs_and_its_words_are_kept(script: Path) -> None:
    script.write_text("import sys; print(sys.argv[1:], sys.executable); print('wörter', file=sys.stderr)")
    made = Installer()
    assert (made.running, made.failed, made.lines()) == (False, False, [])
    made.start()
    until(lambda: not made.running)
    until(lambda: len(made.lines()) == 2)
    assert made.lines() == [f"['--trainer', '--yes'] {sys.executable}", "wörter"]
    assert not made.failed


def test_an_installation_that_fails_is_told_of_and_can_be_tried_again(script: Path) -> None:
    script.write_text("print('no network'); raise SystemExit(1)")
    made = Installer()
    made.start()
    until(lambda: made.failed)
    until(lambda: made.lines() == ["no network"])
    script.write_text("print('done')")
    made.start()
    until(lambda: made.lines() == ["done"])
    until(lambda: not made.running)
    assert not made.failed


def test_there_is_one_installation_at_a_time_and_it_can_be_stopped(script: Path, tmp_path: Path) -> None:
    script.write_text(f"open({str(tmp_path / 'started')!r}, 'a').write('x'); import time; time.sleep(100_000)")
    made = Installer()
    made.start()
    made.start()
    until((tmp_path / "started").exists)
    made.start()
    made.stop()
    until(lambda: not made.running)  # sooner than by itself
    assert made.failed
    assert (tmp_path / "started").read_text() == "x"
    made.stop()  # nothing is there to stop


def test_few_of_many_lines_are_kept(script: Path) -> None:
    script.write_text("for i in range(5000): print(i)")
    made = Installer()
    made.start()
    until(lambda: made.lines(1) == ["4999"])
    assert made.lines(3) == ["4997", "4998", "4999"]
    assert len(made.lines(10_000)) < 1000


def test_without_its_script_it_says_what_to_do(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"missing; install the packages of requirements\.txt by hand"):
        Installer().start()
    script.touch()
    monkeypatch.setattr(installer, "this_python", lambda: None)
    with pytest.raises(ConfigError, match="a Python is missing"):
        Installer().start()
