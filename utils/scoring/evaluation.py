"""Scores of a network on a labelled set: one confusion matrix, from which every mean is taken."""

import math
from collections.abc import Callable, Sequence, Sized
from pathlib import PurePath
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.labels import CITYSCAPES, SCORED_CLASSES, ClassTable
from dataset.messages import ChoiceError
from dataset.progress import Progress
from models.segmentor import Segmentor
from utils import distributed
from utils.config.schema import AtTestTime, Config
from utils.metrics import ConfusionMatrix
from utils.scoring.upsampling import View, classes_at

OnImage = Callable[[str, Tensor, Tensor], None]
NAME_WIDTH, COLUMN = 24, 12  # characters at least
TABLE_WIDTH = 120  # characters; a wider table gets numbers as headings, and a legend


class EvaluationStopped(Exception):
    """An evaluation that was given up before its end, on all processes alike."""


@torch.inference_mode()
def evaluate(
    config: Config,
    model: Segmentor,
    loader: DataLoader,
    device: torch.device,
    *,
    on_image: OnImage | None = None,
    tta: AtTestTime | None = None,
    title: str = "evaluate",
    stop: Callable[[], bool] | None = None,
) -> ConfusionMatrix:
    """Confusion matrix over ``loader`` at the labels' own size, summed over processes.

    Args:
        config: says how many classes there are, and how logits are upsampled (``test.upsampling``).
        loader: batches of one image with its label at full size, see ``dataset.transforms.EvalTransform``.
        on_image: called with (name, label (H, W), prediction (H, W)) of each image.
        tta: scales and mirror images to average over; None: the image as it is.
        stop: asked before each image that every process has one of, and answers alike on all of them.

    Raises:
        EvaluationStopped: ``stop`` said so.
    """
    matrix = ConfusionMatrix(config.num_classes)
    training = model.training
    model.eval()
    shared = len(cast(Sized, loader.dataset)) // distributed.world_size()
    for index, batch in enumerate(Progress(loader, title, enabled=distributed.is_main(), leave=False)):
        if stop is not None and index < shared and stop():
            raise EvaluationStopped
        label, image = batch["label"], batch["image"].to(device, non_blocking=True)
        prediction = predict(model, image, tuple(label.shape[-2:]), config.test.upsampling, tta).cpu()
        matrix.update(label, prediction)
        if on_image is not None:
            on_image(batch["name"][0], label[0], prediction[0])
    model.train(training)
    matrix.all_reduce()
    return matrix


def predict(
    model: Segmentor, image: Tensor, size: tuple[int, int], upsampling: str, tta: AtTestTime | None = None
) -> Tensor:
    """Classes (N, H, W) uint8 of images (N, 3, h, w) at ``size`` (H, W), by a network in eval mode.

    Args:
        upsampling: how logits get to ``size``, see ``utils.scoring.upsampling.upsample``.
        tta: scales and mirror images whose probabilities are averaged; None: the image as it is.
    """
    return classes_at(views_of(model, image, tta), size, upsampling)


def views_of(model: Segmentor, image: Tensor, tta: AtTestTime | None = None) -> list[View]:
    """What a network in eval mode says of images (N, 3, h, w), once a scale and mirror image of ``tta``."""
    views = []
    for scale in tta.scales if tta else (1.0,):
        if scale * min(image.shape[-2:]) < 1:
            raise ChoiceError(f"tta.scales: {scale:g} leaves no pixel of an input of {image.shape[3]}x{image.shape[2]}")
        seen = image if scale == 1 else F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        input_size = (seen.shape[-2], seen.shape[-1])
        views.append(View(model.stride_logits(seen), input_size))
        if tta and tta.flip:
            views.append(View(model.stride_logits(seen.flip(3)).flip(3), input_size))
    return views


def scores(matrix: ConfusionMatrix, table: ClassTable, eval_classes: Sequence[str] | None) -> dict[str, float]:
    """In percent: ``miou`` over ``eval_classes`` or all classes, the 19-, 16- and 13-class means on Cityscapes ids,
    pixel accuracy and frequency-weighted IoU."""
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
    """One column a network, named by what its path alone has; of several, the best of each row is starred.

    Args:
        matrices: by the path of each network.
    """
    columns = [{**per_class(m, table, eval_classes), **scores(m, table, eval_classes)} for m in matrices.values()]
    lines: list[str] = []
    width = COLUMN
    if len(matrices) > 1:
        lines, headings = _headings(list(matrices))
        width = max(COLUMN, *(len(heading) + 2 for heading in headings))
        lines.append(" " * NAME_WIDTH + "".join(f"{heading:>{width - 1}} " for heading in headings).rstrip())
    for row in columns[0]:
        values = [column[row] for column in columns]
        best = max((v for v in values if v is not None), default=None) if len(values) > 1 else None
        cells = [f"{'-' if v is None else f'{v:.2f}'}{'*' if v is not None and v == best else ' '}" for v in values]
        lines.append(f"{row:<{NAME_WIDTH}}" + "".join(f"{cell:>{width}}" for cell in cells).rstrip())
    return "\n".join(lines)


def short_names(paths: Sequence[str]) -> list[str]:
    """The fewest last parts of each path that tell them all apart; a file keeps the folder that it lies in."""
    parts = [PurePath(path).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = [str(PurePath(*own[-(count + bool(PurePath(own[-1]).suffix)) :])) for own in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _headings(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lines above a comparison, and the headings of its columns."""
    names = short_names(paths)
    if NAME_WIDTH + len(names) * max(COLUMN, *(len(name) + 2 for name in names)) <= TABLE_WIDTH:
        return [], names
    numbers = [f"({number})" for number in range(1, len(names) + 1)]
    return [f"{number} {name}" for number, name in zip(numbers, names, strict=True)], numbers
