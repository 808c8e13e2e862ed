"""The page's part for the pictures of the subject: how they come in, how they are cut, their captions."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageColor, ImageEnhance, ImageOps

from ..base.errors import ConfigError, ImagesError
from ..base.paths import contains
from ..base.texts import how_many
from ..data.cuts import cut_of
from ..data.images import check_resolution, open_picture
from ..data.masks import BLACK, Masks
from ..jobs.job import Job
from ..jobs.protocol import FAILED
from ..tiny import concepts
from ..train.settings import SETTINGS
from . import form, views
from .draft import Picture
from .gradios import attempt, fitting, html, listen, paint_box, painted, shown, to_paint, uploads
from .studio import TINY_LABEL, Studio

FOLLOWED = ("crop", "resolution", "background", "transparency", "mask_background")
"""Settings that decide how pictures are shown: how they are cut, and where their masks are."""
_TILE = 256
_USUAL = 512
"""Resolution where the form leaves it to the model, which is not looked into here. At more, less is cut off."""
_DIM = 0.25
"""The light that is left outside of a mask."""
_PAINTED, _PAINTED_PIXELS = 480, 640
"""Height of the box that is painted in, and the longer side of what it shows: a small picture is blown up for that."""
_SUBJECT = "subject"
"""Under this name the draft keeps which bundled subject its pictures are of."""
_CAPTION_WITH = "caption_with"
"""Under this one, which model wrote captions last."""
_LONGEST_NAME = 1000
FOLDERS = """() => {
  const app = document.querySelector('gradio-app'), root = (app && app.shadowRoot) || document
  const read = (entry) => new Promise((resolve, reject) => entry.file(resolve, reject))
  const within = async (folder) => {
    const reader = folder.createReader(), entries = []
    for (;;) {  // some at a time, at last none
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))
      if (!some.length) break
      entries.push(...some)
    }
    const files = entries.filter((entry) => entry.isFile && !entry.name.startsWith('.'))
    return Promise.all(files.sort((a, b) => a.name.localeCompare(b.name)).map(read))
  }
  root.addEventListener('drop', async (event) => {
    if (!event.target.closest || !event.target.closest('#zoodip_drop')) return
    const items = [...event.dataTransfer.items].filter((item) => item.kind === 'file')
    const entries = items.map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean)
    if (!entries.some((entry) => entry.isDirectory)) return
    event.preventDefault()
    event.stopImmediatePropagation()
    event.target.dispatchEvent(new DragEvent('dragleave', { bubbles: true }))
    const taken = entries.map((entry) => entry.isDirectory ? within(entry) : read(entry))
    const found = (await Promise.all(taken.map((each) => each.catch(() => [])))).flat()
    const carried = new DataTransfer(), input = root.querySelector('#zoodip_drop input[type=file]')
    if (!found.length) found.push(new File([' '], entries[0].name))  // the page says that it is no picture
    found.forEach((file) => carried.items.add(file))
    if (!input) return
    input.files = carried.files
    input.dispatchEvent(new Event('change', { bubbles: true }))
  }, true)
  return []
}"""
"""Has a folder that is dropped be the files in it, but not those of folders within; gradio cannot upload a folder."""
_CAPTION = "Caption"
_MOST_LINES = 8


class Pictures:
    """Components and handlers.

    Args:
        studio: whose draft has the pictures.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._changing = threading.Lock()  # a page may tell of one choice twice, and two pages may have a visitor each

    def build(self) -> None:
        """Add the components to the Blocks that are being made."""
        self._add_sources()
        self._notice = html(elem_id="zoodip_pictures_notice")
        self.gallery = gr.Gallery(
            show_label=False,
            columns=5,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            visible=False,
            elem_id="zoodip_pictures",
            **fitting(gr.Gallery, show_share_button=False, show_download_button=False, buttons=[], interactive=False),
        )
        # The browser's, no state of the server: a caption that is left goes with the picture that it was written for.
        self._chosen = gr.Textbox("", visible=False)
        self._add_tools()
        self._box = paint_box(label="Paint over the subject", elem_id="zoodip_mask", height=_PAINTED)
        self._keep = gr.Button("Keep what is painted", visible=False, variant="primary", elem_id="zoodip_keep_mask")

    def _add_sources(self) -> None:
        """Where pictures come from."""
        with gr.Row(elem_id="zoodip_files"):
            with gr.Column(scale=3, min_width=220):
                self._drop = gr.File(
                    label="Drop 3 to 10 pictures, captions and masks too",
                    file_count="multiple",
                    height=168,
                    elem_id="zoodip_drop",
                )
            with gr.Column(scale=2, min_width=220):
                self.bundled = gr.Dropdown(
                    concepts.names(), value=None, label="or a bundled subject, to try it", elem_id="zoodip_bundled"
                )
                with gr.Row(visible=self._studio.host.for_its_user()):
                    self._folder = gr.Textbox(
                        label="or a folder",
                        placeholder="/photos/rex",
                        max_lines=1,
                        elem_id="zoodip_folder",
                        scale=4,
                        min_width=120,
                    )
                    self._add_folder = gr.Button("Add", size="sm", scale=1, min_width=60, elem_id="zoodip_add_folder")

    def _add_tools(self) -> None:
        """What can be done with those that are there."""
        with gr.Column(visible=False, elem_id="zoodip_picture_tools") as self._tools:
            with gr.Row():
                with gr.Column(scale=4, min_width=240):
                    self._hint = html(
                        views.hint("Cut as the training sees them. Click one to give it a caption, or a mask.")
                    )
                    self._caption = gr.Textbox(
                        label=_CAPTION,
                        info="What else is in the picture; {} is the token's place. Empty: by the template.",
                        placeholder="a photo of a {} on grass",
                        visible=False,
                        elem_id="zoodip_caption",
                    )
                with gr.Column(scale=1, min_width=130):
                    self._paint = gr.Button("Paint a mask", size="sm", visible=False, elem_id="zoodip_paint")
                    self._unmask = gr.Button("Remove its mask", size="sm", visible=False, elem_id="zoodip_unmask")
                    self._remove = gr.Button("Remove this one", size="sm", visible=False, elem_id="zoodip_remove")
                    self._clear = gr.Button("Remove all", size="sm", elem_id="zoodip_clear")
            with gr.Row():
                self.caption_with = gr.Textbox(
                    label="Model that writes captions",
                    info="BLIP, Florence-2 or Qwen-VL: its folder, or its name in Hugging Face's cache. Nothing is "
                    "downloaded.",
                    placeholder="Salesforce/blip-image-captioning-base",
                    max_lines=1,
                    scale=4,
                    min_width=240,
                    elem_id="zoodip_caption_with",
                )
                self._write = gr.Button(
                    "Write captions", size="sm", scale=1, min_width=130, elem_id="zoodip_write_captions"
                )

    def wire(self, fields: Sequence[Any], values: Callable[[], list[Any]]) -> None:
        """Attach the handlers.

        Args:
            fields: the form's components, which a bundled subject fills in.
            values: what they are to show.
        """

        def concept_added(name: str | None) -> tuple[Any, ...]:
            return (*self._after(lambda: self._add_concept(name or "")), self.subject(), *values())

        place = form.names().index("model")
        model = fields[place]

        def dropped(files: Any) -> list[Any]:
            return [*self._dropped(files), values()[place]]

        def folder_added(folder: str) -> list[Any]:
            return [*self._folder_added(folder), values()[place]]

        told = [self._notice, *self.outputs]
        listen(self._drop.upload, dropped, [self._drop], [*told, self._drop, self.bundled, model])
        listen(self._add_folder.click, folder_added, [self._folder], [*told, self.bundled, model])
        listen(self.bundled.input, concept_added, [self.bundled], [*told, self.bundled, *fields])
        listen(self.gallery.select, self._picture_chosen, None, self.outputs[2:])
        listen(self._paint.click, self._painting, [self._chosen], [self._notice, self._box, self._keep])
        listen(self._keep.click, self._painted, [self._chosen, self._box], told)
        listen(self._unmask.click, self._unmasked, [self._chosen], told)
        for event in (self._caption.blur, self._caption.submit):
            listen(event, self._captioned, [self._chosen, self._caption], [self._notice, self.gallery])
        listen(self._write.click, self._written, [*fields, self.caption_with], [self._notice])
        listen(self._remove.click, self._removed, [self._chosen], told)
        listen(self._clear.click, self._cleared, None, [*told, self.bundled])

    # ------------------------------------------------------------ what is shown

    @property
    def outputs(self) -> list[Any]:
        """The components that :meth:`look` changes."""
        chosen = [self._caption, self._hint, self._remove, self._paint, self._unmask, self._box, self._keep]
        return [self.gallery, self._tools, self._chosen, *chosen]

    def look(self) -> list[Any]:
        """What there is, with no picture chosen."""
        tiles = self.tiles()
        there = bool(tiles)
        return [gr.update(value=tiles, visible=there), gr.update(visible=there), *self._choose(None)]

    def follow(self, job: Job | None, name: str) -> list[Any]:
        """What :attr:`followed` show of the newest job that writes captions: once it has ended, what it wrote.

        Somebody may be writing a caption meanwhile, or painting a mask: the picture that is chosen stays so.

        Args:
            job: it, if there is one.
            name: of the chosen picture, empty if none is.
        """
        found: list[Any] = [gr.update()] * len(self.followed)
        if job is None or job.open:
            return found
        found[:3] = [shown(views.notice(job.message, "error") if job.state == FAILED else ""), *self.look()[:2]]
        captions = {each.name: each.caption for each in self._studio.draft.pictures()}
        if name in job.captions and name in captions:
            found[self.followed.index(self._caption)] = gr.update(value=captions[name])
        return found

    @property
    def chosen(self) -> Any:
        """The component that holds the name of the chosen picture."""
        return self._chosen

    @property
    def followed(self) -> list[Any]:
        """The components that :meth:`follow` changes."""
        return [self._notice, *self.outputs]

    def model(self) -> Any:
        """The model that wrote captions last, for :attr:`caption_with`."""
        kept = self._studio.draft.values().get(_CAPTION_WITH)
        return gr.update(value=kept if isinstance(kept, str) else "")

    @staticmethod
    def _choose(picture: Picture | None, number: int = 0) -> list[Any]:
        chosen = picture is not None
        label = f"{_CAPTION} of picture {number}, {picture.name}" if picture else _CAPTION
        return [
            picture.name if picture else "",
            gr.update(value=picture.caption if picture else "", label=label, visible=chosen),
            gr.update(visible=not chosen),
            gr.update(visible=chosen),
            gr.update(value="Paint the mask anew" if picture and picture.mask else "Paint a mask", visible=chosen),
            gr.update(visible=picture is not None and picture.mask is not None),
            to_paint(None),
            gr.update(visible=False),
        ]

    def tiles(self) -> list[tuple[Image.Image, str]]:
        """The draft's pictures as training will see them, with their captions; dark outside of their masks."""
        values, tiles = form.read_named(self._studio.draft.values()), []
        transparency = values["transparency"] if values["mask_background"] != 1 else ""
        for picture in self._studio.draft.pictures():
            try:
                changed = picture.path.stat().st_mtime_ns
                masked = picture.mask.stat().st_mtime_ns if picture.mask else 0
                cut = (values[name] for name in ("crop", "resolution", "background"))
                tile = _tile(picture.path, changed, masked, *cut, transparency)
            except (OSError, ImagesError):  # it was whole when it was added
                continue
            tiles.append((tile, picture.caption.splitlines()[0] if picture.caption else picture.name))
        return tiles

    def _after(self, work: Callable[[], str | tuple[str, str]]) -> list[Any]:
        """Notice and pictures, after a change of them."""
        with self._changing:
            told = attempt(work)
        return [shown(told), *self.look()]

    # ------------------------------------------------------------ what is done

    def _add(self, take: Callable[[], Sequence[str]]) -> tuple[str, str]:
        """Add pictures of the user's own; those of a bundled subject make room for them."""
        draft = self._studio.draft
        bundled = [each.name for each in draft.pictures()] if draft.values().get(_SUBJECT) else []
        skipped = take()
        if len(draft.pictures()) > len(bundled) and draft.values().get(_SUBJECT):
            for name in bundled:
                draft.remove(name)
            on_tiny = draft.values().get("model") == TINY_LABEL  # the bundled subject's, which draws nothing else
            draft.keep({_SUBJECT: "", **({"model": ""} if on_tiny else {})})
        return self._added(skipped)

    def _add_concept(self, name: str) -> tuple[str, str]:
        draft, concept = self._studio.draft, concepts.load(name)
        if draft.pictures() and draft.values().get(_SUBJECT) == name:  # told of again
            return self._added([])
        if draft.pictures() and not draft.values().get(_SUBJECT):
            raise ImagesError("your own pictures are here; remove them all first, then choose a bundled subject")
        draft.clear()
        skipped = draft.add_concept(name)
        told = {"token": concept.token, "initializer": concept.initializer, "model": TINY_LABEL}
        draft.keep({**told, _SUBJECT: name})
        return self._added(skipped)

    def _added(self, skipped: Sequence[str]) -> tuple[str, str]:
        count = len(self._studio.draft.pictures())
        lines = [how_many(count, "picture"), *skipped[:_MOST_LINES]]
        if len(skipped) > _MOST_LINES:
            lines.append(f"and {len(skipped) - _MOST_LINES} more like these")
        return "\n".join(lines), "warning" if skipped else "good"

    def _dropped(self, files: Any) -> list[Any]:
        paths = [Path(getattr(file, "name", file)) for file in files or []]

        def add() -> tuple[str, str]:
            return self._add(lambda: self._studio.draft.add([(path, path.name) for path in paths]))

        after = self._after(add)
        if not self._studio.host.shares_page:
            for path in paths:  # gradio's own copies, which it would keep
                if contains(uploads(), path):
                    with contextlib.suppress(OSError):  # a virus scanner may have it open
                        path.unlink(missing_ok=True)
        return [*after, gr.update(value=None), self.subject()]

    def _folder_added(self, folder: str) -> list[Any]:
        def add() -> tuple[str, str]:
            if not (folder or "").strip():
                raise ConfigError("give the path of a folder of pictures")
            return self._add(lambda: self._studio.draft.add_folder(self._studio.typed(folder)))

        return [*self._after(add), self.subject()]

    def subject(self) -> Any:
        """The bundled subject that the pictures are of, for :attr:`bundled`."""
        name = self._studio.draft.values().get(_SUBJECT)
        return gr.update(value=name if name in concepts.names() else None)

    def _picture_chosen(self, event: gr.SelectData) -> list[Any]:
        pictures = self._studio.draft.pictures()
        index = event.index[0] if isinstance(event.index, list | tuple) else event.index
        if not isinstance(index, int) or not 0 <= index < len(pictures):
            return self._choose(None)
        return self._choose(pictures[index], index + 1)

    def _captioned(self, name: str, text: str) -> tuple[Any, ...]:
        before = {picture.name: picture.caption for picture in self._studio.draft.pictures()}
        if not name or before.get(name) == text:
            return gr.update(), gr.update()

        def caption() -> str:
            self._studio.draft.caption(name, text or "")
            return ""

        return shown(attempt(caption)), gr.update(value=self.tiles())

    def _written(self, *values: Any) -> Any:
        *fields, where = values

        def write() -> str:
            named = (where or "")[:_LONGEST_NAME]
            given = form.read(fields)
            job = self._studio.write_captions(given, named)
            naming = {name: given[name] for name in ("token", "initializer", "class_word", "template")}
            self._studio.draft.keep({**naming, _CAPTION_WITH: named})
            return views.queued("captions are being written; they appear under the pictures", job)

        return shown(attempt(write))

    def _painting(self, name: str) -> list[Any]:
        """Show the brush over a picture, with its mask where this gradio can begin with one."""
        found: list[tuple[Image.Image, Image.Image | None]] = []

        def look() -> str:
            picture = next((each for each in self._studio.draft.pictures() if each.name == name), None)
            if picture is None:
                raise ImagesError("choose a picture first")
            fitted = ImageOps.contain(open_picture(picture.path), (_PAINTED_PIXELS, _PAINTED_PIXELS))
            found.append((fitted, open_picture(picture.mask, BLACK).convert("L") if picture.mask else None))
            return ""

        notice = shown(attempt(look))
        return [notice, to_paint(*found[0]) if found else to_paint(None), gr.update(visible=bool(found))]

    def _painted(self, name: str, value: Any) -> list[Any]:
        """Keep what was painted; what cannot be kept stays on the page."""
        kept: list[str] = []

        def keep() -> tuple[str, str]:
            mask = painted(value)
            if mask is None:
                raise ImagesError("nothing is painted yet; paint over the subject, then keep it")
            self._studio.draft.mask(name, mask)
            kept.append(name)
            return f"{name} has a mask: what is dark in its tile is hardly learned", "good"

        with self._changing:
            told = attempt(keep)
        return [shown(told), *(self.look() if kept else [gr.update()] * len(self.outputs))]

    def _unmasked(self, name: str) -> list[Any]:
        def remove() -> tuple[str, str]:
            self._studio.draft.mask(name, None)
            return f"{name} is learned whole", "good"

        return self._after(remove)

    def _removed(self, name: str) -> list[Any]:
        def remove() -> tuple[str, str]:
            self._studio.draft.remove(name)
            return self._added([])

        return self._after(remove)

    def _cleared(self) -> list[Any]:
        def clear() -> str:
            self._studio.draft.clear()
            self._studio.draft.keep({_SUBJECT: ""})
            return ""

        return [*self._after(clear), gr.update(value=None)]


@functools.lru_cache(maxsize=200)
def _tile(
    path: Path, _changed: int, _masked: int, crop: str, resolution: int, background: str, transparency: str
) -> Image.Image:
    """A picture as training sees it, small. A photograph takes a tenth of a second, and the page shows all of them.

    Without a word on ``transparency`` masks are not used.
    """
    try:
        colour = ImageColor.getrgb(background)[:3]
    except ValueError:  # it is being typed; the check tells
        colour = (255, 255, 255)
    picture = open_picture(path, colour)
    cut = cut_of(picture.size, _resolution(resolution), crop).within(_TILE)
    mask = Masks(transparency).of(path, picture.size) if transparency else None
    tile = cut.apply(picture)
    if mask is None:
        return tile
    return Image.composite(tile, ImageEnhance.Brightness(tile).enhance(_DIM), cut.apply(mask))


def _resolution(typed: int) -> int:
    """What is typed, where that is one: the check tells otherwise."""
    try:
        SETTINGS["resolution"].check(typed)
        check_resolution(typed)
    except ConfigError:
        return _USUAL
    return typed or _USUAL
