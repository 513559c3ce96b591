"""Scores of a network on a labelled set: one confusion matrix, from which every mean is taken."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset.labels import CITYSCAPES, SCORED_CLASSES, ClassTable
from models.segmentor import Segmentor
from utils import distributed
from utils.metrics import ConfusionMatrix

OnImage = Callable[[str, Tensor, Tensor], None]


@torch.inference_mode()
def evaluate(
    model: Segmentor, loader: DataLoader, num_classes: int, device: torch.device, on_image: OnImage | None = None, title: str = "evaluate"
) -> ConfusionMatrix:
    """Confusion matrix over ``loader`` at the labels' own size, summed over processes.

    Logits are upsampled straight to the label size with align_corners=True (released code), then argmax.

    Args:
        loader: batches of one image with its label at full size, see ``dataset.transforms.EvalTransform``.
        on_image: called with (name, label (H, W), prediction (H, W)) of each image.
    """
    matrix = ConfusionMatrix(num_classes)
    training = model.training
    model.eval()
    for batch in tqdm(loader, desc=title, disable=not distributed.is_main(), leave=False):
        label = batch["label"]
        logits = model(batch["image"].to(device), size=label.shape[-2:], align_corners=True)["logits"]
        prediction = logits.argmax(1).cpu()
        matrix.update(label, prediction)
        if on_image is not None:
            on_image(batch["name"][0], label[0], prediction[0])
    model.train(training)
    matrix.all_reduce()
    return matrix


def scores(matrix: ConfusionMatrix, table: ClassTable, eval_classes: Sequence[str] | None) -> dict[str, float]:
    """Mean IoUs in percent: ``miou`` over ``eval_classes`` or all, and the 16- and 13-class means on Cityscapes ids."""
    classes = None if eval_classes is None else table.ids(eval_classes)
    result = {"miou": 100 * matrix.miou(classes)}
    if eval_classes is None and table is CITYSCAPES:
        result |= {f"miou_{count}": 100 * matrix.miou(ids) for count, ids in SCORED_CLASSES.items()}
    return result | {"pixel_accuracy": 100 * matrix.pixel_accuracy()}


def per_class(matrix: ConfusionMatrix, table: ClassTable, eval_classes: Sequence[str] | None) -> dict[str, float | None]:
    """IoU in percent by class name; None for a class that is neither labelled nor predicted."""
    kept = range(table.num_classes) if eval_classes is None else table.ids(eval_classes)
    iou = (100 * matrix.iou()).tolist()
    return {table.names[c]: None if math.isnan(iou[c]) else iou[c] for c in kept}


def iou_table(matrix: ConfusionMatrix, table: ClassTable, eval_classes: Sequence[str] | None) -> str:
    """Per-class IoU and means in percent as text; a class that is absent shows a dash."""
    iou = per_class(matrix, table, eval_classes)
    lines = [f"{name:<20}{'-' if value is None else f'{value:.2f}':>8}" for name, value in iou.items()]
    lines += [f"{name:<20}{value:>8.2f}" for name, value in scores(matrix, table, eval_classes).items()]
    return "\n".join(lines)
