"""What one forward pass is trained on: labels of the source, the pyramid on the target, or nothing but statistics.

Each function takes ``forward`` (the network, under autocast where that is on) and a batch.
"""

from collections.abc import Callable
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.labels import IGNORE
from utils.distributed import all_reduce_sum
from utils.engine.label_watch import count_labels
from utils.pycda.curriculum import PyramidCurriculum, at_least_float32


class Batch(TypedDict):
    """What a loader gives, see ``dataset.loader.SegmentationDataset``."""

    image: Tensor  # float32 (N, 3, H, W), normalised
    label: Tensor  # int64 (N, H, W)
    valid: Tensor  # bool (N, H, W), False where padded
    name: list[str]
    skipped: list[str]


def on_device(batch: Batch, device: torch.device) -> Batch:
    """``batch`` with its tensors on ``device``; the copies may still be under way."""
    return {
        **batch,
        "image": batch["image"].to(device, non_blocking=True),
        "label": batch["label"].to(device, non_blocking=True),
        "valid": batch["valid"].to(device, non_blocking=True),
    }


class Outcome(NamedTuple):
    """Of one forward pass."""

    losses: dict[str, Tensor]  # scalars by name; ``total`` is what is minimised
    label_counts: dict[str, Tensor] = {}  # by layer of the pyramid, of the global batch, see ``count_labels``
    labelled: Tensor | None = None  # labelled pixels of the global batch, scalar, where the labels are the data set's


Forward = Callable[..., dict[str, Tensor]]
LossFunction = Callable[[Forward, Batch], Outcome]


def labelled_pixels(label: Tensor) -> Tensor:
    """Number of labelled pixels of the global batch, scalar."""
    return all_reduce_sum((label != IGNORE).sum())


def cross_entropy(logits: Tensor, label: Tensor, labelled: Tensor) -> Tensor:
    """Mean over the labelled pixels of the global batch, in float32 or float64; 0 where nothing is labelled.

    Args:
        labelled: see ``labelled_pixels``.

    The released code averages the means of the single GPUs instead, which weights pixels by how many others of their
    GPU are labelled; with one GPU the two are the same.
    """
    total = F.cross_entropy(at_least_float32(logits), label, ignore_index=IGNORE, reduction="sum")
    return all_reduce_sum(total) / labelled.clamp_min(1)


def supervised(lambda_seg: float, lambda_source: float = 1.0) -> LossFunction:
    """Source phase: ``lambda_source * (CE(main) + lambda_seg * CE(aux))``."""

    def losses(forward: Forward, batch: Batch) -> Outcome:
        outputs = forward(batch["image"])
        labelled = labelled_pixels(batch["label"])
        terms = {"main": cross_entropy(outputs["logits"], batch["label"], labelled)}
        total = terms["main"]
        if "aux" in outputs:
            terms["aux"] = cross_entropy(outputs["aux"], batch["label"], labelled)
            total = total + lambda_seg * terms["aux"]
        return Outcome({"total": lambda_source * total, **terms}, labelled=labelled)

    return losses


def self_training(curriculum: PyramidCurriculum) -> LossFunction:
    """Target phase: the pyramid curriculum on the network's own train-mode predictions, and what its labels are."""

    def losses(forward: Forward, batch: Batch) -> Outcome:
        logits = forward(batch["image"], aux=False)["logits"]
        terms, layers = curriculum.losses_and_labels(logits, batch["valid"])
        counts = count_labels(layers, logits.shape[1])
        return Outcome(terms, {layer: all_reduce_sum(count) for layer, count in counts.items()})

    return losses


@torch.no_grad()
def statistics_only(forward: Forward, batch: Batch) -> Outcome:
    """AdaBN's target phase: a train-mode forward that moves the batch-norm statistics and nothing else."""
    forward(batch["image"], aux=False)
    return Outcome({})
