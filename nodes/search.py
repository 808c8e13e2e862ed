"""Parts of the search to wire: Subspace Gradient and timestep sampling. Their sockets carry settings."""

from __future__ import annotations

from typing import Any


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
        return {
            "required": {
                "tau": (
                    "INT",
                    {
                        "default": 128,
                        "min": 2,
                        "max": 65_536,
                        "tooltip": "Steps of the token's path to look at (the paper: 128; the embedded model: 21).",
                    },
                ),
                "nu": (
                    "FLOAT",
                    {
                        "default": 1e-3,
                        "min": 1e-6,
                        "max": 0.999,
                        "step": 1e-4,
                        "round": 1e-6,
                        "tooltip": "Share of the path's variance to drop as noise (the paper: 0.001).",
                    },
                ),
            }
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
        from ..zoodip_core.train.config import TIMESTEP_SAMPLERS

        return {
            "required": {
                "timesteps": (
                    list(TIMESTEP_SAMPLERS),
                    {
                        "default": "puts",
                        "tooltip": "puts: between T_L and T_U. uniform: all alike. snr: weighted by signal-to-noise "
                        "ratio. T_L and T_U count for puts alone.",
                    },
                ),
                "T_L": (
                    "INT",
                    {
                        "default": 500,
                        "min": 0,
                        "max": 999,
                        "tooltip": "Lowest timestep (the paper: 500; set 700 for SDXL).",
                    },
                ),
                "T_U": (
                    "INT",
                    {"default": 900, "min": 1, "max": 1000, "tooltip": "Timestep to stay below (the paper: 900)."},
                ),
            }
        }

    def settings(self, timesteps: str, T_L: int, T_U: int) -> tuple[dict[str, Any]]:  # noqa: N803
        from ..zoodip_core.base.errors import ConfigError

        if timesteps == "puts" and T_L >= T_U:
            raise ConfigError(f"T_L = {T_L} must be below T_U = {T_U}")
        bounds = {"t_lower": T_L, "t_upper": T_U} if timesteps == "puts" else {}
        return ({"timesteps": timesteps, **bounds},)
