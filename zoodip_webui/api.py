"""``/zoodip/v1``: jobs for scripts, open where and to whom the webui's own API is.

- ``POST /jobs`` starts one: settings by name, ``pictures`` (name, data in base64, caption, mask in base64) and
  ``overwrite``
- ``GET /jobs``, ``GET /jobs/{number}``, ``POST /jobs/{number}/stop``
- ``GET /runs``, ``POST /runs/{name}/resume`` with ``steps`` for more of them

What cannot be done is answered with 422 and a sentence that says why.
"""

import base64
import binascii
import dataclasses
import json
import math
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoodip_core.base.errors import ConfigError, ImagesError, for_user
from zoodip_core.base.origins import is_foreign_name, is_foreign_page
from zoodip_core.base.texts import whole_text
from zoodip_core.data.images import MAX_PICTURES, open_picture
from zoodip_core.data.masks import BLACK
from zoodip_core.jobs.job import Job, Run
from zoodip_core.page.draft import Draft
from zoodip_core.page.form import names, read_named
from zoodip_core.page.studio import Studio

ROOT = "/zoodip/v1"
MAX_REQUEST = 200_000_000
"""Bytes of a request with all its pictures; base64 has four for each three of theirs."""
_MAX_SMALL = 10_000
"""Bytes of a request without pictures."""
_OF_RUN = (
    *("name", "token", "model", "state", "message", "step", "steps", "can_resume"),
    *("folder", "embedding", "lora", "embeddings"),
)


def add(app: Any, studio: Studio) -> None:
    """Add the routes, if the webui was started with its API."""
    from modules import shared

    if not (shared.cmd_opts.api or getattr(shared.cmd_opts, "nowebui", False)):
        return

    def create(request: dict[str, Any] = _object(MAX_REQUEST)) -> Any:  # noqa: B008 - as fastapi wants it
        return _answered(lambda: _told(_start(studio, request)))

    def jobs() -> Any:
        return [_told(job) for job in studio.jobs.all()]

    def job(number: int) -> Any:
        return _answered(lambda: _told(studio.jobs.get(number)))

    def stop(number: int) -> Any:
        def work() -> Any:
            studio.jobs.stop(number)
            return _told(studio.jobs.get(number))

        return _answered(work)

    def runs() -> Any:
        return [_told(run) for run in studio.runs()]

    def resume(name: str, request: dict[str, Any] = _object(_MAX_SMALL)) -> Any:  # noqa: B008 - as fastapi wants it
        return _answered(lambda: _told(_resume(studio, name, request)))

    guards = _guards(app, shared.cmd_opts, studio.host.for_its_user())
    for path, method, route in (
        ("/jobs", "POST", create),
        ("/jobs", "GET", jobs),
        ("/jobs/{number}", "GET", job),
        ("/jobs/{number}/stop", "POST", stop),
        ("/runs", "GET", runs),
        ("/runs/{name}/resume", "POST", resume),
    ):
        app.add_api_route(ROOT + path, route, methods=[method], dependencies=guards)


def _answered(work: Callable[[], Any]) -> Any:
    """What the work returns, or 422 and what is wrong."""
    from fastapi import HTTPException

    try:
        return work()
    except Exception as error:
        text = for_user(error)
        if text is None:
            raise
        raise HTTPException(status_code=422, detail=text) from error


def _object(most: int) -> Any:
    """The request's object; it is read once it is known who asks, and no further than ``most`` bytes."""
    from fastapi import Depends, HTTPException, Request

    async def read(request: Request) -> dict[str, Any]:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > most:
                raise HTTPException(
                    status_code=413, detail=f"the request has more than {most:,} bytes; give fewer or smaller pictures"
                )
        try:
            found = json.loads(data or b"{}")
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise HTTPException(status_code=422, detail="the request is not a JSON object")
        return found

    return Depends(read)


# ---------------------------------------------------------------- who may ask


def _guards(app: Any, options: Any, for_its_user: bool) -> list[Any]:
    """What a request has to pass: the accounts of ``--api-auth``; without those, the page's own login."""
    from fastapi import Depends

    if options.api_auth:
        accounts = [_account(options.api_auth)]
    else:  # as the webui's own API it would be open to everyone even where the page asks for a password
        accounts = [route.endpoint for route in app.routes if getattr(route, "path", "") == "/login_check"][:1]
    return [Depends(guard) for guard in (_from_here(options, bool(accounts) or not for_its_user), *accounts)]


def _from_here(options: Any, by_any_name: bool) -> Callable[..., None]:
    """Refuses what a page of another site has a browser send, unless ``--cors-allow-origins`` allows that site.

    Args:
        options: of the webui's command line.
        by_any_name: whether the webui may be reached by other names than this computer's own for itself; see
            :mod:`zoodip_core.base.origins`.
    """
    from fastapi import HTTPException, Request

    allowed = (getattr(options, "cors_allow_origins", None) or "").split(",")
    pattern = getattr(options, "cors_allow_origins_regex", None)

    def check(request: Request) -> None:
        origin = request.headers.get("origin")
        if origin is not None and (origin in allowed or "*" in allowed or (pattern and re.fullmatch(pattern, origin))):
            return
        if is_foreign_page(request.headers):
            raise HTTPException(status_code=403, detail=f"{origin} may not use this; see --cors-allow-origins")
        if not by_any_name and is_foreign_name(request.headers):
            name = request.headers.get("host")
            raise HTTPException(status_code=403, detail=f"{name} is not a name of this computer; see --api-auth")

    return check


def _account(accounts: str) -> Callable[..., None]:
    """Refuses whoever is not in the webui's ``--api-auth``."""
    from fastapi import Depends, HTTPException
    from fastapi.security import HTTPBasic, HTTPBasicCredentials

    known = dict(account.split(":", 1) for account in accounts.split(","))

    def check(credentials: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008 - as fastapi wants it
        password = known.get(credentials.username)
        if password is None or not secrets.compare_digest(credentials.password.encode(), password.encode()):
            raise HTTPException(
                status_code=401, detail="Incorrect username or password", headers={"WWW-Authenticate": "Basic"}
            )

    return check


# ---------------------------------------------------------------- what is asked


def _start(studio: Studio, request: Mapping[str, Any]) -> Job:
    """Start a job from a request."""
    settings = {name: given for name, given in request.items() if name not in ("pictures", "overwrite")}
    pictures, overwrite = request.get("pictures"), request.get("overwrite", False)
    unknown = sorted(set(settings) - set(names()))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: no such setting; there are pictures, overwrite, {', '.join(names())}")
    if not {"token", "initializer"} <= set(settings):
        raise ConfigError("token and initializer must be given")
    form = read_named({**studio.host.defaults(), **settings})
    for name, given in settings.items():
        if form[name] != given:
            raise ConfigError(f"{name} = {str(given)[:80]!r}: not a value of this setting, such as {form[name]!r}")
    if not isinstance(overwrite, bool):
        raise ConfigError(f"overwrite = {str(overwrite)[:80]!r}: true or false")
    if not isinstance(pictures, list) or not 1 <= len(pictures) <= MAX_PICTURES:
        raise ImagesError(
            f"pictures: give a list of 1 to {MAX_PICTURES}, each with name, data in base64, caption and mask"
        )
    with tempfile.TemporaryDirectory(prefix="zoodip-") as place:
        draft = Draft(Path(place) / "draft")
        for i, picture in enumerate(pictures, 1):
            _add(draft, Path(place) / str(i), picture, f"pictures, {i}")
        return studio.start({**form, "overwrite": overwrite}, draft)


def _add(draft: Draft, file: Path, picture: Any, where: str) -> None:
    """Add a picture of a request to a draft, by way of a file."""
    given = picture if isinstance(picture, dict) else {}
    name, data, caption, mask = given.get("name"), given.get("data"), given.get("caption", ""), given.get("mask", "")
    texts = isinstance(caption, str) and isinstance(mask, str)
    if not isinstance(name, str) or not isinstance(data, str) or not texts:
        raise ImagesError(f"{where}: give an object with name, data in base64, and caption and mask if it has any")
    _write(file, data, f"{where}: data")
    before = {each.name for each in draft.pictures()}
    told = draft.add([(file, name)])
    added = [each.name for each in draft.pictures() if each.name not in before]
    if told and not added:
        raise ImagesError(f"{where}: {told[0]}")
    for each in added if caption else ():
        draft.caption(each, caption)
    for each in added if mask else ():
        beside = file.with_name(f"{file.name}-mask")
        _write(beside, mask, f"{where}: mask")
        try:
            draft.mask(each, open_picture(beside, BLACK))
        except ImagesError as error:
            raise ImagesError(f"{where}: mask: {str(error).replace(str(beside), 'the file')}") from error


def _write(file: Path, data: str, where: str) -> None:
    """Write what a request has in base64, or in a data URL."""
    try:
        file.write_bytes(base64.b64decode(data.rpartition(",")[2], validate=True))
    except (binascii.Error, ValueError) as error:
        raise ImagesError(f"{where} is not base64") from error


def _resume(studio: Studio, name: str, request: Mapping[str, Any]) -> Job:
    steps = request.get("steps", 0)
    if set(request) - {"steps"} or not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise ConfigError("give steps, a whole number of them in all, or nothing")
    return studio.resume(name, steps)


# ---------------------------------------------------------------- what is told


def _told(about: Job | Run) -> dict[str, Any]:
    """A job or a run as the interface tells it."""
    names = _OF_RUN if isinstance(about, Run) else [field.name for field in dataclasses.fields(about)]
    return {name: _plain(getattr(about, name)) for name in names if name not in ("losses", "file")}


def _plain(value: Any) -> Any:
    """In JSON, which has neither paths nor numbers that are not finite, and in UTF-8."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list) and all(isinstance(each, Path) for each in value):
        return [whole_text(str(each)) for each in value]
    if isinstance(value, dict | list):  # what a check found, with paths in it
        return json.loads(whole_text(json.dumps(value, ensure_ascii=False)))
    return whole_text(str(value)) if isinstance(value, str | Path) else value
