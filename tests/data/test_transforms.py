"""Image, label and valid mask stay together: the image carries its own label in its colour."""

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.labels import IGNORE
from dataset.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    JointTransform,
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
        assert agree[valid].float().mean() > 0.8  # the rest are block borders, blurred by resampling
        assert (label[~valid] == IGNORE).all() and (label[valid] < CLASSES).all()
        assert image[:, ~valid].abs().sum() == 0 or image[:, ~valid].abs().mean() < 0.02


def test_no_augmentation_is_the_identity():
    original, ids = picture()
    image, label, valid = JointTransform()(original, ids, np.random.default_rng(0))
    assert valid.all() and (label.numpy() == ids).all()
    assert np.allclose(red(image), np.asarray(original)[..., 0], atol=1e-3)


def test_crop_larger_than_the_image_is_padded_at_the_right_and_bottom():
    _, label, valid = JointTransform(crop=(80, 50))(*picture(), np.random.default_rng(0))
    assert label.shape == (50, 80) and valid[:40, :60].all() and valid.sum() == 40 * 60


def test_random_numbers_decide_and_nothing_else():
    transform = JointTransform(scale=(0.5, 1.5), flip=True, crop=(32, 24))
    a, b, c = (transform(*picture(), np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_unlabelled_image():
    image, label, valid = JointTransform(flip=True, crop=(32, 24))(picture()[0], None, np.random.default_rng(0))
    assert label is None and image.shape == (3, 24, 32) and valid.shape == (24, 32)


def test_evaluation_resizes_the_image_only():
    image, label, _ = EvalTransform((30, 20))(*picture(), np.random.default_rng(0))
    assert image.shape == (3, 20, 30) and label.shape == (40, 60)


def test_reversed_range_is_refused():
    with pytest.raises(ValueError, match="scale"):
        JointTransform(scale=(2.0, 1.0))
