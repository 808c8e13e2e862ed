"""The extension in a real A1111 and a real Forge, over HTTP. See :mod:`tests.e2e.webui` for what this needs."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.e2e.comfyui import ROOT, RefusedError
from tests.e2e.conftest import Before
from tests.e2e.own_engine import CLOSE, OwnEngine, apart
from tests.e2e.webui import A1111, FORGE, LIMIT, LONG, MODEL, Webui, request, small_model
from zoodip_core.model.embedding import load_embedding
from zoodip_core.model.lora import load_lora

pytestmark = pytest.mark.e2e

TASK = "task(zoodip)"


@pytest.fixture(autouse=True)
def nothing_left_at_work(webui: Webui) -> Iterator[None]:
    """Whatever a test leaves is stopped, and our extension has raised nothing."""
    webui.post("/spy/forget")
    yield
    webui.stop_all()
    assert webui.complaints() == []


def on_sd15(**changes: Any) -> dict[str, Any]:
    """A training for the webui's own model: a step at 64 pixels."""
    small = {"model": MODEL, "resolution": 64, "n": 2, "keep_copy": False, "initializer": "dog"}
    return {**small, "steps": 1, **changes}


def in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin something; what is returned waits for its result."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(LIMIT)
        assert results, "it did not come back"
        if isinstance(results[0], Exception):
            raise results[0]
        return results[0]

    result.ended = lambda: not thread.is_alive()  # type: ignore[attr-defined]
    return result


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.tobytes() == other.tobytes()


# ---------------------------------------------------------------- the start


def test_it_loads_quickly_and_silently(webui: Webui) -> None:
    assert "load scripts/zoodip.py" in webui.get("/internal/profile-startup")["records"]
    code = (
        f"import sys, torch, gradio; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules)\n"
        "import zoodip_webui; new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))\n"
        "print(*sorted({'diffusers', 'transformers', 'optimum', 'pip'} & set(sys.modules)))"
    )
    new, heavy = webui.kind.run("-c", code).split("\n")[:2]
    assert set(new.split()) <= {"zoodip_core", "zoodip_webui", "safetensors", "filelock", "PIL"}  # each quick to import
    assert heavy == ""
    lines = [line for line in webui.log().splitlines() if "zoodip" in line.lower() and "--data-dir" not in line]
    assert [line for line in lines if "Git repository" not in line] == []


def test_settings_have_a_section(webui: Webui) -> None:
    labels = {str(each["props"].get("label")) for each in webui.get("/config")["components"]}
    assert any(label.startswith("Folder of the runs") for label in labels)
    assert any(label.startswith("Python that trains") for label in labels)


def test_the_page_s_values_are_not_the_webui_s(webui: Webui) -> None:
    """It would keep them in its ui-config.json, and give an old one back at the next start."""
    told = (webui.data / "ui-config.json").read_text()
    assert "txt2img/Prompt" in told
    for label in ("Initializer", "Perturbation", "Every setting", "Weights", "Preset"):
        assert label not in told


def test_a_script_can_not_name_a_program_to_run(webui: Webui) -> None:
    if webui.kind is FORGE:
        pytest.skip("Forge's API changes options that are not for the API, its own too")
    webui.post("/sdapi/v1/options", {"zoodip_python": "/bin/true", "zoodip_folder": "/", "samples_save": False})
    saved = (webui.data / "config.json").read_text()
    assert "/bin/true" not in saved
    assert '"samples_save": false' in saved


def test_installer_prints_one_line_and_installs_nothing(webui: Webui) -> None:
    code = f"from modules import launch_utils; launch_utils.run_extension_installer({str(ROOT)!r})"
    lines = webui.kind.run("-c", code).splitlines()
    ours = [line for line in lines if "ZOODiP" in line]
    assert len(ours) == 1, lines
    assert "trainer" in ours[0]


# ---------------------------------------------------------------- a training


def test_a_training_on_the_embedded_model(webui: Webui) -> None:
    webui.draw("a dog")  # loads the webui's model
    number = webui.start(steps=12)
    job = webui.wait_for(number, "finished")
    assert (job["kind"], job["token"], job["step"], job["steps"]) == ("train", "<boo>", 12, 12)
    assert job["message"] == (
        f"finished after 12 steps. saved as {webui.data}/embeddings/boo.safetensors: write boo in a prompt"
    )
    folder = Path(job["folder"])
    assert folder == webui.data / "zoodip" / "boo"
    assert Path(job["shown"]).is_file()
    published = webui.data / "embeddings" / "boo.safetensors"
    assert published.read_bytes() == (folder / "run" / "boo.safetensors").read_bytes()
    assert [each["id"] for each in webui.get("/zoodip/v1/jobs")] == [number]
    (run,) = webui.get("/zoodip/v1/runs")
    assert (run["name"], run["state"], run["can_resume"]) == ("boo", "finished", False)
    # 128 numbers wide, it does not fit the webui's model, which says so at once
    look = webui.look()
    assert ("boo" in look["skipped"], "boo" in look["loaded"]) == (True, False)
    told = webui.get("/sdapi/v1/embeddings")
    assert webui.kind is FORGE or "boo" in told["skipped"]


def test_a_token_for_the_webui_s_model_is_used_at_once(webui: Webui) -> None:
    """Even by the prompt that was drawn last: the webui keeps what that meant."""
    without, text = webui.draw("a photo of kitt")
    assert "TI" not in text
    webui.wait_for(webui.start(token="<kitt>", **on_sd15()), "finished")
    assert "kitt" in webui.look()["loaded"]
    drawn, text = webui.draw("a photo of kitt")
    assert re.search(r'TI( hashes)?: "?kitt', text), text
    assert not same(drawn, without)
    if webui.kind is A1111:
        assert "kitt" in webui.get("/sdapi/v1/embeddings")["loaded"]

    with pytest.raises(RefusedError) as refused:
        webui.start(token="<kitt>", **on_sd15())
    assert refused.value.status == 422
    assert "kitt.safetensors is in the embeddings folder already" in str(refused.value.body)


def test_weights_that_were_learned_are_drawn_with_at_once(webui: Webui) -> None:
    """At the strength that a prompt gives them; and others in their place as well, which the webui would not see."""
    strong = on_sd15(steps=4, learn_weights=True, lora_mu=1, lora_lr=1)
    job = webui.wait_for(webui.start(token="<wave>", **strong), "finished")
    token, lora = (
        webui.data / "embeddings" / "wave.safetensors",
        webui.data / "models" / "Lora" / "wave-lora.safetensors",
    )
    assert job["message"].endswith(f"saved as {token} and {lora}: write wave <lora:wave-lora:1> in a prompt")
    assert lora.read_bytes() == Path(job["lora"]).read_bytes()
    assert {each["name"]: each["path"] for each in webui.get("/sdapi/v1/loras")} == {"wave-lora": str(lora)}
    (run,) = (each for each in webui.get("/zoodip/v1/runs") if each["name"] == "wave")
    assert (run["embedding"], run["lora"]) == (job["embedding"], job["lora"])

    without, _ = webui.draw("a photo of a dog")
    drawn, text = webui.draw("a photo of a dog <lora:wave-lora:1>")
    assert not same(drawn, without)
    assert re.search(r'Lora hashes: "?wave-lora', text), text
    added = sorted(float((up @ down).norm()) for up, down in load_lora(lora).layers.values())
    assert webui.get("/spy/changed") == pytest.approx(added, rel=1e-3)
    assert same(webui.draw("a photo of a dog <lora:wave-lora:0>")[0], without)
    assert same(webui.draw("a photo of a dog <lora:wave-lora:1>")[0], drawn)

    with pytest.raises(RefusedError) as refused:
        webui.start(token="<wave>", **strong)
    assert "wave.safetensors is in the embeddings folder already" in str(refused.value.body)
    webui.wait_for(webui.start(token="<wave>", overwrite=True, seed=1, **strong), "finished")
    other, _ = webui.draw("a photo of a dog <lora:wave-lora:1>")
    assert not same(other, drawn)
    assert not same(other, without)
    assert same(webui.draw("a photo of a dog")[0], without)


def test_it_draws_with_a_token_and_a_lora_what_our_own_engine_draws(webui: Webui) -> None:
    """Latents, from the same noise by the same steps; the webui reads the prompts, and lays the weights on, itself."""
    steps, guidance, seed = 4, 7.5, 5
    job = webui.wait_for(
        webui.start(token="<tide>", **on_sd15(steps=4, learn_weights=True, lora_mu=1, lora_lr=1)), "finished"
    )
    token, lora = load_embedding(job["embedding"]), load_lora(job["lora"])
    engine = OwnEngine(small_model())
    for prompt, text, embedding in (
        ("a photo of a dog", "a photo of a dog", None),
        ("a photo of tide", "a photo of <tide>", token),
    ):
        drawn = {}
        for strength, written in ((0.0, ""), (1.0, " <lora:tide-lora:1>"), (0.5, " <lora:tide-lora:0.5>")):
            webui.draw(prompt + written, steps, seed=seed, cfg_scale=guidance, sampler_name="Euler", scheduler="DDIM")
            theirs = drawn[strength] = torch.tensor(webui.get("/spy/latents"))
            laid = lora.scaled(strength) if strength else None
            ours = engine.latents(text, seed, steps, guidance, lora=laid, embedding=embedding)
            print(f"{webui.kind.name}, {prompt!r} at {strength}: {apart(theirs, ours):.2e} apart")
            assert apart(theirs, ours) < CLOSE, (prompt, strength)
        for one, other in ((1.0, 0.0), (0.5, 0.0), (1.0, 0.5)):
            print(f"  at {one} against {other}: {apart(drawn[one], drawn[other]):.2e} apart")
            assert apart(drawn[one], drawn[other]) > 20 * CLOSE
    assert apart(drawn[0.0], engine.latents(prompt, seed, steps, guidance)) > 20 * CLOSE  # the word tide, not the token


# ---------------------------------------------------------------- one at a time


def test_a_generation_and_a_training_wait_for_each_other(webui: Webui) -> None:
    drawing = in_background(lambda: webui.draw("a slow dog", steps=150, n_iter=20))
    webui.wait(lambda: not webui.look()["free"], "no generation began")
    number = webui.start(token="<wait>", steps=LONG)
    webui.wait(
        lambda: webui.job(number)["message"] == "waiting for the webui, which is at work",
        "it does not say that it waits",
    )
    assert webui.job(number)["state"] == "waiting"
    assert TASK in webui.get("/internal/pending-tasks")["tasks"]
    assert not drawing.ended()  # type: ignore[attr-defined]
    webui.post("/sdapi/v1/interrupt")  # the generation: what waits is not meant
    drawing()
    webui.wait_for_step(number)

    drawing = in_background(lambda: webui.draw("a patient dog"))
    reached = webui.job(number)["step"]
    webui.wait_for_step(number, reached + 5)
    assert not drawing.ended()  # type: ignore[attr-defined]
    webui.post(f"/zoodip/v1/jobs/{number}/stop")
    picture, _ = drawing()
    assert picture.size == (64, 64)
    assert webui.wait_for(number, "stopped")["message"].startswith("stopped at step")


def test_a_job_that_waits_can_be_stopped(webui: Webui) -> None:
    assert webui.post("/spy/hold") is True
    try:
        number = webui.start(token="<never>", steps=LONG)
        webui.wait(lambda: "waiting for the webui" in webui.job(number)["message"], "it does not wait")
        webui.post(f"/zoodip/v1/jobs/{number}/stop")
        assert webui.job(number)["state"] == "stopped"
    finally:
        webui.post("/spy/let-go")
    webui.wait(lambda: not (webui.data / "zoodip" / "never").exists(), "an empty run was left")
    assert TASK not in webui.get("/internal/pending-tasks")["tasks"]


# ---------------------------------------------------------------- progress and interrupts


def progress(webui: Webui) -> dict[str, Any]:
    return dict(webui.post("/internal/progress", {"id_task": TASK, "id_live_preview": -1}))


def test_progress_interrupt_and_going_on(webui: Webui) -> None:
    before, _ = webui.draw("a dog on a hill")
    webui.post("/spy/forget")
    number = webui.start(token="<stay>", steps=LONG, sample_every=10)
    webui.wait_for_step(number, 5)
    check_room(webui)
    told = webui.wait(lambda: (now := progress(webui)) and now["progress"] and now, "there is no progress")
    assert (told["active"], told["queued"], told["completed"]) == (True, False, False)
    assert re.fullmatch(rf"ZOODiP, <stay>: learning, step \d+ of {LONG}", told["textinfo"])
    assert 0 < told["progress"] < 1
    again = webui.get("/sdapi/v1/progress?skip_current_image=true")
    assert (again["state"]["job"], again["state"]["sampling_steps"]) == (TASK, LONG)
    webui.wait(lambda: (progress(webui)["live_preview"] or "").startswith("data:image/"), "no preview was shown")

    webui.post("/sdapi/v1/interrupt")
    reached = webui.wait_for(number, "stopped")["step"]
    assert progress(webui)["completed"]
    look = webui.look()
    assert not look["interrupted"]
    assert look["calls"][1:] == (["send_model_to_device"] if webui.kind is A1111 else [])
    after, _ = webui.draw("a dog on a hill")
    assert same(before, after)
    (run,) = (each for each in webui.get("/zoodip/v1/runs") if each["name"] == "stay")
    assert (run["state"], run["step"], run["can_resume"]) == ("stopped", reached, True)

    number = webui.post("/zoodip/v1/runs/stay/resume")["id"]
    assert webui.wait_for_step(number, reached + 3)["kind"] == "resume"


def check_room(webui: Webui) -> None:
    """The webui's model is out of the way, and nothing else was done with it."""
    look = webui.look()
    if webui.kind is A1111:
        assert look["calls"] == ["send_model_to_cpu"]
    else:
        assert (look["calls"], look["models"]) == (["unload_model_weights"], 0)


# ---------------------------------------------------------------- what is wrong


def test_bad_requests(webui: Webui) -> None:
    small = base64.b64encode(b"no picture").decode()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"colour": "red"}, "colour: no such setting"),
        ({"pictures": None}, "pictures: give a list of 1 to 100"),
        ({"pictures": [{"name": "a.png", "data": "no base64"}]}, "pictures, 1: data is not base64"),
        ({"pictures": [{"name": "a.png", "data": small}]}, "pictures, 1: a.png"),
        ({"pictures": [{"name": "a.mp4", "data": small}]}, "pictures, 1: a.mp4 is a video"),
        ({"pictures": request()["pictures"] * 20}, "pictures: give a list of 1 to 100"),
        ({"token": "<../../boo>"}, "token '<../../boo>'"),
        ({"token": "a/b"}, "token 'a/b'"),
        ({"steps": "many"}, "steps = 'many'"),
        ({"num_vectors": 76}, "num_vectors = 76"),
    ]
    before = sorted(path.name for path in (webui.data / "zoodip").glob("*"))
    for changes, told in wrong:
        with pytest.raises(RefusedError) as refused:
            webui.start(**{"token": "<bad>", **changes})
        assert refused.value.status == 422, refused.value
        assert told in str(refused.value.body), refused.value
    assert sorted(path.name for path in (webui.data / "zoodip").glob("*")) == before
    for path in ("/zoodip/v1/jobs/999/stop", "/zoodip/v1/runs/nothing/resume"):
        assert webui.status(path, "POST") == 422
    assert webui.status("/zoodip/v1/jobs", Origin="http://evil.example") == 403


def test_nothing_was_installed(webui: Webui, before: Before) -> None:
    """By the start, the installer, and the trainings so far."""
    assert webui.kind.freeze() == before.freeze
