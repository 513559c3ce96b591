"""Upsampling of logits from the network's stride to the label's size, strip by strip.

The logits of the whole label are never in memory. Bilinear interpolation is linear and separable, so any chain of
interpolations is one matrix per axis: the logits Z (h, w) of a class become A Z B' with A (H, h) and B (W, w). Two
interpolations then cost the same as one. ``torch.nn.functional.interpolate`` makes A and B from the identity. Each
position of the label depends on a few positions of the network: bands of A and B are narrow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

RELEASED, DIRECT = "released", "direct"
COLUMNS = 256  # columns of the label's size that are computed together
STRIP, LARGEST = 2**14, 2**19  # pixels of a strip: per core, to fit its cache; on a GPU, or on many cores together
Shape = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class View:
    """The network's output for an image at one scale, mirrored back if the image was mirrored.

    Attributes:
        logits: (N, C, h, w) at the network's stride.
        input_size: of the network's input.
    """

    logits: Tensor
    input_size: Shape


def upsample(logits: Tensor, input_size: Shape, size: Shape, mode: str) -> Tensor:
    """Upsample whole logits (N, C, h, w) to ``size``; float64 stays, other types become float32.

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
    """Strips (rows, N, C, W) of ``size`` from the top: logits for one view, mean probabilities for several.

    Args:
        rows: number of rows of each strip; one view then also gives probabilities. None: as many rows as are fast.
    """
    averaged = rows or len(views) > 1
    for strip in zip(*(_strips(view, size, mode, rows) for view in views), strict=True):
        yield sum((own.softmax(2) for own in strip), torch.zeros(())) / len(strip) if averaged else strip[0]


def _strips(view: View, size: Shape, mode: str, rows: tuple[int, ...] | None) -> Iterator[Tensor]:
    """``upsample`` of a view in strips from the top: (rows, N, C, W), the order in which ``class_map`` is fastest.

    Each strip overwrites the one before.
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
    """Bands of an axis' matrix: the network's positions that each band uses, and their weights (positions, used).

    The bands stay on ``device``, so nothing waits for a copy.

    Args:
        places: positions of the label's axis in a band: one number for all bands, or one for each.
    """
    identity = torch.eye(stride_size)[None, :, :, None]
    shares = upsample(identity, (input_size, 1), (size, 1), mode)[0, :, :, 0].T
    bands = []
    for band in shares.split(places):
        places_used = band.any(0).nonzero().flatten()
        used = slice(int(places_used[0]), int(places_used[-1]) + 1)
        bands.append((used, band[:, used].to(device, dtype).contiguous()))
    return bands
