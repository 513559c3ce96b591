"""Class maps of a network's outputs, from the strips that a predictor makes them of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.metrics import class_map
from utils.scoring.upsampling import DIRECT, RELEASED, Shape, View, strips_of

MODES = (RELEASED, DIRECT)


def classes_at(views: Sequence[View], size: Shape, mode: str) -> Tensor:
    """Class (N, H, W) uint8 at ``size`` of the one view's highest logit, or of the views' highest mean probability."""
    return torch.cat([class_map(strip.permute(1, 2, 0, 3)) for strip in strips_of(views, size, mode)], dim=1)
