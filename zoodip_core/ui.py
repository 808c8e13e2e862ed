"""The page, as gradio Blocks that are built alike on gradio 3.41, 4.40 and 6: the webui's tab and the page alone.

All that it does is the :class:`Studio`'s, all that it says is in :mod:`views`. What is on it is kept by the studio:
a page that is loaded again, or another one, shows the same.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context
from PIL import Image

from . import form, views
from .errors import ConfigError, ImagesError, for_user
from .files import write_atomically
from .form import ADVANCED, FIELDS, MODEL_FIELDS, NAMES, PACE_FIELDS, TOKEN_FIELDS, Field
from .history import Run
from .images import SUFFIXES, fit, open_picture
from .installer import Installer
from .jobs import RUNNING, Job
from .studio import Studio
from .tiny import concepts

_EVERY = 1.0
"""Seconds between two looks at the job."""
_TILE = 256


def _listen(event: Any, fn: Callable[..., Any] | None, inputs: Any = None, outputs: Any = None, js: str = "") -> Any:
    """Attach a handler in the words of this gradio; as the page's own work, it is not offered as an API."""
    known = inspect.signature(event).parameters
    more: dict[str, Any] = {"api_visibility": "private"} if "api_visibility" in known else {"api_name": False}
    if "concurrency_limit" in known:  # or a page would wait for another one's handler
        more["concurrency_limit"] = None
    if js:
        more["js" if "js" in known else "_js"] = js
    return event(fn, inputs, outputs, show_progress="hidden", **more)


def _attempt(work: Callable[[], str]) -> str:
    """The notice of what was done, or of what is wrong."""
    try:
        return views.notice(work(), "good")
    except Exception as error:
        text = for_user(error)
        if text is None:
            logging.getLogger(__name__).exception("a fault of the page")
            text = f"{type(error).__name__}: {error}. This is a fault of ZOODiP; the console has more"
        return views.notice(text, "error")


class Page:
    """The page's components and what they do.

    Args:
        studio: what is behind it.
        prompt: the text box of the webui's prompt, into which a token can be put, if there is one.
        to_prompt: JavaScript that shows that text box.
    """

    def __init__(self, studio: Studio, prompt: Any = None, to_prompt: str = "") -> None:
        self.studio, self._prompt, self._to_prompt = studio, prompt, to_prompt
        self._installer = Installer()
        self._fields: dict[str, Any] = {}
        self._downloads = Path(tempfile.mkdtemp(prefix="zoodip-"))
        atexit.register(shutil.rmtree, self._downloads, ignore_errors=True)

    def build(self) -> None:
        """Add everything to the Blocks that are being made."""
        gr.HTML(views.STYLE)
        self._add_installation()
        with gr.Tabs():
            with gr.Tab("Train", elem_id="zoodip_train"), gr.Row():
                with gr.Column(scale=5, min_width=340):
                    self._add_form()
                with gr.Column(scale=4, min_width=340):
                    self._add_work()
            with gr.Tab("Runs", elem_id="zoodip_runs"):
                self._add_runs()
        self._wire_form()
        self._wire_pictures()
        self._wire_work()
        self._wire_runs()
        self._wire_page()

    # ------------------------------------------------------------ what is on it

    def _add_installation(self) -> None:
        with gr.Group(visible=False) as self._installation:
            self._installing = gr.HTML()
            with gr.Row():
                self._install = gr.Button("Install the trainer", variant="primary", elem_id="zoodip_install")
                self._stop_installing = gr.Button("Stop the installation")

    def _add_form(self) -> None:
        with gr.Row():
            for each in MODEL_FIELDS:
                self._add_field(each)
        self._refresh_models = gr.Button("Look for models again", size="sm")
        self._drop = gr.File(
            label="Pictures of the subject: drop three to ten here, captions (.txt) too",
            file_count="multiple",
            height=140,
            elem_id="zoodip_drop",
        )
        with gr.Row():
            self._folder = gr.Textbox(label="or a folder of the computer", placeholder="/home/me/photos/rex", scale=3)
            self._add_folder = gr.Button("Add the folder", size="sm", scale=1, min_width=80)
            self._bundled = gr.Dropdown(concepts.names(), label="or a subject for the embedded model", scale=3)
        self._gallery = gr.Gallery(
            label="Pictures as they are trained on; click one for its caption",
            columns=4,
            object_fit="contain",
            allow_preview=False,
            elem_id="zoodip_pictures",
        )
        self._chosen = gr.State("")
        with gr.Row():
            self._caption = gr.Textbox(
                label="Caption of the picture",
                placeholder="a photo of a {} on grass",
                info="Say what else is in it; {} is the token's place. Empty: by the template.",
                elem_id="zoodip_caption",
                scale=4,
            )
            self._remove = gr.Button("Remove it", size="sm", scale=1)
            self._clear = gr.Button("Remove all", size="sm", scale=1)
        with gr.Row():
            for each in TOKEN_FIELDS:
                self._add_field(each)
        for each in PACE_FIELDS:
            self._add_field(each)
        with gr.Accordion("Every setting", open=False):
            for title, fields in ADVANCED.items():
                gr.Markdown(f"**{title}**")
                for first in range(0, len(fields), 3):
                    with gr.Row():
                        for each in fields[first : first + 3]:
                            self._add_field(each)

    def _add_field(self, each: Field) -> None:
        common = {"label": each.label, "info": each.info, "value": each.value, "elem_id": f"zoodip_{each.name}"}
        made: Any
        if each.kind == form.MODEL:
            names = self.studio.models()
            made = gr.Dropdown(names, **{**common, "value": names[0]}, allow_custom_value=True, scale=3)
        elif each.kind == form.CHOICE and len(each.choices) == 3:
            made = gr.Radio(list(each.choices), **common)
        elif each.kind == form.CHOICE:
            made = gr.Dropdown(list(each.choices), **common)
        elif each.kind == form.TICK:
            made = gr.Checkbox(**common)
        elif each.kind == form.TEXT:
            made = gr.Textbox(**common)
        else:
            made = gr.Number(**common, precision=0 if each.kind == form.WHOLE else None)
        self._fields[each.name] = made

    def _add_work(self) -> None:
        with gr.Row():
            self._start = gr.Button("Start", variant="primary", elem_id="zoodip_start")
            self._stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="zoodip_stop")
            self._go_on = gr.Button("Continue", interactive=False, elem_id="zoodip_continue")
        with gr.Row():
            self._check = gr.Button("Check and predict memory", size="sm", elem_id="zoodip_check")
            self._sample_now = gr.Button("Sample now", size="sm", interactive=False)
            self._save_now = gr.Button("Save now", size="sm", interactive=False)
        self._overwrite = gr.Checkbox(
            label="Replace the file of this name in the embeddings folder",
            value=False,
            visible=self.studio.host.embeddings_folder() is not None,
            elem_id="zoodip_overwrite",
        )
        self._notice = gr.HTML(elem_id="zoodip_notice")
        self._status = gr.HTML(elem_id="zoodip_status")
        self._sample = gr.Image(label="Samples", type="pil", interactive=False, elem_id="zoodip_sample")
        self._seen = gr.State("")

    def _add_runs(self) -> None:
        self._runs_notice = gr.HTML(elem_id="zoodip_runs_notice")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self._refresh_runs = gr.Button("Look again", size="sm")
                self._runs = gr.Radio([], label="Runs, newest first", elem_id="zoodip_run_list")
            with gr.Column(scale=3, min_width=340):
                self._details = gr.HTML(elem_id="zoodip_run_details")
                self._before_after = gr.Image(
                    label="Before and after", type="pil", interactive=False, elem_id="zoodip_before_after"
                )
                self._curve = gr.Image(label="Loss", type="pil", interactive=False)
                self._file = gr.File(label="The token's file", interactive=False, elem_id="zoodip_file")
                self._add_run_buttons()

    def _add_run_buttons(self) -> None:
        has_folder = self.studio.host.embeddings_folder() is not None
        with gr.Row():
            self._use = gr.Button("Use in prompt", variant="primary", visible=has_folder, elem_id="zoodip_use")
            self._replace = gr.Checkbox(label="Replace a file of this name", value=False, visible=has_folder)
        with gr.Row():
            self._more = gr.Number(
                label="Continue to so many steps", info="0: as many as planned.", value=0, precision=0
            )
            self._continue_run = gr.Button("Continue this run", size="sm")
            self._show = gr.Button("Draw before and after", size="sm")
            self._delete = gr.Button("Delete", variant="stop", size="sm", elem_id="zoodip_delete")
        with gr.Row(visible=False) as self._really:
            self._yes = gr.Button("Yes, delete this run for good", variant="stop", elem_id="zoodip_yes")
            self._no = gr.Button("Keep it")

    # ------------------------------------------------------------ the form

    def _wire_form(self) -> None:
        for each in FIELDS:
            component = self._fields[each.name]
            keep = self._keeper(each.name)
            outputs = [self._gallery] if each.name in ("crop", "background") else None
            # A text is kept when it is left: key by key, an older one could arrive last.
            _listen(component.blur if each.kind == form.TEXT else component.input, keep, [component], outputs)
        _listen(self._refresh_models.click, self._models, None, [self._fields["model"]])

    def _keeper(self, name: str) -> Callable[[Any], Any]:
        def keep(value: Any) -> Any:
            self.studio.draft.keep({name: value})
            return self._tiles() if name in ("crop", "background") else None

        return keep

    def _models(self) -> Any:
        return gr.update(choices=self.studio.models())

    def _values(self) -> list[Any]:
        kept = form.filled({**self.studio.host.defaults(), **self.studio.draft.values()})
        place = NAMES.index("model")
        kept[place] = gr.update(choices=self.studio.models(), value=kept[place] or self.studio.models()[0])
        return kept

    # ------------------------------------------------------------ the pictures

    def _wire_pictures(self) -> None:
        told = [self._notice, self._gallery, self._chosen, self._caption]
        _listen(self._drop.upload, self._dropped, [self._drop], [*told, self._drop])
        _listen(self._add_folder.click, self._folder_added, [self._folder], told)
        _listen(self._bundled.input, self._concept_added, [self._bundled], [*told, *self._fields.values()])
        _listen(self._gallery.select, self._picture_chosen, None, [self._chosen, self._caption])
        for event in (self._caption.blur, self._caption.submit):
            _listen(event, self._captioned, [self._chosen, self._caption], [self._notice, self._gallery])
        _listen(self._remove.click, self._removed, [self._chosen], told)
        _listen(self._clear.click, self._cleared, None, told)

    def _tiles(self) -> list[tuple[Image.Image, str]]:
        """The draft's pictures as training will see them, with their captions."""
        values, tiles = form.read_named(self.studio.draft.values()), []
        for picture in self.studio.draft.pictures():
            try:
                tile = fit(open_picture(picture.path), _TILE, values["crop"])
            except ImagesError:  # it was whole when it was added
                continue
            tiles.append((tile, picture.caption.splitlines()[0] if picture.caption else picture.name))
        return tiles

    def _after(self, work: Callable[[], str]) -> tuple[Any, ...]:
        """Notice, gallery, and no picture chosen, after a change of the pictures."""
        return _attempt(work), self._tiles(), "", gr.update(value="", label="Caption of the picture")

    def _dropped(self, files: Any) -> tuple[Any, ...]:
        paths = [Path(getattr(file, "name", file)) for file in files or []]

        def add() -> str:
            return self._added(self.studio.draft.add([(path, path.name) for path in paths]))

        return (*self._after(add), gr.update(value=None))

    def _folder_added(self, folder: str) -> tuple[Any, ...]:
        def add() -> str:
            if not (folder or "").strip():
                raise ConfigError("give the path of a folder of pictures")
            return self._added(self.studio.draft.add_folder(Path(folder.strip()).expanduser()))

        return self._after(add)

    def _concept_added(self, name: str) -> tuple[Any, ...]:
        def add() -> str:
            concept = concepts.load(name)
            self.studio.draft.clear()
            skipped = self.studio.draft.add_concept(name)
            told = {"token": concept.token, "initializer": concept.initializer, "model": self.studio.models()[0]}
            self.studio.draft.keep(told)
            return self._added(skipped)

        return (*self._after(add), *self._values())

    def _added(self, skipped: Sequence[str]) -> str:
        text = f"{len(self.studio.draft.pictures())} pictures"
        return "\n".join([text, *(f"left out: {line}" for line in skipped)])

    def _picture_chosen(self, event: gr.SelectData) -> tuple[Any, ...]:
        pictures = self.studio.draft.pictures()
        index = event.index[0] if isinstance(event.index, list | tuple) else event.index
        if not isinstance(index, int) or not 0 <= index < len(pictures):
            return "", gr.update(value="")
        picture = pictures[index]
        return picture.name, gr.update(value=picture.caption, label=f"Caption of picture {index + 1}, {picture.name}")

    def _captioned(self, name: str, text: str) -> tuple[Any, ...]:
        if not name:
            return gr.update(), gr.update()
        before = {picture.name: picture.caption for picture in self.studio.draft.pictures()}
        if before.get(name) == text:
            return gr.update(), gr.update()

        def caption() -> str:
            self.studio.draft.caption(name, text or "")
            return ""

        return _attempt(caption), self._tiles()

    def _removed(self, name: str) -> tuple[Any, ...]:
        def remove() -> str:
            if not name:
                raise ConfigError("click the picture first that shall be removed")
            self.studio.draft.remove(name)
            return self._added([])

        return self._after(remove)

    def _cleared(self) -> tuple[Any, ...]:
        def clear() -> str:
            self.studio.draft.clear()
            return ""

        return self._after(clear)

    # ------------------------------------------------------------ the work

    def _wire_work(self) -> None:
        values = [*self._fields.values(), self._overwrite]
        _listen(self._start.click, self._started, values, [self._notice])
        _listen(self._check.click, self._checked, values, [self._notice])
        _listen(self._stop.click, self._stopped, None, [self._notice])
        _listen(self._go_on.click, self._gone_on, None, [self._notice])
        _listen(self._sample_now.click, lambda: self._asked("sample"), None, [self._notice])
        _listen(self._save_now.click, lambda: self._asked("save"), None, [self._notice])
        _listen(self._install.click, self._installed, None, [self._notice])
        _listen(self._stop_installing.click, self._installer.stop, None, None)

    def _given(self, values: Sequence[Any]) -> dict[str, Any]:
        """The form as it is now, which is kept."""
        *fields, overwrite = values
        given = form.read(fields)
        self.studio.draft.keep(given)
        return {**given, "overwrite": bool(overwrite)}

    def _started(self, *values: Any) -> str:
        def start() -> str:
            job = self.studio.start(self._given(values))
            return "" if job.message == "waiting" else f"{job.token}: {job.message}"

        return _attempt(start)

    def _checked(self, *values: Any) -> Iterator[str]:
        yield views.notice("checking ...")
        found: list[str] = []

        def check() -> str:
            found.append(views.checked(self.studio.check(self._given(values))))
            return ""

        told = _attempt(check)
        yield told or found[0]

    def _stopped(self) -> str:
        def stop() -> str:
            job = self.studio.jobs.newest()
            if job is None or not job.open:
                raise ConfigError("nothing is at work")
            self.studio.jobs.stop(job.id)
            return ""

        return _attempt(stop)

    def _gone_on(self) -> str:
        def go_on() -> str:
            run = self._to_go_on()
            if run is None:
                raise ConfigError("there is no run to go on with")
            self.studio.go_on(run.name)
            return ""

        return _attempt(go_on)

    def _asked(self, command: str) -> str:
        job = self.studio.jobs.newest()
        if job is not None:
            self.studio.jobs.ask(job.id, command)
        return ""

    def _to_go_on(self) -> Run | None:
        """The newest run that was not finished and is not at work."""
        return next((r for r in self.studio.runs() if r.can_go_on and not self.studio.jobs.busy(r.folder)), None)

    def _installed(self) -> str:
        def install() -> str:
            self._installer.start()
            return ""

        return _attempt(install)

    # ------------------------------------------------------------ the runs so far

    def _wire_runs(self) -> None:
        shown = [self._details, self._before_after, self._curve, self._file]
        _listen(self._refresh_runs.click, self._run_list, None, [self._runs])
        _listen(self._runs.change, self._run_chosen, [self._runs], shown)
        listed = [self._runs_notice, self._runs]
        _listen(self._continue_run.click, self._run_continued, [self._runs, self._more], [self._runs_notice])
        _listen(self._show.click, self._run_shown, [self._runs], [self._runs_notice])
        _listen(self._delete.click, lambda name: gr.update(visible=bool(name)), [self._runs], [self._really])
        _listen(self._no.click, lambda: gr.update(visible=False), None, [self._really])
        _listen(self._yes.click, self._run_deleted, [self._runs], [*listed, self._really])
        inputs, outputs = [self._runs, self._replace], [self._runs_notice]
        if self._prompt is not None:
            inputs, outputs = [*inputs, self._prompt], [*outputs, self._prompt]
        used = _listen(self._use.click, self._used, inputs, outputs)
        if self._to_prompt:
            leave = f"(told) => {{ if (String(told).includes('zoodip-good')) {{ {self._to_prompt} }} return []; }}"
            _listen(used.then, None, [self._runs_notice], None, js=leave)

    def _run_list(self) -> Any:
        return gr.update(choices=[(views.run_label(run), run.name) for run in self.studio.runs()])

    def _run_chosen(self, name: str | None) -> tuple[Any, ...]:
        try:
            run = self.studio.run(name or "")
        except ValueError:
            return "", None, None, None
        return views.run_details(run), _picture(run.before_after), _picture(run.loss_curve), self._download(run)

    def _download(self, run: Run) -> str | None:
        """A copy of the run's token under its own name, where gradio may serve it from."""
        if run.embedding is None:
            return None
        path = self._downloads / run.name / f"{run.token.strip('<>')}.safetensors"
        write_atomically(path, run.embedding.read_bytes())
        return str(path)

    def _run_continued(self, name: str, steps: float | None) -> str:
        def go_on() -> str:
            self.studio.go_on(name or "", int(steps or 0))
            return f"{name} goes on; see the tab Train"

        return _attempt(go_on)

    def _run_shown(self, name: str) -> str:
        def show() -> str:
            self.studio.show(name or "")
            return f"{name} will be drawn; choose it again when that is done"

        return _attempt(show)

    def _run_deleted(self, name: str) -> tuple[Any, ...]:
        def delete() -> str:
            self.studio.delete(name or "")
            return f"{name} is deleted"

        told = _attempt(delete)
        choices = [(views.run_label(run), run.name) for run in self.studio.runs()]
        return told, gr.update(choices=choices, value=None), gr.update(visible=False)

    def _used(self, name: str, replace: bool, prompt: str | None = None) -> Any:
        words: list[str] = []

        def use() -> str:
            path = self.studio.publish(name or "", replace=bool(replace))
            words.append(path.stem)
            return f"saved as {path}: write {path.stem} in a prompt"

        told = _attempt(use)
        if self._prompt is None:
            return told
        before = (prompt or "").rstrip(" ,")
        return told, ", ".join(filter(None, (before, *words))) if words else gr.update()

    # ------------------------------------------------------------ the page itself

    def _wire_page(self) -> None:
        root: Any = Context.root_block
        loaded = [*self._fields.values(), self._gallery, self._runs, self._seen]
        _listen(root.load, self._loaded, None, loaded)
        live = [self._status, self._sample, self._start, self._stop, self._go_on, self._sample_now, self._save_now]
        live += [self._installation, self._installing, self._install, self._stop_installing, self._seen]
        if hasattr(gr, "Timer"):
            _listen(gr.Timer(_EVERY).tick, self._look, [self._seen], live)
        else:
            root.load(self._look, [self._seen], live, every=_EVERY, show_progress="hidden", api_name=False)

    def _loaded(self) -> list[Any]:
        return [*self._values(), self._tiles(), self._run_list(), ""]

    def _look(self, seen: str) -> list[Any]:
        """What has changed since this page looked last."""
        job = self.studio.jobs.newest()
        state, sample = (f"{job.id} {job.state}", str(job.sample)) if job else ("", "")
        seen_state, _, seen_sample = (seen or "\n").partition("\n")
        working = bool(self._installer.running)
        now_state = f"{state} {working} {self._installer.failed}"
        status = views.status(job) if job else views.notice("Nothing was trained since this program started.")
        picture = _picture(job.sample if job else None) if sample != seen_sample else gr.update()
        buttons = self._buttons(job) if now_state != seen_state else [gr.update()] * 5
        return [status, picture, *buttons, *self._look_at_installation(), f"{now_state}\n{sample}"]

    def _buttons(self, job: Job | None) -> list[Any]:
        at_work, to_go_on = job is not None and job.open, self._to_go_on()
        learning = job is not None and job.state == RUNNING
        label = f"Continue {to_go_on.name} ({to_go_on.step:,} of {to_go_on.steps:,})" if to_go_on else "Continue"
        return [
            gr.update(value="Start the next" if at_work else "Start"),
            gr.update(interactive=at_work),
            gr.update(value=label, interactive=to_go_on is not None),
            gr.update(interactive=learning),
            gr.update(interactive=learning),
        ]

    def _look_at_installation(self) -> list[Any]:
        trainer, installer = self.studio.trainer(), self._installer
        needed = trainer.python is None or installer.running
        told = views.installation(trainer.why, installer.lines(), installer.running, installer.failed)
        return [
            gr.update(visible=needed),
            told if needed else "",
            gr.update(visible=not installer.running),
            gr.update(visible=installer.running),
        ]


def _picture(path: Path | None) -> Image.Image | None:
    """A picture that may be gone, or half of another program's making."""
    if path is None or path.suffix.lower() not in SUFFIXES:
        return None
    try:
        return open_picture(path)
    except ImagesError:
        return None


def make_page(studio: Studio) -> Any:
    """The page alone, as Blocks."""
    look = {"theme": _theme()} if "theme" in inspect.signature(gr.Blocks.__init__).parameters else {}
    with gr.Blocks(title="ZOODiP", analytics_enabled=False, **look) as blocks:
        gr.Markdown("# ZOODiP\nTeach Stable Diffusion a new subject or style, with forward passes only.")
        Page(studio).build()
    return blocks


def _theme() -> Any:
    """gradio's own, with the system's fonts: nothing is asked of another server."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def serve(studio: Studio, *, host: str, port: int, password: str = "") -> None:
    """Serve the page until Ctrl-C.

    Args:
        host: the address to listen on.
        port: of it.
        password: that is asked for, of the user ``zoodip``; none if empty.
    """
    page = make_page(studio).queue()
    known = inspect.signature(page.launch).parameters
    more: dict[str, Any] = {"theme": _theme()} if "theme" in known else {}
    if "footer_links" in known:
        more["footer_links"] = []
    page.launch(
        server_name=host,
        server_port=port,
        auth=("zoodip", password) if password else None,
        share=False,
        quiet=True,
        **more,
    )
