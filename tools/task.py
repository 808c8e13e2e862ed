"""The project's commands on any system: make an own .venv, install into it, run.

    python tools/task.py demo     learn a subject on the embedded tiny model
    python tools/task.py test     run the default test suite
    python tools/task.py lint     ruff and mypy

Arguments after the command are handed on. Needs nothing but Python 3.10 or newer.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "installed"
PACKAGE = VENV / "typed" / "zoodip_pack"
"""This folder under a name that Python can import, as which mypy sees the nodes' relative imports."""
COMMANDS = {
    "demo": [["-m", "zoodip_core", "demo"]],
    "test": [["-m", "pytest", "-n", "logical", "--maxprocesses", "8", "--dist", "loadfile", "--no-loadscope-reorder"]],
    "lint": [
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "mypy"],
        ["-m", "mypy", "-p", "zoodip_pack.nodes"],
    ],
}

SETTINGS = {
    "lint": {"MYPYPATH": str(PACKAGE.parent)},
    # Each core has a process of its own; those that the tests start read what was compiled before.
    "test": {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""},
}


def installed_for() -> str:
    """What the environment depends on: it is made anew when this changes."""
    files = ("pyproject.toml", "requirements.txt", "constraints.txt")
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in files)).hexdigest() + sys.version


def ensure_environment() -> None:
    """Make .venv and install into it, unless that was done for the same requirements."""
    if PYTHON.is_file() and STAMP.is_file() and STAMP.read_text() == installed_for():
        return
    print("making .venv and installing (some minutes the first time) ...", flush=True)
    if VENV.exists():
        shutil.rmtree(VENV)
    venv.create(VENV, with_pip=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
    subprocess.run([*pip, "torch"], cwd=ROOT, check=True)  # first, so that nothing else chooses its build
    subprocess.run([*pip, "--editable", ".[test]"], cwd=ROOT, check=True)
    STAMP.write_text(installed_for())


def ensure_browser() -> None:
    """A Chromium for the tests of the page, which are skipped where none can be had."""
    if subprocess.run([str(PYTHON), "-m", "tests.browser"], cwd=ROOT, capture_output=True, check=False).returncode == 0:
        return
    commands = [[str(PYTHON), "-m", "playwright", "install", "chromium"]]
    if shutil.which("apt-get") and os.geteuid() == 0:  # a container, say, which lacks the libraries as well
        commands = [["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]]
    print("installing Chromium for the tests of the page ...", flush=True)
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            print("Chromium could not be installed (see above): the tests of the page are skipped")
            return


def link_package() -> None:
    """Make :data:`PACKAGE`."""
    if not PACKAGE.exists():
        PACKAGE.parent.mkdir(parents=True, exist_ok=True)
        PACKAGE.symlink_to(ROOT, target_is_directory=True)


def run(command: list[str]) -> int:
    """Run to the end; on Ctrl-C, which the child gets as well, let it save and end in its own way."""
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **SETTINGS.get(sys.argv[1], {})})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(__doc__)
        return 2
    if sys.version_info < (3, 10):  # noqa: UP036 - whoever runs this may have any Python
        print("ZOODiP needs Python 3.10 or newer; this is " + sys.version.split()[0])
        return 2
    try:
        ensure_environment()
    except subprocess.CalledProcessError as error:
        print(f"the installation failed ({error}); see pip's message above, then run this again")
        return 1
    if sys.argv[1] == "lint":
        link_package()
    if sys.argv[1] == "test":
        ensure_browser()
    *before, last = COMMANDS[sys.argv[1]]
    for arguments in [*before, [*last, *sys.argv[2:]]]:
        code = run([str(PYTHON), *arguments])
        if code:
            return code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
