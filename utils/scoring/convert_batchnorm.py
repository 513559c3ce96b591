"""Replace a network's batch-norm statistics by those of the target images (AdaBN, Li et al. 2016)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch.utils.data import DataLoader

from dataset.progress import Progress
from models.batchnorm import PooledStatistics
from models.segmentor import Segmentor
from utils import distributed

MODES = ("cumulative", "ema")


@torch.no_grad()
def convert_statistics(
    model: Segmentor,
    loaders: Sequence[DataLoader],
    mode: str,
    device: torch.device,
    *,
    score_every: int = 0,
    score: Callable[[int], None] | None = None,
) -> None:
    """Run train-mode forwards over ``loaders`` and keep the statistics; weights do not change.

    Args:
        loaders: finite batches, one loader a domain, taken in turn; two loaders give mixed statistics.
        mode: "cumulative": mean and variance of all values seen, exactly, whatever the batch size (ours); "ema": the
            running average of the training goes on, from where the checkpoint left it (released code).
        score_every: call ``score`` with the number of forwards after every so many, the statistics so far in place.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}")
    training = model.training
    model.train()
    with PooledStatistics(model) if mode == "cumulative" else nullcontext() as pooled:
        for done in _forwards(model, loaders, device):
            if score and score_every and done % score_every == 0:
                if pooled:
                    pooled.apply()
                score(done)
    if pooled:
        pooled.apply()
    model.train(training)


def _forwards(model: Segmentor, loaders: Sequence[DataLoader], device: torch.device) -> Iterator[int]:
    """Batches of all loaders, interleaved in proportion to their lengths; gives the number of forwards done."""
    turns = sorted((turn / len(loader), number) for number, loader in enumerate(loaders) for turn in range(len(loader)))
    batches = [iter(loader) for loader in loaders]
    bar = Progress(turns, "statistics", enabled=distributed.is_main(), leave=False)
    for done, (_, number) in enumerate(bar, start=1):
        model(next(batches[number])["image"].to(device, non_blocking=True))
        yield done
