"""A step's losses and predictions, from inputs in buffers that stay where they are: the work can be captured once.

A forward is some two thousand kernels. A graphics card is done with them sooner than Python has launched them; captured
in a CUDA graph they are launched as one. The same code runs without capture elsewhere.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..base.stopping import Stopped
from .frames import Frames, with_cores
from .graphs import Capture, Work
from .quantized import Conditioning, Prompt, QuantizedModel
from .token_table import table_of
from .tokens import filled


@dataclass(frozen=True)
class Inputs:
    """What the losses, or the model's outputs, of some candidates on one draw depend on.

    Args:
        candidates: float32 ``[K, num_vectors, sum of dims]`` on the CPU; one for all where only weights differ.
        prompt: with the token's places.
        noisy: latents ``[1, channels, height, width]``, float32 on the CPU.
        target: what the model should predict of them, of the same shape; None where its outputs are wanted.
        timestep: of the latents.
        time_ids: ``[6]``, SDXL's sizes; not used by others.
        cores: numbers in the weights, float32 ``[rows, numbers]`` on the CPU; None where weights stay as they are.
        beside: texts that are encoded already, in rows below the candidates'.
        weight: of squared errors at each place, float64 ``[height, width]`` on the CPU; None: 1.
    """

    candidates: torch.Tensor
    prompt: Prompt
    noisy: torch.Tensor
    target: torch.Tensor | None
    timestep: int
    time_ids: torch.Tensor
    cores: torch.Tensor | None = None
    beside: Conditioning | None = None
    weight: torch.Tensor | None = None

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What buffers for these inputs are made for; first the picture's, then all others'."""
        places = tuple(len(encoded.positions) for encoded in self.prompt)
        cores = None if self.cores is None else tuple(self.cores.shape)
        beside = 0 if self.beside is None else len(self.beside)
        kind = self.target is None, self.weight is None
        return (tuple(self.noisy.shape), tuple(self.candidates.shape), places, cores, *kind, beside)


class Forward:
    """Losses, or outputs, of inputs of certain shapes.

    Args:
        model: text encoders and UNet.
        like: inputs of those shapes.
        frames: of the cores, where the UNet computes.
    """

    def __init__(self, model: QuantizedModel, like: Inputs, frames: Frames | None = None) -> None:
        self._model, self._frames = model, frames
        text, device = model.text_device, model.device
        at = device if device.type in ("cpu", "cuda") else torch.device("cpu")  # others may have no float64
        parts = like.candidates.split(model.info.dims, dim=-1)
        self._ids = [torch.empty_like(encoded.ids, device=text) for encoded in like.prompt]
        self._places, self._rows = (
            [torch.empty(len(e.positions), dtype=torch.long, device=text) for e in like.prompt] for _ in range(2)
        )
        self._candidates = [torch.empty(part.shape, dtype=torch.float32, device=text) for part in parts]
        self._cores = None if like.cores is None else torch.empty(like.cores.shape, dtype=model.dtype, device=device)
        self._noisy = torch.empty(like.noisy.shape, dtype=model.dtype, device=device)
        self._target = None if like.target is None else torch.empty(like.target.shape, dtype=torch.float64, device=at)
        self._weight = None if like.weight is None else torch.empty(like.weight.shape, dtype=torch.float64, device=at)
        self._beside = None if like.beside is None else like.beside.copied()
        self._timestep = torch.empty(1, dtype=torch.long, device=device)
        self._time_ids = torch.empty(6, dtype=torch.float32, device=device)
        self._condition: Conditioning | None = None
        """Of text encoders on another device, whose work is no part of what is captured."""
        self._of = [weakref.ref(part) for part in self._parts()]
        self._warm = False
        self._replay: Work | None = None

    def _parts(self) -> list[Any]:
        """What is computed with: where one is another than it was, what was captured is of no use any more."""
        encoders = self._model.text_encoders
        return [self._model.unet, *encoders, *(table_of(encoder).weight for encoder in encoders)]

    @property
    def is_current(self) -> bool:
        """Whether the model's parts are those that this was made with."""
        return all(part() is other for part, other in zip(self._of, self._parts(), strict=True))

    def fill(self, inputs: Inputs) -> None:
        """Put inputs into the buffers."""
        parts = inputs.candidates.split(self._model.info.dims, dim=-1)
        for i, (encoded, part) in enumerate(zip(inputs.prompt, parts, strict=True)):
            self._ids[i].copy_(encoded.ids)
            self._places[i].copy_(torch.tensor(encoded.positions, dtype=torch.long))
            self._rows[i].copy_(torch.tensor(encoded.rows, dtype=torch.long))
            self._candidates[i].copy_(part)
        if self._cores is not None and inputs.cores is not None:
            self._cores.copy_(inputs.cores)
        self._noisy.copy_(inputs.noisy)
        if self._target is not None and inputs.target is not None:
            self._target.copy_(inputs.target)
        if self._weight is not None and inputs.weight is not None:
            self._weight.copy_(inputs.weight)
        if self._beside is not None and inputs.beside is not None:
            self._beside.fill(inputs.beside)
        self._timestep.fill_(inputs.timestep)
        self._time_ids.copy_(inputs.time_ids)
        if self._model.text_device != self._model.device and len(inputs.candidates):
            if self._condition is None:
                self._condition = self._encoded()
            else:
                self._condition.fill(self._encoded())

    def _encoded(self) -> Conditioning:
        widths = self._model.info.dims
        outputs = []
        encoders = self._model.text_encoders
        buffers = zip(encoders, self._ids, self._places, self._rows, self._candidates, strict=True)
        for encoder, ids, places, rows, candidates in buffers:
            with filled(encoder, places, rows, candidates):
                outputs.append(encoder(ids.expand(len(candidates), -1), output_hidden_states=len(widths) > 1))
        return self._model.conditioning(outputs)

    def compute(self) -> torch.Tensor:
        """The losses ``[K]`` of what is in the buffers, float64: their small differences steer the search.

        Without a target the outputs, float32 ``[rows, ...]``. Nothing here reads from the host, or waits for it.
        """
        condition = self._texts()
        with self._weights():
            if self._cores is not None:
                condition = condition.repeated(len(self._cores))
            predicted = self._model.predict(self._noisy, self._timestep, condition, self._time_ids)
        assert not predicted.requires_grad, "forward passes only: no autograd graph may be built"
        if self._target is None:
            return predicted.float()
        error = predicted.float().to(self._target.device).double() - self._target
        squares = error.square() if self._weight is None else error.square() * self._weight
        return squares.mean(dim=(1, 2, 3))

    def _texts(self) -> Conditioning:
        if self._beside is None:
            return self._condition or self._encoded()
        if not len(self._candidates[0]):
            return self._beside
        return (self._condition or self._encoded()).joined(self._beside)

    def _weights(self) -> contextlib.AbstractContextManager[None]:
        if self._cores is None or self._frames is None:
            return contextlib.nullcontext()
        return with_cores(self._model.unet, self._frames, self._cores)

    @property
    def is_captured(self) -> bool:
        """Whether it holds a graph's memory, or is about to."""
        return self._warm

    def losses(self, capture: Capture | None) -> torch.Tensor:
        """:meth:`compute`'s losses on the CPU; captured at the second call, since libraries warm up at the first.

        Raises:
            Exception: of several kinds: it cannot be captured, or there is no room.
        """
        if capture is None:
            return self.compute().cpu()
        if not self._warm:
            found = self.compute().cpu()
            self._warm = True
            return found
        if self._replay is None:
            self._replay = capture(self.compute)
        return self._replay().cpu()


class Forwards:
    """Losses, or outputs, of inputs of any shapes: for each shape a :class:`Forward`.

    Args:
        model: text encoders and UNet.
        prompts: those that inputs may have.
        capture: of the model's device; None to launch the work anew each time.
        on_plain: told why in a line when capturing is given up.
        frames: of the cores that inputs may have.
        captured: how many shapes of pictures are captured. Work on others is launched anew each time, since a capture
            takes as long as many steps.
    """

    _MOST = 8
    """Shapes that are remembered, of a picture's: captions with a place and with two, checks of one candidate."""

    def __init__(
        self,
        model: QuantizedModel,
        prompts: Iterable[Prompt] = (),
        capture: Capture | None = None,
        on_plain: Callable[[str], None] = lambda line: None,
        frames: Frames | None = None,
        captured: int = 1,
    ) -> None:
        self._model, self._capture, self._on_plain, self._captured = model, capture, on_plain, captured
        self._frames = frames and frames.on(model.device, model.dtype)
        by_encoder = zip(*prompts, strict=True)
        self._ids = [sorted({i for encoded in each for i in encoded.ids[0].tolist()}) for each in by_encoder]
        self._known: dict[tuple[Any, ...], Forward] = {}

    def losses(self, inputs: Inputs) -> torch.Tensor:
        """The losses ``[K]`` of the inputs, float64 on the CPU; :meth:`Forward.compute`'s outputs without a target.

        Raises:
            OutOfMemoryError: there is no room, and nothing captured that could make some.
        """
        forward = self._forward(inputs)
        forward.fill(inputs)
        if self._capture is None:
            return forward.losses(None)
        try:
            return forward.losses(self._capture if inputs.shapes in self._known else None)
        except Stopped:
            raise
        except torch.OutOfMemoryError:
            if not any(each.is_captured for each in self._known.values()):
                raise
            why = "the device ran out of memory"
        except Exception as error:  # of an old driver, a library that asks the host, and what else there is
            why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        # Outside of the except block: the exception held the failed forward's tensors.
        del forward
        self._known.clear()
        self._capture = None
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        self._on_plain(f"graphs: {why}; each step is launched kernel by kernel from here on: the same result, slower")
        return self.losses(inputs)

    def _forward(self, inputs: Inputs) -> Forward:
        for encoder, ids, encoded in zip(
            self._model.text_encoders, self._ids or [[]] * len(inputs.prompt), inputs.prompt, strict=True
        ):
            table_of(encoder).keep([*ids, *encoded.ids[0].tolist()])
        known = self._known.get(inputs.shapes)
        if known is None or not known.is_current:
            known = Forward(self._model, inputs, self._frames)
            self._known = {shapes: each for shapes, each in self._known.items() if each.is_current}
            if self._room_for(inputs.shapes):
                self._known[inputs.shapes] = known
        return known

    def _room_for(self, shapes: tuple[Any, ...]) -> bool:
        """Whether these shapes are to be remembered; what is captured stays, of others the oldest make room."""
        if self._capture is not None:
            alike = sum(known[1:] == shapes[1:] for known in self._known)
            return alike < self._captured and len(self._known) < self._MOST * self._captured
        while len(self._known) >= self._MOST:
            self._known.pop(next(iter(self._known)))
        return True
