"""The repository as its hosts receive it: versions, requirements, the installer, the published files, the examples."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_workflows
import pytest
from packaging.requirements import Requirement

import zoodip_core
from zoodip_core.jobs import environment

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


def requirements() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_the_version_is_one() -> None:
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    assert project[1] == zoodip_core.__version__
    assert f"## {zoodip_core.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_torch_is_left_to_the_host() -> None:
    names = {requirement.name for requirement in requirements()}
    assert not {name for name in names if name.startswith(("torch", "xformers", "triton", "nvidia"))}
    quanto = next(requirement for requirement in requirements() if requirement.name == "optimum-quanto")
    assert quanto.specifier.contains("0.2.4")
    assert not quanto.specifier.contains("0.2.7"), "it asks for torch 2.6, which pip would then install"


def test_requirements_say_what_each_is_for(pack: Any) -> None:
    """In two groups, as the nodes ask for them: whatever a token is learned on, and models of our own."""
    host = importlib.import_module(f"{pack.__name__}.nodes.host")
    always, own = (ROOT / "requirements.txt").read_text().split("# For Load Quantized SD")

    def named(part: str) -> set[str]:
        lines = [line for line in part.splitlines() if line and not line.startswith("#")]
        return {Requirement(line).name.replace("optimum-quanto", "optimum.quanto") for line in lines}

    assert {"torch", *named(always)} >= set(host.NEEDED)
    assert named(own.split("\n", 1)[1]) == set(host.FOR_OWN_MODELS)


def test_no_requirement_is_pinned() -> None:
    assert all(specifier.operator in (">=", "<") for each in requirements() for specifier in each.specifier)


def test_installer_and_nodes_ask_for_the_same_packages(pack: Any) -> None:
    """The nodes look for modules, the installer for what requirements.txt lists and for torch, which is the host's."""
    host = importlib.import_module(f"{pack.__name__}.nodes.host")
    asked = (*host.NEEDED, *host.FOR_OWN_MODELS)
    listed = {Requirement(line).name for line in environment.requirements()}
    assert listed == {each.name for each in requirements()} | {"torch"}
    assert {name.split(".")[0].replace("optimum", "optimum-quanto") for name in asked} <= listed


def run_installer(*options: str, cwd: Path = ROOT, **env: str) -> str:
    """What install.py prints in a process that must start no other and write nothing."""
    events = {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork", "os.mkdir", "os.remove"}
    guard = (
        "import runpy, sys\n"
        f"sys.addaudithook(lambda event, given: sys.exit('did ' + event) if event in {events!r} else None)\n"
        f"sys.argv = ['install.py']\nrunpy.run_path({str(ROOT / 'install.py')!r}, run_name='__main__')"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-B", *options, "-c", guard],
        cwd=cwd,
        env={**kept, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installer_installs_nothing() -> None:
    """It runs under ComfyUI-Manager with the host's Python, in this folder or another."""
    assert run_installer() == ""
    assert run_installer(cwd=ROOT.parent) == ""


def test_the_installer_says_what_is_missing() -> None:
    said = run_installer("-S")
    assert "diffusers is missing" in said
    assert f'-m pip install -r "{ROOT / "requirements.txt"}"' in said
    assert "torch is missing. torch is not in requirements.txt" in said


@pytest.mark.parametrize("known_by", ["its folder", "PYTHONPATH"])
def test_a_webui_gets_one_line(known_by: str, tmp_path: Path) -> None:
    """At every start, with and without what training needs."""
    webui = tmp_path / "webui"
    (webui / "modules").mkdir(parents=True)
    (webui / "webui.py").touch()
    place: dict[str, Any] = {"cwd": webui} if known_by == "its folder" else {"cwd": tmp_path, "PYTHONPATH": str(webui)}
    assert re.fullmatch(r"ZOODiP: the trainer is ready \(this environment, torch .+\)\n", run_installer(**place))
    [line] = run_installer("-S", **place).splitlines()
    assert line.startswith("ZOODiP: the trainer")
    assert "pip" not in line


def published_files() -> list[str]:
    """What git tracks without what .comfyignore names, which has .gitignore's rules."""

    def listed(*options: str) -> set[str]:
        command = ["git", "ls-files", *options]
        return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())

    return sorted(listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore"))


def test_what_is_published_is_the_whole_pack_and_little_else(tmp_path: Path) -> None:
    files = published_files()
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    assert {path.split("/")[0] for path in files} >= {"nodes", "zoodip_core", "web", "locales", "example_workflows"}
    assert "web/docs/ZoodipTrainToken.md" in files
    assert not [file for file in files if file.startswith(("tests", "tools", "benchmarks", ".ci", ".github"))]
    assert sum((ROOT / file).stat().st_size for file in files) < 20e6
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('published', '__init__.py')\n"
        "module = sys.modules['published'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "from published.zoodip_core.model.load import load_quantized\n"
        "print(len(module.NODE_CLASS_MAPPINGS), load_quantized('tiny').info.family)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["20", "tiny"], done.stderr


def test_the_workflows_actions_are_pinned_to_commits() -> None:
    uses = re.findall(r"uses: (\S+)", (ROOT / ".github/workflows/publish.yml").read_text())
    assert uses
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in uses)


def test_the_examples_are_what_the_tool_writes() -> None:
    assert {path.name: path.read_text(encoding="utf-8") for path in EXAMPLES} == make_workflows.texts()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_sound(example: Path, pack: Any) -> None:
    """Every link joins an output and an input of one type that both know of it; every example has a thumbnail."""
    workflow = json.loads(example.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, output, target, slot, kind in workflow["links"]:
        out, into = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert link in out["links"]
        assert into["link"] == link
        assert out["type"] == kind
        assert into["type"] in (kind, "*")
    known = {*pack.NODE_CLASS_MAPPINGS, *make_workflows.STANDARD}
    assert {node["type"] for node in nodes.values()} <= known
    assert example.with_suffix(".jpg").is_file()
