"""Find image/label pairs in the folder layouts of ``dataset.labels.DATA_SETS``, with or without list files."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.labels import DATA_SETS, DataSet
from dataset.messages import few


class DataError(RuntimeError):
    """A data set that cannot be used as it is; the message names the file and says what to do."""


@dataclass(frozen=True)
class Sample:
    """An image and, where there is one, its label file. ``name`` is unique in its set."""

    name: str
    image: Path
    label: Path | None

    @property
    def label_file(self) -> Path:
        """``label`` of a sample that must have one; DataError for another."""
        if self.label is None:
            raise DataError(f"{self.image} has no label: name it in a data_list or label_list")
        return self.label


def read_list(path: str | Path) -> list[str]:
    """Lines of a list file, without blank ones; a repeated line is an error."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no list file {path}")
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    repeated = {line for line in lines if lines.count(line) > 1} if len(set(lines)) < len(lines) else set()
    if repeated:
        raise DataError(f"{path} lists {few(repeated)} more than once: remove the repetition")
    if not lines:
        raise DataError(f"{path} lists no file")
    return lines


def write_list(samples: Sequence[Sample], path: Path, root: str | Path) -> None:
    """Write the samples' image paths relative to ``root``, one a line, so that ``find_samples`` reads them back."""
    path.write_text("".join(f"{os.path.relpath(sample.image, root)}\n" for sample in samples))


def find_samples(
    dataset: str,
    data_dir: str | Path,
    *,
    split: str = "train",
    data_list: str | Path | None = None,
    label_list: str | Path | None = None,
    labels: str = "required",
) -> list[Sample]:
    """Image/label pairs of one split, sorted by path (or in the order of the list).

    Args:
        dataset: "gtav", "synthia" or "cityscapes": the layout below ``data_dir``; or "list": what ``data_list`` says.
        split: sub-folder of the Cityscapes layout; the others have none.
        data_list: text file with one image path a line, relative to ``data_dir`` or to the layout's image folder.
            Without it the folder is scanned. For "list", ``image_path label_path`` a line, the label path optional.
        label_list: text file with the label paths in the same order, relative to ``data_dir`` or to the label folder.
        labels: "required": an image without label is an error; "optional": its label is None.

    Raises:
        DataError: a missing folder, an empty split, a missing file or pair; the message says what is expected.
    """
    if dataset == "list":
        return _find_listed(Path(data_dir), data_list, labels)
    if dataset not in DATA_SETS:
        raise DataError(f"no folder layout for {dataset!r}: choose one of {', '.join(DATA_SETS)}, list")
    layout, root = DATA_SETS[dataset], Path(data_dir)
    image_dir, label_dir = root / layout.images.format(split=split), root / layout.labels.format(split=split)
    if data_list is None:
        images = _scan(image_dir, layout, dataset)
    else:
        images = [_locate(line, image_dir, root, data_list) for line in read_list(data_list)]
    if label_list is None:
        found = [label_dir / layout.label_of(os.path.relpath(image, image_dir)) for image in images]
    else:
        lines = read_list(label_list)
        if len(lines) != len(images):
            raise DataError(f"{label_list} has {len(lines)} lines for {len(images)} images: list one label per image")
        found = [_locate(line, label_dir, root, label_list) for line in lines]
    missing = [image for image, label in zip(images, found, strict=True) if not label.is_file()]
    if missing and labels == "required":
        raise DataError(
            f"{len(missing)} of {len(images)} images below {image_dir} have no label in {label_dir}: {few(missing)}. "
            "Complete the download, or give a data_list without them"
        )
    names = [os.path.relpath(i, image_dir).removesuffix(layout.image_suffix).replace(os.sep, "_") for i in images]
    if dataset == "cityscapes":  # the file name repeats the city
        names = [image.name.removesuffix(layout.image_suffix) for image in images]
    files = zip(names, images, found, strict=True)
    return [Sample(name, image, label if label.is_file() else None) for name, image, label in files]


def known_labels(dataset: str, data_dir: str | Path, split: str) -> set[Path]:
    """All label files of a folder layout, whether or not there is an image."""
    layout = DATA_SETS[dataset]
    return set((Path(data_dir) / layout.labels.format(split=split)).glob(layout.depth + layout.label_suffix))


def _find_listed(root: Path, data_list: str | Path | None, labels: str) -> list[Sample]:
    """Pairs of a list file, with paths relative to ``root`` or absolute, which may not contain spaces."""
    if data_list is None:
        raise DataError("dataset list needs a data_list: a text file of 'image_path label_path' lines")
    samples = []
    for line in read_list(data_list):
        image, *rest = line.split()
        if len(rest) > 1 or (not rest and labels == "required"):
            raise DataError(
                f"{data_list} has the line {line!r}: 'image_path label_path' is needed, without spaces in the paths"
            )
        label = _locate(rest[0], root, root, data_list) if rest else None
        name = str(Path(image).with_suffix("")).strip("/").replace("/", "_")
        samples.append(Sample(name, _locate(image, root, root, data_list), label))
    return samples


def _scan(image_dir: Path, layout: DataSet, dataset: str) -> list[Path]:
    expected = f"{dataset} images are expected as {image_dir}/{layout.depth}{layout.image_suffix}"
    if not image_dir.is_dir():
        raise DataError(
            f"no folder {image_dir}; {expected}. Set data_dir to the folder that holds {layout.images.split('/')[0]}/"
        )
    images = sorted(image_dir.glob(layout.depth + layout.image_suffix))
    if not images:
        raise DataError(f"no image in {image_dir}; {expected}")
    return images


def _locate(line: str, folder: Path, root: Path, list_file: str | Path) -> Path:
    for candidate in (root / line, folder / line):
        if candidate.is_file():
            return candidate
    raise DataError(f"{list_file} lists {line}, which is neither below {root} nor below {folder}")


def hold_out(samples: Sequence[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split off ``count`` samples, spread over the cities (parent folders) in proportion, by a fixed seeded rule.

    The choice depends on the set of names and on ``seed``, not on the order of ``samples``.

    Returns:
        (kept, held out), each sorted by name.
    """
    if not 0 < count < len(samples):
        raise DataError(
            f"cannot hold {count} of {len(samples)} images out: set val.held_out between 1 and {len(samples) - 1}"
        )
    cities: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: s.name):
        cities[sample.image.parent.name].append(sample)
    shares = {city: count * len(members) / len(samples) for city, members in sorted(cities.items())}
    quota = {city: int(share) for city, share in shares.items()}
    by_remainder = sorted(shares, key=lambda city: (quota[city] - shares[city], city))
    for city in by_remainder[: count - sum(quota.values())]:
        quota[city] += 1
    rng = np.random.default_rng(seed)
    held_out: set[str] = set()
    for city, members in sorted(cities.items()):
        held_out.update(members[i].name for i in rng.permutation(len(members))[: quota[city]])
    ordered = sorted(samples, key=lambda s: s.name)
    return [s for s in ordered if s.name not in held_out], [s for s in ordered if s.name in held_out]
