"""The settings of a training run: checked, and saved as JSON."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..base.errors import ConfigError, TokenError
from ..base.names import check_name, file_stem
from ..base.texts import parse_json
from ..data.images import CROPS, check_resolution
from ..data.prompts import SLOT, TEMPLATES, with_slots
from ..model.blueprint import DTYPES, PREDICTION_TYPES, TINY
from ..model.quantize import WEIGHTS
from ..model.tokens import INITIALIZER_MODES
from ..search.estimators import RGE, SPSA, Estimator, OnePoint
from ..search.guard import Guard
from ..search.optimizers import ZOSGD, NormalizedSGD, Optimizer, ZOAdam
from ..search.preconditioner import Spread
from ..search.subspace import SubspaceGradient
from ..search.zeroth_order import ZerothOrderSearch
from .draws import Draw, spread_draws
from .presets import PRESETS, check_given, preset_of
from .timesteps import PUTS, SNRTimesteps, TimestepSampler, UniformTimesteps

CONFIG_VERSION = 1
ESTIMATORS: dict[str, Callable[..., Estimator]] = {"rge": RGE, "spsa": SPSA, "one-point": OnePoint}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"zoadam": ZOAdam, "zosgd": ZOSGD, "normalized-sgd": NormalizedSGD}
DIRECTIONS = ("normal", "vocabulary")
LR_SCHEDULES = ("constant", "cosine")
HELD_DRAWS, HELD_SHARE = 8, 0.05
"""Draws on which the token's loss is looked at now and then, and the share of forward passes that they may take."""
TIMESTEP_SAMPLERS = ("puts", "uniform", "snr")

_CHOICES = {
    "weights": WEIGHTS,
    "dtype": ("auto", *DTYPES),
    "prediction_type": PREDICTION_TYPES,
    "crop": CROPS,
    "template": tuple(TEMPLATES),
    "initializer_mode": INITIALIZER_MODES,
    "directions": DIRECTIONS,
    "estimator": tuple(ESTIMATORS),
    "optimizer": tuple(OPTIMIZERS),
    "lr_schedule": LR_SCHEDULES,
    "timesteps": TIMESTEP_SAMPLERS,
}
_RANGES = {
    "num_vectors": (1, 75),
    "steps": (1, 10_000_000),
    "save_every": (1, 10_000_000),
    "sample_every": (0, 10_000_000),
    "seed": (0, 2**63 - 1),
    "resolution": (0, 4096),
    "batch": (0, 1024),
    "averaging": (0, 1),
    "checks": (0, 10_000),
    "patience": (0, 10_000),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run. The defaults are the paper's for SD1.5 (section 4).

    Args:
        images: folders or image files of the subject.
        token: the placeholder, such as ``<pip>``.
        initializer: the word whose embedding the token starts from.
        model: a checkpoint file, a diffusers folder, or ``tiny``.
        weights: storage of Linear and Conv2d weights: int8, int4, float8, none.
        dtype: activations: auto, float32, float16, bfloat16.
        device: auto, cpu, cuda, ...
        prediction_type: auto, or epsilon / v_prediction where the model's file does not tell.
        batch: candidates in one forward pass, 0 for as many as there is room for.
        cache: folder for quantised copies of models, which load in seconds; none if None.
        captions: a JSON file of captions for each image.
        template: captions for images that have none: object, style, ti.
        resolution: pixels a side; 0 is the model's own.
        crop: center cuts the middle square, resize forces both sides.
        background: colour behind transparent images.
        flip: train on mirror images as well.
        num_vectors: vectors in the token.
        initializer_mode: single, or mean / first for a word of several tokens.
        steps: optimisation steps.
        seed: of every random draw.
        estimator: rge, spsa, one-point.
        n: random directions a step.
        mu: perturbation size; of vocabulary directions in the distance of words from their mean.
        mu_end: the share of mu to which it falls over the run, as a cosine; 1: it stays.
        directions: random directions: normal (the paper's), or shaped as the model's vocabulary.
        subspace_gradient: whether to use Subspace Gradient.
        tau: its buffer, in steps.
        nu: the share of variance it drops.
        timesteps: puts, uniform, snr.
        t_lower: T_L of PUTS.
        t_upper: T_U of PUTS.
        optimizer: zoadam, zosgd, normalized-sgd.
        lr: learning rate, in the units of mu; of zosgd the factor of the gradient itself.
        lr_schedule: constant, or cosine (falls to 0 over the run).
        averaging: the share of the steps so far, about the last ones, whose mean is the token. 0: the last one alone.
        adapt_mu: whether mu is doubled until losses differ by more than rounding. A run's folder has the result.
        checks: how often in a run, at most, the token's loss is looked at on draws that stay the same, 0 for never.
            Where it shows that the search diverged, the token goes back to its best.
        patience: checks without progress after which the run ends early, with its best token; 0 for never.
        save_every: steps between saved states.
        sample_every: steps between sample images, 0 for none.
        sample_prompt: the samples' prompt, ``{}`` for the token.

    Raises:
        ConfigError: a value of the wrong type or out of range.
        TokenError: a placeholder that can not be used.
    """

    images: tuple[str, ...]
    token: str
    initializer: str
    model: str = TINY
    weights: str = "int8"
    dtype: str = "auto"
    device: str = "auto"
    prediction_type: str = "auto"
    batch: int = 0
    cache: str | None = None
    captions: str | None = None
    template: str = "object"
    resolution: int = 0
    crop: str = "center"
    background: str = "white"
    flip: bool = False
    num_vectors: int = 1
    initializer_mode: str = "single"
    steps: int = 30_000
    seed: int = 0
    estimator: str = "rge"
    n: int = 2
    mu: float = 1e-3
    mu_end: float = 1.0
    directions: str = "normal"
    subspace_gradient: bool = True
    tau: int = 128
    nu: float = 1e-3
    timesteps: str = "puts"
    t_lower: int = 500
    t_upper: int = 900
    optimizer: str = "zoadam"
    lr: float = 5e-3
    lr_schedule: str = "constant"
    averaging: float = 0.0
    adapt_mu: bool = False
    checks: int = 0
    patience: int = 0
    save_every: int = 500
    sample_every: int = 0
    sample_prompt: str = "a photo of a {}"

    def __post_init__(self) -> None:
        images: Any = (self.images,) if isinstance(self.images, str) else self.images
        if not isinstance(images, (list, tuple)) or not all(isinstance(path, (str, os.PathLike)) for path in images):
            raise ConfigError(f"images = {images!r}: expected a list of paths")
        object.__setattr__(self, "images", tuple(str(path) for path in images))
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, _typed(spec.name, str(spec.type), getattr(self, spec.name)))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: choose one of {', '.join(choices)}")
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be from {low} to {high}")
        if not self.images:
            raise ConfigError("images: give a folder of images or image files")
        check_resolution(self.resolution)
        check_name(self.token)
        if SLOT not in with_slots(self.sample_prompt, self.token):
            raise ConfigError(
                f"sample_prompt = {self.sample_prompt!r} has no placeholder; write {{}} where the token should stand"
            )
        if file_stem(self.token).lower() == "state":
            raise TokenError(f"token {self.token!r} names a file of every run; choose a name of letters, like <my-cat>")
        if not 0 < self.mu_end <= 1:
            raise ConfigError(f"mu_end = {self.mu_end}: the share of mu at the end must be above 0 and at most 1")
        for name, value in self.to_dict().items():
            if re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
                raise ConfigError(f"{name} = {value!r}: holds half a character, which no file can keep; write it anew")
        # To check their ranges, in use or not.
        self.make_estimator(), self.make_timesteps(), self.make_optimizer(), SubspaceGradient(self.tau, self.nu)

    def make_estimator(self) -> Estimator:
        return ESTIMATORS[self.estimator](n=self.n, mu=self.mu)

    def make_subspace(self) -> SubspaceGradient | None:
        return SubspaceGradient(tau=self.tau, nu=self.nu) if self.subspace_gradient else None

    def make_optimizer(self) -> Optimizer:
        return OPTIMIZERS[self.optimizer](lr=self.lr)

    def make_search(self, theta0: Tensor, spread: Spread | None = None) -> ZerothOrderSearch:
        """The search from a starting token ``[num_vectors, dim]`` on.

        Args:
            spread: the vocabulary's, if the directions have its shape.
        """
        assert (spread is not None) == (self.directions == "vocabulary")
        return ZerothOrderSearch(
            theta0,
            self.make_estimator(),
            self.make_subspace(),
            self.make_optimizer(),
            self.seed,
            spread,
            Guard(self.patience),
            self.averaging,
        )

    def mu_scale(self, step: int) -> float:
        """The schedule's factor for mu after so many completed steps."""
        return 1.0 if self.mu_end == 1 else self.mu_end + (1 - self.mu_end) * _cosine(step / self.steps)

    def fixed_draws(self, images: int, count: int = HELD_DRAWS) -> list[Draw]:
        """The draws on which the token's loss is looked at now and then; the same all through a run."""
        t_lower, t_upper = (self.t_lower, self.t_upper) if self.timesteps == "puts" else (0, 1000)
        return spread_draws(self.seed, images, t_lower, t_upper, count)

    def checked(self, step: int) -> bool:
        """Whether the loss on draws that stay the same is looked at before the step after so many completed ones."""
        if not self.checks:
            return False
        least = HELD_DRAWS / (HELD_SHARE * self.make_estimator().num_candidates)
        return step % math.ceil(max(self.steps / self.checks, least)) == 0

    def lr_scale(self, step: int) -> float:
        """The schedule's factor for the learning rate after so many completed steps."""
        if self.lr_schedule == "constant":
            return 1.0
        return _cosine(step / self.steps)

    @property
    def can_grow(self) -> bool:
        """Whether the number of steps decides nothing but where the run ends, so that it can be made longer."""
        return self.lr_schedule == "constant" and self.mu_end == 1 and not self.checks

    def make_timesteps(self, alphas_cumprod: Any = None) -> TimestepSampler:
        if self.timesteps == "puts":
            return PUTS(self.t_lower, self.t_upper)
        return UniformTimesteps() if self.timesteps == "uniform" else SNRTimesteps(alphas_cumprod)

    @classmethod
    def from_preset(cls, preset: str, **settings: Any) -> TrainConfig:
        """The paper's settings for a named kind of model, with yours on top."""
        if preset not in PRESETS:
            raise ConfigError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
        return cls.from_dict({**PRESETS[preset], **settings})

    @classmethod
    def with_preset(cls, preset: str, given: dict[str, Any]) -> TrainConfig:
        """The settings of a preset for the model that ``given`` names, with what is given on top.

        Args:
            preset: of :data:`presets.PACES` or :data:`presets.PRESETS`.
            given: settings by name.

        Raises:
            ZoodipError: of the kind that tells what is wrong with them.
        """
        base = preset_of(given, preset)
        config = cls.from_dict({**base, **given})
        check_given(config.to_dict(), base, given)
        return config

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> TrainConfig:
        """Settings by name; an unknown name is an error."""
        names = [spec.name for spec in dataclasses.fields(cls)]
        for key in settings:
            if key not in names:
                near = difflib.get_close_matches(key[:80], names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(names)}"
                raise ConfigError(f"config: {key!r} is no setting; {hint}")
        missing = [name for name in ("images", "token", "initializer") if name not in settings]
        if missing:
            raise ConfigError(f"config: {', '.join(missing)} must be given")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "images": list(self.images)}

    def to_json(self) -> str:
        return json.dumps({"config_version": CONFIG_VERSION, **self.to_dict()}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "config") -> TrainConfig:
        """Read :meth:`to_json`'s text; ``where`` names it in errors."""
        return cls.from_dict(cls.settings_from_json(text, where))

    @staticmethod
    def settings_from_json(text: str, where: str = "config") -> dict[str, Any]:
        """The settings in :meth:`to_json`'s text as they stand, not yet checked."""
        try:
            data = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"{where} is not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{where} is not a JSON object of settings")
        version = data.pop("config_version", None)
        if version is None:
            raise ConfigError(f'{where} has no config_version; add "config_version": {CONFIG_VERSION}')
        if version != CONFIG_VERSION:
            raise ConfigError(
                f"{where} has config_version {version}, this program reads {CONFIG_VERSION}; "
                "update ZOODiP, or start a new run"
            )
        return data


def _cosine(share: float) -> float:
    """From 1 at the start to 0 at the end."""
    return 0.5 * (1 + math.cos(math.pi * share))


def _typed(name: str, annotation: str, value: Any) -> Any:
    """The value, if it is of the annotated type; whole numbers pass as floats."""
    if annotation == "float" and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{name} is a number of {len(str(value))} digits, which is too large") from None
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (float,),
        "bool": (bool,),
        "str | None": (str, type(None)),
        "tuple[str, ...]": (tuple,),
    }
    if not isinstance(value, kinds[annotation]) or (isinstance(value, bool) and annotation != "bool"):
        raise ConfigError(f"{name} = {value!r}: expected {annotation.replace('tuple[str, ...]', 'a list of paths')}")
    return value
