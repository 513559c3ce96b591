"""Which classes networks predict on images without labels, how far they agree, and which classes they have lost."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.progress import Progress
from models.segmentor import Segmentor
from utils import distributed
from utils.config.schema import AtTestTime, Config
from utils.scoring.evaluation import predict

COMMON = 0.02  # share of the pixels from which on a class that vanishes is worth a word
LOST = 0.1  # of its share: what a class has left when it counts as lost

Item = TypeVar("Item")


class Predictions(NamedTuple):
    """What several networks predict on the same images."""

    shares: Tensor  # float64 (networks, C), share of each class among the valid pixels
    agreement: Tensor  # float64 (networks, networks), share of the valid pixels that get the same class


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` of the ``items``, in their order and at equal distances, the first one among them."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def is_lost(expected: float, share: float) -> bool:
    """Whether a class whose share should be ``expected``, 0..1, is common and has hardly anything left."""
    return expected >= COMMON and share < LOST * expected


@contextmanager
def evaluation_mode(model: Segmentor) -> Iterator[None]:
    """The network in eval mode, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.inference_mode()
def predictions_on(
    config: Config,
    models: Sequence[Segmentor],
    loader: DataLoader,
    device: torch.device,
    *,
    tta: AtTestTime | None = None,
    title: str | None = None,
) -> Predictions:
    """Class shares of the networks' predictions over ``loader``, and their agreement, over all processes.

    Neither statistics nor the state of the random numbers change.

    Args:
        loader: batches of one image, see ``dataset.loader``; labels are not looked at, padding is left out.
        tta: scales and mirror images to average over; None: the image as it is.
        title: of a progress bar; None: without one.
    """
    count, num_classes = len(models), config.num_classes
    pixels = torch.zeros(count, num_classes, dtype=torch.int64)
    agreeing = torch.zeros(count, count, dtype=torch.int64)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))  # a loader draws a seed for its workers
        for model in models:
            stack.enter_context(evaluation_mode(model))
        for batch in Progress(loader, title or "", enabled=title is not None and distributed.is_main(), leave=False):
            image, valid = batch["image"].to(device, non_blocking=True), batch["valid"]
            size = tuple(valid.shape[-2:])
            maps = [predict(m, image, size, config.test.upsampling, tta).cpu()[valid] for m in models]
            for i, own in enumerate(maps):
                pixels[i] += torch.bincount(own, minlength=num_classes)
                agreeing[i] += torch.stack([(own == other).sum() for other in maps])
    pixels, agreeing = (distributed.all_reduce_sum(counts.to(device)).double().cpu() for counts in (pixels, agreeing))
    total = pixels.sum(1, keepdim=True).clamp_min(1)
    return Predictions(pixels / total, agreeing / total)
