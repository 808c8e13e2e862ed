"""The one seam to the webui's modules: models, embeddings, queue, memory, progress, interrupts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from zoodip_core.jobs import Job

from .settings import value

_TASK = "task(zoodip)"


class Webui:
    """The :class:`zoodip_core.studio.Host` that A1111, Forge and their kin are."""

    name = "webui"

    def __init__(self) -> None:
        self._previewed: Path | None = None

    # ------------------------------------------------------------ files

    def home(self) -> Path:
        from modules.paths_internal import data_path

        return Path(data_path) / str(value("folder", "zoodip") or "zoodip")

    def models(self) -> dict[str, Path]:
        from modules import sd_models

        return {info.name: Path(info.filename) for info in list(sd_models.checkpoints_list.values())}

    def embeddings_folder(self) -> Path | None:
        from modules import shared

        return Path(shared.cmd_opts.embeddings_dir)

    def embeddings_changed(self) -> None:
        from modules import sd_models
        from modules.call_queue import queue_lock

        with queue_lock:  # a generation reads the lists that are made anew here
            _read_embeddings(sd_models.model_data.sd_model)

    def python(self) -> str:
        return str(value("python", "") or "")

    def defaults(self) -> dict[str, Any]:
        return {
            "pace": value("pace", "paper"),
            "weights": value("weights", "int8"),
            "keep_copy": value("keep_copy", False),
        }

    # ------------------------------------------------------------ the device

    @contextlib.contextmanager
    def device(self, waiting: Callable[[str], None]) -> Iterator[None]:
        from modules import progress, shared
        from modules.call_queue import queue_lock

        if not queue_lock.acquire(blocking=False):
            waiting("waiting for the webui, which is generating")
            queue_lock.acquire()
        try:
            shared.state.begin(job=_TASK)
            progress.start_task(_TASK)
            with _room():
                yield
        finally:
            shared.state.interrupted = False
            shared.state.textinfo = None
            progress.finish_task(_TASK)
            shared.state.end()
            queue_lock.release()

    def interrupted(self) -> bool:
        from modules import shared

        return bool(shared.state.interrupted)

    def show(self, job: Job) -> None:
        from modules import shared

        state = shared.state
        state.job_count, state.sampling_steps, state.sampling_step = 1, job.steps, job.step
        state.textinfo = f"ZOODiP, {job.token}: {job.message}" + (
            f", step {job.step} of {job.steps}" if job.steps else ""
        )
        if job.sample is not None and job.sample != self._previewed:
            self._previewed = job.sample
            with contextlib.suppress(OSError), Image.open(job.sample) as picture:
                state.assign_current_image(picture.convert("RGB"))


def _read_embeddings(model: Any) -> None:
    """Make the lists anew that prompts are read with; without a model there is none, and its loading makes them."""
    from modules import sd_hijack

    if model is None:
        return
    engines = [getattr(model, f"text_processing_engine{which}", None) for which in ("", "_l", "_g")]
    databases = [found for engine in engines if (found := getattr(engine, "embeddings", None)) is not None]
    for database in databases:  # Forge: one for each text encoder
        database.load_textual_inversion_embeddings()
    if not databases and hasattr(sd_hijack.model_hijack, "embedding_db"):  # A1111
        sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """The webui's models leave the graphics card, and the one in use comes back."""
    from modules import devices, sd_models

    data = sd_models.model_data
    kept = getattr(data, "loaded_sd_models", None)
    if kept is None:  # Forge, which loads what it needs when it needs it
        sd_models.unload_model_weights()
    else:
        for model in kept:
            sd_models.send_model_to_cpu(model)
    devices.torch_gc()
    try:
        yield
    finally:
        if kept is not None and data.sd_model is not None:
            sd_models.send_model_to_device(data.sd_model)
