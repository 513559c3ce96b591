"""The result page's numbers: verdict, facts, scores, confusion matrix, class shares, configuration."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import yaml

from dataset.labels import ClassTable
from utils.commands.report_curves import SAME, words
from utils.config.read import flatten, to_yaml
from utils.config.schema import Config
from utils.run_folder.facts import Facts
from utils.scoring.without_labels import CAVEAT, Comparison, lost_words, source_words

WHY_FEWER = (
    "16 and 13 classes are what papers report where the source is SYNTHIA, which has no terrain, truck and train (16), "
    "nor any usable wall, fence and pole (13)."
)
SHOWN_CELL, LIGHT_TEXT = 0.5, 55  # percent: below, a cell of the confusion matrix is empty; above, its text is white
SHOWN_SHARES = 5  # classes in the verdict without labels
SHOWN_PARTS = 2  # folders of a path that are shown

Scores = Mapping[str, float | None]  # percent by name


def verdict(facts: Facts, before: Facts | None, mious: Sequence[float], images: int) -> str:
    """One sentence: ``mious`` are those of the run and, where there is one, the baseline."""
    text = f"{facts.method}: {mious[0]:.1f} mIoU"
    if before is not None:
        text += f", {mious[0] - mious[1]:+.1f} over {before.method}"
    return f'<p class="verdict">{html.escape(text)}, {images} images</p>'


def verdict_without_labels(facts: Facts, comparison: Comparison) -> str:
    """The class shares in a sentence."""
    own = comparison.predicted[-1]
    order = sorted(range(len(own)), key=own.__getitem__, reverse=True)[:SHOWN_SHARES]
    shares = ", ".join(f"{comparison.classes[i]} {100 * own[i]:.0f} %" for i in order)
    text = f"{facts.method}, without test labels: predicts {shares} on {comparison.images} target images"
    return f'<p class="verdict">{html.escape(text)}</p>{lost_classes(comparison) if comparison.lost() else ""}'


def lost_classes(comparison: Comparison) -> str:
    """Which common classes are nearly gone, as a paragraph."""
    warning = ' class="warn"' if comparison.lost() else ""
    return f"<p{warning}>{html.escape(lost_words(comparison))}</p>"


def baseline_line(before: Facts | None) -> str:
    """What the run is compared with, in a line; nothing where it stands alone."""
    if before is None:
        return ""
    name, method = html.escape(before.name), html.escape(before.method)
    return f'<p class="facts">baseline <b>{name}</b>: {method}, {before.step or before.num_steps} steps</p>'


def fact_line(facts: Facts, test_images: int) -> str:
    """What was done, in a line."""
    steps = f"{facts.num_steps} steps"
    if facts.step is not None and facts.step != facts.num_steps:
        steps += f", best after {facts.step}"
    kinds = {"source": "source", "target": "target", "held_out": "held out of the target"}
    images = [f"{facts.images[name]} {text}" for name, text in kinds.items() if facts.images.get(name)]
    images += [f"{test_images} test"] if test_images else []
    parts = {
        "method": facts.method,
        "start": facts.start or "random weights",
        "trained": steps,
        "seed": facts.seed,
        "code": facts.commit,
        "date": facts.date,
        "time": None if facts.seconds is None else duration(facts.seconds),
        "images": ", ".join(images),
    }
    shown = (f"{name} <b>{html.escape(str(value))}</b>" for name, value in parts.items() if value is not None)
    return f'<p class="facts">{" · ".join(shown)}</p>'


def duration(seconds: int) -> str:
    """Seconds in the unit that people would take."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds} seconds"


def score_table(means: Sequence[Scores], iou: Sequence[Scores], images: int, table: ClassTable) -> str:
    """Means and per-class IoU of the run and, where there is one, the baseline with the difference."""
    key = '<i class="own"></i>this run &nbsp; <i class="before"></i>baseline'
    head = f"<th>this run<th>baseline<th>difference<th>{key}</tr>" if len(means) > 1 else "<th>this run<th></tr>"
    rows = f"<tr><th>mean{head}{_score_rows(means, 'means', table)}"
    rows += f"<tr><th>class{head}{_score_rows(iou, 'class', table)}"
    note = f"{images} images of the test set. A dash: neither labelled nor predicted."
    if SAME in means[0]:
        note += f" {WHY_FEWER}"
    return f'<p class="note">{note}</p><table class="iou">{rows}</table>'


def _score_rows(results: Sequence[Scores], kind: str, table: ClassTable) -> str:
    rows = []
    for name, value in results[0].items():
        if name == SAME:  # is miou
            continue
        title = f"{_swatch(table, name)}{html.escape(name)}" if kind == "class" else words(name)
        if name == "miou" and SAME in results[0]:
            title += ", all 19 classes"
        cells, bars = f"<td>{title}<td>{_number(value)}", _bar(value, "own")
        if len(results) > 1:
            before = results[1][name]
            change = None if value is None or before is None else value - before
            sign = "" if not change else "up" if change > 0 else "down"
            cells += f'<td>{_number(before)}<td class="{sign}">{_number(change, "+.2f")}'
            bars += _bar(before, "before")
        rows.append(f'<tr class="{kind}">{cells}<td>{bars}</tr>')
    return "".join(rows)


def colour_code(table: ClassTable, name: str) -> str:
    """``#rrggbb`` of a class."""
    return "#" + bytes(table.palette[table.names.index(name)]).hex()


def _swatch(table: ClassTable, name: str) -> str:
    return f'<i style="background:{colour_code(table, name)}"></i>'


def _bar(percent: float | None, kind: str) -> str:
    return f'<div class="{kind}" style="width:{percent or 0:.1f}%"></div>'


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def confusion_table(counts: np.ndarray, table: ClassTable) -> str:
    """Confusion matrix (C, C), rows are labels, in percent of each label's pixels, without classes that never occur."""
    kept = [c for c in range(len(counts)) if counts[c].any() or counts[:, c].any()]
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f"<th><span>{html.escape(table.names[c])}</span>" for c in kept)
    rows = []
    for row in kept:
        cells = "".join(_cell(shares[row, c]) for c in kept)
        rows.append(f"<tr><td>{html.escape(table.names[row])}{cells}</tr>")
    note = "Percent of the pixels of each label (row) by what they were predicted to be (column); below 0.5 left out."
    grid = f'<table class="confusion"><tr><th>{head}</tr>{"".join(rows)}</table>'
    return f'<p class="note">{note}</p><div class="scroll">{grid}</div>'


def _cell(share: float) -> str:
    much = ' class="much"' if share > LIGHT_TEXT else ""
    text = f"{share:.0f}" if share >= SHOWN_CELL else ""
    return f'<td{much} style="background:rgba(0,90,170,{share / 100:.2f})">{text}'


def share_table(comparison: Comparison, names: Sequence[str], table: ClassTable) -> str:
    """Class shares without labels, agreement, and what was forgotten; ``names`` are the networks' on the page."""
    columns = {"source labels": comparison.source} | dict(zip(names, comparison.predicted, strict=True))
    if comparison.labels is not None:
        columns["pseudo-labels"] = comparison.labels
    lost, rows = comparison.lost(), []
    for i, name in enumerate(comparison.classes):
        cells = "".join(f"<td>{100 * shares[i]:.2f}" for shares in columns.values())
        gone = '<td class="down">nearly gone' if name in lost else "<td>"
        rows.append(f"<tr><td>{_swatch(table, name)}{html.escape(name)}{cells}{gone}</tr>")
    head = "".join(f"<th>{name}" for name in columns)
    seen = f"{comparison.images} of {comparison.available} target training images, without their labels"
    note = f"Share of each class in percent of the pixels, on {seen}. Pseudo-labels: mean of the last records."
    table_text = f'<table class="shares"><tr><th>class{head}<th></tr>{"".join(rows)}</table>'
    lines = [source_words(comparison, names)]
    if len(names) > 1:
        lines.insert(0, f"Both networks give {100 * comparison.agreement[0][-1]:.1f} % of the pixels the same class.")
    told = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return f'<p class="note">{note}</p>{lost_classes(comparison)}{table_text}{told}<p class="note">{CAVEAT}</p>'


def configuration(text: str) -> str:
    """The keys whose values are not the defaults as a table, and all of them, folded up."""
    default = Config()
    default.follow_target()
    defaults = flatten(yaml.safe_load(to_yaml(default)))
    changed = {name: value for name, value in flatten(yaml.safe_load(text)).items() if value != defaults[name]}
    rows = [
        f"<tr><td>{name.replace('.', '.<wbr>')}<td>{_yaml(value)}<td>{_yaml(defaults[name])}</tr>"
        for name, value in changed.items()
    ]
    table = f'<table class="keys"><tr><th>key<th>value<th>default</tr>{"".join(rows)}</table>'
    return f"{table}<details><summary>all keys</summary><pre>{html.escape(text)}</pre></details>"


def _yaml(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if PurePath(text).is_absolute():
        text = str(PurePath("…", *PurePath(text).parts[-SHOWN_PARTS:]))
    return html.escape(text)
