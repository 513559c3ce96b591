"""Pictures without labels: find them in files, folders and lists, and write their predictions."""

import os
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from dataset.folders import Sample, read_list, split_pair
from dataset.labels import ClassTable
from dataset.loader import MapDataset, eval_loader
from dataset.messages import DataError, few
from dataset.program import say
from dataset.progress import Progress
from dataset.reading import read_image
from utils import distributed
from utils.config.schema import Evaluation
from utils.scoring.pictures import COLOUR, LABEL_IDS, Background, overlay, save_prediction, with_legend, write_clip
from utils.scoring.predictor import PictureTooLarge, Predictor, network_input, within_memory

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
LIST = ".txt"
FRAMES = "write its frames into a folder first: ffmpeg -i FILE FOLDER/%06d.jpg"
OVERLAY, CONFIDENCE = "overlay", "confidence"  # folders of results
CLIP_WIDTH = 960  # pixels, at most


@dataclass(frozen=True)
class Output:
    """The results to write for each picture, and their folder.

    Attributes:
        folder: of the results.
        opacity: of the colours over the picture, 0 to 1.
        confidence: also write the highest probability of every pixel.
        clip: .gif or .webp file of all overlays, or None.
        frames_per_second: of the clip.
        legend: on the right of each overlay; without it, an overlay has the picture's size.
    """

    folder: Path
    opacity: float = 0.5
    confidence: bool = False
    clip: Path | None = None
    frames_per_second: float = 10.0
    legend: bool = False

    def places(self) -> set[Path]:
        """The files and folders of the results, resolved."""
        folders = [self.folder / kind for kind in (COLOUR, LABEL_IDS, OVERLAY, CONFIDENCE)]
        return {path.resolve() for path in (*folders, *([self.clip] if self.clip else []))}


def find_pictures(given: Sequence[str | Path], data_dir: str | Path, output: Output) -> list[Sample]:
    """Pictures of files, folders and list files, in the order of ``given``. A folder is in natural order (2 before 10).

    Names of pictures and results are relative to the given folder, or to the folder that all given paths share.
    Hidden files and the results in ``output`` are skipped.

    Args:
        given: list files end in .txt. A line is a picture, or a picture and its label, relative to the working
            directory, to ``data_dir`` or to the list.

    Raises:
        DataError: a missing file, a result in ``output``, a folder without pictures, a video, or two pictures with the
            same name of their results.
    """
    found, places, results = [], [], output.places()
    searched = {output.folder.resolve()} - {Path(path).resolve() for path in given}
    for path in map(Path, given):
        if path.is_dir():
            found += _in_folder(path, searched, results)
            places.append(path)
            continue
        files = [path]
        if path.suffix.lower() == LIST:
            files = [_listed(line, path, Path(data_dir)) for line in read_list(path)]
        for file in files:
            _check(file, results)
        found += files
        places += [file.parent for file in files]
    root = os.path.commonpath([os.path.abspath(place) for place in places])  # links are not resolved
    names = [os.path.splitext(os.path.relpath(os.path.abspath(path), root))[0] for path in found]
    of_name = defaultdict(list)
    for name, path in zip(names, found, strict=True):
        of_name[os.path.normcase(name)].append(str(path))
    clashing = [paths for paths in of_name.values() if len(paths) > 1]
    if clashing:
        raise DataError(
            f"results of {few(' and '.join(paths) for paths in clashing)} would have the same name: rename one of "
            "them, or run two commands with different --save folders"
        )
    return [Sample(name, path, None) for name, path in zip(names, found, strict=True)]


def natural(path: Path) -> list[list[tuple[int, str]]]:
    """Key that sorts frame2 before frame10, folder by folder."""
    return [[(int(n or 0), text) for n, text in re.findall(r"(\d+)|(\D+)", part)] for part in path.parts]


def _in_folder(folder: Path, searched: set[Path], results: set[Path]) -> list[Path]:
    if folder.resolve() in searched:
        return []
    files = [path for path in files_below(folder, searched) if not _is_result(path, results)]
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not pictures:
        videos = [path for path in files if path.suffix.lower() in VIDEOS]
        advice = f"; for a video ({few(videos, 1)}), {FRAMES}" if videos else ""
        raise DataError(f"no picture below {folder} (looked for {', '.join(SUFFIXES)}; results are skipped){advice}")
    others = Counter(path.suffix.lower() or "without a suffix" for path in files)
    skipped = [f"{count} {suffix}" for suffix, count in sorted(others.items()) if suffix not in SUFFIXES]
    if skipped and distributed.is_main():
        say(f"files that are no pictures, skipped below {folder}: {', '.join(skipped)}", "predict")
    return sorted(pictures, key=lambda path: natural(path.relative_to(folder)))


def _is_result(path: Path, results: set[Path]) -> bool:
    """Whether ``path``, with links resolved, is one of ``results`` (see ``Output.places``) or below one."""
    place = path.resolve()
    return not results.isdisjoint([place, *place.parents])


def files_below(folder: Path, searched: set[Path], alone: str | None = None) -> Iterator[Path]:
    """Files below ``folder``, also in linked folders; hidden files are skipped.

    Each folder is searched once. Folders are searched before links to folders.

    Args:
        searched: resolved folders that are skipped; the searched ones are added.
        alone: if a folder has a sub-folder of this name, only that sub-folder is searched.

    Raises:
        OSError: a folder cannot be read.
    """
    ahead = deque([folder])
    while ahead:
        at = ahead.popleft()
        if at.resolve() in searched:
            continue
        searched.add(at.resolve())
        entries = sorted(path for path in at.iterdir() if not path.name.startswith("."))
        folders = [path for path in entries if path.is_dir()]
        if alone in [path.name for path in folders]:
            entries = folders = [at / str(alone)]
        ahead.extendleft(path for path in folders if not path.is_symlink())
        ahead.extend(path for path in folders if path.is_symlink())
        yield from (path for path in entries if path not in folders)


def _listed(line: str, list_file: Path, data_dir: Path) -> Path:
    """The picture of a line; a label may follow it."""
    roots = (Path(), data_dir, list_file.parent)
    name, _ = split_pair(line, lambda part: any((root / part).is_file() for root in roots), list_file)
    for root in roots:
        if (root / name).is_file():
            return root / name
    raise DataError(f"{list_file} lists {line}, which is missing in all of: {few({str(root) for root in roots})}")


def _check(path: Path, results: set[Path]) -> None:
    """Raises DataError if ``path`` is a video, is missing, or is a result."""
    if path.suffix.lower() in VIDEOS:
        raise DataError(f"{path} is a video: {FRAMES}")
    if not path.is_file():
        raise DataError(f"there is no picture, folder or list {path}")
    if _is_result(path, results):
        raise DataError(f"{path} is a result of the same --save: give pictures, or another --save folder")


class _Pictures(MapDataset):
    """Each picture and the network's input, or the error if the picture cannot be read."""

    def __init__(self, files: Sequence[Sample], test: Evaluation) -> None:
        self.files, self.test = files, test  # not the predictor: loader processes copy this object

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The one index; its picture, uint8 (H, W, 3); its image, see ``network_input``; its failure, or ""."""
        (index,) = indices
        path = self.files[index].image
        try:
            with within_memory(path):
                picture = read_image(path)
                pixels, image = torch.from_numpy(np.array(picture)), network_input(picture, self.test)
                # loader processes use shared memory: if it is full, the error is reported here
                tensors = [x.share_memory_() if get_worker_info() else x for x in (pixels, image)]
        except (DataError, PictureTooLarge) as error:
            return {"index": index, "failure": str(error)}
        return {"index": index, "picture": tensors[0], "image": tensors[1], "failure": ""}


def segment_files(
    predictor: Predictor, files: Sequence[Sample], output: Output, num_workers: int
) -> tuple[int, list[str]]:
    """Write the predictions of ``files``, divided among the processes. Reading, prediction and writing overlap.

    Returns:
        number of written pictures, and a message for each of the others, over all processes.

    Raises:
        OSError: a result cannot be written.
    """
    failures: list[tuple[int, str]] = []
    written: list[int] = []
    pictures = _Pictures(files, predictor.test)
    loader = eval_loader(
        pictures,
        num_workers=num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        batch=pictures.batch,
    )

    @contextmanager
    def failures_recorded(index: int) -> Iterator[Path]:
        """Record a picture that does not fit into the memory as a failure."""
        try:
            with within_memory(files[index].image):
                yield files[index].image
        except PictureTooLarge as error:
            failures.append((index, str(error)))

    def finish(index: int, picture: np.ndarray, found: tuple[Tensor, Tensor | None]) -> None:
        with failures_recorded(index):
            write(output, files[index].name, picture, found, predictor.table)
            written.append(index)

    with Background() as writer:
        for batch in Progress(loader, "predict", unit="pictures", enabled=distributed.is_main(), leave=False):
            if batch["failure"]:
                failures.append((batch["index"], batch["failure"]))
                continue
            with failures_recorded(batch["index"]) as path:
                shape = batch["picture"].shape[:2]
                found = predictor.segment(batch["image"], shape, path, confidence=output.confidence)
                writer.call(finish, batch["index"], batch["picture"].numpy(), found)
    failed = [message for _, message in sorted(distributed.gather(failures))]  # waits for all: the clip needs them
    done = sorted(distributed.gather(written))
    if output.clip and done and distributed.is_main():
        frames = [output.folder / OVERLAY / f"{files[index].name}.png" for index in done]
        write_clip(output.clip, frames, output.frames_per_second, CLIP_WIDTH)
    return len(done), failed


def write(
    output: Output, name: str, picture: np.ndarray, found: tuple[Tensor, Tensor | None], table: ClassTable
) -> None:
    """Write the results that ``output`` asks for, of a picture uint8 (H, W, 3).

    Args:
        found: result of ``Predictor.segment``.
    """
    classes, highest = found[0][0].numpy(), found[1]
    others = {OVERLAY: overlay(Image.fromarray(picture), classes, table, output.opacity)}
    if output.legend:
        others[OVERLAY] = with_legend(others[OVERLAY], classes, table)
    if highest is not None:
        others[CONFIDENCE] = Image.fromarray(highest[0].numpy())
    save_prediction(output.folder, name, classes, table, **others)
