"""Predictions of picture files without labels: colours, label ids, overlays, confidence, a clip."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.labels import ClassTable
from dataset.loader import MapDataset, eval_loader
from dataset.messages import DataError
from dataset.progress import Progress
from dataset.reading import read_image
from utils import distributed
from utils.inference import Predictor, network_input
from utils.scoring.background import Background
from utils.scoring.overlay import with_legend, write_clip
from utils.scoring.picture_files import PictureFile
from utils.scoring.pictures import colour_map, label_id_map, overlay

COLOUR, LABEL_IDS, OVERLAY, CONFIDENCE = "colour", "label_ids", "overlay", "confidence"  # folders of the results
CLIP_WIDTH = 960  # pixels at most
WHITE = 255


@dataclass(frozen=True)
class Output:
    """What is written of each picture, and where.

    Attributes:
        folder: of the results.
        opacity: of the colours over the picture, 0 to 1.
        confidence: write the highest probability of every pixel too.
        clip: .gif or .webp file of all overlays, or None.
        frames_per_second: of the clip.
    """

    folder: Path
    opacity: float = 0.5
    confidence: bool = False
    clip: Path | None = None
    frames_per_second: float = 10.0

    def file(self, kind: str, picture: PictureFile) -> Path:
        return self.folder / kind / picture.name.parent / f"{picture.name.name}.png"


@dataclass(frozen=True)
class Summary:
    """``failures``: what was wrong with each picture that could not be read; ``seconds`` took all of them."""

    failures: list[str]
    written: int
    seconds: float


class _Pictures(MapDataset):
    """Each file as a picture and the network's input; one that cannot be read as nothing but what is wrong."""

    def __init__(self, files: Sequence[PictureFile], input_size: tuple[int, int] | None) -> None:
        self.files, self.input_size = files, input_size  # not the predictor: loader processes get a copy of this

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """index; picture uint8 (H, W, 3); image float32 (1, 3, h, w) normalised; failure, "" if there is none."""
        try:
            picture = read_image(self.files[index].path)
        except DataError as error:
            return {"index": index, "picture": torch.empty(0), "image": torch.empty(0), "failure": str(error)}
        image = network_input(picture, self.input_size)
        return {"index": index, "picture": torch.from_numpy(np.array(picture)), "image": image, "failure": ""}


def segment_files(predictor: Predictor, files: Sequence[PictureFile], output: Output, num_workers: int) -> Summary:
    """Write the predictions of ``files``, shared out over the processes; reading, prediction and writing overlap.

    Returns:
        what all processes did together.

    Raises:
        OSError: a result cannot be written.
    """
    started = time.monotonic()
    failures: list[tuple[int, str]] = []
    written: list[int] = []
    loader = eval_loader(
        _Pictures(files, predictor.input_size),
        num_workers=num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    with Background() as writer:
        for batch in Progress(loader, "predict", unit="pictures", enabled=distributed.is_main(), leave=False):
            index, failure = int(batch["index"]), batch["failure"][0]
            if failure:
                failures.append((index, failure))
                continue
            picture = batch["picture"][0].numpy()
            results = predicted(predictor, batch["image"][0], picture.shape[1::-1], output.confidence)
            writer.call(write, predictor.table, picture, results, files[index], output)
            written.append(index)
    failed = [message for _, message in sorted(distributed.gather(failures))]  # all are done: the clip is of them all
    done = sorted(distributed.gather(written))
    if output.clip and done and distributed.is_main():
        frames = [output.file(OVERLAY, files[index]) for index in done]
        write_clip(output.clip, frames, output.frames_per_second, CLIP_WIDTH)
    return Summary(failed, len(done), time.monotonic() - started)


def predicted(predictor: Predictor, image: Tensor, size: tuple[int, int], confidence: bool) -> dict[str, np.ndarray]:
    """Class map (H, W) and, if asked for, the highest probability in 255ths (H, W), both uint8."""
    views = predictor.views(image)
    results = {LABEL_IDS: predictor.classes(views, size)}
    if confidence:
        highest = predictor.mean_probability(views, size).amax(0)
        results[CONFIDENCE] = highest.mul(WHITE).round().byte().cpu().numpy()
    return results


def write(
    table: ClassTable, picture: np.ndarray, results: dict[str, np.ndarray], file: PictureFile, output: Output
) -> None:
    classes = results[LABEL_IDS]
    blended = overlay(Image.fromarray(picture), classes, table, output.opacity)
    pictures = {
        COLOUR: colour_map(classes, table),
        LABEL_IDS: label_id_map(classes, table),
        OVERLAY: with_legend(blended, classes, table),
    }
    if CONFIDENCE in results:
        pictures[CONFIDENCE] = Image.fromarray(results[CONFIDENCE])
    for kind, result in pictures.items():
        path = output.file(kind, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        result.save(path)
