"""The table of settings: each is described once, and every front is made from here.

The command line, the page's form, the webuis' interface for scripts, ComfyUI's nodes and their locales take names,
labels, texts, choices and ranges from :data:`SETTINGS`. To add a setting, add a field to :class:`Settings`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..base.errors import ConfigError, TokenError
from ..base.names import check_names, file_stem
from ..data.cuts import CROPS
from ..data.images import check_resolution
from ..data.masks import TRANSPARENCIES
from ..data.naming import Naming, naming
from ..data.prompts import ADJECTIVE, SLOT, TEMPLATES, of_template, says
from ..data.sheets import MOST_COLUMNS
from ..model.kinds import DTYPES, MOST_GUIDANCE, MOST_STEPS, PREDICTION_TYPES, TINY
from ..model.quantize import WEIGHTS
from ..search.estimators import ESTIMATORS, MOST_DIRECTIONS, MOST_MU
from ..search.optimizers import MOST_LR, OPTIMIZERS
from ..search.subspace import TAU_RANGE
from .setting import AUTO, OFF, ON, SWITCH, TEXT, Setting, checked, described, setting
from .timesteps import TIMESTEP_SAMPLERS

SUBJECT, MODEL, IMAGES, ALIGNMENT, SEARCH, LORA, SUBSPACE, TIMESTEPS, RUN = (
    "What to learn",
    "Model",
    "Pictures and captions",
    "The prompt you will use",
    "Search",
    "Weights as a LoRA",
    "Subspace Gradient",
    "Timesteps",
    "While it runs",
)
"""The parts that settings belong to, by their titles."""
PARTS = (SUBJECT, MODEL, IMAGES, ALIGNMENT, SEARCH, LORA, SUBSPACE, TIMESTEPS, RUN)
NORMAL, VOCABULARY, ENCODER, ADAPTIVE = "normal", "vocabulary", "encoder", "adaptive"
DIRECTIONS = (NORMAL, VOCABULARY, ENCODER, ADAPTIVE)
LR_SCHEDULES = ("constant", "cosine")
ALL = "all"
"""The device that stands for all cards of a computer, each in a process of its own."""
_MANY = 10_000_000
MOST_RANK = 64
MOST_ALIGNMENT = 100
SEPARATOR = ";"
"""Between prompts of a list."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a run, checked. The defaults are the paper's for SD1.5 (section 4).

    Raises:
        ConfigError: a value of the wrong type or out of range.
        TokenError: a placeholder token that cannot be used.
    """

    images: tuple[str, ...] = setting(
        dataclasses.MISSING,
        SUBJECT,
        "Images",
        "Folder of reference images, or image files.",
        metavar="PATH",
    )
    token: str = setting(
        dataclasses.MISSING,
        SUBJECT,
        "Token",
        "The new word, and the name of its file, like <rex>: letters, digits, - and _. Several with commas between are "
        "learned together.",
        metavar="NAME",
    )
    initializer: str = setting(
        dataclasses.MISSING,
        SUBJECT,
        "Initializer",
        "The known word that the token starts from: what kind of thing it is, like dog. Of several tokens one for "
        "each, or one for all.",
        flag="--init",
        metavar="WORD",
    )
    num_vectors: int = setting(
        1,
        SUBJECT,
        "Vectors",
        "Vectors in the token. 1 is the paper's; more hold more detail and need more steps.",
        flag="--vectors",
        metavar="N",
        range=(1, 75),
    )
    initializer_mode: str = setting(
        "single",
        SUBJECT,
        "Long initializers",
        "An initializer of several tokens: refuse it (single), start from their mean, or from the first ones.",
        flag="--init-mode",
        choices=("single", "mean", "first"),
    )
    model: str = setting(
        TINY,
        MODEL,
        "Model",
        "Checkpoint file, diffusers folder, or tiny for the embedded model: SD 1.x, 2.x or XL.",
        alias="--unet",
        metavar="PATH",
    )
    weights: str = setting(
        "int8",
        MODEL,
        "Weights",
        "How weights are kept in memory. int4 takes half of int8, float8 as much as int8.",
        choices=WEIGHTS,
    )
    dtype: str = setting(
        "auto",
        MODEL,
        "Activations",
        "auto: float16 on a graphics card, else float32.",
        choices=("auto", *DTYPES),
        node_input="activations",
    )
    device: str = setting(
        "auto",
        MODEL,
        "Device",
        "auto, cpu, cuda, cuda:1, ... On the page also all: every card, where there are several.",
        metavar="NAME",
    )
    prediction_type: str = setting(
        "auto",
        MODEL,
        "Prediction type",
        "What the model predicts. auto reads it from the file; change it only where a v-prediction model draws noise.",
        choices=PREDICTION_TYPES,
    )
    clip: tuple[str, ...] = setting(
        (),
        MODEL,
        "Text encoders",
        "Files of the model's text encoders, where they are not in it: CLIP L, for XL CLIP L and G.",
        alias="--text-encoders",
        metavar="FILE",
    )
    vae: str | None = setting(
        None, MODEL, "VAE", "File of the model's VAE, where it is not in it, or another is wanted.", metavar="FILE"
    )
    cache: str | None = setting(
        AUTO,
        MODEL,
        "Cache",
        "Folder for quantised copies of models: the next load takes seconds. auto: the user's own for such files.",
        metavar="DIR",
    )
    captions: str | None = setting(
        None, IMAGES, "Captions", "JSON file of captions by file name, with {} for the token.", metavar="JSON"
    )
    template: str = setting(
        "object",
        IMAGES,
        "Captions by",
        "For pictures without a caption. object: a photo of it; style: a painting in its style; ti: 27 varied texts; "
        "adjective: the token before the class word.",
        choices=tuple(TEMPLATES),
    )
    class_word: str | None = setting(
        None,
        IMAGES,
        "Class word",
        "What kind of thing it is, like dog: the word that a token learned as an adjective stands before. Of several "
        "tokens one for each, or one for all.",
        metavar="WORD",
    )
    resolution: int = setting(
        0,
        IMAGES,
        "Resolution",
        "Pixels a side; 0 is the model's own. Less takes less memory.",
        metavar="PIXELS",
        range=(0, 4096),
        multiple=8,
    )
    crop: str = setting(
        "bucket",
        IMAGES,
        "Crop",
        "bucket keeps a picture's shape, at as many pixels as a square has. center cuts out the middle square, resize "
        "squeezes the picture into one.",
        choices=CROPS,
    )
    random_crops: int = setting(
        0,
        IMAGES,
        "Random cuts",
        "Beside each picture, so many cuts of it at random places, of four fifths of its sides. For one picture alone.",
        metavar="N",
        range=(0, 100),
        left=-1,
    )
    background: str = setting("white", IMAGES, "Background", "Colour behind transparent pictures.", metavar="COLOUR")
    transparency: str = setting(
        "background",
        IMAGES,
        "Transparency",
        "background: its colour is laid behind transparent pictures. mask: that too, and what is transparent lies "
        "outside of the picture's mask.",
        choices=TRANSPARENCIES,
    )
    mask_background: float = setting(
        1.0,
        IMAGES,
        "Outside of masks",
        "How much what lies outside of a picture's mask counts, where it has one (NAME.mask.png beside it). 0: not at "
        "all. 1: as much as the subject, and masks are not used.",
        metavar="SHARE",
        range=(0, 1),
        left=-1,
    )
    flip: bool = setting(
        False, IMAGES, "Mirror", "Train on mirror images too; not for subjects with a left and a right."
    )
    target_prompt: str | None = setting(
        None,
        ALIGNMENT,
        "Target prompt",
        "Where you will use the token, like a sketch of {} in Paris: it learns to leave the rest of that prompt to the "
        "model, with three more forward passes a step. Several, separated by ;, are drawn in turn.",
        metavar="TEXT",
    )
    alignment: float = setting(
        0.3,
        ALIGNMENT,
        "Alignment",
        "How much the target prompt counts (PALP's lambda). More: the prompt is obeyed better, the subject is less "
        "like. 0: not at all.",
        metavar="LAMBDA",
        range=(0, MOST_ALIGNMENT),
        left=-1,
    )
    alignment_alpha: float = setting(
        1.0,
        ALIGNMENT,
        "Guidance of the target (alpha)",
        "Guidance scale of the target prompt's prediction with the class word. Where alpha and beta differ, a step "
        "takes one more forward pass.",
        metavar="SCALE",
        range=(0, MOST_GUIDANCE),
        above=True,
        left=0,
    )
    alignment_beta: float = setting(
        1.0,
        ALIGNMENT,
        "Guidance of the token (beta)",
        "Guidance scale of the caption's prediction with the token.",
        metavar="SCALE",
        range=(0, MOST_GUIDANCE),
        above=True,
        left=0,
    )
    steps: int = setting(
        30_000,
        SEARCH,
        "Steps",
        "Optimisation steps: each is a small move of the token.",
        metavar="N",
        range=(1, _MANY),
        left=0,
    )
    lr: float = setting(
        5e-3,
        SEARCH,
        "Learning rate",
        "How far a step moves, in the units of mu; zosgd multiplies the gradient.",
        metavar="RATE",
        range=(0, MOST_LR),
        above=True,
        left=0,
    )
    lr_schedule: str = setting(
        "constant",
        SEARCH,
        "Schedule",
        "Learning rate over the run: constant, or falling to 0 as a cosine.",
        choices=LR_SCHEDULES,
        left=AUTO,
    )
    averaging: float = setting(
        0.0,
        SEARCH,
        "Averaging",
        "The token is the mean over about this share of the steps, the last ones. 0: the last step's alone.",
        metavar="SHARE",
        range=(0, 1),
        left=-1,
    )
    seed: int = setting(
        0,
        SEARCH,
        "Seed",
        "Seed of every random draw: the same one learns the same token.",
        metavar="N",
        range=(0, 2**63 - 1),
    )
    estimator: str = setting(
        "rge",
        SEARCH,
        "Estimator",
        "How losses become a gradient. rge is the paper's; leave-one-out compares a step's directions with each other, "
        "with n forward passes; spsa looks at both sides of each, with 2n; one-point is for comparison.",
        choices=tuple(ESTIMATORS),
        left=AUTO,
    )
    n: int = setting(
        2,
        SEARCH,
        "Directions (n)",
        "Random directions that a step tries: n + 1 forward passes (leave-one-out: n, spsa: 2n).",
        metavar="N",
        alias="--num-directions",  # torchrun takes --n for one of its own
        range=(1, MOST_DIRECTIONS),
        left=0,
    )
    mu: float = setting(
        1e-3,
        SEARCH,
        "Perturbation (mu)",
        "How far a direction is tried out. With directions other than normal, 1 is as far as words lie from their "
        "mean, or what changes the text as much.",
        metavar="SIZE",
        range=(0, MOST_MU),
        above=True,
        left=0,
    )
    mu_end: float = setting(
        1.0,
        SEARCH,
        "Share of mu at the end",
        "What is left of mu at the end; it falls as a cosine. 1: it stays.",
        metavar="SHARE",
        range=(0, 1),
        above=True,
        left=0,
    )
    adapt_mu: bool = setting(
        False, SEARCH, "Adapt mu", "Doubles mu until losses differ by more than rounding.", left=AUTO
    )
    directions: str = setting(
        "normal",
        SEARCH,
        "Directions",
        "vocabulary: as the model's words differ. encoder: further where the text that the denoiser reads changes "
        "more; of Stable Diffusion 1, 2 and XL alone. adaptive: encoder where words differ in many directions, else "
        "vocabulary. normal: alike in all numbers, as the paper's; its mu and lr have other units, so give those too.",
        choices=DIRECTIONS,
        left=AUTO,
    )
    radius: float = setting(
        0.0,
        SEARCH,
        "Radius",
        "How far from its initializer the token may lie, where words lie 1 from their mean. 0: anywhere. Not of "
        "normal directions.",
        metavar="WORDS",
        range=(0, 1000),
        left=-1,
    )
    optimizer: str = setting(
        "zoadam",
        SEARCH,
        "Optimizer",
        "zoadam: the paper's Adam. zosgd: plain descent, which needs an lr of its own. normalized-sgd: steps whose "
        "size does not depend on that of the losses.",
        choices=tuple(OPTIMIZERS),
        left=AUTO,
    )
    eps: float = setting(
        1e-8,
        SEARCH,
        "Adam's eps",
        "Of zoadam alone: added to what a number's step is divided by. Larger: numbers with small gradients move less.",
        metavar="NUMBER",
        range=(0, 1),
        above=True,
        left=0,
    )
    lora_rank: int = setting(
        0,
        LORA,
        "Rank",
        "After the token, learn small cores of this rank in the weights that read the text, kept as a LoRA beside it. "
        "0: the token alone. Of Stable Diffusion as ZOODiP loads it.",
        metavar="R",
        range=(0, MOST_RANK),
        left=-1,
    )
    lora_share: float = setting(
        0.5,
        LORA,
        "Share of the steps",
        "The share of the steps in which weights are learned, the last ones. 1: from the first step on, with the "
        "initializer's word.",
        metavar="SHARE",
        range=(0, 1),
        above=True,
        left=0,
    )
    lora_mu: float = setting(
        0.1,
        LORA,
        "Perturbation of weights",
        "How far a direction is tried out: 1 is as large as what is there of a weight.",
        metavar="SIZE",
        range=(0, MOST_MU),
        above=True,
        left=0,
    )
    lora_lr: float = setting(
        0.02,
        LORA,
        "Learning rate of weights",
        "How far a step moves the weights, in the units of their perturbation.",
        metavar="RATE",
        range=(0, MOST_LR),
        above=True,
        left=0,
    )
    lora_weight_decay: float = setting(
        0.0,
        LORA,
        "Weight decay",
        "How firmly weights are held to what they were: a step shrinks what is learned of them by the learning rate "
        "times this. More: the class word stays as it was, and the subject is a little less like.",
        metavar="SIZE",
        range=(0, 1),
        left=-1,
    )
    lora_with_token: bool = setting(
        False,
        LORA,
        "Token as well",
        "The token is learned on together with the weights. Off: it stays as it is by then.",
        left=AUTO,
    )
    subspace_gradient: bool = setting(
        True,
        SUBSPACE,
        "Subspace Gradient",
        "Drops from gradients what the token's own path shows to be noise.",
        left=AUTO,
    )
    tau: int = setting(
        128,
        SUBSPACE,
        "Buffer (tau)",
        "Steps of the token's path that are looked at together (the paper: 128; the embedded model: 21).",
        metavar="STEPS",
        range=TAU_RANGE,
        left=0,
    )
    nu: float = setting(
        1e-3,
        SUBSPACE,
        "Share dropped (nu)",
        "The share of the path's variance that is dropped as noise (the paper: 0.001).",
        metavar="SHARE",
        range=(0, 1),
        above=True,
        below=True,
        left=0,
    )
    timesteps: str = setting(
        "puts",
        TIMESTEPS,
        "Sampling",
        "puts: between T_L and T_U. uniform: all alike. snr: weighted by signal-to-noise ratio.",
        choices=TIMESTEP_SAMPLERS,
        left=AUTO,
    )
    t_lower: int = setting(
        500,
        TIMESTEPS,
        "From (T_L)",
        "PUTS: the lowest timestep of 1000 (the paper: 500; SDXL: 700).",
        metavar="T",
        range=(0, 999),
        left=0,
        node_input="T_L",
    )
    t_upper: int = setting(
        900,
        TIMESTEPS,
        "To (T_U)",
        "PUTS: the timestep to stay below (the paper: 900).",
        metavar="T",
        range=(1, 1000),
        left=0,
        node_input="T_U",
    )
    sample_prompt: str = setting(
        "a photo of a {}",
        RUN,
        "Sample prompt",
        "What is drawn while it learns; {} stands for the token. Several, separated by ;, are drawn once each, and "
        "kept as one picture over time.",
        metavar="TEXT",
        node_input="preview_prompt",
    )
    sample_negative_prompt: str | None = setting(
        None,
        RUN,
        "Negative prompt of samples",
        "What the images that are drawn while it learns stay away from.",
        metavar="TEXT",
        node_input="preview_negative_prompt",
    )
    sample_guidance: float = setting(
        0.0,
        RUN,
        "Guidance of samples",
        "Classifier-free guidance of the images that are drawn while it learns; 0 is its kind's own: 7.5 for Stable "
        "Diffusion, 5 for the embedded model, in ComfyUI 1 for Flux and 4.5 for others.",
        metavar="SCALE",
        range=(0, MOST_GUIDANCE),
        node_input="preview_guidance",
    )
    sample_steps: int = setting(
        25,
        RUN,
        "Denoising steps of samples",
        "Denoising steps of each image that is drawn while it learns. Fewer take less time.",
        metavar="N",
        range=(1, MOST_STEPS),
        node_input="preview_steps",
    )
    sample_every: int = setting(
        0,
        RUN,
        "Samples every",
        "Steps between images that are drawn while it learns; 0: none.",
        metavar="STEPS",
        range=(0, _MANY),
        node_input="preview_every",
    )
    save_every: int = setting(
        500,
        RUN,
        "Save every",
        "Steps between saved states. A stop saves as well.",
        metavar="STEPS",
        range=(1, _MANY),
    )
    checks: int = setting(
        0,
        RUN,
        "Checks",
        "How often in a run, at most, the token's loss is looked at on draws that stay the same: where half of the "
        "gain is lost, the token goes back to its best. 0: never.",
        metavar="N",
        range=(0, 10_000),
        left=-1,
    )
    patience: int = setting(
        0,
        RUN,
        "Patience",
        "Checks without progress after which the run ends early, with its best token. A search may stand still for "
        "long, and then go on. 0: never.",
        metavar="N",
        range=(0, 10_000),
        left=-1,
    )
    batch: int = setting(
        0,
        RUN,
        "Candidates at once",
        "Candidates in one forward pass; 0: as many as there is room for.",
        metavar="N",
        range=(0, 1024),
    )
    graphs: str = setting(
        "auto",
        RUN,
        "Graphs",
        "auto: on a CUDA card a step's work is launched as one, which is faster. off: kernel by kernel.",
        choices=("auto", "off"),
    )

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, checked(spec, getattr(self, spec.name)))
        if not self.images:
            raise ConfigError("images: give a folder of images or image files")
        check_resolution(self.resolution)
        tokens, _ = check_names(self.token), (self.initializers, self.class_words)
        if not naming(self.sample_prompt, tokens, own=0).tokens:
            raise ConfigError(
                f"sample_prompt = {self.sample_prompt!r} has no placeholder; write {{}} where the token should stand"
            )
        if (self.template == ADJECTIVE) > bool(self.class_word):
            raise ConfigError(
                f"template = {ADJECTIVE}: give class_word, the word that the token stands before, like dog"
            )
        self._check_samples()
        self._check_target()
        stems = [file_stem(token).lower() for token in tokens]
        own_files = {"state": True, "directions": self.directions != NORMAL, "frames": self.lora_rank > 0}
        for token, stem in zip(tokens, stems, strict=True):
            if own_files.get(stem):
                raise TokenError(
                    f"token {token!r} names a file of every such run; choose a name of letters, like <my-cat>"
                )
            if self.lora_rank and stem.removesuffix("-lora") in stems[:1] and stem != stems[0]:
                raise TokenError(f"token {token!r} has the name of the LoRA's file; choose another name")
        for name, value in self.to_dict().items():
            if re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
                raise ConfigError(f"{name} = {value!r}: holds half a character, which no file can keep; write it anew")

    @property
    def tokens(self) -> tuple[str, ...]:
        """The names of what is learned, mostly one."""
        return check_names(self.token)

    @property
    def initializers(self) -> tuple[str, ...]:
        """The word that each of the tokens starts from."""
        return self._for_each("initializer", self.initializer)

    @property
    def class_words(self) -> tuple[str, ...]:
        """What kind of thing each of the tokens is; none where that is not given."""
        return self._for_each("class_word", self.class_word) if self.class_word else ()

    def _for_each(self, name: str, listed: str) -> tuple[str, ...]:
        """A word for each token: as listed, or the one for all."""
        count = len(self.tokens)
        words = tuple(map(str.strip, listed.split(","))) if count > 1 else (listed,)
        if len(words) not in (1, count) or not (count == 1 or all(words)):
            raise ConfigError(
                f"{name} = {listed!r}: list one for each of the {count} tokens ({', '.join(self.tokens)}), with commas "
                "between, or one for all"
            )
        return words * (count // len(words))

    @property
    def sample_prompts(self) -> tuple[str, ...]:
        """What is drawn while it learns, in turn: of several tokens, each has its own where ``{}`` stands for one."""
        if len(self.tokens) == 1:
            return self._sample_texts
        default = self.sample_prompt == SETTINGS["sample_prompt"].default
        named = list(itertools.product(self._sample_texts, self.tokens))
        if self.template == ADJECTIVE and default:
            texts = (of_template(ADJECTIVE, word)[0] for word in self.class_words)
            named = list(zip(texts, self.tokens, strict=True))
        return tuple(dict.fromkeys(text.replace(SLOT, token) for text, token in named))

    @property
    def lists_samples(self) -> bool:
        """Whether several sample prompts are listed: those are drawn once each, and kept as one picture over time."""
        return len(self._sample_texts) > 1

    @property
    def _sample_texts(self) -> tuple[str, ...]:
        if SEPARATOR not in self.sample_prompt:
            return (self.sample_prompt,)
        return tuple(dict.fromkeys(filter(None, map(str.strip, self.sample_prompt.split(SEPARATOR)))))

    def _check_samples(self) -> None:
        if len(self.sample_prompts) > MOST_COLUMNS:
            raise ConfigError(
                f"sample_prompt: {len(self.sample_prompts)} prompts are too many; at most {MOST_COLUMNS} are drawn"
            )
        self._check_names_in("sample_negative_prompt")

    def _check_names_in(self, name: str) -> None:
        """Refuse a prompt that leaves open which of several tokens it means."""
        text = getattr(self, name) or ""
        if len(self.tokens) > 1 and SLOT in text:
            raise ConfigError(
                f"{name} = {text!r} holds {SLOT}, which may be any of {len(self.tokens)} tokens; write "
                f"{' or '.join(self.tokens)} in its place"
            )

    @property
    def targets(self) -> list[Naming]:
        """The prompts that the tokens will be used in, and which stand where."""
        texts = filter(None, map(str.strip, (self.target_prompt or "").split(SEPARATOR)))
        own = 0 if len(self.tokens) == 1 else None
        return [naming(text, self.tokens, own) for text in texts]

    @property
    def clean_prompts(self) -> list[str]:
        """The same with what kind of thing it is in each token's place: the class word, or else the initializer."""
        words = [""] * len(self.tokens) if self.class_words else self.initializers
        return [" ".join(target.with_names(words).split()) for target in self.targets]

    @property
    def masked(self) -> bool:
        """Whether masks are used."""
        return self.mask_background < 1

    @property
    def aligned(self) -> bool:
        """Whether a target prompt counts."""
        return bool(self.targets) and self.alignment > 0

    def _check_target(self) -> None:
        if self.target_prompt is not None and not self.targets:
            raise ConfigError("target_prompt is empty: write the prompt that you will use, or leave it out")
        self._check_names_in("target_prompt")
        alone, names = len(self.tokens) == 1, " or ".join(self.tokens)
        for target in self.targets:
            if not target.tokens:
                raise ConfigError(
                    f"target_prompt: {target.text!r} has no placeholder; write {SLOT if alone else names} where the "
                    "token will stand"
                )
            for number in target.tokens if self.class_words else ():
                word = self.class_words[number]
                if not says(target.text, word):
                    name = SLOT if alone else self.tokens[number]
                    raise ConfigError(
                        f"target_prompt: {target.text!r} does not say {word}, the class word: write {name} {word} "
                        "where the subject stands, or leave class_word out"
                    )

    def to_dict(self) -> dict[str, Any]:
        """By name, as JSON has them."""
        values = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


SETTINGS: dict[str, Setting] = {spec.name: described(spec) for spec in dataclasses.fields(Settings)}
"""The table. Fronts read it when they are made."""
Settings.__doc__ = (Settings.__doc__ or "").replace(
    "    Raises:",
    "    Args:\n" + "".join(f"        {each.name}: {each.help}\n" for each in SETTINGS.values()) + "\n    Raises:",
    1,
)


def of_part(*parts: str, without: Collection[str] = ()) -> Iterator[Setting]:
    """The settings of some parts, in the table's order."""
    return (each for each in SETTINGS.values() if each.part in parts and each.name not in without)


def given(values: Mapping[str, Any], own: Mapping[str, Setting] | None = None) -> dict[str, Any]:
    """A form's values by name, without those that are left to the preset; on and off as what they mean.

    Args:
        values: by name.
        own: the form's own settings, which stand before the table's.
    """
    found = {}
    for name, value in values.items():
        setting = (own or {}).get(name) or SETTINGS.get(name)
        if value is None or (setting and setting.by_preset and value == setting.left):
            continue
        if setting and setting.kind == TEXT and setting.default is None and isinstance(value, str):
            value = value.strip()
            if not value:
                continue
        switched = setting is not None and setting.kind == SWITCH and value in (ON, OFF)
        found[name] = value == ON if switched else value
    return found
