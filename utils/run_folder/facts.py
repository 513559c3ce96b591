"""What a finished run's folder says of the run: method, start, steps, seed, commit, date, duration, images."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.weights import WeightsError, read_file, reading
from utils.config.read import flatten
from utils.config.schema import SCRATCH, Config
from utils.run_folder.checkpoint import BEST, CONVERTED, LAST, saved_keys
from utils.run_folder.records import RECORDS, read_scalars

METHODS = {
    "train_source_only": "source only",
    "train_adabn": "AdaBN",
    "train_pycda": "PyCDA",
    "train_pycda_spatial": "PyCDA + spatial ratio",
    "test_adabn": "converted batch norm",
}
DAY = 24 * 60 * 60  # seconds
STARTED = "run folder "  # begins the first line of log.txt of every start


@dataclass(frozen=True)
class Facts:
    """Of one network of a run; None where the folder does not say it."""

    name: str  # of the network, see ``short_name``
    method: str
    start: str | None  # name of what its weights were before
    step: int | None
    num_steps: int
    seed: int
    commit: str
    date: str
    seconds: int | None  # of all starts together, pauses left out
    images: dict[str, int]  # by list: source, target, held_out


def read_facts(weights: Path) -> Facts:
    """Facts of a checkpoint in its run folder.

    Raises:
        WeightsError, ConfigError: no checkpoint of this project, or a damaged one.
    """
    content = read_file(weights)
    if "config" not in content:
        raise WeightsError(f"{weights} is no checkpoint of this project: it does not say how it was trained")
    with reading(weights):
        return _facts(weights, content)


def _facts(weights: Path, content: Mapping[str, Any]) -> Facts:
    folder, keys = weights.parent, _keys(content, weights)
    whole = keys["model.weights"]
    start = keys["model.weights_encoder"] if whole in (None, SCRATCH) else whole
    lists = sorted((folder / "lists").glob("*.txt"))
    log = folder / "log.txt"
    return Facts(
        name=short_name(weights),
        method=METHODS.get(str(content.get("method"))) or _method(weights, keys["curriculum.lambda_eq"] > 0),
        start=start and short_name(start),
        step=content.get("step"),
        num_steps=keys["train.num_steps"],
        seed=keys["seed"],
        commit=content.get("git", "unknown")[:10],
        date=time.strftime("%Y-%m-%d", time.localtime(weights.stat().st_mtime)),
        seconds=training_seconds(log.read_text(errors="replace")) if log.is_file() else None,
        images={path.stem: len(path.read_text(errors="replace").splitlines()) for path in lists},
    )


def _method(weights: Path, spatial: bool) -> str:
    """By what the run logged, for checkpoints that do not name their method."""
    records = weights.parent / RECORDS
    if weights.name == CONVERTED:
        return METHODS["test_adabn"]
    if records.is_file() and any("target/total" in values for _, values in read_scalars(records)):
        return METHODS["train_pycda_spatial" if spatial else "train_pycda"]
    return "training on the source"


def training_seconds(log: str) -> int | None:
    """Time between the first and the last line of each start, added up; lines begin with HH:MM:SS."""
    total, before = 0, None
    for line in log.splitlines():
        clock = line[:8].split(":")
        if len(clock) != 3 or not all(part.isdigit() for part in clock):
            continue  # a line of a table
        hours, minutes, seconds = map(int, clock)
        now = 3600 * hours + 60 * minutes + seconds
        if before is not None and not line[9:].startswith(STARTED):
            total += (now - before) % DAY
        before = now
    return None if before is None else total


def short_name(path: str | Path) -> str:
    """How a network is called on paper: its run's name, or the file's where it is not the run's result."""
    path = Path(path)
    if path.name in (BEST, LAST):
        return path.parent.name
    return f"{path.parent.name}/{path.name}" if path.name == CONVERTED else path.name


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Short names of networks' files, longer ones where two would be the same."""
    names = [short_name(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def run_keys(folder: Path) -> dict[str, Any]:
    """The configuration of a run by dotted key, whatever version wrote it: one that has come or gone matters to none.

    Raises:
        WeightsError: its config.yaml is none; the message names it.
    """
    path = folder / "config.yaml"
    return _keys({"config": path.read_text(errors="replace")}, path)


def _keys(content: Mapping[str, Any], origin: Path) -> dict[str, Any]:
    """A key that the run's version did not have yet has its default."""
    return flatten(asdict(Config())) | saved_keys(content, origin)


def starting_run(run: Path) -> str | None:
    """The network of this project that a run, or a run's file, started from, if it is still there."""
    folder = run.parent if run.is_file() else run
    if not (folder / "config.yaml").is_file():
        return None
    start = str(folder) if run.name == CONVERTED else run_keys(folder)["model.weights"]
    there = start not in (None, SCRATCH) and any((Path(start) / name).is_file() for name in ("", BEST, LAST))
    return start if there else None
