"""The page without a webui: its host is the folder it was started in."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import sys
from collections.abc import Callable, Iterator
from getpass import getpass
from pathlib import Path
from typing import Any

from .checkpoints import SUFFIXES
from .errors import ConfigError
from .files import make_folder
from .jobs import Job

PASSWORD = "ZOODIP_PASSWORD"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Alone:
    """A :class:`studio.Host` with nothing beside it.

    Args:
        home: the folder in which runs are kept.
        models: folders with checkpoints and diffusers folders.
        embeddings: the folder that finished tokens are put into, if any.
    """

    name = "ZOODiP"

    def __init__(self, home: Path, models: tuple[Path, ...] = (), embeddings: Path | None = None) -> None:
        self._home, self._models, self._embeddings = home.absolute(), models, embeddings

    def home(self) -> Path:
        return self._home

    def models(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for top in self._models:
            for folder, below, files in os.walk(top.absolute()):
                here = Path(folder)
                if "model_index.json" in files:
                    found[f"{here.relative_to(top.absolute()).as_posix()} (diffusers)"] = here
                    below.clear()  # its parts are no models
                else:
                    names = (name for name in files if name.lower().endswith(SUFFIXES))
                    found |= {(here / name).relative_to(top.absolute()).as_posix(): here / name for name in names}
        return dict(sorted(found.items()))

    def embeddings_folder(self) -> Path | None:
        return self._embeddings

    def embeddings_changed(self) -> None:
        pass

    def python(self) -> str:
        return ""

    def defaults(self) -> dict[str, Any]:
        return {}

    @contextlib.contextmanager
    def device(self, waiting: Callable[[str], None]) -> Iterator[None]:
        yield

    def interrupted(self) -> bool:
        return False

    def show(self, job: Job) -> None:
        pass


def password_for(host: str) -> str:
    """The password that listening there asks for; none on loopback unless one is set.

    Raises:
        ConfigError: one is needed, and none was given.
    """
    given = os.environ.get(PASSWORD, "")
    if _is_loopback(host) or given:
        return given
    if sys.stdin.isatty():
        given = getpass(f"password for the page on {host} (the user is zoodip): ")
    if not given:
        raise ConfigError(
            f"--listen {host}: others could use this computer through the page; set a password in the environment "
            f"variable {PASSWORD}"
        )
    return given


def _is_loopback(host: str) -> bool:
    try:
        return host in _LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def open_page(home: Path, models: tuple[Path, ...], embeddings: Path | None, host: str, port: int) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ConfigError: gradio is missing, the port is taken, or a password is needed.
        StorageError: the folder can not be made.
    """
    password = password_for(host)
    for folder in models:
        if not folder.is_dir():
            raise ConfigError(f"--models {folder}: there is no such folder")
    make_folder(home)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from .ui import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ConfigError(f'the page needs gradio: "{sys.executable}" -m pip install "gradio>=4.40"') from None
    from .studio import Studio

    print(
        f"ZOODiP: http://{'127.0.0.1' if host in ('localhost', '') else host}:{port} (runs are kept in {home})",
        flush=True,
    )
    try:
        serve(Studio(Alone(home, models, embeddings)), host=host, port=port, password=password)
    except OSError as error:  # gradio says which port
        raise ConfigError(f"--port {port}: {error}; choose another one") from error
