"""What the tests of the webuis share: one server of each kind for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.webui import KINDS, Kind, Webui, data_folder


@dataclass(frozen=True)
class Before:
    """What was there before the server first started."""

    freeze: str


EACH = [pytest.param(kind, id=kind.name, marks=pytest.mark.xdist_group(kind.name)) for kind in KINDS]
"""With ``-n 2 --dist loadgroup`` the two have a process each."""


@pytest.fixture(scope="session", params=EACH)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    found.skip_if_absent()
    return found


@pytest.fixture(scope="session")
def before(kind: Kind) -> Before:
    return Before(kind.freeze())


@pytest.fixture(scope="session")
def webui(kind: Kind, before: Before) -> Iterator[Webui]:
    """With its API, and no passwords."""
    with data_folder(kind) as data, Webui(kind, data, "--api") as server:
        yield server
