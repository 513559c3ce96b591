"""Predictions as files: pictures of a network's, and scores of those that somebody else made."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dataset.folders import DataError, Sample
from dataset.labels import ClassTable
from dataset.reading import read_label, read_prediction
from utils import distributed
from utils.metrics import ConfusionMatrix
from utils.scoring.pictures import confusion_picture, save_prediction

WORST = 10  # images shown apart


class Gallery:
    """Pictures of one network below ``folder``: colour/, label_ids/, panels/, worst/ and confusion.png."""

    def __init__(self, folder: Path, table: ClassTable) -> None:
        self.folder, self.table = folder, table
        self.scores: list[tuple[float, str]] = []

    def add(self, name: str, image: Image.Image, label: Tensor, prediction: Tensor) -> None:
        """Write the pictures of one image; label and prediction are (H, W)."""
        save_prediction(self.folder, name, image, label.numpy(), prediction.numpy(), self.table)
        matrix = ConfusionMatrix(self.table.num_classes)
        matrix.update(label, prediction)
        self.scores.append((100 * matrix.miou(), name))

    def finish(self, matrix: ConfusionMatrix) -> None:
        """Write what is about all images: the confusion matrix, and the panels of the worst ones again, by rank."""
        labelled = [score for score in distributed.gather(self.scores) if not np.isnan(score[0])]
        if not distributed.is_main():
            return
        confusion_picture(matrix.counts.numpy(), self.table).save(self.folder / "confusion.png")
        worst = self.folder / "worst"
        shutil.rmtree(worst, ignore_errors=True)
        worst.mkdir()
        for rank, (miou, name) in enumerate(sorted(labelled)[:WORST], start=1):
            shutil.copy(self.folder / "panels" / f"{name}.png", worst / f"{rank:02d}_{miou:.1f}_{Path(name).name}.png")


def score_files(folder: Path, samples: Sequence[Sample], dataset: str, num_classes: int) -> ConfusionMatrix:
    """Confusion matrix of label-id PNGs below ``folder``, one a sample, whose names begin with the sample's name.

    Raises:
        DataError: a sample has no prediction or several, or one of another size than its label.
    """
    matrix = ConfusionMatrix(num_classes)
    files = sorted(folder.rglob("*.png"))
    for sample in tqdm(samples, desc="predictions", disable=not distributed.is_main()):
        stem = Path(sample.name).name
        found = [path for path in files if path.stem == stem or path.name.startswith(f"{stem}_")]
        if len(found) != 1:
            problem = f"{len(found)} predictions for {sample.name} below {folder}"
            raise DataError(f"{problem}: exactly one {stem}.png or {stem}_*.png is needed")
        label, prediction = read_label(sample.label_file, dataset), read_prediction(found[0], dataset)
        if label.shape != prediction.shape:
            sizes = " and ".join(f"{shape[1]}x{shape[0]}" for shape in (prediction.shape, label.shape))
            raise DataError(f"prediction {found[0]} and label {sample.label} differ in size (W x H): {sizes}")
        matrix.update(torch.from_numpy(label), torch.from_numpy(prediction))
    return matrix
