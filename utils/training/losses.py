"""The losses of one forward pass: supervised on the source, pyramid curriculum on the target, or statistics only.

Each function takes ``forward`` (the network, under autocast where that is on) and a batch, and returns named scalars
among which ``total`` is what is minimised.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.labels import IGNORE
from utils.curriculum import PyramidCurriculum
from utils.distributed import all_reduce_sum
from utils.training.label_watch import pyramid_shares

Batch = dict[str, Any]
Forward = Callable[..., dict[str, Tensor]]
Losses = Callable[[Forward, Batch], dict[str, Tensor]]


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over the labelled pixels of the global batch, in float32; 0 where nothing is labelled.

    The released code averages the means of the single GPUs instead, which weights pixels by how many others of their
    GPU are labelled; with one GPU the two are the same.
    """
    total = F.cross_entropy(logits.float(), label, ignore_index=IGNORE, reduction="sum")
    return all_reduce_sum(total) / all_reduce_sum((label != IGNORE).sum()).clamp_min(1)


def supervised(lambda_seg: float) -> Losses:
    """Source step: ``CE(main) + lambda_seg * CE(aux)``."""

    def losses(forward: Forward, batch: Batch) -> dict[str, Tensor]:
        outputs = forward(batch["image"])
        terms = {"main": cross_entropy(outputs["logits"], batch["label"])}
        total = terms["main"]
        if "aux" in outputs:
            terms["aux"] = cross_entropy(outputs["aux"], batch["label"])
            total = total + lambda_seg * terms["aux"]
        return {"total": total, **terms}

    return losses


def self_training(curriculum: PyramidCurriculum, class_names: Sequence[str]) -> Losses:
    """Target step: the pyramid curriculum on the network's own train-mode predictions, and what its labels are."""

    def losses(forward: Forward, batch: Batch) -> dict[str, Tensor]:
        terms = curriculum(forward(batch["image"], aux=False)["logits"], batch["valid"])
        return terms | pyramid_shares(curriculum.label_counts, class_names, all_reduce_sum)

    return losses


@torch.no_grad()
def statistics_only(forward: Forward, batch: Batch) -> dict[str, Tensor]:
    """AdaBN's target step: a train-mode forward that moves the batch-norm statistics and nothing else."""
    forward(batch["image"], aux=False)
    return {}
