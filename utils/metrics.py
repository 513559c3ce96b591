"""Intersection over union from one integer confusion matrix, the only state."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

NO_CLASS = 255


class ConfusionMatrix:
    """Counts of (label, prediction) pairs, int64 (C, C), rows are labels. Labels outside 0..C-1 are ignored.

    A prediction of 255, which a network never makes but a file may hold, misses its label: ``missed``, int64 (C,).
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
        labels, predictions = labels.reshape(-1).long(), predictions.reshape(-1).long()
        scored = (labels >= 0) & (labels < C)
        labels, predictions = labels[scored], predictions[scored]
        none = predictions == NO_CLASS
        if none.any():
            self.missed += torch.bincount(labels[none], minlength=C).to(self.missed.device)
            labels, predictions = labels[~none], predictions[~none]
        if predictions.numel() and (predictions.min() < 0 or predictions.max() >= C):
            raise ValueError(f"predictions must be 0..{C - 1} or {NO_CLASS}, got {predictions.min()}..{predictions.max()}")
        self.counts += torch.bincount(labels * C + predictions, minlength=C * C).view(C, C).to(self.counts.device)

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
        """Mean IoU, 0..1, over ``classes`` (train ids, default all), absent classes left out; NaN if all are."""
        iou = self.iou() if classes is None else self.iou()[list(classes)]
        return iou.nanmean().item()

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels whose class is right, 0..1."""
        return (self.counts.diagonal().sum() / self.labelled().sum()).item()

    def frequency_weighted_iou(self) -> float:
        """IoU averaged with the labels' class frequencies as weights, 0..1."""
        return (self.labelled() / self.labelled().sum() * self.iou().nan_to_num()).sum().item()
