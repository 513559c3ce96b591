"""Whether an adaptation helped, without a target label: class shares, agreement, what was forgotten of the source.

How sure a network is says nothing here: self-training makes wrong networks sure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dataset.folders import Sample, hold_out
from dataset.lists import read_list
from dataset.priors import class_prior
from models.segmentor import Segmentor
from utils.build import data
from utils.config.read import build_config
from utils.config.schema import Config
from utils.run_folder.records import RECORDS
from utils.run_folder.shares import last_labels
from utils.scoring.class_shares import evenly_spaced, is_lost, predictions_on
from utils.scoring.evaluation import evaluate, scores

SEED = 0  # of the choice of the source images
CAVEAT = (
    "Confidence, entropy and agreement under mirroring are left out on purpose: measured on small runs, they rank "
    "networks in the reverse of their accuracy, because self-training makes wrong networks sure. Of the numbers here, "
    "too, none proves that it helped; a common class that is nearly gone is a sign that it did not."
)


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

    def expected(self, index: int) -> float:
        """What share a class should about have: the larger of that in the source labels and that predicted before."""
        return max(self.source[index], self.predicted[0][index])

    def lost(self) -> list[str]:
        """Classes that were common and have hardly any pixel in the last network's predictions."""
        return [name for i, name in enumerate(self.classes) if is_lost(self.expected(i), self.predicted[-1][i])]


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


def source_words(comparison: Comparison, names: Sequence[str]) -> str:
    """The source scores in words, and whether the networks, called ``names``, have seen these images in training."""
    f = comparison.forgotten
    found = ", ".join(f"{name} {miou:.1f}" for name, miou in zip(names, f.miou, strict=True))
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
