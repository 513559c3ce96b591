"""Whole-or-nothing checkpoints: one file holds everything that a run needs to go on."""

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from dataset.files import write_whole
from dataset.messages import ChoiceError, UserError
from models.batchnorm import bn_updates
from models.segmentor import Segmentor
from models.weights import WeightsError, read_file
from utils.config.read import flatten, to_yaml
from utils.config.schema import Config

BEST, LAST, PREVIOUS, CONVERTED = "best.pth", "last.pth", "last.previous.pth", "adabn.pth"
# Keys that change neither the result nor its place in the training.
FREE_KEYS = (
    "snapshot_dir",
    "exp_name",
    "resume",
    "resume_force",
    "model.fc_dim",  # only checks model.encoder
    "train.num_workers",
    "train.cache_dir",
    "train.skip_bad_samples",
    "test.num_workers",
)


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or gone on from; the message says what to do."""


def model_state(config: Config, model: Segmentor) -> dict[str, Any]:
    """What a checkpoint says of the network and of where it comes from."""
    return {
        "model": model.state_dict(),
        "bn_updates": bn_updates(model),
        "config": to_yaml(config),
        "git": git_revision(),
    }


def make_run_folder(folder: Path) -> None:
    """Make the run folder if absent. Raises CheckpointError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        problem = f"cannot write into the run folder {folder}: {error.strerror}"
        raise CheckpointError(f"{problem}. Make it writable or choose another snapshot_dir") from error


def save_atomic(state: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write ``state`` so that ``path`` is at every moment either the old file or the whole new one.

    Args:
        previous: where the old file is kept; between the two renames it is the only one.

    Raises:
        CheckpointError: the file cannot be written; the old one is untouched.
    """
    try:
        write_whole(path, lambda stream: torch.save(state, stream), sync=True, previous=previous)
    except (OSError, RuntimeError) as error:  # torch.save hides an OSError in a RuntimeError
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(
            f"cannot write {path}: {reason}. The checkpoint before it is whole: make room, or the folder writable, and "
            "start the same command again"
        ) from error


def find_state(config: Config, folder: Path, report: Callable[[str], None]) -> dict[str, Any] | None:
    """State to go on from as ``config.resume`` says, None to start anew.

    A damaged last checkpoint is reported and the one before it taken.

    Raises:
        CheckpointError: no usable file, or the run was configured otherwise.
    """
    if config.resume == "off":
        return None
    candidates = [folder / LAST, folder / PREVIOUS] if config.resume == "auto" else [Path(config.resume)]
    damaged = []
    for path in candidates:
        if config.resume == "auto" and not path.is_file():
            continue
        try:
            state = read_file(path)
            state["step"], state["optimizer"]
        except (WeightsError, KeyError) as error:
            damaged.append(f"{path}: {error}")
            report(f"damaged checkpoint, looking for the one before it. {damaged[-1]}")
            continue
        _check_config(state["config"], config, path)
        report(f"going on from {path} after step {state['step']}")
        return state
    if damaged:
        raise CheckpointError(f"no checkpoint to go on from: {'; '.join(damaged)}. resume=off starts anew")
    return None


def _check_config(saved: str, config: Config, path: Path) -> None:
    old, new = flatten(yaml.safe_load(saved)), flatten(yaml.safe_load(to_yaml(config)))
    differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and k not in FREE_KEYS)
    if differing and not config.resume_force:
        listed = ", ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in differing)
        raise CheckpointError(
            f"{path} was written with another configuration ({listed}). Restore it, start anew with resume=off, or "
            "go on all the same with resume_force=true"
        )


def remove_results(folder: Path) -> list[str]:
    """Delete the checkpoints of an earlier run, which would be mistaken for the new run's. Returns their names."""
    found = [name for name in (BEST, LAST, PREVIOUS, CONVERTED) if (folder / name).is_file()]
    for name in found:
        (folder / name).unlink()
    return found


def resolve_weights(path: str) -> Path:
    """File of a run's result: ``path`` itself; in a run folder best.pth, else last.pth (a run without validation)."""
    given = Path(path)
    candidates = [given, given / BEST, given / LAST]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"no weights at {given}: looked for {', '.join(map(str, candidates))}; train that run first"
    )


def pair_up(weights: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name -> files of each network that ``weights`` lists: runs of this project, or an official encoder, then decoder.

    Raises:
        ChoiceError: an encoder file without a decoder file after it, or a network given twice.
    """
    repeated = sorted({given for given in weights if weights.count(given) > 1})
    if repeated:
        raise ChoiceError(f"weights list {', '.join(repeated)} more than once")
    networks: dict[str, tuple[str, ...]] = {}
    encoder = None
    for given in weights:
        path = resolve_weights(given)
        if "model" in read_file(path):
            if encoder is not None:
                break
            networks[given] = (str(path),)
        elif encoder is None:
            encoder = given
        else:
            networks[encoder], encoder = (encoder, given), None
    if encoder is not None:
        raise ChoiceError(
            f"{encoder} is no checkpoint of this project; as an official encoder it needs its decoder after it"
        )
    return networks


def git_revision() -> str:
    """Commit of the code, or "unknown" outside a git checkout."""
    result = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
