"""The page, as gradio Blocks that are built alike on gradio 3.41, 4.40 and 6: the webui's tab and the page alone.

All that it does is the :class:`Studio`'s, all that it says is in :mod:`views`, what gradios call differently is in
:mod:`gradios`. What is on it is kept by the studio: a page that is loaded again, or another one, shows the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from ..base.errors import ConfigError
from ..base.origins import OnlyOwnPages
from ..data.images import MAX_FILE_BYTES
from ..jobs.job import Job, Run
from ..jobs.job_folder import WITH_WEIGHTS
from ..jobs.protocol import ASIDE, CAPTION, RUNNING, STOPPING, WAITING
from ..train.setting import CHOICE, SWITCH, TEXT, WHOLE
from . import form, views
from .comparison import Comparison
from .form import Field
from .gradios import UNSEEN, attempt, edited, fitting, html, listen, picture_box, pictured, shown
from .pictures_tab import FOLDERS, FOLLOWED, Pictures
from .runs_tab import REPLACE, Runs
from .studio import Studio

_LOOK = """() => {
  const app = document.querySelector('gradio-app'), root = (app && app.shadowRoot) || document
  const look = () => {
    const page = root.querySelector('#zoodip_page')
    if (page && page.offsetParent && !document.hidden) root.querySelector('#zoodip_look').click()
  }
  look()
  setInterval(look, 1000)
  return []
}"""
"""Has a page that is seen look at the job once a second. gradio's own timers look from every tab of a webui as well,
and in 3.41 each keeps a connection open."""
CHOOSE_ONE = "Choose a Stable Diffusion under 1, Model."
FIND_ONE = (
    "No other is in the list under 1, Model: put a checkpoint of Stable Diffusion where they are looked for (of a "
    "webui models/Stable-diffusion, of the page alone the folder of --models) and press Look again."
)
_PAGES = 16
"""That may be open at once where each takes a thread."""
_WAITING = 200
"""Requests for which there may be no thread yet; further ones are refused."""


class Page:
    """The page's components and what they do.

    Args:
        studio: what is behind it.
        prompt: the text box of the webui's prompt, into which a token can be put, if there is one.
        to_prompt: JavaScript that shows that text box.
    """

    def __init__(self, studio: Studio, prompt: Any = None, to_prompt: str = "") -> None:
        self.studio = studio
        self._pictures, self._runs = Pictures(studio), Runs(studio, prompt, to_prompt)
        self._comparison, self._installer = Comparison(studio), studio.installer
        self._fields: dict[str, Any] = {}

    def build(self) -> None:
        """Add everything to the Blocks that are being made."""
        html(views.STYLE, elem_classes=[UNSEEN])
        self._add_installation()
        with gr.Tabs(elem_id="zoodip_page"):
            with gr.Tab("Train", elem_id="zoodip_train"), gr.Row():
                with gr.Column(scale=6, min_width=320):
                    self._add_form()
                with gr.Column(scale=5, min_width=320, elem_id="zoodip_work"):
                    self._add_work()
            with gr.Tab("Runs", elem_id="zoodip_runs") as runs:
                self._runs.build()
                self._comparison.build()
        self._wire_form()
        self._pictures.wire(list(self._fields.values()), self._values)
        self._wire_work()
        self._comparison.wire(*self._runs.wire(runs))
        self._wire_page()

    # ------------------------------------------------------------ what is on it

    def _add_installation(self) -> None:
        with gr.Column(visible=False, elem_id="zoodip_installation") as self._installation:
            self._installing = html(elem_id="zoodip_installing")
            with gr.Row():
                self._install = gr.Button("Install the trainer", variant="primary", elem_id="zoodip_install")
                self._stop_installing = gr.Button("Stop the installation", visible=False)
            self._install_notice = html(elem_id="zoodip_install_notice")

    def _add_form(self) -> None:
        html(views.heading(1, "Model"))
        with gr.Row():
            self._add_fields("model")
            self._refresh_models = gr.Button(
                "Look again", size="sm", scale=1, min_width=100, elem_id="zoodip_refresh_models"
            )
        html(views.heading(2, "Pictures of the subject"))
        self._pictures.build()
        html(views.heading(3, "Token and preset"))
        with gr.Row():
            self._add_fields("token")
        self._add_fields("target")
        with gr.Row():
            self._add_fields("preset")
        self._add_fields("device")
        with gr.Accordion("Every setting", open=False, elem_id="zoodip_settings"):
            for title, fields in form.groups().items():
                gr.Markdown(f"**{title}**")
                for first in range(0, len(fields), 3):
                    with gr.Row():
                        for each in fields[first : first + 3]:
                            self._add_field(each)

    def _add_fields(self, place: str) -> None:
        for each in form.in_sight()[place]:
            self._add_field(each)

    def _add_field(self, each: Field) -> None:
        about = each.setting
        common = {"label": about.label, "info": about.explained, "value": each.value, "elem_id": f"zoodip_{each.name}"}
        made: Any
        if each.name == "model":
            names = self.studio.models()
            made = gr.Dropdown(names, **{**common, "value": names[0]}, allow_custom_value=True, scale=4, min_width=240)
        elif each.kind == CHOICE and len(each.choices) == 3:
            made = gr.Radio(list(each.choices), **common)
        elif each.kind == CHOICE:
            made = gr.Dropdown(list(each.choices), **common, min_width=240)
        elif each.kind == SWITCH:
            made = gr.Checkbox(**common, elem_classes=["zoodip-switch"])
        elif each.offered:
            made = gr.Dropdown(list(each.offered), **common, allow_custom_value=True)
        elif each.kind == TEXT:
            made = gr.Textbox(**common, max_lines=1)
        else:
            made = gr.Number(**common, precision=0 if each.kind == WHOLE else None)
        self._fields[each.name] = made

    def _add_work(self) -> None:
        html(views.heading(4, "Train"))
        self._hint = html(elem_id="zoodip_hint")
        with gr.Row():
            self._start = gr.Button("Start", variant="primary", elem_id="zoodip_start", min_width=110)
            self._stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="zoodip_stop", min_width=110)
            self._resume = gr.Button("Resume", visible=False, elem_id="zoodip_resume", min_width=110)
        with gr.Row():
            small: dict[str, Any] = {"size": "sm", "min_width": 110}
            self._check = gr.Button("Check, predict memory", elem_id="zoodip_check", **small)
            self._sample_now = gr.Button("Sample now", visible=False, elem_id="zoodip_sample_now", **small)
            self._save_now = gr.Button("Save now", visible=False, elem_id="zoodip_save_now", **small)
            self._drop_waiting = gr.Button("Drop what waits", visible=False, elem_id="zoodip_drop_waiting", **small)
        self._notice = html(elem_id="zoodip_notice")
        self._overwrite = gr.Checkbox(
            label=REPLACE,
            value=False,
            visible=False,
            elem_id="zoodip_overwrite",
        )
        self._status = html(elem_id="zoodip_status")
        self._sample = picture_box(label="Samples", elem_id="zoodip_sample")
        self._grid = picture_box(label="Samples over time", elem_id="zoodip_grid")
        self._look_now = gr.Button("Look", elem_id="zoodip_look", elem_classes=[UNSEEN])
        self._seen = gr.State({})

    # ------------------------------------------------------------ the form

    def _wire_form(self) -> None:
        follows = dict.fromkeys(FOLLOWED, self._pictures.gallery)
        follows["preset"] = self._fields["learn_weights"]
        for each in form.fields():
            component, follower = self._fields[each.name], follows.get(each.name)
            outputs = [follower] if follower else None
            listen(edited(component), self._keeper(each), [component], outputs, last=True)
        listen(self._refresh_models.click, self._models, None, [self._fields["model"]])

    def _keeper(self, each: Field) -> Callable[[Any], Any]:
        def keep(value: Any) -> Any:
            self.studio.draft.keep({each.name: form.sound(each, value)})
            if each.name == "preset":
                return self._switch(form.read_named(self._kept()))
            return gr.update(value=self._pictures.tiles()) if each.name in FOLLOWED else None

        return keep

    def _kept(self) -> dict[str, Any]:
        return {**self.studio.host.defaults(), **self.studio.draft.values()}

    @staticmethod
    def _switch(values: Mapping[str, Any]) -> Any:
        """The switch of learning weights, which a preset turns on as well."""
        decided = values["preset"] == WITH_WEIGHTS
        return gr.update(value=decided or values["learn_weights"], interactive=not decided)

    def _models(self) -> Any:
        return gr.update(choices=self.studio.models())

    def _values(self) -> list[Any]:
        kept, models = form.read_named(self._kept()), self.studio.models()
        shown = {
            "model": gr.update(choices=models, value=kept["model"] or models[0]),
            "learn_weights": self._switch(kept),
        }
        return list({**kept, **shown}.values())

    # ------------------------------------------------------------ the work

    def _wire_work(self) -> None:
        values, told = [*self._fields.values(), self._overwrite], [self._notice]
        listen(self._start.click, self._started, values, [self._notice, self._overwrite])
        listen(self._check.click, self._checked, values, [self._notice, self._overwrite])
        listen(self._stop.click, self._stopped, None, told)
        listen(self._resume.click, self._resumed, None, told)
        listen(self._sample_now.click, lambda: self._asked("sample"), None, told)
        listen(self._save_now.click, lambda: self._asked("save"), None, told)
        listen(self._drop_waiting.click, self._dropped_waiting, None, told)
        listen(self._install.click, self._installed, None, [self._install_notice])
        listen(self._stop_installing.click, self._installer.stop, None, None)

    def _given(self, values: Sequence[Any]) -> dict[str, Any]:
        """The form as it is now, which is kept."""
        *fields, overwrite = values
        given = form.read(fields)
        decided = {"learn_weights"} if given["preset"] == WITH_WEIGHTS else set()
        self.studio.draft.keep({name: value for name, value in given.items() if name not in decided})
        return {**given, "model": given["model"] or self.studio.models()[0], "overwrite": bool(overwrite)}

    def _started(self, *values: Any) -> tuple[Any, Any]:
        def start() -> str:
            job = self.studio.start(self._given(values))
            return f"{job.token}: {job.message}" if job.behind else ""

        told = attempt(start)
        return shown(told), self._asked_to_replace(values, "zoodip-error" not in told)

    def _checked(self, *values: Any) -> Iterator[tuple[Any, Any]]:
        yield shown(views.notice("checking ...")), gr.update()
        found: list[str] = []

        def check() -> str:
            found.append(views.checked(self.studio.check(self._given(values))))
            return ""

        told = attempt(check)
        yield shown(told or found[0]), self._asked_to_replace(values, not told)

    def _asked_to_replace(self, values: Sequence[Any], done: bool) -> Any:
        """The box that allows to replace a token's file: there while it is in question."""
        given = form.read(values[:-1])
        in_question = self.studio.replaceable(str(given["token"]).strip(), self.studio.learns_weights(given))
        return gr.update(visible=in_question) if not done else gr.update(visible=in_question and bool(values[-1]))

    def _stopped(self) -> Any:
        def stop() -> str:
            job = self.studio.jobs.newest()
            if job is None or not job.open:
                raise ConfigError("nothing is at work")
            self.studio.jobs.stop(job.id)
            return ""

        return shown(attempt(stop))

    def _resumed(self) -> Any:
        def resume() -> str:
            run = self._resumable()
            if run is None:
                raise ConfigError("there is no run to resume")
            job = self.studio.resume(run.name)
            return f"{job.token}: {job.message}" if job.behind else ""

        return shown(attempt(resume))

    def _dropped_waiting(self) -> Any:
        def drop() -> str:
            for job in self._waiting():
                self.studio.jobs.stop(job.id)
            return ""

        return shown(attempt(drop))

    def _asked(self, command: str) -> Any:
        job = self.studio.jobs.newest()
        if job is not None:
            self.studio.jobs.ask(job.id, command)
        return shown("")

    def _resumable(self) -> Run | None:
        """The newest run that was not finished and is not at work."""
        return next((r for r in self.studio.runs() if r.can_resume and not self.studio.jobs.busy(r.folder)), None)

    def _waiting(self) -> list[Job]:
        """Jobs behind the one that is shown."""
        first = self.studio.jobs.newest()
        return [job for job in self.studio.jobs.all() if job.state == WAITING and first and job.id != first.id]

    def _installed(self) -> Any:
        def install() -> str:
            self._installer.start()
            return ""

        return shown(attempt(install))

    # ------------------------------------------------------------ the page itself

    def _wire_page(self) -> None:
        root: Any = Context.root_block
        pictures = [*self._pictures.outputs, self._pictures.bundled, self._pictures.caption_with]
        loaded = listen(root.load, self._loaded, None, [*self._fields.values(), *pictures])
        listen(loaded.then, None, js=_LOOK)
        listen(loaded.then, None, js=FOLDERS)
        live = [
            self._seen,
            self._hint,
            self._status,
            self._sample,
            self._grid,
            *self._runs.outputs,
            *self._comparison.outputs,
        ]
        live += self._pictures.followed
        live += [self._start, self._stop, self._resume, self._sample_now, self._save_now, self._drop_waiting]
        live += [self._installation, self._installing, self._install, self._stop_installing]
        listen(
            self._look_now.click, self._look, [self._seen, self._runs.chosen, self._pictures.chosen], live, queue=False
        )

    def _loaded(self) -> list[Any]:
        return [*self._values(), *self._pictures.look(), self._pictures.subject(), self._pictures.model()]

    def _look(self, seen: dict[str, Any], run: str, picture: str = "") -> list[Any]:
        """What has changed since this page looked last, when it saw ``seen``; run and picture are the chosen ones."""

        def fresh(name: str, now: Any, make: Callable[[], list[Any]]) -> list[Any]:
            if name in seen and seen[name][0] == now:
                return [gr.update()] * seen[name][1]
            made = make()
            seen[name] = (now, len(made))
            return made

        job, waiting = self.studio.jobs.newest(), self._waiting()
        state = (job.id, job.state, len(waiting)) if job else ()
        status = views.status(job, waiting) if job else ""
        sample, grid = (job.sample, job.grid) if job else (None, None)
        captions = next((job for job in reversed(self.studio.jobs.all()) if job.kind == CAPTION), None)
        written = (captions.id, captions.state) if captions else None
        about = self._on_page()
        return [
            seen,
            *fresh("hint", about, lambda: [shown(views.notice(self._told_before(about[0]), "warning"))]),
            *fresh("status", (status, state), lambda: [shown(status or views.idle(self._resumable()))]),
            *fresh("sample", sample, lambda: [pictured(sample)]),
            *fresh("grid", (grid, sample), lambda: [pictured(grid)]),
            *fresh("runs", state, lambda: [*self._runs.follow(run), *self._comparison.follow()]),
            *fresh("captions", written, lambda: self._pictures.follow(captions, picture)),
            *fresh("buttons", state, lambda: self._buttons(job, len(waiting))),
            *self._look_at_installation(seen, fresh),
        ]

    def _on_page(self) -> tuple[str, list[Path]]:
        """The model and the pictures: where they are the same, so is what is to be said of them."""
        return str(self._kept().get("model") or ""), [each.path for each in self.studio.draft.pictures()]

    def _told_before(self, model: str) -> str:
        """What somebody should know before a training of what is on the page begins; empty if there is nothing."""
        others = self.studio.host.models()  # of folders that may be large or far away: not at each look
        hint = self.studio.hint(model or self.studio.models()[0])
        return f"{hint[0].upper()}{hint[1:]}. {CHOOSE_ONE if others else FIND_ONE}" if hint else ""

    def _buttons(self, job: Job | None, waiting: int) -> list[Any]:
        at_work, resumable = job is not None and job.open, self._resumable()
        learning = job is not None and job.state == RUNNING and job.kind not in ASIDE
        label = f"Resume {resumable.name}" if resumable else "Resume"
        return [
            gr.update(value="Start the next" if at_work else "Start"),
            gr.update(value="End at once" if job and job.state == STOPPING else "Stop", interactive=at_work),
            gr.update(value=label, visible=resumable is not None and not at_work),
            gr.update(visible=learning),
            gr.update(visible=learning),
            gr.update(visible=waiting > 0),
        ]

    def _look_at_installation(self, seen: Mapping[str, Any], fresh: Callable[..., list[Any]]) -> list[Any]:
        """The installation, until a page has seen that there is a trainer."""
        installer = self._installer
        if seen.get("installation", [None])[0] == "ready" and not installer.running:
            return [gr.update()] * 4
        trainer = self.studio.trainer()
        if trainer.python is not None and not installer.running:
            hidden = [gr.update(visible=False), shown(""), gr.update(), gr.update(visible=False)]
            return fresh("installation", "ready", lambda: hidden)
        told = views.installation(trainer.why, installer.lines(), installer.running, installer.failed)
        return fresh(
            "installation",
            (told, installer.running),
            lambda: [
                gr.update(visible=True),
                shown(told),
                gr.update(visible=not installer.running),
                gr.update(visible=installer.running),
            ],
        )


def make_page(studio: Studio) -> Any:
    """The page alone, as Blocks."""
    look = fitting(gr.Blocks.__init__, theme=_theme(), delete_cache=(3600, 86400))
    with gr.Blocks(title="ZOODiP", analytics_enabled=False, **look) as blocks:
        html(views.TITLE)
        Page(studio).build()
    return blocks


def _theme() -> Any:
    """gradio's own, with the system's fonts: nothing is asked of another server."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def launch(studio: Studio, *, host: str, port: int, password: str = "") -> Any:
    """Begin to serve the page, and return its Blocks.

    Args:
        host: the address to listen on.
        port: of it.
        password: that is asked for, of the user ``zoodip``; none if empty.
    """
    from starlette.middleware import Middleware

    queue = fitting(gr.Blocks.queue, default_concurrency_limit=_PAGES) or {"concurrency_count": _PAGES}
    page = make_page(studio).queue(max_size=_WAITING, **queue)
    page.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        auth=("zoodip", password) if password else None,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(OnlyOwnPages, by_any_name=bool(password))]},
        **fitting(page.launch, max_file_size=MAX_FILE_BYTES, theme=_theme(), footer_links=[], show_api=False),
    )
    return page


def serve(
    studio: Studio, *, host: str, port: int, password: str = "", ready: Callable[[], None] = lambda: None
) -> None:
    """Serve the page until Ctrl-C, as :func:`launch` begins to; ``ready`` is called once it is served."""
    page = launch(studio, host=host, port=port, password=password)
    ready()
    page.block_thread()
