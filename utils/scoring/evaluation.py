"""Scores of a network on a labelled set: one confusion matrix, from which every mean is taken."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset.folders import Sample
from dataset.labels import CITYSCAPES, SCORED_CLASSES, ClassTable
from models.segmentor import Segmentor
from utils import distributed
from utils.build.data import evaluation_loader
from utils.config.schema import AtTestTime, Config
from utils.metrics import ConfusionMatrix, class_map

OnImage = Callable[[str, Tensor, Tensor], None]
NAME_WIDTH, COLUMN = 24, 12  # characters


@torch.inference_mode()
def evaluate(
    model: Segmentor,
    loader: DataLoader,
    num_classes: int,
    device: torch.device,
    *,
    on_image: OnImage | None = None,
    tta: AtTestTime | None = None,
    title: str = "evaluate",
) -> ConfusionMatrix:
    """Confusion matrix over ``loader`` at the labels' own size, summed over processes.

    Logits are upsampled straight to the label size with align_corners=True (released code), then argmax.

    Args:
        loader: batches of one image with its label at full size, see ``dataset.transforms.EvalTransform``.
        on_image: called with (name, label (H, W), prediction (H, W)) of each image.
        tta: scales and mirror images to average over; None: the image as it is.
    """
    matrix = ConfusionMatrix(num_classes)
    training = model.training
    model.eval()
    for batch in tqdm(loader, desc=title, disable=not distributed.is_main(), leave=False):
        label = batch["label"]
        prediction = predict(model, batch["image"].to(device), tuple(label.shape[-2:]), tta or AtTestTime()).cpu()
        matrix.update(label, prediction)
        if on_image is not None:
            on_image(batch["name"][0], label[0], prediction[0])
    model.train(training)
    matrix.all_reduce()
    return matrix


def evaluate_test_split(
    config: Config,
    model: Segmentor,
    samples: Sequence[Sample],
    device: torch.device,
    *,
    on_image: OnImage | None = None,
    title: str = "evaluate",
) -> ConfusionMatrix:
    """``evaluate`` on the ``samples`` of the test split, with the test-time augmentation of ``config``."""
    loader = evaluation_loader(config, samples, config.test)
    return evaluate(model, loader, config.num_classes, device, on_image=on_image, tta=config.tta, title=title)


def predict(model: Segmentor, image: Tensor, size: tuple[int, int], tta: AtTestTime) -> Tensor:
    """Classes (N, H, W) uint8 of images (N, 3, h, w) at ``size`` (H, W)."""
    if tta == AtTestTime():
        return class_map(model(image, size=size, align_corners=True)["logits"])
    total = image.new_zeros(())
    for scale in tta.scales:
        scaled = image if scale == 1 else F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        for flip in (False, True) if tta.flip else (False,):
            logits = model(scaled.flip(3) if flip else scaled, size=size, align_corners=True)["logits"]
            total = total + (logits.flip(3) if flip else logits).softmax(1)
    return class_map(total)


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
    """One column a network; of several, the best of each row is starred. Names are cut from the left to fit."""
    columns = [{**per_class(m, table, eval_classes), **scores(m, table, eval_classes)} for m in matrices.values()]
    lines = []
    if len(matrices) > 1:
        lines.append(" " * NAME_WIDTH + "".join(f"{name[1 - COLUMN :]:>{COLUMN}}" for name in matrices))
    for row in columns[0]:
        values = [column[row] for column in columns]
        best = max((v for v in values if v is not None), default=None) if len(values) > 1 else None
        cells = [f"{'-' if v is None else f'{v:.2f}'}{'*' if v is not None and v == best else ' '}" for v in values]
        lines.append(f"{row:<{NAME_WIDTH}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells).rstrip())
    return "\n".join(lines)
