"""Command lines of the commands. They are read before the commands are imported, as torch takes seconds."""

import argparse
from collections.abc import Sequence

from utils.config.command_line import Parser, is_override, make_parser, parse_arguments, parse_config, path
from utils.config.declare import ConfigError
from utils.config.schema import Config

DEMO = """The whole recipe on procedural street scenes: one table and one picture at the end.

Finished stages are not repeated, so all variants share one source-only run."""
CHECK = """Every problem of the data that a configuration names, in one table.

The exit status is 1 if something would stop a training or an evaluation, 0 if there are only remarks."""
REPORT = """One HTML file about a run, in its folder: scores, curves, pseudo-labels, configuration."""


def demo(argv: Sequence[str]) -> tuple[argparse.Namespace]:
    """Options of the demo; ``overrides`` are for every stage."""
    parser = Parser(prog="sh run.sh demo", description=DEMO, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of data and initialisation")
    parser.add_argument("--out", type=path, default=path("runs/demo"), help="folder of data, runs and results")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--oracle", action="store_true", help="only train on labelled target images: the upper bound")
    kind.add_argument("--ablation", action="store_true", help="the layers of the pyramid one by one")
    kind.add_argument("--variants", action="store_true", help="as released and as in the paper")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key in every stage")
    args = parser.parse_intermixed_args(argv)
    for argument in args.overrides:
        if not is_override(argument):
            raise ConfigError(f"command line: '{argument}' is not key=value")
    if args.seed < 0:
        raise ConfigError(f"command line: --seed must be at least 0, got {args.seed}")
    return (args,)


def check(argv: Sequence[str]) -> tuple[Config, int, bool]:
    """The configuration to check, how many processes read files, and whether what repeats is folded."""
    parser = make_parser(CHECK, "sh run.sh check")
    parser.add_argument("--workers", type=int, default=2, help="processes that read files")
    parser.add_argument("--all", action="store_true", help="a line for each file, also where many have the same fault")
    args = parse_arguments(parser, argv)
    if args.workers < 0:
        raise ConfigError(f"command line: --workers must be at least 0, got {args.workers}")
    return parse_config(args, "evaluate"), args.workers, not args.all


def report(argv: Sequence[str]) -> tuple[Config, str | None]:
    """The configuration of the run, and the run to compare it with."""
    parser = make_parser(REPORT, "sh run.sh report")
    parser.add_argument("--baseline", help="run folder to compare with, such as the source-only run")
    args = parse_arguments(parser, argv)
    return parse_config(args, "evaluate"), args.baseline and str(path(args.baseline))
