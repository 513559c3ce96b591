"""Our scores equal those of the Cityscapes evaluator. Only this test needs ``pip install cityscapesscripts``."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.labels import CITYSCAPES
from dataset.reading import read_label
from utils.metrics import ConfusionMatrix

official = pytest.importorskip(
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", reason="cityscapesscripts is not installed"
)
IDS = 34


def pair(rng: np.random.Generator, folder: Path, index: int) -> tuple[Path, Path]:
    """A label and a partly correct prediction, with all 34 ids or only a few of them."""
    ids = np.arange(IDS) if index % 2 else rng.choice(IDS, 6, replace=False)
    label = rng.choice(ids, (40, 60)).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.choice(ids, label.shape)).astype(np.uint8)
    paths = folder / f"{index}_label.png", folder / f"{index}_prediction.png"
    for path, pixels in zip(paths, (label, prediction), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def official_iou(pairs: list[tuple[Path, Path]]) -> tuple[dict[str, float], float]:
    args = SimpleNamespace(evalLabels=list(range(IDS)), evalInstLevelScore=False, evalPixelAccuracy=False)
    counts = np.zeros((IDS, IDS), np.ulonglong)
    for label, prediction in pairs:
        official.evaluatePair(str(prediction), str(label), counts, {}, {}, args)
    names = {official.id2label[i].name: i for i in range(IDS) if not official.id2label[i].ignoreInEval}
    iou = {name: official.getIouScoreForLabel(i, counts, args) for name, i in names.items()}
    return iou, official.getScoreAverage(iou, args)


def test_iou_and_mean_are_those_of_the_official_evaluator(tmp_path):
    rng = np.random.default_rng(0)
    pairs = [pair(rng, tmp_path, index) for index in range(20)]
    for chosen in ([p] for p in pairs):
        compare(chosen)
    compare(pairs)


def compare(pairs: list[tuple[Path, Path]]) -> None:
    matrix = ConfusionMatrix(19)
    for label, prediction in pairs:
        labels, predictions = read_label(label, "cityscapes"), read_label(prediction, "cityscapes")
        matrix.update(torch.from_numpy(labels), torch.from_numpy(predictions))
    theirs, mean = official_iou(pairs)
    ours = dict(zip(CITYSCAPES.names, matrix.iou().tolist(), strict=True))
    assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True)
    assert matrix.miou() == pytest.approx(mean, abs=1e-9)
