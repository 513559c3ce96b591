"""``sh run.sh check CONFIG``: every problem of the data that a configuration names, in one table.

Reads all images and labels of the source, the target training images, those of val.data_list and the test split, in
parallel. The exit status is 1 if something would stop a training or an evaluation, 0 if there are only remarks.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np

from dataset.folders import Sample, find_samples, known_labels
from dataset.labels import (
    IGNORE,
    ClassTable,
    class_table,
    id_lookup,
    known_ids,
    look_like_train_ids,
    refuse_train_ids,
)
from dataset.messages import SHOWN, DataError, few
from dataset.program import exit_after, usable_cores
from dataset.progress import Progress
from dataset.reading import OTHER_SIZES, is_turned, may_be_resized, read_image, read_raw_label, remedy, turned
from utils.config.command_line import make_parser, parse_arguments, parse_config
from utils.config.declare import ConfigError
from utils.config.schema import Config, Domain, Evaluation

ERROR, REMARK = "error", "remark"
HELD_OUT = "held_out"
SHOWN_IDS = 10
RARE = 1e-5  # share of the labelled pixels below which a class is hardly learned


@dataclass(frozen=True)
class Finding:
    """One thing about one file or, without ``path``, a split: an error would stop a run, a remark would not."""

    level: str
    path: str
    message: str
    topic: str  # findings of one topic are folded when they are many


@dataclass
class Report:
    """What is known of one split: findings, image sizes (W, H), pixels of each class (C,) and of each raw id."""

    findings: list[Finding]
    counts: np.ndarray
    sizes: Counter = field(default_factory=Counter)
    raw: Counter = field(default_factory=Counter)
    unknown: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))  # raw id -> label files
    turned: int = 0  # images
    resized: list[str] = field(default_factory=list)  # label files of another size than their image
    images: int = 0
    labels: int = 0


@dataclass
class Seen:
    """What reading one sample shows."""

    findings: list[Finding]
    size: tuple[int, int] | None = None
    turned: bool = False
    resized: bool = False
    raw: dict[int, int] = field(default_factory=dict)  # pixels of each raw id
    unknown: list[int] = field(default_factory=list)


class _Files:
    """What is seen of one sample after another."""

    def __init__(self, samples: Sequence[Sample], kind: str, resizable: bool) -> None:
        self.samples, self.kind, self.resizable = samples, kind, resizable

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Seen:
        sample = self.samples[index]
        seen, shape = Seen([]), None
        try:
            seen.size = read_image(sample.image).size
            seen.turned = is_turned(sample.image)
        except DataError as error:
            seen.findings.append(Finding(ERROR, str(sample.image), str(error), "unreadable image"))
        if sample.label is not None:
            try:
                raw = read_raw_label(sample.label, self.kind)
                refuse_train_ids(sample.label, self.kind)
                shape = raw.shape[::-1]
                self._count(seen, raw, sample.label)
            except DataError as error:
                seen.findings.append(Finding(ERROR, str(sample.label), str(error), "unusable label"))
        if seen.size and shape and seen.size != shape and self.resizable:
            seen.resized = may_be_resized(self.kind, seen.size, shape)
        if seen.size and shape and seen.size != shape and not seen.resized:
            text = f"the image is {seen.size[0]}x{seen.size[1]}, the label {shape[0]}x{shape[1]} (W x H)"
            text += turned(sample.image)
            seen.findings.append(Finding(ERROR, str(sample.image), text, "image and label differ in size"))
        return seen

    def _count(self, seen: Seen, raw: np.ndarray, path: Path) -> None:
        counts = np.bincount(raw.ravel(), minlength=IGNORE + 1)
        present = np.flatnonzero(counts)
        seen.raw = dict(zip(present.tolist(), counts[present].tolist(), strict=True))
        seen.unknown = present[~known_ids(self.kind)[present]].tolist()
        if not seen.unknown and (id_lookup(self.kind)[present] == IGNORE).all():
            seen.findings.append(Finding(REMARK, str(path), "nothing is labelled, all of it is void", "all void"))


def splits(config: Config) -> list[str]:
    """What a configuration names: training images, those of val.data_list, and the test split."""
    return ["source", "target", *([HELD_OUT] if config.val.data_list else []), "test"]


def _options(config: Config, split: str) -> Domain | Evaluation:
    if split != HELD_OUT:
        return getattr(config, split)
    v, t = config.val, config.target
    return replace(t, data_dir=v.data_dir or t.data_dir, data_list=v.data_list, label_list=v.label_list)


def check_split(config: Config, split: str, num_workers: int) -> Report:
    """Everything about one of ``splits``."""
    from torch.utils.data import DataLoader, Dataset  # here: torch takes seconds, which a wrong command line should not

    from utils.builders.data import has_test_set

    options = _options(config, split)
    data_dir = options.data_dir or config.target.data_dir
    label_roots = {HELD_OUT: config.val.label_dir, "test": config.test.label_dir}
    report = Report([], np.zeros(config.num_classes, np.int64))
    if split == "test" and not has_test_set(config):
        text = "there is no test set: training needs none, but there will be no scores"
        report.findings.append(Finding(REMARK, "", text, "no test set"))
        return report
    try:
        samples = find_samples(
            options.dataset,
            data_dir,
            split=options.split,
            data_list=options.data_list,
            label_list=options.label_list,
            label_root=label_roots.get(split),
            labels="optional",
            repeats=split in ("source", "target"),
        )
    except DataError as error:
        report.findings.append(Finding(ERROR, str(data_dir), str(error), "not found"))
        return report
    report.images, report.labels = len(samples), sum(sample.label is not None for sample in samples)
    report.findings += _pairs(config, split, samples)
    kind = options.label_kind
    files = cast("Dataset[Seen]", _Files(samples, kind, resizable=split == "source"))
    loader = DataLoader(files, batch_size=None, collate_fn=lambda item: item, num_workers=num_workers)
    for sample, seen in zip(samples, Progress(loader, split), strict=True):
        report.findings += seen.findings
        report.sizes[seen.size] += seen.size is not None
        report.turned += seen.turned
        report.resized += [str(sample.label)] if seen.resized else []
        report.raw.update(seen.raw)
        for raw in seen.unknown:
            report.unknown[raw].append(str(sample.label))
    report.sizes = +report.sizes
    lookup, known = id_lookup(kind), known_ids(kind)
    for raw, pixels in report.raw.items():
        if known[raw] and lookup[raw] != IGNORE:
            report.counts[lookup[raw]] += pixels
    report.findings += [*_unknown_ids(report, kind), *_label_remarks(report, split, kind)]
    report.findings += _image_remarks(report, split, config)
    return report


def _pairs(config: Config, split: str, samples: Sequence[Sample]) -> Iterator[Finding]:
    """Images without label where one is needed, labels without image."""
    unlabelled = [sample for sample in samples if sample.label is None]
    if split == "test" and len(unlabelled) == len(samples):
        text = "no image has a label: training needs none, but there will be no scores"
        yield Finding(REMARK, "", text, "unlabelled")
    elif split != "target" or len(unlabelled) < len(samples):
        for sample in unlabelled:
            level = REMARK if split == "target" else ERROR
            yield Finding(level, str(sample.image), "has no label", "image without label")
    options = _options(config, split)
    if options.dataset != "list" and options.data_list is None:
        labels = known_labels(options.dataset, options.data_dir or config.target.data_dir, options.split)
        for path in sorted(labels - {sample.label for sample in samples}):
            yield Finding(REMARK, str(path), "a label without image", "label without image")


def _unknown_ids(report: Report, kind: str) -> Iterator[Finding]:
    """Raw ids that the label kind does not define: by file where few are concerned, else by id."""
    by_file = defaultdict(list)
    for raw, files in sorted(report.unknown.items()):
        for file in files:
            by_file[file].append(raw)
    advice = remedy(report.raw, kind)
    ids = sorted(report.unknown)
    listed = [f"{raw} ({len(report.unknown[raw])} files, {report.raw[raw]} pixels)" for raw in ids[:SHOWN_IDS]]
    more = f" and {len(ids) - SHOWN_IDS} more ids" if len(ids) > SHOWN_IDS else ""
    topic = f"have ids that {kind} does not define: {', '.join(listed)}{more}. {advice}"
    for file, found in by_file.items():
        yield Finding(ERROR, file, f"ids that {kind} does not define: {', '.join(map(str, found))}. {advice}", topic)


def _label_remarks(report: Report, split: str, kind: str) -> Iterator[Finding]:
    """What the ids of all labels together say about their encoding."""
    total = sum(report.raw.values())
    if total and not report.counts.any() and not report.unknown:
        text = "no pixel of all labels is of a class: they count as no labels"
        yield Finding(ERROR if split == "source" else REMARK, "", text, "no labelled pixel")
    if not report.unknown and look_like_train_ids(report.raw, kind):
        ids = ", ".join(map(str, sorted(report.raw)))
        text = f"all ids are among {ids}: they look like train ids, where {kind} has label ids (labelIds files)"
        yield Finding(REMARK, "", text, "train ids")
    void_share = report.raw[IGNORE] / total if total else 0.0
    if np.count_nonzero(report.counts) == 1 and void_share and id_lookup(kind)[IGNORE] == IGNORE:
        name = class_table(kind).names[int(report.counts.argmax())]
        text = f"{name} is the only class, and 255 ({void_share:.1%} of the pixels) is void: if it is a class of masks "
        yield Finding(REMARK, "", text + "of 0 and 255, give it ids: [255] in the id table", "one class")


def _image_remarks(report: Report, split: str, config: Config) -> Iterator[Finding]:
    from utils.builders.data import shape_remark  # torch

    if report.turned:
        text = f"{report.turned} images have an EXIF orientation, which is applied: labels must fit the upright images"
        yield Finding(REMARK, "", text, "orientation")
    if report.resized:
        text = f"{len(report.resized)} labels {OTHER_SIZES}: {few(report.resized)}"
        yield Finding(REMARK, "", text, "labels of another size")
    if split == "test" and (text := shape_remark(config, report.sizes)):
        yield Finding(REMARK, "", text, "shape")


def describe(report: Report, split: str, table: ClassTable, fold: bool = True) -> str:
    """Counts, sizes, class frequencies and findings of a split as text; ``fold``: many of a kind on one line."""
    sizes = ", ".join(f"{count} of {w}x{h}" for (w, h), count in report.sizes.most_common(4))
    more = f" and {len(report.sizes) - 4} other sizes" if len(report.sizes) > 4 else ""
    lines = [f"{split}: {report.images} images, {report.labels} labels; {sizes}{more}"]
    total = report.counts.sum()
    if total:
        shares = dict(zip(table.names, report.counts / total, strict=True))
        lines.append("  " + ", ".join(f"{name} {100 * share:.2f}%" for name, share in shares.items() if share))
        rare = [name for name, share in shares.items() if share < RARE]
        if rare:
            lines.append(f"  absent or below {RARE:.3%} of the labelled pixels: {', '.join(rare)}")
    return "\n".join(lines + _lines(report.findings, fold))


def _lines(findings: Sequence[Finding], fold: bool) -> list[str]:
    topics: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        topics[finding.level, finding.topic].append(finding)
    lines = []
    for (level, topic), found in topics.items():
        if fold and len(found) > SHOWN:
            lines.append(f"  {level}: {len(found)} files: {topic}: {few(f.path for f in found)} (--all lists them)")
        else:
            lines += [f"  {level}: {f.path + ': ' if f.path else ''}{f.message}" for f in found]
    return lines


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    """How many processes read files, and whether what repeats is listed; the configuration."""
    parser = make_parser(__doc__, "sh run.sh check")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes that read files; all cores")
    parser.add_argument("--all", action="store_true", help="a line for each file, also where many have the same fault")
    args = parse_arguments(parser, argv)
    if args.workers < 0:
        raise ConfigError(f"command line: --workers must be at least 0, got {args.workers}")
    return args, parse_config(args, "evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    args, config = parse(argv)
    reports = {split: check_split(config, split, args.workers) for split in splits(config)}
    levels = Counter(finding.level for report in reports.values() for finding in report.findings)
    table, fold = config.class_table, not args.all
    print("\n".join(describe(report, split, table, fold) for split, report in reports.items()))
    print(f"{levels[ERROR]} errors, {levels[REMARK]} remarks")
    return 1 if levels[ERROR] else 0


if __name__ == "__main__":
    exit_after(main)
