"""``log.jsonl``: one JSON object a line. Damaged lines, for example after a crash, are skipped and reported."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RECORDS = "log.jsonl"
SHARE = "share"  # PHASE/share/LAYER: a histogram over the classes
VALIDATION = "val"  # val/SCORE
PREDICTION = f"target/{SHARE}/prediction"  # of the network on some target training images, in eval mode
LABELS = (f"target/{SHARE}/pixel", f"target/{SHARE}/square_")  # beginnings of names, the finest layer first
LAST = 10  # records at the end of a run, which are averaged

Histogram = dict[str, float]  # by class, in the order of the train ids


def plain_json(value: Any) -> str:
    """``value`` as JSON. JSON has no NaN and no infinity; they become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_records(path: Path, report: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The record of each intact line; ``report`` gets the numbers of the damaged lines."""
    damaged = []
    for number, line in enumerate(path.read_bytes().decode(errors="replace").split("\n"), 1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            yield record
        else:
            damaged.append(number)
    if damaged:
        lines = ", ".join(map(str, damaged))
        report(f"{path}: skipped {len(damaged)} damaged line(s), number {lines}")


def read_scalars(path: Path, report: Callable[[str], None] = print) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, finite scalars by name) of each record in a run's ``log.jsonl``, without the class shares."""
    for record in read_records(path, report):
        step = record.pop("step")
        numbers = {name: value for name, value in record.items() if value is not None and math.isfinite(value)}
        yield step, {name: value for name, value in numbers.items() if f"/{SHARE}/" not in name}


def kept_records(path: Path, step: int, validated: bool, report: Callable[[str], None]) -> str:
    """The records that a run resumed after ``step`` keeps, without the scores of a validation that it repeats.

    Args:
        validated: whether the validation after ``step`` is done.
    """
    kept = []
    for record in read_records(path, report):
        scores = all(name == "step" or name.startswith(f"{VALIDATION}/") for name in record)
        if record["step"] < step or (record["step"] == step and (validated or not scores)):
            kept.append(f"{plain_json(record)}\n")
    return "".join(kept)


def read_shares(path: Path, histogram: str, report: Callable[[str], None] = print) -> list[tuple[int, Histogram]]:
    """(step, share of each class) of each record in a run's ``log.jsonl`` that has this ``histogram``."""
    start, found = f"{histogram}/", []
    for record in read_records(path, report):
        shares = {name.removeprefix(start): value for name, value in record.items() if name.startswith(start)}
        if shares:
            found.append((record["step"], shares))
    return found


def last_labels(path: Path, report: Callable[[str], None] = print) -> Histogram | None:
    """Class shares of the pseudo-labels in the finest layer at the end of a run; None without pseudo-labels.

    A batch has few images, so this is the mean of the last ``LAST`` records.
    """
    names = {name.rpartition("/")[0] for record in read_records(path, lambda text: None) for name in record}
    layers = sorted(name for beginning in LABELS for name in names if name.startswith(beginning))
    if not layers:
        return None
    last = [shares for _, shares in read_shares(path, layers[0], report)[-LAST:]]
    return {name: sum(shares[name] for shares in last) / len(last) for name in last[0]}
