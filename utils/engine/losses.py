"""Losses of the phases: source labels, the pyramid on the target, or none (batch-norm statistics only).

Each loss function gets ``forward`` (the network, under autocast if that is enabled) and a batch.
"""

from collections.abc import Callable, Mapping
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.labels import IGNORE
from dataset.messages import ChoiceError
from models.batchnorm import frozen_statistics
from utils.distributed import all_reduce_sum, world_size
from utils.pycda.curriculum import PseudoLabels, PyramidCurriculum, at_least_float32


class Batch(TypedDict):
    """A batch of a loader, see ``dataset.loader.SegmentationDataset``."""

    image: Tensor  # float32 (N, 3, H, W), normalised
    label: Tensor  # int64 (N, H, W)
    valid: Tensor  # bool (N, H, W), False where padded
    name: list[str]
    skipped: list[str]


def on_device(batch: Batch, device: torch.device) -> Batch:
    """``batch`` with its tensors on ``device``; the copies may still be running."""
    return {
        **batch,
        "image": batch["image"].to(device, non_blocking=True),
        "label": batch["label"].to(device, non_blocking=True),
        "valid": batch["valid"].to(device, non_blocking=True),
    }


Forward = Callable[..., dict[str, Tensor]]
# Returns named scalars and class histograms (C,) for the log. ``total`` is minimised and must be finite.
LossFunction = Callable[[Forward, Batch], dict[str, Tensor]]


def cross_entropy(logits: Tensor, label: Tensor, labelled: Tensor) -> Tensor:
    """Mean over the labelled pixels of the global batch, in float32 or float64; 0 if nothing is labelled.

    Args:
        labelled: number of labelled pixels of the global batch, scalar.

    The released code averages the means of the GPUs instead. The weight of a pixel then depends on the number of
    labelled pixels on its GPU. With one GPU both are equal.
    """
    total = F.cross_entropy(at_least_float32(logits), label, ignore_index=IGNORE, reduction="sum")
    return all_reduce_sum(total) / labelled.clamp_min(1)


def supervised(lambda_seg: float, lambda_source: float = 1.0) -> LossFunction:
    """Source phase: ``lambda_source * (CE(main) + lambda_seg * CE(aux))``, and the share of labelled pixels."""

    def losses(forward: Forward, batch: Batch) -> dict[str, Tensor]:
        outputs, label = forward(batch["image"]), batch["label"]
        labelled = all_reduce_sum((label != IGNORE).sum())
        terms = {"main": cross_entropy(outputs["logits"], label, labelled)}
        total = terms["main"]
        if "aux" in outputs:
            terms["aux"] = cross_entropy(outputs["aux"], label, labelled)
            total = total + lambda_seg * terms["aux"]
        return {"total": lambda_source * total, **terms, "labelled": labelled / (label.numel() * world_size())}

    return losses


def self_training(curriculum: PyramidCurriculum) -> LossFunction:
    """Target phase: the pyramid curriculum on the network's own train-mode predictions, and its label shares."""

    def losses(forward: Forward, batch: Batch) -> dict[str, Tensor]:
        logits = forward(batch["image"], aux=False)["logits"]
        terms, layers = curriculum.losses_and_labels(logits, batch["valid"])
        return terms | label_shares(layers, logits.shape[1])

    return losses


@torch.no_grad()
def label_shares(layers: Mapping[str, PseudoLabels], num_classes: int) -> dict[str, Tensor]:
    """Shares of the pyramid's labels in the global batch, float64.

    Returns:
        for each layer ``labelled/LAYER``, the share of its pixels or squares that have a label, and ``share/LAYER``
        (C,), the share of each class among these labels.
    """
    shares = {}
    for name, (_, label, mask) in layers.items():
        labelled = mask.flatten().double()
        per_class = labelled.new_zeros(num_classes).index_add_(0, label.flatten(), labelled)
        counts = all_reduce_sum(torch.cat([per_class, labelled.new_full((1,), mask.numel())]))
        total = counts[:-1].sum()
        shares[f"labelled/{name}"] = total / counts[-1]
        shares[f"share/{name}"] = counts[:-1] / total.clamp_min(1)
    return shares


@torch.no_grad()
def statistics_only(forward: Forward, batch: Batch) -> dict[str, Tensor]:
    """AdaBN's target phase: a train-mode forward that updates only the batch-norm statistics."""
    forward(batch["image"], aux=False)
    return {}


def check_parts(images: int, parts: int) -> None:
    """Raises ChoiceError if ``parts`` does not divide the number of ``images`` of a process."""
    if images % parts:
        raise ChoiceError(
            f"the {images} images of a process are not divisible by train.iter_size={parts}: change one of them"
        )


class PartwiseForward:
    """Forward of a batch in parts that stores only the outputs; ``backward`` runs every part a second time.

    The curriculum's means and class histograms are over the whole batch. The mean of the parts' gradients would
    therefore be another method. Here the loss gets the outputs of all parts at once, and its gradient goes back through
    one part after the other. Only batch norm differs from a forward of the whole batch: it normalises each part alone.

    Args:
        forward: images -> named outputs of the same batch size.
        parts: number of parts, at most the batch size.
    """

    def __init__(self, model: nn.Module, forward: Callable[..., dict[str, Tensor]], parts: int) -> None:
        self.model, self.forward, self.parts = model, forward, parts

    def __call__(self, images: Tensor, **options: bool) -> dict[str, Tensor]:
        check_parts(len(images), self.parts)
        self.chunks, self.options = images.chunk(self.parts), options
        self.seeds = torch.randint(2**62, (self.parts,)).tolist()  # dropout must be the same in both forwards
        with torch.no_grad():
            outputs = [self._part(index) for index in range(self.parts)]
        self.outputs = {name: torch.cat([part[name] for part in outputs]) for name in outputs[0]}
        if torch.is_grad_enabled():
            self.outputs = {name: output.requires_grad_() for name, output in self.outputs.items()}
        return self.outputs

    def _part(self, index: int) -> dict[str, Tensor]:
        torch.manual_seed(self.seeds[index])
        return self.forward(self.chunks[index], **self.options)

    def backward(self) -> None:
        """Accumulate the parameters' gradients from the gradients of the outputs."""
        reached = {name: output.grad for name, output in self.outputs.items() if output.grad is not None}
        grads = {name: grad.chunk(self.parts) for name, grad in reached.items()}
        with frozen_statistics(self.model):  # the statistics already contain these batches
            for index in range(self.parts):
                outputs = self._part(index)
                torch.autograd.backward([outputs[name] for name in grads], [grad[index] for grad in grads.values()])
