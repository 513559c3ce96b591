"""The short import path of a trained run: ``predictor = load("runs/own_pycda")``, then ``predictor(image)``."""

from utils.scoring.predictor import Predictor, load

__all__ = ["Predictor", "load"]
