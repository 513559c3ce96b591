"""Read one image, one label, or a pair of them, exactly as stored."""

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from dataset.folders import Sample
from dataset.labels import IGNORE, UNKNOWN, id_lookup, is_id_table, known_ids, look_like_train_ids, refuse_train_ids
from dataset.messages import DataError, few

UPRIGHT = 1  # value of the EXIF orientation; 2 to 8 are turned or mirrored
MAX_ASPECT = 0.02  # by which width to height of image and label may differ, natural logarithm
OTHER_SIZES = "have another size than their images; both are resized, each by itself (released code)"
HEADERS = 16  # that are read at a time
COLOUR16 = ("RGB;16B", "RGBA;16B")  # raw modes of PNGs of 16 bits a channel
STRETCHED = {"L;2": 85, "L;4": 17}  # what Pillow multiplies the greys of 2 and 4 bits by, so that they reach 255


@contextmanager
def _naming(what: str, path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file becomes a DataError that names it."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damage leads them to
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        remedy = "Make it smaller" if isinstance(error, Image.DecompressionBombError) else "Download it again"
        raise DataError(f"cannot read {what} {path}: {reason}. {remedy} or leave it out") from error


def read_image(path: Path) -> Image.Image:
    """The picture of a file as ``as_rgb`` gives it; DataError for one that is missing, too large or no picture too."""
    with _naming("image", path), Image.open(path) as image:
        return as_rgb(image, path)


def as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """RGB picture, upright by its EXIF orientation; greys of 16 bits are divided by 256.

    Args:
        path: of ``image``, for an error.

    Raises:
        DataError: a damaged picture, or one of 32-bit values, whose range nobody knows.
    """
    with _naming("image", path):
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT
        image, form = ImageOps.exif_transpose(image) if turned else image, image.format
        if image.mode == "RGB":
            return image  # converting RGB to RGB would copy it
        if image.mode == "F" or (image.mode == "I" and form != "PNG"):  # old Pillow: PNGs of 16 bits are I
            raise DataError(f"{path} has 32-bit values ({image.mode}), of unknown range: save it with 8 or 16 bits")
        if image.mode.startswith("I"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")


def stored_size(path: Path, *, verify: bool = False) -> tuple[int, int]:
    """(W, H) of a picture as stored, not turned upright, by its header.

    Args:
        verify: compare all checksums of a PNG too, which finds most damage in a fraction of the time of decoding.

    Raises:
        DataError: a file that is missing, damaged or no picture.
    """
    with _naming("picture", path), Image.open(path) as image:
        size = image.size
        if verify:
            image.verify()
        return size


def is_turned(path: Path) -> bool:
    """Whether the EXIF orientation of an image changes how it is read; False for what is no image."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT
    except Exception:  # as in _naming
        return False


def read_raw_label(path: Path, kind: str) -> np.ndarray:
    """Raw ids (H, W) exactly as stored: uint16 for 16-bit SYNTHIA labels, whose first channel they are, else uint8.

    Greys of 1, 2, 4 and 8 bits, palettes, and greys of 16 bits that hold no id above 255.

    Raises:
        DataError: an unreadable file; colours, lossy compression or other values instead of ids; a SYNTHIA label of
            more pixels than Pillow's limit.
    """
    strict = kind == "synthia"  # Pillow only warns up to twice its limit, which in two passes takes gigabytes
    limit = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
    with _naming("label", path), limit if strict else nullcontext():
        with Image.open(path) as image:
            if kind == "synthia" and _raw_mode(image) in COLOUR16:
                return _first_channel16(path)
            if kind == "synthia" and image.mode not in ("1", "L", "I", "I;16"):
                raise DataError(
                    f"{path} is an 8-bit picture, SYNTHIA labels are 16-bit: it was saved again and lost its ids"
                )
            return _read_ids(image, path, kind)


def _first_channel16(path: Path) -> np.ndarray:
    """First channel, uint16 (H, W), of a PNG in colours of 16 bits, of which Pillow itself keeps the high bytes."""
    with Image.open(path) as image:
        image.verify()  # all checksums, which decoding does not compare
    halves = []
    for order in ("B", "L"):  # the high bytes of big-endian values; read as little-endian ones, the low bytes
        picture: Any  # a tile is a plain tuple before Pillow 11
        with Image.open(path) as picture:
            picture.tile = [(*tile[:3], f"{picture.mode};16{order}") for tile in picture.tile]
            halves.append(np.asarray(picture.getchannel(0), np.uint16))
    return (halves[0] << 8) | halves[1]


def _read_ids(image: ImageFile.ImageFile, path: Path, kind: str) -> np.ndarray:
    if image.format == "JPEG":
        raise DataError(f"{path} is a JPEG, which changes ids: {kind} labels must be stored without loss, as PNG")
    stored = _raw_mode(image)
    if image.mode == "F" or re.fullmatch(r"[1L];\d?I[RB]?", stored):
        raise DataError(f"{path} holds floats or inverted greys ({stored}): save the labels as 8-bit grey PNGs")
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise DataError(f"{path} is a colour picture ({image.mode}), {kind} labels hold ids: use the labelIds files")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    ids = np.array(image)
    if image.mode.startswith("I") and not 0 <= ids.min() <= ids.max() <= IGNORE:
        raise DataError(
            f"{path} holds values from {ids.min()} to {ids.max()}, {kind} ids are at most {IGNORE}: use the labelIds "
            "files, not those of instances"
        )
    ids = ids.astype(np.uint8, copy=False)
    return ids // STRETCHED[stored] if stored in STRETCHED else ids


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file holds the values that Pillow decodes, in Pillow's words; "" where the format does not say."""
    arguments = image.tile[0][3] if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def prediction_kind(kind: str) -> str:
    """The label kind of predictions for labels of ``kind``: without an id table they have Cityscapes' ids.

    ``utils.scoring.pictures.label_id_map`` writes them so.
    """
    return kind if is_id_table(kind) else "cityscapes"


def read_label(path: Path, kind: str) -> np.ndarray:
    """Train ids uint8 (H, W) of a label file of the given kind, see ``dataset.labels``.

    Raises:
        DataError: an unreadable file, colours or train ids instead of ids, or an id that the data set does not define.
    """
    return train_ids(read_raw_label(path, kind), path, kind)


def train_ids(raw: np.ndarray, path: Path, kind: str) -> np.ndarray:
    """Train ids uint8 (H, W) of the raw ids that the file ``path`` holds.

    Raises:
        DataError: an id that the label kind does not define, or a file that is one of train ids by its name.
    """
    refuse_train_ids(path, kind)
    ids = look_up(raw, np.where(known_ids(kind), id_lookup(kind), UNKNOWN))
    if (ids == UNKNOWN).any():
        unknown = np.unique(raw[ids == UNKNOWN]).tolist()
        raise DataError(
            f"{path} has ids that {kind} does not define: {few(unknown)}. {remedy(np.unique(raw).tolist(), kind)}"
        )
    return ids


def remedy(raw_ids: Iterable[int], kind: str) -> str:
    """What to do about files that hold ``raw_ids``, some of which the label kind does not define."""
    if look_like_train_ids(raw_ids, kind):
        return "They look like train ids, where label ids are needed"
    return "Give them to classes there, or to void" if is_id_table(kind) else f"Is {kind} the right data set?"


def look_up(raw: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``table[raw]`` for a uint8 table, raw ids uint8 or uint16; by Pillow where it can, in half the time of numpy."""
    if raw.dtype == np.uint8:
        return np.array(Image.fromarray(raw).point(table[:256].tolist()))
    return table.take(raw)


def read_pair(sample: Sample, kind: str, *, resizable: bool = False) -> tuple[Image.Image, np.ndarray | None]:
    """RGB image and train ids uint8 (H, W) of a sample, None where it has no label.

    Args:
        resizable: a label may have the other size that ``may_be_resized`` admits, and is given at that.

    Raises:
        DataError: a file that ``read_image`` or ``read_label`` refuses, or the two differ in size.
    """
    image = read_image(sample.image)
    label = None if sample.label is None else read_label(sample.label, kind)
    if label is None or label.shape == image.size[::-1]:
        return image, label
    if not resizable or not may_be_resized(kind, image.size, label.shape[::-1]):
        raise DataError(
            f"{sample.image} is {image.width}x{image.height}, its label {sample.label} "
            f"{label.shape[1]}x{label.shape[0]} (W x H){turned(sample.image)}: leave the pair out by a data_list"
        )
    return image, label


def may_be_resized(kind: str, size: tuple[int, int], label_size: tuple[int, int]) -> bool:
    """Whether a training takes a label of another size (W, H) than its image, as a few of GTAV have.

    The released code resizes image and label each by itself. Another aspect is refused: that label is of another image.
    """
    aspects = math.log(size[0] / size[1]) - math.log(label_size[0] / label_size[1])
    return kind == "gtav" and abs(aspects) <= MAX_ASPECT


def resized_pairs(samples: Sequence[Sample], kind: str, *, skip_bad: bool = False) -> list[Sample]:
    """The samples whose labels ``may_be_resized`` in training, by the headers of all files.

    Args:
        skip_bad: leave out a pair that cannot be used, as the loader replaces it; no error.

    Raises:
        DataError: image and label differ in another way.
    """
    if kind != "gtav":
        return []
    unique = list({(sample.image, sample.label): sample for sample in samples if sample.label}.values())
    with ThreadPoolExecutor(HEADERS) as pool:  # files may lie far away
        sizes = list(pool.map(_stored_sizes, unique))
    found = []
    for sample, (size, label_size) in zip(unique, sizes, strict=True):
        if size == label_size:
            continue
        if may_be_resized(kind, size, label_size):
            found.append(sample)
        elif not skip_bad:
            read_pair(sample, kind, resizable=True)  # which knows whether one of the two is turned
    return found


def _stored_sizes(sample: Sample) -> tuple[tuple[int, int], tuple[int, int]]:
    """(W, H) of image and label; equal ones where one of the two cannot be read, which its reader says."""
    try:
        return stored_size(sample.image), stored_size(sample.label_file)
    except DataError:
        return (1, 1), (1, 1)


def turned(path: Path) -> str:
    """Words for a message about a picture that its EXIF orientation turns; "" for one that is stored upright."""
    return ", by its EXIF orientation, which is applied" if is_turned(path) else ""
