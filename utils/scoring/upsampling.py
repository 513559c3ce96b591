"""Classes at the label's size from logits at the network's stride, without logits of that size.

Bilinear interpolation is linear and works on one axis after the other, so that any chain of interpolations is one
matrix an axis. These matrices are made by ``torch.nn.functional.interpolate`` itself, on the identity.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.metrics import class_map

RELEASED, DIRECT = "released", "direct"
MODES = (RELEASED, DIRECT)
STRIP = 2**15  # pixels of the label's size at a time, so that their logits stay in a core's cache

Size = tuple[int, int]  # (height, width)


def upsample(logits: Tensor, input_size: Size, size: Size, mode: str) -> Tensor:
    """Logits (N, C, h, w) at the network's stride, as a whole at ``size``, in float32 or float64.

    Args:
        input_size: of the network's input.
        mode: "released": to the input's size with align_corners False, as in training, then to ``size`` with
            align_corners True (released code); "direct": to ``size`` in one step with align_corners False.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mode == RELEASED:
        return _align_corners(_to_input(logits, input_size), size)
    return _to_input(logits, size)


def _to_input(logits: Tensor, size: Size) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _align_corners(logits: Tensor, size: Size) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


@dataclass(frozen=True)
class View:
    """What the network says of an image at one scale, possibly mirrored back.

    Attributes:
        logits: (N, C, h, w) at the network's stride.
        input_size: of the image that the network saw.
    """

    logits: Tensor
    input_size: Size


def classes_at(views: Sequence[View], size: Size, mode: str) -> Tensor:
    """Class (N, H, W) uint8 at ``size`` of the one view's highest logit, or of the views' highest mean probability."""
    if len(views) == 1 and views[0].input_size == size:  # the logits that the network itself gives
        return class_map(upsample(views[0].logits, size, size, mode))
    strips = zip(*(_strips(view, size, mode) for view in views), strict=True)
    return torch.cat([class_map(_mean_probability(strip) if len(views) > 1 else strip[0]) for strip in strips], dim=1)


def _mean_probability(logits: Sequence[Tensor]) -> Tensor:
    total = logits[0].softmax(1)
    for other in logits[1:]:
        total += other.softmax(1)
    return total / len(logits)


def _strips(view: View, size: Size, mode: str) -> Iterator[Tensor]:
    """``upsample`` of a view in strips of rows (N, C, rows, W), from the top."""
    logits = view.logits.to(torch.promote_types(view.logits.dtype, torch.float32))
    height, width = logits.shape[-2:]
    columns = logits @ _axis(width, view.input_size[1], size[1], mode).to(logits).T
    on_host = _axis(height, view.input_size[0], size[0], mode)
    rows = max(1, STRIP // size[1])
    for strip, known in zip(on_host.to(logits).split(rows), on_host.split(rows), strict=True):
        used = known.any(0).nonzero().flatten()  # on the host, which need not wait for a device then
        first, last = int(used[0]), int(used[-1]) + 1  # an output row comes from a few neighbouring rows only
        yield strip[:, first:last] @ columns[:, :, first:last]


@lru_cache(maxsize=64)
def _axis(stride_size: int, input_size: int, size: int, mode: str) -> Tensor:
    """(size, stride_size): what each place of the label's axis takes from each place of the network's, float32."""
    identity = torch.eye(stride_size)[None, :, :, None]
    return upsample(identity, (input_size, 1), (size, 1), mode)[0, :, :, 0].T.contiguous()
