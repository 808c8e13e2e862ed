"""Names of a checkpoint's tensors as Stable Diffusion's own program gives them, whatever saved the file.

Trainers wrap a network before they save it (``module.``), nest it (``state_dict.``), save the UNet alone, or its
averages alone, in whose names the dots are missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection

UNET, VAE = "model.diffusion_model.", "first_stage_model."
AVERAGES = "model_ema.diffusion_model"
"""Begins the averages' names, in which no dot follows."""
_WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module|state_dict)\."
)
"""Of DataParallel, ``torch.compile``, DeepSpeed, FSDP and Lightning."""
_UNET_TELLS = ("input_blocks.0.0.weight", "up_blocks.0.resnets.0.conv1.weight")
"""In LDM's layout and in diffusers'. A ControlNet has no upward blocks, a VAE's lie in its decoder."""
_NO_UNET = re.compile(r"(.*\.)?(control_model|decoder|model_ema|lora\w*)\.")
_UNET_TOPS = re.compile(
    r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out|down_blocks|mid_block|up_blocks|conv_in"
    r"|conv_norm_out|conv_out|time_embedding|add_embedding)\."
)


def canonical(names: Collection[str]) -> dict[str, str]:
    """The tensors' names as LDM has them, each with its name in the file.

    Args:
        names: those in the file. What is of no known kind keeps its name.
    """
    own = without_wrappers(names)
    prefix = _unet_prefix(own)
    if prefix is None:
        return {_average(name): each for name, each in own.items()}
    if prefix.endswith(UNET):
        outer = prefix.removesuffix(UNET)
        return {name.removeprefix(outer): each for name, each in own.items()}
    if prefix:
        return {UNET * name.startswith(prefix) + name.removeprefix(prefix): each for name, each in own.items()}
    return {UNET * bool(_UNET_TOPS.match(name)) + name: each for name, each in own.items()}


def without_wrappers(names: Collection[str]) -> dict[str, str]:
    """The tensors' names without what trainers wrap networks in, each with its name in the file."""
    own: dict[str, str] = {}
    for name in names:
        own.setdefault(_WRAPPERS.sub("", name), name)
    return own


def _unet_prefix(names: Collection[str]) -> str | None:
    """What stands before the UNet's names; None if there is none."""
    found = {name.removesuffix(tell) for tell in _UNET_TELLS for name in names if name.endswith(tell)}
    usable = [prefix for prefix in found if not _NO_UNET.match(prefix) and (not prefix or prefix.endswith("."))]
    return min(usable, key=lambda prefix: (not prefix.endswith(UNET), len(prefix)), default=None)


_WORDS = re.compile(
    r"(input_blocks|output_blocks)(\d+)(\d)|(middle_block)(\d)|(time_embed)(\d)|(label_emb)(\d)(\d)"
    r"|(transformer_blocks)(\d+)|((?:in|out|emb)_layers)(\d)|(to_out)(\d)|(ff)(net)(\d)|(out)(\d)"
    r"|(attn[12]|to_[qkv]|norm[123]?|proj_in|proj_out|proj|skip_connection|op|conv|weight|bias)"
)


def _average(name: str) -> str:
    """The name of the tensor whose average this is, with its dots; another name as it is."""
    if not name.startswith(AVERAGES):
        return name
    text = name[len(AVERAGES) :].lstrip(".")
    words = [word for match in _WORDS.finditer(text) for word in match.groups() if word]
    return UNET + (".".join(words) if "".join(words) == text else text)
