"""What one iteration gave, as numbers for the logs and the watches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from utils.engine.label_watch import LayerShares, layer_shares
from utils.engine.losses import Outcome
from utils.run_folder.records import SHARE


@dataclass
class Iteration:
    """What one iteration gave, all phases together, as numbers on the host."""

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


def numbers(outcomes: Mapping[str, Outcome], class_names: Sequence[str]) -> Iteration:
    """The iteration that the phases' outcomes are, by name of the phase: its one transfer from the device.

    Every transfer waits until the device has done all that it was told; with one at the end it is never idle before.
    """
    tensors = []
    for outcome in outcomes.values():
        own = [] if outcome.labelled is None else [outcome.labelled]
        tensors += [*outcome.losses.values(), *own, *outcome.label_counts.values()]
    values = iter(torch.cat([tensor.double().flatten() for tensor in tensors]).tolist() if tensors else [])
    iteration = Iteration()
    for phase, outcome in outcomes.items():
        iteration.losses |= {f"{phase}/{term}": next(values) for term in outcome.losses}
        if outcome.labelled is not None:
            iteration.labelled.append(next(values))
        for layer, counts in outcome.label_counts.items():
            iteration.shares[f"{phase}/{layer}"] = layer_shares(list(islice(values, len(counts))), class_names)
    return iteration
