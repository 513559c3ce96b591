"""Find image/label pairs: in the folder layouts of ``dataset.labels.DATA_SETS``, with or without list files."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np

from dataset.files import read_text, write_text
from dataset.labels import DATA_SETS, DataSet, refuse_train_ids
from dataset.messages import DataError, few

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """An image and its label file, if it has one.

    ``name`` is the image's path below the folder of its set, without the file extension. It is unique in the set and
    names all files that are written for the image. Cityscapes file names repeat the folder, so ``name`` omits it.
    """

    name: str
    image: Path
    label: Path | None

    @property
    def label_file(self) -> Path:
        """``label`` of a sample that must have one; raises DataError if it has none."""
        if self.label is None:
            raise DataError(f"{self.image} has no label: name it in a data_list or label_list")
        return self.label


def write_list(samples: Sequence[Sample], path: Path, root: str | Path) -> None:
    """Write the samples' image paths relative to ``root``, one a line, as ``find_samples`` reads them."""
    lines = "".join(f"{os.path.relpath(sample.image, root)}\n" for sample in samples)
    write_text(path, lines)


def find_samples(
    dataset: str,
    data_dir: str | Path,
    *,
    split: str = "train",
    data_list: str | Path | None = None,
    label_list: str | Path | None = None,
    label_root: str | Path | None = None,
    labels: str = "required",
    repeats: bool = False,
) -> list[Sample]:
    """Image/label pairs of one split, sorted by path (or in the order of the list).

    Args:
        dataset: "gtav", "synthia" or "cityscapes": the layout below ``data_dir``; or "list": ``data_list`` names pairs.
        split: sub-folder of the Cityscapes layout; the other layouts have no splits.
        data_list: text file with one image path a line, relative to ``data_dir`` or to the layout's image folder.
            None: the folder is scanned. For "list": lines as ``split_pair`` reads them.
        label_list: text file with the label paths in the same order, relative to ``label_root`` or to the label folder.
        label_root: None: ``data_dir``.
        labels: "required": an image without label is an error; "optional": its label is None.
        repeats: a list may contain a line several times, for training.

    Raises:
        DataError: a missing folder, an empty split, a missing file or pair, a label file of train ids, an image that is
            listed as its own label, or two images with one name; the message says what is expected.
    """
    if dataset == "list":
        return _find_listed(Path(data_dir), data_list, labels, repeats)
    if dataset not in DATA_SETS:
        raise DataError(f"no folder layout for {dataset!r}: choose one of {', '.join(DATA_SETS)}, list")
    layout, root = DATA_SETS[dataset], Path(data_dir)
    image_dir, label_dir = root / layout.images.format(split=split), root / layout.labels.format(split=split)
    if data_list is None:
        images = _scan(image_dir, layout, dataset)
    else:
        images = [_locate(line, image_dir, root, data_list) for line in read_list(data_list, repeats=repeats)]
    if label_list is None:
        found = [label_dir / layout.label_of(os.path.relpath(image, image_dir)) for image in images]
    else:
        lines = read_list(label_list, repeats=repeats)
        if len(lines) != len(images):
            raise DataError(f"{label_list} has {len(lines)} lines for {len(images)} images: list one label per image")
        found = [_locate(line, label_dir, Path(label_root or root), label_list) for line in lines]
        for image, label, line in zip(images, found, lines, strict=True):
            _refuse_own_label(image, label, label_list, line)
    for label in found:
        refuse_train_ids(label, dataset)
    if labels == "required":
        _refuse_missing(images, found, image_dir, label_dir)
    names = _names(images, (image_dir, root), layout.image_suffix, repeats)
    return list(map(Sample, names, images, [label if label.is_file() else None for label in found]))


def _refuse_missing(images: Sequence[Path], labels: Sequence[Path], image_dir: Path, label_dir: Path) -> None:
    missing = [image for image, label in zip(images, labels, strict=True) if not label.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(images)} images below {image_dir} have no label in {label_dir}: {few(missing)}. "
            "Complete the download, or set a data_list without these images"
        )


def known_labels(dataset: str, data_dir: str | Path, split: str) -> set[Path]:
    """All label files of a folder layout, also those without an image."""
    layout = DATA_SETS[dataset]
    return set((Path(data_dir) / layout.labels.format(split=split)).glob(layout.depth + layout.label_suffix))


def _names(images: Sequence[Path], roots: Sequence[Path], suffix: str | None, repeats: bool) -> list[str]:
    """A name for every image, see ``Sample``.

    Args:
        roots: a name is relative to the first of these folders that contains the image.
        suffix: end of all file names, which is removed. None: the file extension is removed, unless two images differ
            only in it.

    Raises:
        DataError: two images have one name, or, without ``repeats``, one image occurs twice.
    """
    paths = [_path_below(image, roots) for image in images]
    if suffix is None:
        images_called = Counter(path.with_suffix("") for path in set(paths))
        names = [str(path if images_called[path.with_suffix("")] > 1 else path.with_suffix("")) for path in paths]
    else:
        names = [_without_city(str(path).removesuffix(suffix)) for path in paths]
    first: dict[str, Path] = {}
    for name, image in zip(names, images, strict=True):
        if name in first and (not repeats or os.path.abspath(first[name]) != os.path.abspath(image)):
            raise DataError(f"{first[name]} and {image} would share the name {name}: list only one of them")
        first[name] = image
    return names


def _path_below(image: Path, roots: Sequence[Path]) -> PurePath:
    path = PurePath(os.path.abspath(image))  # without '..', so that no file is written outside its folder
    for root in map(os.path.abspath, roots):
        if path.is_relative_to(root):
            return path.relative_to(root)
    return path.relative_to(path.anchor)


def _without_city(name: str) -> str:
    """``name`` without the folder if the file name begins with it, as in aachen/aachen_000000_000019."""
    folder, _, stem = name.rpartition("/")
    return stem if folder and "/" not in folder and stem.startswith(f"{folder}_") else name


def _scan(image_dir: Path, layout: DataSet, dataset: str) -> list[Path]:
    expected = f"{dataset} images are expected as {image_dir}/{layout.depth}{layout.image_suffix}"
    if not image_dir.is_dir():
        raise DataError(
            f"no folder {image_dir}; {expected}. Set data_dir to the folder above {layout.images.split('/')[0]}/"
        )
    images = sorted(image_dir.glob(layout.depth + layout.image_suffix))
    if not images:
        raise DataError(f"no image in {image_dir}; {expected}")
    return images


def read_list(path: str | Path, *, repeats: bool = False) -> list[str]:
    """Lines of a list file, without blank lines.

    Args:
        repeats: a line may occur several times, so that images of rare classes are used more often.

    Raises:
        DataError: a missing or empty file, not UTF-8, a header, or a repeated line without ``repeats``.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no list file {path}")
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if len(lines) > 1 and "." not in lines[0] and "." in lines[1]:  # words above file names
        raise DataError(f"{_place(path, lines[0])} looks like a header: remove that line, a list has only paths")
    repeated = [line for line, count in Counter(lines).items() if count > 1]
    if repeated and not repeats:
        raise DataError(
            f"{path} lists {few(repeated)} more than once: remove the repetition (only training lists may have some)"
        )
    if not lines:
        raise DataError(f"{path} lists no file")
    return lines


def _place(list_file: str | Path, line: str) -> str:
    """File, number and text of a line from ``read_list``, for a message."""
    number = [text.strip() for text in read_text(Path(list_file)).split("\n")].index(line) + 1
    return f"{list_file}, line {number}, {line!r},"


def _refuse_own_label(image: Path, label: Path, list_file: str | Path, line: str) -> None:
    if os.path.samefile(image, label):
        raise DataError(f"{_place(list_file, line)} names {image} as its own label: name the label file")


def _find_listed(root: Path, data_list: str | Path | None, labels: str, repeats: bool) -> list[Sample]:
    """Pairs of a list file. Its paths are absolute or relative to ``root``."""
    if data_list is None:
        raise DataError(
            "dataset list needs a data_list (source, target or test.data_list): a text file of 'image_path label_path' "
            "lines"
        )
    images, found = [], []
    for line in read_list(data_list, repeats=repeats):
        image, label = split_pair(line, lambda path: os.path.isfile(root / path), data_list)
        if label is None and labels == "required":
            raise DataError(f"{data_list} has the line {line!r}: write 'image_path label_path'")
        images.append(_locate(image, root, root, data_list))
        found.append(_locate(label, root, root, data_list) if label else None)
        if found[-1]:
            _refuse_own_label(images[-1], found[-1], data_list, line)
    return list(map(Sample, _names(images, (root,), None, repeats), images, found))


def split_pair(line: str, exists: Callable[[str], bool], list_file: str | Path) -> tuple[str, str | None]:
    """(image, label) of a line of a pair list; the label is None if the line is only an image.

    A tab separates the two. A line without tab is one image if that file exists. Otherwise it is split at the white
    space that gives two existing files. Paths may contain spaces.

    Raises:
        DataError: more than one tab, or several ways to split the line.
    """
    if "\t" in line:
        parts = [part.strip() for part in line.split("\t") if part.strip()]
        if len(parts) != 2:
            raise DataError(f"{list_file} has the line {line!r}: write the image, one tab and the label")
        return parts[0], parts[1]
    whole: list[tuple[str, str | None]] = [(line, None)]
    cuts = [(line[: gap.start()], line[gap.end() :]) for gap in re.finditer(r"\s+", line)]
    ways = [cut for cut in [*whole, *cuts] if all(exists(part) for part in cut if part is not None)]
    if len(ways) > 1:
        raise DataError(f"{list_file} has the line {line!r}, which can be read in {len(ways)} ways: put a tab between")
    # If no way fits, the caller reports a missing file: of the only cut, of a cut with one existing file, or the line.
    likely = cuts if len(cuts) == 1 else [cut for cut in cuts if exists(cut[0]) or exists(cut[1])]
    return [*ways, *likely, *whole][0]


def _locate(line: str, folder: Path, root: Path, list_file: str | Path) -> Path:
    for candidate in (root / line, folder / line):
        if os.path.isfile(candidate):  # False for an impossible file name, where Path.is_file raises
            return candidate
    places = f"not below {root}" if folder == root else f"neither below {root} nor below {folder}"
    raise DataError(f"{list_file} lists {line}, which is {places}")


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` items, evenly spaced and in their order, beginning with the first."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def hold_out(samples: Sequence[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split off ``count`` samples by a seeded rule, in proportion to the number of samples of each city (folder).

    The choice depends only on the set of names and on ``seed``, not on the order of ``samples``. All repetitions of
    one image are held out, or all are kept.

    Returns:
        (kept, held out), each sorted by name.
    """
    images = {sample.name: sample for sample in samples}
    if len(images) == 1:
        raise DataError("cannot hold the only image out: set val.held_out=0")
    if not 0 < count < len(images):
        raise DataError(
            f"cannot hold {count} of {len(images)} images out: set val.held_out between 1 and {len(images) - 1}"
        )
    cities: dict[str, list[Sample]] = defaultdict(list)
    for _, sample in sorted(images.items()):
        cities[os.path.abspath(sample.image.parent)].append(sample)
    shares = {city: count * len(members) / len(images) for city, members in sorted(cities.items())}
    quota = {city: int(share) for city, share in shares.items()}
    by_remainder = sorted(shares, key=lambda city: (quota[city] - shares[city], city))
    for city in by_remainder[: count - sum(quota.values())]:
        quota[city] += 1
    rng = np.random.default_rng(seed)
    held_out: set[str] = set()
    for city, members in sorted(cities.items()):
        held_out.update(members[i].name for i in rng.permutation(len(members))[: quota[city]])
    ordered = sorted(samples, key=lambda s: s.name)
    return [s for s in ordered if s.name not in held_out], [images[name] for name in sorted(held_out)]
