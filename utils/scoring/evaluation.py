"""Scores of a network on a labelled set, all from one confusion matrix; without labels, its class shares."""

import math
from collections.abc import Callable, Sequence, Sized
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.labels import CITYSCAPES, SCORED_CLASSES, ClassTable
from dataset.progress import Progress
from utils import distributed
from utils.metrics import ConfusionMatrix
from utils.scoring.predictor import Predictor

OnImage = Callable[[str, Tensor, Tensor], None]
NAME_WIDTH, COLUMN = 24, 12  # characters, at least
COMMON = 0.02  # share of the pixels; a class with less may vanish without a warning
LOST = 0.1  # part of its expected share; a class with less counts as lost
TABLE_WIDTH = 120  # characters; a wider table has numbers as headings and a legend


class EvaluationStopped(Exception):
    """``stop`` ended an evaluation early, on all processes at the same image."""


@torch.inference_mode()
def evaluate(
    predictor: Predictor,
    loader: DataLoader,
    *,
    on_image: OnImage | None = None,
    title: str = "evaluate",
    stop: Callable[[], bool] | None = None,
) -> ConfusionMatrix:
    """Confusion matrix over ``loader`` at the labels' own size, summed over processes.

    Args:
        loader: batches of one image with its label at full size, see ``dataset.transforms.EvalTransform``.
        on_image: called with (name, label (H, W), prediction (H, W)) of each image.
        stop: called before each image, but not before a last image that only some processes have. It must return the
            same value on all processes.

    Raises:
        EvaluationStopped: ``stop`` returned True.
    """
    matrix = ConfusionMatrix(predictor.table.num_classes)
    shared = len(cast(Sized, loader.dataset)) // distributed.world_size()
    for index, batch in enumerate(Progress(loader, title, enabled=distributed.is_main(), leave=False)):
        if stop is not None and index < shared and stop():
            raise EvaluationStopped
        label = batch["label"]
        prediction, _ = predictor.segment(batch["image"], label.shape[-2:], batch["name"][0])
        matrix.update(label, prediction)
        if on_image is not None:
            on_image(batch["name"][0], label[0], prediction[0])
    matrix.all_reduce()
    return matrix


def scores(matrix: ConfusionMatrix, table: ClassTable, eval_classes: Sequence[str] | None) -> dict[str, float]:
    """Scores in percent: ``miou`` over ``eval_classes`` or all classes, pixel accuracy and frequency-weighted IoU.

    For all Cityscapes classes also ``miou_19``, ``miou_16`` and ``miou_13``.
    """
    classes = None if eval_classes is None else table.ids(eval_classes)
    result = {"miou": matrix.miou(classes)}
    if eval_classes is None and table is CITYSCAPES:
        result |= {f"miou_{count}": matrix.miou(ids) for count, ids in SCORED_CLASSES.items()}
    result |= {"pixel_accuracy": matrix.pixel_accuracy(), "frequency_weighted_iou": matrix.frequency_weighted_iou()}
    return {name: 100 * value for name, value in result.items()}


def per_class(
    matrix: ConfusionMatrix, table: ClassTable, eval_classes: Sequence[str] | None
) -> dict[str, float | None]:
    """IoU in percent by class name; None for a class that is neither labelled nor predicted."""
    kept = range(table.num_classes) if eval_classes is None else table.ids(eval_classes)
    iou = (100 * matrix.iou()).tolist()
    return {table.names[c]: None if math.isnan(iou[c]) else iou[c] for c in kept}


def iou_table(matrix: ConfusionMatrix, table: ClassTable, eval_classes: Sequence[str] | None) -> str:
    """Per-class IoU and means in percent as text; a class that is absent shows a dash."""
    return comparison({"": matrix}, table, eval_classes)


def comparison(matrices: dict[str, ConfusionMatrix], table: ClassTable, eval_classes: Sequence[str] | None) -> str:
    """Scores as a table with one column per network. A star marks the best value of each row.

    The headings are the names of the networks, or numbers if the names are too long.

    Args:
        matrices: by the name of each network.
    """
    columns = [{**per_class(m, table, eval_classes), **scores(m, table, eval_classes)} for m in matrices.values()]
    lines: list[str] = []
    headings, width = list(matrices), max(COLUMN, *(len(name) + 2 for name in matrices))
    if NAME_WIDTH + len(headings) * width > TABLE_WIDTH:
        headings, width = [f"({number})" for number in range(1, len(matrices) + 1)], COLUMN
        lines = [f"{number} {name}" for number, name in zip(headings, matrices, strict=True)]
    if len(matrices) > 1:
        lines.append(" " * NAME_WIDTH + "".join(f"{heading:>{width - 1}} " for heading in headings).rstrip())
    for row in columns[0]:
        values = [column[row] for column in columns]
        best = max((v for v in values if v is not None), default=None) if len(values) > 1 else None
        cells = [f"{'-' if v is None else f'{v:.2f}'}{'*' if v is not None and v == best else ' '}" for v in values]
        lines.append(f"{row:<{NAME_WIDTH}}" + "".join(f"{cell:>{width}}" for cell in cells).rstrip())
    return "\n".join(lines)


class Predictions(NamedTuple):
    """Predictions of several networks on the same images."""

    shares: Tensor  # float64 (networks, C), share of each class among the valid pixels
    agreement: Tensor  # float64 (networks, networks), share of the valid pixels that get the same class


def predictions_on(predictors: Sequence[Predictor], loader: DataLoader, title: str | None = None) -> Predictions:
    """Class shares and agreement of the networks' predictions over ``loader``, over all processes.

    Batch-norm statistics and the state of the random numbers do not change.

    Args:
        loader: batches of one image, see ``dataset.loader``; labels are not used, padding is ignored.
        title: of a progress bar; None: no progress bar.
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


def is_lost(expected: float, share: float) -> bool:
    """Whether a class is common, by its ``expected`` share, and has less than ``LOST`` of that. Shares are 0..1."""
    return expected >= COMMON and share < LOST * expected
