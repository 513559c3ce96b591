"""The class shares in a run's ``log.jsonl``: PHASE/share/LAYER/CLASS, of pseudo-labels and of predictions."""

from collections.abc import Callable
from pathlib import Path

from utils.run_folder.records import SHARE, read_records

PREDICTION = f"target/{SHARE}/prediction"  # of the network on some target training images, in eval mode
LABELS = (f"target/{SHARE}/pixel", f"target/{SHARE}/square_")  # beginnings, the finest layer first
LAST = 10  # records whose mean stands for the end of a run

Histogram = dict[str, float]  # by class, in the order of the train ids


def read_shares(path: Path, histogram: str, report: Callable[[str], None] = print) -> list[tuple[int, Histogram]]:
    """(step, share of each class) of each record in a run's ``log.jsonl`` that has the histogram of this name."""
    start, found = f"{histogram}/", []
    for record in read_records(path, report):
        shares = {name.removeprefix(start): value for name, value in record.items() if name.startswith(start)}
        if shares:
            found.append((record["step"], shares))
    return found


def last_labels(path: Path, report: Callable[[str], None] = print) -> Histogram | None:
    """Class shares of the pseudo-labels at the end of a run, of its finest layer; None for a run without any.

    A batch has few images, so this is the mean of the last ``LAST`` records.
    """
    names = {name.rpartition("/")[0] for record in read_records(path, lambda text: None) for name in record}
    layers = sorted(name for beginning in LABELS for name in names if name.startswith(beginning))
    if not layers:
        return None
    last = [shares for _, shares in read_shares(path, layers[0], report)[-LAST:]]
    return {name: sum(shares[name] for shares in last) / len(last) for name in last[0]}
