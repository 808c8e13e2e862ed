"""``/zoodip/v1``: jobs for scripts, open where and to whom the webui's own API is."""

import base64
import binascii
import dataclasses
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoodip_core.draft import MAX_PICTURES, Draft
from zoodip_core.errors import ConfigError, ImagesError, for_user
from zoodip_core.form import NAMES, read_named
from zoodip_core.jobs import Job
from zoodip_core.studio import Studio

ROOT = "/zoodip/v1"
_LONGEST = 150_000_000
"""Characters of a picture in base64."""


def add(app: Any, studio: Studio) -> None:
    """Add the routes, if the webui was started with its API."""
    from fastapi import Body, Depends, HTTPException
    from modules import shared

    if not (shared.cmd_opts.api or getattr(shared.cmd_opts, "nowebui", False)):
        return
    guards = [Depends(_guard(shared.cmd_opts.api_auth))] if shared.cmd_opts.api_auth else []

    def answered(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:
            text = for_user(error)
            if text is None:
                raise
            raise HTTPException(status_code=422, detail=text) from error

    def create(request: dict[str, Any] = Body(...)) -> Any:  # noqa: B008 - as fastapi wants it
        return answered(lambda: told(_start(studio, request)))

    def listed() -> Any:
        return [told(job) for job in studio.jobs.all()]

    def status(number: int) -> Any:
        return answered(lambda: told(studio.jobs.get(number)))

    def stop(number: int) -> Any:
        def work() -> Any:
            studio.jobs.stop(number)
            return told(studio.jobs.get(number))

        return answered(work)

    for path, method, route in (
        ("/jobs", "POST", create),
        ("/jobs", "GET", listed),
        ("/jobs/{number}", "GET", status),
        ("/jobs/{number}/stop", "POST", stop),
    ):
        app.add_api_route(ROOT + path, route, methods=[method], dependencies=guards)


def _guard(accounts: str) -> Callable[..., None]:
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


def _start(studio: Studio, request: dict[str, Any]) -> Job:
    """Start a job from a request: settings by name, and ``pictures`` as base64 with names and captions."""
    pictures = request.pop("pictures", None)
    overwrite = bool(request.pop("overwrite", False))
    unknown = sorted(set(request) - set(NAMES))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: no such setting; there are pictures, overwrite, {', '.join(NAMES)}")
    form = {**read_named({**studio.host.defaults(), **request}), "overwrite": overwrite}
    if not isinstance(pictures, list) or not 1 <= len(pictures) <= MAX_PICTURES:
        raise ImagesError(f"pictures: give a list of 1 to {MAX_PICTURES}, each with name, data in base64, and caption")
    with tempfile.TemporaryDirectory(prefix="zoodip-") as place:
        draft = Draft(Path(place) / "draft")
        for i, picture in enumerate(pictures, 1):
            _add(draft, Path(place), picture, i)
        return studio.start(form, draft)


def _add(draft: Draft, place: Path, picture: Any, number: int) -> None:
    where = f"pictures, {number}"
    if not isinstance(picture, dict) or not all(isinstance(picture.get(key), str) for key in ("name", "data")):
        raise ImagesError(f"{where}: give an object with name, data in base64, and caption if it has one")
    if len(picture["data"]) > _LONGEST:
        raise ImagesError(f"{where}: the picture is too large")
    file = place / f"{number}{Path(picture['name']).suffix[:10]}"
    try:
        file.write_bytes(base64.b64decode(picture["data"].rpartition(",")[2], validate=True))
    except (binascii.Error, ValueError) as error:
        raise ImagesError(f"{where}: data is not base64") from error
    before = {each.name for each in draft.pictures()}
    skipped = draft.add([(file, picture["name"])])
    if skipped:
        raise ImagesError(f"{where}: {skipped[0]}")
    caption = picture.get("caption", "")
    for each in draft.pictures():
        if each.name not in before and isinstance(caption, str) and caption:
            draft.caption(each.name, caption)


def told(job: Job) -> dict[str, Any]:
    """A job as the interface tells it."""
    shown = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    del shown["losses"], shown["file"]
    return {name: str(each) if isinstance(each, Path) else each for name, each in shown.items()}
