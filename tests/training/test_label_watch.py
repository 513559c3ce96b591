"""The logged class shares are those of the pseudo-labels; a collapse is reported once."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import train_source_only
from utils.builders import data
from utils.engine.losses import label_shares
from utils.engine.watch import PATIENCE, CollapseWatch, UnlabelledWatch, VanishingWatch, patience
from utils.pycda.curriculum import PyramidCurriculum


def test_shares_are_those_of_the_labelled_entries():
    logits = torch.zeros(1, 3, 4, 8)
    logits[:, 0, :, :2] = 9.0
    logits[:, 2, :, 2:5] = 9.0  # the other three columns stay unconfident
    shares = label_shares(PyramidCurriculum(None, box_size=(4,)).pseudo_labels(logits), 3)
    assert shares["labelled/pixel"] == 5 / 8 and shares["share/pixel"].tolist() == [2 / 5, 0, 3 / 5]
    assert shares.keys() == {f"{what}/{layer}" for what in ("labelled", "share") for layer in ("pixel", "square_4")}


def test_padding_and_disabled_layers_have_no_labels():
    curriculum = PyramidCurriculum(None, box_size=(4,), use_pixels=False)
    logits, valid = torch.randn(1, 3, 4, 8) * 20, torch.zeros(1, 4, 8, dtype=torch.bool)
    shares = label_shares(curriculum.pseudo_labels(logits, valid), 3)
    assert shares.keys() == {"labelled/square_4", "share/square_4"}
    assert shares["labelled/square_4"] == 0 and shares["share/square_4"].tolist() == [0, 0, 0]


def of(layer: str, labelled: float, classes: dict[str, float]) -> dict:
    """The logged values of one layer of the pyramid in an iteration."""
    return {f"target/labelled/{layer}": labelled, f"target/share/{layer}": classes}


@pytest.mark.parametrize("high", [0.95, 0.85])
def test_one_class_for_many_steps_is_reported_once(high):
    watch = CollapseWatch()
    shares = of("pixel", 0.5, {"road": high, "car": 0.05})
    told = [watch.update(shares) for _ in range(PATIENCE + 50)]
    assert [i for i, message in enumerate(told) if message] == ([PATIENCE - 1] if high > 0.9 else [])
    if high > 0.9:
        assert "target/share/pixel/road has been above 90% for 200 steps" in told[PATIENCE - 1]


def test_interrupted_streak_and_missing_labels():
    watch = CollapseWatch()
    for step in range(3 * PATIENCE):
        assert watch.update(of("pixel", 0.5, {"road": 0.5 if step % 150 == 0 else 0.99})) is None
    few = of("pixel", 0.005, {}) | of("square_4", 0.2, {})
    assert "target/labelled/pixel is 0.50%" in watch.update(few)
    assert watch.update(few) is None


def test_short_run_is_watched_for_a_part_of_its_steps():
    assert patience(35000) == PATIENCE and patience(100) == 10 and patience(3) == 5
    watch = CollapseWatch(patience(100))
    shares = of("pixel", 0.5, {"road": 0.95})
    assert [bool(watch.update(shares)) for _ in range(20)] == [i == 9 for i in range(20)]


def test_common_class_that_vanishes_is_reported_once():
    watch = VanishingWatch(lambda: {"road": 0.5, "vegetation": 0.05, "sky": 0.1, "rider": 0.01}, patience(100))

    def step(vegetation: float, sky_in_squares: float) -> str | None:
        pixels = {"road": 0.9, "vegetation": vegetation, "sky": 0.0, "rider": 0.0}
        squares = {"road": 0.9, "vegetation": 0.0, "sky": sky_in_squares, "rider": 0.0}
        return watch.update(of("pixel", 0.5, pixels) | of("square_4", 0.5, squares))

    assert watch.update({}) is None  # source only has no pseudo-labels
    assert not any(step(0.05, 0.1) for _ in range(60))  # a rare class may be missing
    assert not any(step(0.02 * (i % 3 == 0), 0.1) for i in range(60))  # a batch has few images
    told = [step(0.0, 0.1) for _ in range(40)]
    (message,) = filter(None, told)
    assert "vegetation: 5.0% of the source labels" in message and "sky" not in message
    (message,) = filter(None, [step(0.0, 0.0) for _ in range(40)])
    assert "sky: 10.0%" in message and "vegetation" not in message


def test_class_of_only_the_first_labels_is_reported_when_it_vanishes():
    """A class of a single batch does not count as common."""
    watch = VanishingWatch(lambda: {"road": 0.5, "rider": 0.0, "bus": 0.0}, patience(100))
    told = []
    for step in range(60):
        shares = {"road": 0.5, "rider": 0.06 * (step < 20), "bus": 0.06 * (step == 0)}
        told.append(watch.update(of("pixel", 0.5, shares)))
    (message,) = filter(None, told)
    assert "rider: 6.0%" in message and "bus" not in message and told.index(message) > 20


def test_source_batches_without_a_label_are_reported_once():
    watch = UnlabelledWatch(patience=3)
    told = [watch.update({"source/labelled": share}) for share in (0, 0, 0.5, 0, 0, 0, 0, 1)]
    assert [bool(warning) for warning in told] == [False] * 5 + [True, False, False]
    assert "no pixel of the source batches of 3 steps is labelled" in told[5]


def test_source_crops_without_a_label_are_reported(command, city, tmp_path, monkeypatch):
    """The labels have labelled pixels, but the crops of the run do not."""
    monkeypatch.setattr(data, "any_labelled", lambda *arguments: True)
    shutil.copytree(city / "gtav", tmp_path / "gtav")
    for path in (tmp_path / "gtav/labels").iterdir():
        Image.fromarray(np.zeros((64, 96), np.uint8)).save(path)
    train_source_only.main(command(tmp_path, "run", f"source.data_dir={tmp_path}/gtav", "val.held_out=0"))
    assert (tmp_path / "run/log.txt").read_text().count("WARNING: no pixel of the source batches of 2 steps") == 1
