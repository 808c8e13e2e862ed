"""The page without a webui: its host is the folder it was started in."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from getpass import getpass
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..base.files import make_folder
from ..base.origins import is_loopback
from ..jobs.job import Job
from ..model.checkpoints import SUFFIXES
from .studio import Studio

PASSWORD = "ZOODIP_PASSWORD"


class Alone:
    """A :class:`studio.PageHost` with nothing beside it.

    Args:
        home: the folder in which runs are kept.
        models: folders with checkpoints and diffusers folders.
        embeddings: the folder that finished tokens are put into, if any.
        for_others: whether others than this computer's user can reach the page.
    """

    shares_page = False

    def __init__(
        self,
        home: Path,
        models: tuple[Path, ...] = (),
        embeddings: Path | None = None,
        for_others: bool = False,
    ) -> None:
        self._home, self._models, self._for_others = home.absolute(), models, for_others
        self._embeddings = embeddings.absolute() if embeddings else None

    def home(self) -> Path:
        return self._home

    def models(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for top in self._models:
            for path in _models_in(top.absolute()):
                name = path.relative_to(top.absolute()).as_posix() if path != top.absolute() else top.absolute().name
                label = f"{name} (diffusers)" if path.is_dir() else name
                found[label if label not in found else str(path)] = path
        return dict(sorted(found.items()))

    def embeddings_folder(self) -> Path | None:
        return self._embeddings

    def embeddings_changed(self) -> None:
        pass

    def loras_folder(self) -> Path | None:
        return None

    def loras_changed(self) -> None:
        pass

    def python(self) -> str:
        return ""

    def defaults(self) -> dict[str, Any]:
        return {}

    def for_its_user(self) -> bool:
        return not self._for_others

    @contextlib.contextmanager
    def device(self, waiting: Callable[[str], None]) -> Iterator[None]:
        yield

    def interrupted(self) -> bool:
        return False

    def show(self, job: Job) -> None:
        pass


def _models_in(top: Path) -> Iterator[Path]:
    """Checkpoints and diffusers folders, also where links lead."""
    walked: set[Path] = set()
    for folder, below, files in os.walk(top, followlinks=True):
        here = Path(folder)
        if "model_index.json" in files:
            yield here
        else:
            yield from (here / name for name in files if name.lower().endswith(SUFFIXES))
        real = here.resolve()
        if "model_index.json" in files or real in walked:  # its parts are not models; or a link led back
            below.clear()
        walked.add(real)


def password_for(host: str) -> str:
    """The password that listening there asks for; none on loopback unless one is set.

    Raises:
        ConfigError: one is needed, and none was given.
    """
    given = os.environ.get(PASSWORD, "")
    if is_loopback(host) or given:
        return given
    if sys.stdin.isatty():
        given = getpass(f"password for the page on {host} (the user is zoodip): ")
    if not given:
        raise ConfigError(
            f"--listen {host}: others could use this computer through the page; set a password in the environment "
            f"variable {PASSWORD}"
        )
    return given


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        ConfigError: the port is taken or may not be used, or the address is not this computer's.
    """
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port}: a port is a number from 1 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            if os.name != "nt":  # there it would allow what is taken
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConfigError(f"--port {port}: another program listens there; choose another one") from error
        if isinstance(error, OSError) and error.errno == errno.EACCES:
            raise ConfigError(f"--port {port}: it may not be used; choose one above 1024") from error
        raise ConfigError(f"--listen {host}: this computer has no such address") from error


def make_studio(home: Path, models: tuple[Path, ...], embeddings: Path | None, host: str) -> Studio:
    """What is behind the page that is served at an address; its folders are made.

    Raises:
        ConfigError: a folder of models does not exist.
        StorageError: a folder cannot be made.
    """
    for folder in models:
        if not folder.is_dir():
            raise ConfigError(f"--models {folder}: there is no such folder")
    for folder in (home, *([embeddings] if embeddings else [])):
        make_folder(folder)
    return Studio(Alone(home, models, embeddings, for_others=not is_loopback(host)))


def address_of(host: str, port: int) -> str:
    """What to open in a browser on this computer for a page that listens there."""
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "localhost") else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
