"""Intersection over union and other scores from one integer confusion matrix."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

NO_CLASS = 255
PIXELS = 2**16  # at a time, so that they fit in a core's cache
LOGITS = 2**19  # at a time for each core, all classes together


def class_map(logits: Tensor) -> Tensor:
    """argmax over the classes of (N, C, H, W) logits, C <= 255, the first one of equals: uint8 (N, H, W).

    ``argmax(1)`` takes twenty times as long on a CPU. Max-pooling over all classes, with the pixels of a row as
    channels, finds the same index and reads the logits once. It is fastest if memory holds all classes of a row
    together; otherwise a few rows are copied at a time.
    """
    if logits.device.type != "cpu":
        return logits.argmax(1).to(torch.uint8)
    N, C, H, W = logits.shape
    places = torch.empty(H, N, W, dtype=torch.uint8)
    count = max(1, LOGITS * torch.get_num_threads() // (N * C * W))
    for rows, place in zip(logits.detach().permute(2, 0, 1, 3).split(count), places.split(count), strict=True):
        lines = rows.contiguous().flatten(0, 1).transpose(1, 2).unsqueeze(2)  # (rows * N, W, 1, C), channels last
        place.copy_(F.max_pool2d(lines, (1, C), return_indices=True)[1].view(place.shape))
    return places.transpose(0, 1)


def _bounded(values: Tensor, highest: int) -> Tensor:
    """``values`` clamped to -1..``highest``, plus 1, as int32."""
    limits = torch.iinfo(values.dtype)
    return values.clamp(max(-1, limits.min), min(highest, limits.max)).int().add_(1)


class ConfusionMatrix:
    """Counts of (label, prediction) pairs, int64 (C, C), rows are labels. Labels outside 0..C-1 are ignored.

    A prediction of 255 counts as wrong: ``missed``, int64 (C,), by label. It occurs in files, never from a network.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.missed = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, labels: Tensor, predictions: Tensor) -> None:
        """Add label maps and class predictions of the same shape, any integer type.

        Raises:
            ValueError: the shapes differ, or a prediction at a labelled pixel is neither a class nor 255.
        """
        if labels.shape != predictions.shape:
            raise ValueError(f"labels {tuple(labels.shape)} and predictions {tuple(predictions.shape)} differ in shape")
        C = self.num_classes
        columns = NO_CLASS + 3  # one for each of 0..255, one for lower and one for higher values
        table = torch.zeros((C + 2) * columns, dtype=torch.int64, device=labels.device)
        parts = labels.reshape(-1).split(PIXELS), predictions.reshape(-1).split(PIXELS)
        for label, prediction in zip(*parts, strict=True):
            pairs = _bounded(label, C).mul_(columns).add_(_bounded(prediction, NO_CLASS + 1))
            table += torch.bincount(pairs, minlength=len(table))
        table = table.view(C + 2, columns)[1 : C + 1].to(self.counts.device)
        counts, missed = table[:, 1 : C + 1], table[:, NO_CLASS + 1]
        if table.sum() != counts.sum() + missed.sum():
            raise ValueError(
                f"predictions must be 0..{C - 1} or {NO_CLASS}, got {predictions.min()}..{predictions.max()}"
            )
        self.counts += counts
        self.missed += missed

    def all_reduce(self) -> None:
        """Add up the counts of all processes, in place; a no-op in one process."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            both = torch.cat([self.counts, self.missed[:, None]], dim=1).to(device)
            dist.all_reduce(both)
            self.counts, self.missed = both[:, :-1].cpu(), both[:, -1].cpu()

    def labelled(self) -> Tensor:
        """(C,) float64 labelled pixels of each class."""
        return (self.counts.sum(1) + self.missed).double()

    def iou(self) -> Tensor:
        """(C,) float64 intersection over union, 0..1; NaN for a class that is neither labelled nor predicted."""
        counts = self.counts.double()
        intersection = counts.diagonal()
        return intersection / (counts.sum(0) + self.labelled() - intersection)

    def miou(self, classes: Sequence[int] | None = None) -> float:
        """Mean IoU, 0..1, over ``classes`` (train ids, default all) without absent classes; NaN if all are absent."""
        iou = self.iou() if classes is None else self.iou()[list(classes)]
        return iou.nanmean().item()

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels with the correct prediction, 0..1."""
        return (self.counts.diagonal().sum() / self.labelled().sum()).item()

    def frequency_weighted_iou(self) -> float:
        """IoU averaged with the labels' class frequencies as weights, 0..1."""
        return (self.labelled() / self.labelled().sum() * self.iou().nan_to_num()).sum().item()
