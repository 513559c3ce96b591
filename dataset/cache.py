"""Cache of decoded training images: later epochs map ``.npy`` files into memory instead of decoding PNGs."""

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.files import file_version, write_whole
from dataset.folders import Sample
from dataset.labels import id_lookup, known_ids
from dataset.reading import read_pair
from dataset.transforms import NEAREST, resized_window

DECODING = 2  # version of the pixels that ``read_pair`` gives; increase it when they change: old files are then unused


class PictureCache:
    """``read_pair`` with a cache. It returns the same pixels, resized to ``size`` if one is given.

    The name of a cache file is a hash of everything that its content depends on: a changed source file is decoded
    again. A cache file holds image and label of a sample: 4 bytes a pixel, 3 without label.

    Args:
        folder: folder of the cache files; made if missing. Runs and processes may share it.
        size: (W, H) to which every image is resized before the random augmentation; None: its own size.
    """

    def __init__(self, folder: str | Path, size: tuple[int, int] | None) -> None:
        self.folder, self.size = Path(folder), size

    def __call__(self, sample: Sample, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
        """RGB uint8 (H, W, 3) and train ids uint8 (H, W) or None; memory maps if they are in the cache.

        Raises:
            DataError: as ``read_pair``.
            OSError: the cache cannot be written.
        """
        path = self._path(sample, kind)
        record = _load(path)
        if record is None:
            record = self._decode(sample, kind)
            try:
                write_whole(path, lambda stream: np.save(stream, record))
            except OSError as error:
                advice = "Make room, or set train.cache_dir to another folder or null"
                raise OSError(f"cannot write {path}: {error}. {advice}") from error
        return record["image"], None if sample.label is None else record["label"]

    def _path(self, sample: Sample, kind: str) -> Path:
        paths = [path for path in (sample.image, sample.label) if path is not None]
        files = [(os.path.abspath(path), file_version(path)) for path in paths]
        digest = hashlib.sha256(repr((DECODING, files, self.size)).encode())
        digest.update(id_lookup(kind).tobytes() + known_ids(kind).tobytes())
        return self.folder / f"{digest.hexdigest()[:24]}.npy"

    def _decode(self, sample: Sample, kind: str) -> np.ndarray:
        image, label = read_pair(sample, kind, resizable=True)
        if self.size is not None:
            if label is not None:
                label = np.asarray(Image.fromarray(label).resize(self.size, NEAREST))
            image = resized_window(image, self.size)
        layers = {"image": np.asarray(image)} | ({} if label is None else {"label": label})
        record = np.empty((), [(name, np.uint8, layer.shape) for name, layer in layers.items()])
        for name, layer in layers.items():
            record[name] = layer
        return record


def _load(path: Path) -> np.ndarray | None:
    """The record at ``path``; None if it is missing or damaged, so that the caller writes it again."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None
