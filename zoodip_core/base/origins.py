"""Which requests a browser may bring: another site that is open in it must not drive what listens on this computer."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether this name or address of a host leads to this computer for everyone."""
    name = host.rstrip(".").lower()
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:  # a name
        return False


def is_foreign_page(headers: Mapping[str, str]) -> bool:
    """Whether a page of another site has sent a request. Programs that are not a browser name no origin."""
    origin = headers.get("origin")
    own = (headers.get("host"), headers.get("x-forwarded-host"))
    return origin is not None and (urlsplit(origin).netloc or origin) not in own


def is_foreign_name(headers: Mapping[str, str]) -> bool:
    """Whether a request came by a name that is not this computer's own. A site can have its name lead here as well."""
    try:
        return not is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or "")
    except ValueError:  # no name at all
        return True


class OnlyOwnPages:
    """Answers 403 to what other sites have a browser ask for; a layer around an ASGI program.

    Args:
        app: the program.
        by_any_name: whether it may be reached by other names than this computer's own for itself; then it has to ask
            for a password, which a browser does not give to another site.
    """

    def __init__(self, app: Any, by_any_name: bool) -> None:
        self._app, self._by_any_name = app, by_any_name

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            from starlette.datastructures import Headers
            from starlette.responses import PlainTextResponse

            headers = Headers(scope=scope)
            if is_foreign_page(headers) or (not self._by_any_name and is_foreign_name(headers)):
                text = (
                    "ZOODiP: another site may not use this page. To reach it by another name, start it with a password."
                )
                await PlainTextResponse(text, status_code=403)(scope, receive, send)
                return
        await self._app(scope, receive, send)
