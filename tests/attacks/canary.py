"""A place that nobody may get to, and a watch that tells whether anybody did."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from zoodip_core.model.embedding import Embedding, save_embedding
from zoodip_core.train.config import TrainConfig
from zoodip_core.train.run_folder import RunFolder

MARK = "CANARY"
"""Stands in everything that can be read in the place; an answer that holds it was read there."""
COLOUR = (1, 200, 77)
"""Of the pictures there."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
_PROGRAMS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.startfile", "subprocess.Popen", "pty.spawn")


class Canary:
    """A tree of folders.

    ``root/outside`` is the place, and so is whatever stands beside a folder that is attacked; programs have theirs in
    ``root/PROGRAM/FOLDER``.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.outside, self.temp = root, root / "outside", root / "temp"
        self.seen: list[str] = []
        """What was opened, changed or started that must not be."""
        self._allowed: tuple[Path, ...] = ()
        self._watching = False
        self.outside.mkdir(parents=True)
        self.temp.mkdir()
        self._fill(self.outside)
        _listen()

    def _fill(self, folder: Path) -> None:
        """Secrets of every kind that somebody may try to read."""
        folder.mkdir(exist_ok=True)
        (folder / "secret").write_text(MARK)
        for suffix in ("txt", "json", "yaml"):
            (folder / f"secret.{suffix}").write_text(f'{{"{MARK}": "{MARK} {{}}"}}')
        for suffix in ("png", "jpg", "webp"):
            Image.new("RGB", (64, 64), COLOUR).save(folder / f"secret.{suffix}", lossless=True)
        save_embedding(Embedding(f"<{MARK}>", (torch.ones(1, 768),)), folder / "secret.safetensors")
        config = TrainConfig(images=("x",), token=f"<{MARK}>", initializer="dog")
        save_embedding(
            Embedding(f"<{MARK}>", (torch.ones(1, 768),)), RunFolder.create(folder / "run", config).embedding_path
        )

    def folder(self, program: str, name: str) -> Path:
        """A folder to be attacked; another one beside it begins with the same name."""
        made = self.root / program / name
        made.mkdir(parents=True, exist_ok=True)
        self._fill(self.root / program / f"{name}-2")
        return made

    def listing(self, program: Path, *allowed: Path) -> dict[str, tuple[int, int, int]]:
        """What stands in the place, and in a program's folders but the allowed ones: mode, size and time of change."""
        found, skipped = {}, {*map(str, allowed), str(self.temp)}
        to_do = [str(self.outside), str(program)]
        while to_do:
            here = to_do.pop()
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.path in skipped:
                        continue
                    about = entry.stat(follow_symlinks=False)
                    holds_allowed = any(path.startswith(entry.path + os.sep) for path in skipped)
                    found[entry.path] = (about.st_mode, about.st_size, 0 if holds_allowed else about.st_mtime_ns)
                    if entry.is_dir(follow_symlinks=False):
                        to_do.append(entry.path)
        return found

    @contextlib.contextmanager
    def watched(self, *allowed: Path) -> Iterator[None]:
        """Within it, whatever is opened in the place, changed outside of the allowed folders, or started, is noted."""
        before, tempfile.tempdir = tempfile.tempdir, str(self.temp)
        self._allowed = (*allowed, self.temp)
        self._watching = True
        _canaries.append(self)
        try:
            yield
        finally:
            _canaries.remove(self)
            self._watching = False
            tempfile.tempdir = before

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        """Of what the program does."""
        if not self._watching:
            return
        if event in _PROGRAMS:
            self.seen.append(f"{event} {given[0]!r}")
        elif event == "open" and isinstance(given[0], str | bytes):
            flags = given[2] if isinstance(given[2], int) else 0
            self._look(event, given[0], bool(flags & _WRITING))
        elif event in _CHANGES:
            changed = {"os.rename": given[:2], "os.link": given[1:2], "os.symlink": given[1:2]}.get(event, given[:1])
            # Names in a folder that is open, as when a tree is deleted, tell nothing; the listing does.
            for path in changed if event == "os.truncate" or given[-1] == -1 else ():
                if isinstance(path, str | bytes | Path):
                    self._look(event, path, True)

    def _look(self, event: str, path: str | bytes | Path, writing: bool) -> None:
        self._watching = False  # to look must not be heard
        try:
            real = os.path.realpath(os.fsdecode(path))
            parent = os.path.join(os.path.realpath(os.path.dirname(os.fsdecode(path))), os.path.basename(real))  # noqa: PTH118, PTH119, PTH120
            where = parent if event != "open" else real
            within = any(where == str(each) or where.startswith(f"{each}{os.sep}") for each in self._allowed)
            known = "__pycache__" in where or where == os.devnull
            if where.startswith(f"{self.outside}{os.sep}") or (writing and not within and not known):
                self.seen.append(f"{event} {where}{' for writing' if writing else ''}")
        finally:
            self._watching = True


_canaries: list[Canary] = []
"""Those that watch now."""


@functools.cache
def _listen() -> None:
    """Hear what the program does from now on, for good: it cannot take this away, so that all canaries share it."""

    def hear(event: str, given: tuple[Any, ...]) -> None:
        for canary in _canaries:
            canary.hear(event, given)

    sys.addaudithook(hear)


def plant_links(folder: Path, outside: Path, name: str, suffix: str = "") -> None:
    """Links that lead out of a folder: to a folder, and to a file of an ending, if one is given."""
    with contextlib.suppress(OSError):  # Windows has links for administrators, and one may be there
        (folder / name).symlink_to(outside, target_is_directory=True)
    if suffix:
        with contextlib.suppress(OSError):
            (folder / f"{name}{suffix}").symlink_to(outside / f"secret{suffix}")
