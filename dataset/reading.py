"""Read one image, one label, or a pair of them, exactly as stored."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dataset.folders import DataError, Sample
from dataset.labels import UNKNOWN, id_lookup, known_ids
from dataset.messages import few


def read_image(path: Path) -> Image.Image:
    """RGB picture; DataError for a file that is missing, truncated or no picture."""
    try:
        with Image.open(path) as image:
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # converting RGB to RGB would copy it
    except (OSError, SyntaxError) as error:
        raise DataError(
            f"cannot read image {path}: {error}. Download it again or leave it out by a data_list"
        ) from error


def read_raw_label(path: Path, kind: str) -> np.ndarray:
    """Raw ids (H, W) exactly as stored: uint16 for 16-bit SYNTHIA labels, else uint8.

    SYNTHIA's are decoded by torchvision, because Pillow reduces a 16-bit RGB PNG to 8 bits and loses the class id,
    which is the first channel.
    """
    try:
        if kind == "synthia":
            from torchvision.io import ImageReadMode, decode_image  # here: it takes as long to import as all of torch

            channels = decode_image(str(path), ImageReadMode.UNCHANGED)
            if len(channels) > 1 and channels.dtype == torch.uint8:
                raise DataError(
                    f"{path} is an 8-bit picture, SYNTHIA labels are 16-bit: it was saved again and lost its ids"
                )
            return channels[0].numpy()
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise DataError(
                    f"{path} is a colour picture ({image.mode}), {kind} labels hold ids: use the labelIds files"
                )
            return np.array(image)
    except (OSError, SyntaxError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"cannot read label {path}: {error}. Download it again or leave it out by a data_list"
        ) from error


def read_prediction(path: Path, kind: str) -> np.ndarray:
    """Train ids uint8 (H, W) of a PNG of label ids that a network predicted; 255 where the id is no class."""
    return look_up(read_raw_label(path, kind), id_lookup(kind))


def read_label(path: Path, kind: str) -> np.ndarray:
    """Train ids uint8 (H, W) of a label file of the given kind, see ``dataset.labels``.

    Raises:
        DataError: an unreadable file, colours instead of ids, or an id that the data set does not define.
    """
    raw = read_raw_label(path, kind)
    ids = look_up(raw, np.where(known_ids(kind), id_lookup(kind), UNKNOWN))
    if (ids == UNKNOWN).any():
        unknown = few(np.unique(raw[ids == UNKNOWN]))
        raise DataError(f"{path} has ids that {kind} does not define: {unknown}. Is {kind} the right data set?")
    return ids


def look_up(raw: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``table[raw]`` for a uint8 table, raw ids uint8 or uint16; by Pillow where it can, in half the time of numpy."""
    if raw.dtype == np.uint8:
        return np.array(Image.fromarray(raw).point(table[:256].tolist()))
    return table.take(raw)


def read_pair(sample: Sample, kind: str) -> tuple[Image.Image, np.ndarray | None]:
    """RGB image and train ids uint8 (H, W) of a sample, None where it has no label.

    Raises:
        DataError: a file that ``read_image`` or ``read_label`` refuses, or the two differ in size.
    """
    image = read_image(sample.image)
    label = None if sample.label is None else read_label(sample.label, kind)
    if label is not None and label.shape != image.size[::-1]:
        raise DataError(
            f"{sample.image} is {image.width}x{image.height}, its label {sample.label} "
            f"{label.shape[1]}x{label.shape[0]} (W x H): leave the pair out by a data_list"
        )
    return image, label
