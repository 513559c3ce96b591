"""Strict YAML configuration: an unknown key, a wrong type or a repeated key is an error that names the key.

A file may begin with ``base: other.yaml``: it inherits the keys that it does not set.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from dataset.files import NOT_YAML, YamlLoader, expand_path, read_text, yaml_problem
from dataset.messages import nearest
from utils.config.official import DERIVED, RENAMED, check_complete, translate
from utils.config.schema import LIST, Config, ConfigError
from utils.config.values import KEYS

OFFICIAL = "common."  # the group of the authors' keys
ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "cfgs"
SUFFIX = ".yaml"
# Our key (or what replaces one here) -> its names in other programs.
_NAMES = {
    "train.lr_encoder": "lr base_lr learning_rate init_lr lr0",
    "train.num_steps": "epochs num_epochs max_epochs n_epochs epoch iterations num_iterations iters max_iters max_iter "
    "max_iterations steps max_steps total_steps",
    "train.batch_size": "batch bs batchsize bsz samples_per_gpu",
    "train.num_workers": "workers n_workers threads",
    "train.schedule": "lr_policy lr_schedule scheduler policy",
    "train.amp": "fp16 bf16 half precision mixed_precision use_amp",
    "train.print_freq": "log_every log_interval log_freq print_every",
    "num_classes": "classes nc nclass n_classes n_class class_num",
    "source.input_size": "image_size img_size imgsz size resize img_scale resolution",
    "source.crop_size": "crop patch_size crops random_crop",
    "source.id_table": "palette label_map class_map names class_names",
    "source.data_dir": "data dataset_dir data_root root data_path dataroot",
    "model.encoder": "backbone arch architecture network net",
    "model.decoder": "head decode_head classifier",
    "model.weights": "pretrained checkpoint ckpt load_from init init_from finetune",
    "val.every": "val_every val_interval eval_every eval_interval eval_freq save_every save_interval save_freq",
    "curriculum.conf_threshold": "threshold confidence conf tau pseudo_threshold",
    "exp_name": "name run_name experiment run exp",
    "snapshot_dir": "output output_dir out out_dir work_dir save_dir log_dir logdir runs",
    "resume": "resume_from restore continue",
    "seed": "random_seed manual_seed rng",
    "NPROC=2 sh run.sh SCRIPT, and CUDA_VISIBLE_DEVICES": "device devices gpu gpus gpu_id gpu_ids num_gpus ngpus cuda",
}
OTHER_NAMES = {name: key for key, names in _NAMES.items() for name in names.split()}
BASE = "base"  # names the file that this one inherits from


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"model": {"encoder": x}}`` -> ``{"model.encoder": x}``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@contextmanager
def _naming(origin: str) -> Iterator[None]:
    """Context in which an error names ``origin`` (a file, a key), and the line if the text is not YAML."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except NOT_YAML as error:
        raise ConfigError(f"{origin} {yaml_problem(error)}") from error


def _content(node: yaml.Node | None) -> Any:
    """Lists, dicts and texts of a YAML node. Numbers and dates stay texts."""
    if isinstance(node, yaml.SequenceNode):
        return [_content(item) for item in node.value]
    return _entries(node)[0] if isinstance(node, yaml.MappingNode) else node and node.value


def _entries(node: yaml.Node | None, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """Content of every key below ``node`` by dotted name, and the authors' keys that occur twice."""
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{prefix}expected keys and values")
    entries: dict[str, Any] = {}
    lines: dict[str, int] = {}
    repeated = []
    for key_node, value_node in node.value:
        name, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if name in lines and not name.startswith(OFFICIAL):
            raise ConfigError(f"key '{name}' is in line {lines[name]} and again in line {line}: remove one of them")
        repeated += [name.removeprefix(OFFICIAL)] if name in lines else []
        lines[name] = line
        if isinstance(value_node, yaml.MappingNode) and value_node.value:
            below, twice = _entries(value_node, f"{name}.")
            entries, repeated = entries | below, repeated + twice
        else:
            entries[name] = _content(value_node)
    return entries, repeated


@dataclass(frozen=True)
class YamlFile:
    """Content of one YAML file, without the inherited keys.

    Attributes:
        base: the file that it inherits from.
        keys: values by dotted name, not yet checked; the authors' keys have our names.
        theirs: our name -> the authors' name, for the keys that come from ``common:``.
        official: all of the authors' keys in the file.
    """

    path: Path
    base: Path | None
    keys: dict[str, Any]
    theirs: dict[str, str]
    official: frozenset[str]

    def origin(self, name: str) -> str:
        """File, and the authors' key if there is one, that sets the key ``name``; for messages."""
        return f"{self.path}, {OFFICIAL}{self.theirs[name]}" if name in self.theirs else str(self.path)


def find_config(given: str, folder: Path = Path()) -> Path:
    """File of the configuration ``given``, relative to ``folder``; if it is missing, the shipped file of that name.

    ``.yaml`` may be left out. Raises ConfigError, which names the nearest file.
    """
    path = Path(expand_path(given))
    for place in (folder / path, ROOT / path, SHIPPED / path):
        for candidate in (place, place.with_name(f"{place.name}{SUFFIX}")):
            if place.name and candidate.is_file():
                return candidate
    known = [str(file) for file in (folder / path).parent.glob(f"*{SUFFIX}")]
    known += [str(file.relative_to(ROOT)) for file in SHIPPED.rglob(f"*{SUFFIX}")]
    raise ConfigError(f"no config file {folder / path}; the nearest is {nearest(given, known)}")


def read_yaml(path: str | Path, script: str) -> YamlFile:
    """One YAML file. The authors' keys below ``common:`` become our keys for ``script``; the base plays no part.

    Raises:
        ConfigError: a missing file, not YAML, a repeated key, or a ``base`` that is not one path or is missing.
        DataError: the file is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file {path}")
    with _naming(str(path)):
        entries, repeated = _entries(yaml.compose(read_text(path), Loader=YamlLoader))
        base = entries.pop(BASE, None)
        if base is not None and (not isinstance(base, str) or not base):
            raise ConfigError(f"{BASE} must be the path of one file, got {base!r}")
        found = base and find_config(base, path.parent)
        if OFFICIAL.removesuffix(".") in entries:
            raise ConfigError(f"{OFFICIAL.removesuffix('.')}: expected keys and values")
        below = [name for name in entries if name.startswith(OFFICIAL)]
        official = {name.removeprefix(OFFICIAL): entries.pop(name) for name in below}
        keys = translate(official, script, repeated) if official else {}
    named = {own: name for name, own in (RENAMED | DERIVED).items() if name in official}
    theirs = {own: name for own, name in named.items() if own in keys.keys() - entries.keys()}
    return YamlFile(path, found, keys | entries, theirs, frozenset(official))


def read_chain(path: str | Path, script: str) -> list[YamlFile]:
    """The file ``path`` and the files it inherits from, base first. Later files override; a list replaces a list.

    Each file is translated alone: its ``common:`` is never merged with a ``common:`` of its base.
    ``exp_name`` is not inherited, because two runs would share a folder.

    Raises:
        ConfigError: as ``read_yaml``; a cycle of bases.
    """
    chain = [read_yaml(path, script)]
    while (base := chain[0].base) is not None:
        if base.resolve() in {file.path.resolve() for file in chain}:
            names = [str(file.path) for file in reversed(chain)]
            raise ConfigError(f"a file cannot inherit from itself: {' -> '.join([*names, str(base)])}")
        inherited = read_yaml(base, script)
        inherited.keys.pop("exp_name", None)
        chain.insert(0, inherited)
    return chain


def _nearest_key(name: str) -> str:
    """The key that the user probably meant: by its meaning, its last part or its spelling, in the same group if any."""
    group, _, leaf = name.rpartition(".")
    leaf = leaf.lower().replace("-", "_")
    same_leaf = [key for key in KEYS if key.split(".")[-1] == leaf]
    close = (OTHER_NAMES | RENAMED).get(leaf) or [*same_leaf, nearest(name, KEYS)][0]
    beside = f"{group}.{close.split('.')[-1]}"
    return beside if beside in KEYS else close


def set_key(config: Config, name: str, value: Any, origin: str) -> None:
    """Set the dotted key ``name`` to ``value``, a text or a value; errors name ``origin``.

    Raises:
        ConfigError: an unknown key, or a value out of the key's range.
    """
    if value in (None, "", {}) and any(key.startswith(f"{name}.") for key in KEYS):
        return  # a group without keys
    if name not in KEYS:
        raise ConfigError(f"{origin}: unknown key '{name}'; the nearest is '{_nearest_key(name)}'")
    group, _, leaf = name.rpartition(".")
    with _naming(origin):
        setattr(getattr(config, group) if group else config, leaf, KEYS[name].value(value))


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["source.crop_size=[64, 32]"]`` -> ``{"source.crop_size": ["64", "32"]}``.

    The value of a text key is used as it is, unless it is quoted. The value of any other key is YAML.

    Raises:
        ConfigError: not ``key=value``, or not YAML.
    """
    overrides = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"command line: '{pair}' is not key=value")
        overrides[name] = text
        if name not in KEYS or KEYS[name].type is not str or text[:1] in ("'", '"'):
            with _naming(f"command line: key '{name}': {text!r}"):
                overrides[name] = _content(yaml.compose(text, Loader=YamlLoader))
    return overrides


def check_exp_name(name: str) -> None:
    """Check that the run folder lies below ``snapshot_dir``: earlier results are moved only there.

    Raises:
        ConfigError: the name is an absolute path, or contains ``..``.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(
            f"key 'exp_name' is {name!r}: the run folder snapshot_dir/exp_name must lie below snapshot_dir. "
            "Set snapshot_dir to choose another place"
        )


def build_config(
    path: str | Path, overrides: Sequence[str] = (), defaults: dict[str, Any] | None = None, script: str = "evaluate"
) -> Config:
    """Config from a script's ``defaults`` (dotted keys), the bases, the YAML file and the ``key=value`` overrides.

    Later ones override. The meaning of the authors' keys depends on the name of the ``script``.

    Raises:
        ConfigError: names the key, and the file that sets it.
    """
    config, chain = Config(), read_chain(path, script)
    settings = [(name, value, file.origin(name)) for file in chain for name, value in file.keys.items()]
    settings += [(name, value, "command line") for name, value in parse_overrides(overrides).items()]
    given = {name for name, _, _ in settings}
    for name, value, origin in [(*default, "script") for default in (defaults or {}).items()] + settings:
        set_key(config, name, value, origin)
    if not config.exp_name:
        config.exp_name = Path(path).stem
    check_exp_name(config.exp_name)
    config.follow_target()
    official = {name for file in chain for name in file.official}
    if official:
        check_complete(config, script, official, given, str(path))
    if config.test.dataset == LIST and "test.input_size" not in given | (defaults or {}).keys():
        config.test.input_size = None  # the default has Cityscapes' shape
    return config


def read_keys(text: str) -> dict[str, Any]:
    """Values in a text of ``to_yaml``, also of another version, by dotted key. Raises yaml.YAMLError."""
    return flatten(yaml.load(text, Loader=YamlLoader))


def to_yaml(config: Config) -> str:
    """The effective configuration as YAML that ``build_config`` reads back."""
    return yaml.safe_dump(asdict(config), sort_keys=False)
