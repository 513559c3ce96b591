"""Joint operations on an image and its label. A separate mask marks padding; label 255 does not."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.labels import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The mean times 255: truncated for the padding around an image that is smaller than the crop (released code), rounded
# for the corners that a rotation uncovers (the released code gives the same pixels).
PADDING, CORNER = (123, 116, 103), (124, 116, 104)

Picture = Image.Image | np.ndarray  # RGB; an array is uint8 (H, W, 3), possibly a memory map
Size = tuple[int, int]  # (W, H)
Fill = int | tuple[int, int, int]
Window = tuple[int, int, int, int]  # left, top, right, bottom
Tensors = tuple[Tensor, Tensor, Tensor]  # image, label, valid
# An RGB picture, its train ids uint8 (H, W) and the source of random numbers -> tensors.
Transform = Callable[[Picture, np.ndarray, np.random.Generator], Tensors]

NEAREST, BILINEAR = Image.Resampling.NEAREST, Image.Resampling.BILINEAR

FILLS: tuple[Fill, ...] = (PADDING, IGNORE, 0)  # for image, label and valid mask
CORNER_FILLS: tuple[Fill, ...] = (CORNER, IGNORE, 0)
FILTERS = (BILINEAR, NEAREST, NEAREST)  # rotation of image, label and valid mask
EXACT = 2**24  # float32 represents whole numbers up to this exactly


def planes(image: Image.Image) -> Tensor:
    """RGB image -> uint8 (3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in image.split()]))


def normalise(pixels: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> float32, normalised by ImageNet's mean and standard deviation."""
    pixels = pixels.float().div_(255)
    return pixels.sub_(torch.tensor(IMAGENET_MEAN).view(3, 1, 1)).div_(torch.tensor(IMAGENET_STD).view(3, 1, 1))


def resized_window(picture: Picture, size: Size, window: Window | None = None) -> Image.Image:
    """The ``window`` of ``picture`` after bilinear resizing to ``size`` (W, H); None: the whole picture.

    If the result is exact, only the columns of the window are computed. Columns are resampled first, then rows: the
    order changes the rounding. Pillow before version 13 did the same; Pillow 13 chooses the order by the sizes.
    """
    window = window or (0, 0, *size)
    left, top, right, bottom = window
    if size_of(picture) == size and isinstance(picture, np.ndarray):
        return Image.fromarray(picture[top:bottom, left:right])  # reads only this part of a memory map
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if image.size == size:
        return image if window == (0, 0, *size) else image.crop(window)
    parts = size[0] // math.gcd(image.width, size[0])
    # Pillow stores the box in float32. A part has the same bits as the whole only if its edges are exact in float32.
    start, stop = (left, right) if parts.bit_count() == 1 and image.width * parts <= EXACT else (0, size[0])
    box = (start * image.width / size[0], 0, stop * image.width / size[0], image.height)
    columns = image.resize((stop - start, image.height), BILINEAR, box).crop((left - start, 0, right - start, box[3]))
    return columns.resize((columns.width, size[1]), BILINEAR).crop((0, top, columns.width, bottom))


def size_of(picture: Picture) -> Size:
    """(W, H)"""
    return picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]


@dataclass(frozen=True)
class EvalTransform:
    """Resize the image to ``size`` (W, H); None keeps its size. The label keeps its size and is uint8."""

    size: Size | None

    def __call__(self, image: Picture, label: np.ndarray, rng: np.random.Generator) -> Tensors:
        own = size_of(image)
        size = self.size or own
        valid = torch.ones(own[::-1], dtype=torch.bool)
        return normalise(planes(resized_window(image, size))), torch.from_numpy(label), valid


@dataclass(frozen=True)
class JointTransform:
    """Resize, scale, rotate, flip and crop image and label together, in this order, as in the released code.

    Images are resampled bilinearly, labels by nearest neighbour. Pixels that a rotation uncovers, or that a crop has
    outside the image, have the ImageNet mean as colour, label 255 and valid False. All random numbers are drawn first:
    only the pixels of the crop need to be computed, except for a rotation, which needs the whole image.

    Attributes:
        size: (W, H) of the image before the random scale; None keeps the image's size.
        scale: range of one random factor for both sides, which become int(side * factor).
        rotate: range of the angle in degrees.
        flip: mirror left-right with probability 1/2.
        crop: (W, H) of a random crop; None: no crop. An image that is smaller along an axis is padded on both sides.
            If the number of missing pixels is odd, the right or bottom gets one more.
        scale_from: image that the random scale resizes: ``resized``, the image at ``size`` (as released), or
            ``original``, the stored image: one resampling instead of two, so it is sharper.
    """

    size: Size | None = None
    scale: tuple[float, float] | None = None
    rotate: tuple[float, float] | None = None
    flip: bool = False
    crop: Size | None = None
    scale_from: str = "resized"

    @property
    def fixed_size(self) -> Size | None:
        """(W, H) to which every image is resized before the random augmentation; None: its own size."""
        return None if self.scale is not None and self.scale_from == "original" else self.size

    def __call__(self, image: Picture, label: np.ndarray, rng: np.random.Generator) -> Tensors:
        """RGB image and uint8 train ids (H, W) -> image float32 (3, H, W), label int64, valid bool (H, W)."""
        size = self._scaled_size(size_of(image), rng)
        angle = None if self.rotate is None else rng.uniform(*self.rotate)
        mirrored = self.flip and rng.random() < 0.5
        window = self._window(size, mirrored, rng)
        seen = window if angle is None else (0, 0, *size)  # a rotation moves pixels from outside into the window
        first = self.fixed_size or size_of(image)
        if first != size:
            image = resized_window(image, first)
        resized = resized_window(image, size, seen)
        own_label = Image.fromarray(label).resize(first, NEAREST).resize(size, NEAREST).crop(seen)
        layers = [resized, own_label, Image.new("L", resized.size, 1)]
        if angle is not None:
            ways = zip(layers, FILTERS, CORNER_FILLS, strict=True)
            layers = [layer.rotate(angle, how, fillcolor=fill).crop(window) for layer, how, fill in ways]
        if mirrored:
            layers = [layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for layer in layers]
        if self.crop is not None:
            layers = [_padded(layer, self.crop, fill) for layer, fill in zip(layers, FILLS, strict=True)]
        ids, valid = (torch.from_numpy(np.array(layer)) for layer in layers[1:])
        return normalise(planes(layers[0])), ids.long(), valid.bool()

    def _scaled_size(self, own: Size, rng: np.random.Generator) -> Size:
        size = self.size or own
        if self.scale is None:
            return size
        factor = rng.uniform(*self.scale)
        width, height = (max(1, int(side * factor)) for side in size)
        return width, height

    def _window(self, size: Size, mirrored: bool, rng: np.random.Generator) -> Window:
        """Window of the crop in an image of ``size``; drawn in the mirrored image if there is one."""
        if self.crop is None:
            return 0, 0, *size
        room = (max(0, have - want) for have, want in zip(size, self.crop, strict=True))
        left, top = (int(rng.integers(0, free + 1)) for free in room)
        right, bottom = min(left + self.crop[0], size[0]), min(top + self.crop[1], size[1])
        return (size[0] - right, top, size[0] - left, bottom) if mirrored else (left, top, right, bottom)


def _padded(layer: Image.Image, size: Size, fill: Fill) -> Image.Image:
    """``layer`` in the middle of ``size``; the right or bottom gets one more of an odd number of missing pixels."""
    if layer.size == size:
        return layer
    canvas = Image.new(layer.mode, size, fill)
    canvas.paste(layer, ((size[0] - layer.width) // 2, (size[1] - layer.height) // 2))
    return canvas
