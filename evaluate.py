"""Score runs on the test split (Cityscapes val): per-class IoU, 19/16/13-class means, pictures, JSON.

--images PATH... --save DIR segments pictures without labels instead, as sh run.sh predict does.
--weights takes run folders or checkpoints (several are compared), or an official encoder and decoder file.
"""

import argparse
from collections.abc import Sequence

from dataset.program import exit_after
from utils.commands import predict
from utils.config.command_line import make_parser, parse_arguments, parse_config, path, path_text
from utils.config.schema import Config, ConfigError


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    parser = make_parser(__doc__)
    parser.add_argument("--weights", nargs="+", type=path_text, help="networks to score; default: the run of CONFIG")
    parser.add_argument(
        "--predictions", type=path, help="score the label-id PNGs below this folder instead of a network"
    )
    parser.add_argument("--json", type=path, help="write the scores to this file")
    parser.add_argument(
        "--save", type=path, help="write pictures below this folder: colour maps, label ids, panels, confusion"
    )
    parser.add_argument("--images", nargs="+", help="segment these files, folders or .txt lists instead of scoring")
    args = parse_arguments(parser, argv)
    return args, parse_config(args, "evaluate", labels=not args.images)


def segment(args: argparse.Namespace) -> int:
    """Run ``sh run.sh predict`` with the options that both have. Returns the exit status."""
    if args.predictions or args.json:
        raise ConfigError("command line: --images gives no scores: remove --predictions and --json")
    options = ["--save", str(args.save)] if args.save else []
    options += ["--weights", *args.weights] if args.weights else []
    return predict.main(["--config", args.config, *args.overrides, *args.images, *options])


def main(argv: Sequence[str] | None = None) -> int:
    args, config = parse(argv)
    if args.images:
        return segment(args)
    from utils.scoring.predictions import score  # imports torch: only after the command line is checked

    score(config, args.weights, args.predictions, args.json, args.save)
    return 0


if __name__ == "__main__":
    exit_after(main)
