"""The result page of a run: one HTML file that works offline.

Verdict and facts of the run; scores beside a baseline, if there are test labels; class shares without labels; curves;
images with the pseudo-labels of every layer of the pyramid; configuration of the run.
"""

import base64
import html
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image

from dataset.folders import Sample, evenly_spaced
from dataset.labels import ClassTable
from dataset.progress import duration
from dataset.reading import read_image, read_label
from dataset.transforms import normalise, planes, resized_window
from models.segmentor import Segmentor
from utils import distributed
from utils.builders.curriculum import build_curriculum
from utils.builders.data import Data, are_labelled
from utils.config.read import read_keys, to_yaml
from utils.config.schema import Config
from utils.config.values import KEYS
from utils.run_folder.checkpoint import CONFIG, resolve_weights
from utils.run_folder.log import PREDICTION, RECORDS, read_scalars, read_shares
from utils.run_folder.summary import UNKNOWN, RunSummary, read_summary, starting_run
from utils.scoring.evaluation import comparison, evaluate, scores
from utils.scoring.pictures import colour_map, legend, pseudo_label_maps
from utils.scoring.predictor import config_of, load_configured
from utils.scoring.without_labels import TAKEN, Comparison, compare_networks, describe, verdicts

OWN, BEFORE = "this run", "baseline"
# Keys of the run's configuration that define its pseudo-labels. Other keys may belong to another version.
PSEUDO_LABELS = ("target.input_size", *(name for name in KEYS if name.startswith("curriculum.")))
SHOWN_IMAGES = 6  # evenly spaced
PICTURE_WIDTH, LEGEND_WIDTH = 640, 1120  # pixels at most, so that the page stays small
SHOWN_SHARES = 5  # classes in the verdict without labels
SHOWN_PARTS = 2  # parts at the end of a path
WIDTH, HEIGHT, LEFT = 400, 160, 44  # SVG units of a chart; LEFT is for the numbers of its axis
POINTS = 200  # of a line, at most; more would only be noise
COLOURS = ("#0072b2", "#d55e00", "#008060", "#aa3377", "#a07d00", "#777777")  # differ also for the colour-blind
LABELLED = "target/labelled"
TITLES = {
    "val": "Scores on the held-out target images, percent",
    LABELLED: "Pixels and squares that got a pseudo-label, percent",
    "source": "Losses of the source step",
    "target": "Losses of the target step",
    "": "Learning rate relative to the initial one",
}
PREDICTED = "Predicted on a few target training images, the most common classes, percent of the pixels"
SAME = "miou_19"  # equals miou for 19 classes
STYLE = """
:root { color-scheme: light dark; --soft: #555; --back: #fff; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --soft: #aaa; --back: #16181c; --line: #3a3d44; } }
body { font: 15px/1.45 system-ui, sans-serif; background: var(--back); margin: 1rem auto; max-width: 72rem;
  padding: 0 1rem; }
h1, h3, p { overflow-wrap: anywhere; } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); }
.verdict { font-size: 1.35rem; font-weight: 600; } .warning { color: #d55e00; font-weight: 600; }
.note, .facts, figcaption { color: var(--soft); } pre { overflow-x: auto; }
.curves, .panels { display: grid; gap: 1.6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
.curves p { margin: 0; font-size: .85rem; }
i { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; }
svg text { font-size: 11px; fill: var(--soft); text-anchor: end; } svg path { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 1.5; }
figure { margin: 0; } figcaption { font-size: .85rem; } img { max-width: 100%; height: auto; }
"""

Points = Sequence[tuple[int, float]]  # (step, value)


def page(config: Config, baseline: str | None, images: int) -> str:
    """The whole HTML file about the run of ``config``.

    Args:
        baseline: run folder or file; None: the run that this run started from, if that still exists.
        images: of each domain, at most, for the comparison without labels.
    """
    device = distributed.device_and_backend()[0]
    baseline = baseline or starting_run(config.run_folder)
    weights = {BEFORE: resolve_weights(baseline)} if baseline else {}
    weights[OWN] = resolve_weights(config.run_folder)
    facts = {name: read_summary(path) for name, path in weights.items()}
    networks = {name: load_configured(config, [path], device) for name, path in weights.items()}
    folder = weights[OWN].parent
    data = Data(config)
    compared = compare_networks(data, networks, list(weights.values()), images)
    tested, table, classes = data.test("optional"), config.class_table, config.test.eval_classes
    found = {}
    if are_labelled(tested):
        loader = data.evaluation_loader(tested, config.test)
        matrices = {name: evaluate(network, loader, title=name) for name, network in networks.items()}
        mious = [scores(matrix, table, classes)["miou"] for matrix in matrices.values()]
        found[""] = verdict([one.method for one in facts.values()], mious, len(tested))
        found["Scores on the test set, percent"] = preformatted(comparison(matrices, table, classes))
    else:
        found[""] = verdict_without_labels(facts[OWN].method, compared)
    found[""] += "".join(f'<p class="facts">{line}</p>' for line in fact_lines(facts, len(tested)))
    found["Did it help? Without labels"] = preformatted(describe(compared))
    found["Curves"] = curves(folder / RECORDS)
    saved = (folder / CONFIG).read_text()
    trained = config_of({"config": saved}, str(folder / CONFIG), PSEUDO_LABELS)
    shown = evenly_spaced(tested or data.target, SHOWN_IMAGES)
    of = "the test set" if tested else "the target training set"
    models = {name: network.model for name, network in networks.items()}
    section = image_section(trained, shown, models, table, config.test.label_kind)
    found[f"Images of {of}, with pseudo-labels"] = section
    found["Configuration of the run"] = configuration(saved)
    return document(config.exp_name, found)


def document(title: str, sections: Mapping[str, str]) -> str:
    """A whole HTML file. ``title`` is text; ``sections`` are HTML by heading, and "" means no heading."""
    name = html.escape(title)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    lines = [f'<!doctype html><html lang="en">{head}<title>{name}</title><style>{STYLE}</style><h1>{name}</h1>']
    for heading, content in sections.items():
        lines.append(f"<section>{f'<h2>{heading}</h2>' if heading else ''}{content}</section>")
    return "\n".join([*lines, "</html>\n"])


def preformatted(text: str) -> str:
    """Text with its own line breaks and spaces."""
    return f"<pre>{html.escape(text)}</pre>"


def verdict(methods: Sequence[str], mious: Sequence[float], images: int) -> str:
    """The mIoU of the run, which is the last network, and its gain over the baseline, if there is one."""
    gained = f", {mious[-1] - mious[0]:+.1f} over {methods[0]}" if len(methods) > 1 else ""
    return f'<p class="verdict">{html.escape(f"{methods[-1]}: {mious[-1]:.1f} mIoU{gained}, {images} images")}</p>'


def verdict_without_labels(method: str, compared: Comparison) -> str:
    """A sentence about the largest class shares, and the ``verdicts``. Only ``TAKEN`` is a warning."""
    shares = dict(zip(compared.classes, compared.predicted[-1], strict=True))
    most = sorted(shares, key=shares.__getitem__, reverse=True)[:SHOWN_SHARES]
    listed = ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in most)
    text = f"{method}, without test labels: predicts {listed} on {compared.images} target images"
    found = {fate: html.escape(words) for fate, words in verdicts(compared, len(compared.networks) - 1).items()}
    lines = (f'<p class="{"warning" if fate == TAKEN else "note"}">{words}</p>' for fate, words in found.items())
    return f'<p class="verdict">{html.escape(text)}</p>{"".join(lines)}'


def fact_lines(facts: Mapping[str, RunSummary], test_images: int) -> Iterator[str]:
    """A line of facts about the run, and a line about the baseline, if there is one."""
    own = facts[OWN]
    best = f", best after {own.step}" if own.step not in (None, own.num_steps) else ""
    counts = {name: own.images.get(name) for name in ("source", "target", "held_out")} | {"test": test_images}
    parts = {
        "method": own.method,
        "start": own.start or "random weights",
        "trained": f"{own.num_steps} steps{best}",
        "seed": own.seed,
        "code": own.commit,
        "date": own.date,
        "time": UNKNOWN if own.seconds is None else duration(own.seconds),
        "images": ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count) or UNKNOWN,
    }
    yield " · ".join(f"{name} <b>{html.escape(str(value))}</b>" for name, value in parts.items() if value is not None)
    if before := facts.get(BEFORE):
        yield f"baseline <b>{html.escape(before.name)}</b>: {before.method}, {before.step or before.num_steps} steps"


def curves(log: Path) -> str:
    """One chart per group of scalars, and one of the classes with the largest predicted shares."""
    groups: dict[str, dict[str, list[tuple[int, float]]]] = {group: defaultdict(list) for group in TITLES}
    for step, values in read_scalars(log):
        for name, value in values.items():
            group, _, leaf = name.rpartition("/")
            if leaf != SAME:
                percent = 100 * value if group == LABELLED else value
                groups.setdefault(group, defaultdict(list))[leaf].append((step, percent))
    charts = [chart(TITLES.get(group, group), series) for group, series in groups.items() if series]
    records = read_shares(log, PREDICTION)
    highest = {name: max(shares[name] for _, shares in records) for name in (records[0][1] if records else ())}
    most = sorted(highest, key=highest.__getitem__, reverse=True)[: len(COLOURS)]
    if predicted := {name: [(step, 100 * shares[name]) for step, shares in records] for name in most}:
        charts.append(chart(PREDICTED, predicted))
    return f'<div class="curves">{"".join(charts)}</div>'


def chart(title: str, series: Mapping[str, Points]) -> str:
    """The lines of ``series`` over the steps as SVG, and below them their first and last values.

    If all points have the same step, only the values are shown.
    """
    steps, values = zip(*(point for points in series.values() for point in points), strict=True)
    (first, last), (low, high) = (min(steps), max(steps)), (min(values), max(values))
    across, up = (WIDTH - LEFT) / (last - first or 1), HEIGHT / (high - low or 1)
    drawn, rows = [], []
    for part in (0, 0.25, 0.5, 0.75, 1):
        x, y = LEFT + (WIDTH - LEFT) * part, HEIGHT * (1 - part)
        step, value = f"{first + (last - first) * part:.0f}", f"{low + (high - low) * part:.3g}"
        drawn.append(f'<path d="M{LEFT} {y}H{WIDTH}"/><text x="{LEFT - 5}" y="{y + 4}">{value}</text>')
        drawn.append(f'<text x="{x}" y="{HEIGHT + 18}">{step}</text>')
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(LEFT + across * (step - first), HEIGHT - up * (value - low)) for step, value in _thin(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{path}" stroke="{colour}"/>')
        x, y = places[-1]  # a line of one point has only this
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
        shown = [f"{value:.4g}" for _, value in ((points[0], points[-1]) if first < last else points[-1:])]
        rows.append(f'<p><i style="background:{colour}"></i>{html.escape(name)} {" → ".join(shown)}</p>')
    name, step = html.escape(title), "" if first < last else f", step {last}"
    box = f'viewBox="0 -8 {WIDTH + 8} {HEIGHT + 30}" role="img" aria-label="{name}"'
    svg = f"<svg {box}>{''.join(drawn)}</svg>" if first < last else ""
    return f"<figure><figcaption><b>{name}</b>{step}</figcaption>{svg}{''.join(rows)}</figure>"


def _thin(points: Points) -> Points:
    """At most ``POINTS`` points: means of neighbours, each at its last step."""
    size = math.ceil(len(points) / POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def image_section(
    trained: Config, samples: Sequence[Sample], models: Mapping[str, Segmentor], table: ClassTable, label_kind: str
) -> str:
    """Images with labels, the networks' predictions, and the confidence and pseudo-labels of the run's network.

    Args:
        trained: configuration with the run's values of the keys in ``PSEUDO_LABELS``.
        label_kind: of the samples' labels.
    """
    figures = []
    for sample in samples:
        label = None if sample.label is None else read_label(sample.label, label_kind)
        pictures = _pictures(trained, read_image(sample.image), label, models, table)
        shown = "".join(
            f"<figure>{png(picture, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"
            for caption, picture in pictures.items()
        )
        figures.append(f'<h3>{html.escape(sample.name)}</h3><div class="panels">{shown}</div>')
    note = "Final network in eval mode. Confidence: black is 0, white is 1. Pixels with a pseudo-label are coloured."
    colours = png(legend(table, LEGEND_WIDTH), "colours of the classes")
    return f'<p class="note">{note}</p>{colours}{"".join(figures)}'


def _pictures(
    trained: Config, image: Image.Image, label: np.ndarray | None, models: Mapping[str, Segmentor], table: ClassTable
) -> dict[str, Image.Image]:
    """The pictures of one image by caption, all of one size."""
    width = min(image.width, PICTURE_WIDTH)
    size = (width, round(width * image.height / image.width))
    pixels = normalise(planes(resized_window(image, trained.target.input_size or image.size)))
    with torch.inference_mode():
        logits = {name: model.cpu()(pixels[None])["logits"] for name, model in models.items()}
        layers = build_curriculum(trained.curriculum, trained.num_classes).pseudo_labels(logits[OWN])
    maps = {} if label is None else {"labels": label}
    maps |= {f"prediction, {name}": z.argmax(1)[0].numpy() for name, z in logits.items()}
    pictures = {"image": image.resize(size)} | {caption: colour_map(ids, table) for caption, ids in maps.items()}
    pictures["confidence"] = Image.fromarray((255 * logits[OWN].softmax(1).amax(1)[0]).byte().numpy())
    pictures |= {f"pseudo-labels, {name}": picture for name, picture in pseudo_label_maps(layers, table).items()}
    nearest = Image.Resampling.NEAREST  # does not mix colours
    return {caption: picture.resize(size, nearest) for caption, picture in pictures.items()}


def png(picture: Image.Image, text: str) -> str:
    """HTML of a picture, with its data; ``text`` is the alternative text."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def configuration(text: str) -> str:
    """The keys with other values than the defaults, then all keys, folded."""
    default = Config()
    default.follow_target()
    defaults = read_keys(to_yaml(default))
    lines = [
        f"{name}: {_value(value)}  ({f'default: {_value(defaults[name])}' if name in defaults else 'not a key now'})"
        for name, value in read_keys(text).items()
        if name not in defaults or value != defaults[name]
    ]
    return f"{preformatted(chr(10).join(lines))}<details><summary>all keys</summary>{preformatted(text)}</details>"


def _value(value: Any) -> str:
    """A value as in YAML; only the last parts of an absolute path."""
    text = value if isinstance(value, str) else json.dumps(value)
    return str(PurePath("…", *PurePath(text).parts[-SHOWN_PARTS:])) if PurePath(text).is_absolute() else text
