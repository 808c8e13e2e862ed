"""The page's form: every setting with its label and explanation, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.images import CROPS
from ..data.prompts import TEMPLATES
from ..model.blueprint import DTYPES, PREDICTION_TYPES
from ..model.quantize import WEIGHTS
from ..model.tokens import INITIALIZER_MODES
from ..train.config import DIRECTIONS, ESTIMATORS, LR_SCHEDULES, OPTIMIZERS, TIMESTEP_SAMPLERS
from ..train.presets import PACES

TEXT, WHOLE, NUMBER, CHOICE, TICK, MODEL = "text", "whole", "number", "choice", "tick", "model"
_BY_PACE = "0: by the pace and the model."
SWITCH = ("auto", "on", "off")
"""What is on or off, or left to the pace."""
_MOST = 2**53
"""The largest whole number that browsers tell from its neighbours."""
_LONGEST = 4000
NOT_ASKED = ("images", "captions", "cache")
"""Of :class:`TrainConfig`: they follow from the draft, and from whether a quantised copy is kept."""


@dataclass(frozen=True)
class Field:
    """A setting on the page.

    Args:
        name: as in :class:`TrainConfig`, or the form's own.
        kind: text, whole (number), number, choice, tick, or model (a choice to which a path can be given).
        label: on the page.
        info: what it does, in a sentence or two.
        value: before the user changes it.
        choices: of a choice.
    """

    name: str
    kind: str
    label: str
    info: str
    value: Any
    choices: Sequence[str] = ()


MODEL_FIELDS = (
    Field("model", MODEL, "Model", "SD 1.x, 2.x or XL. One elsewhere: type its path.", ""),
    Field(
        "weights",
        CHOICE,
        "Weights",
        "int4 takes half of int8.",
        "int8",
        WEIGHTS,
    ),
)
TOKEN_FIELDS = (
    Field("token", TEXT, "Token", "The new word, like <rex>.", "<rex>"),
    Field("initializer", TEXT, "Initializer", "The word nearest to it: dog.", ""),
    Field("num_vectors", WHOLE, "Vectors", "More hold more detail.", 1),
)
PACE_FIELDS = (
    Field(
        "pace",
        CHOICE,
        "Pace",
        "fast: a third of default's steps. careful: three times as many. paper: the paper's own search.",
        "default",
        PACES,
    ),
)
ADVANCED: Mapping[str, tuple[Field, ...]] = {
    "Search": (
        Field("steps", WHOLE, "Steps", f"Each is a small move of the token. {_BY_PACE}", 0),
        Field("lr", NUMBER, "Learning rate", f"How far a step moves. {_BY_PACE}", 0),
        Field("lr_schedule", CHOICE, "Schedule", "cosine falls to 0 over the run.", "auto", ("auto", *LR_SCHEDULES)),
        Field(
            "averaging",
            NUMBER,
            "Averaging",
            "The token is the mean over about this share of the steps, the last ones. 0: the last step's. -1: by the "
            "pace.",
            -1,
        ),
        Field("n", WHOLE, "Directions (n)", f"Tried in each step: n + 1 forward passes (spsa: 2n). {_BY_PACE}", 0),
        Field("mu", NUMBER, "Perturbation (mu)", f"How far a direction is tried out. {_BY_PACE}", 0),
        Field("mu_end", NUMBER, "Share of mu at the end", f"To which it falls; 1: it stays. {_BY_PACE}", 0),
        Field(
            "estimator", CHOICE, "Estimator", "How losses become a gradient; the paper's is rge.", "rge", [*ESTIMATORS]
        ),
        Field(
            "optimizer",
            CHOICE,
            "Optimizer",
            "The paper's is zoadam. zosgd needs a learning rate of its own.",
            "auto",
            ["auto", *OPTIMIZERS],
        ),
        Field(
            "directions",
            CHOICE,
            "Directions",
            "vocabulary: as the model's words differ. normal: alike in all numbers, as the paper's.",
            "auto",
            ["auto", *DIRECTIONS],
        ),
        Field("adapt_mu", CHOICE, "Adapt mu", "Doubles mu until losses differ by more than rounding.", "auto", SWITCH),
        Field("seed", WHOLE, "Seed", "Of every random number: the same seed gives the same token.", 0),
    ),
    "Subspace Gradient": (
        Field(
            "subspace_gradient",
            CHOICE,
            "Use it",
            "Drops the directions that the token's own path shows to be noise.",
            "auto",
            SWITCH,
        ),
        Field("tau", WHOLE, "Buffer (tau)", f"Steps that are looked at together. {_BY_PACE}", 0),
        Field("nu", NUMBER, "Share dropped (nu)", f"Of the path's variance. {_BY_PACE}", 0),
    ),
    "Timesteps": (
        Field("timesteps", CHOICE, "Sampling", "puts: uniform between the two bounds.", "puts", TIMESTEP_SAMPLERS),
        Field("t_lower", WHOLE, "From (T_L)", f"Of 1000, for puts. {_BY_PACE}", 0),
        Field("t_upper", WHOLE, "To (T_U)", f"Of 1000, for puts. {_BY_PACE}", 0),
    ),
    "Pictures and captions": (
        Field("resolution", WHOLE, "Resolution", "Pixels a side; 0: the model's own. Less takes less memory.", 0),
        Field("crop", CHOICE, "Crop", "center cuts out the middle square, resize squeezes.", "center", CROPS),
        Field("flip", TICK, "Mirror", "Train on mirror images too; not for subjects with a left and a right.", False),
        Field("background", TEXT, "Background", "A colour behind transparent pictures.", "white"),
        Field(
            "template",
            CHOICE,
            "Captions by",
            "For pictures without one: an object, a style, or many texts.",
            "object",
            [*TEMPLATES],
        ),
        Field(
            "initializer_mode",
            CHOICE,
            "Long initializers",
            "A word of several tokens: refuse it, take their mean, or the first ones.",
            "single",
            INITIALIZER_MODES,
        ),
    ),
    "While it runs": (
        Field(
            "checks",
            WHOLE,
            "Checks",
            "How often the loss on fixed draws is looked at: where half of the gain is lost, the token goes back. -1: "
            "by the pace.",
            -1,
        ),
        Field(
            "patience", WHOLE, "Patience", "Checks without progress that end it early; 0: never. -1: by the pace.", -1
        ),
        Field("sample_prompt", TEXT, "Sample prompt", "{} is the token's place.", "a photo of a {}"),
        Field(
            "sample_every", WHOLE, "Samples every", "Steps; 0: ten times over the run. For none: more than it has.", 0
        ),
        Field("save_every", WHOLE, "Save every", "Steps. A stop saves as well.", 500),
    ),
    "Machine": (
        Field(
            "dtype", CHOICE, "Activations", "auto: float16 on a graphics card, else float32.", "auto", ("auto", *DTYPES)
        ),
        Field("device", TEXT, "Device", "auto, cpu, cuda, cuda:1, ...", "auto"),
        Field("batch", WHOLE, "Candidates at once", "In one forward pass; 0: as many as there is room for.", 0),
        Field(
            "prediction_type",
            CHOICE,
            "Prediction type",
            "Where the model's file does not tell rightly.",
            "auto",
            PREDICTION_TYPES,
        ),
        Field(
            "keep_copy",
            TICK,
            "Keep a quantised copy",
            "The next training on this model starts in seconds; takes 1 to 4 GB of disk.",
            False,
        ),
    ),
}
FIELDS = (*MODEL_FIELDS, *TOKEN_FIELDS, *PACE_FIELDS, *(each for group in ADVANCED.values() for each in group))
NAMES = tuple(each.name for each in FIELDS)


def filled(kept: Mapping[str, Any]) -> list[Any]:
    """The form's values in its order: the kept ones, where they still make sense, else the fields' own."""
    return [sound(each, kept.get(each.name, each.value)) for each in FIELDS]


def read(values: Sequence[Any]) -> dict[str, Any]:
    """The form's values by name; a field that was emptied counts as its own value."""
    return {
        each.name: each.value if value is None else sound(each, value)
        for each, value in zip(FIELDS, values, strict=True)
    }


def read_named(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The kept values by name, each sound."""
    return dict(zip(NAMES, filled(kept), strict=True))


def sound(each: Field, value: Any) -> Any:
    """The value in the field's type, or the field's own value if it has none."""
    if each.kind == CHOICE:
        return value if isinstance(value, str) and value in each.choices else each.value
    if each.kind == TICK:
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
