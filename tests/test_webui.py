"""The webui's adapter against small stand-ins for its modules; ``tests/e2e`` has the real ones."""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastapi
import gradio as gr
import pytest
from fastapi.testclient import TestClient
from PIL import Image

import zoodip_webui
from tests.fake_page_host import LIMIT, FakePageHost, fake_worker, until
from tests.fake_webui import A1111, FORGE, FakeWebui, Model
from zoodip_core.base.stopping import Stopped
from zoodip_core.jobs.job import Job
from zoodip_core.jobs.protocol import RUNNING
from zoodip_core.page.studio import Studio
from zoodip_webui import api, settings
from zoodip_webui.host import Webui

TASK = "task(zoodip)"


@pytest.fixture(params=[A1111, FORGE])
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWebui:
    return FakeWebui(request.param, tmp_path, monkeypatch)


@pytest.fixture
def a1111(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWebui:
    return FakeWebui(A1111, tmp_path, monkeypatch)


@pytest.fixture
def forge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWebui:
    return FakeWebui(FORGE, tmp_path, monkeypatch)


def silent(_text: str) -> None:
    pass


# ---------------------------------------------------------------- the queue and the state


def test_the_device_is_ours_for_as_long_as_it_is_held(fake: FakeWebui) -> None:
    said: list[str] = []
    with Webui().device(said.append):
        assert not fake.lock.free
        assert (fake.state.job, fake.tasks) == (TASK, [f"started {TASK}"])
    assert fake.lock.free
    assert (fake.state.job, fake.state.job_count, fake.state.textinfo) == ("", 0, None)
    assert (fake.tasks, fake.finished) == ([f"started {TASK}"], [TASK])
    assert said == []


def test_a_task_at_work_is_not_told_as_completed(fake: FakeWebui) -> None:
    fake.finished += ["task(txt2img)", TASK]
    with Webui().device(silent):
        assert fake.finished == ["task(txt2img)"]
    assert fake.finished == ["task(txt2img)", TASK]


def test_the_queue_goes_on_when_the_work_fails(fake: FakeWebui) -> None:
    with pytest.raises(ZeroDivisionError), Webui().device(silent):
        raise ZeroDivisionError
    assert fake.lock.free
    assert (fake.state.job, fake.finished) == ("", [TASK])


@pytest.mark.parametrize("where", ["begin", "end"])
def test_the_queue_goes_on_when_the_webui_itself_fails(
    fake: FakeWebui, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graphics card that has failed makes the webui's own clearing up fail."""

    def fail(*_given: Any, **_named: Any) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(fake.state, where, fail)
    with pytest.raises(RuntimeError), Webui().device(silent):
        pass
    assert fake.lock.free


def test_a_generation_is_waited_for(fake: FakeWebui) -> None:
    said: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with Webui().device(said.append):
            entered.set()
            leave.wait()

    fake.lock.acquire()
    worker = threading.Thread(target=work)
    worker.start()
    until(lambda: fake.tasks)
    assert said == ["waiting for the webui, which is at work"]
    assert fake.tasks == [f"queued {TASK}"]
    until(lambda: fake.lock.awaited)
    assert not entered.is_set()
    fake.lock.release()
    assert entered.wait(LIMIT)
    assert said[1:] == ["the webui's model leaves the graphics card"]
    assert not fake.lock.free
    leave.set()
    worker.join()
    assert fake.lock.free


def test_who_no_longer_wants_the_card_does_not_take_it(fake: FakeWebui) -> None:
    """A job that was stopped while it waited: the webui's models stay where they are, its queue goes on."""
    said: list[str] = []

    def wanted_at_first(text: str) -> None:
        said.append(text)
        if len(said) > 1:
            raise Stopped

    def work() -> None:
        with contextlib.suppress(Stopped), Webui().device(wanted_at_first):
            said.append("taken")

    fake.lock.acquire()
    worker = threading.Thread(target=work)
    worker.start()
    until(lambda: fake.tasks)
    fake.lock.release()
    worker.join()
    assert len(said) == 2
    assert (fake.tasks, fake.pending, fake.finished, fake.calls) == ([f"queued {TASK}"], {}, [], [])
    assert fake.lock.free
    assert fake.state.job == ""


def test_only_a_stop_button_pressed_since_counts(fake: FakeWebui) -> None:
    host = Webui()
    fake.state.interrupted = True  # of the generation before
    with host.device(silent):
        assert not host.interrupted()
        fake.state.interrupted = True
        assert host.interrupted()
    assert not fake.state.interrupted


def test_progress_is_the_webui_s(fake: FakeWebui, tmp_path: Path) -> None:
    host, job = Webui(), Job(1, "train", tmp_path, "<rex>", tmp_path / "task.json", RUNNING, "learning", 3, 12)
    with host.device(silent):
        fake.state.job, fake.state.job_count = "", 0  # as when another tab's work ends
        host.show(job)
    assert (fake.state.sampling_step, fake.state.sampling_steps) == (3, 12)
    with host.device(silent):
        host.show(job)
        assert (fake.state.job, fake.state.job_count) == (TASK, 1)
        assert fake.state.textinfo == "ZOODiP, <rex>: learning, step 3 of 12"
        assert fake.state.images == []


def test_each_sample_sheet_is_previewed_once(fake: FakeWebui, tmp_path: Path) -> None:
    host, job = Webui(), Job(1, "train", tmp_path, "<rex>", tmp_path / "task.json", RUNNING)
    job.sample = tmp_path / "sheet.png"
    host.show(job)  # it is gone, or half written
    assert fake.state.images == []
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "other.png")
    job.sample = tmp_path / "other.png"
    for _ in range(3):
        host.show(job)
    assert [image.mode for image in fake.state.images] == ["RGB"]


# ---------------------------------------------------------------- models


def test_a_model_is_out_of_the_way_and_back(a1111: FakeWebui) -> None:
    a1111.load(Model("one"), Model("other"))
    with Webui().device(silent):
        assert [model.device for model in a1111.data.loaded_sd_models] == ["cpu", "cpu"]
        assert a1111.calls == ["one to cpu", "other to cpu", "torch_gc"]
    assert [model.device for model in a1111.data.loaded_sd_models] == ["cuda", "cpu"]


def test_a_model_comes_back_after_a_failure(a1111: FakeWebui) -> None:
    a1111.load(Model("one"))
    with pytest.raises(ZeroDivisionError), Webui().device(silent):
        raise ZeroDivisionError
    assert a1111.calls[-1] == "one to cuda"


def test_a_model_that_the_user_moved_away_stays_there(a1111: FakeWebui) -> None:
    a1111.load(Model("one", device="cpu"))
    with Webui().device(silent):
        pass
    assert a1111.calls == ["one to cpu", "torch_gc"]


def test_no_model_is_loaded_for_us(a1111: FakeWebui) -> None:
    with Webui().device(silent):
        pass
    assert a1111.calls == ["torch_gc"]


def test_a_model_in_use_that_is_not_listed_moves_too(a1111: FakeWebui) -> None:
    a1111.data.sd_model = Model("one")
    with Webui().device(silent):
        assert a1111.data.sd_model.device == "cpu"
    assert a1111.data.sd_model.device == "cuda"


def test_models_that_can_not_be_moved_do_not_end_a_job(a1111: FakeWebui) -> None:
    a1111.load(Model("one"), Model("other"))
    a1111.fails = {"one to cpu": NotImplementedError("meta tensor"), "one to cuda": RuntimeError("out of memory")}
    with Webui().device(silent):
        assert a1111.data.loaded_sd_models[1].device == "cpu"
    assert a1111.reports == [
        "ZOODiP: a model could not be moved out of the way",
        "ZOODiP: the model could not be put back",
    ]
    assert a1111.lock.free


def test_a_first_model_that_is_being_loaded_is_waited_for(a1111: FakeWebui) -> None:
    said: list[str] = []
    a1111.data.lock.acquire()

    def loaded(text: str) -> None:
        said.append(text)
        if len(said) > 1:
            return
        a1111.load(Model("one"))
        a1111.data.lock.release()

    with Webui().device(loaded):
        assert a1111.data.sd_model.device == "cpu"
        assert not a1111.data.lock.locked()
    assert said == ["waiting for the webui, which is loading its model", "the webui's model leaves the graphics card"]


def test_forge_unloads_and_loads_by_itself(forge: FakeWebui) -> None:
    with Webui().device(silent):
        assert forge.calls == ["unload", "torch_gc"]
    assert forge.calls == ["unload", "torch_gc"]
    forge.fails["unload"] = RuntimeError("CUDA error")
    with Webui().device(silent):
        pass
    assert forge.reports == ["ZOODiP: the models could not be unloaded"]


# ---------------------------------------------------------------- embeddings


def caches(fake: FakeWebui) -> list[Any]:
    base = fake.processing.StableDiffusionProcessing
    child = fake.processing.StableDiffusionProcessingTxt2Img
    return [base.cached_c, base.cached_uc, child.cached_hr_c, child.cached_hr_uc]


def test_a1111_reads_its_embeddings_anew(a1111: FakeWebui) -> None:
    a1111.load(Model("one"))
    Webui().embeddings_changed()
    assert a1111.calls == ["embeddings True"]
    assert caches(a1111) == [[None, None]] * 4
    assert a1111.lock.free


def test_a1111_without_a_model_is_left_alone(a1111: FakeWebui) -> None:
    Webui().embeddings_changed()
    assert (a1111.calls, a1111.reports, a1111.lock.free) == ([], [], True)


@pytest.mark.parametrize(("which", "calls"), [([""], ["embeddings"]), (["_l", "_g"], ["embeddings_l", "embeddings_g"])])
def test_forge_reads_its_embeddings_anew(forge: FakeWebui, which: list[str], calls: list[str]) -> None:
    forge.engine(*which)
    Webui().embeddings_changed()
    assert forge.calls == calls
    assert caches(forge) == [[None, None]] * 4
    assert forge.lock.free


def test_forge_without_a_model_is_left_alone(forge: FakeWebui) -> None:
    forge.data.sd_model = SimpleNamespace()  # its FakeInitialModel
    Webui().embeddings_changed()
    assert (forge.calls, forge.reports, forge.lock.free) == ([], [], True)


def test_embeddings_wait_for_a_generation_and_nobody_waits_for_them(a1111: FakeWebui) -> None:
    a1111.load(Model("one"))
    a1111.lock.acquire()
    Webui().embeddings_changed()  # returns at once
    until(lambda: a1111.lock.awaited)
    assert a1111.calls == []
    a1111.lock.release()
    until(lambda: a1111.lock.free and a1111.calls == ["embeddings True"])


def test_embeddings_that_can_not_be_read_are_told_of(a1111: FakeWebui) -> None:
    a1111.load(Model("one"))
    a1111.fails["embeddings True"] = AttributeError("'NoneType' object has no attribute 'cond_stage_model'")
    Webui().embeddings_changed()
    assert a1111.reports == ["ZOODiP: the embeddings could not be read anew"]
    assert caches(a1111) == [[None, None]] * 4
    assert a1111.lock.free


# ---------------------------------------------------------------- LoRAs


def test_loras_go_where_the_webui_looks_for_them(fake: FakeWebui) -> None:
    assert Webui().loras_folder() == fake.folder / "lora"
    del fake.flags.lora_dir  # its extension for them is turned off
    assert Webui().loras_folder() is None


def test_a1111_lists_loras_anew_and_puts_a_replaced_one_into_its_model(a1111: FakeWebui) -> None:
    """It knows what is in a layer by names and strengths alone; another name there has it made anew."""
    model = Model("one")
    before = ("pip-lora", 1.0, 1.0, None)
    model.layers.append(SimpleNamespace(network_current_names=(before,)))
    a1111.load(model)
    Webui().loras_changed()
    assert (a1111.calls, a1111.reports, a1111.lock.free) == (["loras"], [], True)
    bare, without, having = model.layers
    assert not vars(bare)
    assert without.network_current_names == ()
    assert before not in having.network_current_names
    assert having.network_current_names != ()


def test_forge_lists_loras_anew_and_reads_a_replaced_one(forge: FakeWebui) -> None:
    model = forge.engine("")
    loader = model.forge_objects.unet.lora_loader
    model.current_lora_hash = loader.loaded_hash = "[['/lora/pip-lora.safetensors', 1.0, 1.0, False]]"
    Webui().loras_changed()
    assert (forge.calls, forge.reports, forge.lock.free) == (["loras", "files of loras"], [], True)
    assert model.current_lora_hash is loader.loaded_hash is None
    forge.load(SimpleNamespace())  # type: ignore[arg-type] # its FakeInitialModel
    Webui().loras_changed()
    assert (forge.calls[2:], forge.reports) == (["loras", "files of loras"], [])


@pytest.mark.parametrize("there", [None, SimpleNamespace()])
def test_without_the_webui_s_extension_for_loras(fake: FakeWebui, there: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may have a module of that name."""
    monkeypatch.setitem(sys.modules, "networks", there)
    Webui().loras_changed()
    assert (fake.calls, fake.reports, fake.lock.free) == ([], [], True)


def test_loras_wait_for_a_generation_and_failures_are_told_of(fake: FakeWebui) -> None:
    fake.fails["loras"] = PermissionError("not yours")
    fake.lock.acquire()
    Webui().loras_changed()  # returns at once
    until(lambda: fake.lock.awaited)
    assert fake.calls == []
    fake.lock.release()
    until(lambda: fake.lock.free and fake.calls)
    assert fake.reports == ["ZOODiP: the LoRAs could not be read anew"]


# ---------------------------------------------------------------- files and settings


def test_models_are_the_webui_s_that_can_be_read(fake: FakeWebui) -> None:
    for name in ("b/one.safetensors", "two.CKPT", "three.gguf"):
        fake.checkpoints[f"{name} [0123]"] = SimpleNamespace(name=name, filename=f"/models/{name}")
    assert Webui().models() == {
        "b/one.safetensors": Path("/models/b/one.safetensors"),
        "two.CKPT": Path("/models/two.CKPT"),
    }


def test_settings_before_the_webui_has_made_them(fake: FakeWebui) -> None:
    host = Webui()
    assert host.home() == fake.folder / "zoodip"
    assert host.defaults() == {"preset": "default", "weights": "int8", "keep_copy": True}
    assert host.python() == ""
    fake.options.data["zoodip_python"] = "/opt/python"  # saved by the webui's last start
    assert host.python() == "/opt/python"


def test_settings_in_the_webui(fake: FakeWebui, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.add()
    made = fake.options.data_labels
    assert {name: info.default for name, info in made.items()} == {
        "zoodip_folder": "zoodip",
        "zoodip_preset": "default",
        "zoodip_weights": "int8",
        "zoodip_keep_copy": True,
        "zoodip_python": "",
    }
    assert {info.section for info in made.values()} == {("zoodip", "ZOODiP")}
    guarded = {name for name, info in made.items() if info.restrict_api}
    assert guarded == {"zoodip_folder", "zoodip_python"}, "a script could name a program to run, or a folder"
    assert all(made[name].component_args is fake.shared.hide_dirs for name in guarded)
    fake.options.data |= {"zoodip_folder": "", "zoodip_preset": "fast", "zoodip_weights": "int4"}
    assert Webui().home() == fake.folder / "zoodip"
    assert Webui().defaults() == {"preset": "fast", "weights": "int4", "keep_copy": True}
    fake.flags.device_id = "1"
    form = importlib.import_module("zoodip_core.page.form")
    monkeypatch.setattr(form, "devices", lambda: ("auto", "all", "cuda:0", "cuda:1", "cpu"))
    assert Webui().defaults()["device"] == "cuda:1"
    fake.flags.device_id = "7"
    assert "device" not in Webui().defaults()
    fake.options.data["zoodip_folder"] = str(fake.folder / "else")
    assert Webui().home() == fake.folder / "else"
    monkeypatch.setenv("HOME", str(fake.folder / "me"))
    fake.options.data["zoodip_folder"] = "~/runs"
    assert Webui().home() == fake.folder / "me" / "runs"


def test_settings_in_an_older_webui(fake: FakeWebui) -> None:
    class OldInfo:
        def __init__(
            self, default: Any, label: str, component: Any = None, component_args: Any = None, section: Any = None
        ) -> None:
            self.default = default

    fake.shared.OptionInfo = OldInfo
    del fake.shared.hide_dirs
    settings.add()
    assert len(fake.options.data_labels) == 5


# ---------------------------------------------------------------- the tab


def register(fake: FakeWebui, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., Any]]:
    """What the adapter registers, for a studio of its own."""
    host = FakePageHost(fake.folder / "host", fake_worker(fake.folder))
    monkeypatch.setattr(zoodip_webui, "_STUDIO", Studio(host))
    zoodip_webui.register()
    return fake.callbacks.kept


def of_blocks(blocks: gr.Blocks) -> set[str]:
    return {str(getattr(component, "elem_id", "")) for component in blocks.blocks.values()}


def test_the_page_stands_among_the_training_tabs(fake: FakeWebui, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = register(fake, monkeypatch)
    with gr.Blocks() as blocks:
        prompt = gr.Textbox(elem_id="txt2img_prompt")
        kept["after_component"](prompt, elem_id="txt2img_prompt")
        with gr.Tabs():
            kept["ui_train_tabs"](None)
    assert {"zoodip_tab", "zoodip_start"} <= of_blocks(blocks)
    assert kept["ui_tabs"]() == []
    outputs = [output for fn in blocks.fns.values() for output in fn.outputs]
    assert prompt in outputs, "nothing puts a token into the prompt"
    saved = [each for each in blocks.blocks.values() if not getattr(each, "do_not_save_to_config", False)]
    assert prompt in saved
    assert {str(each.elem_id) for each in saved if str(each.elem_id).startswith("zoodip")} == {"zoodip_tab"}


def test_the_page_is_a_tab_of_its_own_where_there_are_no_training_tabs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWebui(FORGE, tmp_path, monkeypatch)
    kept = register(fake, monkeypatch)  # Forge takes the callback and never calls it
    ((blocks, title, name),) = kept["ui_tabs"]()
    assert (title, name) == ("ZOODiP", "zoodip_tab")
    assert "zoodip_start" in of_blocks(blocks)


def test_a_webui_without_training_tabs_at_all(fake: FakeWebui, monkeypatch: pytest.MonkeyPatch) -> None:
    del fake.callbacks.on_ui_train_tabs
    assert set(register(fake, monkeypatch)) == {"after_component", "ui_tabs", "ui_settings", "app_started"}


def test_a_reloaded_page_is_built_anew_on_the_same_studio(fake: FakeWebui, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = dict(register(fake, monkeypatch))
    studio = zoodip_webui._STUDIO
    kept["ui_tabs"]()
    fake.callbacks.kept.clear()
    zoodip_webui.register()
    ((blocks, _, _),) = fake.callbacks.kept["ui_tabs"]()
    assert "zoodip_start" in of_blocks(blocks)
    assert zoodip_webui._STUDIO is studio


def test_what_scripts_are_loaded_as(fake: FakeWebui, monkeypatch: pytest.MonkeyPatch) -> None:
    """The webui runs the file by its path, under a name that is in no list of modules."""
    import importlib.util

    path = Path(zoodip_webui.__file__).parents[1] / "scripts" / "zoodip.py"
    spec = importlib.util.spec_from_file_location("zoodip.py", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert set(fake.callbacks.kept) == {"after_component", "ui_train_tabs", "ui_tabs", "ui_settings", "app_started"}


# ---------------------------------------------------------------- the interface for scripts


COLOURS = ("red", "lime")


def picture(colour: str = "red", size: int = 32) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def job_request(**changes: Any) -> dict[str, Any]:
    pictures = [
        {"name": f"{name}.png", "data": picture(name), "caption": f"a {{}} in {name}"} for name in ("red", "lime")
    ]
    asked = {"token": "<rex>", "initializer": "dog", "steps": 9, "pictures": pictures, **changes}
    return {name: value for name, value in asked.items() if value is not None}


class Site:
    """The routes on a page of their own, over a studio whose worker waits to be stopped."""

    def __init__(self, fake: FakeWebui, login: str = "") -> None:
        does = 'send("started", step=0, steps=9, losses=[])\ncommand()\nsend("ended", state="stopped", step=0)'
        self.host = FakePageHost(fake.folder / "host", fake_worker(fake.folder, does))
        self.studio = Studio(self.host)
        self.app = fastapi.FastAPI()
        if login:  # as gradio has it

            @self.app.get("/login_check")
            def login_check(request: fastapi.Request) -> None:
                if request.cookies.get("access-token") != login:
                    raise fastapi.HTTPException(401, "Not authenticated")

        api.add(self.app, self.studio)
        self.client = TestClient(self.app, base_url="http://localhost")

    def end(self) -> None:
        for job in self.studio.jobs.all():
            if job.open:
                self.studio.jobs.stop(job.id)
        until(lambda: not any(job.open for job in self.studio.jobs.all()))

    def refusal(self, **changes: Any) -> str:
        """What a request is refused with; it leaves nothing behind."""
        answer = self.client.post("/zoodip/v1/jobs", json=job_request(**changes))
        assert answer.status_code == 422, answer.text
        assert not list((self.host.home()).iterdir())
        return str(answer.json()["detail"])


@pytest.fixture
def site(fake: FakeWebui) -> Iterator[Site]:
    made = Site(fake)
    yield made
    made.end()


def test_a_job_is_started_listed_and_stopped(site: Site) -> None:
    answer = site.client.post("/zoodip/v1/jobs", json=job_request())
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert (job["id"], job["kind"], job["token"]) == (1, "train", "<rex>")
    folder = Path(job["folder"])
    assert folder == site.host.home() / "rex"
    assert len(list((folder / "images").iterdir())) == 2
    assert sorted(json.loads((folder / "captions.json").read_text()).values()) == [["a {} in lime"], ["a {} in red"]]
    asked = json.loads((folder / "task.json").read_text())["settings"]
    assert (asked["token"], asked["initializer"], asked["steps"]) == ("<rex>", "dog", 9)
    until(lambda: site.client.get("/zoodip/v1/jobs/1").json()["state"] == "running")
    assert [each["id"] for each in site.client.get("/zoodip/v1/jobs").json()] == [1]
    assert [run["name"] for run in site.client.get("/zoodip/v1/runs").json()] == ["rex"]
    assert site.client.post("/zoodip/v1/jobs/1/stop").json()["state"] in ("stopping", "stopped")
    until(lambda: site.client.get("/zoodip/v1/jobs/1").json()["state"] == "stopped")


def test_weights_are_learned_as_well_if_that_is_asked(site: Site) -> None:
    asked = job_request(learn_weights=True, template="adjective", class_word="dog", lora_share=0.5)
    answer = site.client.post("/zoodip/v1/jobs", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["lora"] is None
    task = json.loads((site.host.home() / "rex" / "task.json").read_text())
    assert task["learn_weights"] is True
    given = {"template": "adjective", "class_word": "dog", "lora_share": 0.5}
    assert {name: task["settings"].get(name) for name in given} == given
    (run,) = site.client.get("/zoodip/v1/runs").json()
    assert (run["embedding"], run["lora"]) == (None, None)


def test_the_file_of_learned_weights_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"embedding": Path("/runs/rex/run/rex.safetensors"), "lora": Path("/runs/rex/run/rex-lora.safetensors")}
    job = Job(1, "train", Path("/runs/rex"), "<rex>", Path("/runs/rex/task.json"))
    job.embedding, job.lora = files["embedding"], files["lora"]
    with monkeypatch.context() as patch:
        patch.setattr(site.studio.jobs, "all", lambda: [job])
        (told,) = site.client.get("/zoodip/v1/jobs").json()
    assert {name: told[name] for name in files} == {name: str(file) for name, file in files.items()}


def test_a_mask_lies_beside_its_picture(site: Site) -> None:
    mask, buffer = Image.new("L", (16, 16)), io.BytesIO()
    mask.paste(255, (4, 4, 10, 12))
    mask.save(buffer, "PNG")
    given = {"name": "a.png", "data": picture(), "mask": base64.b64encode(buffer.getvalue()).decode()}
    asked = job_request(pictures=[given, {"name": "b.png", "data": picture("lime")}])
    answer = site.client.post("/zoodip/v1/jobs", json=asked)
    assert answer.status_code == 200, answer.text
    images = Path(answer.json()["folder"]) / "images"
    assert sorted(path.name for path in images.iterdir()) == ["0001-a.mask.png", "0001-a.png", "0002-b.png"]
    with Image.open(images / "0001-a.mask.png") as kept:  # in the picture's size
        assert (kept.size, kept.getpixel((12, 16)), kept.getpixel((2, 2))) == ((32, 32), 255, 0)


def test_data_urls_are_pictures_too(site: Site) -> None:
    asked = job_request(pictures=[{"name": "a.png", "data": f"data:image/png;base64,{picture()}"}])
    assert site.client.post("/zoodip/v1/jobs", json=asked).status_code == 200


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"colour": "red"}, "colour: no such setting"),
        ({"token": None}, "token and initializer must be given"),
        ({"initializer": None}, "token and initializer must be given"),
        ({"initializer": ""}, "initializer is empty"),
        ({"token": "<../rex>"}, "token '<../rex>'"),
        ({"token": "a\\b"}, r"token 'a\\b'"),
        ({"steps": "many"}, "steps = 'many': not a value of this setting"),
        ({"steps": 2.5}, "steps = '2.5'"),
        ({"steps": -1}, "steps = -1"),
        ({"weights": "int3"}, "weights = 'int3': not a value of this setting, such as 'int8'"),
        ({"flip": "no"}, "flip = 'no'"),
        ({"overwrite": "no"}, "overwrite = 'no': true or false"),
        ({"learn_weights": "yes"}, "learn_weights = 'yes': not a value of this setting, such as False"),
        ({"learn_weights": True, "lora_rank": 0}, "lora_rank = 0 learns no weights"),
        ({"template": "adjective"}, "give class_word"),
        ({"pictures": None}, "pictures: give a list"),
        ({"pictures": []}, "pictures: give a list"),
        ({"pictures": [{"name": "a.png", "data": "AAAA"}] * 101}, "pictures: give a list of 1 to 100"),
        ({"pictures": ["a.png"]}, "pictures, 1: give an object"),
        ({"pictures": [{"name": "a.png"}]}, "pictures, 1: give an object"),
        ({"pictures": [{"name": "a.png", "data": picture(), "caption": 3}]}, "pictures, 1: give an object"),
        ({"pictures": [{"name": "a.png", "data": "not base64!"}]}, "pictures, 1: data is not base64"),
        ({"pictures": [{"name": "a.png", "data": "AAAA"}]}, "pictures, 1: a.png"),
        ({"pictures": [{"name": "a.png", "data": picture(), "mask": 3}]}, "pictures, 1: give an object"),
        ({"pictures": [{"name": "a.png", "data": picture(), "mask": "no base64"}]}, "pictures, 1: mask is not base64"),
        ({"pictures": [{"name": "a.png", "data": picture(), "mask": "AAAA"}]}, "pictures, 1: mask: the file is"),
        (
            {"pictures": [{"name": "a.png", "data": picture(), "mask": picture("white")}]},
            "pictures, 1: mask: the mask is the same",
        ),
        ({"pictures": [{"name": "a.mp4", "data": "AAAA"}]}, "pictures, 1: a.mp4 is a video"),
        ({"pictures": [{"name": "a", "data": "AAAA"}]}, "pictures, 1: a is not a JPEG, PNG or WebP file"),
        ({"pictures": [{"name": "\x00.png", "data": "AAAA"}]}, "pictures, 1: ?.png"),
    ],
)
def test_what_is_wrong_is_told(site: Site, changes: dict[str, Any], told: str) -> None:
    assert told in site.refusal(**changes)


def test_a_name_that_is_taken(site: Site) -> None:
    site.host.embeddings_folder().joinpath("rex.safetensors").write_bytes(b"there")  # type: ignore[union-attr]
    assert "rex.safetensors is in the embeddings folder already" in site.refusal()
    assert site.client.post("/zoodip/v1/jobs", json=job_request(overwrite=True)).status_code == 200


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b'"text"'])
def test_a_body_that_is_no_object(site: Site, body: bytes) -> None:
    answer = site.client.post("/zoodip/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_photographs_with_the_embedded_model_are_told_in_the_answer(site: Site) -> None:
    photograph = base64.b64encode((Path(__file__).parent / "photographs" / "dog-00.jpg").read_bytes()).decode()
    for data, count in ((photograph, 1), (picture(), 0)):
        request = job_request(pictures=[{"name": "rex.png", "data": data}], overwrite=True)
        answer = site.client.post("/zoodip/v1/jobs", json=request)
        assert answer.status_code == 200, answer.text
        told = [line for line in answer.json()["warnings"] if "look like photographs" in line]
        assert len(told) == count


def test_jobs_and_runs_that_are_not_there(site: Site) -> None:
    for path in ("jobs/7", "jobs/x"):
        assert site.client.get(f"/zoodip/v1/{path}").status_code == 422
    for path in ("jobs/7/stop", "runs/rex/resume", "runs/..%2F..%2Fetc/resume"):
        answer = site.client.post(f"/zoodip/v1/{path}", json={})
        assert answer.status_code in (404, 422), answer.text
    told = site.client.post("/zoodip/v1/runs/rex/resume", json={"steps": True}).json()["detail"]
    assert told == "give steps, a whole number of them in all, or nothing"


def test_figures_that_json_does_not_know(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(1, "train", Path("/runs/rex"), "<rex>", Path("/runs/rex/task.json"), eta=float("inf"), loss=float("nan"))
    with monkeypatch.context() as patch:
        patch.setattr(site.studio.jobs, "all", lambda: [job])
        (told,) = site.client.get("/zoodip/v1/jobs").json()
    assert (told["eta"], told["loss"], told["folder"]) == (None, None, "/runs/rex")
    assert "losses" not in told


def test_a_fault_of_the_program_is_no_fault_of_the_request(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_number: int) -> Job:
        raise ZeroDivisionError

    monkeypatch.setattr(site.studio.jobs, "get", fail)
    with pytest.raises(ZeroDivisionError):
        site.client.get("/zoodip/v1/jobs/1")


# ---------------------------------------------------------------- who may ask

PATHS = [("GET", "jobs"), ("POST", "jobs"), ("GET", "jobs/1"), ("POST", "jobs/1/stop")]
PATHS += [("GET", "runs"), ("POST", "runs/rex/resume")]


def answers(site: Site, **how: Any) -> set[int]:
    return {site.client.request(method, f"/zoodip/v1/{path}", **how).status_code for method, path in PATHS}


def test_without_the_webui_s_api_there_is_none(fake: FakeWebui) -> None:
    fake.flags.api = False
    assert answers(Site(fake)) == {404}
    fake.flags.nowebui = True
    assert 404 not in answers(Site(fake))


def test_the_accounts_of_the_webui_s_api(fake: FakeWebui) -> None:
    fake.flags.api_auth = "me:secret,you:a:b"
    site = Site(fake, login="cookie")
    assert answers(site) == {401}
    assert site.client.get("/zoodip/v1/jobs").headers["www-authenticate"] == "Basic"
    for wrong in (("me", "Secret"), ("me", ""), ("you", "a"), ("", "secret"), ("nobody", "sécret")):
        assert answers(site, auth=wrong) == {401}
    assert answers(site, headers={"Cookie": "access-token=cookie"}) == {401}
    for right in (("me", "secret"), ("you", "a:b")):
        assert site.client.get("/zoodip/v1/jobs", auth=right).status_code == 200
        assert 401 not in answers(site, auth=right)


def test_the_page_s_login_where_there_are_no_accounts(fake: FakeWebui) -> None:
    site = Site(fake, login="cookie")
    assert answers(site) == {401}
    site.client.cookies.set("access-token", "cookie")
    assert 401 not in answers(site)


def test_pages_of_other_sites(fake: FakeWebui) -> None:
    site = Site(fake)
    for origin in ("http://evil.example", "null", "http://localhost.evil.example", "file://"):
        assert answers(site, headers={"Origin": origin}) == {403}, origin
    assert 403 not in answers(site, headers={"Origin": "http://localhost"})
    fake.flags.cors_allow_origins = "http://one.example,http://other.example"
    allowing = Site(fake)
    assert 403 not in answers(allowing, headers={"Origin": "http://other.example"})
    assert answers(allowing, headers={"Origin": "http://third.example"}) == {403}
    fake.flags.cors_allow_origins, fake.flags.cors_allow_origins_regex = None, r"http://.*\.example"
    by_pattern = Site(fake)
    assert 403 not in answers(by_pattern, headers={"Origin": "http://third.example"})
    assert answers(by_pattern, headers={"Origin": "http://third.example.evil"}) == {403}
