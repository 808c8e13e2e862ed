"""The webui's ``modules`` in small, beside the real ones of ``tests/e2e``: they record what is done with them."""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

A1111, FORGE = "A1111", "Forge"


class FIFOLock:
    """As in ``modules/fifo_lock.py``: it knows no owner and is not re-entrant."""

    def __init__(self) -> None:
        self._lock, self._inner = threading.Lock(), threading.Lock()
        self._pending: collections.deque[threading.Event] = collections.deque()

    def acquire(self, blocking: bool = True) -> bool:
        with self._inner:
            if self._lock.acquire(False):
                return True
            if not blocking:
                return False
            turn = threading.Event()
            self._pending.append(turn)
        turn.wait()
        return self._lock.acquire()

    def release(self) -> None:
        with self._inner:
            if self._pending:
                self._pending.popleft().set()
            self._lock.release()

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for it."""
        with self._inner:
            return bool(self._pending)

    @property
    def free(self) -> bool:
        if self.acquire(blocking=False):
            self.release()
            return True
        return False


class Model:
    """A loaded checkpoint of A1111, which stands on ``device``."""

    def __init__(self, name: str, device: str = "cuda") -> None:
        self.name, self.device = name, device
        self.layers = [SimpleNamespace(), SimpleNamespace(network_current_names=())]
        """Without LoRAs in them."""

    def modules(self) -> Any:
        yield from self.layers

    def parameters(self) -> Any:
        yield SimpleNamespace(device=torch.device(self.device))


class State:
    """As in ``modules/shared_state.py``."""

    def __init__(self) -> None:
        self.job, self.textinfo, self.interrupted = "", None, False
        self.job_count = self.sampling_step = self.sampling_steps = 0
        self.images: list[Any] = []

    def begin(self, job: str) -> None:
        self.job, self.job_count, self.interrupted, self.textinfo = job, -1, False, None

    def end(self) -> None:
        self.job, self.job_count = "", 0

    def assign_current_image(self, image: Any) -> None:
        self.images.append(image)


class Options:
    """As in ``modules/options.py``: what was saved, else the options' own values, else an AttributeError."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.data_labels: dict[str, Any] = {}

    def add_option(self, key: str, info: Any) -> None:
        self.data_labels[key] = info

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("data", {}):
            return self.data[name]
        if name in self.__dict__.get("data_labels", {}):
            return self.data_labels[name].default
        raise AttributeError(name)


class OptionInfo:
    """As in ``modules/options.py``."""

    def __init__(
        self,
        default: Any = None,
        label: str = "",
        component: Any = None,
        component_args: Any = None,
        section: Any = None,
        restrict_api: bool = False,
    ) -> None:
        self.default, self.label, self.component, self.component_args = default, label, component, component_args
        self.section, self.restrict_api = section, restrict_api


class Callbacks(ModuleType):
    """``modules.script_callbacks``: keeps what is registered, by the event's name."""

    def __init__(self, *without: str) -> None:
        super().__init__("modules.script_callbacks")
        self.kept: dict[str, Callable[..., Any]] = {}
        for event in ("after_component", "ui_train_tabs", "ui_tabs", "ui_settings", "app_started"):
            if event not in without:
                setattr(self, f"on_{event}", self._keeper(event))

    def _keeper(self, event: str) -> Callable[[Callable[..., Any]], None]:
        def keep(callback: Callable[..., Any]) -> None:
            self.kept[event] = callback

        return keep


class FakeWebui:
    """The modules of one kind of webui, put in place of real ones for a test.

    Args:
        kind: whose.
        folder: its data.
    """

    def __init__(self, kind: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.kind, self.folder, self._patch = kind, folder, patch
        self.calls: list[str] = []
        """What was done with models, memory and embeddings, in order."""
        self.fails: dict[str, BaseException] = {}
        """What is raised by one of the ``calls``."""
        self.state, self.lock = State(), FIFOLock()
        self.tasks: list[str] = []
        """What became of our task on the progress bar."""
        self.pending: dict[str, float] = {}
        """The webui's tasks that wait."""
        self.finished: list[str] = []
        """The webui's list of the last tasks that have ended."""
        self.reports: list[str] = []
        """What was told in the console."""
        self.callbacks = Callbacks()
        self._install()

    def did(self, call: str) -> None:
        self.calls.append(call)
        if call in self.fails:
            raise self.fails[call]

    def _queue(self, task: str) -> None:
        self.tasks.append(f"queued {task}")
        self.pending[task] = 0.0

    def _start(self, task: str) -> None:
        self.tasks.append(f"started {task}")
        self.pending.pop(task, None)

    def _install(self) -> None:
        self._module("modules")
        self._module("paths_internal", data_path=str(self.folder))
        self._module("call_queue", queue_lock=self.lock)
        self._module("devices", device=torch.device("cuda"), torch_gc=lambda: self.did("torch_gc"))
        self._module("errors", report=lambda message, exc_info=False: self.reports.append(message))
        self._module(
            "progress",
            finished_tasks=self.finished,
            pending_tasks=self.pending,
            add_task_to_queue=self._queue,
            start_task=self._start,
            finish_task=self.finished.append,
        )
        self.options = Options()
        places = {f"{name}_dir": str(self.folder / name) for name in ("embeddings", "lora")}
        self.flags = SimpleNamespace(api=True, api_auth=None, **places)
        hidden = {"visible": True}
        self.shared = self._module(
            "shared",
            state=self.state,
            opts=self.options,
            cmd_opts=self.flags,
            OptionInfo=OptionInfo,
            hide_dirs=hidden,
        )
        self._install_models()
        self._patch.setitem(sys.modules, "modules.script_callbacks", self.callbacks)
        sys.modules["modules"].script_callbacks = self.callbacks  # type: ignore[attr-defined]

    def _install_models(self) -> None:
        self.checkpoints: dict[str, Any] = {}
        self.data = SimpleNamespace(sd_model=None)
        self.models = self._module("sd_models", model_data=self.data, checkpoints_list=self.checkpoints)
        hijack = SimpleNamespace()
        if self.kind == A1111:
            self.data.loaded_sd_models, self.data.lock = [], threading.Lock()
            self.models.send_model_to_cpu = self._moves("cpu")
            self.models.send_model_to_device = self._moves("cuda")
            hijack.embedding_db = SimpleNamespace(
                load_textual_inversion_embeddings=lambda force_reload: self.did(f"embeddings {force_reload}")
            )
        else:
            self.models.unload_model_weights = lambda: self.did("unload")
        self._module("sd_hijack", model_hijack=hijack)
        self.networks = ModuleType("networks")  # of the webui's own extension for LoRAs
        self.networks.list_available_networks = lambda: self.did("loras")  # type: ignore[attr-defined]
        if self.kind == FORGE:
            kept = SimpleNamespace(cache_clear=lambda: self.did("files of loras"))
            self.networks.load_lora_state_dict = kept  # type: ignore[attr-defined]
        self._patch.setitem(sys.modules, "networks", self.networks)
        base = type("StableDiffusionProcessing", (), {"cached_c": ["old", 1], "cached_uc": ["old", 1]})
        child = type("StableDiffusionProcessingTxt2Img", (base,), {"cached_hr_c": ["old", 1], "cached_hr_uc": ["o", 1]})
        self.processing = self._module("processing", **{kind.__name__: kind for kind in (base, child)})

    def _moves(self, device: str) -> Callable[[Model], None]:
        def move(model: Model) -> None:
            self.did(f"{model.name} to {device}")
            model.device = device

        return move

    def _module(self, name: str, **content: Any) -> Any:
        module: Any = ModuleType(name if name == "modules" else f"modules.{name}")
        for each, value in content.items():
            setattr(module, each, value)
        self._patch.setitem(sys.modules, module.__name__, module)
        if name != "modules":
            setattr(sys.modules["modules"], name, module)
        return module

    def load(self, *models: Model) -> None:
        """Have models loaded, the first of them in use."""
        self.data.loaded_sd_models, self.data.sd_model = list(models), models[0]

    def engine(self, *which: str) -> Any:
        """A loaded model of Forge, with a text encoder for each suffix in ``which``."""

        def encoder(name: str) -> Any:
            def load() -> None:  # it takes no argument
                self.did(f"embeddings{name}")

            return SimpleNamespace(embeddings=SimpleNamespace(load_textual_inversion_embeddings=load))

        engines = {f"text_processing_engine{name}": encoder(name) for name in which}
        unet = SimpleNamespace(lora_loader=SimpleNamespace(loaded_hash="[]"))
        model = SimpleNamespace(**engines, current_lora_hash="[]", forge_objects=SimpleNamespace(unet=unet))
        self.data.sd_model = model
        return model
