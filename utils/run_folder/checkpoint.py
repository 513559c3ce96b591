"""Whole-or-nothing checkpoints: one file holds everything that a run needs to go on."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from dataset.files import write_whole
from dataset.messages import ChoiceError, UserError
from models.batchnorm import bn_updates
from models.segmentor import Segmentor
from models.weights import WeightsError, read_file, reading
from utils.config.read import read_keys, to_yaml
from utils.config.schema import Config
from utils.run_folder.classes import class_entry
from utils.run_folder.identity import config_changes, data_changes, git_revision

BEST, LAST, PREVIOUS, CONVERTED = "best.pth", "last.pth", "last.previous.pth", "adabn.pth"
OFFICIAL_ENCODER, OFFICIAL_DECODER = "adabn_encoder.pth", "adabn_decoder.pth"  # the converted network, as released
PASSED_ON = ("model", "bn_updates", "config", "classes", "git", "method")  # entries of a checkpoint to pass on

# Of a state of a training, what it must hold at least; older versions wrote no more.
STATE = {
    "model": dict,
    "bn_updates": dict,
    "config": str,
    "optimizer": dict,
    "scaler": dict,
    "step": int,
    "best_miou": float,
    "skipped": int,
}


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be written or gone on from; the message says what to do."""


class DamagedError(CheckpointError):
    """A checkpoint that cannot be read, so that one before it may be taken."""


def model_state(config: Config, model: Segmentor) -> dict[str, Any]:
    """What a checkpoint says of the network and of where it comes from."""
    return {
        "model": model.state_dict(),
        "bn_updates": bn_updates(model),
        "config": to_yaml(config),
        "classes": class_entry(config.class_table),
        "git": git_revision(),
    }


def saved_keys(content: Mapping[str, Any], origin: str | Path) -> dict[str, Any]:
    """The configuration of a checkpoint, which ``model_state`` wrote, by dotted key.

    Raises:
        WeightsError: it is none; the message names ``origin``.
    """
    with reading(origin):
        try:
            return read_keys(content["config"])
        except yaml.YAMLError as error:
            raise ValueError("its configuration is not YAML") from error


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


def find_state(
    config: Config, method: str, data: Mapping[str, Any], report: Callable[[str], None]
) -> dict[str, Any] | None:
    """State to go on from as ``config.resume`` says, None to start anew.

    A damaged last checkpoint is reported and the one before it taken.

    Args:
        method: name of the training script.
        data: what the run is trained on, see ``identity.data_identity``.

    Raises:
        CheckpointError: no usable file, or one of another method, configuration or data.
    """
    folder = config.run_folder
    if config.resume == "off":
        return None
    if config.resume != "auto":
        return _checked(Path(config.resume), config, method, data, report)
    damaged = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            return _checked(path, config, method, data, report)
        except DamagedError as error:
            damaged.append(str(error))
            report(f"damaged checkpoint, looking for the one before it. {error}")
    if damaged:
        best = f"; resume={folder / BEST} goes on from the best one" if (folder / BEST).is_file() else ""
        raise CheckpointError(f"no checkpoint to go on from: {'; '.join(damaged)}. resume=off starts anew{best}")
    return None


def _checked(
    path: Path, config: Config, method: str, data: Mapping[str, Any], report: Callable[[str], None]
) -> dict[str, Any]:
    """The training state in the file ``path``, if it is of this run."""
    try:
        state = read_file(path)
    except WeightsError as error:
        raise DamagedError(f"no checkpoint to go on from: {error}") from error
    if "model" in state and "step" not in state:
        raise CheckpointError(
            f"{path} has a network but no state of a training (step, optimiser), as test_adabn.py writes it: "
            f"model.weights={path} starts a new training from it"
        )
    wrong = [name for name, kind in STATE.items() if not isinstance(state.get(name), kind)]
    if not wrong and state["step"] < 0:
        wrong = ["step"]
    if wrong:
        raise DamagedError(f"{path} is no state of a training: {', '.join(wrong)} missing, or not what it should be")
    try:
        _compare(state, path, config, method, data, report)
    except (yaml.YAMLError, zlib.error, LookupError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(f"{path} is no state of a training: what it says of its run is unreadable") from error
    report(f"going on from {path} after step {state['step']}")
    return state


def _compare(
    state: dict[str, Any],
    path: Path,
    config: Config,
    method: str,
    data: Mapping[str, Any],
    report: Callable[[str], None],
) -> None:
    if "method" not in state:
        report(f"{path} is of an older version, which did not note the method and the data: they are not compared")
    elif state["method"] != method:
        raise CheckpointError(
            f"{path} was written by {state['method']}.py, this is {method}.py: choose another exp_name, or start anew "
            f"with resume=off; model.weights={path} starts from its network"
        )
    changed = config_changes(state["config"], config)
    problems = [f"another configuration ({changed})"] if changed else []
    if "data" in state and (changed := data_changes(state["data"], data)):
        problems.append(f"other data ({changed})")
    if problems and not config.resume_force:
        raise CheckpointError(
            f"{path} was written with {' and '.join(problems)}. Restore it, start anew with resume=off, or "
            "go on all the same with resume_force=true"
        )
    for problem in problems:
        report(f"resume_force: going on although the checkpoint was written with {problem}")


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


def save_weights(path: Path, to: Path, config: Config) -> str:
    """Copy the checkpoint ``path`` to the file ``to`` without what only going on with its training needs.

    Args:
        config: of the same classes; it names them in place of an older checkpoint, which does not.

    Returns:
        what was written, for people.

    Raises:
        CheckpointError: no network in the file, or ``to`` is the checkpoint itself or cannot be written.
    """
    content = read_file(path)
    if "model" not in content or "config" not in content:
        raise CheckpointError(f"{path} is no checkpoint of this project")
    if to.resolve() == path.resolve():
        raise CheckpointError(f"{to} is the checkpoint itself: choose another file")
    kept = {name: content[name] for name in PASSED_ON if name in content}
    if "classes" not in kept:
        kept["classes"] = class_entry(config.class_table)
    save_atomic(kept, to)
    sizes = " instead of ".join(f"{file.stat().st_size / 1e6:.1f}" for file in (to, path))
    return f"{to}: weights, classes and configuration of {path}, {sizes} MB"
