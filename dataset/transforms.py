"""Joint operations on an image and its label. Padding is told by an explicit mask, never by label 255."""

import math
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.labels import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_COLOUR = tuple(round(255 * m) for m in IMAGENET_MEAN)  # padding: zero, up to rounding, once normalised

Fill = int | tuple[int, ...]
FILLS: tuple[Fill, ...] = (MEAN_COLOUR, 0, IGNORE)  # of image, valid mask and label
EXACT = 2**24  # whole numbers up to here are exact in float32

NEAREST, BILINEAR = Image.Resampling.NEAREST, Image.Resampling.BILINEAR

Picture = Image.Image | np.ndarray  # RGB; an array is uint8 (H, W, 3), possibly a memory map
Window = tuple[int, int, int, int]  # left, top, right, bottom
Tensors = tuple[Tensor, Tensor | None, Tensor]


class Transform(Protocol):
    def __call__(self, image: Picture, label: np.ndarray | None, rng: np.random.Generator) -> Tensors: ...


def normalise(image: Image.Image) -> Tensor:
    """RGB picture -> float32 (3, H, W) with ImageNet mean 0 and deviation 1."""
    pixels = torch.from_numpy(np.stack([np.asarray(channel) for channel in image.split()])).float().div_(255)
    return pixels.sub_(torch.tensor(IMAGENET_MEAN).view(3, 1, 1)).div_(torch.tensor(IMAGENET_STD).view(3, 1, 1))


def resized_window(picture: Picture, size: tuple[int, int], window: Window) -> Image.Image:
    """The ``window`` of ``picture`` resized bilinearly to ``size`` (W, H), bit for bit, without computing the rest.

    Columns are resampled first, then rows, as Pillow did before version 13, which chooses by the sizes and would choose
    otherwise for a window than for the whole picture; the order decides how values are rounded.
    """
    width, height = own = _size(picture)
    if own == size and not isinstance(picture, Image.Image):
        left, top, right, bottom = window
        return Image.fromarray(picture[top:bottom, left:right])  # of a memory map nothing else is read
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if own == size:
        return _crop(image, window)
    left, right = _aligned(window[0], window[2], width, size[0])
    top, bottom = _aligned(window[1], window[3], height, size[1])
    columns, rows = right - left, bottom - top
    image = image.resize((columns, height), BILINEAR, (left * width / size[0], 0, right * width / size[0], height))
    image = image.resize((columns, rows), BILINEAR, (0, top * height / size[1], columns, bottom * height / size[1]))
    return _crop(image, (window[0] - left, window[1] - top, window[2] - left, window[3] - top))


def _crop(image: Image.Image, window: Window) -> Image.Image:
    return image if window == (0, 0, *image.size) else image.crop(window)


def _aligned(start: int, stop: int, source: int, target: int) -> tuple[int, int]:
    """The least stretch around start..stop of ``target`` pixels whose ends are exact in ``source`` pixels as float32.

    Pillow keeps the box of a resize in float32: a rounded one would sample beside where the whole picture is sampled.
    """
    denominator = target // math.gcd(source, target)
    binary = denominator & -denominator  # halves, quarters, ... are exact, thirds are not
    unit = denominator // binary if source * binary <= EXACT else denominator
    return start // unit * unit, math.ceil(stop / unit) * unit


def _size(picture: Picture) -> tuple[int, int]:
    """(W, H)"""
    return picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]


class EvalTransform:
    """Resize the image to ``size`` (W, H), None keeps it; the label keeps its own size and is uint8."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size

    def __call__(self, image: Picture, label: np.ndarray | None, rng: np.random.Generator) -> Tensors:
        own = _size(image)
        size = self.size or own
        ids = None if label is None else torch.from_numpy(label)
        return normalise(resized_window(image, size, (0, 0, *size))), ids, torch.ones(own[::-1], dtype=torch.bool)


class JointTransform:
    """Resize, random scale, rotate, flip and crop of image and label together.

    Images are resampled bilinearly, labels by nearest neighbour, once for resize and scale together. What a rotation
    or a crop beyond the border uncovers has the mean colour, label 255 and valid False. All random numbers are drawn
    first, so that only the pixels of the crop need to be computed.

    Args:
        size: (W, H) to resize to before the random scale; None keeps the image's size.
        scale: range of one random factor for both sides.
        rotate: range of the angle in degrees.
        flip: mirror left-right with probability 1/2.
        crop: (W, H) of a random crop, padded at the right and bottom where the image is smaller; None: no crop.
    """

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        scale: tuple[float, float] | None = None,
        rotate: tuple[float, float] | None = None,
        flip: bool = False,
        crop: tuple[int, int] | None = None,
    ) -> None:
        for name, bounds in (("scale", scale), ("rotate", rotate)):
            if bounds is not None and bounds[0] > bounds[1]:
                raise ValueError(f"{name} is {bounds}: the first number is the smaller one")
        self.size, self.scale, self.rotate, self.flip, self.crop = size, scale, rotate, flip, crop

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(W, H) to which every picture is resized before anything random happens to it; None: its own size."""
        return self.size if self.scale is None else None

    def __call__(self, image: Picture, label: np.ndarray | None, rng: np.random.Generator) -> Tensors:
        """RGB image and uint8 train ids (H, W) or None -> image float32 (3, H, W), label int64, valid bool (H, W)."""
        size = self._scaled_size(_size(image), rng)
        angle = None if self.rotate is None else rng.uniform(*self.rotate)
        mirrored = self.flip and rng.random() < 0.5
        window = self._window(size, mirrored, rng)
        seen = window if angle is None else (0, 0, *size)  # a rotation brings in what is beyond the window
        layers = [resized_window(image, size, seen), Image.new("L", (seen[2] - seen[0], seen[3] - seen[1]), 255)]
        if label is not None:
            whole = Image.fromarray(label)
            layers.append(_crop(whole if whole.size == size else whole.resize(size, NEAREST), seen))
        if angle is not None:
            filters = (BILINEAR, NEAREST, NEAREST)
            layers = [
                _crop(x.rotate(angle, f, fillcolor=fill), window)
                for x, f, fill in zip(layers, filters, FILLS, strict=False)
            ]
        if mirrored:
            layers = [layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for layer in layers]
        if self.crop is not None:
            layers = [_padded(x, self.crop, fill) for x, fill in zip(layers, FILLS, strict=False)]
        pixels, valid, *labels = layers
        ids = torch.from_numpy(np.array(labels[0])).long() if labels else None
        return normalise(pixels), ids, torch.from_numpy(np.array(valid) > 0)

    def _scaled_size(self, own: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        size = self.size or own
        if self.scale is None:
            return size
        factor = rng.uniform(*self.scale)
        width, height = (max(1, round(side * factor)) for side in size)
        return width, height

    def _window(self, size: tuple[int, int], mirrored: bool, rng: np.random.Generator) -> Window:
        """What the crop keeps of a picture of ``size``; the crop is drawn in the mirrored picture if there is one."""
        if self.crop is None:
            return 0, 0, *size
        left, top = (int(rng.integers(0, max(0, have - want) + 1)) for have, want in zip(size, self.crop, strict=True))
        right, bottom = min(left + self.crop[0], size[0]), min(top + self.crop[1], size[1])
        return (size[0] - right, top, size[0] - left, bottom) if mirrored else (left, top, right, bottom)


def _padded(layer: Image.Image, size: tuple[int, int], fill: Fill) -> Image.Image:
    if layer.size == size:
        return layer
    canvas = Image.new(layer.mode, size, fill)
    canvas.paste(layer)
    return canvas
