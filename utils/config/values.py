"""Values of the keys: their types, and whether a given value is admitted."""

import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

from utils.config.declare import ConfigError
from utils.config.schema import Config, Range
from utils.config.yaml_text import parse

TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")


def key_types(group: type = Config, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every key."""
    types_: dict[str, Any] = {}
    hints = typing.get_type_hints(group)
    for f in fields(group):
        if is_dataclass(hints[f.name]):
            types_.update(key_types(hints[f.name], f"{prefix}{f.name}."))
        else:
            types_[f"{prefix}{f.name}"] = hints[f.name]
    return types_


def type_name(type_: Any) -> str:
    """``type_`` as people write it."""
    return (
        type_.__name__
        if isinstance(type_, type) and not typing.get_args(type_)
        else str(type_).replace("NoneType", "null")
    )


def without_none(type_: Any) -> Any:
    """``T`` of ``T | None``, and of ``T``."""
    if typing.get_origin(type_) is types.UnionType:
        return next(a for a in typing.get_args(type_) if a is not type(None))
    return type_


def convert(value: Any, type_: Any) -> Any:
    """``value`` as ``type_``; raises TypeError or ValueError where it is not one."""
    if value is None and without_none(type_) is not type_:
        return None
    type_ = without_none(type_)
    if typing.get_origin(type_) is tuple:
        return _tuple(value, typing.get_args(type_))
    if type_ is bool and isinstance(value, str) and value.lower() in TRUE + FALSE:
        return value.lower() in TRUE
    if type_ is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = float(value)  # YAML 1.1 reads 1e-4 as a string
        if not math.isfinite(number):
            raise ValueError
        return number
    if type_ is int and isinstance(value, str):
        return int(value)
    if type(value) is not type_:
        raise TypeError
    return value


def _tuple(value: Any, args: tuple) -> tuple:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise TypeError
    if args[-1] is Ellipsis:
        return tuple(convert(item, args[0]) for item in items)
    return tuple(convert(item, arg) for item, arg in zip(items, args, strict=True))


def from_text(name: str, text: str, type_: Any) -> Any:
    """Value of a key on the command line: text is taken as it is, all else is YAML.

    Raises:
        ConfigError: not YAML.
    """
    if without_none(type_) is not str or text[:1] in ("'", '"'):
        return parse(text, f"command line: key '{name}': {text!r}")[0]
    optional = type_ is not str
    return None if text == "null" or (optional and text in ("", "~")) else text


def admitted(name: str, value: Any, type_: Any, metadata: Mapping[str, Any]) -> Any:
    """``value`` of the key ``name`` as ``type_``.

    Raises:
        ConfigError: another type, a number out of the key's range, a name that is none of its choices.
    """
    try:
        value = convert(value, type_)
    except (TypeError, ValueError, OverflowError):
        quotes = ": put it into quotes" if without_none(type_) is str and isinstance(value, (int, float)) else ""
        raise ConfigError(
            f"key '{name}' must be {type_name(type_)}, got {value!r} ({type(value).__name__}){quotes}"
        ) from None
    if metadata["choices"] and value not in metadata["choices"]:
        raise ConfigError(f"key '{name}' is {value!r}; choose one of {', '.join(metadata['choices'])}")
    if metadata["needs_one"] and value == ():
        raise ConfigError(f"key '{name}' is empty: it needs one entry at least")
    _check_limits(name, value, type_, metadata)
    if isinstance(value, str) and not value.isprintable():
        raise ConfigError(f"key '{name}' has a character that cannot be printed: {value!r}")
    return os.path.expanduser(value) if metadata["path"] and value else value


def _check_limits(name: str, value: Any, type_: Any, metadata: Mapping[str, Any]) -> None:
    limits = metadata["within"]
    if limits is None or value is None:
        return
    numbers = value if isinstance(value, tuple) else (value,)
    if any(number not in limits for number in numbers):
        each = "each number of " if isinstance(value, tuple) else ""
        shown = list(value) if isinstance(value, tuple) else value
        raise ConfigError(f"{each}key '{name}' must be {limits}, got {shown}")
    if without_none(type_) == Range and numbers[0] > numbers[1]:
        raise ConfigError(f"key '{name}' is [min, max], got {list(numbers)}: the first number is the smaller one")


def check_exp_name(name: str) -> None:
    """Refuse a run name whose folder would not lie below ``snapshot_dir``, where results may be deleted.

    Raises:
        ConfigError: an absolute path, or one with ``..``.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(
            f"key 'exp_name' is {name!r}: the run folder snapshot_dir/exp_name must lie below snapshot_dir, "
            "set that to choose another place"
        )
