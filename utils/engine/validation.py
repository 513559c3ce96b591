"""Scores on the held-out target images during training, for model selection."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dataset.folders import Sample, evenly_spaced
from dataset.reading import read_image
from models.segmentor import Segmentor
from utils import distributed
from utils.builders.data import Data
from utils.run_folder.log import VALIDATION, RunLog
from utils.scoring.evaluation import evaluate, iou_table, scores
from utils.scoring.pictures import panel
from utils.scoring.predictor import Predictor

PANELS = 4  # held-out images in TensorBoard


class Validation:
    """Scores a network on the held-out images and draws some of them.

    Args:
        data: with at least one held-out image.
    """

    def __init__(self, data: Data, device: torch.device, log: RunLog) -> None:
        self.data, self.config, self.device, self.log = data, data.config, device, log
        self.loader = data.evaluation_loader(data.held_out, data.config.target)
        self.warned = False
        self.table, self.classes = data.config.class_table, data.config.test.eval_classes
        seen = data.held_out[:: distributed.world_size()]  # by the first process, the only one that draws
        self.pictured = {sample.name: sample.image for sample in evenly_spaced(seen, PANELS)}  # of all cities

    def try_out(self, model: Segmentor, samples: Sequence[Sample]) -> None:
        """Score labelled ``samples`` like a validation, without effect on network, random numbers and logs.

        Raises:
            DataError: a sample cannot be read or scored.
        """
        loader = self.data.evaluation_loader(samples, self.config.target, num_workers=0)  # only a few samples
        images = {sample.name: sample.image for sample in samples}

        def draw(name: str, label: Tensor, prediction: Tensor) -> None:
            self._panel(images[name], label, prediction)

        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            matrix = evaluate(self._predictor(model), loader, on_image=draw, title="try a validation")
        iou_table(matrix, self.table, self.classes)

    def __call__(self, model: Segmentor, done: int, best_before: float, stop: Callable[[], bool]) -> float:
        """mIoU in percent after step ``done``, NaN if no scored class is labelled; logs scores and pictures.

        Raises:
            EvaluationStopped: ``stop`` returned True, see ``evaluate``; only pictures were logged.
        """
        draw = partial(self._draw_panel, done)
        matrix = evaluate(self._predictor(model), self.loader, on_image=draw, title="validate", stop=stop)
        result = scores(matrix, self.table, self.classes)
        self.log.record(done, {f"{VALIDATION}/{name}": value for name, value in result.items()})
        if math.isnan(result["miou"]):
            self._warn_once()
            return result["miou"]
        best = max(result["miou"], best_before)
        table = iou_table(matrix, self.table, self.classes)
        self.log.text(f"validation at step {done} (best so far {best:.2f})\n{table}")
        return result["miou"]

    def _predictor(self, model: Segmentor) -> Predictor:
        return Predictor(model, self.table, self.device, self.config.test)

    def _warn_once(self) -> None:
        if not self.warned:
            self.warned = True
            self.log.text(
                "WARNING: no scored class is labelled in the held-out images. No checkpoint is therefore the best, and "
                "the last one is the result: check test.eval_classes and the held-out labels"
            )

    def _draw_panel(self, done: int, name: str, label: Tensor, prediction: Tensor) -> None:
        if name in self.pictured:
            self.log.picture(done, f"panels/{name}", self._panel(self.pictured[name], label, prediction))

    def _panel(self, image: Path, label: Tensor, prediction: Tensor) -> Image.Image:
        return panel(read_image(image), label.numpy(), prediction.numpy(), self.table)
