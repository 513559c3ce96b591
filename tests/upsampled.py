"""Class maps of a network's outputs, from the strips of a predictor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.metrics import class_map
from utils.scoring.upsampling import DIRECT, RELEASED, Shape, View, strips_of

MODES = (RELEASED, DIRECT)


def classes_at(views: Sequence[View], size: Shape, mode: str) -> Tensor:
    """Classes uint8 (N, H, W) at ``size``: highest logit of one view, or highest mean probability of several."""
    return torch.cat([class_map(strip.permute(1, 2, 0, 3)) for strip in strips_of(views, size, mode)], dim=1)
