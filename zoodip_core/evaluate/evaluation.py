"""How good is a token? The paper's scores of images drawn with it, beside those drawn with its class word.

The same prompts and seeds are drawn twice: before, with the class word in the token's place, and after, with the token.
Each image is kept in the output folder, so that an evaluation that was stopped is resumed where it was. When all are
drawn, the Stable Diffusion leaves memory and CLIP and DINOv2 come, one after the other.

CLIP-T compares an image with its prompt. A learned token means nothing to CLIP's text encoder, so the class word stands
in its place there, before and after, as is the field's custom. The paper does not say what stood there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..base.errors import ConfigError, ImagesError, RunFolderError
from ..base.files import is_newer, read_object, write_atomically
from ..base.locks import LOCK, locked
from ..base.names import fault, plain
from ..base.paths import inside, link_out
from ..data.images import open_picture
from ..data.prompts import SLOT
from ..data.sheets import save_png
from ..model.calls import Call, calls_in
from ..model.embedding import Embedding, check_fits
from ..model.generation import check_settings, check_until, with_lora
from ..model.lora import Lora, serialize
from ..model.token_model import TokenModel
from .encoders import ClipFeatures, DinoFeatures, MissingModelError, ModelFiles, Picture, find_clip, find_dino
from .metrics import Scores, image_alignment, mutual_similarity, text_alignment
from .prompt_sets import MAX_SEEDS

SETTINGS = "settings.json"
SETTINGS_VERSION = 1
BEFORE, AFTER = "before", "after"
_LONGEST_WORD = 200
_SUBJECT = "<zoodip-subject>"
"""In the place of the token that is scored, in prompts that name others as well."""
_AT_ONCE = 4
"""Images that are drawn, and kept, together."""

OnProgress = Callable[[str, int, int], None]
"""Called with (what is done now, done, of)."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What is drawn.

    Args:
        prompts: texts with ``{}`` for the token or the class word.
        class_word: what kind of thing the subject is, like ``dog``.
        seeds: how many images of each prompt.
        first_seed: of the first of them; the others count on.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance, None for the model's own.
        until: the share of the steps in which tokens stand in the prompts, as for :func:`generation.generate`.
    """

    prompts: tuple[str, ...]
    class_word: str
    seeds: int = 4
    first_seed: int = 0
    num_inference_steps: int = 25
    guidance_scale: float | None = None
    until: float = 1.0

    def images(self) -> list[tuple[int, int]]:
        """The (prompt's index, seed) of each image, in the order of their features."""
        return [(i, self.first_seed + k) for i in range(len(self.prompts)) for k in range(self.seeds)]


@dataclass(frozen=True)
class Judges:
    """The files of the models that score. One may be None, with the reason in ``left_out``."""

    clip: ModelFiles | None
    dino: ModelFiles | None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What came of it. ``by_prompt`` holds (before, after) for each prompt."""

    token: str
    model: str
    plan: EvaluationPlan
    references: int
    before: Scores
    after: Scores
    ceiling: Scores
    """Of the references among themselves, all pairs of two different ones."""
    by_prompt: tuple[tuple[Scores, Scores], ...]
    judges: dict[str, str]
    left_out: tuple[str, ...]


# ---------------------------------------------------------------- before it begins


def find_judges(clip: str | Path | None = None, dino: str | Path | None = None) -> Judges:
    """The models that score. One of the paper's two may be missing; one that was asked for by its place may not.

    Args:
        clip: folder or name of CLIP; None for the paper's, in Hugging Face's cache.
        dino: folder or name of DINOv2; None for the paper's, there.

    Raises:
        MissingModelError: both are missing, or one that was asked for.
        ModelError: a folder holds another kind of model.
    """
    found: list[ModelFiles | None] = []
    why: list[str] = []
    for find, where in ((find_clip, clip), (find_dino, dino)):
        try:
            found.append(find(where))
        except MissingModelError as error:
            if where:
                raise
            found.append(None)
            why.append(str(error))
    if len(why) == 2:
        raise MissingModelError("\n".join(why))
    return Judges(found[0], found[1], tuple(why))


def class_word_of(embedding: Embedding, given: str = "") -> str:
    """The class word: the one given, else the word that the token was learned from.

    Raises:
        ConfigError: there is none, or it cannot stand in a prompt.
    """
    word = " ".join((given or embedding.metadata.get("initializer", "")).split())
    if not word:
        raise ConfigError(
            f"class word: the file of {embedding.token!r} does not say what it was learned from; give a plain word for "
            "the subject's kind, like dog (--class dog)"
        )
    if SLOT in word or len(word) > _LONGEST_WORD:
        raise ConfigError(f"class word {word[:60]!r}: give a plain word for the subject's kind, like dog")
    return word


@dataclass(frozen=True)
class Texts:
    """What is drawn.

    Args:
        before: each prompt with plain words in the places of tokens.
        after: each prompt for the tokens.
        tokens: those that the latter call.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    tokens: tuple[Embedding, ...]

    @classmethod
    def of(cls, embedding: Embedding, plan: EvaluationPlan, beside: Sequence[Embedding] = ()) -> Texts:
        """The texts of a plan.

        Args:
            embedding: the token that ``{}`` stands for.
            beside: those that prompts name.

        Raises:
            ConfigError: one of these is in no prompt, or its file does not say which word it began as.
            EmbeddingFileError: two of them have the same name.
        """
        # The token's own name, which may be red or in, is a plain word in these prompts; so are the files' names.
        place = _SUBJECT if beside else SLOT
        about = {"initializer": plan.class_word, **embedding.metadata}  # the word that it gives way to
        subject = replace(embedding, token=place, alias="", metadata=about)
        tokens = (subject, *(replace(each, alias="") for each in beside))
        after = tuple(prompt.replace(SLOT, place) for prompt in plan.prompts)
        pairs = list(zip(calls_in(after, tokens), plan.prompts, strict=True))
        called = {each.token for call, _ in pairs for each in call.embeddings}
        unused = [each.token for each in beside if each.token not in called]
        if unused:
            raise ConfigError(
                f"no prompt names {', '.join(unused)[:200]}; write it where the other subject should stand"
            )
        words = {place: plan.class_word, **{each.token: _word_beside(each) for each in beside}}
        before = [_filled(call, words) if beside else prompt.replace(SLOT, plan.class_word) for call, prompt in pairs]
        return cls(tuple(before), after, tokens)


def _filled(call: Call, words: Mapping[str, str]) -> str:
    first, *rest = call.text.split(SLOT)
    pairs = zip(call.embeddings, rest, strict=True)
    return first + "".join(words[each.token] + text for each, text in pairs)


def _word_beside(embedding: Embedding) -> str:
    word = " ".join(embedding.metadata.get("initializer", "").split())
    if not word or SLOT in word:
        raise ConfigError(
            f"the file of {embedding.token!r} does not say which word it began as, which would stand in its place "
            "before; leave this token out"
        )
    return word


def check(
    model: TokenModel,
    embedding: Embedding,
    references: Sequence[Picture],
    plan: EvaluationPlan,
    beside: Sequence[Embedding] = (),
) -> None:
    """Find what would go wrong, before anything is drawn or loaded.

    Raises:
        ConfigError: a setting out of range.
        CaptionError: a prompt longer than the model reads.
        EmbeddingFileError: the embedding is of another model family.
        ImagesError: a reference cannot be read, or there are none.
    """
    if not 1 <= plan.seeds <= MAX_SEEDS:
        raise ConfigError(f"seeds = {plan.seeds}: must be from 1 to {MAX_SEEDS}")
    check_settings(plan.prompts, range(len(plan.prompts)), plan.num_inference_steps, plan.guidance_scale)
    check_until(plan.until)
    for each in (embedding, *beside):
        check_fits(each, model.info.dims, "evaluate", model.info.encoders)
    texts = Texts.of(embedding, plan, beside)
    for before, call in zip(texts.before, calls_in(texts.after, texts.tokens), strict=True):
        model.prompt(before)
        model.prompt(call.text, call.counts)
        if plan.until < 1:
            model.prompt(call.in_words(plan.until).text)
    if not references:
        raise ImagesError("images: there are no reference images; give 3 to 10 pictures of the subject")
    for reference in references:
        if isinstance(reference, Path):
            try:
                open_picture(reference)
            except ImagesError as error:
                raise ImagesError(f"{error}; or take it out of the references") from error


# ---------------------------------------------------------------- the whole


def evaluate(
    model: TokenModel,
    embedding: Embedding,
    references: Sequence[Picture],
    plan: EvaluationPlan,
    judges: Judges,
    folder: Path,
    on_progress: OnProgress | None = None,
    lora: Lora | None = None,
    beside: Sequence[Embedding] = (),
) -> Evaluation:
    """Draw what is not drawn yet into ``folder``, and score it.

    Args:
        references: pictures of the subject, or their files.
        judges: from :func:`find_judges`.
        folder: a new or empty one, or that of an evaluation of the same settings, which is resumed; only
            :attr:`EvaluationPlan.seeds` may differ.
        lora: weights that were learned with the token, for the images after.
        beside: further tokens, which prompts name; before, and for CLIP-T, the words they began as stand there.

    Raises:
        ZoodipError: as :func:`check`; and
        RunFolderError: the folder holds something else, or another process is at work on it.
        LoraFileError: the weights are for another model.
        ModelError: CLIP's or DINOv2's files are damaged.
        StorageError: an image cannot be written.
        Stopped: a stop was asked for; what is drawn is kept.
    """
    check(model, embedding, references, plan, beside)
    check_judges(judges)
    with with_lora(model, lora):
        pass  # it fits
    settings = _settings(model, embedding, plan, lora, beside)
    _check_folder(folder, settings)  # before anything is written there
    with locked(folder):
        _check_folder(folder, settings)
        write_atomically(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")
        texts = Texts.of(embedding, plan, beside)
        _draw(model, texts, plan, folder, on_progress, lora)
        model.unload()
        return _score(model, embedding, texts, references, plan, judges, folder, on_progress)


def check_judges(judges: Judges) -> None:
    """Load CLIP and DINOv2 on the CPU, and let them go: what is wrong with them shows before anything is drawn.

    Raises:
        ModelError: their files are damaged, or of another kind.
    """
    for files, kind in ((judges.clip, ClipFeatures), (judges.dino, DinoFeatures)):
        if files:
            kind(files, torch.device("cpu"))


def folder_for(parent: Path, embedding: Embedding, key: str = "") -> Path:
    """A folder in ``parent`` that is called like the token, with a key behind it if there is one.

    A token's name comes from inside a file, perhaps a stranger's: what of it could not be a name is left out.

    Raises:
        PathError: there is a link of that name, and it leads out of ``parent``.
    """
    stem = plain(embedding.token, 120)
    name = "-".join(filter(None, ("token" if fault(stem) else stem, key)))
    inside(parent, name, str(parent))
    return parent / name


def image_path(folder: Path, when: str, prompt: int, seed: int) -> Path:
    """Where the image of a prompt, by its index, and a seed lies; ``when`` is :data:`BEFORE` or :data:`AFTER`."""
    return folder / when / f"prompt{prompt + 1:03d}-seed{seed}.png"


# ---------------------------------------------------------------- the folder


def _digest(embedding: Embedding) -> str:
    return hashlib.sha256(embedding.vectors.float().contiguous().numpy().tobytes()).hexdigest()


def _settings(
    model: TokenModel,
    embedding: Embedding,
    plan: EvaluationPlan,
    lora: Lora | None = None,
    beside: Sequence[Embedding] = (),
) -> dict[str, Any]:
    """What decides the images, as the folder keeps it."""
    others = {"beside": {each.token[:_LONGEST_WORD]: _digest(each) for each in beside}} if beside else {}
    weights = {"lora": hashlib.sha256(serialize(Lora(lora.layers))).hexdigest()} if lora else {}
    share = {"until": plan.until} if plan.until < 1 else {}
    # Of our own models the file decides it, and what they predict stands below.
    schedule = {} if model.own_memory else {"schedule": dict(model.schedule)}
    return {
        "evaluation_version": SETTINGS_VERSION,
        "model": model.fingerprint,
        "weights": model.weights,
        "dtype": str(model.dtype).removeprefix("torch."),
        "prediction_type": model.info.prediction_type,
        "token": embedding.token[:_LONGEST_WORD],
        "embedding": _digest(embedding),
        "class_word": plan.class_word,
        "prompts": list(plan.prompts),
        "first_seed": plan.first_seed,
        "steps": plan.num_inference_steps,
        "guidance": plan.guidance_scale,
        **weights,
        **others,
        **share,
        **schedule,
    }


def key_of(
    model: TokenModel,
    embedding: Embedding,
    plan: EvaluationPlan,
    lora: Lora | None = None,
    beside: Sequence[Embedding] = (),
) -> str:
    """Ten letters by which evaluations of different settings can be told apart."""
    settings = json.dumps(_settings(model, embedding, plan, lora, beside), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:10]


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder that is neither new nor that of an evaluation of these settings.

    Raises:
        RunFolderError: it is none of them.
    """
    file, other = folder / SETTINGS, "choose another output folder"
    if not file.is_file():
        if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise RunFolderError(f"{folder} holds something else than an evaluation; {other}")
        return
    link = link_out(folder)
    if link is not None:  # the folder may be a stranger's
        raise RunFolderError(f"{link} is a link that leads out of the evaluation's folder; {other}")
    have = read_object(file)
    if is_newer(have.get("evaluation_version"), SETTINGS_VERSION):
        raise RunFolderError(f"{file} was written by a newer ZOODiP; update this one, or {other}")
    differ = sorted(key for key in {*have, *settings} if have.get(key) != settings.get(key))
    if differ:
        raise RunFolderError(f"{folder} holds an evaluation with other settings ({', '.join(differ)} differ); {other}")


# ---------------------------------------------------------------- drawing


def _draw(
    model: TokenModel,
    texts: Texts,
    plan: EvaluationPlan,
    folder: Path,
    on_progress: OnProgress | None,
    lora: Lora | None,
) -> None:
    """Draw each group of images of which one is missing. Always in the same groups: a batch decides the last bits."""
    groups = list(_groups(plan))
    missing = [group for group in groups if not all(map(_is_whole, _paths(folder, *group)))]
    total, left = (sum(len(seeds) for _, _, seeds in each) * plan.num_inference_steps for each in (groups, missing))

    def told(done: int) -> None:
        if on_progress:
            on_progress("drawing", done, total)

    told(total - left)
    for when, prompt, seeds in missing:
        steps, done = len(seeds) * plan.num_inference_steps, total - left
        text = (texts.after if when == AFTER else texts.before)[prompt]
        with with_lora(model, lora if when == AFTER else None):
            images = model.generate(
                [text] * len(seeds),
                seeds,
                embedding=texts.tokens if when == AFTER else None,
                num_inference_steps=plan.num_inference_steps,
                guidance_scale=plan.guidance_scale,
                until=plan.until if when == AFTER else 1.0,
                on_step=lambda part, of, done=done, steps=steps: told(done + steps * part // of),  # type: ignore[misc]
            )
        for image, path in zip(images, _paths(folder, when, prompt, seeds), strict=True):
            save_png(image, path)
        left -= steps


def _paths(folder: Path, when: str, prompt: int, seeds: Sequence[int]) -> list[Path]:
    return [image_path(folder, when, prompt, seed) for seed in seeds]


def _groups(plan: EvaluationPlan) -> Iterator[tuple[str, int, list[int]]]:
    seeds = range(plan.first_seed, plan.first_seed + plan.seeds)
    for prompt in range(len(plan.prompts)):
        for first in range(0, len(seeds), _AT_ONCE):
            for when in (BEFORE, AFTER):
                yield when, prompt, list(seeds[first : first + _AT_ONCE])


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        open_picture(path)
    except ImagesError:  # damaged since
        return False
    return True


# ---------------------------------------------------------------- scoring


def _score(
    model: TokenModel,
    embedding: Embedding,
    texts: Texts,
    references: Sequence[Picture],
    plan: EvaluationPlan,
    judges: Judges,
    folder: Path,
    on_progress: OnProgress | None,
) -> Evaluation:
    pictures = {
        when: [image_path(folder, when, prompt, seed) for prompt, seed in plan.images()] for when in (BEFORE, AFTER)
    }
    clip = dino = None
    if judges.clip:
        clip = _clip_seen(ClipFeatures(judges.clip, model.device), references, pictures, texts.before, on_progress)
    _free(model.device)
    if judges.dino:
        dino = _seen(DinoFeatures(judges.dino, model.device), "DINO", references, pictures, on_progress)
    _free(model.device)
    every = range(len(plan.prompts))
    return Evaluation(
        token=embedding.token,
        model=model.info.name,
        plan=plan,
        references=len(references),
        before=_scores(clip, dino, BEFORE, plan, every),
        after=_scores(clip, dino, AFTER, plan, every),
        ceiling=Scores(
            clip_i=mutual_similarity(clip["references"]) if clip else None,
            dino=mutual_similarity(dino["references"]) if dino else None,
        ),
        by_prompt=tuple((_scores(clip, dino, BEFORE, plan, [i]), _scores(clip, dino, AFTER, plan, [i])) for i in every),
        judges={name: files.name for name, files in (("clip", judges.clip), ("dino", judges.dino)) if files},
        left_out=judges.left_out,
    )


def _clip_seen(
    clip: ClipFeatures,
    references: Sequence[Picture],
    pictures: dict[str, list[Path]],
    texts: Sequence[str],
    on_progress: OnProgress | None,
) -> dict[str, torch.Tensor]:
    return {**_seen(clip, "CLIP", references, pictures, on_progress), "texts": clip.of_texts(list(texts))}


def _seen(
    judge: ClipFeatures | DinoFeatures,
    name: str,
    references: Sequence[Picture],
    pictures: dict[str, list[Path]],
    on_progress: OnProgress | None,
) -> dict[str, torch.Tensor]:
    """Features ``[N, dim]`` of the references, and of the images before and after."""
    every: list[Picture] = [*references, *pictures[BEFORE], *pictures[AFTER]]
    told = (lambda done, of: on_progress(f"scoring with {name}", done, of)) if on_progress else None
    counts = [len(references), len(pictures[BEFORE]), len(pictures[AFTER])]
    parts = judge.of_images(every, told).split(counts)
    return dict(zip(("references", BEFORE, AFTER), parts, strict=True))


def _scores(
    clip: dict[str, torch.Tensor] | None,
    dino: dict[str, torch.Tensor] | None,
    when: str,
    plan: EvaluationPlan,
    prompts: Sequence[int],
) -> Scores:
    """The scores of the images of some prompts, by their indices."""
    rows = [i * plan.seeds + k for i in prompts for k in range(plan.seeds)]
    clip_t = clip_i = alike = inter = None
    if clip:
        own_texts = clip["texts"][[i for i in prompts for _ in range(plan.seeds)]]
        clip_t = text_alignment(own_texts, clip[when][rows])
        clip_i = image_alignment(clip["references"], clip[when][rows])
    if dino:
        alike = image_alignment(dino["references"], dino[when][rows])
        each = [mutual_similarity(dino[when][i * plan.seeds : (i + 1) * plan.seeds]) for i in prompts]
        known = [value for value in each if value is not None]
        inter = sum(known) / len(known) if known else None
    return Scores(clip_t, clip_i, alike, inter)


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def as_json(evaluation: Evaluation) -> str:
    """The evaluation with all settings and figures as a JSON text."""
    return json.dumps({"evaluation_version": SETTINGS_VERSION, **asdict(evaluation)}, indent=1) + "\n"
