"""``sh run.sh check CONFIG``: every problem of the data that a configuration names, in one table.

Reads all images and labels in parallel: source, target training images, val.data_list and test split. The exit status
is 1 if an error would stop a training or an evaluation, and 0 if there are only remarks.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dataset.folders import Sample, known_labels
from dataset.labels import IGNORE, class_table, id_lookup, known_ids, look_like_train_ids, refuse_train_ids
from dataset.messages import SHOWN, DataError, UserError, few
from dataset.program import exit_after, usable_cores
from dataset.progress import Progress
from dataset.reading import OTHER_SIZES, is_turned, may_be_resized, read_image, read_raw_label, remedy, turned
from utils.config.command_line import make_parser, parse_arguments, parse_config
from utils.config.schema import Config, ConfigError, Domain

if TYPE_CHECKING:
    from utils.builders.data import Split

ERROR, REMARK = "error", "remark"
SHOWN_IDS, SHOWN_SIZES = 10, 4
RARE = 1e-5  # share of the labelled pixels below which a class is hardly learned
CHUNK = 16  # samples that a reading process gets at a time


@dataclass(frozen=True)
class Finding:
    """An error or a remark about a file or, without ``path``, about a split. Only an error would stop a run."""

    level: str
    path: str
    message: str
    topic: str  # many findings of one topic are printed on one line


@dataclass
class Checked:
    """The result of reading one image and its label."""

    sample: Sample
    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None  # (W, H)
    turned: bool = False
    resized: bool = False  # image and label differ in size, and training accepts it
    raw: dict[int, int] = field(default_factory=dict)  # pixels of each raw id


class SplitReport:
    """All about one split: the results of its images, counts and findings."""

    def __init__(self, split: "Split", seen: Sequence[Checked] = (), findings: Sequence[Finding] = ()) -> None:
        self.split, self.seen, self.findings = split, seen, [*findings]
        self.kind = split.options.label_kind
        self.sizes = Counter(one.size for one in seen if one.size)  # images of each (W, H)
        self.raw: Counter[int] = Counter()  # pixels of each raw id, all labels together
        for one in seen:
            self.raw.update(one.raw)
        self.unknown = {number for number in self.raw if not known_ids(self.kind)[number]}
        self.counts = np.zeros(class_table(self.kind).num_classes, np.int64)  # pixels of each class
        for number in self.raw.keys() - self.unknown:
            if (train_id := id_lookup(self.kind)[number]) != IGNORE:
                self.counts[train_id] += self.raw[number]
        for part in (_unknown_ids, _label_remarks, _image_remarks):
            self.findings += part(self)


def look(sample: Sample, kind: str, resizable: bool) -> Checked:
    """Read one image and its label. ``resizable``: the label may have another size, see ``may_be_resized``."""
    seen, shape = Checked(sample), None
    try:
        seen.size = read_image(sample.image).size
        seen.turned = is_turned(sample.image)
    except DataError as error:
        seen.findings.append(Finding(ERROR, str(sample.image), str(error), "unreadable image"))
    if sample.label is not None:
        try:
            raw = read_raw_label(sample.label, kind)
            refuse_train_ids(sample.label, kind)
            shape = raw.shape[::-1]
            counts = np.bincount(raw.ravel())
            seen.raw = {int(number): int(counts[number]) for number in np.flatnonzero(counts)}
        except DataError as error:
            seen.findings.append(Finding(ERROR, str(sample.label), str(error), "unusable label"))
    void = known_ids(kind) & (id_lookup(kind) == IGNORE)
    if seen.raw and void[list(seen.raw)].all():
        text = "nothing is labelled, all pixels are void"
        seen.findings.append(Finding(REMARK, str(sample.label), text, "all void"))
    if seen.size and shape and seen.size != shape:
        seen.resized = resizable and may_be_resized(kind, seen.size, shape)
        if not seen.resized:
            text = f"the image is {seen.size[0]}x{seen.size[1]}, the label {shape[0]}x{shape[1]} (W x H)"
            text += turned(sample.image)
            seen.findings.append(Finding(ERROR, str(sample.image), text, "image and label differ in size"))
    return seen


def check_split(split: "Split", workers: int) -> SplitReport:
    """Check one split. ``workers`` processes read its files; 0: this process."""
    try:
        samples = split.find("optional")
    except DataError as error:
        return SplitReport(split, findings=[Finding(ERROR, split.data_dir, str(error), "not found")])
    read = partial(look, kind=split.options.label_kind, resizable=split.name == "source")
    with ProcessPoolExecutor(workers) if workers else nullcontext() as pool:
        results = pool.map(read, samples, chunksize=CHUNK) if pool else map(read, samples)
        seen = [next(results) for _ in Progress(samples, split.name)]
    findings = [finding for one in seen for finding in one.findings]
    return SplitReport(split, seen, [*_pairs(split, samples), *findings])


def _pairs(split: "Split", samples: Sequence[Sample]) -> Iterator[Finding]:
    """Images without a needed label, and labels without an image."""
    unlabelled = [sample for sample in samples if sample.label is None]
    if split.name == "test" and len(unlabelled) == len(samples):
        text = "no image has a label: training needs none, but there will be no scores"
        yield Finding(REMARK, "", text, "unlabelled")
    elif split.name != "target" or len(unlabelled) < len(samples):
        for sample in unlabelled:
            level = REMARK if split.name == "target" else ERROR
            yield Finding(level, str(sample.image), "has no label", "image without label")
    options = split.options
    if options.dataset != "list" and options.data_list is None:
        labels = known_labels(options.dataset, split.data_dir, options.split)
        for path in sorted(labels - {sample.label for sample in samples}):
            yield Finding(REMARK, str(path), "a label without image", "label without image")


def _unknown_ids(report: SplitReport) -> Iterator[Finding]:
    """Raw ids that the label kind does not define: by file, and as the topic of many files, by id."""
    files = [(str(one.sample.label), sorted(one.raw.keys() & report.unknown)) for one in report.seen]
    count = Counter(number for _, numbers in files for number in numbers)
    listed = [f"{number} ({count[number]} files, {report.raw[number]} pixels)" for number in sorted(count)]
    more = f" and {len(listed) - SHOWN_IDS} more ids" if len(listed) > SHOWN_IDS else ""
    undefined, advice = f"ids that {report.kind} does not define", remedy(report.raw, report.kind)
    topic = f"have {undefined}: {', '.join(listed[:SHOWN_IDS])}{more}. {advice}"
    for file, numbers in files:
        if numbers:
            yield Finding(ERROR, file, f"{undefined}: {', '.join(map(str, numbers))}. {advice}", topic)


def _label_remarks(report: SplitReport) -> Iterator[Finding]:
    """Findings from the ids of all labels together."""
    kind, raw, counts = report.kind, report.raw, report.counts
    if report.unknown or not raw:
        return
    if not counts.any():
        text = "no pixel of any label belongs to a class: the images count as unlabelled"
        yield Finding(ERROR if report.split.name == "source" else REMARK, "", text, "no labelled pixel")
    if look_like_train_ids(raw, kind):
        ids = ", ".join(map(str, sorted(raw)))
        text = f"all ids are among {ids}: they look like train ids, but {kind} needs label ids (labelIds files)"
        yield Finding(REMARK, "", text, "train ids")
    if np.count_nonzero(counts) == 1 and raw[IGNORE] and id_lookup(kind)[IGNORE] == IGNORE:
        name, share = class_table(kind).names[int(counts.argmax())], raw[IGNORE] / raw.total()
        text = f"{name} is the only class, and 255 ({share:.1%} of the pixels) is void. If 255 is a class, as in "
        yield Finding(REMARK, "", text + "masks of 0 and 255, give it ids: [255] in the id table", "one class")


def _image_remarks(report: SplitReport) -> Iterator[Finding]:
    if count := sum(one.turned for one in report.seen):
        text = f"{count} images have an EXIF orientation, which is applied: labels must fit the upright images"
        yield Finding(REMARK, "", text, "orientation")
    if resized := [str(one.sample.label) for one in report.seen if one.resized]:
        yield Finding(REMARK, "", f"{len(resized)} labels {OTHER_SIZES}: {few(resized)}", "labels of another size")


def _size_findings(report: SplitReport, options: Domain, config: Config) -> Iterator[Finding]:
    """Findings about batches and crops, from the sizes of a domain's images."""
    from utils.builders.data import check_whole_images, one_at_a_time

    name, a, crop = report.split.name, config.adabn, options.crop_size
    try:
        check_whole_images(options, [one.sample for one in report.seen], config.train.batch_size)
    except UserError as error:
        yield Finding(ERROR, "", f"training cannot form batches: {error}", "no batches")
    whole = a.images == "whole" and a.domains in (name, "both") and options.input_size is None
    if whole and a.batch_size > 1 and len(report.sizes) > 1:
        yield Finding(REMARK, "", one_at_a_time(name), "one at a time")
    sizes = Counter(options.input_size or one.size for one in report.seen if one.size)  # before random scaling
    small = [size for size in sizes if crop and (size[0] < crop[0] or size[1] < crop[1])]
    if crop and small:
        count, (width, height) = sum(sizes[size] for size in small), small[0]
        text = f"{count} images, such as {width}x{height}, are smaller than {name}.crop_size {list(crop)} (W, H): "
        yield Finding(REMARK, "", text + "their crops are padded; training ignores the padding", "padded crops")


def check(config: Config, workers: int) -> list[SplitReport]:
    """A report for each of ``splits``."""
    from utils.builders.data import Data, distortion, splits  # imports torch: only after the command line is checked

    *training, test = splits(config).values()
    reports = [check_split(split, workers) for split in training]
    for report, options in zip(reports[:2], (config.source, config.target), strict=True):  # not for held_out
        report.findings += _size_findings(report, options, config)
    if not Data(config).has_test_set:
        text = "there is no test set: training needs none, but there will be no scores"
        return [*reports, SplitReport(test, findings=[Finding(REMARK, "", text, "no test set")])]
    reports.append(check_split(test, workers))
    if text := distortion(config.test.input_size, reports[-1].sizes):
        reports[-1].findings.append(Finding(REMARK, "", text, "shape"))
    return reports


def describe(report: SplitReport, fold: bool = True) -> str:
    """Counts, sizes, class frequencies and findings of a split as text; ``fold``: many of one topic on one line."""
    sizes = ", ".join(f"{count} of {w}x{h}" for (w, h), count in report.sizes.most_common(SHOWN_SIZES))
    more = f" and {len(report.sizes) - SHOWN_SIZES} other sizes" if len(report.sizes) > SHOWN_SIZES else ""
    labels = sum(one.sample.label is not None for one in report.seen)
    lines = [f"{report.split.name}: {len(report.seen)} images, {labels} labels; {sizes}{more}"]
    if report.counts.any():
        shares = dict(zip(class_table(report.kind).names, report.counts / report.counts.sum(), strict=True))
        lines.append("  " + ", ".join(f"{name} {100 * share:.2f}%" for name, share in shares.items() if share))
        rare = [name for name, share in shares.items() if share < RARE]
        if rare:
            lines.append(f"  absent or below {RARE:.3%} of the labelled pixels: {', '.join(rare)}")
    topics: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        topics[finding.level, finding.topic].append(finding)
    for (level, topic), found in topics.items():
        if fold and len(found) > SHOWN:
            first = f". The first: {found[0].message}" if found[0].path in found[0].message else ""
            files = few(finding.path for finding in found)
            lines.append(f"  {level}: {len(found)} files: {topic}: {files} (--all lists them){first}")
        else:
            lines += [f"  {level}: {f.path + ': ' if f.path else ''}{f.message}" for f in found]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = make_parser(__doc__, "sh run.sh check")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="reading processes; default: all cores")
    parser.add_argument("--all", action="store_true", help="one line for each file, even if many have the same finding")
    args = parse_arguments(parser, argv)
    if args.workers < 0:
        raise ConfigError(f"command line: --workers must be at least 0, got {args.workers}")
    reports = check(parse_config(args, "evaluate"), args.workers)
    levels = Counter(finding.level for report in reports for finding in report.findings)
    print("\n".join(describe(report, fold=not args.all) for report in reports))
    print(f"{levels[ERROR]} errors, {levels[REMARK]} remarks")
    return 1 if levels[ERROR] else 0


if __name__ == "__main__":
    exit_after(main)
