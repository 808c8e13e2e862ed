"""A run's settings as what they make: the search, the schedules, the draws; and as JSON."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, zeros

from ..base.errors import ConfigError
from ..base.texts import parse_json
from ..data.prompts import ADJECTIVE, SLOT, STYLE, of_template
from ..data.slots import Subject
from ..model.kinds import TINY
from ..model.recognise import identify
from ..search.estimators import ESTIMATORS, Estimator
from ..search.guard import Guard
from ..search.optimizers import OPTIMIZERS, Optimizer
from ..search.preconditioner import Spread
from ..search.staged import PURPOSE, StagedSearch
from ..search.subspace import SubspaceGradient
from ..search.zeroth_order import ZerothOrderSearch
from .alignment import forwards_beside
from .draws import Draw, spread_draws
from .presets import PAPER_PRESETS, check_given, preset_for
from .setting import paths_of
from .settings import NORMAL, SETTINGS, Settings
from .timesteps import PUTS, SNRTimesteps, TimestepSampler, UniformTimesteps

CONFIG_VERSION = 1
Search = ZerothOrderSearch | StagedSearch
CHECK_DRAWS, CHECK_SHARE = 8, 0.05
"""Draws on which the token's loss is looked at now and then, and the share of forward passes that they may take."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    __doc__ = Settings.__doc__

    def __post_init__(self) -> None:
        super().__post_init__()
        default = SETTINGS["sample_prompt"].default
        if self.targets and self.sample_prompt == default:
            target = self.targets[0]
            alone = len(self.tokens) == 1
            object.__setattr__(self, "sample_prompt", target.text if alone else target.with_names(self.tokens))
        alone = len(self.tokens) == 1  # of several each has a prompt of its own
        if alone and self.template == ADJECTIVE and self.sample_prompt == default:
            object.__setattr__(self, "sample_prompt", of_template(ADJECTIVE, self.class_word)[0])
        # To check what concerns several settings, in use or not.
        self.make_estimator(), self.make_timesteps(), self.make_optimizer(), SubspaceGradient(self.tau, self.nu)
        if self.lora_lr * self.lora_weight_decay >= 1:
            raise ConfigError(
                f"lora_weight_decay = {self.lora_weight_decay:g}: a step shrinks weights by this times lora_lr = "
                f"{self.lora_lr:g}, which must be below 1; lower one of them"
            )

    def subject(self, number: int = 0) -> Subject:
        """What a caption that is written for a picture of one of the tokens is to name."""
        alone, token = len(self.tokens) == 1, self.tokens[number]
        return Subject(
            (self.class_words or self.initializers)[number],
            keep_word=bool(self.class_words),
            style=self.template == STYLE,
            token=SLOT if alone else token,  # {} could be any of several
            names=(token,),
        )

    def make_estimator(self) -> Estimator:
        return ESTIMATORS[self.estimator](n=self.n, mu=self.mu)

    def make_subspace(self) -> SubspaceGradient | None:
        return SubspaceGradient(tau=self.tau, nu=self.nu) if self.subspace_gradient else None

    def make_optimizer(self, lr: float | None = None, weight_decay: float = 0.0) -> Optimizer:
        lr = self.lr if lr is None else lr
        more = {"eps": self.eps} if self.optimizer == "zoadam" else {}
        return OPTIMIZERS[self.optimizer](lr=lr, weight_decay=weight_decay, **more)

    def make_search(self, theta0: Tensor, spread: Spread | None = None, numbers: int = 0) -> Search:
        """The search from a starting token ``[num_vectors, dim]`` on.

        Args:
            spread: the shape of the directions, if they are not normal.
            numbers: of the weights that are learned as well, from 0 on.
        """
        assert (spread is not None) == (self.directions != NORMAL)
        assert (numbers > 0) == (self.lora_rank > 0)
        token = self.make_token_search(theta0, spread)
        if not numbers:
            return token
        cores = ZerothOrderSearch(
            zeros(1, numbers),
            ESTIMATORS[self.estimator](n=self.n, mu=self.lora_mu),
            None,
            self.make_optimizer(self.lora_lr, self.lora_weight_decay),
            self.seed,
            None,
            Guard(self.patience),
            self.averaging,
            purpose=PURPOSE,
        )
        return StagedSearch(token, cores, self.token_steps, self.lora_with_token)

    @property
    def forwards_for_target(self) -> int:
        """Forward passes of a step beside its candidates', 0 without a target prompt."""
        guidance = self.alignment_alpha, self.alignment_beta
        return forwards_beside(*guidance, own_weights=self.lora_rank > 0) if self.aligned else 0

    @property
    def token_steps(self) -> int:
        """Steps, at most, in which the token alone is searched."""
        return self.steps - max(1, round(self.lora_share * self.steps)) if self.lora_rank else self.steps

    def make_token_search(self, theta0: Tensor, spread: Spread | None = None) -> ZerothOrderSearch:
        """The search for the token alone."""
        return ZerothOrderSearch(
            theta0,
            self.make_estimator(),
            self.make_subspace(),
            self.make_optimizer(),
            self.seed,
            spread,
            Guard(self.patience),
            self.averaging,
            self.radius if spread else 0.0,
        )

    def _through(self, step: int, began: int) -> float:
        """How far a stage is after so many completed steps, from 0 to 1."""
        ends = self.token_steps if step < self.token_steps and not began else self.steps
        return (step - began) / (ends - began)

    def mu_scale(self, step: int, began: int = 0) -> float:
        """The schedule's factor for mu after so many completed steps.

        Args:
            began: how many there were before the stage.
        """
        return 1.0 if self.mu_end == 1 else self.mu_end + (1 - self.mu_end) * _cosine(self._through(step, began))

    def check_draws(self, images: int, count: int = CHECK_DRAWS) -> list[Draw]:
        """The draws on which the token's loss is looked at now and then; the same all through a run."""
        t_lower, t_upper = (self.t_lower, self.t_upper) if self.timesteps == "puts" else (0, 1000)
        return spread_draws(self.seed, images, t_lower, t_upper, count)

    def checked(self, step: int, began: int = 0) -> bool:
        """Whether the loss on draws that stay the same is looked at before the step after so many completed ones.

        Args:
            began: how many there were before the stage: its first step is always looked at.
        """
        if not self.checks:
            return False
        more = self.forwards_for_target
        least = CHECK_DRAWS * (1 + more) / (CHECK_SHARE * (self.make_estimator().num_candidates + more))
        return (step - began) % math.ceil(max(self.steps / self.checks, least)) == 0

    def lr_scale(self, step: int, began: int = 0) -> float:
        """The schedule's factor for the learning rate after so many completed steps; ``began`` as in mu_scale."""
        return 1.0 if self.lr_schedule == "constant" else _cosine(self._through(step, began))

    @property
    def can_grow(self) -> bool:
        """Whether the number of steps decides nothing but where the run ends, so that it can be made longer."""
        return self.lr_schedule == "constant" and self.mu_end == 1 and not self.checks and not self.lora_rank

    def make_timesteps(self, alphas_cumprod: Any = None) -> TimestepSampler:
        if self.timesteps == "puts":
            return PUTS(self.t_lower, self.t_upper)
        return UniformTimesteps() if self.timesteps == "uniform" else SNRTimesteps(alphas_cumprod)

    @classmethod
    def from_preset(cls, preset: str, **settings: Any) -> TrainConfig:
        """The paper's settings for a named kind of model, with yours on top."""
        if preset not in PAPER_PRESETS:
            raise ConfigError(f"preset {preset!r} is unknown; choose one of {', '.join(PAPER_PRESETS)}")
        return cls.from_dict({**PAPER_PRESETS[preset], **settings})

    @classmethod
    def with_preset(cls, preset: str, given: dict[str, Any]) -> TrainConfig:
        """The settings of a preset for the model that ``given`` names, with what is given on top.

        Args:
            preset: of :data:`presets.PRESETS` or :data:`presets.PAPER_PRESETS`.
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
                raise ConfigError(f"config: {key!r} is not a setting; {hint}")
        missing = [name for name in ("images", "token", "initializer") if name not in settings]
        if missing:
            raise ConfigError(f"config: {', '.join(missing)} must be given")
        return cls(**settings)

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


def preset_of(settings: Mapping[str, Any], name: str = "default") -> dict[str, Any]:
    """What a preset's name stands for, with the model that some settings name. Its tensors' names are looked at.

    Args:
        settings: of which model, clip, vae, prediction_type, weights and dtype count, where they are given.
        name: of :data:`presets.PRESETS` or :data:`presets.PAPER_PRESETS`.

    Raises:
        ConfigError: an unknown name, or a setting that is not a text.
        ModelError: the model is missing, damaged, or of a family that is not supported.
    """
    if name in PAPER_PRESETS:
        return dict(PAPER_PRESETS[name])
    known = {"model": TINY, "prediction_type": "auto", "weights": "int8", "dtype": "auto"}
    given = {key: settings.get(key, value) for key, value in known.items()}
    for key, value in given.items():
        if not isinstance(value, str):
            raise ConfigError(f"{key} = {value!r}: expected a text")
    clip, vae = paths_of("clip", settings.get("clip", ())), settings.get("vae")
    if not isinstance(vae, str | None):
        raise ConfigError(f"vae = {vae!r}: expected a text")
    family = identify(given["model"], given["prediction_type"], clip=clip, vae=vae).family
    return preset_for(family, given["weights"], given["dtype"], name)
