"""What the page does, without its looks: the form's draft, checks, jobs, the runs so far, the token's way to its user.

One studio serves every open page and the scripts' interface of a program. It loads no model.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..base.errors import CaptionError, ConfigError, EmbeddingFileError, PathError, RunFolderError, TokenError
from ..base.files import make_folder
from ..base.hub_cache import is_repository
from ..base.names import check_names
from ..base.paths import typed
from ..data.prompts import LISTING
from ..jobs.environment import Trainer, find_trainer
from ..jobs.history import delete_run, find_run, list_runs, new_folder
from ..jobs.installer import Installer
from ..jobs.job import Job, Run
from ..jobs.job_folder import COMPARISON, OUTCOME, RUN, WITH_WEIGHTS, preset_in, task_of, write_outcome
from ..jobs.process import ask, python_of
from ..jobs.protocol import ASIDE, CAPTION, CHECK, COMPARE, FAILED, FINISHED, RESUME, SHOW, STOPPED, TRAIN
from ..jobs.queue import JobHost, Jobs
from ..model.generation import check_until
from ..model.kinds import TINY
from ..train.comparison import shares_in
from ..train.config import TrainConfig
from ..train.hints import photographs, too_much_for_the_embedded_model
from ..train.presets import PRESET
from ..train.run_folder import CONFIG, RunFolder
from ..train.setting import AUTO
from ..train.settings import ALL, SETTINGS, given
from .draft import Draft
from .form import KEEP_COPY, OWN
from .shelf import Shelf, check_room, put_together

TINY_LABEL = "the embedded tiny model"
_NAMING = ("token", "initializer", "class_word", "template", "num_vectors")
"""What captions follow from."""
_FORM_S_OWN = ("preset", "overwrite", "keep_copy", "learn_weights")


class PageHost(JobHost, Protocol):
    """What the page asks of the program it is part of."""

    shares_page: bool
    """Whether the program's page has more on it than this: other components may have what was dropped onto one."""
    """For people: A1111, Forge, ..."""

    def home(self) -> Path:
        """The folder in which runs are kept."""
        ...

    def models(self) -> dict[str, Path]:
        """Checkpoints and diffusers folders, by the name that the user sees."""
        ...

    def embeddings_folder(self) -> Path | None:
        """Where finished tokens go to be used, if there is such a place."""
        ...

    def embeddings_changed(self) -> None:
        """Have the program see the files in that folder anew."""
        ...

    def loras_folder(self) -> Path | None:
        """Where LoRAs go to be used, if there is such a place."""
        ...

    def loras_changed(self) -> None:
        """Have the program see the files in that folder anew."""
        ...

    def python(self) -> str:
        """A Python that the user chose for the trainer, or nothing."""
        ...

    def defaults(self) -> dict[str, Any]:
        """Values of the form that the user's settings change."""
        ...

    def for_its_user(self) -> bool:
        """Whether only this computer's user can reach the page, who may name any path of it."""
        ...


@dataclass(frozen=True)
class Published:
    """What was brought to its user.

    Args:
        token: the token's file.
        lora: that of the weights that were learned with it, where they have such a place.
        left: whether some were learned that have no such place.
        others: the files of tokens that were learned together with it.
    """

    token: Path
    lora: Path | None
    left: bool
    others: tuple[Path, ...] = ()

    def words_beside(self, prompt: str = "") -> str:
        """What to write in a prompt for both of them; a LoRA that is in it already would count twice."""
        lora = f"<lora:{self.lora.stem}:" if self.lora else ""
        names = ", ".join(path.stem for path in (self.token, *self.others))
        return names if not lora or lora in prompt else f"{names} {lora}1>"

    def __str__(self) -> str:
        files = " and ".join(str(path) for path in (self.token, *self.others, self.lora) if path)
        left = "; its LoRA, to be drawn with beside it, can be downloaded on the tab Runs" if self.left else ""
        return f"saved as {files}: write {self.words_beside()} in a prompt{left}"


class Studio:
    """See the module's first line.

    Args:
        host: the program that the page is part of.
    """

    def __init__(self, host: PageHost) -> None:
        self.host = host
        self.jobs = Jobs(host, self.trainer, self._done)
        self.installer = Installer()

    @property
    def draft(self) -> Draft:
        """The form's draft."""
        return Draft(self.host.home() / ".draft")

    def trainer(self) -> Trainer:
        """The Python that runs the jobs, or why there is none."""
        return find_trainer(self.host.python())

    def models(self) -> list[str]:
        """What the form offers, its first choice first; a path may be given as well."""
        return [*self.host.models(), TINY_LABEL]

    def hint(self, model: str) -> str:
        """Why a model cannot learn the page's pictures; empty where nothing is to be said.

        Args:
            model: as :meth:`models` names it.
        """
        paths = [each.path for each in self.draft.pictures()]
        return too_much_for_the_embedded_model(paths) if _is_tiny(model) else ""

    # ------------------------------------------------------------ the form

    def settings(self, form: Mapping[str, Any]) -> dict[str, Any]:
        """The run's settings that a form stands for, without its images; what is left to the preset is left out.

        Args:
            form: by the names of :class:`TrainConfig`, with the model as :meth:`models` names it. ``preset``,
                ``overwrite``, ``keep_copy`` and ``learn_weights`` are the form's own.

        Raises:
            ZoodipError: of the kind that tells what is wrong.
        """
        named = {key: value for key, value in form.items() if key not in _FORM_S_OWN and not _is_empty(key, value)}
        named = given(named, OWN)
        PRESET.check(form.get("preset", "default"))
        label = str(named.get("model") or TINY_LABEL).strip()
        named["model"] = TINY if _is_tiny(label) else str(self._model_path(label))
        if named["model"] != TINY:
            named["cache"] = self._cache if form.get("keep_copy", KEEP_COPY.default) else None
        for name in ("token", "initializer"):
            named[name] = str(named.get(name, "")).strip()
        check_names(named["token"])
        if not named["initializer"]:
            raise TokenError("initializer is empty; give the word that comes nearest to the subject, like dog")
        if form.get("learn_weights") and named.get("lora_rank") == 0:
            raise ConfigError("lora_rank = 0 learns no weights, and learn_weights is on: leave one of them as it was")
        TrainConfig.from_dict({**named, "images": ["images"]})
        return named

    @staticmethod
    def learns_weights(form: Mapping[str, Any]) -> bool:
        """Whether a training of this form learns weights as well, which are kept as a LoRA."""
        rank = given({"lora_rank": form.get("lora_rank")}).get("lora_rank")
        if rank is not None:
            return bool(rank)
        return bool(form.get("learn_weights")) or form.get("preset") == WITH_WEIGHTS

    def _model_path(self, label: str) -> Path:
        """Of a name that the host offers, or a path as typed; the worker runs in another folder."""
        return self.host.models().get(label) or self.typed(label)

    def typed(self, path: str) -> Path:
        """A path of this computer as somebody gave it, who has to be somebody who may read all of it.

        Raises:
            PathError: it is none, or others can reach the page.
        """
        if not self.host.for_its_user():
            raise PathError(
                f"{path[:80]!r} is not in the list, and a path is not taken where others than this computer's user may "
                "have sent it; choose from the list, or drop pictures onto the page"
            )
        return typed(path)

    @property
    def _cache(self) -> str:
        """The folder for quantised copies of models."""
        return str(self.host.home() / "cache")

    @property
    def shelf(self) -> Shelf | None:
        """Where finished tokens go to be used, if there is such a place."""
        folder = self.host.embeddings_folder()
        return Shelf(folder) if folder else None

    def shelves(self, with_lora: bool) -> list[Shelf]:
        """Where what was learned goes to be used: the token, and the LoRA where there is one and it has a place."""
        loras = self.host.loras_folder() if with_lora else None
        tokens = self.shelf
        return [tokens, *([Shelf(loras, of_loras=True)] if loras else [])] if tokens else []

    def replaceable(self, token: str, with_lora: bool) -> bool:
        """Whether files are in the way of what was learned, and all of them could be replaced by it."""
        try:
            taken = [(shelf, name) for shelf, name in self._places(token, with_lora) if shelf.taken(name)]
            return bool(taken) and all(shelf.replaceable(name) for shelf, name in taken)
        except TokenError:
            return False

    def _check_free(self, token: str, form: Mapping[str, Any]) -> None:
        for shelf, name in self._places(token, self.learns_weights(form)):
            shelf.check_free(name, bool(form.get("overwrite")))

    def _places(self, token: str, with_lora: bool) -> list[tuple[Shelf, str]]:
        """Where each of the tokens goes, and the LoRA, which is called like the first one.

        Raises:
            TokenError: one of them cannot be a name.
        """
        names, (tokens, loras) = check_names(token), (self.shelves(with_lora)[:1], self.shelves(with_lora)[1:])
        return [(shelf, name) for shelf in tokens for name in names] + [(shelf, names[0]) for shelf in loras]

    @staticmethod
    def _asked(form: Mapping[str, Any]) -> dict[str, Any]:
        """What a job file says beside the settings."""
        return {"preset": form.get("preset", "default"), "learn_weights": bool(form.get("learn_weights"))}

    def check(self, form: Mapping[str, Any], draft: Draft | None = None) -> dict[str, Any]:
        """What a run of this form would be: see :func:`tasks.check`. Takes some seconds.

        Raises:
            ZoodipError: of the kind that tells what is wrong.
        """
        python, settings = python_of(self.trainer()), self.settings(form)
        self._check_free(settings["token"], form)
        references = (draft or self.draft).references()
        return ask(python, CHECK, settings={**settings, **references}, **self._asked(form))

    # ------------------------------------------------------------ jobs

    def start(self, form: Mapping[str, Any], draft: Draft | None = None) -> Job:
        """Queue a training of the form's token on the draft's pictures, in a new folder.

        Raises:
            ZoodipError: of the kind that tells what is wrong; nothing is left behind.
        """
        python_of(self.trainer())
        settings, draft = self.settings(form), draft or self.draft
        token, replace = settings["token"], bool(form.get("overwrite"))
        self._check_free(token, form)
        draft.references()  # there are pictures
        self._check_queue(settings, self._asked(form), draft)
        folder = new_folder(self.host.home(), token)
        try:
            settings |= draft.write_references(folder)
            told = photographs([each.path for each in draft.pictures()]) if settings["model"] == TINY else []
            asked = {**self._asked(form), "warnings": told}
            return self.jobs.submit(TRAIN, folder, token, settings=settings, replace=replace, **asked)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _check_queue(self, settings: Mapping[str, Any], asked: Mapping[str, Any], draft: Draft) -> None:
        """Refuse what waits or is at work already, as where somebody clicked twice.

        Raises:
            ConfigError: it does.
        """
        wanted = json.loads(json.dumps({"settings": settings, **asked}))
        for job in self.jobs.all():
            if not job.open or job.kind != TRAIN:
                continue
            task = task_of(job.folder)
            known = {name: task.get(name) for name in wanted}
            known["settings"] = {
                name: value for name, value in task.get("settings", {}).items() if name not in ("images", "captions")
            }
            if known == wanted and draft.holds(job.folder):
                raise ConfigError(f"{job.token} is in the queue with these settings and pictures already")

    def resume(self, name: str, steps: int = 0) -> Job:
        """Queue the rest of a run, or more steps.

        Args:
            name: of the run.
            steps: in all; 0 for as many as it was made for.

        Raises:
            RunFolderError: no such run, or it cannot be resumed.
        """
        run = self.run(name)
        if not run.can_resume and not steps:
            why = run.message or f"it has taken all its {run.steps} steps; ask for more"
            raise RunFolderError(f"{name} cannot be resumed: {why}")
        task = task_of(run.folder)
        changes: dict[str, Any] = {"steps": steps} if steps else {}
        replace = bool(task.get("replace"))
        if run.settings.get("cache") not in (None, AUTO, self._cache):  # a run's files do not say what else is written
            changes["cache"] = None
        changes |= self._moved(run)
        if not (run.run / CONFIG).is_file():  # it had to wait, and the program ended before it had begun
            write_outcome(run.folder, STOPPED, "")  # it was listed, and stays whatever comes of it
            settings = {**task.get("settings", {}), **changes}
            asked = self._asked({**task, "preset": preset_in(task)})
            return self.jobs.submit(TRAIN, run.folder, run.token, settings=settings, replace=replace, **asked)
        RunFolder.open(run.run, changes)  # what it cannot do is said now
        return self.jobs.submit(RESUME, run.folder, run.token, changes=changes, replace=replace)

    def _moved(self, run: Run) -> dict[str, Any]:
        """Where a run's pictures, captions and model lie now, of those that are gone from where they were."""
        own = {"images": [run.folder / "images"], "captions": [run.folder / LISTING]}
        name = re.split(r"[/\\]", str(run.settings.get("model", "")))[-1]
        own["model"] = [path for path in self.host.models().values() if path.name == name]
        found: dict[str, Any] = {}
        for key, places in own.items():
            before = run.settings.get(key)
            paths = before if isinstance(before, list) else [before] if before else []
            there = [str(path) for path in places if path.exists()]
            if there and paths and before != TINY and not all(Path(str(path)).exists() for path in paths):
                found[key] = there if key == "images" else there[0]
        return found

    def show(self, name: str) -> Job:
        """Queue the pictures before and after of a run.

        Raises:
            RunFolderError: no such run.
            EmbeddingFileError: it has no token yet.
        """
        run = self._with_token(name)
        return self.jobs.submit(SHOW, run.folder, run.token)

    def compare(self, names: Sequence[str], prompt: str = "", until: str = "") -> Job:
        """Queue a picture of what several runs have learned, side by side: :attr:`comparison`.

        Args:
            names: of the runs.
            prompt: with ``{}`` for each one's token; empty for the target prompt that they have.
            until: shares of the steps in which tokens stand in it, with commas between, a row for each; empty for all.

        Raises:
            RunFolderError: no such run, or another comparison is at work.
            EmbeddingFileError: one has no token yet.
            ConfigError: fewer than two rows, runs of several models, or a share that is none.
        """
        runs, shares = [self._with_token(name) for name in names], shares_in(until)
        for share in shares:
            check_until(share)
        if len(runs) * len(shares) < 2:
            raise ConfigError("choose at least two runs to compare, or one and several shares of the steps")
        other = next((run for run in runs if run.settings.get("model") != runs[0].settings.get("model")), None)
        if other is not None:
            learned = " and ".join(f"{run.name} on {run.model}" for run in (runs[0], other))
            raise ConfigError(f"{learned} were learned on different models; compare runs of one model")
        folder = self.comparison.parent
        make_folder(folder)
        asked: dict[str, Any] = {"runs": [str(run.folder) for run in runs], "prompt": prompt.strip(), "until": shares}
        return self.jobs.submit(COMPARE, folder, ", ".join(names), **asked)

    @property
    def comparison(self) -> Path:
        """The newest picture of several runs; it may not be there."""
        return self.host.home() / ".comparison" / COMPARISON

    def write_captions(self, form: Mapping[str, Any], where: str) -> Job:
        """Queue captions of the draft's pictures that have none, which they get as the job ends, however it ends.

        Args:
            form: as for :meth:`start`; what the token is called, and what it is, counts.
            where: the model that writes them: its folder, or its name in Hugging Face's cache.

        Raises:
            ZoodipError: of the kind that tells what is wrong.
        """
        python_of(self.trainer())
        captioner, named = self._captioner(where.strip()), {key: form[key] for key in _NAMING if form.get(key)}
        named = {**named, "initializer": str(named.get("initializer", "")).strip()}
        tokens = check_names(str(named.setdefault("token", "")).strip())
        if not named["initializer"]:
            raise TokenError("initializer is empty; give the word that comes nearest to the subject, like dog")
        if len(tokens) > 1:
            raise CaptionError(
                f"with {len(tokens)} tokens nobody knows which of them a picture shows: write the captions yourself, "
                f"with {' or '.join(tokens)} in each"
            )
        self.draft.references()  # there are pictures
        images = [str(picture.path) for picture in self.draft.pictures() if not picture.caption]
        if not images:
            raise CaptionError("all pictures have captions; empty one to have it written anew")
        device = form.get("device", AUTO)
        settings = {**named, "images": images, "device": AUTO if device == ALL else device}
        TrainConfig.from_dict(settings)
        folder = self.host.home() / ".captions"
        make_folder(folder)
        return self.jobs.submit(CAPTION, folder, "captions", settings=settings, caption_with=captioner)

    def _captioner(self, where: str) -> str:
        """A model that writes captions, by its absolute path or its name, as the worker runs in another folder."""
        if not where:
            raise ConfigError(
                "name a model that writes captions: the folder of BLIP, Florence-2 or Qwen-VL, or its name in Hugging "
                "Face's cache"
            )
        if self.host.for_its_user() and (self.typed(where).is_dir() or not is_repository(where)):
            return str(self.typed(where))
        if not is_repository(where):
            raise PathError(
                f"{where[:80]!r} is not a name in Hugging Face's cache, and a path is not taken where others than this "
                "computer's user may have sent it"
            )
        return where

    def _done(self, job: Job) -> str:
        """After a job: remember how it ended, and bring what was learned to its user."""
        if job.kind == TRAIN and not (job.folder / RUN).exists() and self._can_be_asked_again(job.folder):
            shutil.rmtree(job.folder, ignore_errors=True)  # nothing came of it
            return ""
        if job.kind == CAPTION:
            count = self.draft.fill(job.captions)
            many = "" if count == 1 else "s"
            return f"{count} caption{many} written; click a picture to correct its own" if count else ""
        if job.kind in ASIDE:
            return ""
        write_outcome(job.folder, job.state, job.message if job.state == FAILED else "")
        if job.state != FINISHED or self.shelf is None:
            return ""
        try:
            replace = bool(task_of(job.folder).get("replace"))
            return str(self.publish(job.folder.name, replace=replace, another_name=True))
        except (EmbeddingFileError, TokenError) as error:
            return str(error)

    def _can_be_asked_again(self, folder: Path) -> bool:
        """Whether a run that did not begin is on the form still: its pictures and captions cannot be typed again."""
        return not (folder / OUTCOME).exists() and self.draft.holds(folder)

    # ------------------------------------------------------------ the runs so far

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        return list_runs(self.host.home())

    def run(self, name: str) -> Run:
        """A run by its name.

        Raises:
            RunFolderError: there is none.
        """
        return find_run(self.host.home(), name)

    def delete(self, name: str) -> None:
        """Delete a run's folder; what was put into the folders of embeddings and LoRAs stays.

        Raises:
            RunFolderError: no such run, or it is at work.
        """
        run = self.run(name)
        if self.jobs.busy(run.folder):
            raise RunFolderError(f"{name} is being worked on; stop it first")
        delete_run(self.host.home(), name)

    def publish(self, name: str, *, replace: bool = False, another_name: bool = False) -> Published:
        """Put a run's token, finished or not, into the embeddings folder, and its LoRA into the one for those.

        Args:
            name: of the run.
            replace: whether files of the token's name may be replaced.
            another_name: take the next name that is free for both where they may not.

        Raises:
            EmbeddingFileError: there is no token yet, no such folder, or the name is taken.
            LoraFileError: the LoRA's name is taken.
            TokenError: the run's files give it a name that is none.
            StorageError: it cannot be written.
        """
        run = self._with_token(name)
        shelves = self.shelves(run.lora is not None)
        if not shelves:
            raise EmbeddingFileError("there is no embeddings folder here; download the file instead")
        (name, first), *others = run.learned.items()
        learned = zip(shelves, [first, run.lora], strict=False)
        contents = [(shelf, file.read_bytes()) for shelf, file in learned if file]
        beside = [(other, [(shelves[0], file.read_bytes())]) for other, file in others]
        for other, content in () if another_name else (*beside, (name, contents)):
            check_room(content, other, replace)
        how = {"replace": replace, "another_name": another_name}
        further = tuple(put_together(content, other, **how)[0] for other, content in beside)
        # The token last: where it is, nothing is missing.
        files = put_together(contents[::-1], name, **how)[::-1]
        token, lora = files[0], files[1] if len(files) > 1 else None
        if lora:
            self.host.loras_changed()
        self.host.embeddings_changed()
        return Published(token, lora, left=run.lora is not None and lora is None, others=further)

    def _with_token(self, name: str) -> Run:
        run = self.run(name)
        if run.embedding is None:
            raise EmbeddingFileError(f"{name} has no token yet; resume the run first")
        return run


def _is_tiny(label: str) -> bool:
    return label.strip() in ("", TINY, TINY_LABEL)


def _is_empty(name: str, value: Any) -> bool:
    """Whether a form's text is empty where a setting has none."""
    return value == "" and name in SETTINGS and SETTINGS[name].default is None
