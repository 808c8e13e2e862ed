"""Arguments that several commands share; those of a training are made from the table of settings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..base.events import Message
from ..model.kinds import DTYPES, PREDICTION_TYPES, TINY
from ..model.load import load_quantized
from ..model.lora import MOST_STRENGTH, Lora, load_lora
from ..model.quantize import WEIGHTS
from ..model.stable_diffusion import StableDiffusion
from ..train.presets import PAPER_PRESETS, PRESET, said
from ..train.setting import NUMBER, PATHS, SWITCH, WHOLE, Setting
from ..train.settings import PARTS, SEARCH, SETTINGS, of_part

PROGRAM = "python -m zoodip_core"


def command(commands: Any, name: str, run: Any, help: str, *examples: str) -> argparse.ArgumentParser:
    """Add a command, with examples of its use in its help."""
    shown = "".join(f"\n  {PROGRAM} {each}" for each in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example{'s'[: len(examples) - 1]}:{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


class Once(argparse.Action):
    """An option of which the first would be forgotten without a word if it were given twice."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        if getattr(namespace, self.dest, self.default) not in (self.default, argparse.SUPPRESS):
            parser.error(f"{option} is given twice; give one")
        setattr(namespace, self.dest, values)


class Together(argparse.Action):
    """An option whose values count together, however often it is given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, [*before, *values] if isinstance(before, list) else list(values))


def which_option(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Which token to take of an embedding file that holds several."""
    help = f"the token to take of a file that holds several (default: {otherwise})"
    parser.add_argument("--which", action=Once, metavar="NAME", help=help)


# ---------------------------------------------------------------- settings of a training


def until_option(parser: argparse.ArgumentParser) -> None:
    """``--until``, where pictures are drawn with tokens."""
    parser.add_argument(
        "--until",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of the steps in which tokens stand in the prompts; from there on the words that they began as, "
        "which leave more of a prompt to the model: try 0.7 where a token draws over a style (default: 1)",
    )


def setting_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting of the table. One that is not given is absent: the preset's value stands."""
    for part in PARTS:
        about = f"defaults come from the preset; those of default: {said()}" if part == SEARCH else None
        group = parser.add_argument_group(part, about)
        if part == SEARCH:
            group.add_argument(
                PRESET.flag,
                choices=(*PRESET.choices, *PAPER_PRESETS),
                metavar=f"{{{','.join(PRESET.choices)}}}",
                help=f"{PRESET.help} {', '.join(PAPER_PRESETS)} are the paper's for that kind of model, whatever "
                f"--model is. (default: {PRESET.default})",
            )
        for each in of_part(part):
            _add_setting(group, each)


def _add_setting(group: Any, setting: Setting) -> None:
    more: dict[str, Any] = {}
    if setting.kind == SWITCH:
        more["action"] = argparse.BooleanOptionalAction
    elif setting.kind in (WHOLE, NUMBER):
        more["type"] = int if setting.kind == WHOLE else float
    elif setting.kind == PATHS:
        more |= {"nargs": "+", "action": Together}
    elif setting.metavar in ("PATH", "JSON"):
        more["action"] = Once
    if setting.choices:
        more["choices"] = setting.choices
    elif setting.metavar:
        more["metavar"] = setting.metavar
    default = "" if setting.by_preset or setting.default in (None, False, ()) else f" (default: {setting.default})"
    help = (setting.help + default).replace("%", "%%")
    flags = (setting.flag, setting.alias) if setting.alias else (setting.flag,)
    group.add_argument(*flags, dest=setting.name, help=help, default=argparse.SUPPRESS, **more)
    if setting.name == "cache":
        _no_cache(group, argparse.SUPPRESS)


# ---------------------------------------------------------------- a model that draws


def model_option(parser: argparse.ArgumentParser) -> None:
    """Which model draws."""
    model = SETTINGS["model"]
    parser.add_argument(
        *(model.flag, model.alias), default=TINY, metavar="PATH", help=f"{model.help} (default: {TINY})"
    )


def parts_options(parser: argparse.ArgumentParser, *clip_flags: str) -> None:
    """Files of a model's parts.

    Args:
        parser: of the command.
        clip_flags: names of the option for text encoders, where one of the table's means something else.
    """
    clip = SETTINGS["clip"]
    flags = clip_flags or (clip.flag, clip.alias)
    parser.add_argument(
        *flags, dest="text_encoders", nargs="+", action=Together, default=(), metavar="FILE", help=clip.help
    )
    parser.add_argument("--vae", action=Once, metavar="FILE", help=SETTINGS["vae"].help)


def lora_options(parser: argparse.ArgumentParser) -> None:
    """Weights that were learned, to draw with."""
    parser.add_argument(
        "--lora", type=Path, action=Once, metavar="FILE", help="weights that were learned with a token, as a LoRA"
    )
    parser.add_argument(
        "--lora-strength", type=float, default=1.0, metavar="S", help="of the LoRA; 1 is as it was learned (default: 1)"
    )


def lora_in(args: argparse.Namespace) -> Lora | None:
    """The weights of :func:`lora_options`, at their strength.

    Raises:
        ZoodipError: of the kind that tells what is wrong.
    """
    if args.lora is None:
        if args.lora_strength != 1:
            raise ConfigError(f"--lora-strength {args.lora_strength}: give the LoRA's file as well, --lora FILE")
        return None
    if not abs(args.lora_strength) <= MOST_STRENGTH:
        raise ConfigError(f"--lora-strength {args.lora_strength}: must be from -{MOST_STRENGTH} to {MOST_STRENGTH}")
    return load_lora(args.lora).scaled(args.lora_strength)


def drawing_options(parser: argparse.ArgumentParser, images: int, *, seed: str, count: str) -> None:
    """How images are drawn, and how many, ``images`` unless that is said.

    Args:
        seed: what the seed is of.
        count: what the count is of.
    """
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=f"{seed} (default: 0)")
    parser.add_argument("--count", type=int, default=images, metavar="N", help=f"{count} (default: {images})")
    parser.add_argument("--steps", type=int, default=25, metavar="N", help="denoising steps (default: 25)")
    parser.add_argument(
        "--guidance",
        type=float,
        default=None,
        metavar="SCALE",
        help="classifier-free guidance (default: 7.5; tiny: 5)",
    )


def loading_options(parser: argparse.ArgumentParser, *clip_flags: str) -> None:
    """How a model that draws is loaded; see :func:`load` and, for the arguments, :func:`parts_options`."""
    parser.add_argument("--weights", choices=WEIGHTS, default="int8", help="how weights are kept (default: int8)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="activations (default: auto)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--prediction-type", choices=PREDICTION_TYPES, default="auto", help="what the model predicts (default: auto)"
    )
    parts_options(parser, *clip_flags)
    cache = SETTINGS["cache"]
    parser.add_argument(
        cache.flag, metavar="DIR", default=cache.default, help=f"{cache.help} (default: {cache.default})"
    )
    _no_cache(parser, cache.default)


def _no_cache(parser: Any, default: Any) -> None:
    parser.add_argument(
        "--no-cache", dest="cache", action="store_const", const=None, default=default, help="keep no quantised copy"
    )


def load(args: argparse.Namespace) -> StableDiffusion:
    """The model of :func:`loading_options`.

    Raises:
        ZoodipError: of the kind that tells what is wrong.
    """
    return load_quantized(
        args.model,
        weights=args.weights,
        dtype=args.dtype,
        device=args.device,
        prediction_type=args.prediction_type,
        clip=args.text_encoders,
        vae=args.vae,
        cache=args.cache,
        on_event=lambda event: print(event.text, file=sys.stderr) if isinstance(event, Message) else None,
    )
