"""What a training imports, and torch with its first optimiser: for the server that processes are forked from."""

import torch

import utils.engine.experiment
import utils.launch
import utils.scoring.predictions

__all__ = ["torch", "utils"]

torch.optim.SGD([torch.zeros(1)], lr=0.1)
