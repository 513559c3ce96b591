"""Shares of the pseudo-labels are those of the labels; a collapse is told once."""

import pytest
import torch

from utils.curriculum import PyramidCurriculum
from utils.training.label_watch import PATIENCE, CollapseWatch, LayerShares, count_labels, layer_shares


def test_shares_are_those_of_the_labelled_entries():
    logits = torch.zeros(1, 3, 4, 8)
    logits[:, 0, :, :2] = 9.0
    logits[:, 2, :, 2:5] = 9.0  # the other three columns stay unconfident
    counts = count_labels(PyramidCurriculum(None, box_size=(4,)).pseudo_labels(logits), 3)
    assert counts["pixel"].tolist() == [8, 0, 12, 32] and counts["square_4"][-1] == 2
    pixels = layer_shares(counts["pixel"].tolist(), ["a", "b", "c"])
    assert pixels.labelled == 5 / 8 and pixels.classes == {"a": 2 / 5, "b": 0, "c": 3 / 5}
    assert layer_shares((2 * counts["pixel"]).tolist(), ["a", "b", "c"]) == pixels  # two processes alike


def test_padding_and_switched_off_layers_have_no_labels():
    curriculum = PyramidCurriculum(None, box_size=(4,), use_pixels=False)
    logits, valid = torch.randn(1, 3, 4, 8) * 20, torch.zeros(1, 4, 8, dtype=torch.bool)
    counts = count_labels(curriculum.pseudo_labels(logits, valid), 3)
    assert counts.keys() == {"square_4"}
    assert layer_shares(counts["square_4"].tolist(), ["a", "b", "c"]) == LayerShares(0, {"a": 0, "b": 0, "c": 0})


@pytest.mark.parametrize("high", [0.95, 0.85])
def test_one_class_for_many_steps_is_told_once(high):
    watch = CollapseWatch()
    shares = {"target/pixel": LayerShares(0.5, {"road": high, "car": 0.05})}
    told = [watch.update(shares) for _ in range(PATIENCE + 50)]
    assert [i for i, message in enumerate(told) if message] == ([PATIENCE - 1] if high > 0.9 else [])
    if high > 0.9:
        assert "target/pixel: road has been above 90% of the labels for 200 steps" in told[PATIENCE - 1]


def test_interrupted_streak_and_missing_labels():
    watch = CollapseWatch()
    for step in range(3 * PATIENCE):
        assert watch.update({"target/pixel": LayerShares(0.5, {"road": 0.5 if step % 150 == 0 else 0.99})}) is None
    few = {"target/pixel": LayerShares(0.005, {}), "target/square_4": LayerShares(0.2, {})}
    assert "of target/pixel 0.50% is labelled" in watch.update(few)
    assert watch.update(few) is None
