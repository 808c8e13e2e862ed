"""Several tokens in one prompt: each place sees its own token's rows, and nothing of the others'."""

from __future__ import annotations

import copy

import pytest
import torch

from zoodip_core.base import rng
from zoodip_core.base.errors import CaptionError
from zoodip_core.model.load import load_quantized
from zoodip_core.model.places import Rows, rows_of
from zoodip_core.model.posteriors import CachedPosteriors
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.tokens import encode_prompt, placed
from zoodip_core.train.draws import Draw
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.timesteps import PUTS

REX, TOM = range(2), range(2, 4)
BOTH = "a {} and a {}"
DRAW = Draw(seed=0, step=0, image=0, caption=0, timestep=700)


@pytest.fixture(scope="module")
def exact() -> StableDiffusion:
    return load_quantized(weights="none")


def losses(model: StableDiffusion, text: str, rows: Rows, candidates: torch.Tensor) -> torch.Tensor:
    mean = rng.normal(0, 0, "picture", (1, 4, 12, 12))
    posteriors = CachedPosteriors(list(mean), list(torch.zeros_like(mean)), 1.0, torch.zeros(1, 6))
    return DiffusionObjective(model, posteriors, [[model.prompt(text, rows)]], PUTS()).losses(candidates, DRAW)


def candidates(count: int = 3) -> torch.Tensor:
    return 0.05 * rng.normal(1, 0, "candidates", (count, 4, 128))


def test_rows_of_places() -> None:
    assert rows_of(2, 3) == (range(2),) * 3
    assert rows_of([2, 1, 3], 0) == (range(2), range(2, 3), range(3, 6))
    assert rows_of([TOM, REX, TOM], 0) == (TOM, REX, TOM)


def test_a_token_that_is_not_named_does_not_count(tiny_model: StableDiffusion) -> None:
    tokens = candidates()
    other = tokens.clone()
    other[:, :2] = 7.0
    seen = losses(tiny_model, "a {} in the snow", [TOM], tokens)
    assert torch.equal(seen, losses(tiny_model, "a {} in the snow", [TOM], other))
    assert torch.equal(seen, losses(tiny_model, "a {} in the snow", 2, tokens[:, 2:]))
    assert not torch.equal(seen, losses(tiny_model, "a {} in the snow", [REX], tokens))


def test_each_place_has_its_own_token(tiny_model: StableDiffusion) -> None:
    tokens = candidates()
    swapped = tokens[:, [2, 3, 0, 1]]
    seen = losses(tiny_model, BOTH, [TOM, REX], tokens)
    assert torch.equal(seen, losses(tiny_model, BOTH, [REX, TOM], swapped))
    assert torch.equal(seen, losses(tiny_model, BOTH, [2, 2], swapped))  # as it is called in generate
    assert not torch.equal(seen, losses(tiny_model, BOTH, [REX, TOM], tokens))


def test_gradients_of_all_rows_are_those_of_backpropagation(exact: StableDiffusion) -> None:
    """In float64, against an own forward in which the vectors are written in by hand."""
    (encoder,) = exact.text_encoders
    encoder, unet = copy.deepcopy(encoder).double(), copy.deepcopy(exact.unet).double()
    noise = rng.normal(0, 0, "noise", (1, 4, 12, 12)).double()
    (prompt,) = exact.prompt("a {} and a {} in the snow", [TOM, REX])
    theta = candidates(1).double().requires_grad_()

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        return (unet(noise, 700, hidden).sample - noise).square().mean()

    with torch.enable_grad():
        with placed(encoder, prompt, theta) as ids:
            (ours,) = torch.autograd.grad(loss(encoder(ids)[0]), theta)
        table = encoder.get_input_embeddings()

        def written(_module: object, _inputs: object, out: torch.Tensor) -> torch.Tensor:
            pieces = list(out[0].unbind())
            for position, row in zip((2, 3, 6, 7), (2, 3, 0, 1), strict=True):
                pieces[position] = theta[0, row]
            return torch.stack(pieces)[None]

        hook = table.register_forward_hook(written)
        (theirs,) = torch.autograd.grad(loss(encoder(prompt.ids)[0]), theta)
        hook.remove()
        (alone,) = exact.prompt("a {} in the snow", [TOM])
        with placed(encoder, alone, theta) as ids:
            (of_one,) = torch.autograd.grad(loss(encoder(ids)[0]), theta)
    assert prompt.positions == (2, 3, 6, 7)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert ours.abs().amax(dim=2).min() > 0
    assert not of_one[:, :2].any()
    assert of_one[:, 2:].any()


def test_prompts_are_told_apart_by_whose_places_they_are(tiny_model: StableDiffusion) -> None:
    def told(*rows: range) -> bytes:
        return tiny_model.prompt_bytes(tiny_model.prompt(BOTH, rows))

    assert len({told(REX, REX), told(TOM, TOM), told(REX, TOM), told(TOM, REX)}) == 4
    assert told(REX, REX) == tiny_model.prompt_bytes(tiny_model.prompt(BOTH, 2))  # a run's of before


def test_a_caption_too_long_for_several_tokens(tiny_model: StableDiffusion) -> None:
    with pytest.raises(CaptionError, match=r"with 4 for its tokens; the model reads 24: shorten it or use fewer"):
        encode_prompt(tiny_model.tokenizers[0], BOTH + " red" * 20, [REX, TOM])
