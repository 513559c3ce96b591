"""The training engine: the parts of a run, the training loop, and the losses of each phase."""

from utils.engine.experiment import build_trainer

__all__ = ["build_trainer"]
