"""``sh run.sh check CONFIG``: every problem of the data that a configuration names, in one table.

Reads all images and labels of the source, the target training images and the test split, in parallel. The exit status
is 1 if something would stop a training or an evaluation, 0 if there are only remarks.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataset.folders import DataError, Sample, find_samples, known_labels
from dataset.labels import IGNORE, ClassTable
from dataset.reading import read_image, read_label
from utils.config.read import build_config
from utils.config.schema import Config

ERROR, REMARK = "error", "remark"
RARE = 1e-5  # share of the labelled pixels below which a class is hardly learned


@dataclass(frozen=True)
class Finding:
    """One thing about one file: an error would stop a run, a remark would not."""

    level: str
    split: str
    path: str
    message: str


@dataclass(frozen=True)
class Report:
    """What is known of one split: findings, image sizes (W, H) and labelled pixels of each class (C,)."""

    findings: list[Finding]
    sizes: Counter
    counts: np.ndarray
    images: int = 0
    labels: int = 0


class _Files(Dataset):
    """Findings, size and class counts of one sample after another."""

    def __init__(self, samples: Sequence[Sample], split: str, kind: str, num_classes: int) -> None:
        self.samples, self.split, self.kind, self.num_classes = samples, split, kind, num_classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[list[Finding], tuple[int, int] | None, np.ndarray]:
        sample = self.samples[index]
        findings: list[Finding] = []
        counts = np.zeros(self.num_classes, np.int64)
        size = shape = None
        try:
            size = read_image(sample.image).size
        except DataError as error:
            findings.append(Finding(ERROR, self.split, str(sample.image), str(error)))
        if sample.label is not None:
            try:
                label = read_label(sample.label, self.kind)
                shape = label.shape[::-1]
                counts += np.bincount(label.ravel(), minlength=IGNORE + 1)[: self.num_classes]
                if not counts.any():
                    remark = "nothing is labelled, all of it is void"
                    findings.append(Finding(REMARK, self.split, str(sample.label), remark))
            except DataError as error:
                findings.append(Finding(ERROR, self.split, str(sample.label), str(error)))
        if size and shape and size != shape:
            text = f"the image is {size[0]}x{size[1]}, the label {shape[0]}x{shape[1]} (W x H)"
            findings.append(Finding(ERROR, self.split, str(sample.image), text))
        return findings, size, counts


def check_split(config: Config, split: str, num_workers: int) -> Report:
    """Everything about ``split``: "source", "target" (training images) or "test"."""
    options = getattr(config, split)
    data_dir = options.data_dir or config.target.data_dir
    empty = Report([], Counter(), np.zeros(config.num_classes, np.int64))
    try:
        lists = {"data_list": options.data_list, "label_list": options.label_list}
        samples = find_samples(options.dataset, data_dir, split=options.split, **lists, labels="optional")
    except DataError as error:
        empty.findings.append(Finding(ERROR, split, str(data_dir), str(error)))
        return empty
    findings = list(_pairs(config, split, samples))
    files = _Files(samples, split, options.label_kind, config.num_classes)
    loader = DataLoader(files, batch_size=None, collate_fn=lambda item: item, num_workers=num_workers)
    sizes: Counter[tuple[int, int]] = Counter()
    counts = empty.counts
    for found, size, labelled in tqdm(loader, desc=split):
        findings += found
        sizes[size] += size is not None
        counts = counts + labelled
    return Report(findings, +sizes, counts, len(samples), sum(sample.label is not None for sample in samples))


def _pairs(config: Config, split: str, samples: Sequence[Sample]) -> Iterator[Finding]:
    """Images without label where one is needed, labels without image."""
    unlabelled = [sample for sample in samples if sample.label is None]
    needed = split != "target" or 0 < len(unlabelled) < len(samples)
    for sample in unlabelled if needed else []:
        yield Finding(ERROR if split != "target" else REMARK, split, str(sample.image), "has no label")
    options = getattr(config, split)
    if options.dataset != "list" and options.data_list is None:
        labels = known_labels(options.dataset, options.data_dir or config.target.data_dir, options.split)
        for path in sorted(labels - {sample.label for sample in samples}):
            yield Finding(REMARK, split, str(path), "a label without image")


def describe(report: Report, split: str, table: ClassTable) -> str:
    """Counts, sizes, class frequencies and findings of a split as text."""
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
    return "\n".join(lines + [f"  {f.level}: {f.path}: {f.message}" for f in report.findings])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sh run.sh check", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file, see cfgs/")
    parser.add_argument("--workers", type=int, default=2, help="processes that read files")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)
    config = build_config(args.config, args.overrides)
    table = config.class_table
    reports = {split: check_split(config, split, args.workers) for split in ("source", "target", "test")}
    levels = Counter(finding.level for report in reports.values() for finding in report.findings)
    print("\n".join(describe(report, split, table) for split, report in reports.items()))
    print(f"{levels[ERROR]} errors, {levels[REMARK]} remarks")
    return 1 if levels[ERROR] else 0


if __name__ == "__main__":
    sys.exit(main())
