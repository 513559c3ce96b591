"""The class shares in a run's ``log.jsonl``: PHASE/share/LAYER/CLASS, of pseudo-labels and of predictions."""

import json
from pathlib import Path

from utils.run_folder.log import SHARE

PREDICTION = f"target/{SHARE}/prediction"  # of the network on some target training images, in eval mode
LABELS = (f"target/{SHARE}/pixel", f"target/{SHARE}/square_")  # beginnings, the finest layer first
LAST = 10  # records whose mean stands for the end of a run

Histogram = dict[str, float]  # by class, in the order of the train ids


def read_shares(path: Path, histogram: str) -> list[tuple[int, Histogram]]:
    """(step, share of each class) of each record in a run's ``log.jsonl`` that has the histogram of this name."""
    start, found = f"{histogram}/", []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        shares = {name.removeprefix(start): value for name, value in record.items() if name.startswith(start)}
        if shares:
            found.append((record["step"], shares))
    return found


def last_labels(path: Path) -> Histogram | None:
    """Class shares of the pseudo-labels at the end of a run, of its finest layer; None for a run without any.

    A batch has few images, so this is the mean of the last ``LAST`` records.
    """
    names = {name.rpartition("/")[0] for line in path.read_text().splitlines() for name in json.loads(line)}
    layers = sorted(name for beginning in LABELS for name in names if name.startswith(beginning))
    if not layers:
        return None
    last = [shares for _, shares in read_shares(path, layers[0])[-LAST:]]
    return {name: sum(shares[name] for shares in last) / len(last) for name in last[0]}
