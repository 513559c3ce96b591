"""Joint operations on an image and its label. Padding is told by an explicit mask, never by label 255."""

from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.labels import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_COLOUR = tuple(round(255 * m) for m in IMAGENET_MEAN)  # padding: zero, up to rounding, once normalised

Tensors = tuple[Tensor, Tensor | None, Tensor]


class Transform(Protocol):
    def __call__(self, image: Image.Image, label: np.ndarray | None, rng: np.random.Generator) -> Tensors: ...


def normalise(image: Image.Image) -> Tensor:
    """RGB picture -> float32 (3, H, W) with ImageNet mean 0 and deviation 1."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
    return pixels.sub_(torch.tensor(IMAGENET_MEAN).view(3, 1, 1)).div_(torch.tensor(IMAGENET_STD).view(3, 1, 1))


def _to_tensors(image: Image.Image, label: Image.Image | None, valid: Image.Image) -> Tensors:
    ids = None if label is None else torch.from_numpy(np.array(label)).long()
    return normalise(image), ids, torch.from_numpy(np.array(valid) > 0)


class EvalTransform:
    """Resize the image to ``size`` (W, H), None keeps it; the label keeps its own size."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self.size = size

    def __call__(self, image: Image.Image, label: np.ndarray | None, rng: np.random.Generator) -> Tensors:
        resized = image if self.size is None else image.resize(self.size, Image.Resampling.BILINEAR)
        ids = None if label is None else torch.from_numpy(label).long()
        return normalise(resized), ids, torch.ones(image.size[::-1], dtype=torch.bool)


class JointTransform:
    """Resize, random scale, rotate, flip and crop of image and label together.

    Images are resampled bilinearly, labels by nearest neighbour, once for resize and scale together. What a rotation
    or a crop beyond the border uncovers has the mean colour, label 255 and valid False.

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

    def __call__(self, image: Image.Image, label: np.ndarray | None, rng: np.random.Generator) -> Tensors:
        """RGB image and uint8 train ids (H, W) or None -> image float32 (3, H, W), label int64, valid bool (H, W)."""
        ids = None if label is None else Image.fromarray(label)
        image, ids = self._resize(image, ids, rng)
        valid = Image.new("L", image.size, 255)
        layers = [image, valid] if ids is None else [image, valid, ids]
        fills = [MEAN_COLOUR, 0, IGNORE]
        nearest, bilinear = Image.Resampling.NEAREST, Image.Resampling.BILINEAR
        if self.rotate is not None:
            angle = rng.uniform(*self.rotate)
            filters = [bilinear, nearest, nearest]
            layers = [x.rotate(angle, f, fillcolor=fill) for x, f, fill in zip(layers, filters, fills)]
        if self.flip and rng.random() < 0.5:
            layers = [x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in layers]
        if self.crop is not None:
            layers = self._crop(layers, fills, rng)
        image, valid, *rest = layers
        return _to_tensors(image, rest[0] if rest else None, valid)

    def _resize(
        self, image: Image.Image, label: Image.Image | None, rng: np.random.Generator
    ) -> tuple[Image.Image, Image.Image | None]:
        size = self.size or image.size
        if self.scale is not None:
            factor = rng.uniform(*self.scale)
            size = tuple(max(1, round(side * factor)) for side in size)
        if size == image.size:
            return image, label
        resized = None if label is None else label.resize(size, Image.Resampling.NEAREST)
        return image.resize(size, Image.Resampling.BILINEAR), resized

    def _crop(self, layers: list[Image.Image], fills: list, rng: np.random.Generator) -> list[Image.Image]:
        free = [max(0, have - want) for have, want in zip(layers[0].size, self.crop)]
        left, top = (int(rng.integers(0, room + 1)) for room in free)
        cropped = []
        for layer, fill in zip(layers, fills):
            canvas = Image.new(layer.mode, self.crop, fill)
            canvas.paste(layer.crop((left, top, min(left + self.crop[0], layer.width), min(top + self.crop[1], layer.height))))
            cropped.append(canvas)
        return cropped
