"""Logits at the network's stride become classes at the label's size, strip by strip.

There are never logits of that size. Bilinear
interpolation is linear and works on one axis after the other, so that any chain of interpolations is one
matrix an axis: the logits Z (h, w) of a class become A Z B', where A (H, h) and B (W, w) are products of one matrix
for each step, so that two steps cost what one does. ``torch.nn.functional.interpolate`` itself makes A and B, of the
identity. A place of the label takes from a few neighbouring places of the network only: bands of A and B are narrow.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

RELEASED, DIRECT = "released", "direct"
COLUMNS = 256  # of the label's size that are made together
STRIP, LARGEST = 2**14, 2**19  # pixels of the label's size at a time: what fits a core's cache; of all cores or a GPU
Shape = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class View:
    """The network's output for an image at one scale, mirrored back if the image was mirrored.

    Attributes:
        logits: (N, C, h, w) at the network's stride.
        input_size: of the image that the network saw.
    """

    logits: Tensor
    input_size: Shape


def upsample(logits: Tensor, input_size: Shape, size: Shape, mode: str) -> Tensor:
    """Logits (N, C, h, w) at the network's stride, as a whole at ``size``, in float32 or float64.

    Args:
        input_size: of the network's input.
        mode: "released": to the input's size with align_corners False, as in training, then to ``size`` with
            align_corners True (released code); "direct": to ``size`` in one step with align_corners False.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mode == RELEASED:
        seen = F.interpolate(logits, input_size, mode="bilinear", align_corners=False)
        return F.interpolate(seen, size, mode="bilinear", align_corners=True)
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def strips_of(views: Sequence[View], size: Shape, mode: str, rows: tuple[int, ...] | None = None) -> Iterator[Tensor]:
    """Strips (rows, N, C, W) of ``size`` from the top: logits of one view, mean probabilities of several.

    Args:
        rows: of each strip, which then are probabilities of one view too; None: as many as are fast.
    """
    for strip in zip(*(_strips(view, size, mode, rows) for view in views), strict=True):
        yield mean_probability(strip, 2) if rows or len(views) > 1 else strip[0]


def mean_probability(logits: Iterable[Tensor], dim: int) -> Tensor:
    """The mean over several logits of one shape, whose classes lie along ``dim``."""
    total, count = torch.zeros(()), 0
    for own in logits:
        total, count = total + own.softmax(dim), count + 1
    return total / count


def _strips(view: View, size: Shape, mode: str, rows: tuple[int, ...] | None) -> Iterator[Tensor]:
    """``upsample`` of a view in strips of rows, from the top: (rows, N, C, W), as ``class_map`` is fastest.

    Each strip is written over the one before.
    """
    logits = view.logits.detach().to(torch.promote_types(view.logits.dtype, torch.float32)).permute(2, 0, 1, 3)
    (h, N, C, w), (H, W), like = logits.shape, size, (logits.dtype, logits.device)
    logits, columns = logits.reshape(-1, w), logits.new_empty(h * N * C, W)
    bands = _bands(w, view.input_size[1], W, mode, COLUMNS, *like)
    for (used, band), made in zip(bands, columns.split(COLUMNS, dim=1), strict=True):
        torch.mm(logits[:, used], band.T, out=made)
    pixels = min(STRIP * torch.get_num_threads(), LARGEST) if logits.device.type == "cpu" else LARGEST
    most = max(rows) if rows else max(1, pixels // W)
    columns, strip = columns.view(h, -1), columns.new_empty(most, N * C * W)
    for used, band in _bands(h, view.input_size[0], H, mode, rows or most, *like):
        yield torch.mm(band, columns[used], out=strip[: len(band)]).view(-1, N, C, W)


@lru_cache(maxsize=64)
def _bands(
    stride_size: int,
    input_size: int,
    size: int,
    mode: str,
    places: int | tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> list[tuple[slice, Tensor]]:
    """Bands of an axis' matrix, each of ``places`` of the label's axis (one number for all, or one for each): which of
    the network's places they take from, and how much of each, (places, used). They stay on ``device``, so that nothing
    waits for a copy.
    """
    identity = torch.eye(stride_size)[None, :, :, None]
    shares = upsample(identity, (input_size, 1), (size, 1), mode)[0, :, :, 0].T
    bands = []
    for band in shares.split(places):
        places_used = band.any(0).nonzero().flatten()
        used = slice(int(places_used[0]), int(places_used[-1]) + 1)
        bands.append((used, band[:, used].to(device, dtype).contiguous()))
    return bands
