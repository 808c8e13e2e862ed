"""The models that the search is measured on, and what the methods' settings are on each.

``tiny`` is the embedded model, whose vocabulary is 143 words of 128 numbers. ``words`` reads CLIP's 49,408 in CLIP's
own architecture, over the vocabulary of a real language (``tools/train_words.py``). What wins on one alone is no claim.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoodip_core.base.errors import ModelError
from zoodip_core.base.files import sha256_of
from zoodip_core.model.copy_folder import own_folder
from zoodip_core.model.load import load_quantized
from zoodip_core.model.stable_diffusion import StableDiffusion

WEIGHTS = ("text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors")
"""What training made of the words' model; its VAE is the embedded model's."""


@dataclass(frozen=True)
class World:
    """One model, and what settings become on it.

    Args:
        lr: of all searches of the paper's kind, its 5e-3 for the size of this model's words.
        tuned_lrs: other rates for the paper's search, from ``--tune``; the first is the naive search's as well.
        tune_lrs: the rates that ``--tune`` tries.
        tau: the paper's 128 of 768 numbers.
        gradient_lr: of gradient textual inversion.
        gf_dims: GF-TI's 256 of 768 numbers.
        word_size: standard deviation of the words' numbers, for normal directions.
        seconds: a forward pass of one candidate on two cores, for estimates.
    """

    name: str
    lr: float
    tuned_lrs: tuple[float, ...]
    tune_lrs: tuple[float, ...]
    tau: int
    gradient_lr: float
    gf_dims: int
    word_size: float
    seconds: float

    @property
    def model(self) -> str:
        """As :func:`load_quantized` takes it.

        Raises:
            ModelError: it has not been built yet.
        """
        if self.name == "tiny":
            return "tiny"
        folder = words_folder()
        if not folder.is_dir():
            raise ModelError(
                f"{folder} is not there: pip install -e .[words], then python tools/train_words.py --work build/words "
                "builds it in about 70 minutes"
            )
        return str(folder)

    @property
    def digest(self) -> str:
        """Which build of it this is: figures of another differ."""
        return "" if self.name == "tiny" else "-".join(sha256_of(Path(self.model) / name)[:8] for name in WEIGHTS)

    def load(self, weights: str = "int8", dtype: str = "float32", device: str = "auto") -> StableDiffusion:
        return load_quantized(self.model, weights=weights, dtype=dtype, device=device)


def words_folder() -> Path:
    """Where the words' model lies: in this user's cache.

    Raises:
        ModelError: the user has no home.
    """
    own = own_folder()
    if own is None:
        raise ModelError("nobody is at home to keep the bench's model: set ZOODIP_CACHE to a folder")
    return own / "words"


WORLDS = {
    world.name: world
    for world in (
        World("tiny", 2e-2, (8e-2, 1.6e-1), (2e-2, 4e-2, 8e-2, 1.6e-1), 21, 1e-1, 64, 0.068, 2.2e-3),
        World("words", 5e-3, (4e-2, 8e-2, 2e-2), (5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 1.6e-1), 64, 2e-2, 128, 0.014, 6e-3),
    )
}
