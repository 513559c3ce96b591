"""Whether an adaptation helped, without a target label: class shares, agreement, what was forgotten of the source.

How sure a network is says nothing here: self-training makes wrong networks sure.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.folders import Sample, hold_out
from dataset.lists import read_list
from dataset.priors import class_prior
from dataset.progress import Progress
from models.segmentor import Segmentor
from utils import distributed
from utils.builders import data
from utils.builders.network import load_network
from utils.config.read import build_config
from utils.config.schema import AtTestTime, Config
from utils.run_folder.checkpoint import pair_up
from utils.run_folder.records import RECORDS, last_labels
from utils.run_folder.summary import distinct_names, starting_run
from utils.scoring.evaluation import evaluate, predict, scores

SEED = 0  # of the choice of the source images
CAVEAT = (
    "Confidence, entropy and agreement under mirroring are left out on purpose: measured on small runs, they rank "
    "networks in the reverse of their accuracy, because self-training makes wrong networks sure. Of the numbers here, "
    "too, none proves that it helped; a common class that is nearly gone is a sign that it did not."
)
COMMON = 0.02  # share of the pixels from which on a class that vanishes is worth a word
LOST = 0.1  # of its share: what a class has left when it counts as lost
NAME_WIDTH, COLUMN, WIDTH = 20, 15, 100  # characters

Item = TypeVar("Item")


@dataclass(frozen=True)
class SourceScores:
    """mIoU on some source images, which says what was forgotten."""

    miou: list[float]  # percent, by network
    images: int
    available: int
    trained_on: int | None  # of the images, by any of the networks; None: not known


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
    forgotten: SourceScores

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


@torch.inference_mode()
def predictions_on(
    config: Config,
    models: Sequence[Segmentor],
    loader: DataLoader,
    device: torch.device,
    *,
    tta: AtTestTime | None = None,
    title: str | None = None,
) -> Predictions:
    """Class shares of the networks' predictions over ``loader``, and their agreement, over all processes.

    Neither statistics nor the state of the random numbers change.

    Args:
        loader: batches of one image, see ``dataset.loader``; labels are not looked at, padding is left out.
        tta: scales and mirror images to average over; None: the image as it is.
        title: of a progress bar; None: without one.
    """
    count, num_classes = len(models), config.num_classes
    pixels = torch.zeros(count, num_classes, dtype=torch.int64)
    agreeing = torch.zeros(count, count, dtype=torch.int64)
    training = [model.training for model in models]
    for model in models:
        model.eval()
    with torch.random.fork_rng(devices=[]):  # a loader draws a seed for its workers
        for batch in Progress(loader, title or "", enabled=title is not None and distributed.is_main(), leave=False):
            image, valid = batch["image"].to(device, non_blocking=True), batch["valid"]
            size = tuple(valid.shape[-2:])
            maps = [predict(m, image, size, config.test.upsampling, tta).cpu()[valid] for m in models]
            for i, own in enumerate(maps):
                pixels[i] += torch.bincount(own, minlength=num_classes)
                agreeing[i] += torch.stack([(own == other).sum() for other in maps])
    for model, before in zip(models, training, strict=True):
        model.train(before)
    pixels, agreeing = (distributed.all_reduce_sum(counts.to(device)).double().cpu() for counts in (pixels, agreeing))
    total = pixels.sum(1, keepdim=True).clamp_min(1)
    return Predictions(pixels / total, agreeing / total)


def compare_runs(config: Config, runs: Sequence[str], images: int) -> Comparison:
    """Load the runs' networks and compare them, see ``compare_networks``."""
    given = list(runs) or [str(config.run_folder)]
    start = starting_run(Path(given[0])) if len(given) == 1 else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = pair_up([start, *given] if start else given)
    first = [Path(paths[0]) for paths in files.values()]  # of an official pair, the encoder's file
    names = distinct_names(first)
    networks = {n: load_network(config, paths, device)[0] for n, paths in zip(names, files.values(), strict=True)}
    folders = [path.parent for path in first]
    return compare_networks(config, networks, folders, device, images)


def compare_networks(
    config: Config, networks: dict[str, Segmentor], folders: Sequence[Path], device: torch.device, images: int
) -> Comparison:
    """Compare networks on the unlabelled target training images of ``config``.

    Args:
        networks: by name, on ``device``, the one before the adaptation first.
        folders: the networks' run folders, where there is what they were trained on.
        images: of each domain at most, evenly spaced.
    """
    source, (target, _) = data.source_samples(config), data.target_samples(config)
    seen = evenly_spaced(target, images)
    loader = data.evaluation_loader(config, seen, config.target)
    found = predictions_on(
        config, list(networks.values()), loader, device, tta=config.tta, title="predictions on the target"
    )
    cache, workers = folders[-1] / "priors", config.test.num_workers
    kind = config.source.label_kind
    skip = config.train.skip_bad_samples
    prior = class_prior(source, kind, config.num_classes, cache_dir=cache, num_workers=workers, skip_bad=skip)
    labels = last_labels(folders[-1] / RECORDS) if (folders[-1] / RECORDS).is_file() else None
    names = config.class_table.names
    return Comparison(
        classes=names,
        networks=tuple(networks),
        images=len(seen),
        available=len(target),
        source=prior.tolist(),
        predicted=found.shares.tolist(),
        labels=None if labels is None else [labels[name] for name in names],
        agreement=found.agreement.tolist(),
        forgotten=_source_scores(config, list(networks.values()), folders, source, device, images),
    )


def _source_scores(
    config: Config,
    networks: Sequence[Segmentor],
    folders: Sequence[Path],
    source: Sequence[Sample],
    device: torch.device,
    images: int,
) -> SourceScores:
    unique = list({sample.image: sample for sample in source}.values())  # a training list may repeat
    chosen = unique if len(unique) <= images else hold_out(unique, images, SEED)[1]
    loader = data.evaluation_loader(config, chosen, config.source)
    found = []
    for network in networks:
        matrix = evaluate(config, network, loader, device, tta=config.tta, title="source")
        found.append(scores(matrix, config.class_table, config.test.eval_classes)["miou"])
    lists = [trained_on(folder) for folder in folders if (folder / "lists/source.txt").is_file()]
    known = {path for paths in lists for path in paths}
    seen = sum(sample.image.resolve() in known for sample in chosen) if lists else None
    return SourceScores(found, len(chosen), len(unique), seen)


def trained_on(folder: Path) -> set[Path]:
    """Source images that a run was trained on."""
    root = Path(build_config(folder / "config.yaml").source.data_dir)
    return {(root / line).resolve() for line in read_list(folder / "lists/source.txt", repeats=True)}


def source_words(comparison: Comparison) -> str:
    """The source scores in words, and whether the networks have seen these images in training."""
    f = comparison.forgotten
    found = ", ".join(f"{name} {miou:.1f}" for name, miou in zip(comparison.networks, f.miou, strict=True))
    scored = f"mIoU on {f.images} of {f.available} source images: {found}."
    if f.trained_on is None:
        return f"{scored} It is not known whether the networks were trained on them."
    if f.trained_on == 0:
        return f"{scored} The networks were trained on none of them."
    part = "all" if f.trained_on == f.images else str(f.trained_on)
    return f"{scored} They were trained on {part} of them, so a loss is what was forgotten, not a score on new images."


def lost_words(comparison: Comparison) -> str:
    """What the class shares say of common classes, in a sentence."""
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
    told = [
        f"{name} and {c.networks[-1]} give {100 * c.agreement[i][-1]:.1f} % of the pixels the same class."
        for i, name in enumerate(c.networks[:-1])
    ]
    told += [source_words(c), lost_words(c), CAVEAT]
    return "\n".join([*lines, "", *(textwrap.fill(text, WIDTH) for text in told)])
