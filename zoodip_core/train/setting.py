"""What a setting is: a field of a dataclass, described once for all fronts, and how its values are checked."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from ..base.errors import ConfigError

TEXT, WHOLE, NUMBER, CHOICE, SWITCH, PATHS = "text", "whole", "number", "choice", "switch", "paths"
_KINDS = {"str": TEXT, "str | None": TEXT, "int": WHOLE, "float": NUMBER, "bool": SWITCH, "tuple[str, ...]": PATHS}
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (float,),
    "bool": (bool,),
    "tuple[str, ...]": (tuple,),
}
AUTO, ON, OFF = "auto", "on", "off"


@dataclass(frozen=True)
class Setting:
    """What every front needs to know of a setting.

    Args:
        name: of the field.
        kind: text, whole (number), number, choice, switch, or paths.
        part: the title of the part that it belongs to.
        label: for people, a word or three.
        help: for people, a sentence or two.
        default: its value where nothing is given.
        flag: its option on the command line.
        alias: another name of that option.
        metavar: what stands for the value there.
        choices: of a choice.
        range: the least and the largest number.
        above: whether a number has to be above the least, which is not allowed itself.
        below: whether a number has to be below the largest, which is not allowed itself.
        multiple: what a whole number has to be a multiple of.
        left: what a front shows, and is given, where the setting is left to the preset; None if it never is.
        left_means: what that stands for, in a word.
        node_input: the name of its input in ComfyUI.
    """

    name: str
    kind: str
    part: str
    label: str
    help: str
    default: Any
    flag: str
    alias: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    above: bool = False
    below: bool = False
    multiple: int = 1
    left: Any = None
    left_means: str = "as the preset says"
    node_input: str = ""

    @property
    def by_preset(self) -> bool:
        """Whether presets decide it."""
        return self.left is not None

    @property
    def shown(self) -> Any:
        """The value that a form begins with."""
        return self.left if self.by_preset else self.default

    @property
    def offered(self) -> tuple[str, ...]:
        """The choices of a form, leaving it to the preset among them."""
        if self.kind == SWITCH and self.by_preset:
            return (AUTO, ON, OFF)
        return (AUTO, *self.choices) if self.left == AUTO else self.choices

    @property
    def explained(self) -> str:
        """Its help for a form: with what stands for leaving it to the preset."""
        return f"{self.help} {self.left}: {self.left_means}." if self.by_preset else self.help

    def check(self, value: Any) -> None:
        """Refuse a value of the right type that is not one of the choices, or out of range.

        Raises:
            ConfigError: naming the setting, and what is possible.
        """
        if self.choices and value not in self.choices:
            raise ConfigError(f"{self.name} = {value!r}: choose one of {', '.join(self.choices)}")
        if self.range and value is not None:
            low, high = self.range
            outside = (self.above and value == low) or (self.below and value == high)
            if outside or not low <= value <= high:
                limits = f"from {low} to {high}"
                if self.above:
                    limits = f"above {low} and {'below' if self.below else 'at most'} {high}"
                raise ConfigError(f"{self.name} = {value}: must be {limits}")


def setting(default: Any, part: str, label: str, help: str, **more: Any) -> Any:
    """A field of a dataclass with what its :class:`Setting` has; required where the default is missing."""
    about = {"part": part, "label": label, "help": help, **more}
    return dataclasses.field(default=default, metadata={"setting": about})


def described(spec: dataclasses.Field[Any]) -> Setting:
    """The setting of a field that :func:`setting` made."""
    about = {"flag": "--" + spec.name.replace("_", "-"), "node_input": spec.name, **spec.metadata["setting"]}
    default = None if spec.default is dataclasses.MISSING else spec.default
    return Setting(spec.name, _KINDS[str(spec.type)], default=default, **about)


def checked(spec: dataclasses.Field[Any], value: Any) -> Any:
    """A field's value as it is kept: of the annotated type, as which whole numbers pass for floats, and in range.

    Raises:
        ConfigError: it is none, naming the setting.
    """
    value = paths_of(spec.name, value) if _KINDS[str(spec.type)] == PATHS else value
    value = _typed(spec.name, str(spec.type), value)
    described(spec).check(value)
    return value


def paths_of(name: str, value: Any) -> tuple[str, ...]:
    """A path or several as texts.

    Raises:
        ConfigError: something else.
    """
    paths = (value,) if isinstance(value, str) else value
    if not isinstance(paths, (list, tuple)) or not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise ConfigError(f"{name} = {value!r}: expected a list of paths")
    return tuple(str(path) for path in paths)


def _typed(name: str, annotation: str, value: Any) -> Any:
    """The value, if it is of the annotated type; whole numbers pass as floats.

    Raises:
        ConfigError: it is of another.
    """
    if annotation == "float" and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{name} is a number of {len(str(value))} digits, which is too large") from None
    if not isinstance(value, _TYPES[annotation]) or (isinstance(value, bool) and annotation != "bool"):
        raise ConfigError(f"{name} = {value!r}: expected {annotation.replace('tuple[str, ...]', 'a list of paths')}")
    return value
