"""``sh run.sh benchmark``: our code beside the straightforward way, on this machine, in one run.

``rows.py`` lists the rows, ``cases.py`` has both ways. Both must give the same values before they are timed. Each row
is measured in its own process; ours and theirs take turns, and the figures are medians. Extra memory is the peak above
the inputs. The second table has limits for our code: the demo's training, and the share of the machine's arithmetic.
The third table shows the keys that save time or memory, the fourth the cost of the released recipes. ``--gpu``: see
``gpu.py``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dataset.program import exit_after


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="sh run.sh benchmark", description=__doc__)
    parser.add_argument("--case", help="only this row, as JSON")
    parser.add_argument("--skip", nargs="*", default=[], help="skip rows with one of these words in the name")
    out = Path("runs/benchmark")
    parser.add_argument("--out", type=Path, default=out, help="folder of benchmark.md and benchmark.json")
    parser.add_argument("--gpu", action="store_true", help="only the measurements on a GPU: gpu.md")
    args = parser.parse_args(argv)
    from tests.benchmark import gpu, rows  # imports torch: slow, and --help does not need it

    if args.gpu:
        gpu.main(args.out)
    elif args.case:
        rows.measure_one(args.case)
    else:
        rows.measure_all(args.out, args.skip)


if __name__ == "__main__":
    exit_after(main)
