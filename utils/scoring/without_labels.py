"""Whether an adaptation helped, without a target label: class shares, agreement, what was forgotten of the source.

The confidence of a network is no measure here: self-training makes wrong networks sure.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.folders import Sample, hold_out, read_list
from dataset.priors import class_prior
from dataset.progress import Progress
from utils import distributed
from utils.builders.data import Data
from utils.config.read import build_config
from utils.config.schema import Config
from utils.run_folder.checkpoint import pair_up
from utils.run_folder.facts import distinct_names, starting_run
from utils.run_folder.records import RECORDS, last_labels
from utils.scoring.evaluation import evaluate, scores
from utils.scoring.predictor import Predictor, load_configured

SEED = 0  # of the choice of the source images
CAVEAT = (
    "Confidence, entropy and agreement under mirroring are left out on purpose: measured on small runs, they rank "
    "networks in the reverse of their accuracy, because self-training makes wrong networks sure. Of the numbers here, "
    "too, none proves that it helped; a common class that is nearly gone is a sign that it did not."
)
COMMON = 0.02  # share of the pixels: a class with less may vanish without a warning
LOST = 0.1  # of its share: what a class has left when it counts as lost
NAME_WIDTH, COLUMN, WIDTH = 20, 15, 100  # characters

Item = TypeVar("Item")


@dataclass(frozen=True)
class Comparison:
    """Of networks on the same target training images; the first one is before, the last one after. Shares are 0..1."""

    classes: tuple[str, ...]
    networks: tuple[str, ...]
    images: int
    available: int
    source: list[float]  # by class, of the source labels
    predicted: list[list[float]]  # by network and class
    labels: list[float] | None  # by class, of the last network's pseudo-labels; None: trained without any
    agreement: list[list[float]]  # by network and network, share of the pixels with the same class
    source_miou: list[float]  # percent, by network, on some source images: shows what was forgotten
    source_images: int
    source_available: int
    trained_on: int | None  # of the source images, by any of the networks; None: not known

    def lost(self) -> list[str]:
        """Classes common in the source labels or before, with hardly any pixel in the last network's predictions."""
        expected = map(max, self.source, self.predicted[0])
        found = zip(self.classes, expected, self.predicted[-1], strict=True)
        return [name for name, share, after in found if is_lost(share, after)]


class Predictions(NamedTuple):
    """What several networks predict on the same images."""

    shares: Tensor  # float64 (networks, C), share of each class among the valid pixels
    agreement: Tensor  # float64 (networks, networks), share of the valid pixels that get the same class


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of the ``items``, in their order and at equal distances, the first one among them."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def is_lost(expected: float, share: float) -> bool:
    """Whether a class whose share should be ``expected``, 0..1, is common and has hardly anything left."""
    return expected >= COMMON and share < LOST * expected


def predictions_on(predictors: Sequence[Predictor], loader: DataLoader, title: str | None = None) -> Predictions:
    """Class shares of the networks' predictions over ``loader``, and their agreement, over all processes.

    Neither statistics nor the state of the random numbers change.

    Args:
        loader: batches of one image, see ``dataset.loader``; labels are not looked at, padding is left out.
        title: of a progress bar; None: without one.
    """
    count, num_classes, device = len(predictors), predictors[0].table.num_classes, predictors[0].device
    pixels = torch.zeros(count, num_classes, dtype=torch.int64)
    agreeing = torch.zeros(count, count, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):  # a loader draws a seed for its workers
        for batch in Progress(loader, title or "", enabled=title is not None and distributed.is_main(), leave=False):
            valid = batch["valid"]
            maps = [p.segment(batch["image"], valid.shape[-2:])[0][valid] for p in predictors]
            for i, own in enumerate(maps):
                pixels[i] += torch.bincount(own, minlength=num_classes)
                agreeing[i] += torch.stack([(own == other).sum() for other in maps])
    pixels, agreeing = (distributed.all_reduce_sum(counts.to(device)).double().cpu() for counts in (pixels, agreeing))
    total = pixels.sum(1, keepdim=True).clamp_min(1)
    return Predictions(pixels / total, agreeing / total)


def compare_runs(config: Config, runs: Sequence[str], images: int) -> Comparison:
    """Load the runs' networks and compare them, see ``compare_networks``."""
    given = list(runs) or [str(config.run_folder)]
    start = starting_run(Path(given[0])) if len(given) == 1 else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = list(pair_up([start, *given] if start else given).values())
    first = [Path(paths[0]) for paths in files]  # of an official pair, the encoder's file
    predictors = [load_configured(config, paths, device)[0] for paths in files]
    networks = dict(zip(distinct_names(first), predictors, strict=True))
    return compare_networks(config, networks, [path.parent for path in first], images)


def compare_networks(
    config: Config, networks: Mapping[str, Predictor], folders: Sequence[Path], images: int
) -> Comparison:
    """Compare networks on the unlabelled target training images of ``config``.

    Args:
        networks: by name, the one before the adaptation first.
        folders: the networks' run folders, where there is what they were trained on.
        images: of each domain at most, evenly spaced.
    """
    source, target = Data(config).source, Data(config).target
    seen = evenly_spaced(target, images)
    unique = list({sample.image: sample for sample in source}.values())  # a training list may repeat
    chosen = unique if len(unique) <= images else hold_out(unique, images, SEED)[1]
    on_target = Data(config).evaluation_loader(seen, config.target)
    on_source = Data(config).evaluation_loader(chosen, config.source)
    predictors, records = list(networks.values()), folders[-1] / RECORDS
    found = predictions_on(predictors, on_target, "predictions on the target")
    prior = class_prior(
        source,
        config.source.label_kind,
        config.num_classes,
        cache_dir=folders[-1] / "priors",
        num_workers=config.test.num_workers,
        skip_bad=config.train.skip_bad_samples,
    )
    labels = last_labels(records) if records.is_file() else None
    names = config.class_table.names
    matrices = [evaluate(predictor, on_source, title="source") for predictor in predictors]
    miou = [scores(matrix, config.class_table, config.test.eval_classes)["miou"] for matrix in matrices]
    return Comparison(
        classes=names,
        networks=tuple(networks),
        images=len(seen),
        available=len(target),
        source=prior.tolist(),
        predicted=found.shares.tolist(),
        labels=None if labels is None else [labels[name] for name in names],
        agreement=found.agreement.tolist(),
        source_miou=miou,
        source_images=len(chosen),
        source_available=len(unique),
        trained_on=_trained_on(folders, chosen),
    )


def _trained_on(folders: Sequence[Path], samples: Sequence[Sample]) -> int | None:
    """How many of the source ``samples`` a run in one of ``folders`` was trained on; None: not known."""
    known, lists = set(), [folder for folder in folders if (folder / "lists/source.txt").is_file()]
    for folder in lists:
        root = Path(build_config(folder / "config.yaml").source.data_dir)
        known |= {(root / line).resolve() for line in read_list(folder / "lists/source.txt", repeats=True)}
    return sum(sample.image.resolve() in known for sample in samples) if lists else None


def _source_words(c: Comparison) -> str:
    """The source scores in words, and whether the networks were trained on these images."""
    found = ", ".join(f"{name} {miou:.1f}" for name, miou in zip(c.networks, c.source_miou, strict=True))
    scored = f"mIoU on {c.source_images} of {c.source_available} source images: {found}."
    if c.trained_on is None:
        return f"{scored} It is not known whether the networks were trained on them."
    if c.trained_on == 0:
        return f"{scored} The networks were trained on none of them."
    part = "all" if c.trained_on == c.source_images else str(c.trained_on)
    return f"{scored} They were trained on {part} of them, so a loss is what was forgotten, not a score on new images."


def lost_words(comparison: Comparison) -> str:
    """A sentence about the common classes that are nearly gone."""
    lost = comparison.lost()
    if not lost:
        return "No class that is common in the source or was common before is nearly gone."
    return f"Nearly gone although common in the source or before: {', '.join(lost)}."


def describe(c: Comparison) -> str:
    """The comparison as text."""
    columns = {"source labels": c.source} | dict(zip(c.networks, c.predicted, strict=True))
    columns |= {"pseudo-labels": c.labels} if c.labels is not None else {}
    lines = [f"Share of each class in percent, on {c.images} of {c.available} unlabelled target training images:"]
    lines.append(" " * NAME_WIDTH + "".join(f"{name[2 - COLUMN :]:>{COLUMN}}" for name in columns))
    lost = c.lost()
    for i, name in enumerate(c.classes):
        cells = "".join(f"{100 * shares[i]:>{COLUMN}.2f}" for shares in columns.values())
        lines.append(f"{name:<{NAME_WIDTH}}{cells}{'  <- nearly gone' if name in lost else ''}")
    sentences = [
        f"{name} and {c.networks[-1]} give {100 * c.agreement[i][-1]:.1f} % of the pixels the same class."
        for i, name in enumerate(c.networks[:-1])
    ]
    sentences += [_source_words(c), lost_words(c), CAVEAT]
    return "\n".join([*lines, "", *(textwrap.fill(text, WIDTH) for text in sentences)])
