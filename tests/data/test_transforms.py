"""Image, label and valid mask stay together: the image carries its own label in its colour."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.folders import Sample
from dataset.labels import IGNORE
from dataset.loader import SegmentationDataset
from dataset.transforms import (
    BILINEAR,
    IMAGENET_MEAN,
    IMAGENET_STD,
    NEAREST,
    EvalTransform,
    JointTransform,
    Size,
    Tensors,
    normalise,
    planes,
)

CLASSES = 4


def picture(height: int = 40, width: int = 60) -> tuple[Image.Image, np.ndarray]:
    """Large blocks whose red channel is 60 times the label."""
    label = np.random.default_rng(0).integers(0, CLASSES, (height // 10, width // 10)).repeat(10, 0).repeat(10, 1)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 60 * label
    return Image.fromarray(image), label.astype(np.uint8)


def red(image: torch.Tensor) -> torch.Tensor:
    return 255 * (image[0] * IMAGENET_STD[0] + IMAGENET_MEAN[0])


@pytest.mark.parametrize(
    "options",
    [
        {"flip": True},
        {"scale": (0.5, 2.0)},
        {"rotate": (-10, 10)},
        {"crop": (32, 24)},
        {"crop": (80, 50)},
        {"size": (90, 60), "scale": (0.8, 1.2), "rotate": (-10, 10), "flip": True, "crop": (48, 48)},
    ],
)
def test_label_follows_the_image(options):
    for seed in range(5):
        image, label, valid = JointTransform(**options)(*picture(), np.random.default_rng(seed))
        assert image.shape[1:] == label.shape == valid.shape
        agree = (red(image) - 60 * label).abs() < 15
        assert agree[valid].float().mean() > 0.8  # resampling blurs the borders of the blocks
        assert (label[~valid] == IGNORE).all() and (label[valid] < CLASSES).all()
        assert image[:, ~valid].abs().sum() == 0 or image[:, ~valid].abs().mean() < 0.02


def test_no_augmentation_is_the_identity():
    original, ids = picture()
    image, label, valid = JointTransform()(original, ids, np.random.default_rng(0))
    assert valid.all() and (label.numpy() == ids).all()
    assert np.allclose(red(image), np.asarray(original)[..., 0], atol=1e-3)


@pytest.mark.parametrize(
    ("crop", "left", "top"),
    [((80, 50), 10, 5), ((81, 51), 10, 5), ((79, 41), 9, 0), ((80, 30), 10, 0), ((40, 51), 0, 5), ((61, 40), 0, 0)],
)
@pytest.mark.parametrize("flip", [False, True])
def test_crop_larger_than_the_image_is_padded_around_it(crop, left, top, flip):
    """If the number of missing pixels is odd, right or bottom gets one more, also for a mirrored picture."""
    original, ids = picture()
    for seed in range(4):
        image, label, valid = JointTransform(crop=crop, flip=flip)(original, ids, np.random.default_rng(seed))
        assert label.shape == (crop[1], crop[0])
        expected = torch.zeros(crop[1], crop[0], dtype=torch.bool)
        expected[top : top + 40, left : left + 60] = True  # a longer side fills the crop
        assert torch.equal(valid, expected) and (label[~valid] == IGNORE).all()
        padding = normalise(planes(Image.new("RGB", crop, (123, 116, 103))))
        assert torch.equal(image[:, ~valid], padding[:, ~valid])


def test_scaled_sides_are_cut_to_whole_numbers():
    for factor, size in ((0.99, (59, 39)), (1.04, (62, 41)), (0.01, (1, 1))):
        image, _, _ = JointTransform(scale=(factor, factor))(*picture(), np.random.default_rng(0))
        assert image.shape == (3, size[1], size[0])


def test_scale_of_the_resized_picture_is_less_sharp_than_of_the_original():
    """A checkerboard of single pixels becomes grey at half the size."""
    board = 255 * (np.indices((40, 60)).sum(0) % 2).astype(np.uint8)
    original, options = Image.fromarray(np.stack([board] * 3, 2)), {"size": (30, 20), "scale": (2.0, 2.0)}
    contrasts = {}
    for name in ("resized", "original"):
        image, _, _ = JointTransform(**options, scale_from=name)(original, picture()[1], np.random.default_rng(0))
        contrasts[name] = red(image).std().item()
    assert contrasts["resized"] < 10 and contrasts["original"] > 120


def resized(image: Image.Image, size: Size) -> Image.Image:
    """Columns first for all sizes, like Pillow when the authors' code was released."""
    return image.resize((size[0], image.height), BILINEAR).resize(size, BILINEAR)


def released(image: Image.Image, label: Image.Image, rng: np.random.Generator, options: dict) -> list[np.ndarray]:
    """Image, label and valid mask, with the released order of operations on the whole picture."""
    once = options["scale_from"] == "original" and options["scale"] is not None
    size, crop = options["size"] or image.size, options["crop"]
    if not once:
        image, label = resized(image, size), label.resize(size, NEAREST)
    if options["scale"] is not None:
        factor = rng.uniform(*options["scale"])
        scaled = (int(size[0] * factor), int(size[1] * factor))
        image, label = resized(image, scaled), label.resize(scaled, NEAREST)
    valid = Image.new("L", image.size, 1)
    if options["rotate"] is not None:
        angle = rng.uniform(*options["rotate"])
        image = image.rotate(angle, BILINEAR, fillcolor=(124, 116, 104))
        label, valid = label.rotate(angle, NEAREST, fillcolor=255), valid.rotate(angle, NEAREST, fillcolor=0)
    if options["flip"] and rng.random() < 0.5:
        image, label, valid = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (image, label, valid))
    layers = [np.asarray(x) for x in (image, label, valid)]
    if crop is None:
        return layers
    (height, width), (columns, rows) = layers[1].shape, crop
    left, top = (int(rng.integers(0, max(0, have - want) + 1)) for have, want in ((width, columns), (height, rows)))
    missing = [(max(0, rows - height)), max(0, columns - width)]
    around = [(n // 2, n - n // 2) for n in missing]
    image, label, valid = (x[top : top + rows, left : left + columns] for x in layers)
    image = np.stack([np.pad(image[..., i], around, constant_values=c) for i, c in enumerate((123, 116, 103))], 2)
    return [image, np.pad(label, around, constant_values=255), np.pad(valid, around, constant_values=0)]


def same(found: Tensors, plain: list[np.ndarray]) -> bool:
    image, label, valid = found
    equal = torch.equal(image, normalise(planes(Image.fromarray(plain[0]))))
    return equal and np.array_equal(label, plain[1]) and np.array_equal(valid, plain[2] > 0)


def random_options(rng: np.random.Generator) -> dict:
    low, high = sorted(rng.uniform(0.3, 3.0, 2))
    return {
        "size": None if rng.random() < 0.2 else tuple(int(side) for side in rng.integers(4, 90, 2)),
        "scale": None if rng.random() < 0.2 else (low, high),
        "rotate": (-10.0, 10.0) if rng.random() < 0.3 else None,
        "flip": bool(rng.random() < 0.5),
        "crop": None if rng.random() < 0.1 else tuple(int(side) for side in rng.integers(1, 120, 2)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("scale_from", ["resized", "original"])
def test_transform_is_the_released_order_of_operations_bit_for_bit(scale_from):
    """For noise and any sizes: crops within the picture, beyond it, and beyond it along one axis."""
    rng, shapes = np.random.default_rng(0), set()
    for seed in range(400):
        options = random_options(rng) | {"scale_from": scale_from}
        own = tuple(int(side) for side in rng.integers(4, 90, 2))
        pixels, ids = rng.integers(0, 256, (own[1], own[0], 3), np.uint8), rng.integers(0, 19, own[::-1], np.uint8)
        plain = released(Image.fromarray(pixels), Image.fromarray(ids), np.random.default_rng(seed), options)
        for image in (pixels, Image.fromarray(pixels)):
            found = JointTransform(**options)(image, ids, np.random.default_rng(seed))
            assert same(found, plain), (own, options)
        if options["rotate"] is None:
            shapes.add((bool(plain[2].all(0).any()), bool(plain[2].all(1).any())))
    assert len(shapes) == 4  # no padding, at the sides, above and below, all around


def test_transform_at_the_sizes_of_the_recipes_is_the_released_one():
    rng = np.random.default_rng(0)
    options = {"size": (1024, 560), "scale": (0.5, 1.5), "rotate": None, "flip": True, "crop": (560, 480)}
    options["scale_from"] = "resized"
    pixels, ids = rng.integers(0, 256, (1052, 1914, 3), np.uint8), rng.integers(0, 19, (1052, 1914), np.uint8)
    for seed in range(4):
        found = JointTransform(**options)(Image.fromarray(pixels), ids, np.random.default_rng(seed))
        plain = released(Image.fromarray(pixels), Image.fromarray(ids), np.random.default_rng(seed), options)
        assert same(found, plain)


def test_only_random_numbers_decide():
    transform = JointTransform(scale=(0.5, 1.5), flip=True, crop=(32, 24))
    a, b, c = (transform(*picture(), np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_unlabelled_image_is_void(tmp_path):
    picture()[0].save(tmp_path / "a.png")
    samples = [Sample("a", tmp_path / "a.png", None)]
    for transform in (JointTransform(flip=True, crop=(80, 24)), EvalTransform((30, 20))):
        item = SegmentationDataset(samples, "cityscapes", transform, seed=0, domain=1)[0]
        assert (item["label"] == IGNORE).all() and item["label"].shape == item["valid"].shape
        assert item["valid"].any()


def test_evaluation_resizes_the_image_only():
    image, label, _ = EvalTransform((30, 20))(*picture(), np.random.default_rng(0))
    assert image.shape == (3, 20, 30) and label.shape == (40, 60)
