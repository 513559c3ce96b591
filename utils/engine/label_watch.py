"""What the labels and pseudo-labels are made of, and warnings: nothing is labelled, self-training collapses or loses
a class."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from utils.pycda.curriculum import PseudoLabels
from utils.scoring.without_labels import is_lost

MAX_SHARE = 0.9  # of one class among the pseudo-labels
MIN_LABELLED = 0.01  # of the pixels or squares
PATIENCE, SHORTEST = 200, 5  # steps at most and at least
PART_OF_A_RUN = 10  # a short run is watched for this part of its steps


def patience(num_steps: int) -> int:
    """Steps after which a run of ``num_steps`` is warned of what does not change."""
    return max(SHORTEST, min(PATIENCE, num_steps // PART_OF_A_RUN))


class LayerShares(NamedTuple):
    """What one layer of the pyramid labels."""

    labelled: float  # share of its pixels or squares
    classes: dict[str, float]  # share of each class, by name, among the labels


def count_labels(layers: dict[str, PseudoLabels], num_classes: int) -> dict[str, Tensor]:
    """By layer, (C + 1,) float64: labelled entries of each class, then the number of all entries, of this process."""
    counts = {}
    for name, (_, label, mask) in layers.items():
        labelled = mask.flatten().double()
        per_class = labelled.new_zeros(num_classes).index_add_(0, label.flatten(), labelled)
        counts[name] = torch.cat([per_class, labelled.new_full((1,), mask.numel())])
    return counts


def layer_shares(counts: Sequence[float], names: Sequence[str]) -> LayerShares:
    """Shares from one layer's (C + 1,) counts, see ``count_labels``; ``names`` are the classes."""
    *per_class, entries = counts
    labelled = sum(per_class)
    classes = {name: n / max(labelled, 1) for name, n in zip(names, per_class, strict=True)}
    return LayerShares(labelled / entries, classes)


class CollapseWatch:
    """Tells once when hardly anything is labelled, or when nearly every label has been one class for many steps."""

    def __init__(self, patience: int = PATIENCE) -> None:
        self.patience = patience
        self.streaks: dict[str, int] = {}
        self.warned = False

    def update(self, shares: dict[str, LayerShares]) -> str | None:
        """Take one step's shares by layer; returns the warning, if this step gives rise to one."""
        for layer, (_, classes) in shares.items():
            for name, share in classes.items():
                key = f"{layer}: {name}"
                self.streaks[key] = self.streaks.get(key, 0) + 1 if share > MAX_SHARE else 0
        stuck = [name for name, streak in self.streaks.items() if streak >= self.patience]
        unlabelled = {layer: labelled for layer, (labelled, _) in shares.items() if labelled < MIN_LABELLED}
        if self.warned or not (stuck or unlabelled):
            return None
        self.warned = True
        found = [f"{name} has been above {MAX_SHARE:.0%} of the labels for {self.patience} steps" for name in stuck]
        found += [f"of {layer} {labelled:.2%} is labelled" for layer, labelled in unlabelled.items()]
        return (
            f"WARNING: self-training has collapsed: {'; '.join(found)}. Try: weights that are better on the target "
            "(train source only longer, convert their batch-norm statistics by test_adabn.py), lower train.lr_encoder "
            "and train.lr_decoder, a higher curriculum.lambda_balance against one class, a lower "
            "curriculum.conf_threshold against too few labels"
        )


class VanishingWatch:
    """Tells once of each class that was common and leaves the labels of all layers.

    A class is as common as ``expected`` says, or as it is in the labels of the first ``SHORTEST`` steps.

    Args:
        expected: gives each class's share, 0..1, by name; asked when there are labels for the first time.
        patience: steps over which a share is averaged, since a batch has few images.
    """

    def __init__(self, expected: Callable[[], dict[str, float]], patience: int = PATIENCE) -> None:
        self.find_expected, self.patience = expected, patience
        self.expected: dict[str, float] = {}
        self.means: dict[str, float] | None = None  # running means of the classes that are still there
        self.first: list[dict[str, float]] = []  # by class, the shares of the first steps

    def update(self, shares: dict[str, LayerShares]) -> str | None:
        """Take one step's shares by layer; returns the warning, if this step gives rise to one."""
        if not shares:
            return None
        if self.means is None:
            self.expected = self.find_expected()
            self.means = dict(self.expected)
        step = {name: max(layer.classes[name] for layer in shares.values()) for name in self.means}
        for name, mean in self.means.items():
            self.means[name] = mean + (step[name] - mean) / self.patience
        if len(self.first) < SHORTEST:
            self._take_first(step, self.means)
        lost = {name: mean for name, mean in self.means.items() if is_lost(self.expected[name], mean)}
        for name in lost:
            del self.means[name]
        if not lost:
            return None
        found = "; ".join(
            f"{name}: {self.expected[name]:.1%} of the source labels or of the first pseudo-labels, now {mean:.1%}"
            for name, mean in lost.items()
        )
        return (
            f"WARNING: the pseudo-labels are losing classes ({found}). Unless the target has hardly any of them, the "
            "network is unlearning them: look at `sh run.sh compare CONFIG RUN...`, and try lower train.lr_encoder and "
            "train.lr_decoder, fewer train.num_steps or a lower curriculum.conf_threshold"
        )

    def _take_first(self, step: dict[str, float], means: dict[str, float]) -> None:
        """Keep a first step's shares; the last of them raises what is expected to their mean."""
        self.first.append(step)
        if len(self.first) < SHORTEST:
            return
        for name in means:
            share = sum(shares[name] for shares in self.first) / SHORTEST
            if share > self.expected[name]:
                self.expected[name] = means[name] = share


class UnlabelledWatch:
    """Tells once when no pixel of the source batches has been labelled for ``patience`` steps."""

    def __init__(self, patience: int) -> None:
        self.patience, self.streak = patience, 0

    def update(self, labelled: float) -> str | None:
        """Take one step's number of labelled pixels; returns the warning, if this step gives rise to one."""
        self.streak = 0 if labelled else self.streak + 1
        if self.streak != self.patience:
            return None
        return (
            f"WARNING: no pixel of the source batches of {self.patience} steps is labelled, so nothing is learnt from "
            "them: `sh run.sh check CONFIG` counts the labels; a larger source.crop_size sees more of each image"
        )


class Watches:
    """All watches of a run.

    Args:
        num_steps: of the whole run.
        remaining: steps from here on.
        expected: see ``VanishingWatch``; None: a class that vanishes is not noticed.
    """

    def __init__(self, num_steps: int, remaining: int, expected: Callable[[], dict[str, float]] | None) -> None:
        self.of_shares: list[CollapseWatch | VanishingWatch] = [CollapseWatch(patience(num_steps))]
        if expected:
            self.of_shares.append(VanishingWatch(expected, patience(num_steps)))
        self.unlabelled = UnlabelledWatch(min(PATIENCE, max(remaining, 1)))

    def update(self, shares: dict[str, LayerShares], labelled: Sequence[float]) -> list[str]:
        """Take one step's shares by layer and labelled pixels of each phase; returns the warnings it gives rise to."""
        warnings = [watch.update(shares) for watch in self.of_shares]
        warnings += [self.unlabelled.update(count) for count in labelled]
        return [warning for warning in warnings if warning]
