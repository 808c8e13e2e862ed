"""The command line: train, rewind, generate, evaluate, inspect, ui, demo."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ..base.errors import ConfigError, for_user
from ..base.events import Commands, Event, Message, Progress, Sampled, Saved
from ..base.paths import plain
from ..base.stopping import Stopped, stopped_by
from ..base.texts import printable
from ..base.version import __version__
from ..data.images import CROPS, find_images
from ..data.prompts import TEMPLATES, with_slots
from ..evaluate.encoders import CLIP_ID, DINO_ID
from ..evaluate.prompt_sets import PROMPT_SETS, default_set, prompts_of
from ..model.blueprint import DTYPES, PREDICTION_TYPES, TINY
from ..model.embedding import MAX_BYTES, describe, load_embedding
from ..model.libraries import quiet_libraries
from ..model.load import load_quantized
from ..model.quantize import WEIGHTS
from ..model.quantized import QuantizedModel
from ..model.tokens import INITIALIZER_MODES
from ..train.config import DIRECTIONS, ESTIMATORS, LR_SCHEDULES, OPTIMIZERS, TIMESTEP_SAMPLERS, TrainConfig
from ..train.loop import TrainResult, resume_training, train_token
from ..train.presets import PACES, PAPER, PRESETS, check_given, preset_of
from ..train.run_folder import CHANGEABLE, free_folder

PROGRAM = "python -m zoodip_core"
SWITCH = argparse.BooleanOptionalAction
_MODEL = "checkpoint file, diffusers folder, or tiny for the embedded model (default: tiny)"
_CACHE = "keep a quantised copy of the model here: the next load takes seconds (default: none)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 stopped before the end, 2 a user's error."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    quiet_libraries()
    try:
        return int(args.run(args))
    except Stopped:
        print("stopped before the first step; nothing has changed", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("zoodip: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        text = for_user(error)
        if text is None:
            raise
        print(f"zoodip: error: {text}", file=sys.stderr)
        return 2


# ---------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Teach Stable Diffusion a new subject or style with forward passes only.",
        epilog=f"See '{PROGRAM} COMMAND --help' for a command's options; '{PROGRAM} demo' shows it all.",
    )
    parser.add_argument("--version", action="version", version=f"ZOODiP {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_train(commands)
    _add_rewind(commands)
    _add_generate(commands)
    _add_evaluate(commands)
    _add_inspect(commands)
    _add_ui(commands)
    _add_demo(commands)
    return parser


def _command(commands: Any, name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {PROGRAM} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "learn a token from a few images",
        'train --model models/sd15 --images photos/rex --token "<rex>" --init dog',
    )
    # A setting that is not given is absent, so that the preset's value stands.
    for add in (_subject_options, _model_options, _image_options, _search_options, _output_options):
        add(parser)


def _subject_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to learn")
    _option(group, "--images", "images", "PATH", "folder of reference images, or image files", nargs="+")
    _option(group, "--token", "token", "NAME", 'placeholder for the subject, like "<rex>"')
    _option(group, "--init", "initializer", "WORD", "word the token starts from, like dog")
    _option(group, "--captions", "captions", "JSON", "captions by file name, with {} for the token")
    _option(
        group,
        "--template",
        "template",
        None,
        "captions for images that have none (default: object)",
        choices=tuple(TEMPLATES),
    )
    _option(group, "--vectors", "num_vectors", "N", "vectors in the token (default: 1)", type=int)
    _option(
        group,
        "--init-mode",
        "initializer_mode",
        None,
        "how a word of several tokens starts them: refuse, their mean, or the first ones (default: single)",
        choices=INITIALIZER_MODES,
    )


def _model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    _option(group, "--model", "model", "PATH", _MODEL)
    _option(group, "--weights", "weights", None, "how weights are kept in memory (default: int8)", choices=WEIGHTS)
    _option(
        group,
        "--dtype",
        "dtype",
        None,
        "activations (default: auto, float16 on a GPU, else float32)",
        choices=("auto", *DTYPES),
    )
    _option(group, "--device", "device", "NAME", "auto, cpu, cuda, ... (default: auto)")
    _option(
        group,
        "--prediction-type",
        "prediction_type",
        None,
        "what the model predicts, where its file does not tell rightly (default: auto)",
        choices=PREDICTION_TYPES,
    )
    _option(group, "--cache", "cache", "DIR", _CACHE)
    _option(group, "--batch", "batch", "N", "candidates in one forward pass (default: as many as fit)", type=int)


def _image_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images")
    _option(group, "--resolution", "resolution", "PIXELS", "a side (default: the model's own)", type=int)
    _option(group, "--crop", "crop", None, "cut out the centre square, or squeeze (default: center)", choices=CROPS)
    _option(group, "--background", "background", "COLOUR", "behind transparent images (default: white)")
    _option(group, "--flip", "flip", None, "train on mirror images as well", action="store_true")


def _search_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "search",
        "defaults come from the preset; those of default: 6000 steps (SDXL 4000, the embedded model 900), "
        "normalized-sgd, lr 1, averaging 0.1, n 4, mu 2.6 falling to a tenth, vocabulary directions, 20 checks and "
        "patience 6",
    )
    group.add_argument(
        "--preset",
        choices=(*PACES, *PRESETS),
        help="default; fast, a third of its steps; careful, three times as many; paper, the paper's settings for the "
        "model; or the paper's for another kind of model",
    )
    _option(group, "--steps", "steps", "N", "optimisation steps", type=int)
    _option(
        group,
        "--lr",
        "lr",
        "RATE",
        "learning rate, in the units of --mu; zosgd multiplies the gradient itself",
        type=float,
    )
    _option(group, "--lr-schedule", "lr_schedule", None, "over the run", choices=LR_SCHEDULES)
    mean = "the token is the mean over about this share of the steps, the last ones; 0: the last step's alone"
    _option(group, "--averaging", "averaging", "SHARE", mean, type=float)
    _option(group, "--seed", "seed", "N", "of every random draw (default: 0)", type=int)
    _option(group, "--estimator", "estimator", None, "how losses become a gradient", choices=tuple(ESTIMATORS))
    _option(group, "--n", "n", "N", "random directions a step", type=int)
    far = "perturbation size; 1 is as far as words are from their mean, for directions in the shape of the vocabulary"
    _option(group, "--mu", "mu", "SIZE", far, type=float)
    _option(group, "--mu-end", "mu_end", "SHARE", "of mu, to which it falls over the run; 1: it stays", type=float)
    _option(group, "--adapt-mu", "adapt_mu", None, "double mu until losses differ by more than rounding", action=SWITCH)
    shape = "shape of random directions; another than the preset's needs --mu and --lr too, whose units differ"
    _option(group, "--directions", "directions", None, shape, choices=DIRECTIONS)
    _option(
        group,
        "--subspace-gradient",
        "subspace_gradient",
        None,
        "drop from gradients what the token's path shows to be noise",
        action=SWITCH,
    )
    _option(group, "--tau", "tau", "STEPS", "Subspace Gradient's buffer", type=int)
    _option(group, "--nu", "nu", "SHARE", "share of variance that Subspace Gradient drops", type=float)
    _option(group, "--timesteps", "timesteps", None, "how timesteps are drawn", choices=TIMESTEP_SAMPLERS)
    _option(group, "--t-lower", "t_lower", "T", "PUTS: T_L, the lowest timestep", type=int)
    _option(group, "--t-upper", "t_upper", "T", "PUTS: T_U, the timestep to stay below", type=int)
    _option(
        group,
        "--optimizer",
        "optimizer",
        None,
        "how a gradient becomes a step; zosgd needs --lr too",
        choices=tuple(OPTIMIZERS),
    )
    _option(group, "--checks", "checks", "N", "looks at the loss on fixed draws over the run, 0 for none", type=int)
    _option(group, "--patience", "patience", "N", "checks without progress after which it ends, 0 for never", type=int)


def _output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output", type=Path, metavar="DIR", help="run folder to make (default: runs/NAME)")
    group.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with a run, with its settings; --steps may be more where learning rate and mu "
        "stay and there are no checks, as with the preset paper",
    )
    group.add_argument(
        "--config",
        type=Path,
        metavar="JSON",
        help="settings file, such as a run's config.json; options given here come on top",
    )
    _option(group, "--save-every", "save_every", "STEPS", "between saved states (default: 500)", type=int)
    _option(group, "--sample-every", "sample_every", "STEPS", "between sample images (default: 0, none)", type=int)
    _option(group, "--sample-prompt", "sample_prompt", "TEXT", "samples' prompt, with {} for the token")


def _option(group: Any, flag: str, setting: str, metavar: str | None, help: str, **more: Any) -> None:
    if metavar:
        more["metavar"] = metavar
    group.add_argument(flag, dest=setting, help=help, default=argparse.SUPPRESS, **more)


def _add_rewind(commands: Any) -> None:
    parser = _command(
        commands,
        "rewind",
        _rewind,
        "write the token of a run as it was after any of its steps",
        "rewind runs/rex --step 12000",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder; it may be at work")
    parser.add_argument("--step", type=int, required=True, metavar="K", help="completed steps, 0 for the start")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write, .safetensors (default: among the run's snapshots)"
    )


def _add_generate(commands: Any) -> None:
    parser = _command(
        commands,
        "generate",
        _generate,
        "make images, with or without a learned token",
        'generate --model models/sd15 --embedding runs/rex/rex.safetensors --prompt "a <rex> on the beach"',
    )
    parser.add_argument("--model", default=TINY, metavar="PATH", help=_MODEL)
    parser.add_argument("--prompt", required=True, action="append", help="what to draw; may be given several times")
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what to stay away from")
    parser.add_argument(
        "--embedding", type=Path, metavar="FILE", help="a learned token, used by its name in the prompt"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first image (default: 0)")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="images a prompt (default: 1)")
    parser.add_argument("--steps", type=int, default=25, metavar="N", help="denoising steps (default: 25)")
    parser.add_argument(
        "--guidance",
        type=float,
        default=None,
        metavar="SCALE",
        help="classifier-free guidance (default: 7.5; tiny: 5)",
    )
    _loading_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("generated"),
        metavar="DIR",
        help="folder for the images (default: generated)",
    )


def _loading_options(parser: argparse.ArgumentParser) -> None:
    """How a model that draws is loaded; see :func:`_load`."""
    parser.add_argument("--weights", choices=WEIGHTS, default="int8", help="how weights are kept (default: int8)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="activations (default: auto)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--prediction-type", choices=PREDICTION_TYPES, default="auto", help="what the model predicts (default: auto)"
    )
    parser.add_argument("--cache", metavar="DIR", help=_CACHE)


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        "score a learned token with CLIP-T, CLIP-I, DINO and DINO_inter, beside the word it began as",
        "evaluate --model models/sd15 --embedding runs/rex/rex.safetensors --images photos/rex --prompts living",
    )
    parser.add_argument("--model", default=TINY, metavar="PATH", help=_MODEL)
    parser.add_argument("--embedding", type=Path, required=True, metavar="FILE", help="the learned token")
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="folder of reference images, or image files",
    )
    parser.add_argument(
        "--prompts",
        metavar="SET",
        help=f"{', '.join(PROMPT_SETS)}, or a text file with a prompt a line and {{}} for the subject (default: "
        "object; tiny for the embedded model)",
    )
    parser.add_argument(
        "--class",
        dest="class_word",
        default="",
        metavar="WORD",
        help="what kind of thing the subject is (default: the word that the token was learned from)",
    )
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="images of each prompt (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first image of each (default: 0)")
    parser.add_argument("--steps", type=int, default=25, metavar="N", help="denoising steps (default: 25)")
    parser.add_argument(
        "--guidance", type=float, metavar="SCALE", help="classifier-free guidance (default: 7.5; tiny: 5)"
    )
    for option, kind in (("--clip", CLIP_ID), ("--dino", DINO_ID)):
        parser.add_argument(
            option, metavar="PATH", help=f"folder of the model that scores (default: {kind} in Hugging Face's cache)"
        )
    _loading_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for images and scores; the same command goes on in it (default: evaluations/NAME)",
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON, as in evaluation.json")


def _add_inspect(commands: Any) -> None:
    parser = _command(
        commands,
        "inspect",
        _inspect,
        "show what is in an embedding file, or what a model is and how much memory training on it takes",
        "inspect rex.safetensors",
    )
    parser.add_argument("file", metavar="FILE", help="an embedding (.safetensors, .pt, .bin), a model, or tiny")


def _add_ui(commands: Any) -> None:
    parser = _command(commands, "ui", _ui, "serve the page: train in a browser", "ui --models models --port 7861")
    parser.add_argument("--port", type=int, default=7861, metavar="N", help="of the page (default: 7861)")
    parser.add_argument(
        "--listen",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="another address to listen on, 0.0.0.0 for all; needs a password in ZOODIP_PASSWORD, the user is "
        "zoodip (default: this computer alone)",
    )
    parser.add_argument("--models", type=Path, action="append", metavar="DIR", help="folder of models to choose from")
    parser.add_argument("--embeddings", type=Path, metavar="DIR", help="put finished tokens there as well")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="keep runs there (default: runs)"
    )


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands, "demo", _demo, "learn a bundled concept on the embedded tiny model", "demo --concept otto"
    )
    from ..tiny.concepts import names

    parser.add_argument("--concept", choices=(*names(), "all"), default="boo", help="which one (default: boo)")
    parser.add_argument("--steps", type=int, metavar="N", help="optimisation steps (default: the preset's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every random draw (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), metavar="DIR", help="folder for the results (default: demo)"
    )


# ---------------------------------------------------------------- train


def _train(args: argparse.Namespace) -> int:
    if args.resume:
        changes = _settings(args)
        fixed = sorted(set(changes) - set(CHANGEABLE))
        if fixed or args.config or args.preset or args.output:
            raise ConfigError(
                f"--resume goes on with the run's own settings, of which {', '.join(CHANGEABLE)} may change; leave out "
                f"{', '.join(fixed) or 'the rest'}"
            )
        path = args.resume
        with _session() as (screen, commands):
            result = resume_training(path, changes, on_event=screen, commands=commands)
    else:
        config = _config(args)
        path = args.output or free_folder(Path("runs"), config.token)
        with _session() as (screen, commands):
            result = train_token(config, path, on_event=screen, commands=commands)
    return _closing(result, path)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    known = {spec.name for spec in dataclasses.fields(TrainConfig)}
    settings = {key: value for key, value in vars(args).items() if key in known}
    for key in ("model", "captions", "cache"):  # a run can be resumed from another folder
        if settings.get(key, TINY) != TINY:
            settings[key] = str(Path(settings[key]).absolute())
    if "images" in settings:
        settings["images"] = [str(Path(path).absolute()) for path in settings["images"]]
    return settings


def _config(args: argparse.Namespace) -> TrainConfig:
    settings = _settings(args)
    if args.config:
        try:
            base = TrainConfig.settings_from_json(args.config.read_text(encoding="utf-8-sig"), str(args.config))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"config file {args.config} can not be read: {why}") from error
        cache = {} if "cache" in settings else {"cache": _known_cache(base.get("cache"))}
        preset = preset_of({**base, **settings}, args.preset) if args.preset else _measured_anew(base, settings)
        config = TrainConfig.from_dict({**base, **preset, **cache, **settings})
        check_given(config.to_dict(), {**PAPER, **base, **preset}, settings)
        return config
    for flag, key in (("--images", "images"), ("--token", "token"), ("--init", "initializer")):
        if key not in settings:
            raise ConfigError(f"{flag} is missing; see {PROGRAM} train --help")
    return TrainConfig.with_preset(args.preset or "default", settings)


def _measured_anew(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The mu of a run is the one that was measured; on another model or in other types it has to be measured again."""
    others = any(key in settings and settings[key] != base.get(key) for key in ("model", "weights", "dtype"))
    return {"adapt_mu": True} if others and base.get("directions") == "vocabulary" else {}


def _known_cache(folder: Any) -> Any:
    """A settings file's folder for copies of models. The file may be a stranger's: none is begun where it says.

    Raises:
        ConfigError: no copies are kept there.
    """
    from ..model.copies import has_copies

    if isinstance(folder, str) and not has_copies(Path(folder)):
        raise ConfigError(
            f"cache = {folder!r}: no copies of models are kept there yet; if they shall be, add --cache {folder!r}, or "
            "take it out of the settings file"
        )
    return folder


def _closing(result: TrainResult, run: Path) -> int:
    if result.finished:
        print(f"done: {result.step} steps, token {result.embedding.token} in {result.path}")
        return 0
    print(
        f"stopped at step {result.step}; the token so far is {result.path}\ngo on with:\n"
        f'  {PROGRAM} train --resume "{run}"'
    )
    return 1


class _Screen:
    """Events as a progress bar and lines."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Message):
            print(("warning: " if event.warning else "") + event.text, file=sys.stderr)
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Sampled):
            self._line(f"samples at step {event.step}: {event.path}")
        elif isinstance(event, Saved) and self._bar is None:
            self._line(f"saved at step {event.step}: {event.embedding}")

    def _progress(self, event: Progress) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(
                total=event.steps,
                initial=event.step - 1,
                unit="step",
                dynamic_ncols=True,
                mininterval=0.25,
                bar_format="{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}, {rate_fmt}, ETA {remaining}",
            )
        self._bar.set_postfix_str(f"loss {event.smoothed:.4f}", refresh=False)
        self._bar.update(event.step - self._bar.n)

    def _line(self, text: str) -> None:
        if self._bar is None:
            print(text, file=sys.stderr)
        else:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def _session() -> Iterator[tuple[_Screen, Commands]]:
    """A screen, and commands that Ctrl-C stops; a second Ctrl-C ends at once."""
    screen, commands = _Screen(), Commands()

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        if commands.stopping:
            raise KeyboardInterrupt
        commands.stop()
        print("\nstopping; Ctrl-C again to leave at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield screen, commands
    finally:
        signal.signal(signal.SIGINT, before)
        screen.close()


# ---------------------------------------------------------------- the other commands


def _rewind(args: argparse.Namespace) -> int:
    from ..train.replay import rewind

    rewound = rewind(args.folder, args.step, args.output)
    if rewound.differs is not None:
        print(
            f"warning: from step {rewound.differs} on it may differ from what it was: this computer or version rounds "
            "otherwise, or the run's settings were changed by hand",
            file=sys.stderr,
        )
    print(rewound.path)
    return 0


def _generate(args: argparse.Namespace) -> int:
    from ..data.sheets import save_png
    from ..model.generation import generate

    if not 1 <= args.count <= 256:
        raise ConfigError(f"--count {args.count}: must be from 1 to 256")
    embedding = load_embedding(args.embedding) if args.embedding else None
    if embedding and not any(
        with_slots(text, embedding.token) != text for text in (*args.prompt, args.negative_prompt)
    ):
        raise ConfigError(f"no prompt holds the token {embedding.token}; write it where the subject should stand")
    model = _load(args)
    prompts = [prompt for prompt in args.prompt for _ in range(args.count)]
    seeds = [args.seed + i for _ in args.prompt for i in range(args.count)]
    images = generate(
        model,
        prompts,
        seeds,
        embedding=embedding,
        negative_prompt=args.negative_prompt,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
    )
    # A token's name comes from inside a file, perhaps a stranger's: never a path.
    stem = (plain(embedding.token, 120) if embedding else "") or "image"
    for i, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        path = args.output / f"{stem}-{i // args.count + 1}-seed{seed}.png"
        save_png(image, path)
        print(path)
    return 0


def _load(args: argparse.Namespace) -> QuantizedModel:
    return load_quantized(
        args.model,
        weights=args.weights,
        dtype=args.dtype,
        device=args.device,
        prediction_type=args.prediction_type,
        cache=args.cache,
    )


def _evaluate(args: argparse.Namespace) -> int:
    from ..evaluate.evaluation import Plan, as_json, class_word_of, evaluate, find_judges, folder_for
    from ..evaluate.report import as_text, write_report

    embedding = load_embedding(args.embedding)
    references = find_images(args.images)
    judges = find_judges(args.clip, args.dino)
    for why in judges.left_out:
        print(f"warning: {why}", file=sys.stderr)
    word = class_word_of(embedding, args.class_word)
    folder = args.output or folder_for(Path("evaluations"), embedding)
    model = _load(args)
    prompts = prompts_of(args.prompts or default_set(model.info.family))
    plan = Plan(prompts, word, args.seeds, args.seed, args.steps, args.guidance)
    with _session() as (_, commands), stopped_by(lambda: commands.stopping), _Stages() as bar:
        try:
            evaluation = evaluate(model, embedding, references, plan, judges, folder, bar)
        except Stopped:
            bar.close()
            print(f"stopped; what is drawn is kept in {folder}, and the same command goes on", file=sys.stderr)
            return 1
        sheet = write_report(evaluation, references, folder)
    print(as_json(evaluation) if args.json else f"{as_text(evaluation)}\n{sheet}")
    return 0


class _Stages:
    """A progress bar for each thing that is done, one after another."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self.close()
            layout = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, ETA {remaining}"
            # What an earlier call has drawn is no measure of how long the rest takes.
            self._bar = tqdm(
                total=total, initial=done, desc=stage, dynamic_ncols=True, mininterval=0.25, bar_format=layout
            )
            self._stage = stage
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _inspect(args: argparse.Namespace) -> int:
    path = Path(args.file)
    if args.file == TINY or path.is_dir() or (path.is_file() and path.stat().st_size > MAX_BYTES):
        lines = _describe_model(args.file)
    else:
        lines = describe(load_embedding(path))
    width = max(len(label) for label, _ in lines)
    print(f"{args.file}\n" + "\n".join(f"  {label:<{width}}  {printable(text)}" for label, text in lines))
    return 0


def _describe_model(model: str) -> list[tuple[str, str]]:
    """What a model is and what training on a GPU takes, candidates in turn, as (label, text) lines."""
    import torch

    from ..model.memory import predict_memory
    from ..model.recognise import open_model

    blueprint = open_model(model)
    info = blueprint.info
    lines = [
        ("model", info.name),
        ("family", info.family),
        ("predicts", info.prediction_type),
        ("trained on", f"{info.resolution} px"),
        ("token width", "+".join(map(str, info.dims))),
    ]
    for weights in ("int8", "int4"):
        use = predict_memory(blueprint, weights, torch.float16, torch.device("cuda"), info.resolution, 1)
        lines.append((f"GPU, {weights}", str(use)))
    return lines


def _ui(args: argparse.Namespace) -> int:
    from ..page.standalone import open_page

    open_page(args.runs, tuple(args.models or ()), args.embeddings, args.listen, args.port)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from ..tiny import concepts
    from .demo import demo_config, show

    settings = {"steps": args.steps} if args.steps is not None else {}
    model = load_quantized(TINY)
    results = []
    for name in concepts.names() if args.concept == "all" else [args.concept]:
        concept, began = concepts.load(name), time.monotonic()
        print(f"\n{concept.token}: {concept.about}", flush=True)
        folder = free_folder(args.output, name)
        with _session() as (screen, commands):
            config = demo_config(concept, seed=args.seed, **settings)
            trained = train_token(config, folder, model=model, on_event=screen, commands=commands)
        if not trained.finished:
            return _closing(trained, folder)
        results.append(show(concept, model, trained, folder))
        _print_demo(results[-1], time.monotonic() - began)
    if len(results) > 1:
        won = sum(result.loss_after < result.loss_before for result in results)
        print(f"\nheld-out loss: the token beats its word for {won} of {len(results)} concepts")
    return 0


def _print_demo(result: Any, seconds: float) -> None:
    concept = result.concept
    print(
        f"held-out denoising loss: {concept.initializer!r} {result.loss_before:.4f} -> {concept.token} "
        f"{result.loss_after:.4f} ({(result.loss_after / result.loss_before - 1) * 100:+.1f}%)"
    )
    print(f"{'generated images':18}{'word':>9}{'token':>9}{'subject':>9}")
    for name in result.scores["word"]:
        values = "".join(f"{result.scores[who][name]:>9.2f}" for who in ("word", "token", "subject"))
        print(f"  {name:16}{values}")
    print(f"in {seconds:.0f} s, wrote\n  {result.before_after}\n  {result.loss_curve}\n  {result.embedding}")
