"""The state of a training in a checkpoint. A resumed run equals a run that never stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import nn

from models.batchnorm import set_bn_updates
from models.segmentor import Segmentor
from models.weights import WeightsError, load_tensors
from utils.run_folder.checkpoint import CheckpointError


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
