"""What methods of personalization train, and the memory that takes, by count: Stable Diffusion 1.5 at full size.

    python benchmarks/trained_memory.py [--resolution 512]

Nothing is computed: the UNet lies on torch's meta device, which knows shapes alone. Counted are the UNet's weights as
each method keeps them; gradients and Adam's two means of what it trains, in float32, and the trained numbers themselves
where they are not weights; and the activations of one picture that autograd keeps for the backward pass, in float16,
without gradient checkpointing. Methods that only go forward keep none. Text encoder, VAE and temporaries are in no row.

    DreamBooth      all of the UNet (Ruiz et al. 2023)
    PEQA            the scales of int4 weights, one an output (Kim et al. 2023)
    TuneQDM         scales of int4 weights for inputs and outputs (Ryu et al. 2024)
    QLoRA           LoRAs of rank 4 on int4 weights, of all attention's projections (Dettmers et al. 2023)
    cores           what the preset two-stage learns, by gradient
    textual inversion   the token, by gradient
    two-stage       token and cores, with forward passes only
    ours            the token, with forward passes only
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import random_models
from diffusers import UNet2DConditionModel

from benchmarks.gains import table
from zoodip_core.model.frames import read_text
from zoodip_core.train.presets import TWO_STAGE

LORA_RANK = 4
TOKEN = 768
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def unet_on_meta() -> nn.Module:
    """Stable Diffusion 1.5's, in float16."""
    with torch.device("meta"):
        made = UNet2DConditionModel.from_config(random_models.configs("sd15", "full")["unet"])
    unet: nn.Module = nn.Module.to(made, torch.float16)
    return unet


def kept_for_backward(unet: nn.Module, resolution: int, trained: Iterable[nn.Parameter], text: bool) -> int:
    """Bytes of activations that autograd keeps in a forward pass of one picture.

    Args:
        trained: what needs a gradient.
        text: whether the text does, as where a token is trained.
    """
    for parameter in unet.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    own = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    seen: dict[int, torch.Tensor] = {}  # holding them, so that no other storage takes the place of one

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            seen.setdefault(storage, tensor)
        return tensor

    side = resolution // 8
    with torch.device("meta"):
        noisy = torch.empty(1, 4, side, side, dtype=torch.float16)
        hidden = torch.empty(1, 77, TOKEN, dtype=torch.float16, requires_grad=text)
        timestep = torch.empty(1, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = unet(noisy, timestep, hidden).sample.float().square().mean()
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def rows(resolution: int) -> list[list[str]]:
    """The table's."""
    unet = unet_on_meta()
    everything = list(unet.parameters())
    linear = [module for module in unet.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    attention = [module for name, module in unet.named_modules() if name.endswith(ATTENTION)]
    reading = list(read_text(unet).values())
    whole = sum(parameter.numel() for parameter in everything)
    outputs = sum(len(module.weight) for module in linear)
    int4, int8 = whole / 2 + 4 * outputs, whole + 4 * outputs
    lora = LORA_RANK * sum(sum(module.weight.shape[:2]) for module in attention)
    cores = TWO_STAGE["lora_rank"] ** 2 * len(reading)
    both_sides = sum(sum(module.weight.shape[:2]) for module in linear)
    of_weights = kept_for_backward(unet, resolution, everything, False)
    of_attention = kept_for_backward(unet, resolution, [module.weight for module in attention], False)
    of_reading = kept_for_backward(unet, resolution, [module.weight for module in reading], False)
    of_text = kept_for_backward(unet, resolution, [], True)
    methods: list[tuple[str, int, float, float, int]] = [
        # numbers trained; bytes of weights; bytes for each trained number; bytes of activations
        ("DreamBooth, float32 weights", whole, 4 * whole, 12, of_weights),
        ("DreamBooth, float16 weights, float32 Adam", whole, 2 * whole, 12, of_weights),
        ("PEQA, int4", outputs, int4, 12, of_weights),
        ("TuneQDM, int4", both_sides, int4, 16, of_weights),
        ("QLoRA, rank 4, int4", lora, int4, 16, of_attention),
        ("cores by gradient, int8", cores, int8, 16, of_reading),
        ("textual inversion, float16", TOKEN, 2 * whole, 16, of_text),
        ("two-stage, int8, forward only", TOKEN + cores, int8, 0, 0),
        ("ours, int8, forward only", TOKEN, int8, 0, 0),
        ("ours, int4, forward only", TOKEN, int4, 0, 0),
    ]
    found = []
    for name, count, weights, each, kept in methods:
        parts = (weights, each * count, kept)
        found.append([name, f"{count:,}", *(f"{size / 1e9:.2f}" for size in (*parts, sum(parts)))])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=512, metavar="PIXELS", help="default 512")
    args = parser.parse_args()
    head = ("", "numbers trained", "weights, GB", "gradients and Adam, GB", "activations kept, GB", "in all, GB")
    print(table(head, rows(args.resolution)), end="")


if __name__ == "__main__":
    main()
