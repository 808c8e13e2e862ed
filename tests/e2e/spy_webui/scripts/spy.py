"""An extension for tests: it tells what ours does with the webui's models and what is drawn, and holds its queue."""

from typing import Any

from modules import call_queue, script_callbacks, scripts, sd_hijack, sd_models, shared

_WATCHED = ("send_model_to_cpu", "send_model_to_device", "unload_model_weights")


def _watch(name: str) -> None:
    """Have a function of the webui note that it is called; this file is run again when the page is reloaded."""
    inner = getattr(sd_models, name)
    if getattr(inner, "watched", False):
        return

    def noting(*given: Any, **named: Any) -> Any:
        calls.append(name)
        return inner(*given, **named)

    noting.watched = True  # type: ignore[attr-defined]
    setattr(sd_models, name, noting)


calls: list[str] = getattr(sd_models, "spied_calls", [])
sd_models.spied_calls = calls
for each in _WATCHED:
    _watch(each)


def _databases() -> list[Any]:
    """The embeddings that the loaded model's prompts are read with."""
    engine = getattr(sd_models.model_data.sd_model, "text_processing_engine", None)
    database = getattr(sd_hijack.model_hijack, "embedding_db", None) if engine is None else engine.embeddings
    return [database] if database is not None else []


def look() -> dict[str, Any]:
    databases = _databases()
    loaded = getattr(sd_models.model_data, "loaded_sd_models", None)
    if loaded is None:
        from backend import memory_management  # type: ignore[import-not-found]

        loaded = memory_management.current_loaded_models
    free = call_queue.queue_lock.acquire(False)
    if free:
        call_queue.queue_lock.release()
    return {
        "calls": list(calls),
        "loaded": [name for each in databases for name in each.word_embeddings],
        "skipped": [name for each in databases for name in each.skipped_embeddings],
        "models": len(loaded),
        "free": free,
        "interrupted": bool(shared.state.interrupted),
    }


def changed() -> list[float]:
    """How far each of the model's weights is from what it was before LoRAs were put into it, where it is."""
    model = sd_models.model_data.sd_model
    if hasattr(model, "forge_objects"):
        from backend.utils import get_attr  # type: ignore[import-not-found]

        loader = model.forge_objects.unet.lora_loader
        pairs = [(get_attr(loader.model, name), before) for name, before in loader.backup.items()]
    else:
        kept = [(layer, getattr(layer, "network_weights_backup", None)) for layer in model.modules()]
        pairs = [(layer.weight, before) for layer, before in kept if hasattr(before, "shape")]
    far = [float((now.float() - before.float()).norm()) for now, before in pairs]
    return sorted(each for each in far if each)


class Latents(scripts.Script):  # type: ignore[misc]
    """It keeps what is drawn, before the VAE makes pictures of it."""

    last: Any = None

    def title(self) -> str:
        return "Spy"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def post_sample(self, p: Any, ps: Any, *_given: Any) -> None:
        Latents.last = ps.samples


def latents() -> Any:
    """The last drawing's, ``[1, 4, height / 8, width / 8]``."""
    return Latents.last.tolist()


def add(_page: Any, app: Any) -> None:
    app.add_api_route("/spy/look", look, methods=["GET"])
    app.add_api_route("/spy/changed", changed, methods=["GET"])
    app.add_api_route("/spy/latents", latents, methods=["GET"])
    app.add_api_route("/spy/hold", lambda: call_queue.queue_lock.acquire(False), methods=["POST"])
    app.add_api_route("/spy/let-go", call_queue.queue_lock.release, methods=["POST"])
    app.add_api_route("/spy/reload", shared.state.request_restart, methods=["POST"])
    app.add_api_route("/spy/forget", calls.clear, methods=["POST"])


script_callbacks.on_app_started(add)
