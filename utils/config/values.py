"""Type and range of each key, and the conversion of a text to its value by the key's type, not by YAML's types."""

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any

import yaml

from dataset.files import expand_path
from dataset.messages import DataError
from utils.config.schema import Config, ConfigError, Interval, Range

TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
NOTHING = (None, "", "~", "null", "Null", "NULL")  # for a key that may be null


@dataclass(frozen=True)
class Key:
    """One key of ``utils/config/schema.py`` with its dotted name; see ``key`` there."""

    name: str
    hint: Any
    default: Any
    help: str
    admits: Interval | tuple[str, ...] | None
    path: bool
    needs_one: bool

    @property
    def optional(self) -> bool:
        """Whether the key may be null."""
        return NoneType in typing.get_args(self.hint)

    @property
    def type(self) -> Any:
        """Type of the key, without null."""
        return typing.get_args(self.hint)[0] if self.optional else self.hint

    @property
    def kind(self) -> str:
        """Type and range, as text for messages and help."""
        if isinstance(self.admits, tuple):
            return " | ".join(self.admits)
        text = self.type.__name__ if isinstance(self.type, type) else str(self.type)
        return text + " or null" * self.optional + (f", {self.admits.text}" if self.admits else "")

    def value(self, given: Any) -> Any:
        """The value of the key for ``given``, a text or a value of the key's type.

        Raises:
            ConfigError: a wrong type, a number out of the key's range, or a name that is not one of its choices.
        """
        if self.optional and given in NOTHING:
            return None
        try:
            value = convert(given, self.type)
            if isinstance(self.admits, tuple):
                admitted = value in self.admits
            else:
                numbers = value if isinstance(value, tuple) else (value,)
                admitted = self.admits is None or all(map(self.admits.holds, numbers))
        except (TypeError, ValueError, OverflowError):
            admitted = False
        if not admitted:
            raise ConfigError(f"key '{self.name}' must be {self.kind}, got {given!r}")
        if self.needs_one and not value:
            raise ConfigError(f"key '{self.name}' is empty: it needs at least one entry")
        if self.type == Range and value[0] > value[1]:
            raise ConfigError(f"key '{self.name}' is [min, max], got {given!r}: give the smaller number first")
        if isinstance(value, str) and not value.isprintable():
            raise ConfigError(f"key '{self.name}' has a character that cannot be printed: {value!r}")
        try:
            return expand_path(value) if self.path else value
        except DataError as error:
            raise ConfigError(f"key '{self.name}': {error}") from error


def convert(given: Any, type_: Any) -> Any:
    """``given`` converted to ``type_``; raises TypeError or ValueError if that is impossible."""
    if typing.get_origin(type_) is tuple:
        items = given.split(",") if isinstance(given, str) else given
        if not isinstance(items, (list, tuple)):
            raise TypeError
        first, *others = typing.get_args(type_)
        types = [first] * len(items) if others[-1] is Ellipsis else [first, *others]
        return tuple(convert(item, item_type) for item, item_type in zip(items, types, strict=True))
    if type_ is bool and isinstance(given, str) and given.lower() in TRUE + FALSE:
        return given.lower() in TRUE
    if type_ is float and isinstance(given, (int, float, str)) and not isinstance(given, bool):
        number = float(given)
        if not math.isfinite(number):
            raise ValueError
        return number
    if type_ is int and isinstance(given, str):
        return int(given)
    if type(given) is not type_:
        raise TypeError
    return given


def value_text(value: Any) -> str:
    """``value`` on one line of YAML, as the command line accepts it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _keys(group: Any, prefix: str = "") -> Iterator[Key]:
    hints = typing.get_type_hints(type(group))
    for f in fields(group):
        name, value = f"{prefix}{f.name}", getattr(group, f.name)
        if is_dataclass(value):
            yield from _keys(value, f"{name}.")
        else:
            yield Key(name, hints[f.name], value, **f.metadata)


KEYS = {key.name: key for key in _keys(Config())}  # by dotted name, in the order of the schema
