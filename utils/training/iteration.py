"""What one iteration gave, as numbers for the logs and the watches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from utils.run_folder.records import SHARE
from utils.training.label_watch import LayerShares, layer_shares
from utils.training.losses import Outcome


@dataclass
class Iteration:
    """What one iteration gave, all phases together."""

    losses: dict[str, float] = field(default_factory=dict)  # PHASE/TERM
    shares: dict[str, LayerShares] = field(default_factory=dict)  # PHASE/LAYER, of the pseudo-labels
    labelled: list[float] = field(default_factory=list)  # pixels, of each phase with the data set's own labels
    data_time: float = 0.0  # seconds spent waiting for data
    step_time: float = 0.0  # seconds in all

    def values(self) -> dict[str, float]:
        """Scalars for the logs: the losses, and PHASE/labelled/LAYER."""
        return self.losses | {_within(name, "labelled"): shares.labelled for name, shares in self.shares.items()}

    def histograms(self) -> dict[str, dict[str, float]]:
        """PHASE/share/LAYER: the share of each class among the labels."""
        return {_within(name, SHARE): shares.classes for name, shares in self.shares.items()}


def _within(name: str, what: str) -> str:
    """PHASE/LAYER -> PHASE/WHAT/LAYER"""
    phase, layer = name.split("/")
    return f"{phase}/{what}/{layer}"


def numbers(
    outcome: Outcome, class_names: Sequence[str]
) -> tuple[dict[str, float], dict[str, LayerShares], list[float]]:
    """Losses, shares by layer, and labelled pixels (none or one number), in one transfer from the device."""
    own = [] if outcome.labelled is None else [outcome.labelled]
    tensors = [value.detach().double().view(1) for value in (*outcome.losses.values(), *own)]
    tensors += outcome.label_counts.values()
    values = torch.cat(tensors).tolist() if tensors else []
    names, first = list(outcome.losses), len(outcome.losses) + len(own)
    counts, size = values[first:], len(class_names) + 1
    shares = {
        layer: layer_shares(counts[i * size : (i + 1) * size], class_names)
        for i, layer in enumerate(outcome.label_counts)
    }
    return dict(zip(names, values[: len(names)], strict=True)), shares, values[len(names) : first]
