"""Shares of the pseudo-labels are those of the labels; a collapse is told once."""

import pytest
import torch

from utils.curriculum import PyramidCurriculum
from utils.training.label_watch import PATIENCE, CollapseWatch, pyramid_shares


def test_shares_are_those_of_the_labelled_entries():
    logits = torch.zeros(1, 3, 4, 8)
    logits[:, 0, :, :2] = 9.0
    logits[:, 2, :, 2:5] = 9.0  # the other three columns stay unconfident
    curriculum = PyramidCurriculum(None, box_size=(4,))
    curriculum(logits)
    shares = pyramid_shares(curriculum.label_counts, ["a", "b", "c"], lambda x: x)
    assert shares["labelled/pixel"] == 5 / 8 and shares["share/pixel/a"] == 2 / 5 and shares["share/pixel/c"] == 3 / 5
    assert shares["labelled/square_4"] == 1 / 2 or shares["labelled/square_4"] == 1.0
    doubled = pyramid_shares(curriculum.label_counts, ["a", "b", "c"], lambda x: 2 * x)  # two processes alike
    assert all(doubled[name] == shares[name] for name in shares)


def test_padding_and_switched_off_layers_have_no_labels():
    curriculum = PyramidCurriculum(None, box_size=(4,), use_pixels=False)
    curriculum(torch.randn(1, 3, 4, 8) * 20, torch.zeros(1, 4, 8, dtype=torch.bool))
    shares = pyramid_shares(curriculum.label_counts, ["a", "b", "c"], lambda x: x)
    assert "labelled/pixel" not in shares and shares["labelled/square_4"] == 0 and shares["share/square_4/a"] == 0


@pytest.mark.parametrize("high", [0.95, 0.85])
def test_one_class_for_many_steps_is_told_once(high):
    watch = CollapseWatch()
    values = {"target/share/pixel/road": high, "target/share/pixel/car": 0.05, "target/labelled/pixel": 0.5}
    told = [watch.update(values) for _ in range(PATIENCE + 50)]
    assert [i for i, message in enumerate(told) if message] == ([PATIENCE - 1] if high > 0.9 else [])
    if high > 0.9:
        assert "target/share/pixel/road has been above 90% for 200 steps" in told[PATIENCE - 1]


def test_interrupted_streak_and_missing_labels():
    watch = CollapseWatch()
    for step in range(3 * PATIENCE):
        assert watch.update({"target/share/pixel/road": 0.5 if step % 150 == 0 else 0.99}) is None
    assert "target/labelled/pixel is 0.50%" in watch.update({"target/labelled/pixel": 0.005, "target/labelled/square_4": 0.2})
    assert watch.update({"target/labelled/pixel": 0.005}) is None
