"""YAML id tables of somebody's own data, strictly: what is misspelt, repeated or out of range is an error."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dataset.files import read_text
from dataset.messages import DataError, IdTableError, few, nearest

MAX_ID = 255  # of 8-bit label files
MAX_CLASSES = 254  # train ids are 8 bits too, of which two stand for what is no class
SHAPE = "it needs classes: [{name: road, colour: [128, 64, 128], ids: [7]}, ...] and, optionally, void: [...]"


@dataclass(frozen=True)
class IdClass:
    """One class of a table: its name, RGB colour, and the raw ids that are it, at least one."""

    name: str
    colour: tuple[int, ...]
    ids: tuple[int, ...]


class _Loader(yaml.BaseLoader):
    """Strings, lists and mappings are all there is: a class called ``no`` is no boolean."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        repeated = [name for name, count in Counter(str(key.value) for key, _ in node.value).items() if count > 1]
        if repeated:
            raise IdTableError(f"line {node.start_mark.line + 1} on has {few(repeated)} more than once")
        return super().construct_mapping(node, deep)


def parse_id_table(path: str | Path) -> tuple[list[IdClass], list[int]]:
    """Classes in train-id order, and the raw ids that occur but are no class.

    Raises:
        IdTableError: no such file, not YAML, a key that is unknown, missing or repeated, two classes of one name, an id
            named twice, or an id or colour out of range; the message is one line and names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise IdTableError(f"no id table {path}")
    try:
        # Not safe_load, which would turn names into booleans and numbers; this loader makes strings only.
        return _parse(yaml.load(read_text(path), Loader=_Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise IdTableError(f"{path}{where}, is not YAML: {problem}") from error
    except RecursionError as error:
        raise IdTableError(f"{path} is nested too deeply: {SHAPE}") from error
    except IdTableError as error:
        raise IdTableError(f"{path}: {error}") from None
    except DataError as error:  # of its encoding, which names the file
        raise IdTableError(str(error)) from None


def _parse(content: Any) -> tuple[list[IdClass], list[int]]:
    _check_keys(content, "the table", required={"classes"}, optional={"void"})
    if not isinstance(content["classes"], list) or not content["classes"]:
        raise IdTableError(f"classes is no list of classes: {SHAPE}")
    classes = [_parse_class(entry, number) for number, entry in enumerate(content["classes"], start=1)]
    void = _numbers(content.get("void") or [], "void")
    twice = [name for name, count in Counter(c.name for c in classes).items() if count > 1]
    if twice:
        raise IdTableError(f"two classes are called {few(twice)}: every name once")
    if len(classes) > MAX_CLASSES:
        raise IdTableError(f"{len(classes)} classes, at most {MAX_CLASSES} are possible")
    _check_ids([raw for c in classes for raw in c.ids] + void)
    return classes, void


def _check_keys(content: Any, what: str, required: set[str], optional: frozenset[str] | set[str] = frozenset()) -> None:
    if not isinstance(content, dict):
        raise IdTableError(f"{what} is no mapping: {SHAPE}")
    for name in content:
        if name not in required | optional:
            close = nearest(str(name), sorted(required | optional))
            raise IdTableError(f"{what} has the unknown key {str(name)!r}; the nearest is {close!r}")
    missing = required - content.keys()
    if missing:
        raise IdTableError(f"{what} has no {few(missing)}: {SHAPE}")


def _parse_class(entry: Any, number: int) -> IdClass:
    what = f"class {number}"
    _check_keys(entry, what, required={"name", "colour", "ids"})
    name = entry["name"]
    if not isinstance(name, str) or not name.strip():
        raise IdTableError(f"the name of {what} is {name!r}: it must be a word")
    colour = _numbers(entry["colour"], f"the colour of {name}")
    if len(colour) != 3 or not all(0 <= value <= 255 for value in colour):
        raise IdTableError(f"the colour of {name} is {colour}: it must be [R, G, B], each in 0..255")
    ids = _numbers(entry["ids"], f"the ids of {name}")
    if not ids:
        raise IdTableError(f"{name} has no ids: every class needs at least one raw id")
    return IdClass(name, tuple(colour), tuple(ids))


def _numbers(values: Any, what: str) -> list[int]:
    try:
        if not isinstance(values, list):
            raise TypeError
        return [int(value) for value in values]
    except (TypeError, ValueError):
        raise IdTableError(f"{what} must be a list of whole numbers, got {values!r}") from None


def _check_ids(raw_ids: Sequence[int]) -> None:
    wrong = sorted({raw for raw in raw_ids if not 0 <= raw <= MAX_ID})
    repeated = sorted(raw for raw, count in Counter(raw_ids).items() if count > 1)
    if wrong or repeated:
        raise IdTableError(
            f"each raw id once and in 0..{MAX_ID}; wrong: {wrong or 'none'}, more than once: {repeated or 'none'}"
        )
