"""Which Python trains, and the installer of the trainer's own environment.

The installer runs for real, in a copy of the repository whose core only answers the self-check, and with pip, whose
packages are empty ones made here; nothing comes from a network.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import packaging.requirements
import pytest

from tests.fake_page_host import until
from zoodip_core.jobs import environment
from zoodip_core.jobs import installer as installing

ROOT = Path(__file__).resolve().parent.parent
PYTHON = environment.python_in(Path())
PACKAGES = {
    "torch": "2.5.1+cu121",
    "diffusers": "0.35.2",
    "transformers": "4.57.1",
    "optimum-quanto": "0.2.6",
    "safetensors": "0.6.0",
    "filelock": "3.20.0",
    "matplotlib": "3.9.0",
    "numpy": "2.0.0",
    "Pillow": "11.0",
    "psutil": "7.0.0",
    "tqdm": "4.67.0",
}
TOO_NEW = {"diffusers": "0.36.0", "transformers": "5.0.0", "optimum-quanto": "0.2.7"}
NOTHING_HERE = ["torch is missing", "diffusers is missing"]


def write_wheel(folder: Path, name: str, version: str) -> None:
    """An empty package; optimum-quanto has the module that the self-check imports."""
    stem = f"{name.replace('-', '_')}-{version}"
    files = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name == "optimum-quanto":
        files["optimum/quanto.py"] = ""
    files[f"{stem}.dist-info/RECORD"] = "".join(f"{path},,\n" for path in files) + f"{stem}.dist-info/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


class Copy(NamedTuple):
    """A copy of the repository: its folder, the packages that pip finds, and the user's home."""

    root: Path
    wheels: Path
    home: Path

    @property
    def trainer(self) -> Path:
        return self.root / ".trainer"

    @property
    def stamp(self) -> Path:
        return self.trainer / "installed.json"

    def env(self, **changes: str) -> dict[str, str]:
        ours = ("PIP_", "PYTHON", "ZOODIP_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        found = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        home = {"HOME": str(self.home), "PIP_CONFIG_FILE": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}
        return {**kept, **home, **(changes or found)}

    def install(self, *options: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.root / "install.py"), "--trainer", *options]
        return subprocess.run(command, env=self.env(**changes), capture_output=True, text=True, check=False)

    def answer(self, answer: int) -> None:
        """Make the self-check end with this exit code."""
        (self.root / "zoodip_core" / "__main__.py").write_text(
            f"import sys\nassert sys.argv[1:] == ['inspect', 'tiny']\nprint('the check')\nsys.exit({answer})\n"
        )


def make_copy(folder: Path) -> Copy:
    copy = Copy(folder / "pack", folder / "wheels", folder / "home")
    parts = shutil.ignore_patterns("__pycache__", "tiny", "clip")
    shutil.copytree(ROOT / "zoodip_core", copy.root / "zoodip_core", ignore=parts)
    for name in ("install.py", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, copy.root / name)
    copy.home.mkdir()
    copy.answer(0)
    for name, version in [*PACKAGES.items(), *TOO_NEW.items()]:
        write_wheel(copy.wheels, name, version)
    return copy


def without_torch(copy: Copy) -> None:
    """As if the installation had been cut off before torch."""
    copy.stamp.unlink()
    [site] = copy.trainer.rglob("site-packages")
    shutil.rmtree(site / "torch-2.5.1+cu121.dist-info")


class Made(NamedTuple):
    copy: Copy
    said: list[str]
    code: int
    changed_elsewhere: bool


def contents(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*") if path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An installation from nothing, by the Python that runs the tests."""
    copy = make_copy(tmp_path_factory.mktemp("made"))
    here = Path(packaging.requirements.__file__).parent.parent
    before = {path.name for path in here.iterdir()}
    done = copy.install()
    return Made(copy, done.stdout.splitlines(), done.returncode, before != {path.name for path in here.iterdir()})


@pytest.fixture
def again(made: Made, tmp_path: Path) -> Copy:
    """What was installed, to be changed."""
    source = made.copy.root.parent
    shutil.copytree(source, tmp_path / "again", symlinks=True)
    return Copy(*(tmp_path / "again" / path.relative_to(source) for path in made.copy))


@pytest.fixture(scope="module")
def installer() -> Any:
    """install.py as a module."""
    spec = importlib.util.spec_from_file_location("zoodip_installer", ROOT / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete environment as far as files tell, in a process whose own Python cannot train."""
    folder = tmp_path / ".trainer"
    python = environment.python_in(folder)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    version = ".".join(map(str, sys.version_info[:3]))
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).parent}\nversion = {version}\n")
    monkeypatch.setattr(environment, "TRAINER", folder)
    monkeypatch.setattr(environment, "unfit", lambda: NOTHING_HERE)
    environment.stamp_file().write_text(environment.stamp("2.6.0"))
    return folder


# Which Python trains


def test_a_python_that_has_all_trains_itself() -> None:
    trainer = environment.find_trainer()
    assert environment.unfit() == []
    assert trainer.python == Path(sys.executable)
    assert not trainer.own


def test_looking_imports_no_torch_and_works_without_any_package() -> None:
    code = (
        "from zoodip_core.jobs import environment; import sys; found = environment.find_trainer();"
        "assert not {'torch', 'diffusers', 'subprocess'} & set(sys.modules); assert not found.python; print(found.why)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch is missing" in done.stdout


@pytest.mark.parametrize(
    ("installed", "problems"),
    [
        ({}, []),
        ({"torch": "2.4.0+cu121"}, []),
        ({"torch": "2.4.0a0+07cecf4168.nv24.05"}, []),
        ({"torch": "2.1.2+cu121"}, ["torch 2.1.2 (2.4 or newer is needed)"]),
        ({"torch": "2.13.0.dev20260401+cu130"}, []),
        ({"torch": "odd"}, ["torch odd (2.4 or newer is needed)"]),
        ({"optimum-quanto": "0.2.7"}, []),  # only pip must not choose it
        ({"diffusers": "", "transformers": "4.30.2"}, ["diffusers is missing", "transformers 4.30.2 (4.44 or newer"]),
    ],
)
def test_what_is_unfit_is_named(
    installed: dict[str, str], problems: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in {**PACKAGES, **installed}.items():
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" if version else ""
        )
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = environment.unfit()
    assert [text[: len(start)] for text, start in zip(found, problems, strict=True)] == problems
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "numpy is missing" in environment.unfit(), "a child does not get PYTHONPATH"


def test_an_installed_package_has_its_requirements_as_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ["diffusers>=0.32", 'pytest>=8; extra == "test"']
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr("importlib.metadata.requires", lambda name: listed)
    monkeypatch.setattr(environment, "installed", lambda name: "2.4" if name == "torch" else None)
    assert environment.unfit() == ["diffusers is missing"]


def test_a_chosen_python_is_taken_or_the_setting_is_named(tmp_path: Path) -> None:
    assert environment.find_trainer(f'"{sys.executable}"').python == Path(sys.executable)
    for path, wrong in ((tmp_path / "none" / "python", "does not exist"), (tmp_path, "is a folder")):
        trainer = environment.find_trainer(str(path))
        assert trainer.python is None
        assert f'"{environment.SETTING}" is {path}, which {wrong}' in trainer.why


def test_the_own_environment_is_found(own: Path) -> None:
    python = environment.python_in(own)
    assert environment.find_trainer() == environment.Trainer(python, True, "its own environment, torch 2.6.0")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("absent", "is not installed"),
        ("incomplete", "was cut off"),
        ("outdated", "other requirements"),
        ("broken", "is gone or was replaced"),
        ("base gone", "is gone or was replaced"),
        ("base upgraded", "is gone or was replaced"),
        ("damaged stamp", "was cut off"),
    ],
)
def test_an_own_environment_that_is_no_use_is_explained(own: Path, state: str, said: str, tmp_path: Path) -> None:
    settings = own / "pyvenv.cfg"
    if state == "absent":
        shutil.rmtree(own)
    elif state == "incomplete":
        environment.stamp_file().unlink()
    elif state == "outdated":
        environment.stamp_file().write_text(json.dumps({"requirements": ["torch>=2.0"], "torch": "2.0"}))
    elif state == "broken":
        environment.python_in(own).unlink()
    elif state == "base gone":
        settings.write_text(f"home = {tmp_path / 'gone'}\n")
    elif state == "base upgraded":
        (tmp_path / "python3.99").touch()
        environment.python_in(own).unlink()
        environment.python_in(own).symlink_to(tmp_path / "python3.99")
    else:
        environment.stamp_file().write_text("[1")
    trainer = environment.find_trainer()
    assert trainer.python is None
    assert said in trainer.why
    assert "torch is missing, diffusers is missing" in trainer.why
    assert f'press "{environment.BUTTON}" or run: ' in trainer.why
    assert trainer.why.endswith(f'"{sys.executable}" "{ROOT / "install.py"}" --trainer')


@pytest.mark.parametrize(
    ("torch", "index"),
    [
        ("2.1.2+cu121", "cu121"),
        ("2.0.1+cu117", "cu118"),
        ("2.7.1+cu118", "cu118"),
        ("2.11.0.dev20260101+cu130", "cu130"),
        ("2.1.2+cpu", "cpu"),
        ("2.2.0+rocm5.7", "rocm6.1"),
        ("2.3.1+rocm6.0", "rocm6.1"),
        ("2.4.1+rocm6.1", "rocm6.1"),
        ("2.6.0+rocm6.2.4", "rocm6.2.4"),
        ("2.6.0+rocm6.4.2.git76481f7c", "rocm6.4"),
        ("2.13.0", ""),
        ("2.4.0a0+07cecf4168.nv24.05", ""),
        (None, ""),
    ],
)
def test_torch_comes_for_the_same_device(torch: str | None, index: str) -> None:
    assert environment.torch_index(torch) == (f"https://download.pytorch.org/whl/{index}" if index else "")


def test_sizes_follow_the_device() -> None:
    sizes = [environment.expected_size(f"https://download.pytorch.org/whl/{name}") for name in ("cpu", "cu121")]
    assert sizes[0].folder < 2 < sizes[1].download < sizes[1].folder
    assert environment.expected_size() in sizes


def test_a_child_gets_no_other_pythons_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "__PYVENV_LAUNCHER__",
        "PIP_TARGET",
        "PIP_USER",
        "PIP_PYTHON",
    ):
        monkeypatch.setenv(name, "x")
    for name in ("PIP_INDEX_URL", "PIP_CERT", "HTTPS_PROXY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "kept")
    env = environment.clean_env()
    assert "x" not in {env.get(name) for name in os.environ if name in env}
    assert {name for name in env if env[name] == "kept"} == {
        "PIP_INDEX_URL",
        "PIP_CERT",
        "HTTPS_PROXY",
        "CUDA_VISIBLE_DEVICES",
    }
    assert env["PYTHONUTF8"] == "1"
    assert env["PYTHONUNBUFFERED"] == "1"


# The installer


@pytest.mark.slow
def test_it_installs_in_four_steps_and_says_so(made: Made) -> None:
    assert made.code == 0, made.said
    text = "\n".join(made.said)
    assert f"installed into {made.copy.trainer}" in text
    assert "GB to download" in text
    assert "nothing outside of that folder is changed" in text
    places = [text.index(f"[{step}/4] ") for step in (1, 2, 3, 4)]
    assert places == sorted(places)
    assert made.said[-1] == "ZOODiP: the trainer is ready (its own environment, torch 2.5.1+cu121)"
    assert all(line.startswith(("ZOODiP: ", "[")) for line in made.said if line)


@pytest.mark.slow
def test_older_libraries_are_taken_for_an_older_torch(made: Made) -> None:
    [site] = made.copy.trainer.rglob("site-packages")
    found = {path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")}
    assert found >= {f"{name.replace('-', '_')}-{version}" for name, version in PACKAGES.items()}


@pytest.mark.slow
def test_nothing_changes_anywhere_else(made: Made) -> None:
    assert not made.changed_elsewhere
    kept = {path.name for path in made.copy.home.iterdir()}
    assert kept <= {".rustup"}, "not even pip's downloads; but it asks for the version of a Rust that is there"
    assert {path.name for path in made.copy.root.iterdir()} == {
        ".trainer",
        "zoodip_core",
        "install.py",
        "requirements.txt",
        "constraints.txt",
    }
    assert not {"cache", "tmp"} & {path.name for path in made.copy.trainer.iterdir()}


@pytest.mark.slow
def test_the_environment_is_found_afterwards_and_not_made_twice(made: Made) -> None:
    code = "from zoodip_core.jobs.environment import find_trainer as f; t = f(); print(t.own, t.python)"
    command = [sys.executable, "-S", "-c", code]
    found = subprocess.run(command, cwd=made.copy.root, env=made.copy.env(), capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", str(made.copy.trainer / PYTHON)]
    before = contents(made.copy.trainer)
    done = made.copy.install(PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == made.said[-1]
    assert contents(made.copy.trainer) == before


@pytest.mark.slow
def test_what_was_cut_off_goes_on_without_a_second_download(again: Copy) -> None:
    """Of the other packages one cannot be had for a while."""
    without_torch(again)
    [site] = again.trainer.rglob("site-packages")
    shutil.rmtree(site / "transformers-4.57.1.dist-info")
    [wheel] = again.wheels.glob("transformers-4*")
    wheel.rename(again.root / wheel.name)
    first = again.install()
    assert first.returncode == 1
    assert "the package index has no version for this Python" in first.stdout.splitlines()[-1]
    assert not again.stamp.exists()
    kept = (again.trainer / "pyvenv.cfg").stat().st_mtime_ns
    (again.root / wheel.name).rename(wheel)
    second = again.install()
    assert second.returncode == 0, second.stdout
    assert (again.trainer / "pyvenv.cfg").stat().st_mtime_ns == kept
    assert "Requirement already satisfied: torch" in second.stdout
    assert again.stamp.exists()


@pytest.mark.slow
def test_a_damaged_environment_is_made_anew_and_stamped_only_when_it_runs(again: Copy) -> None:
    again.answer(1)
    failed = again.install()
    assert failed.returncode == 1
    assert "the trainer is damaged; it is made anew" in failed.stdout
    assert failed.stdout.splitlines()[-1].startswith("ZOODiP: the trainer was installed but does not run")
    assert not again.stamp.exists()
    again.answer(0)
    assert again.install().returncode == 0
    assert again.stamp.exists()


@pytest.mark.slow
def test_changed_requirements_are_brought_in(again: Copy) -> None:
    with (again.root / "requirements.txt").open("a") as file:
        file.write("newcomer>=1\n")
    write_wheel(again.wheels, "newcomer", "1.0")
    done = again.install()
    assert done.returncode == 0, done.stdout
    assert "Successfully installed newcomer-1.0" in done.stdout
    assert "newcomer>=1" in json.loads(again.stamp.read_text())["requirements"]


@pytest.mark.slow
def test_another_index_for_torch_makes_it_anew(again: Copy, tmp_path: Path) -> None:
    """Here in a folder on another disk, to which the user made a link."""
    again.trainer.rename(tmp_path / "elsewhere")
    again.trainer.symlink_to(tmp_path / "elsewhere")
    write_wheel(again.wheels, "torch", "2.6.0+cu126")
    done = again.install("--torch-index", "https://download.pytorch.org/whl/cu126")
    assert done.returncode == 0, done.stdout
    assert "torch comes from https://download.pytorch.org/whl/cu126" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("torch 2.6.0+cu126)")
    assert (tmp_path / "elsewhere" / PYTHON).is_file()


@pytest.mark.slow  # the next one does it as well
def test_without_network_it_says_so(again: Copy) -> None:
    without_torch(again)
    assert_without_network_it_says_so(again)


def assert_without_network_it_says_so(again: Copy) -> None:
    closed = "http://127.0.0.1:9/simple"
    done = again.install(PIP_INDEX_URL=closed, PIP_RETRIES="1", ZOODIP_TORCH_INDEX=closed)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert "the package index was not reached" in last
    assert "run this again" in last
    assert not again.stamp.exists()


@pytest.fixture
def silent_index() -> Iterator[str]:
    """The address of a package index that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_a_stop_ends_pip_too_and_a_second_installer_is_refused(again: Copy, silent_index: str) -> None:
    without_torch(again)
    settings = {"PIP_INDEX_URL": silent_index, "ZOODIP_TORCH_INDEX": silent_index}
    command = [sys.executable, str(again.root / "install.py"), "--trainer"]
    with subprocess.Popen(command, env=again.env(**settings), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("Looking in indexes" in line for line in process.stdout)
        second = again.install(**settings)
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()  # to its end, which pip holds open as long as it runs
    assert second.returncode == 3
    assert "another installation of the trainer is at work" in second.stdout
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "ZOODiP: stopped. What is there is kept: run this again to resume."
    assert (again.trainer / "pyvenv.cfg").is_file()
    assert_without_network_it_says_so(again)  # so its lock is free again


def test_on_windows_a_stop_ends_what_the_installer_started_as_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """There ``terminate`` leaves pip at work, beside which the next press would start a second one."""
    script = tmp_path / "install.py"
    script.write_text("import time; print('at work', flush=True); time.sleep(600)")
    ended: list[list[str]] = []
    monkeypatch.setattr(installing, "SCRIPT", script)
    monkeypatch.setattr(installing, "WINDOWS", True)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: ended.append(command))
    own = installing.Installer()
    own.start()
    until(lambda: own.lines() == ["at work"])
    assert own._process
    own.stop()
    assert ended == [["taskkill", "/PID", str(own._process.pid), "/T", "/F"]]
    until(lambda: not own.running)
    own.stop()
    assert len(ended) == 1


def test_a_full_disk_is_noticed_before_and_in_between(
    installer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "TRAINER", tmp_path / ".trainer")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2 * 10**9, 10**9, 10**9))
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    assert installer.main(["--trainer", "--torch-index", "https://download.pytorch.org/whl/cu121"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert "1.0 GB are free on the disk of" in last
    assert "about 9.1 GB are needed" in last
    assert list((tmp_path / ".trainer").iterdir()) == [tmp_path / ".trainer" / "lock"]
    lines = ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"]
    assert "the disk is full" in installer.diagnosis(lines, "pip failed")


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("NewConnectionError('<...>: Failed to establish a new connection: [Errno -3] ...')", "index was not reached"),
        ("socket.gaierror: [Errno 11001] getaddrinfo failed", "index was not reached"),
        ("ReadTimeoutError: HTTPSConnectionPool(host='...'): Read timed out.", "index was not reached"),
        ("ssl.SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED", "a proxy or a virus scanner"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "a download was damaged"),
        ("HINT: ... does not have Windows Long Path support enabled", "a path is too long for Windows"),
        ("OSError: [WinError 5] Access is denied: 'torch_cpu.dll'", "a file may not be written"),
        ("ERROR: No matching distribution found for torch>=2.4", "no version for this Python"),
        ("something else", "the lines above say why"),
    ],
)
def test_pips_failures_are_explained(installer: Any, line: str, meaning: str) -> None:
    assert meaning in installer.diagnosis(["Collecting torch", line], "pip could not install")


def test_a_python_without_venv_is_explained(
    installer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    assert installer.main(["--trainer"]) == 1
    assert f"sudo apt install python3.{sys.version_info.minor}-venv" in capsys.readouterr().out


def test_an_index_is_an_address(installer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    assert installer.main(["--trainer", "--torch-index", "cu121"]) == 2


def test_bounds_are_the_tested_versions(installer: Any) -> None:
    tested = {line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    bounds = installer.upper_bounds("2.13.0+cpu")
    assert bounds[0] == "torch==2.13.0+cpu"
    assert {line.replace("<=", "==") for line in bounds[1:]} == {
        line for line in tested if not line.startswith("torch")
    }
    assert set(installer.upper_bounds("2.5.1+cu121")) >= {"transformers<5", "diffusers<0.36"}
    assert not {"transformers<5"} & set(installer.upper_bounds("2.6.0"))


def test_a_silent_child_gives_signs_of_life(installer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(installer, "PULSE", 0.2)
    code = "print('first'); print('Progress 1000000 of 2000000'); input(); print('last')"
    command, pipe = [sys.executable, "-u", "-c", code], subprocess.PIPE
    lines: list[str] = []
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        for line in installer.with_pulse(process, tmp_path):
            lines.append(line)
            told = [each for each in lines if each.startswith("... 1 of 2 MB downloaded, 3 MB in the folder, ")]
            if len(told) == 2:  # so it is silent no longer
                process.stdin.write("\n")
                process.stdin.flush()
    assert [line for line in lines if not line.startswith("... ")] == ["first", "last"]
    assert all(re.fullmatch(r".*, \d+:\d\d", line) for line in told)


def test_whoever_started_it_is_gone_so_it_stops(installer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(KeyboardInterrupt):
        installer.say("x")
    installer.say("nobody reads this")
    sys.stdout.close()


# Who runs pip


PACKS = ("nodes", "zoodip_core", "zoodip_webui", "scripts")


def modules() -> list[Path]:
    return [path for folder in PACKS for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", modules(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_but_the_installer_runs_pip(path: Path) -> None:
    """Nor imports the installer. Texts for the user may name a command of pip's."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {"install", "pip", "ensurepip", "venv"} & {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0], *(name.name for name in node.names)}
            assert not {"install", "pip", "ensurepip", "venv"} & names
        elif isinstance(node, ast.Constant):
            assert node.value not in ("pip", "install", "ensurepip", "uv", "conda")


@pytest.mark.slow
def test_the_real_trainer_installs_and_runs(tmp_path: Path) -> None:
    """With packages from the network, by a Python without torch. ZOODIP_TORCH_INDEX says where torch comes from."""
    for name in ("zoodip_core", "install.py", "requirements.txt", "constraints.txt"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    [torch] = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]
    (tmp_path / "c.txt").write_text(torch)
    python = shutil.which("python3", path=str(Path(sys.base_prefix) / "bin")) or getattr(sys, "_base_executable")  # noqa: B009
    command = [python, str(tmp_path / "install.py"), "--trainer", "--yes"]
    env = {**os.environ, "PIP_CONSTRAINT": str(tmp_path / "c.txt")}
    done = subprocess.run(command, cwd=tmp_path.parent, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "[4/4] tiny" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("ZOODiP: the trainer is ready (its own environment, torch 2.")
    size = sum(path.lstat().st_size for path in (tmp_path / ".trainer").rglob("*")) / 1e9
    assert 0.5 < size < 1.3 * environment.expected_size("https://download.pytorch.org/whl/cu121").folder
