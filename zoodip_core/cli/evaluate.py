"""The command evaluate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..base.names import plain
from ..base.stopping import Stopped, stopped_by
from ..data.images import find_images, left_out
from ..data.masks import without_masks
from ..evaluate.encoders import CLIP_ID, DINO_ID
from ..evaluate.evaluation import EvaluationPlan, as_json, class_word_of, evaluate, find_judges, folder_for
from ..evaluate.prompt_sets import PROMPT_SETS, default_set, prompts_of
from ..evaluate.report import as_text, write_report
from ..model.embedding import load_embedding
from .arguments import command, load, loading_options, lora_in, lora_options, model_option, until_option, which_option
from .screen import Stages, session


def add(commands: Any) -> None:
    parser = command(
        commands,
        "evaluate",
        _evaluate,
        "score a learned token with CLIP-T, CLIP-I, DINO and DINO_inter, beside the word it began as",
        "evaluate --model models/sd15 --embedding runs/rex/rex.safetensors --images photos/rex --prompts living",
    )
    model_option(parser)
    parser.add_argument("--embedding", type=Path, required=True, metavar="FILE", help="the learned token")
    which_option(parser, "the only one")
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="another learned token, which the prompts name beside {}; may be given several times",
    )
    lora_options(parser)
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
    until_option(parser)
    parser.add_argument(
        "--guidance", type=float, metavar="SCALE", help="classifier-free guidance (default: 7.5; tiny: 5)"
    )
    for option, kind in (("--clip", CLIP_ID), ("--dino", DINO_ID)):
        parser.add_argument(
            option, metavar="PATH", help=f"folder of the model that scores (default: {kind} in Hugging Face's cache)"
        )
    loading_options(parser, "--text-encoders")  # --clip is the judge
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for images and scores; the same command resumes in it (default: evaluations/NAME)",
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON, as in evaluation.json")


def _evaluate(args: argparse.Namespace) -> int:
    embedding = load_embedding(args.embedding, args.which)
    beside = [load_embedding(file) for file in args.beside]
    references = find_images(without_masks(args.images))
    judges = find_judges(args.clip, args.dino)
    for why in (*left_out(args.images), *judges.left_out):
        print(f"warning: {why}", file=sys.stderr)
    word = class_word_of(embedding, args.class_word)
    share = [f"until-{args.until:g}"] if args.until != 1 else []
    lora = lora_in(args)
    weights = [f"lora-{args.lora_strength:g}".removesuffix("-1")] if lora else []
    key = "-".join([*(plain(each.token, 40) for each in beside), *share, *weights])
    folder = args.output or folder_for(Path("evaluations"), embedding, key)
    model = load(args)
    prompts = prompts_of(args.prompts or default_set(model.info.family))
    plan = EvaluationPlan(prompts, word, args.seeds, args.seed, args.steps, args.guidance, args.until)
    with session() as (_, commands), stopped_by(lambda: commands.stopping), Stages() as bar:
        try:
            evaluation = evaluate(model, embedding, references, plan, judges, folder, bar, lora, beside)
        except Stopped:
            bar.close()
            print(f"stopped; what is drawn is kept in {folder}, and the same command resumes it", file=sys.stderr)
            return 1
        sheet = write_report(evaluation, references, folder)
    print(as_json(evaluation) if args.json else f"{as_text(evaluation)}\n{sheet}")
    return 0
