"""What the result page of a run shows, as HTML.

A verdict and the facts; scores against a baseline and the confusion matrix, where there are test labels; class shares
without labels; curves; images with the pseudo-labels of every layer of the pyramid; the configuration of the run.
"""

import base64
import html
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from dataset.folders import Sample
from dataset.labels import IGNORE
from dataset.progress import duration
from dataset.reading import read_image, read_label
from dataset.transforms import EvalTransform
from models.segmentor import Segmentor
from utils.builders import data
from utils.builders.curriculum import build_curriculum
from utils.builders.network import load_network
from utils.config.read import build_config, flatten, to_yaml
from utils.config.schema import Config
from utils.metrics import ConfusionMatrix
from utils.run_folder.checkpoint import resolve_weights
from utils.run_folder.records import PREDICTION, RECORDS, read_scalars, read_shares
from utils.run_folder.summary import UNKNOWN, RunSummary, read_summary, starting_run
from utils.scoring.evaluation import comparison, evaluate, scores
from utils.scoring.pictures import colour_map, confusion_picture, legend, overlay
from utils.scoring.without_labels import Comparison, compare_networks, describe, evenly_spaced, lost_words

OWN, BEFORE = "this run", "baseline"
SPACED = 3  # images beside the best, the worst and the most changed
PICTURE_WIDTH, LEGEND_WIDTH = 640, 1120  # pixels at most, so that the page stays small
STRIDE = 8  # of the pixels by which two networks' predictions of an image are compared
SHOWN_SHARES = 5  # classes in the verdict without labels
SHOWN_PARTS = 2  # folders of a path that are shown
WIDTH, HEIGHT, LEFT = 400, 160, 44  # SVG units of a chart; LEFT is for the numbers of its axis
POINTS = 200  # of a line; more would only be noise
COLOURS = ("#0072b2", "#d55e00", "#008060", "#aa3377", "#a07d00", "#777777")  # told apart by the colour-blind too
LABELLED = "target/labelled"
TITLES = {
    "val": "Scores on the held-out target images, percent",
    LABELLED: "Pixels and squares that got a pseudo-label, percent",
    "source": "Losses of the source step",
    "target": "Losses of the target step",
    "": "Learning rate relative to the initial one",
}
PREDICTED = "Predicted on a few target training images, the most common classes, percent of the pixels"
SAME = "miou_19"  # what miou is on 19 classes

Points = Sequence[tuple[int, float]]  # (step, value)


@dataclass
class Network:
    """One of the networks of the page, and what it predicted on the shown set."""

    facts: RunSummary
    folder: Path
    model: Segmentor
    matrix: ConfusionMatrix
    miou: dict[str, float] = field(default_factory=dict)  # percent by image, without those where nothing is labelled
    sampled: dict[str, Tensor] = field(default_factory=dict)  # by image, every ``STRIDE``-th row and column

    def add(self, name: str, label: Tensor, prediction: Tensor) -> None:
        """Take one image's label and prediction, (H, W)."""
        matrix = ConfusionMatrix(len(self.matrix.counts))
        matrix.update(label, prediction)
        if matrix.counts.any():
            self.miou[name] = 100 * matrix.miou()
        self.sampled[name] = prediction[::STRIDE, ::STRIDE].clone()


def look(config: Config, weights: Path, samples: Sequence[Sample], device: torch.device) -> Network:
    """Load a checkpoint and let it predict the ``samples``, labelled or not."""
    model, _ = load_network(config, [weights], device)
    network = Network(read_summary(weights), weights.parent, model.eval(), ConfusionMatrix(config.num_classes))
    loader = data.evaluation_loader(config, samples, config.test if data.are_labelled(samples) else config.target)
    title = weights.parent.name
    network.matrix = evaluate(config, model, loader, device, on_image=network.add, tta=config.tta, title=title)
    return network


def sections(config: Config, baseline: str | None, images: int) -> dict[str, str]:
    """HTML by title, the verdict without any.

    Args:
        baseline: run folder or file; None: what the run started from, where that is a run that is still there.
        images: of each domain at most, where there are no labels to look at all of them.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    baseline = baseline or starting_run(config.run_folder)
    weights = {BEFORE: resolve_weights(baseline)} if baseline else {}
    weights[OWN] = resolve_weights(str(config.run_folder))
    tested = data.test_samples(config, labels="optional")
    samples = tested or evenly_spaced(data.target_samples(config)[0], images)
    networks = {name: look(config, path, samples, device) for name, path in weights.items()}
    models = {name: network.model for name, network in networks.items()}
    compared = compare_networks(config, models, [n.folder for n in networks.values()], device, images)
    own, table, classes = networks[OWN], config.class_table, config.test.eval_classes
    trained = build_config(own.folder / "config.yaml")
    if data.are_labelled(tested):
        matrices = {name: network.matrix for name, network in networks.items()}
        picture = confusion_picture(own.matrix.counts.numpy(), table)
        found = {
            "": verdict(config, list(networks.values()), len(tested)),
            "Scores on the test set, percent": preformatted(comparison(matrices, table, classes)),
            "Confusion matrix of this run": png(picture, "confusion matrix, percent of the pixels of each label"),
        }
    else:
        found = {"": verdict_without_labels(own.facts, compared)}
    found[""] += "".join(f'<p class="facts">{line}</p>' for line in fact_lines(networks, len(tested)))
    found["Did it help? Without labels"] = preformatted(describe(compared))
    found["Curves"] = curves(own.folder / RECORDS)
    of = "the test set" if tested else "the target training set"
    found[f"Images of {of}, with pseudo-labels"] = image_section(config, trained, samples, networks)
    found["Configuration of the run"] = configuration((own.folder / "config.yaml").read_text())
    return found


def preformatted(text: str) -> str:
    """Text as it stands."""
    return f"<pre>{html.escape(text)}</pre>"


def verdict(config: Config, networks: Sequence[Network], images: int) -> str:
    """The mIoU of the run, the last of ``networks``, and what it gained over the baseline, if there is one."""
    *before, own = (scores(n.matrix, config.class_table, config.test.eval_classes)["miou"] for n in networks)
    gained = f", {own - before[0]:+.1f} over {networks[0].facts.method}" if before else ""
    text = f"{networks[-1].facts.method}: {own:.1f} mIoU{gained}, {images} images"
    return f'<p class="verdict">{html.escape(text)}</p>'


def verdict_without_labels(facts: RunSummary, compared: Comparison) -> str:
    """The class shares in a sentence, and in another one which common classes are nearly gone."""
    shares = dict(zip(compared.classes, compared.predicted[-1], strict=True))
    most = sorted(shares, key=shares.__getitem__, reverse=True)[:SHOWN_SHARES]
    found = ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in most)
    text = f"{facts.method}, without test labels: predicts {found} on {compared.images} target images"
    lost = f'<p class="warning">{html.escape(lost_words(compared))}</p>' if compared.lost() else ""
    return f'<p class="verdict">{html.escape(text)}</p>{lost}'


def fact_lines(networks: Mapping[str, Network], test_images: int) -> Iterator[str]:
    """What was done, in a line, and in another one what the run is compared with."""
    facts = networks[OWN].facts
    steps = f"{facts.num_steps} steps"
    if facts.step is not None and facts.step != facts.num_steps:
        steps += f", best after {facts.step}"
    counts = {name: facts.images.get(name) for name in ("source", "target", "held_out")} | {"test": test_images}
    parts = {
        "method": facts.method,
        "start": facts.start or "random weights",
        "trained": steps,
        "seed": facts.seed,
        "code": facts.commit,
        "date": facts.date,
        "time": UNKNOWN if facts.seconds is None else duration(facts.seconds),
        "images": ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count) or UNKNOWN,
    }
    yield " · ".join(f"{name} <b>{html.escape(str(value))}</b>" for name, value in parts.items() if value is not None)
    if BEFORE in networks:
        before = networks[BEFORE].facts
        yield f"baseline <b>{html.escape(before.name)}</b>: {before.method}, {before.step or before.num_steps} steps"


def curves(log: Path) -> str:
    """All scalars of a run and the shares of the classes that it predicts most, one chart a group."""
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
    """The lines of ``series`` over the steps as SVG, above their first and last values.

    Where all points are of one step, the values stand alone.
    """
    lines = {name: _thin(points) for name, points in series.items()}
    steps, values = zip(*(point for points in lines.values() for point in points), strict=True)
    (first, last), (low, high) = (min(steps), max(steps)), (min(values), max(values))
    across, up = (WIDTH - LEFT) / (last - first or 1), HEIGHT / (high - low or 1)
    drawn, rows = [], []
    for part in (0, 0.25, 0.5, 0.75, 1):
        x, y = LEFT + (WIDTH - LEFT) * part, HEIGHT * (1 - part)
        step, value = f"{first + (last - first) * part:.0f}", f"{low + (high - low) * part:.3g}"
        drawn.append(f'<path d="M{LEFT} {y}H{WIDTH}"/><text x="{LEFT - 5}" y="{y + 4}">{value}</text>')
        drawn.append(f'<text x="{x}" y="{HEIGHT + 18}">{step}</text>')
    for colour, (name, points) in zip(cycle(COLOURS), lines.items(), strict=False):
        places = [(LEFT + across * (step - first), HEIGHT - up * (value - low)) for step, value in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{path}" stroke="{colour}"/>')
        x, y = places[-1]  # all that is seen of a line of one point
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
        shown = [f"{series[name][at][1]:.4g}" for at in ((0, -1) if first < last else (-1,))]
        rows.append(f'<p><i style="background:{colour}"></i>{html.escape(name)} {" → ".join(shown)}</p>')
    name, step = html.escape(title), "" if first < last else f", step {last}"
    box = f'viewBox="0 -8 {WIDTH + 8} {HEIGHT + 30}" role="img" aria-label="{name}"'
    svg = f"<svg {box}>{''.join(drawn)}</svg>" if first < last else ""
    return f"<figure><figcaption><b>{name}</b>{step}</figcaption>{svg}{''.join(rows)}</figure>"


def _thin(points: Points) -> Points:
    """At most ``POINTS`` points: means of as many neighbours as it takes, each at its last step."""
    size = math.ceil(len(points) / POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def choose(own: Network, before: Network | None) -> dict[str, str]:
    """Names of the images to show, with the reason in words: best, worst, most changed, and some evenly spaced."""
    reasons: dict[str, list[str]] = defaultdict(list)
    if own.miou:
        ranked = sorted(own.miou, key=own.miou.__getitem__)
        reasons[ranked[-1]].append(f"the best, {own.miou[ranked[-1]]:.1f} mIoU")
        reasons[ranked[0]].append(f"the worst, {own.miou[ranked[0]]:.1f} mIoU")
    if before:
        changed = {name: (own.sampled[name] != before.sampled[name]).float().mean().item() for name in own.sampled}
        most = max(changed, key=changed.__getitem__)
        text = f"the most changed, {100 * changed[most]:.0f} % of the pixels have another class than in the baseline"
        reasons[most].append(text)
    for name in evenly_spaced(list(own.sampled), SPACED):
        reasons[name] += [] if reasons[name] else ["one of the evenly spaced"]
    return {name: "; ".join(found) for name, found in reasons.items()}


def image_section(config: Config, trained: Config, samples: Sequence[Sample], networks: Mapping[str, Network]) -> str:
    """Images with labels, the networks' predictions, and the confidence and pseudo-labels of the run's network.

    Args:
        trained: the configuration of the run, which says what its curriculum was.
    """
    by_name = {sample.name: sample for sample in samples}
    figures = []
    for name, reason in choose(networks[OWN], networks.get(BEFORE)).items():
        pictures = _pictures(config, trained, by_name[name], networks)
        shown = "".join(figure(picture, caption) for caption, picture in pictures.items())
        figures.append(f'<h3>{html.escape(name)}: {html.escape(reason)}</h3><div class="panels">{shown}</div>')
    note = (
        "By the final network in eval mode. Confidence is black at 0 and white at 1; above "
        f"{trained.curriculum.conf_threshold} there is a pseudo-label, black is none. A click enlarges an image."
    )
    colours = png(legend(config.class_table, LEGEND_WIDTH), "colours of the classes")
    return f'<p class="note">{note}</p>{colours}{"".join(figures)}'


def _pictures(
    config: Config, trained: Config, sample: Sample, networks: Mapping[str, Network]
) -> dict[str, Image.Image]:
    """The pictures of one image by caption, all of one size."""
    table, image = config.class_table, read_image(sample.image)
    pixels, _, _ = EvalTransform(trained.target.input_size)(image, None, np.random.default_rng(0))
    with torch.inference_mode():
        logits = {name: network.model.cpu()(pixels[None])["logits"] for name, network in networks.items()}
        own = logits[OWN]
        layers = build_curriculum(trained).pseudo_labels(own)
    width = min(image.width, PICTURE_WIDTH)
    size = (width, round(width * image.height / image.width))
    maps = {} if sample.label is None else {"labels": read_label(sample.label, config.test.label_kind)}
    maps |= {f"prediction, {name}": z.argmax(1)[0].numpy() for name, z in logits.items()}
    pictures = {"image": image.resize(size)} | {caption: colour_map(ids, table) for caption, ids in maps.items()}
    if sample.label is None:
        pictures["prediction on the image"] = overlay(image, own.argmax(1)[0].numpy(), table)
    pictures["confidence"] = Image.fromarray((255 * own.softmax(1).amax(1)[0]).byte().numpy())
    for name, (_, label, mask) in layers.items():
        ids = torch.where(mask, label, IGNORE)[0].numpy()
        pictures[f"pseudo-labels, {name}"] = colour_map(ids, table)
    nearest = Image.Resampling.NEAREST  # mixes no colours
    return {caption: picture.resize(size, nearest) for caption, picture in pictures.items()}


def figure(picture: Image.Image, caption: str) -> str:
    """A picture with a caption; a click, or the space bar, shows it as large as the window."""
    text = html.escape(caption)
    switch = f'<input type="checkbox" aria-label="enlarge {text}">'
    shown = f'<label class="enlarge">{switch}{png(picture, caption)}</label>'
    return f"<figure>{shown}<figcaption>{text}</figcaption></figure>"


def png(picture: Image.Image, text: str) -> str:
    """A picture within the page; ``text`` stands for it where it cannot be seen."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def configuration(text: str) -> str:
    """The keys whose values are not the defaults, and all of them, folded up."""
    default = Config()
    default.follow_target()
    defaults = flatten(yaml.safe_load(to_yaml(default)))
    lines = [
        f"{name}: {_value(value)}  (default: {_value(defaults[name])})"
        for name, value in flatten(yaml.safe_load(text)).items()
        if value != defaults[name]
    ]
    return f"{preformatted(chr(10).join(lines))}<details><summary>all keys</summary>{preformatted(text)}</details>"


def _value(value: Any) -> str:
    """A value as in YAML; of a path on this machine the last parts."""
    text = value if isinstance(value, str) else json.dumps(value)
    return str(PurePath("…", *PurePath(text).parts[-SHOWN_PARTS:])) if PurePath(text).is_absolute() else text
