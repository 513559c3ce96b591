"""Classes, palette, and look-up tables from raw label ids to train ids.

A known data set is one entry of ``DATA_SETS``; somebody's own is a YAML file, see ``read_id_table``. A *label kind* is
how labels are encoded: the name of an entry, or the path of such a file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dataset.id_table import parse_id_table
from dataset.messages import ChoiceError, DataError, nearest

IGNORE = 255  # train id of what is not scored and not trained on
UNKNOWN = 254  # no train id: stands for a raw id that the data set does not define; hence at most 254 classes


@dataclass(frozen=True, eq=False)
class ClassTable:
    """Names, colours and export ids of the classes, in train-id order.

    Attributes:
        palette: uint8 (C, 3), RGB.
        export_ids: uint8 (256,), train id -> raw label id in prediction files; 0 (unlabelled) for what is no class,
            because the official evaluator must never read 255.
    """

    names: tuple[str, ...]
    palette: np.ndarray
    export_ids: np.ndarray

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def ids(self, classes: Sequence[str | int]) -> tuple[int, ...]:
        """Train ids of class names (or of train ids); an unknown one is an error that names the nearest."""
        found = []
        for c in classes:
            if c in self.names:
                found.append(self.names.index(c))
            elif isinstance(c, int) and 0 <= c < self.num_classes:
                found.append(c)
            else:
                close = nearest(str(c), self.names)
                raise ChoiceError(f"unknown class {c!r}; the nearest is {close!r}, all are: {', '.join(self.names)}")
        return tuple(found)


# name, raw Cityscapes id, colour; in train-id order
_CITYSCAPES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
_CITYSCAPES_IDS = {raw: train for train, (_, raw, _) in enumerate(_CITYSCAPES)}
# fmt: off
_SYNTHIA_IDS = {
    1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 17: 12, 19: 15, 21: 3,
}
# fmt: on


@dataclass(frozen=True)
class DataSet:
    """Where a data set keeps its files, and what its label ids mean.

    Attributes:
        images, labels: folders below ``data_dir``; ``{split}`` stands for the split.
        image_suffix, label_suffix: ends of the file names; what is before them pairs an image with its label.
        depth: glob between such a folder and its files.
        bits: of a label id.
        train_ids: raw id -> train id of the classes that are scored.
        known_ids: all ids that the data set defines, scored or not.
    """

    images: str
    labels: str
    image_suffix: str
    label_suffix: str
    depth: str
    bits: int
    train_ids: dict[int, int]
    known_ids: frozenset[int]

    def label_of(self, image: str) -> str:
        """Path of the label below ``labels`` that belongs to an image's path below ``images``."""
        return image.removesuffix(self.image_suffix) + self.label_suffix


_KNOWN = frozenset({*range(35), IGNORE})  # Cityscapes has 0..33; some GTAV labels have 34, licence plate
DATA_SETS = {
    "gtav": DataSet("images", "labels", ".png", ".png", "*", 8, _CITYSCAPES_IDS, _KNOWN),
    "synthia": DataSet("RGB", "GT/LABELS", ".png", ".png", "*", 16, _SYNTHIA_IDS, frozenset(range(23))),
    "cityscapes": DataSet(
        images="leftImg8bit/{split}",
        labels="gtFine/{split}",
        image_suffix="_leftImg8bit.png",
        label_suffix="_gtFine_labelIds.png",
        depth="*/*",
        bits=8,
        train_ids=_CITYSCAPES_IDS,
        known_ids=_KNOWN,
    ),
}


def _export_ids() -> np.ndarray:
    ids = np.zeros(256, np.uint8)
    for raw, train in _CITYSCAPES_IDS.items():
        ids[train] = raw
    return ids


CITYSCAPES = ClassTable(
    names=tuple(name for name, _, _ in _CITYSCAPES),
    palette=np.array([colour for _, _, colour in _CITYSCAPES], np.uint8),
    export_ids=_export_ids(),
)

_ALL = tuple(range(len(_CITYSCAPES)))
SCORED_CLASSES: dict[int, tuple[int, ...]] = {
    19: _ALL,
    16: tuple(c for c in _ALL if c not in (9, 14, 16)),  # SYNTHIA has no terrain, truck, train
    13: tuple(c for c in _ALL if c not in (3, 4, 5, 9, 14, 16)),  # nor usable wall, fence, pole
}


def id_lookup(kind: str) -> np.ndarray:
    """Raw label id -> train id (255 where there is none).

    Args:
        kind: "gtav", "synthia", "cityscapes", or the path of a YAML id table.

    Returns:
        uint8 (65536,) for synthia, whose labels are 16-bit, else (256,).
    """
    if is_id_table(kind):
        return read_id_table(kind)[1]
    data_set = _data_set(kind)
    return _lookup(2**data_set.bits, data_set.train_ids)


def _data_set(kind: str) -> DataSet:
    if kind not in DATA_SETS:
        raise ValueError(f"no label kind {kind!r}: choose one of {', '.join(DATA_SETS)}, or a YAML file")
    return DATA_SETS[kind]


def _lookup(size: int, ids: dict[int, int]) -> np.ndarray:
    table = np.full(size, IGNORE, np.uint8)
    for raw, train in ids.items():
        table[raw] = train
    return table


def known_ids(kind: str) -> np.ndarray:
    """bool table as long as ``id_lookup``: True for an id that the label kind defines, scored or not.

    A YAML table defines the ids that it names, and 255.
    """
    if is_id_table(kind):
        return read_id_table(kind)[2]
    data_set = _data_set(kind)
    known = np.zeros(2**data_set.bits, bool)
    known[sorted(data_set.known_ids)] = True
    return known


def is_id_table(kind: str) -> bool:
    """Whether a label kind is the path of a YAML id table instead of a data set's name."""
    return kind.endswith((".yaml", ".yml"))


@cache
def read_id_table(path: str) -> tuple[ClassTable, np.ndarray, np.ndarray]:
    """Classes of somebody's own data from a YAML file with the keys

    * ``classes``: a list, in train-id order, of ``{name: road, colour: [128, 64, 128], ids: [7, 8]}``: the raw ids
      0..255 that are this class in 8-bit label PNGs; the first is the one that prediction files get;
    * ``void``: raw ids that occur but are no class (optional). 255 is void unless a class names it.

    Returns:
        classes, look-up uint8 (256,) of raw ids, and bool (256,), True for a raw id that the table names.

    Raises:
        IdTableError: see ``dataset.id_table.parse_id_table``.
    """
    classes, void = parse_id_table(path)
    palette = np.array([c.colour for c in classes], np.uint8)
    export = np.zeros(256, np.uint8)
    export[: len(classes)] = [c.ids[0] for c in classes]
    lookup = _lookup(256, {raw: train for train, c in enumerate(classes) for raw in c.ids})
    known = np.zeros(256, bool)
    known[[raw for c in classes for raw in c.ids] + void + [IGNORE]] = True
    return ClassTable(tuple(c.name for c in classes), palette, export), lookup, known


def class_table(kind: str) -> ClassTable:
    """The classes of a label kind."""
    return read_id_table(kind)[0] if is_id_table(kind) else CITYSCAPES


def refuse_train_ids(path: Path, kind: str) -> None:
    """Cityscapes' files of train ids are no label ids, which their name says.

    Raises:
        DataError: such a file of a data set that has label ids; an id table may well name train ids.
    """
    if kind in DATA_SETS and "labeltrainids" in path.name.lower():
        raise DataError(
            f"{path} holds train ids, {kind} has label ids: use the labelIds files, or dataset list with an id table"
        )


def look_like_train_ids(raw_ids: Iterable[int], kind: str) -> bool:
    """Whether all raw ids of many files are probably train ids: none is above them, and some are no class's raw id."""
    found = {int(raw) for raw in raw_ids} - {IGNORE}
    lookup, known = id_lookup(kind), known_ids(kind)
    strange = [raw for raw in found if raw >= len(lookup) or (lookup[raw] == IGNORE and (raw > 0 or not known[raw]))]
    return bool(strange) and max(found) < class_table(kind).num_classes
