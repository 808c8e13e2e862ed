"""The command line: caption, train, rewind, generate, compare, evaluate, inspect, convert, merge, nearest, ui, demo."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError, for_user
from ..base.stopping import Stopped
from ..base.version import __version__
from ..model.libraries import quiet_libraries
from ..train.ranks import place_in
from . import caption, compare, demo, embeddings, evaluate, generate, inspect, nearest, train
from .arguments import PROGRAM, command
from .output import unbreakable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 stopped before the end, 2 a user's error."""
    with unbreakable():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    if _is_idle(args):
        return 0
    if args.run is not _ui:  # the page loads no model, nor what it would take
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


def _is_idle(args: argparse.Namespace) -> bool:
    """Whether torchrun has started this process for a command that the first rank does alone."""
    place = place_in(os.environ)
    if place is None or args.run is train.run:
        return False
    if place.rank == 0:
        print("torchrun serves train alone: one process does this, the others end", file=sys.stderr)
    return place.rank > 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Teach Stable Diffusion a new subject or style with forward passes only.",
        epilog=f"See '{PROGRAM} COMMAND --help' for a command's options; '{PROGRAM} demo' shows it all.",
    )
    parser.add_argument("--version", action="version", version=f"ZOODiP {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    tools = (inspect.add, embeddings.add_convert, embeddings.add_merge, nearest.add)
    drawing = (generate.add, compare.add, evaluate.add)
    for add in (caption.add, train.add, train.add_rewind, *drawing, *tools, _add_ui, demo.add):
        add(commands)
    return parser


# ---------------------------------------------------------------- the page


def _add_ui(commands: Any) -> None:
    parser = command(commands, "ui", _ui, "serve the page: train in a browser", "ui --models models --port 7861")
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


def _ui(args: argparse.Namespace) -> int:
    from ..page.standalone import address_of, check_address, make_studio, password_for

    password = password_for(args.listen)
    studio = make_studio(args.runs, tuple(args.models or ()), args.embeddings, args.listen)
    check_address(args.listen, args.port)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from ..page.page import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ConfigError(f'the page needs gradio: "{sys.executable}" -m pip install "gradio>=4.40"') from None

    def ready() -> None:
        print(
            f"ZOODiP: {address_of(args.listen, args.port)} (runs are kept in {args.runs}; Ctrl-C ends it)", flush=True
        )

    try:
        serve(studio, host=args.listen, port=args.port, password=password, ready=ready)
    except OSError as error:  # taken meanwhile
        raise ConfigError(f"--port {args.port}: another program listens there; choose another one") from error
    return 0
