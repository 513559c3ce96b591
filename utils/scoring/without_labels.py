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
from models.weights import read_file
from utils import distributed
from utils.builders.data import Data
from utils.config.schema import Config
from utils.run_folder.checkpoint import pair_up, resolve_weights
from utils.run_folder.records import RECORDS, last_labels
from utils.run_folder.summary import distinct_names, run_keys, starting_run
from utils.scoring.evaluation import evaluate, scores
from utils.scoring.predictor import Predictor, load_configured

SEED = 0  # of the choice of the source images
CAVEAT = (
    "Confidence, entropy and agreement under mirroring are left out on purpose: measured on small runs, they rank "
    "networks in the reverse of their accuracy, because self-training makes wrong networks sure. Of the numbers here, "
    "too, none proves that it helped."
)
OF_LABELS = (
    "The pseudo-labels were made in train mode, on augmented crops and with the statistics of each batch, the "
    "predictions in eval mode on whole images: their columns differ for that too."
)
TAKEN, BACK, GONE = "taken away", "brought back", "gone before"
COMMON = 0.02  # share of the pixels: a class with less may vanish without a warning
LOST = 0.1  # of its share: what a class has left when it counts as lost
CHANGED = 2  # times: a smaller change of a rare class is none
SHOWN = 4  # classes whose shares the curriculum changed most
NAME_WIDTH, COLUMN, WIDTH = 20, 15, 100  # characters

Item = TypeVar("Item")


@dataclass(frozen=True)
class Comparison:
    """Of networks on the same target training images. Shares are 0..1."""

    classes: tuple[str, ...]
    networks: tuple[str, ...]
    starts: list[int]  # by network, the one that it started from, else the first one, which is its own
    controls: list[int | None]  # by network of a curriculum, the one trained without it from the same weights
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

    def fates(self, run: int, before: int) -> list[str]:
        """What network ``run`` made of each class of network ``before``, see ``fate``."""
        return [fate(*shares) for shares in zip(self.source, self.predicted[before], self.predicted[run], strict=True)]


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


def fate(source: float, before: float, after: float) -> str:
    """What an adaptation did to a class, by its shares of the source labels and of the predictions before and after.

    ``TAKEN``: lost now and not before, and rarer than in the source. ``BACK``: lost before, as the source is the
    measure, and not now. ``GONE``: lost before and now. "": none of these, or rare.
    """
    if after < source and is_lost(before, after):
        return TAKEN
    if is_lost(source, before):
        return BACK if not is_lost(source, after) and after >= CHANGED * before else GONE
    return TAKEN if is_lost(source, after) and CHANGED * after < before else ""


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
    pairs = list(pair_up([start, *given] if start else given).values())
    files = [Path(paths[0]) for paths in pairs]  # of an official pair, the encoder's file
    predictors = [load_configured(config, paths, device) for paths in pairs]
    return compare_networks(Data(config), dict(zip(distinct_names(files), predictors, strict=True)), files, images)


def compare_networks(data: Data, networks: Mapping[str, Predictor], files: Sequence[Path], images: int) -> Comparison:
    """Compare networks on the unlabelled target training images of ``data``.

    Args:
        networks: by name, the one before the adaptation first.
        files: their weights; beside them lies what the networks started from and were trained on.
        images: of each domain at most, evenly spaced.
    """
    config, source, target = data.config, data.source, data.target
    seen = evenly_spaced(target, images)
    unique = list({sample.image: sample for sample in source}.values())  # a training list may repeat
    chosen = unique if len(unique) <= images else hold_out(unique, images, SEED)[1]
    on_target = data.evaluation_loader(seen, config.target)
    on_source = data.evaluation_loader(chosen, config.source)
    predictors, folders = list(networks.values()), [path.parent for path in files]
    records = folders[-1] / RECORDS
    found = predictions_on(predictors, on_target, "predictions on the target")
    prior = class_prior(
        source,
        config.source.label_kind,
        config.num_classes,
        cache_dir=folders[-1] / "priors",
        write_cache=False,
        num_workers=config.test.num_workers,
        skip_bad=config.train.skip_bad_samples,
    )
    labels = last_labels(records) if records.is_file() else None
    names, (starts, controls) = config.class_table.names, _origins(files)
    matrices = [evaluate(predictor, on_source, title="source") for predictor in predictors]
    miou = [scores(matrix, config.class_table, config.test.eval_classes)["miou"] for matrix in matrices]
    return Comparison(
        classes=names,
        networks=tuple(networks),
        starts=starts,
        controls=controls,
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


def _origins(files: Sequence[Path]) -> tuple[list[int], list[int | None]]:
    """``Comparison.starts`` and ``controls`` of the networks in ``files``."""
    places = {path.resolve(): i for i, path in enumerate(files)}
    given = [starting_run(path) for path in files]
    found = [resolve_weights(start).resolve() if start else None for start in given]
    methods = [str(read_file(path).get("method")) for path in files]
    control = {found[i]: i for i, method in enumerate(methods) if method == "train_adabn" and found[i]}
    starts = [places.get(start, 0) if i and start else 0 for i, start in enumerate(found)]
    learnt = [method.startswith("train_pycda") for method in methods]
    return starts, [control.get(start) if learns else None for start, learns in zip(found, learnt, strict=True)]


def _trained_on(folders: Sequence[Path], samples: Sequence[Sample]) -> int | None:
    """How many of the source ``samples`` a run in one of ``folders`` was trained on; None: not known."""
    known, lists = set(), [folder for folder in folders if (folder / "lists/source.txt").is_file()]
    for folder in lists:
        root = Path(run_keys(folder)["source.data_dir"])
        known |= {(root / line).resolve() for line in read_list(folder / "lists/source.txt", repeats=True)}
    return sum(sample.image.resolve() in known for sample in samples) if lists else None


def _source_words(c: Comparison) -> str:
    """The source scores in words, and whether the networks were trained on these images."""
    found = ", ".join(f"{name} {miou:.1f}" for name, miou in zip(c.networks, c.source_miou, strict=True))
    scored = f"mIoU on {c.source_images} of {c.source_available} source images: {found}."
    part = "all" if c.trained_on == c.source_images else str(c.trained_on)
    known = {None: "It is not known whether they were trained on them.", 0: "They were trained on none of them."}
    forgotten = f"They were trained on {part} of them, so a loss is what was forgotten, not a score on new images."
    return f"{scored} {known.get(c.trained_on, forgotten)}"


def verdicts(c: Comparison, run: int) -> dict[str, str]:
    """By fate, a sentence about those classes of network ``run``; by "" that it took none away."""
    start = c.starts[run]
    own, before, fates = c.networks[run], c.networks[start], c.fates(run, start)
    shares = zip(c.classes, c.source, c.predicted[start], c.predicted[run], strict=True)
    words = [f"{name} (source {100 * s:.1f}, {100 * b:.1f} -> {100 * a:.1f} %)" for name, s, b, a in shares]
    listed = {f: ", ".join(word for word, own in zip(words, fates, strict=True) if own == f) for f in fates if f}
    sentences = {
        TAKEN: f"{own} took away what {before} had: {listed.get(TAKEN)}. This is a sign that it did not help.",
        BACK: f"{own} brought back what {before} had lost of the source: {listed.get(BACK)}.",
        GONE: f"Common in the source, but gone in {before} already: {listed.get(GONE)}.",
    }
    found = {f: sentence for f, sentence in sentences.items() if f in listed}
    return found if TAKEN in found or run == start else {"": f"{own} took no common class away from {before}."} | found


def _curriculum_words(c: Comparison, run: int, control: int) -> str:
    """What the curriculum added to the ``control``: the same start and steps without it."""
    fates, shares = c.fates(run, control), zip(c.predicted[run], c.predicted[control], strict=True)
    added = [100 * (own - without) for own, without in shares]
    most = sorted(range(len(added)), key=lambda i: -abs(added[i]))[:SHOWN]
    by_class = ", ".join(f"{c.classes[i]} {added[i]:+.1f}{fates[i] and f' ({fates[i]})'}" for i in most)
    return (
        f"What the curriculum of {c.networks[run]} added to the control {c.networks[control]}: another class for "
        f"{100 * (1 - c.agreement[run][control]):.1f} % of the pixels, most of all {by_class}; "
        f"{c.source_miou[run] - c.source_miou[control]:+.1f} mIoU on the source."
    )


def describe(c: Comparison) -> str:
    """The comparison as text."""
    columns = {"source labels": c.source} | dict(zip(c.networks, c.predicted, strict=True))
    columns |= {"pseudo-labels": c.labels} if c.labels is not None else {}
    heads = [name if len(name) < COLUMN else f"…{name[3 - COLUMN :]}" for name in columns]  # names differ at the end
    lines = [f"Share of each class in percent, on {c.images} of {c.available} unlabelled target training images:"]
    lines.append(" " * NAME_WIDTH + "".join(f"{head:>{COLUMN}}" for head in heads))
    judged = range(1, len(c.networks)) or [0]  # a network alone is its own start
    fates = {c.networks[run]: c.fates(run, c.starts[run]) for run in judged}
    for i, name in enumerate(c.classes):
        cells = "".join(f"{100 * shares[i]:>{COLUMN}.2f}" for shares in columns.values())
        marks = ", ".join(f"{run}: {found[i]}" for run, found in fates.items() if found[i])
        lines.append(f"{name:<{NAME_WIDTH}}{cells}{marks and f'  <- {marks}'}")
    sentences = [OF_LABELS] if c.labels is not None else []
    sentences += [
        f"{name} and {c.networks[-1]} give {100 * c.agreement[i][-1]:.1f} % of the pixels the same class."
        for i, name in enumerate(c.networks[:-1])
    ]
    sentences += [_source_words(c), *(text for run in judged for text in verdicts(c, run).values())]
    sentences += [_curriculum_words(c, run, control) for run, control in enumerate(c.controls) if control is not None]
    return "\n".join([*lines, "", *(textwrap.fill(text, WIDTH) for text in [*sentences, CAVEAT])])
