"""Which pictures somebody means by files, folders and lists, and where the results of each go."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset.lists import read_list, split_pair
from dataset.messages import DataError, few

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
LIST = ".txt"
FRAMES = "write its frames into a folder first, as by: ffmpeg -i FILE FOLDER/%06d.jpg"


@dataclass(frozen=True)
class PictureFile:
    """A picture, and the path below each kind of result, without suffix, that its results get."""

    path: Path
    name: Path


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
    files = [path for path in _walk(folder, results.resolve()) if path.suffix.lower() in SUFFIXES]
    if not files:
        videos = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS]
        advice = f"; for a video ({few(videos, 1)}), {FRAMES}" if videos else ""
        raise DataError(f"no picture below {folder} (looked for {', '.join(SUFFIXES)}){advice}")
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
