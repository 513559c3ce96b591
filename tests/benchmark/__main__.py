"""``sh run.sh benchmark``: ours beside the straightforward way of doing it, on this machine, in one run.

``rows.py`` lists the rows, ``cases.py`` has both ways; they are checked to give the same values before they are timed.
Each row is measured in a process of its own; ours and theirs take turns, and the figures are medians. Extra memory is
the peak above the inputs. A second table has what is asked of ours alone: the demo's training, and the share of the
machine's own arithmetic; a third what the switches of time and memory do; a fourth what the released recipes take.
``--gpu``: see ``gpu.py``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dataset.program import exit_after


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="sh run.sh benchmark", description=__doc__)
    parser.add_argument("--case", help="one row alone, as JSON")
    parser.add_argument("--skip", nargs="*", default=[], help="leave out rows whose name contains one of these words")
    out = Path("runs/benchmark")
    parser.add_argument("--out", type=Path, default=out, help="folder of benchmark.md and benchmark.json")
    parser.add_argument("--gpu", action="store_true", help="what only a GPU can tell, instead of all else: gpu.md")
    args = parser.parse_args(argv)
    from tests.benchmark import gpu, rows  # torch, which takes seconds, is not needed for --help

    if args.gpu:
        gpu.main(args.out)
    elif args.case:
        rows.measure_one(args.case)
    else:
        rows.measure_all(args.out, args.skip)


if __name__ == "__main__":
    exit_after(main)
