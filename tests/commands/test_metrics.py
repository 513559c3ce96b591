import numpy as np
import pytest
import torch

from utils.metrics import ConfusionMatrix


def test_iou_equals_sets_of_pixels():
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 6, (40, 50)), rng.integers(0, 5, (40, 50))
    label[label == 5] = 255
    matrix = ConfusionMatrix(5)
    matrix.update(torch.from_numpy(label[:20]), torch.from_numpy(prediction[:20]))
    matrix.update(torch.from_numpy(label[20:]), torch.from_numpy(prediction[20:]))
    prediction = np.where(label == 255, -1, prediction)
    expected = [np.sum((label == c) & (prediction == c)) / np.sum((label == c) | (prediction == c)) for c in range(5)]
    assert matrix.iou().tolist() == pytest.approx(expected, abs=1e-12)
    assert matrix.miou() == pytest.approx(np.mean(expected))
    assert matrix.miou([1, 3]) == pytest.approx((expected[1] + expected[3]) / 2)
    assert matrix.pixel_accuracy() == pytest.approx((label == prediction).sum() / (label != 255).sum())


def test_absent_class_is_left_out_of_the_mean():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]))
    assert matrix.iou()[2].isnan()
    assert matrix.miou() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert matrix.frequency_weighted_iou() == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_wrong_input_is_named():
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match="shape"):
        matrix.update(torch.zeros(2, 2, dtype=torch.long), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="0..2"):
        matrix.update(torch.zeros(4, dtype=torch.long), torch.full((4,), 3))
    assert matrix.counts.sum() == 0
