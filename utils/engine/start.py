"""Checks before the first step, for errors that would otherwise show only at the first validation or save."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from dataset.files import check_writable
from dataset.folders import Sample
from dataset.messages import DataError, Report, UserError, few
from dataset.priors import labelled_classes
from dataset.progress import Progress
from dataset.reading import OTHER_SIZES, read_pair, resized_pairs, stored_size
from models.segmentor import Segmentor
from utils import distributed
from utils.builders.data import Data
from utils.builders.network import check_batch
from utils.config.schema import SCRATCH, ConfigError, Model, Size, Train
from utils.engine.losses import check_parts
from utils.engine.trainer import AUTOCAST
from utils.engine.validation import Validation
from utils.engine.watch import watched_images
from utils.run_folder.checkpoint import CheckpointError

LOOKED_AT = 100  # source labels read at the start of a training; takes a second or two
REPEATS = 5  # of the timed convolution
CHECKPOINTS = 4  # at most: last.pth, last.previous.pth, best.pth, and the one being written


def check_starting_weights(m: Model, self_trained: bool, report: Report) -> None:
    """Report random weights, and refuse them for a method that learns from the network's own predictions.

    Raises:
        ConfigError: the method needs weights and none are set.
    """
    whole = m.whole_network or (m.weights_encoder and m.weights_decoder)
    if self_trained and not whole and m.weights != SCRATCH:
        raise ConfigError(
            "model.weights is not set: PyCDA learns from the network's own predictions, and an untrained network "
            "predicts noise. Set model.weights to a source-only run (or model.weights_encoder and "
            f"model.weights_decoder to a released pair), or model.weights={SCRATCH} to start from random weights anyway"
        )
    if not whole and not m.weights_encoder and m.weights != SCRATCH:
        report(
            "WARNING: training starts from random weights because no model.weights* is set: set model.weights_encoder "
            f"to an ImageNet file, or model.weights={SCRATCH} to confirm random weights"
        )


def report_data(data: Data, anew: bool) -> None:
    """Report the number of images, the classes without labels and, if ``anew``, labels of another size.

    Raises:
        DataError: a label of another size cannot be used.
    """
    if anew:
        _report_resized_labels(data)
    counts = f"{len(data.source)} source, {len(data.target)} target, {len(data.held_out)} held out for model selection"
    data.report(f"images: {counts}")
    if distributed.is_main():
        _report_missing_classes(data)


def _report_resized_labels(data: Data) -> None:
    kind, skip_bad = data.config.source.label_kind, data.config.train.skip_bad_samples > 0
    found = distributed.from_first(
        lambda: [str(sample.label) for sample in resized_pairs(data.source, kind, skip_bad=skip_bad)]
    )
    if found:
        data.report(f"{len(found)} of {len(data.source)} source labels {OTHER_SIZES}: {few(found)}")


def _report_missing_classes(data: Data) -> None:
    """Report the classes that occur in none of the ``LOOKED_AT`` source labels that are read."""
    config = data.config
    seen = labelled_classes(data.source, config.source.label_kind, config.num_classes, LOOKED_AT)
    if seen is not None and not seen.all():
        missing = [name for name, found in zip(config.class_table.names, seen, strict=True) if not found]
        looked_at = f"{min(len(data.source), LOOKED_AT)} of {len(data.source)} source labels"
        data.report(f"classes that do not occur in the {looked_at} that were read: {', '.join(missing)}")


def check_start(data: Data, model: Segmentor, validation: Validation | None) -> None:
    """Check what a training needs only after its first step. Network and random numbers do not change.

    Raises:
        UserError: something will fail later; raised in all processes. The message names the key or the file.
    """
    check_batches(data.config.train, model)
    problems, sizes = _problems(data, model)
    problems = distributed.gather(problems)
    if problems:
        raise problems[0]
    if validation is not None:
        _try_validation(model, validation, extremes(data.held_out, distributed.gather(sizes)))


def check_batches(t: Train, model: Segmentor) -> None:
    """Raises ChoiceError or ConfigError if the network cannot be trained with the configured batch size."""
    processes = distributed.world_size()
    if t.batch_size % processes == 0:  # otherwise the loader raises
        check_parts(t.batch_size // processes, t.iter_size)
        check_batch(model, t.batch_size // processes // t.iter_size, "train.batch_size / train.iter_size")


def warn_of_slow_amp(amp: str, device: torch.device, report: Report) -> None:
    """Warn if this processor emulates half precision, which makes convolutions slower than in float32.

    Args:
        amp: ``train.amp``.
    """
    if amp == "off" or device.type != "cpu":
        return
    ratio = half_precision_time(AUTOCAST[amp])
    if ratio > 1:
        report(
            f"WARNING: on this CPU a convolution takes {ratio:.1f} times as long in {amp} as in float32, forward and "
            "backward: set train.amp=off"
        )


def half_precision_time(dtype: torch.dtype) -> float:
    """Time of a small convolution in ``dtype``, forward and backward on this CPU, divided by its time in float32."""
    images, weights = torch.zeros(4, 64, 24, 24, requires_grad=True), torch.zeros(64, 64, 3, 3, requires_grad=True)
    times: dict[torch.dtype, list[float]] = {torch.float32: [], dtype: []}
    for _ in range(REPEATS):
        for kind, taken in times.items():
            started = time.perf_counter()
            with torch.autocast("cpu", kind, enabled=kind != torch.float32):
                outputs = torch.conv2d(images, weights, padding=1)
            outputs.sum().backward()
            taken.append(time.perf_counter() - started)
    half, single = min(times[dtype]), min(times[torch.float32])  # shortest: least disturbed by other programs
    return half / single


def _problems(data: Data, model: Segmentor) -> tuple[list[UserError], list[tuple[Size, int]]]:
    """Errors in files and folders of this process, and the sizes of its share of the held-out images."""
    t = data.config.train
    try:
        _check_cache(t.cache_dir)
        if distributed.is_main():
            tensors = [*model.state_dict().values(), *(model.parameters() if t.momentum else ())]
            _check_room(data.config.run_folder, sum(tensor.nbytes for tensor in tensors), data.report)
            for sample in watched_images(data) if t.skip_bad_samples == 0 else ():  # otherwise replaced as in training
                stored_size(sample.image, verify=True)
        return [], list(_checked_sizes(data.held_out, data.config.target.label_kind))
    except UserError as error:
        return [error], []


def _check_cache(folder: str | None) -> None:
    try:
        if folder is not None:
            check_writable(folder)
    except OSError as error:
        raise ConfigError(
            f"train.cache_dir: cannot write into {folder}: {error.strerror}. Set it to another folder or null"
        ) from error


def _check_room(folder: Path, need: int, report: Report) -> None:
    """Raises CheckpointError if the disk reports less free space than a checkpoint of ``need`` bytes."""
    free = shutil.disk_usage(folder).free
    room = f"{free / 1e9:.2f} GB are free in {folder}, a checkpoint of this network takes {need / 1e9:.2f} GB"
    if free < need:
        raise CheckpointError(f"{room}: free some space or choose another snapshot_dir")
    if free < CHECKPOINTS * need:
        report(f"WARNING: {room}, and up to {CHECKPOINTS} are kept")


def _checked_sizes(samples: Sequence[Sample], kind: str) -> Iterator[tuple[Size, int]]:
    """Stored size (W, H) and index of each image in this process's share of ``samples``.

    Files are not decoded, but their checksums are compared, and the sizes of image and label.

    Raises:
        DataError: the first pair that cannot be scored.
    """
    share = range(distributed.rank(), len(samples), distributed.world_size())
    for index in Progress(share, "held-out files", enabled=distributed.is_main(), leave=False):
        sample = samples[index]
        size = stored_size(sample.image, verify=True)
        if size != stored_size(sample.label_file, verify=True):
            read_pair(sample, kind)  # compares the sizes after rotation by EXIF
        yield size, index


def extremes(samples: Sequence[Sample], sizes: Sequence[tuple[Size, int]]) -> list[Sample]:
    """The smallest image, and the largest one (most memory) if its size differs; each once for every process."""
    by_area = sorted(sizes, key=lambda found: (found[0][0] * found[0][1], found[1]))
    ends = by_area[:1] if by_area[0][0] == by_area[-1][0] else [by_area[0], by_area[-1]]
    return [samples[index] for _, index in ends for _ in range(distributed.world_size())]


def _try_validation(model: Segmentor, validation: Validation, samples: Sequence[Sample]) -> None:
    try:
        validation.try_out(model, samples)
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError) as error:  # torch's errors for sizes that do not fit together
        reason = " ".join(str(error).split())
        size = validation.config.test.input_size
        raise DataError(
            f"the validation will fail: held-out image {samples[0].image} at test.input_size {size}: {reason}"
        ) from error
