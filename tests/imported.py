"""Imports of a training, and torch's first optimiser: for the server that forks the processes."""

import torch

import utils.engine.experiment
import utils.launch
import utils.scoring.predictions

__all__ = ["torch", "utils"]

torch.optim.SGD([torch.zeros(1)], lr=0.1)
