"""Tokens learned on small models of a real ComfyUI's own classes; see :mod:`tests.e2e.any_model_checks`.

Each kind of model has a process of its own, in the Python of COMFYUI_PYTHON, where all its checks are made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.comfyui import ROOT
from tests.e2e.small_comfyui import KINDS

pytestmark = pytest.mark.e2e

LIMIT = 1500.0
"""Seconds for all checks of a kind, most of which a slow computer takes to fill a table of 152,000 words."""
SINCE_LATER = {"zimage"}
"""Kinds that an older ComfyUI may not know."""
Found = Callable[[str, str], Any]


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What a check found on a kind of model."""
    known: dict[str, dict[str, Any]] = {}

    def of(kind: str, check: str) -> Any:
        if kind not in known:
            known[kind] = _checked(kind, tmp_path_factory.mktemp(kind))
        told = known[kind][check]
        assert "error" not in told, told["error"]
        return told["found"]

    return of


def _checked(kind: str, folder: Path) -> dict[str, Any]:
    """All that the checks found, in a process of ComfyUI's Python."""
    checkout = os.environ.get("COMFYUI_DIR")
    if not checkout:
        pytest.skip("set COMFYUI_DIR to a ComfyUI checkout (and COMFYUI_PYTHON to its Python) to run this")
    if kind in SINCE_LATER and not (Path(checkout) / "comfy/text_encoders/z_image.py").is_file():
        pytest.skip(f"this ComfyUI knows no {KINDS[kind].name}, nor its text encoder")
    ended = subprocess.run(
        [os.environ.get("COMFYUI_PYTHON") or sys.executable, "-m", "tests.e2e.any_model_checks", kind, str(folder)],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    written = folder / "found.json"
    assert written.is_file(), f"exit status {ended.returncode}\n{ended.stdout[-4000:]}"
    checks: dict[str, Any] = json.loads(written.read_text())
    return checks


each_kind = pytest.mark.parametrize("kind", list(KINDS))


@each_kind
def test_losses_are_the_models_own(found: Found, kind: str) -> None:
    for timestep, lost in found(kind, "losses").items():
        assert lost["together"] == pytest.approx(lost["by hand"], rel=1e-5), timestep
        assert lost["together"] == pytest.approx(lost["alone"], rel=1e-5), timestep
        assert len(set(lost["by hand"])) == 3, "the candidates make no difference"
        assert max(lost["by hand"]) / min(lost["by hand"]) > 1 + 5e-5, "the candidates make no difference to speak of"


@each_kind
def test_losses_with_a_mask_are_weighted(found: Found, kind: str) -> None:
    lost = found(kind, "masked_losses")
    assert lost["together"] == pytest.approx(lost["by hand"], rel=1e-5)
    assert max(abs(a / b - 1) for a, b in zip(lost["together"], lost["plain"], strict=True)) > 1e-3


@each_kind
def test_a_timestep_is_the_same_share_of_noise(found: Found, kind: str) -> None:
    assert found(kind, "shares") == pytest.approx([0.618, 0.893], abs=1e-3)


@each_kind
def test_a_model_is_shown_pictures_of_its_own_size(found: Found, kind: str) -> None:
    sides = {"sd15": [512, 512], "sd2v": [768, 512]}  # Stable Diffusion 2.1 and 2.1-base
    assert found(kind, "sides") == sides.get(kind, [1024, 1024])


@each_kind
def test_a_training_ends_with_a_file_that_the_model_takes(found: Found, kind: str) -> None:
    training = found(kind, "training")
    assert training["finished"]
    assert training["moved"] > 1e-3
    assert training["keys"] == (["<my-thing>"] if kind in ("sd15", "sd2v") else sorted(KINDS[kind].encoders))
    assert training["taken"]


@each_kind
def test_a_stopped_training_ends_as_if_it_had_not_been(found: Found, kind: str) -> None:
    training = found(kind, "training")
    assert (training["stopped at"], training["resumed"]) == (8, True)
    assert training["steps"] == [20, 20]
    assert training["same losses"]
    assert training["same file"]
    assert training["warnings"] == []


@each_kind
def test_patches_of_the_model_count(found: Found, kind: str) -> None:
    patches = found(kind, "patches")
    assert patches.pop("patched") > 1
    assert patches == dict.fromkeys(patches, True)


def test_hooks_of_clip_count(found: Found) -> None:
    assert [name for name, holds in found("sd15", "hooks").items() if not holds] == []


def test_loras_beside_the_weights_count(found: Found) -> None:
    assert [name for name, holds in found("sd15", "beside").items() if not holds] == []


def test_a_schedule_of_clips_hooks_is_followed(found: Found) -> None:
    assert found("sd15", "scheduled_hooks") == {"first half": True, "second half": True, "it counts": True}


@each_kind
def test_no_candidate_is_a_negative_prompt_to_patches(found: Found, kind: str) -> None:
    assert found(kind, "negatives") == {"patch": True, "told": True, "NAGuidance": True}


def test_text_encoders_leave_a_full_card_unless_comfyui_streams_them(found: Found) -> None:
    assert found("sd15", "on_a_card") == {"plain": True, "streamed": False}


def test_a_model_that_does_not_fit_is_asked_for_many_candidates_at_once(found: Found) -> None:
    """Its weights cross to the card for each forward pass."""
    expected = {"five": [5, 3], "one": [1, 1], "a part": [5, 8], "next to nothing": [1, 2]}
    assert found("sd15", "at_once") == {"five are less than the model": True, **expected}


def test_text_encoders_are_not_left_on_the_cpu(found: Found) -> None:
    assert found("sd15", "back_on_a_card") == {"apart": ["cpu"], "left on the CPU": 0}


def test_a_model_is_the_same_while_comfyui_streams_it(found: Found) -> None:
    assert found("sd15", "streamed_fingerprint")


@each_kind
def test_a_schedule_is_not_taken_for_weights(found: Found, kind: str) -> None:
    assert found(kind, "schedules") == {"weights are the same": True, "schedules differ": True}


@each_kind
def test_an_interrupt_within_a_forward_pass_is_a_stop(found: Found, kind: str) -> None:
    assert found(kind, "interrupts") == "Stopped"


def test_the_users_own_embeddings_stay_what_they_are(found: Found) -> None:
    assert found("sd15", "others_tokens") == {"places": 1, "kept": True, "left": True, "drawn": 1}


@each_kind
def test_each_place_has_its_own_token(found: Found, kind: str) -> None:
    assert [name for name, holds in found(kind, "several").items() if not holds] == []


@each_kind
def test_a_token_stands_until_a_share_of_the_steps(found: Found, kind: str) -> None:
    assert [name for name, holds in found(kind, "until").items() if not holds] == []


@each_kind
def test_caches_change_no_loss(found: Found, kind: str) -> None:
    assert found(kind, "caches") == {"EasyCacheNode": True, "LazyCacheNode": True}


@each_kind
def test_words_are_looked_up_in_the_vocabulary(found: Found, kind: str) -> None:
    words = found(kind, "words")
    assert words["new token"] == words["glued"] == words["weighted"] == ""  # {} is made a word of its own
    assert words["known token"].startswith("TokenError: token 'dog' is already a word of the model's vocabulary")
    assert "is unknown to the model's tokenizer" in words["unknown initializer"]
    assert ("is unknown" in words["initializer of no letters"]) == ("t5xxl" in KINDS[kind].encoders)
    assert "tokens; choose a one-token word, or set initializer_mode" in words["long initializer"]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("clip of SDXL", "clip, model: SD15 cannot compute with this CLIP"),
        ("clip of SD1.5 with SDXL", "clip, model: SDXL cannot compute with this CLIP"),
        ("vae of 16 channels", "vae: it makes latents of 16 channels, the model takes 4; connect the model's own VAE"),
        ("inpainting", "model: it is for inpainting or edits"),
        ("Flux Fill", "model: it is for inpainting or edits"),
        ("video", "model: WAN21 draws videos; connect one that draws pictures"),
        ("refiner", "model: it is SDXL's refiner"),
        ("sound", "model: StableAudio1 draws none; connect one that draws pictures"),
        ("no model", "model: nothing comes in"),
        ("no clip", "clip: nothing comes in"),
        ("no vae", "vae: nothing comes in"),
    ],
)
def test_parts_that_do_not_fit_are_named(found: Found, what: str, told: str) -> None:
    refused = found("sd15", "refusals")
    assert refused["fits"] == ""
    assert refused[what].startswith(f"ModelError: {told}")
    assert "connect" in refused[what]


def test_a_distilled_model_is_noted(found: Found) -> None:
    (note,) = found("sd15", "refusals")["notes"]
    assert note.startswith("the model is distilled")
