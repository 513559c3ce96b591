"""Checkpoints: one complete file to resume a run, or to use its network without the data.

A resumed run equals a run that never stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
import yaml
from torch import nn

from dataset.files import write_whole
from dataset.labels import CITYSCAPES, ClassTable, is_id_table, table_of
from dataset.messages import ChoiceError, DataError, Report, UserError
from models.batchnorm import bn_updates, set_bn_updates
from models.segmentor import Segmentor
from models.weights import WeightsError, load_tensors, read_file, reading, unchecked
from utils.config.read import read_keys, to_yaml
from utils.config.schema import Config
from utils.run_folder.manifest import RunData, config_changes, git_revision

BEST, LAST, PREVIOUS, CONVERTED = "best.pth", "last.pth", "last.previous.pth", "adabn.pth"
OFFICIAL_ENCODER, OFFICIAL_DECODER = "adabn_encoder.pth", "adabn_decoder.pth"  # converted, in the released format
CONFIG, CONVERSION = "config.yaml", "config_adabn.yaml"  # the configurations of the training and the conversion
RESULTS = (BEST, LAST, PREVIOUS, CONVERTED, OFFICIAL_ENCODER, OFFICIAL_DECODER)
PASSED_ON = ("model", "bn_updates", "config", "classes", "git", "method")  # entries that an export keeps

# Entries that a training state must have. Older versions wrote only these.
STATE: dict[str, type] = {name: dict for name in ("model", "bn_updates", "optimizer", "scaler")}
STATE |= {"config": str, "step": int, "best_miou": float, "skipped": int}


class CheckpointError(UserError, RuntimeError):
    """A checkpoint or its folder cannot be written or used; the message says what to do."""


class DamagedError(CheckpointError):
    """A checkpoint cannot be read; the previous one may be used instead."""


def model_state(config: Config, model: Segmentor) -> dict[str, Any]:
    """The entries of a checkpoint about the network and its origin."""
    return {
        "model": model.state_dict(),
        "bn_updates": bn_updates(model),
        "config": to_yaml(config),
        "classes": class_entry(config.class_table),
        "git": git_revision(),
    }


def class_entry(table: ClassTable) -> dict[str, Any]:
    """Names, colours and export ids of the classes as plain values, for a checkpoint."""
    return {
        "names": list(table.names),
        "palette": table.palette.tolist(),
        "export_ids": table.export_ids[: table.num_classes].tolist(),
    }


def class_table_of(content: Mapping[str, Any], config: Config, origin: str) -> ClassTable:
    """Classes of the checkpoint ``content``, which ``model_state`` wrote.

    Args:
        config: the checkpoint's own; it gives the classes of an older checkpoint without this entry.
        origin: the file, for an error message.

    Raises:
        WeightsError: the classes are damaged, or the id table of an older checkpoint is missing.
    """
    if "classes" in content:
        try:
            entry = content["classes"]
            return table_of(entry["names"], entry["palette"], entry["export_ids"])
        except (DataError, LookupError, TypeError, ValueError) as error:
            raise WeightsError(f"{origin} is damaged in its classes: {error}. Get the file again") from error
    kind = config.source.label_kind
    if not is_id_table(kind):
        return CITYSCAPES
    try:
        return config.class_table
    except ValueError as error:
        raise WeightsError(
            f"{origin} is of an older version and does not contain its classes, and {error}: run the command in the "
            f"folder that has {kind}, or export the checkpoint there by sh run.sh export CONFIG --to FILE.pth"
        ) from error


def saved_keys(content: Mapping[str, Any], origin: str | Path) -> dict[str, Any]:
    """The configuration of a checkpoint, which ``model_state`` wrote, by dotted key.

    Raises:
        WeightsError: the configuration is missing or damaged; the message names ``origin``.
    """
    with reading(origin):
        try:
            return read_keys(content["config"])
        except yaml.YAMLError as error:
            raise ValueError("its configuration is not YAML") from error


def save_atomic(state: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write ``state`` so that ``path`` is always either the old file or the complete new one.

    Args:
        previous: new path of the old file; between the two renames it is the only file.

    Raises:
        CheckpointError: the file cannot be written; the old one does not change.
    """
    try:
        write_whole(path, lambda stream: torch.save(state, stream), sync=True, previous=previous)
    except (OSError, RuntimeError) as error:  # torch.save hides an OSError in a RuntimeError
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(
            f"cannot write {path}: {reason}. The previous checkpoint is complete: free some space or make the folder "
            "writable, and run the same command again"
        ) from error


def find_state(data: RunData, method: str, report: Report) -> dict[str, Any] | None:
    """The state from which to resume, as the key ``resume`` says; None to start anew.

    A damaged last checkpoint is reported and the previous one is used.

    Args:
        data: data and configuration of the run.
        method: name of the training script.

    Raises:
        CheckpointError: no usable file, or one of another method, configuration or data.
    """
    config, folder = data.config, data.config.run_folder
    if config.resume == "off":
        return None
    if config.resume != "auto":
        return _checked(Path(config.resume), data, method, report)
    damaged = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            return _checked(path, data, method, report)
        except DamagedError as error:
            damaged.append(str(error))
            report(f"damaged checkpoint, trying the previous one. {error}")
    if damaged:
        best = f"; resume={folder / BEST} continues from the best one" if (folder / BEST).is_file() else ""
        raise CheckpointError(f"no checkpoint to resume from: {'; '.join(damaged)}. resume=off starts anew{best}")
    return None


def _checked(path: Path, data: RunData, method: str, report: Report) -> dict[str, Any]:
    """The training state in the file ``path``, checked to be of this run."""
    try:
        state = read_file(path)
    except WeightsError as error:
        raise DamagedError(str(error)) from error
    if "model" in state and "step" not in state:
        raise CheckpointError(
            f"{path} has a network but no training state (step, optimiser); test_adabn.py writes such files. "
            f"model.weights={path} starts a new training from it"
        )
    wrong = [name for name, kind in STATE.items() if not isinstance(state.get(name), kind)]
    if not wrong and state["step"] < 0:
        wrong = ["step"]
    if wrong:
        raise DamagedError(f"{path} is no training state: {', '.join(wrong)} missing or of a wrong type")
    try:
        _compare(state, path, data, method, report)
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(f"{path} is no training state: its entries about the run cannot be read") from error
    if remark := unchecked(path):
        report(remark)
    report(f"resuming from {path} after step {state['step']}")
    return state


def _compare(state: dict[str, Any], path: Path, data: RunData, method: str, report: Report) -> None:
    """Report or refuse a checkpoint of another method, configuration or data."""
    if "method" not in state:
        report(f"{path} is of an older version, which did not save method and data: they are not compared")
    elif state["method"] != method:
        raise CheckpointError(
            f"{path} was written by {state['method']}.py, this is {method}.py: choose another exp_name, or start anew "
            f"with resume=off; model.weights={path} starts from its network"
        )
    changed, free = config_changes(state["config"], data.config)
    if free:
        scores = "; scores before and after are not comparable" if "test." in free else ""
        report(f"changed since {path}, without effect on the weights: {free}{scores}")
    problems = [f"another configuration ({changed})"] if changed else []
    if "digest" in state.get("data", {}):  # one digest of all data together
        report(f"{path} is of an older version, which saved another digest of the data: the data are not compared")
    elif "data" in state and (other := data.changes(state["data"], path.parent)):
        problems.append(f"other data ({other})")
    if problems and not data.config.resume_force:
        raise CheckpointError(
            f"{path} was written with {' and '.join(problems)}. Restore it, start anew with resume=off, or "
            "resume anyway with resume_force=true"
        )
    for problem in problems:
        report(f"resume_force: resuming although the checkpoint was written with {problem}")


def resolve_weights(path: str | Path) -> Path:
    """File of a run's result: ``path`` itself, or in a run folder best.pth, or last.pth without validation."""
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
        if "bn_updates" in read_file(path):  # other code bases have files with a "model" too
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
    """Copy the checkpoint ``path`` to the file ``to`` without the entries that are only needed to resume.

    The copy of an older checkpoint gets the names of its classes.

    Args:
        config: if its test set has the same classes, their colours and ids are written.

    Returns:
        a line about the written file.

    Raises:
        CheckpointError: ``path`` has no network; ``to`` exists and is no earlier export, or it cannot be written.
    """
    _check_export(to)
    content = read_file(path)
    if "model" not in content or "config" not in content:
        raise CheckpointError(f"{path} is no checkpoint of this project")
    if to.exists() and to.samefile(path):
        raise CheckpointError(f"{to} is the checkpoint itself: choose another file")
    kept = {name: content[name] for name in PASSED_ON if name in content}
    kept["classes"] = class_entry(config.table_for(class_table_of(content, config, str(path))))
    save_atomic(kept, to)
    sizes = " instead of ".join(f"{file.stat().st_size / 1e6:.1f}" for file in (to, path))
    return f"{to}: weights, classes and configuration of {path}, {sizes} MB"


def _check_export(to: Path) -> None:
    """Raises CheckpointError if an export to ``to`` would replace anything but an earlier export."""
    of_run = any((to.parent / name).is_file() for name in (CONFIG, "log.txt", "run.lock"))
    if of_run and to.name in RESULTS:
        raise CheckpointError(f"{to} is a file of the run in {to.parent}: export to another name")
    if to.exists():
        entries = read_file(to)
        if "model" not in entries or not entries.keys() <= set(PASSED_ON):
            raise CheckpointError(f"{to} exists and is no earlier export: export to another name, or remove it")


@dataclass
class TrainState:
    """The progress of a training.

    Attributes:
        step: number of finished iterations.
        best_miou: best mIoU of the validations so far, in percent; -1 before the first.
        skipped: number of unreadable images so far.
        validated: False between a checkpoint and the end of the validation that follows it.
    """

    step: int = 0
    best_miou: float = -1.0
    skipped: int = 0
    validated: bool = True


def load_training_state(
    state: Mapping[str, Any], model: Segmentor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> TrainState:
    """Load network, optimiser and scaler from a checkpoint of ``Trainer.state_dict``.

    Raises:
        CheckpointError: the checkpoint is of another network or optimiser.
    """
    try:
        load_tensors(model, state["model"], "network", "the checkpoint")
        set_bn_updates(model, state["bn_updates"])
        settings = [group.copy() for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        _check_settings(optimizer, settings)
        _check_momenta(optimizer)
        if state["scaler"]:  # empty if the checkpoint's run had train.amp=off or bf16
            scaler.load_state_dict(state["scaler"])
    except (WeightsError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint does not fit this network and optimiser: {error}. model.weights=FILE starts a new training"
        ) from error
    return TrainState(state["step"], state["best_miou"], state["skipped"], state.get("validated", True))


def _check_settings(optimizer: torch.optim.Optimizer, before: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError for a setting of a wrong type. The optimiser loads it and would fail in its next step.

    Args:
        before: the parameter groups before loading.
    """
    for group, made in zip(optimizer.param_groups, before, strict=True):
        for name in made.keys() - {"params"}:
            kinds = (bool, NoneType) if isinstance(made[name], (bool, NoneType)) else (int, float)
            if type(group.get(name, "")) not in kinds:
                raise ValueError(f"the setting {name} of its optimiser is missing or of another type")


def _check_momenta(optimizer: torch.optim.Optimizer) -> None:
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")  # indexing would add an entry
        if momentum is not None and momentum.shape != parameter.shape:
            raise ValueError(f"a momentum of {tuple(momentum.shape)} for a parameter of {tuple(parameter.shape)}")
