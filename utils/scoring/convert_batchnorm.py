"""Replace a network's batch-norm statistics by those of the target images (AdaBN, Li et al. 2016)."""

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.batchnorm import PooledStatistics, reset_bn_statistics
from models.segmentor import Segmentor
from utils import distributed

MODES = ("cumulative", "ema")


@torch.no_grad()
def convert_statistics(model: Segmentor, loaders: Sequence[DataLoader], mode: str, device: torch.device) -> None:
    """Run train-mode forwards over ``loaders`` and keep the statistics; weights do not change.

    Args:
        loaders: finite batches, one loader a domain, taken in turn; two loaders give mixed statistics.
        mode: "cumulative": mean and variance of all values seen, exactly, whatever the batch size; "ema": the
            running average of training, started afresh (released code).
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}")
    training = model.training
    model.train()
    if mode == "ema":
        reset_bn_statistics(model)
        _forward_all(model, loaders, device)
    else:
        with PooledStatistics(model) as statistics:
            _forward_all(model, loaders, device)
        statistics.apply()
    model.train(training)


def _forward_all(model: Segmentor, loaders: Sequence[DataLoader], device: torch.device) -> None:
    """Batches of all loaders, interleaved in proportion to their lengths."""
    turns = sorted((turn / len(loader), number) for number, loader in enumerate(loaders) for turn in range(len(loader)))
    batches = [iter(loader) for loader in loaders]
    for _, number in tqdm(turns, desc="statistics", disable=not distributed.is_main(), leave=False):
        model(next(batches[number])["image"].to(device))
