"""``sh run.sh compare CONFIG [RUN ...]``: did it help? Without target labels, see ``utils.scoring.without_labels``."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch

from dataset.failures import exit_after
from utils.build.network import load_network
from utils.commands import arguments
from utils.config.schema import Config
from utils.run_folder.checkpoint import pair_up
from utils.run_folder.facts import distinct_names, starting_run
from utils.scoring.without_labels import (
    CAVEAT,
    Comparison,
    compare_networks,
    lost_words,
    source_words,
)

NAME_WIDTH, COLUMN, WIDTH = 20, 15, 100  # characters


def compare(config: Config, runs: Sequence[str], images: int) -> Comparison:
    """Load the runs' networks and compare them, see ``compare_networks``."""
    given = list(runs) or [str(config.run_folder)]
    start = starting_run(Path(given[0])) if len(given) == 1 else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = pair_up([start, *given] if start else given)
    first = [Path(paths[0]) for paths in files.values()]  # of an official pair, the encoder's file
    names = distinct_names(first)
    networks = {n: load_network(config, paths, device)[0] for n, paths in zip(names, files.values(), strict=True)}
    folders = [path.parent for path in first]
    return compare_networks(config, networks, folders, device, images)


def describe(c: Comparison) -> str:
    """The comparison as text."""
    columns = {"source labels": c.source} | dict(zip(c.networks, c.predicted, strict=True))
    if c.labels is not None:
        columns["pseudo-labels"] = c.labels
    lines = [f"Share of each class in percent, on {c.images} of {c.available} unlabelled target training images:"]
    lines.append(" " * NAME_WIDTH + "".join(f"{_cut(name):>{COLUMN}}" for name in columns))
    lost = c.lost()
    for i, name in enumerate(c.classes):
        cells = "".join(f"{100 * shares[i]:>{COLUMN}.2f}" for shares in columns.values())
        lines.append(f"{name:<{NAME_WIDTH}}{cells}{'  <- nearly gone' if name in lost else ''}")
    told = [
        f"{name} and {c.networks[-1]} give {100 * c.agreement[i][-1]:.1f} % of the pixels the same class."
        for i, name in enumerate(c.networks[:-1])
    ]
    told += [source_words(c, c.networks), lost_words(c), CAVEAT]
    return "\n".join([*lines, "", *(textwrap.fill(text, WIDTH) for text in told)])


def _cut(name: str) -> str:
    return name[-COLUMN + 2 :]


def run(config: Config, runs: Sequence[str], images: int) -> None:
    print(describe(compare(config, runs, images)))


def main(argv: Sequence[str] | None = None) -> None:
    run(*arguments.compare(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    exit_after(main)
