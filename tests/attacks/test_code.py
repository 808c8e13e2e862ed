"""What the shipped code must not do, read off its syntax: run texts, unpickle, use a shell, install packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("zoodip_core", "zoodip_webui", "nodes", "scripts")
SHIPPED = [ROOT / "__init__.py", *(path for place in PLACES for path in sorted((ROOT / place).rglob("*.py")))]
INSTALLS = [ROOT / "install.py"]
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.spawnl", "os.spawnv", "os.startfile"),
    *("os.execv", "os.execl", "os.execvp", "os.execve", "pty.spawn", "tempfile.mktemp", "yaml.load", "runpy.run_path"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "builtins.eval", "builtins.exec", "torch.jit.load"),
    *("shutil.unpack_archive", "webbrowser.open", "np.fromfile", "torch.hub.load"),
}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "_pickle", "cPickle", "imp", "runpy", "pip"}


def fault(node: ast.AST) -> str | None:
    """What is wrong with a piece of code, None if nothing is."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{each.name}" for each in node.names]
        bad = [name for name in names if name.split(".")[0] in MODULES or name in CALLS]
        return f"imports {bad[0]}" if bad else None
    if isinstance(node, ast.Call):
        return _call_fault(node)
    if isinstance(node, ast.Constant) and node.value == "pip":
        return "names pip"
    return None


def _call_fault(node: ast.Call) -> str | None:
    name = ast.unparse(node.func)
    given = {each.arg: each.value for each in node.keywords}

    def is_set(argument: str, value: object) -> bool:
        found = given.get(argument)
        return isinstance(found, ast.Constant) and found.value == value

    if name in CALLS:
        return f"calls {name}"
    if "shell" in given and not is_set("shell", False):
        return f"uses a shell in {name}"
    if name == "torch.load" and not is_set("weights_only", True):
        return "calls torch.load without weights_only=True"
    if "allow_pickle" in given and not is_set("allow_pickle", False):
        return f"allows pickles in {name}"
    if "trust_remote_code" in given and not is_set("trust_remote_code", False):
        return f"trusts remote code in {name}"
    if name == "Image.open" and "formats" not in given:
        return "opens a picture without saying of which kinds"
    return None


def faults(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        why = fault(node)
        if why:
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)} {why}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_code_runs_nothing_that_it_is_given(path: Path) -> None:
    assert not list(faults(path))


def test_weights_are_unpickled_in_one_place() -> None:
    places = [path.name for path in SHIPPED if "torch.load(" in path.read_text(encoding="utf-8")]
    assert places == ["pickles.py"]


def test_pip_is_run_by_the_installer_alone() -> None:
    assert any("pip" in each for path in INSTALLS for each in faults(path))
    assert len(SHIPPED) > 60


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec(text)",
        "compile(a, b, c)",
        "__import__('os')",
        "import pickle",
        "from pickle import loads",
        "import marshal as m",
        "import os.path, dill",
        "from os import system",
        "os.system('x')",
        "os.popen('x')",
        "subprocess.run('x', shell=True)",
        "subprocess.run('x', shell=maybe)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "tempfile.mktemp()",
        "subprocess.run([python, '-m', 'pip', 'install', 'x'])",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "Image.open(path)",
    ],
)
def test_the_test_sees(text: str) -> None:
    assert any(fault(node) for node in ast.walk(ast.parse(text)))


@pytest.mark.parametrize("text", ["re.compile('x')", "torch.load(p, weights_only=True)", "subprocess.run(['x'])"])
def test_the_test_takes(text: str) -> None:
    assert not any(fault(node) for node in ast.walk(ast.parse(text)))
