"""``sh run.sh report CONFIG [--baseline RUN]``: one HTML file about a run, with everything in it.

A verdict and the facts; per-class IoU against a baseline and the confusion matrix, where there are test labels; class
shares without labels; curves; images with the pseudo-labels of every layer of the pyramid; the configuration that the
run was trained with. No network is needed to read it.
"""

import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dataset.failures import exit_after
from dataset.folders import Sample
from models.segmentor import Segmentor
from utils.build import data
from utils.build.network import load_network
from utils.commands import arguments
from utils.commands import report_numbers as numbers
from utils.commands.page_style import page
from utils.commands.report_curves import curves
from utils.commands.report_images import Seen, choose, image_section
from utils.config.read import build_config
from utils.config.schema import Config
from utils.metrics import ConfusionMatrix
from utils.run_folder.checkpoint import resolve_weights
from utils.run_folder.facts import Facts, read_facts, starting_run
from utils.run_folder.records import RECORDS
from utils.scoring.class_shares import evenly_spaced
from utils.scoring.evaluation import evaluate, per_class, scores
from utils.scoring.without_labels import Comparison, compare_networks

OWN, BEFORE = "this run", "baseline"


@dataclass(frozen=True)
class Network:
    """One of the networks of the page, and what it predicted on the shown set."""

    facts: Facts
    folder: Path
    model: Segmentor
    matrix: ConfusionMatrix
    seen: Seen


def look(config: Config, weights: Path, samples: Sequence[Sample], device: torch.device) -> Network:
    """Load a checkpoint and let it predict the ``samples``, labelled or not."""
    model, _ = load_network(config, [weights], device)
    seen = Seen(config.num_classes)
    options = config.test if data.are_labelled(samples) else config.target
    loader = data.evaluation_loader(config, samples, options)
    title = weights.parent.name
    matrix = evaluate(config, model, loader, device, on_image=seen.add, tta=config.tta, title=title)
    return Network(read_facts(weights), weights.parent, model.eval(), matrix, seen)


def write_report(config: Config, baseline: str | None, images: int) -> Path:
    """Write ``report.html`` into the run folder of ``config``; returns its path.

    Args:
        baseline: run folder or file; None: what the run started from, where that is a run that is still there.
        images: of each domain at most, where there are no labels to look at all of them.
    """
    folder, device = config.run_folder, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    baseline = baseline or starting_run(folder)
    weights = {BEFORE: resolve_weights(baseline)} if baseline else {}
    weights[OWN] = resolve_weights(str(folder))
    samples = data.test_samples(config, labels="optional")
    test_images = len(samples)
    samples = samples or evenly_spaced(data.target_samples(config)[0], images)
    networks = {name: look(config, path, samples, device) for name, path in weights.items()}
    models = {name: network.model for name, network in networks.items()}
    folders = [network.folder for network in networks.values()]
    comparison = compare_networks(config, models, folders, device, images)
    sections = _sections(config, networks, comparison, samples, test_images)
    own, before = networks[OWN].facts, networks[BEFORE].facts if BEFORE in networks else None
    if test_images and data.are_labelled(samples):
        classes = config.test.eval_classes
        mious = [scores(networks[n].matrix, config.class_table, classes)["miou"] for n in reversed(networks)]
        first = numbers.verdict(own, before, mious, test_images)
    else:
        first = numbers.verdict_without_labels(own, comparison)
    lines = numbers.fact_line(own, test_images) + numbers.baseline_line(before)
    body = [f"<h1>{html.escape(config.exp_name)}</h1>", first, lines]
    body += [f"<section><h2>{title}</h2>{content}</section>" for title, content in sections.items()]
    path = folder / "report.html"
    path.write_text(page(config.exp_name, "\n".join(body)))
    return path


def _sections(
    config: Config, networks: dict[str, Network], comparison: Comparison, samples: Sequence[Sample], test_images: int
) -> dict[str, str]:
    """HTML by title."""
    own, before = networks[OWN], networks.get(BEFORE)
    table, classes = config.class_table, config.test.eval_classes
    sections = {}
    if test_images and data.are_labelled(samples):
        found = [network for network in (own, before) if network]
        means = [scores(network.matrix, table, classes) for network in found]
        iou = [per_class(network.matrix, table, classes) for network in found]
        sections["Scores on the test set, percent"] = numbers.score_table(means, iou, test_images, table)
        sections["Confusion matrix of this run"] = numbers.confusion_table(own.matrix.counts.numpy(), table)
    sections["Did it help? Without labels"] = numbers.share_table(comparison, list(networks), table)
    sections["Curves"] = curves(own.folder / RECORDS)
    models = {name: network.model.cpu() for name, network in networks.items()}
    reasons = choose(own.seen, before.seen if before else None)
    trained = build_config(own.folder / "config.yaml")
    of = "the test set" if test_images else "the target training set"
    title = f"Images of {of}, with pseudo-labels"
    sections[title] = image_section(config, trained, samples, reasons, models)
    sections["Configuration of the run"] = numbers.configuration((own.folder / "config.yaml").read_text())
    return sections


def run(config: Config, baseline: str | None, images: int) -> None:
    print(write_report(config, baseline, images))


def main(argv: Sequence[str] | None = None) -> None:
    run(*arguments.report(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    exit_after(main)
