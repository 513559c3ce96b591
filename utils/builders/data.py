"""Build the data of a configuration: samples, data sets, loaders."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from dataset.cache import PictureCache
from dataset.folders import Sample, find_samples, hold_out
from dataset.labels import DATA_SETS, IGNORE
from dataset.loader import (
    EndlessBatchSampler,
    SegmentationDataset,
    batch_loader,
    different_sizes,
    epoch_batches,
    eval_loader,
)
from dataset.messages import ChoiceError, DataError, Report
from dataset.reading import read_image, read_label, read_pair, stored_size
from dataset.transforms import EvalTransform, JointTransform
from utils import distributed
from utils.config.schema import Config, Domain, Evaluation, Size

MAX_DISTORTION = 0.05  # largest change of the aspect, as natural logarithm of width / height
TRAINING_PAIR = partial(read_pair, resizable=True)
SOURCE, TARGET = 0, 1  # domain numbers; they seed the augmentation, so the two domains get different random numbers


@dataclass(frozen=True)
class Split:
    """Images that a configuration names for one purpose, and where they are."""

    name: str
    options: Domain | Evaluation
    data_dir: str
    label_root: str | None = None

    def find(self, labels: str) -> list[Sample]:
        """Its samples; ``labels`` as in ``find_samples``. The lists of training images may repeat lines."""
        return find_samples(
            self.options.dataset,
            self.data_dir,
            split=self.options.split,
            data_list=self.options.data_list,
            label_list=self.options.label_list,
            label_root=self.label_root,
            labels=labels,
            repeats=self.name in ("source", "target"),
        )


def splits(config: Config) -> dict[str, Split]:
    """The splits of a configuration by name: source, target, held_out (only with val.data_list) and test."""
    s, t, v, e = config.source, config.target, config.val, config.test
    found = [Split("source", s, s.data_dir), Split("target", t, t.data_dir)]
    if v.data_list:
        held_out = replace(t, data_list=v.data_list, label_list=v.label_list)
        found.append(Split("held_out", held_out, v.data_dir or t.data_dir, v.label_dir))
    found.append(Split("test", e, e.data_dir or t.data_dir, e.label_dir))
    return {split.name: split for split in found}


class Data:
    """Samples and loaders of a configuration. Each list of samples is searched on the disk once, at its first use.

    Args:
        report: gets warnings about the data.
    """

    def __init__(self, config: Config, report: Report = lambda text: None) -> None:
        self.config, self.report = config, report

    @cached_property
    def source(self) -> list[Sample]:
        """Labelled training images of the source.

        Raises:
            DataError: as ``find_samples``; no pixel is labelled.
        """
        found, kind = splits(self.config)["source"].find("required"), self.config.source.label_kind
        if not any_labelled(found, kind):
            raise DataError(
                f"all pixels of the {len(found)} source labels ({found[0].label}, ...) are void: is {kind} the right "
                "label kind?"
            )
        return found

    @property
    def target(self) -> list[Sample]:
        """Target training images, without labels and without the held-out images.

        Raises:
            DataError: as ``find_samples``; all images are held out.
        """
        return self._target_and_held_out[0]

    @property
    def held_out(self) -> list[Sample]:
        """Labelled target images for model selection; empty if val.held_out is 0 or the target has no labels.

        If all pixels of the labels are void, they count as no labels, and this is reported. Raises DataError as
        ``target``.
        """
        return self._target_and_held_out[1]

    @cached_property
    def _target_and_held_out(self) -> tuple[list[Sample], list[Sample]]:
        t, v, named = self.config.target, self.config.val, splits(self.config)
        found = named["target"].find("optional")
        held_out: list[Sample] = []
        if "held_out" in named:
            held_out = named["held_out"].find("required")
        elif v.held_out and any(sample.label for sample in found):
            _, held_out = hold_out([sample for sample in found if sample.label], v.held_out, v.held_out_seed)
        apart = {sample.image.resolve() for sample in held_out}
        if held_out and not any_labelled(held_out, t.label_kind):
            self.report(f"all pixels of the {len(held_out)} held-out labels are void: they count as no labels")
            apart, held_out = apart if v.data_list else set(), []
        unlabelled = [Sample(s.name, s.image, None) for s in found if s.image.resolve() not in apart]
        if not unlabelled:
            raise DataError(
                f"val.data_list {v.data_list} holds out all {len(found)} target images: list fewer, training needs some"
            )
        return unlabelled, held_out

    @property
    def has_test_set(self) -> bool:
        """Whether the configuration names a test set, or the target's data set has one in its layout."""
        e = self.config.test
        if e.data_list is not None or e.data_dir is not None:
            return True
        layout = DATA_SETS.get(e.dataset)
        return layout is not None and (Path(self.config.target.data_dir) / layout.images.format(split=e.split)).is_dir()

    def test(self, labels: str = "required") -> list[Sample]:
        """Test images.

        Args:
            labels: "required": an image without label or a missing test set is an error; "optional": no images if there
                is no test set, and images without labels if all pixels are void.
        """
        split = splits(self.config)["test"]
        if labels == "required":
            return split.find(labels)
        if not self.has_test_set:
            return []
        found = split.find(labels)
        if not any_labelled(found, self.config.test.label_kind):
            return [Sample(sample.name, sample.image, None) for sample in found]
        return split.find("required")

    def lists(self) -> dict[str, list[Sample]]:
        """Samples for training and model selection, by name."""
        return {"source": self.source, "target": self.target, "held_out": self.held_out}

    def shape_remark(self, samples: Sequence[Sample]) -> str:
        """Warning that ``test.input_size`` distorts the first of the ``samples``; "" if it does not.

        Also "" if the image cannot be read: that is an error when the image is used.
        """
        try:
            return distortion(self.config.test.input_size, [read_image(sample.image).size for sample in samples[:1]])
        except DataError:
            return ""

    def _augmentation(self, domain: int, statistics_only: bool = False) -> Domain:
        """Keys of one domain; with ``statistics_only``, as changed by the keys of ``adabn``."""
        options, a = self.config.source if domain == SOURCE else self.config.target, self.config.adabn
        if not statistics_only:
            return options
        options = replace(options, rotate=None, flip=False)
        if a.images == "whole":
            return replace(options, scale=None, crop_size=None)
        return options if a.scale is None else replace(options, scale=a.scale)

    def dataset(
        self, domain: int, samples: Sequence[Sample], *, statistics_only: bool = False, cached: bool = True
    ) -> SegmentationDataset:
        """Images of one domain, augmented by its keys or, with ``statistics_only``, by the keys of ``adabn``.

        Args:
            cached: False does not use ``train.cache_dir``.
        """
        options, t = self._augmentation(domain, statistics_only), self.config.train
        transform = JointTransform(
            size=options.input_size,
            scale=options.scale,
            rotate=options.rotate,
            flip=options.flip,
            crop=options.crop_size,
            scale_from=options.scale_from,
        )
        return SegmentationDataset(
            samples,
            options.label_kind,
            transform,
            seed=self.config.seed,
            domain=domain,
            skip_bad=t.skip_bad_samples,
            read=PictureCache(t.cache_dir, transform.fixed_size) if cached and t.cache_dir else TRAINING_PAIR,
        )

    def training_loader(self, domain: int) -> DataLoader:
        """Endless augmented batches of one domain.

        Raises:
            ChoiceError, DataError: the images do not form batches, see ``check_whole_images``.
        """
        samples, t = self.source if domain == SOURCE else self.target, self.config.train
        check_whole_images(self._augmentation(domain), samples, t.batch_size // distributed.world_size())
        batches = EndlessBatchSampler(len(samples), t.batch_size, self.config.seed, **_this_process())
        return batch_loader(self.dataset(domain, samples), batches, t.num_workers)

    def statistics_loader(self, domain: int, samples: Sequence[Sample]) -> DataLoader:
        """Batches for batch-norm statistics: ``adabn.num_steps`` batches, or all images ``adabn.epochs`` times.

        Images of several sizes form no batch: each process reads them one at a time, and this is reported.

        Raises:
            ChoiceError: the images do not form batches, see ``check_whole_images``.
        """
        a, options = self.config.adabn, self._augmentation(domain, statistics_only=True)
        batch_size = a.batch_size
        try:
            check_whole_images(options, samples, math.ceil(batch_size / distributed.world_size()))
        except DataError:
            batch_size = distributed.world_size()
            self.report(one_at_a_time("source" if domain == SOURCE else "target"))
        stream = {"seed": self.config.seed, **_this_process()}
        if a.num_steps is None:
            batches = epoch_batches(len(samples), batch_size, a.epochs, **stream)
        else:
            batches = list(islice(EndlessBatchSampler(len(samples), batch_size, **stream), a.num_steps))
        dataset = self.dataset(domain, samples, statistics_only=True)
        return batch_loader(dataset, batches, self.config.test.num_workers)

    def evaluation_loader(
        self, samples: Sequence[Sample], options: Domain | Evaluation, num_workers: int | None = None
    ) -> DataLoader:
        """Each image once, shared between all processes; labels keep their own size.

        Args:
            options: their label kind is used.
            num_workers: None: ``test.num_workers``.
        """
        test = self.config.test
        dataset = SegmentationDataset(
            samples,
            options.label_kind,
            EvalTransform(test.input_size),
            seed=self.config.seed,
            domain=TARGET,
            read=TRAINING_PAIR if options is self.config.source else read_pair,
        )
        return eval_loader(
            dataset, num_workers=test.num_workers if num_workers is None else num_workers, **_this_process()
        )


def _this_process() -> dict[str, Any]:
    return {"rank": distributed.rank(), "world_size": distributed.world_size()}


def any_labelled(samples: Sequence[Sample], kind: str) -> bool:
    """Whether a label has a pixel that is not void. Reads up to the first such label. Unreadable labels count too."""
    for sample in samples:
        try:
            if sample.label is not None and (read_label(sample.label, kind) != IGNORE).any():
                return True
        except DataError:  # reported or tolerated when the file is used
            return True
    return False


def are_labelled(samples: Sequence[Sample]) -> bool:
    """Whether any sample has a label, so that scores are possible."""
    return any(sample.label for sample in samples)


def distortion(input_size: Size | None, sizes: Iterable[Size]) -> str:
    """Warning that ``test.input_size`` distorts images of ``sizes`` (W, H); "" if it hardly does."""
    if input_size is None:
        return ""
    width, height = input_size
    stretched = {size: (width / height) / (size[0] / size[1]) for size in sizes}
    size = max(stretched, key=lambda size: abs(math.log(stretched[size])), default=None)
    if size is None or abs(math.log(stretched[size])) <= MAX_DISTORTION:
        return ""
    return (
        f"test.input_size [{width}, {height}] makes images of {size[0]}x{size[1]} {stretched[size]:.2f} times as wide: "
        "set it to null or to their shape"
    )


def one_at_a_time(domain: str) -> str:
    """Warning that the statistics of a domain do not use batches of ``adabn.batch_size``."""
    return (
        f"{domain} images have several sizes: adabn runs them one at a time. For batches set {domain}.input_size, or "
        f"adabn.images=crops and {domain}.crop_size"
    )


def check_whole_images(options: Domain, samples: Sequence[Sample], images: int) -> None:
    """Check that ``samples``, transformed as in ``options``, have one size, so that they form batches of ``images``.

    Raises:
        ChoiceError: a random scale without a crop.
        DataError: no size is set, and the images have several sizes.
    """
    if images == 1 or options.crop_size is not None:
        return
    if options.scale is not None and options.scale[0] < options.scale[1]:
        raise ChoiceError(
            f"a random scale of {list(options.scale)} gives every image another size: set crop_size to form batches"
        )
    if options.input_size is None:
        check_one_size(samples)


def check_one_size(samples: Sequence[Sample]) -> None:
    """Check by the headers that all images have one size. Unreadable images are skipped: they are reported when used.

    Raises:
        DataError: two images have different sizes.
    """
    first: tuple[Sample, Size, Size] | None = None
    for sample in samples:
        try:
            stored = stored_size(sample.image)
            if first and stored == first[1]:
                continue
            size = read_image(sample.image).size  # upright
        except DataError:
            continue
        if first is None:
            first = sample, stored, size
        elif size != first[2]:
            raise DataError(different_sizes(str(first[0].image), first[2], str(sample.image), size))


def start_at(loader: object, step: int) -> None:
    """Let a ``training_loader`` begin with the batch of ``step``. Call it before the iteration starts."""
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, EndlessBatchSampler):
        sampler.start_step = step
