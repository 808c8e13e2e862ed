"""The prompts that tokens are judged by, each with ``{}`` where the token or its class word stands.

:data:`LIVING` and :data:`OBJECT` are those of the DreamBooth dataset (Ruiz et al., CVPR 2023,
https://github.com/google/dreambooth, licence CC BY 4.0), 25 each, which the paper uses (supplement S1.1, tables S2 and
S3). There they are written "a {unique token} {class token} in the jungle". Textual inversion puts one word in the place
of both: the paper leaves the class token out as well.
"""

from __future__ import annotations

from pathlib import Path

from ..base.errors import CaptionError, ConfigError
from ..data.prompts import SLOT, TEMPLATES, read_text

_PLACES = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} on a cobblestone street",
    "a {} on top of pink fabric",
    "a {} on top of a wooden floor",
    "a {} with a city in the background",
    "a {} with a mountain in the background",
    "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)
_CHANGED = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")
LIVING = (
    *_PLACES,
    "a {} wearing a red hat",
    "a {} wearing a santa hat",
    "a {} wearing a rainbow scarf",
    "a {} wearing a black top hat and a monocle",
    "a {} in a chef outfit",
    "a {} in a firefighter outfit",
    "a {} in a police outfit",
    "a {} wearing pink glasses",
    "a {} wearing a yellow shirt",
    "a {} in a purple wizard outfit",
    *_CHANGED,
)
OBJECT = (
    *_PLACES,
    "a {} with a wheat field in the background",
    "a {} with a tree and autumn leaves in the background",
    "a {} with the Eiffel Tower in the background",
    "a {} floating on top of water",
    "a {} floating in an ocean of milk",
    "a {} on top of green grass with sunflowers around it",
    "a {} on top of a mirror",
    "a {} on top of the sidewalk in a crowded street",
    "a {} on top of a dirt road",
    "a {} on top of a white rug",
    *_CHANGED,
)
PROMPT_SETS: dict[str, tuple[str, ...]] = {
    "living": LIVING,
    "object": OBJECT,
    "photo": TEMPLATES["object"],  # a single one: with 50 seeds, the paper's setting for DINO_inter
    "tiny": tuple(f"a {{}} in the {place}" for place in ("snow", "meadow", "night", "beach", "candy", "ocean")),
}
"""By name. ``tiny`` has the places that the embedded model knows."""
MAX_PROMPTS = 500
MAX_SEEDS = 256
"""Images of each prompt."""


def default_set(family: str) -> str:
    """The name of the set for a model family: the embedded tiny model knows none of the dataset's places."""
    return "tiny" if family == "tiny" else "object"


def prompts_of(choice: str) -> tuple[str, ...]:
    """The prompts of a set, or those in a text file, one a line.

    Args:
        choice: a name of :data:`PROMPT_SETS`, or the path of a UTF-8 file.

    Raises:
        ConfigError: neither.
        CaptionError: the file cannot be read, holds none or too many, or one without ``{}``.
    """
    if choice in PROMPT_SETS:
        return PROMPT_SETS[choice]
    path = Path(choice)
    if not path.is_file():
        raise ConfigError(
            f"prompts = {choice!r}: choose {', '.join(PROMPT_SETS)}, or a text file with a prompt a line and {SLOT} "
            "for the subject"
        )
    return checked_prompts(read_text(path).splitlines(), str(path))


def checked_prompts(lines: list[str], where: str) -> tuple[str, ...]:
    """Prompts of the user's own, each once, without empty lines.

    Args:
        where: where they stand, for errors.

    Raises:
        CaptionError: none, too many, or one without ``{}``.
    """
    prompts = tuple(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    for prompt in prompts:
        if SLOT not in prompt:
            raise CaptionError(
                f"{where}: the prompt {prompt[:100]!r} has no place for the subject; write {SLOT} where the token or "
                "its class word should stand"
            )
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise CaptionError(f"{where}: {len(prompts)} prompts; give 1 to {MAX_PROMPTS}, one a line")
    return prompts
