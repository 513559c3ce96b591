"""YAML configuration, strictly: an unknown key, a wrong type or a duplicate key is an error that names the key.

A file may begin with ``base: other.yaml``: it inherits what it does not set itself.
"""

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from dataset.messages import nearest
from utils.config.official import OfficialKeyError, translate
from utils.config.schema import LIST, Config

OFFICIAL = "common"  # the group of the authors' keys
BASE = "base"  # names the file that this one inherits from


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key."""


def _repeated_keys(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, int, int]]:
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


@dataclass(frozen=True)
class YamlFile:
    """What one YAML file says itself, without what it inherits.

    Attributes:
        base: the file that it inherits from.
        keys: its values by dotted name, not yet checked; the authors' keys under our names.
    """

    path: Path
    base: Path | None
    keys: dict[str, Any]


def read_yaml(path: str | Path, script: str) -> YamlFile:
    """One YAML file; the authors' keys below ``common:`` as ours for ``script``, whatever its base is made of.

    Raises:
        ConfigError: no such file, not YAML, a key given twice, or a ``base`` that is not one path.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file {path}")
    tree, repeated = _load(path)
    base = _base_of(tree, path)
    keys: dict[str, Any] = {}
    if (official := tree.pop(OFFICIAL, None)) is not None:
        try:
            keys = translate(official, script, repeated)
        except OfficialKeyError as error:
            raise ConfigError(f"{path}: {error}") from error
    return YamlFile(path, base, keys | flatten(tree))


def _base_of(tree: dict[str, Any], path: Path) -> Path | None:
    """The base of the file at ``path``, whose content ``tree`` is; takes it out of there."""
    if BASE not in tree:
        return None
    base = tree.pop(BASE)
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: {BASE} must be the path of one file, got {base!r}")
    return path.parent / base


def _load(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Content of a YAML file, and the authors' keys that it gives twice (of theirs, the last one counts)."""
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
    return tree, [name.removeprefix(f"{OFFICIAL}.") for name, _, _ in repeated]


def read_chain(path: str | Path, script: str) -> list[YamlFile]:
    """The file ``path`` and those it inherits from, base first; what comes later wins, and a list replaces a list.

    Each file's own keys, the authors' too, are complete in themselves: ``common:`` is never merged with a base's.
    ``exp_name`` is not inherited, because two runs would share a folder.

    Raises:
        ConfigError: as ``read_yaml``; a base that is not there; files that are each other's base.
    """
    chain = [read_yaml(path, script)]
    while (base := chain[0].base) is not None:
        if not base.is_file():
            raise ConfigError(
                f"{chain[0].path}: its base {base} is no file; {BASE} is relative to the file it stands in"
            )
        if base.resolve() in {file.path.resolve() for file in chain}:
            names = [str(file.path) for file in reversed(chain)]
            raise ConfigError(f"a file cannot inherit from itself: {' -> '.join([*names, str(base)])}")
        inherited = read_yaml(base, script)
        inherited.keys.pop("exp_name", None)
        chain.insert(0, inherited)
    return chain


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
        return tuple(_convert(item, arg) for item, arg in zip(items, args, strict=False))
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
    return (
        type_.__name__
        if isinstance(type_, type) and not typing.get_args(type_)
        else str(type_).replace("NoneType", "null")
    )


def set_key(config: Config, name: str, value: Any, origin: str) -> None:
    """Set the dotted key ``name``; ``origin`` (file or command line) goes into the error message."""
    known = key_types()
    if name not in known:
        same_leaf = [k for k in known if k.split(".")[-1] == name.split(".")[-1]]
        raise ConfigError(
            f"{origin}: unknown key '{name}'; the nearest is '{(same_leaf or [nearest(name, known)])[0]}'"
        )
    try:
        value = _convert(value, known[name])
    except (TypeError, ValueError):
        expected = type_name(known[name])
        raise ConfigError(
            f"{origin}: key '{name}' must be {expected}, got {value!r} ({type(value).__name__})"
        ) from None
    *groups, leaf = name.split(".")
    owner = config
    for group in groups:
        owner = getattr(owner, group)
    choices = next(f for f in fields(owner) if f.name == leaf).metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{origin}: key '{name}' is {value!r}; choose one of {', '.join(choices)}")
    setattr(owner, leaf, value)


def value_text(value: Any) -> str:
    """``value`` on one line of YAML, as ``parse_overrides`` reads it."""
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...") or "''"


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
    """Config from a script's ``defaults`` (dotted keys), then the YAML file's bases, itself, ``key=value`` overrides.

    ``script`` is the name of the script, on which the meaning of the authors' keys depends.

    Raises:
        ConfigError: names the key, and the file of the chain in which it stands.
    """
    config, given = Config(), set()
    for origin, values in (
        ("script", defaults or {}),
        *((str(file.path), file.keys) for file in read_chain(path, script)),
        ("command line", parse_overrides(overrides)),
    ):
        for name, value in values.items():
            set_key(config, name, value, origin)
            given.add(name)
    if not config.exp_name:
        config.exp_name = Path(path).stem
    if config.test.dataset == LIST and "test.input_size" not in given:
        config.test.input_size = None  # the default is Cityscapes' shape
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
