"""The one seam to ComfyUI: files, LoRAs, progress, interrupts, memory. Nothing else imports its modules."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image

NEEDED = ("torch", "safetensors", "filelock", "matplotlib", "psutil", "tqdm")
"""For whatever a token is learned on."""
FOR_OWN_MODELS = ("diffusers", "transformers", "optimum.quanto")
"""For models that are loaded here, with quantised weights."""
UNET, CLIP, VAE = "(unet)", "(clip)", "(vae)"
PARTS = {UNET: "diffusion_models", CLIP: "text_encoders", VAE: "vae"}
"""What the names of files of parts end with, and ComfyUI's kind of folder for them."""
_PREVIEW_SIDE = 512


class Bar(Protocol):
    """A progress bar on a node. Where the host would end the node because of a stop, it raises ``Stopped``."""

    def update(self, done: int, total: int, picture: Image | None = None) -> None:
        """Show progress, with a live preview if there is a picture."""
        ...


class Leaving(Protocol):
    """A model that can leave the device."""

    @property
    def own_memory(self) -> bool:
        """Whether it is loaded by us, and not a model of the host's."""
        ...

    def unload(self) -> None:
        """Leave memory; it comes back when it is used."""
        ...


class Host(Protocol):
    """What the nodes ask of the program they run in."""

    def device(self) -> str:
        """The torch device that models compute on."""
        ...

    def models(self) -> dict[str, Path]:
        """Checkpoints, diffusers folders and files of parts, by the name that the user sees.

        The name of anything but a checkpoint ends with what it is: ``(diffusers)``, or one of :data:`PARTS`.
        """
        ...

    def models_folder(self) -> Path: ...

    def input_folder(self) -> Path: ...

    def output_folder(self) -> Path: ...

    def temp_folder(self) -> Path: ...

    def embeddings(self) -> dict[str, Path]:
        """The user's embedding files, by the name that the user sees."""
        ...

    def embeddings_folder(self) -> Path:
        """Where new embedding files go."""
        ...

    def loras(self) -> dict[str, Path]:
        """The user's LoRA files, by the name that the user sees."""
        ...

    def loras_folder(self) -> Path:
        """Where new LoRA files go."""
        ...

    def weights_by_lora(self, model: Any) -> dict[str, Any]:
        """The names of a MODEL's weights, by the names that LoRA files have for them."""
        ...

    def with_lora(self, model: Any, tensors: dict[str, Any], strength: float) -> Any:
        """A copy of a MODEL with what a LoRA's file holds laid on its weights, as far as it knows them."""
        ...

    def bar(self) -> Bar:
        """A progress bar on the node that runs now."""
        ...

    def send(self, event: str, data: dict[str, Any]) -> None:
        """Tell every open page."""
        ...

    def interrupted(self) -> bool:
        """Whether the user asked to stop what runs now. Asking does not forget it."""
        ...

    def interrupt(self) -> NoReturn:
        """End this node in the way the host wants after a stop."""
        ...

    def make_room(self) -> None:
        """Have the host's own models leave the device; they come back when they are used."""
        ...

    def return_memory(self) -> None:
        """Give freed memory back to the device."""
        ...


class ComfyUI:
    """The :class:`Host` that the nodes run in."""

    def device(self) -> str:
        import comfy.model_management

        return str(comfy.model_management.get_torch_device())

    def models(self) -> dict[str, Path]:
        import folder_paths

        found = {name: folder_paths.get_full_path("checkpoints", name) for name in _listed("checkpoints")}
        for part, kind in PARTS.items():
            found |= {f"{name} {part}": folder_paths.get_full_path(kind, name) for name in _listed(kind)}
        for folder in folder_paths.get_folder_paths("diffusers"):
            for index in sorted(Path(folder).glob("*/model_index.json")):
                found[f"{index.parent.name} (diffusers)"] = str(index.parent)
        return {name: Path(path) for name, path in found.items() if path}

    def models_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.models_dir)

    def input_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_input_directory())

    def output_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_output_directory())

    def temp_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_temp_directory())

    def embeddings(self) -> dict[str, Path]:
        return _files("embeddings")

    def embeddings_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_folder_paths("embeddings")[0])

    def loras(self) -> dict[str, Path]:
        return _files("loras")

    def loras_folder(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_folder_paths("loras")[0])

    def weights_by_lora(self, model: Any) -> dict[str, Any]:
        import comfy.lora

        return comfy.lora.model_lora_keys_unet(model.model, {})

    def with_lora(self, model: Any, tensors: dict[str, Any], strength: float) -> Any:
        import comfy.sd

        return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)[0]

    def bar(self) -> Bar:
        return _ComfyBar()

    def send(self, event: str, data: dict[str, Any]) -> None:
        from server import PromptServer

        PromptServer.instance.send_sync(event, data)

    def interrupted(self) -> bool:
        import comfy.model_management

        return bool(comfy.model_management.processing_interrupted())

    def interrupt(self) -> NoReturn:
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()  # clears the request as well
        raise comfy.model_management.InterruptProcessingException

    def make_room(self) -> None:
        import comfy.model_management

        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()

    def return_memory(self) -> None:
        import comfy.model_management

        comfy.model_management.soft_empty_cache()


def _listed(kind: str) -> list[str]:
    import folder_paths

    return list(folder_paths.get_filename_list(kind))


def _files(kind: str) -> dict[str, Path]:
    """The user's files of a kind, by the names that ComfyUI shows."""
    import folder_paths

    found = {name: folder_paths.get_full_path(kind, name) for name in _listed(kind)}
    return {name: Path(path) for name, path in found.items() if path}


class _ComfyBar:
    def __init__(self) -> None:
        import comfy.utils

        self._bar = comfy.utils.ProgressBar(1)

    def update(self, done: int, total: int, picture: Image | None = None) -> None:
        import comfy.model_management

        from ..zoodip_core.base.stopping import Stopped

        try:
            self._bar.update_absolute(done, total, ("JPEG", picture, _PREVIEW_SIDE) if picture else None)
        except comfy.model_management.InterruptProcessingException as interrupt:
            raise Stopped from interrupt  # to be raised as what it was once the state is saved


_host: Host = ComfyUI()


def host() -> Host:
    """The program that the nodes run in."""
    return _host


@contextlib.contextmanager
def hosted_by(other: Host) -> Iterator[None]:
    """Run nodes in another host, as tests do."""
    global _host
    before, _host = _host, other
    try:
        yield
    finally:
        _host = before


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it a stop that the user asks for takes effect before the next forward pass or layer."""
    from ..zoodip_core.base.stopping import Stopped, stopped_by

    try:
        with stopped_by(host().interrupted):
            yield
    except Stopped:
        host().interrupt()


@contextlib.contextmanager
def on_the_device(model: Leaving) -> Iterator[None]:
    """:func:`stoppable`, with the device to ourselves: the host's models leave it before, ours afterwards.

    A model of the host's own stays where it is: the next node may use it, and the host knows when it has to leave.
    """
    if model.own_memory:
        host().make_room()
    try:
        with stoppable():
            yield
    finally:
        if model.own_memory:
            model.unload()
        gc.collect()
        host().return_memory()


def check_packages(needed: tuple[str, ...] = NEEDED, instead: str = "") -> None:
    """Refuse to begin without some packages, saying how to get them; nothing is installed here.

    Args:
        needed: their names.
        instead: what does without them.

    Raises:
        ModuleNotFoundError: some are missing.
    """
    missing = [name for name in needed if not _installed(name)]
    if missing:
        requirements = Path(__file__).resolve().parent.parent / "requirements.txt"
        raise ModuleNotFoundError(
            f"ZOODiP needs {', '.join(missing)}, which ComfyUI's Python does not have. Install them, then start "
            f'ComfyUI again:\n"{sys.executable}" -m pip install -r "{requirements}"' + (instead and f"\n{instead}")
        )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package above it is missing
        return False
