"""Trainings with recorded gradients, in float32 or float64; one start of the processes runs several trainings."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from models.encoder import Encoder
from utils import distributed
from utils.engine.trainer import Trainer

KEPT = 2**16  # values of a recorded parameter, at most: includes some of every stage; all would take 900 MB


def train(script: str, arguments: Sequence[str], dtype: str = "float32", file: str | None = None) -> None:
    """Run ``script``. ``file`` gets the smaller gradients of each optimiser step by name, equal on all processes."""
    iteration, step = Trainer.step, torch.optim.SGD.step
    gradients, trainers, writes = [], [], []

    def cast(module, inputs):
        return (inputs[0].to(torch.get_default_dtype()), *inputs[1:]) if isinstance(module, Encoder) else None

    def note(self):
        trainers[:], writes[:] = [self], [distributed.is_main()]
        return iteration(self)

    def record(self):
        grads = {name: p.grad for name, p in trainers[0].model.named_parameters() if p.grad is not None}
        gradients.append({name: grad.clone() for name, grad in grads.items() if grad.numel() <= KEPT})
        return step(self)

    Trainer.step, torch.optim.SGD.step = note, record
    hook = register_module_forward_pre_hook(cast)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        importlib.import_module(script).main(arguments)
    finally:
        torch.set_default_dtype(torch.float32)
        hook.remove()
        Trainer.step, torch.optim.SGD.step = iteration, step
    if file and writes[0]:
        torch.save(gradients, file)


def main(arguments: Sequence[str]) -> None:
    """Run all trainings of a JSON file, which is a list of arguments of ``train``."""
    with distributed.process_group(5, dict):  # one group for all trainings
        for job in json.loads(Path(arguments[0]).read_text()):
            train(**job)
