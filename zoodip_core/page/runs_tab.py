"""The page's tab of the runs so far: what each has learned, and what can be done with it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..base.errors import TokenError
from ..base.files import write_atomically
from ..base.names import check_name, file_stem
from ..jobs.history import losses_of
from ..jobs.job import Job, Run
from ..jobs.protocol import FAILED
from ..train.run_folder import lora_beside
from . import views
from .gradios import attempt, html, listen, picture_box, pictured, shown
from .studio import Studio

REPLACE = "Replace the file of this name that is there already"


class Runs:
    """Components and handlers.

    Args:
        studio: whose runs they are.
        prompt: the text box of the webui's prompt, into which a token can be put, if there is one.
        to_prompt: JavaScript that shows that text box.
    """

    def __init__(self, studio: Studio, prompt: Any = None, to_prompt: str = "") -> None:
        self._studio, self._prompt, self._to_prompt = studio, prompt, to_prompt
        self._downloads = Path(tempfile.mkdtemp(prefix="zoodip-"))
        atexit.register(shutil.rmtree, self._downloads, ignore_errors=True)

    def build(self) -> None:
        """Add the components to the Blocks that are being made."""
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self._list = gr.Radio([], label="Runs, newest first", elem_id="zoodip_run_list")
                # gradio refuses a radio's value that is not a choice any more, with words of its own.
                self.chosen = gr.Textbox("", visible=False)
                self._refresh = gr.Button("Look again", size="sm", elem_id="zoodip_refresh_runs")
            with gr.Column(scale=3, min_width=300):
                self._hint = html(views.hint("Choose a run to see what it has learned."))
                self._notice = html(elem_id="zoodip_runs_notice")
                with gr.Column(visible=False, elem_id="zoodip_run") as self._box:
                    self._head = html(elem_id="zoodip_run_details")
                    self._before_after = picture_box(label="Before and after", elem_id="zoodip_before_after")
                    self._add_buttons()
                    self._grid = picture_box(label="Samples over time", elem_id="zoodip_run_grid")
                    self._chart = html(elem_id="zoodip_run_chart")
                    with gr.Row():
                        self._file = self._offered("The token's file", "file")
                        self._lora_file = self._offered("The LoRA's file, to be drawn with at a strength of 1", "lora")
                    self._add_more()
                    self._settings = html()

    @staticmethod
    def _offered(label: str, name: str) -> Any:
        return gr.File(label=label, interactive=False, visible=False, elem_id=f"zoodip_{name}", min_width=240)

    def _add_buttons(self) -> None:
        publish = "Use in prompt" if self._prompt is not None else "Put into the embeddings folder"
        with gr.Row():
            self._use = gr.Button(publish, variant="primary", visible=False, elem_id="zoodip_use")
            self._resume = gr.Button("Resume", visible=False, elem_id="zoodip_resume_run")
        with gr.Row():
            self._show = gr.Button("Draw before and after", size="sm", visible=False, elem_id="zoodip_show")
            self._delete = gr.Button("Delete", variant="stop", size="sm", elem_id="zoodip_delete")
        self._replace = gr.Checkbox(
            label=REPLACE,
            value=False,
            visible=False,
            elem_id="zoodip_replace",
        )
        with gr.Row(visible=False) as self._really:
            self._yes = gr.Button("Yes, delete this run for good", variant="stop", elem_id="zoodip_yes")
            self._no = gr.Button("Keep it", elem_id="zoodip_no")

    def _add_more(self) -> None:
        with gr.Accordion("Take more steps than planned", open=False, elem_id="zoodip_more"), gr.Row():
            self._steps = gr.Number(
                label="Steps in all",
                info="For runs of the preset paper, or with constant learning rate and mu, no checks and no weights.",
                value=0,
                precision=0,
                scale=2,
            )
            self._resume_to = gr.Button("Resume to as many", size="sm", scale=1)

    def wire(self, tab: Any) -> list[Any]:
        """Attach the handlers; ``tab`` is the one that this is in. Returns the events after which runs may differ."""
        chosen, told = [self.chosen], [self._notice]
        for event in (tab.select, self._refresh.click):
            listen(event, self.look, chosen, [self._list])
        listen(self._list.change, self._choose, [self._list], [self.chosen, self._notice, *self._details])
        listen(self._resume.click, self._resumed, chosen, told)
        listen(self._resume_to.click, self._resumed, [self.chosen, self._steps], told)
        listen(self._show.click, self._shown, chosen, told)
        listen(self._delete.click, lambda: gr.update(visible=True), None, [self._really])
        listen(self._no.click, lambda: gr.update(visible=False), None, [self._really])
        deleted = listen(self._yes.click, self._deleted, chosen, [self._notice, self._list, self._really])
        inputs, outputs = [self.chosen, self._replace], [self._notice, self._replace]
        if self._prompt is not None:
            inputs, outputs = [*inputs, self._prompt], [*outputs, self._prompt]
        used = listen(self._use.click, self._used, inputs, outputs)
        if self._to_prompt:
            leave = f"(told) => {{ if (String(told).includes('zoodip-good')) {{ {self._to_prompt} }} return []; }}"
            listen(used.then, None, [self._notice], None, js=leave)
        return [tab.select, self._refresh.click, deleted.then]

    # ------------------------------------------------------------ what is shown

    def look(self, name: str = "") -> Any:
        """The list as it is now, where the run ``name`` was chosen."""
        runs = self._studio.runs()
        label = "Runs, newest first" if runs else "No runs yet: the first one starts on the tab Train"
        gone = {"value": None} if name and name not in [run.name for run in runs] else {}
        return gr.update(choices=[(views.run_label(run), run.name) for run in runs], label=label, **gone)

    def follow(self, name: str) -> list[Any]:
        """What :attr:`outputs` show once a job has changed its state; ``name`` is the run that is chosen."""
        job = self._studio.jobs.newest()
        told = gr.update()
        if job is not None and not job.open:
            failed = job.state == FAILED and job.folder.name == name
            told = shown(views.notice(f"{name}: {job.message}", "error") if failed else "")
        return [told, self.look(name), *self._describe(name)]

    @property
    def outputs(self) -> list[Any]:
        """The components that :meth:`follow` changes."""
        return [self._notice, self._list, *self._details]

    @property
    def _details(self) -> list[Any]:
        box = [self._hint, self._box, self._head, self._before_after, self._use, self._resume, self._show]
        return [*box, self._replace, self._really, self._grid, self._chart, self._file, self._lora_file, self._settings]

    def _choose(self, name: str | None) -> list[Any]:
        return [name or "", shown("") if name else gr.update(), *self._describe(name or "")]

    def _describe(self, name: str) -> list[Any]:
        try:
            run = self._studio.run(name)
        except ValueError:
            return [gr.update(visible=True), gr.update(visible=False)] + [gr.update()] * (len(self._details) - 2)
        has_token, has_folder = run.embedding is not None, self._studio.host.embeddings_folder() is not None
        losses, drawn = losses_of(run.run) if run.settings else [], "Before and after"
        return [
            gr.update(visible=False),
            gr.update(visible=True),
            shown(views.run_head(run)),
            {**pictured(run.before_after or run.sample), "label": drawn if run.before_after else "Samples"},
            gr.update(visible=has_token and has_folder),
            gr.update(visible=run.can_resume, value=f"Resume at step {run.step:,}"),
            gr.update(visible=has_token, value="Draw it again" if run.before_after else "Draw before and after"),
            gr.update(visible=False, value=False),
            gr.update(visible=False),
            pictured(run.grid),
            shown(views.framed(views.chart(losses)) if losses else ""),
            gr.update(value=self._downloads_of(run), visible=has_token),
            gr.update(value=self._download(run, lora=True), visible=run.lora is not None),
            shown(views.run_details(run)),
        ]

    def _downloads_of(self, run: Run) -> str | list[str] | None:
        """Copies of the run's tokens, of one alone its own."""
        copies = [self._download(run, token) for token in run.learned]
        found = [copy for copy in copies if copy]
        return found if len(found) > 1 else next(iter(found), None)

    def _download(self, run: Run, token: str | None = None, *, lora: bool = False) -> str | None:
        """A copy of a token, the first one if None, or of the LoRA, under its name, where gradio may serve it from."""
        name = next(iter(run.learned), "") if token is None else token
        file = run.lora if lora else run.learned.get(name)
        if file is None:
            return None
        try:
            check_name(name)  # it is what a file says
            stem = file_stem(name)
        except TokenError:
            stem = "token"
        own = self._downloads / run.name / f"{stem}.safetensors"
        path = lora_beside(own) if lora else own
        try:
            write_atomically(path, file.read_bytes())
        except OSError:  # it vanished, or there is no room
            return None
        return str(path)

    # ------------------------------------------------------------ what is done

    def _resumed(self, name: str, steps: float | None = 0) -> Any:
        return self._queued(lambda: self._studio.resume(name, int(steps or 0)), f"{name} is resumed; see the tab Train")

    def _shown(self, name: str) -> Any:
        return self._queued(lambda: self._studio.show(name), f"{name} is being drawn; the pictures appear here")

    @staticmethod
    def _queued(queue: Callable[[], Job], text: str) -> Any:
        return shown(attempt(lambda: views.queued(text, queue())))

    def _deleted(self, name: str) -> tuple[Any, ...]:
        def delete() -> str:
            self._studio.delete(name)
            return f"{name} is deleted"

        return shown(attempt(delete)), self.look(name), gr.update(visible=False)

    def _used(self, name: str, replace: bool, prompt: str | None = None) -> Any:
        before = (prompt or "").rstrip(" ,")
        words: list[str] = []

        def use() -> str:
            published = self._studio.publish(name, replace=bool(replace))
            words.append(published.words_beside(before))
            return str(published)

        told = attempt(use)
        asked = gr.update(visible=not words and self._is_replaceable(name), value=False)
        if self._prompt is None:
            return shown(told), asked
        return shown(told), asked, ", ".join(filter(None, (before, *words))) if words else gr.update()

    def _is_replaceable(self, name: str) -> bool:
        try:
            run = self._studio.run(name)
        except ValueError:
            return False
        return self._studio.replaceable(run.token, run.lora is not None)
