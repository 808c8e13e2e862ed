"""The house: which room may import which, no circles, short chains, and what has to work without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = "zoodip_core"
ROOMS = {
    "base": "",
    "search": "base",
    "data": "base",
    "tiny": "base",
    "model": "base data",
    "train": "base data search model",
    "evaluate": "base data model",
    "captioning": "base data model",
    "jobs": "base data model train captioning",
    "page": "base data tiny model train jobs",
    "cli": "base data tiny search model train evaluate captioning page",
    "nodes": "base data tiny model train evaluate captioning jobs",
    "zoodip_webui": "base data model train jobs page",
    "install": "base.files jobs.environment",
    "scripts": "zoodip_webui",
}
"""What each room may import besides itself. The core's door, ``zoodip_core/__init__.py``, leads into all of them."""
LONGEST = 14
DOORS = {f"{CORE}.__init__", f"{CORE}.__main__", "__init__", "nodes.__init__", "zoodip_webui.__init__"}
"""Packages whose ``__init__`` is for the world outside."""


def _name(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")


FILES = {
    _name(path): path
    for place in (CORE, "nodes", "zoodip_webui", "scripts")
    for path in sorted((ROOT / place).rglob("*.py"))
} | {"install": ROOT / "install.py", "__init__": ROOT / "__init__.py"}


def _imported(name: str) -> set[str]:
    """The files of ours that a file imports, at its top, in a function, or for its types alone."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            wanted = [f"{module}.{alias.name}".lstrip(".") for alias in node.names] + [module]
        else:
            continue
        for each in wanted:
            found |= {form for form in (each, f"{each}.__init__") if form in FILES and form != name}
    return {other for other in found if other in DOORS or not other.endswith("__init__")}  # the rest are docstrings


IMPORTS = {name: _imported(name) for name in FILES}
INSIDE = {name: {each for each in found if each != f"{CORE}.__init__"} for name, found in IMPORTS.items()}
"""Without the core's door, through which nothing of the core may go."""


def _room(name: str) -> str:
    """The room that a file is in: a folder of the core, or a host's own folder."""
    parts = name.split(".")
    return parts[1] if parts[0] == CORE and len(parts) > 2 else parts[0]


def _place(name: str) -> str:
    return name.removeprefix(f"{CORE}.")


def test_each_room_imports_what_it_may() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, found in INSIDE.items()
        if name not in DOORS
        for other in found
        if _room(other) != _room(name) and not {_room(other), _place(other)} & set(ROOMS[_room(name)].split())
    ]
    assert not wrong, "\n".join(wrong)
    assert {_room(name) for name in FILES if name not in DOORS} == set(ROOMS)


def test_the_document_has_the_same_table() -> None:
    document = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \|(.*)\|$", document.replace(".py`", "`"), re.MULTILINE)
    assert {room: " ".join(re.findall("`(.+?)`", may)).replace("/", ".") for room, may in rows} == ROOMS


def test_nothing_goes_through_the_door_from_inside() -> None:
    assert [name for name, found in IMPORTS.items() if f"{CORE}.__init__" in found and name.startswith(CORE)] == []


def test_a_package_is_told_in_its_docstring_alone() -> None:
    for name, path in FILES.items():
        if name.endswith("__init__") and name not in DOORS:
            (only,) = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(only, ast.Expr), path
            assert isinstance(only.value, ast.Constant), path


def _longest(name: str, above: tuple[str, ...], known: dict[str, list[str]]) -> list[str]:
    assert name not in above, "a circle: " + " > ".join([*above[above.index(name) :], name])
    if name not in known:
        chains = (_longest(other, (*above, name), known) for other in INSIDE[name])
        known[name] = [name, *max(chains, key=len, default=[])]
    return known[name]


def test_there_is_no_circle_and_no_chain_is_long() -> None:
    known: dict[str, list[str]] = {}
    chain = max((_longest(name, (), known) for name in FILES), key=len)
    print(f"the longest chain of imports has {len(chain)} files: {' > '.join(chain)}")
    assert len(chain) <= LONGEST


def test_what_a_file_calls_its_own_no_other_takes() -> None:
    taken = [
        f"{name}: {each.name}"
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        for each in node.names
        if re.match("_[^_]", each.name)
    ]
    assert taken == []


def test_gradio_is_the_pages_alone() -> None:
    def imports_gradio(path: Path) -> bool:
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = [a.name for node in tree if isinstance(node, ast.Import) for a in node.names]
        return "gradio" in names

    users = {_room(name) for name, path in FILES.items() if imports_gradio(path)}
    assert users == {"page", "zoodip_webui"}


@pytest.mark.parametrize("module", ["base.files", "base.errors", "jobs.environment", "jobs.protocol"])
def test_what_a_webui_asks_first_works_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {CORE}.{module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_check_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the base that reaches for the search, at its top and in a function, and one that closes a circle."""
    path = tmp_path / "bad.py"
    path.write_text("from ..search.guard import Guard\ndef late():\n    from ..model import load\n    import install\n")
    monkeypatch.setitem(FILES, f"{CORE}.base.bad", path)
    assert _imported(f"{CORE}.base.bad") == {f"{CORE}.search.guard", f"{CORE}.model.load", "install"}
    monkeypatch.setitem(INSIDE, f"{CORE}.base.errors", {f"{CORE}.base.files"})
    with pytest.raises(AssertionError, match="a circle"):
        _longest(f"{CORE}.base.files", (), {})
