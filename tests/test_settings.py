"""The table of settings: said once, and found in all four fronts."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Any

import make_locales
import node_pack
import numpy as np
import pytest
import torch

from tests.fake_host import FakeHost
from tests.fake_page_host import FakePageHost
from zoodip_core import TrainConfig
from zoodip_core.base.errors import ConfigError
from zoodip_core.cli.main import _parser
from zoodip_core.page import form
from zoodip_core.page.studio import Studio
from zoodip_core.train.presets import BESIDE, PRESETS, RECIPE, complete, preset_for, untried
from zoodip_core.train.setting import NUMBER, SWITCH, WHOLE, Setting
from zoodip_core.train.settings import PARTS, SEARCH, SETTINGS, given

NEW = {
    "name": "sharpness",
    "label": "Sharpness",
    "help": "How sharp the token is cut.",
    "default": 3,
    "flag": "--sharpness",
    "metavar": "N",
    "range": (1, 9),
    "left": 0,
    "node_input": "sharpness",
}
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def new(pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of the search more, in memory: in the core's table, and in that of the node pack's own core."""
    monkeypatch.setitem(SETTINGS, "sharpness", Setting(kind=WHOLE, part=SEARCH, **NEW))  # type: ignore[arg-type]
    theirs = importlib.import_module(f"{node_pack.NAME}.zoodip_core.train.settings")
    monkeypatch.setitem(theirs.SETTINGS, "sharpness", theirs.Setting(kind=WHOLE, part=SEARCH, **NEW))


@pytest.mark.usefixtures("new")
def test_a_new_setting_is_an_option_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _parser().parse_args(["train", "--sharpness", "4"]).sharpness == 4
    assert not hasattr(_parser().parse_args(["train"]), "sharpness")
    with pytest.raises(SystemExit):
        _parser().parse_args(["train", "--help"])
    assert "--sharpness N" in capsys.readouterr().out


@pytest.mark.usefixtures("new")
def test_a_new_setting_is_on_the_page(tmp_path: Path) -> None:
    from zoodip_core.page.page import make_page

    (field,) = (each for each in form.groups()[SEARCH] if each.name == "sharpness")
    assert (field.value, field.setting.explained) == (0, "How sharp the token is cut. 0: as the preset says.")
    shown = json.dumps(make_page(Studio(FakePageHost(tmp_path))).get_config_file(), default=str)
    assert '"label": "Sharpness"' in shown
    assert "zoodip_sharpness" in shown
    assert form.read_named({"sharpness": 5})["sharpness"] == 5


@pytest.mark.usefixtures("new")
def test_a_new_setting_is_taken_by_the_interface_for_scripts(tmp_path: Path) -> None:
    from zoodip_webui import api

    studio = Studio(FakePageHost(tmp_path))
    asked = {"token": "<rex>", "initializer": "dog", "pictures": []}
    with pytest.raises(ConfigError, match=r"blur: no such setting; there are .*\bsharpness\b"):
        api._start(studio, {**asked, "blur": 1})
    with pytest.raises(ConfigError, match="sharpness = 'much': not a value of this setting"):
        api._start(studio, {**asked, "sharpness": "much"})
    with pytest.raises(ValueError, match="pictures: give a list"):  # it was taken
        api._start(studio, {**asked, "sharpness": 4})


@pytest.mark.usefixtures("new")
def test_a_new_setting_is_an_input_of_the_trainer_and_in_its_locale(pack: Any, host: FakeHost) -> None:
    kind, about = pack.NODE_CLASS_MAPPINGS["ZoodipTrainToken"].INPUT_TYPES()["optional"]["sharpness"]
    assert kind == "INT"
    assert about == {
        "default": 0,
        "min": 0,
        "max": 9,
        "advanced": True,
        "tooltip": "How sharp the token is cut. 0: as the preset says.",
    }
    texts = make_locales.node_texts()["ZoodipTrainToken"]["inputs"]["sharpness"]
    assert texts == {"name": "sharpness", "tooltip": "How sharp the token is cut. 0: as the preset says."}


# ---------------------------------------------------------------- what the table says


@pytest.mark.parametrize("each", SETTINGS.values(), ids=lambda each: each.name)
def test_a_setting_is_told_in_full(each: Setting) -> None:
    assert each.part in PARTS
    assert each.label[0].isupper()
    assert len(each.help) > 15
    assert each.help.endswith((".", "..."))
    assert re.fullmatch("--[a-z][a-z-]*", each.flag)
    assert bool(each.metavar) != bool(each.choices or each.kind == SWITCH)
    assert bool(each.range) == (each.kind in (WHOLE, NUMBER))
    if each.by_preset and each.range and each.name != "t_lower":  # whose 0 is that of uniform timesteps
        with pytest.raises(ConfigError, match=f"{each.name} = "):  # what stands for the preset is no value of its own
            each.check(each.left)


def test_flags_inputs_and_names_are_each_ones_own() -> None:
    for names in zip(*((each.flag, each.node_input, each.name) for each in SETTINGS.values()), strict=True):
        assert len(set(names)) == len(names)
    assert list(SETTINGS) == [field.name for field in dataclasses.fields(TrainConfig)]
    for each in SETTINGS.values():
        assert f"{each.name}: " in (TrainConfig.__doc__ or "")


def test_what_is_left_to_the_preset_is_left_out() -> None:
    left = {each.name: each.left for each in SETTINGS.values() if each.by_preset}
    assert given(left) == {}
    assert given({"adapt_mu": "on", "subspace_gradient": "off", "flip": False, "seed": 0, "checks": 0}) == {
        "adapt_mu": True,
        "subspace_gradient": False,
        "flip": False,
        "seed": 0,
        "checks": 0,
    }


def test_presets_hold_what_differs_and_are_laid_over_as_a_whole() -> None:
    defaults = complete({})
    assert defaults == {each.name: each.default for each in SETTINGS.values() if each.by_preset}
    assert all(RECIPE[name] != defaults[name] for name in RECIPE)
    for preset in PRESETS:
        assert preset_for("sd1", preset=preset).keys() == defaults.keys()
    assert preset_for("sd1", preset="paper") == {**defaults, **BESIDE}


@pytest.mark.parametrize(("family", "width", "lr"), [("sd1", 768, 1e-2), ("sdxl", 2048, 1e-2), ("tiny", 128, 4e-2)])
def test_the_released_scripts_adam_is_adam_with_another_eps(family: str, width: int, lr: float) -> None:
    """It divides gradients by sqrt((d + n - 1) / n) and adds 1e-3: worked here as it stands there."""
    settings = preset_for(family, preset="paper-released")
    assert settings == {**preset_for(family, preset="paper"), "lr": lr, "eps": settings["eps"]}
    config = TrainConfig.from_dict({**settings, "images": ["x"], "token": "<x>", "initializer": "dog", "model": "x"})
    gradients = torch.randn(5, 1, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.05
    optimizer, theta = config.make_optimizer(), torch.zeros(1, width, dtype=torch.float64)
    m = v = np.zeros(width)
    expected = np.zeros(width)
    for step, gradient in enumerate(gradients, 1):
        theta = optimizer.step(theta, gradient)
        g = gradient.numpy().ravel() / np.sqrt((width + 2 - 1) / 2)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected -= lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-3)
    np.testing.assert_allclose(theta.numpy().ravel(), expected, rtol=1e-9)


@pytest.mark.parametrize("family", ["flux", "sd3", "chroma", "lumina2", "zimage", "qwenimage", "sd-4096"])
def test_families_that_nobody_has_tried_take_our_search_at_the_same_shares_of_noise(family: str) -> None:
    assert untried(family)[0].startswith(f"the presets for {family} are those for Stable Diffusion, untried on real")
    own = preset_for(family, "none", "bfloat16")
    assert own == {**preset_for("sdxl"), "t_lower": 500, "t_upper": 900}
    assert (own["steps"], own["t_lower"], own["t_upper"]) == (4000, 500, 900)
    assert preset_for(family, preset="fast")["steps"] == 4000 // 3
    assert preset_for(family, preset="paper") == complete(BESIDE)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "tiny"])
def test_families_that_were_tried_need_no_such_line(family: str) -> None:
    assert untried(family) == []
