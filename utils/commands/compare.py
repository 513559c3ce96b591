"""``sh run.sh compare CONFIG [RUN ...]``: did it help? Without target labels.

The first RUN is the network before the adaptation, the last one after it; of one RUN alone (default: the run of CONFIG)
the network before is the one that it started from. On unlabelled target training images: how often each class is
predicted, beside its share in the source labels and in the pseudo-labels; how far the networks agree. On source images:
what was forgotten. With source.data_list=FILE these are images that were not trained on, if there are any.
"""

import argparse
from collections.abc import Sequence
from os.path import expanduser

from dataset.program import exit_after
from utils.config.command_line import make_parser, parse_arguments, parse_config
from utils.config.declare import ConfigError
from utils.config.schema import Config

IMAGES = 100  # of each domain at most


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    """The ``runs`` (folders or files) and how many ``images`` of each domain are looked at; the configuration."""
    parser = make_parser(__doc__, "sh run.sh compare")
    parser.usage = "sh run.sh compare CONFIG [RUN ...] [--images N] [key=value ...]"
    parser.add_argument("--images", type=int, default=IMAGES, help="of each domain at most, evenly spaced")
    args = parse_arguments(parser, argv, rest="runs")
    if args.images < 1:
        raise ConfigError(f"command line: --images must be at least 1, got {args.images}")
    return args, parse_config(args, "evaluate")


def main(argv: Sequence[str] | None = None) -> None:
    args, config = parse(argv)
    from utils.scoring.without_labels import compare_runs, describe  # torch, once the command line is right

    print(describe(compare_runs(config, [expanduser(run) for run in args.runs], args.images)))


if __name__ == "__main__":
    exit_after(main)
