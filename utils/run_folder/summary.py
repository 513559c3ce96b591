"""Summary of a run from its folder: method, start, steps, seed, commit, date, duration, images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.weights import WeightsError, read_file, reading
from utils.config.read import flatten
from utils.config.schema import SCRATCH, Config
from utils.run_folder.checkpoint import BEST, CONFIG, CONVERTED, LAST, saved_keys
from utils.run_folder.manifest import read_manifest

METHODS = {
    "train_source_only": "source only",
    "train_adabn": "AdaBN",
    "train_pycda": "PyCDA",
    "train_pycda_spatial": "PyCDA + spatial ratio",
    "test_adabn": "converted batch norm",
}
UNKNOWN = "-"


@dataclass(frozen=True)
class RunSummary:
    """Summary of one network of a run. Missing facts are ``UNKNOWN`` or None; missing ``images`` are empty."""

    name: str  # of the network, see ``short_name``
    method: str
    start: str | None  # name of the starting weights; None: random
    step: int | None
    num_steps: int
    seed: int
    commit: str
    date: str  # of the first start
    seconds: float | None  # of all starts together, without pauses
    images: dict[str, int]  # by list: source, target, held_out


def read_summary(weights: Path) -> RunSummary:
    """Summary of a checkpoint in its run folder.

    Raises:
        WeightsError, ConfigError, DataError: no checkpoint of this project, or a damaged file.
    """
    content = read_file(weights)
    if "config" not in content:
        raise WeightsError(f"{weights} is no checkpoint of this project: it has no configuration")
    with reading(weights):
        return _summary(weights, content, read_manifest(weights.parent))


def _summary(weights: Path, content: Mapping[str, Any], manifest: Mapping[str, Any]) -> RunSummary:
    keys = _keys(content, weights)
    whole = keys["model.weights"]
    start = keys["model.weights_encoder"] if whole in (None, SCRATCH) else whole
    return RunSummary(
        name=short_name(weights),
        method=METHODS.get(str(content.get("method", manifest.get("method"))), UNKNOWN),
        start=start and short_name(start),
        step=content.get("step"),
        num_steps=keys["train.num_steps"],
        seed=keys["seed"],
        commit=content.get("git", UNKNOWN)[:10],
        date=str(manifest.get("started") or UNKNOWN)[:10],
        seconds=manifest.get("seconds"),
        images=dict(manifest.get("images", {})),
    )


def short_name(path: str | Path) -> str:
    """The name of a network in tables: its run's name, or the file's name if it is not the run's result."""
    path = Path(path)
    if path.name in (BEST, LAST):
        return path.parent.name
    return f"{path.parent.name}/{path.name}" if path.name == CONVERTED else path.name


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Short names of network files; longer names if two would be equal."""
    names = [short_name(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def run_keys(folder: Path) -> dict[str, Any]:
    """The configuration of a run by dotted key, from any version: new and removed keys are no errors.

    Raises:
        WeightsError: config.yaml is damaged; the message names it.
    """
    path = folder / CONFIG
    return _keys({"config": path.read_text(errors="replace")}, path)


def _keys(content: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    """Keys that are missing in the run's version have their defaults."""
    return flatten(asdict(Config())) | saved_keys(content, origin)


def starting_run(run: Path) -> str | None:
    """The run or checkpoint from which a run, or a run's file, started, if it still exists."""
    folder = run.parent if run.is_file() else run
    if not (folder / CONFIG).is_file():
        return None
    start = str(folder) if run.name == CONVERTED else run_keys(folder)["model.weights"]
    exists = start not in (None, SCRATCH) and any((Path(start) / name).is_file() for name in ("", BEST, LAST))
    return start if exists else None
