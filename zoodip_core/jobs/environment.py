"""Which Python trains: one that the user chose, this one, or the trainer's own environment.

A webui's environment cannot train (its torch is too old, diffusers is missing), and nothing may be installed into it.
So the trainer gets an environment of its own in ``.trainer``, which ``install.py`` makes. This module only looks: it
starts nothing and installs nothing, and it imports neither torch nor the model libraries, so that a page may ask at
any time.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / ".trainer"
TORCH = "torch>=2.4"
"""What optimum-quanto 0.2.4 to 0.2.6 ask for. requirements.txt leaves torch out: there it is the host's."""
BUTTON = "Install the trainer"
SETTING = "Python that trains"
_STAMP = "installed.json"
_TORCH_WHEELS = "https://download.pytorch.org/whl/"
_OTHERS_SETTINGS = {
    # of another Python: they would lead the child to modules that are not its own, or away from ours
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONSAFEPATH", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__"),
    "VIRTUAL_ENV",
    # where pip installs: ours is to install into the environment that it runs in
    *("PIP_TARGET", "PIP_USER", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_REQUIRE_VIRTUALENV"),
}


@dataclass(frozen=True)
class Trainer:
    """The Python to start for training. Without one, ``why`` is a sentence for the user."""

    python: Path | None
    own: bool
    why: str


class Size(NamedTuple):
    """What an installation takes, in GB."""

    download: float
    folder: float


def find_trainer(chosen: str = "") -> Trainer:
    """The Python that trains; ``chosen`` is the user's setting. Looks at files only, which takes milliseconds."""
    if chosen.strip():
        return _chosen(chosen.strip().strip('"'))
    lacking = unfit()
    here = this_python()
    if here and not lacking:
        return Trainer(here, False, f"this environment, torch {installed('torch')}")
    state = own_state()
    if state == "ready":
        return Trainer(python_in(TRAINER), True, f"its own environment, torch {_read_stamp().get('torch')}")
    return Trainer(None, False, _why_not(state, lacking))


def _chosen(name: str) -> Trainer:
    path = Path(name).expanduser().absolute()  # not resolved: an environment's python is often a link
    if path.is_file():
        return Trainer(path, False, f'the Python chosen as "{SETTING}" in the settings')
    wrong = "is a folder; name the python in it" if path.is_dir() else "does not exist"
    advice = "Correct it, or clear it for the automatic choice."
    return Trainer(None, False, f'The setting "{SETTING}" is {path}, which {wrong}. {advice}')


def _why_not(state: str, lacking: list[str]) -> str:
    """Why there is no trainer, and what to do."""
    said, remedy = {
        "absent": ("The trainer is not installed.", "To install it"),
        "incomplete": ("The trainer's installation was cut off.", "To resume with what is there"),
        "outdated": ("The trainer was installed for other requirements than today's.", "To bring it up to date"),
        "broken": (f"The Python of the trainer in {TRAINER} is gone or was replaced.", "To make it anew"),
    }[state]
    here = f" This environment cannot train ({', '.join(lacking)})." if lacking else ""
    command = f'"{this_python() or "python"}" "{ROOT / "install.py"}" --trainer'
    return f'{said}{here} {remedy}, press "{BUTTON}" or run: {command}'


def unfit() -> list[str]:
    """What this interpreter lacks for training, each as a short phrase; nothing if it can train."""
    problems = [problem for line in requirements() if (problem := _problem(line))]
    if importlib.util.find_spec("packaging") is None:
        problems.append("packaging is missing")  # transformers needs it; without it versions cannot be told
    return problems


def requirements() -> list[str]:
    """The packages that training needs, as pip wants to hear them; torch is among them."""
    file = ROOT / "requirements.txt"
    if file.is_file():
        lines = [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    else:  # this is an installed package, which holds them as its metadata
        lines = importlib.metadata.requires("zoodip") or []
    return sorted([TORCH, *filter(None, lines)])


def _problem(line: str) -> str:
    """What is wrong with a required package here; empty if nothing is.

    Upper bounds are for pip, which would replace torch for a newer optimum-quanto; one that is there works.
    """
    from_name = re.match(r"[\w.-]+", line)
    assert from_name, line
    name, version = from_name[0], installed(from_name[0])
    if importlib.util.find_spec("packaging") is None:
        return "" if version else f"{name} is missing"
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion, Version

    needed = Requirement(line)
    if needed.marker and not needed.marker.evaluate({"extra": ""}):
        return ""
    if version is None:
        return f"{name} is missing"
    lowest = max((Version(each.version) for each in needed.specifier if each.operator == ">="), default=Version("0"))
    try:  # 2.4.0+cu121 is a 2.4.0, and a nightly 2.4.0.dev1 nearly so
        if Version(Version(version).base_version) >= lowest:
            return ""
        version = Version(version).public
    except InvalidVersion:
        pass
    return f"{name} {version} ({lowest} or newer is needed)"


def installed(name: str) -> str | None:
    """The version of a package in this interpreter's own folders.

    What it finds by PYTHONPATH does not count: a child does not get that, see :func:`clean_env`.
    """
    borrowed = {Path(each).resolve() for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each}
    path = [each for each in sys.path if Path(each).resolve() not in borrowed]
    for found in importlib.metadata.distributions(name=name, path=path):
        metadata = found.metadata
        if metadata and "Version" in metadata:  # a removal that failed leaves folders without it
            return metadata["Version"]
    return None


def python_in(folder: Path) -> Path:
    """The Python of the virtual environment in ``folder``."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def this_python() -> Path | None:
    """The program of this interpreter: not always ``sys.executable``, which is another where Python is embedded."""
    prefix = Path(sys.prefix)
    for path in (Path(sys.executable or "."), python_in(prefix), prefix / "python.exe"):
        if path.is_file() and path.name.lower().startswith("python"):
            return path
    return None


def own_state() -> str:
    """The trainer's own environment: ready, absent, incomplete, outdated or broken."""
    stamp = _read_stamp()
    if not stamp:
        return "incomplete" if (TRAINER / "pyvenv.cfg").is_file() else "absent"
    if _broken():
        return "broken"
    return "ready" if stamp.get("requirements") == requirements() else "outdated"


def _broken() -> bool:
    """Whether the environment's Python, or the one that it was made from, is gone or another."""
    python = python_in(TRAINER)
    try:
        lines = (TRAINER / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    settings = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    if not python.is_file() or not Path(settings.get("home", "")).is_dir():
        return True
    # An upgrade of the system may put python3.12 where python3.10 was: its packages are then not found.
    target = re.fullmatch(r"python(\d+\.\d+)", python.resolve().name)
    return target is not None and not settings.get("version", "").startswith(f"{target[1]}.")


def stamp(torch: str) -> str:
    """What install.py writes last, as :func:`stamp_file`: that all is there, and for which requirements."""
    return json.dumps({"requirements": requirements(), "torch": torch}, indent=1) + "\n"


def stamp_file() -> Path:
    return TRAINER / _STAMP


def _read_stamp() -> dict[str, Any]:
    """The stamp; empty if there is none that can be read."""
    try:
        content = json.loads(stamp_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def torch_index(torch: str | None) -> str:
    """Where pip finds a torch for the same device as the version ``torch``; empty for pip's own index.

    The user's driver runs 2.1.2+cu121, so it runs a newer torch for CUDA 12.1. The last torch for a CUDA 11 before
    11.8 is older than we need; drivers for any CUDA 11 run 11.8. Likewise the first ROCm with a torch that is new
    enough is 6.1.
    """
    local = (torch or "").partition("+")[2]
    device = re.match(r"cpu|xpu|cu\d+|rocm\d+\.\d+(\.\d+$)?", local)
    if not device:
        return ""
    name = re.sub(r"cu11[0-7]", "cu118", device[0])
    name = re.sub(r"rocm([0-5]\..+|6\.0.*)", "rocm6.1", name)
    return _TORCH_WHEELS + name


def expected_size(index: str | None = None) -> Size:
    """About what the trainer takes with a torch from ``index``; without one, from where this interpreter's came.

    Measured on Linux. CPU, torch 2.13.0: 0.28 GB are downloaded, 1.35 GB stay. CUDA: 3.1 and 5.7 GB with torch 2.5.1,
    about as much and 6.0 with 2.15.0. torch 2.5.1+cu121 for Windows, one file of 2.45 GB, was only looked up; ROCm was
    not, and gets CUDA's figures.
    """
    index = torch_index(installed("torch")) if index is None else index
    device = index.rstrip("/").rpartition("/")[2]
    cuda_by_default = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")
    if device.startswith(("cu", "rocm", "xpu")) or (device != "cpu" and cuda_by_default):
        return Size(3.1, 6.0)
    return Size(0.3, 1.4)


def clean_env() -> dict[str, str]:
    """This process's environment variables for a child that runs another Python.

    What leads a Python to another one's modules goes, and PYTHONSAFEPATH, which would hide the folder that ``-m``
    starts in. The packages in the user's home stay as they are set: a virtual environment does not see them anyway,
    and a Python that the user chose may have its torch there.
    """
    kept = {name: value for name, value in os.environ.items() if name.upper() not in _OTHERS_SETTINGS}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
