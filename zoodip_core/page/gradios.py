"""What gradio 3.41, 4.40 and 6 call differently, and what every part of the page needs of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops, ImageColor

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


PAINT = "#ff2ebd"
"""The brush's colour."""
_SIZE_OF_BRUSH = 24


def paint_box(**more: Any) -> Any:
    """A component to paint over a picture, hidden at first: gradio 4 and newer have an editor, 3.41 a sketch."""
    editor = getattr(gr, "ImageEditor", None)
    if editor is None:
        more |= fitting(gr.Image, tool="sketch", brush_color=PAINT, brush_radius=_SIZE_OF_BRUSH)
        return gr.Image(type="pil", interactive=True, visible=False, **more)
    wishes = fitting(editor, show_download_button=False, show_share_button=False, buttons=[], format="png")
    brush = gr.Brush(default_size=_SIZE_OF_BRUSH, colors=[PAINT], color_mode="fixed")
    more |= {"sources": (), "transforms": (), "layers": False, "brush": brush, **wishes}
    return editor(type="pil", interactive=True, visible=False, **more)


def to_paint(picture: Image.Image | None, mask: Image.Image | None = None) -> Any:
    """Change a component made by :func:`paint_box`: show a picture with what is painted so far, or nothing."""
    if picture is None:
        return gr.update(value=None, visible=False)
    if not hasattr(gr, "ImageEditor"):  # it begins without paint
        return gr.update(value=picture, visible=True)
    layer = Image.new("RGBA", picture.size)
    if mask:
        layer.paste(ImageColor.getrgb(PAINT), (0, 0, *picture.size), mask.resize(picture.size))
    composite = Image.alpha_composite(picture.convert("RGBA"), layer)
    value = {"background": picture, "layers": [layer] if mask else [], "composite": composite}
    return gr.update(value=value, visible=True)


def painted(value: Any) -> Image.Image | None:
    """What was painted in a component made by :func:`paint_box`: white where the brush was; None without paint."""
    if not isinstance(value, dict):
        return None
    if "mask" in value:  # the sketch's: white on black
        mask = value["mask"].convert("RGB").convert("L") if value["mask"] else None
    else:
        layers = [layer.convert("RGBA").getchannel("A") for layer in value.get("layers") or [] if layer]
        mask = functools.reduce(ImageChops.lighter, layers) if layers else None
    return mask.point(lambda grey: 255 if grey >= _HALF else 0) if mask and mask.getbbox() else None


_HALF = 128


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
