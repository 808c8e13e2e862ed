"""What gradio 3.41, 4.40 and 6 call differently, and what every part of the page needs of it."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..base.errors import ImagesError, for_user
from ..data.images import open_picture
from . import views

UNSEEN = "zoodip-unseen"
"""A class of what is on the page, but not to be seen."""


def fitting(maker: Callable[..., Any], **wishes: Any) -> dict[str, Any]:
    """Those of the arguments that this gradio's ``maker`` knows."""
    known = inspect.signature(maker).parameters
    return {name: value for name, value in wishes.items() if name in known}


def listen(
    event: Any,
    fn: Callable[..., Any] | None,
    inputs: Any = None,
    outputs: Any = None,
    *,
    js: str = "",
    last: bool = False,
    queue: bool = True,
) -> Any:
    """Attach a handler in the words of this gradio; as the page's own work, it is not offered as an API.

    Args:
        event: such as ``button.click``.
        fn: the handler.
        inputs: components whose values it is given.
        outputs: components that it changes.
        js: JavaScript to run in its place.
        last: whether an event that comes while the handler works is handled after it; else it is dropped.
        queue: whether it waits for its turn behind others.
    """
    more = fitting(event, api_visibility="private") or {"api_name": False}
    if js:
        more |= fitting(event, js=js) or {"_js": js}
    if not queue:
        more |= {"queue": False}
    if last:
        more |= fitting(event, trigger_mode="always_last")
    return event(fn, inputs, outputs, show_progress="hidden", **more)


def edited(component: Any) -> Any:
    """The event of a person changing a component's value.

    Where a handler cannot be asked to have the last word (see ``last`` of :func:`listen`), an event for each key could
    leave an older value; there a text or number tells when it is left.
    """
    if "trigger_mode" in inspect.signature(component.input).parameters:
        return component.input
    return getattr(component, "blur", component.input)


def html(text: str = "", **more: Any) -> Any:
    """An HTML component without a frame, hidden while it is empty."""
    wishes = {"visible": bool(text), "elem_classes": ["zoodip-html"], **more, **fitting(gr.HTML, padding=False)}
    return gr.HTML(text, **wishes)


def shown(text: str) -> Any:
    """Change a component made by :func:`html`."""
    return gr.update(value=text, visible=bool(text))


def picture_box(**more: Any) -> Any:
    """A component for a picture of ours, hidden while it has none."""
    wishes = fitting(gr.Image, format="png", show_share_button=False, buttons=["download", "fullscreen"])
    return gr.Image(type="pil", interactive=False, visible=False, **more, **wishes)


def pictured(path: Path | None) -> Any:
    """Change a component made by :func:`picture_box`. The file may be gone, or half of another program's making."""
    picture: Image.Image | None = None
    if path is not None:
        with contextlib.suppress(ImagesError):
            picture = open_picture(path)
    return gr.update(value=picture, visible=picture is not None)


def uploads() -> Path:
    """The folder in which gradio keeps what was dropped onto the page."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio")


def attempt(work: Callable[[], str | tuple[str, str]]) -> str:
    """The notice of what was done, or of what is wrong; ``work`` returns its text, and its kind unless all is good."""
    try:
        done = work()
        return views.notice(*(done if isinstance(done, tuple) else (done, "good")))
    except Exception as error:
        text = for_user(error)
        if text is None:
            logging.getLogger(__name__).exception("a fault of the page")
            text = f"{type(error).__name__}: {error}. This is a fault of ZOODiP; the console has more"
        return views.notice(text, "error")
