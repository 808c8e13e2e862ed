"""A model that says what is in a picture, through transformers."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from ..base.errors import ModelError
from ..base.stopping import Stopped, check_stop
from ..model.devices import device_of
from .files import CHATS, FLORENCE, CaptionerFiles, class_name

TASK = "<DETAILED_CAPTION>"
"""Of Florence-2."""
QUESTION = "Describe this picture in one sentence: the subject, where it is, and what else can be seen."
MOST_TOKENS = 80
"""Of a model's text."""
_BEAMS = 3
_LARGEST_SIDE = 1024
"""Of a picture as a model is given it: those that look at every pixel would take minutes over a camera's."""
_MOST_MISSING = 0.1
"""Of a model's weights: more are missing where they belong to another model of the same kind."""


class Captioner:
    """Says what is in pictures: by beam search or greedily, never by chance, and without a look at global generators.

    Nothing is loaded before the first picture.

    Args:
        files: from :func:`.files.find_captioner`.
        device: where it computes; ``auto`` is a graphics card where there is one. There it computes in float16, or in
            bfloat16 where its weights are of that type, else in float32.

    Raises:
        ConfigError: the device is not available.
    """

    own_memory = True

    def __init__(self, files: CaptionerFiles, device: str = "auto") -> None:
        self.files, self.device = files, device_of(device)
        self._model: Any = None
        self._ask: _Processor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights and activations."""
        if self.device.type != "cuda":
            return torch.float32
        # Made in bfloat16 a model's activations may be too large for float16.
        in_bfloat16 = self.files.made_for.endswith("bfloat16") and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if in_bfloat16 else torch.float16

    def describe(self, picture: Image.Image) -> str:
        """What the model says of a picture, as it says it; empty if it says nothing.

        Raises:
            ModelError: the model cannot be loaded, or fails over the picture.
            Stopped: a stop was asked for, which is answered within a forward pass.
        """
        self.load()
        check_stop()
        with self._usable(), _untouched(self.device), torch.inference_mode():
            return self._said(picture)

    def _said(self, picture: Image.Image) -> str:
        small = picture.convert("RGB")
        small.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
        assert self._ask
        inputs = self._ask.inputs(small)
        known = inspect.signature(self._model.forward).parameters
        given = {
            name: value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in inputs.items()
            if name in known
        }
        written = self._model.generate(
            **given,
            do_sample=False,
            num_beams=1 if self.files.kind in CHATS else _BEAMS,
            max_new_tokens=MOST_TOKENS,
            stopping_criteria=_stops(),
        )
        return self._ask.text(written[0].cpu(), inputs.get("input_ids"))

    def load(self) -> None:
        """Load the model, if that has not been done.

        Raises:
            ModelError: it cannot be loaded.
            Stopped: a stop was asked for.
        """
        if self._model is not None:
            return
        check_stop()
        with self._usable(), _untouched(self.device):
            self._ask = _processor(self.files)
            self._model = self._loaded()
        check_stop()

    def _loaded(self) -> Any:
        import transformers

        name = class_name(self.files.kind)
        assert name, self.files.kind
        version = tuple(map(int, re.findall(r"\d+", transformers.__version__)[:2]))
        model, about = getattr(transformers, name).from_pretrained(
            self.files.folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **{"dtype" if version >= (4, 56) else "torch_dtype": self.dtype},
        )
        weights, missing = len(model.state_dict()), len(about["missing_keys"])
        if missing > _MOST_MISSING * weights:
            raise ValueError(f"{missing} of its {weights} weights are missing: it was made for something else")
        return model.eval().to(self.device)

    @contextlib.contextmanager
    def _usable(self) -> Iterator[None]:
        """Within it whatever the library raises is an error that says which model cannot be used."""
        try:
            yield
        except (Stopped, ModelError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the library raises a dozen kinds
            why = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise ModelError(
                f"{self.files.name} cannot write captions: {why}; fetch the model again, or give another one"
            ) from error

    def unload(self) -> None:
        """Have the model leave memory; it is loaded again when it is asked."""
        self._model = self._ask = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _untouched(device: torch.device) -> Iterator[None]:
    """Within it torch's own generators may be used; after it they are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _stops() -> Any:
    """What asks for a stop after each token."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Asked(StoppingCriteria):  # type: ignore[misc]  # it has no types
        def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            check_stop()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Asked()])


# ---------------------------------------------------------------- how each kind is asked


class _Processor:
    """Pictures as a model that needs no question is given them, and its text."""

    def __init__(self, files: CaptionerFiles) -> None:
        from transformers import AutoProcessor

        self._processor = AutoProcessor.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)

    def inputs(self, picture: Image.Image) -> dict[str, torch.Tensor]:
        """What the model's ``generate`` takes."""
        return dict(self._processor(images=picture, return_tensors="pt"))

    def text(self, written: torch.Tensor, asked: torch.Tensor | None) -> str:
        """The text of the tokens that a model has written.

        Args:
            written: ``[tokens]``.
            asked: ``[1, tokens]`` of the question, if there was one.
        """
        return str(self._processor.tokenizer.decode(written, skip_special_tokens=True)).strip()


class _Florence(_Processor):
    """A picture with a task; its processor makes a question of the task, and the answer to it of the text."""

    def inputs(self, picture: Image.Image) -> dict[str, torch.Tensor]:
        self._size = picture.size
        return dict(self._processor(text=TASK, images=picture, return_tensors="pt"))

    def text(self, written: torch.Tensor, asked: torch.Tensor | None) -> str:
        text = self._processor.tokenizer.decode(written, skip_special_tokens=False)
        said = str(self._processor.post_process_generation(text, task=TASK, image_size=self._size)[TASK])
        for mark in self._processor.tokenizer.all_special_tokens:
            said = said.replace(mark, " ")
        return said.strip()


class _Chat(_Processor):
    """A question in a chat, in the form that all Qwen-VL were taught.

    The processor of the library wants torchvision for its videos, which we do not ask for; and the form in a model's
    folder is a program in Jinja, which a stranger may have written.
    """

    _MARK = "<|image_pad|>"

    def __init__(self, files: CaptionerFiles) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        local = {"local_files_only": True, "trust_remote_code": False}
        self._images = AutoImageProcessor.from_pretrained(files.folder, **local)
        self._tokenizer = AutoTokenizer.from_pretrained(files.folder, **local)

    def inputs(self, picture: Image.Image) -> dict[str, torch.Tensor]:
        seen = dict(self._images(images=[picture], return_tensors="pt"))
        count = int(seen["image_grid_thw"][0].prod()) // self._images.merge_size**2
        asked = self._tokenizer(chat(self._MARK * count), add_special_tokens=False, return_tensors="pt")
        of_picture = asked.input_ids == self._tokenizer.convert_tokens_to_ids(self._MARK)
        return {**seen, **dict(asked), "mm_token_type_ids": of_picture.long()}

    def text(self, written: torch.Tensor, asked: torch.Tensor | None) -> str:
        assert asked is not None
        return str(self._tokenizer.decode(written[asked.shape[1] :], skip_special_tokens=True)).strip()


def chat(picture: str) -> str:
    """The question about a picture as Qwen-VL reads it, with its answer to follow."""
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{picture}<|vision_end|>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )


def _processor(files: CaptionerFiles) -> _Processor:
    if files.kind == FLORENCE:
        return _Florence(files)
    return _Chat(files) if files.kind in CHATS else _Processor(files)
