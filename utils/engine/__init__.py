"""A run: its parts, the one loop, and the losses of each phase."""

from utils.engine.experiment import build_trainer

__all__ = ["build_trainer"]
