"""A part of the page's tab of runs: what several of them have learned, side by side."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..base.texts import how_many
from ..jobs.protocol import COMPARE, FAILED
from . import views
from .gradios import attempt, html, listen, picture_box, pictured, shown
from .studio import Studio


class Comparison:
    """Components and handlers.

    Args:
        studio: whose runs they are.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def build(self) -> None:
        """Add the components to the Blocks that are being made."""
        with gr.Accordion("Compare runs", open=False, elem_id="zoodip_comparison"):
            self._runs = gr.CheckboxGroup(
                [],
                label="Runs of one model, a row for each",
                info="The same subject learned at several values of alignment, say; the columns are the same seeds.",
                elem_id="zoodip_compared",
            )
            # gradio refuses a value that is not a choice any more, with words of its own.
            self._chosen = gr.Textbox("", visible=False)
            with gr.Row():
                self._prompt = gr.Textbox(
                    label="Prompt",
                    info="With {} for each run's token. Empty: the target prompt that they have, else a photo of a {}.",
                    max_lines=1,
                    scale=3,
                    elem_id="zoodip_compare_prompt",
                )
                self._until = gr.Textbox(
                    "1",
                    label="Shares of the steps",
                    info="In which a token stands in the prompt, its word in the rest. 1, 0.8, 0.6: a row each.",
                    max_lines=1,
                    scale=2,
                    elem_id="zoodip_compare_until",
                )
                self._compare = gr.Button("Compare", scale=1, elem_id="zoodip_compare")
            self._notice = html(elem_id="zoodip_compare_notice")
            self._sheet = picture_box(show_label=False, elem_id="zoodip_sheet")

    def wire(self, *events: Any) -> None:
        """Attach the handlers; after each of ``events`` the runs are looked at anew."""
        # In the browser, so that a quick press of the button finds it.
        listen(self._runs.change, None, [self._runs], [self._chosen], js="(names) => (names || []).join('\\n')")
        for event in events:
            listen(event, self.look, [self._chosen], [self._runs])
        listen(self._compare.click, self._compared, [self._chosen, self._prompt, self._until], [self._notice])

    def look(self, chosen: str | None = None) -> Any:
        """The runs that have a token, as they are now; ``chosen`` are the names of those that were, a line each."""
        choices = [(views.run_label(run), run.name) for run in self._studio.runs() if run.embedding is not None]
        names = [name for _, name in choices]
        if chosen is None:
            return gr.update(choices=choices)
        return gr.update(choices=choices, value=[name for name in chosen.splitlines() if name in names])

    def follow(self) -> list[Any]:
        """What :attr:`outputs` show once a job has changed its state."""
        job, told = self._studio.jobs.newest(), gr.update()
        if job is not None and job.kind == COMPARE and not job.open:
            told = shown(views.notice(job.message, "error") if job.state == FAILED else "")
        return [told, self.look(), pictured(self._studio.comparison)]

    @property
    def outputs(self) -> list[Any]:
        """The components that :meth:`follow` changes."""
        return [self._notice, self._runs, self._sheet]

    def _compared(self, chosen: str, prompt: str | None, until: str | None) -> Any:
        def work() -> str:
            names = chosen.splitlines()
            job = self._studio.compare(names, prompt or "", until or "")
            are = "is" if len(names) == 1 else "are"
            return views.queued(f"{how_many(len(names), 'run')} {are} being drawn; the picture appears here", job)

        return shown(attempt(work))
