"""Samples as tensors, and their order: functions of (seed, position), the same for any number of processes."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import KW_ONLY, dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dataset.folders import Sample
from dataset.labels import IGNORE
from dataset.messages import ChoiceError, DataError
from dataset.program import SCHEDULERS, loader_processes
from dataset.reading import read_pair
from dataset.transforms import Picture, Transform, size_of

Key = tuple[int, int]  # (index of the sample, position in the stream)


class MapDataset(Dataset, Sized):
    """A data set with a length."""


@dataclass(eq=False)
class SegmentationDataset(MapDataset):
    """Samples as tensors. Augmentation is a function of only (seed, domain, position in the stream).

    Attributes:
        kind: label kind, see ``dataset.labels``.
        domain: number that makes the random numbers of source and target differ.
        skip_bad: replace an unreadable sample by the next readable one and report it under ``skipped``, for at most
            this many in a row. 0: an unreadable sample is an error.
        read: reads image and label: ``read_pair``, or a ``dataset.cache.PictureCache``.
    """

    samples: Sequence[Sample]
    kind: str
    transform: Transform
    _: KW_ONLY
    seed: int
    domain: int
    skip_bad: int = 0
    read: Callable[[Sample, str], tuple[Picture, np.ndarray | None]] = read_pair

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """``key`` is an index, or (index, position in the stream).

        Returns:
            image float32 (3, H, W) normalised; label (H, W), int64 in training and uint8 in evaluation, 255 without
            label; valid bool (H, W), False where padded; name; skipped, the error message of the unreadable sample that
            this one replaces, or "". It reports only the sample ``index``, not further unreadable ones behind it.
        """
        index, position = key if isinstance(key, tuple) else (key, key)
        skipped = ""
        for further in range(self.skip_bad):
            try:
                return self._read((index + further) % len(self), position) | {"skipped": skipped}
            except DataError as error:
                skipped = skipped or str(error)
        return self._read((index + self.skip_bad) % len(self), position) | {"skipped": skipped}

    def _read(self, index: int, position: int) -> dict[str, Any]:
        sample = self.samples[index]
        image, label = self.read(sample, self.kind)
        if label is None:
            label = np.full(size_of(image)[::-1], IGNORE, np.uint8)
        rng = np.random.default_rng([self.seed, self.domain, position])
        tensors = self.transform(image, label, rng)
        return dict(zip(("image", "label", "valid"), tensors, strict=True)) | {"name": sample.name}


def _stream_keys(positions: range, num_samples: int, seed: int) -> list[Key]:
    epochs = {p // num_samples for p in positions}
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(num_samples) for epoch in epochs}
    return [(int(orders[p // num_samples][p % num_samples]), p) for p in positions]


@dataclass(eq=False)
class EndlessBatchSampler(Sampler[list[Key]]):
    """Endless batches of one rank: rank r gets a contiguous slice of every global batch.

    Attributes:
        batch_size: images of the global batch.
        start_step: number of the first batch, to resume a run.
    """

    num_samples: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    start_step: int = 0

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            text = f"a batch of {self.batch_size} does not divide by {self.world_size} processes"
            raise ChoiceError(f"{text}: change train.batch_size or NPROC")

    def __iter__(self) -> Iterator[list[Key]]:
        local = self.batch_size // self.world_size
        for step in count(self.start_step):
            first = step * self.batch_size + self.rank * local
            yield _stream_keys(range(first, first + local), self.num_samples, self.seed)


def epoch_batches(
    num_samples: int, batch_size: int, epochs: int, seed: int, rank: int = 0, world_size: int = 1
) -> list[list[Key]]:
    """One rank's share of batches that contain every sample once an epoch. Global batch sizes differ by at most 1."""
    per_epoch = math.ceil(num_samples / batch_size)
    if num_samples // per_epoch < world_size:
        raise ChoiceError(
            f"batches of {batch_size} out of {num_samples} images leave one of {world_size} processes without images: "
            "change the batch size or NPROC"
        )
    batches = []
    for epoch in range(epochs):
        keys = _stream_keys(range(epoch * num_samples, (epoch + 1) * num_samples), num_samples, seed)
        for batch in np.array_split(np.array(keys), per_epoch):
            batches.append([(int(i), int(p)) for i, p in np.array_split(batch, world_size)[rank]])
    return batches


def _prepare_worker(worker: int) -> None:
    torch.set_num_threads(1)  # the cores belong to the training step
    # A terminal or a scheduler signals all processes. Only the main process reacts and ends its workers.
    for number in {signal.SIGINT, *SCHEDULERS} - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    """End at a SIGTERM of the main process, which waits at its exit for its workers. Ignore SIGTERM of all others."""
    main = multiprocessing.parent_process()  # not os.getppid(), which may be the server that forks all workers
    assert main is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:
        pass
    os._exit(0)


def _batch(samples: list[dict[str, Any]]) -> Any:
    """Collate ``samples``. Raises DataError if they differ in size."""
    sizes = [(sample["image"].shape[-1], sample["image"].shape[-2]) for sample in samples]
    for sample, size in zip(samples, sizes, strict=True):
        if size != sizes[0]:
            raise DataError(different_sizes(samples[0]["name"], sizes[0], sample["name"], size))
    return default_collate(samples)


def different_sizes(name: str, size: tuple[int, int], other: str, other_size: tuple[int, int]) -> str:
    """Message about two images whose different sizes (W, H) do not fit into one batch."""
    sizes = f"{name} is {size[0]}x{size[1]}, {other} is {other_size[0]}x{other_size[1]}"
    return f"images of one batch must have one size (W x H), but {sizes}: set input_size or crop_size"


def _options(num_workers: int) -> dict:
    processes = loader_processes(num_workers)
    return {
        "num_workers": processes,
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": processes > 0,
        "worker_init_fn": _prepare_worker,
    }


def batch_loader(dataset: MapDataset, batches: EndlessBatchSampler | list[list[Key]], num_workers: int) -> DataLoader:
    """Loader of this rank; each entry of ``batches`` names the images of one batch."""
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_batch, **_options(num_workers))


def eval_loader(
    dataset: MapDataset,
    *,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
    batch: Callable[[list[Any]], Any] = default_collate,
) -> DataLoader:
    """Single images in order. This rank gets every ``world_size``-th image, so no image is read twice.

    Args:
        batch: makes a batch from a list of one item.
    """
    own = range(rank, len(dataset), world_size)
    return DataLoader(dataset, sampler=own, collate_fn=batch, **_options(num_workers))
