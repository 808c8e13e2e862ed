"""ZOODiP in A1111, Forge and their kin: a tab, settings, and an interface for scripts.

The webui's extension folder is on the path of imports only while its scripts load, so what is needed later is
imported here.
"""

from __future__ import annotations

from typing import Any

from zoodip_core.page.studio import Studio

from .host import Webui

_STUDIO = Studio(Webui())
"""One for the process: a training goes on while the webui builds its page anew."""


class _Tab:
    """Where the page goes: among the training tabs where the webui calls for those, else a tab of its own."""

    def __init__(self) -> None:
        self._built = False
        self._prompt: Any = None

    def on_component(self, component: Any, **given: Any) -> None:
        """Remember the box of the prompt, into which a token can be put."""
        if given.get("elem_id") == "txt2img_prompt":
            self._prompt = component

    def on_train_tabs(self, _params: Any) -> None:
        """Among the training tabs, whose Blocks are being made."""
        import gradio as gr

        with gr.Tab("ZOODiP", elem_id="zoodip_tab"):
            self._build()

    def on_tabs(self) -> list[Any]:
        """Called after the training tabs, if those are called for at all."""
        if self._built:
            return []
        import gradio as gr

        with gr.Blocks(analytics_enabled=False) as blocks:
            self._build()
        return [(blocks, "ZOODiP", "zoodip_tab")]

    def _build(self) -> None:
        from gradio.context import Context

        from zoodip_core.page.page import Page

        self._built = True
        blocks: Any = Context.root_block.blocks  # type: ignore[union-attr] # they are being made
        before = set(blocks)
        Page(_STUDIO, self._prompt, "switch_to_txt2img();").build()
        for number, component in blocks.items():
            if number not in before:
                component.do_not_save_to_config = True  # the page keeps its values itself


def register() -> None:
    """Tell the webui what to call; once each time it loads its scripts."""
    from modules import script_callbacks

    from . import api, settings

    tab = _Tab()
    script_callbacks.on_after_component(tab.on_component)
    if hasattr(script_callbacks, "on_ui_train_tabs"):
        script_callbacks.on_ui_train_tabs(tab.on_train_tabs)
    script_callbacks.on_ui_tabs(tab.on_tabs)
    script_callbacks.on_ui_settings(settings.add)
    script_callbacks.on_app_started(lambda _demo, app: api.add(app, _STUDIO))
