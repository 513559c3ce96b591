"""A confidence threshold for each class, from running quantiles. This is ours, not the paper's; it follows CBST.

With one threshold for all classes, large classes get nearly all pseudo-labels. CBST (Zou et al., ECCV 2018) labels the
most confident part of the pixels that are predicted as each class. Later work computes the quantile over batches.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

BINS = 1000  # of the confidences 0..1; thresholds are multiples of 1 / BINS


class ClassThresholds(nn.Module):
    """Thresholds t of the classes c of each layer of the pyramid, updated at every call in training mode:

        q_c = ``quantile`` of the confidences in the batch of the entries that are predicted as c
        r_c = momentum * r_c + (1 - momentum) * q_c; q_c the first time; unchanged if no entry is predicted as c
        t_c = min(r_c, maximum)

    Args:
        layers: names of the layers.
        quantile: share of a class's entries that get no label.
        all_reduce: sum over processes; None: one process.

    Attributes:
        running: r, float64 (layers, C), NaN until the class is predicted; part of the state dict.
    """

    running: Tensor

    def __init__(
        self,
        num_classes: int,
        layers: Sequence[str],
        *,
        quantile: float = 0.5,
        maximum: float = 1.0,
        momentum: float = 0.9,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.layers = num_classes, list(layers)
        self.quantile, self.maximum, self.momentum = quantile, maximum, momentum
        self.all_reduce = all_reduce or (lambda tensor: tensor)
        self.register_buffer("running", torch.full((len(self.layers), num_classes), torch.nan, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, layer: str, confidence: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        """Threshold of every entry, in the dtype of ``confidence``; ``label`` int64, ``valid`` bool, all (N, h, w)."""
        running = self.running[self.layers.index(layer)]
        if self.training:
            running.copy_(self._updated(running, confidence, label, valid))
        return running.nan_to_num(self.maximum).clamp_max(self.maximum).to(confidence.dtype)[label]

    def _updated(self, running: Tensor, confidence: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        bins = (confidence * BINS).long().clamp(0, BINS - 1)
        counts = running.new_zeros(self.num_classes * BINS)
        counts.index_add_(0, (label * BINS + bins).flatten(), valid.flatten().to(counts))
        below = self.all_reduce(counts).view(self.num_classes, BINS).cumsum(1)
        total = below[:, -1:]
        batch = (below <= self.quantile * total).sum(1).clamp_max(BINS - 1) / BINS  # lower edge of the quantile's bin
        new = torch.where(running.isnan(), batch, self.momentum * running + (1 - self.momentum) * batch)
        return torch.where(total[:, 0] > 0, new, running)
