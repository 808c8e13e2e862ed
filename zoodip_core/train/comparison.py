"""Several tokens side by side, so that a person can choose: a row for each, in the columns the same seeds.

Made for tokens of one subject that were aligned with a target prompt more and less; it serves any tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ..base.errors import ConfigError, LoraFileError
from ..base.names import file_stem
from ..base.texts import printable
from ..data.prompts import SLOT, with_slots
from ..data.sheets import MOST_COLUMNS, MOST_ROWS, save_png, sheet_of
from ..model.calls import Call
from ..model.embedding import Embedding, check_fits, settings_in
from ..model.generation import check_settings, check_until, with_lora
from ..model.lora import Lora
from ..model.token_model import TokenModel
from .settings import MOST_ALIGNMENT, SEPARATOR

PROMPT = "a photo of a {}"
_LONGEST_WORD = 200
_TILE = 240
"""Pixels a side of a picture on the sheet: large enough to choose by, and whole pixels of the embedded model's."""


@dataclass(frozen=True)
class Compared:
    """What a row is drawn with.

    Args:
        embedding: the token.
        name: of its file or run, which tells it from others of its name; may be empty.
        lora: weights that were learned with it.
        until: the share of the steps in which it stands in the prompt, as for :func:`generation.generate`.
    """

    embedding: Embedding
    name: str = ""
    lora: Lora | None = None
    until: float = 1.0


def until_each(compared: Sequence[Compared], shares: Sequence[float]) -> list[Compared]:
    """Each row drawn with each share of the steps."""
    return [replace(each, until=share) for each in compared for share in shares]


def shares_in(text: str) -> list[float]:
    """The shares of the steps that a user wrote, with commas between; all of the steps if there is none.

    Raises:
        ConfigError: one is not a number.
    """
    try:
        return [float(share) for share in text.replace(";", ",").split(",") if share.strip()] or [1.0]
    except ValueError:
        raise ConfigError(
            f"until = {text[:80]!r}: write shares of the steps with commas between, such as 1, 0.8"
        ) from None


@dataclass(frozen=True)
class Comparison:
    """What is drawn.

    Args:
        compared: the rows.
        seeds: the columns.
        prompt: with ``{}`` for each row's token, or with the name of one of the tokens in its place; empty: the target
            prompt that they were trained for, else :data:`PROMPT`.
        word: a plain word, for a first row without a token; none if empty.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance, None for the model's own.
        resolution: pixels a side, 0 for the model's own.
    """

    compared: Sequence[Compared]
    seeds: Sequence[int]
    prompt: str = ""
    word: str = ""
    num_inference_steps: int = 25
    guidance_scale: float | None = None
    resolution: int = 0

    @property
    def text(self) -> str:
        """The prompt with ``{}`` in the place of the tokens.

        Raises:
            ConfigError: it has no such place.
        """
        tokens = sorted({each.embedding.token for each in self.compared}, key=len, reverse=True)
        text = self.prompt.strip() or next(self._targets(), PROMPT)
        for token in tokens if SLOT not in text else ():
            text = with_slots(text, token)
        if SLOT not in text:
            raise ConfigError(
                f"prompt: {text[:80]!r} has no place for the tokens; write {SLOT} where each should stand"
            )
        return text

    def _targets(self) -> Iterator[str]:
        for each in self.compared:
            target = _target(each.embedding)
            if target:
                yield target

    @property
    def labels(self) -> list[str]:
        """Of the tokens' rows: each one's name, its alignment, and what else tells it from the others."""
        aligned = any(_target(each.embedding) for each in self.compared)
        labels = [_label(each, aligned) for each in self.compared]
        count = Counter(labels)
        return [label if count[label] == 1 else f"{label}\nno. {row}" for row, label in enumerate(labels, 1)]


def _target(embedding: Embedding) -> str:
    """The first of the target prompts that a token was trained for, with ``{}`` for it; empty if there was none."""
    found = settings_in(embedding.metadata).get("target_prompt")
    text = with_slots(found.split(SEPARATOR)[0].strip(), embedding.token) if isinstance(found, str) else ""
    return text if SLOT in text else ""


def _label(compared: Compared, aligned: bool) -> str:
    embedding = compared.embedding
    lines = [printable(embedding.token)]
    settings = settings_in(embedding.metadata)
    strength = settings.get("alignment") if _target(embedding) else 0
    if aligned and settings and isinstance(strength, int | float) and 0 <= strength <= MOST_ALIGNMENT:
        lines.append(f"alignment {strength:g}")
    if compared.name and compared.name != file_stem(embedding.token):
        lines.append(printable(compared.name))
    if compared.lora:
        lines.append("with its LoRA")
    if compared.until != 1:
        lines.append(f"until {compared.until:g}")
    return "\n".join(lines)


def check(model: TokenModel, comparison: Comparison) -> None:
    """Find what would go wrong, before anything is drawn or loaded.

    Raises:
        ConfigError: a setting out of range, too many tokens or none, a prompt without a place for them, or a token that
            does not say which word it began as where that is to be drawn.
        CaptionError: a prompt longer than the model reads.
        EmbeddingFileError: an embedding is of another model family.
    """
    compared, seeds, word = comparison.compared, comparison.seeds, comparison.word.strip()
    if not 1 <= len(compared) <= MOST_ROWS:
        raise ConfigError(f"{len(compared)} tokens to compare: must be from 1 to {MOST_ROWS}")
    if not 1 <= len(seeds) <= MOST_COLUMNS:
        raise ConfigError(f"count = {len(seeds)}: must be from 1 to {MOST_COLUMNS} pictures of each token")
    if SLOT in word or len(word) > _LONGEST_WORD:
        raise ConfigError(f"word {word[:60]!r}: give a plain word for the subject's kind, like dog")
    text = comparison.text
    check_settings([text] * len(seeds), seeds, comparison.num_inference_steps, comparison.guidance_scale)
    for row, each in enumerate(compared, 1):
        embedding, named = each.embedding, f" ({each.name})" if each.name else ""
        check_until(each.until)
        check_fits(embedding, model.info.dims, f"token {row}{named}", model.info.encoders)
        model.prompt(text, [embedding.num_vectors] * text.count(SLOT))
        if each.until < 1:
            model.prompt(Call(text, (embedding,) * text.count(SLOT)).in_words(each.until).text)
    if word:
        model.prompt(text.replace(SLOT, word))


def _check_loras(model: TokenModel, comparison: Comparison) -> None:
    """Refuse weights that are for another model before any row is drawn.

    Raises:
        LoraFileError: some are.
    """
    for row, each in enumerate(comparison.compared, 1):
        try:
            with with_lora(model, each.lora):
                pass  # it fits
        except LoraFileError as error:
            raise LoraFileError(f"token {row}{f' ({each.name})' if each.name else ''}: {error}") from None


def draw(
    model: TokenModel, comparison: Comparison, on_step: Callable[[int, int], None] | None = None
) -> list[tuple[str, list[Image.Image]]]:
    """The rows: labels, and the pictures that :meth:`TokenModel.generate` makes of the prompt with each token alone.

    Args:
        on_step: called with (done, of) after each denoising step of all rows.

    Raises:
        ZoodipError: as :func:`check`.
        LoraFileError: weights are for another model; none is drawn.
        Stopped: a stop was asked for.
    """
    check(model, comparison)
    _check_loras(model, comparison)
    text, word = comparison.text, comparison.word.strip()
    rows: list[tuple[str, str, Compared | None]] = [
        (label, text, each) for label, each in zip(comparison.labels, comparison.compared, strict=True)
    ]
    if word:
        rows.insert(0, (f'the word\n"{printable(word)}"', text.replace(SLOT, word), None))

    def told(row: int) -> Callable[[int, int], None] | None:
        return (lambda done, of: on_step(row * of + done, len(rows) * of)) if on_step else None

    drawn = []
    for row, (label, prompt, compared) in enumerate(rows):
        with with_lora(model, compared.lora if compared else None):
            pictures = model.generate(
                [prompt] * len(comparison.seeds),
                comparison.seeds,
                embedding=compared.embedding if compared else None,
                num_inference_steps=comparison.num_inference_steps,
                guidance_scale=comparison.guidance_scale,
                resolution=comparison.resolution,
                until=compared.until if compared else 1.0,
                on_step=told(row),
            )
        drawn.append((label, pictures))
    return drawn


def comparison_sheet(
    model: TokenModel, comparison: Comparison, on_step: Callable[[int, int], None] | None = None
) -> Image.Image:
    """The rows of :func:`draw` as one picture, with the prompt above and the seeds over the columns."""
    rows = draw(model, comparison, on_step)
    return sheet_of(rows, [f"seed {seed}" for seed in comparison.seeds], printable(comparison.text), _TILE)


def write_comparison(model: TokenModel, comparison: Comparison, path: Path) -> None:
    """Write a :func:`comparison_sheet` as PNG.

    Raises:
        ZoodipError: as :func:`draw`.
        StorageError: it cannot be written.
        Stopped: a stop was asked for; nothing is written.
    """
    save_png(comparison_sheet(model, comparison), path)
