"""YAML configuration, strictly: an unknown key, a wrong type or a duplicate key is an error that names the key."""

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from dataset.messages import nearest
from utils.config.official import OfficialKeyError, translate
from utils.config.schema import Config

OFFICIAL = "common"  # the group of the authors' keys


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


def _repeated_keys(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """(dotted name, line, line of the repetition) of every key that YAML would silently take the last of."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        name, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if name in seen:
            yield name, seen[name], line
        seen[name] = line
        yield from _repeated_keys(value_node, f"{name}.")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"model": {"encoder": x}}`` -> ``{"model.encoder": x}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def read_yaml(path: str | Path, script: str) -> dict[str, Any]:
    """One YAML file as a flat dict of dotted keys; the authors' keys below ``common:`` as ours for ``script``."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file {path}")
    text = path.read_text()
    try:
        tree = yaml.safe_load(text)
        repeated = list(_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(tree).__name__}")
    for name, first, second in repeated:
        if not name.startswith(f"{OFFICIAL}."):
            raise ConfigError(f"{path}: key '{name}' in line {first} and again in {second}")
    official = tree.pop(OFFICIAL, None)
    if official is None:
        return flatten(tree)
    try:
        translated = translate(official, script, [name.removeprefix(f"{OFFICIAL}.") for name, _, _ in repeated])
    except OfficialKeyError as error:
        raise ConfigError(f"{path}: {error}") from error
    return translated | flatten(tree)


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


def _convert(value: Any, type_: Any) -> Any:
    """``value`` as ``type_``; raises TypeError or ValueError where it is not one."""
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if origin is types.UnionType:
        if value is None:
            return None
        return _convert(value, next(a for a in args if a is not type(None)))
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise TypeError
        if args[-1] is Ellipsis:
            return tuple(_convert(item, args[0]) for item in items)
        if len(items) != len(args):
            raise ValueError
        return tuple(_convert(item, arg) for item, arg in zip(items, args, strict=True))
    if type_ is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        return float(value)  # YAML 1.1 reads 1e-4 as a string
    if type_ is int and isinstance(value, str):
        return int(value)
    if type_ is str and value is False:
        return "off"  # ... and a bare off as false
    if type(value) is not type_:
        raise TypeError
    return value


def type_name(type_: Any) -> str:
    """``type_`` as people write it."""
    if isinstance(type_, type) and not typing.get_args(type_):
        return type_.__name__
    return str(type_).replace("NoneType", "null")


def set_key(config: Config, name: str, value: Any, origin: str) -> None:
    """Set the dotted key ``name``; ``origin`` (file or command line) goes into the error message."""
    known = key_types()
    if name not in known:
        same_leaf = [k for k in known if k.split(".")[-1] == name.split(".")[-1]]
        close = same_leaf[0] if same_leaf else nearest(name, known)
        raise ConfigError(f"{origin}: unknown key '{name}'; the nearest is '{close}'")
    try:
        value = _convert(value, known[name])
    except (TypeError, ValueError):
        expected, given = type_name(known[name]), f"{value!r} ({type(value).__name__})"
        raise ConfigError(f"{origin}: key '{name}' must be {expected}, got {given}") from None
    *groups, leaf = name.split(".")
    owner = config
    for group in groups:
        owner = getattr(owner, group)
    choices = next(f for f in fields(owner) if f.name == leaf).metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{origin}: key '{name}' is {value!r}; choose one of {', '.join(choices)}")
    setattr(owner, leaf, value)


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["train.num_steps=10"]`` -> ``{"train.num_steps": 10}``; values are YAML."""
    overrides = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"command line: '{pair}' is not key=value")
        overrides[name] = yaml.safe_load(text)
    return overrides


def build_config(
    path: str | Path, overrides: Sequence[str] = (), defaults: dict[str, Any] | None = None, script: str = "evaluate"
) -> Config:
    """Config from a script's ``defaults`` (dotted keys), then the YAML file, then ``key=value`` overrides.

    ``script`` is the name of the script, on which the meaning of the authors' keys depends.
    """
    config = Config()
    in_file, in_command = read_yaml(path, script), parse_overrides(overrides)
    for origin, values in (("script", defaults or {}), (str(path), in_file), ("command line", in_command)):
        for name, value in values.items():
            set_key(config, name, value, origin)
    if not config.exp_name:
        config.exp_name = Path(path).stem
    return config


def to_yaml(config: Config) -> str:
    """The effective configuration as YAML that ``build_config`` reads back."""
    tree = asdict(config)
    plain = {k: [list(v) if isinstance(v, tuple) else v for v in [v]][0] for k, v in flatten(tree).items()}
    nested: dict[str, Any] = {}
    for name, value in plain.items():
        *groups, leaf = name.split(".")
        owner = nested
        for group in groups:
            owner = owner.setdefault(group, {})
        owner[leaf] = value
    return yaml.safe_dump(nested, sort_keys=False)
