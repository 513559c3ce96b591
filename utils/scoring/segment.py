"""Pictures without labels: which are meant by files, folders and lists, and what is written of each."""

import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset.folders import read_list, split_pair
from dataset.labels import ClassTable
from dataset.loader import MapDataset, eval_loader
from dataset.messages import DataError, few
from dataset.program import say
from dataset.progress import Progress
from dataset.reading import read_image
from utils import distributed
from utils.inference import Predictor, network_input
from utils.scoring.pictures import (
    LABEL_IDS,
    Background,
    colour_map,
    label_id_map,
    overlay,
    save_pictures,
    with_legend,
    write_clip,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
LIST = ".txt"
FRAMES = "write its frames into a folder first, as by: ffmpeg -i FILE FOLDER/%06d.jpg"
OVERLAY, CONFIDENCE = "overlay", "confidence"  # folders of results
CLIP_WIDTH = 960  # pixels at most
WHITE = 255


@dataclass(frozen=True)
class PictureFile:
    """A picture, and the path below each kind of result, without suffix, that its results get."""

    path: Path
    name: Path


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


@dataclass(frozen=True)
class Summary:
    """``failures``: what was wrong with each picture that could not be read; ``seconds`` took all of them."""

    failures: list[str]
    written: int
    seconds: float


def find_pictures(given: Sequence[str | Path], data_dir: str | Path, results: Path) -> list[PictureFile]:
    """Pictures of files, folders and list files, in the order given; those of a folder in natural order (2 before 10).

    Their names are relative to the folder given, or to the one that is common to all that is given. Of a folder,
    hidden files and what is below ``results`` are left out.

    Args:
        given: list files end in .txt and have a picture a line, or a picture and its label, relative to where the
            command runs, to ``data_dir`` or to the list.
        results: folder of the results.

    Raises:
        DataError: a path that is not there, a folder without pictures, a video, or two pictures whose results would
            have the same name.
    """
    found, places = [], []
    for path in map(Path, given):
        if path.is_dir():
            found += _in_folder(path, results)
            places.append(path)
        elif path.suffix.lower() == LIST:
            listed = [_listed(line, path, Path(data_dir)) for line in read_list(path)]
            found += listed
            places += [picture.parent for picture in listed]
        else:
            found.append(_file(path))
            places.append(path.parent)
    root = os.path.commonpath([os.path.abspath(place) for place in places])  # links are kept
    pictures = [PictureFile(path, Path(os.path.relpath(os.path.abspath(path), root)).with_suffix("")) for path in found]
    _check_names(pictures)
    return pictures


def natural(path: Path) -> list[list[tuple[int, str]]]:
    """Key that sorts frame2 before frame10, folder by folder."""
    return [[(int(n or 0), text) for n, text in re.findall(r"(\d+)|(\D+)", part)] for part in path.parts]


def _in_folder(folder: Path, results: Path) -> list[Path]:
    walked = list(_walk(folder, results.resolve()))
    files = [path for path in walked if path.suffix.lower() in SUFFIXES]
    if not files:
        videos = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS]
        advice = f"; for a video ({few(videos, 1)}), {FRAMES}" if videos else ""
        raise DataError(f"no picture below {folder} (looked for {', '.join(SUFFIXES)}){advice}")
    others = Counter(path.suffix.lower() or "without an ending" for path in walked)
    left_out = [f"{count} {suffix}" for suffix, count in sorted(others.items()) if suffix not in SUFFIXES]
    if left_out and os.environ.get("RANK", "0") == "0":
        say(f"no pictures, left out below {folder}: {', '.join(left_out)}", "predict")
    return sorted(files, key=lambda path: natural(path.relative_to(folder)))


def _walk(folder: Path, results: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.resolve() == results:
            continue
        if path.is_dir():
            yield from _walk(path, results)
        else:
            yield path


def _listed(line: str, list_file: Path, data_dir: Path) -> Path:
    """The picture of a line, behind which there may be a label."""
    roots = (Path(), data_dir, list_file.parent)
    name, _ = split_pair(line, lambda part: any((root / part).is_file() for root in roots), list_file)
    for root in roots:
        if (root / name).is_file():
            return root / name
    raise DataError(f"{list_file} lists {line}, which is no file in any of: {few({str(root) for root in roots})}")


def _file(path: Path) -> Path:
    if path.suffix.lower() in VIDEOS:
        raise DataError(f"{path} is a video: {FRAMES}")
    if not path.is_file():
        raise DataError(f"no picture, folder or list {path}")
    return path


def _check_names(pictures: Sequence[PictureFile]) -> None:
    by_name = defaultdict(list)
    for picture in pictures:
        by_name[os.path.normcase(picture.name)].append(str(picture.path))
    clashing = [paths for paths in by_name.values() if len(paths) > 1]
    if clashing:
        raise DataError(
            f"results of {few(' and '.join(paths) for paths in clashing)} would have the same name: rename one of "
            "them, or give them in two commands with a folder of results each"
        )


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
        frames = [output.folder / OVERLAY / f"{files[index].name}.png" for index in done]
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
        "colour": colour_map(classes, table),
        LABEL_IDS: label_id_map(classes, table),
        OVERLAY: with_legend(blended, classes, table),
    }
    if CONFIDENCE in results:
        pictures[CONFIDENCE] = Image.fromarray(results[CONFIDENCE])
    save_pictures(output.folder, str(file.name), pictures)
