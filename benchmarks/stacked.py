"""Many trainings of the embedded model side by side: one forward pass of the UNet carries the candidates of all.

A forward of the embedded model over three rows costs almost as much as one over thirty, so trainings that each ask for
a few candidates share their batches here. Nothing else is shared: every training has its own draws, and its losses
are those of :class:`DiffusionObjective` row for row, up to rounding. All counts are forward passes of one candidate.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kinds import Kind
from zoodip_core.data.images import load_images
from zoodip_core.data.prompts import captions_for
from zoodip_core.model.latents import encode_images
from zoodip_core.model.posteriors import CachedPosteriors
from zoodip_core.model.quantized import Prompt
from zoodip_core.model.stable_diffusion import StableDiffusion
from zoodip_core.model.token_table import table_of
from zoodip_core.model.tokens import EncodedPrompt, initial_vectors
from zoodip_core.tiny.concepts import Concept
from zoodip_core.train.draws import Draw, fixed_draws
from zoodip_core.train.heldout import TIMESTEPS
from zoodip_core.train.objective import DiffusionObjective
from zoodip_core.train.timesteps import PUTS, TimestepSampler

ROWS = 128
"""Candidates in one forward; more gain nothing on a CPU."""
BACKWARD = 2.0
"""What a backward costs, in forwards: for the estimate of the time alone."""


class Subject:
    """A bundled concept as the model sees it, encoded once for all of its trainings.

    Args:
        model: text encoder, tokenizer and VAE.
        concept: whose pictures and captions to read.
        num_vectors: of the token.
    """

    def __init__(self, model: StableDiffusion, concept: Concept, num_vectors: int = 1) -> None:
        self.concept = concept
        self.theta0 = initial_vectors(model.tokenizers, model.text_encoders, concept.initializer, num_vectors)
        """Its initializer's embedding, ``[num_vectors, dim]``."""
        self.model = model
        self._training = self._read(concept.images, concept.captions)
        self._heldout = self._read(concept.heldout, concept.heldout_captions)
        self.heldout = DiffusionObjective(model, *self._heldout, PUTS())
        """The objective of the pictures that are never trained on."""

    def _read(self, images: Path, captions: Path) -> tuple[CachedPosteriors, list[list[Prompt]]]:
        pictures, _ = load_images([images], self.model.info.resolution)
        texts = captions_for([picture.path for picture in pictures], captions_file=captions, token="{}")
        prompts = [[self.model.prompt(text, len(self.theta0)) for text in each] for each in texts]
        return encode_images(self.model, pictures), prompts

    def training(self, timesteps: TimestepSampler) -> DiffusionObjective:
        """The objective of the reference pictures."""
        return DiffusionObjective(self.model, *self._training, timesteps)


class Request(NamedTuple):
    """Candidates to evaluate on one draw of an objective: ``[K, num_vectors, dim]``, or flat with weights behind them.

    Weights are numbers of the stack's kind; see :class:`zoodip_core.search.staged.StagedSearch`.
    """

    objective: DiffusionObjective
    draw: Draw
    candidates: torch.Tensor


Evaluate = Callable[[Sequence[Request]], list[torch.Tensor]]


class Stack:
    """Evaluates the requests of many trainings in shared batches.

    Args:
        model: with one text encoder, as the embedded one has.
        rows: the most candidates in one forward.
        on_cost: told after each batch what it cost, in forwards of one candidate.
    """

    def __init__(
        self, model: StableDiffusion, rows: int = ROWS, on_cost: Callable[[float], None] = lambda cost: None
    ) -> None:
        self.model = model
        self.rows = rows
        self.on_cost = on_cost
        self.kind: Kind | None = None
        """Of numbers in weights that candidates may have."""
        self.forwards = 0
        """Forward passes of one candidate so far."""

    @torch.no_grad()
    def losses(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        """For each request its losses ``[K]``, float64 on the CPU, in the requests' order."""
        return self._losses(requests)

    def gradients(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        """For each request the gradient of each candidate's loss, of its candidates' shape."""
        found: list[torch.Tensor] = []
        for some in _together(requests, self.rows):  # a batch at a time: each keeps its activations
            leaves = [request.candidates.detach().clone().requires_grad_() for request in some]
            with torch.enable_grad():
                moved = [request._replace(candidates=leaf) for request, leaf in zip(some, leaves, strict=True)]
                found += torch.autograd.grad(torch.cat(self._losses(moved)).sum(), leaves)
            self.on_cost(BACKWARD * sum(len(leaf) for leaf in leaves))
        return found

    def _losses(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        noised = [self.model.noised(objective.view(draw)) for objective, draw, _ in requests]
        noisy, targets = (torch.cat(each) for each in zip(*noised, strict=True))
        timesteps = torch.tensor([draw.timestep for _, draw, _ in requests])
        candidates, numbers = self._parted([each.candidates for each in requests])
        counts = [len(each.candidates) for each in requests]
        owners = torch.arange(len(requests)).repeat_interleave(torch.tensor(counts))
        losses = []
        for rows in torch.arange(len(owners)).chunk(math.ceil(len(owners) / self.rows)):  # of equal size
            draws = owners[rows]
            hidden = self._encode([self._prompt(requests[i]) for i in draws.tolist()], candidates[rows])
            x = noisy[draws].to(self.model.device, self.model.dtype).contiguous(memory_format=torch.channels_last)
            with self._weights(None if numbers is None else numbers[rows]):
                predicted = self.model.unet(x, timesteps[draws].to(self.model.device), hidden, return_dict=False)[0]
            losses.append(_errors(predicted, targets[draws]))
            self.forwards += len(rows)
            self.on_cost(len(rows))
        return list(torch.cat(losses).split(counts))

    def _parted(self, candidates: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens ``[N, num_vectors, dim]``, and weights ``[N, numbers]`` if one of the candidates has some."""
        (dim,) = self.model.info.dims
        numbers = self.kind.numbers if self.kind else 0
        tokens = torch.cat(
            [c if c.ndim == 3 else c[:, : len(c[0]) - numbers].view(len(c), -1, dim) for c in candidates]
        )
        if all(each.ndim == 3 for each in candidates):
            return tokens, None
        plain = torch.zeros(1, numbers)
        return tokens, torch.cat([plain.expand(len(c), -1) if c.ndim == 3 else c[:, -numbers:] for c in candidates])

    def _weights(self, numbers: torch.Tensor | None) -> contextlib.AbstractContextManager[None]:
        if numbers is None or self.kind is None:
            return contextlib.nullcontext()
        return self.kind.within(self.model.unet, numbers)

    @staticmethod
    def _prompt(request: Request) -> EncodedPrompt:
        (prompt,) = request.objective.captions[request.draw.image][request.draw.caption]
        return prompt

    def _encode(self, prompts: Sequence[EncodedPrompt], candidates: torch.Tensor) -> torch.Tensor:
        """Text ``[N, length, width]`` of one prompt and one candidate a row; :func:`tokens.placed` has one prompt."""
        (encoder,) = self.model.text_encoders
        table = table_of(encoder)
        ids = torch.cat([prompt.ids for prompt in prompts])
        table.keep(ids.unique().tolist())
        places = [
            (row, place, vector)
            for row, prompt in enumerate(prompts)
            for place, vector in zip(prompt.positions, prompt.rows, strict=True)
        ]
        rows, columns, vectors = (torch.tensor(each) for each in zip(*places, strict=True))

        def fill(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            values = candidates[rows, vectors].to(output.device, output.dtype)
            return output.index_put((rows.to(output.device), columns.to(output.device)), values)

        hook = table.register_forward_hook(fill)
        try:
            hidden: torch.Tensor = encoder(ids.to(self.model.text_device)).last_hidden_state
            return hidden.to(self.model.device, self.model.dtype)
        finally:
            hook.remove()


def _errors(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """In float64 on the CPU, as the objective has them."""
    return (predicted.float().cpu().double() - target.double()).square().mean(dim=(1, 2, 3))


def _together(requests: Sequence[Request], rows: int) -> Iterable[list[Request]]:
    """The requests in groups of at most ``rows`` candidates; a larger request is a group of its own."""
    group: list[Request] = []
    for request in requests:
        if group and sum(len(each.candidates) for each in (*group, request)) > rows:
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def heldout_draws(subject: Subject, repeats: int = 2, seed: int = 2025) -> list[Draw]:
    """The fixed draws of :func:`zoodip_core.train.heldout.heldout_losses`."""
    return fixed_draws(seed, len(subject.heldout.posteriors), TIMESTEPS, repeats)


def heldout(evaluate: Evaluate, tokens: Sequence[tuple[Subject, torch.Tensor]]) -> list[float]:
    """The held-out loss of each token ``[num_vectors, dim]``, as ``zoodip_core.train.heldout`` defines it.

    All tokens of a subject see the same images, timesteps and noise (common random numbers). Flat ones have weights.
    """
    found = [math.nan] * len(tokens)
    for subject, ndim in dict.fromkeys((subject, token.ndim) for subject, token in tokens):
        places = [i for i, (each, token) in enumerate(tokens) if each is subject and token.ndim == ndim]
        candidates = torch.stack([tokens[i][1] for i in places])
        draws = heldout_draws(subject)
        losses = evaluate([Request(subject.heldout, draw, candidates) for draw in draws])
        for i, loss in zip(places, torch.stack(losses).mean(dim=0).tolist(), strict=True):
            found[i] = loss
    return found


class Search(Protocol):
    """What :func:`run` needs of a search; :class:`zoodip_core.ZerothOrderSearch` has it."""

    @property
    def candidate(self) -> torch.Tensor:
        """What is learned so far, as :meth:`ask` gives candidates."""
        ...

    def ask(self, mu_scale: float = 1.0) -> torch.Tensor:
        """Candidates of a :class:`Request`, the same until they are told of."""
        ...

    def tell(
        self, losses: torch.Tensor, lr_scale: float = 1.0, *, check_loss: float | None = None, mu_scale: float = 1.0
    ) -> None:
        """Move by the candidates' losses ``[K]``."""
        ...


@dataclass
class Lane:
    """One training among many.

    Args:
        subject: what is learned.
        objective: of the subject's reference pictures.
        search: which candidates, and what follows from their losses.
        seed: of the draws.
        lr_scale: the learning rate's factor after so many steps.
        mu_scale: the perturbation size's.
        held: draws that the token is looked at on before the step after so many, as a run of the product does.
    """

    subject: Subject
    objective: DiffusionObjective
    search: Search
    seed: int
    lr_scale: Callable[[int], float] = lambda step: 1.0
    mu_scale: Callable[[int], float] = lambda step: 1.0
    held: Callable[[int], Sequence[Draw]] = lambda step: ()
    steps: int = 0
    """Completed steps."""
    spent: int = 0
    """Forward passes of one candidate so far."""


OnMark = Callable[[int, int, torch.Tensor], None]
"""Called with a training's place in the list, a mark, and the token it has at that many forwards."""


def run(
    evaluate: Evaluate,
    lanes: Sequence[Lane],
    budget: int,
    marks: Sequence[int],
    on_mark: OnMark,
    on_step: Callable[[Lane], None] = lambda lane: None,
) -> None:
    """Train all lanes, each for at most ``budget`` forwards of one candidate.

    A training has at a mark the token of its last step that was paid by then: a step whose K candidates do not fit
    into the budget is not taken.
    """
    waiting = {i: sorted(mark for mark in marks if mark <= budget) for i in range(len(lanes))}
    active = list(range(len(lanes)))
    while active:
        going = []
        for i in active:
            requests = _requests(lanes[i])
            after = lanes[i].spent + sum(len(request.candidates) for request in requests)
            while waiting[i] and (after > waiting[i][0] or _converged(lanes[i])):
                on_mark(i, waiting[i].pop(0), lanes[i].search.candidate[0])
            if after <= budget and not _converged(lanes[i]):
                going.append((i, requests))
        found = evaluate([request for _, requests in going for request in requests]) if going else []
        for i, requests in going:
            losses, found = found[: len(requests)], found[len(requests) :]
            _tell(lanes[i], losses)
            on_step(lanes[i])
        active = [i for i, _ in going]


def _requests(lane: Lane) -> list[Request]:
    """A step's candidates, and before them the token on the draws that it is looked at on."""
    candidates = lane.search.ask(lane.mu_scale(lane.steps))
    looks = [Request(lane.objective, draw, lane.search.candidate) for draw in lane.held(lane.steps)]
    return [*looks, Request(lane.objective, lane.objective.draw(lane.seed, lane.steps), candidates)]


def _tell(lane: Lane, losses: Sequence[torch.Tensor]) -> None:
    *looks, own = losses
    check_loss = float(torch.stack(looks).mean()) if looks else None
    lane.search.tell(own, lane.lr_scale(lane.steps), check_loss=check_loss, mu_scale=lane.mu_scale(lane.steps))
    lane.steps += 1
    lane.spent += len(looks) + len(own)


def _converged(lane: Lane) -> bool:
    return bool(getattr(lane.search, "converged", False))


def descend(
    stack: Stack,
    trainings: Sequence[tuple[Subject, DiffusionObjective, int]],
    budget: int,
    marks: Sequence[int],
    on_mark: OnMark,
    lr: float = 1e-1,
    batch: int = 8,
    weights_lr: float = 0.0,
) -> None:
    """Textual inversion with gradients: Adam on the token, ``batch`` draws a step, the learning rate's cosine to 0.

    Args:
        trainings: subject, objective and seed of each.
        budget: forward passes; the backward passes come on top, uncounted.
        weights_lr: where it is above 0, numbers of the stack's kind are learned with the token at this rate.
    """
    thetas = [subject.theta0.clone().requires_grad_() for subject, _, _ in trainings]
    numbers = stack.kind.numbers if stack.kind and weights_lr else 0
    weights = [torch.zeros(1, numbers, requires_grad=True) for _ in trainings]
    rates = (lr, weights_lr)
    optimizer = torch.optim.Adam([{"params": thetas, "lr": lr}, {"params": weights, "lr": weights_lr or lr}])

    def candidate(i: int) -> torch.Tensor:
        """As a request has it."""
        token = thetas[i].detach()[None]
        return torch.cat([token.flatten(1), weights[i].detach()], dim=1) if numbers else token

    waiting = sorted(mark for mark in marks if mark <= budget)
    steps = budget // batch
    for step in range(steps + 1):
        while waiting and (step + 1) * batch > waiting[0]:
            mark = waiting.pop(0)
            for i in range(len(trainings)):
                on_mark(i, mark, candidate(i)[0].clone())
        if step == steps:
            break
        requests = [
            Request(objective, objective.draw(seed, step * batch + i), candidate(place))
            for place, (_, objective, seed) in enumerate(trainings)
            for i in range(batch)
        ]
        gradients = stack.gradients(requests)
        for i, theta in enumerate(thetas):
            own = torch.cat(gradients[i * batch : (i + 1) * batch]).mean(dim=0).flatten()
            theta.grad, weights[i].grad = own[: theta.numel()].view_as(theta), own[None, theta.numel() :]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
