"""Class histogram and spatial prior of the source labels: computed and kept in the run folder, or read from a file."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.files import file_version, read_text, write_whole
from dataset.folders import Sample, evenly_spaced
from dataset.labels import id_lookup
from dataset.messages import DataError, Report
from dataset.progress import Progress
from dataset.reading import read_label

CHUNK = 16  # label files that a loader process sums at a time; below 256, because the sums by position are uint8


def labelled_classes(samples: Sequence[Sample], kind: str, num_classes: int, limit: int) -> np.ndarray | None:
    """Which classes occur in at most ``limit`` label files, evenly spread over ``samples``: bool (C,).

    Reading ends when every class was found. None if a file cannot be read: the loader reports or replaces it.
    """
    seen = np.zeros(num_classes, bool)
    for sample in evenly_spaced(samples, limit):
        try:
            label = read_label(sample.label_file, kind)
        except DataError:
            return None
        seen |= np.array(Image.fromarray(label).histogram()[:num_classes]) > 0
        if seen.all():
            break
    return seen


def _add(total: np.ndarray, label: np.ndarray) -> None:
    """Add the pixel counts of a label (H, W) to ``total``: by class for (C,), by class and position for (C, h, w)."""
    picture = Image.fromarray(label)
    if total.ndim == 1:
        total += picture.histogram()[: len(total)]  # less than half the time of numpy's histogram
        return
    small = np.asarray(picture.resize(total.shape[:0:-1], Image.Resampling.NEAREST))
    for c in range(len(total)):
        total[c] += small == c


def _sum_of_some(samples: Sequence[Sample], kind: str, zeros: np.ndarray) -> tuple[Tensor, list[str]]:
    """``zeros`` plus the counts of all readable labels, and the error messages of the others."""
    total, bad = zeros.copy(), []
    for sample in samples:
        try:
            _add(total, read_label(sample.label_file, kind))
        except DataError as error:
            bad.append(str(error))
    return torch.from_numpy(total), bad  # processes pass tensors in shared memory, without a copy


def _sum(
    samples: Sequence[Sample], kind: str, zeros: np.ndarray, title: str, num_workers: int, skip_bad: int
) -> np.ndarray:
    """float64 counts of all labels. Loader processes return sums of ``CHUNK`` files with the dtype of ``zeros``.

    Raises:
        DataError: more than ``skip_bad`` labels are unreadable; it names the first one.
    """
    some = partial(_sum_of_some, kind=kind, zeros=zeros)
    loader = DataLoader(cast(Dataset, samples), CHUNK, collate_fn=some, num_workers=num_workers)
    total = zeros.astype(np.float64)  # exact up to 2**53
    bad: dict[str, None] = {}
    for part, messages in Progress(loader, title, unit=f"{CHUNK} labels"):
        total += part.numpy()
        bad |= dict.fromkeys(messages)
        if len(bad) > skip_bad:
            raise DataError(next(iter(bad)))
    for message in bad:
        print(f"the {title} is without this label: {message}")
    return total


def class_prior(
    samples: Sequence[Sample],
    kind: str,
    num_classes: int,
    *,
    cache_dir: Path | None = None,
    write_cache: bool = True,
    num_workers: int = 0,
    skip_bad: int = 0,
) -> np.ndarray:
    """Share of each class among the labelled pixels at the labels' own size: float64 (C,), sums to 1.

    Args:
        cache_dir: folder with text files of earlier results; None: the prior is always computed.
        write_cache: False: nothing is written to ``cache_dir``, which may belong to somebody else.
        skip_bad: leave out at most this many unreadable labels.

    Raises:
        DataError: no pixel is labelled, or more than ``skip_bad`` labels are unreadable.
    """
    path = cache_dir and cache_dir / f"class_{_digest(samples, kind, num_classes)}.txt"
    if path is None or not path.is_file():
        counts = _sum(samples, kind, np.zeros(num_classes, np.int64), "class histogram", num_workers, skip_bad)
        if not counts.sum():
            raise DataError(f"no labelled pixel in {len(samples)} source labels: is source.dataset={kind} right?")
        prior = counts / counts.sum()
        if path is None or not write_cache:
            return prior
        write_whole(path, lambda stream: np.savetxt(stream, prior))
    return load_class_prior(path, num_classes)


def spatial_prior(
    samples: Sequence[Sample],
    kind: str,
    num_classes: int,
    size: tuple[int, int],
    *,
    sigma: float = 0.0,
    cache_dir: Path | None = None,
    num_workers: int = 0,
    skip_bad: int = 0,
) -> np.ndarray:
    """Share of each class at each position of labels resized to ``size`` (W, H): float32 (C, H, W).

    The sum over the classes is 1, or 0 at a position that is never labelled.

    Args:
        sigma: Gaussian smoothing of the counts, in pixels of ``size``; 0: none.
        cache_dir: folder with .npy files (H, W, C) of earlier results; None: the prior is always computed.
        skip_bad: as in ``class_prior``.
    """
    path = cache_dir and cache_dir / f"spatial_{_digest(samples, kind, num_classes, size, sigma)}.npy"
    if path is None or not path.is_file():
        zeros = np.zeros((num_classes, size[1], size[0]), np.uint8)
        counts = _sum(samples, kind, zeros, "spatial prior", num_workers, skip_bad).astype(np.float32)
        if sigma:
            from scipy.ndimage import gaussian_filter  # here, because the import takes a quarter of a second

            counts = gaussian_filter(counts, sigma=(0, sigma, sigma))
        total = counts.sum(0)
        prior = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
        if path is None:
            return prior
        write_whole(path, lambda stream: np.save(stream, prior.transpose(1, 2, 0)))
    return load_spatial_prior(path, num_classes)


def _digest(samples: Sequence[Sample], kind: str, *settings: object) -> str:
    """Names a cache file by all that its content depends on; a label file that was edited in place is another one."""
    labels = [(str(sample.label), file_version(sample.label_file)) for sample in samples]
    text = repr((kind, id_lookup(kind).tobytes(), *settings, labels))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_class_prior(path: str | Path, num_classes: int) -> np.ndarray:
    """Class frequencies from a text file of C numbers or a .npy file: float64 (C,), normalised to sum 1."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no class prior {path}: set curriculum.class_prior to a file, or to null to compute it")
    if path.suffix == ".npy":
        values = _load_array(path).astype(np.float64).ravel()
    else:
        try:
            values = np.array([float(word) for word in read_text(path).replace(",", " ").split()])
        except ValueError as error:
            raise DataError(f"{path} is not a list of numbers: {error}") from error
    if len(values) != num_classes or not np.isfinite(values).all() or (values < 0).any() or not values.sum():
        raise DataError(
            f"{path} must contain {num_classes} frequencies >= 0, not {len(values)} values: {values[:3]} ..."
        )
    return values / values.sum()


def load_spatial_prior(path: str | Path, num_classes: int, report: Report = print) -> np.ndarray:
    """Class frequencies per position from a .npy file (H, W, C), in the authors' order: float32 (C, H, W).

    If the file has more classes, the first C are used (released code), and ``report`` gets a line about it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no spatial prior {path}: set curriculum.spatial_prior to a file, or to null to compute it")
    prior = _load_array(path)
    channels_first = prior.ndim == 3 and prior.shape[0] == num_classes != prior.shape[2]
    if prior.ndim != 3 or prior.shape[2] < num_classes or channels_first:
        raise DataError(f"{path} has the shape {prior.shape}, expected (H, W, {num_classes})")
    if prior.shape[2] > num_classes:
        report(f"{path} has the shape {prior.shape}: the first {num_classes} classes are used (released code)")
        prior = prior[:, :, :num_classes]
    if not np.isfinite(prior).all() or (prior < 0).any():
        raise DataError(f"{path} contains negative or non-finite frequencies")
    return np.ascontiguousarray(prior.transpose(2, 0, 1), np.float32)


def _load_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise ValueError("no array of numbers")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"cannot read {path} as .npy: {' '.join(str(error).split())}") from error
    return array
