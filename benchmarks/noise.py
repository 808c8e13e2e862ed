"""How much rounding there is in a finite difference of the denoising loss, by activations' type and mu.

    python benchmarks/noise.py MODEL [--size 256]

MODEL is a checkpoint or ``tiny``. The reference is (L(theta + mu e) - L(theta)) / mu at mu = 1e-3 in float32, for six
random directions e; each line says how far another type and mu are from it. In bfloat16 on a CPU both kinds of
attention are tried: torch's fused kernel, and ours in pieces.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor2_0

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoodip_core.model.attention import PiecewiseAttention
from zoodip_core.model.load import load_quantized
from zoodip_core.model.stable_diffusion import StableDiffusion

DIRECTIONS = 6
MUS = (1e-3, 1e-2, 3e-2)


@torch.no_grad()
def slopes(model: StableDiffusion, side: int, mu: float) -> torch.Tensor:
    """Six finite differences, float64; everything random in them is the same for every model and mu."""
    draw = torch.Generator().manual_seed(0)
    noisy, target = torch.randn(2, 1, 4, side, side, generator=draw)
    dims = sum(model.info.dims)
    theta = 0.02 * torch.randn(1, dims, generator=draw)
    moved = [theta + mu * torch.randn(1, dims, generator=draw) for _ in range(DIRECTIONS)]
    condition = model.encode(model.prompt("a photo of a {}", 1), torch.stack([theta, *moved]))
    predicted = model.predict(
        noisy, 600, condition, torch.tensor([8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side])
    )
    losses = (predicted.float().double() - target.double()).square().mean(dim=(1, 2, 3))
    return (losses[1:] - losses[0]) / mu


def main() -> None:
    parser = argparse.ArgumentParser(description="Rounding noise of finite differences.")
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=256, metavar="PIXELS")
    parser.add_argument("--weights", default="int8")
    args = parser.parse_args()
    side = args.size // 8
    exact = load_quantized(args.model, weights=args.weights, dtype="float32", device="cpu")
    reference = slopes(exact, side, 1e-3)
    print(f"{args.model}, {args.size} px, {args.weights} weights, torch {torch.__version__}, CPU")
    print(f"{'activations':<28} {'mu':>7} {'error':>7} {'correlation':>12}")

    def line(name: str, model: StableDiffusion, mu: float) -> None:
        found = slopes(model, side, mu)
        error = (found - reference).norm() / reference.norm()
        correlation = torch.corrcoef(torch.stack([found, reference]))[0, 1]
        print(f"{name:<28} {mu:>7g} {error:>7.3f} {correlation:>12.3f}", flush=True)

    for mu in MUS[1:]:
        line("float32", exact, mu)
    exact.unload()
    coarse = load_quantized(args.model, weights=args.weights, dtype="bfloat16", device="cpu")
    for name, processor in (("in pieces", PiecewiseAttention()), ("fused", AttnProcessor2_0())):
        coarse.unet.set_attn_processor(processor)
        for mu in MUS:
            line(f"bfloat16, attention {name}", coarse, mu)


if __name__ == "__main__":
    main()
