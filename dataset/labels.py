"""Classes, palette, and look-up tables from raw label ids to train ids.

A known data set is an entry of ``DATA_SETS``. Your own data set has a YAML id table, see ``read_id_table``. A *label
kind* says how labels are encoded: it is the name of an entry or the path of an id table.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dataset.files import NOT_YAML, Bounded, read_text, yaml_problem
from dataset.messages import ChoiceError, DataError, few, nearest

IGNORE = 255  # train id of pixels that are neither scored nor used in training
UNKNOWN = 254  # marks a raw id that the data set does not define; so there are at most 254 classes
_SHAPE = "it needs classes: [{name: road, colour: [128, 64, 128], ids: [7]}, ...] and, optionally, void: [...]"


@dataclass(frozen=True, eq=False)
class ClassTable:
    """Names, colours and export ids of the classes, in train-id order.

    Attributes:
        palette: uint8 (C, 3), RGB.
        export_ids: uint8 (256,), train id -> raw label id in prediction files; 0 (unlabelled) for all other values,
            because the official evaluator must not read 255.
    """

    names: tuple[str, ...]
    palette: np.ndarray
    export_ids: np.ndarray

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def ids(self, classes: Sequence[str | int]) -> tuple[int, ...]:
        """Train ids of class names or of train ids. Raises ChoiceError for an unknown one; it names the nearest."""
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


def _export_ids(raw_ids: Sequence[int]) -> np.ndarray:
    """``ClassTable.export_ids`` for one raw id per class."""
    ids = np.zeros(256, np.uint8)
    ids[: len(raw_ids)] = raw_ids
    return ids


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
    """Folder layout and label ids of a data set.

    Attributes:
        images, labels: folders below ``data_dir``; ``{split}`` stands for the split.
        image_suffix, label_suffix: ends of the file names. An image and its label are equal up to them.
        depth: glob pattern between these folders and their files.
        bits: number of bits of a label id.
        train_ids: raw id -> train id, for the scored classes.
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
        """Path of the label below ``labels``, for the path of its image below ``images``."""
        return image.removesuffix(self.image_suffix) + self.label_suffix


_KNOWN = frozenset({*range(35), IGNORE})  # Cityscapes has 0..33; some GTAV labels have 34 (licence plate)
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


CITYSCAPES = ClassTable(
    names=tuple(name for name, _, _ in _CITYSCAPES),
    palette=np.array([colour for _, _, colour in _CITYSCAPES], np.uint8),
    export_ids=_export_ids([raw for _, raw, _ in _CITYSCAPES]),
)

_ALL = tuple(range(len(_CITYSCAPES)))
SCORED_CLASSES: dict[int, tuple[int, ...]] = {
    19: _ALL,
    16: tuple(c for c in _ALL if c not in (9, 14, 16)),  # SYNTHIA has no terrain, truck, train
    13: tuple(c for c in _ALL if c not in (3, 4, 5, 9, 14, 16)),  # nor usable wall, fence, pole
}


def id_lookup(kind: str) -> np.ndarray:
    """Table from raw label id to train id; 255 for ids of no class.

    Args:
        kind: "gtav", "synthia", "cityscapes", or the path of a YAML id table.

    Returns:
        uint8 (65536,) for synthia, whose labels are 16-bit, else (256,).
    """
    return _tables(kind)[1]


def known_ids(kind: str) -> np.ndarray:
    """bool table as long as ``id_lookup``: True for an id that the label kind defines, scored or not.

    An id table defines the ids that it names, and 255.
    """
    return _tables(kind)[2]


def class_table(kind: str) -> ClassTable:
    """The classes of a label kind."""
    return _tables(kind)[0]


def _tables(kind: str) -> tuple[ClassTable, np.ndarray, np.ndarray]:
    if is_id_table(kind):
        return read_id_table(kind)
    if kind not in DATA_SETS:
        raise ValueError(f"no label kind {kind!r}: choose one of {', '.join(DATA_SETS)}, or a YAML file")
    data_set = DATA_SETS[kind]
    return CITYSCAPES, *_arrays(data_set.bits, data_set.train_ids, data_set.known_ids)


def _arrays(bits: int, train_ids: dict[int, int], known_ids: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """``id_lookup``, uint8 (2**bits,), and ``known_ids``, bool (2**bits,)."""
    lookup, known = np.full(2**bits, IGNORE, np.uint8), np.zeros(2**bits, bool)
    lookup[list(train_ids)] = list(train_ids.values())
    known[list(known_ids)] = True
    return lookup, known


def is_id_table(kind: str) -> bool:
    """Whether a label kind is the path of a YAML id table, not the name of a data set."""
    return kind.endswith((".yaml", ".yml"))


class _Strings(Bounded, yaml.BaseLoader):
    """Loader that gives only strings, lists and mappings: a class called ``no`` is no boolean."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        repeated = _repeated(str(key.value) for key, _ in node.value)
        if repeated:
            raise DataError(
                f"the entry at line {node.start_mark.line + 1} has {few(repeated)} more than once: remove one"
            )
        return super().construct_mapping(node, deep)


@cache
def read_id_table(path: str) -> tuple[ClassTable, np.ndarray, np.ndarray]:
    """Classes of your own data set from a YAML file with the keys

    * ``classes``: a list, in train-id order, of ``{name: road, colour: [128, 64, 128], ids: [7, 8]}``; ``ids`` are the
      raw ids 0..255 of this class in 8-bit label PNGs. Prediction files contain the first of them;
    * ``void``: raw ids that occur but are no class (optional). 255 is void unless a class names it.

    Returns:
        the classes, ``id_lookup`` uint8 (256,), and ``known_ids`` bool (256,).

    Raises:
        DataError: a missing file, not YAML, an unknown, missing or repeated key, two classes with one name, a repeated
            id, or an id or colour out of range; the message is one line and names the file.
    """
    if not Path(path).is_file():
        raise DataError(f"no id table {path}")
    text = read_text(Path(path))
    try:
        classes, void = _parse(yaml.load(text, Loader=_Strings))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except NOT_YAML as error:
        raise DataError(f"{path} {yaml_problem(error)}") from error
    train_ids = {raw: train for train, (_, _, raws) in enumerate(classes) for raw in raws}
    return _table(classes), *_arrays(8, train_ids, [*train_ids, *void, IGNORE])


_Class = tuple[str, list[int], list[int]]  # name, colour, raw ids


def _table(classes: Sequence[_Class]) -> ClassTable:
    names, colours, ids = zip(*classes, strict=True)
    return ClassTable(names, np.array(colours, np.uint8), _export_ids([raws[0] for raws in ids]))


def table_of(names: Iterable[Any], colours: Iterable[Any], export_ids: Iterable[Any]) -> ClassTable:
    """Classes from separate lists, with the checks of an id table.

    Raises:
        DataError: as ``read_id_table``.
        TypeError, ValueError: no lists, or lists of different lengths.
    """
    rows = zip(names, colours, export_ids, strict=True)
    return _table(_parse({"classes": [{"name": n, "colour": colour, "ids": [raw]} for n, colour, raw in rows]})[0])


def _parse(content: Any) -> tuple[list[_Class], list[int]]:
    """The classes and the void raw ids of an id table."""
    _check_keys(content, "the table", {"classes"}, {"void"})
    if not isinstance(content["classes"], list) or not content["classes"]:
        raise DataError(f"classes is not a list of classes: {_SHAPE}")
    classes = [_parse_class(entry, f"class {number}") for number, entry in enumerate(content["classes"], start=1)]
    void = _numbers(content.get("void") or [], "void")
    if twice := _repeated(name for name, _, _ in classes):
        raise DataError(f"two classes are called {few(twice)}: give each class its own name")
    if len(classes) > UNKNOWN:
        raise DataError(f"{len(classes)} classes are too many: at most {UNKNOWN} are possible")
    raw_ids = [raw for _, _, ids in classes for raw in ids] + void
    wrong, twice = sorted({raw for raw in raw_ids if not 0 <= raw <= 255}), sorted(_repeated(raw_ids))
    if wrong or twice:
        raise DataError(
            f"each raw id must be in 0..255 and occur once; wrong: {wrong or 'none'}, repeated: {twice or 'none'}"
        )
    return classes, void


def _parse_class(entry: Any, what: str) -> _Class:
    _check_keys(entry, what, {"name", "colour", "ids"}, set())
    name = entry["name"]
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise DataError(f"the name of {what} is {name!r}: it must be a printable text")
    colour = _numbers(entry["colour"], f"the colour of {name}")
    if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
        raise DataError(f"the colour of {name} is {colour}: it must be [R, G, B], each in 0..255")
    ids = _numbers(entry["ids"], f"the ids of {name}")
    if not ids:
        raise DataError(f"{name} has no ids: every class needs at least one raw id")
    return name, colour, ids


def _check_keys(content: Any, what: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(content, dict):
        raise DataError(f"{what} is not a mapping: {_SHAPE}")
    for name in content.keys() - required - optional:
        close = nearest(str(name), sorted(required | optional))
        raise DataError(f"{what} has the unknown key {str(name)!r}; the nearest is {close!r}")
    if missing := required - content.keys():
        raise DataError(f"{what} has no {few(missing)}: {_SHAPE}")


def _numbers(values: Any, what: str) -> list[int]:
    try:
        if not isinstance(values, list):
            raise TypeError
        return [int(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{what} must be a list of whole numbers, got {values!r}") from None


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def refuse_train_ids(path: Path, kind: str) -> None:
    """Refuse Cityscapes' files of train ids, which it recognises by their name.

    Raises:
        DataError: such a file in a data set of label ids. An id table may name train ids.
    """
    if kind in DATA_SETS and "labeltrainids" in path.name.lower():
        raise DataError(
            f"{path} holds train ids, {kind} needs label ids: use the labelIds files, or dataset list with an id table"
        )


def look_like_train_ids(raw_ids: Iterable[int], kind: str) -> bool:
    """Whether the raw ids of many files are probably train ids: all are small enough, and some belong to no class."""
    found = {int(raw) for raw in raw_ids} - {IGNORE}
    lookup, known = id_lookup(kind), known_ids(kind)
    strange = [raw for raw in found if raw >= len(lookup) or (lookup[raw] == IGNORE and (raw > 0 or not known[raw]))]
    return bool(strange) and max(found) < class_table(kind).num_classes
