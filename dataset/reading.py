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

UPRIGHT = 1  # value of the EXIF orientation; 2 to 8 mean turned or mirrored
MAX_ASPECT = 0.02  # largest difference of the aspects of image and label, as natural logarithm of width / height
OTHER_SIZES = "have another size than their images; image and label are resized separately (released code)"
HEADERS = 16  # file headers that are read at a time
COLOUR16 = ("RGB;16B", "RGBA;16B")  # raw modes of PNGs with 16 bits a channel
STRETCHED = {"L;2": 85, "L;4": 17}  # Pillow multiplies greys of 2 and 4 bits by this, so that they reach 255


@contextmanager
def _naming(what: str, path: Path) -> Iterator[None]:
    """Context in which every error becomes a DataError that names the file ``path``."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise errors of any type for damaged files
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        remedy = "Make it smaller" if isinstance(error, Image.DecompressionBombError) else "Download it again"
        raise DataError(f"cannot read {what} {path}: {reason}. {remedy} or leave it out") from error


def read_image(path: Path) -> Image.Image:
    """The image of a file, see ``as_rgb``. Also raises DataError for a file that is missing, too large or no image."""
    with _naming("image", path), Image.open(path) as image:
        return as_rgb(image, path)


def as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """RGB image, turned upright by its EXIF orientation; greys of 16 bits are divided by 256.

    Args:
        path: file of ``image``, for errors.

    Raises:
        DataError: a damaged image, or an image of 32-bit values: their range is unknown.
    """
    with _naming("image", path):
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT:
            image = ImageOps.exif_transpose(image)  # would copy an upright image
        if image.mode == "RGB":
            return image  # converting RGB to RGB would copy it
        if image.mode in ("F", "I"):
            raise DataError(f"{path} has 32-bit values ({image.mode}) of unknown range: save it with 8 or 16 bits")
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")


def stored_size(path: Path, *, verify: bool = False) -> tuple[int, int]:
    """(W, H) of an image from its header, as stored, not turned upright.

    Args:
        verify: also compare all checksums of a PNG. This finds most damage much faster than decoding.

    Raises:
        DataError: a file that is missing, damaged or no image.
    """
    with _naming("picture", path), Image.open(path) as image:
        size = image.size
        if verify:
            image.verify()
        return size


def is_turned(path: Path) -> bool:
    """Whether ``read_image`` turns the image because of its EXIF orientation; False for a file that is no image."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT
    except Exception:  # as in _naming
        return False


def read_raw_label(path: Path, kind: str) -> np.ndarray:
    """Raw ids (H, W) exactly as stored: uint16 for SYNTHIA (the first channel of 16-bit labels), else uint8.

    Other kinds may be greys of 1, 2, 4 or 8 bits, palettes, or greys of 16 bits without an id above 255.

    Raises:
        DataError: an unreadable file; colours, lossy compression or other values instead of ids; a SYNTHIA label with
            more pixels than Pillow's limit.
    """
    strict = kind == "synthia"  # Pillow only warns up to twice its limit; two passes over such an image take gigabytes
    limit = warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning)
    with _naming("label", path), limit if strict else nullcontext():
        with Image.open(path) as image:
            if kind == "synthia" and _raw_mode(image) in COLOUR16:
                return _first_channel16(path)
            if kind == "synthia" and image.mode not in ("1", "L", "I", "I;16"):
                raise DataError(
                    f"{path} has 8 bits, SYNTHIA labels have 16: it was saved again and lost its ids. Use the original"
                )
            return _read_ids(image, path, kind)


def _first_channel16(path: Path) -> np.ndarray:
    """First channel, uint16 (H, W), of a PNG with 16 bits a channel; Pillow alone would keep only the high bytes."""
    with Image.open(path) as image:
        image.verify()  # compares all checksums, unlike decoding
    halves = []
    for order in ("B", "L"):  # big-endian reading gives the high bytes, little-endian reading the low bytes
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
        raise DataError(f"{path} contains floats or inverted greys ({stored}): save the labels as 8-bit grey PNGs")
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise DataError(f"{path} is a colour image ({image.mode}), {kind} labels contain ids: use the labelIds files")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    ids = np.array(image)
    if image.mode.startswith("I") and not 0 <= ids.min() <= ids.max() <= IGNORE:
        raise DataError(
            f"{path} contains values from {ids.min()} to {ids.max()}, {kind} ids are at most {IGNORE}: use the "
            "labelIds files, not the instanceIds files"
        )
    ids = ids.astype(np.uint8, copy=False)
    return ids // STRETCHED[stored] if stored in STRETCHED else ids


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the encoding of the values in the file; "" for formats without one."""
    arguments = image.tile[0][3] if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def prediction_kind(kind: str) -> str:
    """The label kind of prediction files for labels of ``kind``: Cityscapes' ids, unless there is an id table.

    ``utils.scoring.pictures.label_id_map`` writes them.
    """
    return kind if is_id_table(kind) else "cityscapes"


def read_label(path: Path, kind: str) -> np.ndarray:
    """Train ids uint8 (H, W) of a label file. ``dataset.labels`` explains ``kind``.

    Raises:
        DataError: an unreadable file, colours or train ids instead of ids, or an id that the data set does not define.
    """
    return train_ids(read_raw_label(path, kind), path, kind)


def train_ids(raw: np.ndarray, path: Path, kind: str) -> np.ndarray:
    """Train ids uint8 (H, W) for the raw ids in the file ``path``.

    Raises:
        DataError: an id that the label kind does not define, or a file of train ids, by its name.
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
    """Advice about files with ``raw_ids`` that the label kind does not define."""
    if look_like_train_ids(raw_ids, kind):
        return "They look like train ids: use files of label ids"
    return "Add them to a class or to void there" if is_id_table(kind) else f"Is {kind} the right data set?"


def look_up(raw: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``table[raw]`` for a uint8 table and raw ids uint8 or uint16. For uint8 Pillow takes half the time of numpy."""
    if raw.dtype == np.uint8:
        return np.array(Image.fromarray(raw).point(table[:256].tolist()))
    return table.take(raw)


def read_pair(sample: Sample, kind: str, *, resizable: bool = False) -> tuple[Image.Image, np.ndarray | None]:
    """RGB image and train ids uint8 (H, W) of a sample; None without label.

    Args:
        resizable: accept a label of another size if ``may_be_resized``; it is returned at its own size.

    Raises:
        DataError: ``read_image`` or ``read_label`` refuses a file, or image and label differ in size.
    """
    image = read_image(sample.image)
    label = None if sample.label is None else read_label(sample.label, kind)
    if label is None or label.shape == image.size[::-1]:
        return image, label
    if not resizable or not may_be_resized(kind, image.size, label.shape[::-1]):
        raise DataError(
            f"{sample.image} is {image.width}x{image.height}, its label {sample.label} is "
            f"{label.shape[1]}x{label.shape[0]} (W x H){turned(sample.image)}: set a data_list without this pair"
        )
    return image, label


def may_be_resized(kind: str, size: tuple[int, int], label_size: tuple[int, int]) -> bool:
    """Whether a training accepts this label size (W, H) for this image size, as for a few pairs of GTAV.

    The released code resizes image and label separately. Different aspects are refused: the label is not of this image.
    """
    aspects = math.log(size[0] / size[1]) - math.log(label_size[0] / label_size[1])
    return kind == "gtav" and abs(aspects) <= MAX_ASPECT


def resized_pairs(samples: Sequence[Sample], kind: str, *, skip_bad: bool = False) -> list[Sample]:
    """The samples with a label of another size that ``may_be_resized`` in training. Reads the headers of all files.

    Args:
        skip_bad: ignore a pair that cannot be used, because the loader replaces it; no error.

    Raises:
        DataError: the sizes of image and label differ in another way.
    """
    if kind != "gtav":
        return []
    unique = list({(sample.image, sample.label): sample for sample in samples if sample.label}.values())
    with ThreadPoolExecutor(HEADERS) as pool:  # files may be on a slow network disk
        sizes = list(pool.map(_stored_sizes, unique))
    found = []
    for sample, (size, label_size) in zip(unique, sizes, strict=True):
        if size == label_size:
            continue
        if may_be_resized(kind, size, label_size):
            found.append(sample)
        elif not skip_bad:
            read_pair(sample, kind, resizable=True)  # raises, unless the EXIF orientation explains the difference
    return found


def _stored_sizes(sample: Sample) -> tuple[tuple[int, int], tuple[int, int]]:
    """(W, H) of image and label; two equal sizes if a file cannot be read, which is reported when it is used."""
    try:
        return stored_size(sample.image), stored_size(sample.label_file)
    except DataError:
        return (1, 1), (1, 1)


def turned(path: Path) -> str:
    """Addition to a message about the size of an image; "" unless the EXIF orientation turns the image."""
    return " after the image's EXIF orientation is applied" if is_turned(path) else ""
