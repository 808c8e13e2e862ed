"""The one seam to the webui's modules: models, embeddings, LoRAs, queue, memory, progress, interrupts.

Those modules are imported when they are needed: the webui may make them anew, and some import this extension's scripts.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from zoodip_core.base.origins import is_loopback
from zoodip_core.jobs.job import Job
from zoodip_core.model.checkpoints import SUFFIXES

from .settings import value

_TASK = "task(zoodip)"
_ITS_TURN = "the webui's model leaves the graphics card"
_CACHES = {
    "StableDiffusionProcessing": ("cached_c", "cached_uc"),
    "StableDiffusionProcessingTxt2Img": ("cached_hr_c", "cached_hr_uc"),
}
"""Where the webui keeps what the last prompts meant."""
_REPLACED = "replaced"
"""In place of the LoRAs that a layer of A1111 has in it: no prompt names it so, and the layer is made anew."""


class Webui:
    """The :class:`zoodip_core.page.studio.PageHost` that A1111, Forge and their kin are."""

    shares_page = True

    def __init__(self) -> None:
        self._previewed: Path | None = None

    # ------------------------------------------------------------ files

    def home(self) -> Path:
        from modules.paths_internal import data_path

        return Path(data_path).absolute() / Path(str(value("folder", "") or "zoodip")).expanduser()

    def models(self) -> dict[str, Path]:
        from modules import sd_models

        found = {info.name: Path(info.filename) for info in list(sd_models.checkpoints_list.values())}
        return {name: path for name, path in found.items() if path.suffix.lower() in SUFFIXES}  # Forge lists GGUF too

    def embeddings_folder(self) -> Path | None:
        from modules import shared

        return Path(shared.cmd_opts.embeddings_dir).absolute()

    def embeddings_changed(self) -> None:
        """Have the next generation find the files: now, or while one runs, in the turn after it."""
        _between_generations(_read_embeddings)

    def loras_folder(self) -> Path | None:
        """Where the webui's own extension looks for them; none where that extension is turned off."""
        from modules import shared

        folder = getattr(shared.cmd_opts, "lora_dir", None)
        return Path(folder).absolute() if folder else None

    def loras_changed(self) -> None:
        """As :meth:`embeddings_changed`."""
        _between_generations(_read_loras)

    def python(self) -> str:
        return str(value("python", "") or "")

    def defaults(self) -> dict[str, Any]:
        from modules import shared

        from zoodip_core.page.form import devices

        number = str(getattr(shared.cmd_opts, "device_id", None) or "")  # A1111's, for the card that it computes on
        own = {"device": f"cuda:{number}"} if number.isdigit() and f"cuda:{number}" in devices() else {}
        return {
            **own,
            "preset": value("preset", "default"),
            "weights": value("weights", "int8"),
            "keep_copy": value("keep_copy", True),
        }

    def for_its_user(self) -> bool:
        return not _is_open()

    # ------------------------------------------------------------ the device

    @contextlib.contextmanager
    def device(self, waiting: Callable[[str], None]) -> Iterator[None]:
        from modules import progress
        from modules.call_queue import queue_lock

        queued = not queue_lock.acquire(blocking=False)
        if queued:
            waiting("waiting for the webui, which is at work")
            progress.add_task_to_queue(_TASK)
            queue_lock.acquire()
        with contextlib.ExitStack() as held:  # whatever fails on the way out, the webui's queue goes on
            held.callback(queue_lock.release)
            if queued:
                held.callback(progress.pending_tasks.pop, _TASK, None)  # where it does not come to be started
                waiting(_ITS_TURN)
            held.enter_context(_state())
            held.enter_context(_room(waiting))
            yield

    def interrupted(self) -> bool:
        from modules import shared

        return bool(shared.state.interrupted)

    def show(self, job: Job) -> None:
        from modules import shared

        state = shared.state
        state.job, state.job_count = _TASK, 1  # another tab's work may have cleared them
        state.sampling_steps, state.sampling_step = job.steps, job.step
        state.textinfo = f"ZOODiP, {job.token}: {job.message}" + (
            f", step {job.step} of {job.steps}" if job.steps else ""
        )
        if job.sample is not None and job.sample != self._previewed:
            self._previewed = job.sample
            with contextlib.suppress(OSError), Image.open(job.sample, formats=("PNG",)) as picture:
                state.assign_current_image(picture.convert("RGB"))


def _is_open() -> bool:
    """Whether the webui was started so that others than this computer's user can reach it, or may not name folders."""
    from modules import shared

    options = vars(shared.cmd_opts)
    if any(options.get(name) for name in ("listen", "share", "ngrok", "hide_ui_dir_config")):
        return True
    return bool(options.get("server_name")) and not is_loopback(options["server_name"])


@contextlib.contextmanager
def _state() -> Iterator[None]:
    """The webui's state is ours: its progress bar and its stop button are about the job."""
    from modules import progress, shared

    shared.state.begin(job=_TASK)  # which takes back a stop button that was pressed before
    while _TASK in progress.finished_tasks:  # or it would be told as completed while it is at work
        progress.finished_tasks.remove(_TASK)
    progress.start_task(_TASK)
    try:
        yield
    finally:
        shared.state.interrupted = False
        shared.state.textinfo = None
        progress.finish_task(_TASK)
        shared.state.end()


# ---------------------------------------------------------------- the webui's models


@contextlib.contextmanager
def _room(waiting: Callable[[str], None]) -> Iterator[None]:
    """The webui's models leave the graphics card, and the one in use comes back.

    A model that cannot be moved does not end the job: that sees for itself whether there is room.
    """
    from modules import devices, sd_models

    data = sd_models.model_data
    _wait_for_loading(data, waiting)
    back = []
    if hasattr(data, "loaded_sd_models"):  # A1111
        models = {id(model): model for model in (*data.loaded_sd_models, data.sd_model) if model is not None}
        back = [model for model in models.values() if model is data.sd_model and not _parked(model)]
        for model in models.values():
            _attempt("a model could not be moved out of the way", sd_models.send_model_to_cpu, model)
    else:  # Forge, which loads what it needs when it needs it
        _attempt("the models could not be unloaded", sd_models.unload_model_weights)
    _attempt("the graphics card's memory could not be given back", devices.torch_gc)
    try:
        yield
    finally:
        for model in back:
            _attempt("the model could not be put back", sd_models.send_model_to_device, model)


def _wait_for_loading(data: Any, waiting: Callable[[str], None]) -> None:
    """A1111 loads its first model outside of its queue."""
    lock = getattr(data, "lock", None)
    if lock is None:
        return
    if lock.acquire(blocking=False):
        lock.release()
        return
    waiting("waiting for the webui, which is loading its model")
    with lock:
        pass
    waiting(_ITS_TURN)


def _parked(model: Any) -> bool:
    """Whether the user had it moved out of the graphics card before, by the webui's own button."""
    from modules import devices

    try:
        return bool(next(model.parameters()).device.type == "cpu" != devices.device.type)
    except (StopIteration, AttributeError):
        return False


def _attempt(failure: str, work: Callable[..., Any], *arguments: Any) -> None:
    """Have the webui do something, or tell in its console why it failed."""
    from modules import errors

    try:
        work(*arguments)
    except Exception:
        errors.report(f"ZOODiP: {failure}", exc_info=True)


# ---------------------------------------------------------------- the webui's embeddings and LoRAs


def _between_generations(work: Callable[[], None]) -> None:
    """Do something while no generation runs: now, or in a turn of its own, for which nobody waits."""
    from modules.call_queue import queue_lock

    def in_turn(taken: bool) -> None:
        if not taken:
            queue_lock.acquire()
        try:
            work()
        finally:
            queue_lock.release()

    if queue_lock.acquire(blocking=False):
        in_turn(True)
    else:
        threading.Thread(target=in_turn, args=(False,), name="zoodip-changed", daemon=True).start()


def _read_embeddings() -> None:
    """Have the lists made anew that prompts are read with."""
    from modules import sd_models

    _attempt("the embeddings could not be read anew", _reload, sd_models.model_data.sd_model)
    _attempt("a prompt that was used before may not know the new token", _forget_prompts)


def _reload(model: Any) -> None:
    """Without a model there are no lists, and its loading makes them."""
    from modules import sd_hijack

    if model is None:
        return
    engines = [getattr(model, f"text_processing_engine{which}", None) for which in ("", "_l", "_g")]
    databases = [found for engine in engines if (found := getattr(engine, "embeddings", None)) is not None]
    for database in databases:  # Forge: one for each text encoder
        database.load_textual_inversion_embeddings()
    if not databases and hasattr(sd_hijack.model_hijack, "embedding_db"):  # A1111
        sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)


def _forget_prompts() -> None:
    """The webui keeps what the last prompt meant; the same prompt would not see a token that is new or replaced."""
    from modules import processing

    for kind, caches in _CACHES.items():
        for name in caches:
            if hasattr(getattr(processing, kind, None), name):
                setattr(getattr(processing, kind), name, [None, None])


def _read_loras() -> None:
    """Have the list made anew in which prompts find LoRAs."""
    from modules import sd_models

    networks = sys.modules.get("networks")  # of the webui's own extension, as its scripts import it
    if networks is None or not hasattr(networks, "list_available_networks"):
        return
    _attempt("the LoRAs could not be read anew", networks.list_available_networks)
    _attempt("a LoRA that was replaced is drawn with as it was", _forget_loras, networks, sd_models.model_data.sd_model)


def _forget_loras(networks: Any, model: Any) -> None:
    """The webui knows the LoRAs that are in its model by their names alone; a file that was replaced keeps its name."""
    if hasattr(networks, "load_lora_state_dict"):  # Forge, which keeps the files' content as well
        networks.load_lora_state_dict.cache_clear()
    if hasattr(model, "forge_objects"):
        model.current_lora_hash = model.forge_objects.unet.lora_loader.loaded_hash = None
    for layer in model.modules() if hasattr(model, "modules") else ():  # A1111
        if getattr(layer, "network_current_names", None):
            layer.network_current_names = (_REPLACED,)
