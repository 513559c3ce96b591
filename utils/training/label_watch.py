"""What the pseudo-labels are made of, and a warning when self-training collapses."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LABELLED, SHARE = "labelled", "share"
MAX_SHARE = 0.9  # of one class among the pseudo-labels
MIN_LABELLED = 0.01  # of the pixels or squares
PATIENCE = 200  # steps


def pyramid_shares(
    counts: dict[str, tuple[Tensor, int]], names: Sequence[str], all_reduce: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Scalars ``labelled/LAYER`` and ``share/LAYER/CLASS`` of one global batch.

    Args:
        counts: by layer, the labelled entries of each class (C,) and the number of all entries, of this process.
    """
    shares: dict[str, Tensor] = {}
    for layer, (labels, entries) in counts.items():
        *labels, entries = all_reduce(torch.cat([labels.double(), labels.new_tensor([entries]).double()]))
        labelled = sum(labels)
        shares[f"{LABELLED}/{layer}"] = labelled / entries
        shares |= {f"{SHARE}/{layer}/{name}": n / labelled.clamp_min(1) for name, n in zip(names, labels, strict=True)}
    return shares


class CollapseWatch:
    """Tells once when hardly anything is labelled, or when nearly every label has been one class for many steps."""

    def __init__(self) -> None:
        self.streaks: dict[str, int] = {}
        self.warned = False

    def update(self, values: dict[str, float]) -> str | None:
        """Take one step's logged values; returns the warning, if this step gives rise to one."""
        for name, value in values.items():
            if f"/{SHARE}/" in name:
                self.streaks[name] = self.streaks.get(name, 0) + 1 if value > MAX_SHARE else 0
        stuck = [name for name, streak in self.streaks.items() if streak >= PATIENCE]
        unlabelled = [name for name, value in values.items() if f"/{LABELLED}/" in name and value < MIN_LABELLED]
        if self.warned or not stuck + unlabelled:
            return None
        self.warned = True
        found = [f"{name} has been above {MAX_SHARE:.0%} for {PATIENCE} steps" for name in stuck]
        found += [f"{name} is {values[name]:.2%}" for name in unlabelled]
        return (
            f"WARNING: self-training has collapsed: {'; '.join(found)}. Try: weights that are better on the target (train "
            "source only longer, convert their batch-norm statistics by test_adabn.py), lower train.lr_encoder and "
            "train.lr_decoder, a higher curriculum.lambda_balance against one class, a lower curriculum.conf_threshold "
            "against too few labels"
        )
