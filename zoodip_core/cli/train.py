"""The commands train and rewind."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..base.events import Commands, Event
from ..base.names import run_name
from ..base.stopping import stopped_by
from ..model.copies import has_copies
from ..model.kinds import TINY
from ..train.config import TrainConfig, preset_of
from ..train.loop import TrainResult, resume_training, train_token
from ..train.presets import check_given, complete
from ..train.ranks import Ranks
from ..train.replay import rewind
from ..train.run_folder import CHANGEABLE, free_folder
from ..train.setting import AUTO
from ..train.settings import ADAPTIVE, ALL, ENCODER, NORMAL, SETTINGS
from .arguments import PROGRAM, Once, command, setting_options
from .captions import caption_with_option, with_captions
from .screen import closing, shared_session


def add(commands: Any) -> None:
    parser = command(
        commands,
        "train",
        run,
        "learn a token from a few images",
        'train --model models/sd15 --images photos/rex --token "<rex>" --init dog',
    )
    setting_options(parser)
    _output_options(parser)
    more = ". Pictures without a caption get one before the training, kept in the run's folder"
    caption_with_option(parser.add_argument_group("Captions written by a model"), required=False, more=more)


def _output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Output")
    group.add_argument("--output", type=Path, metavar="DIR", help="run folder to make (default: runs/NAME)")
    group.add_argument(
        "--resume",
        type=Path,
        action=Once,
        metavar="RUN",
        help="resume a run, with its settings; --steps may be more where learning rate and mu "
        "stay and there are no checks and no weights, as with the preset paper",
    )
    group.add_argument(
        "--config",
        type=Path,
        action=Once,
        metavar="JSON",
        help="settings file, such as a run's config.json; options given here come on top",
    )


def run(args: argparse.Namespace) -> int:
    """The command train; several processes of torchrun take its steps together."""
    with shared_session() as (screen, commands, ranks):
        result, path = _trained(args, screen, commands, ranks)
    if not ranks.leads:
        return 0 if result.finished else 1
    learned = {embedding.token: file for embedding, file in zip(result.embeddings, result.paths, strict=True)}
    return closing(result.finished, result.step, learned, path, result.lora_path, result.grid)


def _trained(
    args: argparse.Namespace, screen: Callable[[Event], None], commands: Commands, ranks: Ranks
) -> tuple[TrainResult, Path]:
    """What a training came to, and its run's folder."""
    if args.resume:
        changes = _settings(args)
        _check_device(changes.get("device"), ranks)
        fixed = sorted(set(changes) - set(CHANGEABLE))
        if fixed or args.config or args.preset or args.output or args.caption_with:
            raise ConfigError(
                "--resume keeps the run's own settings and captions; of the settings "
                f"{', '.join(CHANGEABLE)} may change; leave out {', '.join(fixed) or 'the rest'}"
            )
        path = args.resume
        result = resume_training(path, changes, on_event=screen, commands=commands, ranks=ranks)
    else:
        config = _config(args)
        _check_device(config.device, ranks)
        path = args.output or free_folder(Path("runs"), run_name(config.token))
        if args.caption_with is not None:
            if ranks.size > 1:
                raise ConfigError(
                    "--caption-with: under torchrun each process would write captions; write them first with "
                    f"{PROGRAM} caption, then train with --captions"
                )
            with stopped_by(lambda: commands.stopping):
                config = with_captions(config, args.caption_with, path, screen)
        result = train_token(config, path, on_event=screen, commands=commands, ranks=ranks)
    return result, path


def _check_device(device: str | None, ranks: Ranks) -> None:
    """Refuse all cards in a process alone.

    Raises:
        ConfigError: it is one, and they are asked for.
    """
    if device == ALL and ranks.size == 1:
        raise ConfigError(
            f"device = {ALL!r} is the page's; here torchrun starts a process for each card: torchrun "
            "--nproc-per-node 2 -m zoodip_core train ..."
        )


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    settings = {key: value for key, value in vars(args).items() if key in SETTINGS}
    for key in ("model", "vae", "captions", "cache"):  # a run can be resumed from another folder
        if settings.get(key) not in (None, TINY, AUTO):
            settings[key] = str(Path(settings[key]).absolute())
    for key in {"images", "clip"} & set(settings):
        settings[key] = [str(Path(path).absolute()) for path in settings[key]]
    return settings


def _config(args: argparse.Namespace) -> TrainConfig:
    settings = _settings(args)
    if args.config:
        try:
            base = TrainConfig.settings_from_json(args.config.read_text(encoding="utf-8-sig"), str(args.config))
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"config file {args.config} cannot be read: {why}") from error
        cache = {} if "cache" in settings else {"cache": _known_cache(base.get("cache"))}
        preset = preset_of({**base, **settings}, args.preset) if args.preset else _measured_anew(base, settings)
        config = TrainConfig.from_dict({**base, **preset, **cache, **settings})
        check_given(config.to_dict(), {**complete({}), **base, **preset}, settings)
        return config
    for flag, key in (("--images", "images"), ("--token", "token"), ("--init", "initializer")):
        if key not in settings:
            raise ConfigError(f"{flag} is missing; see {PROGRAM} train --help")
    return TrainConfig.with_preset(args.preset or "default", settings)


def _measured_anew(base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The mu of a run, and its directions, are what was measured; on another model or in other types that is anew."""
    others = any(key in settings and settings[key] != base.get(key) for key in ("model", "weights", "dtype"))
    if not others or base.get("directions") in (None, NORMAL):
        return {}
    return {"adapt_mu": True, **({"directions": ADAPTIVE} if base["directions"] == ENCODER else {})}


def _known_cache(folder: Any) -> Any:
    """A settings file's folder for copies of models. The file may be a stranger's: none is begun where it says.

    Raises:
        ConfigError: no copies are kept there.
    """
    if isinstance(folder, str) and folder != AUTO and not has_copies(Path(folder)):
        raise ConfigError(
            f"cache = {folder!r}: no copies of models are kept there yet; to keep them there, add --cache {folder!r}, "
            "or take it out of the settings file"
        )
    return folder


def add_rewind(commands: Any) -> None:
    parser = command(
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


def _rewind(args: argparse.Namespace) -> int:
    rewound = rewind(args.folder, args.step, args.output)
    if rewound.differs is not None:
        print(
            f"warning: from step {rewound.differs} on it may differ from what it was: this computer or version rounds "
            "otherwise, or the run's settings were changed by hand",
            file=sys.stderr,
        )
    for path in filter(None, (rewound.path, *rewound.others, rewound.lora)):
        print(path)
    return 0
