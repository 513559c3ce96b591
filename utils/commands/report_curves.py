"""The result page's curves: scores, labelled shares, losses, class shares of the predictions, learning rate."""

import math
import re
from collections import defaultdict
from pathlib import Path

from utils.commands.chart import COLOURS, Points, chart
from utils.run_folder.records import read_scalars
from utils.run_folder.shares import PREDICTION, read_shares

LABELLED = "target/labelled"
TITLES = {
    "val": "Scores on the held-out target images, percent",
    LABELLED: "Pixels and squares that got a pseudo-label, percent",
    "source": "Losses of the source step",
    "target": "Losses of the target step",
    "": "Learning rate relative to the initial one",
}
PREDICTED = "Predicted on a few target training images, the most common classes, percent of the pixels"
WORDS = {
    "miou": "mIoU",
    "frequency_weighted_iou": "IoU weighted by class frequency",
    "main": "main head",
    "aux": "auxiliary head",
    "pixel": "pixels",
    "region": "squares",
    "image": "class shares of the whole image",
    "spatial": "class shares of each position",
    "lr_factor": "learning rate",
}
SAME = "miou_19"  # what miou is on 19 classes


def words(name: str) -> str:
    """The last part of a recorded name in words that a newcomer knows."""
    if square := re.fullmatch(r"square_(\d+)", name):
        return f"squares of {square[1]}x{square[1]} pixels"
    if classes := re.fullmatch(r"miou_(\d+)", name):
        return f"mIoU, {classes[1]} classes"
    return WORDS.get(name, name.replace("_", " "))


def curves(log: Path) -> str:
    """All scalars of a run and the shares of the classes that it predicts most, one chart a group."""
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {group: defaultdict(list) for group in TITLES}
    for step, values in read_scalars(log):
        for name, value in values.items():
            group, _, leaf = name.rpartition("/")
            if math.isfinite(value) and leaf != SAME:
                percent = 100 * value if group == LABELLED else value
                groups.setdefault(group, defaultdict(list))[words(leaf)].append((step, percent))
    charts = [chart(TITLES.get(group, group), series) for group, series in groups.items() if series]
    if series := _predicted(log):
        charts.insert(min(2, len(charts)), chart(PREDICTED, series))
    return f'<div class="curves">{"".join(charts)}</div>'


def _predicted(log: Path) -> dict[str, Points]:
    records = read_shares(log, PREDICTION)
    if not records:
        return {}
    highest = {name: max(shares[name] for _, shares in records) for name in records[0][1]}
    shown = sorted(highest, key=highest.__getitem__, reverse=True)[: len(COLOURS)]
    return {name: [(step, 100 * shares[name]) for step, shares in records] for name in shown if highest[name] > 0}
