"""The page's form: the settings of the table that a page asks for, and a few of its own, in the order of the page."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..train.presets import PRESET
from ..train.setting import AUTO, CHOICE, NUMBER, SWITCH, WHOLE, Setting
from ..train.settings import ALL, LORA, MODEL, PARTS, RUN, SETTINGS, of_part

_MOST = 2**53
"""The largest whole number that browsers tell from its neighbours."""
_LONGEST = 4000
NOT_ASKED = ("images", "captions", "clip", "vae", "cache")
"""Of the table: they follow from the draft, and from whether a quantised copy is kept."""
_IN_SIGHT = {
    "model": ("model", "weights"),
    "token": ("token", "initializer", "num_vectors"),
    "target": ("target_prompt",),
    "preset": ("preset", "learn_weights"),
}
KEEP_COPY = Setting(
    "keep_copy",
    SWITCH,
    MODEL,
    "Keep a quantised copy",
    "The next training on this model starts in seconds; takes 1 to 4 GB of disk.",
    True,
    "",
)
LEARN_WEIGHTS = Setting(
    "learn_weights",
    SWITCH,
    LORA,
    "Also learn weights",
    "Likeness beyond what a word can hold: after the token, a few hundred numbers in the model's weights, kept as a "
    "LoRA to draw with beside it.",
    False,
    "",
)
"""What it means is the preset's that does so, see :data:`~..jobs.job_folder.WITH_WEIGHTS`."""
_SAMPLES = Setting(
    "sample_every",
    WHOLE,
    RUN,
    "Samples every",
    "Steps between sample images. For none: more than it has.",
    0,
    "",
    left=0,
    left_means="ten times over the run",
)
"""In place of the table's: whoever looks at a page wants to see something."""
_BEGINNINGS = {"model": "", "token": "<rex>"}
"""Values that a page begins with; of model the first one that the host offers."""
OWN = {each.name: each for each in (PRESET, LEARN_WEIGHTS, KEEP_COPY, _SAMPLES)}


@dataclass(frozen=True)
class Field:
    """A setting on the page.

    Args:
        setting: what is known of it.
        value: before the user changes it.
        choices: what can be chosen; empty where anything can be typed or ticked.
        offered: what can be chosen where anything can be typed as well.
    """

    setting: Setting
    value: Any
    choices: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in the table, or the form's own."""
        return self.setting.name

    @property
    def kind(self) -> str:
        """Of the component that it needs: a switch that presets decide is a choice."""
        return CHOICE if self.choices else self.setting.kind


@functools.cache
def devices() -> tuple[str, ...]:
    """What can compute here: where there are several graphics cards, all of them or one. They are only counted."""
    cards = torch.cuda.device_count()
    some = (ALL, *(f"cuda:{card}" for card in range(cards))) if cards > 1 else ("cuda",) * cards
    return (AUTO, *some, "cpu")


def in_sight() -> dict[str, list[Field]]:
    """The fields that most people set, by the places on the page: the device too where there are several cards."""
    there = {**_IN_SIGHT, "device": ("device",) if ALL in devices() else ()}
    return {place: [_field(OWN.get(name) or SETTINGS[name]) for name in names] for place, names in there.items()}


def fields() -> list[Field]:
    """The form's fields in their order: those in sight, then the others by their parts."""
    seen = [each for names in in_sight().values() for each in names]
    return [*seen, *(each for group in groups().values() for each in group)]


def groups() -> dict[str, list[Field]]:
    """The fields behind "Every setting", by the titles of their parts."""
    elsewhere = {*NOT_ASKED, *(each.name for seen in in_sight().values() for each in seen)}
    found = {}
    for part in PARTS:
        table = {each.name: each for each in of_part(part, without=elsewhere)}
        own = {name: each for name, each in OWN.items() if each.part == part and name not in elsewhere}
        found[part] = [_field(each) for each in {**table, **own}.values()]
    return {part: group for part, group in found.items() if group}


def names() -> list[str]:
    """The fields' names, in their order."""
    return [each.name for each in fields()]


def _field(setting: Setting) -> Field:
    value = _BEGINNINGS.get(setting.name, setting.shown)
    offered = devices() if setting.name == "device" else ()
    return Field(setting, "" if value is None else value, setting.offered, offered)


def filled(kept: Mapping[str, Any]) -> list[Any]:
    """The form's values in its order: the kept ones, where they still make sense, else the fields' own."""
    return [sound(each, kept.get(each.name, each.value)) for each in fields()]


def read(values: Sequence[Any]) -> dict[str, Any]:
    """The form's values by name; a field that was emptied counts as its own value."""
    return {
        each.name: each.value if value is None else sound(each, value)
        for each, value in zip(fields(), values, strict=True)
    }


def read_named(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The kept values by name, each sound."""
    return dict(zip(names(), filled(kept), strict=True))


def sound(each: Field, value: Any) -> Any:
    """The value in the field's type, or the field's own value if it has none."""
    if each.kind == CHOICE:
        return value if isinstance(value, str) and value in each.choices else each.value
    if each.kind == SWITCH:
        return value if isinstance(value, bool) else each.value
    if each.kind in (WHOLE, NUMBER):
        try:
            number = int(value) if each.kind == WHOLE else float(value)
        except (TypeError, ValueError, OverflowError):
            return each.value
        return number if abs(number) <= _MOST else each.value
    if not isinstance(value, str):
        return each.value
    return value.encode("utf-8", "replace").decode("utf-8")[:_LONGEST]
