"""Parts of the search to wire: Subspace Gradient and timestep sampling. Their sockets carry settings."""

from __future__ import annotations

from typing import Any

from .inputs import inputs_of


class SubspaceGradient:
    """Subspace Gradient (paper, eq. 4-8): drop from each gradient what the token's own path shows to be noise."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "Subspace Gradient: every tau steps, drop from the gradients the directions in which the token has hardly "
        "moved. Leave the trainer's input unconnected to use gradients as they are estimated."
    )
    RETURN_TYPES = ("SUBSPACE_GRADIENT",)
    RETURN_NAMES = ("subspace_gradient",)
    OUTPUT_TOOLTIPS = ("For ZO Train Token.",)
    FUNCTION = "settings"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        from ..zoodip_core.train.settings import SETTINGS, SUBSPACE

        defaults = {name: SETTINGS[name].default for name in ("tau", "nu")}
        return {
            "required": inputs_of(SUBSPACE, without=("subspace_gradient",), in_sight=tuple(defaults), defaults=defaults)
        }

    def settings(self, tau: int, nu: float) -> tuple[dict[str, Any]]:
        return ({"subspace_gradient": True, "tau": tau, "nu": nu},)


class PUTSSampler:
    """Partial Uniform Timestep Sampling (paper, eq. 9), and what it is compared with."""

    CATEGORY = "ZOODiP"
    DESCRIPTION = (
        "How each step's diffusion timestep is drawn. PUTS draws between T_L and T_U, where the text matters most. "
        "Leave the trainer's input unconnected to draw from all timesteps alike."
    )
    RETURN_TYPES = ("TIMESTEP_SAMPLER",)
    RETURN_NAMES = ("timestep_sampler",)
    OUTPUT_TOOLTIPS = ("For ZO Train Token.",)
    FUNCTION = "settings"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        from ..zoodip_core.train.settings import SETTINGS, TIMESTEPS, of_part

        defaults = {each.name: SETTINGS[each.name].default for each in of_part(TIMESTEPS)}
        return {"required": inputs_of(TIMESTEPS, in_sight=tuple(defaults), defaults=defaults)}

    def settings(self, timesteps: str, T_L: int, T_U: int) -> tuple[dict[str, Any]]:  # noqa: N803
        from ..zoodip_core.base.errors import ConfigError

        if timesteps == "puts" and T_L >= T_U:
            raise ConfigError(f"T_L = {T_L} must be below T_U = {T_U}")
        bounds = {"t_lower": T_L, "t_upper": T_U} if timesteps == "puts" else {}
        return ({"timesteps": timesteps, **bounds},)
