"""YAML configuration, strictly: an unknown key, a wrong type or a duplicate key is an error that names the key.

A file may begin with ``base: other.yaml``: it inherits what it does not set itself.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from dataset.messages import nearest
from utils.config.declare import ConfigError
from utils.config.official import FROM_IMAGENET, RENAMED, OfficialKeyError, left_open, translate
from utils.config.schema import LIST, SCRATCH, Config
from utils.config.values import admitted, check_exp_name, from_text, key_types
from utils.config.yaml_text import parse, read_text

OFFICIAL = "common"  # the group of the authors' keys
DEFAULTS = "script"  # origin of a script's own defaults
BASE = "base"  # names the file that this one inherits from


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
        if isinstance(value, dict) and value:
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
        theirs: the authors' name of each of those.
        official: all of the authors' keys in it; None: it has no ``common:``.
    """

    path: Path
    base: Path | None
    keys: dict[str, Any]
    theirs: dict[str, str]
    official: frozenset[str] | None = None

    def origin(self, name: str) -> str:
        """Where the key ``name`` stands, for messages."""
        return f"{self.path}, {OFFICIAL}.{self.theirs[name]}" if name in self.theirs else str(self.path)


def read_yaml(path: str | Path, script: str) -> YamlFile:
    """One YAML file; the authors' keys below ``common:`` as ours for ``script``, whatever its base is made of.

    Raises:
        ConfigError: no such file, not YAML, a key given twice, or a ``base`` that is not one path.
    """
    path = Path(path)
    tree, repeated = _load(path)
    base = _base_of(tree, path)
    keys: dict[str, Any] = {}
    if (official := tree.pop(OFFICIAL, None)) is not None:
        try:
            keys = translate(official, script, repeated)
        except OfficialKeyError as error:
            raise ConfigError(f"{path}: {error}") from error
    own = flatten(tree)
    theirs = {RENAMED[name]: name for name in official or () if RENAMED.get(name, "") in keys.keys() - own.keys()}
    return YamlFile(path, base, keys | own, theirs, None if official is None else frozenset(map(str, official)))


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
    tree, node = parse(read_text(path), str(path))
    try:
        repeated = list(_repeated_keys(node))
        flatten(tree if isinstance(tree, dict) else {})
    except RecursionError as error:
        raise ConfigError(f"{path}: a key contains itself by a YAML alias") from error
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


def set_key(config: Config, name: str, value: Any, origin: str) -> None:
    """Set the dotted key ``name``; ``origin`` (file or command line) goes into the error message.

    Raises:
        ConfigError: no such key, or a value that it does not admit.
    """
    known = key_types()
    if any(key.startswith(f"{name}.") for key in known) and value in (None, {}):
        return  # a group of which all keys are left out
    if name not in known:
        same_leaf = [k for k in known if k.split(".")[-1] == name.split(".")[-1]]
        close = same_leaf[0] if same_leaf else nearest(name, known)
        raise ConfigError(f"{origin}: unknown key '{name}'; the nearest is '{close}'")
    *groups, leaf = name.split(".")
    owner = config
    for group in groups:
        owner = getattr(owner, group)
    metadata = next(f for f in fields(owner) if f.name == leaf).metadata
    try:
        setattr(owner, leaf, admitted(name, value, known[name], metadata))
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def value_text(value: Any) -> str:
    """``value`` on one line of YAML, as ``parse_overrides`` reads it."""
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...") or "''"


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["train.num_steps=10"]`` -> ``{"train.num_steps": 10}``; see ``from_text``."""
    overrides, known = {}, key_types()
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"command line: '{pair}' is not key=value")
        overrides[name] = from_text(name, text, known.get(name))
    return overrides


def build_config(
    path: str | Path, overrides: Sequence[str] = (), defaults: dict[str, Any] | None = None, script: str = "evaluate"
) -> Config:
    """Config from a script's ``defaults`` (dotted keys), then the YAML file's bases, itself, ``key=value`` overrides.

    ``script`` is the name of the script, on which the meaning of the authors' keys depends.

    Raises:
        ConfigError: names the key, and the file of the chain in which it stands.
    """
    config = Config()
    settings = [(name, value, DEFAULTS) for name, value in (defaults or {}).items()]
    chain = read_chain(path, script)
    for file in chain:
        settings += [(name, value, file.origin(name)) for name, value in file.keys.items()]
    settings += [(name, value, "command line") for name, value in parse_overrides(overrides).items()]
    for name, value, origin in settings:
        set_key(config, name, value, origin)
    given = {name for name, _, _ in settings}
    if not config.exp_name:
        config.exp_name = Path(path).stem
    check_exp_name(config.exp_name)
    if any(file.official is not None for file in chain):
        _check_official(config, script, chain, {name for name, _, origin in settings if origin != DEFAULTS})
    config.follow_target()
    if config.test.dataset == LIST and "test.input_size" not in given:
        config.test.input_size = None  # the default is Cityscapes' shape
    return config


def _check_official(config: Config, script: str, chain: Sequence[YamlFile], given: set[str]) -> None:
    """One warning of what a released script needs and the files do not say, with what is taken instead.

    Args:
        given: our keys that a file or the command line gives.

    Raises:
        ConfigError: no weights, for a script that starts from ImageNet's in the released code.
    """
    m, path = config.model, chain[-1].path
    if script in FROM_IMAGENET and not m.weights and not m.weights_encoder:
        raise ConfigError(
            f"{path}: {OFFICIAL}.weights_encoder is empty, so the released {script} starts from ImageNet weights: set "
            f"model.weights_encoder to the file {m.encoder.split('_')[0]}-imagenet.pth, which README.md describes, or "
            f"model.weights={SCRATCH} to start from random weights"
        )
    if script == "evaluate":
        return
    present = frozenset[str]().union(*(file.official or () for file in chain))
    values = flatten(asdict(config))
    lines = [
        f"  {' and '.join(names)}: {own}={value_text(values[own])}"
        for own, names in left_open(present, given, script).items()
    ]
    if lines:
        lines.insert(0, f"keys that the released {script} needs and {OFFICIAL}: lacks, with the default that is taken")
    if script == "train_pycda_spatial" and config.curriculum.spatial_prior is None:
        lines.append(
            f"the released {script} reads the prior file local.npy; curriculum.spatial_prior names no file, so a prior "
            "is computed from the source labels"
        )
    if lines:
        warnings.warn("\n".join(lines), stacklevel=3)


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
