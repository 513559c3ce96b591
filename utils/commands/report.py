"""Did it help? ``sh run.sh report`` writes an HTML page about a run, ``sh run.sh compare`` prints a table."""

import os
from argparse import ArgumentTypeError
from collections.abc import Sequence

from dataset.files import write_text
from dataset.program import exit_after
from utils.config.command_line import make_parser, parse_arguments, parse_config, path_text
from utils.config.schema import ConfigError

IMAGES = 100  # of each domain at most
REPORT = """``sh run.sh report CONFIG [--baseline RUN]``: one HTML file about a run, in its folder.

Verdict, scores, class shares without labels, curves, images with pseudo-labels, configuration. The page works offline.
"""
COMPARE = """``sh run.sh compare CONFIG [RUN ...]``: did it help? Without target labels.

Each RUN is compared with the one that it started from, if that is given too, otherwise with the first RUN. A single
RUN (default: the run of CONFIG) is compared with its start.

On unlabelled target training images: the share of each class in predictions, source labels and pseudo-labels; classes
that were taken away, brought back, or gone before; agreement with the last RUN; the effect of the curriculum, if the
control (train_adabn.py) is given. On source images: forgetting. Give images that were not trained on as
source.data_list=FILE.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page of a run and print its path."""
    parser = make_parser(REPORT, "sh run.sh report")
    parser.add_argument(
        "--baseline", type=path_text, help="run folder to compare with; default: the run that it started from"
    )
    parser.add_argument("--images", type=_count, default=IMAGES, help="images per domain, at most, for the comparison")
    args = parse_arguments(parser, argv)
    config = parse_config(args, "evaluate")
    path = config.run_folder / "report.html"
    if config.run_folder.is_dir() and not os.access(path if path.exists() else config.run_folder, os.W_OK):
        raise ConfigError(f"cannot write {path}: use sh run.sh compare, which writes no file")
    from utils.commands.report_page import page  # imports torch: only after the command line is checked

    write_text(path, page(config, args.baseline, args.images))
    print(path)


def compare(argv: Sequence[str] | None = None) -> None:
    """Print the comparison of several runs without labels."""
    parser = make_parser(COMPARE, "sh run.sh compare")
    parser.usage = "sh run.sh compare CONFIG [RUN ...] [--images N] [key=value ...]"
    parser.add_argument("--images", type=_count, default=IMAGES, help="images per domain, at most, evenly spaced")
    args = parse_arguments(parser, argv, rest="runs")
    config = parse_config(args, "evaluate")
    from utils.scoring.without_labels import compare_runs, describe  # imports torch

    print(describe(compare_runs(config, args.runs, args.images)))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


if __name__ == "__main__":
    exit_after(main)
